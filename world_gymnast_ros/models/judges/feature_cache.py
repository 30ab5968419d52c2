"""Features of frames that were read before: a judge is asked anew as a rollout grows, and most frames are the same."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from world_gymnast_ros.types import U8

CAPACITY = 8192
"""Features that are kept, oldest use out first: 128 MB of a trunk that is 4096 wide, 6 MB of the tiny one."""

Compute = Callable[[U8, Sequence[str]], Tensor]
"""Reads frames uint8 (B, H, W, 3) under as many instructions into features (B, F)."""


class FeatureCache:
    """Keeps one feature vector for each (frame, instruction), by the frame's content. Equal frames are read once."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.read = 0
        """Frames that had to be read so far."""
        self._kept: OrderedDict[tuple[bytes, str], Tensor] = OrderedDict()

    def clear(self) -> None:
        """Forget everything: the weights that read it have changed."""
        self._kept.clear()

    def features(self, frames: U8, texts: Sequence[str], compute: Compute) -> Tensor:
        """Return features (N, F) of frames uint8 (N, H, W, 3), each under its own instruction; only frames that are
        not known are given to `compute`, all at once."""
        keys = [(blake2b(frame.tobytes(), digest_size=16).digest(), text)
                for frame, text in zip(frames, texts, strict=True)]
        known = {key: self._kept[key] for key in keys if key in self._kept}
        new = {key: i for i, key in enumerate(keys) if key not in known}
        if new:
            rows = list(new.values())
            known |= zip(new, compute(frames[rows], [texts[i] for i in rows]), strict=True)
            self.read += len(rows)
        for key in keys:
            self._kept[key] = known[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return torch.stack([known[key] for key in keys])
