"""One image of a camera, as a PNG: what the policy would see, for `adapt --frame` or just to look.

examples:
  world-gymnast snapshot scene.png                                       from image_raw of a running graph
  world-gymnast snapshot scene.png --topic /camera/color/image_raw       from any camera driver
  world-gymnast snapshot scene.png --camera 0                            from a camera of this machine, without a graph

What is wrong with the image (black, grey, padded, of another shape) is said; mirrored or upside down is seen only
beside a known arm, by policy_node. Where the arm's joint states are heard, the line ends with its pose, as `adapt
--state` takes it.

exit status: 0 written, 1 written, but the policy would not be let act on such an image, 2 refused, or no image came
"""
from __future__ import annotations

import argparse
import os
from pathlib import Path

from world_gymnast_ros.cli import ros_child
from world_gymnast_ros.cli.checks import real, whole
from world_gymnast_ros.errors import BadConfig

HELP = "one image of a camera topic or device, as a PNG"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; `nodes/snapshot.py` reads the same."""
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--topic", default="image_raw", help="sensor_msgs/Image, or CompressedImage where the name "
                        "ends in /compressed (default: %(default)s)")
    whole(parser, "--camera", 0, 99, default=None, help="number of a camera of this machine, instead of a topic")
    parser.add_argument("--robot-name", default="wx250s", help="namespace of the driver, for the arm's pose (default: "
                        "%(default)s)")
    real(parser, "--wait-s", 0.5, 3600.0, default=10.0, help="longest wait for an image (default: %(default)s s)")
    parser.add_argument("--overwrite", action="store_true", help="write over a file that is there")


def check_out(args: argparse.Namespace) -> None:
    """Refuse a name that cannot or should not be written, before an image is waited for. Raises BadConfig."""
    out: Path = args.out
    if out.suffix.lower() != ".png":
        raise BadConfig(f"{out} is no name of a PNG; end it in .png")
    if out.is_dir():
        raise BadConfig(f"{out} is a folder; name a file")
    if out.exists() and not args.overwrite:
        raise BadConfig(f"{out} is there already; name another file, or say --overwrite")


def run(args: argparse.Namespace) -> int:
    """Go on as a process that hears topics."""
    check_out(args)
    command = ros_child.command("snapshot", str(args.out), *ros_child.options(args, ("out", "overwrite")),
                                *(["--overwrite"] if args.overwrite else []))
    os.execv(command[0], command)
