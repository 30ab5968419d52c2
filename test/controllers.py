"""Stand-ins for the controllers behind arm_node's drivers, each a process that behaves as its controller is documented.

    python controllers.py KIND GRIPPER --ros-args ...

KIND      trajectory: a JointTrajectoryController; pose, twist: MoveIt Servo, set to that kind of command unless
          moveit_msgs is there to set it; cartesian: a cartesian_motion_controller
GRIPPER   trajectory, forward or action

All of them move an arm without dynamics and publish joint states as joint_state_broadcaster does: in an order of its
own, NaN for what is not measured. What they refuse and when Servo halts goes out on `told`. The topic `fault` (a JSON
object): `states` false: no joint states; `frozen` true: always this moment's, under fresh stamps; `deaf` true: no
subscription for the arm's goals.
"""
from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from rclpy.action import ActionServer
from scipy.spatial.transform import Rotation

from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.robot import kinematics

START = np.array([0.0, 0.022, 0.183, 0.0, 1.366, 0.0])
PERIOD_S = 0.01
FRAME = "wx250s/base_link"
FINGER_M_S = 0.1
SERVO_TIMEOUT_S = 0.1
SERVO_MOST = np.array([0.4, 0.8])  # m/s, rad/s: scale.linear, scale.rotational
TYPES = {1: "twist", 2: "pose"}


class Controller(base.ConfiguredNode):
    """The arm, the gripper, the joint states."""

    topic, message, name = "", None, "controllers"

    def __init__(self) -> None:
        super().__init__(self.name)
        self.joints, self.finger_m, self.finger_goal_m = START.copy(), 0.035, 0.035
        self.order = np.random.default_rng(7).permutation(9)
        self.fault: dict[str, Any] = {}
        self._told = self.create_publisher(convert.String, "told", base.RELIABLE)
        self._states = self.create_publisher(convert.JointState, "joint_states", base.RELIABLE)
        self.create_subscription(convert.String, "fault", self._on_fault, base.RELIABLE)
        self._goals = self._listen()
        kind, gripper = sys.argv[2], "gripper_controller"
        if kind == "trajectory":
            self.create_subscription(convert.JointTrajectory, f"{gripper}/joint_trajectory", self._on_finger, 1)
        elif kind == "forward":
            self.create_subscription(convert.Float64MultiArray, f"{gripper}/commands", self._on_forward, 1)
        else:
            self._server = ActionServer(self, convert.GripperCommand, f"{gripper}/gripper_cmd", self._on_grip)
        self._then_ns = base.steady_ns()
        self.create_timer(PERIOD_S, self._on_time)

    def on_goal(self, msg: Any) -> None:
        raise NotImplementedError

    def move(self, dt_s: float) -> None:
        raise NotImplementedError

    def tell(self, what: str) -> None:
        self._told.publish(convert.String(data=what))

    def go_to(self, T: Any) -> None:
        """Jump to a pose, where there are joints for it."""
        try:
            self.joints = kinematics.ik(T, self.joints)
        except Unreachable as error:
            self.tell(f"refused: {error}")

    def _listen(self) -> Any:
        return self.create_subscription(self.message, self.topic, self.on_goal, base.RELIABLE)

    def _on_fault(self, msg: Any) -> None:
        self.fault = json.loads(msg.data)
        self.fault["at"] = self.joints.copy()
        deaf = self.fault.get("deaf", False)
        if deaf and self._goals is not None:
            self.destroy_subscription(self._goals)
        if deaf or self._goals is None:
            self._goals = None if deaf else self._listen()

    def _on_finger(self, msg: Any) -> None:
        if msg.joint_names != ["left_finger"] or len(msg.points) != 1:
            self.tell(f"refused: gripper joints {msg.joint_names}")
            return
        self._set_finger(msg.points[0].positions[0])

    def _on_forward(self, msg: Any) -> None:
        self._set_finger(msg.data[0])

    def _on_grip(self, handle: Any) -> Any:
        self._set_finger(handle.request.command.position)
        handle.succeed()
        return convert.GripperCommand.Result(reached_goal=True)

    def _set_finger(self, goal_m: float) -> None:
        if not 0.015 <= goal_m <= 0.037:
            self.tell(f"refused: finger at {goal_m} m")
            return
        self.finger_goal_m = goal_m

    def _on_time(self) -> None:
        now_ns = base.steady_ns()
        dt_s, self._then_ns = (now_ns - self._then_ns) * 1e-9, now_ns
        self.move(dt_s)
        self.finger_m += float(np.clip(self.finger_goal_m - self.finger_m, -FINGER_M_S * dt_s, FINGER_M_S * dt_s))
        if self.fault.get("states", True):
            six = self.fault["at"] if self.fault.get("frozen") else self.joints
            position = np.array([*six, 0.0, self.finger_m, -self.finger_m])[self.order]
            msg = convert.joint_state_msg(self.now_ns(), position, np.full(9, np.nan), np.full(9, np.nan))
            msg.name = [convert.DRIVER_JOINTS[i] for i in self.order]
            self._states.publish(msg)


class TrajectoryController(Controller):
    """Takes the place of what it is doing when a trajectory comes, moves linearly to its one point, holds it."""

    topic, message, name = "arm_controller/joint_trajectory", convert.JointTrajectory, "arm_controller"

    def __init__(self) -> None:
        self.start, self.goal, self.time_s, self.since_s = START, START, 1.0, 1.0
        super().__init__()

    def on_goal(self, msg: Any) -> None:
        if sorted(msg.joint_names) != sorted(kinematics.JOINT_NAMES) or not msg.points:
            self.tell(f"refused: joints {msg.joint_names}")
            return
        point = msg.points[-1]
        time_s = point.time_from_start.sec + point.time_from_start.nanosec * 1e-9
        end_ns = convert.to_ns(msg.header.stamp) + round(time_s * 1e9)
        if convert.to_ns(msg.header.stamp) != 0 and end_ns < self.now_ns():
            self.tell("refused: ends in the past")
        elif len(point.positions) != 6 or not np.isfinite(point.positions).all() or np.any(point.velocities):
            self.tell("refused: positions, or a velocity at the end")
        else:
            rows = [list(msg.joint_names).index(name) for name in kinematics.JOINT_NAMES]
            self.start, self.goal = self.joints, np.array(point.positions)[rows]
            self.time_s, self.since_s = time_s, 0.0

    def move(self, dt_s: float) -> None:
        self.since_s += dt_s
        share = min(1.0, self.since_s / self.time_s) if self.time_s > 0 else 1.0
        self.joints = self.start + share * (self.goal - self.start)


class Servo(Controller):
    """Follows the newest command while its stamp is fresh, then halts. Starts paused, as after an operator's pause."""

    name = "servo_node"

    def __init__(self) -> None:
        self.kind, self.latest, self.paused = sys.argv[1], None, True
        super().__init__()
        for key, value in (("command_in_type", "unitless"), ("scale.linear", SERVO_MOST[0]),
                           ("scale.rotational", SERVO_MOST[1])):
            self.declare_parameter(f"moveit_servo.{key}", value if isinstance(value, str) else float(value))
        self.create_service(convert.SetBool, "~/pause_servo", self._on_pause)
        if convert.ServoCommandType is not None:
            self.kind = "none"  # until a driver chooses
            self.create_service(convert.ServoCommandType, "~/switch_command_type", self._on_switch)

    def on_goal(self, msg: Any) -> None:
        self.latest = msg

    def _on_pause(self, request: Any, response: Any) -> Any:
        self.paused, response.success = request.data, True
        return response

    def _on_switch(self, request: Any, response: Any) -> Any:
        self.kind = TYPES.get(request.command_type, "none")
        response.success = self.kind != "none"
        return response

    def move(self, dt_s: float) -> None:
        if self.paused or self.latest is None:
            return
        msg = self.latest
        if self.now_ns() - convert.to_ns(msg.header.stamp) >= SERVO_TIMEOUT_S * 1e9:
            self.latest = None
            self.tell("halted")
        elif msg.header.frame_id != FRAME or self.kind not in self.topic:
            self.latest = None
            self.tell(f"refused: frame {msg.header.frame_id}, command type '{self.kind}'")
        else:
            self.follow(msg, dt_s)

    def follow(self, msg: Any, dt_s: float) -> None:
        raise NotImplementedError


class PoseServo(Servo):
    topic, message = "servo_node/pose_target_cmds", convert.PoseStamped

    def follow(self, msg: Any, dt_s: float) -> None:
        self.go_to(towards(kinematics.fk(self.joints), transform(msg), *SERVO_MOST * dt_s))


class TwistServo(Servo):
    topic, message = "servo_node/delta_twist_cmds", convert.TwistStamped

    def follow(self, msg: Any, dt_s: float) -> None:
        linear, angular = (np.array([v.x, v.y, v.z]) for v in (msg.twist.linear, msg.twist.angular))
        T = kinematics.fk(self.joints)
        T[:3, 3] += linear * SERVO_MOST[0] * dt_s  # unitless, Servo's default
        T[:3, :3] = Rotation.from_rotvec(angular * SERVO_MOST[1] * dt_s).as_matrix() @ T[:3, :3]
        self.go_to(T)


class CartesianController(Controller):
    """Goes to its last target with a gain, for as long as it takes; ignores another frame and NaN."""

    topic, message = "cartesian_motion_controller/target_frame", convert.PoseStamped
    GAIN = 10.0

    def __init__(self) -> None:
        self.T_target = kinematics.fk(START)
        super().__init__()

    def on_goal(self, msg: Any) -> None:
        T = transform(msg)
        if msg.header.frame_id != FRAME or not np.isfinite(T).all():
            self.tell(f"refused: frame {msg.header.frame_id}")
            return
        self.T_target = T

    def move(self, dt_s: float) -> None:
        T = kinematics.fk(self.joints)
        share = min(1.0, self.GAIN * dt_s)
        turn = Rotation.from_matrix(self.T_target[:3, :3] @ T[:3, :3].T).as_rotvec()
        self.go_to(towards(T, self.T_target, share * np.linalg.norm(self.T_target[:3, 3] - T[:3, 3]),
                           share * np.linalg.norm(turn)))


def transform(msg: Any) -> Any:
    """Return the transform (4, 4) of a PoseStamped."""
    p, q = msg.pose.position, msg.pose.orientation
    T = np.eye(4)
    T[:3, 3], T[:3, :3] = (p.x, p.y, p.z), Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    return T


def towards(T: Any, T_goal: Any, most_m: float, most_rad: float) -> Any:
    """Return T moved towards a goal by so much at most."""
    away, turn = T_goal[:3, 3] - T[:3, 3], Rotation.from_matrix(T_goal[:3, :3] @ T[:3, :3].T).as_rotvec()
    T = T.copy()
    T[:3, 3] += away * min(1.0, most_m / max(np.linalg.norm(away), 1e-12))
    turn *= min(1.0, most_rad / max(np.linalg.norm(turn), 1e-12))
    T[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ T[:3, :3]
    return T


KINDS = {"trajectory": TrajectoryController, "pose": PoseServo, "twist": TwistServo, "cartesian": CartesianController}


if __name__ == "__main__":
    raise SystemExit(base.run(KINDS[sys.argv[1]], [sys.argv[0], *sys.argv[3:]]))
