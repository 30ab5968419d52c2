"""When may the policy look? A pure state machine beside the policy: time is an argument.

In imagination the policy sees the last frame of a chunk, when the arm has come to rest at the chunk's end. So on the
robot it must look at a frame captured at or after the last action was sent plus most of a control period, and never
at an older one, however fresh it may seem.
"""
from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from world_gymnast_ros.types import CONTROL_DT_S, U8

NS_PER_S = 1_000_000_000
FUTURE_S = 0.05
"""Tolerance for stamps ahead of the clock; the arm's is the same."""
STEPPED_S = 0.5
"""A rest that would begin this much later than it possibly can: the clock was stepped back since."""
FROZEN_M = 0.03
"""Way of the arm after which two images equal to the last bit are one image: a camera's noise alone differs."""


@dataclass(frozen=True)
class QueryRules:
    """`settle_fraction` of `dt_s` to wait after the last action; limits in s."""

    dt_s: float = CONTROL_DT_S
    settle_fraction: float = 0.9
    max_frame_age_s: float = 0.5
    retry_s: float = 1.0


class QueryGate:
    """Says whether a frame may be acted on. Stamps are wall-clock ns, as in messages; `steady_ns` drives `retry_s`."""

    def __init__(self, rules: QueryRules) -> None:
        self.rules = rules
        self.active = False
        self._look_from_ns = 0
        self._waiting_for: int | None = None
        self._waiting_since_ns = 0

    def set_active(self, active: bool, stamp_ns: int) -> None:
        """Follow the arm: active while it takes chunks. A start forgets the past and wants a frame from after it."""
        if active and not self.active:
            self._waiting_for, self._look_from_ns = None, stamp_ns
        self.active = active

    def refusal(self, frame_stamp_ns: int, now_ns: int, steady_ns: int, instruction: str) -> str:
        """Return why this frame must not be acted on, or "" if it may."""
        if not self.active:
            return "the arm takes no chunks"
        if not instruction.strip():
            return "no instruction"
        if self._waiting_for is not None:
            if steady_ns - self._waiting_since_ns < self.rules.retry_s * NS_PER_S:
                return f"chunk {self._waiting_for} is being played"
            self._waiting_for = None
        settle_ns = round(self.rules.settle_fraction * self.rules.dt_s * NS_PER_S)
        if self._look_from_ns - now_ns > settle_ns + STEPPED_S * NS_PER_S:  # else blind for as long as the step was
            self._look_from_ns = now_ns + settle_ns
        if frame_stamp_ns < self._look_from_ns:
            return "the frame shows the arm before it came to rest"
        age_s = (now_ns - frame_stamp_ns) / NS_PER_S
        if age_s > self.rules.max_frame_age_s:
            return f"the frame is {age_s:.2f} s old, limit {self.rules.max_frame_age_s:g} s"
        if age_s < -FUTURE_S:
            return f"the frame is stamped {-age_s:.2f} s in the future; set the clocks of camera and policy"
        return ""

    def published(self, sequence: int, steady_ns: int) -> None:
        """Note that a chunk went out: its last step must come back before the next look."""
        self._waiting_for, self._waiting_since_ns = sequence, steady_ns

    def played(self, sequence: int, index: int, size: int, refused: bool, stamp_ns: int, steady_ns: int) -> None:
        """Note a step of the arm. The chunk is over with its last action, or with one that was refused."""
        if sequence != self._waiting_for:
            return
        self._waiting_since_ns = steady_ns
        if refused or index + 1 >= size:
            self._waiting_for = None
            self._look_from_ns = stamp_ns + round(self.rules.settle_fraction * self.rules.dt_s * NS_PER_S)

    def played_alone(self, frame_stamp_ns: int, size: int) -> None:
        """Stand in for an arm in a dry run: the chunk chosen at this frame has been played `size` periods later."""
        self._waiting_for = None
        margin = 1.0 - self.rules.settle_fraction  # a camera at exactly the control rate jitters
        self._look_from_ns = frame_stamp_ns + round((size - margin) * self.rules.dt_s * NS_PER_S)


class ImageWatch:
    """Tells a camera that repeats one image under fresh stamps: the arm moved, and no bit changed."""

    def __init__(self) -> None:
        self._digest = -1
        self._moved_m = 0.0

    def moved(self, way_m: float) -> None:
        """Note how far the arm was sent since the last note."""
        self._moved_m += way_m

    def refusal(self, rgb: U8) -> str:
        """Return why this image (H, W, 3) must not be acted on, or ""."""
        digest = crc32(np.ascontiguousarray(rgb).data)
        if digest != self._digest:
            self._digest, self._moved_m = digest, 0.0
        elif self._moved_m > FROZEN_M:
            return (f"the image has not changed in one bit while the arm moved {self._moved_m:.2f} m: "
                    "the camera is frozen; start it again")
        return ""
