"""How high the table is, by an arm whose finger tips rest on it. Pure: measured states come in."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from world_gymnast_ros.control.capture_check import REST_RAD, turned_rad
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.robot.clearance import clearances, names
from world_gymnast_ros.robot.gripper import finger_from_gripper
from world_gymnast_ros.types import ArmState

REST_S = 1.0
"""The arm is listened to for so long."""
PLAUSIBLE_M = 0.15
"""A table further above or below the foot of the arm is none that the finger tips reach in Bridge's workspace."""


def table_height(states: Sequence[ArmState]) -> tuple[float, str]:
    """Return the height of the table's top in m, base axes, and which part of the arm rests on it.

    `states`: what was measured while the arm rested. Raises BadConfig where it moved, where another part than a finger
    is the lowest, or where the height is no table's.
    """
    turned = turned_rad(states)
    if turned > REST_RAD:
        raise BadConfig(f"the arm moves: a joint turned by {turned:.2f} rad while it was listened to, at most "
                        f"{REST_RAD} rad are allowed; let the finger tips rest on the table, hands off")
    joints = np.median([state.joints for state in states], axis=0)[None]
    finger_m = finger_from_gripper(float(np.median([state.gripper for state in states])))
    heights = clearances(joints, finger_m).table[0]
    lowest = int(heights.argmin())
    part, height_m = names(lowest)[0], float(heights[lowest])
    if "finger" not in part:
        raise BadConfig(f"the lowest part of the arm is the {part}, not a finger; lower the finger tips onto the table")
    if abs(height_m) > PLAUSIBLE_M:
        raise BadConfig(f"the finger tips are {1000 * height_m:+.0f} mm from the foot of the arm, at most "
                        f"{1000 * PLAUSIBLE_M:.0f} mm either way can be a table's top; do they rest on it?")
    return round(height_m, 4), part
