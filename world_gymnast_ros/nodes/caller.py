"""`Caller`: a node that calls services and waits, in the one thread that it is used from."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from world_gymnast_ros.errors import WorldGymnastError

CONFIRM_S = 5.0
"""After Ctrl-C an answer is waited for so long."""


class GraphFault(WorldGymnastError):
    """A node of the graph did not answer, refused, or is gone."""


class Caller(Node):
    """Spins itself while it waits. Call from one thread."""

    def __init__(self, name: str, check_alive: Callable[[], None] = lambda: None, namespace: str = "") -> None:
        super().__init__(name, namespace=namespace)
        self._check_alive = check_alive
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self._interrupted = False  # Ctrl-C inside a spin: that executor hears no answer any more

    def spin_until(self, done: Callable[[], Any], timeout_s: float, what: str) -> None:
        """Spin until `done()`; GraphFault naming `what` after `timeout_s`, or when a process is gone."""
        if not self.spins_until(done, timeout_s):
            raise GraphFault(f"waited {timeout_s:.0f} s for {what}; look at the logs of the nodes, and at what "
                             "else keeps this machine busy")

    def spins_until(self, done: Callable[[], Any], timeout_s: float) -> bool:
        """Spin until `done()` and return True, or False after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not done():
            try:
                self._executor.spin_once(timeout_sec=0.05)
            except KeyboardInterrupt:
                self._interrupted = True
                raise
            self._check_alive()
            if time.monotonic() > deadline:
                return False
            if not rclpy.ok():
                raise KeyboardInterrupt
        return True

    def call(self, client: Any, request: Any, timeout_s: float = 15.0) -> Any:
        """Call a service; GraphFault if it does not answer or says no."""
        self.spin_until(client.service_is_ready, timeout_s, f"service {client.srv_name}")
        future = client.call_async(request)
        self.spin_until(future.done, timeout_s, f"an answer of {client.srv_name}")
        response = future.result()
        if not response.success:
            raise GraphFault(f"{client.srv_name} refused: {response.message}")
        return response

    def confirm(self, client: Any, request: Any) -> None:
        """Call from a node of its own and wait for the answer: after Ctrl-C this one's executor hears none, and what
        was only sent may be lost when the process ends. What is not answered is said."""
        node = rclpy.create_node(f"{self.get_name()}_confirming", namespace=self.get_namespace())
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            again = node.create_client(client.srv_type, client.srv_name)
            end = time.monotonic() + CONFIRM_S
            if again.wait_for_service(CONFIRM_S):
                future = again.call_async(request)
                executor.spin_until_future_complete(future, max(0.1, end - time.monotonic()))
                if future.done():
                    response: Any = future.result()
                    if not response.success:
                        print(f"\n{client.srv_name} refused: {response.message}")
                    return
            print(f"\n{client.srv_name} did not answer within {CONFIRM_S:g} s; see to the robot")
        finally:
            executor.shutdown()
            node.destroy_node()
