"""The world model: exact cache, seeded dreams, units, limits, strict checkpoints, resumable training."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from world_gymnast_ros.data.clip_sampler import ClipSource, variants
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.read import read_array_folders, read_episodes
from world_gymnast_ros.data.worldgym import worldgym_deltas
from world_gymnast_ros.errors import BadAction, BadBudget, BadCheckpoint, BadConfig, EpisodeError
from world_gymnast_ros.evaluation.horizon_error import by_task, horizon_errors, imagine_segments, segments
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.models.checkpoint import fill, save_model
from world_gymnast_ros.models.world_models.action_dit import ActionDiT, ActionDiTConfig, Places, SilhouetteFeatures
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld, FrameSampler, condition_vector
from world_gymnast_ros.robot.actions import StepLimits, bridge_state, clip_delta, integrate_states, pose_from_state
from world_gymnast_ros.robot.arm_silhouette import PARKED, silhouette
from world_gymnast_ros.training.camera import train_camera_fit
from world_gymnast_ros.training.world_model import TrainConfig, Trainer, choose_tokens, residual_loss
from world_gymnast_ros.twin.observer import scene_camera
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.types import Frame, Start, WorldModel

TINY = ActionDiTConfig(image_size=16, patch=4, window=8, window_dim=24, dim=16, depth=3, heads=2,
                       temporal_blocks=(0, 2), context_frames=3, still_threshold=0.0)
STATE = np.array([0.3, 0.0, 0.1, 0, 0, 0, 1], np.float32)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def lively(config: ActionDiTConfig = TINY, seed: int = 0) -> ActionDiT:
    """A network whose every weight is random: an untrained one predicts no change and would pass any equality test."""
    torch.manual_seed(seed)
    network = ActionDiT(config).eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, 0.0, 0.15)
    return network


def still() -> ActionDiT:
    """A network that keeps every pixel."""
    network = ActionDiT(TINY).eval()
    with torch.no_grad():
        network.head_out.bias[-4 * TINY.patch**2:].view(4, -1)[0] = 50.0
    return network


def play(count: int = 4, steps: int = 9, size: int = 16) -> list[Episode]:
    """Episodes in which a bright bar moves to where the action's x says: motion that can be learned."""
    rng = np.random.default_rng(0)
    out = []
    for i in range(count):
        deltas = np.zeros((steps, 7), np.float32)
        deltas[:, 0] = rng.choice([-0.05, 0.05], steps)
        at = np.clip(np.cumsum(np.concatenate([[8], np.sign(deltas[:, 0]) * 2])), 0, size - 3).astype(int)
        frames = np.full((steps + 1, size, size, 3), 60, np.uint8)
        for t, x in enumerate(at):
            frames[t, 4:12, x:x + 3] = 220
        states = np.repeat(STATE[None], steps + 1, 0)
        out.append(Episode(frames, deltas, states, name=f"e{i}", task="reach" if i % 2 else "push"))
    return out


# ---- the network -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_cached_dream_equals_uncached_causal_network_beyond_the_window(steps: int) -> None:
    """Also for 3 denoising steps, and for frames long after the ring of 3 frames has turned."""
    network, T = lively(), 9
    seen: list[tuple[torch.Tensor, ...]] = []
    original = ActionDiT.forward
    inputs: list[tuple[torch.Tensor, ...]] = []

    def spy(self: ActionDiT, *args: torch.Tensor, tokens: None = None, affine: None = None, cache: object = None,
            looked: None = None) -> torch.Tensor:
        out = original(self, *args, tokens=tokens, affine=affine, cache=cache, looked=looked)  # type: ignore[arg-type]
        inputs.append((*args, out))
        return out

    network.forward = spy.__get__(network)  # type: ignore[method-assign]
    sampler = FrameSampler(network, torch.rand(2, 16, 16, 3), steps, torch.Generator().manual_seed(0))
    for _ in range(T):
        sampler.step(torch.randn(2, 15))
        seen.append(inputs[-1])  # the last denoising pass: the one whose keys stay
    del network.forward
    columns = [torch.cat(c, 1) for c in zip(*seen, strict=True)]
    previous, first, noisy, level, condition, drawn = columns
    with torch.inference_mode():
        whole = network(previous, first[:, :1], noisy, level, condition)
        short = network(previous[:, 2:], first[:, :1], noisy[:, 2:], level[:, 2:], condition[:, 2:])
    assert drawn.std() > 0.05
    assert (whole - drawn).abs().max() < 1e-5
    assert (short[:, 0] - whole[:, 2]).abs().max() > 1e-3  # the past matters, so the equality above says something


def test_network_is_causal_and_looks_back_no_further_than_its_layers_allow() -> None:
    network = lively()
    frames, first = torch.rand(1, 8, 16, 16, 3), torch.rand(1, 1, 16, 16, 3)
    noisy, level, condition = torch.rand(1, 8, 16, 48), torch.ones(1, 8), torch.randn(1, 8, 15)

    def out(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network(network.windows(frames), network.windows(first), x, level, condition)

    changed = noisy.clone()
    changed[0, 2] += 1.0
    gap = (out(noisy) - out(changed)).abs().amax((0, 2, 3))
    assert gap[:2].max() == 0.0
    assert gap[2:7].min() > 1e-6  # two temporal layers of 3 frames reach 4 frames back
    assert gap[7] == 0.0


def test_tokens_alone_give_what_they_give_among_their_own_selection() -> None:
    """Windows, patches and places of a selection are those of the whole image at these places."""
    network = lively()
    frames = torch.rand(2, 3, 16, 16, 3)
    tokens = torch.stack([torch.randperm(16)[:5] for _ in range(2)])
    for cut in (network.windows, network.patches):
        whole, part = cut(frames), cut(frames, tokens)
        for b in range(2):
            assert torch.equal(part[b], whole[b][:, tokens[b]])
    assert torch.equal(network.image(network.patches(frames)), frames)
    order = torch.arange(16).flip(0).repeat(2, 1)  # all places in another order: the same answer in that order
    args = (torch.rand(2, 3, 16, 48), torch.ones(2, 3), torch.randn(2, 3, 15))
    with torch.inference_mode():
        a = network(network.windows(frames), network.windows(frames[:, :1]), *args)
        b = network(network.windows(frames, order), network.windows(frames[:, :1], order), args[0].flip(2),
                    *args[1:], order)
    assert (a.flip(2) - b).abs().max() < 1e-5


def test_pixels_come_from_the_start_frame_or_are_painted_where_the_head_says_so() -> None:
    network = lively()
    previous, first = torch.rand(2, 3, 16, 16, 3), torch.rand(2, 1, 16, 16, 3)
    n = 3 * TINY.patch**2
    sources = (previous, first.expand_as(previous), torch.full_like(previous, 0.7), previous + 0.1)
    for source, expected in enumerate(sources):
        drawn = torch.zeros(2, 3, 16, 2 * n + 4 * TINY.patch**2)
        drawn[..., :n], drawn[..., n:2 * n] = 0.1, 0.7
        drawn[..., 2 * n:].unflatten(-1, (4, -1))[..., source, :] = 60.0
        change = network.mix(drawn, network.windows(previous), network.windows(first))
        assert torch.allclose(previous + network.image(change), expected, atol=1e-6)


def test_bad_sizes_are_refused_by_name() -> None:
    with pytest.raises(BadConfig, match="image_size"):
        ActionDiTConfig(image_size=60)
    with pytest.raises(BadConfig, match="temporal_blocks"):
        ActionDiTConfig(depth=2)


# ---- dreams ----------------------------------------------------------------------------------------------------


def dream_frames(world: ActionDiTWorld, seed: int, state: np.ndarray | None = STATE, delta: float = 0.02) -> np.ndarray:
    start = Frame(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8), 0)
    return world.begin([Start(start, state, "go")] * 3, seed).play(np.full((3, 4, 7), delta, np.float32)).swapaxes(0, 1)


def test_a_dream_computes_the_places_that_the_arm_can_touch_and_the_rest_stands_still() -> None:
    """Also: what one copy sees does not hang on the others, and places that come later have no past."""
    network = lively(dataclasses.replace(TINY, camera=CAMERA, plate=True, image_size=64, still_threshold=0.0))
    assert network.outline is not None
    torch.nn.init.zeros_(network.outline.read_head.weight)  # the camera is where it should be
    torch.nn.init.zeros_(network.outline.read_head.bias)
    config, world = network.config, ActionDiTWorld(network, dtype=torch.float32)
    start = Start(Frame(np.random.default_rng(1).integers(90, 110, (64, 64, 3), dtype=np.uint8), 0), STATE, "go")
    deltas = np.zeros((3, 8, 7), np.float32)
    deltas[0, :, 1], deltas[1, :, 2], deltas[2, :, 0] = 0.03, 0.015, 0.015
    seen: list[Places | None] = []
    touched = network.touched
    network.touched = lambda *args: seen.append(touched(*args)) or seen[-1]  # type: ignore[method-assign]
    frames = world.begin([start] * 3, 5).play(deltas)
    del network.touched
    assert all(p is not None and p.tokens.shape[1] < config.tokens for p in seen)
    moved_at = [(p.own.sum(1).tolist()) for p in seen if p is not None]
    assert len(set(map(tuple, moved_at))) > 1, "other places as the arm moves"
    for t, places in enumerate(seen):
        assert places is not None
        before = frames[:, t - 1] if t else np.repeat(start.frame.rgb[None], 3, 0)
        changed = (frames[:, t] != before).reshape(3, config.side, config.patch, config.side, config.patch, 3)
        own = torch.zeros(3, config.tokens, dtype=torch.bool).scatter_(1, places.tokens, places.own)
        assert changed.any((2, 4, 5)).any() and not changed.any((2, 4, 5)).reshape(3, -1)[~own.numpy()].any()
    dream = world.begin([start] * 3, 5)
    first = dream.play(deltas[:, :4])
    dream.keep(np.array([1]))
    alone = dream.play(deltas[1:2, 4:])
    assert np.array_equal(first, frames[:, :4]) and np.abs(alone[0].astype(int) - frames[1, 4:]).max() <= 1
    unknown = Start(start.frame, None, "go")
    seen.clear()
    network.touched = lambda *args: seen.append(touched(*args)) or seen[-1]  # type: ignore[method-assign]
    world.begin([unknown] * 2, 5).play(deltas[:2, :2])
    assert seen == [None, None], "where the arm is not known, everything may change"


def test_dreams_repeat_with_their_seed_and_differ_between_seeds_and_copies() -> None:
    world: WorldModel = ActionDiTWorld(lively(), dtype=torch.float32)
    assert isinstance(world, ActionDiTWorld)
    torch.manual_seed(5)
    a = dream_frames(world, 7)
    torch.manual_seed(6)
    assert a.dtype == np.uint8 and a.shape == (4, 3, 16, 16, 3)
    assert np.array_equal(a, dream_frames(world, 7))
    assert not np.array_equal(a, dream_frames(world, 8))
    assert not np.array_equal(a[:, 0], a[:, 1])


def test_state_and_action_change_the_dream_and_an_unknown_state_is_none() -> None:
    world = ActionDiTWorld(lively(), dtype=torch.float32)
    known = dream_frames(world, 7)
    assert not np.array_equal(known, dream_frames(world, 7, state=None))
    assert not np.array_equal(known, dream_frames(world, 7, state=STATE + np.float32(0.03)))
    assert not np.array_equal(known, dream_frames(world, 7, delta=-0.02))


def test_dream_integrates_the_clipped_action_as_the_arm_does_and_leaves_its_input_alone() -> None:
    config = dataclasses.replace(TINY, workspace_low_m=(0.12, -0.2, 0.09), workspace_high_m=(0.42, 0.25, 0.25))
    rollouts = ActionDiTWorld(lively(config), dtype=torch.float32).begin(
        [Start(Frame(np.zeros((16, 16, 3), np.uint8), 0), STATE, "go")] * 2, 0)
    deltas = np.tile(np.array([0.3, 0, -0.04, 0.4, 0, 0, 0.6], np.float32), (2, 1))
    given = deltas.copy()
    rollouts.play(deltas[:, None])
    assert np.array_equal(deltas, given)
    expected = integrate_states(np.tile(STATE, (2, 1)), clip_delta(given, StepLimits()), StepLimits())
    expected[:, 2], expected[:, 6] = 0.09, 1.0  # the floor of the box; 0.6 is an open gripper
    assert np.allclose(rollouts.state, expected, atol=1e-6)


@pytest.mark.parametrize("deltas", [np.zeros((3, 7), np.float32), np.full((2, 7), np.nan, np.float32)])
def test_wrong_actions_are_refused(deltas: np.ndarray) -> None:
    rollouts = ActionDiTWorld(lively(), dtype=torch.float32).begin(
        [Start(Frame(np.zeros((16, 16, 3), np.uint8), 0), None, "go")] * 2, 0)
    with pytest.raises(BadAction):
        rollouts.play(deltas[:, None])


def test_condition_is_normalised_on_a_copy_and_hides_an_unknown_state() -> None:
    delta = np.array([0.05, -0.05, 0, 0.25, 0, 0, 0.9], np.float32)
    config = ActionDiTConfig()
    vector = condition_vector(config, delta, STATE, np.array(config.state_center, np.float32) + 1, True)
    assert delta[6] == np.float32(0.9) and vector.dtype == np.float32
    assert np.allclose(vector[:7], [1, -1, 0, 1, 0, 0, 1])
    assert np.allclose(vector[7:14], 1 / np.array(config.state_scale)) and vector[14] == 1
    assert not condition_vector(config, delta, STATE, STATE, False)[7:].any()


def test_checkpoint_round_trip_and_refusal_of_what_does_not_fit(tmp_path: Path) -> None:
    world = ActionDiTWorld(lively(), dtype=torch.bfloat16)
    world.save(tmp_path)
    again = ActionDiTWorld.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.config == TINY and np.array_equal(dream_frames(world, 1), dream_frames(again, 1))
    with pytest.raises(BadCheckpoint, match="does not fit"):
        fill(ActionDiT(dataclasses.replace(TINY, dim=32)), tmp_path)
    save_model(lively(), {**TINY.to_dict(), "colour": 1}, tmp_path)
    with pytest.raises(BadCheckpoint, match="colour"):
        ActionDiTWorld.from_pretrained(tmp_path)
    with pytest.raises(BadCheckpoint, match="missing"):
        ActionDiTWorld.from_pretrained(tmp_path / "nothing")


# ---- data ------------------------------------------------------------------------------------------------------


def test_play_files_are_cut_to_their_length(tmp_path: Path) -> None:
    e = play(2)
    arrays = {"frames": np.stack([x.frames for x in e]), "deltas": np.stack([x.deltas for x in e]),
              "states": np.stack([x.states for x in e if x.states is not None]), "length": np.array([9, 5], np.int32),
              "family": np.array(["push", "reach"]), "instruction": np.array(["push it", "reach it"]),
              "success": np.zeros((2, 10), np.bool_)}
    np.savez(tmp_path / "a.npz", **arrays)
    first, second = read_array_folders([tmp_path])
    assert (first.steps, second.steps, second.task) == (9, 5, "reach") and len(second.frames) == 6
    (tmp_path / "b.npz").write_bytes(b"no archive")
    with pytest.raises(EpisodeError, match=r"b\.npz"):
        read_array_folders([tmp_path])


def test_worldgym_rows_become_bridge_actions() -> None:
    rows = np.array([[1.75, -1.75, 0, 1.4, 0, -1.4, -1, 0, 0, 0], [0, 0, 0.35, 0, 0, 0, 1, 0, 0, 0]], np.float32)
    assert np.allclose(worldgym_deltas(rows), [[0.05, -0.05, 0, 0.25, 0, -0.25, 1], [0, 0, 0.01, 0, 0, 0, 0]])


def test_clip_reader_pairs_rows_with_frames_and_refuses_a_mismatch(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "7.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for i in range(4):
            image = np.full((32, 32, 3), 60 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    np.savez(tmp_path / "7.npz", arr_0=np.arange(40, dtype=np.float32).reshape(4, 10) / 40)
    (clip,) = read_episodes([tmp_path]).episodes
    assert clip.frames.shape == (4, 32, 32, 3) and clip.deltas.shape == (3, 7) and clip.states is None
    assert np.all(np.diff(clip.frames.mean((1, 2, 3))) > 40)
    assert clip.deltas[1, 0] == pytest.approx(10 / 40 * 0.05 / 1.75)
    np.savez(tmp_path / "7.npz", arr_0=np.zeros((3, 10), np.float32))
    with pytest.raises(EpisodeError, match="4 frames"):
        read_episodes([tmp_path])


def test_mirrored_variant_moves_the_other_way() -> None:
    e = dataclasses.replace(play(1)[0], deltas=np.ones((9, 7), np.float32))
    kinds = {tuple(v.deltas[0]) for v in variants(e, 8, 12, np.random.default_rng(0))}
    assert kinds == {(1,) * 7, (1, -1, 1, -1, 1, -1, 1)}


def test_clip_aligns_actions_with_the_frames_they_lead_to() -> None:
    source = ClipSource(play(3), 4, {"push": 3.0})
    batch = source.batch(np.random.default_rng(0), 64, state_dropout=0.5)
    assert 0 < batch.known.sum() < 64 and not batch.states[~batch.known].any()
    for b in range(64):
        moved = [batch.following[b, t, 8].argmax(0)[0] - batch.previous[b, t, 8].argmax(0)[0] for t in range(4)]
        inner = [t for t in range(4) if 2 <= batch.previous[b, t, 8].argmax(0)[0] <= 11]
        assert all(np.sign(moved[t]) == np.sign(batch.deltas[b, t, 0]) for t in inner)
    drawn = source.draw(np.random.default_rng(0), 2000)
    assert np.mean([source.episodes[i].task == "push" for i in drawn]) == pytest.approx(0.75, abs=0.04)


def test_own_dreams_enter_as_previous_frames_only() -> None:
    episodes = play(2)
    own = {0: np.full_like(episodes[0].frames, 9)}
    batch = ClipSource(episodes, 4, {}).batch(np.random.default_rng(0), 6, 0.0, own)
    assert (batch.previous[:3] == 9).all() and not (batch.previous[3:] == 9).any()
    assert not (batch.following == 9).any() and not (batch.first == 9).any()


# ---- training --------------------------------------------------------------------------------------------------


QUICK = TrainConfig(steps=6, batch=4, clip_frames=4, moved_tokens=6, other_tokens=2, rollouts_from=0.3, rollout_every=2,
                    rollout_count=2, full_share=0.3)


def test_moving_places_are_chosen() -> None:
    batch = ClipSource(play(), 4, {}).batch(np.random.default_rng(0), 4, 0.0)
    tokens = choose_tokens(lively(), batch, 6, 2, torch.Generator().manual_seed(0))
    change = np.abs(batch.following.astype(int) - batch.previous).sum((1, 4))
    moving = change.reshape(4, 4, 4, 4, 4).sum((2, 4)).reshape(4, 16)
    for b in range(4):
        assert len(set(tokens[b].tolist())) == 8
        assert set(np.flatnonzero(moving[b])) <= set(tokens[b].tolist()) or np.count_nonzero(moving[b]) > 6


def test_loss_is_zero_only_for_a_still_clip_and_a_network_that_keeps_every_pixel() -> None:
    batch = ClipSource(play(), 4, {}).batch(np.random.default_rng(0), 4, 0.0)
    rest = dataclasses.replace(batch, following=batch.previous)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        assert float(residual_loss(still(), rest, None, 3.0, 6.0, generator)) < 1e-9
        assert float(residual_loss(still(), batch, None, 3.0, 6.0, generator)) > 1.0


def test_training_learns_to_move_what_the_action_moves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(QUICK, steps=60, rollouts_from=1.0, muon_lr=1e-2, adamw_lr=1e-2, ema=0.9)
    wide = dataclasses.replace(TINY, dim=32, window_dim=48, still_threshold=0.03)
    trainer = Trainer(ActionDiT(wide), play(24), play(2), config, tmp_path)
    errors = trainer.run()
    assert errors["push"]["1"]["changed_ratio"] < 0.3 and errors["push"]["5"]["changed_ratio"] < 0.7  # copying is 1
    assert (tmp_path / "held_out_000060.png").is_file()
    assert ActionDiTWorld.from_pretrained(tmp_path).config == wide


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def trainer(folder: str) -> Trainer:
        return Trainer(lively(), play(), [], QUICK, tmp_path / folder)

    whole, first, second = trainer("a"), trainer("b"), trainer("b")
    for _ in range(6):
        whole.train_step()
    for _ in range(4):
        first.train_step()
    first.save()
    second.resume()
    for _ in range(2):
        second.train_step()
    assert whole.own and second.step_count == 6
    for (name, a), b in zip(whole.average.state_dict().items(), second.average.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(BadCheckpoint, match="resume"):
        trainer("none").resume()
    with pytest.raises(BadBudget):
        TrainConfig(minutes=0)


def test_errors_are_measured_against_copying_the_start_frame() -> None:
    stretches = segments(play(2), 5, 3)
    assert [(c.start, c.steps) for c in stretches] == [(0, 5), (3, 5)] * 2
    perfect = horizon_errors(stretches, [c.frames for c in stretches], (1, 5))
    copied = horizon_errors(stretches, [np.repeat(c.frames[:1], 6, 0) for c in stretches], (1, 5))
    assert perfect["5"]["mse"] == 0 and copied["1"]["ratio"] == 1 and copied["5"]["changed_ratio"] == 1
    kept = imagine_segments(still(), stretches, seed=0)
    assert by_task(stretches, kept)["push"]["1"]["ratio"] == pytest.approx(1.0)


# ---- the arm's silhouette -----------------------------------------------------------------------------------------

CAMERA = scene_camera(load_scene("train_oak"))
SEEING = dataclasses.replace(TINY, image_size=64, camera=CAMERA)


def seen_pixel(point_m: np.ndarray) -> np.ndarray:
    """Project a base point with the camera's 12 numbers, halves of the image."""
    u, v, w = np.array(CAMERA).reshape(3, 4) @ np.append(point_m, 1.0)
    return np.array([u / w, v / w])


def test_silhouette_lies_on_the_arm_that_the_twin_renders() -> None:
    """Most of the dark pixels of a rendered arm are inside the computed silhouette, and few others are."""
    twin = Twin(load_scene("train_oak"), 0)
    try:
        twin.reset(0, twin.scene.instructions[0], np.array([0.27, 0.0, 0.1, 0, 0, 0, 1.0]))
        image, state = resize_rgb(twin.render(640, 480), (64, 64)), twin.arm_state(0)
    finally:
        twin.close()
    capsules = silhouette(bridge_state(state.T_base_ee, 1.0)[None], np.ones(1, bool), CAMERA)
    features = SilhouetteFeatures(SEEING)
    drawn = features.measure(torch.from_numpy(capsules)[:, None], features.whole)[0, 0, 0, :, :3].amax(-1).view(64, 64)
    dark = torch.from_numpy(image.max(-1).astype(np.int16)) < 60
    dark[40:] = False  # the base, behind the table's edge
    inside = drawn[:40] > 0.5
    assert dark.sum() > 100
    assert (inside & dark[:40]).sum() / dark.sum() > 0.7 and (inside & ~dark[:40]).sum() / inside.sum() < 0.3


def test_silhouette_is_parked_where_nothing_is_known_and_ends_at_the_fingers() -> None:
    states = np.stack([STATE, STATE, np.array([2.0, 0, 0.1, 0, 0, 0, 1], np.float32)])
    out = silhouette(states, np.array([True, False, True]), CAMERA)
    assert (out[1:].reshape(2, 6, 2, 3)[..., :2] == PARKED).all()  # unknown; out of reach
    tips = out[0].reshape(6, 2, 3)[4:, 1, :2].mean(0)
    assert np.abs(tips - seen_pixel(pose_from_state(STATE)[:3, 3] + [0, 0, -0.0174])).max() < 0.05
    closed = silhouette(np.where(np.arange(7) == 6, 0, STATE)[None].astype(np.float32), np.ones(1, bool), CAMERA)

    def gap(o: np.ndarray) -> float:
        return float(np.linalg.norm(np.subtract(*o.reshape(6, 2, 3)[4:, 1, :2])))

    assert gap(closed[0]) < 0.5 * gap(out[0])


def test_each_clip_is_silhouette_camera_its_own_camera() -> None:
    """One batch of two set-ups: as if each were drawn by a model that knows that camera."""
    other = np.array(CAMERA) + 0.1 * np.arange(12)
    elsewhere = dataclasses.replace(SEEING, camera=tuple(other.tolist()))
    states = np.stack([STATE, STATE + np.float32([0.03, -0.05, 0.02, 0, 0, 0, 0])])
    both = silhouette(states, np.ones(2, bool), np.stack([CAMERA, other]))
    for i, camera in enumerate((CAMERA, other)):
        assert np.allclose(both[i], silhouette(states, np.ones(2, bool), camera)[i], atol=1e-6)
    deltas, before, after = np.zeros((2, 3, 7)), np.stack([states[:1]] * 2).repeat(3, 1), states[None, 1:].repeat(3, 1)
    after = np.concatenate([after, after])
    silhouette_camera = np.stack([np.full(12, np.nan), other])
    mixed = condition_vector(SEEING, deltas, before, after, True, silhouette_camera[:, None])
    assert np.allclose(mixed[0], condition_vector(SEEING, deltas, before, after, True)[0], atol=1e-6)
    assert np.allclose(mixed[1], condition_vector(elsewhere, deltas, before, after, True)[1], atol=1e-6)
    assert np.abs(mixed[1] - mixed[0]).max() > 0.1

    there = [dataclasses.replace(e, silhouette_camera=other) for e in play(size=64)]
    losses = []
    for config, episodes in ((elsewhere, play(size=64)), (SEEING, there), (SEEING, play(size=64))):
        network = lively(config)
        batch = ClipSource(episodes, 4, {}).batch(np.random.default_rng(0), 3, 0.0)
        losses.append(float(residual_loss(network, batch, None, 3.0, 6.0, torch.Generator().manual_seed(0)).detach()))
        video = imagine_segments(network, segments(episodes[:1], 4, 9), 0)[0]
        losses.append(float(video.astype(float).sum()))
    assert losses[:2] == pytest.approx(losses[2:4], rel=1e-5) and losses[4] != pytest.approx(losses[0], rel=1e-4)
    assert losses[5] != pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
def test_camera_fit_learns_where_a_shifted_camera_is(tmp_path: Path) -> None:
    """Frames hold only a bright dot at the hand, under a camera that is turned anew for each episode."""
    rng, episodes = np.random.default_rng(0), []
    for i in range(60):
        shift = rng.uniform(-0.25, 0.25, 2)
        camera = np.array(CAMERA).reshape(3, 4).copy()
        camera[:2] += shift[:, None] * camera[2]
        states = np.tile(STATE, (3, 1))
        states[:, :2] += rng.uniform(-0.05, 0.05, (3, 2))
        frames = np.zeros((3, 64, 64, 3), np.uint8)
        for t in range(3):
            u, v = seen_pixel(pose_from_state(states[t])[:3, 3]) + shift
            x, y = int((u + 1) * 32), int((v + 1) * 32)
            frames[t, max(0, y - 3):y + 3, max(0, x - 3):x + 3] = 255
        episodes.append(Episode(frames, np.zeros((2, 7), np.float32), states, name=str(i), task="reach",
                                camera=camera.ravel().astype(np.float32)))
    torch.manual_seed(0)
    network = ActionDiT(SEEING)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    misfit_px = train_camera_fit(network, episodes, 150, 0)
    assert misfit_px < 3.0, misfit_px  # 6 px before
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith(("outline.look", "outline.read")) for k in changed)
    assert np.isnan(train_camera_fit(ActionDiT(TINY), episodes, 10, 0))


def test_a_network_that_knows_a_camera_dreams_the_same_with_and_without_cache() -> None:
    network = lively(SEEING)
    world = ActionDiTWorld(network, dtype=torch.float32)
    start = Frame(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), 0)
    deltas = np.random.default_rng(1).normal(0, 0.02, (2, 7)).astype(np.float32)
    one, two = (world.begin([Start(start, STATE, "go")] * 2, 0) for _ in range(2))
    drawn = one.play(deltas[:, None])
    assert np.array_equal(drawn, two.play(deltas[:, None]))
    far = world.begin([Start(start, STATE + np.float32([0.05, 0, 0, 0, 0, 0, 0]), "go")] * 2, 0)
    assert not np.array_equal(far.play(deltas[:, None]), drawn)


def test_dreams_of_several_starts_are_one_batch_each_with_its_own_image_and_state() -> None:
    world = ActionDiTWorld(lively(), dtype=torch.float32)
    frames = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    states = np.stack([STATE, STATE + np.float32([0.05, 0, 0, 0, 0, 0, 0])])
    deltas = np.zeros((2, 7), np.float32)
    starts = [Start(Frame(f, 0), state, "go") for f, state in zip(frames, states, strict=True)]
    both = world.begin(starts, 3)
    drawn = both.play(deltas[:, None])[:, 0]
    kept = ActionDiTWorld(still(), dtype=torch.float32).begin(starts, 3).play(deltas[:, None])[:, 0]
    assert np.array_equal(kept, frames)  # each goes on from its own image
    assert both.state is not None and np.allclose(both.state[:, :3], states[:, :3])
    assert not np.array_equal(drawn, world.begin(starts[::-1], 3).play(deltas[:, None])[:, 0])
    blind = world.begin([starts[0], dataclasses.replace(starts[1], state=None)], 3).play(deltas[:, None])[:, 0]
    assert np.array_equal(blind[0], drawn[0]) and not np.array_equal(blind[1], drawn[1]), "only one state is unknown"


def test_a_copy_is_drawn_alike_whoever_has_left_the_batch() -> None:
    network = lively(SEEING)
    world = ActionDiTWorld(network, dtype=torch.float32)
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
    starts = [Start(Frame(f, 0), STATE, "go") for f in frames]
    deltas = np.random.default_rng(1).normal(0, 0.02, (4, 5, 7)).astype(np.float32)
    whole, left = (world.begin(starts, 3) for _ in range(2))
    drawn = whole.play(deltas)
    assert np.array_equal(left.play(deltas[:, :2]), drawn[:, :2])
    rows = np.array([3, 1])
    left.keep(rows)
    assert np.abs(left.play(deltas[rows, 2:]).astype(int) - drawn[rows, 2:]).max() <= 1  # batched sums round otherwise
    with pytest.raises(BadAction, match=r"\(2, K, 7\)"):
        left.play(deltas[:, :1])
