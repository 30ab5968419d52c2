"""Playing chunks: a state machine without clocks, threads or messages.

The node passes messages and steady-clock times in and publishes what comes out:

    player.accept(chunk, now_ns, sequence=..., frame_age_s=...)   on a chunk
    played = player.tick(now_ns, arm, arm_age_s)                  at 50 Hz or more, and after every change of mode
    if played is not None:  send played.command if played.send;  publish the step

DISARMED --arm--> ARMED --hold, timeout, repeated holds--> HOLDING --arm--> ARMED;  any --stop--> STOPPED --disarm-->
DISARMED. Nothing arms itself. `go_home` is a slow walk to neutral within HOLDING.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from math import isfinite

import numpy as np

from world_gymnast_ros.control.action_convention import LimitedRuns, convention_fault
from world_gymnast_ros.control.arm_state import GuardInputs, GuardState, arm_fault, finite_vector, measured_ns, observe
from world_gymnast_ros.control.guard import guard, hold, remember
from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.control.homing import capture_joints, fault_on_the_way, way_home
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.robot.kinematics import JOINT_LOWER_RAD, JOINT_UPPER_RAD, NEUTRAL, fk
from world_gymnast_ros.types import ACTION_DIM, F32, F64, ActionChunk, ArmCommand, ArmState, Verdict

_ARMED = "armed by the operator"
_MAX_CHUNK = 64
_CATCH_UP = 0.1  # of dt: a tick this late keeps the beat; a later one starts a new beat, so actions never bunch up
SILENT_AGES = 4.0  # times max_arm_age_s without usable joint states: what comes back may be another arm's
_FROZEN_ACTIONS = 3  # in a row at which the joints read the same to the last bit, though told to move
_FROZEN_RAD = 0.08  # by at least so much: an arm at rest may well read the same twice


class ArmMode(IntEnum):
    """Mode of the player; the numbers of ArmStatus.state."""

    DISARMED = 0
    ARMED = 1
    HOLDING = 2
    STOPPED = 3


@dataclass(frozen=True)
class DueAction:
    """One action whose time has come. `delta` float32 (7,); `frame_ns` steady time of capture."""

    delta: F32
    sequence: int
    index: int
    size: int
    frame_stamp_ns: int
    frame_ns: int
    adapter: str
    instruction: str


@dataclass(frozen=True)
class PlayedStep:
    """What one tick did. `action` None: a hold without a request. `send` False: no position known, send nothing."""

    command: ArmCommand
    action: DueAction | None
    arm: ArmState | None
    frame_age_s: float
    send: bool


class ChunkPlayer:
    """Plays action chunks through the guard at the control rate. Owns the target; the caller owns clock and driver."""

    def __init__(self, config: SafetyConfig) -> None:
        self.config = config
        self.mode = ArmMode.DISARMED
        self.reason = "not armed yet"
        self.cause = HoldCause.NONE
        self._runs = self._new_runs()
        self.verdict_counts: dict[Verdict, int] = dict.fromkeys(Verdict, 0)
        self.refused_chunks = 0
        self.last_refusal = ""
        self.memory = GuardState()
        self._dt_ns = round(config.dt_s * 1e9)
        self._queue: list[DueAction] = []
        self._last_sequence = -1
        self._last_frame_stamp_ns = -(2**63)
        self._last_action_ns = self._armed_ns = 0
        self._due_ns = 0
        self._waiting = False
        self._consecutive_holds = 0
        self._pending: tuple[str, Verdict] | None = None
        self._way: list[F64] = []
        self._way_from = NEUTRAL  # joints at which the way home began
        self._sent: F64 | None = None  # last goal that was to move the arm
        self._read: F64 | None = None  # joints measured then
        self._read_ns = 0
        self._frozen = 0

    def _new_runs(self) -> LimitedRuns:
        c = self.config
        return LimitedRuns(c.limits, c.max_refused_conventions, c.max_consecutive_step_limited,
                           c.max_consecutive_clamped)

    @property
    def warning(self) -> str:
        """What will end in a latched hold if it goes on, with its count and limit; "" while armed and well."""
        return self._runs.warning if self.mode is ArmMode.ARMED else ""

    def arm(
        self, now_ns: int, arm: ArmState | None, arm_age_s: float, hardware_errors: tuple[int, ...] = ()
    ) -> str:
        """Arm from DISARMED or HOLDING, forgetting target and sequence. Return "" or why it was refused."""
        inputs = GuardInputs(arm, arm_age_s, 0.0, now_ns, hardware_errors)
        if self.mode is ArmMode.ARMED:
            return ""
        if self.mode is ArmMode.STOPPED:
            return f"stopped ({self.reason}): clear the cause, disarm, then arm"
        if any(hardware_errors):
            return f"hardware error {hardware_errors}: power-cycle or reboot the motor first"
        # While disarmed the arm may be moved by hand: an old measurement says nothing about a bus fault now.
        fault = arm_fault(GuardState(), inputs, self.config)
        if fault:
            return fault
        seen = observe(GuardState(), inputs, self.config)
        self.memory = replace(seen, armed_joints=seen.good_joints)
        self._set_mode(ArmMode.ARMED, _ARMED)
        self._runs = self._new_runs()
        self._armed_ns = now_ns
        self._last_sequence, self._last_frame_stamp_ns = -1, -(2**63)
        self._last_action_ns, self._due_ns = now_ns, now_ns
        self._waiting, self._consecutive_holds, self._pending = False, 0, None
        self._sent, self._read, self._read_ns, self._frozen, self.last_refusal = None, None, 0, 0, ""
        return ""

    def disarm(self, reason: str = "disarmed by the operator") -> None:
        """Go to DISARMED from any mode, clearing a stop; an arm that was playing is held by the next tick."""
        moving = self.mode is ArmMode.ARMED or bool(self._way)
        self._set_mode(ArmMode.DISARMED, reason)
        self._pending = (reason, Verdict.HOLD) if moving else self._pending

    def hold(self, reason: str = "held by the operator", cause: HoldCause = HoldCause.OTHER) -> None:
        """Latch HOLDING if armed or on the way home; the next tick sends the hold."""
        if self.mode is ArmMode.ARMED or self._way:
            self._set_mode(ArmMode.HOLDING, reason, cause)
            self._pending = (reason, Verdict.HOLD)

    def abandon(self, reason: str) -> None:
        """Drop what is left of a chunk and hold at the next tick, armed still: as a starved player, but at once."""
        if self.mode is ArmMode.ARMED and (self._queue or not self._waiting):
            self._queue, self._pending, self._waiting = [], (reason, Verdict.HOLD), True
            self.reason = reason

    def stop(self, reason: str = "stop requested") -> None:
        """Latch STOPPED from any mode; the next tick holds an arm that is ours. Only `disarm` clears it."""
        if self.mode is not ArmMode.STOPPED:
            ours = self.mode is not ArmMode.DISARMED  # a disarmed arm may be in other hands: send it nothing
            self._set_mode(ArmMode.STOPPED, reason)
            self._pending = (reason, Verdict.STOP) if ours else None

    @property
    def going_home(self) -> bool:
        """Whether the slow walk to neutral is under way."""
        return bool(self._way)

    def go_home(self, now_ns: int, arm: ArmState | None, arm_age_s: float, to_capture: bool = False) -> str:
        """Walk slowly to neutral, or to the capture pose, from ARMED or HOLDING, and stay HOLDING. Return "" or why it
        was refused."""
        if self.mode not in (ArmMode.ARMED, ArmMode.HOLDING):
            return f"arm is {self.mode.name}; arm it first"
        # Joints that jumped away from the good ones are taken for true by arming only.
        fault = arm_fault(self.memory, GuardInputs(arm, arm_age_s, 0.0, now_ns), self.config)
        if fault or arm is None:
            return fault
        goals, fault = way_home(arm.joints, self.config, capture_joints() if to_capture else NEUTRAL)
        if fault:
            return fault
        cause = HoldCause.GOING_TO_CAPTURE if to_capture else HoldCause.GOING_HOME
        self._set_mode(ArmMode.HOLDING, cause.value, cause)
        profile = self.memory.profile
        moving = profile is not None and now_ns - profile.start_ns < self.config.moving_time_s * 1e9
        self.memory = replace(self.memory, T_target=None, held=None, profile=profile if moving else None)
        self._way, self._sent, self._due_ns, self._pending = goals, None, now_ns, None
        self._way_from = np.clip(np.asarray(arm.joints, np.float64), JOINT_LOWER_RAD, JOINT_UPPER_RAD)
        return ""

    def accept(
        self, chunk: ActionChunk, now_ns: int, *, sequence: int, frame_age_s: float, instruction: str = ""
    ) -> str:
        """Take a chunk, replacing what is left of the last one. Return "" or why it was refused (nothing changes).

        A run of chunks of another convention latches HOLDING.
        """
        refusal = self._refusal(chunk, now_ns, sequence, frame_age_s)
        fault = None if refusal else convention_fault(chunk.deltas, self.config.conventions)
        self.last_refusal = refusal = fault.words if fault else refusal
        if fault:
            self._latch(self._runs.refused(), fault.words)
        if refusal:
            self.refused_chunks += 1
            return refusal
        self._runs.taken()
        frame_ns, size = now_ns - round(frame_age_s * 1e9), len(chunk.deltas)
        deltas = chunk.deltas.copy()  # the caller's buffer may be reused
        self._queue = [
            DueAction(deltas[i], sequence, i, size, chunk.frame_stamp_ns, frame_ns, chunk.adapter, instruction)
            for i in range(size)
        ]
        self._last_sequence, self._last_frame_stamp_ns = sequence, chunk.frame_stamp_ns
        self.reason = _ARMED
        self._due_ns = max(now_ns, self._due_ns)
        return ""

    def next_action(self, now_ns: int) -> DueAction | None:
        """Take the action that is due now, or None. Late actions are played later, never faster."""
        if self.mode is not ArmMode.ARMED or not self._queue or now_ns < self._due_ns:
            return None
        late_ns = now_ns - self._due_ns
        self._due_ns = (self._due_ns if late_ns <= _CATCH_UP * self._dt_ns else now_ns) + self._dt_ns
        self._last_action_ns = now_ns
        return self._queue.pop(0)

    def starved(self, now_ns: int) -> bool:
        """Tell whether the player is armed and has had nothing to play for `command_timeout_s`."""
        return (self.mode is ArmMode.ARMED and not self._queue
                and self.command_age_s(now_ns) > self.config.command_timeout_s)

    def command_age_s(self, now_ns: int) -> float:
        """Return the time since the last action was played (or since arming), s."""
        return (now_ns - self._last_action_ns) * 1e-9

    def tick(
        self, now_ns: int, arm: ArmState | None, arm_age_s: float, hardware_errors: tuple[int, ...] = ()
    ) -> PlayedStep | None:
        """Advance to `now_ns`: play the due action through the guard, or send the hold a change of mode asks for."""
        inputs = GuardInputs(arm, arm_age_s, 0.0, now_ns, hardware_errors)
        if self.mode in (ArmMode.ARMED, ArmMode.HOLDING) and any(hardware_errors):
            self.stop(f"hardware error {hardware_errors}: power-cycle or reboot the motor, then disarm and arm")
        self.memory = observe(self.memory, inputs, self.config)
        unseen_s = (now_ns - self.memory.good_ns) * 1e-9
        if self.mode is ArmMode.ARMED and not unseen_s <= SILENT_AGES * self.config.max_arm_age_s:
            self.hold(f"no joint states for {arm_age_s:.1f} s: the driver went; start it, then arm again"
                      if arm_age_s > self.config.max_arm_age_s else
                      f"no usable joint states for {unseen_s:.1f} s: "
                      f"{arm_fault(self.memory, inputs, self.config, check_effort=False)}; then arm again")
        if self._pending is not None:
            (reason, verdict), self._pending = self._pending, None
            return self._finish(hold(self.memory, inputs, self.config, reason, verdict), None, inputs)
        if self._way:
            return self._step_home(now_ns, inputs)
        action = self.next_action(now_ns)
        if action is None:
            return self._starve(now_ns, inputs)
        self._waiting = False
        inputs = GuardInputs(arm, arm_age_s, (now_ns - action.frame_ns) * 1e-9, now_ns, hardware_errors)
        if self._is_frozen(inputs):
            reason = (f"joint states have not changed in {_FROZEN_ACTIONS} actions that were to move the arm: it is "
                      "blocked or its readings are frozen; look, then arm again")
            self._set_mode(ArmMode.HOLDING, reason)
            return self._finish(hold(self.memory, inputs, self.config, reason), action, inputs)
        step = self._finish(guard(action.delta, self.memory, inputs, self.config), action, inputs)
        moves = step.command.verdict in (Verdict.OK, Verdict.CLAMPED)
        self._sent = step.command.joints if moves else None
        self._after(step.command)
        return step

    def _is_frozen(self, inputs: GuardInputs) -> bool:
        """Count the new readings in a row that show nothing moved; tell whether that is a fault."""
        read, before = finite_vector(None if inputs.arm is None else inputs.arm.joints), self._read
        if read is None or not abs(inputs.arm_age_s) < 1e6:  # no time at all
            return False
        if measured_ns(inputs) - self._read_ns < 1_000_000:  # the old one again: its age is judged elsewhere
            return False
        self._read, self._read_ns = read, measured_ns(inputs)
        still = before is not None and bool((read == before).all())
        told = self._sent is not None and float(np.abs(self._sent - read).max()) > _FROZEN_RAD
        self._frozen = self._frozen + 1 if still and told else 0
        return self._frozen >= _FROZEN_ACTIONS

    def _step_home(self, now_ns: int, inputs: GuardInputs) -> PlayedStep | None:
        """Send the next goal on the way home when it is due; a fault on the way ends it with a hold."""
        if now_ns < self._due_ns:
            return None
        self._due_ns = now_ns + self._dt_ns
        goal = self._way[0]
        fault = fault_on_the_way(goal, self._sent, self._way_from, self.memory, inputs, self.config)
        if fault:
            where = "home" if self.cause is HoldCause.GOING_HOME else "at the capture pose"
            self._set_mode(ArmMode.HOLDING, f"not {where}: {fault}")
            return self._finish(hold(self.memory, inputs, self.config, self.reason), None, inputs)
        self._sent = self._way.pop(0)
        if not self._way:
            self.cause = HoldCause.AT_HOME if self.cause is HoldCause.GOING_HOME else HoldCause.AT_CAPTURE
            self.reason = self.cause.value
        gripper = 1.0 if self.memory.gripper is None else self.memory.gripper
        still = np.array([0.0] * (ACTION_DIM - 1) + [gripper], np.float32)
        return self._finish(ArmCommand(fk(goal), goal, gripper, still, still, Verdict.OK, ""), None, inputs)

    def _refusal(self, chunk: ActionChunk, now_ns: int, sequence: int, frame_age_s: float) -> str:
        size, limit_s = len(chunk.deltas), self.config.max_frame_age_s
        if self.mode is not ArmMode.ARMED:
            return f"arm is {self.mode.name}; arm it first"
        if not 1 <= size <= _MAX_CHUNK:
            return f"chunk has {size} actions, limit 1 to {_MAX_CHUNK}; set the policy's chunk size"
        if not np.isfinite(chunk.deltas).all():
            return "chunk holds a non-finite number; check the policy"
        if not abs(chunk.dt_s - self.config.dt_s) <= 1e-3:  # so that NaN differs too
            return f"chunk's dt_s is {chunk.dt_s}, the arm plays at {self.config.dt_s}; make them equal"
        if sequence <= self._last_sequence:
            return f"chunk sequence {sequence} is not after {self._last_sequence}; arm again after a restart"
        if chunk.frame_stamp_ns < self._last_frame_stamp_ns:
            return "chunk's frame is older than the last chunk's; drop late replies"
        if not isfinite(frame_age_s) or not -0.05 <= frame_age_s <= limit_s:
            return f"chunk's frame is {frame_age_s:.3f} s old, limit {limit_s} s; check camera, clocks, inference time"
        if now_ns - round(frame_age_s * 1e9) < self._armed_ns:
            return "chunk's frame is from before the arming: the scene may have been another; look again"
        return ""

    def _starve(self, now_ns: int, inputs: GuardInputs) -> PlayedStep | None:
        """Hold once when nothing has come for a while; latch the hold when nothing comes for longer."""
        if not self.starved(now_ns):
            return None
        age_s = self.command_age_s(now_ns)
        if age_s > self.config.latch_timeout_s:
            self._set_mode(ArmMode.HOLDING, f"no chunk for {age_s:.1f} s, limit {self.config.latch_timeout_s} s; "
                           "check the policy, then arm again" + self._refused_words())
        elif self._waiting:
            return None
        reason = self.reason if self.mode is ArmMode.HOLDING else self.starved_words(now_ns)
        self._waiting = True
        return self._finish(hold(self.memory, inputs, self.config, reason), None, inputs)

    def starved_words(self, now_ns: int) -> str:
        """Return what to tell an operator who sees an armed arm wait."""
        return f"no chunk for {self.command_age_s(now_ns):.1f} s: holding its place{self._refused_words()}"

    def _refused_words(self) -> str:
        return f"; the last was refused: {self.last_refusal}" if self.last_refusal else ""

    def _after(self, command: ArmCommand) -> None:
        """Drop the rest of a chunk whose action was held: it was planned from a state that did not come about."""
        if command.verdict in (Verdict.OK, Verdict.CLAMPED):
            self._consecutive_holds = 0
            self._latch(self._runs.played(command), f"the last: {command.reason}")
            return
        self._queue = []
        self._consecutive_holds += 1
        if command.verdict is Verdict.STOP:
            self._set_mode(ArmMode.STOPPED, command.reason)
        elif self._consecutive_holds >= self.config.max_consecutive_holds:
            self._set_mode(ArmMode.HOLDING, f"{self._consecutive_holds} holds in a row, the last: {command.reason}")

    def _latch(self, cause: HoldCause, details: str) -> None:
        if cause is not HoldCause.NONE:
            self.hold(f"{self._runs.words(cause)}; {details}; look, then arm again", cause)

    def _finish(self, command: ArmCommand, action: DueAction | None, inputs: GuardInputs) -> PlayedStep:
        self.memory = remember(self.memory, command, inputs, self.config)
        self.verdict_counts[command.verdict] += 1
        return PlayedStep(command, action, inputs.arm, inputs.frame_age_s, bool(np.isfinite(command.joints).all()))

    def _set_mode(self, mode: ArmMode, reason: str, cause: HoldCause = HoldCause.OTHER) -> None:
        self.mode, self.reason = mode, reason
        self.cause = cause if mode is ArmMode.HOLDING else HoldCause.NONE
        self._queue, self._way = [], []
