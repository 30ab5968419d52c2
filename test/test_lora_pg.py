"""The policy gradient: the loss against a written-out numpy case, and that LoRA on the real network learns."""
import math

import numpy as np
import pytest
import torch
from episode_maker import record

from world_gymnast_ros.adaptation.advantage import Advantages, group_advantages
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.errors import BadConfig, EpisodeError
from world_gymnast_ros.models.policies.openvla import OpenVLA, OpenVLAConfig, OpenVLAForActionPrediction
from world_gymnast_ros.types import Judgement, RolloutGroup, SampledChunks
from world_gymnast_ros.updates.adaptation import real_successes
from world_gymnast_ros.updates.policy_gradient import (
    KL_FIRST,
    LoraConfig,
    LoraLearner,
    Regulariser,
    flatten,
    policy_loss,
    with_replay,
)

torch.set_num_threads(1)
TOY = {"image_size": 32, "vision_dim": 32, "vision_layers": 1, "vision_heads": 2, "aux_layer": 1, "name": "toy",
       "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}}
WORDS = "reach the red block"


def toy_policy():
    torch.manual_seed(0)
    return OpenVLA(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)), base_hash="random-0")


def sampled_group(policy, copies, chunks, valid, seed=0, words=WORDS, temperature=1.2):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (copies, chunks * 4 + 1, 32, 32, 3), dtype=np.uint8)
    samples = tuple(policy.sample(frames[:, 4 * n], words, temperature, seed * 100 + n) for n in range(chunks))
    return RolloutGroup(frames, samples, tuple(4 * n for n in range(chunks)), (Judgement(0.5),) * copies,
                        np.array(valid, bool), words, "base", "none")


def tiny_group(logprobs, tokens, valid, words="a"):
    """Chunks of one action; logprobs (G, N, 7)."""
    copies, chunks = logprobs.shape[:2]
    samples = tuple(SampledChunks(np.zeros((copies, 1, 7), np.float32), tokens[:, n, None], logprobs[:, n, None])
                    for n in range(chunks))
    return RolloutGroup(np.zeros((copies, chunks + 1, 2, 2, 3), np.uint8), samples, tuple(range(chunks)),
                        (Judgement(0.5),) * copies, valid, words, "base", "none")


def test_loss_is_the_written_out_one():
    """Two groups of unlike length: M trajectories weigh 1/M each, their valid tokens share it; clip; kl_coefficient."""
    rng = np.random.default_rng(0)
    groups, expected, pieces = [], 0.0, []
    low, high, kl_coefficient = 0.2, 0.28, 0.1
    trajectories = 5  # 3 + 2: one more is without verdict, one is masked altogether
    for copies, chunks, used in ((4, 3, [1, 1, 1, 0]), (3, 2, [1, 1, 1])):
        old = rng.normal(-2, 0.5, (copies, chunks, 7)).astype(np.float32)
        valid = np.ones((copies, chunks), bool)
        valid[0, 1:] = False
        if copies == 3:
            valid[2] = False
        advantages = rng.normal(0, 1, copies).astype(np.float32) * np.array(used, np.float32)
        tokens = rng.integers(0, 256, (copies, chunks, 7))
        groups.append((tiny_group(old, tokens, valid, words=f"task {copies}"),
                       Advantages(advantages, np.array(used, bool), False, 0.0)))
        for i in range(copies):
            count = valid[i].sum() * 7
            for n in range(chunks):
                if not (used[i] and valid[i, n]):
                    continue
                now, base = rng.normal(-2, 0.5, 7), rng.normal(-2, 0.5, 7)
                pieces.append((now, base))
                for a in range(7):
                    ratio = math.exp(now[a] - old[i, n, a])
                    clipped = min(max(ratio, 1 - low), 1 + high)
                    gap = base[a] - now[a]
                    loss = max(-advantages[i] * ratio, -advantages[i] * clipped)
                    loss += kl_coefficient * (math.exp(gap) - gap - 1)
                    expected += loss / count / trajectories
    data = flatten(groups)
    assert data.weights.sum() * 7 == pytest.approx(1.0) and data.instructions.count("task 4") == 1 + 3 + 3
    now = torch.tensor(np.array([p[0] for p in pieces]), dtype=torch.float32)[:, None]
    base = torch.tensor(np.array([p[1] for p in pieces]), dtype=torch.float32)[:, None]
    loss = policy_loss(now, *map(torch.tensor, (data.old, data.advantages, data.weights)), low, high, base,
                       kl_coefficient)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_minibatches_add_up_to_the_whole_loss():
    """The scale C/m makes the mean of the minibatch losses the loss of the batch."""
    group = tiny_group(np.full((4, 2, 7), -1.0, np.float32), np.zeros((4, 2, 7), np.int64), np.ones((4, 2), bool))
    data = flatten([(group, group_advantages([0.1, 0.4, 0.2, 0.9]))])
    now = torch.linspace(-1.3, -0.8, 8 * 7).reshape(8, 1, 7)

    def loss(rows):
        return float(policy_loss(now[rows], *(torch.tensor(a[rows]) for a in (data.old, data.advantages, data.weights)),
                                 0.2, 0.28))

    whole = loss(np.arange(8))
    halves = [loss(np.array(rows)) * 2 for rows in ([0, 3, 5, 6], [1, 2, 4, 7])]
    assert np.mean(halves) == pytest.approx(whole, rel=1e-5)


def test_clipping_stops_the_gradient_on_one_side_only():
    old, weights = torch.zeros(1, 1, 7), torch.ones(1) / 7
    for advantage, shift, moves in ((1.0, 0.5, False), (1.0, -0.5, True), (-1.0, -0.5, False), (-1.0, 0.5, True)):
        now = torch.full((1, 1, 7), shift, requires_grad=True)
        policy_loss(now, old, torch.tensor([advantage]), weights, 0.2, 0.28).backward()
        assert bool(now.grad.abs().max() > 0) == moves


def test_degenerate_groups_and_masked_chunks_leave_no_trace():
    policy = toy_policy()
    group = sampled_group(policy, 3, 2, [[1, 0], [1, 1], [0, 0]])
    assert len(flatten([(group, group_advantages([0.2, 0.2, 0.2]))]).instructions) == 0
    data = flatten([(group, group_advantages([1.0, 0.0, None]))])
    assert len(data.instructions) == 3 and data.weights.tolist() == pytest.approx([1 / 56, 1 / 112, 1 / 112])
    learner = LoraLearner(policy)
    learner.begin()
    assert learner.update([(group, group_advantages([0.2] * 3))], 1.2, 0) == {"chunks": 0.0}
    learner.end()


def test_lora_learns_on_the_real_network_and_leaves_it_as_it_was():
    policy = toy_policy()
    policy.model.language_model.lm_head.weight.data.normal_(0, 0.5)  # decided enough to have something to unlearn
    frames = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    before = policy.logits(frames, WORDS).detach().clone()
    learner = LoraLearner(policy, LoraConfig(rank=4, alpha=8, learning_rate=1e-2, minibatch_chunks=24))
    learner.begin()
    torch.testing.assert_close(policy.logits(frames, WORDS).detach(), before)
    wanted, first = [], {}
    for update in range(8):  # reward: low bins in the first dimension
        group = sampled_group(policy, 48, 1, np.ones((48, 1)), seed=update)
        rewards = [float(-t[:, 0].mean()) / 256 for t in group.chunks[0].tokens]
        wanted.append(np.mean(rewards))
        stats = learner.update([(group, group_advantages(rewards))], 1.2, update)
        first = first or stats
    assert np.mean(wanted[-2:]) > np.mean(wanted[:2]) + 0.05
    assert first["first_ratio_off"] < 0.02 < first["ratio_off"]  # on-policy at first, then the ratio leaves 1
    assert all(math.isfinite(v) for v in stats.values()) and stats["chunks"] == 48
    kept = learner.snapshot()
    trained = policy.logits(frames, WORDS).detach().clone()
    for p in learner.weights:
        p.data.zero_()
    learner.restore(kept)
    torch.testing.assert_close(policy.logits(frames, WORDS).detach(), trained)
    learner.end()
    torch.testing.assert_close(policy.logits(frames, WORDS).detach(), before)
    assert policy.adapter == "base" and not any(p.requires_grad for p in policy.model.parameters())
    learner.end()


def test_micro_batches_change_nothing():
    losses = []
    for micro in (3, 64):
        policy = toy_policy()
        group = sampled_group(policy, 8, 2, np.ones((8, 2)))
        learner = LoraLearner(policy, LoraConfig(rank=2, micro_chunks=micro, epochs=1))
        learner.begin()
        stats = learner.update([(group, group_advantages(list(np.linspace(0, 1, 8))))], 1.2, 0)
        losses.append((stats["loss"], stats["grad_norm"]))
    assert losses[0] == pytest.approx(losses[1], rel=2e-2, abs=1e-3)


def test_the_leash_holds_the_policy_near_the_base():
    off = []
    for kl_coefficient in (0.0, 20.0):
        policy = toy_policy()
        learner = LoraLearner(policy, LoraConfig(rank=4, learning_rate=5e-3, kl_coefficient=kl_coefficient, epochs=3))
        learner.begin()
        for update in range(3):
            group = sampled_group(policy, 12, 1, np.ones((12, 1)), seed=update)
            learner.update([(group, group_advantages(list(np.linspace(0, 1, 12))))], 1.2, update)
        frames = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        with torch.no_grad():
            now = torch.log_softmax(policy.logits(frames, WORDS), -1)
            with policy.without_adapter():
                base = torch.log_softmax(policy.logits(frames, WORDS), -1)
        off.append(float((base.exp() * (base - now)).sum(-1).mean()))
    assert off[1] < 0.6 * off[0]


def test_an_anchor_holds_the_policy_to_what_is_known_to_be_true():
    """The dream rewards other actions than those that succeeded on the arm: the anchor keeps these likely."""
    found = {}
    for anchored in (False, True):
        policy = toy_policy()
        group = sampled_group(policy, 8, 2, np.ones((8, 2)))
        true = policy.sample(np.zeros((1, 32, 32, 3), np.uint8), WORDS, 1.2, 5).tokens

        def loss(rng, policy=policy, true=true):
            return -policy.logprobs(np.zeros((1, 32, 32, 3), np.uint8), [WORDS], true, 1.0).mean()
        learner = LoraLearner(policy, LoraConfig(learning_rate=0.01), regulariser=Regulariser(loss, "one image")
                              if anchored else None)
        assert ("regularised by one image" in learner.name) is anchored
        learner.begin()
        before = float(loss(None).detach())
        for step in range(4):
            stats = learner.update([(group, group_advantages(np.arange(8.0), "grpo"))], 1.2, step)
        found[anchored] = before - float(loss(None).detach())
        assert np.isfinite(stats["loss"])
        learner.end()
        assert float(loss(None).detach()) == pytest.approx(before), "the policy is as it was"
    assert found[True] > 0.1 and found[True] > 3 * abs(found[False])


def test_a_session_is_held_to_the_recordings_that_succeeded(tmp_path):
    root, policy = tmp_path / "episodes", toy_policy()
    root.mkdir()
    config = AdaptNodeConfig(episodes=str(root), directory=str(tmp_path / "runs"), cloning_coefficient=20.0)
    with pytest.raises(EpisodeError, match="no episode"):
        real_successes(policy, config)
    record(root, "failed", outcome="failure", seed=1)
    assert real_successes(policy, config) is None and real_successes(policy, AdaptNodeConfig()) is None
    record(root, "won", outcome="success")
    record(root, "unmarked", seed=2)
    anchor = real_successes(policy, config)
    assert anchor.told.startswith(f"1 real successes of {root} (1 recordings left out, such as unmarked: ")
    learner = LoraLearner(policy, LoraConfig(learning_rate=0.05), regulariser=anchor)
    group = sampled_group(policy, 4, 1, np.ones((4, 1)))
    before = float(anchor.loss(np.random.default_rng(0)).detach())
    learner.begin()
    for step in range(6):
        learner.update([(group, group_advantages(np.arange(4.0)))], 1.2, step)
    assert float(anchor.loss(np.random.default_rng(0)).detach()) < before - 1.0
    learner.end()


def test_mixed_instructions_share_a_batch():
    policy = toy_policy()
    learner = LoraLearner(policy, LoraConfig(rank=2, epochs=1))
    learner.begin()
    batch = [(sampled_group(policy, 4, 1, np.ones((4, 1)), seed=i, words=w), group_advantages([0.0, 1.0, 0.5, 0.2]))
             for i, w in enumerate((WORDS, "push the blue ball left"))]
    stats = learner.update(batch, 1.2, 0)
    assert stats["chunks"] == 8 and stats["grad_norm"] > 0 and stats["first_ratio_off"] < 0.02


def test_the_kl_term_is_in_earlier_scenes_alone_and_follows_the_measured_divergence():
    policy = toy_policy()
    new = sampled_group(policy, 4, 2, np.ones((4, 2)))
    old = sampled_group(policy, 4, 2, np.ones((4, 2)), seed=5, words="reach the blue block")
    some, equal = group_advantages([0.0, 1.0, 0.0, 1.0]), group_advantages([1.0] * 4)
    data = with_replay([(new, some)], [(old, equal)])
    assert data.held.tolist() == [0.0] * 8 + [1.0] * 8 and data.instructions[8:] == ["reach the blue block"] * 8
    assert data.weights[:8].sum() == pytest.approx(data.weights[8:].sum()) and (data.advantages[8:] == 0).all()
    assert with_replay([(new, some)], []).held.tolist() == [1.0] * 8
    kept = {}
    for target in (0.0, 1e-4):
        learner = LoraLearner(policy, LoraConfig(rank=4, learning_rate=0.02, epochs=4, target_kl=target))
        learner.begin()
        for k in range(16):
            groups = [sampled_group(policy, 4, 2, np.ones((4, 2)), seed=9 + k)]
            again = [sampled_group(policy, 4, 2, np.ones((4, 2)), seed=99 + k, words="reach the blue block")]
            stats = learner.update([(g, some) for g in groups], 1.2, k, [(g, equal) for g in again])
        last = learner._base_logprobs(data, 1.2).numpy(), learner._logprobs(data, np.arange(16), 1.2).detach().numpy()
        gap = (last[0] - last[1])[8:]
        kept[target] = float((np.exp(gap) - gap - 1).mean())
        assert ("kl" in stats) == bool(target)
        learner.end()
    assert stats["kl"] > 1.5e-4 and stats["kl_coefficient"] > KL_FIRST, "above the target it rises"
    assert kept[1e-4] < 0.7 * kept[0.0]


def test_senseless_settings_are_refused():
    with pytest.raises(BadConfig, match=r"lora.rank must lie in \[1, 1024\], got 0"):
        LoraConfig(rank=0)
    with pytest.raises(BadConfig, match="begin"):
        LoraLearner(toy_policy()).update([], 1.0, 0)
