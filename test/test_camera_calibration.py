"""Where the camera is, from images of the twin's arm at several poses; and the file that keeps it."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.config import PolicyConfig
from world_gymnast_ros.control.camera_calibration import CalibrationImage, calibrate_camera, distinct, overlay
from world_gymnast_ros.control.capture_check import hand_seen
from world_gymnast_ros.errors import BadConfig, BadFrame
from world_gymnast_ros.loading.load import load_world_model
from world_gymnast_ros.nodes.calibrating import nominal_camera
from world_gymnast_ros.robot.arm_silhouette import silhouette_ends
from world_gymnast_ros.robot.camera import CameraPrior, project
from world_gymnast_ros.robot.camera_extrinsics import StoredCamera, read_camera, write_camera
from world_gymnast_ros.tabletop.geometric_judge import GeometricJudge
from world_gymnast_ros.twin.model import camera_pose
from world_gymnast_ros.twin.observer import capture
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.types import F64
from world_gymnast_ros.updates.adaptation import Parts, load_parts

NOMINAL = nominal_camera()
PRIOR = CameraPrior(NOMINAL.pose(), 2 * NOMINAL.focal / NOMINAL.aspect, 2 * NOMINAL.focal)
COARSE = ((48, 36, 2.0), (96, 72, 1.0))
PLACES_M = ((0.2, -0.12, 0.08), (0.22, 0.0, 0.06), (0.26, 0.1, 0.08), (0.3, -0.1, 0.1), (0.34, 0.02, 0.06),
            (0.3, 0.06, 0.14))
SCENE = "novel_camera_shift"


@pytest.fixture(scope="module")
def images() -> list[CalibrationImage]:
    """The hand at six places, before a camera that was moved by 40 px."""
    scene = load_scene(SCENE)
    twin = Twin(scene)
    try:
        out = []
        for place in PLACES_M:
            twin.reset(3, scene.instructions[0], np.array([*place, 0.0, 0.0, 0.3 * place[1], 1.0]))
            frame, state = capture(twin)
            out.append(CalibrationImage(frame.rgb, state))
        return out
    finally:
        twin.close()


def off_px(pose: F64, images: list[CalibrationImage]) -> float:
    """Return how far the hand of these images is seen from where the true camera sees it, root mean square, px of
    640."""
    points = silhouette_ends(np.stack([p.state for p in images]))[:, 2:].reshape(-1, 3)
    gap = project(pose, PRIOR, points) - project(camera_pose(load_scene(SCENE)), PRIOR, points)
    return float(np.sqrt(np.square(gap * (320, 240)).sum(-1).mean()))


def test_a_shifted_camera_is_found(images: list[CalibrationImage], tmp_path: Path) -> None:
    assert off_px(PRIOR.T_base_camera, images) > 30.0
    shares: list[float] = []
    found = calibrate_camera(images, PRIOR, grids=COARSE, progress=shares.append)
    assert shares == sorted(shares) and 0.0 < shares[0] < 0.01 and 0.5 < shares[-1] <= 1.0
    assert off_px(found.T_base_camera, images) < 8.0 and found.match > 0.8 and found.rms_px < 6.0
    assert overlay(images, found.T_base_camera, PRIOR).shape == (480, 1280, 3)
    stored = StoredCamera([float(v) for v in found.T_base_camera.ravel()], NOMINAL.focal, NOMINAL.aspect, 1.0, 640, 6)
    write_camera(tmp_path / "camera.json", stored)
    camera = PolicyConfig(camera_calibration=str(tmp_path / "camera.json")).camera()
    assert camera == stored.projection() and read_camera(tmp_path / "camera.json") == stored


def test_too_few_poses_and_images_without_an_arm_are_refused(images: list[CalibrationImage]) -> None:
    assert len(distinct([*images, images[0]])) == len(images)
    with pytest.raises(BadConfig, match=r"3 images .* 6 are needed"):
        calibrate_camera(images[:3], PRIOR)
    noise = np.random.default_rng(0)
    empty = [CalibrationImage(noise.integers(0, 255, (60, 80, 3), np.uint8), p.state) for p in images]
    with pytest.raises(BadFrame, match=r"match .* at least"):
        calibrate_camera(empty, PRIOR, grids=COARSE[:1])


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"T_base_camera": [1], "focal": 1, "aspect": 1, "rms_px": 1, '
                                  '"width_px": 1, "images": 1}'])
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


def test_judges_and_world_model_take_the_camera_from_the_calibration(tmp_path: Path) -> None:
    scene = replace(load_scene("lab_camera"), camera_offset_m=(0.1, -0.05, 0.1), camera_rotation_rad=(0.1, 0.0, 0.0))
    path = tmp_path / "camera_pose.json"
    write_camera(path, StoredCamera([float(v) for v in camera_pose(scene).ravel()], NOMINAL.focal, NOMINAL.aspect, 1.0,
                                    640, 8))
    told: list[str] = []
    nominal, calibrated = (load_parts(AdaptNodeConfig(device="cpu", judges="tabletop",
                                                      camera_calibration=words), told.append)
                           for words in ("", str(path)))
    assert "150 mm from where" in told[-1] and "not known" in told[-1]
    true = read_camera(path).projection()
    assert calibrated.world_model.config.camera == pytest.approx(true)
    assert nominal.world_model.config.camera != pytest.approx(true, abs=0.05)
    learned = load_world_model("", "tiny/reflector", "cpu", camera=read_camera(path))  # no geometric judge
    assert learned.config.camera == pytest.approx(true)
    twin, name = Twin(scene), scene.objects[0].name
    twin.reset(3, scene.instructions[0])
    frame, state = capture(twin)
    true_m = twin.object_xyz(name)[:2]
    twin.close()

    def off_m(parts: Parts) -> float:
        judge = next(j for j in parts.judge.judges if isinstance(j, GeometricJudge))
        found = judge.reader.measure(frame.rgb, state, (name,))
        return float("inf") if found.fault else float(np.linalg.norm(found.places_m[0, :2] - true_m))
    assert off_m(calibrated) < 0.01 < off_m(nominal), "without it the arm is not where it should be: no verdict"
