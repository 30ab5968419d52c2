"""A client of the graph for tests: keeps what it hears, calls services, and spins itself while it waits."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from patience import PATIENCE_S as PATIENCE_S
from patience import SLOWNESS as SLOWNESS
from patience import START_S as START_S
from patience import TICK as TICK
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.types import ActionChunk


class Client(Node):
    """Hears everything that the tests ask about."""

    def __init__(self, context: rclpy.Context) -> None:
        super().__init__("test_client", context=context)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self)
        self.heard: dict[str, list[Any]] = {}
        self.times: dict[str, list[float]] = {}
        self.sent: dict[str, list[float]] = {}
        self._sequence = 0
        self._senders: dict[str, Any] = {}
        self._callers: dict[str, Any] = {}

    def hear(self, topic: str, kind: Any, qos: Any = base.RELIABLE) -> list[Any]:
        """Subscribe once and return the growing list of messages.

        `times` has when each came, `sent` when its publisher wrote it, both monotonic s: this process may be late, and
        then hears several at once. `sent` is only for nodes whose system clock was not tampered with.
        """
        if topic not in self.heard:
            messages, times, sent = (d.setdefault(topic, []) for d in (self.heard, self.times, self.sent))

            def on_message(message: Any, info: Any) -> None:
                now = time.monotonic()
                times.append(now)
                sent.append(now - (time.time_ns() - info["source_timestamp"]) * 1e-9)
                messages.append(message)

            self.create_subscription(kind, topic, on_message, qos)
        return self.heard[topic]

    def until(self, done: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S,
              check: Callable[[], None] = lambda: None) -> None:
        """Spin until `done()`, or fail naming `what`."""
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}{self.told()}"
            self._executor.spin_once(timeout_sec=0.02)
            check()

    def told(self) -> str:
        """Return what the arm and the diagnostics last said, for messages of failed tests."""
        statuses = self.heard.get("arm_status", [])
        newest = {s.name: s for m in self.heard.get("/diagnostics", [])[-20:] for s in m.status}
        arm = f"; the arm: {statuses[-1].state_name}, {statuses[-1].reason}" if statuses else ""
        nodes = [f"; {name}: {s.message} {[(v.key, v.value) for v in s.values]}" for name, s in newest.items()]
        return arm + "".join(nodes)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)

    def ask(self, name: str, kind: Any, /, **fields: Any) -> Any:
        """Call a service and return the future of its answer."""
        if name not in self._callers:  # kept: discovery takes longer than the call
            self._callers[name] = self.create_client(kind, name)
        client = self._callers[name]
        self.until(client.service_is_ready, f"service {name}")
        return client.call_async(kind.Request(**fields))

    def call(self, name: str, kind: Any, /, **fields: Any) -> Any:
        """Call a service and return its answer."""
        future = self.ask(name, kind, **fields)
        self.until(future.done, f"an answer of {name}")
        return future.result()

    def trigger(self, name: str) -> Any:
        return self.call(f"arm_node/{name}", convert.Trigger)

    def arm(self) -> None:
        """Call ~/arm until it is granted: on a busy machine joint states may be old, or a publisher still known."""
        said: list[str] = []

        def armed() -> bool:
            answer = self.trigger("arm")
            said.append(answer.message)
            return bool(answer.success)

        try:
            self.until(armed, "an armed arm")
        except AssertionError as error:
            raise AssertionError(f"{error}; ~/arm said: {said[-1:]}") from error

    def say(self, topic: str, kind: Any, qos: Any, message: Any) -> None:
        """Publish once somebody listens."""
        if topic not in self._senders:
            self._senders[topic] = self.create_publisher(kind, topic, qos)
        publisher = self._senders[topic]
        self.until(lambda: publisher.get_subscription_count() > 0, f"a subscriber of {topic}")
        publisher.publish(message)

    def send_chunk(self, delta: Any, actions: int = 4, gripper: float = 1.0, frame_age_s: float = 0.0) -> int:
        """Publish a chunk that repeats one delta (6,); return its sequence number."""
        now_ns = self.get_clock().now().nanoseconds
        deltas = np.tile(np.array([*delta, gripper], np.float32), (actions, 1))
        self._sequence += 1
        chunk = ActionChunk(deltas, now_ns - round(frame_age_s * 1e9))
        self.say("action_chunk", convert.ActionChunkMsg, base.RELIABLE,
                 convert.chunk_msg(chunk, self._sequence, "test", now_ns, now_ns, now_ns))
        return self._sequence

    def steps_of(self, sequence: int) -> list[Any]:
        return [m for m in self.heard["step"] if m.chunk_sequence == sequence]

    def play(self, delta: Any, **chunk: Any) -> list[Any]:
        """Send a chunk and return its steps: all of them, or those up to the one that was refused."""
        sequence = self.send_chunk(delta, **chunk)
        return self.until_over(sequence, chunk.get("actions", 4))

    def until_over(self, sequence: int, size: int) -> list[Any]:
        """Spin until the chunk's last step, or a refused one, is heard; return its steps."""
        def over() -> bool:
            steps = self.steps_of(sequence)
            return len(steps) >= size or bool(steps and steps[-1].verdict >= steps[-1].HOLD)

        self.until(over, f"{size} steps of chunk {sequence}")
        return self.steps_of(sequence)

    def until_state(self, state: int, words: str = "", timeout_s: float = PATIENCE_S) -> Any:
        """Spin until the newest arm_status has this state and these words in its reason; return it."""
        heard = self.heard["arm_status"]
        self.until(lambda: heard and heard[-1].state == state and words in heard[-1].reason,
                   f"arm state {state} with '{words}'", timeout_s)
        return heard[-1]


def stamps_s(messages: list[Any]) -> np.ndarray:
    return np.array([convert.to_ns(m.header.stamp) for m in messages]) * 1e-9


@contextmanager
def client() -> Iterator[Client]:
    context = rclpy.Context()  # its own, so that clients of several modules may live at once
    rclpy.init(context=context)
    node = Client(context)
    try:
        yield node
    finally:
        node.destroy_node()
        context.try_shutdown()


@contextmanager
def running(specs: list[graph.NodeSpec], log_dir: Path) -> Iterator[graph.Graph]:
    """Start nodes; at the end all of them must go on SIGINT with code 0."""
    with graph.start(specs, graph.ros_environment(log_dir=log_dir), log_dir) as nodes:
        yield nodes
        codes = nodes.stop(grace_s=PATIENCE_S)
    logs = "\n".join(f"--- {name}\n{node.tail(30)}" for name, node in nodes.nodes.items())
    assert set(codes.values()) <= {0}, f"{codes}\n{logs}"
