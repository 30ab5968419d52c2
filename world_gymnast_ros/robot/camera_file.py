"""Intrinsics of a camera in the YAML file that ROS's camera_calibration writes and camera_info_manager reads."""
from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.files import read_yaml, write_text
from world_gymnast_ros.types import F64

ASPECT_TOLERANCE = 0.01
"""Images of another size are the same view where width / height differs by no more than this part."""
_DISTORTIONS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}
"""Model -> how many coefficients it may have."""


@dataclass(frozen=True)
class Intrinsics:
    """A calibration: `K` (3, 3), `P` (3, 4) in pixels of a `width` x `height` image, `R` (3, 3), distortion `D`."""

    width: int
    height: int
    K: F64
    D: tuple[float, ...] = (0.0,) * 5
    R: F64 | None = None
    P: F64 | None = None
    model: str = "plumb_bob"
    name: str = "camera"

    @property
    def rectification(self) -> F64:
        """R (3, 3): the identity for a camera alone."""
        return np.eye(3) if self.R is None else self.R

    @property
    def projection(self) -> F64:
        """P (3, 4): K and no offset where none was calibrated."""
        return np.hstack([self.K, np.zeros((3, 1))]) if self.P is None else self.P

    def at(self, width: int, height: int) -> Intrinsics:
        """Return the calibration for images of this size, scaled. Raises BadConfig where they show another view."""
        if (width, height) == (self.width, self.height):
            return self
        if abs(width * self.height / (height * self.width) - 1.0) > ASPECT_TOLERANCE:
            raise BadConfig(f"images are {width}x{height}, the camera was calibrated at {self.width}x{self.height}: "
                            "another aspect ratio is another crop; calibrate at this size, or set width and height")
        scale = np.diag([width / self.width, height / self.height, 1.0])
        return replace(self, width=width, height=height, K=scale @ self.K,
                       P=None if self.P is None else scale @ self.P)


def pinhole(focal_px: float, width: int, height: int) -> Intrinsics:
    """Return an ideal camera that looks through the middle of its image; `focal_px` at this `height`."""
    K = np.array([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]])
    return Intrinsics(width, height, K)


def checked(intrinsics: Intrinsics) -> Intrinsics:
    """Return a calibration that can be one. Raises BadConfig naming what cannot be."""
    i = intrinsics
    numbers = np.concatenate([i.K.ravel(), i.rectification.ravel(), i.projection.ravel(), np.asarray(i.D)])
    if i.width < 1 or i.height < 1 or not np.isfinite(numbers).all():
        raise BadConfig(f"calibration of {i.width}x{i.height} pixels holds a size or a number that is none")
    if not (i.K[0, 0] > 0 and i.K[1, 1] > 0 and 0 < i.K[0, 2] < i.width and 0 < i.K[1, 2] < i.height):
        raise BadConfig(f"camera matrix {i.K.tolist()}: focal lengths must be above 0 and the principal point inside "
                        f"{i.width}x{i.height}; calibrate again")
    if i.model not in _DISTORTIONS or len(i.D) not in _DISTORTIONS[i.model]:
        raise BadConfig(f"distortion model '{i.model}' with {len(i.D)} coefficients; known are " + ", ".join(
            f"{name} with {' or '.join(map(str, counts))}" for name, counts in _DISTORTIONS.items()))
    return i


def path_of(url: str) -> Path:
    """Return the file of a camera_info_url: file://, or a path. Raises BadConfig for other kinds."""
    kind, mark, rest = url.partition("://")
    if mark and kind != "file":
        raise BadConfig(f"camera_info_url {url}: {kind}:// is not read here; write file:///path/to/camera.yaml, or the "
                        "path alone")
    home = os.environ.get("ROS_HOME") or str(Path.home() / ".ros")
    return Path((rest if mark else url).replace("${ROS_HOME}", home)).expanduser()


def read(path: Path) -> Intrinsics:
    """Return the calibration of a file. Raises BadConfig naming the file and what is wrong with it."""
    if not path.exists():
        raise BadConfig(f"camera_info_url names {path}, which is not there; calibrate (ros2 run camera_calibration "
                        "cameracalibrator), whose result this node keeps there, or leave camera_info_url empty")
    data = read_yaml(path)
    try:
        return checked(Intrinsics(
            int(data["image_width"]), int(data["image_height"]), _matrix(data, "camera_matrix", 3, 3),
            tuple(float(v) for v in data["distortion_coefficients"]["data"]),
            _matrix(data, "rectification_matrix", 3, 3), _matrix(data, "projection_matrix", 3, 4),
            str(data["distortion_model"]), str(data.get("camera_name", "camera"))))
    except BadConfig as error:
        raise BadConfig(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadConfig(f"{path} is no calibration as camera_calibration writes it: {type(error).__name__} {error}"
                        ) from error


def write(path: Path, intrinsics: Intrinsics) -> None:
    """Write a calibration, whole or not at all. Raises BadConfig where it cannot be one, OSError as the disk does."""
    i = checked(intrinsics)
    data = {"image_width": i.width, "image_height": i.height, "camera_name": i.name,
            "camera_matrix": _entry(i.K), "distortion_model": i.model,
            "distortion_coefficients": {"rows": 1, "cols": len(i.D), "data": [float(v) for v in i.D]},
            "rectification_matrix": _entry(i.rectification), "projection_matrix": _entry(i.projection)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(data, sort_keys=False, default_flow_style=None))


def _entry(matrix: F64) -> dict[str, Any]:
    return {"rows": matrix.shape[0], "cols": matrix.shape[1], "data": [float(v) for v in matrix.ravel()]}


def _matrix(data: Any, name: str, rows: int, columns: int) -> F64:
    values = np.asarray(data[name]["data"], np.float64)
    if values.size != rows * columns:
        raise ValueError(f"{name} has {values.size} numbers, not {rows} x {columns}")
    return values.reshape(rows, columns)
