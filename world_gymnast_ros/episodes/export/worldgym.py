"""WorldGym's clips: `<root>/<subset>/<split>/%09d.mp4` with a `.npz` of as many action rows as frames.

Format of world-model-eval/world-model-eval (`download_data.py`, `dataset.py`): key `arr_0`, float32 (T, 10) =
translation (+-0.05 m to +-1.75), rotation (+-0.25 rad to +-1.4), each clipped 0.01 inside, gripper -1 open +1 closed,
base motion (zeros). Row t is the action taken at frame t; the last frame has no action, its row is "stay". The clips
have 20 frames a second whatever the truth; the true times are further keys of the `.npz`, which WorldGym's loader does
not read: `captured_ns` int64 (T,) of the frames, `sent_ns` of the actions (0 for "stay"), since the epoch. So are
`recording` (its id), `instruction`, `outcome`, `target_states` and `states` float32 (T, 7), which this package reads.
"""
from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from world_gymnast_ros.episodes.files import episode_error, write_whole
from world_gymnast_ros.episodes.reader import Episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.files import read_npz
from world_gymnast_ros.robot.actions import gripper_is_open
from world_gymnast_ros.types import F32
from world_gymnast_ros.video import write_mp4

TRANSLATION_SCALE = 1.75 / 0.05
ROTATION_SCALE = 1.4 / 0.25
"""WorldGym's units per m and per rad."""
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


def export_worldgym(episodes: Iterable[Episode], folder: Path, size: tuple[int, int] = CLIP_SIZE) -> list[Path]:
    """Add a clip per episode to `folder` (a `<subset>/<split>` folder), numbered after those there; return the mp4s.

    T actions give T+1 frames and rows. The actions are those sent, after the guard. A recording that is there already
    (by its id) stays as it is, so an export may be repeated.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise episode_error("make", folder, error) from error
    there = _recordings(folder)
    taken = [int(path.stem) for path in (*folder.glob("*.npz"), *folder.glob("*.mp4")) if path.stem.isdigit()]
    number = max(taken, default=-1) + 1
    clips: list[Path] = []
    for episode in episodes:
        clip = there.get(episode.episode_id)
        if clip is None:
            clip, number = folder / f"{number:09d}.mp4", number + 1
        if not clip.is_file():  # one that was stopped between its two files is made again
            _write_clip(episode, clip, size)
        clips.append(clip)
    return clips


def _write_clip(episode: Episode, clip: Path, size: tuple[int, int]) -> None:
    """Write both files of a clip beside their places, and then move them there: the mp4 last, by which it is found."""
    stay = np.zeros((1, 7), np.float32)
    stay[0, 6] = episode.actions[-1, 6]
    buffer = io.BytesIO()
    np.savez(buffer, to_rows(np.concatenate([episode.actions, stay])), captured_ns=episode.frame_stamps_ns,
             sent_ns=np.append(episode.steps.stamps_ns, 0), recording=np.array(episode.episode_id),
             instruction=np.array(episode.instruction), outcome=np.array(episode.outcome.outcome),
             target_states=episode.target_states, states=episode.states)
    temporary = clip.with_suffix(".tmp")
    try:
        write_mp4(temporary, [episode.frames], size, CLIP_FPS)
        write_whole(clip.with_suffix(".npz"), buffer.getvalue())
        temporary.replace(clip)
    except OSError as error:
        raise episode_error("write", clip, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _recordings(folder: Path) -> dict[str, Path]:
    """Return the clips that were exported before, by the id of their recording."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.npz")):
        with contextlib.suppress(EpisodeError):
            data = read_npz(path, (), ("recording",), "")
            if "recording" in data:
                found.setdefault(str(data["recording"]), path.with_suffix(".mp4"))
    return found
