"""The tree of frames is the kinematics', its shapes are the guard's, and the URDF says the same."""
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from world_gymnast_ros.robot import clearance, description, kinematics

RNG = np.random.default_rng(3)
POSES = [kinematics.HOME, kinematics.NEUTRAL, kinematics.SLEEP,
         *RNG.uniform(kinematics.JOINT_LOWER_RAD, kinematics.JOINT_UPPER_RAD, (5, 6))]


def frames(pairs: list[tuple[str, str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return T_base_link of every link, from transforms between neighbours in any order."""
    found, left = {"base_link": np.eye(4)}, list(pairs)
    while left:
        ready = [pair for pair in left if pair[0] in found]
        assert ready, f"no way from base_link to {[pair[1] for pair in left]}"
        for parent, child, T in ready:
            assert child not in found, f"{child} has two parents"
            found[child] = found[parent] @ T
        left = [pair for pair in left if pair[1] not in found]
    return found


@pytest.mark.parametrize("joints", POSES)
def test_the_end_effector_is_where_the_kinematics_has_it(joints: np.ndarray) -> None:
    found = frames([*description.moving(joints, 0.02), *description.still()])
    assert set(found) == set(description.LINKS)
    np.testing.assert_allclose(found["ee_gripper_link"], kinematics.fk(joints), atol=1e-9)


@pytest.mark.parametrize("joints", POSES)
def test_the_shapes_in_the_urdf_are_the_capsules_that_the_guard_keeps_clear(joints: np.ndarray) -> None:
    robot, finger_m = ET.fromstring(description.urdf("left/")), 0.03
    found = frames([*description.moving(joints, finger_m), *description.still()])
    drawn = []
    for link in robot.iter("link"):
        T = found[link.get("name").removeprefix("left/")]
        for visual in link.iter("visual"):
            if visual.find("geometry/sphere") is not None:
                at = np.array([float(v) for v in visual.find("origin").get("xyz").split()])
                drawn.append((*(T[:3, :3] @ at + T[:3, 3]), float(visual.find("geometry/sphere").get("radius"))))
    capsules = zip(clearance.capsules(joints, finger_m), clearance.RADII_M, strict=True)
    wanted = [(*end, radius) for ends, radius in capsules for end in ends]
    assert len(drawn) == len(wanted) == 22
    np.testing.assert_allclose(sorted(np.round(drawn, 5).tolist()), sorted(np.round(wanted, 5).tolist()), atol=2e-5)


def test_cylinders_lie_between_their_spheres_and_joints_have_their_limits() -> None:
    robot = ET.fromstring(description.urdf(""))
    for link in robot.iter("link"):
        shapes = link.findall("visual")
        for first, second, tube in zip(*[iter(shapes)] * 3, strict=True):
            a, b, middle = (np.array([float(v) for v in s.find("origin").get("xyz").split()])
                            for s in (first, second, tube))
            np.testing.assert_allclose((a + b) / 2, middle, atol=2e-6)
            assert float(tube.find("geometry/cylinder").get("length")) == pytest.approx(np.linalg.norm(b - a), abs=1e-4)
    limits = {j.get("name"): j.find("limit") for j in robot.iter("joint") if j.get("type") == "revolute"}
    assert list(limits) == list(kinematics.JOINT_NAMES)
    for row, limit in enumerate(limits.values()):
        assert float(limit.get("lower")) == pytest.approx(kinematics.JOINT_LOWER_RAD[row], abs=1e-6)
        assert float(limit.get("upper")) == pytest.approx(kinematics.JOINT_UPPER_RAD[row], abs=1e-6)


def test_a_prefix_stands_before_every_link_and_no_joint() -> None:
    robot = ET.fromstring(description.urdf("wx250s/"))
    assert all(link.get("name").startswith("wx250s/") for link in robot.iter("link"))
    assert {joint.get("name") for joint in robot.iter("joint")} >= set(kinematics.JOINT_NAMES)
