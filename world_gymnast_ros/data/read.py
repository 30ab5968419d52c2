"""Read episodes from wherever they were recorded, into one type.

    a folder of recordings       what the recorder wrote and somebody marked
    *.npz                        scripted or policy episodes of the twin (docs/reference/formats.md)
    <id>.mp4 with <id>.npz       clips in WorldGym's format
    meta/info.json               a LeRobot v3 data set

Recordings are decoded once: frames, resized, and actions lie in a cache file afterwards, named by the hash of the
recording, so a resumed or repeated run does not decode them again.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.lerobot import is_lerobot, read_lerobot
from world_gymnast_ros.data.worldgym import read_clip
from world_gymnast_ros.episodes.files import MCAP_NAME, OUTCOME_NAME, PARTIAL_SUFFIX, STEPS_NAME
from world_gymnast_ros.episodes.reader import first_picture, read_episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.files import sha256_file, whole
from world_gymnast_ros.objects import ObjectTracks

MIN_STEPS = 8
"""Shorter recordings hold no clip to train on."""
_ARRAYS = ("frames", "deltas", "states", "length", "family", "instruction", "success")
_OPTIONAL = ("camera", "captured", "measured", "adapter", "seed")

Tracks = Callable[[Mapping[str, np.ndarray]], Sequence[ObjectTracks | None]]
"""Makes the object tracks of the episodes in one file of arrays."""


@dataclass(frozen=True)
class Found:
    """What was read: `episodes`, `hashes` (SHA-256 of every file that they came from), and why some were `left_out`."""

    episodes: list[Episode] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def marked(self) -> list[Episode]:
        """The episodes whose outcome is known."""
        return [e for e in self.episodes if e.success is not None]


def read_episodes(folders: Iterable[Path], size_px: int | None = None, cache: Path | None = None,
                  min_steps: int = MIN_STEPS) -> Found:
    """Read all episodes under `folders`; a recording's own folder, or one file, may be named too.

    Left out, with the reason: recordings that nobody marked, never finished, broken, or shorter than `min_steps`
    actions. `size_px`: square size that recordings are decoded to (others keep theirs); `cache`: folder for decoded
    recordings. EpisodeError where a folder is missing or nothing is left.
    """
    found, folders = Found(), list(folders)
    for folder in folders:
        if not folder.exists():
            raise EpisodeError(f"{folder} does not exist; name folders of recordings, of *.npz files, of clips or of a "
                               "LeRobot data set")
        if folder.is_dir() and is_lerobot(folder):
            found.episodes.extend(_lerobot(folder))
            continue
        files = [folder] if folder.is_file() else sorted([*folder.glob("*.npz"), *folder.glob("*.mp4")])
        videos = {f.stem for f in files if f.suffix == ".mp4"}
        for path in files:
            if path.suffix == ".mp4":
                found.episodes.append(read_clip(path))
            elif path.stem in videos:
                continue
            else:
                found.episodes.extend(read_arrays(path))
            found.hashes[f"{path.parent.name}/{path.name}"] = sha256_file(path)
        one = [folder] if (folder / MCAP_NAME).is_file() else []
        for path in one or (sorted(p.parent for p in folder.glob(f"*/{MCAP_NAME}")) if folder.is_dir() else ()):
            try:
                episode = recording(path, size_px, cache)
                if episode.steps < min_steps:
                    raise EpisodeError(f"{episode.steps} actions, at least {min_steps} are needed")
                found.episodes.append(episode)
                found.hashes[path.name] = recording_hash(path)
            except (EpisodeError, OSError) as error:
                found.left_out.append(f"{path.name}: {error}")
    if not found.episodes:
        why = f"; left out: {'; '.join(found.left_out[:3])}" if found.left_out else ""
        raise EpisodeError(f"no episode (*.npz, clips, a LeRobot data set, or a finished and marked recording) in "
                           f"{', '.join(map(str, folders)) or 'no folder'}{why}")
    return found


def read_arrays(path: Path, tracks: Tracks | None = None) -> list[Episode]:
    """Return the episodes of one file of arrays (*.npz); `tracks` makes their object tracks where those are wanted."""
    try:
        with np.load(path, allow_pickle=False) as data:
            rows = {k: data[k] for k in _ARRAYS}
            more = {k: data[k] for k in _OPTIONAL if k in data.files}
            objects = tracks(data) if tracks is not None else [None] * len(rows["length"])
    except Exception as error:  # numpy and zipfile raise many kinds on a damaged file
        raise EpisodeError(f"{path} holds no episodes ({error}); `world-gymnast twin play` makes such files") from error
    out = []
    for i, n in enumerate(rows["length"].tolist()):
        success = rows["success"][i, :n + 1]
        own = {k: v[i] for k, v in more.items()}
        out.append(Episode(
            rows["frames"][i, :n + 1], rows["deltas"][i, :n], rows["states"][i, :n + 1], str(rows["instruction"][i]),
            f"{path.stem}/{i}", str(rows["family"][i]), bool(success[n]),
            int(np.argmax(success)) if success[n] else None, own.get("captured"), own.get("camera"), objects[i],
            measured=own["measured"][:n + 1] if "measured" in own else None, adapter=str(own.get("adapter", "")),
            seed=int(own.get("seed", 0))))
    return out


def read_array_folders(folders: Iterable[Path], every: int = 1, tracks: Tracks | None = None) -> list[Episode]:
    """Read every `every`-th episode of all *.npz files in `folders`; none where there is no such file."""
    return [e for d in folders for path in sorted(Path(d).glob("*.npz")) for e in read_arrays(path, tracks)[::every]]


def _lerobot(folder: Path) -> list[Episode]:
    """Read a LeRobot v3 data set, which has as many frames as actions: the last action leads nowhere and is dropped."""
    episodes = [Episode(e.frames, e.actions[:-1], None, name=f"{e.index:06d}", task="clip")
                for e in read_lerobot(folder) if len(e.actions) > 1]
    if not episodes:
        raise EpisodeError(f"no episode of two actions or more in {folder}")
    return episodes


def recording_hash(folder: Path) -> str:
    """Return one SHA-256 over what the recorder wrote and what was marked since."""
    digest = hashlib.sha256()
    for name in (MCAP_NAME, STEPS_NAME, OUTCOME_NAME):
        digest.update(sha256_file(folder / name).encode())
    return digest.hexdigest()


def recording(folder: Path, size_px: int | None, cache: Path | None) -> Episode:
    """Return one finished recording that somebody marked; EpisodeError says why another is not usable."""
    if folder.name.endswith(PARTIAL_SUFFIX):
        raise EpisodeError("never finished; run `world-gymnast episodes repair`")
    held = cache / f"{recording_hash(folder)[:16]}-{size_px or 'own'}.npz" if cache is not None else None
    if held is not None and held.is_file():
        with np.load(held, allow_pickle=False) as data:
            return Episode(data["frames"], data["deltas"], data["states"], str(data["instruction"]), folder.name,
                           success=bool(data["success"]), captured=data["captured"])
    episode = read_episode(folder, None if size_px is None else (size_px, size_px))
    if episode.outcome.outcome == "unknown":
        raise EpisodeError("not marked; say what came of it with `world-gymnast episodes mark`")
    success, captured = episode.outcome.outcome == "success", first_picture(episode)
    if held is not None:
        with whole(held) as partial, partial.open("wb") as stream:
            np.savez(stream, frames=episode.frames, deltas=episode.actions, states=episode.target_states,
                     success=success, instruction=np.array(episode.instruction), captured=captured)
    return Episode(episode.frames, episode.actions, episode.target_states, episode.instruction, folder.name,
                   success=success, captured=captured)
