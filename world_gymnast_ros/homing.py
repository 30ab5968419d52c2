"""Going home: a straight way through joint space in small steps, checked as a whole before the first one is sent."""
from __future__ import annotations

import numpy as np

from world_gymnast_ros.clearance import BOW_M, clearances, names
from world_gymnast_ros.gripper import FINGER_OPEN_M
from world_gymnast_ros.health import GuardInputs, GuardState, arm_fault
from world_gymnast_ros.kinematics import JOINT_LOWER_RAD, JOINT_UPPER_RAD, NEUTRAL, fk
from world_gymnast_ros.limits import SafetyConfig
from world_gymnast_ros.types import F64

HOME_SPEED_RAD_S = 0.4
"""Of the joint that has furthest to go; the guard's limit is 0.75 pi rad/s."""
MAX_LAG_RAD = 0.35  # of the arm behind its goal: five steps; it is blocked or limp


def way_home(joints: F64, config: SafetyConfig) -> tuple[list[F64], str]:
    """Return the goals (6,) from the measured joints to neutral, one per control period, or why there is no such way.

    Refused when the end effector would go below the workspace's floor, or links too close to the table or each other;
    or further so, where they start so.
    """
    start = np.clip(np.asarray(joints, np.float64), JOINT_LOWER_RAD, JOINT_UPPER_RAD)
    count = max(1, int(np.ceil(np.abs(NEUTRAL - start).max() / (HOME_SPEED_RAD_S * config.dt_s))))
    goals = [start + (NEUTRAL - start) * (i + 1) / count for i in range(count)]
    floor_m = min(config.workspace_low_m[2], float(fk(start)[2, 3])) - 1e-6
    lowest_m = min(float(fk(goal)[2, 3]) for goal in goals)
    if lowest_m < floor_m:
        return [], (f"the way home would lead down to z = {lowest_m:.3f} m, the floor is {floor_m:.3f} m; "
                    "raise the arm by hand first")
    found = clearances(np.stack([start, *goals]), FINGER_OPEN_M)
    for distances, limit_m, first in ((found.table - config.table_z_m, config.min_table_clearance_m, 0),
                                      (found.links, config.min_self_clearance_m, found.table.shape[1])):
        lack = np.minimum(limit_m, distances[0]) - BOW_M - distances
        if lack.max() > 0.0:
            row, column = np.unravel_index(int(lack.argmax()), lack.shape)
            one, other = names(first + int(column))
            return [], (f"on the way home the {one} would be {distances[row, column]:.3f} m from the {other}, limit "
                        f"{limit_m} m; move the arm by hand first")
    return goals, ""


def fault_on_the_way(sent: F64 | None, memory: GuardState, inputs: GuardInputs, config: SafetyConfig) -> str:
    """Return why the next step home must not be sent, or "". `sent` (6,) is the last goal, None before the first."""
    fault = arm_fault(memory, inputs, config)
    if fault or sent is None or inputs.arm is None:
        return fault
    lag_rad = float(np.abs(sent - np.asarray(inputs.arm.joints, np.float64)).max())
    if lag_rad > MAX_LAG_RAD:
        return f"the arm is {lag_rad:.2f} rad behind on its way home, limit {MAX_LAG_RAD} rad; free it"
    return ""
