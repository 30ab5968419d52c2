"""Two unlike judges must agree on a success: one looks at the dreamed pictures, the other measures."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from world_gymnast_ros.types import F64, U8, Judge, Judgement, PlacesArm, RolloutFacts


@dataclass(frozen=True)
class TwoJudges:
    """Asks both; a success needs both, and where either has no verdict there is none. Implements `types.Judge`.

    The score is the lower one, and so are the scores of frames where both give them; a rollout is done when the later
    one says so. `progress` is the measured one where there is one: it tells near misses from far ones. `votes` holds
    both scores, the looking judge's first.
    """

    looking: Judge
    measuring: Judge

    @property
    def name(self) -> str:
        return f"{self.looking.name}+{self.measuring.name}"

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts uint8 (G, T+1, H, W, 3)."""
        looked = self.looking.score(frames, instruction, facts)
        measured = self.measuring.score(frames, instruction, facts)
        return [agree(a, b, self.measuring.name) for a, b in zip(looked, measured, strict=True)]

    def arm_misplaced_px(self, frames: U8, facts: RolloutFacts) -> F64:
        """Ask the judge that measures, if it can tell; NaN otherwise."""
        if isinstance(self.measuring, PlacesArm):
            return self.measuring.arm_misplaced_px(frames, facts)
        return np.full(len(frames), np.nan)


def agree(looked: Judgement, measured: Judgement, measurer: str = "the second judge") -> Judgement:
    """Return the judgement that both stand behind."""
    if looked.score is None:
        return looked
    if measured.score is None:
        return Judgement(None, detail=f"{measurer}: {measured.detail or 'no verdict'}",
                         frame_scores=looked.frame_scores)
    both = looked.done_at is not None and measured.done_at is not None
    frames = looked.frame_scores
    if frames is not None and measured.frame_scores is not None and len(frames) == len(measured.frame_scores):
        frames = frames.clip(max=measured.frame_scores)
    return Judgement(
        score=min(looked.score, measured.score),
        done_at=max(looked.done_at or 0, measured.done_at or 0) if both else None,
        votes=(looked.score, measured.score), frame_scores=frames,
        progress=looked.progress if measured.progress is None else measured.progress)
