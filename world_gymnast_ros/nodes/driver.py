"""The Interbotix driver as an `Arm` port: the only publisher to `commands/*`. And a stand-in that sends nothing.

Talks to topics and services directly. xs_sdk has no timeout, no limit check and no finite-value check of its own, so
whatever is sent here has been through the guard.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future

from world_gymnast_ros import kinematics
from world_gymnast_ros.errors import BadAction
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.types import F64, ArmState

MOTORS = 7
"""Joints that answer for the group `all`: six of the arm and the gripper. Fewer answers: a motor is gone."""
DISCOVERY_POLL_S = 0.05


class JointStates:
    """Newest measured state, and the steady time it came at."""

    def __init__(self, node: Node, robot_name: str) -> None:
        self.arm: ArmState | None = None
        self.received_ns = 0
        self.fault = ""
        self._waiting: list[Future] = []
        self._node = node
        node.create_subscription(convert.JointState, f"{robot_name}/joint_states", self._on_joints, base.NEWEST)

    def _on_joints(self, msg: Any) -> None:
        try:
            self.arm, self.received_ns, self.fault = convert.arm_state(msg), base.steady_ns(), ""
        except BadAction as error:  # the old state ages, and the guard holds on its age
            self.fault = str(error)
            self._node.get_logger().error(self.fault, throttle_duration_sec=2.0)
            return
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(True)

    def age_s(self, now_ns: int) -> float:
        """Return the age of the newest state, infinite before the first."""
        return (now_ns - self.received_ns) * 1e-9 if self.arm is not None else float("inf")

    def next(self) -> Future:
        """Return a future that completes with the next state."""
        future = Future()
        self._waiting.append(future)
        return future


class XsDriver:
    """Streams to `xs_sdk` (or the twin) under `robot_name`."""

    def __init__(self, node: Node, robot_name: str, timeout_s: float) -> None:
        convert.require_interbotix()
        msg, srv = convert.xs_msg, convert.xs_srv
        self._node, self._timeout_s = node, timeout_s
        self.joints = JointStates(node, robot_name)
        self.temperatures: list[int] = []
        self._group = node.create_publisher(msg.JointGroupCommand, f"{robot_name}/commands/joint_group", base.RELIABLE)
        self._single = node.create_publisher(msg.JointSingleCommand, f"{robot_name}/commands/joint_single",
                                             base.RELIABLE)
        self._info = node.create_client(srv.RobotInfo, f"{robot_name}/get_robot_info")
        self._modes = node.create_client(srv.OperatingModes, f"{robot_name}/set_operating_modes")
        self._set = node.create_client(srv.RegisterValues, f"{robot_name}/set_motor_registers")
        self._get = node.create_client(srv.RegisterValues, f"{robot_name}/get_motor_registers")
        self._torque = node.create_client(srv.TorqueEnable, f"{robot_name}/torque_enable")

    def state(self, now_ns: int) -> tuple[ArmState | None, float]:
        """Return the newest measured state and its age in s."""
        return self.joints.arm, self.joints.age_s(now_ns)

    def send_joints(self, joints: F64) -> None:
        """Stream one goal (6,) rad."""
        self._group.publish(convert.xs_msg.JointGroupCommand(name="arm", cmd=joints.astype(np.float32).tolist()))

    def send_gripper_pwm(self, pwm: float) -> None:
        """Stream one PWM value to the gripper motor."""
        self._single.publish(convert.xs_msg.JointSingleCommand(name="gripper", cmd=float(pwm)))

    async def prepare(self, moving_s: float, accel_s: float) -> str:
        """Make the driver ready to stream: position mode, time profile, torque, healthy. Return "" or why it is not.

        Modes are changed only where they differ: the driver drops torque to change them, and the arm would sag.
        """
        missing = await self._missing()
        if missing:
            return missing
        srv, moving_ms, accel_ms = convert.xs_srv, round(1000 * moving_s), round(1000 * accel_s)
        for kind, name, mode in (("group", "arm", "position"), ("single", "gripper", "pwm")):
            info = await self._call(self._info, srv.RobotInfo.Request(cmd_type=kind, name=name))
            if info is None:
                return "the driver does not answer get_robot_info; start it, or raise service_timeout_s"
            if info.mode != mode or (name == "arm" and info.profile_type != "time"):
                request = srv.OperatingModes.Request(cmd_type=kind, name=name, mode=mode, profile_type="time",
                                                     profile_velocity=moving_ms, profile_acceleration=accel_ms)
                if await self._call(self._modes, request) is None:
                    return f"the driver does not answer set_operating_modes for '{name}'"
        for register, value in (("Profile_Velocity", moving_ms), ("Profile_Acceleration", accel_ms)):
            request = srv.RegisterValues.Request(cmd_type="group", name="arm", reg=register, value=value)
            if await self._call(self._set, request) is None:
                return f"the driver does not answer set_motor_registers ({register})"
        limp = await self._registers("Torque_Enable")
        if limp is not None and not all(limp):
            await self._call(self._torque, srv.TorqueEnable.Request(cmd_type="group", name="all", enable=True))
        fault, errors = await self.health()
        return fault or (f"motor errors {errors}: reboot or power-cycle the motors" if any(errors) else "")

    async def health(self) -> tuple[str, tuple[int, ...]]:
        """Return ("" or why a motor cannot be trusted, Hardware_Error_Status of every motor); note temperatures."""
        errors, torque = await self._registers("Hardware_Error_Status"), await self._registers("Torque_Enable")
        if errors is None or torque is None:
            return "the driver does not answer get_motor_registers", ()
        if len(errors) < MOTORS or len(torque) < MOTORS:
            return f"{min(len(errors), len(torque))} of {MOTORS} motors answer; check cables and power", tuple(errors)
        if not all(torque):
            fault = f"a motor has no torque ({torque}); it may be overloaded: support the arm and reboot it"
            return fault, tuple(errors)
        self.temperatures = await self._registers("Present_Temperature") or []
        return "", tuple(errors)

    async def fresh_state(self) -> bool:
        """Wait for a state measured after this call; False when none comes in time."""
        return await self._bounded(self.joints.next()) is not None

    async def _missing(self) -> str:
        """Wait until the driver is discovered; return "" or what is not there after `timeout_s`.

        A node that was just started does not see the driver yet, and a command sent before the driver's subscription
        is matched would be lost without a word.
        """
        clients = (self._info, self._modes, self._set, self._get, self._torque)

        def absent() -> list[str]:
            names = [client.srv_name for client in clients if not client.service_is_ready()]
            heard = all(p.get_subscription_count() > 0 for p in (self._group, self._single))
            return names if heard else [*names, self._group.topic_name]

        deadline_ns = base.steady_ns() + round(self._timeout_s * 1e9)
        while absent() and base.steady_ns() < deadline_ns:
            await self._bounded(Future(), DISCOVERY_POLL_S)
        names = absent()
        return (f"the driver does not offer {', '.join(names)} after {self._timeout_s} s; start it, check robot_name, "
                "or raise service_timeout_s" if names else "")

    async def _registers(self, register: str) -> list[int] | None:
        request = convert.xs_srv.RegisterValues.Request(cmd_type="group", name="all", reg=register)
        response = await self._call(self._get, request)
        return None if response is None else [int(v) for v in response.values]

    async def _call(self, client: Any, request: Any) -> Any:
        return await self._bounded(client.call_async(request)) if client.service_is_ready() else None

    async def _bounded(self, future: Future, timeout_s: float | None = None) -> Any:
        """Await a future for at most `timeout_s` (the driver's, unless given); None when it takes longer."""
        def give_up() -> None:
            if not future.done():
                future.set_result(None)

        limit_s = self._timeout_s if timeout_s is None else timeout_s
        timer = self._node.create_timer(limit_s, give_up, clock=Clock(clock_type=ClockType.STEADY_TIME))
        try:
            return await future
        finally:
            self._node.destroy_timer(timer)


class DryDriver:
    """Sends nothing. State of a real driver if one is heard, else of an ideal arm that starts at neutral."""

    def __init__(self, node: Node, robot_name: str) -> None:
        self.joints = JointStates(node, robot_name)
        self.temperatures: list[int] = []
        self._ideal, self._gripper = kinematics.NEUTRAL.copy(), 1.0

    def state(self, now_ns: int) -> tuple[ArmState | None, float]:
        """Return the state and its age in s."""
        if self.joints.arm is not None:
            return self.joints.arm, self.joints.age_s(now_ns)
        zeros = np.zeros(6)
        return ArmState(kinematics.fk(self._ideal), self._ideal, zeros, zeros, self._gripper, 0), 0.0

    def send_joints(self, joints: F64) -> None:
        """Remember the goal: the ideal arm is there at once."""
        self._ideal = joints.copy()

    def send_gripper_pwm(self, pwm: float) -> None:
        """Move the ideal gripper to where the sign points."""
        self._gripper = 1.0 if pwm > 0 else 0.0 if pwm < 0 else self._gripper

    async def prepare(self, moving_s: float, accel_s: float) -> str:
        """Nothing to prepare."""
        return ""

    async def health(self) -> tuple[str, tuple[int, ...]]:
        """Always well."""
        return "", ()

    async def fresh_state(self) -> bool:
        """The ideal arm's state is always fresh; a real one's age is checked on arming."""
        return True

