"""`world-gymnast episodes keys`: one key marks the episode that is being recorded, or the last one, beside a graph.

    s success    f failure    u nobody can say    0 to 9 failed, but so many tenths of the task were done    q leave
"""
from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from world_gymnast_ros.nodes import convert, verb
from world_gymnast_ros.nodes.caller import GraphFault

HELP = __doc__.split("\n\n", 1)[1].strip()
MARKS: dict[str, tuple[str, float]] = {"s": ("success", -1.0), "f": ("failure", -1.0), "u": ("unknown", -1.0),
                                       **{str(tenths): ("failure", tenths / 10) for tenths in range(10)}}
ANSWER_S = 10.0


@contextlib.contextmanager
def single_keys() -> Iterator[None]:
    """Give keys at once, without Enter, while inside; on a pipe they come anyway."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class Marker(Node):
    """A client of the recorder's service."""

    def __init__(self) -> None:
        super().__init__("mark_keys")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self._service = self.create_client(convert.MarkOutcome, "recorder_node/mark_outcome")

    def mark(self, outcome: str, score: float, marked_by: str) -> str:
        """Mark, and return the recorder's words. Raises GraphFault when it does not answer."""
        if not self._service.wait_for_service(ANSWER_S):
            raise GraphFault(f"no recorder answers within {ANSWER_S:g} s; is the graph running?")
        answer = self._service.call_async(convert.MarkOutcome.Request(outcome=outcome, marked_by=marked_by,
                                                                      partial_score=score))
        deadline = time.monotonic() + ANSWER_S
        while not answer.done():
            self._executor.spin_once(timeout_sec=0.05)
            if time.monotonic() > deadline:
                raise GraphFault(f"the recorder did not answer within {ANSWER_S:g} s; look at its log")
        message: str = answer.result().message
        return message


def key() -> str:
    """Wait for one key; "q" at the end of input."""
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        continue
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace") or "q"


def _work(args: argparse.Namespace) -> int:
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    marker: Any = None
    try:
        marker = Marker()
        print(HELP, flush=True)
        with single_keys():
            while (pressed := key()) != "q":
                if pressed in MARKS:
                    outcome, score = MARKS[pressed]
                    print(marker.mark(outcome, score, args.by), flush=True)
        return 0
    finally:
        if marker is not None:
            marker.destroy_node()
        rclpy.try_shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Read keys until q."""
    parser = argparse.ArgumentParser(prog="world-gymnast episodes keys", description=HELP)
    parser.add_argument("--by", required=True)
    return verb.run(parser, _work, argv, "stopped")
