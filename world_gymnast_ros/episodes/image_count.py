"""How many images came, how many of them were used, and why the others were not. No clock: times are arguments."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

MIN_FOR_RATE = 8
"""With fewer images, nobody knows how often the camera gives one."""


def lost_images(stamps_ns: Sequence[int]) -> int:
    """Return how many images are missing between capture times, by the median gap; 0 where too few came to tell."""
    if len(stamps_ns) < MIN_FOR_RATE:
        return 0
    gaps = np.diff(np.unique(np.asarray(stamps_ns, np.int64)))
    if len(gaps) == 0:
        return 0
    return int(np.maximum(np.rint(gaps / np.median(gaps)) - 1, 0).sum())


class ImageCount:
    """Counts images of one topic, since the node came up or since an episode began."""

    def __init__(self) -> None:
        self.used = 0
        self.refused = 0
        self.sizes: Counter[tuple[int, int]] = Counter()
        """(height, width) of those used."""
        self.refusal = ""
        """Why the newest was refused; "" where it was used."""
        self._why = ""
        self._stamps_ns: list[int] = []

    def use(self, stamp_ns: int, size: tuple[int, int]) -> None:
        """Count an image that was used."""
        self.used, self.refusal = self.used + 1, ""
        self._stamps_ns.append(stamp_ns)
        self.sizes[size] += 1

    def refuse(self, why: str) -> None:
        """Count an image that was not used."""
        self.refused, self.refusal, self._why = self.refused + 1, why, why

    def words(self) -> str:
        """Return the counts in words: what an answer says of an episode's images."""
        parts = [f"{self.used} image{'s' * (self.used != 1)} recorded"]
        lost = lost_images(self._stamps_ns)
        if lost:
            parts.append(f"about {lost} lost on the way")
        if self.refused:
            parts.append(f"{self.refused} refused ({self._why})")
        if len(self.sizes) > 1:
            sizes = ", ".join(f"{width}x{height}" for height, width in self.sizes)
            parts.append(f"of {len(self.sizes)} sizes ({sizes})")
        return ", ".join(parts)
