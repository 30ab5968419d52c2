"""The Interbotix driver behind the port: the only publisher to `commands/*`.

Talks to topics and services directly. xs_sdk has no timeout, no limit check and no finite-value check of its own, so
whatever is sent here has been through the guard.
"""
from __future__ import annotations

import numpy as np
from rclpy.node import Node

from world_gymnast_ros.config import ArmConfig
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.nodes.driver import Driver
from world_gymnast_ros.robot.gripper import GripperLoop
from world_gymnast_ros.types import F64

MOTORS = 7
"""Joints that answer for the group `all`: six of the arm and the gripper. Fewer answers: a motor is gone."""


class XsDriver(Driver):
    """Streams to `xs_sdk` (or the twin) under `robot_name`."""

    def __init__(self, node: Node, config: ArmConfig) -> None:
        convert.require_interbotix()
        super().__init__(node, config)
        msg, srv, robot_name = convert.xs_msg, convert.xs_srv, config.robot_name
        self._gripper = GripperLoop(config.gripper_gain_per_m, config.max_gripper_pwm)
        self._group = node.create_publisher(msg.JointGroupCommand, f"{robot_name}/commands/joint_group", base.RELIABLE)
        self._single = node.create_publisher(msg.JointSingleCommand, f"{robot_name}/commands/joint_single",
                                             base.RELIABLE)
        self.command_topics = [self._group.topic_name, self._single.topic_name]
        self._info = node.create_client(srv.RobotInfo, f"{robot_name}/get_robot_info")
        self._modes = node.create_client(srv.OperatingModes, f"{robot_name}/set_operating_modes")
        self._set = node.create_client(srv.RegisterValues, f"{robot_name}/set_motor_registers")
        self._get = node.create_client(srv.RegisterValues, f"{robot_name}/get_motor_registers")
        self._torque = node.create_client(srv.TorqueEnable, f"{robot_name}/torque_enable")

    def send_joints(self, joints: F64, hold: bool = False) -> None:
        """Stream one goal (6,) rad; a hold is a goal like any other."""
        self._group.publish(convert.xs_msg.JointGroupCommand(name="arm", cmd=joints.astype(np.float32).tolist()))

    def send_gripper(self, goal: float, finger_m: float) -> None:
        """Stream one step of the position loop on the gripper motor's PWM."""
        self._send_pwm(self._gripper.pwm(goal, finger_m))

    def stop_gripper(self, finger_m: float | None) -> None:
        """Switch the gripper motor off: it has no other way to stand still."""
        self._send_pwm(0.0)

    def release_gripper(self) -> None:
        """Switch the gripper motor off."""
        self._send_pwm(0.0)

    def _send_pwm(self, pwm: float) -> None:
        self._single.publish(convert.xs_msg.JointSingleCommand(name="gripper", cmd=float(pwm)))

    async def prepare(self) -> str:
        """Make the driver ready to stream: position mode, time profile, torque, healthy. Return "" or why it is not.

        Modes are changed only where they differ: the driver drops torque to change them, and the arm would sag.
        """
        missing = await self._missing()
        if missing:
            return missing
        srv, c = convert.xs_srv, self._config
        moving_ms, accel_ms = round(1000 * c.moving_time_s), round(1000 * c.accel_time_s)
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
        await self.read_temperatures()
        return "", tuple(errors)

    async def read_temperatures(self) -> None:
        """Note the temperature of every motor, degrees Celsius."""
        self.temperatures = await self._registers("Present_Temperature") or []

    async def _missing(self) -> str:
        """Wait until the driver is discovered; return "" or what is not there after `timeout_s`."""
        clients = (self._info, self._modes, self._set, self._get, self._torque)

        def absent() -> list[str]:
            names = [client.srv_name for client in clients if not client.service_is_ready()]
            heard = all(p.get_subscription_count() > 0 for p in (self._group, self._single))
            return names if heard else [*names, self._group.topic_name]

        names = await self._wait_for(absent)
        return (f"the driver does not offer {', '.join(names)} after {self._timeout_s} s; start it, check robot_name, "
                "or raise service_timeout_s" if names else "")

    async def _registers(self, register: str) -> list[int] | None:
        request = convert.xs_srv.RegisterValues.Request(cmd_type="group", name="all", reg=register)
        response = await self._call(self._get, request)
        return None if response is None else [int(v) for v in response.values]
