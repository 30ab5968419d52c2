"""The motors' time profile: its shape, what happens at a new goal under way, and the guard's use of it."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from world_gymnast_ros.control.guard import GuardInputs, GuardState, guard, hold, remember
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.robot.actions import pose_from_state
from world_gymnast_ros.robot.kinematics import MAX_JOINT_SPEED_RAD_S, NEUTRAL, fk, ik
from world_gymnast_ros.robot.motion_profile import (
    after,
    at_rest,
    cruise_bounds,
    cruise_speed,
    goal_of,
    peak_acceleration,
    state_at,
)
from world_gymnast_ros.types import ArmState, Verdict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from fuzz_guard import Motors

MOVING_S, ACCEL_S, DT_NS = 0.25, 0.10, 200_000_000
CONFIG = SafetyConfig()
OVER_TABLE = ik(pose_from_state(np.array([0.3, 0, 0.15, 0, 0, 0, 1.0])), NEUTRAL)


def test_a_goal_from_rest_is_a_trapezoid() -> None:
    """0.15 rad: 10 rad/s2 for 0.1 s, 1 rad/s for 0.05 s, and the same down."""
    profile = after(at_rest(np.zeros(6)), np.full(6, 0.15), 0, MOVING_S, ACCEL_S)
    for at_s, position, speed in ((0.05, 0.0125, 0.5), (0.1, 0.05, 1.0), (0.125, 0.075, 1.0), (0.2, 0.1375, 0.5),
                                  (0.25, 0.15, 0.0), (9.0, 0.15, 0.0)):
        found = state_at(profile, round(at_s * 1e9), MOVING_S, ACCEL_S)
        assert [v[0] for v in found] == pytest.approx([position, speed], abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-1.0, 1.0), st.integers(5, 400)), min_size=2, max_size=6))
def test_at_a_new_goal_neither_place_nor_speed_jump_and_it_arrives(goals: list[tuple[float, int]]) -> None:
    """Sampled every millisecond: the position is the integral of a speed whose slope never exceeds what is told."""
    profile, now_ns, told = at_rest(np.zeros(6)), 0, 0.0
    places, speeds = [np.zeros(6)], [np.zeros(6)]
    for goal, wait_ms in [*goals, (0.3, 400)]:
        _, speed = state_at(profile, now_ns, MOVING_S, ACCEL_S)
        profile = after(profile, np.full(6, goal), now_ns, MOVING_S, ACCEL_S)
        cruise = cruise_speed(profile.position, profile.speed, profile.goal, MOVING_S, ACCEL_S)
        np.testing.assert_allclose(goal_of(profile.position, profile.speed, cruise, MOVING_S, ACCEL_S), goal,
                                   atol=1e-12)
        told = max(told, float(peak_acceleration(speed, cruise, MOVING_S, ACCEL_S).max()))
        for _ in range(wait_ms):
            now_ns += 1_000_000
            place, speed = state_at(profile, now_ns, MOVING_S, ACCEL_S)
            places.append(place)
            speeds.append(speed)
    slopes = np.diff(speeds, axis=0) / 1e-3
    assert np.abs(slopes).max() <= told + 1e-6
    np.testing.assert_allclose(np.diff(places, axis=0), (np.array(speeds[1:]) + speeds[:-1]) / 2e3, atol=told * 1e-6)
    np.testing.assert_allclose(places[-1], 0.3, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.floats(-3.0, 3.0), st.floats(0.5, 60.0), st.floats(0.0, 1.0))
def test_within_the_bounds_both_limits_hold_and_at_them_one_is_used_up(begin: float, most: float, part: float) -> None:
    speed = np.full(6, begin)
    slow, fast = cruise_bounds(speed, MAX_JOINT_SPEED_RAD_S, most, MOVING_S, ACCEL_S)
    if (slow > fast).any():  # too fast to be stopped within the limit: no goal is allowed
        assert abs(begin) > 2 * most * ACCEL_S - 1e-9
        return
    cruise = slow + part * (fast - slow)
    assert np.abs(cruise).max() <= np.pi + 1e-9
    assert peak_acceleration(speed, cruise, MOVING_S, ACCEL_S).max() <= most + 1e-9
    beyond = fast + 1e-3
    assert beyond.max() > np.pi or peak_acceleration(speed, beyond, MOVING_S, ACCEL_S).max() > most


def turn(delta: float, memory: GuardState, joints: np.ndarray, now_ns: int, config: SafetyConfig) -> tuple:
    arm = ArmState(fk(joints), joints, np.zeros(6), np.zeros(6), 1.0, now_ns)
    inputs = GuardInputs(arm, 0.01, 0.1, now_ns)
    command = guard(np.array([0, 0, 0, 0, 0, delta, 1.0]), memory, inputs, config)
    return command, remember(memory, command, inputs, config)


def test_a_step_against_the_motion_is_shortened_to_the_acceleration_limit() -> None:
    config = SafetyConfig(max_joint_acceleration_rad_s2=20.0)
    forth, memory = turn(0.25, GuardState(), OVER_TABLE, 0, config)
    assert forth.verdict is Verdict.OK  # from rest: 0.25 / 0.15 / 0.1 = 17 rad/s2
    back, _ = turn(-0.25, memory, forth.joints, DT_NS, config)
    assert back.verdict is Verdict.CLAMPED
    assert "joint wrist_rotate would be accelerated by 2" in back.reason and "limit 20.0 rad/s2" in back.reason
    motors = Motors(OVER_TABLE, config)
    assert motors.go(forth.joints, 0)[1] == pytest.approx(0.25 / 0.15 / 0.1, rel=1e-3)
    assert 18.0 < motors.go(back.joints, DT_NS)[1] <= 20.0 + 1e-6
    rested, _ = turn(-0.25, memory, forth.joints, 10 * DT_NS, config)  # the same, once the arm is at rest
    assert rested.verdict is Verdict.OK


def test_a_hold_is_part_of_the_motion_too() -> None:
    """It is sent whatever acceleration it takes; what comes after it starts from what the motors then do."""
    config, moved = SafetyConfig(max_joint_acceleration_rad_s2=20.0), OVER_TABLE + 0.2 * np.eye(6)[5]
    forth, memory = turn(0.25, GuardState(), OVER_TABLE, 0, config)
    arm = ArmState(fk(moved), moved, np.zeros(6), np.zeros(6), 1.0, 0)
    inputs = GuardInputs(arm, 0.01, 0.1, DT_NS // 2)
    stopped = hold(memory, inputs, config, "stop")
    memory = remember(memory, stopped, inputs, config)
    assert memory.profile is not None and memory.profile.start_ns == DT_NS // 2
    np.testing.assert_allclose(memory.profile.goal, moved)
    assert np.abs(memory.profile.speed).max() > 1.0  # it was under way
    unknown = remember(memory, hold(GuardState(), GuardInputs(None, 9.0, 9.0, 0), config, "blind"), inputs, config)
    assert unknown.profile is memory.profile  # nothing was sent
    assert forth.verdict is Verdict.OK
