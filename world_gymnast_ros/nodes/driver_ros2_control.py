"""Drivers of ros2_control controllers: what they share, the gripper, and the JointTrajectoryController.

A controller that is loaded but not active subscribes all the same and ignores what it gets. That cannot be told from
here without controller_manager's services; the player latches a hold when the joints do not move though told to.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node

from world_gymnast_ros.config import ArmConfig
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.nodes.causes import Causes
from world_gymnast_ros.nodes.driver import Driver
from world_gymnast_ros.robot.actions import gripper_is_open
from world_gymnast_ros.robot.gripper import FINGER_OPEN_M
from world_gymnast_ros.robot.kinematics import JOINT_NAMES
from world_gymnast_ros.types import F64

FINGER_JOINT = "left_finger"
FINGER_CLOSED_M = 0.015
"""The finger's own limit, m: position controllers refuse or clip a goal beyond it."""
FINGER_TIME_S = 0.5
MAX_EFFORT = 0.0
"""Of a GripperCommand; a controller of positions does not use it."""


class PositionGripper:
    """A gripper that is told where to go, once for every change: fully open or closed, as Bridge's is."""

    def __init__(self, node: Node, config: ArmConfig) -> None:
        name, kind = config.gripper_controller, config.gripper_interface
        self._node, self._sent_m, self._stopped = node, -1.0, False
        self._causes = Causes()
        self.command_topics: list[str] = []
        if kind == "action":
            convert.require_control_msgs()
            self.topic = f"{name}/gripper_cmd"
            self._client = ActionClient(node, convert.GripperCommand, self.topic)
            self.is_heard: Callable[[], bool] = self._client.server_is_ready
            self._send: Callable[[float], None] = self._send_action
            return
        forward = kind == "forward"
        self.topic = f"{name}/commands" if forward else f"{name}/joint_trajectory"
        message = convert.Float64MultiArray if forward else convert.JointTrajectory
        self._publisher = node.create_publisher(message, self.topic, base.RELIABLE)
        self.command_topics = [self._publisher.topic_name]
        self.is_heard = lambda: self._publisher.get_subscription_count() > 0
        self._send = self._send_forward if forward else self._send_trajectory

    def send(self, goal: float) -> None:
        """Go to `goal`, 0 closed to 1 open, unless that was the last one sent."""
        finger_m = FINGER_OPEN_M if gripper_is_open(goal) else FINGER_CLOSED_M
        if finger_m != self._sent_m:
            self._sent_m, self._stopped = finger_m, False
            self._send(finger_m)

    def stop(self, finger_m: float) -> None:
        """Stay where the finger is, unless it was told so already."""
        if not self._stopped:
            self._sent_m, self._stopped = -1.0, True
            self._send(min(max(finger_m, FINGER_CLOSED_M), FINGER_OPEN_M))

    def forget(self) -> None:
        """Send the next goal even if it was the last: others may have moved the gripper since."""
        self._sent_m, self._stopped = -1.0, False

    def _send_forward(self, finger_m: float) -> None:
        self._publisher.publish(convert.Float64MultiArray(data=[finger_m]))

    def _send_trajectory(self, finger_m: float) -> None:
        self._publisher.publish(convert.trajectory_msg([FINGER_JOINT], [finger_m], FINGER_TIME_S))

    def _send_action(self, finger_m: float) -> None:
        goal = convert.GripperCommand.Goal()
        goal.command.position, goal.command.max_effort = finger_m, MAX_EFFORT
        self._client.send_goal_async(goal).add_done_callback(self._on_answer)

    def _on_answer(self, answer: Any) -> None:
        if not answer.result().accepted:
            self.forget()  # so that it is tried again
            if self._causes.news("gripper"):
                self._node.get_logger().error(f"{self.topic} refused a goal of the gripper")


class ControllerDriver(Driver):
    """What the drivers of controllers share: one topic for the arm, a gripper, joint states by name."""

    def __init__(self, node: Node, config: ArmConfig, message: type, topic: str) -> None:
        super().__init__(node, config)
        self._goals = node.create_publisher(message, topic, base.RELIABLE)
        self._gripper = PositionGripper(node, config)
        self.command_topics = [self._goals.topic_name, *self._gripper.command_topics]

    def send_gripper(self, goal: float, finger_m: float) -> None:
        """Tell the gripper's controller when the goal changes; its own loop does the rest."""
        self._gripper.send(goal)

    def stop_gripper(self, finger_m: float | None) -> None:
        """Tell the gripper to stay where it is; where that is not known it goes to its last goal and no further."""
        if finger_m is not None:
            self._gripper.stop(finger_m)

    async def prepare(self) -> str:
        """Wait for the controllers. Return "" or why not."""
        names = await self._wait_for(self._absent)
        if names:
            return (f"driver '{self._config.driver}' finds no {', '.join(names)} after {self._timeout_s} s; start and "
                    "activate the controllers, or check the names in config/arm.yaml")
        self._gripper.forget()
        return ""

    async def health(self) -> tuple[str, tuple[int, ...]]:
        """Controllers report no motor errors; they can only be gone."""
        names = self._absent()
        return (f"the controller went: no {', '.join(names)} any more" if names else ""), ()

    def _absent(self) -> list[str]:
        """Return the topics and services that nobody is there for."""
        names = [] if self._is_heard() else [self._goals.topic_name]
        return names if self._gripper.is_heard() else [*names, self._gripper.topic]

    def _is_heard(self) -> bool:
        """Tell whether the node that the topic is named after subscribes to it; a recorder is no controller."""
        topic = self._goals.topic_name
        ears = self._node.get_subscriptions_info_by_topic(topic)
        return any(f"{ear.node_namespace.rstrip('/')}/{ear.node_name}" == topic.rpartition("/")[0] for ear in ears)


class TrajectoryDriver(ControllerDriver):
    """One point per goal to a JointTrajectoryController, which replaces what it is doing and holds the last point."""

    def __init__(self, node: Node, config: ArmConfig) -> None:
        super().__init__(node, config, convert.JointTrajectory, f"{config.arm_controller}/joint_trajectory")

    def send_joints(self, joints: F64, hold: bool = False) -> None:
        """Send one goal, to be reached in moving_time_s from now; a hold is a goal like any other."""
        self._goals.publish(convert.trajectory_msg(JOINT_NAMES, joints, self._config.moving_time_s))
