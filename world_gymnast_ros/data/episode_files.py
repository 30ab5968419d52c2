"""A real episode: what the arm did, what the camera saw, what came of it; and files of them.

Whoever closes the loop gets episodes from an environment (robot or twin) and keeps them in files of the play-data
format (`docs/data.md`): one array per key, a row per episode, shorter episodes padded with their last frame.
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.types import F32, U8, Frame, Start

WORDS = "U256"


@dataclass(frozen=True)
class Episode:
    """One episode of T actions; row t of `deltas` was taken at frame t.

    `frames` uint8 (T+1, H, W, 3), as the models draw them; `captured` uint8 (H', W', 3), the first frame as the camera
    gave it; `deltas` float32 (T, 7), what the arm was told; `states` float32 (T+1, 7), the target before the first and
    after each action; `measured` float32 (T+1, 7), where the arm was. `success` None: nobody has said. `done_step`: the
    frame at which success came, None where only the outcome is known. `ended_by`: time, done, fault or stopped.
    `truth`: arrays that only a simulator knows, under the keys of the play-data format.
    """

    instruction: str
    frames: U8
    captured: U8
    deltas: F32
    states: F32
    measured: F32
    success: bool | None = None
    done_step: int | None = None
    ended_by: str = "time"
    reason: str = ""
    adapter: str = "base"
    behaviour: str = "policy"
    seed: int = 0
    truth: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The number of actions T."""
        return len(self.deltas)

    def __post_init__(self) -> None:
        n = len(self.deltas)
        if n < 1 or any(len(v) != n + 1 for v in (self.frames, self.states, self.measured)):
            raise EpisodeError(f"an episode of {n} actions needs at least one, and a frame, a target and a measured "
                               f"state more; got {len(self.frames)}, {len(self.states)} and {len(self.measured)}")


_PER_FRAME = ("frames", "states", "measured", "objects_xyz")
_TAIL = ("alt_success",)
"""Of `truth`, arrays (A, T+1)."""


def row_of(episode: Episode, steps: int) -> dict[str, NDArray[Any]]:
    """Return the episode as a row of the play-data format, padded to `steps` actions. EpisodeError without outcome."""
    if episode.success is None:
        raise EpisodeError("an episode whose outcome nobody has said cannot be learned from; mark it first")
    n = episode.steps
    done = n if episode.done_step is None else episode.done_step
    success = np.arange(n + 1) >= done if episode.success else np.zeros(n + 1, bool)
    row: dict[str, NDArray[Any]] = {
        "family": np.array("other", "U16"), "scene": np.array("", "U32"), **episode.truth,
        "frames": episode.frames, "deltas": episode.deltas, "states": episode.states, "measured": episode.measured,
        "length": np.array(n, np.int32), "success": success, "captured": episode.captured,
        "instruction": np.array(episode.instruction, WORDS), "behaviour": np.array(episode.behaviour, "U16"),
        "adapter": np.array(episode.adapter, "U96"), "seed": np.array(episode.seed, np.int64)}
    if n < steps:
        for key in (*_PER_FRAME, "success"):
            if key in row:
                row[key] = np.concatenate([row[key], np.repeat(row[key][-1:], steps - n, 0)])
        row["deltas"] = np.concatenate([row["deltas"], np.zeros((steps - n, 7), np.float32)])
        for key in _TAIL:
            if key in row:
                row[key] = np.concatenate([row[key], np.repeat(row[key][:, -1:], steps - n, 1)], axis=1)
    return row


def write_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    """Write episodes of one environment as one file of play data; whole or absent."""
    steps = max(e.steps for e in episodes)
    write_rows(path, [row_of(e, steps) for e in episodes])


def write_rows(path: Path, rows: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    """Write rows of equal keys and shapes as one .npz; whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(stream, **{k: np.stack([r[k] for r in rows]) for k in rows[0]})  # type: ignore[arg-type]
    os.replace(partial, path)


_TRUTH = ("family", "scene", "camera", "object_names", "objects_xyz", "alt_instructions", "alt_success")


def read_episodes(path: Path) -> list[Episode]:
    """Read what `write_episodes` wrote. EpisodeError names a file that is none, and the remedy."""
    try:
        with np.load(path, allow_pickle=False) as data:
            rows = {k: data[k] for k in data.files}
        return [_episode(rows, i) for i in range(len(rows["length"]))]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise EpisodeError(f"{path} holds no episodes ({error}); move it away and begin the round anew") from error


def _episode(rows: Mapping[str, NDArray[Any]], i: int) -> Episode:
    n = int(rows["length"][i])
    success = rows["success"][i, :n + 1]
    truth = {k: np.asarray(rows[k][i]) for k in _TRUTH if k in rows}
    for key in ("objects_xyz",):
        if key in truth:
            truth[key] = truth[key][:n + 1]
    for key in _TAIL:
        if key in truth:
            truth[key] = truth[key][:, :n + 1]
    return Episode(
        str(rows["instruction"][i]), rows["frames"][i, :n + 1], rows["captured"][i], rows["deltas"][i, :n],
        rows["states"][i, :n + 1], rows["measured"][i, :n + 1], bool(success[n]),
        int(np.argmax(success)) if success[n] else None, adapter=str(rows["adapter"][i]),
        behaviour=str(rows["behaviour"][i]), seed=int(rows["seed"][i]), truth=truth)


def write_starts(path: Path, starts: Sequence[Start]) -> None:
    """Write captured frames of one size with the states there; whole or absent."""
    unknown = np.full(7, np.nan, np.float32)
    write_rows(path, [{"rgb": s.frame.rgb, "stamp_ns": np.array(s.frame.stamp_ns, np.int64),
                       "state": unknown if s.state is None else s.state, "instruction": np.array(s.instruction, WORDS)}
                      for s in starts])


def read_starts(path: Path) -> list[Start]:
    """Read what `write_starts` wrote. EpisodeError names a file that is none, and the remedy."""
    try:
        with np.load(path, allow_pickle=False) as data:
            rows = {k: data[k] for k in ("rgb", "stamp_ns", "state", "instruction")}
    except (OSError, ValueError, KeyError) as error:
        raise EpisodeError(f"{path} holds no captured frames ({error}); move it away and capture anew") from error
    return [Start(Frame(rgb, int(stamp)), None if np.isnan(state).any() else state, str(words))
            for rgb, stamp, state, words in zip(*(rows[k] for k in ("rgb", "stamp_ns", "state", "instruction")),
                                                strict=True)]
