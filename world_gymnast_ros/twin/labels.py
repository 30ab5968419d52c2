"""Per-frame labels out of what the twin knows: where the tip and the objects were.

Recorded success is *latched* (once done, done), but a judge sees frames, and an arm that left its target looks undone.
So a latched frame counts as positive only while the task's own condition still holds, a little relaxed.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.data.frame_table import Episode, PlayTable
from world_gymnast_ros.data.labels import FrameLabels, labels_by_outcome
from world_gymnast_ros.twin.tasks import (
    DIRECTIONS,
    PLACE_RADIUS_M,
    PUSH_DISTANCE_M,
    PUSH_LATERAL_M,
    REACH_HEIGHT_M,
    REACH_RADIUS_M,
    parse_instruction,
)

RELAX_M = 0.006
"""How far a frame may be outside the success limits and still show a success."""
APPROACH_M = 0.2
"""Distance over which approaching counts as progress."""


def _closeness(gap_m: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(np.clip(1.0 - gap_m / APPROACH_M, 0.0, 1.0))


def frame_labels(table: PlayTable, episode: Episode, instruction: str) -> FrameLabels:
    """Return the labels of an episode under one of its instructions; by its outcome where the file holds no places."""
    latched = table.labels(episode, instruction)
    rows = np.arange(episode.first, episode.first + episode.steps + 1)
    places, known = table.places(episode, rows, instruction)
    if not known[1]:
        return labels_by_outcome(table, episode, instruction)
    tip, target, goal = np.moveaxis(places, 1, 0)
    task = parse_instruction(instruction)
    shift = target[:, :2] - target[:1, :2]
    if task.family == "reach":
        gap = np.linalg.norm(tip[:, :2] - target[:, :2], axis=1)
        high = np.maximum(0.0, tip[:, 2] - REACH_HEIGHT_M)
        holds = (gap < REACH_RADIUS_M + RELAX_M) & (high < RELAX_M)
        progress = _closeness(gap + high)
    elif task.family == "push":
        direction = np.array(DIRECTIONS[task.direction])
        along = shift @ direction
        lateral = np.linalg.norm(shift - along[:, None] * direction, axis=1)
        holds = (along > PUSH_DISTANCE_M - RELAX_M) & (lateral < PUSH_LATERAL_M + RELAX_M)
        behind = target[:, :2] - 0.05 * direction
        near = _closeness(np.linalg.norm(tip[:, :2] - behind, axis=1))
        progress = 0.4 * near + 0.6 * np.clip(along / PUSH_DISTANCE_M, 0.0, 1.0)
    else:
        gap = np.linalg.norm(target[:, :2] - goal[:, :2], axis=1)
        holds = (gap < PLACE_RADIUS_M + RELAX_M) & (target[:, 2] < 0.05)
        near = np.maximum.accumulate(_closeness(np.linalg.norm(tip - target, axis=1)))
        progress = 0.4 * near + 0.6 * np.clip(1.0 - gap / max(float(gap[0]), 1e-3), 0.0, 1.0)
    done = latched & holds
    onset = np.append(latched[1:], latched[-1]) & ~latched  # success needs two steps: the one before is in between
    return FrameLabels(done, (done | ~latched) & ~onset, np.where(done, 1.0, 0.95 * progress).astype(np.float32),
                       np.ones(len(done), np.bool_))
