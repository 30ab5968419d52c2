"""Is the arm's reported state fit to act on? What the guard knows, and the checks on it.

The driver publishes whatever the servo bus gave it: after a failed read that is about -pi on every joint with a fresh
stamp, and a motor in overload goes limp without a word. So values are judged, not only their age.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.robot.kinematics import JOINT_LOWER_RAD, JOINT_NAMES, JOINT_UPPER_RAD, MAX_JOINT_SPEED_RAD_S
from world_gymnast_ros.robot.motion_profile import Profile
from world_gymnast_ros.types import F64, ArmState

_IMPLAUSIBLE_RAD = 0.1  # a joint measured that far outside its limits is a bus fault (xs_sdk reports -pi), not motion
_UNSEEN_S = 0.05  # an arm that was not seen for longer is looked for on the way to its goal
FUTURE_S = 0.05  # tolerance for stamps ahead of the clock


@dataclass(frozen=True)
class GuardState:
    """What the guard remembers between steps. The default is "nothing known": the next step re-seeds from measured.

    `T_target` (4, 4) the last target sent, None to re-seed; `held` (6,) joints of the hold under way; `good_joints`
    (6,) the last plausible measurement, taken at `good_ns` (steady); `gripper` the last gripper command; `profile` what
    the motors make of the goals sent so far, None when nothing was sent: at rest where measured; `jump_ns` when the
    measurements jumped away from the good ones (steady), 0 while they have not; `armed_joints` (6,) where the arm was
    measured when it was armed: what is too low or too close already may not become more so than it was there.
    """

    T_target: F64 | None = None
    held: F64 | None = None
    good_joints: F64 | None = None
    good_ns: int = 0
    gripper: float | None = None
    profile: Profile | None = None
    jump_ns: int = 0
    armed_joints: F64 | None = None


@dataclass(frozen=True)
class GuardInputs:
    """What is known at this moment. Ages in s; `hardware_errors` one Hardware_Error_Status per motor, 0 is healthy."""

    arm: ArmState | None
    arm_age_s: float
    frame_age_s: float
    now_ns: int
    hardware_errors: tuple[int, ...] = ()


def observe(memory: GuardState, inputs: GuardInputs, config: SafetyConfig) -> GuardState:
    """Return the memory with the measured joints as the last good ones, if they are plausible."""
    if inputs.arm is None:
        return memory
    if not arm_fault(memory, inputs, config, check_effort=False):
        good = np.array(inputs.arm.joints, np.float64)
        return replace(memory, good_joints=good, good_ns=measured_ns(inputs), jump_ns=0)
    joints, fresh = finite_vector(inputs.arm.joints), -FUTURE_S <= inputs.arm_age_s <= config.max_arm_age_s
    if joints is None or memory.jump_ns or not fresh or not jumped(joints, memory, inputs, config):
        return memory
    return replace(memory, jump_ns=measured_ns(inputs))


def arm_fault(memory: GuardState, inputs: GuardInputs, config: SafetyConfig, check_effort: bool = True) -> str:
    """Return why the arm's state cannot be acted on, or "" if it can."""
    if inputs.arm is None:
        return "no arm state received; start the driver"
    joints = finite_vector(inputs.arm.joints)
    if joints is None:
        return f"measured joints are not 6 finite numbers: {inputs.arm.joints!r}; check the servo bus"
    if not -FUTURE_S <= inputs.arm_age_s <= config.max_arm_age_s:
        return f"arm state is {inputs.arm_age_s:.3f} s old, limit {config.max_arm_age_s} s; check the driver"
    outside = np.maximum(JOINT_LOWER_RAD - joints, joints - JOINT_UPPER_RAD)
    if outside.max() > _IMPLAUSIBLE_RAD:
        i = int(outside.argmax())
        return f"measured {JOINT_NAMES[i]} is {joints[i]:.3f} rad, far outside its limits; check the servo bus"
    if jumped(joints, memory, inputs, config):
        return f"measured joints jumped faster than the arm can move, to {joints.round(3)} rad; check the servo bus"
    return _effort_fault(inputs.arm, config) if check_effort else ""


def _effort_fault(arm: ArmState, config: SafetyConfig) -> str:
    try:
        efforts = np.abs(np.asarray(arm.efforts, np.float64))  # absolute: a hard push is as often negative
    except (TypeError, ValueError):  # not numbers at all
        efforts = np.empty(0)
    if efforts.shape != (6,) or (config.require_effort and not np.isfinite(efforts).all()):
        return f"efforts are not 6 finite numbers: {arm.efforts!r}; set require_effort to false if the driver has none"
    over = efforts > np.asarray(config.max_efforts)
    if over.any():
        i = int(over.argmax())
        return f"effort of {JOINT_NAMES[i]} is {efforts[i]:.0f}, limit {config.max_efforts[i]:.0f}; free the arm"
    return ""


def jumped(joints: F64, memory: GuardState, inputs: GuardInputs, config: SafetyConfig) -> bool:
    """Tell whether `joints` (6,) lie further from the last good ones than the arm can have moved since.

    The allowance grows with time for a moment only, and no more once they have jumped: a jump does not become motion
    by lasting. After that moment an arm may be found on the way to where it was told to go, and nowhere else.
    """
    good = finite_vector(memory.good_joints)
    if good is None:
        return False
    until_ns = min(measured_ns(inputs), memory.jump_ns) if memory.jump_ns else measured_ns(inputs)
    elapsed_s, most_s = max(0.0, (until_ns - memory.good_ns) * 1e-9), min(_UNSEEN_S, config.max_arm_age_s)
    allowed = 1.5 * MAX_JOINT_SPEED_RAD_S * min(elapsed_s, most_s) + _IMPLAUSIBLE_RAD
    told = memory.profile is not None and (memory.jump_ns or elapsed_s > most_s)
    goal = memory.profile.goal if told and memory.profile is not None else good
    return bool(((joints < np.minimum(good, goal) - allowed) | (joints > np.maximum(good, goal) + allowed)).any())


def measured_ns(inputs: GuardInputs) -> int:
    """Return the steady time of the measurement."""
    return inputs.now_ns - round(inputs.arm_age_s * 1e9)


def plausible(value: Any) -> F64 | None:
    """Return joints (6,) clipped to the limits, or None if they are no joints of this arm."""
    joints = finite_vector(value)
    if joints is None:
        return None
    inside = np.clip(joints, JOINT_LOWER_RAD, JOINT_UPPER_RAD)
    return inside if np.abs(inside - joints).max() <= _IMPLAUSIBLE_RAD else None


def finite_vector(value: Any, length: int = 6) -> F64 | None:
    """Return `value` as float64 (length,) if it is that many finite numbers, else None."""
    if value is None:
        return None
    try:
        array = np.asarray(value)
        if array.shape != (length,) or array.dtype.kind not in "fiu":
            return None
        array = array.astype(np.float64)
    except Exception:  # ragged, lazy or otherwise no array
        return None
    return array if np.isfinite(array).all() else None
