"""The twin as a driver and a camera: the Interbotix topics and services, so that nothing above can tell.

Like the real driver it has no command timeout and keeps the last goal. Unlike it, a command that is not finite or
names no known group is refused, since it would only crash the simulation.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from world_gymnast_ros.config import TwinConfig
from world_gymnast_ros.errors import WorldGymnastError
from world_gymnast_ros.nodes import base, command_line, convert
from world_gymnast_ros.robot import kinematics
from world_gymnast_ros.robot.camera_file import Intrinsics
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.sim import Twin

GRIPPER_LIMITS_M = (0.015, 0.037)


class TwinNode(base.ConfiguredNode):
    """Runs physics in real time and answers as `xs_sdk` and a camera do."""

    def __init__(self) -> None:
        super().__init__("twin_node")
        convert.require_interbotix()
        self.config = c = self.read_config(TwinConfig, f"{base.NO_MOTION}: its arm is simulated")
        self.twin = Twin(load_scene(c.scene), c.seed)
        if c.instruction:
            self.twin.reset(c.seed, c.instruction)
        # What modes.yaml of the driver sets at start: a slow arm, until somebody sets the profile.
        self.modes = {"arm": ["position", "time"], "gripper": ["pwm", "time"]}
        self.registers = {"Torque_Enable": 1, "Hardware_Error_Status": 0, "Profile_Velocity": 2000,
                          "Profile_Acceleration": 300, "Present_Temperature": 30}
        self._apply_profile()
        self._create_driver(c.robot_name)
        self._images = self.create_publisher(convert.Image, "image_raw", base.NEWEST_RELIABLE)
        self._infos = self.create_publisher(convert.CameraInfo, "camera_info", base.NEWEST_RELIABLE)
        self._truth = self.create_publisher(convert.TwinTruth, "twin/truth", base.RELIABLE)
        self.create_service(convert.ResetTwin, "~/reset", self._on_reset)
        self._last_ns = base.steady_ns()
        self.every(1.0 / c.joint_rate_hz, self._on_physics)
        self.every(1.0 / c.image_rate_hz, self._on_image)
        self.every(1.0 / c.truth_rate_hz, self._on_truth)
        self.get_logger().info(f"twin of scene '{self.twin.scene.name}', seed {self.twin.seed}, "
                               f"'{self.twin.task.instruction}'")

    def _create_driver(self, robot: str) -> None:
        msg, srv = convert.xs_msg, convert.xs_srv
        self._joints = self.create_publisher(convert.JointState, f"{robot}/joint_states", base.RELIABLE)
        self.create_subscription(msg.JointGroupCommand, f"{robot}/commands/joint_group", self._on_group, base.RELIABLE)
        self.create_subscription(msg.JointSingleCommand, f"{robot}/commands/joint_single", self._on_single,
                                 base.RELIABLE)
        for kind, name, callback in (
            (srv.TorqueEnable, "torque_enable", self._on_torque), (srv.Reboot, "reboot_motors", self._on_reboot),
            (srv.RobotInfo, "get_robot_info", self._on_info),
            (srv.OperatingModes, "set_operating_modes", self._on_modes),
            (srv.RegisterValues, "set_motor_registers", self._on_set_register),
            (srv.RegisterValues, "get_motor_registers", self._on_get_register),
            (srv.MotorGains, "set_motor_pid_gains", self._on_gains),
        ):
            self.create_service(kind, f"{robot}/{name}", callback)

    # --- commands -------------------------------------------------------------------------------------------------

    def _on_group(self, msg: Any) -> None:
        goals = np.asarray(msg.cmd, np.float64)
        if msg.name != "arm" or goals.shape != (6,) or not np.isfinite(goals).all():
            self.get_logger().error(f"joint_group '{msg.name}' {goals.tolist()} refused: group 'arm' takes 6 numbers")
        elif self.modes["arm"][0] != "position":
            self.get_logger().error(f"joint_group refused: the arm is in mode '{self.modes['arm'][0]}'")
        else:
            self.twin.set_joint_goals(goals)

    def _on_single(self, msg: Any) -> None:
        if msg.name != "gripper" or not np.isfinite(msg.cmd) or self.modes["gripper"][0] != "pwm":
            self.get_logger().error(f"joint_single '{msg.name}' {msg.cmd} refused: the twin takes PWM for 'gripper'")
        else:
            self.twin.set_gripper_pwm(float(msg.cmd))

    # --- services of the driver -----------------------------------------------------------------------------------

    def _on_torque(self, request: Any, response: Any) -> Any:
        self.registers["Torque_Enable"] = int(request.enable)
        self.twin.set_torque(bool(request.enable))
        return response

    def _on_reboot(self, request: Any, response: Any) -> Any:
        self.registers["Hardware_Error_Status"] = 0
        self.registers["Torque_Enable"] = int(request.enable)
        self.twin.set_torque(bool(request.enable))
        return response

    def _on_modes(self, request: Any, response: Any) -> Any:
        if request.name not in self.modes:
            self.get_logger().error(f"set_operating_modes: no group or joint '{request.name}'; known: arm, gripper")
            return response
        self.modes[request.name] = [request.mode, request.profile_type]
        if request.name == "arm":
            self.registers["Profile_Velocity"] = int(request.profile_velocity)
            self.registers["Profile_Acceleration"] = int(request.profile_acceleration)
            self._apply_profile()
        return response

    def _on_set_register(self, request: Any, response: Any) -> Any:
        if request.name == "arm" and request.reg in self.registers:
            self.registers[request.reg] = int(request.value)
            self._apply_profile()
        return response

    def _on_get_register(self, request: Any, response: Any) -> Any:
        if request.reg in self.registers:  # the shoulder and elbow have two motors each, but answer as one joint
            response.values = [self.registers[request.reg]] * {"all": 7, "arm": 6}.get(request.name, 1)
        return response

    def _on_gains(self, request: Any, response: Any) -> Any:
        self.get_logger().warning("set_motor_pid_gains has no effect on the twin")
        return response

    def _on_info(self, request: Any, response: Any) -> Any:
        group = request.name if request.name in self.modes else "arm"
        response.mode, response.profile_type = self.modes[group]
        response.name = [request.name]
        if group == "arm":
            response.joint_names = list(kinematics.JOINT_NAMES)
            response.joint_lower_limits = kinematics.JOINT_LOWER_RAD.tolist()
            response.joint_upper_limits = kinematics.JOINT_UPPER_RAD.tolist()
            response.joint_velocity_limits = kinematics.MAX_JOINT_SPEED_RAD_S.tolist()
            response.joint_sleep_positions = kinematics.SLEEP.tolist()
        else:  # as the driver does, the limits of the finger
            response.joint_names = ["gripper"]
            response.joint_lower_limits, response.joint_upper_limits = [[limit] for limit in GRIPPER_LIMITS_M]
            response.joint_velocity_limits, response.joint_sleep_positions = [1.0], [0.0]
        response.num_joints = len(response.joint_names)
        response.joint_state_indices = [convert.DRIVER_JOINTS.index(n) for n in response.joint_names]
        response.joint_ids = [i + 1 for i in response.joint_state_indices]
        return response

    def _apply_profile(self) -> None:
        if self.modes["arm"][1] == "time":
            self.twin.set_profile_s(self.registers["Profile_Velocity"] / 1000.0,
                                    self.registers["Profile_Acceleration"] / 1000.0)

    # --- time -----------------------------------------------------------------------------------------------------

    def _on_physics(self) -> None:
        now = base.steady_ns()
        elapsed_s, self._last_ns = (now - self._last_ns) / 1e9, now
        self.twin.advance(min(elapsed_s, self.config.max_catch_up_s))
        self._joints.publish(convert.joint_state_msg(self.now_ns(), self.twin.joint_positions(),
                                                     self.twin.joint_velocities(), self.twin.joint_efforts()))

    def _on_image(self) -> None:
        c = self.config
        stamp_ns = self.now_ns()  # before rendering: the state is that of now
        rgb = self.twin.render(c.image_width, c.image_height)
        self._images.publish(convert.image_from_rgb(rgb, stamp_ns, "camera_optical_frame"))
        K = self.twin.camera_matrix(c.image_width, c.image_height)
        self._infos.publish(convert.camera_info(stamp_ns, "camera_optical_frame", c.image_width, c.image_height,
                                                 Intrinsics(c.image_width, c.image_height, K)))

    def _on_truth(self) -> None:
        msg = convert.TwinTruth(scene=self.twin.scene.name, instruction=self.twin.task.instruction,
                                success=bool(self.twin.success()), progress=float(self.twin.progress()),
                                episode_seed=self.twin.seed)
        msg.header.stamp = convert.to_time(self.now_ns())
        self._truth.publish(msg)

    def _on_reset(self, request: Any, response: Any) -> Any:
        try:
            if request.scene and request.scene != self.twin.scene.name:
                scene = load_scene(request.scene)
                self.twin.load(scene, request.seed, request.instruction or scene.instructions[0])
            else:
                self.twin.reset(request.seed, request.instruction or self.twin.task.instruction)
        except WorldGymnastError as error:  # the twin goes on as it was
            response.success, response.message = False, str(error)
            return response
        self._apply_profile()
        self._last_ns = base.steady_ns()
        response.success = True
        response.message = f"{self.twin.scene.name}, seed {request.seed}: {self.twin.task.instruction}"
        return response

    def close(self) -> None:
        self.twin.close()


USAGE = command_line.Usage(
    name="twin_node",
    doc="""\
The MuJoCo twin in place of driver and camera, under their names: never run it beside the real driver.

  in      the driver's command topics
  out     the driver's joint states, image_raw, camera_info, twin/truth
  offers  the driver's services, ~/reset""",
    parameters=TwinConfig,
    moves="A simulated arm alone.",
    examples=(
        ("", "the scene train_oak"),
        ("--ros-args -p scene:=novel_evening -p seed:=3", "another scene, another start"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the node."""
    return base.run(TwinNode, argv, usage=USAGE)


if __name__ == "__main__":
    raise SystemExit(main())
