"""Plays chunks to the arm through the guard. Its own process, so that it keeps watch when inference stalls.

Thin: `control.ChunkPlayer` decides, `safety.guard` limits, `driver` sends. Deadlines use the steady clock. On exit the
arm is told to hold its place, before anything is torn down.
"""
from __future__ import annotations

import math
import re
import time
from itertools import count
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks

from world_gymnast_ros.config import ArmConfig
from world_gymnast_ros.control.chunk_player import SILENT_AGES, ArmMode, ChunkPlayer, PlayedStep
from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.control.policy_origin import origin_refusal
from world_gymnast_ros.errors import BadAction
from world_gymnast_ros.nodes import base, command_line, convert, graph
from world_gymnast_ros.nodes.driver import Driver, DryDriver
from world_gymnast_ros.nodes.driver_cartesian import CartesianDriver, ServoDriver
from world_gymnast_ros.nodes.driver_ros2_control import TrajectoryDriver
from world_gymnast_ros.nodes.driver_xs import XsDriver
from world_gymnast_ros.robot.gripper import FINGER_CLOSED_M, FINGER_OPEN_M, GripWatch
from world_gymnast_ros.types import SIMULATION, Verdict

DRIVERS: dict[str, type[Driver]] = {
    "xs": XsDriver, "trajectory": TrajectoryDriver, "servo": ServoDriver, "cartesian": CartesianDriver,
}
"""Parameter `driver` -> what speaks to the arm."""
STATUS_PERIOD_S = 0.5
RATE_PERIOD_S = 2.0
IDLE_POLLS = 5
"""Every so many health periods the temperatures are read while nothing moves, which is cheap: one read of the bus."""
EXIT_FLUSH_S = 0.05
"""Time for the hold to leave through shared memory before the process goes."""


class ArmNode(base.ConfiguredNode):
    """Topics and services around one ChunkPlayer."""

    def __init__(self) -> None:
        super().__init__("arm_node")
        self.config = c = self.read_config(ArmConfig, moves="")
        self.player = ChunkPlayer(c.safety())
        self.driver: Driver = DryDriver(self, c) if c.dry_run else DRIVERS[c.driver](self, c)
        self.get_logger().info(self._motion())
        self._stop_pressed = False
        self._arming = False
        self._called_off = ""  # why an arming under way must not end in ARMED
        self._checking = False
        self._grip = GripWatch()
        self._idle_polls = count(1)
        self._armings = 0  # and walks home: each begins with a driver made ready
        self._frame_age_s = -1.0
        self._played = False
        self._dead_man_ns = 0  # steady time at which the dead-man button was last seen held
        self._policy_fault = ""  # why the policy's side says that it must not act
        self._policy_says: tuple[str, str] | None = None  # its name, and what it was trained on
        self._warned = ""  # of a run, as logged
        self._causes: set[str] = set()  # of clamps that were told since arming
        self._sent_count, self._chunk_count, self._state_count, self._rated_ns = 0, 0, 0, base.steady_ns()
        self._rates = ["0.0", "0.0", "0.0"]
        self._told: tuple[ArmMode, str] | None = None
        self._waits = ReentrantCallbackGroup()  # callbacks that await the driver, while the default group plays on
        self._connect()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0 / c.tick_hz, self._tick, clock=steady)
        self.create_timer(1.0 / c.gripper_rate_hz, self._on_gripper, clock=steady)
        self.create_timer(STATUS_PERIOD_S, self._publish_status, clock=steady)
        if c.health_period_s > 0:
            self.create_timer(c.health_period_s, self._on_health, clock=steady, callback_group=self._waits)

    def _motion(self) -> str:
        """Say whether this node can move anything, and what."""
        if self.config.dry_run:
            return "dry run: moves nothing, no driver is sent anything; disarmed, ~/arm to play chunks"
        return (f"LIVE: once armed it moves the arm of driver '{self.config.driver}' through "
                f"{', '.join(self.driver.command_topics)}; disarmed, ~/arm to play chunks")

    def _connect(self) -> None:
        self._steps = self.create_publisher(convert.StepMsg, "step", base.RELIABLE)
        self._status = self.create_publisher(convert.ArmStatusMsg, "arm_status", base.LATCHED)
        self._diagnostics = self.create_publisher(convert.DiagnosticArray, "/diagnostics", base.RELIABLE)
        self._poses = self.create_publisher(convert.PoseStamped, "arm_pose", base.RELIABLE)
        self._chunks = self.create_subscription(convert.ActionChunkMsg, "action_chunk", self._on_chunk, base.RELIABLE)
        self._policy_status = self.create_subscription(convert.DiagnosticStatus, "policy_status",
                                                       self._on_policy_status, base.LATCHED)
        self.create_subscription(convert.DiagnosticStatus, "task_done", self._on_task_done, base.RELIABLE)
        self.create_subscription(
            convert.Empty, "policy_alive", lambda _: None, base.alive(self.config.policy_lease_s),
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_policy_alive))
        if self.config.dead_man_button >= 0:
            self.create_subscription(convert.Joy, "joy", self._on_joy, base.NEWEST)
        base.hear_everyone(self, convert.Bool, "stop", self._on_stop)
        self.create_service(convert.Trigger, "~/arm", self._on_arm, callback_group=self._waits)
        self.create_service(convert.Trigger, "~/disarm", self._on_disarm)
        self.create_service(convert.Trigger, "~/hold", self._on_hold)
        self.create_service(convert.Trigger, "~/go_home", self._on_go_home, callback_group=self._waits)
        self.create_service(convert.Trigger, "~/go_to_capture", self._on_go_to_capture, callback_group=self._waits)

    # --- playing --------------------------------------------------------------------------------------------------

    def _on_chunk(self, msg: Any) -> None:
        now_ns = base.steady_ns()
        self._chunk_count += 1
        rivals = self._rivals()
        if rivals and self.player.mode is ArmMode.ARMED:
            self.player.hold(rivals)
            self._tick()
            return
        try:
            chunk = convert.chunk_from_msg(msg)
        except BadAction as error:
            if self.causes.news(str(error)):
                self.get_logger().error(str(error))
            return
        age_s = (self.now_ns() - chunk.frame_stamp_ns) * 1e-9
        refusal = self.player.accept(chunk, now_ns, sequence=msg.sequence, frame_age_s=age_s,
                                     instruction=msg.instruction)
        if refusal:
            refused = f"chunk {msg.sequence} refused: {refusal}"
            if self.causes.news(refused):
                self.get_logger().warning(refused)
        else:
            self._tick()  # the first action now, not at the next tick

    def _on_policy_alive(self, event: Any) -> None:
        """Hold when the policy's process is gone or frozen: the rest of its chunk has nobody behind it."""
        if event.alive_count == 0:
            self.player.abandon("the policy is gone or frozen")
            self._tick()

    def _on_policy_status(self, msg: Any) -> None:
        """Hold when the policy's side finds that it must not act, such as on a mirrored image."""
        self._policy_fault = msg.message if msg.level == msg.ERROR else ""
        self._policy_says = (msg.hardware_id, next((v.value for v in msg.values if v.key == "trained_on"), ""))
        refusal = self._policy_refusal()
        if refusal:
            self.player.hold(f"{refusal}; then arm again", HoldCause.POLICY_NOT_READY)
            self._tick()

    def _on_task_done(self, msg: Any) -> None:
        """Hold when a judge says that the task is done: a policy that moves on often undoes it."""
        if self.player.mode is ArmMode.ARMED:
            self.get_logger().info(msg.message)
            self.player.hold(HoldCause.TASK_DONE.value, HoldCause.TASK_DONE)
            self._tick()

    def _policy_refusal(self) -> str:
        """Return why the policy must not act, or "": also where none says anything, or it is gone with what it said."""
        if self.count_publishers("policy_status") == 0:
            return ""
        if self._policy_says is None:
            return f"{HoldCause.POLICY_NOT_READY.value}: it has not said yet what it is; ask again"
        fault = self._policy_fault or self._origin_refusal()
        return f"{HoldCause.POLICY_NOT_READY.value}: {fault}" if fault else ""

    def _origin_refusal(self) -> str:
        """Return why a policy of simulated images must not move this arm, or ""."""
        if self._policy_says is None or self.config.dry_run or self.config.allow_simulation_policy:
            return ""
        return origin_refusal(*self._policy_says, self.driver.sources(), [graph.TWIN.name])

    def _rivals(self) -> str:
        """Return why the chunks cannot be trusted to come from one policy, or ""."""
        count = self._chunks.get_publisher_count()
        return (f"{count} publishers of action_chunk: end all but one (a killed one is forgotten after 20 s), then arm "
                "again" if count > 1 else "")

    def _tick(self) -> None:
        now_ns = base.steady_ns()
        if (self.player.mode is ArmMode.ARMED or self.player.going_home) and self._dead_man_open(now_ns):
            self.player.hold("dead-man button released or `joy` silent; press it, then arm again")
        if self._moves and not self.driver.is_prepared():
            self.player.hold("the driver was started anew: arm again, which prepares it")
        arm, age_s = self.driver.state(now_ns)
        played = self.player.tick(now_ns, arm, age_s)
        if played is not None:
            self._carry_out(played)
        if self.player.warning and not self._warned:  # once per run; its count goes on in the diagnostics
            self.get_logger().warning(f"going to hold: {self.player.warning}")
        self._warned = self.player.warning
        if self._told != (self.player.mode, self.player.reason):
            self._publish_status()

    def _carry_out(self, played: PlayedStep) -> None:
        """Send first, then tell."""
        command = played.command
        if played.send and self.driver.is_prepared():
            self.driver.send_joints(command.joints, hold=command.verdict in (Verdict.HOLD, Verdict.STOP))
            self._sent_count += 1
        if played.action is not None:
            self._played, self._frame_age_s = True, played.frame_age_s
            self._steps.publish(convert.step_msg(command, played.action, played.arm, self.now_ns()))
        if command.verdict in (Verdict.HOLD, Verdict.STOP):
            line = f"{command.verdict.value}: {command.reason}"
            if self.causes.news(line):
                self.get_logger().warning(line)
            self._publish_status()
        elif command.verdict is Verdict.CLAMPED:
            for reason in command.reason.split("; "):
                cause = re.sub(r"-?\d+(\.\d+)?", "#", reason)
                if cause not in self._causes:  # once per cause, not per step
                    self._causes.add(cause)
                    self.get_logger().info(f"clamped: {reason} (told once per arming)")

    def _on_gripper(self) -> None:
        """Run the grip while the arm plays; one that is held keeps what it holds, and a disarmed one lets go."""
        now_ns = base.steady_ns()
        arm, age_s = self.driver.state(now_ns)
        silent = not age_s <= SILENT_AGES * self.player.config.max_arm_age_s  # the driver went: who comes is another
        if self.player.mode is ArmMode.DISARMED or silent or not self.driver.is_prepared():
            return
        if arm is None or age_s > self.player.config.max_arm_age_s:
            self._grip.lost()
            self.driver.stop_gripper(None)
            return
        goal, finger_m = self.player.memory.gripper, FINGER_CLOSED_M + arm.gripper * (FINGER_OPEN_M - FINGER_CLOSED_M)
        if not self._grip.drives(now_ns, finger_m, self.player.mode is ArmMode.ARMED):
            self.driver.stop_gripper(finger_m)
        elif goal is not None:
            self.driver.send_gripper(goal, finger_m)

    # --- operator -------------------------------------------------------------------------------------------------

    @property
    def _moves(self) -> bool:
        """Whether the arm is being driven: it plays, or walks home."""
        return self.player.mode is ArmMode.ARMED or self.player.going_home

    async def _on_arm(self, _request: Any, response: Any) -> Any:
        if self.player.mode is ArmMode.ARMED:  # the registers of a moving arm are left alone
            response.success, response.message = True, "already armed"
            return response
        refusal = await self._arm()
        armed = "armed, dry run: nothing is sent" if self.config.dry_run else "armed"
        response.success, response.message = not refusal, refusal or armed
        self.get_logger().info(f"{armed}, as {self.config.robot_name}" if not refusal else f"not armed: {refusal}")
        return response

    async def _arm(self) -> str:
        """Prepare the driver, look at the arm afresh, seed the target. Return "" or why not."""
        if self._stop_pressed:
            return "stop is pressed; release it (publish false on 'stop'), disarm, then arm"
        if self._arming:
            return "arming is under way"
        if self._dead_man_open(base.steady_ns()):
            return f"the dead-man button ({self.config.dead_man_button} of `joy`) is not held"
        refusal = await self._make_ready(plays=True) or self._rivals() or self._policy_refusal()
        if refusal:
            return refusal
        now_ns = base.steady_ns()
        arm, age_s = self.driver.state(now_ns)
        refusal = self.player.arm(now_ns, arm, age_s)
        if not refusal:
            self.player.verdict_counts = dict.fromkeys(Verdict, 0)
            self._played, self._frame_age_s = False, -1.0
            self._causes.clear()
            self.causes.clear()
            self._tick()
        return refusal

    async def _make_ready(self, plays: bool = False) -> str:
        """Make the driver ready and hear from the arm. Return "" or why not, or what called it off meanwhile.

        `plays`: a policy is to move it, so nothing is written to the driver of an arm that it must not move.
        """
        self._arming, self._called_off = True, ""
        try:
            if plays and self._policy_says is not None and self._policy_says[1] == SIMULATION:
                await self.driver.found_sources()  # whose arm is it?
            refusal = (self._policy_refusal() if plays else "") or await self.driver.make_ready()
        finally:
            self._arming = False
        self._armings += not refusal
        return refusal or self._called_off

    def _on_disarm(self, _request: Any, response: Any) -> Any:
        if self._stop_pressed:
            response.message = "stop is pressed; release it first (publish false on 'stop')"
            return response
        self._called_off = "disarmed while arming"
        self.player.disarm()
        self._tick()  # the hold goes out before the answer
        self._let_go()
        response.success, response.message = True, "disarmed; the arm holds its place"
        return response

    def _on_hold(self, _request: Any, response: Any) -> Any:
        self._called_off = "held while arming"
        self.player.hold()
        self._tick()
        response.success = self.player.mode in (ArmMode.HOLDING, ArmMode.DISARMED)
        response.message = f"{self.player.mode.name}: {self.player.reason}"
        return response

    def _let_go(self) -> None:
        """Switch the gripper off, and send nothing more: the arm may be in other hands."""
        if self.driver.is_prepared():
            self.driver.release_gripper()
        self.driver.let_go()

    async def _on_go_home(self, _request: Any, response: Any) -> Any:
        """Walk to neutral from ARMED or HOLDING; answered when the walk begins, `arm_status` says when it is over."""
        refusal = await self._go_home()
        response.success, response.message = not refusal, refusal or "going home; then arm again"
        self._tick()
        return response

    async def _on_go_to_capture(self, _request: Any, response: Any) -> Any:
        """Walk to where the camera sees the arm well, as `_on_go_home` walks to neutral."""
        refusal = await self._go_home(to_capture=True)
        response.success, response.message = not refusal, refusal or "going to the capture pose; then capture"
        self._tick()
        return response

    async def _go_home(self, to_capture: bool = False) -> str:
        """Hold, make the driver ready as for arming, begin the walk. Return "" or why not."""
        where = "at the capture pose" if to_capture else "home"
        if self._arming:
            return "arming is under way"
        if self._dead_man_open(base.steady_ns()):
            return "the dead-man button is not held"
        if self.player.mode not in (ArmMode.ARMED, ArmMode.HOLDING):
            return f"arm is {self.player.mode.name}; arm it first"
        if self.config.dry_run:
            return "dry run: nothing is sent to the arm, so it walks nowhere; move it by hand, its torque off"
        self.player.hold(f"about to go {'to the capture pose' if to_capture else 'home'}")
        self._tick()
        refusal = await self._make_ready()
        if not refusal:
            now_ns = base.steady_ns()
            refusal = self.player.go_home(now_ns, *self.driver.state(now_ns), to_capture)
        if refusal and self.player.mode is ArmMode.HOLDING:
            self.player.reason = f"not {where}: {refusal}"
        return refusal

    def _on_joy(self, msg: Any) -> None:
        button = self.config.dead_man_button
        held = len(msg.buttons) > button and msg.buttons[button] == 1
        self._dead_man_ns = base.steady_ns() if held else 0
        if not held:
            self._tick()

    def _dead_man_open(self, now_ns: int) -> bool:
        """Tell whether a dead-man button is asked for and not held."""
        return (self.config.dead_man_button >= 0
                and now_ns - self._dead_man_ns > self.config.dead_man_timeout_s * 1e9)

    def _on_stop(self, msg: Any) -> None:
        """Latch; a later `false` only allows disarm and arm again."""
        self._stop_pressed = bool(msg.data)
        if msg.data:
            self._called_off = "stop was pressed while arming"
            self.player.stop("stop pressed")
            self._tick()

    # --- health and status ----------------------------------------------------------------------------------------

    async def _on_health(self) -> None:
        """Read the motors while the arm is driven: one that lost its torque says nothing by itself."""
        if self._checking:
            return
        rival = self.driver.rivals() if self._moves else ""
        if rival:
            self.player.hold(f"{rival}, then arm again")
            self._tick()
            return
        self._checking, asked = True, self._armings
        try:
            if not self._moves:
                if next(self._idle_polls) % IDLE_POLLS == 0:
                    await self.driver.read_temperatures()
                return
            fault, errors = await self.driver.health()
        finally:
            self._checking = False
        if asked != self._armings:  # put to a driver that was restarted since: its silence says nothing of this one
            return
        if any(errors):
            fault = f"hardware error {errors}: power-cycle or reboot the motor, then disarm and arm"
        if fault and self._moves:
            self.player.stop(fault)
            self._tick()

    def _publish_status(self) -> None:
        p, now_ns = self.player, base.steady_ns()
        self._told = (p.mode, p.reason)
        command_age_s = p.command_age_s(now_ns) if self._played else -1.0
        reason = p.starved_words(now_ns) if p.starved(now_ns) else p.reason
        self._status.publish(convert.status_msg(p.mode, reason, p.cause, p.verdict_counts, self._frame_age_s,
                                                command_age_s, self.now_ns()))
        arm, age_s = self.driver.state(now_ns)
        elapsed_s = (now_ns - self._rated_ns) * 1e-9
        if elapsed_s >= RATE_PERIOD_S:
            counts = (self._sent_count, self._chunk_count, self.driver.joints.count - self._state_count)
            self._rates = [f"{number / elapsed_s:.1f}" for number in counts]
            self._sent_count, self._chunk_count, self._rated_ns = 0, 0, now_ns
            self._state_count = self.driver.joints.count
        warning = p.warning or (self._silence(age_s) if p.mode is ArmMode.DISARMED else "")  # else the reason says it
        level = "error" if p.mode is ArmMode.STOPPED else "warn" if p.mode is ArmMode.HOLDING or warning else "ok"
        values = {"state": p.mode.name, "hold_cause": p.cause.name, "joint_state_age_s": f"{age_s:.3f}",
                  "command_age_s": f"{command_age_s:.3f}",
                  "frame_age_s": f"{self._frame_age_s:.3f}", "commands_per_s": self._rates[0],
                  "chunks_per_s": self._rates[1], "joint_states_per_s": self._rates[2],
                  "chunk_publishers": self._chunks.get_publisher_count(), "refused_chunks": p.refused_chunks,
                  "last_refusal": p.last_refusal, "driver_fault": self.driver.joints.fault,
                  "efforts": [] if arm is None else arm.efforts.round().tolist(),
                  "temperatures_c": list(self.driver.temperatures),
                  **{v.value.lower(): n for v, n in p.verdict_counts.items()}}
        self._diagnostics.publish(convert.diagnostics_msg(base.named(self, "arm_node"), self.config.robot_name, level,
                                                          warning or reason, values, self.now_ns()))
        if arm is not None and age_s <= p.config.max_arm_age_s:
            self._poses.publish(convert.pose_msg(arm.T_base_ee, self.now_ns() - round(age_s * 1e9),
                                                 self.config.base_frame))

    def _silence(self, age_s: float) -> str:
        """Return what to say of a driver that is not heard, or "": an arm without one is not well, also disarmed."""
        if age_s <= SILENT_AGES * self.player.config.max_arm_age_s:
            return ""
        for_s = f"for {age_s:.1f} s" if math.isfinite(age_s) else "ever"
        fault = self.driver.joints.fault
        return (f"no joint states of the arm on {self.driver.joints.topic} ({for_s}){f': {fault}' if fault else ''}; "
                "is the driver running, and is robot_name right?")

    def close(self) -> None:
        """Hold first; then everything may go."""
        self.player.disarm("the node ends")
        self._tick()
        self._let_go()
        time.sleep(EXIT_FLUSH_S)


USAGE = command_line.Usage(
    name="arm_node",
    doc="""\
Plays action chunks to the arm, every action through the guard. It starts DISARMED.

  in      action_chunk, joint states of the driver, task_done, stop (std_msgs/Bool, latched), joy (dead-man button)
  out     step, arm_status, diagnostics, and goals to the driver
  offers  ~/arm ~/disarm ~/hold ~/go_home ~/go_to_capture (std_srvs/Trigger)""",
    parameters=ArmConfig,
    moves="YES, once ~/arm was called, unless dry_run is true. The first line of its log says which driver it moves.",
    examples=(
        ("--ros-args -p dry_run:=true", "compute and publish everything, send nothing to any driver"),
        ("--ros-args -p dry_run:=true -p dead_man_button:=4", "the same, armed only while button 4 on joy is held"),
        ("--ros-args -p driver:=trajectory -p dry_run:=true",
         "behind ros2_control; without dry_run it moves the arm once armed"),
        ("--ros-args --params-file FILE", "with the parameters of a copy of config/arm.yaml"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the node."""
    return base.run(ArmNode, argv, usage=USAGE)


if __name__ == "__main__":
    raise SystemExit(main())
