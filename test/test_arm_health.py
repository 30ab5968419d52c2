"""An arm without a driver is not well, whatever its state: the diagnostics of arm_node, in this process."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
import rclpy

from world_gymnast_ros.nodes import convert
from world_gymnast_ros.nodes.arm_node import ArmNode

pytestmark = pytest.mark.ros


class Kept:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def publish(self, msg: Any) -> None:
        self.said.append(msg)


@pytest.mark.parametrize("dry", [False, True])
def test_an_arm_without_a_driver_is_not_well(dry: bool) -> None:
    rclpy.init(args=["--ros-args", "-p", f"dry_run:={str(dry).lower()}", "-p", "health_period_s:=0.0"])
    try:
        node = ArmNode()
        node._diagnostics = kept = Kept()

        def told() -> tuple[bytes, str]:
            node._publish_status()
            return kept.said[-1].status[0].level, kept.said[-1].status[0].message

        warn, ok = convert.DiagnosticStatus.WARN, convert.DiagnosticStatus.OK
        if dry:  # it has an ideal arm of its own
            assert told()[0] == ok
        else:
            level, words = told()
            assert level == warn and "no joint states of the arm on /wx250s/joint_states (ever); is the driver" in words
            node.driver.joints._on_joints(convert.JointState(name=["gripper"], position=[0.0]))
            assert "(ever): joint_states has gripper and not yet the arm's joints" in told()[1]
        node.driver.joints._on_joints(convert.joint_state_msg(1, np.zeros(9), np.zeros(9), np.zeros(9)))
        assert told()[0] == ok
        node.driver.joints.received_ns -= 5 * 10**9
        level, words = told()
        assert level == warn and "(for 5." in words
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
