"""Kinematics of the WidowX 250s against published vectors and an independent model built from the link offsets."""
from __future__ import annotations

import time

import numpy as np
import pinocchio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.robot.actions import bridge_state, matrix_to_rpy, pose_from_state, rpy_to_matrix
from world_gymnast_ros.robot.kinematics import (
    HOME,
    JOINT_LOWER_RAD,
    JOINT_UPPER_RAD,
    NEUTRAL,
    SLEEP,
    fk,
    ik,
)

SCREW_AXES = np.array([  # (6, 6): (wx wy wz vx vy vz) per joint at home, base axes: T = exp(S1 q1) ... exp(S6 q6) M
    [0, 0, 1, 0, 0, 0],
    [0, 1, 0, -0.11065, 0, 0],
    [0, 1, 0, -0.36065, 0, 0.04975],
    [1, 0, 0, 0, 0.36065, 0],
    [0, 1, 0, -0.36065, 0, 0.29975],
    [1, 0, 0, 0, 0.36065, 0],
])
HOME_POSE = np.array([[1, 0, 0, 0.458325], [0, 1, 0, 0], [0, 0, 1, 0.36065], [0, 0, 0, 1]])  # M
SIMPLER_STANDARD = np.array([-0.01840777, 0.0398835, 0.22242722, -0.00460194, 1.36524296, 0.00153398])
SIMPLER_SINK = np.array([-0.2600599, -0.12875618, 0.04461369, -0.00652761, 1.7033415, -0.26983038])
PI_HALF = 1.570796

VECTORS = {  # joints, position, Bridge rpy, raw rpy
    "home": (HOME, (0.458325, 0, 0.36065), (0, -PI_HALF, 0), (0, 0, 0)),
    "sleep": (SLEEP, (0.122652, 0, 0.081264), (0, -1.020796, 0), (0, 0.55, 0)),
    "neutral": (NEUTRAL, (0.120201, -0.019085, 0.246696), (-0.039938, -0.127238, 0.025181),
                (-0.302527, 1.437470, -0.279890)),
    "simpler": (SIMPLER_STANDARD, (0.292069, -0.006091, 0.135321), (-0.004539, 0.056753, -0.019003),
                (-3.061872, 1.513863, -3.080747)),
    "sink": (SIMPLER_SINK, (0.249719, -0.067508, 0.227593), (0.006636, 0.048383, 0.009225),
             (3.005404, 1.521961, 3.014468)),
}


def oracle() -> pinocchio.Model:
    """The arm as pinocchio builds it from the URDF's parent-to-child offsets, which `kinematics` does not use."""
    model = pinocchio.Model()
    links = [("RZ", (0, 0, 0.072)), ("RY", (0, 0, 0.03865)), ("RY", (0.04975, 0, 0.25)), ("RX", (0.175, 0, 0)),
             ("RY", (0.075, 0, 0)), ("RX", (0.065, 0, 0))]
    parent = 0
    for i, (kind, offset) in enumerate(links):
        joint = getattr(pinocchio, f"JointModel{kind}")()
        parent = model.addJoint(parent, joint, pinocchio.SE3(np.eye(3), np.array(offset, float)), f"joint{i}")
    tip = pinocchio.SE3(np.eye(3), np.array([0.043 + 0.023 + 0.027575, 0, 0]))
    model.addFrame(pinocchio.Frame("ee", parent, 0, tip, pinocchio.FrameType.OP_FRAME))
    return model


def random_joints(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(JOINT_LOWER_RAD, JOINT_UPPER_RAD, (count, 6))


def pose_error(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Distance in m and angle in rad between two poses (the angle from the sine, exact for small ones)."""
    R = a[:3, :3].T @ b[:3, :3]
    sine = np.linalg.norm([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) / 2
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3])), float(np.arctan2(sine, (np.trace(R) - 1) / 2))


@pytest.mark.parametrize("name", VECTORS)
def test_published_vectors(name: str) -> None:
    joints, position, bridge_rpy, raw_rpy = VECTORS[name]
    T = fk(joints)
    np.testing.assert_allclose(T[:3, 3], position, atol=1e-6)
    np.testing.assert_allclose(bridge_state(T, 1.0)[3:6], bridge_rpy, atol=1e-6)
    np.testing.assert_allclose(matrix_to_rpy(T[:3, :3]), raw_rpy, atol=1e-6)


def test_fk_equals_the_product_of_exponentials() -> None:
    for joints in random_joints(200, 1):
        T = np.eye(4)
        for screw, angle in zip(SCREW_AXES, joints, strict=True):
            w = pinocchio.Motion(screw[3:] * angle, screw[:3] * angle)
            T = T @ pinocchio.exp6(w).homogeneous
        np.testing.assert_allclose(fk(joints), T @ HOME_POSE, atol=1e-12)


def test_fk_equals_an_independent_model() -> None:
    model = oracle()
    data = model.createData()
    for joints in random_joints(500, 2):
        pinocchio.framesForwardKinematics(model, data, joints)
        T = fk(joints)
        np.testing.assert_allclose(T, data.oMf[1].homogeneous, atol=1e-9)


def test_ik_published_vectors() -> None:
    down = ik(pose_from_state(np.array([0.3, 0, 0.15, 0, 0, 0, 1.0])), NEUTRAL)
    np.testing.assert_allclose(down, [0, 0.022012, 0.183101, 0, 1.365683, 0], atol=1e-6)
    pitch = -np.arctan2(0.267, 0.963)  # OpenVLA's start
    start = ik(pose_from_state(np.array([0.3, -0.09, 0.26, 0, pitch, 0, 1.0])), NEUTRAL)
    np.testing.assert_allclose(start, [-0.336083, -0.087540, -0.108791, 0.088384, 1.511356, -0.329984], atol=2e-6)


def test_ten_thousand_reachable_poses_round_trip() -> None:
    rng = np.random.default_rng(3)
    worst_m = worst_rad = 0.0
    for joints in random_joints(10_000, 4):
        T = fk(joints)
        solution = ik(T, np.clip(joints + rng.normal(0.0, 0.3, 6), JOINT_LOWER_RAD, JOINT_UPPER_RAD))
        assert (solution >= JOINT_LOWER_RAD - 1e-6).all() and (solution <= JOINT_UPPER_RAD + 1e-6).all()
        distance, angle = pose_error(fk(solution), T)
        worst_m, worst_rad = max(worst_m, distance), max(worst_rad, angle)
    assert worst_m < 1e-6 and worst_rad < 1e-6


def test_the_solution_nearest_to_the_seed_is_returned() -> None:
    for joints in random_joints(500, 5):
        if abs(joints[4]) > 1e-3:  # a straight wrist has a whole line of solutions
            np.testing.assert_allclose(ik(fk(joints), joints), joints, atol=1e-6)


def test_a_path_of_small_steps_has_no_jumps() -> None:
    """Along a straight line over the table the joints move smoothly: no change of branch."""
    joints = ik(pose_from_state(np.array([0.2, -0.1, 0.1, 0, 0, 0, 1.0])), NEUTRAL)
    for s in np.linspace(0.0, 1.0, 200):
        state = np.array([0.2 + 0.15 * s, -0.1 + 0.3 * s, 0.1, 0.2 * s, -0.2 * s, s, 1.0])
        following = ik(pose_from_state(state), joints)
        assert np.abs(following - joints).max() < 0.05
        joints = following


@pytest.mark.parametrize("joints", [HOME, SLEEP, np.array([0.4, 0.2, -0.3, 1.1, 0.0, -0.7])])
def test_straight_wrist_keeps_the_seed(joints: np.ndarray) -> None:
    np.testing.assert_allclose(ik(fk(joints), joints), joints, atol=1e-6)


def test_wrist_over_the_waist_axis_keeps_the_waist() -> None:
    """Straight up: the wrist point lies on the waist axis and any waist angle would do."""
    upper_tilt = np.arctan2(0.04975, 0.25)
    joints = np.array([0.9, -upper_tilt, upper_tilt - np.pi / 2, 0.0, 0.5, 0.0])
    np.testing.assert_allclose(ik(fk(joints), joints), joints, atol=1e-6)


@pytest.mark.parametrize(("state", "words"), [
    ((0.8, 0, 0.15, 0, 0, 0, 1), ("too far", "0.504902")),
    ((0.0, 0, 0.11065 - 0.158575, 0, 0, 0, 1), ("too close", "0.004902")),
    ((0.3, 0, 0.3, 0, 0.6, 0, 1), ("wrist_angle", "2.808", "limit 2.146755 rad")),
])
def test_unreachable_names_the_cause(state: tuple[float, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(Unreachable) as caught:
        ik(pose_from_state(np.array(state, float)), NEUTRAL)
    assert all(word in str(caught.value) for word in words), caught.value


def test_limits_are_kept_to_the_last_digit() -> None:
    """Just inside a limit is reachable; just outside is refused and the joint is named."""
    base = np.array([0.1, 0.2, 0.3, 0.0, 2.146755, 0.0])
    np.testing.assert_allclose(ik(fk(base), base), base, atol=1e-6)
    beyond = base + np.array([0, 0, 0, 0, 1e-4, 0])
    with pytest.raises(Unreachable, match=r"wrist_angle would be at 2\.1468\d+ rad, limit 2\.146755"):
        ik(fk(beyond), beyond)


def test_refuses_what_is_no_pose() -> None:
    for T in (np.full((4, 4), np.nan), np.zeros((4, 4)), np.eye(3), np.diag([1.0, 1.0, -1.0, 1.0])):
        with pytest.raises(Unreachable):
            ik(T, NEUTRAL)
    with pytest.raises(Unreachable, match="seed"):
        ik(fk(NEUTRAL), np.full(6, np.inf))


@settings(max_examples=300, deadline=None)
@given(st.tuples(*[st.floats(-1, 1)] * 3), st.tuples(*[st.floats(-4, 4)] * 3), st.tuples(*[st.floats(-3.2, 3.2)] * 6))
def test_any_pose_is_reached_exactly_or_refused(
    position: tuple[float, ...], rpy: tuple[float, ...], seed: tuple[float, ...]
) -> None:
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = rpy_to_matrix(np.array(rpy)), position
    try:
        joints = ik(T, np.array(seed))
    except Unreachable:
        return
    distance, angle = pose_error(fk(joints), T)
    assert distance < 1e-6 and angle < 1e-6
    assert (joints >= JOINT_LOWER_RAD - 1e-6).all() and (joints <= JOINT_UPPER_RAD + 1e-6).all()


def test_ik_takes_less_than_a_millisecond() -> None:
    poses = [fk(joints) for joints in random_joints(500, 6)]
    begin = time.thread_time()  # this thread's own time: a busy machine must not fail the test
    for T in poses:
        ik(T, NEUTRAL)
    assert (time.thread_time() - begin) / len(poses) < 1e-3
