"""Is the task done? A judge looks at an episode as it goes, and ends it: the termination signal that a VLA lacks.

World-Env (arXiv 2509.24948) ends episodes by its reflector, since a policy that moves on after success often undoes it.
Here the judge must be sure at several looks in a row, and no verdict never counts as done. Ending means holding the
arm, so a judge that is wrong can stop an episode, and never move anything.
"""
from __future__ import annotations

import numpy as np

from world_gymnast_ros.adaptation.rollout import judge_safely
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.types import SUCCESS_THRESHOLD, U8, Judge, Judgement


class DoneWatch:
    """One episode at a time. `frame_size` (h, w): of the frames that the judge is shown; `looks`: so many in a row must
    exceed `threshold`, strictly."""

    def __init__(self, judge: Judge, frame_size: tuple[int, int], threshold: float = SUCCESS_THRESHOLD, looks: int = 2
                 ) -> None:
        self.judge, self.frame_size, self.threshold, self.looks = judge, frame_size, threshold, looks
        self.begin("")

    def begin(self, instruction: str) -> None:
        """Forget the last episode."""
        self.instruction = instruction
        self.verdict = Judgement(None, detail="not judged")
        self.sure = 0
        """Looks in a row that said done."""
        self._frames: list[U8] = []

    def look(self, rgb: U8) -> bool:
        """Look at the next frame, uint8 (H, W, 3); return whether the task is done."""
        self._frames.append(rgb if rgb.shape[:2] == self.frame_size else resize_rgb(rgb, self.frame_size))
        self.verdict = judge_safely(self.judge, np.stack(self._frames)[None], self.instruction)[0]
        now = self.probability
        self.sure = self.sure + 1 if now is not None and now > self.threshold else 0
        return self.sure >= self.looks

    @property
    def probability(self) -> float | None:
        """Probability that the task is done at the newest frame; None where the judge has no verdict."""
        scores = self.verdict.frame_scores
        if self.verdict.score is None or scores is None:
            return self.verdict.score
        return float(scores[-1])
