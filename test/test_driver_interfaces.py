"""The installed interbotix_xs_msgs, ours or Interbotix's own, is the one the driver speaks."""
import json
from pathlib import Path

import pytest

# ROS type hashes of Interbotix's own definitions (interbotix_ros_core, branch jazzy). A hash covers the names and types
# of all fields; two ends with different hashes do not connect.
DRIVER_TYPES = {
    "msg/JointGroupCommand": "RIHS01_c43821d89bd439eeca1db1f2b48778277e465bde9daad1b0839077bcfbdb3e3b",
    "msg/JointSingleCommand": "RIHS01_ed9575e22584aa1f25c9e13a546641d38066caa37454ced810f165d66d842e4d",
    "msg/JointTrajectoryCommand": "RIHS01_391712d50bf31f09dd9453b7460526e44b44f38daba5e743eec3980bcd19d3e2",
    "srv/MotorGains": "RIHS01_f6944fd6986b386a852464b68f10b891bdb13a60d60488e7a1ee53b7bae46d04",
    "srv/OperatingModes": "RIHS01_006b1919361b253d5209ffd72af5bccde63077414cd486f5bf6c5d0c7d4fcfcf",
    "srv/Reboot": "RIHS01_c892fd6da07e6769f6e5b5a702d0febd37da6c625f0a6c8931cc5d1804d42c2e",
    "srv/RegisterValues": "RIHS01_5c08210e4c4eed0f54076dc65f207c4167f8f21721d3cd4e55fe850c98df418d",
    "srv/RobotInfo": "RIHS01_6ec9c54cdd4045e906ae53d4ac3c6c086688da1c03b89309c390d68a49592972",
    "srv/TorqueEnable": "RIHS01_a1f771ba053ecafffab1f663f68ad554f7daf86d83ce2a5c512a8905356a678b",
}


@pytest.mark.parametrize("name", DRIVER_TYPES)
def test_type_hash_is_the_drivers(name: str) -> None:
    package = pytest.importorskip("interbotix_xs_msgs", reason="no interbotix_xs_msgs: see docs/reference/building.md")
    installed = Path(package.__file__).resolve()
    share = next(up / "share" / "interbotix_xs_msgs" for up in installed.parents if (up / "share").is_dir())
    described = json.loads((share / f"{name}.json").read_text(encoding="utf-8"))
    full_name = f"interbotix_xs_msgs/{name}"
    hashes = {entry["type_name"]: entry["hash_string"] for entry in described["type_hashes"]}
    assert hashes[full_name] == DRIVER_TYPES[name]
