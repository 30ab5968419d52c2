"""The robot in one word: what the nodes of a running graph offer, without the long `ros2` calls.

Each word calls the service, action or topic of the same name, and what the node refuses is refused here in the node's
own words. Start the graph first, in another terminal: ros2 launch world_gymnast_ros bringup.launch.py dry_run:=true

examples:
  world-gymnast robot status                         what every node says; --json for programs
  world-gymnast robot say "reach the red block"      the task in words
  world-gymnast robot capture                        keep an image for the next adaptation
  world-gymnast robot capture --go                   the same, from a pose that the camera sees well; armed
  world-gymnast robot calibrate                      where is the camera? by what was captured
  world-gymnast robot table                          how high is the table? the finger tips rest on it, torque off
  world-gymnast robot adapt --budget-s 300           adapt to what was captured; moves nothing
  world-gymnast robot arm                            from here on the arm plays the policy (not with dry_run:=true)
  world-gymnast robot hold                           it stops and holds its place
  world-gymnast robot home                           it walks slowly to neutral; Ctrl-C holds it
  world-gymnast robot disarm                         nothing is sent any more

`hold` needs a second to start: it is no emergency stop. Keep the hardware one within reach.

exit status: 0 done, 1 adapt: the present policy was kept; status: a node is missing or reports an error, 2 refused, or
nobody answers, 130 stopped by Ctrl-C
"""
from __future__ import annotations

import argparse
import os
from pathlib import Path

from world_gymnast_ros import seeds
from world_gymnast_ros.cli import ros_child
from world_gymnast_ros.cli.checks import real, whole

HELP = "status, arm, disarm, hold, home, capture, calibrate, table, adapt and say, beside a running graph"
FLAGS = ("json", "dry_run", "go")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the words; `nodes/robot_words.py` reads the same."""
    words = parser.add_subparsers(title="words", dest="word", metavar="WORD", required=True)

    def word(name: str, text: str) -> argparse.ArgumentParser:
        made = words.add_parser(name, help=text, description=text)
        made.add_argument("--namespace", default="", help="of the nodes (default: none)")
        real(made, "--wait-s", 0.5, 3600.0, default=10.0, help="longest wait for a node to answer (default: "
             "%(default)s s)")
        return made
    word("status", "what every node says").add_argument("--json", action="store_true", help="print JSON")
    word("arm", "arm: the arm plays the policy from here on")
    word("disarm", "disarm: nothing is sent any more, the arm holds its place")
    word("hold", "stop, and hold the place; arm goes on. Not an emergency stop")
    word("home", "walk slowly to neutral, from armed or held; Ctrl-C holds")
    capture = word("capture", "keep the present image for the next adaptation, once the arm rests")
    capture.add_argument("--go", action="store_true", help="walk to where the camera sees the arm well first; the arm "
                         "must be armed or held")
    word("calibrate", "find where the camera is, from 6 or more captures with the arm at different places in view")
    table = word("table", "measure the height of the table: the finger tips rest on it, lowered by hand; moves nothing")
    table.add_argument("--robot-name", default="wx250s", help="namespace of the driver (default: %(default)s)")
    table.add_argument("--out", type=Path, default=Path("runs/set_up.yaml"), help="parameters file to write it to, "
                       "beside what it holds, for params_file:= of the launch files (default: %(default)s)")
    say = word("say", "tell policy, adaptation and recorder the task")
    say.add_argument("instruction", help="the task in words")
    adapt = word("adapt", "adapt the policy to what was captured, inside the world model; Ctrl-C cancels")
    adapt.add_argument("instruction", nargs="*", help="tasks to train on (default: the one that was said)")
    real(adapt, "--budget-s", 1.0, 86400.0, default=0.0, help="wall time (default: as in adapt.yaml)")
    whole(adapt, "--updates", 1, default=0, help="at most so many updates (default: as in adapt.yaml)")
    whole(adapt, "--seed", 0, seeds.MAX_SEED, default=0)
    adapt.add_argument("--dry-run", action="store_true", help="do everything but offer the adapter")


def run(args: argparse.Namespace) -> int:
    """Go on as the process beside the graph: a signal to this one must reach whoever can hold the arm."""
    given = getattr(args, "instruction", [])
    said = [given] if isinstance(given, str) else given
    flags = [f"--{name.replace('_', '-')}" for name in FLAGS if getattr(args, name, False)]
    left_out = ("word", "instruction", *FLAGS, *(k for k in ("budget_s", "updates") if not getattr(args, k, 0)))
    command = ros_child.command("robot_words", args.word, *ros_child.options(args, left_out), *flags,
                                *(["--", *said] if said else []))
    os.execv(command[0], command)
