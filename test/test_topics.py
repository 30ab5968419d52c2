"""No node names a topic, service or action from the root, but for ROS's own: a namespace must work for every other."""
from __future__ import annotations

import ast
from pathlib import Path

NODES = Path(__file__).resolve().parents[1] / "world_gymnast_ros" / "nodes"
ENDS = {"create_subscription": 1, "create_publisher": 1, "create_client": 1, "create_service": 1, "ActionClient": 2,
        "ActionServer": 2, "hear_everyone": 2}
"""Call -> place of the name among its arguments."""
EVERYBODYS = {"/tf", "/tf_static", "/diagnostics"}
"""Topics that ROS has once for all: a name from the root by convention."""
OF_ROS = {"/tf", "/tf_static", "/diagnostics"}
"""Topics that every viewer and aggregator looks for at the root."""


def first_text(node: ast.expr) -> str:
    """Return how a name begins, as far as the source says."""
    if isinstance(node, ast.JoinedStr):
        return first_text(node.values[0]) if node.values else ""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def named_from_the_root(source: str) -> list[str]:
    found = []
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call):
            place = ENDS.get(getattr(call.func, "attr", getattr(call.func, "id", "")), 99)
            found += [ast.unparse(a) for a in call.args[place:place + 1]
                      if first_text(a).startswith("/") and first_text(a) not in OF_ROS]
        elif isinstance(call, (ast.Assign, ast.AnnAssign)) and call.value is not None:
            values = call.value.elts if isinstance(call.value, ast.Tuple) else [call.value]
            found += [ast.unparse(v) for v in values if first_text(v).startswith("/") and "joint_st" in ast.unparse(v)]
    return found


def test_every_topic_is_relative() -> None:
    found = {path.name: named_from_the_root(path.read_text()) for path in sorted(NODES.glob("*.py"))}
    assert {name: topics for name, topics in found.items() if topics} == {}


def test_the_check_sees_absolute_names() -> None:
    source = "n.create_publisher(K, '/a', 1)\nn.create_client(K, f'/{x}/b')\nself.t = f'/{r}/joint_states'\nf(K, '/c')"
    assert len(named_from_the_root(source)) == 3
