"""The launch tests of this folder, each in a process of its own: launch_testing's plugin does not fit this pytest."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import START_S

FOLDER = Path(__file__).resolve().parent
TOLD = {"bringup.test.py": ["recorder_node ENDED with code -9", "nothing is recorded; the other nodes go on"]}
"""Launch test -> what the launch itself must say."""


@pytest.mark.ros
@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.test.py")), ids=lambda file: file.name)
def test_launch_file(file: Path) -> None:
    for name in ("launch_testing.actions", "launch_ros.actions"):
        pytest.importorskip(name, reason=f"{name} is not installed: launch is part of an installed ROS 2, not of the "
                                         "wheels that pip has")
    env = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    done = subprocess.run([sys.executable, "-m", "launch_testing.launch_test", str(file)], env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=START_S)
    assert done.returncode == 0, done.stdout
    assert all(words in done.stdout for words in TOLD[file.name]), done.stdout
