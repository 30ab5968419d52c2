"""Calibrations are read and kept as camera_calibration writes them, and refused where they do not fit the images."""
from pathlib import Path

import numpy as np
import pytest

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.robot import camera_file

WRITTEN = """image_width: 640
image_height: 480
camera_name: narrow_stereo
camera_matrix:
  rows: 3
  cols: 3
  data: [623.5, 0. , 311.2, 0. , 622.9, 243.7, 0. , 0. , 1. ]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [0.101, -0.21, 0.0003, -0.0011, 0.]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1., 0., 0., 0., 1., 0., 0., 0., 1.]
projection_matrix:
  rows: 3
  cols: 4
  data: [629.1, 0. , 309.9, 0. , 0. , 631.0, 244.1, 0. , 0. , 0. , 1. , 0. ]
"""
"""As camera_calibration's cameracalibrator writes it."""


def written(folder: Path, text: str = WRITTEN) -> Path:
    path = folder / "camera.yaml"
    path.write_text(text)
    return path


def test_a_written_calibration_is_read_and_kept_without_loss(tmp_path: Path) -> None:
    read = camera_file.read(written(tmp_path))
    assert (read.width, read.height, read.name, read.model) == (640, 480, "narrow_stereo", "plumb_bob")
    assert read.K[0, 2] == 311.2 and read.D[1] == -0.21 and read.projection[1, 1] == 631.0
    camera_file.write(tmp_path / "new" / "kept.yaml", read)
    again = camera_file.read(tmp_path / "new" / "kept.yaml")
    for name in ("K", "R", "P"):
        np.testing.assert_array_equal(getattr(again, name), getattr(read, name))
    assert (again.D, again.name, again.width) == (read.D, read.name, read.width)


def test_the_same_point_is_seen_at_the_same_place_of_a_smaller_image(tmp_path: Path) -> None:
    full = camera_file.read(written(tmp_path))
    half = full.at(320, 240)
    point = np.array([0.1, -0.05, 0.6])
    for matrix in ("K", "projection"):
        seen = [getattr(i, matrix)[:, :3] @ point for i in (full, half)]
        np.testing.assert_allclose(seen[0][:2] / seen[0][2] / 2, seen[1][:2] / seen[1][2])
    assert half.D == full.D and full.at(640, 480) is full


@pytest.mark.parametrize(("before", "after", "told"), [
    ("image_width: 640", "image_width: 0", "0x480"), ("623.5", ".nan", "number that is none"),
    ("data: [623.5, 0. ,", "data: [", "camera_matrix has 7 numbers"), ("plumb_bob", "fisheye2", "'fisheye2'"),
    ("311.2", "911.2", "principal point inside 640x480"), ("-0.0011, 0.]", "-0.0011, 0., 1., 2.]", "7 coefficients"),
    ("camera_matrix:", "matrix:", "camera_matrix"), ("rows: 3", "rows: [", "cannot be read as YAML"),
])
def test_a_file_that_is_no_calibration_is_refused_by_name(tmp_path: Path, before: str, after: str, told: str) -> None:
    assert before in WRITTEN
    with pytest.raises(BadConfig, match=r"camera\.yaml") as error:
        camera_file.read(written(tmp_path, WRITTEN.replace(before, after, 1)))
    assert told in str(error.value)


def test_another_aspect_ratio_is_another_view(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"1280x720.*calibrated at 640x480"):
        camera_file.read(written(tmp_path)).at(1280, 720)


def test_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_HOME", "/r")
    assert camera_file.path_of("file://${ROS_HOME}/camera_info/c.yaml") == Path("/r/camera_info/c.yaml")
    assert camera_file.path_of("/a/b.yaml") == Path("/a/b.yaml")
    with pytest.raises(BadConfig, match=r"package://x/y\.yaml"):
        camera_file.path_of("package://x/y.yaml")
    with pytest.raises(BadConfig, match="is not there; calibrate"):
        camera_file.read(Path("/nowhere/c.yaml"))
