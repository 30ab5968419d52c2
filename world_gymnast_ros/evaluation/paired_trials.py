"""Is the adapter truly better? Pairs of true trials in random order until the answer is clear. No ROS, no twin.

Where the trials take place (arm or twin) and who says what came of them (a person, physics) is the caller's. Every
trial is on disk before the next begins, and an evaluation that was stopped goes on from there.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.evaluation.sequential_test import PairedTest
from world_gymnast_ros.statistics import newcombe_paired, wilson

POLICIES = ("base", "adapter")
DECISIONS = {"better": "the adapter is better", "worse": "the adapter is worse: keep the base",
             "unclear": "no difference could be shown within the limit: keep the base",
             "": "stopped before the answer was clear"}
LOG_NAME, RESULT_NAME = "trials.jsonl", "evaluation.json"


@dataclass(frozen=True)
class Trial:
    """One true trial. `policy` base or adapter; `pair` counts from 0, and both of a pair share their start `seed`."""

    pair: int
    policy: str
    seed: int


Outcome = Callable[[Trial], bool | None]
"""Runs one trial; True, False, or None where nobody can say (the pair is then dropped and counted)."""


class TrialLog:
    """Trials of one evaluation, a line each. `about` names what is compared; another evaluation's file is refused."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.path = folder / LOG_NAME
        self.known: dict[tuple[int, str], bool | None] = {}
        wanted = json.loads(json.dumps(dict(about)))
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is torn
            try:
                head, *rows = [json.loads(line) for line in lines] or [wanted]
                self.known = {(int(r["pair"]), str(r["policy"])): r["success"] for r in rows}
            except (ValueError, KeyError, TypeError) as error:
                raise EpisodeError(f"{self.path} is malformed ({error!r}); name another folder") from error
            if head != wanted:
                raise EpisodeError(f"{self.path} holds another evaluation ({head}, not {wanted}); name another folder")
            self.path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        if not self.path.exists() or not self.path.stat().st_size:
            self._append(wanted)

    def add(self, trial: Trial, success: bool | None) -> None:
        """Write one trial through to the disk."""
        self.known[trial.pair, trial.policy] = success
        self._append({"pair": trial.pair, "policy": trial.policy, "seed": trial.seed, "success": success})

    def _append(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


@dataclass(frozen=True)
class Verdict:
    """`decision` as `PairedTest.decision`; `dropped` pairs without two outcomes; `words` for a person."""

    decision: str
    test: PairedTest
    dropped: int

    @property
    def words(self) -> str:
        n = len(self.test.outcomes)
        if not n:
            return f"{DECISIONS['']}: no complete pair"
        a, b = (wilson(sum(pair[i] for pair in self.test.outcomes), n) for i in (0, 1))
        return (f"{DECISIONS[self.decision]}. True success over {n} pairs: base {a}, adapter {b}; difference "
                f"{self.test.difference}, bounds that hold at every look together; {self.dropped} pairs dropped")

    def as_json(self) -> dict[str, Any]:
        """Return what is stored: decision, counts, the sequence's bounds and the plain paired interval."""
        outcomes, bounds = self.test.outcomes, self.test.difference
        cells = [sum(pair == cell for pair in outcomes) for cell in ((True, True), (True, False), (False, True),
                                                                      (False, False))]
        fixed = newcombe_paired(*cells) if outcomes else None
        return {"decision": self.decision, "words": self.words, "pairs": len(outcomes), "dropped": self.dropped,
                "confidence": self.test.confidence, "limit_pairs": self.test.limit_pairs,
                "both, only base, only adapter, neither": cells,
                "difference": [bounds.value, bounds.low, bounds.high],
                "difference_if_pairs_were_fixed_before": [fixed.value, fixed.low, fixed.high] if fixed else None}


def order_of(seed: int, pair: int) -> tuple[str, str]:
    """Return which policy goes first in a pair, by lot: a person who knows would set the scene accordingly."""
    first = int(np.random.default_rng((abs(seed), pair)).integers(2))
    return (POLICIES[first], POLICIES[1 - first])


def compare(outcome: Outcome, log: TrialLog, test: PairedTest, seed: int, first_seed: int,
            after_pair: Callable[[PairedTest, int], None] = lambda test, dropped: None) -> Verdict:
    """Run pairs of trials until `test` decides. Trials that `log` knows are not run again.

    At most twice `test.limit_pairs` pairs are tried, dropped ones included. A KeyboardInterrupt of `outcome` ends the
    evaluation with what is known.
    """
    dropped = 0
    for pair in range(2 * test.limit_pairs):
        if test.decision:
            break
        done: dict[str, bool | None] = {}
        try:
            for policy in order_of(seed, pair):
                trial = Trial(pair, policy, first_seed + pair)
                if (pair, policy) not in log.known:
                    log.add(trial, outcome(trial))
                done[policy] = log.known[pair, policy]
        except KeyboardInterrupt:
            break
        base, adapter = done["base"], done["adapter"]
        if base is None or adapter is None:
            dropped += 1
        else:
            test.add(base, adapter)
        after_pair(test, dropped)
    return Verdict(test.decision, test, dropped)
