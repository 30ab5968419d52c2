"""Per-frame labels for the judge: done, not done, or unclear; and progress.

Where a simulator knows where things were, the labels come out of that: recorded success is *latched* (once done, done),
but a judge sees frames, and an arm that left its target looks undone. So a latched frame counts as positive only while
the task's own condition still holds, a little relaxed. Elsewhere they come out of the outcome, as a person marked it:
no frame of a failure shows success, the last frame of a success does, and what lies between is unclear.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.data.frame_table import Episode, PlayTable
from world_gymnast_ros.twin.tasks import (
    DIRECTIONS,
    PLACE_RADIUS_M,
    PUSH_DISTANCE_M,
    PUSH_LATERAL_M,
    REACH_HEIGHT_M,
    REACH_RADIUS_M,
    parse_instruction,
)
from world_gymnast_ros.types import F32

RELAX_M = 0.006
"""How far a frame may be outside the success limits and still show a success."""
APPROACH_M = 0.2
"""Distance over which approaching counts as progress."""


@dataclass(frozen=True)
class FrameLabels:
    """Of one episode under one instruction: `done` bool, `clear` bool (use it), `progress` 0..1, `graded` bool (use
    that), each (steps + 1,)."""

    done: NDArray[np.bool_]
    clear: NDArray[np.bool_]
    progress: F32
    graded: NDArray[np.bool_]


def _closeness(gap_m: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(np.clip(1.0 - gap_m / APPROACH_M, 0.0, 1.0))


def frame_labels(table: PlayTable, episode: Episode, instruction: str) -> FrameLabels:
    """Return the labels of an episode under one of its instructions."""
    latched = table.labels(episode, instruction)
    rows = np.arange(episode.first, episode.first + episode.steps + 1)
    places, known = table.places(episode, rows, instruction)
    if not known[1]:
        return labels_by_outcome(latched)
    tip, thing, goal = np.moveaxis(places, 1, 0)
    task = parse_instruction(instruction)
    shift = thing[:, :2] - thing[:1, :2]
    if task.family == "reach":
        gap = np.linalg.norm(tip[:, :2] - thing[:, :2], axis=1)
        high = np.maximum(0.0, tip[:, 2] - REACH_HEIGHT_M)
        holds = (gap < REACH_RADIUS_M + RELAX_M) & (high < RELAX_M)
        progress = _closeness(gap + high)
    elif task.family == "push":
        direction = np.array(DIRECTIONS[task.direction])
        along = shift @ direction
        lateral = np.linalg.norm(shift - along[:, None] * direction, axis=1)
        holds = (along > PUSH_DISTANCE_M - RELAX_M) & (lateral < PUSH_LATERAL_M + RELAX_M)
        behind = thing[:, :2] - 0.05 * direction
        near = _closeness(np.linalg.norm(tip[:, :2] - behind, axis=1))
        progress = 0.4 * near + 0.6 * np.clip(along / PUSH_DISTANCE_M, 0.0, 1.0)
    else:
        gap = np.linalg.norm(thing[:, :2] - goal[:, :2], axis=1)
        holds = (gap < PLACE_RADIUS_M + RELAX_M) & (thing[:, 2] < 0.05)
        near = np.maximum.accumulate(_closeness(np.linalg.norm(tip - thing, axis=1)))
        progress = 0.4 * near + 0.6 * np.clip(1.0 - gap / max(float(gap[0]), 1e-3), 0.0, 1.0)
    done = latched & holds
    onset = np.append(latched[1:], latched[-1]) & ~latched  # success needs two steps: the one before is in between
    return FrameLabels(done, (done | ~latched) & ~onset, np.where(done, 1.0, 0.95 * progress).astype(np.float32),
                       np.ones(len(done), np.bool_))


def labels_by_outcome(latched: NDArray[np.bool_]) -> FrameLabels:
    """Return the labels of an episode of which only the outcome is known; `latched` (steps + 1,) as it was marked."""
    first = np.arange(len(latched)) == 0
    clear = latched | first if latched[-1] else np.ones(len(latched), np.bool_)
    return FrameLabels(latched.copy(), clear, latched.astype(np.float32), latched | first)
