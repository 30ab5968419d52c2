"""Files of episodes and of captured frames: one array per key, a row per episode (docs/data.md); whole or absent."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.files import read_npz, whole
from world_gymnast_ros.types import Frame, Start

WORDS = "U256"
REPLAY_NAME = "replay_starts.npz"
"""First frames of what a policy was trained on, beside its weights: training elsewhere may return to them."""


def replay_starts_of(episodes: Sequence[Episode], count: int) -> list[Start]:
    """Return at most `count` first frames of episodes that succeeded, with the states there, instructions by turns."""
    mine: dict[str, list[Start]] = {}
    for e in episodes:
        states = e.states if e.measured is None else e.measured
        if e.success and e.captured is not None and states is not None:
            mine.setdefault(e.instruction, []).append(Start(Frame(e.captured, 0), states[0], e.instruction))
    most = max(map(len, mine.values()), default=0)
    return [some[i] for i in range(most) for some in mine.values() if i < len(some)][:count]


def row_of(episode: Episode, steps: int) -> dict[str, NDArray[Any]]:
    """Return the episode as a row of a file, padded to `steps` actions with its last frame.

    EpisodeError without an outcome, or without what the arm measured of itself.
    """
    if episode.success is None:
        raise EpisodeError("an episode whose outcome nobody has said cannot be learned from; mark it first")
    if episode.states is None or episode.measured is None or episode.captured is None:
        raise EpisodeError("an episode without targets, measured states and its first frame is no real one of this arm")
    n = episode.steps
    done = n if episode.done_step is None else episode.done_step
    more = {} if episode.camera is None else {"camera": episode.camera}
    return {
        "scene": np.array("", "U32"), **more,
        **{k: _frames(v, steps - n) for k, v in (("frames", episode.frames), ("states", episode.states),
                                                 ("measured", episode.measured))},
        "deltas": np.concatenate([episode.deltas, np.zeros((steps - n, 7), np.float32)]),
        "success": _frames((np.arange(n + 1) >= done) & episode.success, steps - n),
        "length": np.array(n, np.int32), "captured": episode.captured, "family": np.array(episode.task, "U64"),
        "instruction": np.array(episode.instruction, WORDS), "behaviour": np.array("policy", "U16"),
        "adapter": np.array(episode.adapter, "U96"), "seed": np.array(episode.seed, np.int64)}


def _frames(array: NDArray[Any], more: int) -> NDArray[Any]:
    return np.concatenate([array, np.repeat(array[-1:], more, 0)])


def write_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    """Write episodes of one environment as one file; whole or absent."""
    steps = max(e.steps for e in episodes)
    write_rows(path, [row_of(e, steps) for e in episodes])


def write_rows(path: Path, rows: Sequence[Mapping[str, NDArray[Any]]], compressed: bool = False) -> None:
    """Write rows of equal keys and shapes as one .npz; whole or absent."""
    with whole(path) as partial, partial.open("wb") as stream:
        save = np.savez_compressed if compressed else np.savez
        save(stream, **{k: np.stack([r[k] for r in rows]) for k in rows[0]})  # type: ignore[arg-type]


def write_starts(path: Path, starts: Sequence[Start], compressed: bool = False) -> None:
    """Write captured frames of one size with the states there; whole or absent."""
    unknown = np.full(7, np.nan, np.float32)
    write_rows(path, [{"rgb": s.frame.rgb, "stamp_ns": np.array(s.frame.stamp_ns, np.int64),
                       "state": unknown if s.state is None else s.state, "instruction": np.array(s.instruction, WORDS)}
                      for s in starts], compressed)


def read_starts(path: Path) -> list[Start]:
    """Read what `write_starts` wrote. EpisodeError names a file that is none, and the remedy."""
    names = ("rgb", "stamp_ns", "state", "instruction")
    rows = read_npz(path, names, (), "it holds no captured frames; move it away and capture anew")
    return [Start(Frame(rgb, int(stamp)), None if np.isnan(state).any() else state, str(words))
            for rgb, stamp, state, words in zip(*(rows[k] for k in names), strict=True)]
