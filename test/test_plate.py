"""The plate: the start frame without the arm, and with moved things where they are foreseen."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import torch

from world_gymnast_ros.data.play_data import THINGS, PlayEpisode, Things, places_at, read_by
from world_gymnast_ros.models.world_models import action_dit_world as dream_module
from world_gymnast_ros.models.world_models.action_dit import ActionDiT, ActionDiTConfig
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld
from world_gymnast_ros.models.world_models.background import Plate, fill, project
from world_gymnast_ros.tabletop.contact import THING_SIZE_M, foreseen
from world_gymnast_ros.tabletop.scene_reader import Seen
from world_gymnast_ros.types import F32, U8

CAMERA = torch.tensor([[0.943, -1.705, 0.0, -0.273, -1.566, -0.866, -1.884, 0.540, 0.635, 0.351, -0.689, 0.304]])
"""The twin's nominal camera, base m to u w, v w, w."""
TABLE, RED = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.9, 0.1, 0.1])
SIDE = 64


def pixel(place_m: tuple[float, float, float]) -> tuple[int, int]:
    """Row and column of a place."""
    uv, _ = project(CAMERA, torch.tensor([[place_m]], dtype=torch.float32))
    return int((uv[0, 0, 1] + 1) / 2 * SIDE), int((uv[0, 0, 0] + 1) / 2 * SIDE)


def picture(*places_m: tuple[float, float, float]) -> torch.Tensor:
    """A grey table with red squares of 5 pixels; (1, H, W, 3)."""
    out = TABLE.expand(1, SIDE, SIDE, 3).clone()
    for place_m in places_m:
        row, col = pixel(place_m)
        out[0, row - 2:row + 3, col - 2:col + 3] = RED
    return out


HERE, THERE, BESIDE = (0.30, -0.02, 0.02), (0.30, 0.08, 0.02), (0.24, 0.06, 0.02)
START = torch.tensor([[HERE, BESIDE, (float("nan"),) * 3]])


def test_holes_are_filled_from_around_and_the_rest_is_kept() -> None:
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16).clone()
    keep = torch.ones(1, 1, 16, 16)
    assert torch.equal(fill(ramp, keep), ramp)
    keep[..., 4:9, 4:9] = 0
    holed = torch.where(keep > 0, ramp, torch.full_like(ramp, 9.0))
    filled = fill(holed, keep)
    assert torch.equal(filled * keep, ramp * keep) and (filled - ramp).abs().max() < 0.15


def test_a_moved_thing_is_drawn_where_it_is_foreseen_and_gone_from_where_it_lay() -> None:
    first = picture(HERE, BESIDE)
    plate = Plate(first, None, START, CAMERA)
    path = START[:, None].repeat(1, 2, 1, 1)
    path[0, 1, 0] = torch.tensor(THERE)
    still, moved = plate.at(path)[0]
    assert torch.equal(still, first[0])
    assert (moved[pixel(THERE)] - RED).abs().max() < 0.05, "its own pixels"
    assert (moved[pixel(HERE)] - TABLE).abs().max() < 0.05, "the bare table"
    assert torch.equal(moved[pixel(BESIDE)], RED), "what was not touched stays"
    assert torch.equal(plate.at(None)[0, 0], first[0])


def test_the_arm_is_taken_out_and_what_stands_beside_it_does_not_bleed_in() -> None:
    first = picture(HERE)
    row, col = pixel(HERE)
    first[0, :, col + 4:col + 12] = 0.05  # an arm beside the thing
    far = torch.full((1, SIDE, SIDE), 0.4)
    far[0, :, col + 4:col + 12] = -0.05
    clean = Plate(first, far, START, CAMERA).at(None)[0, 0]
    assert (clean[:, col + 5:col + 11] - TABLE).abs().max() < 0.02 and torch.equal(clean[row, col], RED)
    dirty = Plate(first, far, None, None).at(None)[0, 0]  # where nothing is known of things
    assert (dirty[row, col + 4] - TABLE).abs().max() > 0.02
    assert torch.equal(Plate(first, None, None, None).at(None)[0, 0], first[0])


class Reader:
    """Knows where one thing lies, in captured frames of 144 lines or more, and where the camera is."""

    projection = tuple(CAMERA[0].tolist())

    def __init__(self, size_m: tuple[float, float] = THING_SIZE_M, lift_m: float = np.nan) -> None:
        self.sizes_m, self.lifts_m = np.array([size_m]), np.array([lift_m])

    def things(self, captured: U8, state: F32) -> Seen | None:
        if captured.shape[0] < 144:
            return None
        return Seen(np.array([HERE]), self.sizes_m, self.lifts_m, CAMERA[0].numpy())


def tiny(plate: bool, reader: Reader | None = None) -> ActionDiTWorld:
    torch.manual_seed(0)
    config = ActionDiTConfig(window_dim=24, dim=16, depth=2, heads=2, temporal_blocks=(1,), plate=plate,
                             camera=tuple(CAMERA[0].tolist()))
    network = ActionDiT(config)
    with torch.no_grad():  # every pixel from the plate: the dream is the plate
        n = config.patch**2
        network.head_out.bias[6 * n:].view(4, -1)[1] = 30.0
    return ActionDiTWorld(network, dtype=torch.float32, reader=reader or Reader())  # type: ignore[arg-type]


def test_a_dream_moves_what_its_reader_found_as_the_hand_does(monkeypatch: pytest.MonkeyPatch) -> None:
    state = np.array([0.30, -0.085, 0.03, 0, 0, 0, 0], np.float32)  # beside the thing, low and closed
    deltas = np.zeros((2, 7), np.float32)
    deltas[0, 1] = 0.045  # one copy pushes it
    frames = np.repeat((picture(HERE) * 255).byte().numpy(), 2, 0)
    large = np.repeat(np.repeat(frames[0], 3, 0), 3, 1)
    dream = tiny(True).begin_many(frames, np.stack([state] * 2), 0, [large, large])
    for _ in range(3):
        drawn = dream.step(deltas)
    y = float(foreseen(np.stack([state + np.float32([0, 0.045 * t, 0, 0, 0, 0, 0]) for t in range(4)])[None],
                 np.array([[HERE]]))[0, -1, 0, 1])
    assert y > 0.05
    red = drawn[..., 0].astype(int) - drawn[..., 1]
    there, here = pixel((HERE[0], y, HERE[2])), pixel(HERE)
    assert red[0][there] > 150 > 100 > red[0][here] and red[1][here] > 150 > 100 > red[1][there]
    wide = tiny(True, Reader((0.034, 0.04))).begin_many(frames, np.stack([state] * 2), 0, [large, large])
    for _ in range(3):
        drawn = wide.step(deltas)
    red = drawn[..., 0].astype(int) - drawn[..., 1]
    assert red[0][pixel((HERE[0], y + 0.012, HERE[2]))] > 150, "what is wider is pushed further ahead"
    heavy = tiny(True, Reader(lift_m=0.002)).begin_many(frames, np.stack([state] * 2), 0, [large, large])
    asked: list[np.ndarray] = []
    kept_vector = dream_module.condition_vector
    monkeypatch.setattr(dream_module, "condition_vector",
                        lambda config, d, before, after, known: asked.append(after) or kept_vector(
                            config, d, before, after, known))
    for _ in range(3):
        drawn = heavy.step(deltas)
    red = drawn[..., 0].astype(int) - drawn[..., 1]
    assert red[0][pixel((HERE[0], y, HERE[2]))] < 100 < 150 < red[0][here], "what stops the arm stays"
    assert asked[-1][0, 1] < HERE[1] - 0.01 < 0.04 < heavy.state[0, 1], "the arm is drawn where it stands"
    assert asked[-1][0, 3] < -0.1, "and tilted, for its wrist goes on"
    for world, captured in ((tiny(False), [large] * 2), (tiny(True), list(frames)), (tiny(True), None)):
        kept = world.begin_many(frames, np.stack([state] * 2), 0, captured)
        for _ in range(3):
            drawn = kept.step(deltas)
        assert drawn[0][here][0] - int(drawn[0][here][1]) > 150, "nothing is known of things"
    blind = tiny(True).begin_many(frames, None, 0, [large, large]).step(deltas)
    assert np.array_equal(blind, frames), "without a state nothing is known of the hand"


def test_recorded_episodes_learn_their_things_from_the_captured_frame() -> None:
    states = np.repeat(np.array([[0.30, -0.085, 0.03, 0, 0, 0, 0]], np.float32), 4, 0)
    states[:, 1] += 0.045 * np.arange(4, dtype=np.float32)
    frames = np.repeat((picture(HERE) * 255).byte().numpy(), 4, 0)
    captured = np.repeat(np.repeat(frames[0], 3, 0), 3, 1)
    episode = PlayEpisode(frames, np.zeros((3, 7), np.float32), states, "push", "x", captured=captured)
    found = read_by(episode, Reader())  # type: ignore[arg-type]
    assert found.things is not None and found.things.path_m[-1, 0, 1] > 0.05
    wide = read_by(episode, Reader((0.034, 0.04)))  # type: ignore[arg-type]
    assert wide.things is not None and wide.things.path_m[-1, 0, 1] > found.things.path_m[-1, 0, 1] + 0.008
    for bare in (PlayEpisode(frames, episode.deltas, None, "push", "x", captured=captured),
                 PlayEpisode(frames, episode.deltas, states, "push", "x")):
        seen = read_by(bare, Reader())  # type: ignore[arg-type]
        assert seen.things is None and np.array_equal(seen.drawn_for, found.drawn_for)
    assert found.drawn_for is not None and np.array_equal(found.drawn_for, Reader.projection)


def test_places_of_clips_are_those_of_their_frames_and_past_the_end_the_last() -> None:
    path_m = np.arange(4 * (THINGS + 1) * 3, dtype=np.float32).reshape(4, THINGS + 1, 3)
    camera = np.arange(12, dtype=np.float32)
    places_m, cameras = places_at([Things(path_m, camera), None], [np.array([2, 3, 9]), np.array([0, 1, 2])])
    assert places_m.shape == (2, 3, THINGS, 3) and np.isnan(places_m[1]).all() and not cameras[1].any()
    assert np.array_equal(places_m[0], path_m[[2, 3, 3], :THINGS]) and np.array_equal(cameras[0], camera)


def test_the_shipped_reader_finds_what_lies_on_the_table(tmp_path: Path) -> None:
    from world_gymnast_ros.models.load import load_reader
    from world_gymnast_ros.twin.rollout import capture
    from world_gymnast_ros.twin.scene import load_scene
    from world_gymnast_ros.twin.sim import Twin

    reader, twin = load_reader(), Twin(load_scene("novel_dark_wood"))
    try:
        twin.reset(3, "push the purple block forward")
        frame, state = capture(twin)
        true = {n: twin.object_xyz(n)[:2].copy() for n in twin.object_names if not n.endswith("plate")}
    finally:
        twin.close()
    seen = reader.things(frame.rgb, state)
    assert seen is not None and len(seen.places_m) >= len(true)
    for name, xy in true.items():
        assert np.linalg.norm(seen.places_m[:, :2] - xy, axis=1).min() < 0.015, name
    assert reader.things(frame.rgb[::8, ::8].copy(), state) is None


def test_the_shipped_world_model_draws_what_is_pushed_where_it_went(tmp_path: Path) -> None:
    """In new scenes: its colour arrives at the true last place, and less of it without the captured frame."""
    from moved_things import find_moved

    from world_gymnast_ros.adaptation.rollout import replay_from
    from world_gymnast_ros.models.load import load_world_model
    from world_gymnast_ros.twin.play import record_episode, wide_scene, write_rows

    rows = [record_episode(wide_scene(np.random.default_rng((77, i)), "push"), 7_700_000 + i, "demo", False)
            for i in range(6)]
    write_rows(tmp_path / "p.npz", rows)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as play:
        data = {k: play[k] for k in play.files}
    moved = find_moved(data)
    assert len(moved.rows) >= 3, "the scenes of this test show nothing"
    world = load_world_model("")
    arrived = []
    for captured in (list(data["captured"]), None):
        films = replay_from(world, data["frames"][:, 0], list(data["states"][:, 0]), data["deltas"], 0,
                            captured=captured)
        arrived.append(moved.likeness(films[moved.rows, data["length"][moved.rows]], moved.last_px).mean())
    assert arrived[0] > 0.45 and arrived[0] > arrived[1] + 0.2, arrived
