"""What really came of recorded episodes as rewards: which chunks count, what the loss is, and what it does."""
import numpy as np
import pytest
import torch
from test_lora_pg import WORDS, sampled_group, toy_policy

from world_gymnast_ros.advantage import group_advantages
from world_gymnast_ros.learning.lora_pg import Anchor, LoraConfig, LoraLearner
from world_gymnast_ros.learning.play_data import PlayEpisode
from world_gymnast_ros.learning.real_outcomes import CHUNKS_PER_STEP, OutcomeGradient
from world_gymnast_ros.learning.world_model_metrics import RealEpisode


def episode(policy, success, seed, steps=8, done_step=None, words=WORDS):
    """What the policy would sample in noise, said to have succeeded or not."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (steps + 1, 32, 32, 3), dtype=np.uint8)
    deltas = np.concatenate([policy.sample(frames[t:t + 1], words, 1.2, seed * 100 + t).deltas[0]
                             for t in range(0, steps, 4)])[:steps]
    return RealEpisode(PlayEpisode(frames, deltas, None, "reach", f"e/{seed}"), words, success, done_step=done_step)


def likely(policy, some):
    """Mean log-probability of what was done in an episode."""
    outcomes = OutcomeGradient(policy, [some, episode(policy, not some.success, 99)], LoraConfig(), 1.2)
    rows = np.arange(some.play.steps // 4)
    with torch.no_grad():
        return float(outcomes._logprobs(rows).mean())


def test_what_succeeded_gets_likelier_and_what_failed_less_likely():
    policy = toy_policy()
    won, failed = [episode(policy, True, s) for s in (1, 2)], [episode(policy, False, s) for s in (3, 4, 5)]
    outcomes = OutcomeGradient(policy, won + failed, LoraConfig(), 1.2)
    before = [likely(policy, e) for e in won + failed]
    silent = sampled_group(policy, 4, 1, np.ones((4, 1)))
    learner = LoraLearner(policy, LoraConfig(learning_rate=0.01), anchor=Anchor(outcomes.loss, "outcomes"))
    learner.begin()
    for step in range(6):
        learner.update([(silent, group_advantages([0.0, 0.0, 0.0, 1e-3]))], 1.2, step)
    change = np.array([likely(policy, e) for e in won + failed]) - before
    learner.end()
    assert change[:2].min() > 0.02 and change[2:].max() < -0.02, change


def test_the_loss_is_that_of_a_group_of_rollouts():
    """At the beginning every ratio is 1: what is left is minus the mean advantage of the chunks' episodes, 0. Each
    episode weighs the same, whatever its length; what comes after success does not count."""
    policy = toy_policy()
    episodes = [episode(policy, True, 1, steps=16, done_step=6), episode(policy, False, 2, steps=12),
                episode(policy, False, 3, steps=8), episode(policy, True, 4, steps=6)]
    outcomes = OutcomeGradient(policy, episodes, LoraConfig(), 1.2)
    assert outcomes.chunks == 2 + 3 + 2 + 1, "a chunk of which a part was done is no chunk"
    weights = [float(w.sum()) * 4 * 7 for w in outcomes.weights.split([2, 3, 2, 1])]
    np.testing.assert_allclose(weights, 0.25, rtol=1e-5)
    values = group_advantages([1.0, 0.0, 0.0, 1.0]).values
    np.testing.assert_allclose(outcomes.advantages.numpy(), np.repeat(values, [2, 3, 2, 1]), rtol=1e-5)
    assert float(outcomes.loss(np.random.default_rng(0)).detach()) == pytest.approx(0.0, abs=1e-5)


def test_a_part_of_the_chunks_stands_for_all():
    """Many chunks: the mean over draws is the loss of all of them."""
    policy = toy_policy()
    episodes = [episode(policy, s % 3 == 0, s, steps=16) for s in range(24)]
    outcomes = OutcomeGradient(policy, episodes, LoraConfig(), 1.2)
    assert outcomes.chunks == 96 > outcomes.per_step == CHUNKS_PER_STEP
    assert OutcomeGradient(policy, episodes, LoraConfig(micro_chunks=8), 1.2).per_step == 8, "memory bounds it"
    rng = np.random.default_rng(0)
    with torch.no_grad():
        outcomes.loss(rng)
        outcomes._old = outcomes._old - 0.1 * outcomes.advantages[:, None, None]  # so that the chunks' losses differ
        drawn = np.mean([float(outcomes.loss(rng)) for _ in range(60)])
        ratio = torch.exp(0.1 * outcomes.advantages).clamp(0.8, 1.28)
        whole = float((-outcomes.advantages * ratio * outcomes.weights).sum()) * 4 * 7
    assert drawn == pytest.approx(whole, rel=0.15) and abs(whole) > 0.05


def test_outcomes_that_are_all_alike_teach_nothing_and_instructions_are_groups_of_their_own():
    policy = toy_policy()
    other = "reach the blue block"
    same = [episode(policy, True, 1), episode(policy, True, 2), episode(policy, False, 3, words=other)]
    assert OutcomeGradient(policy, same, LoraConfig(), 1.2).chunks == 0
    mixed = OutcomeGradient(policy, [*same, episode(policy, True, 4, words=other)], LoraConfig(), 1.2)
    assert mixed.chunks == 4 and mixed.words == [other] * 4 and float(mixed.advantages.sum()) == pytest.approx(0.0)
