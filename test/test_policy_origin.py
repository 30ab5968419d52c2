"""A policy that has seen simulated images only moves no real arm, unless it is told so; the twin's it does."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from world_gymnast_ros.config import ArmConfig, load
from world_gymnast_ros.control.policy_origin import origin_refusal
from world_gymnast_ros.nodes import graph
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.types import SIMULATION


@pytest.mark.parametrize(("trained_on", "sources", "may"), [
    (SIMULATION, ["twin_node"], True), (SIMULATION, ["xs_sdk"], False), (SIMULATION, [], False),
    (SIMULATION, ["twin_node", "xs_sdk"], False), (SIMULATION, ["_NODE_NAME_UNKNOWN_"], False),
    ("", ["xs_sdk"], True), ("BridgeData V2", ["xs_sdk"], True),
])
def test_only_an_arm_that_is_known_to_be_simulated_is_moved(trained_on: str, sources: list[str], may: bool) -> None:
    said = origin_refusal("tiny", trained_on, sources, ["twin_node"])
    assert (said == "") is may
    if not may:
        assert "'tiny'" in said and "allow_simulation_policy:=true" in said and "dry_run:=true" in said
        assert all(name in said for name in sources)


def test_the_launch_argument_reaches_the_arm_and_nothing_else_permits_it() -> None:
    arm = {spec.name: spec for spec in graph.robot_graph("", allow_simulation_policy=True)}["arm_node"]
    assert arm.overrides == {"allow_simulation_policy": True}
    assert not graph.ARM.overrides and not ArmConfig().allow_simulation_policy
    assert not load(ArmConfig, share_path("config/arm.yaml")).allow_simulation_policy


def test_the_card_of_the_shipped_policy_says_it() -> None:
    card = json.loads(share_path("checkpoints/tiny/policy/config.json").read_text())
    assert card["trained_on"] == SIMULATION


def test_a_policy_that_does_not_say_and_one_from_a_server_are_read(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from test_openvla import TOY
    from test_serve import FRAME, WORDS, serving

    from world_gymnast_ros.models.policies.openvla import OpenVLA, OpenVLAConfig, OpenVLAForActionPrediction
    from world_gymnast_ros.serving.client import HttpPolicy
    from world_gymnast_ros.serving.server import PolicyService

    saved = OpenVLA(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)), base_hash="toy")
    saved.save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("trained_on") == SIMULATION  # this package trains on the twin's play alone
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert OpenVLA.from_pretrained(tmp_path).trained_on == SIMULATION  # one that does not say is no permission
    (tmp_path / "config.json").write_text(json.dumps({**values, "trained_on": "my robot"}))
    mine = OpenVLA.from_pretrained(tmp_path)
    assert mine.trained_on == "my robot"

    for policy in (saved, mine):
        with serving(PolicyService(policy)) as server:
            far = HttpPolicy(server.url, 5.0)
            assert far.trained_on == ""
            far.act(FRAME, WORDS)
            assert far.trained_on == policy.trained_on
            assert server.service.health()["trained_on"] == policy.trained_on


@pytest.fixture()
def arm(tmp_path: Path) -> Iterator[tuple[Any, ...]]:
    pytest.importorskip("rclpy")
    pytest.importorskip("interbotix_xs_msgs")
    from ros_tools import client, running
    from test_faults import DRIVER

    from world_gymnast_ros.nodes import base, convert, graph

    with client() as c, running([DRIVER, graph.ARM], tmp_path) as nodes:
        c.hear("arm_status", convert.ArmStatusMsg, base.LATCHED)
        c.hear("wx250s/joint_states", convert.JointState)
        c.until(lambda: c.heard["arm_status"] and c.heard["wx250s/joint_states"], "arm, driver", check=nodes.check)
        yield c, base, convert


@pytest.mark.ros
def test_a_real_arm_is_not_armed_with_it_and_held_when_it_comes(arm: tuple[Any, ...]) -> None:
    c, base, convert = arm

    def tell(trained_on: str) -> None:
        c.say("policy_status", convert.DiagnosticStatus, base.LATCHED, convert.DiagnosticStatus(
            name="policy_node", hardware_id="tiny", level=convert.DiagnosticStatus.OK,
            values=[convert.KeyValue(key="trained_on", value=trained_on)]))

    tell(SIMULATION)
    c.until(lambda: "simulated images only" in c.trigger("arm").message, "the refusal")
    assert c.heard["arm_status"][-1].state_name == "DISARMED"
    tell("my robot")
    c.arm()
    tell(SIMULATION)
    held = c.until_state(convert.ArmStatusMsg.HOLDING, "simulated images only")
    assert "fault_driver" in held.reason
    assert not c.trigger("arm").success
