"""Published policies in imagination and under the policy gradient: the same session parts as the tiny policy's."""
from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published_openvla import SINK, TEXT, camera_frame, write_folder

from world_gymnast_ros.adaptation.advantage import Advantages
from world_gymnast_ros.adaptation.rollout import imagine
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.models.policies.openvla_policy import load_openvla
from world_gymnast_ros.testing.fakes import GOALS, FakeJudge, FakePolicy, FakeWorldModel, start_frame
from world_gymnast_ros.types import Judgement, RolloutGroup, Start
from world_gymnast_ros.updates.behaviour_cloning import Imitation, cloning_loss
from world_gymnast_ros.updates.policy_gradient import FULL_SIZE, LoraConfig, LoraLearner, flatten

torch.set_num_threads(1)
SCHEMES = {"autoregressive": {"decoding": "autoregressive", "chunk_size": 1},
           "parallel": {"decoding": "parallel", "chunk_size": 5},
           "l1": {"decoding": "l1", "chunk_size": 5, "action_scale": 0.2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("published") / "tiny-openvla", l1_head=True)


def group_of(policy, copies: int = 4) -> RolloutGroup:
    """One chunk for each of `copies` of one frame, as a finished group."""
    frame = camera_frame(96, 128, 0)
    sampled = policy.sample(np.repeat(frame[None], copies, axis=0), SINK, 1.2, seed=0)
    frames = np.repeat(np.repeat(frame[None, None], copies, axis=0), policy.chunk_size + 1, axis=1)
    return RolloutGroup(frames, (sampled,), (0,), (Judgement(0.5),) * copies, np.ones((copies, 1), bool), SINK, "base",
                        "none")


def prefer_first(copies: int = 4) -> Advantages:
    values = np.full(copies, -1.0 / (copies - 1), np.float32)
    values[0] = 1.0
    return Advantages(values, np.ones(copies, bool), False, 0.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_policy_gradient_learns(folder: Path, tmp_path: Path, scheme: str, dtype: str) -> None:
    policy = load_openvla(folder, **SCHEMES[scheme], dtype=dtype)
    learner = LoraLearner(policy, replace(FULL_SIZE, kl_coefficient=0.0))
    learner.begin()
    group = group_of(policy)
    tokens, old = group.chunks[0].tokens, group.chunks[0].logprobs
    first = learner.update([(group, prefer_first())], 1.2, 0)
    assert first["first_ratio_off"] == 0.0 and first["chunks"] == 4
    for step in range(3):
        learner.update([(group, prefer_first())], 1.2, step + 1)
    with torch.no_grad():
        gain = policy.logprobs(group.frames[:, 0], SINK, tokens, 1.2).numpy() - old
    assert gain[0].sum() > 0.5 and gain[0].sum() > gain[1:].sum((1, 2)).max() + 1.0
    learner.save(tmp_path / "adapter")
    learner.end()
    with torch.no_grad():
        after = policy.logprobs(group.frames[:, 0], SINK, tokens, 1.2).numpy()
    np.testing.assert_array_equal(after, old)  # the base is as it was, to the bit


def test_the_kl_term_is_measured_against_the_shared_base(folder: Path) -> None:
    policy = load_openvla(folder, **SCHEMES["parallel"])
    moved = {}
    for coefficient in (0.0, 5.0):
        learner = LoraLearner(policy, LoraConfig(rank=8, learning_rate=3e-3, kl_coefficient=coefficient))
        learner.begin()
        group = group_of(policy, 2)
        for step in range(2):
            learner.update([(group, prefer_first(2))], 1.2, step)
        with torch.no_grad():
            now = policy.logprobs(group.frames[:, 0], SINK, group.chunks[0].tokens, 1.2)
        moved[coefficient] = float((now - torch.from_numpy(group.chunks[0].logprobs)).abs().mean())
        learner.end()
    assert moved[5.0] < 0.7 * moved[0.0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_published_policies_are_evaluated_in_imagination(folder: Path, scheme: str) -> None:
    policy = load_openvla(folder, **SCHEMES[scheme], jpeg=False)
    start = Start(start_frame(), None, next(iter(GOALS)))
    group = imagine(policy, FakeWorldModel(), FakeJudge(), start, 2, 5, 1.0, seed=0)
    assert group.frames.shape[:2] == (2, 6) and len(group.chunks) == 5 // policy.chunk_size
    assert len(flatten([(group, prefer_first(2))]).instructions) == int(group.valid.sum())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_demonstrations_are_cloned_by_the_policys_own_loss(folder: Path, scheme: str) -> None:
    policy = load_openvla(folder, **SCHEMES[scheme])
    rng = np.random.default_rng(0)
    deltas = rng.uniform(-0.02, 0.02, (policy.chunk_size + 1, 7)).astype(np.float32)
    frames = np.stack([camera_frame(64, 64, i) for i in range(len(deltas) + 1)])
    episode = Episode(frames, deltas, None, SINK, success=True)
    loss = cloning_loss(policy, [episode], Imitation(batch=2))
    learner = LoraLearner(policy, replace(FULL_SIZE, learning_rate=1e-4))
    learner.begin()
    before = float(loss(np.random.default_rng(1)).detach())
    for _ in range(4):
        learner.optimiser.zero_grad()
        loss(np.random.default_rng(1)).backward()
        learner.optimiser.step()
    assert float(loss(np.random.default_rng(1)).detach()) < before - 0.02
    learner.end()


def test_a_policy_without_probabilities_is_evaluated_and_not_trained(folder: Path) -> None:
    policy = load_openvla(folder, decoding="l1", chunk_size=5)
    start = Start(start_frame(), None, next(iter(GOALS)))
    group = imagine(policy, FakeWorldModel(), FakeJudge(), start, 2, 5, 1.0, seed=0)
    assert [j.score is not None for j in group.judgements] == [True, True]
    with pytest.raises(BadConfig, match="no log-probabilities"):
        flatten([(group, prefer_first(2))])
    with pytest.raises(BadConfig, match="action_scale"):
        LoraLearner(policy).begin()
    with pytest.raises(BadConfig, match="has no logprobs"):
        LoraLearner(FakePolicy())


def test_four_bits_without_the_package_say_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(BadConfig, match="pip install bitsandbytes"):
        load_openvla(folder, **SCHEMES["parallel"], four_bit=True)


@pytest.mark.parametrize("scheme", ["autoregressive", "parallel"])
def test_a_four_bit_base_is_trained_through_lora(tmp_path: Path, scheme: str) -> None:
    """NF4 in the language model alone; the first ratio is 1 there too, and the gradient is that of the same weights
    dequantised."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    where = write_folder(tmp_path / "tiny", text={**TEXT, "intermediate_size": 128})  # blocks of 64 weights
    four, plain = (load_openvla(where, **SCHEMES[scheme], dtype="bfloat16", four_bit=bits) for bits in (True, False))
    layers = dict(four.network.named_modules())
    quantised = {name for name, layer in layers.items() if type(layer).__name__ == "Linear4bit"}
    assert len(quantised) == 21 and all(name.startswith("language_model.model.layers") for name in quantised)
    with torch.no_grad():
        for name in quantised:
            weight = layers[name].weight
            whole = functional.dequantize_4bit(weight.data, weight.quant_state)
            plain.network.get_submodule(name).weight.copy_(whole.view_as(plain.network.get_submodule(name).weight))
    group = group_of(four)
    gradients = []
    for policy in (four, plain):
        parameters = policy.add_lora(4, alpha=4.0)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in parameters:
                parameter.normal_(0, 0.1)
        policy.logprobs(group.frames[:, 0], SINK, group.chunks[0].tokens, 1.0).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
    assert float(torch.nn.functional.cosine_similarity(*gradients, dim=0)) > 0.98
    four.remove_lora()
    learner = LoraLearner(four, LoraConfig(rank=4, alpha=4.0))
    learner.begin()
    assert learner.update([(group_of(four), prefer_first())], 1.2, 0)["first_ratio_off"] == 0.0
    learner.end()
