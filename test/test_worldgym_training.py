"""Training of a WorldGym network: the published loss, aligned actions, LoRA in peft's format, checkpoints that load."""
from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_progress import Terminal
from torch import Tensor
from toy_play import write_toy_play

from world_gymnast_ros import progress
from world_gymnast_ros.adaptation.rollout import imagine
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadBudget, BadCheckpoint, BadConfig, EpisodeError
from world_gymnast_ros.loading.load import (
    JUDGE,
    WORLD_MODEL,
    checkpoint_dir,
    frame_size,
    holds,
    load_world_model,
)
from world_gymnast_ros.loading.release import release_hashes, release_table
from world_gymnast_ros.models.policies.lora import LoraSlot, read_adapter
from world_gymnast_ros.models.world_models.worldgym import WorldGym
from world_gymnast_ros.models.world_models.worldgym_dit import DiTShape, WorldGymDiT
from world_gymnast_ros.models.world_models.worldgym_files import is_worldgym, load_network
from world_gymnast_ros.models.world_models.worldgym_settings import WorldGymSettings
from world_gymnast_ros.testing.fakes import GOALS, FakeJudge, FakePolicy
from world_gymnast_ros.training.worldgym import ADAPTER, LORA_TARGETS, WorldGymTrainer, WorldGymTraining, diffusion_loss
from world_gymnast_ros.training.worldgym import encode as encode_episode
from world_gymnast_ros.updates.judges import JudgeUpdate, update_judge
from world_gymnast_ros.updates.world_model import TRAINERS, UpdateConfig, check_updatable, fine_tune, mixed, parent_name

GOLDEN = load_file(Path(__file__).parent / "golden" / "worldgym.safetensors")
WEIGHTS = {k.removeprefix("weights."): v for k, v in GOLDEN.items() if k.startswith("weights.")}
SETTINGS = WorldGymSettings(heads=2, window=6, frame_size=(32, 48))
QUICK = WorldGymTraining(steps=3, clip_frames=4, batch=2, lora_rank=4, learning_rate=1e-3, warmup_steps=1, average=0.0)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("world_gymnast_ros.models.world_models.worldgym.load_autoencoder", lambda *_: Box())


class Box:
    """An eighth of the image by averaging, with a fourth channel of zeros."""

    channels, downscale = 4, 8

    def encode(self, images: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2), 8).permute(0, 2, 3, 1)
        return torch.cat([4.0 * small - 2.0, torch.zeros_like(small[..., :1])], -1)

    def decode(self, latents: Tensor) -> Tensor:
        return (latents[..., :3] / 4.0 + 0.5).clamp(0.0, 1.0).repeat_interleave(8, 1).repeat_interleave(8, 2)


def network() -> WorldGymDiT:
    net = WorldGymDiT(DiTShape.of(WEIGHTS, 2, "standard"))
    net.load_state_dict(WEIGHTS)
    return net.eval().requires_grad_(False)


def world(**settings: Any) -> WorldGym:
    return WorldGym(network(), Box(), replace(SETTINGS, **settings), "tiny")


def episodes(count: int = 3, frames: int = 8) -> list[Episode]:
    """A bright square that each action moves by eight pixels to one side."""
    rng, out = np.random.default_rng(0), []
    for _ in range(count):
        column, images, deltas = 2, [], []
        for _ in range(frames):
            image = np.zeros((32, 48, 3), np.uint8)
            image[8:24, 8 * column:8 * column + 8] = 255
            images.append(image)
            side = int(rng.choice([-1, 1])) if 0 < column < 5 else (1 if column == 0 else -1)
            column += side
            deltas.append([0.04 * side, 0, 0, 0, 0, 0, 1])
        out.append(Episode(np.stack(images), np.array(deltas[:-1], np.float32), None))
    return out


def test_the_loss_equals_the_published_one() -> None:
    parts = [GOLDEN[f"loss.{part}"] for part in ("latents", "actions", "levels", "noise")]
    torch.testing.assert_close(diffusion_loss(network(), *parts).reshape(1), GOLDEN["loss.value"], rtol=1e-5, atol=0.0)


def test_actions_stand_where_the_settings_say() -> None:
    episode = episodes(1)[0]
    led_to, taken_at = (encode_episode(world(action_offset=offset), episode) for offset in (1, 0))
    numbers = torch.from_numpy(SETTINGS.model_actions(episode.deltas, 10))
    assert len(led_to.latents) == len(led_to.numbers) == len(taken_at.numbers) == 8
    assert torch.equal(led_to.numbers[1:], numbers) and not led_to.numbers[0].any()
    assert torch.equal(taken_at.numbers[:-1], numbers)


def test_a_lora_learns_and_leaves_the_base_alone() -> None:
    model = world()
    trainer = WorldGymTrainer(model, episodes(), replace(QUICK, steps=60))
    losses: list[float] = []
    trainer.run(lambda step, loss: losses.append(loss))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3]), losses
    assert trainer.slot is not None
    assert {n.split(".")[-1] for n, _ in trainer.slot.layers()} >= {"qkv_proj", "out_proj", "0", "1", "2", "linear",
                                                                    "action_embedder"}
    trainer.slot.remove()
    assert all(torch.equal(v, WEIGHTS[k]) for k, v in model.network.state_dict().items())


def test_it_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, mininterval=0.0))  # however quick a step is
    for budget, unit in ((WorldGymTraining(steps=2, clip_frames=4, batch=1), "2/2"),
                         (WorldGymTraining(minutes=0.02, clip_frames=4, batch=1), "/1 [")):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        WorldGymTrainer(world(), episodes(), budget).run()
        said = terminal.getvalue()
        assert "encoding" in said and "training the world model" in said and unit in said, said


def test_the_same_seed_trains_the_same_weights() -> None:
    ends = []
    for seed in (1, 1, 2):
        trainer = WorldGymTrainer(world(), episodes(), replace(QUICK, seed=seed))
        trainer.run()
        ends.append(torch.cat([p.detach().flatten() for p in trainer.trained]))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("rank", [4, 0])
def test_a_run_is_a_checkpoint_that_loads(tmp_path: Path, rank: int) -> None:
    model = world()
    trainer = WorldGymTrainer(model, episodes(), replace(QUICK, lora_rank=rank))
    trainer.run()
    with torch.no_grad():
        v = model.network(GOLDEN["dit.latents"], GOLDEN["dit.levels"], GOLDEN["dit.actions"])
    out = trainer.save(tmp_path / "run", tmp_path / "vae", "tiny", "f" * 64)
    loaded = WorldGym.from_pretrained(out, dtype=torch.float32)
    again = loaded.network(GOLDEN["dit.latents"], GOLDEN["dit.levels"], GOLDEN["dit.actions"])
    base = GOLDEN["dit.v.standard"]
    assert (v - base).abs().max() > 1e-2 and (again - v).abs().max() < 0.05  # checkpoints are bfloat16
    assert replace(loaded.settings, vae="vae") == SETTINGS and Path(loaded.settings.vae) == (tmp_path / "vae").resolve()
    assert (out / ADAPTER).is_dir() == bool(rank)
    if rank:
        _adapter_alone_gives_the_same(out, v)


def _adapter_alone_gives_the_same(out: Path, v: Tensor) -> None:
    config = json.loads((out / ADAPTER / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["target_modules"]) == ("LORA", 4, LORA_TARGETS)
    net = network()
    slot = LoraSlot(net, LORA_TARGETS)
    slot.put(read_adapter(out / ADAPTER, "f" * 64))
    with torch.no_grad():
        adapted = net(GOLDEN["dit.latents"], GOLDEN["dit.levels"], GOLDEN["dit.actions"])
    torch.testing.assert_close(adapted, v, rtol=0.0, atol=1e-5)


def test_the_written_tensors_have_the_published_names(tmp_path: Path) -> None:
    trainer = WorldGymTrainer(world(), episodes(), QUICK)
    trainer.run()
    out = trainer.save(tmp_path / "run", tmp_path, "tiny", "")
    assert set(load_file(out / "model.safetensors")) == set(WEIGHTS)
    load_network(out / "model.safetensors", 2, "standard", torch.device("cpu"), torch.float32)


def test_a_run_that_was_stopped_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = WorldGymTrainer(world(), episodes(), replace(QUICK, steps=6, average=0.9))
    whole.run()
    first = WorldGymTrainer(world(), episodes(), replace(QUICK, steps=6, average=0.9, save_every=2))
    with pytest.raises(KeyboardInterrupt):
        first.run(_stop_at(5), tmp_path / "state.safetensors")
    again = WorldGymTrainer(world(), episodes(), replace(QUICK, steps=6, average=0.9, save_every=2))
    again.resume(tmp_path / "state.safetensors")
    assert again.steps_done == 4
    again.run(state=tmp_path / "state.safetensors")
    assert again.done and all(torch.equal(a, b) for a, b in zip(whole.trained, again.trained, strict=True))
    other = WorldGymTrainer(world(), episodes(), replace(QUICK, lora_rank=2))
    with pytest.raises(BadCheckpoint, match="does not fit this run"):
        other.resume(tmp_path / "state.safetensors")


def _stop_at(last: int) -> Any:
    def report(step: int, loss: float) -> None:
        if step == last:
            raise KeyboardInterrupt

    return report


def test_episodes_are_drawn_by_their_weights() -> None:
    trainer = WorldGymTrainer(world(), episodes(3), replace(QUICK, action_dropout=0.0, batch=8), [0.0, 1.0, 0.0])
    own = trainer.episodes[1].latents
    latents, _ = trainer._clips()
    assert all(any(torch.equal(clip[0], frame) for frame in own) for clip in latents)


def test_the_update_of_the_loop_takes_a_published_file(tmp_path: Path) -> None:
    """Through the same function as the tiny model: a run folder, then a version between before and after."""
    parent = _published(tmp_path / "published")
    config = UpdateConfig(steps=2, batch=2, lora_rank=4, save_every=1)
    out = fine_tune(parent, episodes(2), episodes(2), [], config, tmp_path / "run")
    written = (out / "model.safetensors").read_bytes()
    assert is_worldgym(out) and fine_tune(parent, episodes(2), episodes(2), [], config, out) == out
    assert (out / "model.safetensors").read_bytes() == written
    half = mixed(parent, out, 0.5, tmp_path / "half")
    after, between = (load_file(folder / "model.safetensors") for folder in (out, half))
    name = "blocks.0.t_block.attn.qkv_proj.weight"
    middle = (WEIGHTS[name] + after[name].float()) / 2
    torch.testing.assert_close(between[name].float(), middle, rtol=0.01, atol=1e-3)
    assert WorldGym.from_pretrained(half).begin([episodes(1)[0].start()], 0) is not None
    assert parent_name(parent).startswith("published-")
    with pytest.raises(BadCheckpoint, match="another parent"):
        fine_tune(parent, episodes(1), [], [], config, out)


def test_the_learned_judge_of_the_loop_is_taught_beside_it(tmp_path: Path) -> None:
    """Its dreams have another size than the judge's images."""
    for name in ("training", "calibration", "replay"):
        (tmp_path / name).mkdir()
        write_toy_play(tmp_path / name / "reach.npz", 3, seed=1)
    start = checkpoint_dir("tiny/reflector", JUDGE)
    out = update_judge(start, world(), world(), tmp_path / "training", tmp_path / "calibration", tmp_path / "replay",
                       tmp_path / "judge", JudgeUpdate(steps=1, windows=4))
    new, training = out / "imagined" / "new" / "reach.npz", tmp_path / "training" / "reach.npz"
    with np.load(new) as imagined, np.load(training) as true:
        assert imagined["frames"].shape == true["frames"].shape and (imagined["frames"] != true["frames"]).any()
    assert (out / "model.safetensors").read_bytes() != (start / "model.safetensors").read_bytes()
    assert TRAINERS[holds(Path(checkpoint_dir("", WORLD_MODEL)))] is not check_updatable(_published(tmp_path / "w"))


def _published(folder: Path) -> Path:
    folder.mkdir()
    torch.save({"ema": WEIGHTS}, folder / "ckpt_000580000.pt")
    (folder / "config.json").write_text(json.dumps(SETTINGS.to_dict()))
    return folder


def test_what_a_folder_holds_is_seen_without_loading_it(tmp_path: Path) -> None:
    assert not is_worldgym(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"")
    assert is_worldgym(tmp_path) and is_worldgym(tmp_path / "w.pt")
    (tmp_path / "config.json").write_text('{"model_type": "action_dit"}')
    assert not is_worldgym(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not is_worldgym(tmp_path)


def test_a_session_takes_the_folder_as_it_is(tmp_path: Path) -> None:
    """By the name that a user gives: loaded, imagined in, and without a release table nothing is said of its judges."""
    folder = _published(tmp_path / "published")
    loaded = load_world_model(folder)
    assert isinstance(loaded, WorldGym) and loaded.name == "published"
    start = replace(episodes(1)[0], instruction=next(iter(GOALS))).start()
    group = imagine(FakePolicy(chunk_size=5), loaded, FakeJudge(), start, copies=3, horizon_steps=10, temperature=1.0,
                    seed=0)
    assert group.frames.shape == (3, 11, 32, 48, 3) and group.world_model == "published"
    assert frame_size(folder) == (32, 48) and frame_size("tiny/world_model") == (64, 64)
    assert not release_table(folder)
    assert set(release_hashes(folder, "")["world_model"]) == {"ckpt_000580000.pt", "config.json"}


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(EpisodeError, match="4 frames"):
        WorldGymTrainer(world(), episodes(2, 3), QUICK)
    with pytest.raises(BadConfig, match="clip_frames 7"):
        WorldGymTrainer(world(), episodes(), replace(QUICK, clip_frames=7))
    with pytest.raises(BadBudget, match="minutes"):
        WorldGymTraining(minutes=0.0)
    with pytest.raises(BadConfig, match="action_dropout"):
        WorldGymTraining(action_dropout=1.0)
