"""The OpenVLA-class policy at toy size: bins, decoding, adapters, checkpoints, and that training can learn."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from world_gymnast_ros.errors import AdapterMismatch, BadCheckpoint, BadConfig, BadInstruction
from world_gymnast_ros.models.policies.action_bins import ActionStats, decode_bins, encode_bins
from world_gymnast_ros.models.policies.openvla import OpenVLA, OpenVLAConfig, OpenVLAForActionPrediction
from world_gymnast_ros.store import Store
from world_gymnast_ros.types import AdapterRef, Frame

torch.set_num_threads(1)
TOY = {"image_size": 32, "vision_dim": 32, "vision_layers": 1, "vision_heads": 2, "aux_layer": 1, "name": "toy",
       "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "initializer_range": 0.15}}


def toy_policy(seed: int = 0) -> OpenVLA:
    torch.manual_seed(seed)
    return OpenVLA(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)), base_hash=f"random-{seed}")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture()
def saved(tmp_path: Path) -> Path:
    toy_policy().save(tmp_path / "policy")
    return tmp_path / "policy"


def scramble(policy: OpenVLA, seed: int = 5) -> None:
    """Give a fresh adapter an effect (its B matrices start at zero)."""
    torch.manual_seed(seed)
    for p in policy.trainable_parameters():
        torch.nn.init.normal_(p, std=0.3)


# ---- bins ------------------------------------------------------------------------------------------------------------

def test_bins_are_openvlas() -> None:
    """Token id = vocabulary - (digitised index 1..256); decoding gives centres of 255 intervals."""
    values = np.array([-1.0, -0.9999, 0.0, 0.9999, 1.0])
    bins = encode_bins(values)
    np.testing.assert_array_equal(bins, np.digitize(values, np.linspace(-1, 1, 256)) - 1)
    assert bins[0] == 0 and bins[-1] == 255
    assert decode_bins(np.array([0]))[0] == pytest.approx(-1 + 1 / 255)
    assert decode_bins(np.array([255]))[0] == decode_bins(np.array([254]))[0]


@given(st.lists(st.floats(-1.5, 1.5), min_size=7, max_size=7))
def test_round_trip_is_within_half_a_bin(values: list[float]) -> None:
    clipped = np.clip(np.array(values), -1, 1)
    assert np.abs(decode_bins(encode_bins(np.array(values))) - clipped).max() <= 1 / 255 + 1e-6


def test_units_use_quantiles_and_leave_the_gripper_alone() -> None:
    stats = ActionStats((-0.02, -0.04, -0.03, -0.1, -0.1, -0.2, 0.0), (0.02, 0.02, 0.03, 0.1, 0.1, 0.2, 1.0))
    out = stats.unnormalise(np.array([1.0, -1.0, 0.0, 0.0, 0.0, 0.5, 0.7]))
    np.testing.assert_allclose(out, [0.02, -0.04, 0.0, 0.0, 0.0, 0.1, 0.7], atol=1e-7)
    np.testing.assert_allclose(stats.normalise(out), [1, -1, 0, 0, 0, 0.5, 0.7], atol=1e-5)
    still = ActionStats.of(np.zeros((50, 7), np.float32))
    assert np.isfinite(still.normalise(np.zeros(7))).all()


def test_first_bin_is_the_last_token_of_the_vocabulary() -> None:
    policy = toy_policy()
    head = policy.model.language_model.lm_head.weight
    with torch.no_grad():
        head.zero_()
        before = policy.logits(images(1), "reach the red block")
        assert float(before.abs().max()) == 0.0
        head[policy.config.vocab_size - 1 - 17] = 1.0
        after = policy.logits(images(1), "reach the red block").abs().sum((0, 1, 2))
    assert after.nonzero().flatten().tolist() == [17]


# ---- acting ----------------------------------------------------------------------------------------------------------

def test_act_is_greedy_and_carries_the_stamp() -> None:
    policy = toy_policy()
    chunk = policy.act(Frame(images(1)[0], stamp_ns=77), "Reach the RED block.")
    assert chunk.deltas.shape == (4, 7) and chunk.deltas.dtype == np.float32 and chunk.frame_stamp_ns == 77
    assert chunk.deltas[:, 6].min() >= 0 and chunk.deltas[:, 6].max() <= 1 and chunk.adapter == "base"
    cold = policy.sample(images(1), "reach the red block", temperature=0.05, seed=1)
    bins = policy.logits(images(1), "reach the red block").argmax(-1).numpy()
    np.testing.assert_array_equal(chunk.deltas, policy.stats.unnormalise(decode_bins(bins))[0])
    assert np.isfinite(cold.logprobs).all()


def test_sampling_is_seeded_and_its_logprobs_are_those_of_the_gradient_path() -> None:
    policy = toy_policy()
    frames = images(6)
    one = policy.sample(frames, "push the blue block left", 1.3, seed=4)
    two = policy.sample(frames, "push the blue block left", 1.3, seed=4)
    other = policy.sample(frames, "push the blue block left", 1.3, seed=5)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    assert (one.tokens != other.tokens).any()
    policy.add_lora(4, 8.0)
    logp = policy.logprobs(frames, "push the blue block left", one.tokens, 1.3)
    np.testing.assert_allclose(logp.detach().numpy(), one.logprobs, atol=2e-2)
    logp.sum().backward()
    assert all(p.grad is not None for p in policy.trainable_parameters())


def test_padding_does_not_change_an_answer() -> None:
    policy = toy_policy()
    frames = images(2)
    texts = ["reach the red block", "put the red block on the blue plate"]
    mixed = policy.logits(frames, texts)
    alone = policy.logits(frames[:1], texts[0])
    torch.testing.assert_close(mixed[:1], alone, atol=3e-2, rtol=0.0)


def test_instruction_and_image_matter_and_any_size_is_taken() -> None:
    policy = toy_policy()
    big = np.repeat(np.repeat(images(1), 3, axis=1), 4, axis=2)
    assert policy.logits(big, "reach the red block").shape == (1, 4, 7, 256)
    red = policy.logits(images(1), "reach the red block")
    assert not torch.allclose(red, policy.logits(images(1), "reach the blue block"), atol=1e-3)
    assert not torch.allclose(red, policy.logits(images(1, seed=9), "reach the red block"), atol=1e-3)


@pytest.mark.parametrize("text", ["", "  . ", "fetch the red block", "reach " * 20])
def test_unreadable_instructions_are_refused(text: str) -> None:
    with pytest.raises(BadInstruction) as caught:
        toy_policy().act(Frame(images(1)[0], 0), text)
    if "fetch" in text:
        assert "'fetch'" in str(caught.value) and "reach" in str(caught.value)


def test_temperature_outside_its_range_is_refused() -> None:
    with pytest.raises(BadConfig, match="temperature 0"):
        toy_policy().sample(images(1), "reach the red block", 0.0, seed=0)


# ---- checkpoints -----------------------------------------------------------------------------------------------------

def test_a_checkpoint_comes_back(saved: Path) -> None:
    one, two = OpenVLA.from_pretrained(saved), OpenVLA.from_pretrained(saved)
    text = "put the red block on the blue plate"
    torch.testing.assert_close(one.logits(images(2), text), two.logits(images(2), text))
    unsaved = toy_policy()
    torch.testing.assert_close(one.logits(images(2), text), unsaved.logits(images(2), text), atol=0.1, rtol=0.1)
    assert one.base_hash == two.base_hash and one.name == "toy"


def test_broken_checkpoints_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="nowhere"):
        OpenVLA.from_pretrained(tmp_path / "nowhere")
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        OpenVLA.from_pretrained(saved)
    weights.unlink()
    with pytest.raises(BadCheckpoint, match="is missing"):
        OpenVLA.from_pretrained(saved)
    weights.write_bytes(whole)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "chunk_size": 5}))
    with pytest.raises(BadCheckpoint, match="does not fit"):
        OpenVLA.from_pretrained(saved)
    (saved / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(BadCheckpoint, match="llama"):
        OpenVLA.from_pretrained(saved)


# ---- adapters --------------------------------------------------------------------------------------------------------

def test_an_adapter_is_stored_swapped_in_and_taken_out(saved: Path, tmp_path: Path) -> None:
    policy = OpenVLA.from_pretrained(saved)
    frames, text = images(2), "reach the red block"
    base = policy.logits(frames, text)
    policy.add_lora(4, 8.0)
    torch.testing.assert_close(policy.logits(frames, text), base, atol=1e-2, rtol=0.0)
    scramble(policy)
    tuned = policy.logits(frames, text).detach()
    assert float((tuned - base).abs().max()) > 0.05
    with policy.without_adapter():
        torch.testing.assert_close(policy.logits(frames, text), base, atol=1e-2, rtol=0.0)
    assert len(policy.trainable_parameters()) and all(p.requires_grad for p in policy.trainable_parameters())
    ref = Store(tmp_path / "store").put("red block", policy.save_adapter, parent="base", base_policy=policy.name,
                                        scores={}, created_ns=0)
    fresh = OpenVLA.from_pretrained(saved)
    fresh.load_adapter(ref)
    torch.testing.assert_close(fresh.logits(frames, text), tuned, atol=1e-2, rtol=0.0)
    assert fresh.act(Frame(frames[0], 0), text).adapter == ref.name
    assert not any(p.requires_grad for p in fresh.model.parameters())
    fresh.load_adapter(None)
    torch.testing.assert_close(fresh.logits(frames, text), base)
    assert not [n for n, _ in fresh.model.named_parameters() if "lora" in n or "base_layer" in n]


def test_a_foreign_adapter_changes_nothing(saved: Path, tmp_path: Path) -> None:
    policy = OpenVLA.from_pretrained(saved)
    policy.add_lora(4, 8.0)
    scramble(policy)
    digest = policy.save_adapter(tmp_path / "mine")
    mine = AdapterRef("mine", tmp_path / "mine", digest, "base", "toy")
    stranger = toy_policy(seed=1)
    stranger.add_lora(4, 8.0)
    foreign = AdapterRef("foreign", tmp_path / "foreign", stranger.save_adapter(tmp_path / "foreign"), "base", "toy")
    policy.load_adapter(mine)
    before = policy.logits(images(1), "reach the red block")
    renamed = AdapterRef("x", mine.path, digest, "base", "other")
    for ref in (foreign, renamed, AdapterRef("x", mine.path, "0" * 64, "base", "toy")):
        with pytest.raises(AdapterMismatch):
            policy.load_adapter(ref)
    with pytest.raises(BadCheckpoint):
        policy.load_adapter(AdapterRef("x", tmp_path / "gone", "", "base", "toy"))
    assert policy.adapter == "mine"
    torch.testing.assert_close(policy.logits(images(1), "reach the red block"), before)


def test_an_adapter_of_another_shape_is_refused(saved: Path, tmp_path: Path) -> None:
    policy = OpenVLA.from_pretrained(saved)
    policy.add_lora(4, 8.0)
    policy.save_adapter(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    from world_gymnast_ros.files import sha256_file
    ref = AdapterRef("a", tmp_path / "a", sha256_file(tmp_path / "a" / "adapter_model.safetensors"), "base", "toy")
    policy.load_adapter(None)
    with pytest.raises(AdapterMismatch, match="does not fit"):
        policy.load_adapter(ref)
    assert policy.adapter == "base"


def test_policy_gradient_raises_the_probability_of_what_was_rewarded() -> None:
    policy = toy_policy()
    frames, text = images(8), "reach the red block"
    tokens = policy.sample(frames, text, 1.0, seed=0).tokens
    optimiser = torch.optim.AdamW(policy.add_lora(8, 16.0), lr=1e-2)
    scores = []
    for _ in range(10):
        logp = policy.logprobs(frames, text, tokens, 1.0).mean()
        (-logp).backward()
        optimiser.step()
        optimiser.zero_grad()
        scores.append(float(logp.detach()))
    assert scores[-1] > scores[0] + 0.03
    policy.remove_lora()
    assert policy.adapter == "base"


settings.register_profile("quick", max_examples=50, deadline=None)
settings.load_profile("quick")
