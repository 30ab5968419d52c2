"""Look at machine, models and graph, and say what each problem means and what to do. Nothing is changed, nothing moves.

examples:
  world-gymnast doctor                                   this machine, the models of config/adapt.yaml, the graph
  world-gymnast doctor --wait-s 0 --judge judges/mine    without the graph, with other models
  world-gymnast doctor --json                            for programs

Looked at: packages against the lock, GPU, memory, disk, clock, ROS, the files of each model and their hashes, whether
these models were measured together; on the graph, rate and age of the camera's images and of the driver's joint
states.

exit status: 0 no problem, 1 at least one problem, 2 refused
"""
from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from world_gymnast_ros.cli import machine, options, ros_child
from world_gymnast_ros.cli.checks import adapt_settings, real
from world_gymnast_ros.cli.machine import Finding, State

HELP = "look at machine, models, camera and driver; what is wrong, and what to do"
START_S = 60.0
"""For importing ROS on a busy machine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for add in (options.policy, options.world_model, options.judges):
        add(parser, checked=False)  # a model that is not there is a finding
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder whose disk is looked at (default: "
                        "%(default)s)")
    parser.add_argument("--topic", default="image_raw", help="the camera's images (default: %(default)s)")
    parser.add_argument("--robot-name", default="wx250s", help="namespace of the driver (default: %(default)s)")
    real(parser, "--wait-s", 0.0, 600.0, default=3.0, help="how long the graph is listened to, 0: not at all (default: "
         "%(default)s s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print every finding; 1 where there is a problem."""
    config = adapt_settings(None, [], {"policy": args.policy or None, "world_model": args.world_model or None,
                                       "judges": ", ".join(args.judge) or None})
    found = [*machine.packages(), machine.gpu(), machine.memory(), machine.disk(args.out), machine.clock(),
             machine.ros(), *machine.models(config.policy, config.world_model, config.judges)]
    if args.wait_s > 0:
        found += graph(args.topic, args.robot_name, args.wait_s)
    problems = sum(f.state is State.PROBLEM for f in found)
    if args.json:
        print(json.dumps({"problems": problems, "findings": [asdict(f) for f in found]}, indent=1))
    else:
        print("\n".join(lines(found)))
    return int(problems > 0)


def lines(found: Sequence[Finding]) -> list[str]:
    """Return what is printed: a line each, and two more under what is not good."""
    out = []
    for f in found:
        out.append(f"{f.state.value:8} {f.name}: {f.found}")
        out += [f"{'':9}{word}: {text}" for word, text in (("means", f.means), ("do", f.remedy)) if text]
    count = {state: sum(f.state is state for f in found) for state in State}
    return [*out, f"{count[State.PROBLEM]} problems, {count[State.WARNING]} warnings, {count[State.UNKNOWN]} unknown"]


def graph(topic: str, robot_name: str, wait_s: float) -> list[Finding]:
    """Listen to the graph in a process of its own; the command line never imports ROS."""
    try:
        done = subprocess.run(ros_child.command("graph_check", topic, robot_name, str(wait_s)), capture_output=True,
                              text=True, timeout=wait_s + START_S)
        rows = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return [Finding("graph", State.PROBLEM, "ROS could not be listened to", "no node can be seen from here",
                        "look at the finding on ros; try ros2 topic list")]
    return [Finding(**{**row, "state": State(row["state"])}) for row in rows]
