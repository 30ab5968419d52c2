"""Several judges must agree on a success."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.types import (
    I64,
    SUCCESS_THRESHOLD,
    U8,
    Counts,
    Judge,
    Judgement,
    RolloutFacts,
    TakesPartialCredit,
    looked_at,
)

SURE_FAILURE = 1e-3
"""A rollout that one judge scores no higher has failed, whatever the others say."""


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

    def looks_at(self, frames: int) -> list[int]:
        """Return which of the so many frames of a rollout any of its judges looks at."""
        return sorted({t for judge in self.judges for t in looked_at(judge, frames)})

    def take_partial_credit(self, sentences: Mapping[str, str]) -> tuple[str, ...]:
        """Have those of its judges that are asked in words ask with the sentence of each instruction that says what
        counts as half done; return their names."""
        return tuple(name for judge in self.judges if isinstance(judge, TakesPartialCredit)
                     for name in judge.take_partial_credit(sentences))

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts uint8 (G, T+1, H, W, 3); every judge is asked about every rollout."""
        verdicts = [judge.score(frames, instruction, facts) for judge in self.judges]
        names = [judge.name for judge in self.judges]
        return [combine(names, opinions) for opinions in zip(*verdicts, strict=True)]

    def confirm(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts where only a yes or no is wanted: each judge about what all before it called a success, those
        first that read no frames, then the others in their order. Put the cheap judges first."""
        asked = _Asked(self.judges, frames, instruction, facts)
        for n in sorted(range(len(self.judges)), key=lambda n: reads_frames(self.judges[n])):
            asked.ask(n, asked.above(SUCCESS_THRESHOLD))
        return asked.verdicts()

    def grade(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts as `score` does, but for how sure a failure is below SURE_FAILURE: judges that read frames are
        not asked about what a judge that reads none is sure is a failure.

        The last judge is asked about all of them: where it gives progress, that is what counts.
        """
        asked = _Asked(self.judges, frames, instruction, facts)
        reading = [n for n, judge in enumerate(self.judges) if reads_frames(judge)]
        for n in range(len(self.judges)):
            if n not in reading:
                asked.ask(n, asked.every)
        some = asked.above(SURE_FAILURE)
        for n in reading:
            asked.ask(n, asked.every if n == len(self.judges) - 1 else some)
        return asked.verdicts()


class _Asked:
    """What each of several judges said about those of G rollouts that it was asked about."""

    def __init__(self, judges: Sequence[Judge], frames: U8, instruction: str, facts: RolloutFacts | None) -> None:
        self.judges, self.frames, self.instruction, self.facts = judges, frames, instruction, facts
        self.every = np.arange(len(frames))
        self.opinions: list[dict[int, Judgement]] = [{} for _ in frames]

    def ask(self, n: int, rows: I64) -> None:
        """Ask judge `n` about the rollouts `rows`, indices."""
        if not len(rows):
            return
        whole = len(rows) == len(self.frames)
        facts = self.facts if whole or self.facts is None else self.facts.rows(rows)
        frames = self.frames if whole else self.frames[rows]
        for i, verdict in zip(rows, self.judges[n].score(frames, self.instruction, facts), strict=True):
            self.opinions[i][n] = verdict

    def above(self, score: float) -> I64:
        """Return the rollouts that everybody asked so far scored higher than that; no verdict is no such score."""
        return np.array([i for i, given in enumerate(self.opinions)
                         if all((o.score or 0.0) > score for o in given.values())], np.int64)

    def verdicts(self) -> list[Judgement]:
        """Return what those who were asked stand behind together, for each rollout."""
        return [combine([self.judges[n].name for n in sorted(given)], [given[n] for n in sorted(given)])
                for given in self.opinions]


def reads_frames(judge: Judge) -> bool:
    """Tell whether a judge reads frames, which is what costs; one that judges by the facts says so."""
    return bool(getattr(judge, "reads_frames", True))


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
