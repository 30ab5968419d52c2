"""The plate: the start frame without the arm, and with moved things where they are foreseen."""
from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import torch

from world_gymnast_ros.data.clip_sampler import MOST_OBJECTS, places_at
from world_gymnast_ros.data.episode import Episode, seen_with
from world_gymnast_ros.models.world_models.action_dit import ActionDiT, ActionDiTConfig
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld
from world_gymnast_ros.models.world_models.background import Background, fill, project
from world_gymnast_ros.objects import ObjectTracks
from world_gymnast_ros.tabletop.contact import OBJECT_SIZE_M, ObjectPaths, predicted_path
from world_gymnast_ros.types import F32, U8, Frame, Start

CAMERA = torch.tensor([[0.943, -1.705, 0.0, -0.273, -1.566, -0.866, -1.884, 0.540, 0.635, 0.351, -0.689, 0.304]])
"""The twin's nominal camera, base m to u w, v w, w."""
TABLE, RED = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.9, 0.1, 0.1])
SIDE = 64


def pixel(place_m: tuple[float, float, float]) -> tuple[int, int]:
    """Row and column of a place."""
    uv, _ = project(CAMERA, torch.tensor([[place_m]], dtype=torch.float32))
    return int((uv[0, 0, 1] + 1) / 2 * SIDE), int((uv[0, 0, 0] + 1) / 2 * SIDE)


def image(*places_m: tuple[float, float, float]) -> torch.Tensor:
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
    first = image(HERE, BESIDE)
    plate = Background(first, None, START, CAMERA)
    path = START[:, None].repeat(1, 2, 1, 1)
    path[0, 1, 0] = torch.tensor(THERE)
    still, moved = plate.at(path)[0]
    assert torch.equal(still, first[0])
    assert (moved[pixel(THERE)] - RED).abs().max() < 0.05, "its own pixels"
    assert (moved[pixel(HERE)] - TABLE).abs().max() < 0.05, "the bare table"
    assert torch.equal(moved[pixel(BESIDE)], RED), "what was not touched stays"
    assert torch.equal(plate.at(None)[0, 0], first[0])


def test_the_arm_is_taken_out_and_what_stands_beside_it_does_not_bleed_in() -> None:
    first = image(HERE)
    row, col = pixel(HERE)
    first[0, :, col + 4:col + 12] = 0.05  # an arm beside the thing
    far = torch.full((1, SIDE, SIDE), 0.4)
    far[0, :, col + 4:col + 12] = -0.05
    clean = Background(first, far, START, CAMERA).at(None)[0, 0]
    assert (clean[:, col + 5:col + 11] - TABLE).abs().max() < 0.02 and torch.equal(clean[row, col], RED)
    dirty = Background(first, far, None, None).at(None)[0, 0]  # where nothing is known of things
    assert (dirty[row, col + 4] - TABLE).abs().max() > 0.02
    assert torch.equal(Background(first, None, None, None).at(None)[0, 0], first[0])


class Reader:
    """Knows where one object lies, in captured frames of 144 lines or more, and where the camera is."""

    projection = tuple(CAMERA[0].tolist())

    def __init__(self, size_m: tuple[float, float] = OBJECT_SIZE_M) -> None:
        self.sizes_m = np.array([size_m])

    def begin(self, captured: Sequence[U8], states: F32) -> tuple[ObjectPaths, F32] | None:
        known = [rgb.shape[0] >= 144 for rgb in captured]
        places_m = np.array([[HERE] if k else [(np.nan,) * 3] for k in known])
        return (ObjectPaths(places_m, np.repeat(self.sizes_m[None], len(states), 0), states),
                np.repeat(CAMERA.numpy(), len(states), 0))

    def predict(self, captured: U8, states: F32) -> ObjectTracks | None:
        if captured.shape[0] < 144:
            return None
        path_m = predicted_path(states[None].astype(np.float64), np.array([[HERE]]), self.sizes_m[None])[0]
        return ObjectTracks(path_m.astype(np.float32), self.sizes_m.astype(np.float32), CAMERA[0].numpy())


def tiny(plate: bool, reader: Reader | None = None) -> ActionDiTWorld:
    torch.manual_seed(0)
    config = ActionDiTConfig(window_dim=24, dim=16, depth=2, heads=2, temporal_blocks=(1,), plate=plate,
                             camera=tuple(CAMERA[0].tolist()))
    network = ActionDiT(config)
    with torch.no_grad():  # every pixel from the background: the dream is the background
        n = config.patch**2
        network.head_out.bias[6 * n:].view(4, -1)[1] = 30.0
    return ActionDiTWorld(network, dtype=torch.float32, objects=reader or Reader())


def test_a_dream_moves_what_was_found_as_the_hand_does() -> None:
    state = np.array([0.30, -0.085, 0.03, 0, 0, 0, 0], np.float32)  # beside the object, low and closed
    deltas = np.zeros((2, 3, 7), np.float32)
    deltas[0, :, 1] = 0.045  # one copy pushes it
    frames = np.repeat((image(HERE) * 255).byte().numpy(), 2, 0)
    large = np.repeat(np.repeat(frames[0], 3, 0), 3, 1)

    def drawn_by(world: ActionDiTWorld, known: bool = True, captured: U8 | None = large) -> np.ndarray:
        original = None if captured is None else Frame(captured, 0)
        start = Start(Frame(frames[0], 0), state if known else None, "push", original)
        return world.begin([start] * 2, 0).play(deltas)[:, -1]
    drawn = drawn_by(tiny(True))
    y = float(predicted_path(np.stack([state + np.float32([0, 0.045 * t, 0, 0, 0, 0, 0]) for t in range(4)])[None],
                             np.array([[HERE]]))[0, -1, 0, 1])
    assert y > 0.05
    red = drawn[..., 0].astype(int) - drawn[..., 1]
    there, here = pixel((HERE[0], y, HERE[2])), pixel(HERE)
    assert red[0][there] > 150 > 100 > red[0][here] and red[1][here] > 150 > 100 > red[1][there]
    drawn = drawn_by(tiny(True, Reader((0.034, 0.04))))
    red = drawn[..., 0].astype(int) - drawn[..., 1]
    assert red[0][pixel((HERE[0], y + 0.012, HERE[2]))] > 150, "what is wider is pushed further ahead"
    for world, captured in ((tiny(False), large), (tiny(True), frames[0]), (tiny(True), None)):
        drawn = drawn_by(world, captured=captured)
        assert drawn[0][here][0] - int(drawn[0][here][1]) > 150, "nothing is known of objects"
    assert np.array_equal(drawn_by(tiny(True), known=False), frames), "without a state nothing is known of the hand"


def test_what_is_learned_to_be_larger_is_cut_out_larger() -> None:
    first = image(HERE)
    usual, large = (Background(first, None, START, CAMERA, torch.tensor([[[r, 0.04]]])) for r in (0.022, 0.034))
    assert large._objects is not None and usual._objects is not None
    assert large._objects.vacated.sum() > 1.3 * usual._objects.vacated.sum()


def test_recorded_episodes_learn_their_things_from_the_captured_frame() -> None:
    states = np.repeat(np.array([[0.30, -0.085, 0.03, 0, 0, 0, 0]], np.float32), 4, 0)
    states[:, 1] += 0.045 * np.arange(4, dtype=np.float32)
    frames = np.repeat((image(HERE) * 255).byte().numpy(), 4, 0)
    captured = np.repeat(np.repeat(frames[0], 3, 0), 3, 1)
    episode = Episode(frames, np.zeros((3, 7), np.float32), states, captured=captured)
    found = seen_with(episode, Reader())
    assert found.objects is not None and found.objects.path_m[-1, 0, 1] > 0.05
    wide = seen_with(episode, Reader((0.034, 0.04)))
    assert wide.objects is not None and wide.objects.path_m[-1, 0, 1] > found.objects.path_m[-1, 0, 1] + 0.008
    for bare in (Episode(frames, episode.deltas, None, captured=captured),
                 Episode(frames, episode.deltas, states)):
        seen = seen_with(bare, Reader())
        assert seen.objects is None and np.array_equal(seen.silhouette_camera, found.silhouette_camera)
    assert found.silhouette_camera is not None and np.array_equal(found.silhouette_camera, Reader.projection)


def test_places_of_clips_are_those_of_their_frames_and_past_the_end_the_last() -> None:
    path_m = np.arange(4 * (MOST_OBJECTS + 1) * 3, dtype=np.float32).reshape(4, MOST_OBJECTS + 1, 3)
    camera = np.arange(12, dtype=np.float32)
    sizes_m = np.full((MOST_OBJECTS + 1, 2), 0.03, np.float32)
    places_m, cameras, sizes = places_at([ObjectTracks(path_m, sizes_m, camera), None],
                                         [np.array([2, 3, 9]), np.array([0, 1, 2])])
    assert places_m.shape == (2, 3, MOST_OBJECTS, 3) and np.isnan(places_m[1]).all() and not cameras[1].any()
    assert np.array_equal(places_m[0], path_m[[2, 3, 3], :MOST_OBJECTS]) and np.array_equal(cameras[0], camera)
    assert (sizes[0] == np.float32(0.03)).all() and np.isnan(sizes[1]).all()


def test_the_shipped_reader_finds_what_lies_on_the_table(tmp_path: Path) -> None:
    from world_gymnast_ros.loading.load import load_objects
    from world_gymnast_ros.twin.observer import capture
    from world_gymnast_ros.twin.scene import load_scene
    from world_gymnast_ros.twin.sim import Twin

    reader, twin = load_objects(), Twin(load_scene("novel_dark_wood"))
    try:
        twin.reset(3, "push the purple block forward")
        frame, state = capture(twin)
        true = {n: twin.object_xyz(n)[:2].copy() for n in twin.object_names if not n.endswith("plate")}
    finally:
        twin.close()
    seen = reader.objects(frame.rgb, state)
    assert seen is not None and len(seen.places_m) >= len(true)
    for name, xy in true.items():
        assert np.linalg.norm(seen.places_m[:, :2] - xy, axis=1).min() < 0.015, name
    assert reader.objects(frame.rgb[::8, ::8].copy(), state) is None

