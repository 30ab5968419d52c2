"""Action algebra: golden cases of the Bridge convention, step limits, drift, and the dream's integrator."""
from __future__ import annotations

import numpy as np
import pytest

from world_gymnast_ros.errors import BadAction, BadConfig
from world_gymnast_ros.robot.actions import (
    D_GRIPPER_DOWN,
    WORKSPACES,
    StepLimits,
    Workspace,
    apply_delta,
    bridge_state,
    clip_delta,
    gripper_is_open,
    integrate_states,
    matrix_to_rpy,
    pose_from_state,
    rpy_to_matrix,
)

LIMITS = StepLimits()
DOWN = pose_from_state(np.array([0.3, 0.0, 0.15, 0.0, 0.0, 0.0, 1.0]))


def about(axis: str, angle: float) -> np.ndarray:
    """An independent rotation matrix about a base axis."""
    c, s = np.cos(angle), np.sin(angle)
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


@pytest.mark.parametrize(("index", "axis"), [(3, "x"), (4, "y"), (5, "z")])
def test_one_angle_turns_about_its_own_base_axis_only(index: int, axis: str) -> None:
    """A roll-only command rolls and does not yaw, with the gripper down, where raw rpy would confuse the two."""
    delta = np.zeros(7)
    delta[index] = 0.2
    T = apply_delta(DOWN, DOWN, delta)
    np.testing.assert_allclose(T[:3, :3], about(axis, 0.2) @ DOWN[:3, :3], atol=1e-12)
    np.testing.assert_allclose(T[:3, 3], DOWN[:3, 3], atol=1e-12)
    expected = np.zeros(3)
    expected[index - 3] = 0.2
    np.testing.assert_allclose(bridge_state(T, 1.0)[3:6], expected, atol=1e-6)


def test_gripper_down_points_the_hand_at_the_table() -> None:
    np.testing.assert_allclose(DOWN[:3, 0], [0.0, 0.0, -1.0], atol=1e-12)  # the hand's x axis runs along the fingers
    np.testing.assert_allclose(bridge_state(DOWN, 0.4), [0.3, 0, 0.15, 0, 0, 0, 0.4], atol=1e-6)
    np.testing.assert_allclose(D_GRIPPER_DOWN @ D_GRIPPER_DOWN.T, np.eye(3), atol=0)


def test_openvla_start_pose_is_a_pitch_of_minus_15_5_degrees() -> None:
    T = np.eye(4)
    T[:3, :3] = [[0.267, 0, 0.963], [0, 1, 0], [-0.963, 0, 0.267]]
    T[:3, 3] = [0.3, -0.09, 0.26]
    np.testing.assert_allclose(bridge_state(T, 1.0)[3:6], [0.0, -0.2705, 0.0], atol=2e-4)


def test_rotation_pivots_at_the_measured_position_not_at_the_target() -> None:
    measured = DOWN.copy()
    measured[:3, 3] -= [0.02, 0.0, 0.0]  # the arm lags 2 cm behind its target
    T = apply_delta(DOWN, measured, np.array([0.01, 0, 0, 0, 0, np.pi / 2, 1.0]))
    # The lead of 2 cm along x is turned by 90 degrees to y, about the measured point; then dx is added.
    np.testing.assert_allclose(T[:3, 3], measured[:3, 3] + [0.01, 0.02, 0.0], atol=1e-12)


def test_translation_builds_on_the_previous_target() -> None:
    measured = DOWN.copy()
    measured[:3, 3] -= [0.02, 0.01, 0.0]
    T = apply_delta(DOWN, measured, np.array([0.01, 0, -0.02, 0, 0, 0, 1.0]))
    np.testing.assert_allclose(T[:3, 3], DOWN[:3, 3] + [0.01, 0, -0.02], atol=1e-12)


def test_adding_rpy_would_be_wrong() -> None:
    """The composed rotation differs from the sum of angles, so this suite would notice a shortcut."""
    start = pose_from_state(np.array([0.3, 0, 0.15, 0.3, -0.5, 0.8, 1.0]))
    state = bridge_state(apply_delta(start, start, np.array([0, 0, 0, 0.2, 0.2, 0.2, 1.0])), 1.0)
    assert np.abs(state[3:6] - np.array([0.5, -0.3, 1.0])).max() > 0.02


def test_a_thousand_steps_do_not_drift() -> None:
    """Not from the exact product, and not from orthonormality, even if the target once went through float32."""
    rng = np.random.default_rng(0)
    T = pose_from_state(np.array([0.3, 0, 0.15, 0.3, -0.5, 0.8, 1.0]))
    exact = T[:3, :3].copy()
    T = T.astype(np.float32).astype(np.float64)
    assert np.abs(T[:3, :3] @ T[:3, :3].T - np.eye(3)).max() > 1e-9
    for _ in range(1000):
        delta = rng.uniform(-0.25, 0.25, 7)
        T = apply_delta(T, T, delta)
        exact = rpy_to_matrix(delta[3:6]) @ exact
    assert np.abs(T[:3, :3] @ T[:3, :3].T - np.eye(3)).max() < 1e-14
    assert np.abs(T[:3, :3] - exact).max() < 1e-6


def test_rpy_round_trip_and_gimbal_lock() -> None:
    rng = np.random.default_rng(1)
    rpy = rng.uniform([-np.pi, -1.57, -np.pi], [np.pi, 1.57, np.pi], (2000, 3))
    np.testing.assert_allclose(matrix_to_rpy(rpy_to_matrix(rpy)), rpy, atol=1e-9)
    R = rpy_to_matrix(np.array([0.3, 0.1, -0.2]))
    np.testing.assert_allclose(R, about("z", -0.2) @ about("y", 0.1) @ about("x", 0.3), atol=1e-15)
    locked = rpy_to_matrix(np.array([0.4, np.pi / 2, 0.1]))
    np.testing.assert_allclose(rpy_to_matrix(matrix_to_rpy(locked)), locked, atol=1e-9)


def test_states_round_trip_in_batches() -> None:
    rng = np.random.default_rng(2)
    states = rng.uniform([0.1, -0.2, 0, -1, -1, -1, 0], [0.4, 0.2, 0.3, 1, 1, 1, 1], (4, 5, 7)).astype(np.float32)
    poses = pose_from_state(states)
    assert poses.shape == (4, 5, 4, 4)
    back = bridge_state(poses, states[..., 6])
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, states, atol=1e-6)


def test_clip_is_per_axis_then_by_norm() -> None:
    out = clip_delta(np.array([1.0, 0.005, 0.0, 9.0, -9.0, 0.1, 1.7], np.float32), LIMITS)
    assert out.dtype == np.float32
    assert np.linalg.norm(out[:3]) == pytest.approx(0.05, abs=1e-7)
    assert out[0] / out[1] == pytest.approx(10.0, rel=1e-5)  # of the boxed 0.05, not of the wild 1.0
    np.testing.assert_allclose(out[3:], [0.25, -0.25, 0.1, 1.0])
    diagonal = clip_delta(np.full((2, 3, 7), 0.05), LIMITS)
    np.testing.assert_allclose(np.linalg.norm(diagonal[..., :3], axis=-1), 0.05, atol=1e-12)
    small = np.array([0.01, -0.02, 0.03, 0.1, -0.2, 0.2, 0.0])
    np.testing.assert_array_equal(clip_delta(small, LIMITS), small)


def test_clip_copies_and_refuses_what_no_clip_can_mend() -> None:
    delta = np.full(7, 9.0)
    clip_delta(delta, LIMITS)
    assert (delta == 9.0).all()
    for bad in (np.full(7, np.nan), np.array([0, 0, np.inf, 0, 0, 0, 1.0]), np.zeros(6)):
        with pytest.raises(BadAction):
            clip_delta(bad, LIMITS)


@pytest.mark.parametrize("workspace", [None, WORKSPACES["bridge"]])
def test_integrate_states_equals_sequential_apply_delta(workspace: Workspace | None) -> None:
    rng = np.random.default_rng(3)
    states = rng.uniform([0.1, -0.15, 0, -1, -1, -1, 0], [0.45, 0.25, 0.25, 1, 1, 1, 1], (16, 7)).astype(np.float32)
    poses = [pose_from_state(s) for s in states]
    for _ in range(20):
        deltas = rng.normal(0.0, 0.05, (16, 7)).astype(np.float32)
        states = integrate_states(states, deltas, LIMITS, workspace)
        for i, delta in enumerate(deltas):
            poses[i] = apply_delta(poses[i], poses[i], clip_delta(delta, LIMITS))
            if workspace is not None:
                poses[i][:3, 3] = workspace.clip(poses[i][:3, 3])
    assert states.shape == (16, 7) and states.dtype == np.float32
    np.testing.assert_allclose(pose_from_state(states), np.stack(poses), atol=1e-5)  # twenty float32 roundings


def test_gripper_threshold() -> None:
    assert gripper_is_open(0.51) is True and gripper_is_open(0.5) is False
    np.testing.assert_array_equal(gripper_is_open(np.array([0.0, 0.4, 0.6, 1.1])), [False, False, True, True])
    assert gripper_is_open(float("nan")) is False


def test_bad_limits_name_value_and_range() -> None:
    with pytest.raises(BadConfig, match=r"max_step_m is 0\.5"):
        StepLimits(max_step_m=0.5)
    with pytest.raises(BadConfig, match="max_step_rad"):
        StepLimits(max_step_rad=float("nan"))
    with pytest.raises(BadConfig, match="Workspace y"):
        Workspace((0, 1, 0), (1, 0, 1))
    with pytest.raises(BadConfig, match="3 numbers"):
        Workspace((0, 0), (1, 1))
    place = np.array([0.3, -0.09, 0.26])
    assert (WORKSPACES["openvla"].clip(place) == place).all() and (WORKSPACES["bridge"].clip(place) != place).any()
