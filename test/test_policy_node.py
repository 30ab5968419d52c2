"""policy_node with the twin and the arm, as processes over DDS: a random policy of the real class, toy size."""
from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
import torch
from ros_tools import PATIENCE_S, START_S, TICK, Client, client, running, stamps_s

from world_gymnast_ros.control.query_gate import QueryGate, QueryRules
from world_gymnast_ros.models.policies.openvla import OpenVLA, OpenVLAConfig, OpenVLAForActionPrediction
from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.nodes.policy_node import PolicyNode
from world_gymnast_ros.types import AdapterRef

pytestmark = pytest.mark.ros
torch.set_num_threads(1)
TOY: dict[str, Any] = {
    "image_size": 32, "vision_dim": 32, "vision_layers": 1, "vision_heads": 2, "aux_layer": 1, "name": "toy",
    "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}}
SLOW = {"max_arm_age_s": 1.0, "max_frame_age_s": 5.0, "max_action_age_s": 10.0, "command_timeout_s": 3.0,
        "policy_lease_s": 2.0}
"""Test machines are busy; only the order of things is asserted there."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("policy") / "toy"
    OpenVLA(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)), base_hash="toy").save(folder)
    return folder


def adapter_of(checkpoint: Path, folder: Path) -> AdapterRef:
    policy = OpenVLA.from_pretrained(checkpoint)
    for p in policy.add_lora(rank=2):
        torch.nn.init.normal_(p, std=0.3)
    return AdapterRef("mine", folder, policy.save_adapter(folder), "base", policy.name)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[tuple[Client, graph.Graph]]:
    specs = [graph.TWIN.with_overrides(image_rate_hz=10.0, image_width=160, image_height=120),
             graph.ARM.with_overrides(**SLOW),
             graph.POLICY.with_overrides(checkpoint=str(checkpoint), threads=1, max_frame_age_s=3.0, retry_s=5.0)]
    with client() as c, running(specs, tmp_path_factory.mktemp("log")) as nodes:
        c.hear("step", convert.StepMsg)
        c.hear("action_chunk", convert.ActionChunkMsg)
        c.hear("arm_status", convert.ArmStatusMsg, base.LATCHED)
        c.hear("/diagnostics", convert.DiagnosticArray)
        c.hear("image_raw", convert.Image, base.NEWEST)
        c.until(lambda: diagnosis(c), "the policy", START_S, nodes.check)
        c.until(lambda: c.heard["image_raw"] and c.heard["arm_status"], "images and the arm", check=nodes.check)
        yield c, nodes


@pytest.fixture(scope="module")
def ros(parts: tuple[Client, graph.Graph]) -> Client:
    return parts[0]


def diagnosis(c: Client) -> dict[str, str]:
    """The policy's newest diagnostics: message and values."""
    mine = [m.status[0] for m in c.heard["/diagnostics"] if m.status[0].name == "policy_node"]
    return {"message": mine[-1].message, **{v.key: v.value for v in mine[-1].values}} if mine else {}


def start(c: Client, text: str) -> int:
    """Say the task and arm; return how many chunks had been heard before."""
    c.say("instruction", convert.String, base.LATCHED, convert.String(data=text))
    c.spin(0.2)
    heard = len(c.heard["action_chunk"])
    c.arm()
    return heard


def test_no_chunk_before_the_arm_is_armed_and_a_task_is_given(ros: Client) -> None:
    c = ros
    c.spin(0.5)
    c.arm()
    c.spin(0.7)
    assert not c.heard["action_chunk"]
    c.trigger("disarm")
    c.say("instruction", convert.String, base.LATCHED, convert.String(data="reach the red block"))
    c.spin(0.7)
    assert not c.heard["action_chunk"]


def test_the_loop_looks_only_after_the_last_action_came_to_rest(ros: Client) -> None:
    c = ros
    first = start(c, "reach the red block")
    armed_s = c.get_clock().now().nanoseconds * 1e-9
    c.until(lambda: len(c.heard["action_chunk"]) >= first + 4, "four chunks")
    chunks = c.heard["action_chunk"][first:first + 4]
    for chunk in chunks[:3]:  # a chunk is heard before its steps are
        c.until_over(chunk.sequence, chunk.chunk_size)
    c.until(lambda: c.steps_of(chunks[3].sequence), "the first step of the fourth chunk")
    c.trigger("disarm")
    assert [m.sequence for m in chunks] == list(range(chunks[0].sequence, chunks[0].sequence + 4))
    assert all(m.instruction == "reach the red block" and m.adapter == "base" for m in chunks)
    seen = np.array([convert.to_ns(m.frame_stamp) for m in chunks]) * 1e-9
    assert seen[0] > armed_s - 2.0
    latencies = []
    for before, after, look in zip(chunks, chunks[1:], seen[1:], strict=False):
        last = stamps_s(c.steps_of(before.sequence))[-1]
        assert look >= last + 0.18, "the policy looked before the arm came to rest"
        latencies.append(stamps_s(c.steps_of(after.sequence)[:1])[0] - look)
    print(f"frame to first command: {1000 * np.median(latencies):.0f} ms")
    if TICK:
        assert max(latencies) < 0.25
    assert all(m.header.stamp != m.inference_start for m in chunks)


def test_an_adapter_is_swapped_between_chunks_and_a_wrong_one_is_refused(
    ros: Client, checkpoint: Path, tmp_path: Path
) -> None:
    c = ros
    first = start(c, "push the red block left")
    c.until(lambda: len(c.heard["action_chunk"]) > first, "a chunk")
    ref = adapter_of(checkpoint, tmp_path / "mine")
    bad = AdapterRef("bad", ref.path, "0" * 64, "base", ref.base_policy)
    c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.adapter_msg(bad, 0))
    c.until(lambda: diagnosis(c).get("adapters_refused") == "1", "the refusal")
    now = len(c.heard["action_chunk"])
    c.until(lambda: len(c.heard["action_chunk"]) > now + 1, "chunks after the refusal")
    assert c.heard["action_chunk"][-1].adapter == "base"
    c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.adapter_msg(ref, 0))
    c.until(lambda: c.heard["action_chunk"][-1].adapter == "mine", "a chunk of the adapter")
    c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.adapter_msg(None, 0))
    c.until(lambda: c.heard["action_chunk"][-1].adapter == "base", "a chunk of the base")
    c.trigger("disarm")
    tags = [m.adapter for m in c.heard["action_chunk"][first:]]
    changes = [(a, b) for a, b in pairwise(tags) if a != b]
    assert changes == [("base", "mine"), ("mine", "base")]


def test_an_arming_from_a_hold_wants_a_new_look() -> None:
    """What was seen or decided before the operator armed again is of another scene, maybe."""
    status = convert.ArmStatusMsg
    node: Any = SimpleNamespace(_gate=QueryGate(QueryRules()), _arm_state=status.DISARMED, _epoch=0, _chunk_ns=0)

    def tell(state: int, at_s: float) -> None:
        msg = status(state=state)
        msg.header.stamp = convert.to_time(round(at_s * 1e9))
        PolicyNode._on_arm_status(node, msg)

    def refusal(at_s: float) -> str:
        return str(node._gate.refusal(round(at_s * 1e9), round(at_s * 1e9), round(at_s * 1e9), "reach"))

    tell(status.ARMED, 1.0)
    assert refusal(1.1) == ""
    node._gate.published(1, 0)
    for state, at_s in ((status.ARMED, 2.0), (status.HOLDING, 3.0)):
        tell(state, at_s)
    assert node._epoch == 1
    tell(status.ARMED, 5.0)
    assert node._epoch == 2 and "before" in refusal(4.9) and refusal(5.1) == ""


def test_a_camera_of_the_wrong_kind_stops_inference_with_a_reason(checkpoint: Path, tmp_path: Path) -> None:
    """Alone in its graph, in a dry run: images in, chunks out."""
    spec = graph.POLICY.with_overrides(checkpoint=str(checkpoint), threads=1, dry_run_without_arm=True,
                                       instruction="reach the red block", image_width=64, max_frame_age_s=3.0)
    lonely = graph.NodeSpec(spec.name, spec.params, spec.overrides, {"__node": "lonely", "image_raw": "own_image",
                                                                    "action_chunk": "own_chunk",
                                                                    "/diagnostics": "own_diagnostics"})
    with client() as c, running([lonely], tmp_path) as nodes:
        chunks = c.hear("own_chunk", convert.ActionChunkMsg)
        heard = c.hear("own_diagnostics", convert.DiagnosticArray)
        c.until(lambda: heard, "the policy", START_S, nodes.check)

        def show(width: int, encoding: str) -> None:
            rgb = np.random.default_rng(0).integers(0, 256, (48, width, 3), np.uint8)
            msg = convert.image_from_rgb(rgb, c.get_clock().now().nanoseconds, "cam")
            msg.encoding = encoding
            c.say("own_image", convert.Image, base.NEWEST_RELIABLE, msg)
            c.spin(0.1)

        def fault() -> str:
            return str(heard[-1].status[0].message)

        for width, encoding, words in ((64, "mono16", "mono16"), (80, "rgb8", "image_width")):
            c.until(lambda: show(width, encoding) or words in fault(), f"a fault naming {words}")  # noqa: B023
            assert not chunks
        c.until(lambda: show(64, "rgb8") or chunks, "a chunk after a good image")
        c.until(lambda: "acting" in fault(), "a clean bill of health")


def test_a_killed_policy_ends_in_a_hold(parts: tuple[Client, graph.Graph]) -> None:
    """The last test on this graph. More about lost policies and cameras: test_faults_policy.py."""
    c, nodes = parts
    first = start(c, "reach the red block")
    c.until(lambda: len(c.heard["action_chunk"]) > first and c.steps_of(c.heard["action_chunk"][-1].sequence),
            "a chunk and its first step")
    nodes.nodes["policy_node"].process.kill()
    nodes.nodes.pop("policy_node").process.wait(PATIENCE_S)
    last = c.heard["action_chunk"][-1]
    c.until(lambda: "no chunk" in c.heard["arm_status"][-1].reason, "a hold")
    played = c.heard["step"].copy()
    assert played[-1].chunk_sequence <= last.sequence  # the last one may have come too late to be begun
    steps = c.steps_of(played[-1].chunk_sequence)  # what was begun was played to its end, or held
    assert len(steps) == last.chunk_size or steps[-1].verdict >= steps[-1].HOLD, steps
    c.spin(0.4)
    assert len(c.heard["step"]) == len(played), "nobody promised more"
    assert c.trigger("disarm").success
