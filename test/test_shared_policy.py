"""One copy of the base: acting through the process that holds it, adapters switched by hash, training undisturbed."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_server import serving
from published_openvla import SINK, camera_frame, write_folder
from test_published_learning import SCHEMES, group_of, prefer_first

from world_gymnast_ros.errors import AdapterMismatch, RemotePolicyError
from world_gymnast_ros.models.policies.openvla_policy import load_openvla
from world_gymnast_ros.models.policies.shared import KEPT, SharedPolicy, in_store
from world_gymnast_ros.models.policies.turns import Turn
from world_gymnast_ros.serving.client import HttpPolicy
from world_gymnast_ros.serving.server import PolicyService
from world_gymnast_ros.store import Store
from world_gymnast_ros.types import AdapterRef, Frame
from world_gymnast_ros.updates.policy_gradient import LoraConfig, LoraLearner

FRAME = Frame(camera_frame(96, 128, 0), 7)
LEARNER = LoraConfig(rank=8, learning_rate=1e-2, epochs=1, micro_chunks=1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("shared") / "openvla", recipe=SCHEMES["parallel"])


@pytest.fixture
def policy(folder: Path) -> Any:
    return load_openvla(folder)


def stored(policy: Any, root: Path, seed: int, rank: int = 4) -> AdapterRef:
    """An adapter that turns the policy's choice, in a store."""
    weights = policy.add_lora(rank, 2.0 * rank)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    ref = Store(root).put(f"turned {seed}", policy.save_adapter, parent="base", base_policy=policy.name, scores={},
                          created_ns=seed)
    policy.load_adapter(None)
    return ref


def alone(policy: Any, ref: AdapterRef | None) -> np.ndarray:
    """What the policy does with an adapter of its own."""
    policy.load_adapter(ref)
    deltas = policy.act(FRAME, SINK).deltas
    policy.load_adapter(None)
    return np.asarray(deltas)


def test_every_stored_adapter_acts_by_its_hash(policy: Any, tmp_path: Path) -> None:
    refs = [stored(policy, tmp_path, seed, rank=2 + seed) for seed in range(4)]
    wanted = [alone(policy, ref) for ref in refs]
    base = alone(policy, None)
    assert all((deltas != base).any() for deltas in wanted)
    shared = SharedPolicy(policy, in_store(tmp_path))
    for ref, deltas in (*zip(refs, wanted, strict=True), (refs[0], wanted[0])):
        chunk = shared.act_with(ref.sha256, FRAME, SINK)
        assert (chunk.deltas == deltas).all() and chunk.adapter == ref.name
    assert (shared.act(FRAME, SINK).deltas == base).all() and policy.adapter == "base"
    assert len(shared._known) == KEPT + 1, "the base, and the newest"
    default = SharedPolicy(policy, in_store(tmp_path), refs[1])
    assert (default.act(FRAME, SINK).deltas == wanted[1]).all()
    for unknown in ("0" * 64, "../" * 8, refs[0].sha256[:8] + "0" * 56):
        with pytest.raises(AdapterMismatch, match="no adapter with SHA-256"):
            shared.act_with(unknown, FRAME, SINK)


def test_an_adapter_that_was_changed_on_disk_does_not_act(policy: Any, tmp_path: Path) -> None:
    ref = stored(policy, tmp_path, 0)
    file = ref.path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(AdapterMismatch, match="was changed after it was stored"):
        SharedPolicy(policy, in_store(tmp_path)).act_with(ref.sha256, FRAME, SINK)


def trained(policy: Any, meanwhile: Any) -> list[torch.Tensor]:
    """Train for three updates, with something going on beside; return the weights."""
    learner = LoraLearner(policy, LEARNER)
    learner.begin()
    group, stop = group_of(policy), threading.Event()
    beside = threading.Thread(target=meanwhile, args=(stop,))
    beside.start()
    try:
        for seed in range(3):
            figures = learner.update([(group, prefer_first())], 1.2, seed)
            assert seed or figures["first_ratio_off"] == 0.0
    finally:
        stop.set()
        beside.join()
    weights = list(learner.snapshot().values())
    learner.end()
    return weights


def test_acting_meanwhile_changes_neither_what_is_trained_nor_what_acts(policy: Any, tmp_path: Path) -> None:
    ref = stored(policy, tmp_path, 5, rank=3)
    wanted, base = alone(policy, ref), alone(policy, None)
    shared, acted = SharedPolicy(policy, in_store(tmp_path)), []

    def act(stop: threading.Event) -> None:
        while not stop.is_set() or not acted:
            acted.append((shared.act_with(ref.sha256, FRAME, SINK).deltas, shared.act(FRAME, SINK).deltas))

    disturbed = trained(policy, act)
    quiet = trained(policy, lambda stop: None)
    assert acted and all((a == wanted).all() and (b == base).all() for a, b in acted)
    assert all(torch.equal(a, b) for a, b in zip(disturbed, quiet, strict=True)) and len(quiet) > 10
    assert (alone(policy, None) == base).all()


def test_turns_are_taken_in_order_and_may_be_nested() -> None:
    turn, order = Turn(), []

    def take(name: str) -> None:
        with turn, turn:
            order.append(name)

    with turn, turn:
        threads = []
        for name in "abc":
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            while len(turn._queue) < len(threads):
                time.sleep(0.001)
    with turn:  # who takes it again at once waits behind them
        order.append("again")
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "c", "again"]


@pytest.fixture
def far(policy: Any, tmp_path: Path) -> Iterator[tuple[HttpPolicy, AdapterRef]]:
    ref = stored(policy, tmp_path, 1)
    with serving(PolicyService(SharedPolicy(policy, in_store(tmp_path)))) as server:
        yield HttpPolicy(server.url, 60.0), ref


def test_a_client_switches_by_hash_and_an_unknown_one_changes_nothing(policy: Any, far: tuple[HttpPolicy, AdapterRef]
                                                                     ) -> None:
    client, ref = far
    assert client.act(FRAME, SINK).adapter == "remote/base"
    client.load_adapter(ref)
    chunk = client.act(FRAME, SINK)
    assert chunk.adapter == ref.name and (chunk.deltas == alone(policy, ref)).all()
    with pytest.raises(AdapterMismatch, match="no adapter with SHA-256 'ffffffffffff'"):
        client.load_adapter(AdapterRef("other", Path("/x"), "f" * 64, "base", policy.name))
    with pytest.raises(AdapterMismatch, match="without a SHA-256"):
        client.load_adapter(AdapterRef("other", Path("/x"), "", "base", policy.name))
    assert client.act(FRAME, SINK).adapter == ref.name
    client.load_adapter(None)
    assert client.act(FRAME, SINK).adapter == "base"


def test_a_server_that_acts_with_something_else_gives_no_chunk(policy: Any, far: tuple[HttpPolicy, AdapterRef],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    client, ref = far
    client.load_adapter(ref)
    monkeypatch.setattr(PolicyService, "_wanted", lambda self, payload: None)  # as a server that ignores the field
    with pytest.raises(RemotePolicyError, match="another adapter than"):
        client.act(FRAME, SINK)


@pytest.mark.ros
def test_policy_node_acts_through_adapt_node_s_copy(tmp_path: Path) -> None:
    """Two processes over DDS, one of them with weights: a session runs in it while the other acts, and switches."""
    pytest.importorskip("rclpy")
    import socket

    from rclpy.action import ActionClient
    from ros_tools import START_S, running
    from ros_tools import client as ros_client
    from test_adapt_node import save_toys

    from world_gymnast_ros.models.policies.openvla import OpenVLA
    from world_gymnast_ros.nodes import base, convert, graph

    toys = save_toys(tmp_path)
    toy = OpenVLA.from_pretrained(toys.policy)
    ref = stored(toy, tmp_path / "runs" / "adapters", 0)
    words, rgb = "reach the red block", camera_frame(48, 64, 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    adapt = graph.ADAPT.with_overrides(
        policy=str(toys.policy), world_model=str(toys.world_model), judges=str(toys.judge), policy_port=port,
        directory=str(tmp_path / "runs"), min_release_auc=0.0, copies=4, select_groups=1, promotion_groups=4,
        held_out_copies=2, threads=1, capture_timeout_s=60.0)
    acts = graph.POLICY.with_overrides(policy_url=f"http://127.0.0.1:{port}", policy_timeout_s=5.0, instruction=words,
                                       dry_run_without_arm=True, max_frame_age_s=5.0, retry_s=5.0, image_check="off")
    with ros_client() as c, running([adapt, acts], tmp_path / "log") as nodes:
        chunks = c.hear("action_chunk", convert.ActionChunkMsg)
        images = c.create_publisher(convert.Image, "image_raw", base.NEWEST_RELIABLE)
        c.create_timer(0.1, lambda: images.publish(convert.image_from_rgb(
            np.roll(rgb, time.monotonic_ns(), 0), c.get_clock().now().nanoseconds, "camera")))

        def acting(name: str) -> None:
            seen = len(chunks)
            c.until(lambda: any(m.adapter == name for m in chunks[seen:]), f"a chunk of {name}", START_S, nodes.check)

        acting("remote/base")
        loaded = Path(f"/proc/{nodes.nodes['policy_node'].process.pid}/maps").read_text()
        assert "libtorch" not in loaded, "the copy is adapt_node's"
        action = ActionClient(c, convert.Adapt, "adapt")
        c.until(action.server_is_ready, "the adapt action", START_S, nodes.check)
        sent = action.send_goal_async(convert.Adapt.Goal(instructions=[words], budget_s=600.0, max_updates=2))
        c.until(sent.done, "an answer", START_S, nodes.check)
        result = sent.result().get_result_async()
        c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.adapter_msg(ref, 0))
        acting(ref.name)
        c.until(result.done, "the session's end", START_S, nodes.check)
        assert result.result().status == 4, result.result().result.message
        unknown = AdapterRef("unknown", Path("/x"), "0" * 64, "base", toy.name)
        c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.adapter_msg(unknown, 0))
        c.until(lambda: "adapter 'unknown' refused" in (tmp_path / "log" / "policy_node.log").read_text(), "a refusal",
                START_S, nodes.check)
        acting(ref.name)
        c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.adapter_msg(None, 0))
        acting("base")
