"""`world-gymnast snapshot`: one image of a topic or a camera as a PNG, and what is wrong with it."""
from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

import rclpy
from PIL import Image
from rclpy.signals import SignalHandlerOptions

from world_gymnast_ros.cli.snapshot import add_arguments, check_out
from world_gymnast_ros.config import CameraConfig, PolicyConfig
from world_gymnast_ros.control.image_statistics import still_finding
from world_gymnast_ros.errors import BadAction, BadFrame, StaleFrame
from world_gymnast_ros.files import whole
from world_gymnast_ros.nodes import base, convert, verb
from world_gymnast_ros.nodes.caller import Caller
from world_gymnast_ros.nodes.clips import Device, device_path
from world_gymnast_ros.nodes.joint_merge import JointMerge
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.types import ArmState, Frame

STATE_S = 1.0
"""Joint states are waited for so long; a driver sends them 100 times a second."""
POLL_S = 0.02


class Snapshot(Caller):
    """Hears one image, and where the arm is."""

    def __init__(self, robot_name: str) -> None:
        super().__init__(f"snapshot_{os.getpid()}")
        self._merge = JointMerge()
        self._arm: ArmState | None = None
        self.create_subscription(convert.JointState, f"{robot_name}/joint_states", self._on_joints, base.SHARED)

    def _on_joints(self, msg: Any) -> None:
        try:
            self._arm = self._merge.add(msg, base.steady_ns()) or self._arm
        except BadAction:  # there is no state to tell then
            return

    def frame(self, topic: str, wait_s: float) -> Frame:
        """Return the next image on a topic. Raises StaleFrame naming topics with images, or BadFrame."""
        heard: list[Any] = []
        packed = topic.endswith("/compressed")
        self.create_subscription(convert.CompressedImage if packed else convert.Image, topic, heard.append, base.NEWEST)
        if not self.spins_until(lambda: heard, wait_s):
            raise StaleFrame(f"no image on {self.resolve_topic_name(topic)} within {wait_s:g} s; {self._others()}")
        return convert.frame_from_compressed(heard[0]) if packed else convert.frame_from_image(heard[0])

    def _others(self) -> str:
        """Say which topics have images here."""
        names = [name for name, kinds in self.get_topic_names_and_types() if self.count_publishers(name)
                 and any(kind.endswith(("/Image", "/CompressedImage")) for kind in kinds)]
        if names:
            return f"images come on {', '.join(names)}: name one with --topic"
        return ("no topic here has images: start a camera driver, with ROS_DOMAIN_ID "
                f"{os.environ.get('ROS_DOMAIN_ID', '0')}, or name a --camera")

    def state(self) -> str:
        """Return the arm's pose as `adapt --state` takes it, or ""."""
        self.spins_until(lambda: self._arm, STATE_S)
        if self._arm is None:
            return ""
        return " ".join(f"{value:.4f}" for value in bridge_state(self._arm.T_base_ee, self._arm.gripper))


def from_device(index: int, wait_s: float) -> Frame:
    """Return an image of a camera of this machine. Raises BadConfig where it cannot be opened, StaleFrame where none
    comes."""
    device = Device(device_path(str(index)), CameraConfig.width, CameraConfig.height)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and device.error is None:
        frame = device.take()
        if frame is not None:
            return frame
        time.sleep(POLL_S)
    raise StaleFrame(f"camera {index} gave no image within {wait_s:g} s ({device.error}); check cable and power")


def work(args: argparse.Namespace) -> int:
    """Write the image and say what it shows."""
    check_out(args)
    state = ""
    if args.camera is not None:
        frame, source = from_device(args.camera, args.wait_s), f"camera {args.camera}"
    else:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        node = Snapshot(args.robot_name)
        try:
            frame, source, state = node.frame(args.topic, args.wait_s), args.topic, node.state()
        finally:
            node.destroy_node()
            rclpy.try_shutdown()
    if not frame.rgb.size:
        raise BadFrame(f"the image of {source} is empty")
    with whole(args.out) as partial:
        Image.fromarray(frame.rgb).save(partial, format="PNG")
    finding = still_finding(frame.rgb, PolicyConfig.image_aspect)
    height, width = frame.rgb.shape[:2]
    print(f"{args.out}: {width}x{height} of {source}; {finding.words if finding else 'nothing wrong seen'}"
          + (f"; --state {state}" if state else ""))
    return int(finding is not None and finding.definite)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, take the image, and turn errors into one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="world-gymnast snapshot")
    add_arguments(parser)
    return verb.run(parser, work, argv, "stopped; nothing was written")


if __name__ == "__main__":
    raise SystemExit(main())
