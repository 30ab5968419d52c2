"""Frames of imagined rollouts, which a latent world model decodes once somebody looks at them.

The policy looks at one frame of a chunk, a judge that is asked in words at a few of a rollout, the report at five. What
nobody looks at is drawn (`types.DrawsLatents`) and never decoded.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from world_gymnast_ros.errors import BadFrame
from world_gymnast_ros.types import F32, I64, U8, DrawsLatents, Judge, RolloutBatch, WorldModel, looked_at

MOST_AT_ONCE = 64
"""Frames that are decoded together."""


class LateFrames:
    """Frames uint8 (G, T+1, H, W, 3) of rollouts. In the place of one that is not decoded yet stands an earlier one."""

    def __init__(self, frames: U8, rollouts: RolloutBatch, world_model: WorldModel, judge: Judge | None) -> None:
        """`frames` begin as the first one repeated. `judge`: who, beside those that ask (`show`), looks at them; None:
        somebody looks at all. Where the batch cannot draw without decoding, all are decoded at once."""
        self.frames, self.name, self.size = frames, world_model.name, world_model.frame_size
        few = judge is not None and len(looked_at(judge, frames.shape[1])) < frames.shape[1]
        self.decode = rollouts.decode if few and isinstance(rollouts, DrawsLatents) else None
        self._left: dict[tuple[int, int], Any] = {}

    def play(self, rollouts: RolloutBatch, rows: I64, first: int, deltas: F32) -> None:
        """Draw frames from `first` on of the rollouts `rows`, which the batch now holds, under actions (G, K, 7).

        The last of them is decoded, and shown from there on. BadFrame where they are not what the world model says.
        """
        last = first + deltas.shape[1] - 1
        if self.decode is not None and isinstance(rollouts, DrawsLatents):
            for i, latents in zip(rows.tolist(), rollouts.draw(deltas), strict=True):
                self._left |= {(i, first + n): latent for n, latent in enumerate(latents)}
            self.show(rows, [last])
        else:
            drawn = rollouts.play(deltas)
            self._check(drawn, (len(rows), deltas.shape[1], *self.frames.shape[2:]))
            self.frames[rows, first:last + 1] = drawn
        self.frames[rows, last + 1:] = self.frames[rows, last][:, None]

    def show(self, rows: Sequence[int] | I64, steps: Sequence[int] | I64) -> None:
        """Decode these frames of these rollouts, indices of both, where they are not yet."""
        which = [at for at in ((int(i), int(t)) for i in rows for t in steps) if at in self._left]
        for part in (which[n:n + MOST_AT_ONCE] for n in range(0, len(which), MOST_AT_ONCE)):
            assert self.decode is not None
            drawn = self.decode([self._left.pop(at) for at in part])
            self._check(drawn, (len(part), *self.frames.shape[2:]))
            i, t = zip(*part, strict=True)
            self.frames[list(i), list(t)] = drawn

    def stand_still(self, row: int, end: int) -> None:
        """Repeat frame `end` of a rollout from there on."""
        self.show([row], [end])
        self.frames[row, end + 1:] = self.frames[row, end]
        for t in range(end + 1, self.frames.shape[1]):
            self._left.pop((row, t), None)

    def _check(self, drawn: U8, shape: tuple[int, ...]) -> None:
        if drawn.dtype != self.frames.dtype or drawn.shape != shape:
            raise BadFrame(f"world model {self.name} drew {drawn.dtype} {drawn.shape}, expected uint8 {shape}; "
                           f"its frame_size says {self.size}")
