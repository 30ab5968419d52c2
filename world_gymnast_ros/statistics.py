"""Say how sure a success rate is: intervals, paired comparisons, and whether imagination ranks like reality.

Everything here is closed-form or a seeded bootstrap over numpy arrays.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadConfig


@dataclass(frozen=True)
class Interval:
    """A point estimate with its interval at `confidence` (two-sided)."""

    value: float
    low: float
    high: float
    confidence: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _z(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise BadConfig(f"confidence must lie strictly between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a proportion (Wilson 1927)."""
    if trials < 1 or not 0 <= successes <= trials:
        raise BadConfig(f"{successes} successes of {trials} trials: need at least one trial and no more successes")
    z = _z(confidence)
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # exact at the ends, where rounding leaves 1e-17
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(p, low, high, confidence, trials)


def chance_better(successes_a: int, trials_a: int, successes_b: int, trials_b: int) -> float:
    """Return how likely it is that b succeeds more often than a, rates being uniform before (Beta posteriors, exact).
    """
    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    won_a, lost_a = successes_a + 1, trials_a - successes_a + 1
    won_b, lost_b = successes_b + 1, trials_b - successes_b + 1
    return math.fsum(math.exp(log_beta(won_a + i, lost_a + lost_b) - math.log(lost_b + i) - log_beta(1 + i, lost_b)
                              - log_beta(won_a, lost_a)) for i in range(won_b))


def newcombe(successes_a: int, trials_a: int, successes_b: int, trials_b: int, confidence: float = 0.95) -> Interval:
    """Return the interval of p_b - p_a for two *independent* samples (Newcombe 1998, method 10)."""
    a, b = wilson(successes_a, trials_a, confidence), wilson(successes_b, trials_b, confidence)
    difference = b.value - a.value
    low = difference - math.hypot(b.value - b.low, a.high - a.value)
    high = difference + math.hypot(b.high - b.value, a.value - a.low)
    return Interval(difference, max(-1.0, low), min(1.0, high), confidence, trials_a + trials_b)


def newcombe_paired(both: int, only_a: int, only_b: int, neither: int, confidence: float = 0.95) -> Interval:
    """Return the interval of p_b - p_a for *paired* binary outcomes (Newcombe 1998, paired method 10).

    Arguments are the four cells of the pairs. Stays honest where the bootstrap collapses (all pairs alike).
    """
    n = both + only_a + only_b + neither
    a, b = wilson(both + only_a, n, confidence), wilson(both + only_b, n, confidence)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    determinant = float(both * neither - only_a * only_b)
    if determinant > 0:
        determinant = max(determinant - n / 2, 0.0)  # continuity correction of the paper, phi-hat of method 10
    phi = determinant / math.sqrt(margins) if margins else 0.0
    difference = (only_b - only_a) / n
    down, up = (b.value - b.low, a.high - a.value), (b.high - b.value, a.value - a.low)
    low = difference - math.sqrt(max(0.0, down[0]**2 - 2 * phi * down[0] * down[1] + down[1]**2))
    high = difference + math.sqrt(max(0.0, up[0]**2 - 2 * phi * up[0] * up[1] + up[1]**2))
    return Interval(difference, max(-1.0, low), min(1.0, high), confidence, n)


def paired_bootstrap(differences: NDArray[np.floating[Any]], confidence: float = 0.95, seed: int = 0,
                     resamples: int = 4000) -> Interval:
    """Return the percentile bootstrap interval of the mean of paired differences (n,), one per independent unit.

    Pass one difference per *cluster* (say, per dream) where rollouts inside a cluster are not independent.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or d.size < 2 or not np.isfinite(d).all():
        raise BadConfig(f"the paired bootstrap needs at least 2 finite differences in one row, got shape {d.shape}")
    _z(confidence)
    picks = np.random.default_rng(seed).integers(0, d.size, (resamples, d.size))
    means = d[picks].mean(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(d.mean()), float(low), float(high), confidence, int(d.size))


def auc(scores: NDArray[np.floating[Any]], labels: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve (ties count one half); NaN when only one class is present."""
    labels = np.asarray(labels, np.bool_)
    positive, negative = np.asarray(scores)[labels], np.asarray(scores)[~labels]
    if not positive.size or not negative.size:
        return float("nan")
    wins = (positive[:, None] > negative[None]).mean() + 0.5 * (positive[:, None] == negative[None]).mean()
    return float(wins)


def paired_replay_auc(imagined_scores: Sequence[float], true_success: Sequence[bool], confidence: float = 0.95,
                      seed: int = 0, resamples: int = 2000) -> Interval:
    """Return the AUC of imagined scores against the true success of the *same actions*, with a bootstrap interval.

    This is the release gate of a world model with its judge: does imagination rank rollouts as reality does?
    The bootstrap resamples within each class, so that no resample lacks one.
    """
    scores, labels = np.asarray(imagined_scores, np.float64), np.asarray(true_success, np.bool_)
    if scores.shape != labels.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise BadConfig(f"need one finite score per outcome, got shapes {scores.shape} and {labels.shape}")
    value = auc(scores, labels)
    if math.isnan(value):
        return Interval(value, float("nan"), float("nan"), confidence, int(scores.size))
    rng = np.random.default_rng(seed)
    positive, negative = scores[labels], scores[~labels]
    draws = np.empty(resamples)
    wins = (positive[:, None] > negative[None]) + 0.5 * (positive[:, None] == negative[None])
    for i in range(resamples):  # how often each was drawn, from either side of the table of wins
        p = np.bincount(rng.integers(0, positive.size, positive.size), minlength=positive.size)
        q = np.bincount(rng.integers(0, negative.size, negative.size), minlength=negative.size)
        draws[i] = p @ wins @ q / (positive.size * negative.size)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high), confidence, int(scores.size))


@dataclass(frozen=True)
class ABRow:
    """One line of a before/after table, from paired trials: `before[i]` and `after[i]` share scene and seed."""

    name: str
    before: Interval
    after: Interval
    difference: Interval


def ab_row(name: str, before: Sequence[bool], after: Sequence[bool], confidence: float = 0.95) -> ABRow:
    """Compare paired true outcomes: Wilson interval for each side, paired Newcombe interval for the difference."""
    a, b = np.asarray(before, np.bool_), np.asarray(after, np.bool_)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise BadConfig(f"before and after must be paired trials of one length, got {a.shape} and {b.shape}")
    cells = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())
    return ABRow(name, wilson(int(a.sum()), a.size, confidence), wilson(int(b.sum()), b.size, confidence),
                 newcombe_paired(*cells, confidence))


def ab_markdown(rows: Sequence[ABRow]) -> str:
    """Format rows as a Markdown table with trial counts and intervals."""
    lines = ["| task | trials | before | after | difference |", "|---|---|---|---|---|"]
    lines += [f"| {r.name} | {r.before.n} | {r.before} | {r.after} | {r.difference} |" for r in rows]
    return "\n".join(lines)


def ab_json(rows: Sequence[ABRow]) -> list[dict[str, Any]]:
    """Return rows as plain dictionaries for a JSON file."""
    return [asdict(row) for row in rows]
