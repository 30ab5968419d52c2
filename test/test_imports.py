"""The table of allowed imports, enforced, and the promise that the core loads neither rclpy nor torch."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "world_gymnast_ros"
NAME = PACKAGE.name
GENERATED = ("msg", "srv", "action")

MESSAGES = {
    "action_msgs", "builtin_interfaces", "control_msgs", "diagnostic_msgs", "geometry_msgs", "interbotix_xs_msgs",
    "moveit_msgs", "rcl_interfaces", "sensor_msgs", "std_msgs", "std_srvs", "trajectory_msgs",
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
FOLDER_MAY = {
    "models": PLAIN | TORCH,
    "learning": PLAIN | TORCH,
    "twin": PLAIN | {"mujoco"},
    "episodes": PLAIN,
    "export": PLAIN,
    "cli": PLAIN | TORCH | {"mujoco", "psutil"},
    "nodes": PLAIN | TORCH | {"mujoco"} | ROS,
}
"""Third-party packages that each folder may import; root modules may import PLAIN."""
FOLDER_MAY_NOT_USE = {
    "": {"models", "learning", "twin", "nodes", "cli"},
    "models": {"learning", "twin", "nodes", "cli"},
    "learning": {"nodes", "cli"},
    "twin": {"models", "learning", "nodes", "cli"},
    "episodes": {"models", "learning", "twin", "nodes", "cli"},
    "export": {"models", "learning", "twin", "nodes", "cli"},
    "cli": {"nodes"},
    "nodes": set(),
}
"""Folders of this package that each folder may not import; "" stands for the root modules."""


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
    folder = path.parts[0] if len(path.parts) > 1 else ""
    may = FOLDER_MAY.get(folder, PLAIN)
    if not folder and path.stem in VOCABULARY:
        may = VOCABULARY_MAY
    if path.as_posix() == "nodes/convert.py":
        may = may | MESSAGES
    found = []
    for name in sorted(imports(path)):
        top, _, rest = name.partition(".")
        inner = rest.partition(".")[0]
        if top == NAME and inner not in GENERATED:
            if inner in FOLDER_MAY_NOT_USE.get(folder, set()):
                found.append(f"{path} imports {name}: {folder or 'a root module'} may not use {inner}/")
            continue
        third_party = ".".join(name.split(".")[:2]) if top == NAME else top
        if third_party not in sys.stdlib_module_names and third_party not in may:
            found.append(f"{path} imports {name}: allowed here are {sorted(may)}")
    return found


def test_every_folder_has_a_rule() -> None:
    folders = {path.parts[0] for path in modules() if len(path.parts) > 1}
    assert folders <= set(FOLDER_MAY) and set(FOLDER_MAY) | {""} == set(FOLDER_MAY_NOT_USE)


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
    core = [p for p in modules() if len(p.parts) == 1 or p.parts[0] in ("episodes", "export")]
    core.append(Path("cli/__init__.py"))
    names = [".".join([NAME, *p.with_suffix("").parts]).removesuffix(".__init__") for p in core]
    program = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        "print([m for m in ('rclpy', 'torch', 'mujoco', 'transformers') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
