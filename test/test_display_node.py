"""display_node over DDS: what viewers hear is what arm_node and policy_node hold, and what the arm does."""
from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy")
import rclpy
from rclpy.parameter import Parameter
from ros_tools import Client, client, running

from world_gymnast_ros.config import PolicyConfig
from world_gymnast_ros.nodes import base, convert, display_node, graph
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.robot import kinematics
from world_gymnast_ros.robot.camera import level_camera
from world_gymnast_ros.robot.camera_extrinsics import StoredCamera, write_camera
from world_gymnast_ros.types import ArmCommand, Verdict

pytestmark = pytest.mark.ros
JOINTS = kinematics.NEUTRAL + np.array([0.2, 0.0, 0.1, 0.0, -0.1, 0.3])


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client beside display_node and an arm_node of other settings than the shipped ones; it plays the driver."""
    arm = graph.ARM.with_overrides(dry_run=True, robot_name="left", base_frame="left/base_link", workspace="bridge",
                                   table_z_m=0.01)
    policy = graph.POLICY.with_overrides(policy_url="http://127.0.0.1:9")
    folder = tmp_path_factory.mktemp("log")
    with client() as c, running([graph.DISPLAY, arm, policy], folder):
        c.hear("robot_description", convert.String, base.LATCHED)
        c.hear("measured_pose", convert.PoseStamped)
        c.hear("target_pose", convert.PoseStamped)
        c.hear("/diagnostics", convert.DiagnosticArray)
        if convert.TFMessage is not None:
            c.hear("/tf", convert.TFMessage)
            c.hear("/tf_static", convert.TFMessage, display_node.TF_STATIC)
        if convert.MarkerArray is not None:
            c.hear("markers", convert.MarkerArray)
        yield c


def send_joints(c: Client) -> None:
    position = np.array([*JOINTS, 0.4, 0.02, -0.02])
    c.say("left/joint_states", convert.JointState, base.RELIABLE,
          convert.joint_state_msg(c.get_clock().now().nanoseconds, position, np.zeros(9), np.zeros(9)))


def measured(c: Client) -> np.ndarray:
    """Send joint states until they are shown; return the pose (4, 4)."""
    heard = c.heard["measured_pose"]
    c.until(lambda: send_joints(c) or (c.spin(0.05) or heard), "a measured pose")
    assert heard[-1].header.frame_id == "left/base_link"
    return convert.pose_from_msg(heard[-1])


def step(c: Client, moved_m: tuple[float, float, float], verdict: Verdict, reason: str) -> None:
    T = kinematics.fk(JOINTS)
    T[:3, 3] += moved_m
    requested = np.array([0.02, 0.0, 0.04, 0, 0, 0, 1], np.float32)
    command = ArmCommand(T, JOINTS, 1.0, requested, requested, verdict, reason)
    action = convert.DueAction(requested, 5, 0, 4, 1, 0, "base", "test")
    c.say("step", convert.StepMsg, base.RELIABLE, convert.step_msg(command, action, None,
                                                                   c.get_clock().now().nanoseconds))


def test_the_description_has_the_frames_of_the_arm_that_runs(shown: Client) -> None:
    heard = shown.heard["robot_description"]
    shown.until(lambda: heard, "a description")
    links = [link.get("name") for link in ET.fromstring(heard[-1].data).iter("link")]
    assert links[0] == "left/base_link" and "left/ee_gripper_link" in links


def test_measured_and_target_pose(shown: Client) -> None:
    np.testing.assert_allclose(measured(shown), kinematics.fk(JOINTS), atol=1e-9)
    step(shown, (0.0, 0.0, 0.0), Verdict.OK, "")
    shown.until(lambda: shown.heard["target_pose"], "a target pose")
    np.testing.assert_allclose(convert.pose_from_msg(shown.heard["target_pose"][-1]), kinematics.fk(JOINTS), atol=1e-9)


def test_a_missing_message_package_is_named_and_costs_only_its_topic(shown: Client) -> None:
    missing = [name for name, there in (("tf2_msgs", convert.TFMessage), ("visualization_msgs", convert.Marker))
               if there is None]
    told = [m.status[0].message for m in shown.heard["/diagnostics"] if m.status[0].name == "display_node"]
    shown.until(lambda: told or [told.append(m.status[0].message) for m in shown.heard["/diagnostics"]
                                 if m.status[0].name == "display_node"], "its diagnostics")
    assert all(name in told[-1] for name in missing), told
    assert "not installed" in told[-1] or not missing


def test_frames_lead_from_the_base_to_the_hand_and_to_the_camera(shown: Client) -> None:
    if convert.TFMessage is None:
        pytest.skip("tf2_msgs is not installed: pip has no wheel of it")
    measured(shown)
    camera = "camera_optical_frame"
    shown.until(lambda: shown.heard["/tf"] and any(t.child_frame_id == camera for m in shown.heard["/tf_static"]
                                                   for t in m.transforms), "frames")
    found: dict[str, tuple[str, np.ndarray]] = {}
    for t in (*shown.heard["/tf_static"][-1].transforms, *shown.heard["/tf"][-1].transforms):
        pose = convert.PoseStamped()
        pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = (
            t.transform.translation.x, t.transform.translation.y, t.transform.translation.z)
        pose.pose.orientation = t.transform.rotation
        found[t.child_frame_id] = (t.header.frame_id, convert.pose_from_msg(pose))
    np.testing.assert_allclose(found[camera][1], level_camera(PolicyConfig.camera_xyz_m, PolicyConfig.camera_look),
                               atol=1e-6)
    assert found[camera][0] == "left/base_link"
    T, link = np.eye(4), "left/ee_gripper_link"
    while link != "left/base_link":
        link, step_T = found[link]
        T = step_T @ T
    np.testing.assert_allclose(T, kinematics.fk(JOINTS), atol=1e-6)


def test_a_calibrated_camera_stands_where_it_was_found_not_where_it_was_thought_to_be(tmp_path: Path) -> None:
    pose = level_camera((0.1, 0.3, 0.5), (1.0, -0.5, -1.0))
    write_camera(tmp_path / "camera.json", StoredCamera([float(v) for v in pose.ravel()], 1.3, 4 / 3, 1.0, 640, 6))
    names = [spec.name for spec in fields(PolicyConfig)]

    def answer(calibration: Path) -> SimpleNamespace:
        values = {**vars(PolicyConfig()), "camera_calibration": str(calibration)}
        return SimpleNamespace(values=[Parameter(name, value=list(v) if isinstance(v := values[name], tuple) else v)
                                       .get_parameter_value() for name in names])
    rclpy.init()
    try:
        node = display_node.DisplayNode()
        try:
            node._on_answer(PolicyConfig, names, answer(tmp_path / "camera.json"))
            assert node._camera is not None
            np.testing.assert_allclose(node._camera, pose)
            node._on_answer(PolicyConfig, names, answer(tmp_path / "none.json"))
            assert node._camera is None and "none.json cannot be read" in node._camera_fault
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def test_workspace_table_and_last_clamp_are_drawn(shown: Client) -> None:
    if convert.MarkerArray is None:
        pytest.skip("visualization_msgs is not installed")
    from world_gymnast_ros.robot.actions import WORKSPACES

    heard = shown.heard["markers"]
    shown.until(lambda: any(m.markers[0].ns == "workspace" for m in heard), "the workspace")
    box, table = next(m for m in heard if m.markers[0].ns == "workspace").markers
    corners = np.array([(p.x, p.y, p.z) for p in box.points])
    bridge = WORKSPACES["bridge"]
    np.testing.assert_allclose([corners.min(0), corners.max(0)], [bridge.low_m, bridge.high_m])
    assert box.header.frame_id == "left/base_link" and len(box.points) == 24
    assert table.pose.position.z + table.scale.z / 2 == pytest.approx(0.01)
    step(shown, (0.0, 0.0, 0.0), Verdict.OK, "")
    step(shown, (0.02, 0.0, 0.01), Verdict.CLAMPED, "z cut to 0.25 m")
    shown.until(lambda: any(m.markers[-1].ns == "last_clamp" and len(m.markers) == 3 for m in heard), "a clamp")
    asked, sent, words = next(m for m in reversed(heard) if m.markers[-1].ns == "last_clamp").markers
    length = [np.linalg.norm(np.array([a.points[1].x - a.points[0].x, a.points[1].y - a.points[0].y,
                                       a.points[1].z - a.points[0].z])) for a in (asked, sent)]
    np.testing.assert_allclose(length, [np.hypot(0.02, 0.04), np.hypot(0.02, 0.01)], atol=1e-6)
    assert words.text == "z cut to 0.25 m" and 0 < words.lifetime.sec < 10


def test_the_views_show_topics_that_there_are(shown: Client) -> None:
    """Of both viewers: every topic they name is published by this package."""
    graph_page = share_path("docs/reference/graph.md").read_text()
    rviz = yaml.safe_load(share_path("config/view.rviz").read_text())["Visualization Manager"]
    named = {d[key]["Value"] for d in rviz["Displays"] for key in ("Topic", "Description Topic") if key in d}
    layout = json.loads(share_path("config/foxglove.json").read_text())["configById"]
    named |= {topic.strip("/") for topic in layout["3D!arm"]["topics"]}
    named |= {path["value"].strip("/").split(".")[0] for path in layout["Plot!step"]["paths"]}
    named |= {layout["Image!camera"]["imageMode"][key].strip("/") for key in ("imageTopic", "calibrationTopic")}
    assert {"markers", "target_pose", "robot_description", "image_raw", "camera_info"} <= named
    assert not [name for name in named if f"`{name}`" not in graph_page], named
