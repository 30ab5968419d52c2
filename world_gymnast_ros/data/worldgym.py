"""Clips in WorldGym's format: <id>.mp4 with <id>.npz, at their own size, without states."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.episodes.export.worldgym import ROTATION_SCALE, TRANSLATION_SCALE
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.files import read_npz
from world_gymnast_ros.types import F32
from world_gymnast_ros.video import read_video

METRES_AND_RADIANS = np.array([1.0 / TRANSLATION_SCALE] * 3 + [1.0 / ROTATION_SCALE] * 3, np.float32)
"""Of a WorldGym unit."""


def worldgym_deltas(rows: F32) -> F32:
    """Return Bridge actions float32 (T, 7) of WorldGym rows (T, >= 7): gripper -1 there is open, here 1."""
    rows = np.asarray(rows, np.float32)
    return np.concatenate([rows[:, :6] * METRES_AND_RADIANS, rows[:, 6:7] < 0.0], 1).astype(np.float32)


def read_clip(path: Path) -> Episode:
    """Read one clip by its video. Its file holds an action at the last frame too, which leads nowhere: dropped.

    Clips of our own exports also say instruction, outcome, targets and measured states.
    """
    frames, file = read_video(path), path.with_suffix(".npz")
    ours = ("instruction", "outcome", "target_states", "states")
    data = read_npz(file, ("arr_0",), ours, f"it must hold the actions of {path.name}; copy it again")
    rows = data["arr_0"]
    if rows.ndim != 2 or rows.shape[1] < 7 or len(rows) != len(frames) or len(frames) < 2:
        raise EpisodeError(f"{path.name} has {len(frames)} frames and actions {rows.shape}; expected one row of at "
                           "least 7 numbers per frame, and two frames or more")
    if not np.isfinite(rows).all():
        raise EpisodeError(f"{file} holds actions that are not finite; export the clip again")
    success = {"success": True, "failure": False}.get(str(data.get("outcome", "")))
    return Episode(frames, worldgym_deltas(rows)[:-1], data.get("target_states"), str(data.get("instruction", "")),
                   path.stem, "clip" if success is None else "", success, measured=data.get("states"))
