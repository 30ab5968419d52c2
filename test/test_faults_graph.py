"""Faults that only a whole graph shows: camera, policy and arm as processes, the policy's mind behind a free server."""
from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
from fault_log import holds_after, record
from ros_tools import PATIENCE_S, SLOWNESS, TICK, Client, client, running
from rosgraph_msgs.msg import Clock
from test_faults import DRIVER, GROUP, LATCH, LIMITS, STATES
from test_serve import WORDS, serving

from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.serving.server import PolicyService
from world_gymnast_ros.types import ActionChunk, Frame

pytestmark = [pytest.mark.ros, pytest.mark.slow]
STEP_S = 100.0 if TICK else 100.0 * SLOWNESS
NODES = Path(graph.__file__).parent


class Swinging:
    """To and fro by 12 mm, four actions each way."""

    name, chunk_size, count = "swinging", 4, 0

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        self.count += 1
        return ActionChunk(np.tile(np.float32([0.003 * (-1) ** self.count, 0, 0, 0, 0, 0, 1]), (4, 1)), 0)


@pytest.fixture()
def policy() -> Iterator[graph.NodeSpec]:
    """policy_node, to be started, with a server that answers at once."""
    with serving(PolicyService(Swinging())) as server:
        yield graph.POLICY.with_overrides(policy_url=server.url, instruction=WORDS, max_frame_age_s=3.0, retry_s=2.0)


@pytest.fixture()
def c() -> Iterator[Client]:
    with client() as c:
        c.hear("step", convert.StepMsg)
        c.hear("arm_status", convert.ArmStatusMsg, base.LATCHED)
        c.hear("/diagnostics", convert.DiagnosticArray)
        yield c


def drive(c: Client, nodes: graph.Graph) -> None:
    """See the policy move the arm."""
    told = c.heard["/diagnostics"]
    c.until(lambda: c.heard["arm_status"] and any(m.status[0].name == "policy_node" for m in told), "the nodes",
            check=nodes.check)
    c.until(lambda: c.trigger("arm").success, "arming")
    c.until(lambda: len(c.heard["step"]) > 4, "the policy to act", check=nodes.check)


def test_every_timer_of_every_node_is_on_the_steady_clock() -> None:
    """One on rclpy's default clock stands still for as long as the machine's clock was stepped back."""
    lines = [f"{path.name}: {line}" for path in NODES.glob("*.py") for line in path.read_text().splitlines()
             if "create_timer(" in line]
    assert lines and all("clock=" in line for line in lines), lines


@pytest.mark.parametrize("jump_s", [-STEP_S, STEP_S])
def test_the_policy_looks_again_soon_after_a_step_of_the_clock(
    jump_s: float, policy: graph.NodeSpec, c: Client, tmp_path: Path
) -> None:
    """What the arm refuses ends in a latched hold; after ~/arm all goes on, long before the old time is back."""
    offset, rng, steps, status = [0.0], np.random.default_rng(0), c.heard["step"], c.heard["arm_status"]

    def now_ns() -> int:
        return time.time_ns() + round(offset[0] * 1e9)

    clock = c.create_publisher(Clock, "clock", base.NEWEST_RELIABLE)
    c.create_timer(0.02, lambda: clock.publish(Clock(clock=convert.to_time(now_ns()))))
    images = c.create_publisher(convert.Image, "image_raw", base.NEWEST_RELIABLE)
    c.create_timer(0.1, lambda: images.publish(
        convert.image_from_rgb(rng.integers(0, 256, (48, 64, 3), np.uint8), now_ns(), "cam")))
    arm = graph.ARM.with_overrides(use_sim_time=True, **LIMITS, **LATCH)
    with running([DRIVER, arm, policy.with_overrides(use_sim_time=True)], tmp_path) as nodes:
        drive(c, nodes)
        told, heard = len(c.heard["/diagnostics"]), len(steps)
        # The worst moment: the policy has yet to look, and waits for a frame from after this step's stamp.
        c.until(lambda: len(steps) > heard and steps[-1].chunk_index == 3, "the end of a chunk", check=nodes.check)
        offset[0] += jump_s
        since, first, armings = time.monotonic(), len(steps), 0

        def again() -> bool:
            nonlocal armings
            if status[-1].state == status[-1].HOLDING:
                armings += bool(c.trigger("arm").success)
            return len([s for s in steps[first:] if abs(convert.to_ns(s.frame_stamp) - now_ns()) < 0.2e9 * STEP_S]) > 8

        c.until(again, "two chunks on frames of the new time", check=nodes.check)
        record(f"clock of the whole graph stepped {'back' if jump_s < 0 else 'forward'} {STEP_S:g} s: acts again",
               time.monotonic() - since, f"armed {armings} times")
        assert time.monotonic() - since < STEP_S / 2
        gaps_s = np.diff([t for t, s in zip(c.sent["step"], steps, strict=True) if s.verdict < s.HOLD])
        assert gaps_s.min() > 0.15, f"actions were hurried: {gaps_s}"
        c.until(lambda: len([m for m in c.heard["/diagnostics"][told:] if m.status[0].name == "policy_node"]) > 2,
                "the policy's diagnostics to go on")
        c.until(lambda: c.trigger("disarm").success, "disarm")


@dataclass(frozen=True)
class HungPolicy(graph.NodeSpec):
    """policy_node as a process that can be made to hang while it, and its DDS, live."""

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("hung_policy.py")), *self.arguments()]


def with_camera(c: Client) -> None:
    """Publish noise on `image_raw` at 10 Hz for as long as the client lives."""
    rng = np.random.default_rng(0)
    images = c.create_publisher(convert.Image, "image_raw", base.NEWEST_RELIABLE)
    c.create_timer(0.1, lambda: images.publish(
        convert.image_from_rgb(rng.integers(0, 256, (48, 64, 3), np.uint8), time.time_ns(), "cam")))


@pytest.mark.parametrize("how", ["executor", "interpreter"])
def test_a_policy_that_hangs_but_lives_is_lost_in_the_middle_of_its_chunk(
    how: str, policy: graph.NodeSpec, c: Client, tmp_path: Path
) -> None:
    """Its process and its middleware's threads go on, its topics are served no more."""
    hung = HungPolicy(policy.name, policy.params, policy.overrides)
    c.hear(GROUP, convert.xs_msg.JointGroupCommand)
    with_camera(c)
    with running([DRIVER, graph.ARM.with_overrides(**LIMITS, **LATCH), hung], tmp_path) as nodes:
        drive(c, nodes)
        steps, heard = c.heard["step"], len(c.heard["step"])
        c.until(lambda: len(steps) > heard and steps[-1].chunk_index == 0, "a chunk's first action", check=nodes.check)
        since = time.monotonic()
        os.kill(nodes.nodes["policy_node"].process.pid, signal.SIGUSR1 if how == "executor" else signal.SIGUSR2)
        c.until(lambda: "gone or frozen" in c.heard["arm_status"][-1].reason, "the loss", check=nodes.check)
        c.until(lambda: holds_after(c, GROUP, since), "the hold")
        took_s = holds_after(c, GROUP, since)[0] - since
        record(f"policy hangs ({how}), its process lives", took_s, c.heard["arm_status"][-1].reason)
        assert took_s < (0.3 if TICK else PATIENCE_S)
        if TICK:
            assert len(c.steps_of(steps[-1].chunk_sequence)) < 4  # the rest of its chunk was not played
        c.until(lambda: "gone" not in c.heard["arm_status"][-1].reason or c.trigger("arm").success, "it to come back",
                check=nodes.check)
        c.until(lambda: c.trigger("disarm").success, "disarm")


class Hanging(Swinging):
    """Answers until `hang` is set, then never again in this test."""

    def __init__(self) -> None:
        self.hang, self.asked, self.end = threading.Event(), [0.0], threading.Event()

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        self.asked.append(time.monotonic())
        if self.hang.is_set():
            self.end.wait(PATIENCE_S)
        return super().act(frame, instruction)


def test_a_policy_whose_inference_hangs_is_held_from_when_it_was_asked(c: Client, tmp_path: Path) -> None:
    """It can hang between chunks only: so much is left of command_timeout_s when it is asked at all."""
    mind = Hanging()
    c.hear(GROUP, convert.xs_msg.JointGroupCommand)
    with_camera(c)
    arm = graph.ARM.with_overrides(**LIMITS, **LATCH)
    with serving(PolicyService(mind)) as server, running([DRIVER, arm, graph.POLICY.with_overrides(
            policy_url=server.url, instruction=WORDS, max_frame_age_s=3.0, policy_timeout_s=5.0)], tmp_path) as nodes:
        drive(c, nodes)
        c.spin(5.0)  # so that every command and its Step was heard
        mind.hang.set()
        c.until(lambda: "no chunk" in c.heard["arm_status"][-1].reason, "the hold", check=nodes.check)
        asked = mind.asked[-1]
        c.until(lambda: holds_after(c, GROUP, asked), "the hold's command")
        took_s = holds_after(c, GROUP, asked)[0] - asked
        record("policy's inference hangs, from when it was asked", took_s, c.heard["arm_status"][-1].reason)
        assert took_s < (0.33 if TICK else PATIENCE_S)
        mind.end.set()
        c.until(lambda: c.trigger("disarm").success, "disarm")


def test_the_twin_killed_and_restarted_under_a_policy(policy: graph.NodeSpec, c: Client, tmp_path: Path) -> None:
    """Driver and camera at once go and come back; nothing moves until the operator arms."""
    twin = graph.TWIN.with_overrides(image_rate_hz=10.0, image_width=160, image_height=120)
    steps, status, states = c.heard["step"], c.heard["arm_status"], c.hear(STATES, convert.JointState, base.NEWEST)
    with running([twin, graph.ARM.with_overrides(**LIMITS, **LATCH), policy], tmp_path) as nodes:
        drive(c, nodes)
        since = time.monotonic()
        os.kill(nodes.nodes["twin_node"].process.pid, signal.SIGKILL)
        c.until_state(status[-1].HOLDING, "no joint states")
        record("twin killed: latched", time.monotonic() - since, status[-1].reason)
        nodes.nodes["twin_node"].process.wait(PATIENCE_S)  # what it rendered with may take its time to go
        c.spin(0.3)
        seen, played = len(states), len(steps)
        nodes.nodes.update(graph.start([twin], graph.ros_environment(log_dir=tmp_path), tmp_path / "again").nodes)
        c.until(lambda: len(states) > seen + 5, "the new twin")
        c.spin(1.0)
        assert status[-1].state == status[-1].HOLDING and len(steps) == played
        c.until(lambda: c.trigger("arm").success, "arming")
        c.until(lambda: len([s for s in steps[played:] if s.verdict < s.HOLD]) > 4, "the policy to go on",
                check=nodes.check)
        c.until(lambda: c.trigger("disarm").success, "disarm")
