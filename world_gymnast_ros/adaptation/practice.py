"""Where training rollouts begin: captured frames by turns, and beside them what only practice uses.

Held-out rollouts, and with them selection and promotion test, begin at captured frames alone. Practice may also begin

- along the way: at frames of recordings in the same scene, near the success first and further back as success comes, so
  that a policy which never succeeds from the captured frame still finds reward (a reverse curriculum, as in
  arXiv:1707.05300, with recorded states in the place of a simulator's);
- at captured frames with other light, colours, or objects beside the task's own;
- at frames of earlier scenes, so that what the policy could do there is not lost.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from world_gymnast_ros.types import Judgement, Start

MOVE_BACK_AT = 0.5
"""Success of a group above which the curriculum begins further from the end."""
NEAREST_SHARE = 0.25
"""Share of the longest way that the curriculum begins within."""
FURTHER = 1.5
"""Factor by which it then moves back."""


@dataclass(frozen=True)
class AlongStart:
    """A frame of a recording to begin at. `steps_left`: actions from there to the recording's success, or to its end
    where it did not succeed."""

    start: Start
    steps_left: int


@dataclass(frozen=True)
class VariedStart:
    """A start that was made of a captured one, and in words how: what was done to it, or what an editor was asked for.
    """

    start: Start
    how: str


@dataclass(frozen=True)
class Practice:
    """Starts that training uses beside the captured ones: `along` the way, `varied` and `edited` ones, and of earlier
    scenes (`replay`). `notes`: what was made, and what was left out and why, for the report."""

    along: tuple[AlongStart, ...] = ()
    varied: tuple[VariedStart, ...] = ()
    replay: tuple[Start, ...] = ()
    notes: tuple[str, ...] = ()
    edited: tuple[VariedStart, ...] = ()

    def beside(self, instruction: str) -> list[Start]:
        """Return the varied and the edited starts of an instruction."""
        return [v.start for v in (*self.varied, *self.edited) if v.start.instruction == instruction]


def what_is_used(used: int, dropped: Mapping[str, int], kind: str) -> str:
    """Say how many starts of a kind are used, and why others are not, with counts."""
    why = "; ".join(f"{count}: {reason}" for reason, count in dropped.items())
    return f"{used} of {used + sum(dropped.values())} {kind} are used" + (f"; dropped {why}" if why else "")


def no_verdict(verdict: Judgement) -> str:
    """Return why judges gave none, without what differs from start to start (figures in brackets, the remedy)."""
    return re.split(r" \(|;", verdict.detail)[0] or "no verdict"


def by_turns(starts: Sequence[Start]) -> tuple[Start, ...]:
    """Return the starts so ordered that instructions take turns; where one has fewer, its starts come again."""
    mine: dict[str, list[Start]] = {}
    for start in starts:
        mine.setdefault(start.instruction, []).append(start)
    most = max(map(len, mine.values()), default=0)
    return tuple(some[i % len(some)] for i in range(most) for some in mine.values())


class Curriculum:
    """Starts along the way of one instruction: those within `reach` actions of the end are practised on."""

    def __init__(self, along: Sequence[AlongStart]) -> None:
        """`along` has at least one start."""
        self.along = sorted(along, key=lambda a: a.steps_left)
        self.longest = self.along[-1].steps_left
        self.reach = max(self.along[0].steps_left, round(NEAREST_SHARE * self.longest))
        self.finished = False
        """Whether it succeeds from the very beginning of the recordings; then only captured frames are practised on."""

    def draw(self, seed: int) -> Start:
        """Return one of the starts in the further half of what is within reach."""
        near = [a for a in self.along if a.steps_left <= self.reach]
        further = near[len(near) // 2:]
        return further[int(np.random.default_rng(seed).integers(len(further)))].start

    def note(self, success: float) -> None:
        """Take in the success 0..1 of a group that began at what was drawn."""
        if success < MOVE_BACK_AT:
            return
        self.finished |= self.reach >= self.longest
        self.reach = min(self.longest, max(self.reach + 1, round(FURTHER * self.reach)))


def curricula(along: Sequence[AlongStart]) -> dict[str, Curriculum]:
    """Return a curriculum for each instruction that has starts along the way."""
    instructions = dict.fromkeys(a.start.instruction for a in along)
    return {i: Curriculum([a for a in along if a.start.instruction == i]) for i in instructions}
