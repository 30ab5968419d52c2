"""The table of allowed imports, enforced, and the promise that the core loads neither rclpy nor torch."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import START_S

PACKAGE = Path(__file__).resolve().parents[1] / "world_gymnast_ros"
NAME = PACKAGE.name
GENERATED = ("msg", "srv", "action")

MESSAGES = {
    "action_msgs", "builtin_interfaces", "control_msgs", "diagnostic_msgs", "geometry_msgs", "interbotix_xs_msgs",
    "moveit_msgs", "rcl_interfaces", "sensor_msgs", "std_msgs", "std_srvs", "tf2_msgs", "trajectory_msgs",
    "visualization_msgs",
    *(f"{NAME}.{kind}" for kind in GENERATED),
}
ROS = {"rclpy", "ament_index_python", "launch", "launch_ros", "cv_bridge"}
TORCH = {"torch", "transformers", "diffusers", "peft", "tokenizers", "huggingface_hub", "accelerate"}
PLAIN = {
    "numpy", "scipy", "pinocchio", "yaml", "PIL", "matplotlib", "tqdm",
    "av", "mcap", "mcap_ros2", "rosbags", "pyarrow", "safetensors",
}

VOCABULARY = {"types", "errors"}
VOCABULARY_MAY = {"numpy"}
ROOM_MAY = {
    "robot": PLAIN, "control": PLAIN, "adaptation": PLAIN, "episodes": PLAIN, "report": PLAIN, "serving": PLAIN,
    "data": PLAIN | TORCH, "models": PLAIN | TORCH, "evaluation": PLAIN | TORCH, "training": PLAIN | TORCH,
    "updates": PLAIN | TORCH, "first_order": PLAIN | TORCH | {"gym_pusht", "gymnasium"}, "tabletop": PLAIN | TORCH,
    "loading": PLAIN | TORCH,
    "twin": PLAIN | {"mujoco"},
    "benchmark": PLAIN | TORCH | {"mujoco"},
    "testing": PLAIN,
    "cli": PLAIN | TORCH | {"mujoco", "psutil"},
    "nodes": PLAIN | TORCH | {"mujoco"} | ROS,
}
"""Third-party packages that each room may import; root modules may import PLAIN."""
ROOM_MAY_USE = {
    "": {"control", "robot"},  # config.py declares the guard's limits beside every other parameter
    "robot": set(),
    "control": {"robot"},
    "episodes": {"robot"},
    "adaptation": {"robot"},
    "serving": {"control", "robot"},  # the policy's side of what tells another action convention; a robot's limits
    "data": {"episodes", "robot"},
    "models": {"robot", "serving"},
    "evaluation": {"adaptation", "data", "models"},
    "training": {"robot", "data", "evaluation", "models"},
    "report": {"adaptation", "evaluation"},
    "updates": {"adaptation", "data", "episodes", "evaluation", "loading", "models", "report", "robot", "training"},
    "first_order": {"adaptation", "models", "report", "robot", "training", "updates"},
    "tabletop": {"robot", "data", "evaluation", "models", "training"},
    "loading": {"adaptation", "evaluation", "models", "robot", "serving", "tabletop"},  # adaptation: the release table
    "twin": {"control", "data", "robot"},
    "benchmark": {"adaptation", "data", "evaluation", "first_order", "models", "report", "robot", "twin", "updates"},
    "testing": {"adaptation", "robot"},
    "cli": {"adaptation", "benchmark", "control", "data", "episodes", "evaluation", "first_order", "loading", "models",
            "report", "robot", "serving", "tabletop", "training", "twin", "updates"},
    "nodes": {"adaptation", "cli", "control", "data", "episodes", "evaluation", "loading", "models", "report", "robot",
              "serving", "twin", "updates"},
}
"""Rooms of this package that each room may import; "" stands for the root modules, which all may use."""


def room_of(parts: tuple[str, ...] | list[str]) -> str:
    """Return the room of a module's path parts: its folder, '' for root modules."""
    return parts[0] if parts[0] in ROOM_MAY else ""


def modules() -> list[Path]:
    found = [p.relative_to(PACKAGE) for p in sorted(PACKAGE.rglob("*.py"))]
    return [p for p in found if p.parts[0] not in GENERATED]


def imports(path: Path) -> set[str]:
    """Absolute dotted names that a module imports, anywhere in it, also inside functions."""
    names: set[str] = set()
    package = [NAME, *path.parent.parts]
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from world_gymnast_ros import nodes` imports world_gymnast_ros.nodes
            names |= {f"{NAME}.{alias.name}" for alias in node.names} if module == NAME else {module}
    return names


def faults(path: Path) -> list[str]:
    room = room_of(path.parts) if len(path.parts) > 1 else ""
    may = ROOM_MAY.get(room, PLAIN)
    if not room and path.stem in VOCABULARY:
        may = VOCABULARY_MAY
    if path.as_posix() == "nodes/convert.py":
        may = may | MESSAGES
    found = []
    for name in sorted(imports(path)):
        top, _, rest = name.partition(".")
        if top == NAME and rest.partition(".")[0] not in GENERATED:
            other = room_of(rest.split(".")) if rest else ""
            if other not in {"", room} | ROOM_MAY_USE.get(room, set()):
                found.append(f"{path} imports {name}: {room or 'a root module'} may not use {other}/")
            continue
        third_party = ".".join(name.split(".")[:2]) if top == NAME else top
        if third_party not in sys.stdlib_module_names and third_party not in may:
            found.append(f"{path} imports {name}: allowed here are {sorted(may)}")
    return found


def test_every_room_has_a_rule() -> None:
    rooms = {path.parts[0] for path in modules() if len(path.parts) > 1}
    assert rooms <= set(ROOM_MAY) and set(ROOM_MAY) | {""} == set(ROOM_MAY_USE)


def test_no_two_rooms_use_each_other() -> None:
    used: dict[str, set[str]] = {room: set() for room in ROOM_MAY_USE if room}
    for path in modules():
        if (room := room_of(path.parts)) in used:
            used[room] |= {room_of(name.split(".")[1:]) for name in imports(path) if name.startswith(f"{NAME}.")}
            used[room] -= {room, ""}
    while ready := {room for room, others in used.items() if not others & set(used)}:
        used = {room: others for room, others in used.items() if room not in ready}
    assert not used, f"these rooms use each other in a circle: {sorted(used)}"


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_keep_to_the_table(path: Path) -> None:
    assert not faults(path)


def test_the_checker_sees_imports_of_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "twin").mkdir()
    inside = ("import rclpy.node", "from .. import nodes", "from ..models import x", "from torch import nn")
    source = "\n    ".join(["def f():", *inside])
    (tmp_path / "twin" / "bad.py").write_text(f"{source}\nfrom {NAME}.msg import Step\nimport numpy, os.path\n")
    found = faults(Path("twin/bad.py"))
    for name in ("rclpy.node", f"{NAME}.nodes", f"{NAME}.models", "torch", f"{NAME}.msg"):
        assert any(f"imports {name}:" in fault for fault in found), (name, found)
    assert len(found) == 5


def test_the_core_loads_neither_rclpy_nor_torch() -> None:
    core = [p for p in modules() if len(p.parts) == 1 or p.parts[0] in ("robot", "control", "adaptation", "episodes",
                                                                        "serving")]
    core.append(Path("cli/__init__.py"))
    names = [".".join([NAME, *p.with_suffix("").parts]).removesuffix(".__init__") for p in core]
    program = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        "print([m for m in ('rclpy', 'torch', 'mujoco', 'transformers') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
