"""Intervals against published values and against coverage by simulation."""
import math

import numpy as np
import pytest

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.statistics import (
    ab_json,
    ab_markdown,
    ab_row,
    auc,
    chance_better,
    newcombe,
    newcombe_paired,
    paired_bootstrap,
    paired_replay_auc,
    wilson,
)


def test_the_chance_of_being_better_agrees_with_drawing_both_rates():
    rng = np.random.default_rng(0)
    for a, n, b, m in ((1, 12, 5, 12), (0, 12, 0, 12), (6, 12, 3, 8)):
        drawn = (rng.beta(b + 1, m - b + 1, 400_000) > rng.beta(a + 1, n - a + 1, 400_000)).mean()
        assert chance_better(a, n, b, m) == pytest.approx(drawn, abs=0.003)
    assert chance_better(0, 12, 0, 12) == pytest.approx(0.5)


@pytest.mark.parametrize(("k", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                                    (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_wilson_matches_newcombe_1998_table(k, n, low, high):
    got = wilson(k, n)
    assert got.low == pytest.approx(low, abs=1e-4) and got.high == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize(("a", "m", "b", "n", "low", "high"), [(56, 70, 48, 80, 0.0524, 0.3339),
                                                              (9, 10, 3, 10, 0.1705, 0.8090),
                                                              (10, 10, 0, 10, 0.6075, 1.0)])
def test_newcombe_matches_method_10_of_1998(a, m, b, n, low, high):
    got = newcombe(b, n, a, m)  # the paper gives p1 - p2
    assert got.low == pytest.approx(low, abs=1e-4) and got.high == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize(("cells", "low", "high"), [((36, 12, 2, 0), 0.0569, 0.3404), ((20, 12, 2, 16), 0.056, 0.329)])
def test_newcombe_paired_matches_method_10_of_1998(cells, low, high):
    """The paper's difference is p(first) - p(second); its first is our second."""
    both, only_first, only_second, neither = cells
    got = newcombe_paired(both, only_second, only_first, neither)
    assert got.low == pytest.approx(low, abs=5e-4) and got.high == pytest.approx(high, abs=5e-4)
    mirrored = newcombe_paired(both, only_first, only_second, neither)
    assert (mirrored.low, mirrored.high) == pytest.approx((-got.high, -got.low))


def test_newcombe_paired_is_never_sure_of_too_little():
    assert newcombe_paired(0, 0, 4, 0).low < 0.6 and newcombe_paired(0, 0, 400, 0).low > 0.97
    assert newcombe_paired(10, 0, 0, 10).low < 0 < newcombe_paired(10, 0, 0, 10).high


def test_paired_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    hits_bootstrap = hits_newcombe = 0
    for trial in range(200):
        a, u = rng.random(60) < 0.3, rng.random(60)
        b = (a & (u < 0.9)) | (~a & (u < 0.4))  # true gain: 0.3 * 0.9 + 0.7 * 0.4 - 0.3 = 0.25
        boot = paired_bootstrap(b.astype(float) - a, 0.9, trial, 400)
        new = ab_row("x", list(a), list(b), 0.9).difference
        hits_bootstrap += boot.low <= 0.25 <= boot.high
        hits_newcombe += new.low <= 0.25 <= new.high
    assert hits_bootstrap >= 0.82 * 200 and hits_newcombe >= 0.84 * 200


def test_auc_counts_pairs_and_halves_ties():
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert auc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert math.isnan(auc(np.array([0.5, 0.5]), np.array([True, True])))


def test_paired_replay_auc_has_an_interval_that_narrows():
    rng = np.random.default_rng(1)

    def sample(n):
        labels = rng.random(n) < 0.4
        return paired_replay_auc(list(rng.normal(labels * 1.0)), list(labels), seed=3)

    small, large = sample(40), sample(1000)
    assert large.low < 0.76 < large.high  # Phi(1 / sqrt 2) = 0.760
    assert large.high - large.low < small.high - small.low
    assert math.isnan(paired_replay_auc([0.1, 0.2], [False, False]).low)


def test_tables_and_errors():
    rows = [ab_row("reach", [False, True, False, False], [True, True, True, False])]
    assert "| reach | 4 | 0.250" in ab_markdown(rows) and ab_json(rows)[0]["difference"]["value"] == 0.5
    for bad in (lambda: wilson(3, 2), lambda: wilson(0, 0), lambda: paired_bootstrap(np.zeros(1)),
                lambda: ab_row("x", [True], []), lambda: paired_replay_auc([float("nan")], [True]),
                lambda: wilson(1, 2, 1.0)):
        with pytest.raises(BadConfig):
            bad()
