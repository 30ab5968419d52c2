"""True episodes of known outcome as the world-model update reads them: play-data files, and what the recorder wrote.

Recordings are decoded once: pictures, resized, and actions lie in a cache file afterwards, named by the hash of the
recording, so a resumed or repeated update does not decode them again.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from world_gymnast_ros.data.play_data import PlayEpisode, play_things
from world_gymnast_ros.episodes.files import MCAP_NAME, OUTCOME_NAME, PARTIAL_SUFFIX, STEPS_NAME
from world_gymnast_ros.episodes.reader import first_picture, read_episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.evaluation.replay import RealEpisode
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.store import file_sha256
from world_gymnast_ros.twin.tasks import family_of

MIN_STEPS = 8
"""Shorter recordings hold no clip to train on."""
_PLAY = ("frames", "deltas", "states", "length", "family", "instruction", "success")


def read_real(folders: Sequence[Path], size_px: int, cache: Path | None = None, min_steps: int = MIN_STEPS
              ) -> tuple[list[RealEpisode], dict[str, str], list[str]]:
    """Read all play-data files (*.npz) and recorded episodes under `folders`.

    A recording's own folder may be named too. Returns the episodes, SHA-256 of every file they came from, and why
    recordings were left out (not marked, never finished, broken, shorter than `min_steps` actions). `cache`: folder for
    decoded recordings. EpisodeError where a folder is missing or nothing is left.
    """
    episodes: list[RealEpisode] = []
    hashes: dict[str, str] = {}
    left_out: list[str] = []
    for folder in folders:
        if not folder.exists():
            raise EpisodeError(f"{folder} does not exist; name folders of recordings or of play data (*.npz)")
        files = [folder] if folder.suffix == ".npz" else sorted(folder.glob("*.npz"))
        for path in files:
            episodes += play_file(path)
            hashes[f"{path.parent.name}/{path.name}"] = file_sha256(path)
        one = [folder] if (folder / MCAP_NAME).is_file() else []
        for path in one or (sorted(p.parent for p in folder.glob(f"*/{MCAP_NAME}")) if folder.is_dir() else ()):
            try:
                episode = recording(path, size_px, cache)
                if episode.play.steps < min_steps:
                    raise EpisodeError(f"{episode.play.steps} actions, at least {min_steps} are needed")
                episodes.append(episode)
                hashes[path.name] = recording_hash(path)
            except (EpisodeError, OSError) as error:
                left_out.append(f"{path.name}: {error}")
    if not episodes:
        why = f"; left out: {'; '.join(left_out[:3])}" if left_out else ""
        raise EpisodeError(f"no play data (*.npz) and no finished, marked recording in "
                           f"{', '.join(map(str, folders)) or 'no folder'}{why}")
    return episodes, hashes, left_out


def play_file(path: Path) -> list[RealEpisode]:
    """Return the episodes of one play-data file, with tip and named object where the file holds them."""
    try:
        with np.load(path, allow_pickle=False) as data:
            rows = {k: data[k] for k in _PLAY}
            more = {k: data[k] for k in ("measured", "object_names", "objects_xyz", "camera", "captured")
                    if k in data.files}
            things = play_things(data)
    except (OSError, ValueError, KeyError) as error:
        raise EpisodeError(f"{path} is not play data ({error}); make some with `world-gymnast twin play`") from error
    out = []
    for i, n in enumerate(rows["length"].tolist()):
        words = str(rows["instruction"][i])
        tip = more["measured"][i, :n + 1, :3] if "measured" in more else None
        named = [k for k, name in enumerate(more["object_names"][i]) if name and str(name) in words] \
            if "object_names" in more else []
        named.sort(key=lambda k: words.find(str(more["object_names"][i][k])))
        thing = more["objects_xyz"][i, :n + 1, named[0]] if named else None
        play = PlayEpisode(rows["frames"][i, :n + 1], rows["deltas"][i, :n], rows["states"][i, :n + 1],
                           str(rows["family"][i]), f"{path.stem}/{i}", more["camera"][i] if "camera" in more else None,
                           things[i], more["captured"][i] if "captured" in more else None)
        success = rows["success"][i, :n + 1]
        out.append(RealEpisode(play, words, bool(success[n]), tip, thing, int(np.argmax(success)) if success[n] else
                               None))
    return out


def recording_hash(folder: Path) -> str:
    """Return one SHA-256 over what the recorder wrote and what was marked since."""
    digest = hashlib.sha256()
    for name in (MCAP_NAME, STEPS_NAME, OUTCOME_NAME):
        digest.update(file_sha256(folder / name).encode())
    return digest.hexdigest()


def recording(folder: Path, size_px: int, cache: Path | None) -> RealEpisode:
    """Return one finished recording that somebody marked; EpisodeError says why another is not usable."""
    if folder.name.endswith(PARTIAL_SUFFIX):
        raise EpisodeError("never finished; run `world-gymnast episodes repair`")
    held = cache / f"{recording_hash(folder)[:16]}-{size_px}-measured.npz" if cache is not None else None
    if held is not None and held.is_file():
        with np.load(held, allow_pickle=False) as data:
            return _episode(folder.name, data["frames"], data["deltas"], data["states"], str(data["instruction"]),
                            bool(data["success"]), data["captured"], data["tip_m"])
    episode = read_episode(folder, (size_px, size_px))
    if episode.outcome.outcome == "unknown":
        raise EpisodeError("not marked; say what came of it with `world-gymnast episodes mark`")
    steps = episode.steps
    targets = bridge_state(steps.T_base_target, steps.gripper_command)
    states = np.concatenate([episode.states[:1], targets]).astype(np.float32)  # arming seeds the target as measured
    success = episode.outcome.outcome == "success"
    captured, tip_m = first_picture(episode), episode.states[:, :3]
    if held is not None:
        held.parent.mkdir(parents=True, exist_ok=True)
        partial = held.with_suffix(".partial")
        with partial.open("wb") as stream:
            np.savez(stream, frames=episode.frames, deltas=episode.actions, states=states, success=success,
                     instruction=np.array(episode.instruction), captured=captured, tip_m=tip_m)
        os.replace(partial, held)
    return _episode(folder.name, episode.frames, episode.actions, states, episode.instruction, success, captured,
                    tip_m)


def _episode(name: str, frames: np.ndarray, deltas: np.ndarray, states: np.ndarray, words: str, success: bool,
             captured: np.ndarray, tip_m: np.ndarray) -> RealEpisode:
    play = PlayEpisode(frames, deltas, states, family_of(words), name, captured=captured)
    return RealEpisode(play, words, success, tip_m)
