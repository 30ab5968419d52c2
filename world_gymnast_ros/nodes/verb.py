"""A verb of the command line that runs beside a graph: signals that bring a hold, errors in one line."""
from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable, Sequence

from world_gymnast_ros.cli import answered, exit_status
from world_gymnast_ros.nodes import graph


def run(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], int], argv: Sequence[str] | None,
        stopped: str) -> int:
    """Parse, do the work, and return the exit status: 2 with one line for an error, 130 and `stopped` for Ctrl-C.

    What is started stays on this machine, unless the environment's discovery range says otherwise.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have had them ignored; they must bring a hold
        signal.signal(number, signal.default_int_handler)

    def parsed() -> int:
        args = parser.parse_args(argv)
        os.environ.update(graph.ros_environment())
        return answered(work, args)
    return exit_status(parsed, stopped)
