"""Ask an image-text model what the arm might be told to do in a captured frame, and read what it answers.

Each proposal is an instruction and a sentence that says what counts as half done. Nothing here decides what is trained:
a person ticks. What cannot be used is dropped, counted, and never mended.
"""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from world_gymnast_ros.errors import RemoteModelError
from world_gymnast_ros.instructions import normalise
from world_gymnast_ros.types import U8, ImageTextModel

MAX_PROPOSALS = 20
MAX_CHARACTERS = 160
"""A sentence that is longer is no instruction for one short rollout."""
MAX_IMAGES = 4
"""So many captured frames are shown at most."""
ROUNDS = 3
"""So often the model is asked, while fewer than wanted can be used."""
MAX_BRACKETS = 400
"""Brackets of an answer that are tried as the beginning of a proposal."""

ASKED = """\
The images show what the camera of a robot arm with one gripper sees. The arm stands at a table and can reach, \
push, pick up and place single objects, open and close.
Propose {count} different instructions that this arm could carry out here within a few seconds, each about objects \
that are visible, and none that is done already.{forms}{known}
Answer with JSON alone, a list of {count} entries:
[{{"instruction": "one short sentence in the imperative", "partial_credit": "one sentence that describes what the last \
image of an attempt shows when the instruction is half done"}}]"""
NOTHING_READ = "no proposal could be read in an answer"
NO_SENTENCE = "no instruction, or no partial-credit sentence of its own"
TOO_LONG = f"longer than {MAX_CHARACTERS} characters, or more than one line"
AGAIN = "proposed before"


@dataclass(frozen=True)
class Proposal:
    """An instruction, and the sentence that says what counts as half done."""

    instruction: str
    partial_credit: str


@dataclass(frozen=True)
class Dropped:
    """A proposal, or an answer, that cannot be used: the `kind` of fault, which is counted, and the first words of it.
    """

    kind: str
    words: str


@dataclass(frozen=True)
class Proposals:
    """What came of asking a model, `by` its name. `failure`: why it could not be asked (again), or ''."""

    by: str
    usable: tuple[Proposal, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    failure: str = ""

    @property
    def summary(self) -> str:
        """What came of it, in words and counts."""
        counts = Counter(d.kind for d in self.dropped)
        why = "; ".join(f"{count}: {kind}" for kind, count in counts.items())
        return (f"{self.by} made {len(self.usable) + len(self.dropped)} proposals, {len(self.usable)} can be used"
                + (f"; dropped {why}" if why else "") + (f"; {self.failure}" if self.failure else ""))

    def without(self, bad: dict[str, Dropped]) -> Proposals:
        """Return this without the proposals of some instructions, and why."""
        return replace(self, usable=tuple(p for p in self.usable if p.instruction not in bad),
                       dropped=(*self.dropped, *bad.values()))


def question(count: int, forms: Sequence[str] = (), known: Sequence[str] = ()) -> str:
    """Return what a model is asked. `forms`: the only sentences that can be trained ("*" stands for any words); none:
    any. `known`: instructions that are there already."""
    only = f"\nOnly sentences of these forms can be used, where * stands for words of yours: {'; '.join(forms)}."
    others = f"\nNot these again: {'; '.join(known)}."
    return ASKED.format(count=count, forms=only if forms else "", known=others if known else "")


def propose(model: ImageTextModel, images: Sequence[U8], count: int, seed: int, forms: Sequence[str] = (),
            known: Sequence[str] = ()) -> Proposals:
    """Ask a model for `count` instructions for a scene, of which uint8 (H, W, 3) `images` were captured.

    Where too few can be used it is asked again, `ROUNDS` times in all; what fails (RemoteModelError) ends the asking
    and is stated in `failure`. `forms`, `known`: see `question`.
    """
    usable: list[Proposal] = []
    dropped: list[Dropped] = []
    for turn in range(ROUNDS):
        here = [*known, *(p.instruction for p in usable)]
        try:
            text = model.answer(question(count - len(usable), forms, here), images[:MAX_IMAGES], seed + turn)
        except RemoteModelError as error:
            return Proposals(model.name, tuple(usable), tuple(dropped), f"it gave no answer: {error}")
        for found in read_proposals(text, here):
            if isinstance(found, Dropped):
                dropped.append(found)
            elif len(usable) < count:
                usable.append(found)
        if len(usable) >= count:
            break
    return Proposals(model.name, tuple(usable), tuple(dropped))


def read_proposals(text: str, known: Sequence[str] = ()) -> list[Proposal | Dropped]:
    """Return what an answer proposes, whatever stands around it; what cannot be used as `Dropped`. An answer that was
    cut off gives those of its proposals that are whole."""
    seen = {normalise(words) for words in known}
    out: list[Proposal | Dropped] = []
    for entry in _entries(text):
        words, partly = (" ".join(v.split(" ")) if isinstance(v, str) else "" for v in (
            entry.get("instruction"), entry.get("partial_credit")))
        words, partly = words.strip(), partly.strip()
        fault = _fault(words, partly) or (AGAIN if normalise(words) in seen else "")
        seen.add(normalise(words))
        out.append(Dropped(fault, words[:MAX_CHARACTERS]) if fault else Proposal(words, partly))
    return out or [Dropped(NOTHING_READ, " ".join(text.split())[:60])]


def _fault(words: str, partly: str) -> str:
    """Return what is wrong with a pair of sentences, or ''."""
    if not normalise(words) or not normalise(partly) or normalise(words) == normalise(partly):
        return NO_SENTENCE
    if max(len(words), len(partly)) > MAX_CHARACTERS or not (words + partly).isprintable():
        return TOO_LONG
    return ""


def _entries(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a text that name an instruction, however deep they lie."""
    decoder, at = json.JSONDecoder(), -1
    for _ in range(MAX_BRACKETS):
        at = text.find("{", at + 1)
        if at < 0:
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if "instruction" in value:
            yield value
            at = end - 1
