"""Advantages: golden values, no verdict, equal groups, the speed bonus."""
from dataclasses import replace

import numpy as np
import pytest

from world_gymnast_ros.adaptation.advantage import group_advantages, rollout_rewards
from world_gymnast_ros.adaptation.rollout import Start, imagine
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.testing.fakes import FakeJudge, FakePolicy, FakeWorldModel, start_frame


def test_grpo_is_mean_and_sample_deviation():
    got = group_advantages([1.0, 0.0, 0.0, 1.0, 0.5])
    np.testing.assert_allclose(got.values, np.array([0.5, -0.5, -0.5, 0.5, 0.0]) / 0.5, atol=1e-5)
    assert got.mean_reward == 0.5 and not got.degenerate


def test_leave_one_out_compares_with_the_others():
    got = group_advantages([1.0, 0.0, 0.2], "leave_one_out")
    np.testing.assert_allclose(got.values, [0.9, -0.6, -0.3], atol=1e-6)


def test_no_verdict_takes_no_part():
    got = group_advantages([1.0, None, 0.0])
    alone = group_advantages([1.0, 0.0])
    np.testing.assert_allclose(got.values[[0, 2]], alone.values)
    assert got.values[1] == 0 and got.used.tolist() == [True, False, True]


@pytest.mark.parametrize("rewards", [[0.3, 0.3, 0.3], [None, 0.4], [None, None], []])
def test_groups_that_teach_nothing_are_marked(rewards):
    for method in ("grpo", "leave_one_out"):
        got = group_advantages(rewards, method)
        assert got.degenerate and not got.values.any()


def test_bad_input_is_refused():
    with pytest.raises(BadConfig, match="gae"):
        group_advantages([1.0, 0.0], "gae")
    with pytest.raises(BadConfig, match="nan"):
        group_advantages([1.0, float("nan")])


def test_the_speed_bonus_orders_successes_and_never_helps_a_failure():
    group = imagine(FakePolicy(), FakeWorldModel(), FakeJudge(), Start(start_frame(), None, "go right"), 24, 16, 1.0, 3)
    plain, bonus = rollout_rewards(group, 0.0), rollout_rewards(group, 0.2)
    for judgement, a, b in zip(group.judgements, plain, bonus, strict=True):
        if judgement.score > 0.5:
            assert b - a == pytest.approx(0.2 * (1 - judgement.done_at / 16))
        else:
            assert a == b == judgement.score
    assert any(b > a for a, b in zip(plain, bonus, strict=True))


def test_progress_tells_failures_apart():
    group = imagine(FakePolicy(), FakeWorldModel(), FakeJudge(), Start(start_frame(), None, "go right"), 4, 4, 1.0, 3)
    judgements = tuple(replace(j, score=s, done_at=None, progress=p) for j, s, p in
                       zip(group.judgements, (0.1, 0.1, None, 0.2), (0.4, 0.8, 0.9, None), strict=True))
    rewards = rollout_rewards(replace(group, judgements=judgements), 0.2, 0.5)
    assert rewards[:2] == pytest.approx([0.3, 0.5]) and rewards[2] is None and rewards[3] == pytest.approx(0.2)
