"""The guard: one pure function between what the policy asks and what the driver gets. Nothing below it stops the arm.

The driver has no limit check, no finite-value check and no timeout, so all of them are here, in this order: the arm's
own health, the request, step box, target composition, workspace, inverse kinematics, joint limits, joint speed.
`guard` never raises: whatever comes in, an ArmCommand with a verdict and a reason comes out.

    OK       sent as asked
    CLAMPED  sent, but shortened, clipped or re-seeded; `reason` says why
    HOLD     stay where the arm is measured to be (or last was, if the measurement is unusable)
    STOP     as HOLD, and only the operator may go on; `joints` is NaN where no position is known: send nothing then

Times are steady-clock nanoseconds, ages are seconds, computed by the caller from the right clocks.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from world_gymnast_ros.actions import apply_delta, clip_delta
from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.health import FUTURE_S, arm_fault, finite_vector, jumped, plausible
from world_gymnast_ros.health import GuardInputs as GuardInputs
from world_gymnast_ros.health import GuardState as GuardState
from world_gymnast_ros.kinematics import JOINT_LOWER_RAD, JOINT_NAMES, JOINT_UPPER_RAD, fk, ik
from world_gymnast_ros.limits import SafetyConfig as SafetyConfig
from world_gymnast_ros.types import ACTION_DIM, F32, F64, ArmCommand, Verdict

_PUSHED_AWAY_RAD = 0.15  # a held arm that is found this far away is held where it is, not driven back
_HALVINGS = 6  # of the step, when it must be shortened: 1/64 of a step is finer than the arm's 1 mm


def guard(requested: Any, memory: GuardState, inputs: GuardInputs, config: SafetyConfig) -> ArmCommand:
    """Return the command for `requested` (7,): limited, held or stopped, and why. Never raises, sends nothing."""
    try:
        if any(inputs.hardware_errors):
            return _hold(requested, memory, inputs, f"hardware error {tuple(inputs.hardware_errors)}: power-cycle or "
                         "reboot the motor, then disarm and arm", Verdict.STOP)
        fault = arm_fault(memory, inputs, config) or _request_fault(requested, inputs, config)
        if fault:
            return _hold(requested, memory, inputs, fault)
        return _move(np.asarray(requested, np.float64), memory, inputs, config)
    except Exception as error:  # a bug here must not become motion
        return _hold(requested, memory, inputs, f"guard failed ({type(error).__name__}: {error}); report this")


def hold(memory: GuardState, inputs: GuardInputs, reason: str, verdict: Verdict = Verdict.HOLD) -> ArmCommand:
    """Return the command that keeps the arm where it is measured. Never raises; STOP where no position is known."""
    return _hold(np.zeros(ACTION_DIM), memory, inputs, reason, verdict)


def remember(memory: GuardState, command: ArmCommand) -> GuardState:
    """Return the memory after `command`. The target advances only with what was sent; after a hold it is forgotten."""
    if command.verdict in (Verdict.OK, Verdict.CLAMPED):
        return replace(memory, T_target=command.T_base_target, held=None, gripper=command.gripper)
    known = bool(np.isfinite(command.joints).all())
    return replace(memory, T_target=None, held=command.joints if known else None)


def _request_fault(requested: Any, inputs: GuardInputs, config: SafetyConfig) -> str:
    if finite_vector(requested, ACTION_DIM) is None:
        return f"action is not {ACTION_DIM} finite numbers: {requested!r:.200}; check the policy"
    if not -FUTURE_S <= inputs.frame_age_s <= config.max_action_age_s:
        return (f"the action's frame is {inputs.frame_age_s:.3f} s old, limit {config.max_action_age_s} s; "
                "check camera, clocks and inference time")
    return ""


class _Try(NamedTuple):
    """One point of the path: pose, joints if usable, whether the workspace clipped it, and what was wrong."""

    T: F64
    joints: F64 | None
    clipped: bool
    fault: str


def _move(requested: F64, memory: GuardState, inputs: GuardInputs, config: SafetyConfig) -> ArmCommand:
    """Compose the next target and shorten the step until the joints can follow."""
    assert inputs.arm is not None  # arm_fault saw to it
    joints = np.asarray(inputs.arm.joints, np.float64)
    T_measured = fk(joints)
    step: F64 = clip_delta(requested, config.limits)
    reasons = ["step limited"] if np.abs(step - requested).max() > 1e-6 else []
    T_target, reseeded = _start(memory, T_measured, joints, config)
    reasons += [reseeded] if reseeded else []

    best, scale = _try(step, 1.0, T_target, T_measured, joints, config), 1.0
    if best.joints is None:
        reasons.append(best.fault)
        best, scale = _shorten(step, T_target, T_measured, joints, config)
        if best.joints is None:
            return _hold(requested, memory, inputs, "; ".join(reasons))
        reasons.append(f"step shortened to {100 * scale:.0f} %")
    if best.clipped:
        reasons.append("target kept in the workspace")

    sent = np.concatenate([step[:6] * scale, step[6:]])
    unclipped = apply_delta(T_target, T_measured, sent)
    sent[:3] += best.T[:3, 3] - unclipped[:3, 3]
    verdict = Verdict.CLAMPED if reasons else Verdict.OK
    return ArmCommand(best.T, best.joints, float(step[6]), _as_asked(requested), sent.astype(np.float32), verdict,
                      "; ".join(reasons))


def _start(memory: GuardState, T_measured: F64, joints: F64, config: SafetyConfig) -> tuple[F64, str]:
    """Return the target to build on, and why it was re-seeded from measured ("" if it was not, or is new)."""
    # A resting arm may be measured a tick outside its limits; its target must not be.
    measured = fk(np.clip(joints, JOINT_LOWER_RAD, JOINT_UPPER_RAD))
    if memory.T_target is None:
        return measured, ""
    drift_m = float(np.linalg.norm(memory.T_target[:3, 3] - T_measured[:3, 3]))
    cosine = (np.sum(memory.T_target[:3, :3] * T_measured[:3, :3]) - 1.0) / 2.0
    drift_rad = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
    if drift_m > config.max_target_drift_m or drift_rad > config.max_target_drift_rad:
        return measured, f"target was {drift_m:.3f} m, {drift_rad:.3f} rad from the arm: re-seeded from measured"
    standing = _try(np.zeros(ACTION_DIM), 0.0, memory.T_target, T_measured, joints, config)
    if standing.joints is None:
        return measured, f"last target cannot be kept from here ({standing.fault}): re-seeded from measured"
    return memory.T_target, ""


def _try(step: F64, scale: float, T_target: F64, T_measured: F64, joints: F64, config: SafetyConfig) -> _Try:
    """Compose `scale` of the step, clip it to the workspace and check what the joints would have to do."""
    T = apply_delta(T_target, T_measured, np.concatenate([step[:6] * scale, step[6:]]))
    # A start outside the box may stay or come in, and is never thrown to the border in one step.
    start = T_target[:3, 3]
    inside = np.clip(T[:3, 3], np.minimum(config.workspace_low_m, start), np.maximum(config.workspace_high_m, start))
    clipped = bool(np.abs(inside - T[:3, 3]).max() > 1e-6)
    T[:3, 3] = inside
    try:
        goal = ik(T, joints)
    except Unreachable as error:
        return _Try(T, None, clipped, str(error))
    low = np.minimum(JOINT_LOWER_RAD + config.joint_margin_rad, joints) - 1e-6
    high = np.maximum(JOINT_UPPER_RAD - config.joint_margin_rad, joints) + 1e-6
    beyond = np.maximum(low - goal, goal - high)
    if beyond.max() > 0.0:
        i = int(beyond.argmax())
        return _Try(T, None, clipped, f"joint {JOINT_NAMES[i]} would come within {config.joint_margin_rad} rad of its "
                    f"limit ({goal[i]:.3f} rad)")
    too_fast = np.abs(goal - joints) - config.max_joint_step_rad
    if too_fast.max() > 1e-9:
        i = int(too_fast.argmax())
        return _Try(T, None, clipped, f"joint {JOINT_NAMES[i]} would move {abs(goal[i] - joints[i]):.3f} rad in one "
                    f"step, limit {config.max_joint_step_rad[i]:.3f} rad")
    return _Try(T, goal, clipped, "")


def _shorten(step: F64, T_target: F64, T_measured: F64, joints: F64, config: SafetyConfig) -> tuple[_Try, float]:
    """Return the furthest usable point on the way to the step's end, by bisection from standing still."""
    low, high = 0.0, 1.0
    best = _try(step, 0.0, T_target, T_measured, joints, config)
    for _ in range(_HALVINGS if best.joints is not None else 0):
        middle = (low + high) / 2.0
        attempt = _try(step, middle, T_target, T_measured, joints, config)
        if attempt.joints is None:
            high = middle
        else:
            best, low = attempt, middle
    return best, low


def _hold(
    requested: Any, memory: GuardState, inputs: GuardInputs, reason: str, verdict: Verdict = Verdict.HOLD
) -> ArmCommand:
    """Build a HOLD (or STOP) from whatever is usable. Must not raise: it is also the answer to errors."""
    joints = _hold_joints(memory, inputs)
    if joints is None:
        joints, verdict = np.full(6, np.nan), Verdict.STOP
        T, reason = np.full((4, 4), np.nan), f"{reason}; no arm position is known, so nothing may be sent"
    else:
        T = fk(joints)
    gripper = _first_finite(getattr(memory, "gripper", None), getattr(getattr(inputs, "arm", None), "gripper", None))
    sent = np.zeros(ACTION_DIM, np.float32)
    sent[6] = gripper
    return ArmCommand(T, joints, gripper, _as_asked(requested), sent, verdict, reason)


def _as_asked(requested: Any) -> F32:
    """Return the request as float32 (7,) for the record; NaN where it is no such thing."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.array(requested, np.float32)
    except Exception:  # not numbers at all
        values = np.empty(0, np.float32)
    return values if values.shape == (ACTION_DIM,) else np.full(ACTION_DIM, np.nan, np.float32)


def _hold_joints(memory: GuardState, inputs: GuardInputs) -> F64 | None:
    """Return measured joints if plausible, else the last good ones, else None; a hold under way keeps its place.

    Commanding the measured joints anew each time would let gravity pull the arm down by its steady-state error.
    """
    held = plausible(getattr(memory, "held", None))
    measured = plausible(getattr(getattr(inputs, "arm", None), "joints", None))
    good = plausible(getattr(memory, "good_joints", None))
    try:
        now = good if measured is None or jumped(measured, memory, inputs) else measured
    except Exception:  # an unusable clock: believe the older, checked joints
        now = good if good is not None else measured
    if held is not None and (now is None or np.abs(held - now).max() < _PUSHED_AWAY_RAD):
        return held
    return now


def _first_finite(*values: Any) -> float:
    """Return the first usable gripper value in [0, 1]; open (1) when none is known, as that never crushes."""
    for value in values:
        if isinstance(value, (int, float, np.floating)) and -1e9 < value < 1e9:  # False for NaN
            return min(max(float(value), 0.0), 1.0)
    return 1.0
