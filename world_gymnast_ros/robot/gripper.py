"""The gripper: Bridge's scale between finger position and 0..1, and its own position loop on the motor's PWM."""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import isfinite

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.robot.actions import gripper_is_open

FINGER_OPEN_M = 0.035
FINGER_CLOSED_M = 0.010
"""Below the finger's own limit (0.015 m), so that a closed gripper squeezes."""


def gripper_from_finger(left_finger_m: float) -> float:
    """Return Bridge's gripper state of a finger position: 0 closed, 1 open, about 1.1 at full mechanical opening."""
    return (left_finger_m - FINGER_CLOSED_M) / (FINGER_OPEN_M - FINGER_CLOSED_M)


def finger_from_gripper(gripper: float) -> float:
    """Return the left finger's goal, m, for a gripper command 0 to 1."""
    return FINGER_CLOSED_M + min(max(gripper, 0.0), 1.0) * (FINGER_OPEN_M - FINGER_CLOSED_M)


@dataclass(frozen=True)
class GripperLoop:
    """Bridge's own position loop on the gripper's PWM (`custom_gripper_controller.py`), to be called at 50 Hz.

    `binary`: open or close fully, by the one threshold of `actions.gripper_is_open`, as the evaluations do.
    """

    gain_per_m: float = 300.0
    max_pwm: float = 350.0
    binary: bool = True

    def __post_init__(self) -> None:
        if not (0.0 < self.gain_per_m <= 3000.0 and 0.0 < self.max_pwm <= 885.0):
            raise BadConfig(f"GripperLoop: gain_per_m {self.gain_per_m} must lie in (0, 3000] and max_pwm "
                            f"{self.max_pwm} in (0, 885]: choose values in range")

    def pwm(self, gripper: float, left_finger_m: float) -> float:
        """Return the PWM, positive to open, for a command 0..1; 0 (limp) when either value is not finite."""
        if not (isfinite(gripper) and isfinite(left_finger_m)):
            return 0.0
        goal = finger_from_gripper(float(gripper_is_open(gripper)) if self.binary else gripper)
        return min(max(self.gain_per_m * (goal - left_finger_m), -1.0), 1.0) * self.max_pwm


STILL_S = 0.15
"""A finger that moved by less than STILL_M in so long has come to rest: on what it grips, or where it was told to."""
STILL_M = 0.0005
SLIP_M = 0.001
"""A finger of a held arm that moves further than this is moving after all."""


class GripWatch:
    """Whether the gripper may go on when the arm is held: only one that had come to rest by then.

    So what it holds is not dropped, and what it was closing on is not crushed. What was not seen counts as moving.
    """

    def __init__(self) -> None:
        self._trail: deque[tuple[int, float]] = deque()  # steady ns and finger, m, of the last STILL_S
        self._held_m: float | None = None  # finger when the arm was held; None: the arm plays
        self._off = False

    def drives(self, now_ns: int, finger_m: float, playing: bool) -> bool:
        """Note a fresh measurement; tell whether the gripper may be driven. `playing`: the arm is armed."""
        if not isfinite(finger_m):
            self.lost()
            return False
        self._trail.append((now_ns, finger_m))
        while len(self._trail) > 1 and now_ns - self._trail[1][0] >= STILL_S * 1e9:
            self._trail.popleft()
        if playing:
            self._held_m, self._off = None, False
        elif self._held_m is None:
            self._held_m, self._off = finger_m, not self._is_still(now_ns)
        elif abs(finger_m - self._held_m) > SLIP_M:
            self._off = True
        return not self._off

    def lost(self) -> None:
        """Note that nothing fresh is measured; a held gripper stays off from then on."""
        self._trail.clear()
        self._off = self._off or self._held_m is not None

    def _is_still(self, now_ns: int) -> bool:
        fingers = [finger_m for _, finger_m in self._trail]
        return now_ns - self._trail[0][0] >= STILL_S * 1e9 and max(fingers) - min(fingers) < STILL_M
