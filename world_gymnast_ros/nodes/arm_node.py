"""Plays chunks to the arm through the guard. Its own process, so that it keeps watch when inference stalls.

Thin: `control.ChunkPlayer` decides, `safety.guard` limits, `driver` sends. Deadlines use the steady clock. On exit the
arm is told to hold its place, before anything is torn down.
"""
from __future__ import annotations

import time
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType

from world_gymnast_ros.config import ArmConfig
from world_gymnast_ros.control import ArmMode, ChunkPlayer, PlayedStep
from world_gymnast_ros.errors import BadAction
from world_gymnast_ros.gripper import FINGER_CLOSED_M, FINGER_OPEN_M, GripperLoop
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.nodes.driver import DryDriver, XsDriver
from world_gymnast_ros.types import Verdict

STATUS_PERIOD_S = 0.5
EXIT_FLUSH_S = 0.05
"""Time for the hold to leave through shared memory before the process goes."""


class ArmNode(base.ConfiguredNode):
    """Topics and services around one ChunkPlayer."""

    def __init__(self) -> None:
        super().__init__("arm_node")
        self.config = c = self.read_config(ArmConfig)
        self.player = ChunkPlayer(c.safety())
        self.driver: XsDriver | DryDriver = (
            DryDriver(self, c.robot_name) if c.dry_run else XsDriver(self, c.robot_name, c.service_timeout_s))
        self._gripper = GripperLoop(c.gripper_gain_per_m, c.max_gripper_pwm)
        self._stop_pressed = False
        self._arming = False
        self._checking = False
        self._frame_age_s = -1.0
        self._played = False
        self._told: tuple[ArmMode, str] | None = None
        self._waits = ReentrantCallbackGroup()  # callbacks that await the driver, while the default group plays on
        self._connect()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0 / c.tick_hz, self._tick, clock=steady)
        self.create_timer(1.0 / c.gripper_rate_hz, self._on_gripper, clock=steady)
        self.create_timer(STATUS_PERIOD_S, self._publish_status, clock=steady)
        if c.health_period_s > 0:
            self.create_timer(c.health_period_s, self._on_health, clock=steady, callback_group=self._waits)
        self.get_logger().info(f"{'dry run of ' if c.dry_run else ''}{c.robot_name}, disarmed; ~/arm to play chunks")

    def _connect(self) -> None:
        self._steps = self.create_publisher(convert.StepMsg, "step", base.RELIABLE)
        self._status = self.create_publisher(convert.ArmStatusMsg, "arm_status", base.LATCHED)
        self._diagnostics = self.create_publisher(convert.DiagnosticArray, "diagnostics", base.RELIABLE)
        self.create_subscription(convert.ActionChunkMsg, "action_chunk", self._on_chunk, base.RELIABLE)
        for qos in (base.RELIABLE, base.LATCHED):  # a plain publisher, and one that pressed stop before we came up
            self.create_subscription(convert.Bool, "stop", self._on_stop, qos)
        self.create_service(convert.Trigger, "~/arm", self._on_arm, callback_group=self._waits)
        self.create_service(convert.Trigger, "~/disarm", self._on_disarm)
        self.create_service(convert.Trigger, "~/hold", self._on_hold)

    # --- playing --------------------------------------------------------------------------------------------------

    def _on_chunk(self, msg: Any) -> None:
        now_ns = base.steady_ns()
        try:
            chunk = convert.chunk_from_msg(msg)
        except BadAction as error:
            self.get_logger().error(str(error), throttle_duration_sec=1.0)
            return
        age_s = (self.now_ns() - chunk.frame_stamp_ns) * 1e-9
        refusal = self.player.accept(chunk, now_ns, sequence=msg.sequence, frame_age_s=age_s,
                                     instruction=msg.instruction)
        if refusal:
            self.get_logger().warning(f"chunk {msg.sequence} refused: {refusal}", throttle_duration_sec=1.0)
        else:
            self._tick()  # the first action now, not at the next tick

    def _tick(self) -> None:
        now_ns = base.steady_ns()
        arm, age_s = self.driver.state(now_ns)
        played = self.player.tick(now_ns, arm, age_s)
        if played is not None:
            self._carry_out(played)
        if self._told != (self.player.mode, self.player.reason):
            self._publish_status()

    def _carry_out(self, played: PlayedStep) -> None:
        """Send first, then tell."""
        command = played.command
        if played.send:
            self.driver.send_joints(command.joints)
        if played.action is not None:
            self._played, self._frame_age_s = True, played.frame_age_s
            self._steps.publish(convert.step_msg(command, played.action, played.arm, self.now_ns()))
        if command.verdict in (Verdict.HOLD, Verdict.STOP):
            self.get_logger().warning(f"{command.verdict.value}: {command.reason}", throttle_duration_sec=0.5)
            self._publish_status()

    def _on_gripper(self) -> None:
        """Run the grip while the arm plays or is held; a disarmed arm lets go."""
        arm, _ = self.driver.state(base.steady_ns())
        goal = self.player.memory.gripper
        if arm is not None and goal is not None and self.player.mode is not ArmMode.DISARMED:
            finger_m = FINGER_CLOSED_M + arm.gripper * (FINGER_OPEN_M - FINGER_CLOSED_M)
            self.driver.send_gripper_pwm(self._gripper.pwm(goal, finger_m))

    # --- operator -------------------------------------------------------------------------------------------------

    async def _on_arm(self, _request: Any, response: Any) -> Any:
        refusal = await self._arm()
        response.success, response.message = not refusal, refusal or "armed"
        self.get_logger().info(f"armed as {self.config.robot_name}" if not refusal else f"not armed: {refusal}")
        return response

    async def _arm(self) -> str:
        """Prepare the driver, look at the arm afresh, seed the target. Return "" or why not."""
        if self._stop_pressed:
            return "stop is pressed; release it (publish false on 'stop'), disarm, then arm"
        if self._arming:
            return "arming is under way"
        self._arming = True
        try:
            refusal = await self.driver.prepare(self.config.moving_time_s, self.config.accel_time_s)
            if refusal:
                return refusal
            if not await self.driver.fresh_state():
                return f"no joint_states from '{self.config.robot_name}'; start the driver"
        finally:
            self._arming = False
        if self._stop_pressed:  # while the driver answered
            return "stop was pressed while arming"
        now_ns = base.steady_ns()
        arm, age_s = self.driver.state(now_ns)
        refusal = self.player.arm(now_ns, arm, age_s)
        if not refusal:
            self.player.verdict_counts = dict.fromkeys(Verdict, 0)
            self._played, self._frame_age_s = False, -1.0
            self._tick()
        return refusal

    def _on_disarm(self, _request: Any, response: Any) -> Any:
        if self._stop_pressed:
            response.message = "stop is pressed; release it first (publish false on 'stop')"
            return response
        self.player.disarm()
        self._tick()  # the hold goes out before the answer
        self.driver.send_gripper_pwm(0.0)
        response.success, response.message = True, "disarmed; the arm holds its place"
        return response

    def _on_hold(self, _request: Any, response: Any) -> Any:
        self.player.hold()
        self._tick()
        response.success = self.player.mode in (ArmMode.HOLDING, ArmMode.DISARMED)
        response.message = f"{self.player.mode.name}: {self.player.reason}"
        return response

    def _on_stop(self, msg: Any) -> None:
        """Latch; a later `false` only allows disarm and arm again."""
        self._stop_pressed = bool(msg.data)
        if msg.data:
            self.player.stop("stop pressed")
            self._tick()

    # --- health and status ----------------------------------------------------------------------------------------

    async def _on_health(self) -> None:
        """Read the motors while armed: one that lost its torque says nothing by itself."""
        if self._checking or self.player.mode is not ArmMode.ARMED:
            return
        self._checking = True
        try:
            fault, errors = await self.driver.health()
        finally:
            self._checking = False
        if any(errors):
            fault = f"hardware error {errors}: power-cycle or reboot the motor, then disarm and arm"
        if fault and self.player.mode is ArmMode.ARMED:
            self.player.stop(fault)
            self._tick()

    def _publish_status(self) -> None:
        p, now_ns = self.player, base.steady_ns()
        self._told = (p.mode, p.reason)
        command_age_s = p.command_age_s(now_ns) if self._played else -1.0
        reason = f"no chunk for {p.command_age_s(now_ns):.1f} s: holding its place" if p.starved(now_ns) else p.reason
        self._status.publish(convert.status_msg(p.mode, reason, p.verdict_counts, self._frame_age_s, command_age_s,
                                                self.now_ns()))
        _, age_s = self.driver.state(now_ns)
        level = "error" if p.mode is ArmMode.STOPPED else "warn" if p.mode is ArmMode.HOLDING else "ok"
        values = {"state": p.mode.name, "joint_state_age_s": f"{age_s:.3f}", "refused_chunks": p.refused_chunks,
                  **{v.value.lower(): n for v, n in p.verdict_counts.items()}}
        self._diagnostics.publish(convert.diagnostics_msg("arm_node", self.config.robot_name, level, reason, values,
                                                          self.now_ns()))

    def close(self) -> None:
        """Hold first; then everything may go."""
        self.player.disarm("the node ends")
        self._tick()
        self.driver.send_gripper_pwm(0.0)
        time.sleep(EXIT_FLUSH_S)


def main(argv: list[str] | None = None) -> int:
    """Run the node."""
    return base.run(ArmNode, argv)


if __name__ == "__main__":
    raise SystemExit(main())
