"""Drivers that send poses or twists: controllers of the FZI kind, and MoveIt Servo.

The pose is the forward kinematics of the guarded joints, of `ee_gripper_link` in `base_link`. The controller solves its
own inverse kinematics, so the joints may differ from the guarded ones; the guard judges the measured ones at the next
action.
"""
from __future__ import annotations

from math import atan2, hypot, inf, isfinite

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from world_gymnast_ros.config import ArmConfig
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.nodes.driver_ros2_control import ControllerDriver
from world_gymnast_ros.robot import kinematics
from world_gymnast_ros.robot.actions import matrix_to_quaternion
from world_gymnast_ros.types import F64

HOLD_S = 0.2
"""For how long a hold is repeated to Servo before silence: some copies may be lost, and Servo halts by itself after."""
NEAREST_S = 0.1
"""A twist never aims to arrive sooner: near the goal that makes a loop of gain 10/s, which the delays allow."""
SERVO_TIMEOUT_S = 0.1
"""Servo's incoming_command_timeout."""
BLIND_S = 0.15
"""Joint states older than this are too old to steer a twist by."""
DONE_M, DONE_RAD = 0.002, 0.01
"""An arm so near its goal is left there: what friction keeps it from is not driven after."""
UNSEEN_M = 0.03
UNSEEN_RAD = 0.2
"""How far twists may have led, added up, without the joints having moved by SEEN_RAD: then the readings are frozen, or
the arm is stuck, and a loop that is closed over them would go on and on."""
SEEN_RAD = 0.005
SERVO_TYPES = {"twist": 1, "pose": 2}
"""Of moveit_msgs/srv/ServoCommandType."""


class CartesianDriver(ControllerDriver):
    """One pose per goal to a controller that goes to the last one it was told, at a speed of its own."""

    def __init__(self, node: Node, config: ArmConfig) -> None:
        super().__init__(node, config, convert.PoseStamped, config.target_topic)

    def send_joints(self, joints: F64, hold: bool = False) -> None:
        """Send the pose of one goal; a hold is a goal like any other."""
        self._goals.publish(convert.pose_msg(kinematics.fk(joints), self._node.now_ns(), self._config.base_frame))

    def _is_heard(self) -> bool:
        """Tell whether anybody subscribes: this topic may have any name."""
        return bool(self._goals.get_subscription_count() > 0)


class UnseenWay:
    """How far twists have led since the joints were last seen to move."""

    def __init__(self) -> None:
        self._joints: F64 | None = None
        self._way_m = self._turn_rad = 0.0

    def allows(self, joints: F64, linear: F64, angular: F64, dt_s: float) -> bool:
        """Add a twist (m/s, rad/s, each (3,)) that is to be sent for `dt_s`; tell whether it still may be."""
        if self._joints is None or float(np.abs(joints - self._joints).max()) > SEEN_RAD:
            self._joints, self._way_m, self._turn_rad = joints.copy(), 0.0, 0.0
        way_m = self._way_m + float(np.linalg.norm(linear)) * dt_s
        turn_rad = self._turn_rad + float(np.linalg.norm(angular)) * dt_s
        if way_m > UNSEEN_M or turn_rad > UNSEEN_RAD:
            return False
        self._way_m, self._turn_rad = way_m, turn_rad
        return True


class ServoDriver(ControllerDriver):
    """Repeats each goal to MoveIt Servo until the next, for command_timeout_s at most; then silence, and Servo halts.

    Servo drops what is older than its incoming_command_timeout (0.1 s), so goals at 5 Hz are sent again with new
    stamps. A process that hangs or dies falls silent too: unlike the other drivers, the arm then stops within 0.1 s.
    """

    def __init__(self, node: Node, config: ArmConfig) -> None:
        if config.servo_switch_type:
            convert.require_moveit()
        name, self._twist = config.servo_node, config.servo_command == "twist"
        super().__init__(node, config, *((convert.TwistStamped, f"{name}/delta_twist_cmds") if self._twist
                                         else (convert.PoseStamped, f"{name}/pose_target_cmds")))
        self._pause = node.create_client(convert.SetBool, f"{name}/pause_servo")
        self._parameters = node.create_client(convert.GetParameters, f"{name}/get_parameters")
        self._switch = (node.create_client(convert.ServoCommandType, f"{name}/switch_command_type")
                        if config.servo_switch_type else None)
        self._T_goal, self._hold = np.eye(4), True
        self._arrive_ns, self._silent_ns = 0, 0  # steady: when the goal is due, and when to stop repeating it
        self._unseen, self._stuck, self._steered_ns = UnseenWay(), False, 0
        self._one = (inf, inf)  # m/s and rad/s that Servo calls 1, its most; inf: it takes m/s and rad/s
        node.create_timer(1.0 / config.servo_rate_hz, self._on_time, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def send_joints(self, joints: F64, hold: bool = False) -> None:
        """Go to the pose of one goal in moving_time_s. `hold`: go there (pose) or stand still (twist), then silence."""
        c, now_ns = self._config, base.steady_ns()
        self._T_goal, self._hold = kinematics.fk(joints), hold
        self._arrive_ns = now_ns + round(c.moving_time_s * 1e9)
        self._silent_ns = now_ns + round((HOLD_S if hold else c.command_timeout_s) * 1e9)
        self._publish(now_ns)

    async def prepare(self) -> str:
        """Find Servo, read its units, choose the kind of command, unpause. Return "" or why not."""
        self._unseen, self._stuck = UnseenWay(), False
        refusal = await super().prepare() or await self._read_units()
        if refusal:
            return refusal
        if self._switch is not None:
            kind = SERVO_TYPES[self._config.servo_command]
            answer = await self._call(self._switch, convert.ServoCommandType.Request(command_type=kind))
            if answer is None or not answer.success:
                return f"{self._switch.srv_name} does not switch Servo to {self._config.servo_command}; start it again"
        answer = await self._call(self._pause, convert.SetBool.Request(data=False))
        if answer is None or not answer.success:
            return f"{self._pause.srv_name} does not unpause Servo; look at its log, start it again"
        return ""

    def _absent(self) -> list[str]:
        clients = (self._pause, *([self._parameters] if self._twist else []), *([self._switch] if self._switch else []))
        return [*super()._absent(), *(client.srv_name for client in clients if not client.service_is_ready())]

    async def _read_units(self) -> str:
        """Ask Servo what a twist of 1 means: taken for the other unit, the arm would move at another speed."""
        if not self._twist:
            return ""
        names = [f"moveit_servo.{key}" for key in ("command_in_type", "scale.linear", "scale.rotational")]
        answer = await self._call(self._parameters, convert.GetParameters.Request(names=names))
        values = answer.values if answer is not None else []
        kind = values[0].string_value if len(values) == 3 else ""
        if kind == "speed_units":
            self._one = (inf, inf)
        elif kind == "unitless" and min(v.double_value for v in values[1:]) > 0.0:
            self._one = (values[1].double_value, values[2].double_value)
        else:
            return (f"{self._parameters.srv_name} does not tell {', '.join(names)}: without them the speed of a twist "
                    "is not known; set servo_command to pose, or check servo_node")
        return ""

    def _on_time(self) -> None:
        now_ns = base.steady_ns()
        if now_ns >= self._silent_ns:
            if self._hold or not self._twist:
                return
            self._hold, self._silent_ns = True, now_ns + round(HOLD_S * 1e9)  # never leave a twist as the last word
        self._publish(now_ns)

    def _publish(self, now_ns: int) -> None:
        stamp_ns, frame = self._node.now_ns(), self._config.base_frame
        if self._twist:
            linear, angular = self._steer(now_ns)
            self._goals.publish(convert.twist_msg(linear, angular, stamp_ns, frame))
        else:
            self._goals.publish(convert.pose_msg(self._T_goal, stamp_ns, frame))

    def _steer(self, now_ns: int) -> tuple[F64, F64]:
        """Return the twist, in Servo's units, that arrives when the goal is due; zero to hold, and if blind."""
        arm, age_s = self.state(now_ns)
        if self._hold or arm is None or age_s > BLIND_S:
            return np.zeros(3), np.zeros(3)
        if self._stuck:
            return np.zeros(3), np.zeros(3)
        left_s = max((self._arrive_ns - now_ns) * 1e-9, NEAREST_S)
        *axis, w = matrix_to_quaternion(self._T_goal[:3, :3] @ arm.T_base_ee[:3, :3].T)
        turn = np.array(axis) * (2.0 * atan2(hypot(*axis), w) / max(hypot(*axis), 1e-12))
        c, away = self._config, self._T_goal[:3, 3] - arm.T_base_ee[:3, 3]
        if float(np.linalg.norm(away)) < DONE_M and float(np.linalg.norm(turn)) < DONE_RAD:
            return np.zeros(3), np.zeros(3)
        linear = _at_most(away / left_s, min(c.max_step_m / c.dt_s, self._one[0]))
        angular = _at_most(turn / left_s, min(c.max_step_rad / c.dt_s, self._one[1]))
        since_s, self._steered_ns = (now_ns - self._steered_ns) * 1e-9, now_ns
        # Each twist works until the next, but Servo halts by itself when none comes for longer.
        self._stuck = not self._unseen.allows(arm.joints, linear, angular, min(since_s, SERVO_TIMEOUT_S))
        if self._stuck:
            return np.zeros(3), np.zeros(3)
        return (linear / (self._one[0] if isfinite(self._one[0]) else 1.0),
                angular / (self._one[1] if isfinite(self._one[1]) else 1.0))

    async def health(self) -> tuple[str, tuple[int, ...]]:
        """Tell that the arm does not follow its twists, besides what all controllers tell."""
        if self._stuck:
            return (f"twists led {UNSEEN_M} m or {UNSEEN_RAD} rad without a joint that moved: the arm is blocked, "
                    "Servo halts it, or its readings are frozen; look", ())
        return await super().health()


def _at_most(velocity: F64, most: float) -> F64:
    """Return a velocity (3,), shortened to `most`."""
    scaled: F64 = velocity * min(1.0, most / max(float(np.linalg.norm(velocity)), 1e-12))
    return scaled
