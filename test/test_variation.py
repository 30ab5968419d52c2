"""Varied starts: the arm's silhouette stays as it was, cut-outs lie on bare table, judges look at each one."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from world_gymnast_ros.adaptation.variation import (
    ARM_MARGIN,
    VariationConfig,
    arm_distance,
    bare_table,
    place_cut_out,
    read_cut_outs,
    turned,
    turned_camera,
    vary,
)
from world_gymnast_ros.errors import BadConfig, BadFrame
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.robot.arm_silhouette import projection
from world_gymnast_ros.robot.camera import BRIDGE_CAMERA_FOCAL, BRIDGE_CAMERA_LOOK, BRIDGE_CAMERA_XYZ_M, level_camera
from world_gymnast_ros.testing.fakes import FakeJudge
from world_gymnast_ros.types import Frame, Judgement, Start
from world_gymnast_ros.updates.variations import make_variations

CAMERA = projection(level_camera(BRIDGE_CAMERA_XYZ_M, BRIDGE_CAMERA_LOOK), BRIDGE_CAMERA_FOCAL * 144, 192, 144)
STATE = np.array([0.25, 0.0, 0.12, 0, 0, 0, 1], np.float32)
TABLE = (150, 120, 90)


def table_with_a_block() -> np.ndarray:
    rgb = np.full((144, 192, 3), TABLE, np.uint8)
    rgb[:30] = (190, 190, 185)  # a wall
    rgb[100:114, 120:134] = (200, 30, 30)  # something of the task
    return rgb


START = Start(Frame(table_with_a_block(), 0), STATE, "go right")
CUTS = [np.dstack([np.full((20, 14, 3), 40, np.uint8), np.pad(np.full((16, 10), 255, np.uint8), 2)])]


@pytest.mark.parametrize("seed", range(6))
def test_the_arm_is_untouched_and_the_block_not_covered(seed: int) -> None:
    varied, _ = vary(START, CAMERA, CUTS, VariationConfig(turn_rad=0.0), seed)
    arm = arm_distance(STATE, CAMERA, (144, 192)) <= ARM_MARGIN
    assert 0.02 < arm.mean() < 0.6
    np.testing.assert_array_equal(varied.frame.rgb[arm], START.frame.rgb[arm])
    np.testing.assert_array_equal(varied.captured.rgb, START.frame.rgb)
    assert (varied.frame.rgb != START.frame.rgb).any()
    still, _ = vary(START, CAMERA, CUTS, VariationConfig(3, 0, 0, 0, 0, 0), seed)
    changed = (still.frame.rgb != START.frame.rgb).any(-1)
    assert changed.any() and not changed[99:115, 119:135].any() and not changed[:30].any(), "nothing on block or wall"
    keep = np.ones((144, 192), bool)
    empty, told = vary(START, CAMERA, CUTS, VariationConfig(3, 0, 0, 0, 0, 0), seed, keep)
    assert told.startswith("0 objects") and (empty.frame.rgb == START.frame.rgb).all(), "the user keeps all of it free"


@pytest.mark.parametrize("seed", range(4))
def test_a_turned_camera_turns_the_arm_with_the_image(seed: int) -> None:
    varied, _ = vary(START, CAMERA, CUTS, VariationConfig(turn_rad=0.03), seed)
    rpy = np.random.default_rng(seed).uniform(-0.03, 0.03, 3)
    seen_by, focal = turned_camera(CAMERA, rpy)
    arm = arm_distance(STATE, seen_by, (144, 192)) <= ARM_MARGIN
    np.testing.assert_array_equal(varied.frame.rgb[arm], turned(START.frame.rgb, rpy, focal)[arm])
    np.testing.assert_array_equal(varied.state, STATE)


def test_the_homography_moves_pixels_as_the_projection_does() -> None:
    point = np.array([0.33, 0.05, 0.0, 1.0])
    rpy = np.array([0.01, -0.02, 0.03])
    moved, focal = turned_camera(CAMERA, rpy)

    def pixel(camera: object) -> tuple[float, float]:
        u, v, w = np.asarray(camera).reshape(3, 4) @ point
        return (u / w + 1) / 2 * 192 - 0.5, (v / w + 1) / 2 * 144 - 0.5
    x, y = pixel(CAMERA)
    rgb = np.zeros((144, 192, 3), np.uint8)
    grid = np.stack(np.meshgrid(np.arange(192), np.arange(144)), -1)
    rgb[np.linalg.norm(grid - (x, y), axis=-1) < 6] = 255
    spot = np.argwhere(turned(rgb, rpy, focal)[..., 0] > 128).mean(0)
    assert np.abs(spot[::-1] - pixel(moved)).max() < 0.5 and np.abs(np.subtract(pixel(moved), (x, y))).max() > 1.5


def test_bare_table_is_neither_object_nor_wall_nor_taken() -> None:
    taken = np.zeros((144, 192), bool)
    taken[60:80, 60:80] = True
    free = bare_table(table_with_a_block(), taken)
    assert free[130, 20] and not free[105, 125] and not free[10, 10] and not free[70, 70]
    assert place_cut_out(table_with_a_block(), np.zeros((144, 192), bool), CUTS[0], np.random.default_rng(0)) is None


def test_cut_outs_ship_and_bad_ones_are_refused(tmp_path: Path) -> None:
    assert len(read_cut_outs(share_path("config/cut_outs"))) >= 5
    with pytest.raises(BadConfig, match="holds no cut-outs"):
        read_cut_outs(tmp_path)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "solid.png")
    with pytest.raises(BadConfig, match="no transparent background"):
        read_cut_outs(tmp_path)
    (tmp_path / "solid.png").write_bytes(b"no image")
    with pytest.raises(BadConfig, match="no readable PNG"):
        read_cut_outs(tmp_path)


def test_without_a_known_arm_nothing_is_varied() -> None:
    with pytest.raises(BadFrame, match="state"):
        vary(Start(START.frame, None, "go right"), CAMERA, CUTS, VariationConfig(), 0)
    far = np.array([2.0, 0, 0.1, 0, 0, 0, 1], np.float32)
    with pytest.raises(BadFrame, match="out of reach"):
        vary(Start(START.frame, far, "go right"), CAMERA, CUTS, VariationConfig(), 0)


class Picky(FakeJudge):
    """Says of every other start that it is done already, and of the third nothing."""

    def score(self, frames, instruction, facts=None):  # type: ignore[no-untyped-def]
        assert facts is not None and all((c == f[0]).all() for c, f in zip(facts.captured, frames, strict=True))
        return [(Judgement(0.9), Judgement(0.1), Judgement(None, detail="the block was not found"))[i % 3]
                for i in range(len(frames))]


def test_each_is_looked_at_by_the_judges_and_what_they_refuse_is_counted() -> None:
    made = make_variations([START], Picky(), [CAMERA], CUTS, VariationConfig(), 9, seed=0)
    assert len(made.starts) == 3 and made.dropped == {"the task is done already": 3, "the block was not found": 3}
    assert "3 of 9" in made.summary and {s.instruction for s in made.starts} == {"go right"}
    unknown = [Start(START.frame, None, "go right")]
    blind = make_variations(unknown, Picky(), [CAMERA], CUTS, VariationConfig(), 4, seed=0)
    assert not blind.starts and "state" in blind.summary
