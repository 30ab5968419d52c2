"""WorldGym: equal to the published classes, exact cache, settings, strict loading, and none of the known defects.

Golden values: `test/golden/README.md`.
"""
from __future__ import annotations

import dataclasses
import json
import math
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from world_gymnast_ros.errors import BadAction, BadCheckpoint, BadConfig, BadFrame
from world_gymnast_ros.models.world_models.worldgym import WorldGym
from world_gymnast_ros.models.world_models.worldgym_dit import DiTShape, TemporalCache, WorldGymDiT
from world_gymnast_ros.models.world_models.worldgym_files import load_network, read_weights
from world_gymnast_ros.models.world_models.worldgym_sampler import LatentSampler, schedule, signal_shares
from world_gymnast_ros.models.world_models.worldgym_settings import PERSISTENT, RECOMPUTE, WorldGymSettings
from world_gymnast_ros.types import Frame, RolloutBatch, Start, WorldModel

GOLDEN = load_file(Path(__file__).parent / "golden" / "worldgym.safetensors")
WEIGHTS = {k.removeprefix("weights."): v for k, v in GOLDEN.items() if k.startswith("weights.")}
CPU = torch.device("cpu")
WINDOW = 6
TINY = WorldGymSettings(heads=2, window=WINDOW, frame_size=(32, 48))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def network(positions: str = "standard") -> WorldGymDiT:
    net = WorldGymDiT(DiTShape.of(WEIGHTS, 2, positions)).eval()
    net.load_state_dict(WEIGHTS)
    return net.requires_grad_(False)


class BoxAutoencoder:
    """An eighth of the image by averaging, with a fourth channel of zeros: real pixels, and counted."""

    channels, downscale = 4, 8

    def __init__(self) -> None:
        self.encoded = self.decoded = 0

    def encode(self, images: Tensor) -> Tensor:
        self.encoded += len(images)
        small = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2), 8).permute(0, 2, 3, 1)
        return torch.cat([4.0 * small - 2.0, torch.zeros_like(small[..., :1])], -1)

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded += len(latents)
        small = (latents[..., :3] / 4.0 + 0.5).clamp(0.0, 1.0)
        return small.repeat_interleave(8, 1).repeat_interleave(8, 2)


def world(**settings: Any) -> WorldGym:
    return WorldGym(network(), BoxAutoencoder(), dataclasses.replace(TINY, **settings), "tiny")


def starts(count: int = 3) -> list[Start]:
    rng = np.random.default_rng(5)
    return [Start(Frame(rng.integers(0, 256, (32, 48, 3), np.uint8), 0), None, "put the eggplant in the sink")
            for _ in range(count)]


def actions(copies: int, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    deltas = rng.uniform(-0.02, 0.02, (copies, count, 7)).astype(np.float32)
    deltas[..., 6] = rng.random((copies, count)) > 0.5
    return deltas


def sampled(settings: WorldGymSettings, frames: int = 9) -> tuple[Tensor, LatentSampler]:
    """Draw the golden frames with our sampler."""
    sampler = LatentSampler(network(), settings, GOLDEN["sampler.start"][:, 0])
    return sampler.advance(GOLDEN["sampler.actions"][:, 1:1 + frames], GOLDEN["sampler.noise"][:, :frames]), sampler


def uncached(settings: WorldGymSettings, start: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
    """Draw frames by the definition: for each step of each frame the whole window, causal, and DDIM's own formulas."""
    net, shares = network(), torch.tensor(signal_shares())
    frames, levels = [start], torch.linspace(-1, 999, settings.sampling_steps + 1, dtype=torch.long)
    none = torch.zeros(len(start), 1, numbers.shape[-1])
    for n in range(numbers.shape[1]):
        if settings.action_offset == 1:
            told = torch.cat([none, numbers[:, :n + 1]], 1)
        else:
            told = torch.cat([numbers[:, :n + 1], numbers[:, n:n + 1]], 1)
        x, oldest = noise[:, n], max(0, n + 2 - settings.window)
        for step in range(settings.sampling_steps, 0, -1):
            level, after = levels[step], levels[step - 1]
            context = [shares[settings.context_level].sqrt() * f for f in frames[oldest:]]
            inputs = torch.stack([*context, x], 1)
            at = torch.tensor([settings.context_level] * len(context) + [int(level)]).expand(len(start), -1)
            v = net(inputs, at, told[:, oldest:])[:, -1]
            if settings.guidance != 1.0:
                null = torch.zeros_like(told)
                null[..., -1] = 1.0
                v = (1 - settings.guidance) * net(inputs, at, null[:, oldest:])[:, -1] + settings.guidance * v
            a, b = shares[level], shares[after] if after >= 0 else torch.tensor(1.0)
            clean, eps = a.sqrt() * x - (1 - a).sqrt() * v, (1 - a).sqrt() * x + a.sqrt() * v
            x = b.sqrt() * clean + (1 - b).sqrt() * eps
        frames.append(x)
    return torch.stack(frames[1:], 1)


# ---- equal to the published classes -----------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["standard", "pixel"])
def test_the_network_equals_the_published_class(positions: str) -> None:
    v = network(positions)(GOLDEN["dit.latents"], GOLDEN["dit.levels"], GOLDEN["dit.actions"])
    torch.testing.assert_close(v, GOLDEN[f"dit.v.{positions}"], rtol=0.0, atol=1e-5)
    other = GOLDEN[f"dit.v.{'pixel' if positions == 'standard' else 'standard'}"]
    assert (v - other).abs().max() > 1e-2  # the setting matters


@pytest.mark.parametrize(("guidance", "together", "steps"), [(1, 1, 10), (3, 1, 10), (1, 3, 10), (1, 1, 4)])
def test_the_sampler_equals_the_published_one(guidance: int, together: int, steps: int) -> None:
    """Nine frames under a window of six: also once the window moves."""
    settings = dataclasses.replace(TINY, guidance=float(guidance), frames_at_once=together, sampling_steps=steps)
    frames, _ = sampled(settings)
    golden = GOLDEN[f"sampler.frames.guidance{guidance}.together{together}.steps{steps}"]
    torch.testing.assert_close(frames, golden, rtol=0.0, atol=1e-4)


def test_noise_levels_equal_the_published_ones() -> None:
    torch.testing.assert_close(torch.tensor(signal_shares()), GOLDEN["schedule.signal_shares"], rtol=1e-6, atol=0.0)


def test_actions_are_scaled_as_published_and_not_changed() -> None:
    deltas = GOLDEN["actions.deltas"].numpy()
    before = deltas.copy()
    numbers = WorldGymSettings().model_actions(deltas, 10)
    np.testing.assert_allclose(numbers[:, :7], GOLDEN["actions.numbers"], atol=1e-6)
    assert not numbers[:, 7:].any() and np.array_equal(deltas, before)
    inside = WorldGymSettings(clip_margin=0.01).model_actions(deltas, 10)
    assert np.abs(inside[:, :3]).max() == np.float32(1.74) and np.abs(inside[:, 3:6]).max() == np.float32(1.39)
    # the arm moves 0.05 m at most whatever the direction, and so does the dream
    far = WorldGymSettings().model_actions(np.array([[0.05, 0.05, 0, 0, 0, 0, 1]], np.float32), 10)
    np.testing.assert_allclose(far[0, :2], 1.75 / math.sqrt(2), atol=1e-6)


# ---- the cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [RECOMPUTE, PERSISTENT])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_cache_is_exact_until_the_window_moves_and_then_as_the_mode_says(mode: str, offset: int, guidance: float
                                                                           ) -> None:
    settings = dataclasses.replace(TINY, after_window=mode, action_offset=offset, guidance=guidance)
    frames, _ = sampled(settings)
    plain = uncached(settings, GOLDEN["sampler.start"][:, 0], GOLDEN["sampler.actions"][:, 1:], GOLDEN["sampler.noise"])
    difference = (frames - plain).abs().amax((0, 2, 3, 4))
    assert difference[:WINDOW - 1].max() < 1e-5
    if mode == RECOMPUTE:
        assert difference.max() < 1e-4
    else:
        assert difference[WINDOW:].min() > 1e-3  # another model of what is remembered, and said to be


def test_a_frame_is_no_part_of_what_follows_it() -> None:
    """The last of frames drawn together leaves those before it as they are."""
    a, _ = sampled(dataclasses.replace(TINY, frames_at_once=3), 3)
    sampler = LatentSampler(network(), dataclasses.replace(TINY, frames_at_once=3), GOLDEN["sampler.start"][:, 0])
    noise = GOLDEN["sampler.noise"][:, :3].clone()
    noise[:, 2] += 1.0
    b = sampler.advance(GOLDEN["sampler.actions"][:, 1:4], noise)
    assert torch.equal(a[:, :2], b[:, :2]) and not torch.equal(a[:, 2], b[:, 2])


def test_many_copies_are_attended_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = sampled(TINY, 3)
    monkeypatch.setattr("world_gymnast_ros.models.world_models.worldgym_dit.MOST_SEQUENCES", 5)
    parts, _ = sampled(TINY, 3)
    torch.testing.assert_close(parts, whole, rtol=0.0, atol=1e-5)


def test_a_pass_that_leaves_a_gap_is_refused() -> None:
    cache = TemporalCache(4)
    cache.begin(0, 2, CPU)
    with pytest.raises(ValueError, match="does not fit"):
        cache.begin(3, 1, CPU)


# ---- defects of the public code that are not inherited -----------------------------------------------------------


def test_the_pass_that_fills_the_cache_is_causal() -> None:
    shipped, plain = GOLDEN["sampler.shipped_cache.guidance1"], GOLDEN["sampler.frames.guidance1.together1.steps10"]
    frames, _ = sampled(TINY)
    assert (shipped - plain).abs().max() > 0.01 and (frames - plain).abs().max() < 1e-4


@pytest.mark.parametrize(("mode", "counted"), [(PERSISTENT, 40 * 11), (RECOMPUTE, 19 * 11 + 21 * 29)])
def test_the_cache_lasts(mode: str, counted: int) -> None:
    """Forty frames under the published window of 20: 6,290 frame-forwards without a cache, 989 as shipped."""
    settings = dataclasses.replace(TINY, window=20, after_window=mode)
    sampler = LatentSampler(network(), settings, GOLDEN["sampler.start"][:, 0])
    sampler.advance(torch.zeros(2, 40, 10), torch.randn(2, 40, 4, 6, 4))
    assert (sampler.frame_forwards, sampler.calls) == (counted, 400)


def test_only_frames_of_the_pass_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = 0

    def tokens(self: WorldGymDiT, latents: Tensor) -> Tensor:
        nonlocal embedded
        embedded += latents.shape[1]
        return real(self, latents)

    real = WorldGymDiT._tokens
    monkeypatch.setattr(WorldGymDiT, "_tokens", tokens)
    sampled(TINY, 5)
    assert embedded == 5 * 11


class NothingWaits(TorchDispatchMode):
    """Refuse what makes the host wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
                            torch.ops.aten.is_nonzero.default), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [RECOMPUTE, PERSISTENT])
def test_nothing_waits_for_the_device_while_frames_are_drawn(mode: str) -> None:
    sampler = LatentSampler(network(), dataclasses.replace(TINY, after_window=mode), GOLDEN["sampler.start"][:, 0])
    with NothingWaits():
        with pytest.raises(AssertionError, match="waits"):
            torch.ones(1).item()
        sampler.advance(GOLDEN["sampler.actions"][:, 1:], GOLDEN["sampler.noise"])


def test_five_frames_together_take_fourteen_passes() -> None:
    _, sampler = sampled(dataclasses.replace(TINY, frames_at_once=5), 5)
    assert (sampler.calls, sampler.frame_forwards) == (14, 5 * 11)
    assert len(schedule(10, 5)) == 14


def test_guidance_is_one_batch() -> None:
    _, sampler = sampled(dataclasses.replace(TINY, guidance=3.0), 5)
    assert sampler.calls == 50


def test_a_dream_takes_no_more_memory_the_longer_it_is() -> None:
    settings = dataclasses.replace(TINY, after_window=PERSISTENT)
    sampler = LatentSampler(network(), settings, GOLDEN["sampler.start"][:, 0])

    def held() -> int:
        return sampler.cache.bytes + sum(f.latent.numel() + f.action.numel() for f in sampler._past)

    sizes = []
    for _ in range(4):
        sampler.advance(torch.zeros(2, 8, 10), torch.randn(2, 8, 4, 6, 4))
        sizes.append(held())
    assert sizes == sizes[:1] * 4


def test_only_frames_that_are_looked_at_are_decoded_and_a_start_is_encoded_once() -> None:
    model = world()
    rollouts = model.begin([starts(2)[i] for i in (0, 0, 1, 0)], seed=1)
    whole = model.begin([starts(2)[i] for i in (0, 0, 1, 0)], seed=1).play(actions(4, 5))
    assert model.autoencoder.encoded == 2 + 2 and model.autoencoder.decoded == 20
    latents = rollouts.draw(actions(4, 5))
    last = rollouts.decode([row[t] for row in latents for t in (0, 4)])
    assert model.autoencoder.decoded == 20 + 8 and np.array_equal(last.reshape(4, 2, 32, 48, 3), whole[:, [0, 4]])


def test_actions_count_by_default_and_cannot_be_switched_off_by_accident() -> None:
    """The public sampler's default guidance of 0 draws without actions."""
    assert WorldGymSettings().guidance == 1.0
    with pytest.raises(BadConfig, match="guidance"):
        WorldGymSettings(guidance=0.0)
    a, b = (world().begin(starts(1), seed=3).play(actions(1, 3, seed)) for seed in (0, 1))
    assert not np.array_equal(a, b)


def test_no_mode_is_left_open() -> None:
    world().begin(starts(1), 0).play(actions(1, 1))
    assert not torch.is_autocast_enabled("cpu") and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 1, 7), (1, 0, 7), (1, 1, 10)])
def test_actions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadAction, match=r"\(1, K, 7\)"):
        world().begin(starts(1), 0).play(np.zeros(shape, np.float32))


def test_actions_that_are_not_finite_are_refused_and_change_nothing() -> None:
    rollouts, other = (world().begin(starts(1), 0) for _ in range(2))
    bad = actions(1, 2)
    bad[0, 1, 2] = np.nan
    with pytest.raises(BadAction, match="non-finite"):
        rollouts.play(bad)
    assert np.array_equal(rollouts.play(actions(1, 2)), other.play(actions(1, 2)))


# ---- the world model --------------------------------------------------------------------------------------------


def test_it_is_a_world_model() -> None:
    model: WorldModel = world()
    rollouts: RolloutBatch = model.begin(starts(2), 0)
    frames = rollouts.play(actions(2, 3))
    assert (model.name, model.frame_size, model.stride) == ("tiny", (32, 48), 1)
    assert frames.shape == (2, 3, 32, 48, 3) and frames.dtype == np.uint8
    with pytest.raises(BadConfig, match="no start"):
        model.begin([], 0)


@pytest.mark.parametrize("mode", [RECOMPUTE, PERSISTENT])
def test_a_copy_depends_on_its_seed_and_actions_alone(mode: str) -> None:
    """Not on the batch, on who left it, or on how many actions are played at once."""
    model, deltas = world(after_window=mode, guidance=2.0), actions(3, 10)
    whole = model.begin(starts(3), 7).play(deltas)
    again = model.begin(starts(3), 7)
    assert np.array_equal(again.play(deltas[:, :4]), whole[:, :4])
    again.keep(np.array([2, 0]))
    assert np.abs(again.play(deltas[[2, 0], 4:]).astype(int) - whole[[2, 0], 4:]).max() <= 1
    alone = model.begin(starts(1), 7)
    single = np.concatenate([alone.play(deltas[:1, t:t + 1]) for t in range(10)], 1)
    assert np.abs(single.astype(int) - whole[:1]).max() <= 1
    assert not np.array_equal(model.begin(starts(3), 8).play(deltas), whole)
    assert not np.array_equal(model.begin([starts(1)[0]] * 2, 7).play(deltas[[0, 0]])[0], whole[1])


def test_frames_of_the_camera_are_resized() -> None:
    wide = Start(Frame(np.full((480, 640, 3), 90, np.uint8), 0), None, "close the drawer")
    assert world().begin([wide], 0).play(actions(1, 1)).shape == (1, 1, 32, 48, 3)
    with pytest.raises(BadFrame):
        world().begin([Start(Frame(np.zeros((0, 4, 3), np.uint8), 0), None, "close the drawer")], 0)


@pytest.mark.parametrize(("field", "value"), [
    ("window", 1), ("action_offset", 2), ("sampling_steps", 0), ("context_level", 1000), ("guidance", float("nan")),
    ("frames_at_once", 20), ("after_window", "sometimes"), ("clip_margin", 1.0), ("translation", (0.0, 1.0)),
])
def test_settings_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(BadConfig, match=field):
        WorldGymSettings(**{field: value})


def test_settings_survive_a_file_and_unknown_ones_are_refused() -> None:
    settings = dataclasses.replace(TINY, guidance=3.0, after_window=PERSISTENT)
    assert WorldGymSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(BadConfig, match="cfg"):
        WorldGymSettings.from_dict({"cfg": 3.0})


# ---- loading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ema", "plain", "safetensors"])
def test_published_files_load_as_they_are(tmp_path: Path, how: str) -> None:
    file = tmp_path / ("w.safetensors" if how == "safetensors" else "w.pt")
    if how == "safetensors":
        save_file(WEIGHTS, file)
    else:
        junk = {k: torch.zeros_like(v) for k, v in WEIGHTS.items()}
        torch.save({"model": junk, "ema": WEIGHTS, "optimizer": {"state": {}}, "step": 3} if how == "ema" else WEIGHTS,
                   file)
    loaded = load_network(file, 2, "standard", CPU, torch.float32)
    assert all(torch.equal(v, WEIGHTS[k]) for k, v in loaded.state_dict().items())
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
    v = loaded(GOLDEN["dit.latents"], GOLDEN["dit.levels"], GOLDEN["dit.actions"])
    torch.testing.assert_close(v, GOLDEN["dit.v.standard"], rtol=0.0, atol=1e-5)
    assert load_network(file, 2, "standard", CPU, torch.bfloat16).dtype == torch.bfloat16


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    wrong = dict(WEIGHTS)
    missing = [wrong.pop(k) is not None and k for k in ("blocks.1.t_block.attn.qkv_proj.weight", "x_proj.bias")]
    wrong["blocks.0.s_block.attn.k_norm.weight"] = torch.zeros(3)
    wrong["final_layer.linear.bias"] = torch.zeros(3)
    save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(BadCheckpoint) as error:
        load_network(tmp_path / "w.safetensors", 2, "standard", CPU, torch.float32)
    for part in (*(f"missing {k}" for k in missing), "unexpected blocks.0.s_block.attn.k_norm.weight",
                 "final_layer.linear.bias is (3,), not (16,)"):
        assert str(part) in str(error.value)


def test_a_foreign_file_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harmed",))

    torch.save({"ema": Harm()}, tmp_path / "harm.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    torch.save({"ema": {"x": 3}}, tmp_path / "other.pt")
    for name in ("harm.pt", "cut.pt", "other.pt"):
        with pytest.raises(BadCheckpoint, match=name):
            read_weights(tmp_path / name)
    assert not (tmp_path / "harmed").exists()
    bad = {**WEIGHTS, "x_proj.bias": torch.full((32,), float("nan"))}
    save_file(bad, tmp_path / "nan.safetensors")
    with pytest.raises(BadCheckpoint, match=r"x_proj\.bias holds numbers that are not finite"):
        load_network(tmp_path / "nan.safetensors", 2, "standard", CPU, torch.float32)
    with pytest.raises(BadConfig, match="heads"):
        load_network(tmp_path / "nan.safetensors", 3, "standard", CPU, torch.float32)


def test_loading_makes_no_second_copy(tmp_path: Path) -> None:
    """In a process of its own: 75 MB of weights beside 150 MB of training state raise the peak by less than 120."""
    program = f"""
import resource, torch
from pathlib import Path
from world_gymnast_ros.models.world_models.worldgym_dit import DiTShape, WorldGymDiT
from world_gymnast_ros.models.world_models.worldgym_files import load_network
load_network(Path({str(tmp_path / "warm.pt")!r}), 2, "standard", torch.device("cpu"), torch.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
net = load_network(Path({str(tmp_path / "w.pt")!r}), 4, "standard", torch.device("cpu"), torch.float32)
size = sum(p.numel() for p in net.parameters()) * 4 / 1024
print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    assert resource.RUSAGE_SELF == 0
    torch.save(WEIGHTS, tmp_path / "warm.pt")
    state = WorldGymDiT(DiTShape(4, 2, 256, 8, 10, 4)).state_dict()
    torch.save({"model": state, "ema": {k: v + 0.1 for k, v in state.items()}, "optimizer": {
        k: v + 0.2 for k, v in state.items()}}, tmp_path / "w.pt")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    size_kib, grew_kib = map(float, done.stdout.split())
    assert size_kib > 70_000 and grew_kib < 1.6 * size_kib, (size_kib, grew_kib)


def test_a_folder_and_a_file_load_as_a_world_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("world_gymnast_ros.models.world_models.worldgym.load_autoencoder", lambda *_: BoxAutoencoder())
    folder = tmp_path / "kitchen"
    folder.mkdir()
    torch.save({"ema": WEIGHTS}, folder / "ckpt_000480000.pt")
    (folder / "config.json").write_text(json.dumps(TINY.to_dict()))
    model = WorldGym.from_pretrained(folder, dtype=torch.float32)
    assert (model.name, model.settings, model.frame_size) == ("kitchen", TINY, (32, 48))
    same = WorldGym.from_pretrained(folder / "ckpt_000480000.pt", dtype=torch.float32, settings=TINY)
    a, b = (m.begin(starts(1), 0).play(actions(1, 2)) for m in (model, same))
    assert same.name == "ckpt_000480000" and np.array_equal(a, b)
    (folder / "second.pt").write_bytes(b"")
    with pytest.raises(BadCheckpoint, match="one file of weights"):
        WorldGym.from_pretrained(folder)
    with pytest.raises(BadCheckpoint, match="one file of weights"):
        WorldGym.from_pretrained(tmp_path / "nowhere")


def test_parts_that_do_not_fit_are_refused() -> None:
    class Other(BoxAutoencoder):
        channels = 16

    with pytest.raises(BadCheckpoint, match="16 latent channels"):
        WorldGym(network(), Other(), TINY, "x")
    with pytest.raises(BadConfig, match="multiple of 16"):
        WorldGym(network(), BoxAutoencoder(), dataclasses.replace(TINY, frame_size=(32, 40)), "x")
