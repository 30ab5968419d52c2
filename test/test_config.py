"""Parameters: shipped files equal the dataclasses, and bad ones are named."""
import dataclasses
from pathlib import Path

import pytest

from world_gymnast_ros import config
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.models.world_models import action_dit_world as dream
from world_gymnast_ros.paths import share_dir
from world_gymnast_ros.robot.actions import WORKSPACES, StepLimits
from world_gymnast_ros.twin import bridge_loop


@pytest.mark.parametrize("name", config.FILES)
def test_shipped_file_holds_every_key_with_its_default(name: str) -> None:
    cls = config.FILES[name]
    path = share_dir() / "config" / name
    assert set(config.read_parameters(path)) == {f.name for f in dataclasses.fields(cls)}
    assert config.load(cls, path) == cls()


@pytest.mark.parametrize(("values", "words"), [
    ({"max_stepm": 0.05}, ["max_stepm", "0.05", "known keys", "max_step_m"]),
    ({"max_step_m": 5}, ["max_step_m", "5", "0.1"]),
    ({"max_step_m": "far"}, ["max_step_m", "'far'", "float"]),
    ({"max_step_m": float("nan")}, ["max_step_m", "nan"]),
    ({"dry_run": 1}, ["dry_run", "bool"]),
    ({"max_consecutive_holds": 2.5}, ["max_consecutive_holds", "2.5", "int"]),
    ({"max_consecutive_holds": True}, ["max_consecutive_holds", "True"]),
    ({"workspace_low_m": [0.1, 0.2]}, ["workspace_low_m", "3 numbers"]),
    ({"workspace_low_m": [0.1, 0.2, 9.0]}, ["workspace_low_m", "9.0"]),
    ({"robot_name": 3}, ["robot_name", "str"]),
    ({"robot_name": "/wx250s"}, ["robot_name", "'/wx250s'", "no slash at either end", "'wx250s'"]),
    ({"robot_name": "wx250s/"}, ["robot_name", "'wx250s/'", "no slash"]),
    ({"robot_name": "left-arm"}, ["robot_name", "'left-arm'", "letters, digits and _"]),
    ({"robot_name": ""}, ["robot_name", "''"]),
    ({"driver": "ros2_control"}, ["driver", "'ros2_control'", "xs, trajectory, servo, cartesian"]),
])
def test_bad_values_name_key_value_and_limit(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(BadConfig) as error:
        config.from_mapping(config.ArmConfig, values, "arm.yaml")
    assert all(word in str(error.value) for word in ["arm.yaml", *words]), error.value


def test_an_int_passes_for_a_float_and_a_list_for_a_tuple() -> None:
    c = config.from_mapping(config.ArmConfig, {"tick_hz": 50, "workspace_low_m": [0, 0, 0]})
    assert c.tick_hz == 50.0 and isinstance(c.tick_hz, float) and c.workspace_low_m == (0.0, 0.0, 0.0)


def test_a_number_may_be_typed_with_an_exponent() -> None:
    """PyYAML reads 3e-4 as a text; ROS, and people, as a number."""
    assert config.from_mapping(config.ArmConfig, {"tick_hz": "5e1"}).tick_hz == 50.0
    with pytest.raises(BadConfig, match="must be float"):
        config.from_mapping(config.ArmConfig, {"tick_hz": "5e"})


def test_every_limit_of_the_guard_can_be_set_from_the_arm_file() -> None:
    values = {f.name: getattr(SafetyConfig(), f.name) for f in dataclasses.fields(SafetyConfig)}
    assert config.from_mapping(config.ArmConfig, values).safety() == SafetyConfig()
    assert config.from_mapping(config.ArmConfig, {"max_step_m": 0.02}).safety().max_step_m == 0.02


def test_a_public_workspace_is_chosen_by_its_name() -> None:
    for name, box in WORKSPACES.items():
        assert config.from_mapping(config.ArmConfig, {"workspace": name}).safety().workspace == box
    with pytest.raises(BadConfig, match=r"'kitchen'.*custom, service, bridge, openvla"):
        config.from_mapping(config.ArmConfig, {"workspace": "kitchen"})


def test_arm_dream_and_twin_ship_with_the_same_step_limits() -> None:
    assert config.ArmConfig().safety().limits == StepLimits() == dream.LIMITS == bridge_loop.LIMITS


@pytest.mark.parametrize("text", [
    "a: [", "just words", "/**:\n  parameters: {}", "/**:\n  ros__parameters: 3", "a: {}\nb: {}",
    "/**:\n  ros__parameters: {}\n  more: 1",
])
def test_files_of_another_form_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    with pytest.raises(BadConfig, match=r"arm\.yaml"):
        config.load(config.ArmConfig, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="nowhere"):
        config.load(config.ArmConfig, tmp_path / "nowhere.yaml")


def test_robot_name_is_checked_for_every_node_alike() -> None:
    named = [AdaptNodeConfig, *(cls for cls in config.FILES.values()
                                if any(f.name == "robot_name" for f in dataclasses.fields(cls)))]
    assert len(named) >= 4
    for cls in named:
        assert config.from_mapping(cls, {"robot_name": "lab/left_arm2"}).robot_name == "lab/left_arm2"
        with pytest.raises(BadConfig, match="no slash at either end"):
            config.from_mapping(cls, {"robot_name": "/wx250s"})


def test_a_camera_index_may_be_typed_as_a_number() -> None:
    assert config.from_mapping(config.CameraConfig, {"source": 0}).source == "0"
    for bad in (0.5, True):
        with pytest.raises(BadConfig, match="source"):
            config.from_mapping(config.CameraConfig, {"source": bad})
