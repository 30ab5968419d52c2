"""The guard: every check in turn, what it promises about any command, and that nothing makes it raise."""
from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from world_gymnast_ros.control.guard import GuardInputs, GuardState, guard, hold, remember
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.robot.actions import D_GRIPPER_DOWN, WORKSPACES, apply_delta, pose_from_state
from world_gymnast_ros.robot.kinematics import JOINT_LOWER_RAD, JOINT_UPPER_RAD, NEUTRAL, SLEEP, fk, ik
from world_gymnast_ros.types import ArmCommand, ArmState, Verdict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from capsule_arm import CapsuleArm
from fuzz_guard import Motors, check_clearance, check_promises, fuzz, fuzz_player

CONFIG = SafetyConfig()
OVER_TABLE = ik(pose_from_state(np.array([0.3, 0, 0.15, 0, 0, 0, 1.0])), NEUTRAL)


def arm_at(joints: Any, efforts: Any = None, gripper: float = 1.0) -> ArmState:
    joints = np.asarray(joints, np.float64)
    efforts = np.zeros(6) if efforts is None else np.asarray(efforts, np.float64)
    return ArmState(fk(joints), joints, np.zeros(6), efforts, gripper, 0)


def inputs_at(joints: Any = OVER_TABLE, **changes: Any) -> GuardInputs:
    return replace(GuardInputs(arm_at(joints), arm_age_s=0.01, frame_age_s=0.2, now_ns=10**9), **changes)


def move(*values: float) -> np.ndarray:
    return np.array([*values, *[0.0] * (6 - len(values)), 1.0])


def test_an_ordinary_step_is_sent_as_asked() -> None:
    delta = move(0.01, -0.02, 0.01, 0.1, 0.05, -0.1)
    command = guard(delta, GuardState(), inputs_at(), CONFIG)
    assert command.verdict is Verdict.OK and command.reason == ""
    T = fk(OVER_TABLE)
    np.testing.assert_allclose(command.T_base_target, apply_delta(T, T, delta), atol=1e-12)
    np.testing.assert_allclose(fk(command.joints), command.T_base_target, atol=1e-9)
    np.testing.assert_array_equal(command.sent, delta.astype(np.float32))
    np.testing.assert_array_equal(command.requested, delta.astype(np.float32))


def test_the_step_builds_on_the_last_target_not_on_the_lagging_arm() -> None:
    T_target = fk(OVER_TABLE)
    T_target[:3, 3] += [0.02, 0, 0]
    command = guard(move(0.01), GuardState(T_target=T_target), inputs_at(), CONFIG)
    assert command.verdict is Verdict.OK
    assert command.T_base_target[0, 3] == pytest.approx(0.33, abs=1e-9)


def test_too_large_a_step_is_clamped_to_the_box() -> None:
    command = guard(move(1.0, 0, 0, 0, 0, -2.0), GuardState(), inputs_at(), CONFIG)
    assert command.verdict is Verdict.CLAMPED and "step limited" in command.reason
    np.testing.assert_allclose(command.sent, move(0.05, 0, 0, 0, 0, -0.25), atol=1e-7)


@pytest.mark.parametrize(("changes", "words"), [
    ({"arm": None}, "no arm state"),
    ({"arm_age_s": 0.5}, "0.500 s old, limit 0.25"),
    ({"arm_age_s": -1.0}, "old"),
    ({"arm_age_s": float("nan")}, "old"),
    ({"frame_age_s": 9.0}, "9.000 s old, limit 3.0"),
    ({"frame_age_s": -2.0}, "frame"),
    ({"arm": arm_at(OVER_TABLE, [0, -1800, 0, 0, 0, 0])}, "effort of shoulder is 1800, limit 1700"),
    ({"arm": arm_at(OVER_TABLE, [np.nan] * 6)}, "require_effort"),
])
def test_unusable_inputs_hold(changes: dict[str, Any], words: str) -> None:
    memory = GuardState(good_joints=OVER_TABLE, good_ns=10**9, gripper=0.0)
    command = guard(move(0.02), memory, inputs_at(**changes), CONFIG)
    assert command.verdict is Verdict.HOLD and words in command.reason
    np.testing.assert_allclose(command.joints, OVER_TABLE, atol=1e-12)
    np.testing.assert_array_equal(command.sent, np.zeros(7))
    assert command.gripper == 0.0  # what is held is not dropped


@pytest.mark.parametrize("bad", [None, "go", [], np.zeros(6), [0.0] * 6 + [float("nan")], np.full(7, np.inf), object()])
def test_an_unusable_request_holds(bad: object) -> None:
    command = guard(bad, GuardState(), inputs_at(), CONFIG)
    assert command.verdict is Verdict.HOLD and "7 finite numbers" in command.reason
    np.testing.assert_allclose(command.joints, OVER_TABLE, atol=1e-12)


def test_missing_effort_may_be_allowed() -> None:
    config = SafetyConfig(require_effort=False)
    blind = inputs_at(arm=arm_at(OVER_TABLE, [np.nan] * 6))
    assert guard(move(0.01), GuardState(), blind, config).verdict is Verdict.OK
    one = inputs_at(arm=arm_at(OVER_TABLE, [np.nan, np.nan, -1100, 0, 0, 0]))
    assert "elbow" in guard(move(0.01), GuardState(), one, config).reason


def test_a_hardware_error_stops() -> None:
    command = guard(move(0.01), GuardState(), inputs_at(hardware_errors=(0, 0, 32)), CONFIG)
    assert command.verdict is Verdict.STOP and "32" in command.reason
    np.testing.assert_allclose(command.joints, OVER_TABLE, atol=1e-12)


def test_a_failed_bus_read_is_not_motion() -> None:
    """The driver then reports about -pi everywhere with a fresh stamp: hold the last good joints."""
    memory = GuardState(good_joints=OVER_TABLE, good_ns=10**9)
    command = guard(move(0.01), memory, inputs_at(np.full(6, -np.pi)), CONFIG)
    assert command.verdict is Verdict.HOLD and "servo bus" in command.reason
    np.testing.assert_allclose(command.joints, OVER_TABLE)
    jump = inputs_at(OVER_TABLE + np.array([0.8, 0, 0, 0, 0, 0]), now_ns=10**9 + 20_000_000)
    command = guard(move(0.01), memory, jump, CONFIG)
    assert command.verdict is Verdict.HOLD and "jumped" in command.reason
    np.testing.assert_allclose(command.joints, OVER_TABLE)


def test_without_any_position_it_stops_and_gives_none() -> None:
    command = guard(move(0.01), GuardState(), inputs_at(arm=None), CONFIG)
    assert command.verdict is Verdict.STOP and "nothing may be sent" in command.reason
    assert np.isnan(command.joints).all()


def test_workspace_keeps_the_target_inside_and_slides_along_the_wall() -> None:
    low = ik(pose_from_state(np.array([0.3, 0, 0.0, 0, 0, 0, 1.0])), NEUTRAL)
    command = guard(move(0.02, 0, -0.03), GuardState(), inputs_at(low), SafetyConfig(table_z_m=-0.1))
    assert command.verdict is Verdict.CLAMPED and "workspace" in command.reason
    np.testing.assert_allclose(command.T_base_target[:3, 3], [0.32, 0, -0.01], atol=1e-9)
    np.testing.assert_allclose(command.sent[:3], [0.02, 0, -0.01], atol=1e-7)


def test_outside_the_workspace_it_may_come_in_but_is_not_thrown_in() -> None:
    config = SafetyConfig(workspace_low_m=WORKSPACES["autoeval_sink"].low_m,
                          workspace_high_m=WORKSPACES["autoeval_sink"].high_m)
    start = fk(NEUTRAL)[:3, 3]  # x = 0.12, the box begins at 0.20
    out = guard(move(-0.03, 0, 0.0), GuardState(), inputs_at(NEUTRAL), config)
    np.testing.assert_allclose(out.T_base_target[:3, 3], start, atol=1e-9)
    back = guard(move(0.03, 0, 0.0), GuardState(), inputs_at(NEUTRAL), config)
    np.testing.assert_allclose(back.T_base_target[:3, 3], start + np.array([0.03, 0, 0]), atol=1e-9)


def test_a_step_that_leaves_reach_is_shortened_along_its_path() -> None:
    far = ik(pose_from_state(np.array([0.44, 0.0, 0.1, 0, 0, 0, 1.0])), NEUTRAL)
    config = SafetyConfig(workspace_high_m=(0.8, 0.4, 0.4))
    command = guard(move(0.05), GuardState(), inputs_at(far), config)
    assert command.verdict is Verdict.CLAMPED and "shortened" in command.reason
    assert 0.0 < command.sent[0] < 0.05
    assert command.T_base_target[0, 3] == pytest.approx(0.44 + command.sent[0], abs=1e-6)
    assert command.T_base_target[1, 3] == pytest.approx(0.0, abs=1e-9)


def test_a_stuck_step_stands_still_but_still_moves_the_gripper() -> None:
    config = SafetyConfig(workspace_high_m=(0.8, 0.4, 0.4))
    memory, joints = GuardState(), ik(pose_from_state(np.array([0.44, 0.0, 0.1, 0, 0, 0, 1.0])), NEUTRAL)
    for _ in range(6):
        command = guard(np.array([0.05, 0, 0, 0, 0, 0, 0.0]), memory, inputs_at(joints), config)
        memory, joints = remember(memory, command, inputs_at(joints), config), command.joints
    assert command.verdict is Verdict.CLAMPED and np.abs(command.sent[:6]).max() < 1e-3
    assert command.gripper == 0.0


def test_joint_margin_is_kept_but_a_rest_pose_inside_it_can_be_left() -> None:
    joints = OVER_TABLE.copy()
    joints[5] = JOINT_UPPER_RAD[5] - 0.05
    turned = guard(move(0, 0, 0, 0, 0, -0.25), GuardState(), inputs_at(joints), CONFIG)
    assert turned.verdict is Verdict.CLAMPED and "wrist_rotate" in turned.reason
    assert turned.joints[5] <= JOINT_UPPER_RAD[5] - CONFIG.joint_margin_rad + 1e-6
    # Asleep, and a motor tick beyond the elbow's limit.
    asleep = SLEEP.copy()
    asleep[2] = JOINT_UPPER_RAD[2] + 0.001
    wide = SafetyConfig(workspace_low_m=(0.0, -0.3, -0.1))
    command = guard(move(0.01, 0, 0.03), GuardState(), inputs_at(asleep), wide)
    assert command.verdict in (Verdict.OK, Verdict.CLAMPED), command.reason
    assert command.joints[2] < JOINT_UPPER_RAD[2] and np.linalg.norm(command.sent[:3]) > 0.005


def test_joint_speed_shortens_the_step() -> None:
    slow = SafetyConfig(joint_speed_factor=0.1)
    command = guard(move(0, 0.05, 0, 0, 0, 0.2), GuardState(), inputs_at(), slow)
    assert command.verdict is Verdict.CLAMPED and "rad in one step" in command.reason
    steps = np.abs(command.joints - OVER_TABLE)
    assert steps.max() <= 0.1 * np.pi * 0.2 + 1e-9
    assert steps.max() > 0.05  # most of what is allowed is used


def test_a_drifted_target_is_seeded_anew() -> None:
    T_target = fk(OVER_TABLE)
    T_target[:3, 3] += [0.08, 0, 0]
    command = guard(move(0.01), GuardState(T_target=T_target), inputs_at(), CONFIG)
    assert command.verdict is Verdict.CLAMPED and "re-seeded" in command.reason
    assert command.T_base_target[0, 3] == pytest.approx(0.31, abs=1e-9)
    turned = fk(OVER_TABLE)
    turned[:3, :3] = pose_from_state(np.array([0.0, 0, 0, 0, 0, 0.6, 1]))[:3, :3]
    assert "re-seeded" in guard(move(0.01), GuardState(T_target=turned), inputs_at(), CONFIG).reason


def test_the_target_does_not_advance_when_nothing_was_sent() -> None:
    """Bridge's own server winds its target up while sends fail; then the arm jumps."""
    memory = remember(GuardState(), guard(move(0.01), GuardState(), inputs_at(), CONFIG), inputs_at(), CONFIG)
    assert memory.T_target is not None
    for _ in range(20):
        command = guard(move(0.05), memory, inputs_at(frame_age_s=60.0), CONFIG)
        assert command.verdict is Verdict.HOLD
        memory = remember(memory, command, inputs_at(), CONFIG)
        assert memory.T_target is None
    command = guard(move(0.01), memory, inputs_at(), CONFIG)
    assert command.verdict is Verdict.OK
    assert command.T_base_target[0, 3] == pytest.approx(0.31, abs=1e-9)


def test_a_long_hold_does_not_creep() -> None:
    """Each hold commands the same joints although the loaded arm is measured a little lower each time."""
    memory, sag = GuardState(), np.array([0, 0.02, 0, 0, 0, 0])
    first = hold(memory, inputs_at(), CONFIG, "waiting")
    joints = first.joints
    for _ in range(50):
        memory = remember(memory, first, inputs_at(), CONFIG)
        first = hold(memory, inputs_at(joints + sag), CONFIG, "waiting")
        joints = first.joints
    np.testing.assert_allclose(joints, OVER_TABLE, atol=1e-12)
    pushed = hold(memory, inputs_at(OVER_TABLE + np.array([0.3, 0, 0, 0, 0, 0])), CONFIG, "waiting")
    assert pushed.joints[0] == pytest.approx(OVER_TABLE[0] + 0.3)


HOSTILE = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.integers(), st.floats(), st.binary(max_size=3),
    st.lists(st.floats(), max_size=8), st.lists(st.floats(width=32), min_size=6, max_size=7).map(np.array),
    st.lists(st.floats(-0.5, 0.5), min_size=7, max_size=7).map(np.array),
    st.just(np.zeros((4, 4))), st.just(np.eye(4)), st.just(np.full((4, 4), np.nan)), st.just({}), st.just(object()),
    st.lists(st.one_of(st.none(), st.text(max_size=2), st.floats()), min_size=6, max_size=7),
)


@settings(max_examples=250, deadline=None)
@given(st.tuples(*[HOSTILE] * 15))
def test_nothing_makes_the_guard_raise(junk: tuple[Any, ...]) -> None:
    """Types are not enforced at run time, so any field may hold anything."""
    memory = GuardState(*junk[:5])
    arm = ArmState(*junk[5:11])
    for candidate in (arm, junk[5], arm_at(OVER_TABLE)):
        command = guard(junk[11], memory, GuardInputs(candidate, *junk[12:15], ()), CONFIG)
        assert isinstance(command, ArmCommand) and bool(command.reason) == (command.verdict is not Verdict.OK)
        assert np.isfinite(command.joints).all() or command.verdict is Verdict.STOP
        inside = (command.joints >= JOINT_LOWER_RAD - 1e-6) & (command.joints <= JOINT_UPPER_RAD + 1e-6)
        assert inside.all() or command.verdict is Verdict.STOP
    broken = guard(junk[11], junk[0], junk[1], junk[2])  # type: ignore[arg-type]
    assert broken.verdict in (Verdict.HOLD, Verdict.STOP)


def test_thousands_of_hostile_steps_keep_every_promise() -> None:
    counts = fuzz(2000, seed=7)
    assert sum(counts.values()) == 2000
    assert all(counts[v] > 50 for v in Verdict), counts  # each verdict was really exercised


def test_thousands_of_hostile_ticks_keep_every_promise() -> None:
    counts = fuzz_player(10_000, seed=3)
    assert all(counts[v] > 5 for v in Verdict), counts


def test_the_promise_checker_can_fail() -> None:
    """The fuzz test is only worth something if a bad command would be noticed."""
    memory, inputs, oracle = GuardState(), inputs_at(), CapsuleArm()
    good = guard(move(0.01), memory, inputs, CONFIG)
    check_promises(good, memory, inputs, CONFIG, oracle)
    for bad in (
        replace(good, joints=good.joints + 0.6), replace(good, joints=good.joints * np.nan),
        replace(good, gripper=2.0), replace(good, verdict=Verdict.CLAMPED, reason=""),
        replace(good, T_base_target=good.T_base_target + 0.1), replace(good, sent=good.sent * 9),
    ):
        with pytest.raises(AssertionError):
            check_promises(bad, memory, inputs, CONFIG, oracle)
    low = OVER_TABLE + np.array([0.0, 0.7, 0.0, 0.0, 0.0, 0.0])  # through the table
    with pytest.raises(AssertionError):
        check_clearance(oracle, replace(good, joints=low), OVER_TABLE, OVER_TABLE, 1.0, CONFIG)
    motors = Motors(OVER_TABLE, CONFIG)
    assert motors.go(OVER_TABLE + 0.15, 0) == pytest.approx((1.0, 10.0))  # 0.15 rad in 0.15 s of even speed
    assert motors.go(OVER_TABLE + 0.15, 10**9) == pytest.approx((0.0, 0.0))


@pytest.mark.parametrize(("name", "value"), [
    ("max_step_m", 0.5), ("max_step_m", "0.05"), ("joint_speed_factor", 1.5), ("max_frame_age_s", float("nan")),
    ("max_consecutive_holds", 0), ("max_efforts", (1.0,)), ("max_efforts", (9e9,) * 6), ("latch_timeout_s", 0.2),
    ("workspace_low_m", (0.9, 0, 0)), ("workspace_high_m", (0.3, 0.3)), ("max_action_age_s", 0.1), ("dt_s", True),
])
def test_bad_config_is_refused_by_name(name: str, value: Any) -> None:
    key = "Workspace" if name.startswith("workspace") else name
    with pytest.raises(BadConfig, match=key):
        SafetyConfig(**{name: value})


def test_config_takes_yaml_lists() -> None:
    config = SafetyConfig(workspace_low_m=[0.1, -0.2, 0.0], max_efforts=[1000] * 6)  # type: ignore[arg-type]
    assert config.workspace.low_m == (0.1, -0.2, 0.0) and hash(config)
    assert D_GRIPPER_DOWN.flags.writeable is False
