"""Compare two policies on a real arm and stop as soon as the answer is clear, without fooling oneself by looking.

Trials come in pairs (same scene, same start, order drawn by lot). A confidence sequence bounds the mean difference of
success at *every* moment at once, so one may look after each pair and stop when it excludes 0: whatever the stopping
rule, the error rate stays below 1 - confidence. A fixed-sample interval looked at repeatedly does not have that.

Method: the hedged betting confidence sequence of Waudby-Smith and Ramdas (2023, JRSS-B, section 4) with predictable
plug-in bets: against every candidate mean one bets up and down at once, and whatever has lost 1 / (1 - confidence) of
its stake is excluded.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.statistics import Interval
from world_gymnast_ros.types import F64

GRID = 401
"""Candidate means between -1 and 1: the bounds are given to 0.005."""
MAX_BET = 0.75
"""Share of what may be bet at most, so that no pair can ruin a bet."""


@dataclass
class PairedTest:
    """Feed pairs with `add`; `difference` is the bound so far, `decision` what it says.

    `limit_pairs`: where to give up. `confidence`: of the sequence, over all looks together.
    """

    limit_pairs: int = 50
    confidence: float = 0.95
    outcomes: list[tuple[bool, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.limit_pairs < 1 or not 0.5 <= self.confidence < 1.0:
            raise BadConfig(f"limit_pairs must be at least 1 and confidence in 0.5..1, got {self.limit_pairs} and "
                            f"{self.confidence}")
        self._means: F64 = np.linspace(-1.0, 1.0, GRID)
        self._log_up, self._log_down = np.zeros(GRID), np.zeros(GRID)
        self._inside = np.ones(GRID, np.bool_)
        self._sum, self._squares = 0.0, 0.0
        earlier, self.outcomes = self.outcomes, []
        for a, b in earlier:
            self.add(a, b)

    def add(self, base: bool, adapter: bool) -> None:
        """Take one pair of true outcomes into account."""
        x, n = float(adapter) - float(base), len(self.outcomes)
        up, down = bets(self._sum, self._squares, n, self._means)
        self._log_up += np.log1p(up * (x - self._means))
        self._log_down += np.log1p(-down * (x - self._means))
        capital = np.logaddexp(self._log_up, self._log_down) - np.log(2.0)
        self._inside &= capital < -np.log1p(-self.confidence)
        self._sum, self._squares = self._sum + x, self._squares + x * x
        self.outcomes.append((bool(base), bool(adapter)))

    @property
    def difference(self) -> Interval:
        """Return adapter minus base: the mean so far and bounds that hold at every look together."""
        n = len(self.outcomes)
        inside = self._means[self._inside]
        mean = self._sum / n if n else 0.0
        low, high = (float(inside[0]), float(inside[-1])) if inside.size else (mean, mean)
        return Interval(mean, low, high, self.confidence, n)

    @property
    def decision(self) -> str:
        """Return "better" or "worse" (the adapter), "unclear" at the limit, or "" while more pairs are needed."""
        bounds = self.difference
        if bounds.low > 0.0:
            return "better"
        if bounds.high < 0.0:
            return "worse"
        return "unclear" if len(self.outcomes) >= self.limit_pairs else ""


def bets(total: F64 | float, squares: F64 | float, n: int, means: F64 | float) -> tuple[F64, F64]:
    """Return the stakes that the mean is above, and below, `means`, from the sums of `n` differences and their squares.
    """
    mean = total / (n + 1)  # of the pairs before this one, shrunk to 0: a bet must not know its outcome
    variance = (squares - 2 * mean * total + n * mean * mean + 0.5) / (n + 1)
    gap = mean - means
    bet = gap / (variance + gap * gap)
    up = np.clip(bet, 0.0, MAX_BET / (1.0 + means + 1e-9))
    down = np.clip(-bet, 0.0, MAX_BET / (1.0 - means + 1e-9))
    # Each side goes on betting a little where it has no opinion, so that both can grow.
    floor = 0.1 / (n + 1) ** 0.5
    return np.maximum(up, floor), np.maximum(down, floor)
