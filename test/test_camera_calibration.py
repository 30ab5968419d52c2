"""Where the camera is, from pictures of the twin's arm at several poses; and the file that keeps it."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from world_gymnast_ros.config import PolicyConfig
from world_gymnast_ros.control.camera_calibration import CalibrationPicture, calibrate_camera, distinct, overlay
from world_gymnast_ros.control.capture_check import hand_seen
from world_gymnast_ros.errors import BadConfig, BadFrame
from world_gymnast_ros.nodes.calibrating import nominal_camera
from world_gymnast_ros.robot.arm_silhouette import silhouette_ends
from world_gymnast_ros.robot.camera import CameraPrior, project
from world_gymnast_ros.robot.camera_extrinsics import StoredCamera, read_camera, write_camera
from world_gymnast_ros.twin.model import camera_pose
from world_gymnast_ros.twin.observer import capture
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.types import F64

NOMINAL = nominal_camera()
PRIOR = CameraPrior(NOMINAL.pose(), 2 * NOMINAL.focal / NOMINAL.aspect, 2 * NOMINAL.focal)
COARSE = ((48, 36, 2.0), (96, 72, 1.0))
PLACES_M = ((0.2, -0.12, 0.08), (0.22, 0.0, 0.06), (0.26, 0.1, 0.08), (0.3, -0.1, 0.1), (0.34, 0.02, 0.06),
            (0.3, 0.06, 0.14))
SCENE = "novel_camera_shift"


@pytest.fixture(scope="module")
def pictures() -> list[CalibrationPicture]:
    """The hand at six places, before a camera that was moved by 40 px."""
    scene = load_scene(SCENE)
    twin = Twin(scene)
    try:
        out = []
        for place in PLACES_M:
            twin.reset(3, scene.instructions[0], np.array([*place, 0.0, 0.0, 0.3 * place[1], 1.0]))
            frame, state = capture(twin)
            out.append(CalibrationPicture(frame.rgb, state))
        return out
    finally:
        twin.close()


def off_px(pose: F64, pictures: list[CalibrationPicture]) -> float:
    """Return how far the hand of these pictures is seen from where the true camera sees it, root mean square, px of
    640."""
    points = silhouette_ends(np.stack([p.state for p in pictures]))[:, 2:].reshape(-1, 3)
    gap = project(pose, PRIOR, points) - project(camera_pose(load_scene(SCENE)), PRIOR, points)
    return float(np.sqrt(np.square(gap * (320, 240)).sum(-1).mean()))


def test_a_shifted_camera_is_found(pictures: list[CalibrationPicture], tmp_path: Path) -> None:
    assert off_px(PRIOR.T_base_camera, pictures) > 30.0
    shares: list[float] = []
    found = calibrate_camera(pictures, PRIOR, grids=COARSE, progress=shares.append)
    assert shares == sorted(shares) and 0.0 < shares[0] < 0.01 and 0.5 < shares[-1] <= 1.0
    assert off_px(found.T_base_camera, pictures) < 8.0 and found.match > 0.8 and found.rms_px < 6.0
    assert overlay(pictures, found.T_base_camera, PRIOR).shape == (480, 1280, 3)
    stored = StoredCamera([float(v) for v in found.T_base_camera.ravel()], NOMINAL.focal, NOMINAL.aspect, 1.0, 640, 6)
    write_camera(tmp_path / "camera.json", stored)
    camera = PolicyConfig(camera_calibration=str(tmp_path / "camera.json")).camera()
    assert camera == stored.projection() and read_camera(tmp_path / "camera.json") == stored


def test_too_few_poses_and_pictures_without_an_arm_are_refused(pictures: list[CalibrationPicture]) -> None:
    assert len(distinct([*pictures, pictures[0]])) == len(pictures)
    with pytest.raises(BadConfig, match=r"3 pictures .* 6 are needed"):
        calibrate_camera(pictures[:3], PRIOR)
    noise = np.random.default_rng(0)
    empty = [CalibrationPicture(noise.integers(0, 255, (60, 80, 3), np.uint8), p.state) for p in pictures]
    with pytest.raises(BadFrame, match=r"match .* at least"):
        calibrate_camera(empty, PRIOR, grids=COARSE[:1])


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"T_base_camera": [1], "focal": 1, "aspect": 1, "rms_px": 1, '
                                  '"width_px": 1, "pictures": 1}'])
def test_a_file_that_is_no_camera_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "camera.json"
    path.write_text(text)
    for read in (read_camera, lambda p: PolicyConfig(camera_calibration=str(p)).camera()):
        with pytest.raises(BadConfig, match=r"camera\.json is no calibration .* robot calibrate"):
            read(path)
    with pytest.raises(BadConfig, match="cannot be read"):
        read_camera(tmp_path / "none.json")


def test_how_much_of_the_hand_is_seen() -> None:
    camera = NOMINAL.projection()
    seen = [hand_seen(np.array([x, 0.0, z, 0, 0, 0, 1], np.float32), camera) for x, z in
            ((0.25, 0.05), (0.25, 0.15), (0.12, 0.25))]
    assert seen[0] == 1.0 > seen[1] > 0.3 > seen[2]
