"""Read back what `episodes export` wrote in Bridge's and IRASim's shapes, with the keys of ours that say all of it."""
from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.episodes.files import read_json
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.files import read_npz
from world_gymnast_ros.video import read_video

REMEDY = "export the recording again: `world-gymnast episodes export`"
_BRIDGE = ("steps/observation/image_0", "steps/observation/state", "steps/action", "steps/language_instruction")
_OURS = ("steps/target_state", "episode_metadata/outcome", "episode_metadata/ended_by", "episode_metadata/adapter")


def is_bridge(path: Path) -> bool:
    """Tell whether an .npz is an episode in the shape of Bridge's RLDS steps."""
    try:
        with ZipFile(path) as archive:
            return f"{_BRIDGE[0]}.npy" in archive.namelist()
    except Exception:  # no archive: whoever reads it says so
        return False


def read_bridge(path: Path) -> Episode:
    """Read `<id>.npz` of `--format bridge`. Raises EpisodeError."""
    data = read_npz(path, _BRIDGE, _OURS, REMEDY)
    frames, measured, actions = (data[k] for k in _BRIDGE[:3])
    targets = data.get("steps/target_state")
    known = {name: str(data.get(f"episode_metadata/{name}", "")) for name in ("outcome", "ended_by", "adapter")}
    return _episode(path.stem, frames, actions[:-1], targets, measured, str(data[_BRIDGE[3]].flat[0]), known)


def is_irasim(folder: Path) -> bool:
    """Tell whether a folder is of `--format irasim`."""
    return (folder / "annotation").is_dir() and (folder / "videos").is_dir()


def irasim_notes(folder: Path) -> list[Path]:
    """Return the annotation files of such a folder, one per episode."""
    return sorted((folder / "annotation").glob("*/*.json"))


def read_irasim(path: Path) -> Episode:
    """Read one episode of `--format irasim` by its annotation. Raises EpisodeError.

    Its own actions are between reached states, in the hand's axes: what was sent stands in our key `sent`.
    """
    note = read_json(path)
    if "sent" not in note:
        raise EpisodeError(f"{path} does not say what was sent, only how the arm moved; {REMEDY}")
    try:
        frames = read_video(path.parents[2] / note["videos"][0]["video_path"])
        measured = np.concatenate([np.array(note["state"]), np.array(note["continuous_gripper_state"])[:, None]], 1)
        known = {name: str(note.get(name, "")) for name in ("outcome", "ended_by", "adapter")}
        return _episode(path.stem, frames, note["sent"], note["target_state"], measured, str(note["texts"][0]), known)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EpisodeError(f"{path} is no annotation of an episode ({error!r:.160}); {REMEDY}") from error


def _episode(name: str, frames: Any, actions: Any, targets: Any, measured: Any, instruction: str,
             known: dict[str, str]) -> Episode:
    count = len(frames)
    arrays = [None if a is None else np.asarray(a, np.float32) for a in (actions, targets, measured)]
    for array, rows, what in zip(arrays, (count - 1, count, count), ("actions", "targets", "states"), strict=True):
        if array is not None and array.shape != (rows, 7):
            raise EpisodeError(f"{name}: {count} frames and {what} {array.shape}; ({rows}, 7) are needed; {REMEDY}")
    deltas = arrays[0]
    if deltas is None or not np.isfinite(deltas).all():
        raise EpisodeError(f"{name}: its actions are not finite numbers; {REMEDY}")
    success = {"success": True, "failure": False}.get(known["outcome"])
    return Episode(np.asarray(frames), deltas, arrays[1], instruction, name, "" if success is not None else "clip",
                   success, measured=arrays[2], ended_by=known["ended_by"], adapter=known["adapter"])
