"""Scripted demonstrators and varied play behaviour. They read the truth of the twin, which no policy ever sees."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from world_gymnast_ros.twin.bridge_loop import BridgeLoop
from world_gymnast_ros.twin.tasks import DIRECTIONS, Task
from world_gymnast_ros.types import F32, F64

HOVER_Z_M, TRAVEL_Z_M, GRASP_Z_M, PLACE_Z_M, PUSH_Z_M = 0.075, 0.115, 0.030, 0.045, 0.030


@dataclass
class Waypoint:
    """Go to `xyz` (m) with the gripper command given; stay `dwell` steps after arriving within `tolerance_m`."""

    xyz: F64
    gripper: float
    dwell: int = 0
    tolerance_m: float = 0.006


def plan(task: Task, loop: BridgeLoop, offset_m: F64 | None = None) -> list[Waypoint]:
    """Return the demonstrator's waypoints for `task`; `offset_m` (2,) shifts where it believes the object to be."""
    xyz = loop.twin.object_xyz(task.target).copy()
    xyz[:2] += np.zeros(2) if offset_m is None else offset_m
    x, y = xyz[:2]
    if task.family == "reach":
        return [Waypoint(np.array([x, y, TRAVEL_Z_M]), 1.0, 0, 0.03), Waypoint(np.array([x, y, HOVER_Z_M]), 1.0, 99)]
    if task.family == "push":
        direction = np.array(DIRECTIONS[task.direction])
        behind = xyz[:2] - direction * (0.060 if direction[0] == 0 else 0.052)
        ahead = xyz[:2] + direction * 0.045
        return [Waypoint(np.array([*behind, TRAVEL_Z_M]), 0.0, 0, 0.015), Waypoint(np.array([*behind, PUSH_Z_M]), 0.0),
                Waypoint(np.array([*ahead, PUSH_Z_M]), 0.0, 99)]
    goal = loop.twin.object_xyz(task.goal)[:2]
    return [Waypoint(np.array([x, y, TRAVEL_Z_M]), 1.0, 0, 0.02), Waypoint(np.array([x, y, GRASP_Z_M]), 1.0),
            Waypoint(np.array([x, y, GRASP_Z_M]), 0.0, 2), Waypoint(np.array([x, y, TRAVEL_Z_M]), 0.0),
            Waypoint(np.array([*goal, TRAVEL_Z_M]), 0.0), Waypoint(np.array([*goal, PLACE_Z_M]), 0.0),
            Waypoint(np.array([*goal, PLACE_Z_M]), 1.0, 1), Waypoint(np.array([*goal, TRAVEL_Z_M]), 1.0, 99)]


class Follower:
    """Turns waypoints into Bridge actions, with a speed and a hand tremor."""

    def __init__(self, waypoints: list[Waypoint], rng: np.random.Generator, speed_m: float, tremor_m: float) -> None:
        self._waypoints, self._rng, self._speed_m, self._tremor_m = waypoints, rng, speed_m, tremor_m
        self._index = 0
        self._dwelt = 0

    def act(self, loop: BridgeLoop) -> F32:
        """Return the next action (7,) float32."""
        while True:
            way = self._waypoints[self._index]
            gap = way.xyz - loop.T_target[:3, 3]
            if float(np.linalg.norm(gap)) > way.tolerance_m or self._index == len(self._waypoints) - 1:
                break
            if self._dwelt < way.dwell:
                self._dwelt += 1
                break
            self._index, self._dwelt = self._index + 1, 0
        norm = float(np.linalg.norm(gap))
        move = gap * min(1.0, self._speed_m / max(norm, 1e-9))
        move = move + self._rng.normal(0.0, self._tremor_m * (1.0 if norm > 0.01 else 0.3), 3)
        return np.array([*move, 0.0, 0.0, 0.0, way.gripper], dtype=np.float32)


def demonstrator(task: Task, loop: BridgeLoop, rng: np.random.Generator) -> Follower:
    """Return the demonstrator used for policy training: succeeds nearly always, at a human pace."""
    return Follower(plan(task, loop), rng, float(rng.uniform(0.030, 0.042)), 0.0015)


def player(behaviour: str, task: Task, loop: BridgeLoop, rng: np.random.Generator) -> Follower:
    """Return one of the varied behaviours of play data: demonstrations, near misses, wandering, halting."""
    speed, tremor = float(rng.uniform(0.02, 0.048)), float(rng.uniform(0.0, 0.006))
    if behaviour == "expert":
        return Follower(plan(task, loop), rng, speed, tremor)
    if behaviour in ("perturbed", "near"):
        low, high = (0.01, 0.045) if behaviour == "near" else (0.008, 0.06)
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(low, high)
        return Follower(plan(task, loop, radius * np.array([np.cos(angle), np.sin(angle)])), rng, speed, tremor)
    if behaviour == "halting":
        ways = plan(task, loop)[:int(rng.integers(1, 4))]
        return Follower(ways, rng, speed, tremor)
    ways = []
    for _ in range(12):
        if rng.random() < 0.6:
            anchor = loop.twin.object_xyz(str(rng.choice(loop.twin.object_names)))[:2] + rng.normal(0, 0.03, 2)
        else:
            anchor = np.array([rng.uniform(0.18, 0.40), rng.uniform(-0.14, 0.17)])
        ways.append(Waypoint(np.array([*anchor, rng.uniform(0.025, 0.17)]), float(rng.random() < 0.5), 0, 0.02))
    return Follower(ways, rng, speed, tremor)
