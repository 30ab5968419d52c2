"""Several judges must agree on a success."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.types import SUCCESS_THRESHOLD, U8, Counts, Judge, Judgement, RolloutFacts


@dataclass(frozen=True)
class Consensus:
    """Asks every judge; a success needs all, and where one has no verdict there is none. Implements `types.Judge`.

    The score is the lowest one, and so are the scores of frames where all give them; a rollout is done when the last
    one says so. `progress` is that of the last judge in the list that gives it. `members` holds each judge's score;
    what a judge votes within itself stays its own.
    """

    judges: tuple[Judge, ...]

    def __post_init__(self) -> None:
        names = [judge.name for judge in self.judges]
        if not names or len(set(names)) != len(names):
            raise BadConfig(f"a consensus needs judges of different names, got {names or 'none'}; one judge asked "
                            "twice is one judge")

    @property
    def name(self) -> str:
        return "+".join(judge.name for judge in self.judges)

    @property
    def spent(self) -> str:
        """What those of its judges that count have used, in words."""
        return "; ".join(j.spent for j in self.judges if isinstance(j, Counts) and j.spent)

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts uint8 (G, T+1, H, W, 3); every judge is asked about every rollout."""
        verdicts = [judge.score(frames, instruction, facts) for judge in self.judges]
        names = [judge.name for judge in self.judges]
        return [combine(names, opinions) for opinions in zip(*verdicts, strict=True)]

    def confirm(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts where only a yes or no is wanted: each judge, in order, about what all before it called a
        success. Put the cheap judges first."""
        out: list[Judgement] = [Judgement(None)] * len(frames)
        rows = np.arange(len(frames))
        opinions: list[list[Judgement]] = [[] for _ in rows]
        for n, judge in enumerate(self.judges):
            some = None if facts is None else facts.rows(rows)
            for i, verdict in zip(rows, judge.score(frames[rows], instruction, some), strict=True):
                opinions[i].append(verdict)
                out[i] = combine([j.name for j in self.judges[:n + 1]], opinions[i])
            rows = np.array([i for i in rows if (out[i].score or 0.0) > SUCCESS_THRESHOLD], np.int64)
            if not len(rows):
                break
        return out


def combine(names: Sequence[str], opinions: Sequence[Judgement]) -> Judgement:
    """Return the judgement that all named judges stand behind."""
    members = tuple((name, opinion.score) for name, opinion in zip(names, opinions, strict=True))
    frame_scores = [o.frame_scores for o in opinions if o.frame_scores is not None]
    for name, opinion in zip(names, opinions, strict=True):
        if opinion.score is None:
            return Judgement(None, detail=f"{name}: {opinion.detail or 'no verdict'}", members=members,
                             frame_scores=frame_scores[0] if frame_scores else None)
    if len(opinions) == 1:
        return replace(opinions[0], members=members)
    done = [o.done_at for o in opinions if o.done_at is not None]
    same = len({len(f) for f in frame_scores}) == 1
    progress = [o.progress for o in opinions if o.progress is not None]
    return Judgement(score=min(score for _, score in members if score is not None),
                     done_at=max(done) if len(done) == len(opinions) else None,
                     frame_scores=np.min(frame_scores, axis=0) if same else frame_scores[0] if frame_scores else None,
                     progress=progress[-1] if progress else None, members=members)
