"""Print how a long training goes: a line every few seconds, readable in a log file too."""
from __future__ import annotations

import time


class ProgressLine:
    """Prints `name step/total, seconds per step, time left, note` at most every `every_s` seconds."""

    def __init__(self, name: str, total: int, every_s: float = 15.0) -> None:
        self.name, self.total, self.every_s = name, total, every_s
        self.began = self.printed = time.monotonic()

    def tell(self, step: int, note: str) -> None:
        """Report that `step` steps are done."""
        now = time.monotonic()
        if now - self.printed < self.every_s and step < self.total:
            return
        self.printed = now
        pace = (now - self.began) / max(1, step)
        left_min = pace * (self.total - step) / 60
        print(f"{self.name} {step}/{self.total}  {pace:.3f} s per step  {left_min:.1f} min left  {note}", flush=True)
