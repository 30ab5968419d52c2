"""Going home, or to where the camera sees the arm well: a straight way through joint space in small steps, checked as a
whole before the first one is sent, and each step again when it is due, against the guard's limits.

All but one: the workspace's sides. The way home may begin outside of them, and neutral itself lies outside the boxes of
some evaluations (x 0.12 m, where autoeval_sink begins at 0.20). The floor is kept.
"""
from __future__ import annotations

import numpy as np

from world_gymnast_ros.control.arm_state import GuardInputs, GuardState, arm_fault
from world_gymnast_ros.control.guard import goal_fault
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.robot.actions import pose_from_state
from world_gymnast_ros.robot.clearance import BOW_M, clearances, names
from world_gymnast_ros.robot.gripper import FINGER_OPEN_M
from world_gymnast_ros.robot.kinematics import JOINT_LOWER_RAD, JOINT_UPPER_RAD, NEUTRAL, fk, ik
from world_gymnast_ros.types import F64

CAPTURE_STATE = (0.25, -0.05, 0.12, 0.0, 0.0, 0.0, 1.0)
"""Bridge state with the gripper, open and pointing down, above small things and in view of Bridge's nominal camera."""
HOME_SPEED_RAD_S = 0.4
"""Of the joint that has furthest to go; the guard's limit is 0.75 pi rad/s."""
MAX_LAG_RAD = 0.35  # of the arm behind its goal: five steps; it is blocked or limp


def capture_joints() -> F64:
    """Return the joints (6,) of CAPTURE_STATE."""
    return ik(pose_from_state(np.array(CAPTURE_STATE, np.float32)), NEUTRAL)


def way_home(joints: F64, config: SafetyConfig, goal: F64 = NEUTRAL) -> tuple[list[F64], str]:
    """Return the goals (6,) from the measured joints to `goal`, one per control period, or why there is no such way.

    Refused when the end effector would go below the workspace's floor, or links too close to the table or each other;
    or further so, where they start so.
    """
    start = np.clip(np.asarray(joints, np.float64), JOINT_LOWER_RAD, JOINT_UPPER_RAD)
    count = max(1, int(np.ceil(np.abs(goal - start).max() / (HOME_SPEED_RAD_S * config.dt_s))))
    goals = [start + (goal - start) * (i + 1) / count for i in range(count)]
    fault = _too_low(goals, start, config) or _too_close(goals, [start], config)
    return ([], f"{fault} on the way; move the arm by hand first") if fault else (goals, "")


def fault_on_the_way(
    goal: F64, sent: F64 | None, start: F64, memory: GuardState, inputs: GuardInputs, config: SafetyConfig
) -> str:
    """Return why the next goal (6,) home must not be sent, or "". `sent` (6,) is the last goal, None before the first;
    `start` (6,) is where the way began."""
    fault = arm_fault(memory, inputs, config)
    if fault or inputs.arm is None:
        return fault or "no arm state received"
    joints = np.asarray(inputs.arm.joints, np.float64)
    lag_rad = 0.0 if sent is None else float(np.abs(sent - joints).max())
    if lag_rad > MAX_LAG_RAD:
        return f"the arm is {lag_rad:.2f} rad behind on its way, limit {MAX_LAG_RAD} rad; free it"
    return (goal_fault(goal, start, memory, inputs, config) or _too_low([goal], start, config)
            or _too_close([(joints + goal) / 2.0, goal], [start, joints], config))


def _too_low(goals: list[F64], start: F64, config: SafetyConfig) -> str:
    """Return that a goal lies below the workspace's floor, or further so than the start (6,), or ""."""
    floor_m = min(config.workspace_low_m[2], float(fk(start)[2, 3])) - 1e-6
    lowest_m = min(float(fk(goal)[2, 3]) for goal in goals)
    return f"the hand would be at z = {lowest_m:.3f} m, the floor is {floor_m:.3f} m" if lowest_m < floor_m else ""


def _too_close(goals: list[F64], begun: list[F64], config: SafetyConfig) -> str:
    """Return what would come too close at a goal, and closer than where the way has begun, or ""."""
    found, count = clearances(np.stack([*begun, *goals]), FINGER_OPEN_M), len(begun)
    for distances, limit_m, first in ((found.table - config.table_z_m, config.min_table_clearance_m, 0),
                                      (found.links, config.min_self_clearance_m, found.table.shape[1])):
        lack = np.minimum(limit_m, distances[:count].min(axis=0)) - BOW_M - distances[count:]
        if lack.max() > 0.0:
            row, column = np.unravel_index(int(lack.argmax()), lack.shape)
            one, other = names(first + int(column))
            return f"the {one} would be {distances[count + row, column]:.3f} m from the {other}, limit {limit_m} m"
    return ""
