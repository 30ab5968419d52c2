"""Read episodes from wherever they were recorded, into one type.

    a folder of recordings       what the recorder wrote and somebody marked
    *.npz                        scripted or policy episodes of the twin (docs/reference/formats.md)
    <id>.mp4 with <id>.npz       clips in WorldGym's format
    meta/info.json               a LeRobot v3 data set
    annotation/, *.npz           what `episodes export` wrote in IRASim's and Bridge's shapes

Recordings are decoded once: frames, resized, and actions lie in a cache file afterwards, named by the hash of the
recording, so a resumed or repeated run does not decode them again.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.exported import irasim_notes, is_bridge, is_irasim, read_bridge, read_irasim
from world_gymnast_ros.data.lerobot import is_lerobot, read_lerobot
from world_gymnast_ros.data.worldgym import read_clip
from world_gymnast_ros.episodes.files import MCAP_NAME, OUTCOME_NAME, PARTIAL_SUFFIX, STEPS_NAME
from world_gymnast_ros.episodes.reader import first_image, read_episode
from world_gymnast_ros.errors import EpisodeError, WorldGymnastError
from world_gymnast_ros.files import read_npz, sha256_file, whole
from world_gymnast_ros.objects import ObjectTracks
from world_gymnast_ros.progress import shown

MIN_STEPS = 8
"""Shorter recordings hold no clip to train on."""
_ARRAYS = ("frames", "deltas", "states", "length", "family", "instruction", "success")
_OPTIONAL = ("camera", "captured", "measured", "without_arm", "adapter", "seed")

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
                  min_steps: int = MIN_STEPS, camera: str = "") -> Found:
    """Read all episodes under `folders`; a recording's own folder, or one file, may be named too.

    Left out, with the reason: recordings that nobody marked, never finished, or shorter than `min_steps` actions, and
    whatever is broken. `size_px`: square size that recordings are decoded to (others keep theirs); `cache`: folder for
    decoded recordings; `camera`: which of several. EpisodeError where a folder is missing or nothing is left.
    """
    found, folders = Found(), list(folders)
    for folder in folders:
        if not folder.exists():
            raise EpisodeError(f"{folder} does not exist; name folders of recordings, of *.npz files, of clips or of a "
                               "LeRobot data set")
        if folder.is_dir() and is_lerobot(folder):
            _add_lerobot(found, folder, camera)
        elif folder.is_dir() and is_irasim(folder):
            for path in irasim_notes(folder):
                _add(found, path.stem, partial(_one, read_irasim, path))
        elif folder.is_dir() and not (folder / MCAP_NAME).is_file():
            _add_files(found, sorted([*folder.glob("*.npz"), *folder.glob("*.mp4")]))
        elif folder.is_file():
            _add_files(found, [folder])
        one = [folder] if (folder / MCAP_NAME).is_file() else []
        paths = one or (sorted(p.parent for p in folder.glob(f"*/{MCAP_NAME}")) if folder.is_dir() else [])
        for path in shown(paths, "reading recordings", "episode"):
            def read(path: Path = path) -> list[Episode]:
                episode = recording(path, size_px, cache, camera)
                if episode.steps < min_steps:
                    raise EpisodeError(f"{episode.steps} actions, at least {min_steps} are needed")
                found.hashes[path.name] = recording_hash(path)
                return [episode]
            _add(found, path.name, read)
    if not found.episodes:
        why = f"; left out: {'; '.join(found.left_out[:3])}" if found.left_out else ""
        raise EpisodeError(f"no episode (*.npz, clips, a LeRobot data set, or a finished and marked recording) in "
                           f"{', '.join(map(str, folders)) or 'no folder'}{why}")
    return found


def _add(found: Found, name: str, read: Callable[[], list[Episode]]) -> None:
    """Add what `read` gives, or a line that says why not: one broken item does not cost the others."""
    try:
        found.episodes.extend(read())
    except (WorldGymnastError, OSError) as error:
        found.left_out.append(f"{name}: {error}")


def _one(read: Callable[[Path], Episode], path: Path) -> list[Episode]:
    return [read(path)]


def _add_files(found: Found, files: Sequence[Path]) -> None:
    """Add clips (<id>.mp4 with <id>.npz), files of arrays and our own exports of Bridge's steps."""
    videos = {f.stem for f in files if f.suffix == ".mp4"}
    for path in files:
        def read(path: Path = path) -> list[Episode]:
            if path.suffix == ".mp4":
                episodes = [read_clip(path)]
            else:
                episodes = [read_bridge(path)] if is_bridge(path) else read_arrays(path)
            found.hashes[f"{path.parent.name}/{path.name}"] = sha256_file(path)
            return episodes
        if path.suffix == ".mp4" or path.stem not in videos:
            _add(found, path.name, read)


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
            measured=own["measured"][:n + 1] if "measured" in own else None,
            without_arm=own["without_arm"][:n + 1] if "without_arm" in own else None,
            adapter=str(own.get("adapter", "")), seed=int(own.get("seed", 0))))
    return out


def read_array_folders(folders: Iterable[Path], every: int = 1, tracks: Tracks | None = None) -> list[Episode]:
    """Read every `every`-th episode of all *.npz files in `folders`; none where there is no such file."""
    return [e for d in folders for path in sorted(Path(d).glob("*.npz")) for e in read_arrays(path, tracks)[::every]]


def _add_lerobot(found: Found, folder: Path, camera: str) -> None:
    """Read a LeRobot v3 data set, which has as many frames as actions: the last action leads nowhere and is dropped."""
    for e in read_lerobot(folder, camera=camera, left_out=found.left_out):
        if len(e.actions) < 2:
            found.left_out.append(f"{folder.name}, episode {e.index}: one action; two at least are needed")
            continue
        known = e.outcome != "unknown"
        found.episodes.append(Episode(
            e.frames, e.actions[:-1], e.targets, e.task, e.recording or f"{e.index:06d}", "" if known else "clip",
            e.outcome == "success" if known else None, measured=e.measured, ended_by=e.ended_by, adapter=e.adapter))


def recording_hash(folder: Path) -> str:
    """Return one SHA-256 over what the recorder wrote and what was marked since."""
    digest = hashlib.sha256()
    for name in (MCAP_NAME, STEPS_NAME, OUTCOME_NAME):
        digest.update(sha256_file(folder / name).encode())
    return digest.hexdigest()


def recording(folder: Path, size_px: int | None, cache: Path | None, camera: str = "") -> Episode:
    """Return one finished recording that somebody marked; EpisodeError says why another is not usable."""
    if folder.name.endswith(PARTIAL_SUFFIX):
        raise EpisodeError("never finished; run `world-gymnast episodes repair`")
    held = None
    if cache is not None:
        seen = hashlib.sha256(camera.encode()).hexdigest()[:8] if camera else "only"
        held = cache / f"{recording_hash(folder)[:16]}-{size_px or 'own'}-{seen}.npz"
    if held is not None and held.is_file():
        names = ("frames", "deltas", "states", "instruction", "success", "captured")
        data = read_npz(held, names, (), "remove it, the recording is then decoded again")
        return Episode(data["frames"], data["deltas"], data["states"], str(data["instruction"]), folder.name,
                       success=bool(data["success"]), captured=data["captured"])
    episode = read_episode(folder, None if size_px is None else (size_px, size_px), camera or None)
    if episode.outcome.outcome == "unknown":
        raise EpisodeError("not marked; say what came of it with `world-gymnast episodes mark`")
    success, captured = episode.outcome.outcome == "success", first_image(episode, camera or None)
    if held is not None:
        with whole(held) as beside, beside.open("wb") as stream:
            np.savez(stream, frames=episode.frames, deltas=episode.actions, states=episode.target_states,
                     success=success, instruction=np.array(episode.instruction), captured=captured)
    return Episode(episode.frames, episode.actions, episode.target_states, episode.instruction, folder.name,
                   success=success, captured=captured)
