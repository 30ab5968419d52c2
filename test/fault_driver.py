"""A driver that fails on request, as a process: the Interbotix topics and services over an arm without dynamics.

    python fault_driver.py --ros-args ...

The topic `fault` (std_msgs/String, a JSON object) sets what is wrong, until the next one replaces it:

    joints   "gone": no joint_states; "frozen": always this moment's, with fresh stamps; "minus_pi": what the driver
             publishes after a failed read of the servo bus; "one_off": the elbow 0.6 rad from where it is
    effort   6 raw efforts
    torque, errors, temperatures   registers of the 7 motors
    motors   how many of them answer
    wait_s   before get_robot_info is answered
    finger_m how far the finger goes in 10 ms, 0.001 unless told
"""
from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.robot.motion_profile import after, at_rest, state_at

START = np.array([0.0, 0.022, 0.183, 0.0, 1.366, 0.0])
MOTORS = 7
PERIOD_S = 0.01


class FaultDriver(base.ConfiguredNode):
    """Joints follow the servos' time profile, from Profile_Velocity and Profile_Acceleration, without any lag."""

    def __init__(self) -> None:
        super().__init__("fault_driver")
        self.joints, self.finger_m, self.pwm = START.copy(), 0.035, 0.0
        self.motion = at_rest(START)
        self.profile = {"Profile_Velocity": 2000, "Profile_Acceleration": 300}
        self.fault: dict[str, Any] = {}
        msg, srv = convert.xs_msg, convert.xs_srv
        self._states = self.create_publisher(convert.JointState, "wx250s/joint_states", base.RELIABLE)
        self.create_subscription(msg.JointGroupCommand, "wx250s/commands/joint_group", self._on_group, base.RELIABLE)
        self.create_subscription(msg.JointSingleCommand, "wx250s/commands/joint_single", self._on_single, base.RELIABLE)
        self.create_subscription(convert.String, "fault", self._on_fault, base.RELIABLE)
        self.create_service(srv.RobotInfo, "wx250s/get_robot_info", self._on_info)
        self.create_service(srv.RegisterValues, "wx250s/get_motor_registers", self._on_get)
        self.create_service(srv.RegisterValues, "wx250s/set_motor_registers", self._on_set)
        for kind, name in ((srv.OperatingModes, "set_operating_modes"), (srv.TorqueEnable, "torque_enable")):
            self.create_service(kind, f"wx250s/{name}", lambda _request, response: response)
        self.every(PERIOD_S, self._on_time)

    def _on_group(self, msg: Any) -> None:
        self.motion = after(self.motion, np.array(msg.cmd, np.float64), base.steady_ns(), *self.profile_s())

    def profile_s(self) -> tuple[float, float]:
        """Return moving and acceleration time, s."""
        return self.profile["Profile_Velocity"] / 1000.0, self.profile["Profile_Acceleration"] / 1000.0

    def _on_single(self, msg: Any) -> None:
        self.pwm = msg.cmd

    def _on_fault(self, msg: Any) -> None:
        self.fault = json.loads(msg.data)
        self.fault["at"] = self.joints.copy()

    def _on_info(self, request: Any, response: Any) -> Any:
        time.sleep(self.fault.get("wait_s", 0.0))
        response.mode, response.profile_type = "pwm" if request.name == "gripper" else "position", "time"
        return response

    def _on_get(self, request: Any, response: Any) -> Any:
        known = {"Torque_Enable": self.fault.get("torque", [1] * MOTORS),
                 "Hardware_Error_Status": self.fault.get("errors", [0] * MOTORS),
                 "Present_Temperature": self.fault.get("temperatures", [31] * MOTORS),
                 **{name: [value] * MOTORS for name, value in self.profile.items()}}
        count = self.fault.get("motors", MOTORS) if request.name == "all" else 6
        response.values = known.get(request.reg, [])[:count]
        return response

    def _on_set(self, request: Any, response: Any) -> Any:
        self.profile[request.reg] = request.value
        return response

    def _on_time(self) -> None:
        stamp_ns = self.now_ns()
        self.joints, _ = state_at(self.motion, base.steady_ns(), *self.profile_s())
        moved_m = float(np.sign(self.pwm)) * self.fault.get("finger_m", 0.001)
        self.finger_m = float(np.clip(self.finger_m + moved_m, 0.015, 0.037))
        kind = self.fault.get("joints")
        if kind == "gone":
            return
        six = {"frozen": self.fault.get("at"), "minus_pi": np.full(6, -np.pi),
               "one_off": self.joints + np.array([0, 0, 0.6, 0, 0, 0])}.get(kind, self.joints)
        effort = np.array([*self.fault.get("effort", [0.0] * 6), 0.0, 0.0, 0.0])
        position = np.array([*six, 0.0, self.finger_m, -self.finger_m])
        self._states.publish(convert.joint_state_msg(stamp_ns, position, np.zeros(9), effort))


if __name__ == "__main__":
    raise SystemExit(base.run(FaultDriver))
