"""The memory plan: weights, adapter and cache exact, what works estimated within a factor, refusals with remedies."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_openvla import SINK, camera_frame, write_folder
from test_published_learning import SCHEMES
from test_worldgym import TINY, WEIGHTS
from tiny_cosmos3 import write_repository, write_world
from tiny_vlm import QWEN, write_tiny_vlm
from torch.profiler import ProfilerActivity, profile

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.cli import main
from world_gymnast_ros.config import load as load_config
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.loading.load import JUDGE, POLICY, WORLD_MODEL, load
from world_gymnast_ros.loading.memory import judge_size, policy_size, world_size
from world_gymnast_ros.models.judges.vlm import VLMConfig
from world_gymnast_ros.models.policies.openvla_policy import load_openvla
from world_gymnast_ros.models.policies.prismatic import PrismaticConfig, PrismaticVLA
from world_gymnast_ros.models.world_models.worldgym_dit import DiTShape, WorldGymDiT
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.types import Frame, Start
from world_gymnast_ros.updates import adaptation
from world_gymnast_ros.updates.memory_plan import GIB, MemoryPlan, Part, free_bytes, memory_plan

FACTOR = 2.0
"""An estimate lies within this factor of what was measured, either way."""
REACH = "reach the red block"


def taken(network: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def peak(work: Callable[[], Any]) -> int:
    """Most bytes that `work` holds on the CPU beyond what was held before, as torch's allocator counts them."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = most = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events()
                          if e.name() == "[memory]"):
        held += size
        most = max(most, held)
    return most


def near(estimate: float, measured: float) -> bool:
    return measured / FACTOR <= estimate <= measured * FACTOR


def learning(policy: Any, words: str, chunks: int) -> tuple[int, int]:
    """Measured peaks of sampling so many chunks, and of one backward pass over them."""
    frames = np.repeat(camera_frame(96, 128, 0)[None], chunks, 0)
    tokens = policy.sample(frames, words, 1.2, 0).tokens
    acting = peak(lambda: policy.sample(frames, words, 1.2, 0))
    weights = policy.add_lora()

    def back() -> None:
        policy.logprobs(frames, words, tokens, 1.2).sum().backward()
        for weight in weights:
            weight.grad = None
    return acting, peak(back)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_published_policy(tmp_path: Path, scheme: str, dtype: str) -> None:
    folder = write_folder(tmp_path / "openvla", recipe=SCHEMES[scheme], l1_head=scheme == "l1")
    size = policy_size(str(folder), "cpu", getattr(torch, dtype), False)
    policy = load_openvla(folder, dtype=dtype)
    assert size.weights == taken(policy.network) and size.full_size and size.recomputed
    assert size.adapter * 8 == sum(p.numel() for p in policy.add_lora(8, 16.0))
    policy.remove_lora()
    acting, back = learning(policy, SINK, 4)
    assert near(size.acting(4), acting), (size.acting(4), acting)
    assert near(size.learning(4), back), (size.learning(4), back)


def test_the_small_policy() -> None:
    policy, size = load(POLICY, "", "cpu"), policy_size("", "cpu", None, False)
    assert size.weights == taken(policy.model) and not size.full_size
    assert size.adapter * 16 == sum(p.numel() for p in policy.add_lora(16, 32.0))
    policy.remove_lora()
    acting, back = learning(policy, REACH, 16)
    assert near(size.acting(16), acting) and near(size.learning(16), back), (size.acting(16), acting,
                                                                            size.learning(16), back)


def test_four_bits_take_a_quarter_of_sixteen(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "openvla", recipe=SCHEMES["parallel"]))
    whole, short = (policy_size(folder, "cpu", torch.bfloat16, bits) for bits in (False, True))
    layers = 3 * (4 * 64 * 64 + 3 * 64 * 96)  # of TEXT: attention and MLP of three layers
    assert whole.weights - short.weights == round(layers * 2) - round(layers * (0.5 + 1 / 64 + 1 / 4096))


def begun(world: Any, copies: int, state: Any = None) -> Any:
    return world.begin([Start(Frame(camera_frame(240, 320, 0), 0), state, SINK)] * copies, 0)


def worldgym_folder(folder: Path, **settings: Any) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
                  up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, layers_per_block=1,
                  use_quant_conv=False, use_post_quant_conv=False).save_pretrained(folder / "vae")
    torch.save({"ema": WEIGHTS}, folder / "weights.pt")
    (folder / "config.json").write_text(json.dumps({**TINY.to_dict(), "frame_size": [64, 64], **settings}))
    return folder


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_worldgym(tmp_path: Path, guidance: float) -> None:
    folder = worldgym_folder(tmp_path, guidance=guidance, sampling_steps=2)
    size = world_size(str(folder), "", "cpu", torch.float32, 5)
    world = load(WORLD_MODEL, folder, "cpu", "float32")
    assert size.weights == taken(world.network) + taken(world.autoencoder.model) and size.frame == 64 * 64 * 3
    imagined = begun(world, 3)
    actions = np.zeros((3, TINY.window + 2, 7), np.float32)
    imagined.play(actions)
    assert 3 * size.cache == imagined.sampler.cache.bytes


def test_cosmos_3(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "world", write_repository(tmp_path / "repository"))
    size, world = world_size(str(folder), "", "cpu", torch.float32, 5), load(WORLD_MODEL, folder, "cpu", "float32")
    assert size.weights == taken(world._pipeline.transformer) + taken(world._pipeline.vae)
    plan = memory_plan(AdaptNodeConfig(world_model=str(folder), device="cpu", dtype="float32"))
    assert "unknown  what Cosmos 3 needs while it draws" in plan.text, "it is not estimated, and that is said"


def test_the_small_world_model() -> None:
    size, world = world_size("", "", "cpu", torch.float32, 5), load(WORLD_MODEL, "", "cpu", "float32")
    locator = judge_size("tiny/locator", "cpu", None)
    assert size.weights == taken(world.network) + locator.weights, "it draws objects that a locator finds"
    imagined = begun(world, 4)
    imagined.play(np.zeros((4, 1, 7), np.float32))
    rings = imagined._sampler.cache._rings.values()
    assert 4 * size.cache == sum(t.numel() * t.element_size() for ring in rings for t in ring)
    drawing = peak(lambda: imagined.play(np.zeros((4, 1, 7), np.float32)))
    assert near(4 * size.drawing, drawing), (4 * size.drawing, drawing)


def test_judges(tmp_path: Path) -> None:
    small = judge_size("tiny/reflector", "cpu", None)
    assert small.weights == taken(load(JUDGE, "tiny/reflector", "cpu").model)
    assert judge_size("tiny/locator", "cpu", None).weights == taken(load(JUDGE, "tiny/locator", "cpu").locator.network)
    assert judge_size("http://localhost:1/v1#m", "cpu", None).elsewhere
    model = write_tiny_vlm(tmp_path / "vlm", QWEN)
    VLMConfig(model=str(model), frames=2, frame_px=32).save(tmp_path / "judge")
    judge = load(JUDGE, tmp_path / "judge", "cpu")
    assert judge_size(str(tmp_path / "judge"), "cpu", None).weights == taken(judge.model)
    assert judge_size(str(model), "cpu", torch.bfloat16).weights * 2 == taken(judge.model)


def test_the_plan_names_every_part_and_is_told_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("the plan comes first")
    monkeypatch.setattr(adaptation, "load_policy", loads)
    with pytest.raises(AssertionError, match="comes first"):
        adaptation.load_parts(AdaptNodeConfig(device="cpu"), told.append)
    [text] = told
    for part in ("weights of the policy", "weights of the world model", "weights of the judge tiny/reflector", "AdamW",
                 "cache of 48 rollouts", "activations of 80 chunks", "in all at the fullest moment", "free: "):
        assert part in text, text
    assert text.splitlines()[0].startswith("memory plan on cpu") and "unknown" not in text


def test_a_session_that_does_not_fit_is_refused_and_told_what_helps(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "openvla", recipe=SCHEMES["parallel"])
    config = AdaptNodeConfig(policy=str(folder), device="cpu", copies=8)
    plan = memory_plan(config, free=2**20)
    assert not plan.fits and memory_plan(config, free=GIB * 64).fits
    with pytest.raises(BadConfig, match=r"needs about .* on cpu and 1\.0 MiB are free; nothing was loaded") as refused:
        plan.check()
    for remedy in ("four_bit=true", "copies=4", "micro_chunks=4", "--world-model http", "check_memory=false"):
        assert remedy in str(refused.value), refused.value
    fields = {f.name for f in dataclasses.fields(AdaptNodeConfig)}
    assert {"four_bit", "copies", "micro_chunks", "max_batch", "lora_rank", "dtype", "check_memory"} <= fields


def test_adapt_refuses_before_it_loads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                       tmp_path: Path) -> None:
    from PIL import Image

    from world_gymnast_ros.updates import memory_plan as module

    monkeypatch.setattr(module, "free_bytes", lambda device: 2**20)
    Image.fromarray(camera_frame(96, 128, 0)).save(tmp_path / "a.png")
    told = main(["adapt", REACH, "--frame", str(tmp_path / "a.png"), "--state", "0.25", "0", "0.1", "0", "0", "0", "1",
                 "--judge", "tiny/reflector", "--device", "cpu", "--out", str(tmp_path / "runs")])
    out = capsys.readouterr()
    assert told == 2 and "memory plan on cpu" in out.err and "1.0 MiB are free" in out.err
    assert not (tmp_path / "runs" / "sessions").exists()


def sparse(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file whose header is true and whose tensors are a hole: nothing may read them."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + at)


def full_size(folder: Path, judge_numbers: int) -> dict[str, str]:
    """OpenVLA 7B, WorldGym with Stable Diffusion 3's autoencoder, and a VLM of so many numbers: headers alone."""
    config = PrismaticConfig(text_config={"model_type": "llama", "vocab_size": 32064})
    with torch.device("meta"):
        networks = {"policy": PrismaticVLA(config), "world": WorldGymDiT(DiTShape())}
    for name, network in networks.items():
        sparse(folder / name / "model.safetensors", {n: tuple(t.shape) for n, t in network.state_dict().items()})
    config.save_pretrained(folder / "policy")
    (folder / "policy" / "world_gymnast.json").write_text('{"decoding": "parallel", "chunk_size": 5}')
    (folder / "world" / "config.json").write_text('{"model_type": "worldgym"}')
    sparse(folder / "world" / "vae" / "diffusion_pytorch_model.safetensors", {"all": (83_819_683,)})
    (folder / "world" / "vae" / "config.json").write_text('{"block_out_channels": [128, 256, 512, 512]}')
    sparse(folder / "judge" / "model.safetensors", {"all": (judge_numbers,)})
    (folder / "judge" / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", "vision_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "patch_size": 16, "spatial_merge_size": 2}, "text_config": {
        "hidden_size": 2560, "intermediate_size": 9728, "vocab_size": 151936}}))
    return {"policy": str(folder / "policy"), "world_model": str(folder / "world"), "judges": str(folder / "judge")}


@pytest.mark.parametrize(("card", "judge", "least"), [(80, 4_437_815_808, 30), (24, 2_127_532_032, 12)])
def test_the_profiles_fit_their_cards(tmp_path: Path, card: int, judge: int, least: int) -> None:
    profile_ = load_config(AdaptNodeConfig, share_path(f"config/adapt_{card}gb.yaml"))
    plan = memory_plan(dataclasses.replace(profile_, device="cpu", **full_size(tmp_path, judge)), free=card * 10**9)
    assert plan.fits and plan.needed > least * 10**9 and not plan.unread, plan.text
    policy = next(part for part in plan.parts if part.name == "weights of the policy")
    assert 14.9e9 < policy.bytes < 15.1e9 or (card == 24 and 4.5e9 < policy.bytes < 6e9), plan.text
    world = next(part for part in plan.parts if part.name == "weights of the world model")
    assert 1.37e9 < world.bytes < 1.40e9, plan.text


def test_of_parts_that_do_not_live_together_the_larger_counts() -> None:
    parts = (Part("a", 100, True), Part("b", 50, True, "imagining"), Part("c", 30, False, "imagining"),
             Part("d", 70, False, "learning"))
    assert MemoryPlan(parts, "cpu", 198).needed == 198 and MemoryPlan(parts, "cpu", 197).fits is False


def test_what_cannot_be_read_is_unknown_and_no_reason_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    plan = memory_plan(AdaptNodeConfig(policy=str(tmp_path), device="cpu"), free=GIB)
    assert "unknown  policy" in plan.text and plan.fits


def test_free_memory_is_that_of_the_machine() -> None:
    free = free_bytes("cpu")
    assert free is not None and 2**20 < free < 2**50 and free_bytes("meta") is None
