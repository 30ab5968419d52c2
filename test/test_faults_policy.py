"""Every fault of the policy's side: camera and policy process, over DDS. The test itself is the camera."""
from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
import torch
from fault_log import record
from ros_tools import PATIENCE_S, START_S, TICK, Client, client, running
from test_faults import DRIVER, GROUP, LATCH, LIMITS, STATES, STATUS, STEP, Bench
from test_policy_node import TOY, adapter_of

from world_gymnast_ros.models.policies.openvla import OpenVLA, OpenVLAConfig, OpenVLAForActionPrediction
from world_gymnast_ros.nodes import base, convert, graph

pytestmark = [pytest.mark.ros, pytest.mark.slow]
torch.set_num_threads(1)
K = 4
GONE_S = 0.3
"""A policy's process is lost: the hold goes out within this, whatever is left of its chunk."""


class Camera:
    """Publishes noise at 10 Hz on `image_raw`, or what is asked for instead."""

    def __init__(self, c: Client) -> None:
        self._c, self._rng = c, np.random.default_rng(0)
        self._publisher = c.create_publisher(convert.Image, "image_raw", base.NEWEST_RELIABLE)
        self.well()
        c.create_timer(0.1, self._show)

    def well(self) -> None:
        self.on, self.frozen, self.offset_s, self.size = True, False, 0.0, (48, 64)

    def _show(self) -> None:
        if not self.frozen:
            self._rgb = self._rng.integers(0, 256, (*self.size, 3), np.uint8)
        if self.on:
            stamp_ns = time.time_ns() + round(self.offset_s * 1e9)
            self._publisher.publish(convert.image_from_rgb(self._rgb, stamp_ns, "cam"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("policy") / "toy"
    OpenVLA(OpenVLAForActionPrediction(OpenVLAConfig(**TOY, trained_on="noise")), base_hash="toy").save(folder)
    return folder


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[tuple[Bench, Camera, Any]]:
    limits = {} if TICK else {"max_frame_age_s": 3.0, "retry_s": 5.0}
    policy = graph.POLICY.with_overrides(checkpoint=str(checkpoint), threads=1, image_width=64, image_height=48,
                                         instruction="reach the red block", **limits)
    log_dir = tmp_path_factory.mktemp("log")
    with client() as c, running([DRIVER, graph.ARM.with_overrides(**LIMITS, **LATCH), policy], log_dir) as nodes:
        c.hear("step", STEP)
        c.hear("action_chunk", convert.ActionChunkMsg)
        c.hear("arm_status", STATUS, base.LATCHED)
        c.hear("/diagnostics", convert.DiagnosticArray)
        c.hear(STATES, convert.JointState, base.NEWEST)
        c.hear(GROUP, convert.xs_msg.JointGroupCommand)
        camera = Camera(c)
        c.until(lambda: message(c), "the policy", START_S, nodes.check)
        yield Bench(c, nodes, log_dir), camera, policy


def message(c: Client) -> str:
    """The policy's newest diagnosis."""
    return next((m.status[0].message for m in reversed(c.heard["/diagnostics"]) if m.status[0].name == "policy_node"),
                "")


@pytest.fixture()
def acting(everything: tuple[Bench, Camera, Any]) -> Iterator[tuple[Bench, Camera]]:
    """The policy drives the arm; afterwards all is well and the arm disarmed."""
    bench, camera, _ = everything
    bench.nodes.check()
    bench.to_start()
    steps = len(bench.c.heard["step"])
    bench.arm()
    bench.c.until(lambda: len(bench.c.heard["step"]) > steps + K, "the policy to act")
    yield bench, camera
    camera.well()
    bench.c.until(lambda: bench.c.trigger("disarm").success, "disarm")


def go_on(bench: Bench) -> None:
    """See the policy act again; arm only if the hold has latched."""
    c, chunks = bench.c, len(bench.c.heard["action_chunk"])

    def again() -> bool:
        if c.heard["arm_status"][-1].state == STATUS.HOLDING:
            bench.to_start()
            bench.arm()
        return len(c.heard["action_chunk"]) > chunks + 1

    c.until(again, "the policy to act again")


@pytest.mark.parametrize(("row", "fault", "words"), [
    ("camera frozen on one image", {"frozen": True}, "has not changed"),
    ("camera gone", {"on": False}, "no image for"),
    ("camera stamps 10 s old", {"offset_s": -10.0}, "before it came to rest"),
    ("camera stamps 10 s in the future", {"offset_s": 10.0}, "in the future"),
    ("camera of the wrong size", {"size": (24, 32)}, "image_width"),
])
def test_a_faulty_camera_ends_in_a_hold_and_a_reason(
    acting: tuple[Bench, Camera], row: str, fault: dict[str, Any], words: str
) -> None:
    bench, camera = acting
    c = bench.c
    since = time.monotonic()
    vars(camera).update(fault)
    c.until(lambda: words in message(c), f"'{words}' from the policy")
    told_s, told = time.monotonic() - since, message(c)
    # A frozen image shows only by what the arm moves: until it has gone 3 cm, the policy goes on.
    bench.held(since, row, 12.0 if "frozen" in row else 2.0, "no chunk")
    record(f"{row}: told by the policy", told_s, told)
    chunks = len(c.heard["action_chunk"])
    c.spin(0.5)
    assert len(c.heard["action_chunk"]) == chunks
    camera.well()
    go_on(bench)


def test_a_frozen_policy_holds_and_its_late_reply_is_not_played(acting: tuple[Bench, Camera]) -> None:
    bench, _ = acting
    c = bench.c
    chunks = len(c.heard["action_chunk"])
    c.until(lambda: len(c.heard["action_chunk"]) > chunks, "a new chunk")
    since = bench.signal("policy_node", signal.SIGSTOP)
    try:
        bench.held(since, "policy frozen just after a chunk (SIGSTOP)", GONE_S, "gone or frozen")
        last = c.times["step"][-1]
        c.spin(0.5)
        assert c.times["step"][-1] == last  # the rest of its chunk is not played
        c.until_state(STATUS.HOLDING, "check the policy")
        record("policy frozen: latched", time.monotonic() - since, c.heard["arm_status"][-1].reason)
    finally:
        bench.signal("policy_node", signal.SIGCONT)
    steps = len(c.heard["step"])
    c.spin(1.0)
    assert len(c.heard["step"]) == steps and c.heard["arm_status"][-1].state == STATUS.HOLDING
    bench.arm()
    c.until(lambda: len(c.heard["step"]) > steps + K, "the policy to act again")


def test_an_adapter_that_comes_in_the_middle_of_a_chunk_waits_for_its_end(
    acting: tuple[Bench, Camera], checkpoint: Path, tmp_path: Path
) -> None:
    bench, _ = acting
    c = bench.c
    ref = adapter_of(checkpoint, tmp_path / "mine")
    first = len(c.heard["step"])
    c.until(lambda: len(c.heard["step"]) > first and c.heard["step"][-1].chunk_index == 1, "the middle of a chunk")
    c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.adapter_msg(ref, 0))
    c.until(lambda: c.heard["step"][-1].adapter == "mine" and c.heard["step"][-1].chunk_index == K - 1, "a new chunk")
    steps = c.heard["step"][first:]
    for sequence in {s.chunk_sequence for s in steps[1:]}:
        played = c.steps_of(sequence)
        assert len({s.adapter for s in played}) == 1
        assert [s.chunk_index for s in played] == list(range(len(played)))
    record("adapter swapped in the middle of a chunk", None, "the chunk is played to its end")
    c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.adapter_msg(None, 0))
    c.until(lambda: c.heard["step"][-1].adapter == "base", "the base again")


def test_a_policy_killed_and_restarted_acts_only_after_arming(
    acting: tuple[Bench, Camera], everything: tuple[Bench, Camera, Any]
) -> None:
    bench, c = acting[0], acting[0].c
    bench.signal("policy_node", signal.SIGKILL)
    c.until_state(STATUS.HOLDING, "check the policy")
    told, steps = len(c.heard["/diagnostics"]), len(c.heard["step"])
    bench.restart(everything[2])
    c.until(lambda: any(m.status[0].name == "policy_node" for m in c.heard["/diagnostics"][told:]), "it", START_S)
    c.spin(1.0)
    assert len(c.heard["step"]) == steps and c.heard["arm_status"][-1].state == STATUS.HOLDING
    c.until(lambda: c.trigger("arm").success, "DDS to forget the killed one, and arming")
    c.until(lambda: len(c.heard["step"]) > steps + K, "the new one to act")


def test_a_killed_policy_holds_and_latches(acting: tuple[Bench, Camera]) -> None:
    """The last test: the policy does not come back."""
    bench, c = acting[0], acting[0].c
    chunks = len(c.heard["action_chunk"])
    c.until(lambda: len(c.heard["action_chunk"]) > chunks, "a new chunk")
    since = bench.signal("policy_node", signal.SIGKILL)
    process = bench.nodes.nodes.pop("policy_node").process
    held = since + bench.held(since, "policy killed just after a chunk (SIGKILL)", GONE_S, "gone or frozen")
    # The rest of its chunk was not played; the lease for busy machines is longer than that lasts, see also below.
    assert not TICK or len([t for t in c.times["step"] if t > since]) < K - 1
    process.wait(PATIENCE_S)
    c.until_state(STATUS.HOLDING, "check the policy")
    played = [s for s, t in zip(c.heard["step"], c.times["step"], strict=True) if t > held and s.verdict < STEP.HOLD]
    assert not played, "an action was played after the hold"
