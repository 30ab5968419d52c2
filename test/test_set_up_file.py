"""What is measured on site goes into one parameters file, beside what a person wrote there."""
from __future__ import annotations

from pathlib import Path

import pytest

from world_gymnast_ros.config import read_parameters
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.files import read_yaml
from world_gymnast_ros.nodes.set_up_file import with_parameter


def test_table_and_camera_share_a_file_and_may_be_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "set_up.yaml"
    for height_m in (0.0, -0.0123):
        path.write_text(with_parameter(path, "table_z_m", height_m))
        path.write_text(with_parameter(path, "camera_calibration", "/a b/#1: x/camera_pose.json"))
        assert read_parameters(path) == {"table_z_m": height_m, "camera_calibration": "/a b/#1: x/camera_pose.json"}


def test_what_a_person_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# our lab\n/**:   # all\n\n  ros__parameters: # measured\n    # by Ada\n"
                    "    table_z_m: 0.5  # old\n/arm_node:\n  ros__parameters: {workspace_low_m: [0.1, -0.2, 0.0]}\n")
    path.write_text(with_parameter(path, "table_z_m", 0.01))
    path.write_text(with_parameter(path, "camera_calibration", "/c.json"))
    text = path.read_text()
    assert "# our lab" in text and "    # by Ada\n" in text and "    table_z_m: 0.01  # old\n" in text
    assert read_yaml(path) == {"/**": {"ros__parameters": {"table_z_m": 0.01, "camera_calibration": "/c.json"}},
                               "/arm_node": {"ros__parameters": {"workspace_low_m": [0.1, -0.2, 0.0]}}}


@pytest.mark.parametrize("text", ["", "[1]", "7", "/**: {ros__parameters: {a: 1}}", "/**:\n  ros__parameters:\n",
                                  "/arm_node:\n  ros__parameters:\n    table_z_m: 0.5\n", "/**:\n  a: 1\n",
                                  "/**:\n  ros__parameters:\n    table_z_m: 0.1\n/b:\n  ros__parameters:\n"
                                  "    table_z_m: 0.2\n"])
def test_a_file_that_cannot_take_it_is_left_alone_and_the_line_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadConfig, match=r"mine\.yaml is no parameters file .* add 'table_z_m: 0.01' by hand"):
        with_parameter(path, "table_z_m", 0.01)
    path.write_text("a: [")
    with pytest.raises(BadConfig, match="cannot be read as YAML"):
        with_parameter(path, "table_z_m", 0.01)
