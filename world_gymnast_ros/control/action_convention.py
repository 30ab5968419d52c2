"""Does a policy speak Bridge's convention? What its numbers alone tell, with neither clock nor messages.

The guard makes any number safe to send, one step at a time. So a server that answers absolute poses, degrees or
network output that was never un-normalised drives the arm at its limits into a corner of the workspace, and every
single step looks like a step. Two things give it away:

    one chunk    asks for what no Bridge action asks for (`convention_fault`): it is refused, whole
    a run        of actions is cut by the guard, one after the other (`LimitedRuns`)

The numbers of `ConventionRules` come from what a control period of 0.2 s can hold, not from one policy. The longest
step is 0.05 m and 0.25 rad, which is 0.25 m/s; teleoperated Bridge episodes stay within 0.052 m and 0.25 rad, and a
policy that un-normalises by the data's 1 % and 99 % quantiles within 0.065 m. Twice the longest step leaves room for
all of them. Every pose in the arm's reach is at least 0.1 m from the base, and network output is of the order of 1.
"""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np

from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.robot.actions import StepLimits, clip_delta
from world_gymnast_ros.types import F32, F64, ArmCommand, Verdict

GRIPPER_SLACK = 0.25
"""A regression head overshoots its labels 0 and 1 by its error; a gripper from -1 to 1 misses them by 1."""
_METRES = 2.0  # nothing that a 0.65 m arm could mean in metres
_CUT_M = 1e-4  # less than that, and in rad, was not cut but rounded
BRIDGE_STEP = StepLimits()


class Convention(Enum):
    """What numbers that are no Bridge action look like."""

    ABSOLUTE_POSE = "an absolute pose: many steps long, and nearly the same in all actions"
    FROM_CHUNK_START = "displacements from the start of the chunk, where each action must be one step"
    OTHER_UNIT = "millimetres or another unit, where metres are needed"
    NOT_UNNORMALISED = "an absolute pose, or network output that was never un-normalised (which unnorm_key?)"
    DEGREES = "degrees, where radians are needed"
    ANGLES = "absolute angles, degrees, or network output that was never un-normalised"
    GRIPPER = "a gripper that is not 0 closed to 1 open, such as -1 to 1"


@dataclass(frozen=True)
class ConventionRules:
    """The most that one Bridge action asks for: translation (vector norm), m; rotation per axis, rad."""

    max_request_m: float = 0.1
    max_request_rad: float = 0.5


class ConventionFault(NamedTuple):
    """What the numbers look like, and the sentence for people."""

    convention: Convention
    words: str


def convention_fault(deltas: F32 | F64, rules: ConventionRules) -> ConventionFault | None:
    """Return what is wrong with a chunk of finite actions (K, 7), or None if it may be Bridge's."""
    chunk = np.asarray(deltas, np.float64)
    xyz, angles, gripper = chunk[:, :3], np.abs(chunk[:, 3:6]), chunk[:, 6]
    largest = np.abs(xyz).max(axis=1, keepdims=True)  # so that the square of 1e300 does not overflow
    norms = np.linalg.norm(xyz / np.maximum(largest, 1e-12), axis=1) * largest[:, 0]
    if norms.max() > rules.max_request_m:
        worst = xyz.flat[int(np.abs(xyz).argmax())]
        return _fault(_of_translations(xyz, norms), f"dx dy dz holds {worst:.4g}, the longest of its translations is "
                      f"{norms.max():.4g} m, limit {rules.max_request_m:g} m")
    if angles.max() > rules.max_request_rad:
        convention = Convention.DEGREES if angles.max() > np.pi else Convention.ANGLES
        return _fault(convention, f"droll dpitch dyaw holds {angles.max():.4g} rad, limit "
                      f"{rules.max_request_rad:g} rad")
    outside = gripper[int(np.abs(gripper - 0.5).argmax())]
    if abs(outside - 0.5) > 0.5 + GRIPPER_SLACK:
        return _fault(Convention.GRIPPER, f"gripper holds {outside:.4g}, limits {-GRIPPER_SLACK:g} to "
                      f"{1 + GRIPPER_SLACK:g}")
    return None


def _fault(convention: Convention, numbers: str) -> ConventionFault:
    return ConventionFault(convention, f"{numbers}: the policy speaks another convention, it looks like "
                           f"{convention.value}; an action is a step of 0.2 s in m and rad: docs/reference/serving.md")


def _of_translations(xyz: F64, norms: F64) -> Convention:
    """Return what too long translations (K, 3) look like."""
    if norms.max() > _METRES:
        return Convention.OTHER_UNIT
    between = np.linalg.norm(np.diff(xyz, axis=0), axis=1)
    if len(between) and between.max() <= BRIDGE_STEP.max_step_m:  # each lies one step from the last
        return Convention.ABSOLUTE_POSE if norms[0] > BRIDGE_STEP.max_step_m else Convention.FROM_CHUNK_START
    return Convention.NOT_UNNORMALISED


class LimitedRuns:
    """Counts, since arming, what was refused or cut in a row. Warns at half of each limit; at it, names the cause.

    A right policy is cut now and then. Ten full steps in a row are 0.5 m, more than the workspace is long in any
    direction, so a policy that means what it says does not ask for them. Pressing against the workspace, the table or
    a joint limit is different: right policies do it for many actions, so that run may be much longer.
    """

    def __init__(self, limits: StepLimits, refused: int, step_limited: int, clamped: int) -> None:
        self._limits = limits
        # A person's tighter limit cuts right policies too: asking for more than Bridge's step is what counts.
        self._widest = StepLimits(max(limits.max_step_m, BRIDGE_STEP.max_step_m),
                                  max(limits.max_step_rad, BRIDGE_STEP.max_step_rad))
        self._at = {HoldCause.ANOTHER_CONVENTION: refused, HoldCause.STEP_LIMITED: step_limited,
                    HoldCause.CLAMPED: clamped}
        self._count = dict.fromkeys(self._at, 0)

    def refused(self) -> HoldCause:
        """Note a chunk of another convention; return the cause to hold for good, or NONE."""
        return self._grew(HoldCause.ANOTHER_CONVENTION, True)

    def taken(self) -> None:
        """Note a chunk that may be Bridge's."""
        self._count[HoldCause.ANOTHER_CONVENTION] = 0

    def played(self, command: ArmCommand) -> HoldCause:
        """Note an action that was sent; return the cause to hold for good, or NONE."""
        asked = command.requested.astype(np.float64)
        limited = self._grew(HoldCause.STEP_LIMITED, _cut(asked, clip_delta(asked, self._widest)))
        clamped = self._grew(HoldCause.CLAMPED, command.verdict is Verdict.CLAMPED
                             and _cut(clip_delta(asked, self._limits), command.sent))
        return limited if limited is not HoldCause.NONE else clamped

    def _grew(self, cause: HoldCause, again: bool) -> HoldCause:
        self._count[cause] = self._count[cause] + 1 if again else 0
        return cause if again and self._count[cause] >= self._at[cause] else HoldCause.NONE

    def words(self, cause: HoldCause) -> str:
        """Return the count behind a cause, and its limit."""
        what = "chunks refused" if cause is HoldCause.ANOTHER_CONVENTION else "actions"
        return f"{cause.value} ({self._count[cause]} {what} in a row, limit {self._at[cause]})"

    @property
    def warning(self) -> str:
        """What is on its way to a hold: a run of half the limit or more; "" while there is none."""
        near = [cause for cause, limit in self._at.items() if self._count[cause] >= max(1, limit // 2)]
        return "; ".join(self.words(cause) for cause in near)


def _cut(before: F64, after: F32 | F64) -> bool:
    return bool(np.abs(before[:6] - after[:6]).max() > _CUT_M)
