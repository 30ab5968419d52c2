"""Variables that shells carry from other set-ups: each that keeps ROS or OpenGL from starting is named in one line."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import START_S

from world_gymnast_ros.nodes import environment

HOME = {"HOME": os.environ.get("HOME", "/tmp")}


@pytest.fixture()
def prefix(tmp_path: Path) -> dict[str, str]:
    """An installation with one RMW."""
    (tmp_path / "ros" / environment.INDEX).mkdir(parents=True)
    (tmp_path / "ros" / environment.INDEX / "rmw_zenoh_cpp").touch()
    return {"HOME": str(tmp_path), "AMENT_PREFIX_PATH": str(tmp_path / "ros")}


@pytest.mark.parametrize(("change", "says"), [
    ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, "RMW_IMPLEMENTATION is 'rmw_cyclonedds_cpp', and here is "),
    ({"ROS_DOMAIN_ID": "abc"}, "ROS_DOMAIN_ID is 'abc', which is no whole number from 0 to 232: unset ROS_DOMAIN_ID"),
    ({"ROS_DOMAIN_ID": "233"}, "ROS_DOMAIN_ID is '233'"), ({"ROS_DOMAIN_ID": "-1"}, "ROS_DOMAIN_ID is '-1'"),
    ({"HOME": "/proc/none"}, "cannot write its logs to /proc/none/.ros/log"),
    ({"ROS_LOG_DIR": "/proc/none"}, "ROS_LOG_DIR is '/proc/none'): export ROS_LOG_DIR=FOLDER"),
    ({"ROS_HOME": "/proc/none"}, "/proc/none/log"), ({"HOME": ""}, "neither HOME nor ROS_LOG_DIR is set"),
])
def test_what_keeps_ros_from_starting_is_named(prefix: dict[str, str], change: dict[str, str], says: str) -> None:
    fault = environment.fault({**prefix, **change})
    assert says in fault and "\n" not in fault, fault


@pytest.mark.parametrize("change", [
    {}, {"RMW_IMPLEMENTATION": "rmw_zenoh_cpp"}, {"ROS_DOMAIN_ID": "0"}, {"ROS_DOMAIN_ID": ""},
])
def test_what_ros_takes_is_no_fault(prefix: dict[str, str], change: dict[str, str]) -> None:
    assert environment.fault({**prefix, **change}) == ""


@pytest.mark.ros
def test_a_node_ends_with_that_line_and_no_traceback() -> None:
    """ROS itself ends the process with status 102 while rclpy is loaded."""
    pytest.importorskip("rclpy")
    words = [sys.executable, "-m", "world_gymnast_ros.nodes", "recorder_node"]
    env = {**os.environ, "RMW_IMPLEMENTATION": "rmw_nobodys_cpp"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=START_S)
    assert done.returncode == 2 and done.stderr.startswith("error: RMW_IMPLEMENTATION is 'rmw_nobodys_cpp'")
    assert len(done.stderr.splitlines()) == 1 and "unset RMW_IMPLEMENTATION" in done.stderr


@pytest.mark.parametrize("change", [{"MUJOCO_GL": "off"}, {"MUJOCO_GL": "nonsense"}, {"PYOPENGL_PLATFORM": "osmesa"}])
def test_opengl_of_another_set_up_is_named(change: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    words = [sys.executable, "-m", "world_gymnast_ros.cli", "twin", "show", "train_oak", "--out", f"{tmp_path}/a.png"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **change}, timeout=START_S)
    (name, value), = change.items()
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the twin cannot draw images")
    assert f"{name}={value}: unset {name}" in done.stderr and not (tmp_path / "a.png").exists()
