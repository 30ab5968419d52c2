"""Shows the graph to RViz and Foxglove: frames, description, poses, workspace and clamps. It decides nothing.

A node of its own, so that no viewer costs the arm's control path a callback. What it draws it asks of arm_node and
policy_node (their parameters), so that no number has a second owner.
"""
from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.task import Future

from world_gymnast_ros import config
from world_gymnast_ros.config import ArmConfig, DisplayConfig, PolicyConfig
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.errors import BadAction, BadConfig
from world_gymnast_ros.nodes import base, command_line, convert, markers
from world_gymnast_ros.nodes.driver import joint_states_topic
from world_gymnast_ros.robot import description
from world_gymnast_ros.robot.kinematics import JOINT_NAMES
from world_gymnast_ros.types import F64

TF = QoSProfile(depth=100, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
TF_STATIC = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE,
                       durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""As tf2_ros publishes them."""
ASK_PERIOD_S = 2.0
"""How often the other nodes are asked for their parameters: they may come later, or be started anew."""
FIXED_PERIOD_S = 1.0
"""How often workspace and table are drawn: a viewer that comes late must not wait long."""


class DisplayNode(base.ConfiguredNode):
    """Publishes what viewers show. Subscribes to joint states and steps, sends nobody anything that moves."""

    def __init__(self) -> None:
        super().__init__("display_node")
        self.config = c = self.read_config(DisplayConfig)
        self._arm: ArmConfig | None = None  # as the running arm_node has it
        self._camera: F64 | None = None  # T_base_camera
        self._camera_fault = ""
        self._joints: Any = None  # newest message
        self._heard: list[Any] = []  # subscriptions to what this arm is said to have
        self._target: F64 | None = None  # the last one that was sent (3,), m
        self._shown_ns = 0  # stamp of the joint states that were last shown
        self._theirs = False  # whether the driver describes the arm itself
        self._missing = [name for name, there in (("tf2_msgs", convert.TFMessage),
                                                  ("visualization_msgs", convert.Marker)) if there is None]
        if self._missing:
            self.get_logger().warning(f"{' and '.join(self._missing)} not installed: no "
                                      f"{self._without()}; install ros-<distro>-<package> where ROS comes from apt")
        self._connect()
        self._asked: dict[str, Future] = {}
        self._askers = {name: self.create_client(convert.GetParameters, f"{name}/get_parameters")
                         for name in ("arm_node", "policy_node")}
        self.every(1.0 / c.rate_hz, self._show)
        self.every(FIXED_PERIOD_S, self._show_fixed)
        self.every(ASK_PERIOD_S, self._ask)

    def _without(self) -> str:
        lost = {"tf2_msgs": "/tf and /tf_static", "visualization_msgs": "markers"}
        return " and no ".join(lost[name] for name in self._missing)

    def _connect(self) -> None:
        if convert.TFMessage is not None:
            self._tf = self.create_publisher(convert.TFMessage, "/tf", TF)
            self._tf_static = self.create_publisher(convert.TFMessage, "/tf_static", TF_STATIC)
        if convert.MarkerArray is not None:
            self._markers = self.create_publisher(convert.MarkerArray, "markers", base.RELIABLE)
        self._description = self.create_publisher(convert.String, "robot_description", base.LATCHED)
        self._measured_pose = self.create_publisher(convert.PoseStamped, "measured_pose", base.RELIABLE)
        self._target_pose = self.create_publisher(convert.PoseStamped, "target_pose", base.RELIABLE)
        self._diagnostics = self.create_publisher(convert.DiagnosticArray, "/diagnostics", base.RELIABLE)
        self.create_subscription(convert.StepMsg, "step", self._on_step, base.RELIABLE)

    # --- what the other nodes know ------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask for the parameters, without waiting; an answer comes to `_on_answer`."""
        for name, kind in (("arm_node", ArmConfig), ("policy_node", PolicyConfig)):
            waiting = self._asked.get(name)
            if waiting is not None and not waiting.done():
                if self._askers[name].service_is_ready():
                    continue
                self._askers[name].remove_pending_request(waiting)  # it ended before it answered
            if self._askers[name].service_is_ready():
                names = [spec.name for spec in dataclasses.fields(kind)]
                self._asked[name] = self._askers[name].call_async(convert.GetParameters.Request(names=names))
                self._asked[name].add_done_callback(lambda future, kind=kind, names=names: self._on_answer(
                    kind, names, future.result()))

    def _on_answer(self, kind: type[Any], names: list[str], response: Any) -> None:
        values = {name: parameter_value_to_python(value) for name, value in zip(names, response.values, strict=False)}
        try:
            found = config.from_mapping(kind, {name: value for name, value in values.items() if value is not None})
        except BadConfig as error:  # of another version
            self.get_logger().warning(str(error), once=True)
            return
        if isinstance(found, ArmConfig):
            if found != self._arm:
                self._learn_arm(found)
        elif self.config.camera_frame:
            try:
                T, self._camera_fault = found.camera_pose(), ""
            except BadConfig as error:  # the file lies on the machine of policy_node
                T, self._camera, self._camera_fault = None, None, str(error)
                self._send_static()
            if T is not None and (self._camera is None or not np.array_equal(T, self._camera)):
                self._camera = T
                self._send_static()

    def _learn_arm(self, arm: ArmConfig) -> None:
        """Show this arm from now on."""
        self._arm, self._joints, self._target = arm, None, None
        for subscription in self._heard:
            self.destroy_subscription(subscription)
        self._heard, self._theirs = [self.create_subscription(convert.JointState, joint_states_topic(arm),
                                                              self._on_joints, base.NEWEST)], False
        if self.config.tf:
            self._description.publish(convert.String(data=description.urdf(self._prefix)))
            self._heard.append(self.create_subscription(convert.String, f"{arm.robot_name}/robot_description",
                                                        self._on_description, base.LATCHED))
        self._send_static()

    def _on_description(self, msg: Any) -> None:
        """The driver's robot_state_publisher describes the arm: pass that on, with its meshes, and leave /tf to it."""
        if not self._theirs:
            self.get_logger().info("the driver describes the arm itself: its description is passed on, /tf is its own")
        self._theirs = True
        self._description.publish(msg)
        self._send_static()

    # --- showing ------------------------------------------------------------------------------------------------------

    @property
    def _base(self) -> str:
        return self._arm.base_frame if self._arm is not None else description.BASE_LINK

    @property
    def _prefix(self) -> str:
        """What stands before a link's name: the driver's robot_name where the base frame has it."""
        return self._base.removesuffix(description.BASE_LINK) if self._base.endswith(description.BASE_LINK) else ""

    def _named(self, link: str) -> str:
        return self._base if link == description.BASE_LINK else f"{self._prefix}{link}"

    def _on_joints(self, msg: Any) -> None:
        if any(name in msg.name for name in JOINT_NAMES):  # else it is another's, such as a gripper's own
            self._joints = msg

    def _show(self) -> None:
        """Publish the newest joint states, once each, as frames and as the pose of the end effector."""
        if self._joints is None or self._shown_ns == convert.to_ns(self._joints.header.stamp):
            return
        try:
            arm = convert.arm_state(self._joints)
        except BadAction:  # arm_node says so
            return
        self._shown_ns = arm.stamp_ns
        self._measured_pose.publish(convert.pose_msg(arm.T_base_ee, arm.stamp_ns, self._base))
        if self.config.tf and not self._theirs and convert.TFMessage is not None:
            at = dict(zip(self._joints.name, self._joints.position, strict=True))
            moving = description.moving(arm.joints, at["left_finger"], at.get("gripper", 0.0))
            self._tf.publish(convert.TFMessage(transforms=[
                convert.transform_msg(T, arm.stamp_ns, self._named(parent), self._named(child))
                for parent, child, T in moving]))

    def _send_static(self) -> None:
        """Publish the frames that do not move: all at once, since a late viewer hears the last message alone."""
        if convert.TFMessage is None or self._arm is None:
            return
        still = description.still() if self.config.tf and not self._theirs else []
        frames = [(self._named(parent), self._named(child), T) for parent, child, T in still]
        if self._camera is not None:
            frames.append((self._base, self.config.camera_frame, self._camera))
        self._tf_static.publish(convert.TFMessage(transforms=[
            convert.transform_msg(T, self.now_ns(), parent, child) for parent, child, T in frames]))

    def _show_fixed(self) -> None:
        if self._arm is not None and convert.MarkerArray is not None:
            safety: SafetyConfig = self._arm.safety()
            low, high = np.array(safety.workspace_low_m), np.array(safety.workspace_high_m)
            self._markers.publish(convert.MarkerArray(markers=markers.fixed(self._base, low, high, safety.table_z_m,
                                                                            self.now_ns())))
        self._diagnose()

    def _on_step(self, msg: Any) -> None:
        target = np.array(msg.t_base_target).reshape(4, 4)
        before, self._target = self._target, target[:3, 3]
        self._target_pose.publish(convert.pose_msg(target, convert.to_ns(msg.header.stamp), self._base))
        if msg.verdict != msg.OK and convert.MarkerArray is not None:
            self._markers.publish(convert.MarkerArray(markers=markers.clamp(self._base, msg, before,
                                                                            self.config.clamp_lifetime_s)))

    def _diagnose(self) -> None:
        """Say what cannot be shown, and why."""
        why = [f"no {self._without()}: {' and '.join(self._missing)} not installed"] if self._missing else []
        if self._arm is None:
            why.append("nothing of the arm is shown: arm_node does not answer")
        elif self._joints is None:
            why.append(f"no joint states on {joint_states_topic(self._arm)}: the arm is not shown")
        if self.config.camera_frame and self._camera is None:
            why.append(f"the camera is not placed: "
                       f"{self._camera_fault or 'policy_node does not answer, or its camera_focal is 0'}")
        self._diagnostics.publish(convert.diagnostics_msg(
            base.named(self, "display_node"), "", "warn" if why else "ok", "; ".join(why) or "showing", {
                "base_frame": self._base, "description": "the driver's" if self._theirs else "from the kinematics"},
            self.now_ns()))


USAGE = command_line.Usage(
    name="display_node",
    doc="""\
Shows the graph to RViz and Foxglove. It asks arm_node and policy_node for what it draws.

  in   step, the driver's joint states, <robot_name>/robot_description where the driver has one
  out  /tf, /tf_static, robot_description, measured_pose, target_pose, markers, /diagnostics""",
    parameters=DisplayConfig,
    moves="No.",
    examples=(
        ("", "beside a running graph; then: rviz2 -d $(ros2 pkg prefix --share world_gymnast_ros)/config/view.rviz"),
        ("--ros-args -p tf:=false -p camera_frame:='\"\"'", "poses and markers alone: others publish the frames"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the node."""
    return base.run(DisplayNode, argv, usage=USAGE)


if __name__ == "__main__":
    raise SystemExit(main())
