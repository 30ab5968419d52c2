"""Parameters and names that ROS refuses: one line and exit status 2, whatever rclpy raises. In this process."""
from __future__ import annotations

import pytest

pytest.importorskip("rclpy")

from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.nodes.recorder_node import RecorderNode

pytestmark = pytest.mark.ros


class BadTopic(base.ConfiguredNode):
    """Subscribes to what is no name."""

    def __init__(self) -> None:
        super().__init__("bad_topic")
        self.create_service(convert.Trigger, "9 lives", lambda *_: None)


@pytest.mark.parametrize("words", [
    ["-p", "use_sim_time:=7"], ["-p", "use_sim_time:=abc"], ["-p", "directory:=[1,2.5]"], ["-p", "directory:={a: 1}"],
    ["-p", "directory:="], ["-p", "robot_name:=[a,b]"], ["-p", "success_button:=99999999999999999999"], ["-p", ":="],
    ["-p", "min_free_mb:=.nan"], ["-r", "__node:=1bad"], ["-r", "__ns:=bad//x"], ["-r", "instruction:=9bad"],
    ["-r", ":="], ["--log-level", "nonsense"],
], ids=" ".join)
def test_what_ros_refuses_is_one_line(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert base.run(RecorderNode, ["recorder_node", "--ros-args", *words]) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("BadConfig: ")]
    assert len(told) == 1


def test_a_name_that_is_none_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert base.run(BadTopic, ["bad_topic"]) == 2
    assert "BadConfig: ROS refuses a parameter or a name: Invalid service name" in capfd.readouterr().err
