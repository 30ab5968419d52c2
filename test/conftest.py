"""Set up the environment of every test process, before rclpy, torch or MuJoCo is imported."""
import os
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from world_gymnast_ros.nodes.graph import claim_domain

ROOT = Path(__file__).resolve().parents[1]
_CLAIMS = deque([claim_domain()], maxlen=4)
"""ROS domains that no other process has, the present one last. A file of tests gets another than the files before it:
what one of them left behind, such as a latched instruction, is not heard."""

# Set whatever the shell says: a test must never reach an arm that listens on the operator's own domain.
os.environ["ROS_DOMAIN_ID"] = _CLAIMS[-1].name.rpartition("_")[2]
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds.xml")  # Jazzy's name for it
os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds.xml")  # Kilted's
os.environ.setdefault("ROS_LOG_DIR", str(Path(tempfile.gettempdir()) / "world_gymnast_test_log"))
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two OpenMP threads on a busy machine are far slower than one
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module", autouse=True)
def own_domain() -> None:
    """Take a ROS domain for this file; child processes inherit it."""
    _CLAIMS.append(claim_domain())  # the oldest is let go
    os.environ["ROS_DOMAIN_ID"] = _CLAIMS[-1].name.rpartition("_")[2]


# --- make test-fast ---------------------------------------------------------------------------------------------------

LEFT_OUT = {"rclpy": "needs ROS", "mujoco": "needs the simulator", "torch": "needs torch"}
"""What `--fast` does without, by the package whose import tells that a test needs it."""


def _skip_what_is_left_out(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook of the interpreter: skip the test, or the whole module, that comes to import or start this."""
    if event == "import" and arguments[0] in LEFT_OUT:
        pytest.skip(LEFT_OUT[arguments[0]], allow_module_level=True)
    if event == "subprocess.Popen" and str(arguments[0]) == sys.executable:  # what it imports is not seen here
        pytest.skip("starts another Python")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true",
                     help="skip tests, as they come to it, that import rclpy, mujoco or torch, or start another Python")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        loaded = sorted(set(LEFT_OUT) & set(sys.modules))
        assert not loaded, f"{loaded} loaded before any test"
    if config.getoption("--fast") and (hasattr(config, "workerinput") or not config.getoption("numprocesses", None)):
        # Only where tests run: xdist's first process starts the others.
        sys.addaudithook(_skip_what_is_left_out)
