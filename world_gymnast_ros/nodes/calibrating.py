"""A camera calibration from captured images: fit, file and image, for adapt_node's service."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.control.camera_calibration import CalibrationImage, calibrate_camera, distinct, overlay
from world_gymnast_ros.errors import BadFrame
from world_gymnast_ros.files import whole, write_text
from world_gymnast_ros.nodes import set_up_file
from world_gymnast_ros.robot.camera import (
    BRIDGE_CAMERA_FOCAL,
    BRIDGE_CAMERA_LOOK,
    BRIDGE_CAMERA_XYZ_M,
    CameraPrior,
    level_camera,
)
from world_gymnast_ros.robot.camera_extrinsics import NAME, StoredCamera, read_camera, write_camera


def calibrate(images: Sequence[CalibrationImage], config: AdaptNodeConfig,
              progress: Callable[[float], object] = lambda share: None) -> tuple[str, Path]:
    """Calibrate the camera, write it, an image and the parameter that names it under `directory`; return a line about
    it, and the file. `progress` hears which share of the work is done.

    Raises BadConfig where poses are missing, BadFrame where no camera explains the images; nothing is written then.
    """
    used = distinct(images)
    given = config.camera_calibration
    before = read_camera(Path(given).expanduser()) if given else nominal_camera()
    height, width = used[0].rgb.shape[:2] if used else (480, 640)
    if any(p.rgb.shape[:2] != (height, width) for p in used):
        raise BadFrame("the captured images have several sizes; start the node again and capture with one camera")
    prior = CameraPrior(before.pose(), 2 * before.focal / before.aspect, 2 * before.focal)
    found = calibrate_camera(used, prior, progress=progress)
    path = (Path(config.directory) / NAME).resolve()
    set_up = path.with_name(set_up_file.NAME)
    parameters = set_up_file.with_parameter(set_up, "camera_calibration", str(path))  # or refused, before all else
    write_camera(path, StoredCamera([float(v) for v in found.T_base_camera.ravel()], before.focal, before.aspect,
                                    round(found.rms_px, 2), width, len(used)))
    drawn = path.with_suffix(".png")
    with whole(drawn) as partial:
        Image.fromarray(overlay(used, found.T_base_camera, prior)).save(partial, format="PNG")
    write_text(set_up, parameters)
    moved_mm = 1000 * float(np.linalg.norm((found.T_base_camera - before.pose())[:3, 3]))
    return (f"camera found by {len(used)} images, {moved_mm:.0f} mm from where it was thought to be; the hand is "
            f"{found.rms_px:.1f} px from where it is seen. Look at {drawn}: the red lines must lie on the hand. "
            f"From then on launch with params_file:={set_up}, which names {path.name}"), path


def nominal_camera() -> StoredCamera:
    """Return Bridge's camera."""
    pose = level_camera(BRIDGE_CAMERA_XYZ_M, BRIDGE_CAMERA_LOOK)
    return StoredCamera([float(v) for v in pose.ravel()], BRIDGE_CAMERA_FOCAL, 4 / 3, 0.0, 640, 0)
