"""README's recipe for a robot, walked line by line over DDS; the twin stands behind the driver's topics."""
from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
from rclpy.action import ActionClient
from ros_tools import START_S, Client, client, running

from world_gymnast_ros.nodes import base, convert, graph

README = Path(__file__).resolve().parents[1] / "README.md"
SESSION_S = 600.0
ARMING = ["/arm_node/arm", "/arm_node/go_home"]


def recipe() -> list[list[str]]:
    """Return the commands of the recipe, in order, as words."""
    lines = README.read_text().partition("\nOn a robot, ")[2].partition("\n## ")[0].splitlines()
    return [words for line in lines if line.startswith("    ") and (words := shlex.split(line, comments=True))]


def services() -> list[str]:
    return [words[3] for words in recipe() if words[:3] == ["ros2", "service", "call"]]


def test_arming_comes_after_everything_that_needs_hands_on_the_table() -> None:
    kinds = [words[3] if words[1] == "service" else words[1] for words in recipe()]
    arm = kinds.index("/arm_node/arm")
    for earlier in ("launch", "topic", "/adapt_node/capture", "action"):
        assert kinds.index(earlier) < arm, kinds
    assert kinds[arm + 1:] == ["/arm_node/hold", "/arm_node/disarm"]


def test_every_launch_of_the_recipe_runs_dry() -> None:
    launches = [words for words in recipe() if words[1] == "launch"]
    assert launches and all("dry_run:=true" in words for words in launches)


class Walk:
    """Does what each command of the recipe does, with the same names, types and texts."""

    def __init__(self, c: Client) -> None:
        self.c = c
        self.said: list[str] = []

    def topic(self, words: list[str]) -> None:
        topic, kind, text = words[-3:]
        assert words[2:-3] == ["pub", "--once", "-w", "3", "--qos-durability", "transient_local"]
        publisher = self.c.create_publisher(self.kind(kind), topic, base.LATCHED)
        self.c.until(lambda: publisher.get_subscription_count() >= 3, "policy, adaptation and recorder", START_S)
        publisher.publish(self.kind(kind)(**yaml.safe_load(text)))

    def service(self, words: list[str]) -> None:
        _, _, _, name, kind = words
        answer = self.c.call(name.removeprefix("/"), self.kind(kind))
        self.said.append(answer.message)
        assert answer.success, (words, answer.message)

    def action(self, words: list[str]) -> None:
        name, kind, text = words[-3:]
        goal = {**yaml.safe_load(text), "budget_s": 60.0, "max_updates": 1}  # one update shows that it works
        actions = ActionClient(self.c, self.kind(kind), name)
        self.c.until(actions.server_is_ready, "the action", START_S)
        sent = actions.send_goal_async(self.kind(kind).Goal(**goal))
        self.c.until(sent.done, "an answer to the goal")
        result = sent.result().get_result_async()
        self.c.until(result.done, "the session", SESSION_S)
        self.said.append(result.result().result.message)
        assert Path(result.result().result.report_path).is_file(), self.said

    @staticmethod
    def kind(name: str) -> Any:
        package, kind, message = name.split("/")
        return getattr(importlib.import_module(f"{package}.{kind}"), message)


@pytest.fixture(params=["dry", "live"])
def walk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Walk, bool]]:
    """The graph of the launch file beside the twin: dry as the recipe has it, and live as with models of one's own."""
    dry = request.param == "dry"
    bringup = graph.dry_graph("") if dry else graph.robot_graph("")
    [judges] = [word.removeprefix("judges:=") for words in recipe() if words[1] == "launch" for word in words
                if word.startswith("judges:=")]
    folders = {"adapt_node": {"directory": str(tmp_path), "threads": 1, "judges": judges},
               "recorder_node": {"directory": str(tmp_path / "episodes")}}
    specs = [spec.with_overrides(**folders.get(spec.name, {})) for spec in bringup]
    with client() as c, running([graph.TWIN.with_overrides(scene="novel_white_table", image_rate_hz=5.0), *specs],
                                tmp_path):
        c.hear("arm_status", convert.ArmStatusMsg, base.LATCHED)
        c.hear("step", convert.StepMsg)
        c.hear("wx250s/joint_states", convert.JointState)
        c.hear("wx250s/commands/joint_group", convert.xs_msg.JointGroupCommand)
        c.hear("wx250s/commands/joint_single", convert.xs_msg.JointSingleCommand)
        yield Walk(c), dry


@pytest.mark.ros
@pytest.mark.slow
def test_the_recipe_moves_nothing_before_it_arms_and_nothing_at_all_when_dry(walk: tuple[Walk, bool]) -> None:
    walker, dry = walk
    c, heard = walker.c, walker.c.heard
    c.until(lambda: heard["wx250s/joint_states"] and heard["arm_status"], "twin and arm", START_S)
    start = np.array(heard["wx250s/joint_states"][0].position)
    for words in recipe():
        if words[1] == "launch":
            continue
        arming = words[1] == "service" and words[3] in ARMING
        if arming:
            assert {m.state_name for m in heard["arm_status"]} == {"DISARMED"} and not heard["step"]
            assert not heard["wx250s/commands/joint_group"] and not heard["wx250s/commands/joint_single"]
            assert np.abs(np.array(heard["wx250s/joint_states"][-1].position) - start).max() < 0.01
        getattr(walker, words[1])(words)
        if arming:
            assert ("dry run: nothing is sent" in walker.said[-1]) is dry
            c.until(lambda: heard["step"], "the first step", START_S)
    commands = len(heard["wx250s/commands/joint_group"])
    assert (commands == 0) is dry
    c.until_state(convert.ArmStatusMsg.DISARMED)
    c.spin(1.0)
    assert len(heard["wx250s/commands/joint_group"]) == commands, "a command after disarm"
