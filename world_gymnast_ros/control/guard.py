"""The guard: one pure function between what the policy asks and what the driver gets. Nothing below it stops the arm.

The driver has no limit check, no finite-value check and no timeout, so all of them are here, in this order: the arm's
own health, the request, step box, target composition, workspace, inverse kinematics, joint limits, speed and
acceleration, distance of the links from the table and from each other.
`guard` never raises: whatever comes in, an ArmCommand with a verdict and a reason comes out.

    OK       sent as asked
    CLAMPED  sent, but shortened, clipped or re-seeded; `reason` says why
    HOLD     stay where the arm is measured to be, or where its motors come to rest if the measurement is unusable
    STOP     as HOLD, and only the operator may go on; `joints` is NaN where no position is known: send nothing then

Times are steady-clock nanoseconds, ages are seconds, computed by the caller from the right clocks.
"""
from __future__ import annotations

from dataclasses import replace
from math import acos, inf
from typing import Any, NamedTuple

import numpy as np

from world_gymnast_ros.control.arm_state import FUTURE_S, arm_fault, finite_vector, plausible
from world_gymnast_ros.control.arm_state import GuardInputs as GuardInputs
from world_gymnast_ros.control.arm_state import GuardState as GuardState
from world_gymnast_ros.control.limits import SafetyConfig as SafetyConfig
from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.robot.actions import apply_delta, clip_delta
from world_gymnast_ros.robot.clearance import BOW_M, Clearances, clearances, names
from world_gymnast_ros.robot.gripper import FINGER_CLOSED_M, FINGER_OPEN_M
from world_gymnast_ros.robot.kinematics import (
    JOINT_LOWER_RAD,
    JOINT_NAMES,
    JOINT_UPPER_RAD,
    MAX_JOINT_SPEED_RAD_S,
    fk,
    ik,
)
from world_gymnast_ros.robot.motion_profile import (
    after,
    at_rest,
    cruise_bounds,
    cruise_speed,
    goal_of,
    peak_acceleration,
    state_at,
)
from world_gymnast_ros.types import ACTION_DIM, F32, F64, ArmCommand, Verdict

_CREEP_M = 0.003  # below the floor, or closer than allowed, that a loaded arm may get by sagging anew at every hold
_RAISE_M = 0.01  # at most in one action, of a target that sagged further than that
_PUSHED_AWAY_RAD = 0.15  # a held arm that is found this far away is held where it is, not driven back
_HALVINGS = 6  # of the step, when it must be shortened: 1/64 of a step is finer than the arm's 1 mm
_FIRST = 3  # row of the first goal, after the start, the measured joints and those at arming
_ON_THE_WAY = np.array([[0.25], [0.5], [0.75], [1.0]])  # of the way to a goal: where distances are looked at


def guard(requested: Any, memory: GuardState, inputs: GuardInputs, config: SafetyConfig) -> ArmCommand:
    """Return the command for `requested` (7,): limited, held or stopped, and why. Never raises, sends nothing."""
    try:
        if any(inputs.hardware_errors):
            return _hold(requested, memory, inputs, config, f"hardware error {tuple(inputs.hardware_errors)}: "
                         "power-cycle or reboot the motor, then disarm and arm", Verdict.STOP)
        fault = arm_fault(memory, inputs, config) or _request_fault(requested, inputs, config)
        if fault:
            return _hold(requested, memory, inputs, config, fault)
        return _move(np.asarray(requested, np.float64), memory, inputs, config)
    except Exception as error:  # a bug here must not become motion
        return _hold(requested, memory, inputs, config,
                     f"guard failed ({type(error).__name__}: {error}); report this")


def hold(
    memory: GuardState, inputs: GuardInputs, config: SafetyConfig, reason: str, verdict: Verdict = Verdict.HOLD
) -> ArmCommand:
    """Return the command that keeps the arm where it is measured, or comes to rest when that is not known.

    Never raises; STOP where no position is known.
    """
    return _hold(np.zeros(ACTION_DIM), memory, inputs, config, reason, verdict)


def remember(memory: GuardState, command: ArmCommand, inputs: GuardInputs, config: SafetyConfig) -> GuardState:
    """Return the memory after `command` was sent, or could not be, with no known joints.

    The target advances only with what was sent; after a hold it is forgotten.
    """
    if not np.isfinite(command.joints).all():
        return replace(memory, T_target=None, held=None)
    profile = memory.profile or at_rest(_measured(inputs, command.joints))
    profile = after(profile, command.joints, inputs.now_ns, config.moving_time_s, config.accel_time_s)
    if command.verdict in (Verdict.OK, Verdict.CLAMPED):
        return replace(memory, T_target=command.T_base_target, held=None, gripper=command.gripper, profile=profile)
    return replace(memory, T_target=None, held=command.joints, profile=profile)


def _measured(inputs: GuardInputs, otherwise: F64) -> F64:
    joints = plausible(getattr(inputs.arm, "joints", None))
    return otherwise if joints is None else joints


def _request_fault(requested: Any, inputs: GuardInputs, config: SafetyConfig) -> str:
    if finite_vector(requested, ACTION_DIM) is None:
        return f"action is not {ACTION_DIM} finite numbers: {requested!r:.200}; check the policy"
    if not -FUTURE_S <= inputs.frame_age_s <= config.max_action_age_s:
        return (f"the action's frame is {inputs.frame_age_s:.3f} s old, limit {config.max_action_age_s} s; "
                "check camera, clocks and inference time")
    return ""


class _Here(NamedTuple):
    """Where the arm is, and where a goal may be: measured joints (6,), their pose, what the motors' profile does
    (position, speed), the bounds that all joint limits together put on the next goal, and the joints at which the arm
    was armed (None: not known) with the height below which no target of this arming may lie."""

    joints: F64
    T: F64
    position: F64
    speed: F64
    low: F64
    high: F64
    armed: F64 | None = None
    lowest_m: float = -inf


class _Start(NamedTuple):
    """The target to build on, its joints, and why it was re-seeded from measured ("" if it was not, or is new)."""

    T: F64
    joints: F64
    reseeded: str


class _Try(NamedTuple):
    """One point of the path: pose, joints if usable, whether the workspace clipped it, and what was wrong."""

    T: F64
    joints: F64 | None
    clipped: bool
    fault: str


def _move(requested: F64, memory: GuardState, inputs: GuardInputs, config: SafetyConfig) -> ArmCommand:
    """Compose the next target and shorten the step until the joints can follow and the links stay clear."""
    assert inputs.arm is not None  # arm_fault saw to it
    here = _here(np.asarray(inputs.arm.joints, np.float64), memory, inputs.now_ns, config)
    step: F64 = clip_delta(requested, config.limits)
    reasons = ["step limited"] if np.abs(step - requested).max() > 1e-6 else []
    start = _start(memory, here, config)
    reasons += [start.reseeded] if start.reseeded else []

    best, scale = _try(step, 1.0, start.T, here, config), 1.0
    if best.joints is None:
        reasons.append(best.fault)
        best, scale = _shorten(step, start.T, here, config)
    if best.joints is not None:
        finger_m = _finger_m(float(step[6]), inputs.arm.gripper)
        (fault, share), = _closeness([best.joints], start, here, finger_m, config)
        if fault:
            reasons.append(fault)
            best, scale = _shorten_until_clear(step, scale, share, start, here, finger_m, config)
    if best.joints is None:
        return _hold(requested, memory, inputs, config, "; ".join(reasons))
    if scale < 1.0:
        reasons.append(f"step shortened to {100 * scale:.0f} %")
    if best.clipped:
        reasons.append("target kept in the workspace")

    sent = np.concatenate([step[:6] * scale, step[6:]])
    unclipped = apply_delta(start.T, here.T, sent)
    sent[:3] += best.T[:3, 3] - unclipped[:3, 3]
    verdict = Verdict.CLAMPED if reasons else Verdict.OK
    return ArmCommand(best.T, best.joints, float(step[6]), _as_asked(requested), sent.astype(np.float32), verdict,
                      "; ".join(reasons))


def _here(joints: F64, memory: GuardState, now_ns: int, config: SafetyConfig) -> _Here:
    """Put all limits on the next goal's joints into two bounds, once: a step is tried many times."""
    moving_s, accel_s = config.moving_time_s, config.accel_time_s
    position, speed = np.clip(joints, JOINT_LOWER_RAD, JOINT_UPPER_RAD), np.zeros(6)
    if memory.profile is not None:
        position, speed = state_at(memory.profile, now_ns, moving_s, accel_s)
    slow, fast = cruise_bounds(speed, MAX_JOINT_SPEED_RAD_S, config.max_joint_acceleration_rad_s2, moving_s, accel_s)
    margin, step = config.joint_margin_rad, config.max_joint_step_rad
    low = np.maximum(joints - step, goal_of(position, speed, slow, moving_s, accel_s)) - 1e-9
    high = np.minimum(joints + step, goal_of(position, speed, fast, moving_s, accel_s)) + 1e-9
    low = np.maximum(low, np.minimum(JOINT_LOWER_RAD + margin, joints) - 1e-6)
    high = np.minimum(high, np.maximum(JOINT_UPPER_RAD - margin, joints) + 1e-6)
    armed = plausible(memory.armed_joints)
    lowest_m = -inf if armed is None else min(config.workspace_low_m[2], float(fk(armed)[2, 3])) - _CREEP_M
    return _Here(joints, fk(joints), position, speed, low, high, armed, lowest_m)


def _start(memory: GuardState, here: _Here, config: SafetyConfig) -> _Start:
    """Return the last target if it is near the arm and can be kept, else the measured pose."""
    # A resting arm may be measured a tick outside its limits; its target must not be.
    inside = np.minimum(np.maximum(here.joints, JOINT_LOWER_RAD), JOINT_UPPER_RAD)
    if memory.T_target is None:
        return _Start(fk(inside), inside, "")
    T = memory.T_target
    drift_m = float(np.linalg.norm(T[:3, 3] - here.T[:3, 3]))
    cosine = (float(np.vdot(T[:3, :3], here.T[:3, :3])) - 1.0) / 2.0
    drift_rad = acos(max(-1.0, min(1.0, cosine)))
    if drift_m > config.max_target_drift_m or drift_rad > config.max_target_drift_rad:
        return _Start(fk(inside), inside, f"target was {drift_m:.3f} m, {drift_rad:.3f} rad from the arm: "
                      "re-seeded from measured")
    joints, fault = _solve(T, here, config)
    if joints is None:
        return _Start(fk(inside), inside, f"last target cannot be kept from here ({fault}): re-seeded from measured")
    return _Start(T, joints, "")


def _try(step: F64, scale: float, T_target: F64, here: _Here, config: SafetyConfig) -> _Try:
    """Compose `scale` of the step, clip it to the workspace and check what the joints would have to do."""
    scaled = step * scale
    scaled[6] = step[6]
    T = apply_delta(T_target, here.T, scaled)
    clipped = False
    for i, (low, high) in enumerate(zip(config.workspace_low_m, config.workspace_high_m, strict=True)):
        # A start outside the box may stay or come in, and is never thrown to the border in one step.
        start, value = float(T_target[i, 3]), float(T[i, 3])
        lowest = min(low, start)
        if i == 2:  # a start that sagged since arming may not stay: each hold would let it sag from there anew
            lowest = max(lowest, min(here.lowest_m, start + _RAISE_M))
        inside = min(max(value, lowest), max(high, start))
        clipped |= abs(inside - value) > 1e-6
        T[i, 3] = inside
    joints, fault = _solve(T, here, config)
    return _Try(T, joints, clipped, fault)


def _solve(T: F64, here: _Here, config: SafetyConfig) -> tuple[F64 | None, str]:
    """Return the joints of a pose that may be sent, or None and why they may not."""
    try:
        goal = ik(T, here.joints)
    except Unreachable as error:
        return None, str(error)
    if (goal >= here.low).all() and (goal <= here.high).all():
        return goal, ""
    return None, _joint_fault(goal, here, config)


def _joint_fault(goal: F64, here: _Here, config: SafetyConfig) -> str:
    """Return which of the joint limits a goal (6,) outside the bounds breaks."""
    move = np.abs(goal - here.joints)
    cruise = cruise_speed(here.position, here.speed, goal, config.moving_time_s, config.accel_time_s)
    pull = peak_acceleration(here.speed, cruise, config.moving_time_s, config.accel_time_s)
    i = int(np.maximum(here.low - goal, goal - here.high).argmax())
    joint = JOINT_NAMES[i]
    if move[i] > config.max_joint_step_rad[i] + 1e-9:
        return f"joint {joint} would move {move[i]:.3f} rad in one step, limit {config.max_joint_step_rad[i]:.3f} rad"
    if abs(cruise[i]) > MAX_JOINT_SPEED_RAD_S[i] + 1e-6:
        return f"joint {joint} would reach {abs(cruise[i]):.2f} rad/s, limit {MAX_JOINT_SPEED_RAD_S[i]:.2f} rad/s"
    if pull[i] > config.max_joint_acceleration_rad_s2 + 1e-6:
        return (f"joint {joint} would be accelerated by {pull[i]:.1f} rad/s2, limit "
                f"{config.max_joint_acceleration_rad_s2} rad/s2")
    return f"joint {joint} would come within {config.joint_margin_rad} rad of its limit ({goal[i]:.3f} rad)"


def goal_fault(goal: F64, start: F64, memory: GuardState, inputs: GuardInputs, config: SafetyConfig) -> str:
    """Return which joint limit a goal (6,) that no action asked for would break, or "": range, step, speed, pull.

    A joint that began within the margin, at `start` (6,), may leave it.
    """
    assert inputs.arm is not None
    margin = config.joint_margin_rad
    low, high = np.minimum(JOINT_LOWER_RAD + margin, start), np.maximum(JOINT_UPPER_RAD - margin, start)
    bare = replace(config, joint_margin_rad=0.0)
    here = _here(np.asarray(inputs.arm.joints, np.float64), memory, inputs.now_ns, bare)
    outside = np.maximum(low - goal, goal - high)
    if outside.max() > 1e-6:
        i = int(outside.argmax())
        return f"joint {JOINT_NAMES[i]} would come within {margin} rad of its limit ({goal[i]:.3f} rad)"
    return "" if (goal >= here.low).all() and (goal <= here.high).all() else _joint_fault(goal, here, bare)


def _shorten(step: F64, T_target: F64, here: _Here, config: SafetyConfig) -> tuple[_Try, float]:
    """Return the furthest usable point on the way to the step's end, by bisection from standing still."""
    low, high = 0.0, 1.0
    best = _try(step, 0.0, T_target, here, config)
    for _ in range(_HALVINGS if best.joints is not None else 0):
        middle = (low + high) / 2.0
        attempt = _try(step, middle, T_target, here, config)
        if attempt.joints is None:
            high = middle
        else:
            best, low = attempt, middle
    return best, low


def _shorten_until_clear(
    step: F64, scale: float, share: float, start: _Start, here: _Here, finger_m: float, config: SafetyConfig
) -> tuple[_Try, float]:
    """Return the furthest of a few points on the way at which the links are clear; one without joints if none is.

    `share` is about how much of the way there is until they are not.
    """
    scales = [scale * part for part in (0.95 * share, 0.5 * share, 0.0)]
    tries = [(_try(step, part, start.T, here, config), part) for part in scales]
    usable = [(attempt, part) for attempt, part in tries if attempt.joints is not None]
    found = _closeness([attempt.joints for attempt, _ in usable if attempt.joints is not None], start, here, finger_m,
                       config)
    clear = [point for point, (fault, _) in zip(usable, found, strict=True) if not fault]
    return clear[0] if clear else (tries[0][0]._replace(joints=None), 0.0)


def _closeness(
    goals: list[F64], start: _Start, here: _Here, finger_m: float, config: SafetyConfig
) -> list[tuple[str, float]]:
    """Return for each goal (6,) what would come too close on the way to it from the measured joints, or "", and how
    much of the way from the start to it is clear, roughly.

    What is too close already may stay so and go away, as in the workspace; but not what came closer since arming.
    """
    if not goals:
        return []
    count = len(_ON_THE_WAY)
    rows = np.empty((_FIRST + count * len(goals), 6))
    rows[0], rows[1], rows[2] = start.joints, here.joints, start.joints if here.armed is None else here.armed
    for i, goal in enumerate(goals):
        rows[_FIRST + i * count:_FIRST + (i + 1) * count] = here.joints + _ON_THE_WAY * (goal - here.joints)
    found = clearances(rows, finger_m)
    margins = np.concatenate([found.table - (config.table_z_m + config.min_table_clearance_m),
                              found.links - config.min_self_clearance_m], axis=1)
    at_goal = np.maximum(np.minimum(0.0, margins[0]), np.minimum(0.0, margins[2]) - _CREEP_M)
    on_the_way = np.minimum(at_goal, margins[1]) - BOW_M
    results = []
    for i in range(len(goals)):
        over = margins[_FIRST + i * count:_FIRST + (i + 1) * count] - on_the_way
        over[-1] += on_the_way - at_goal
        if over.min() >= -1e-6:
            results.append(("", 1.0))
            continue
        left = np.maximum(0.0, margins[0] - at_goal)
        gone = left - over[-1]
        share = float((left / np.maximum(gone, 1e-12))[over[-1] < 0.0].min(initial=1.0))
        results.append((_words(over, i, found, config), share))
    return results


def _words(over: F64, goal: int, found: Clearances, config: SafetyConfig) -> str:
    point, column = np.unravel_index(int(over.argmin()), over.shape)
    row, parts = _FIRST + goal * len(_ON_THE_WAY) + int(point), found.table.shape[1]
    if column < parts:
        distance_m, limit_m = found.table[row, column] - config.table_z_m, config.min_table_clearance_m
    else:
        distance_m, limit_m = found.links[row, column - parts], config.min_self_clearance_m
    one, other = names(int(column))
    return f"{one} would be {distance_m:.3f} m from the {other}, limit {limit_m} m"


def _finger_m(commanded: float, measured: Any) -> float:
    """Return how far the fingers are from the hand's axis at most; open when nothing is known."""
    known = isinstance(measured, (int, float, np.floating)) and -1e9 < measured < 1e9
    return FINGER_CLOSED_M + (FINGER_OPEN_M - FINGER_CLOSED_M) * max(commanded, min(measured, 1.1) if known else 1.1)


def _hold(
    requested: Any, memory: GuardState, inputs: GuardInputs, config: SafetyConfig, reason: str,
    verdict: Verdict = Verdict.HOLD,
) -> ArmCommand:
    """Build a HOLD (or STOP) from whatever is usable. Must not raise: it is also the answer to errors."""
    joints = _hold_joints(memory, inputs, config)
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


def _hold_joints(memory: GuardState, inputs: GuardInputs, config: SafetyConfig) -> F64 | None:
    """Return measured joints if they can be believed; else the last goal, the last good ones, or None; a hold under
    way keeps its place.

    Commanding the measured joints anew each time would let gravity pull the arm down by its steady-state error.
    """
    held = plausible(getattr(memory, "held", None))
    measured = plausible(getattr(getattr(inputs, "arm", None), "joints", None))
    good = plausible(getattr(memory, "good_joints", None))
    try:
        believed = not arm_fault(memory, inputs, config, check_effort=False)
    except Exception:  # an unusable clock: believe the older, checked joints
        believed = False
    if believed and measured is not None:
        return held if held is not None and np.abs(held - measured).max() < _PUSHED_AWAY_RAD else measured
    if held is not None:
        return held
    return _resting(memory, good, config) if good is not None else measured


def _resting(memory: GuardState, good: F64, config: SafetyConfig) -> F64:
    """Return where the motors come to rest, for an arm that is seen no more: at their last goal, if the guard would
    send it from the last good joints (6,), else there.

    To go back to where the arm was seen last would turn a motion round at twice its speed.
    """
    goal = plausible(getattr(getattr(memory, "profile", None), "goal", None))
    try:
        return good if goal is None or (np.abs(goal - good) > config.max_joint_step_rad + 1e-9).any() else goal
    except Exception:  # no usable limits
        return good


def _first_finite(*values: Any) -> float:
    """Return the first usable gripper value in [0, 1]; open (1) when none is known, as that never crushes."""
    for value in values:
        if isinstance(value, (int, float, np.floating)) and -1e9 < value < 1e9:  # False for NaN
            return min(max(float(value), 0.0), 1.0)
    return 1.0
