"""Where a calibrated camera stands, on disk: one file that a calibration writes and every node that must know reads.

Its intrinsics are another file, ROS's own (`camera_file`).
"""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.files import write_text
from world_gymnast_ros.robot.arm_silhouette import projection
from world_gymnast_ros.types import F64

NAME = "camera_pose.json"


@dataclass(frozen=True)
class StoredCamera:
    """`T_base_camera`: 16 numbers, row by row, m, optical axes; `focal` in heights of the image; `aspect` width /
    height; `rms_px`: what the calibration left, at `width_px`; `images`: how many it used."""

    T_base_camera: list[float]
    focal: float
    aspect: float
    rms_px: float
    width_px: int
    images: int

    def pose(self) -> F64:
        """Return T_base_camera (4, 4)."""
        return np.array(self.T_base_camera, np.float64).reshape(4, 4)

    def projection(self) -> tuple[float, ...]:
        """Return the camera as `arm_silhouette.projection` gives it."""
        return projection(self.pose(), self.focal, self.aspect, 1.0)


def write_camera(path: Path, camera: StoredCamera) -> None:
    """Write a camera, whole or not at all."""
    write_text(path, json.dumps(asdict(camera), indent=1) + "\n")


def read_camera(path: Path) -> StoredCamera:
    """Read a camera. Raises BadConfig naming what is wrong with the file."""
    remedy = "calibrate again (world-gymnast robot calibrate), or leave camera_calibration empty"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        camera = StoredCamera(**values)
        pose = camera.pose()
        turned = pose[:3, :3] @ pose[:3, :3].T
        whole = np.isfinite(pose).all() and np.allclose(turned, np.eye(3), atol=1e-3) and np.allclose(
            pose[3], (0, 0, 0, 1))
        if not whole or not 0.1 < camera.focal < 20.0 or not 0.2 < camera.aspect < 5.0:
            raise ValueError("its numbers are no camera")
    except OSError as error:
        raise BadConfig(f"camera_calibration {path} cannot be read ({error.strerror or error}); {remedy}") from error
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise BadConfig(f"camera_calibration {path} is no calibration ({error}); {remedy}") from error
    return camera
