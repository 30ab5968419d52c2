"""`robot calibrate` end to end over DDS: the twin's arm before a camera that was moved, captured, found, stored."""
from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
from ros_tools import PATIENCE_S, START_S, running
from test_adapt_node import Bench, bench, fake_parts
from test_camera_calibration import NOMINAL, PLACES_M, PRIOR, SCENE, off_px

from world_gymnast_ros.cli import ros_child
from world_gymnast_ros.config import PolicyConfig, read_parameters
from world_gymnast_ros.images import decode_rgb
from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.robot.actions import pose_from_state
from world_gymnast_ros.robot.camera_extrinsics import read_camera
from world_gymnast_ros.robot.kinematics import NEUTRAL, ik

pytestmark = [pytest.mark.ros, pytest.mark.slow]


def hands(b: Bench, check: Callable[[], None]) -> Callable[[tuple[float, ...]], None]:
    """Return what brings the twin's hand to a place (3,), m, as a person's hands would bring the arm's."""
    goals = b.c.create_publisher(convert.xs_msg.JointGroupCommand, "wx250s/commands/joint_group", base.RELIABLE)
    heard = b.c.hear("wx250s/joint_states", convert.JointState)
    b.c.until(lambda: heard and goals.get_subscription_count(), "the twin", START_S, check)

    def bring(place_m: tuple[float, ...]) -> None:
        joints = ik(pose_from_state(np.array([*place_m, 0.0, 0.0, 0.3 * place_m[1], 1.0], np.float32)), NEUTRAL)
        goals.publish(convert.xs_msg.JointGroupCommand(name="arm", cmd=[float(q) for q in joints]))
        b.c.until(lambda: np.abs(convert.arm_state(heard[-1]).joints - joints).max() < 0.03, f"the hand at {place_m}",
                  check=check)
    return bring


def word(b: Bench, name: str) -> tuple[int, str]:
    """Type `world-gymnast robot NAME`; return its exit code and what it said."""
    process = subprocess.Popen(ros_child.command("robot_words", name, "--wait-s", str(PATIENCE_S)), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    b.c.until(lambda: process.poll() is not None, name, START_S)
    return process.returncode, process.communicate()[0]


def test_a_moved_camera_is_found_over_dds_and_read_by_whom_it_is_for(tmp_path: Path) -> None:
    twin = graph.TWIN.with_overrides(scene=SCENE, image_rate_hz=4.0)
    runs = (tmp_path / "runs").resolve()
    with bench(runs, fake_parts()) as b, running([twin], tmp_path / "log") as nodes:
        b.shooting = False
        bring = hands(b, nodes.check)
        answers: list[Any] = []
        for place_m in PLACES_M[:-1]:
            bring(place_m)
            answers.append(b.c.call("adapt_node/capture", convert.Trigger))
        status, said = word(b, "calibrate")
        assert status == 2 and "the camera is as it was: 5 images with the hand at least 4 cm apart, 6 are" in said
        assert not (runs / "camera_pose.json").exists()
        bring(PLACES_M[-1])
        answers.append(b.c.call("adapt_node/capture", convert.Trigger))
        refused = [a.message for a in answers if not a.success]
        assert all("of the hand is in the image" in message for message in refused), refused
        shares = b.c.hear("adapt_node/calibration_progress", convert.Float32)
        status, said = word(b, "calibrate")
        assert shares and all(0.0 < m.data <= 1.0 for m in shares), "how far it is was told meanwhile"
        path, poses = runs / "camera_pose.json", list(b.node._poses)
        assert status == 0 and "camera found by 6 images" in said and f"params_file:={runs / 'set_up.yaml'}" in said
        assert b.node._camera == read_camera(path).projection() != NOMINAL.projection(), "the next capture is by it"
    stored = read_camera(path)
    assert off_px(PRIOR.T_base_camera, poses) > 30.0 and off_px(stored.pose(), poses) < 8.0 and stored.width_px == 640
    held = read_parameters(runs / "set_up.yaml")
    assert list(held) == ["camera_calibration"] and PolicyConfig(**held).camera() == stored.projection()
    assert decode_rgb(path.with_suffix(".png"), "overlay").shape == (480, 1280, 3)
