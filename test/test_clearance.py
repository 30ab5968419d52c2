"""Distances of the links, with MuJoCo as the oracle; and what the guard makes of them."""
from __future__ import annotations

import re
from dataclasses import replace

import mujoco
import numpy as np
import pytest
from capsule_arm import CapsuleArm
from hypothesis import given, settings
from hypothesis import strategies as st

from world_gymnast_ros.config import ArmConfig
from world_gymnast_ros.control.guard import GuardInputs, GuardState, _closeness, _here, _Start, guard, remember
from world_gymnast_ros.control.homing import way_home
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.robot.actions import pose_from_state
from world_gymnast_ros.robot.clearance import clearances, names
from world_gymnast_ros.robot.kinematics import (
    HOME,
    JOINT_LOWER_RAD,
    JOINT_NAMES,
    JOINT_UPPER_RAD,
    NEUTRAL,
    SLEEP,
    fk,
    ik,
)
from world_gymnast_ros.twin import model
from world_gymnast_ros.twin.bridge_loop import BridgeLoop
from world_gymnast_ros.twin.expert import demonstrator
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.twin.tasks import parse_instruction
from world_gymnast_ros.types import ArmCommand, ArmState, Verdict

CONFIG = ArmConfig().safety()
ORACLE = CapsuleArm()
FREE = SafetyConfig(workspace_low_m=(-0.7, -0.7, -0.3), workspace_high_m=(0.7, 0.7, 0.8), max_step_rad=0.4)


def step(joints: np.ndarray, delta: np.ndarray, config: SafetyConfig, gripper: float = 1.0) -> ArmCommand:
    arm = ArmState(fk(joints), joints, np.zeros(6), np.zeros(6), gripper, 0)
    return guard(delta, GuardState(), GuardInputs(arm, 0.01, 0.1, 10**9), config)


def test_distances_are_those_of_mujoco() -> None:
    """Its own kinematics, its own geometry: the capsules once more, in the frames of the links."""
    rng = np.random.default_rng(0)
    joints = np.concatenate([[HOME, SLEEP, NEUTRAL], rng.uniform(JOINT_LOWER_RAD, JOINT_UPPER_RAD, (400, 6))])
    for finger_m in (0.010, 0.0375):
        found = clearances(joints, finger_m)
        for q, table, links in zip(joints, found.table, found.links, strict=True):
            ORACLE.place(q, finger_m)
            assert table.min() == pytest.approx(ORACLE.table().min(), abs=1e-9)
            np.testing.assert_allclose(table[-4:], ORACLE.table()[-4:], atol=1e-9)
            np.testing.assert_allclose(links, ORACLE.links(), atol=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.tuples(*[st.floats(-2.0, 2.0)] * 6), st.tuples(*[st.floats(-0.3, 0.3)] * 6), st.floats(0.0, 1.0))
def test_no_step_brings_links_too_close(q: tuple[float, ...], delta: tuple[float, ...], grip: float) -> None:
    """Wherever the arm starts: what MuJoCo measures at the goal is enough, or no less than at the start."""
    joints = np.clip(np.array(q), JOINT_LOWER_RAD + 0.05, JOINT_UPPER_RAD - 0.05)
    command = step(joints, np.array([*delta, grip]), FREE, grip)
    if command.verdict is Verdict.HOLD:
        return
    before, after = [], []
    for place, found in ((joints, before), (command.joints, after)):
        ORACLE.place(place, 0.010 + 0.025 * grip)
        found.extend((ORACLE.table().min(), ORACLE.links()))
    assert after[0] >= min(FREE.min_table_clearance_m, before[0]) - 1e-5
    assert (after[1] >= np.minimum(FREE.min_self_clearance_m, before[1]) - 1e-5).all()


def test_a_hand_that_would_go_into_the_table_is_stopped_above_it_and_named() -> None:
    """The box bounds the end effector alone: turned, a finger would reach through the table."""
    joints = ik(pose_from_state(np.array([0.3, 0, 0.024, 0, 0, 0, 1.0])), NEUTRAL)
    command = step(joints, np.array([0, 0, 0, 0.25, 0, 0, 1.0]), CONFIG)
    words = r"(left|right) finger would be -0\.00\d m from the table, limit 0\.003 m"
    assert command.verdict is Verdict.CLAMPED and re.search(words, command.reason), command.reason
    assert 0.0 < command.sent[3] < 0.2 and "shortened" in command.reason
    assert 0.003 - 1e-6 <= clearances(command.joints[None], 0.035).table.min() < 0.006
    closed = step(joints, np.array([0, 0, 0, 0.25, 0, 0, 0.0]), CONFIG, 0.0)
    assert closed.sent[3] > command.sent[3]  # closed fingers do not stick out so far


def test_a_raised_table_is_kept_clear_of() -> None:
    joints = ik(pose_from_state(np.array([0.3, 0, 0.10, 0, 0, 0, 1.0])), NEUTRAL)
    raised = SafetyConfig(table_z_m=0.05)
    command = step(joints, np.array([0, 0, -0.05, 0, 0, 0, 1.0]), raised)
    assert "from the table" in command.reason
    assert 0.05 + 0.0174 + 0.003 <= command.T_base_target[2, 3] < 0.05 + 0.0174 + 0.006


def test_the_hand_is_kept_out_of_the_base_and_may_leave_it() -> None:
    joints = ik(pose_from_state(np.array([0.15, 0.0, 0.06, 0, 0.0, 0, 1.0])), NEUTRAL)
    reasons = []
    for _ in range(8):
        command = step(joints, np.array([-0.03, 0, 0, 0, 0, 0, 1.0]), FREE)
        joints, reasons = command.joints, [*reasons, command.reason]
    assert any("from the base" in r or "from the column" in r for r in reasons), reasons
    assert clearances(joints[None], 0.035).links.min() >= FREE.min_self_clearance_m - 1e-6
    away = step(joints, np.array([0.03, 0, 0, 0, 0, 0, 1.0]), FREE)
    assert away.verdict is Verdict.OK
    asleep = step(SLEEP, np.array([0.02, 0, 0.02, 0, 0, 0, 1.0]), FREE)
    assert clearances(SLEEP[None], 0.035).links.min() < FREE.min_self_clearance_m  # the cradle is too close already
    assert asleep.verdict in (Verdict.OK, Verdict.CLAMPED) and np.linalg.norm(asleep.sent[:3]) > 0.01


def test_what_is_between_start_and_goal_is_looked_at_too() -> None:
    """The hand swings through straight down: both ends are high enough, the middle is not."""
    down = ik(pose_from_state(np.array([0.3, 0, 0.15, 0, 0, 0, 1.0])), NEUTRAL)
    swung = [down + np.array([0, 0, 0, 0, turn, 0]) for turn in (-0.4, 0.0, 0.4)]
    heights = clearances(np.stack(swung), 0.035).table.min(axis=1)
    for room_m, clear in ((-0.001, True), (0.004, False)):  # how far the table's limit is above the middle
        config = SafetyConfig(table_z_m=float(heights[1]) + room_m - 0.003)
        here, start = _here(swung[0], GuardState(), 0, config), _Start(fk(swung[0]), swung[0], "")
        (fault, _), = _closeness([swung[2]], start, here, 0.035, config)
        assert (fault == "") == clear and ("from the table" in fault) != clear
    assert heights[1] < min(heights[0], heights[2]) - 0.005


def test_the_way_home_is_clear_or_refused() -> None:
    for start in (SLEEP, HOME, NEUTRAL + 0.1):
        goals, refusal = way_home(start, CONFIG)
        assert goals and not refusal, refusal
    folded = np.array([0.0, -1.2, 1.55, 0.0, 2.0, 0.0])
    goals, refusal = way_home(folded, SafetyConfig(workspace_low_m=(-0.5, -0.5, -0.5), min_self_clearance_m=0.1))
    assert not goals and "limit 0.1 m" in refusal and "by hand" in refusal


@pytest.fixture(scope="module")
def twin_model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(model.build_xml(load_scene("train_oak")))


def test_what_the_guard_sends_never_touches_itself_or_the_table_in_the_twin(twin_model: mujoco.MjModel) -> None:
    """Other shapes, boxes and cylinders: random walks through the guard, ten times Bridge's usual steps."""
    data, rng = mujoco.MjData(twin_model), np.random.default_rng(1)
    address = [twin_model.joint(name).qposadr[0] for name in JOINT_NAMES]
    fingers = [twin_model.joint(f"{side}_finger").qposadr[0] for side in ("left", "right")]
    arm_geoms = [i for i in range(twin_model.ngeom) if twin_model.body(twin_model.geom_bodyid[i]).name in (
        "base_link", "upper_forearm_link", "lower_forearm_link", "wrist_link", "gripper_link", "left_finger",
        "right_finger")]
    base = [i for i in arm_geoms if twin_model.body(twin_model.geom_bodyid[i]).name == "base_link"]
    table, nearest, verdicts = twin_model.geom("table").id, 1.0, set()
    for _ in range(12):
        joints, memory, now_ns = NEUTRAL.copy(), GuardState(), 0
        drift = np.array([rng.uniform(-0.03, 0.01), rng.normal(0, 0.02), -0.02, *rng.normal(0.0, 0.1, 3)])
        for _ in range(25):
            arm = ArmState(fk(joints), joints, np.zeros(6), np.zeros(6), 1.0, now_ns)
            inputs = GuardInputs(arm, 0.01, 0.1, now_ns)
            command = guard(np.array([*(drift + rng.normal(0, 0.01, 6)), 1.0]), memory, inputs, FREE)
            memory, joints = remember(memory, command, inputs, FREE), command.joints
            now_ns += 200_000_000
            verdicts.add(command.verdict)
            data.qpos[address], data.qpos[fingers] = joints, 0.035
            mujoco.mj_kinematics(twin_model, data)
            pairs = [(table, i) for i in arm_geoms if i not in base] + [(b, i) for b in base for i in arm_geoms
                                                                         if i not in base]
            nearest = min(nearest, *(mujoco.mj_geomDistance(twin_model, data, a, b, 1.0, None) for a, b in pairs))
    assert 0.0 < nearest < 0.05, nearest  # it did come near, and never touched
    assert Verdict.CLAMPED in verdicts


@pytest.mark.parametrize("instruction", ["reach the red block", "push the red block left", "put"])
def test_legal_work_is_not_hindered(instruction: str) -> None:
    """The demonstrators of every task, through the guard as it ships: nothing is held, nothing is too close or hard."""
    twin = Twin(load_scene("train_oak"), 0)
    words = next(text for text in twin.scene.instructions if text.startswith(instruction[:4]))
    twin.reset(0, words)
    task, loop, rng = parse_instruction(words), BridgeLoop(twin), np.random.default_rng(0)
    expert, memory, verdicts = demonstrator(task, loop, rng), GuardState(), []
    for number in range(task.horizon_steps):
        arm = replace(twin.arm_state(0), efforts=np.zeros(6))  # a push's are not asked here
        inputs = GuardInputs(arm, 0.01, 0.1, number * 200_000_000)
        delta = expert.act(loop)
        command = guard(delta, memory, inputs, CONFIG)
        memory = remember(memory, command, inputs, CONFIG)
        assert "from the" not in command.reason and "rad/s" not in command.reason, command.reason
        verdicts.append(command.verdict)
        loop.step(delta)
        np.testing.assert_allclose(command.T_base_target, loop.T_target, atol=1e-6)  # the very motion it asked for
    assert set(verdicts) <= {Verdict.OK, Verdict.CLAMPED} and verdicts.count(Verdict.OK) > len(verdicts) // 2
    twin.close()


def test_names_cover_every_column() -> None:
    found = clearances(NEUTRAL[None], 0.02)
    told = [names(i) for i in range(found.table.shape[1] + found.links.shape[1])]
    assert told[0] == ("elbow", "table") and ("hand", "base") in told and ("left finger", "forearm") in told
