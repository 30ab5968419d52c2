"""Per-frame labels for the judge: done, not done, or unclear; and progress."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.data.frame_table import Episode, PlayTable
from world_gymnast_ros.types import F32


@dataclass(frozen=True)
class FrameLabels:
    """Of one episode under one instruction: `done` bool, `clear` bool (use it), `progress` 0..1, `graded` bool (use
    that), each (steps + 1,)."""

    done: NDArray[np.bool_]
    clear: NDArray[np.bool_]
    progress: F32
    graded: NDArray[np.bool_]


LabelSource = Callable[[PlayTable, Episode, str], FrameLabels]
"""Returns the labels of an episode under one of its instructions."""


def labels_by_outcome(table: PlayTable, episode: Episode, instruction: str) -> FrameLabels:
    """Return the labels of an episode of which only the outcome was marked.

    No frame of a failure shows success; the frame at which a success was noted does (the last one, unless the recording
    says which), and the first does not. What lies between, and what the arm did afterwards, is unclear.
    """
    latched = table.labels(episode, instruction)
    done = latched & (np.arange(len(latched)) == np.argmax(latched))
    first = np.arange(len(latched)) == 0
    clear = done | first if latched[-1] else np.ones(len(latched), np.bool_)
    return FrameLabels(done, clear, done.astype(np.float32), done | first)
