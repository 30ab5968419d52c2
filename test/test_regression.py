"""The small regression policy: its scale, what the session teaches it, and fine-tuning on a few demonstrations."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from episode_maker import record

from world_gymnast_ros.adaptation.advantage import group_advantages
from world_gymnast_ros.cli import main
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadCheckpoint, BadConfig, EpisodeError
from world_gymnast_ros.loading.load import load_policy
from world_gymnast_ros.models.policies.openvla import OpenVLA, OpenVLAConfig, OpenVLAForActionPrediction
from world_gymnast_ros.models.policies.regression import RegressionConfig, RegressionNetwork, RegressionPolicy
from world_gymnast_ros.types import Judgement, RolloutGroup
from world_gymnast_ros.updates.fine_tuning import FineTuning, fine_tune, with_regression_heads
from world_gymnast_ros.updates.policy_gradient import LoraConfig, LoraLearner

torch.set_num_threads(1)
TOY = {"image_size": 32, "vision_dim": 32, "vision_layers": 1, "vision_heads": 2, "aux_layer": 1, "name": "toy",
       "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}}
WORDS = "reach the red block"
FRAMES = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def toy(**changes: object) -> RegressionPolicy:
    torch.manual_seed(0)
    return RegressionPolicy(RegressionNetwork(RegressionConfig(**TOY, **changes)), base_hash="random-0")


def toy_start() -> OpenVLA:
    torch.manual_seed(0)
    return OpenVLA(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)), base_hash="start")


def demonstration(seed: int, success: bool = True) -> Episode:
    """An image of its own for each seed, and the same way from all of them."""
    image = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
    deltas = np.zeros((6, 7), np.float32)
    deltas[:, 0], deltas[:, 6] = 0.02, 1.0
    return Episode(image[None].repeat(7, 0).astype(np.uint8), deltas, None, WORDS, success=success)


def test_samples_are_laplace_about_the_mean_that_acts() -> None:
    policy = toy(learned_scale=False, action_scale=0.2)
    many = policy.sample(FRAMES[:1].repeat(400, 0), WORDS, 1.5, 1)
    assert many.tokens is not None and many.logprobs is not None
    off = np.abs(many.tokens - np.median(many.tokens, 0))
    assert off.mean() == pytest.approx(0.3, rel=0.03), "the scale is the mean absolute deviation, times the temperature"
    mean = policy.distribution(FRAMES[:1], WORDS)[0].detach().numpy()
    np.testing.assert_allclose(np.median(many.tokens, 0), mean[0], atol=0.07)
    np.testing.assert_allclose(policy.stats.unnormalise(mean), policy.greedy(FRAMES[:1], WORDS), atol=1e-6)
    np.testing.assert_allclose(many.logprobs, -np.abs(many.tokens - mean) / 0.3 - math.log(0.6), atol=1e-3)
    assert many.deltas[..., 6].min() >= 0.0 and many.deltas[..., 6].max() <= 1.0


def test_a_session_s_learner_moves_mean_and_scale_to_what_was_rewarded() -> None:
    policy = toy()
    before = [x.detach() for x in policy.distribution(FRAMES, WORDS)]
    learner = LoraLearner(policy, LoraConfig(rank=4, alpha=8, learning_rate=1e-2, minibatch_chunks=24))
    learner.begin()
    first: dict[str, float] = {}
    for update in range(8):  # rewarded: a large first number
        frames = FRAMES[:1].repeat(48, 0)[:, None].repeat(5, 1)
        sampled = policy.sample(frames[:, 0], WORDS, 1.0, update)
        group = RolloutGroup(frames, (sampled,), (0,), (Judgement(0.5),) * 48, np.ones((48, 1), np.bool_), WORDS,
                             "base", "none")
        assert sampled.tokens is not None
        rewards = list(sampled.tokens[:, :, 0].mean(1))
        stats = learner.update([(group, group_advantages(rewards, "leave_one_out"))], 1.0, update)
        first = first or stats
    assert first["first_ratio_off"] < 1e-3 < first["ratio_off"], "on-policy at first, then the ratio leaves 1"
    after = [x.detach() for x in policy.distribution(FRAMES, WORDS)]
    assert float((after[0] - before[0])[0, :, 0].mean()) > 0.05
    assert float((after[1] - before[1])[0].abs().max()) > 1e-3, "the scale learns too"
    learner.end()
    torch.testing.assert_close(policy.distribution(FRAMES, WORDS)[0].detach(), before[0])


def test_a_few_demonstrations_teach_it_and_the_file_gives_the_same_policy(tmp_path: Path) -> None:
    episodes = [demonstration(k) for k in range(3)]
    settings = FineTuning(steps=60, batch=16, muon_lr=2e-3, adamw_lr=2e-3)
    policy = with_regression_heads(toy_start(), settings, "mine")
    first = [policy.greedy(e.frames[:1], WORDS)[0, :, 0] for e in episodes]
    losses: list[float] = []
    fine_tune(policy, [*episodes, demonstration(3, success=False)], settings, lambda step, loss: losses.append(loss))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5

    for before, e in zip(first, episodes, strict=True):
        now = policy.greedy(e.frames[:1], WORDS)[0, :, 0]
        assert np.abs(now - 0.02).max() < 4e-3 and np.abs(before - 0.02).max() > 8e-3
    assert not any(p.requires_grad for p in policy.model.parameters())
    policy.save(tmp_path / "mine")
    again = load_policy(tmp_path / "mine", "cpu")
    assert isinstance(again, RegressionPolicy) and again.name == "mine" and again.base_hash == policy.base_hash
    np.testing.assert_allclose(again.greedy(FRAMES, WORDS), policy.greedy(FRAMES, WORDS), atol=5e-3)
    with pytest.raises(EpisodeError, match="none of 1 episodes"):
        fine_tune(policy, [demonstration(0, success=False)], settings)


def test_where_the_heads_alone_learn_the_trunk_stays() -> None:
    start, settings = toy_start(), FineTuning(steps=3, heads_only=True)
    policy = with_regression_heads(start, settings, "mine")
    assert policy.stats == start.stats and policy.trained_on == start.trained_on
    fine_tune(policy, [demonstration(0)], settings)
    old, new = start.model.state_dict(), policy.model.state_dict()
    shared = [k for k in new if k in old]
    assert len(shared) > 20 and all(torch.equal(old[k], new[k]) for k in shared)
    assert float(new["scale_head.fc.bias"].std()) > 0


def test_scales_that_are_none_are_refused(tmp_path: Path) -> None:
    for wrong in ({"action_scale": 5.0}, {"action_scale": 0.01, "least_scale": 0.02}):
        with pytest.raises(BadConfig, match="scale"):
            RegressionNetwork(RegressionConfig(**TOY, **wrong))
    toy().save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"action_scale": 0.1', '"action_scale": -1.0'))
    with pytest.raises(BadCheckpoint, match="action_scale"):
        RegressionPolicy.from_pretrained(tmp_path)


def test_the_command_line_makes_one_from_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, start, out = tmp_path / "episodes", tmp_path / "start", tmp_path / "mine"
    root.mkdir()
    record(root, "won", outcome="success")
    toy_start().save(start)
    words = ["train", "regression", "--episodes", str(root), "--steps", "3", "--threads", "1", "--out", str(out)]
    assert main([*words, "--start", str(start)]) == 0
    policy = load_policy(out, "cpu")
    assert isinstance(policy, RegressionPolicy) and policy.config.learned_scale
    assert "successes imitated | 1" in (out / "README.md").read_text()
    assert main([*words[:-1], str(tmp_path / "more"), "--start", str(out), "--constant-scale"]) == 2
    assert "scale head" in capsys.readouterr().err
