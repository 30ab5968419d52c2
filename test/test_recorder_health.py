"""What the recorder says of itself counts what it *used*. The node in this process, over DDS, without an executor."""
from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

pytest.importorskip("rclpy")
import rclpy
import rclpy.time
from ros_tools import PATIENCE_S

from world_gymnast_ros.episodes import read_outcome
from world_gymnast_ros.episodes.image_count import ImageCount, lost_images
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.nodes.recorder_node import RecorderNode

pytestmark = pytest.mark.ros
DAMAGED = (Path(__file__).parent / "data" / "png_syntax_error.bin").read_bytes()


class Bench:
    """A recorder, and a node that publishes to it."""

    def __init__(self) -> None:
        self.recorder = RecorderNode()
        self.speaker = rclpy.create_node("speaker", namespace=self.recorder.get_namespace())
        self._publishers: dict[str, Any] = {}

    def until(self, done: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < end, f"waited for {what}"
            self.recorder._empty_queues()
            time.sleep(0.02)

    def say(self, topic: str, kind: Any, message: Any, qos: Any = base.RELIABLE) -> None:
        if topic not in self._publishers:
            self._publishers[topic] = self.speaker.create_publisher(kind, topic, qos)
            self.until(lambda: self._publishers[topic].get_subscription_count() > 0, f"a subscriber of {topic}")
        self._publishers[topic].publish(message)

    def show(self, encoding: str, width: int = 8) -> None:
        msg = convert.Image(height=4, width=width, encoding=encoding, step=2 * width, data=bytes(8 * width))
        msg.header.stamp = convert.to_time(time.time_ns())
        self.say("image_raw", convert.Image, msg)

    def start(self, **fields: Any) -> Any:
        return self.recorder._on_start(convert.StartEpisode.Request(**fields), convert.StartEpisode.Response())

    def stop(self) -> Any:
        return self.recorder._on_stop(convert.StopEpisode.Request(partial_score=-1.0), convert.StopEpisode.Response())

    def lacks(self) -> str:
        return self.recorder._lacks()


@contextmanager
def bench(folder: Path, *words: str) -> Iterator[Bench]:
    rclpy.init(args=["--ros-args", "-p", f"directory:={folder}", "-p", "min_free_mb:=1.0",
                     *(w for word in words for w in ("-p" if ":=" in word and "__" not in word else "-r", word))])
    here = Bench()
    try:
        yield here
    finally:
        here.recorder.close()
        here.speaker.destroy_node()
        here.recorder.destroy_node()
        rclpy.try_shutdown()


def test_camera_images_that_are_refused_do_not_count_as_heard(tmp_path: Path) -> None:
    with bench(tmp_path) as b:
        b.show("16UC1")
        b.until(lambda: b.recorder._images.refused, "an image that is refused")
        assert "images on image_raw are not recorded: image encoding '16UC1'" in b.lacks()
        assert "nothing heard on image_raw" not in b.lacks()
        begun = b.start(instruction="x")
        assert begun.success and "16UC1" in begun.message
        for count in range(3):
            b.show("16UC1")
            b.until(lambda n=count: b.recorder._images.refused > n, "another one")
        ended = b.stop()
        assert ended.success and "0 images recorded, 3 refused (image encoding '16UC1'" in ended.message
        assert b.start(instruction="x").success
        b.show("yuv422_yuy2")  # what usb_cam publishes by default
        b.until(lambda: b.recorder._images.used, "an image that is used")
        b.show("yuv422_yuy2", width=12)
        b.until(lambda: b.recorder._images.used > 1, "another resolution")
        assert "not recorded" not in b.lacks()
        assert b.stop().message == "episode saved: 2 images recorded, of 2 sizes (8x4, 12x4)"


def test_compressed_images_are_decoded_before_they_count(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Pillow.fromarray(np.zeros((16, 16, 3), np.uint8)).save(buffer, "JPEG")
    with bench(tmp_path, "image_compressed:=true") as b:
        assert b.start(instruction="x").success
        for data in (DAMAGED, b"\x00\x00\x00\x01h264", b"", buffer.getvalue()):
            b.say("image_raw/compressed", convert.CompressedImage, convert.CompressedImage(format="jpeg", data=data))
            b.until(lambda n=b.recorder._images: n.refused + n.used, "an image")
        b.until(lambda: b.recorder._images.used, "the good one")
        assert b.stop().message.startswith("episode saved: 1 image recorded, 3 refused (image of format 'jpeg'")


def test_a_grippers_joint_states_are_no_arms_and_plain_publishers_are_heard(tmp_path: Path) -> None:
    """In a namespace, as every topic: lab1."""
    with bench(tmp_path, "__ns:=/lab1") as b:
        b.say("wx250s/joint_states", convert.JointState, convert.JointState(name=["gripper"], position=[0.0]))
        b.say("instruction", convert.String, convert.String(data="reach the red block"))  # rqt, a panel: volatile
        b.until(lambda: "instruction" in b.recorder._latched, "the instruction")
        assert "wx250s/joint_states (ever)" in b.lacks()
        b.say("wx250s/joint_states", convert.JointState,
              convert.joint_state_msg(1, np.zeros(9), np.zeros(9), np.zeros(9)))
        b.until(lambda: "wx250s/joint_states" not in b.lacks(), "the arm's joint states")


def test_rivals_are_named(tmp_path: Path) -> None:
    with bench(tmp_path) as b:
        rival, other = RecorderNode(), rclpy.create_node("second_camera")
        cameras = [n.create_publisher(convert.Image, "image_raw", base.RELIABLE) for n in (b.speaker, other)]
        try:
            b.until(lambda: "2 recorders answer as /recorder_node" in b.lacks(), "a rival")
            b.until(lambda: f"{len(cameras)} publishers of image_raw" in b.lacks(), "two cameras")
            assert "2 recorders" in b.start(instruction="x").message
        finally:
            rival.close()
            rival.destroy_node()
            other.destroy_node()


def test_a_silent_clock_is_refused_and_a_standing_one_told(tmp_path: Path) -> None:
    with bench(tmp_path, "use_sim_time:=true") as b:
        refused = b.start(instruction="x")
        assert not refused.success and "nothing was heard on /clock" in refused.message and not list(tmp_path.iterdir())
    with bench(tmp_path, "use_sim_time:=true") as b:
        clock = b.recorder.get_clock()
        clock.set_ros_time_override(rclpy.time.Time(seconds=1000, clock_type=clock.clock_type))
        paths = []
        for _ in range(2):  # a paused clock gives both the same time
            begun = b.start(instruction="x")
            assert begun.success, begun.message
            paths.append(b.stop().path)
        assert len(set(paths)) == 2 and all(read_outcome(Path(p)).outcome == "unknown" for p in paths)
        assert b.start(instruction="x").success
        b.recorder._watch_clock()
        b.recorder._clock_moved_ns -= 2 * 10**9
        b.recorder._watch_clock()
        assert "the clock stands still" in b.lacks()


def test_lost_images_are_estimated_from_the_gaps() -> None:
    at_15_hz = [i * 66_666_667 for i in range(60)]
    assert lost_images(at_15_hz) == 0 and lost_images(at_15_hz[:3]) == 0 and lost_images([5] * 20) == 0
    assert lost_images([t for i, t in enumerate(at_15_hz) if i not in (10, 11, 30)]) == 3
    count = ImageCount()
    for stamp in at_15_hz[:20] + at_15_hz[25:]:
        count.use(stamp, (48, 64))
    assert count.words() == "55 images recorded, about 5 lost on the way"
