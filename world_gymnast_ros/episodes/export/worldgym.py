"""WorldGym's clips: `<root>/<subset>/<split>/%09d.mp4` with a `.npz` of as many action rows as frames.

Format of world-model-eval/world-model-eval (`download_data.py`, `dataset.py`): key `arr_0`, float32 (T, 10) =
translation (+-0.05 m to +-1.75), rotation (+-0.25 rad to +-1.4), each clipped 0.01 inside, gripper -1 open +1 closed,
base motion (zeros). Row t is the action taken at frame t; the last frame has no action, its row is "stay". The clips
have 20 frames a second whatever the truth; the true times are further keys of the `.npz`, which WorldGym's loader does
not read: `captured_ns` int64 (T,) of the frames, `sent_ns` of the actions (0 for "stay"), since the epoch.
"""
from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from world_gymnast_ros.episodes.export.video import read_mp4, write_mp4
from world_gymnast_ros.episodes.files import episode_error, write_whole
from world_gymnast_ros.episodes.reader import Episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.robot.actions import gripper_is_open
from world_gymnast_ros.types import F32, U8

TRANSLATION_SCALE = 1.75 / 0.05
ROTATION_SCALE = 1.4 / 0.25
TRANSLATION_LIMIT, ROTATION_LIMIT = 1.74, 1.39
CLIP_FPS = 20
"""Whatever the true rate, as in the published clips: the data loader counts frames by it."""
CLIP_SIZE = (256, 256)
ROW_WIDTH = 10


def to_rows(deltas: F32) -> F32:
    """Turn actions float32 (T, 7) in physical units into WorldGym rows float32 (T, 10)."""
    rows = np.zeros((len(deltas), ROW_WIDTH), np.float32)
    rows[:, :3] = np.clip(deltas[:, :3] * TRANSLATION_SCALE, -TRANSLATION_LIMIT, TRANSLATION_LIMIT)
    rows[:, 3:6] = np.clip(deltas[:, 3:6] * ROTATION_SCALE, -ROTATION_LIMIT, ROTATION_LIMIT)
    rows[:, 6] = np.where(gripper_is_open(deltas[:, 6]), -1.0, 1.0)
    return rows


def from_rows(rows: F32) -> F32:
    """Turn WorldGym rows float32 (T, 10) into actions float32 (T, 7): m, rad, gripper 1 open."""
    deltas = np.empty((len(rows), 7), np.float32)
    deltas[:, :3] = rows[:, :3] / TRANSLATION_SCALE
    deltas[:, 3:6] = rows[:, 3:6] / ROTATION_SCALE
    deltas[:, 6] = (1.0 - rows[:, 6]) / 2.0
    return deltas


def export_worldgym(episodes: Iterable[Episode], folder: Path, size: tuple[int, int] = CLIP_SIZE) -> list[Path]:
    """Add a clip per episode to `folder` (a `<subset>/<split>` folder), numbered after those there; return the mp4s.

    T actions give T+1 frames and rows. The actions are those sent, after the guard.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise episode_error("make", folder, error) from error
    taken = [int(path.stem) for path in folder.glob("*.npz") if path.stem.isdigit()]
    number = max(taken, default=-1) + 1
    clips: list[Path] = []
    for episode in episodes:
        stay = np.zeros((1, 7), np.float32)
        stay[0, 6] = episode.actions[-1, 6]
        rows = to_rows(np.concatenate([episode.actions, stay]))
        clip = folder / f"{number:09d}.mp4"
        # The loader looks for mp4 files and then for their npz: the mp4 appears last, and whole.
        buffer = io.BytesIO()
        np.savez(buffer, rows, captured_ns=episode.frame_stamps_ns, sent_ns=np.append(episode.steps.stamps_ns, 0))
        write_whole(clip.with_suffix(".npz"), buffer.getvalue())
        temporary = clip.with_suffix(".tmp")
        write_mp4(temporary, [episode.frames], size, CLIP_FPS)
        temporary.replace(clip)
        clips.append(clip)
        number += 1
    return clips


def read_worldgym_clip(mp4: Path, npz: Path) -> tuple[U8, F32]:
    """Return (frames uint8 (T, H, W, 3), deltas float32 (T, 7) in physical units); row t was taken at frame t.

    Raises EpisodeError when a file is missing or broken, or they have different lengths.
    """
    frames = read_mp4(mp4)
    try:
        with np.load(npz, allow_pickle=False) as data:
            rows = np.asarray(data["arr_0"], dtype=np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise EpisodeError(f"cannot read {npz}: {error!r}; it must be an npz with the key arr_0") from error
    if rows.ndim != 2 or rows.shape[1] != ROW_WIDTH or len(rows) != len(frames):
        raise EpisodeError(f"{npz} holds {rows.shape}, expected ({len(frames)}, {ROW_WIDTH}): a row per frame of {mp4}")
    if not np.isfinite(rows).all():
        raise EpisodeError(f"{npz} holds numbers that are not finite; export the clip again")
    return frames, from_rows(rows)
