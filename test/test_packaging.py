"""What says who may use the package, what it needs and how it is built agrees with the code."""
import ast
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ET.fromstring((ROOT / "package.xml").read_text())
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of https://www.apache.org/licenses/LICENSE-2.0.txt"""
OPTIONAL = {"interbotix_xs_msgs", "moveit_msgs", "control_msgs"}
"""Of drivers that one has or has not, as package.xml says."""


def test_the_licence_is_whole() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert PACKAGE.findtext("license") == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "Apache-2.0"


def test_versions_agree() -> None:
    (setup,) = re.findall(r'version="([^"]+)"', (ROOT / "setup.py").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PACKAGE.findtext("version") == setup == citation["version"]
    assert citation["cff-version"] == "1.2.0" and citation["authors"]


def test_package_xml_names_every_ros_package_that_is_imported() -> None:
    from test_imports import MESSAGES, ROS

    named = {e.text for kind in ("depend", "exec_depend") for e in PACKAGE.iter(kind)}
    imported = set()
    for path in (ROOT / "world_gymnast_ros" / "nodes").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([a.name for a in node.names] if isinstance(node, ast.Import) else
                     [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else [])
            imported |= {name.partition(".")[0] for name in names}
    used = imported & (ROS | {name for name in MESSAGES if "." not in name})
    assert {"rclpy", "launch_ros", "tf2_msgs", "visualization_msgs"} <= used
    assert used - OPTIONAL - named == set()
    assert all(name in (ROOT / "package.xml").read_text() for name in OPTIONAL)


@pytest.mark.parametrize("path", [".github/workflows/ci.yaml", "docker/Dockerfile", "docker/install",
                                  ".devcontainer/devcontainer.json"])
def test_what_was_not_run_says_so_and_names_files_that_are_there(path: str) -> None:
    text = (ROOT / path).read_text()
    assert "ot run where this was written" in "\n".join(text.splitlines()[:3])
    for name in re.findall(r"(?:docker|tools|interfaces|\.ci)/[\w./]+", text):
        assert (ROOT / name.rstrip(".")).exists(), name
    if path.endswith(".yaml"):
        assert {"pip", "ros"} == set(yaml.safe_load(text)["jobs"])
    if path.endswith(".json"):
        assert (ROOT / ".devcontainer" / json.loads(text)["build"]["dockerfile"]).is_file()


def test_the_learning_packages_of_the_container_are_those_of_the_lock_without_ros() -> None:
    (rule,) = re.findall(r"grep -viE '([^']+)'", (ROOT / "docker" / "install").read_text())
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    kept = [line for line in lines if line and not re.search(rule, line, re.IGNORECASE)]
    names = {line.partition("==")[0].lower() for line in kept}
    assert {"transformers", "mujoco", "av", "mcap", "pyarrow", "safetensors"} <= names
    assert not names & {"numpy", "scipy", "pillow", "pyyaml"} and not [n for n in names if n.startswith("ros-")]
