"""arm_node with each driver over DDS, against a process that behaves as that driver's controller is documented.

No real controller runs here: `controllers.py` is written from the documentation and the sources of ros2_controllers,
MoveIt Servo and cartesian_controllers.
"""
from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
from controllers import KINDS, SERVO_MOST
from ros_tools import TICK, Client, client, running
from scipy.spatial.transform import Rotation

from world_gymnast_ros.control.arm_state import GuardInputs, GuardState, arm_fault
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.nodes.driver_cartesian import UnseenWay
from world_gymnast_ros.robot.actions import matrix_to_quaternion
from world_gymnast_ros.robot.kinematics import NEUTRAL, fk
from world_gymnast_ros.types import ArmState

pytestmark = pytest.mark.ros
STATUS, STEP = convert.ArmStatusMsg, convert.StepMsg
HAS_MOVEIT = convert.ServoCommandType is not None
FORWARD = (0.01, 0, 0, 0, 0, 0)
ARM_AGE_S = 1.0
GRIPPERS = {"trajectory": "trajectory", "pose": "forward", "twist": "trajectory",
            "cartesian": "action" if convert.GripperCommand is not None else "forward"}


@dataclass(frozen=True)
class Endpoint(graph.NodeSpec):
    """controllers.py, which is no part of the package."""

    kind: str = ""

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("controllers.py")), self.kind, GRIPPERS[self.kind],
                *self.arguments()]


def arm_for(kind: str) -> graph.NodeSpec:
    servo = {"driver": "servo", "servo_command": kind, "servo_switch_type": HAS_MOVEIT}
    return graph.ARM.with_overrides(
        **(servo if kind in ("pose", "twist") else {"driver": kind}), gripper_interface=GRIPPERS[kind],
        health_period_s=0.3, service_timeout_s=0.6, require_effort=False,
        max_arm_age_s=ARM_AGE_S, max_frame_age_s=5.0, max_action_age_s=10.0)


class Bench:
    """The client, the arm node, its controller, and what arming said before the controller was there."""

    def __init__(self, c: Client, kind: str, nodes: graph.Graph) -> None:
        self.c, self.kind, self.nodes = c, kind, nodes
        self.told = c.hear("told", convert.String)
        self.refusal = c.trigger("arm").message
        self.goals = c.hear(KINDS[kind].topic, KINDS[kind].message)  # from now on somebody listens, but no controller

    def measured(self) -> ArmState:
        self.c.spin(0.05)
        return convert.arm_state(self.c.heard["joint_states"][-1])

    def position(self) -> Any:
        return self.measured().T_base_ee[:3, 3]

    def arm(self) -> None:
        self.c.arm()

    def fault(self, **what: Any) -> None:
        self.c.say("fault", convert.String, base.RELIABLE, convert.String(data=json.dumps(what)))

    def begin(self, delta: Any) -> int:
        """Start a long chunk and wait for its second step."""
        sequence = self.c.send_chunk(delta, actions=20)
        assert self.c.until_over(sequence, 2)[-1].verdict < STEP.HOLD, self.c.steps_of(sequence)[-1].reason
        return sequence

    def told_to(self, goal: Any) -> Any:
        """Return the position (3,) m that a goal asks for."""
        if self.kind == "trajectory":
            return fk(np.array(goal.points[0].positions))[:3, 3]
        return np.array([goal.pose.position.x, goal.pose.position.y, goal.pose.position.z])

    def rests(self) -> None:
        """Wait until the joints no longer change, then see that they really do not."""
        states = self.c.heard["joint_states"]

        def moved() -> float:  # over 15 states, 0.15 s: on a busy machine the controller gets no time for a while
            before, count = self.measured().joints, len(states)
            self.c.until(lambda: len(states) >= count + 15, "joint states")
            return float(np.abs(self.measured().joints - before).max())

        self.c.until(lambda: moved() < 2e-4, "an arm at rest")
        assert moved() < 2e-4


@pytest.fixture(scope="module", params=["twist", "pose", "trajectory", "cartesian"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    kind, log_dir = request.param, tmp_path_factory.mktemp(request.param)
    with client() as c, running([arm_for(kind)], log_dir) as arm:
        c.hear("step", STEP)
        c.hear("arm_status", STATUS, base.LATCHED)
        c.hear("joint_states", convert.JointState, base.NEWEST)
        b = Bench(c, kind, arm)
        with running([Endpoint("controllers", kind=kind)], log_dir / "endpoint") as controller:
            c.until(lambda: c.heard["joint_states"], "joint states", check=controller.check)
            yield b


@pytest.fixture()
def armed(bench: Bench) -> Iterator[Bench]:
    bench.fault()
    bench.arm()
    bench.told.clear()
    yield bench
    bench.fault()
    bench.c.until(lambda: bench.c.trigger("disarm").success, "disarm")


def test_arming_names_the_controller_that_is_not_there(bench: Bench) -> None:
    driver = "servo" if bench.kind in ("pose", "twist") else bench.kind
    for words in (f"/{KINDS[bench.kind].topic}", "gripper_controller", f"driver '{driver}'", "config/arm.yaml"):
        assert words in bench.refusal


def test_a_chunk_moves_the_arm_there_and_the_driver_falls_silent(armed: Bench) -> None:
    """Half forwards and half round, both at once; then nothing is asked, and nothing may be sent on."""
    for way in (1, -1, 1, -1, 1):  # a machine that is busy elsewhere for 0.1 s lets Servo halt: once more, and back
        before = armed.measured().T_base_ee
        armed.goals.clear()
        armed.told.clear()
        steps = armed.c.play(way * np.array((0.01, 0.005, 0, 0, 0, 0.05)))
        assert [s.verdict for s in steps] == [STEP.OK] * 4, [s.reason for s in steps]
        halts = len([m for m in armed.told if m.data == "halted"])
        if armed.kind in ("pose", "twist"):
            armed.c.until(lambda: armed.told and armed.told[-1].data == "halted", "Servo to halt after the last action")
        armed.rests()
        if halts < 2:
            break
    assert halts < 2, "goals at 5 Hz alone would let it halt after each action"
    after = armed.measured().T_base_ee
    moved, turned = after[:3, 3] - before[:3, 3], Rotation.from_matrix(after[:3, :3] @ before[:3, :3].T).as_rotvec()
    np.testing.assert_allclose(moved, [way * 0.04, way * 0.02, 0.0], atol=0.006)
    np.testing.assert_allclose(turned, [0.0, 0.0, way * 0.2], atol=0.03)
    assert not [m.data for m in armed.told if m.data.startswith("refused")]
    count = len(armed.goals)
    armed.c.spin(0.3)
    assert len(armed.goals) == count and armed.c.heard["arm_status"][-1].state == STATUS.ARMED
    if armed.kind in ("pose", "twist"):
        assert count > 2 * len(steps), "several goals for each action"


def test_goals_have_the_form_that_the_controller_wants(armed: Bench) -> None:
    def moves(goal: Any) -> bool:  # and is not left over from an earlier hold
        if armed.kind == "twist":
            return bool(goal.twist.linear.x > 0)
        return bool(np.abs(armed.told_to(goal) - np.reshape(step.t_base_target, (4, 4))[:3, 3]).max() < 1e-6)

    armed.goals.clear()
    step = armed.c.play(FORWARD, actions=1)[0]
    armed.c.until(lambda: any(map(moves, armed.goals)), "the goal of the step")
    goal = next(filter(moves, armed.goals))
    if armed.kind == "trajectory":
        assert convert.to_ns(goal.header.stamp) == 0 and len(goal.points) == 1 and not goal.points[0].velocities
        assert goal.points[0].time_from_start.nanosec == 250_000_000 and goal.points[0].time_from_start.sec == 0
        assert list(goal.points[0].positions) == list(step.commanded_joints)
        return
    assert goal.header.frame_id == "wx250s/base_link"
    assert abs(convert.to_ns(goal.header.stamp) - convert.to_ns(step.header.stamp)) < (0.1e9 if TICK else 5e9)
    if armed.kind == "twist":  # 0.01 m in 0.25 s, over what Servo calls 1
        linear = goal.twist.linear
        assert linear.x == pytest.approx(0.01 / 0.25 / SERVO_MOST[0], rel=0.2) and abs(linear.z) < 0.2 * linear.x
        armed.c.until(lambda: armed.goals[-1].twist.linear.x == 0.0, "a zero twist")


def test_hold_stops_the_arm_in_the_middle_of_a_chunk(armed: Bench) -> None:
    for _ in range(4):  # on a busy machine the hold may come when the arm is there already
        sequence = armed.begin((-0.02, 0, 0, 0, 0, 0))  # it has just been told to go these 2 cm
        assert armed.c.trigger("hold").success
        held_ns = armed.c.get_clock().now().nanoseconds
        armed.c.until_state(STATUS.HOLDING, "operator")
        armed.c.spin(0.3)
        armed.rests()
        target = np.reshape(armed.c.steps_of(sequence)[-1].t_base_target, (4, 4))[:3, 3]
        left_m = armed.position()[0] - target[0]
        if abs(left_m) > 0.002:
            break
        armed.arm()
    assert 0.002 < left_m < 0.025, left_m
    count, last = len(armed.goals), armed.goals[-1]
    armed.c.spin(0.3)
    assert len(armed.goals) == count
    if armed.kind == "twist":
        since = [goal.twist for goal in armed.goals if convert.to_ns(goal.header.stamp) > held_ns]
        assert since and not np.any([[t.linear.x, t.linear.y, t.linear.z, t.angular.z] for t in since])
    else:
        np.testing.assert_allclose(armed.position(), armed.told_to(last), atol=0.003)


def test_an_arm_node_that_hangs_stops_the_arm(armed: Bench) -> None:
    """Its last goal is the last: Servo halts by itself, the others go there and stay."""
    armed.begin((0.01, 0, 0, 0, 0, 0))
    node = armed.nodes.nodes["arm_node"].process
    os.kill(node.pid, signal.SIGSTOP)
    try:
        hung_at = armed.position()
        armed.c.spin(0.4)
        armed.rests()
        assert np.abs(armed.position() - hung_at).max() < 0.02
        if armed.kind in ("pose", "twist"):
            assert "halted" in [m.data for m in armed.told]
    finally:
        os.kill(node.pid, signal.SIGCONT)


def test_without_joint_states_the_arm_is_held(armed: Bench) -> None:
    sequence = armed.begin((-0.004, 0, 0, 0, 0, 0))
    armed.goals.clear()
    armed.fault(states=False)
    armed.c.until(lambda: armed.c.steps_of(sequence)[-1].verdict == STEP.HOLD, "a held step")
    held = armed.c.steps_of(sequence)[-1]
    assert "old" in held.reason
    if armed.kind == "twist":  # which steers by the joints: zero long before the guard sees that they are old
        zero = next(goal for goal in armed.goals if goal.twist.linear.x == 0.0)
        assert convert.to_ns(held.header.stamp) - convert.to_ns(zero.header.stamp) > 0.3e9 * ARM_AGE_S


def test_the_gripper_closes_and_opens(armed: Bench) -> None:
    def finger() -> float:
        msg = armed.c.heard["joint_states"][-1]
        return float(msg.position[list(msg.name).index("left_finger")])

    for gripper, finger_m in ((0.0, 0.015), (1.0, 0.035)):
        armed.c.play((0, 0, 0, 0, 0, 0), actions=1, gripper=gripper)
        armed.c.until(lambda m=finger_m: abs(finger() - m) < 0.001, f"the finger at {finger_m} m")
    assert not [m.data for m in armed.told if m.data.startswith("refused")]


ONE = pytest.mark.parametrize("bench", ["twist"], indirect=True)
"""For what all these drivers share."""


@ONE
def test_a_controller_that_goes_stops_the_arm_node(armed: Bench) -> None:
    armed.fault(deaf=True)
    armed.c.until_state(STATUS.STOPPED, f"the controller went: no /{KINDS[armed.kind].topic}")


@ONE
def test_a_second_commander_of_the_controller_is_refused(bench: Bench) -> None:
    kind = KINDS[bench.kind]
    rival = bench.c.create_publisher(kind.message, kind.topic, base.RELIABLE)
    bench.c.until(lambda: "2 publishers" in bench.c.trigger("arm").message or not bench.c.trigger("disarm").success,
                  "a refusal")
    bench.c.destroy_publisher(rival)
    bench.arm()
    assert bench.c.trigger("disarm").success


@ONE
def test_twists_end_when_the_joints_are_not_seen_to_move(armed: Bench) -> None:
    """Joint states that are frozen under fresh stamps: the loop would be closed over nothing."""
    armed.fault(frozen=True)
    armed.goals.clear()
    for _ in range(20):
        armed.c.send_chunk((0.004, 0, 0, 0, 0, 0), actions=2)
        armed.c.spin(0.2)
    armed.c.until(lambda: armed.c.heard["arm_status"][-1].state in (STATUS.STOPPED, STATUS.HOLDING), "a latched end")
    stamps = np.array([convert.to_ns(goal.header.stamp) for goal in armed.goals]) * 1e-9
    speeds = np.array([goal.twist.linear.x * SERVO_MOST[0] for goal in armed.goals])
    led_m = float((speeds[:-1] * np.minimum(np.diff(stamps), 0.1)).sum())
    assert 0.005 < led_m < 0.05, led_m


# --- without processes ------------------------------------------------------------------------------------------------


def test_messages_that_are_not_installed_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "ServoCommandType", None)
    monkeypatch.setattr(convert, "GripperCommand", None)
    with pytest.raises(BadConfig, match=r"moveit_msgs is not installed.*servo_switch_type to false"):
        convert.require_moveit()
    with pytest.raises(BadConfig, match=r"control_msgs is not installed.*gripper_interface to trajectory or forward"):
        convert.require_control_msgs()


def test_unmeasured_efforts_are_for_the_operator_to_allow() -> None:
    nothing = np.full(9, np.nan)
    state = convert.arm_state(convert.joint_state_msg(5, np.array([*NEUTRAL, 1.0, 0.02, -0.02]), nothing, nothing))
    inputs = GuardInputs(state, 0.0, 0.0, 0)
    assert "require_effort" in arm_fault(GuardState(), inputs, SafetyConfig())
    assert arm_fault(GuardState(), inputs, SafetyConfig(require_effort=False)) == ""


def test_a_way_that_is_not_seen_has_an_end() -> None:
    still, forward, none = np.zeros(6), np.array([0.1, 0.0, 0.0]), np.zeros(3)
    way = UnseenWay()
    assert sum(way.allows(still, forward, none, 0.02) for _ in range(100)) in (14, 15)  # 3 cm
    assert not way.allows(still + 0.004, -forward, none, 0.02)  # noise is no motion
    assert way.allows(still + 0.006, forward, none, 0.02)
    turning = UnseenWay()
    assert sum(turning.allows(still, none, 10.0 * forward, 0.02) for _ in range(100)) in (9, 10)  # 0.2 rad


def test_quaternions_are_scipys() -> None:
    turns = [*Rotation.random(200, rng=0), Rotation.identity(), *Rotation.from_rotvec(3.14159 * np.eye(3))]
    for turn in turns:
        q = matrix_to_quaternion(turn.as_matrix())
        np.testing.assert_allclose(q, turn.as_quat(canonical=True), atol=1e-7)
