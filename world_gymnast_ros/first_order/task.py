"""What the comparison needs of a task: a true environment that gives small images, and what a player must know."""
from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from world_gymnast_ros.types import F64, U8


class View(Protocol):
    """What is known after a reset or a step. `hand`, `block`: where the pusher and the pushed block are, (2,), in the
    task's unit of length; `labels` (L,), about 0..1, train the encoder; `coverage` of the mark, 0..1: what policies
    are tested by."""

    @property
    def image(self) -> U8: ...

    @property
    def hand(self) -> F64: ...

    @property
    def block(self) -> F64: ...

    @property
    def labels(self) -> F64: ...

    @property
    def reward(self) -> float: ...

    @property
    def coverage(self) -> float: ...


class Task(Protocol):
    """A block is pushed to a mark by actions (2,) in -1..1: steps of the pusher in units of `reach`.

    `labels`: how many numbers a view is labelled with; `low`, `high`, `goal` (2,): the field, and the mark's middle.
    """

    name: str
    side_px: int
    labels: int
    episode_steps: int
    success_coverage: float
    reach: float
    low: F64
    high: F64
    goal: F64

    def reset(self, seed: int) -> View: ...

    def step(self, action: F64) -> View: ...


MakeTask = Callable[[], Task]
"""Makes the true environment, where one is needed at all: its package may be missing."""
