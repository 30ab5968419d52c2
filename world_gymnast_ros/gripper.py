"""The gripper: Bridge's scale between finger position and 0..1, and its own position loop on the motor's PWM."""
from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from world_gymnast_ros.actions import gripper_is_open
from world_gymnast_ros.errors import BadConfig

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
