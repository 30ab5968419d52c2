"""Cosmos 3: actions equal to NVIDIA's own functions, a repository in the published layout, chunks, seeds, refusals.

Golden values: `test/golden/README.md`.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_cosmos3 import STATISTICS, TINY, write_repository, write_world

from world_gymnast_ros.adaptation.rollout import imagine
from world_gymnast_ros.adaptation.rollout_filter import TrustConfig, check_recovers, filter_group
from world_gymnast_ros.errors import BadAction, BadCheckpoint, BadConfig, BadFrame
from world_gymnast_ros.loading.load import WORLD_MODEL, frame_size, load, load_world_model
from world_gymnast_ros.loading.release import model_hashes
from world_gymnast_ros.models.world_models.cosmos3 import Cosmos3World
from world_gymnast_ros.models.world_models.cosmos3_actions import (
    Quantiles,
    bridge_actions,
    hand_pose,
    hand_state,
    poses_after,
    read_statistics,
    relative_actions,
)
from world_gymnast_ros.models.world_models.cosmos3_settings import CANVASES, Cosmos3Settings
from world_gymnast_ros.robot.actions import RobotLimits, StepLimits, Workspace, integrate_states
from world_gymnast_ros.testing.conformance import world_model_faults
from world_gymnast_ros.testing.fakes import FakeJudge, FakePolicy, FakeWorldModel, start_frame
from world_gymnast_ros.types import Frame, RecoversActions, Start

GOLDEN = load_file(Path(__file__).parent / "golden" / "cosmos3.safetensors")
STATE = np.array([0.28, 0.02, 0.1, 0.1, -0.2, 0.3, 1.0], np.float32)
RNG = np.random.default_rng(0)
STARTS = [Start(Frame(RNG.integers(0, 256, (24, 32, 3), np.uint8), 0), STATE, words)
          for words in ("put the eggplant in the sink", "close the drawer")]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("hub") / "Cosmos3-Tiny")


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return write_world(repository.parent / "cosmos3", repository)


@pytest.fixture(scope="module")
def world(folder: Path) -> Iterator[Cosmos3World]:
    yield load_world_model(folder, device="cpu", dtype="float32")


def steps(seed: int = 0, copies: int = 2, K: int = 4) -> np.ndarray:
    deltas = np.random.default_rng(seed).uniform(-0.03, 0.03, (copies, K, 7)).astype(np.float32)
    deltas[..., 6] = np.random.default_rng(seed).random((copies, K)) > 0.5
    return deltas


# --- the numbers of a step, against NVIDIA's functions ----------------------------------------------------------------


def test_ten_numbers_are_those_of_the_reference() -> None:
    states, quantiles = GOLDEN["states"], Quantiles(GOLDEN["q01"], GOLDEN["q99"])
    np.testing.assert_allclose(hand_pose(states[:, 0]), GOLDEN["initial_poses"], atol=1e-6)
    raw = relative_actions(states, GOLDEN["grippers"])
    np.testing.assert_allclose(raw, GOLDEN["raw"], atol=2e-6)
    np.testing.assert_allclose(quantiles.normalised(raw), GOLDEN["normalised"], atol=2e-4)  # 1/0.0125 of 2e-6
    np.testing.assert_allclose(quantiles.normalised(GOLDEN["raw"]), GOLDEN["normalised"], atol=1e-5)
    np.testing.assert_allclose(quantiles.raw(GOLDEN["normalised"]), GOLDEN["denormalised"], atol=1e-6)
    assert np.ptp(raw, (0, 1)).min() > 1e-3, "a wrong axis or column would be seen"


def test_back_again_they_are_the_reference_s_poses_and_the_arm_s_states() -> None:
    for actions, poses in (("raw", "poses"), ("noisy", "noisy_poses")):  # noisy: columns that are no rotation's
        found = poses_after(GOLDEN["initial_poses"], GOLDEN[actions])
        np.testing.assert_allclose(found, GOLDEN[poses], atol=2e-5)
    states = GOLDEN["states"]
    np.testing.assert_allclose(hand_state(hand_pose(states), states[..., 6]), states, atol=1e-5)


def test_seven_numbers_come_back_from_ten() -> None:
    deltas, state = steps(K=6), np.stack([STATE, STATE + 0.05])
    path = [state]
    for t in range(6):
        path.append(integrate_states(path[-1], deltas[:, t], StepLimits()))
    ten = relative_actions(np.stack(path, 1), deltas[..., 6])
    np.testing.assert_allclose(bridge_actions(state, ten), deltas, atol=2e-6)
    with pytest.raises(BadAction, match="not finite"):
        bridge_actions(state, np.where(ten > 0.9, np.nan, ten))


# --- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_keeps_the_protocol_from_a_folder_in_the_published_layout(world: Cosmos3World) -> None:
    assert (world.name, world.stride, world.frame_size) == ("cosmos3", 4, (32, 32))
    assert world_model_faults(world, STARTS) == []


def test_a_chunk_is_what_the_pipeline_draws(world: Cosmos3World) -> None:
    from diffusers import CosmosActionCondition
    from PIL import Image

    drawn: list[dict[str, Any]] = []
    pipeline = world._pipeline

    def heard(**given: Any) -> Any:
        drawn.append(given)
        return pipeline(**given)
    spy = Cosmos3World(_Heard(pipeline, heard), world.statistics, world.settings, "spy")
    deltas = steps(K=5)
    frames = spy.begin(STARTS, 3).play(deltas)
    assert frames.shape == (2, 5, 32, 32, 3) and len(drawn) == 4, "four actions in one call, the fifth in another"
    assert [d["prompt"] for d in drawn] == [s.instruction for s in STARTS] * 2
    assert len({d["generator"].initial_seed() for d in drawn}) == 4 and {d["fps"] for d in drawn} == {5}
    first, padded = drawn[0]["action"], drawn[2]["action"]
    path = [STATE[None]]
    for t in range(5):
        path.append(integrate_states(path[-1], deltas[:1, t], StepLimits()))
    told = world.statistics.normalised(relative_actions(np.stack(path, 1), deltas[:1, :, 6]))[0]
    np.testing.assert_array_equal(first.raw_actions.numpy(), told[:4])
    np.testing.assert_allclose(padded.raw_actions.numpy()[0], told[4], atol=1e-5)
    still = world.statistics.raw(padded.raw_actions.numpy()[1:])
    np.testing.assert_allclose(still, [[0, 0, 0, 1, 0, 0, 0, 1, 0, deltas[0, 4, 6]]] * 3, atol=1e-6)
    assert np.array_equal(np.asarray(padded.image), frames[0, 3]), "the next call begins at the last frame"
    action = CosmosActionCondition("forward_dynamics", 4, "bridge_orig_lerobot", 256, torch.from_numpy(told[:4]),
                                   image=Image.fromarray(np.asarray(first.image)))
    again = pipeline(prompt=STARTS[0].instruction, action=action, fps=5, num_inference_steps=1, guidance_scale=1.0,
                     use_system_prompt=False, output_type="np",
                     generator=torch.Generator().manual_seed(drawn[0]["generator"].initial_seed())).video
    np.testing.assert_array_equal(np.rint(again[1:] * 255), frames[0, :4])


class _Heard:
    """A pipeline whose calls are heard."""

    def __init__(self, pipeline: Any, call: Any) -> None:
        self.pipeline, self.call = pipeline, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, **given: Any) -> Any:
        return self.call(**given)


def test_actions_instruction_and_seed_count(world: Cosmos3World) -> None:
    start = STARTS[0]
    def one(start: Start, deltas: np.ndarray, seed: int = 0) -> np.ndarray:
        return world.begin([start], seed).play(deltas)
    base = one(start, steps(copies=1))
    for what, other in (("actions", one(start, steps(1, copies=1))), ("seed", one(start, steps(copies=1), 1)),
                        ("instruction", one(replace(start, instruction="close the drawer"), steps(copies=1))),
                        ("state", one(replace(start, state=STATE + np.float32(0.4)), steps(copies=1)))):
        assert (other != base).any(), what


def test_the_robot_s_workspace_and_steps_hold(folder: Path, world: Cosmos3World) -> None:
    numbers: list[np.ndarray] = []
    box = Workspace((0.1, -0.2, 0.05), (0.281, 0.2, 0.2))
    limited = Cosmos3World(world._pipeline, world.statistics, world.settings, "x").limited(
        RobotLimits(StepLimits(0.03, 0.2), box))
    limited.draw = lambda frame, words, n, seed: numbers.append(n) or np.zeros((4, 32, 32, 3), np.uint8)
    ahead = np.zeros((1, 4, 7), np.float32)
    ahead[..., 0] = 0.03
    limited.begin(STARTS[:1], 0).play(ahead)
    moved = bridge_actions(STATE[None], world.statistics.raw(numbers[0])[None])[0]
    np.testing.assert_allclose(moved[:, 0], [0.001, 0, 0, 0], atol=1e-5)
    assert limited.max_step == (0.03, 0.2)
    with pytest.raises(BadConfig, match=r"steps of 0.06 m .* at most 0.05 m"):
        limited.limited(RobotLimits(StepLimits(0.06, 0.2), box))


def test_a_start_without_a_state_is_refused(world: Cosmos3World) -> None:
    with pytest.raises(BadConfig, match=r"not known at 1 of 2 starts.*give --state"):
        world.begin([STARTS[0], replace(STARTS[1], state=None)], 0)


# --- inverse dynamics -------------------------------------------------------------------------------------------------


def test_actions_are_read_out_of_rollouts(world: Cosmos3World) -> None:
    assert isinstance(world, RecoversActions) and not isinstance(FakeWorldModel(), RecoversActions)
    rollouts = np.random.default_rng(0).integers(0, 256, (2, 7, 32, 32, 3), np.uint8)
    found = world.recovered(STARTS, rollouts, 5)
    assert found.shape == (2, 6, 7) and found.dtype == np.float32 and np.isfinite(found).all()
    np.testing.assert_array_equal(found, world.recovered(STARTS, rollouts, 5))
    turned = rollouts.copy()
    turned[1, 2] = 255 - turned[1, 2]
    other = world.recovered(STARTS, turned, 5)
    assert (other[1] != found[1]).any() and np.array_equal(other[0], found[0])
    with pytest.raises(BadFrame, match=r"32, 32, 3\) are needed"):
        world.recovered(STARTS, rollouts[:, :, :16], 5)


class _Reads(FakeWorldModel):
    """Reads out of frames what it was told is there."""

    off_m = 0.0

    def recovered(self, starts: Any, frames: np.ndarray, seed: int) -> np.ndarray:
        self.asked = len(starts)
        return self.told[:len(starts), :frames.shape[1] - 1] + np.float32(self.off_m) * np.eye(7, dtype=np.float32)[0]


def test_a_claimed_success_that_shows_other_actions_is_rejected() -> None:
    start, world, policy = Start(start_frame(), None, "go right"), _Reads(), FakePolicy()
    policy.tables["go right"][:, 0, -1] += 3.0  # mostly far to the right
    group = imagine(policy, world, FakeJudge(), start, 12, 12, 1.0, 3, judge_every_chunks=0)
    world.told = np.concatenate([c.deltas for c in group.chunks], 1)
    plain = TrustConfig(reroll=False)
    claims = [i for i, j in enumerate(group.judgements) if j.score is not None and j.score > 0.5]
    world.told = world.told[claims]
    assert len(claims) >= 3
    for off_m, lost in ((0.004, 0), (0.006, len(claims))):
        world.off_m = off_m
        kept, counts = filter_group(world, FakeJudge(), start, group, replace(plain, action_error_m=0.005), 1)
        assert (counts.recovered, counts.other_actions, counts.rejected) == (len(claims), lost, lost)
        assert all((kept.judgements[i].score is None) == bool(lost) for i in claims)
    assert "6 mm a step off, at most 5" in kept.judgements[claims[0]].detail and not kept.valid[claims[0]].any()
    assert filter_group(world, FakeJudge(), start, group, plain, 1)[1].recovered == 0
    with pytest.raises(BadConfig, match="reads no actions out of frames"):
        check_recovers(FakeWorldModel(), replace(plain, action_error_m=0.005))


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_repository_with_the_statistics_in_it_is_a_folder_too(repository: Path, tmp_path: Path) -> None:
    own = tmp_path / "Cosmos3-Nano"
    shutil.copytree(repository, own)
    (own / "config.json").write_text(json.dumps({"model_type": "cosmos3_omni"}))
    with pytest.raises(BadCheckpoint, match=r"statistics.json cannot be read.*bridge_orig_lerobot_stats.json"):
        load(WORLD_MODEL, own, "cpu")
    (own / "statistics.json").write_text(json.dumps(STATISTICS))
    whole = load(WORLD_MODEL, own, "cpu")
    assert whole.settings == Cosmos3Settings() and whole.stride == 16 and frame_size(own) == (480, 640)
    assert whole._pipeline.scheduler.config.flow_shift == 10.0, "the sampler is that of NVIDIA's example"
    assert not whole._pipeline.scheduler.config.use_karras_sigmas


def test_hashes_tell_statistics_weights_and_settings_apart(folder: Path, repository: Path) -> None:
    hashes = model_hashes(folder)
    assert {"config.json", "statistics.json", "transformer/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors"} <= set(hashes)
    (folder / "statistics.json").write_text(json.dumps({**STATISTICS, "mean": []}))
    assert [k for k, v in model_hashes(folder).items() if hashes[k] != v] == ["statistics.json"]


@pytest.mark.parametrize(("part", "values", "says"), [
    ("vae", {"_class_name": "AutoencoderKLWan", "z_dim": 8}, "vae.* (cannot be read as|do not fit) AutoencoderKLWan"),
    ("transformer", {"num_hidden_layers": 3}, "transformer.*do not fit.*missing layers.2"),
    ("transformer", {"action_gen": False}, "action_gen False and action_dim 12")])
def test_weights_that_do_not_fit_are_named(repository: Path, tmp_path: Path, part: str, values: dict[str, Any],
                                           says: str) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(repository, bad)
    config = bad / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))
    with pytest.raises(BadCheckpoint, match=says):
        load(WORLD_MODEL, write_world(tmp_path / "world", bad), "cpu")


def test_files_that_are_missing_are_named(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(repository, bad)
    where = write_world(tmp_path / "world", bad)
    (bad / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (bad / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match=r"lacks transformer/diffusion_pytorch_model-00001-of-00002\.safetensors, "
                                            r"vae/diffusion_pytorch_model\.safetensors; fetch"):
        load(WORLD_MODEL, where, "cpu")
    values = json.loads((bad / "model_index.json").read_text())
    (bad / "model_index.json").write_text(json.dumps({**values, "scheduler": ["diffusers",
                                                                            "FlowMatchEulerDiscreteScheduler"]}))
    with pytest.raises(BadCheckpoint, match=r"FlowMatchEuler.* as scheduler, UniPCMultistepScheduler is needed"):
        load(WORLD_MODEL, where, "cpu")
    (bad / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(BadCheckpoint, match="names 'WanPipeline', not Cosmos3OmniPipeline"):
        load(WORLD_MODEL, where, "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadCheckpoint, match=r"nvidia/No-Such.*needed: model_index.json, transformer/\*"):
        load(WORLD_MODEL, write_world(tmp_path / "hub", Path("nvidia/No-Such")), "cpu")


@pytest.mark.parametrize(("values", "says"), [
    ({"stride": 5}, "stride is 5; it must be a multiple of 4"), ({"stride": 4.0}, "stride is 4.0"),
    ({"resolution_tier": 512}, "one of 256, 480, 704, 720"), ({"view_point": "side"}, "one of ego_view"),
    ({"guidance": 0.0}, "above 0"), ({"flow_shift": float("nan")}, "flow_shift is nan"), ({"steps": 3}, "unknown"),
    ({"sampling_steps": 0}, "within 1..1000"), ({"frame_size": [32]}, "a height and a width"),
    ({"guidance": "much"}, "wrong kind")])
def test_settings_out_of_range_name_the_limit(values: dict[str, Any], says: str) -> None:
    with pytest.raises(BadConfig, match=says):
        Cosmos3Settings.from_dict({**TINY, **values})


def test_a_frame_size_that_is_not_drawn_is_refused_with_the_one_that_is(world: Cosmos3World) -> None:
    for size, drawn in (((480, 640), "240, 320"), ((40, 40), "32, 32")):
        with pytest.raises(BadConfig, match=rf"of such a frame, tier 256 draws \[{drawn}\]"):
            Cosmos3World(world._pipeline, world.statistics, replace(world.settings, frame_size=size), "x")
    from diffusers.pipelines.cosmos import pipeline_cosmos3_omni as library
    assert {int(k): tuple(v.values()) for k, v in library._ACTION_RESOLUTION_BINS.items()} == CANVASES


@pytest.mark.parametrize(("text", "says"), [
    ("{", "holds no q01 and q99"), ('{"q01": [0, 1]}', "KeyError"),
    (json.dumps({k: v[:7] for k, v in STATISTICS.items()}), r"\(7,\) and \(7,\) quantiles; 10 each"),
    (json.dumps({"q01": STATISTICS["q99"], "q99": STATISTICS["q01"]}), "below its q99")])
def test_statistics_that_are_none_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "statistics.json"
    file.write_text(text)
    with pytest.raises(BadCheckpoint, match=says):
        read_statistics(file)
