"""Fail in a novel scene, adapt inside the dream, do better on the same scene. No robot needed.

examples:
  world-gymnast demo                                          a novel scene, ten episodes before and after
  world-gymnast demo --scene novel_evening --episodes 20      another scene
  world-gymnast demo --scene my_scene.yaml --budget-s 120     your own scene, two minutes to adapt
"""
from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from world_gymnast_ros import seeds
from world_gymnast_ros.cli import ros_child
from world_gymnast_ros.cli.checks import real, whole

HELP = "the whole story on the simulated twin, with a report"

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; `nodes/demo.py` reads the same words."""
    parser.add_argument("--scene", default="novel_evening",
                        help="shipped scene or YAML file (default: %(default)s)")
    parser.add_argument("--instruction", default="", help="default: the scene's first")
    whole(parser, "--episodes", 1, seeds.MAX_EPISODES, default=10,
                        help="true episodes before and after (default: %(default)s)")
    real(parser, "--budget-s", 1.0, 86400.0, default=300.0,
                        help="time for the adaptation (default: %(default)s s)")
    whole(parser, "--updates", 0, default=0, help="at most so many updates (default: as in adapt.yaml)")
    whole(parser, "--seed", 0, default=0, help="seed of the adaptation (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="result folder (default: runs/demo-<time>)")
    parser.add_argument("--no-record", action="store_true", help="do not record the episodes")
    whole(parser, "--domain-id", 0, 101, default=None, help="ROS domain (default: one that no demo or test on this "
          "machine holds, so that it never talks to them or to a robot)")


def run(args: argparse.Namespace) -> int:
    """Run the demo in a process of its own: the command line itself never imports ROS."""
    process = subprocess.Popen(ros_child.command("demo", *ros_child.options(args, ("no_record",)),
                                                 *(["--no-record"] if args.no_record else [])))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # it got the same signal and is bringing the arm to a hold
            continue
