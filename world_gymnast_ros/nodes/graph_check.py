"""What `world-gymnast doctor` sees of a graph: rate and age of images and joint states, as JSON. It only listens."""
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import rclpy
from rclpy.signals import SignalHandlerOptions

from world_gymnast_ros.cli.machine import Finding, State
from world_gymnast_ros.config import ArmConfig, PolicyConfig
from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.nodes.caller import Caller
from world_gymnast_ros.types import CONTROL_DT_S

FUTURE_S = 0.05
"""A stamp so far ahead is no delay of this process."""
SYNC = "synchronise the clocks (chrony) of this machine and of the one that stamps"


@dataclass
class Heard:
    """Messages of one topic: when each came, and how old its stamp was then, s."""

    came_s: list[float] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    last: Any = None

    def take(self, msg: Any) -> None:
        """Keep what matters of a message."""
        self.came_s.append(time.monotonic())
        self.ages_s.append((time.time_ns() - convert.to_ns(msg.header.stamp)) / 1e9)
        self.last = msg

    @property
    def rate_hz(self) -> float:
        """Messages per second between the first and the last; 0 for fewer than two."""
        span = self.came_s[-1] - self.came_s[0] if len(self.came_s) > 1 else 0.0
        return (len(self.came_s) - 1) / span if span > 0 else 0.0


def judged(name: str, heard: Heard, least_hz: float, most_s: float, absent: Finding, what: str) -> Finding:
    """Return the finding on a topic: silent (`absent`), too slow, too old, or good."""
    if not heard.came_s:
        return absent
    age_s = sorted(heard.ages_s)[len(heard.ages_s) // 2]
    found = f"{what}, {heard.rate_hz:.1f} Hz, {1e3 * age_s:.0f} ms old on arrival (median of {len(heard.came_s)})"
    if age_s < -FUTURE_S:
        return Finding(name, State.PROBLEM, f"{found}: from the future", "the ages that nodes check are wrong", SYNC)
    if age_s > most_s:
        return Finding(name, State.PROBLEM, found, f"older than {most_s:g} s is not acted on",
                       f"{SYNC}; or look for what delays it (network, decoding, a driver that stamps nothing)")
    if 0 < heard.rate_hz < least_hz:
        return Finding(name, State.WARNING, found, f"slower than {least_hz:g} Hz: the arm waits for it",
                       "raise the rate at its source; a longer --wait-s measures slow rates better")
    return Finding(name, State.OK, found)


def listen(topic: str, robot_name: str, wait_s: float) -> list[Finding]:
    """Hear images and joint states for `wait_s` and return the findings."""
    node = Caller(f"doctor_{os.getpid()}")
    camera, driver = Heard(), Heard()
    packed = topic.endswith("/compressed")
    node.create_subscription(convert.CompressedImage if packed else convert.Image, topic, camera.take, base.NEWEST)
    states = f"{robot_name}/joint_states"
    node.create_subscription(convert.JointState, states, driver.take, base.SHARED)
    nodes: Callable[[], list[str]] = node.get_node_names
    node.spins_until(lambda: False, wait_s)
    others = sorted(set(nodes()) - {node.get_name()})
    image = camera.last
    size = f"{image.width}x{image.height} {image.encoding}" if image is not None and not packed else "compressed"
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    out = [
        Finding("graph", State.OK if others else State.UNKNOWN, f"domain {domain}: {', '.join(others) or 'no node'}",
                *(() if others else ("no graph runs here, or it cannot be seen",
                                     "launch one; else compare ROS_DOMAIN_ID and ROS_AUTOMATIC_DISCOVERY_RANGE"))),
        judged("camera", camera, 1.0 / CONTROL_DT_S, PolicyConfig.max_frame_age_s, Finding(
            "camera", State.UNKNOWN, f"no image on {topic} within {wait_s:g} s", "the policy cannot look",
            "start a camera (bringup.launch.py camera:=0), or name its topic with --topic"), size),
        judged("driver", driver, 1.0 / ArmConfig.max_arm_age_s, ArmConfig.max_arm_age_s, Finding(
            "driver", State.UNKNOWN, f"no joint states on {node.resolve_topic_name(states)} within {wait_s:g} s",
            "the arm cannot be armed", "start the driver and look at its power and its USB cable; --robot-name"),
            f"{len(driver.last.name) if driver.last is not None else 0} joints")]
    node.destroy_node()
    return out


def main(argv: Sequence[str]) -> int:
    """Print the findings as one line of JSON."""
    topic, robot_name, wait_s = argv
    os.environ.update(graph.ros_environment())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        print(json.dumps([asdict(f) for f in listen(topic, robot_name, float(wait_s))]))
    finally:
        rclpy.try_shutdown()
    return 0
