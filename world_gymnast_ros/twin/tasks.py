"""What may be asked, and when it is done: reach, push, pick-and-place, by where things are measured to be."""
from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from world_gymnast_ros.errors import BadInstruction
from world_gymnast_ros.instructions import normalise
from world_gymnast_ros.types import F64

DIRECTIONS: dict[str, tuple[float, float]] = {"left": (0.0, 1.0), "right": (0.0, -1.0), "forward": (1.0, 0.0)}
FAMILIES = ("reach", "push", "pick_place")
HORIZON_STEPS = {"reach": 16, "push": 20, "pick_place": 36}
"""Actions per episode at 5 Hz."""

REACH_RADIUS_M, REACH_HEIGHT_M = 0.022, 0.095
PUSH_DISTANCE_M, PUSH_LATERAL_M = 0.05, 0.04
PLACE_RADIUS_M = 0.04


@dataclass(frozen=True)
class Task:
    """A parsed instruction. `target` names the object; `direction` (push) or `goal` (plate name) says where."""

    instruction: str
    family: str
    target: str
    direction: str = ""
    goal: str = ""

    @property
    def horizon_steps(self) -> int:
        return HORIZON_STEPS[self.family]


def parse_instruction(instruction: str) -> Task:
    """Parse the twin's language; BadInstruction names the forms it knows."""
    text = normalise(instruction)
    if m := re.fullmatch(r"reach the (\w+ \w+)", text):
        return Task(text, "reach", m[1])
    if m := re.fullmatch(r"push the (\w+ \w+) (left|right|forward)", text):
        return Task(text, "push", m[1], direction=m[2])
    if m := re.fullmatch(r"put the (\w+ \w+) on the (\w+ plate)", text):
        return Task(text, "pick_place", m[1], goal=m[2])
    raise BadInstruction(
        f"the twin cannot measure success of {instruction!r}; it knows 'reach the <object>', "
        "'push the <object> left|right|forward', 'put the <object> on the <colour> plate'")


@dataclass(frozen=True)
class Truth:
    """What physics says at one control step. Positions (3,) in m, base frame."""

    ee_xyz: F64
    target_xyz: F64
    target_start_xyz: F64
    goal_xyz: F64 | None
    touching: bool
    """Whether a finger touches the target object."""
    target_speed_m_s: float


def progress(task: Task, truth: Truth) -> tuple[bool, float]:
    """Return (condition holds now, progress 0..1). Success is the condition on two consecutive control steps."""
    if task.family == "reach":
        gap = float(np.linalg.norm(truth.ee_xyz[:2] - truth.target_xyz[:2]))
        moved = float(np.linalg.norm(truth.target_xyz[:2] - truth.target_start_xyz[:2]))
        done = gap < REACH_RADIUS_M and truth.ee_xyz[2] < REACH_HEIGHT_M and moved < 0.02
        return done, float(np.clip(1.0 - (gap + max(0.0, truth.ee_xyz[2] - REACH_HEIGHT_M)) / 0.2, 0.0, 1.0))
    if task.family == "push":
        direction = np.array(DIRECTIONS[task.direction])
        shift = truth.target_xyz[:2] - truth.target_start_xyz[:2]
        along = float(shift @ direction)
        lateral = float(np.linalg.norm(shift - along * direction))
        return along > PUSH_DISTANCE_M and lateral < PUSH_LATERAL_M, float(np.clip(along / PUSH_DISTANCE_M, 0.0, 1.0))
    assert truth.goal_xyz is not None
    gap = float(np.linalg.norm(truth.target_xyz[:2] - truth.goal_xyz[:2]))
    resting = truth.target_xyz[2] < 0.04 and truth.target_speed_m_s < 0.05 and not truth.touching
    start = float(np.linalg.norm(truth.target_start_xyz[:2] - truth.goal_xyz[:2]))
    return gap < PLACE_RADIUS_M and resting, float(np.clip(1.0 - gap / max(start, 1e-6), 0.0, 1.0))
