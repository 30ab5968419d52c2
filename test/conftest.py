"""Set up the environment of every test process, before rclpy, torch or MuJoCo is imported."""
import os
import tempfile
from pathlib import Path

import pytest

from world_gymnast_ros.nodes.graph import claim_domain

ROOT = Path(__file__).resolve().parents[1]
_CLAIM = claim_domain()  # held, and so unique, for as long as this process lives

# Set whatever the shell says: a test must never reach an arm that listens on the operator's own domain.
os.environ["ROS_DOMAIN_ID"] = _CLAIM.name.rpartition("_")[2]
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds.xml")  # Jazzy's name for it
os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds.xml")  # Kilted's
os.environ.setdefault("ROS_LOG_DIR", str(Path(tempfile.gettempdir()) / "world_gymnast_test_log"))
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two OpenMP threads on a busy machine are far slower than one
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def ros_domain_id() -> int:
    """The ROS domain of this test process; child processes inherit it through ROS_DOMAIN_ID."""
    return int(os.environ["ROS_DOMAIN_ID"])
