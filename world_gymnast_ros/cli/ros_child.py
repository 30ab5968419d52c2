"""Verbs that need ROS run in a process of its own kind: the command line itself never imports rclpy."""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection

from world_gymnast_ros.errors import BadConfig

CODE = """\
import sys
try:
    from {module} import main
    status = main(sys.argv[1:])
except KeyboardInterrupt:
    status = 130
sys.exit(status)
"""
"""The import takes seconds: Ctrl-C must end it without a traceback too."""


def command(module: str, *words: str) -> list[str]:
    """Return the command line that runs `main` of a module of nodes/."""
    return [sys.executable, "-c", CODE.format(module=f"world_gymnast_ros.nodes.{module}"), *words]


def become(module: str, args: argparse.Namespace, left_out: Collection[str], *lead: str) -> None:
    """Go on as the process beside the graph: a signal to this one must reach whoever can hold the arm."""
    if not args.instruction.strip():
        raise BadConfig(f"say what the arm shall do, e.g. world-gymnast {args.verb} ... 'reach the red block' --robot")
    words = command(module, *lead, args.instruction, "--robot", *options(args, ("robot", "instruction", *left_out)))
    os.execv(words[0], words)


def options(args: argparse.Namespace, left_out: Collection[str]) -> list[str]:
    """Return parsed options as words again, without empty ones and those `left_out`; --judge once for each."""
    words: list[str] = []
    for key, value in vars(args).items():
        if key not in ("verb", "run", "result", *left_out) and value is not False and value not in (None, "", []):
            option = f"--{key.replace('_', '-')}"
            if value is True:
                words.append(option)
                continue
            values = [str(v) for v in value] if isinstance(value, list) else [str(value)]
            words += [w for v in values for w in (option, v)] if key == "judge" else [option, *values]
    return words
