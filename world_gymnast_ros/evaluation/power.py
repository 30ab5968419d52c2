"""What a number of pairs can show, before the first trial: for whoever pays for each with minutes of an arm.

The outcomes of base and adapter are taken as independent and their success rates as lying evenly about one half, where
a difference is hardest to see; pairs whose outcomes go together, and rates near 0 or 1, need fewer.
"""
from __future__ import annotations

from functools import cache

import numpy as np

from world_gymnast_ros.evaluation.sequential_test import PairedTest, bets

EVALUATIONS = 1000
"""Simulated evaluations behind each chance: its standard error is at most 0.016."""
OFTEN, HALF = 0.8, 0.5


def chance_shown(difference: float, pairs: int, confidence: float = 0.95, seed: int = 0) -> float:
    """Return how often an adapter that succeeds more often by `difference` (0..1) is called better within `pairs`.

    The sequential test of `PairedTest`, for EVALUATIONS evaluations at once: 0 is excluded from above.
    """
    rng = np.random.default_rng(seed)
    total, squares, log_up, log_down = (np.zeros(EVALUATIONS) for _ in range(4))
    better, worse = np.zeros(EVALUATIONS, np.bool_), np.zeros(EVALUATIONS, np.bool_)
    limit = -np.log1p(-confidence)
    for n in range(pairs):
        base, adapter = rng.random((2, EVALUATIONS)) < (1.0 + np.array([[-difference], [difference]])) / 2
        x = adapter.astype(float) - base
        up, down = bets(total, squares, n, 0.0)
        log_up += np.log1p(up * x)
        log_down += np.log1p(-down * x)
        decided = (np.logaddexp(log_up, log_down) - np.log(2.0) >= limit) & ~better & ~worse
        better |= decided & (log_up > log_down)
        worse |= decided & (log_up <= log_down)
        total, squares = total + x, squares + x * x
    return float(better.mean())


@cache
def difference_shown(chance: float, pairs: int, confidence: float = 0.95) -> float:
    """Return the smallest difference of success rates (0..1, to 0.01) that is shown with this chance; nan: none."""
    low, high = 0, 100
    if chance_shown(1.0, pairs, confidence) < chance:
        return float("nan")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance_shown(middle / 100, pairs, confidence) >= chance else (middle, high)
    return high / 100


def fewest_pairs(confidence: float = 0.95) -> int:
    """Return after how many pairs the answer can be clear at the earliest: the adapter alone succeeds in each."""
    test = PairedTest(10_000, confidence)
    while not test.decision:
        test.add(False, True)
    return len(test.outcomes)


def what_pairs_show(pairs: int, confidence: float = 0.95) -> str:
    """Return in one line what an evaluation of at most so many pairs can show."""
    fewest = fewest_pairs(confidence)
    if pairs < fewest:
        return (f"{pairs} pairs can show nothing at confidence {confidence:g}: even if the adapter alone succeeded in "
                f"each, {fewest} would be needed. Outcomes are kept, and the same --out goes on with more --pairs")
    often, half = (difference_shown(chance, pairs, confidence) for chance in (OFTEN, HALF))
    return (f"at most {pairs} pairs, {2 * pairs} trials: a success rate that is truly higher by {100 * often:.0f} "
            f"points is shown in 4 of 5 evaluations, by {100 * half:.0f} points in 1 of 2; what is smaller will likely "
            f"stay unclear (confidence {confidence:g}, rates about one half)")
