"""`RemoteJudge`: any OpenAI-compatible server as a judge.

Where the server gives log-probabilities, they are read as VLMJudge reads them. Where it does not (many ignore what was
asked for and answer 200), the answers are votes: several of one request where it honours `n`, of separate requests
otherwise. What was honoured is learned from what comes back, never assumed.

A server that hangs, dies, refuses or answers garbage gives *no verdict*, which is counted: never a failure, never a
success.
"""
from __future__ import annotations

import dataclasses
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from world_gymnast_ros.config import number
from world_gymnast_ros.errors import BadFrame, BadInstruction, RemoteModelError
from world_gymnast_ros.models.judges.asking import AskConfig, AskedJudge, logits_of, no_verdicts
from world_gymnast_ros.serving.exchange import is_address
from world_gymnast_ros.serving.openai_client import Answer, Choice, OpenAIClient, Question, user_message
from world_gymnast_ros.types import F32, F64, U8, Judgement, RolloutFacts

TOP = 20
"""Log-probabilities asked for, for each token: as many as most servers give at most."""
PRIOR = 0.5
"""Added to the votes of each label (Jeffreys): five of five are no certainty."""


@dataclass(frozen=True)
class RemoteConfig(AskConfig):
    """Settings of a RemoteJudge."""

    model_type: ClassVar[str] = "remote_judge"
    votes: int = number(5, 1, 64, "answers for each rollout, where the server gives no log-probabilities")
    temperature: float = number(1.0, 0.0, 2.0, "of the votes; near 0 they are one vote many times")
    max_tokens: int = number(16, 1, 8192, "of an answer; a model that reasons aloud first needs hundreds")
    timeout_s: float = number(60.0, 0.01, 3600.0, "for one question with all its tries")
    retries: int = number(3, 0, 100, "further tries, after growing pauses")
    concurrency: int = number(4, 1, 256, "questions open at once")


@dataclass(frozen=True)
class Read:
    """What came of one rollout: log-probabilities float64 (labels,), or None and why; the votes, 1 for success."""

    logs: F64 | None
    why: str = ""
    votes: tuple[float, ...] = ()


class RemoteJudge(AskedJudge[RemoteConfig]):
    """Implements `types.Judge`."""

    def __init__(self, config: RemoteConfig, environment: Mapping[str, str] | None = None) -> None:
        """Nothing is sent yet. Raises BadConfig for an address that cannot be one."""
        self.config = config
        self.client = OpenAIClient(config.model, timeout_s=config.timeout_s, retries=config.retries,
                                   concurrency=config.concurrency,
                                   environment=os.environ if environment is None else environment)
        self.name = config.name or self.client.name
        self._lock = threading.Lock()
        self._gives_logs: bool | None = None
        self._gives_many: bool | None = None
        self._judged, self._without = 0, 0

    @classmethod
    def from_pretrained(cls, where: str | Path, environment: Mapping[str, str] | None = None, **settings: Any) -> Self:
        """Make one of an address, http(s)://HOST:PORT/v1#MODEL, or of a judge's folder (`RemoteConfig.save`)."""
        config = RemoteConfig(model=str(where)) if is_address(where) else RemoteConfig.read(Path(where))
        return cls(dataclasses.replace(config, **settings), environment)

    @property
    def spent(self) -> str:
        """What was asked and used so far, in words; the key is not in it."""
        with self._lock:
            counts = f"{self._without} of {self._judged} rollouts without a verdict"
        return f"{self.name}: {counts}; {self.client.cost}"

    def success_logits(self, frames: U8, instruction: str) -> F32:
        """Return uncalibrated logits float32 (G,) of success; NaN where there is no verdict."""
        return logits_of([read.logs for read in self._asked(frames, instruction)])

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts uint8 (G, T+1, H, W, 3) by their frames alone.

        Whatever goes wrong at the server or on the way becomes *no verdict*, with the reason. A bad instruction or
        frame array is the caller's mistake and is raised.
        """
        try:
            asked = self._asked(frames, instruction)
        except (BadInstruction, BadFrame):
            raise
        except Exception as error:  # none may turn into a score
            return no_verdicts(len(frames), f"{self.name}: {type(error).__name__}: {error}")
        return [Judgement(None, detail=f"{self.name}: {read.why}", votes=read.votes) if read.logs is None else
                self.config.judge(read.logs, read.why, read.votes) for read in asked]

    def _asked(self, rollouts: U8, instruction: str) -> list[Read]:
        frames, labels = self.config.pick(rollouts), self.config.labels(instruction)
        text = self.config.prompt(instruction, frames.shape[1])
        c = self.config
        once = [Question([user_message(text, list(rollout))], c.max_tokens, c.temperature) for rollout in frames]
        with self._lock:
            votes_only = self._gives_logs is False
        found = self._votes(once, labels, [[] for _ in once]) if votes_only else self._first(once, labels)
        with self._lock:
            self._judged += len(found)
            self._without += sum(read.logs is None for read in found)
        return found

    def _first(self, once: Sequence[Question], labels: Sequence[str]) -> list[Read]:
        """Ask for log-probabilities; where only texts come back, they are first votes, and the others are fetched."""
        answers = self.client.ask_all([replace(q, top_logprobs=TOP) for q in once])
        logs = [None if isinstance(a, RemoteModelError) else label_logs(a.choices[0], labels) for a in answers]
        with self._lock:
            if any(row is not None for row in logs):
                self._gives_logs = True
            elif any(isinstance(a, Answer) and not a.choices[0].tokens for a in answers):
                self._gives_logs = False
        out = [Read(row) for row in logs]
        rest = [i for i, row in enumerate(logs) if row is None and isinstance(answers[i], Answer)]
        first = [list(a.choices) if isinstance(a, Answer) else [] for a in answers]
        for i, read in zip(rest, self._votes([once[i] for i in rest], labels, [first[i] for i in rest]), strict=True):
            out[i] = read
        return [Read(None, str(a)) if isinstance(a, RemoteModelError) else read
                for a, read in zip(answers, out, strict=True)]

    def _votes(self, once: Sequence[Question], labels: Sequence[str], had: Sequence[Sequence[Choice]]) -> list[Read]:
        """Return what the votes on each rollout say; `had` are those that are there already."""
        wanted = self.config.votes
        choices = [list(some)[:wanted] for some in had]
        why = [""] * len(once)
        for together in (True, False):  # several of one request, then what is missing one by one
            if together and self._gives_many is False:
                continue
            asks = [(i, n) for i, some in enumerate(choices) if not why[i] and (lack := wanted - len(some))
                    for n in ([lack] if together else [1] * lack)]
            answers = self.client.ask_all([replace(once[i], answers=n) for i, n in asks])
            for (i, n), answer in zip(asks, answers, strict=True):
                if isinstance(answer, RemoteModelError):
                    why[i] = why[i] or str(answer)
                    continue
                choices[i] += answer.choices[:n]
                if n > 1:
                    with self._lock:
                        self._gives_many = len(answer.choices) > 1
        return [self._counted(some, labels, said) for some, said in zip(choices, why, strict=True)]

    def _counted(self, choices: Sequence[Choice], labels: Sequence[str], why: str) -> Read:
        """Return the votes as log-probabilities; None where too few can be read."""
        marks = [mark for c in choices if (mark := read_label(c.text, labels)) is not None]
        done = 0 if len(labels) == 2 else len(labels) - 1
        votes = tuple(float(mark == done) for mark in marks)
        needed = self.config.votes // 2 + 1
        if len(marks) < needed:
            said = f", such as {choices[0].text[:60]!r}" if choices and not marks else ""
            cut = " (cut off; raise max_tokens)" if any(c.cut for c in choices) else ""
            return Read(None, f"{len(marks)} of {self.config.votes} answers could be read as one of "
                        f"{', '.join(labels)}, {needed} are needed{said}{cut}{'; ' + why if why else ''}", votes)
        count = np.bincount(marks, minlength=len(labels)) + PRIOR
        return Read(np.log(count / count.sum()), f"{len(marks)} votes", votes)


def read_label(answer: str, labels: Sequence[str]) -> int | None:
    """Return which label a text answers with; None where it is not clear.

    A label counts at the beginning of the first or last line, or behind "answer" there, where that line holds no other
    label; or as the only one that occurs at all. One-letter labels must stand alone or before a mark ("B", "B. ..."):
    "A" is also a word.
    """
    either = "|".join(re.escape(label) for label in labels)
    letters = all(len(label) == 1 for label in labels)
    behind, flags = (r"\s*(?:[.):,*]|$)", 0) if letters else (r"\b", re.IGNORECASE)
    lines = [line for raw in answer.splitlines() if (line := raw.strip(" \t*_`\"'>#"))]
    for line in (lines[0], lines[-1]) if lines else ():
        found = re.match(rf"(?:.*\b[Aa]nswer\b\W*(?:is\b)?\W*)?({either}){behind}", line, flags)
        if found and (letters or _only(either, line) is not None):
            return _index(found[1], labels)
    word = None if letters else _only(either, answer)
    return None if word is None else _index(word, labels)


def _only(either: str, text: str) -> str | None:
    """Return the one label that a text holds; None where it holds several, or none."""
    seen = {word.lower() for word in re.findall(rf"\b({either})\b", text, re.IGNORECASE)}
    return seen.pop() if len(seen) == 1 else None


def _index(word: str, labels: Sequence[str]) -> int:
    return [label.lower() for label in labels].index(word.lower())


def label_logs(choice: Choice, labels: Sequence[str]) -> F64 | None:
    """Return log-probabilities float64 (labels,) of the first token that says anything, where that token answers: the
    labels have more than half of its probability. None otherwise, and where the server gave none.

    A label that is not listed gets what the listed ones leave it at most: the smaller of the rest and of the least.
    """
    for token in choice.tokens:
        found = [[p for text, p in token.items() if _begins(text, label, labels)] for label in labels]
        share = sum(math.exp(p) for some in found for p in some)
        if share > 0.5:
            rest = max(1e-9, 1.0 - sum(math.exp(p) for p in token.values()))
            least = math.log(min(rest, *(math.exp(p) for p in token.values())))
            return np.array([float(np.logaddexp.reduce(some)) if some else max(least, -20.0) for some in found])
        if any(letter.isalnum() for letter in max(token, key=lambda text: token[text], default="")):
            return None  # the model says something else first
    return None


def _begins(token: str, label: str, labels: Sequence[str]) -> bool:
    """Tell whether a token is a label or a beginning of it that no other label shares ("Yes", " yes", "Y")."""
    exact = all(len(other) == 1 for other in labels)
    word = token.strip() if exact else token.strip().lower()
    fits = [other for other in labels if word and (other if exact else other.lower()).startswith(word)]
    return fits == [label]
