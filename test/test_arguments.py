"""Launch arguments become settings of the nodes that they are for, or are refused."""
from pathlib import Path

import pytest

from world_gymnast_ros import config
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.nodes import arguments, graph


def settled(namespace: str = "", **words: str) -> dict[str, graph.NodeSpec]:
    values = {name: default for name, (default, _, _) in arguments.SETTINGS.items()} | words
    return {spec.name: spec for spec in arguments.settle(graph.robot_graph(""), values.__getitem__, namespace)}


def test_defaults_change_nothing() -> None:
    assert list(settled().values()) == graph.robot_graph("")


def test_each_argument_reaches_the_nodes_it_is_for_and_no_other(tmp_path: Path) -> None:
    specs = settled(robot_name="left", driver="servo", policy_url="http://h:1", record_dir=str(tmp_path / "x"),
                    use_sim_time="true", log_level="warn", image_topic="/cam/color/image_raw")
    assert specs["arm_node"].overrides == {"robot_name": "left", "driver": "servo", "base_frame": "left/base_link",
                                           "use_sim_time": True}
    assert specs["policy_node"].overrides == {"policy_url": "http://h:1", "use_sim_time": True}
    assert specs["recorder_node"].overrides == {"robot_name": "left", "directory": str(tmp_path / "x"),
                                                "use_sim_time": True}
    assert specs["adapt_node"].overrides == {"robot_name": "left", "use_sim_time": True}, "its directory is another"
    for spec in specs.values():
        assert spec.arguments()[-8:] == [
            "-r", "image_raw:=/cam/color/image_raw", "-r", "image_raw/compressed:=/cam/color/image_raw/compressed",
            "-r", "camera_info:=/cam/color/camera_info", "--log-level", "warn"]


def test_the_models_are_named_as_on_the_command_line() -> None:
    judges = "tiny/reflector, Qwen/Qwen3-VL-4B-Instruct, http://gpu:8000/v1#big"
    specs = settled(policy="openvla/openvla-7b", world_model="/models/worldgym", judges=judges)
    assert specs["policy_node"].overrides == {"checkpoint": "openvla/openvla-7b"}
    assert specs["adapt_node"].overrides == {"policy": "openvla/openvla-7b", "world_model": "/models/worldgym",
                                             "judges": judges}
    config.from_mapping(AdaptNodeConfig, specs["adapt_node"].overrides)
    config.from_mapping(config.PolicyConfig, specs["policy_node"].overrides)


def test_the_choices_are_those_of_the_node() -> None:
    (driver,) = [f for f in config.ArmConfig.__dataclass_fields__.values() if f.name == "driver"]
    assert driver.metadata["choices"] == arguments.DRIVERS


def test_a_parameters_file_goes_to_the_nodes_that_it_has_sections_for(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("/lab/arm_node:\n  ros__parameters: {base_frame: base}\n/**/policy_node:\n  ros__parameters: {}\n")
    specs = settled("lab", params_file=str(file), robot_name="left")
    assert {name for name, spec in specs.items() if spec.files} == {"arm_node", "policy_node"}
    assert specs["arm_node"].arguments()[3:5] == ["--params-file", str(file)], "after the shipped file, before -p"
    assert "base_frame" not in specs["arm_node"].overrides, "the file says it"


@pytest.mark.parametrize(("words", "told"), [
    ({"params_file": "/nowhere.yaml"}, "no such file"),
    ({"params_file": "OTHER"}, r"of its sections \(camera, lab/arm_node\) none is for a node .*/arm_node"),
    ({"image_topic": "/cam/image_raw/compressed"}, "image_compressed"),
])
def test_what_would_reach_nobody_is_refused(tmp_path: Path, words: dict[str, str], told: str) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("lab/arm_node:\n  ros__parameters: {}\ncamera:\n  ros__parameters: {}\n")
    with pytest.raises(BadConfig, match=told):
        settled(**{key: str(file) if value == "OTHER" else value for key, value in words.items()})


def test_every_node_says_what_goes_missing_with_it() -> None:
    specs = [*graph.robot_graph("0"), *graph.twin_graph()]
    assert all(spec.missed for spec in specs)
