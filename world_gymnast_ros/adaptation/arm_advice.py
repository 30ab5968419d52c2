"""The one line that a session ends with: may the arm move with what it made? Yes, no, or not shown, because ...

Page, console and node say the same line. It rests on this session's own evidence and, where somebody ran true episodes
afterwards, on those: what truly happened outweighs what was imagined.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from world_gymnast_ros.adaptation.log import AdaptReport
from world_gymnast_ros.adaptation.trust import Known, Trust
from world_gymnast_ros.statistics import ABRow


class Answer(str, Enum):
    """May the arm move with what the session made?"""

    YES = "yes"
    NO = "no"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Advice:
    """The answer and its reason. `contradicted`: true episodes do not bear out what the promotion test was sure of."""

    answer: Answer
    because: str
    contradicted: bool = False

    @property
    def line(self) -> str:
        return f"let the arm move: {self.answer.value}, because {self.because}"


@dataclass(frozen=True)
class Evidence:
    """What a session knows at its end.

    `promoted`: an adapter passed the promotion test, stored or not. `decided`: that test had enough verdicts, or was
    not needed. `evidence`: what was found, in words. `starved`: how far the session fell short for want of time, or ''.
    `sure_of`: the gain in imagined success that the test was sure of, None where it was not reached. `doubts`: why the
    dream may not be believed, by task; empty where it may.
    """

    promoted: bool
    decided: bool
    evidence: str
    starved: str
    sure_of: float | None
    doubts: tuple[str, ...]


def evidence_of(report: AdaptReport, trusts: Sequence[Trust]) -> Evidence:
    """Return what a finished session and the trust in its dream come to."""
    promotion = report.promotion
    told = report.message if promotion is None else promotion.evidence
    return Evidence(report.outcome.better, report.judged and (promotion is None or promotion.decided),
                    told, report.starved, None if promotion is None else promotion.lower_bound,
                    tuple(t.because for t in trusts if t.known is not Known.YES))


def advise(found: Evidence, truth: ABRow | None = None) -> Advice:
    """Return the line of a session; `truth`: true episodes before and after, of what the session left behind."""
    starved = f"the session was starved ({found.starved}); " if found.starved else ""
    if found.promoted and truth is not None:
        return _advise_truth(found, truth, starved)
    if starved:
        return Advice(Answer.NOT_SHOWN, starved + found.evidence)
    if not found.decided:
        return Advice(Answer.NOT_SHOWN, found.evidence)
    if found.doubts:
        return Advice(Answer.NOT_SHOWN, f"{found.doubts[0]}; in the dream: {found.evidence}")
    if not found.promoted:
        return Advice(Answer.NO, f"nothing was promoted: {found.evidence}")
    return Advice(Answer.YES, f"{found.evidence}; how much better the arm itself does is not known before it is tried")


def _advise_truth(found: Evidence, truth: ABRow, starved: str) -> Advice:
    gain = truth.difference
    told = (f"{truth.before.n} true episodes each say {round(truth.before.value * truth.before.n)} before and "
            f"{round(truth.after.value * truth.after.n)} after: a gain of {100 * gain.value:+.0f} points "
            f"[{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]")
    short = found.sure_of is not None and gain.value < found.sure_of
    if found.sure_of is not None:
        told += f"; in the dream the promotion test was sure of at least {100 * found.sure_of:+.0f}"
    if gain.low > 0:
        return Advice(Answer.YES, starved + told)
    return Advice(Answer.NO if gain.high <= 0 else Answer.NOT_SHOWN, starved + told, contradicted=short)
