"""`GeometricJudge`: judges by where objects are, not by how the frames look.

In the captured frame, at the camera's own resolution, it finds where the named object lies on the table
(`scene_reader.py`). Where the hand goes follows from the actions, and so does where it takes what it pushes or grasps
(`contact.py`). The limits that decide stand in its checkpoint, softened by what the measurement is known to be off.
"""
from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadInstruction
from world_gymnast_ros.models.judges.reflector import two_in_a_row
from world_gymnast_ros.robot.actions import (
    RobotLimits,
    StepLimits,
    Workspace,
    clip_delta,
    gripper_is_open,
    integrate_states,
)
from world_gymnast_ros.tabletop.contact import along_and_aside, hand_after, object_paths
from world_gymnast_ros.tabletop.locator import Locator
from world_gymnast_ros.tabletop.scene_reader import SceneReader
from world_gymnast_ros.tabletop.tasks import DIRECTIONS, Task, parse
from world_gymnast_ros.types import F32, F64, U8, Judgement, RolloutFacts

COARSE = 2.0
"""How much less exactly it is known where an object is once it was moved."""
APPROACH_RADIUS_M = 0.035
"""From here on the hand is near an object; how high it is then tells whether it came from above or from the side."""
APPROACH_SIGMA_M = 0.02
"""Not how exactly that height is known: how gradually objects begin to stand as the hand comes from higher."""


class GeometricJudge:
    """Measures rollouts with a `Locator`. Implements `types.Judge`; without facts, or an arm's state, no verdict."""

    reads_frames = False

    def __init__(self, locator: Locator) -> None:
        self.locator, self.config = locator, locator.config
        self.name: str = self.config.name
        self.reader = SceneReader(locator)
        low, high = self.config.workspace_low_m, self.config.workspace_high_m
        self.workspace = None if low is None or high is None else Workspace(tuple(low), tuple(high))
        self.step = StepLimits()

    def limited(self, limits: RobotLimits) -> GeometricJudge:
        """Keep to the robot's workspace and step limits, as the world model does. Returns itself."""
        self.workspace, self.step = limits.workspace, limits.step
        return self

    def hands(self, facts: RolloutFacts) -> F64:
        """Return where the hand is at each frame (G, T+1, 7), Bridge states as they would be measured."""
        deltas = clip_delta(np.array(facts.deltas, np.float32), self.step)
        deltas[..., 6] = gripper_is_open(deltas[..., 6])
        targets = [np.stack([np.asarray(s, np.float32) for s in facts.states])]  # type: ignore[arg-type]
        for t in range(deltas.shape[1]):
            targets.append(integrate_states(targets[-1], deltas[:, t], self.step, self.workspace))
        path = np.stack(targets, axis=1).astype(np.float64)
        path[:, 1:] = hand_after(path[:, :-1], path[:, 1:], self.config.hand_lag, self.config.hand_sag_m)
        return path

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts uint8 (G, T+1, H, W, 3) by measurement."""
        if facts is None:
            return [Judgement(None, detail="nothing to measure: the actions are not known")] * len(frames)
        try:
            task = parse(instruction)
            names = (task.target, task.goal) if task.goal else (task.target,)
            self.locator.word_indices(names)
        except BadInstruction as error:
            return [Judgement(None, detail=f"it cannot measure this task: {error}")] * len(frames)
        unknown = Judgement(None, detail="the arm's state at the captured frame is not known")
        rows = [i for i, s in enumerate(facts.states) if s is not None]
        out = [unknown] * len(frames)
        if not rows:
            return out
        known = RolloutFacts([facts.captured[i] for i in rows], [facts.states[i] for i in rows], facts.deltas[rows])
        hands = self.hands(known)
        found = [self.reader.measure(c, s, names)  # type: ignore[arg-type]
                 for c, s in zip(known.captured, known.states, strict=True)]
        good = [k for k, m in enumerate(found) if not m.fault]
        for k, m in enumerate(found):
            out[rows[k]] = Judgement(None, detail=m.fault)
        if not good:
            return out
        places_m = np.stack([found[k].places_m for k in good])  # (G, Q, 3)
        if task.family == "reach":
            judged = [self._reach(hand, target_m, names[0])
                      for hand, target_m in zip(hands[good], places_m[:, 0], strict=True)]
        else:
            paths, held = object_paths(hands[good], places_m[:, :1], self.reader.size_m(names[0]))
            judged = [self._moved(path[:, 0, :2], in_hand[:, 0], task, goal_m)
                      for path, in_hand, goal_m in zip(paths, held, places_m[:, -1], strict=True)]
        for k, verdict in zip(good, judged, strict=True):
            out[rows[k]] = verdict
        return out

    def _kept(self, value: F64, limit: float, sigma: float) -> F64:
        """Return how probable it is that values are below `limit` by the wanted margin, measured with error `sigma`.

        One half where the margin is just there, so that success is predicted only where it is probable enough: policies
        come to rest at the edge of what is called success, and half of the edge lies outside.
        """
        edge = limit - self.config.sure_sigmas * sigma
        return np.array([0.5 * (1.0 + math.erf((edge - v) / (sigma * math.sqrt(2.0)))) for v in value])

    def _reach(self, hand: F64, target_m: F64, name: str) -> Judgement:
        """Judge hand poses (T+1, 7) against the place (3,) of the target `name`."""
        gap = np.linalg.norm(hand[:, :2] - target_m[:2], axis=-1)
        c, sigma = self.config, self.config.sigma_m
        probability = self._kept(gap, c.reach_radius_m, sigma) * self._kept(hand[:, 2], c.reach_height_m, sigma)
        above_m = self._approach_above_m(hand[:, 2], gap, name)
        probability = probability * 0.5 * (1.0 + math.erf(above_m / (APPROACH_SIGMA_M * math.sqrt(2.0))))
        # Progress tells failures apart: of two that came too low, the higher one did better.
        missing = gap + np.maximum(0.0, hand[:, 2] - c.reach_height_m) + max(0.0, -above_m)
        progress = np.clip(1.0 - missing / 0.2, 0.0, 1.0)
        return _verdict(probability.astype(np.float32), progress.astype(np.float32))

    def _approach_above_m(self, height_m: F64, gap_m: F64, name: str) -> float:
        """Return how much higher than asked for the hand was when it first came near `name`, heights and gaps (T+1,);
        infinite where nothing is asked for."""
        near = np.flatnonzero(gap_m < APPROACH_RADIUS_M)
        if name not in self.config.approach_heights_m or not near.size:
            return math.inf
        return float(height_m[near[0]]) - self.config.approach_heights_m[name]

    def _moved(self, path: F64, held: NDArray[np.bool_], task: Task, goal_m: F64) -> Judgement:
        """Judge a push or a pick-and-place by the path (T+1, 2) on which the hand takes the object, when it is `held`
        (T+1,), and where the goal is (3,), for a pick-and-place."""
        c, sigma = self.config, COARSE * self.config.sigma_m
        if task.family == "push":
            along, aside = along_and_aside(path, DIRECTIONS[task.direction])
            probability = self._kept(-along, -c.push_distance_m, sigma) * self._kept(aside, c.push_aside_m, sigma)
            progress = np.clip(along / c.push_distance_m, 0.0, 1.0)
        else:
            gap = np.linalg.norm(path - goal_m[:2], axis=-1)
            probability = self._kept(gap, c.place_radius_m, sigma) * np.where(held, 0.1, 1.0)
            progress = np.clip(1.0 - gap / max(float(gap[0]), 1e-6), 0.0, 1.0)
        return _verdict(probability.astype(np.float32), progress.astype(np.float32))


def _verdict(probability: F32, progress: F32) -> Judgement:
    steady = two_in_a_row(probability)
    done = np.flatnonzero(steady > 0.5)
    return Judgement(float(steady.max()), int(done[0]) if done.size else None, frame_scores=probability,
                     progress=float(two_in_a_row(progress).max()))
