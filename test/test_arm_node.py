"""arm_node and twin_node as processes over DDS: what moves, what is held, what latches, and how it all ends."""
from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
from ros_tools import PATIENCE_S, TICK, Client, client, running, stamps_s

from world_gymnast_ros.control.chunk_player import ArmMode
from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.nodes.arm_node import ArmNode

pytestmark = pytest.mark.ros
FORWARD = (0.01, 0, 0, 0, 0, 0)
STILL = (0, 0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def ros(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, graph.Graph]]:
    """Twin and arm, with a slow watch on starvation: a busy test machine is no lost policy."""
    specs = [graph.TWIN.with_overrides(image_rate_hz=1.0, image_width=64, image_height=48),
             graph.ARM.with_overrides(max_arm_age_s=1.0, max_frame_age_s=5.0, max_action_age_s=10.0)]
    with client() as c, running(specs, tmp_path_factory.mktemp("arm")) as nodes:
        c.hear("step", convert.StepMsg)
        c.hear("arm_status", convert.ArmStatusMsg, base.LATCHED)
        c.hear("wx250s/joint_states", convert.JointState)
        c.hear("wx250s/commands/joint_group", convert.xs_msg.JointGroupCommand)
        c.hear("wx250s/commands/joint_single", convert.xs_msg.JointSingleCommand)
        c.until(lambda: c.heard["wx250s/joint_states"] and c.heard["arm_status"], "twin and arm", check=nodes.check)
        yield c, nodes


@pytest.fixture()
def armed(ros: tuple[Client, graph.Graph]) -> Iterator[Client]:
    """A fresh start state and an armed arm."""
    c, nodes = ros
    nodes.check()
    assert c.call("twin_node/reset", convert.ResetTwin, seed=1).success
    fresh = len(c.heard["wx250s/joint_states"])
    c.until(lambda: len(c.heard["wx250s/joint_states"]) > fresh + 3, "joint states after the reset")
    c.arm()
    yield c
    c.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=False))
    c.until(lambda: c.trigger("disarm").success, "disarm")


def measured(c: Client) -> Any:
    c.spin(0.1)
    return convert.arm_state(c.heard["wx250s/joint_states"][-1])


def test_a_disarmed_arm_plays_nothing(ros: tuple[Client, graph.Graph]) -> None:
    c, _ = ros
    commands = len(c.heard["wx250s/commands/joint_group"])
    sequence = c.send_chunk(FORWARD)
    c.spin(0.5)
    assert not c.steps_of(sequence) and len(c.heard["wx250s/commands/joint_group"]) == commands


def test_arming_sets_the_time_profile_once_for_all(armed: Client) -> None:
    for register, value in (("Profile_Velocity", 250), ("Profile_Acceleration", 100)):
        answer = armed.call("wx250s/get_motor_registers", convert.xs_srv.RegisterValues, cmd_type="group", name="arm",
                            reg=register)
        assert list(answer.values) == [value] * 6


def test_a_chunk_moves_the_arm_one_action_per_period(armed: Client) -> None:
    before = measured(armed).T_base_ee[:3, 3]
    commands = len(armed.heard["wx250s/commands/joint_group"])
    steps = armed.play(FORWARD)
    assert [s.verdict for s in steps] == [convert.StepMsg.OK] * 4, [s.reason for s in steps]
    assert [s.chunk_index for s in steps] == [0, 1, 2, 3]
    assert (np.diff(stamps_s(steps)) > 0.15).all()  # late ones are played later, never faster
    if TICK:
        assert (np.diff(stamps_s(steps)) < 0.23).all()
    sent = armed.heard["wx250s/commands/joint_group"]
    armed.until(lambda: len(sent) >= commands + 4, "four commands")
    sent = sent[commands:commands + 4]
    np.testing.assert_allclose([s.cmd for s in sent], [s.commanded_joints for s in steps], atol=1e-6)
    targets = np.array([s.t_base_target for s in steps]).reshape(4, 4, 4)[:, :3, 3]
    np.testing.assert_allclose(np.diff(targets[:, 0]), 0.01, atol=1e-6)
    armed.until(lambda: (measured(armed).T_base_ee[:3, 3] - before)[0] > 0.03, "the arm to arrive")
    moved = measured(armed).T_base_ee[:3, 3] - before
    assert 0.03 < moved[0] < 0.05 and np.abs(moved[1:]).max() < 0.01, moved


def test_a_step_reports_what_was_asked_and_what_was_sent(armed: Client) -> None:
    (step,) = armed.play((0.08, 0, 0, 0, 0, 0), actions=1)
    assert step.verdict == step.CLAMPED and "limit" in step.reason
    assert step.requested[0] == pytest.approx(0.08) and step.sent[0] <= 0.0501
    assert step.instruction == "test" and step.adapter == "base"
    assert step.joints == pytest.approx(list(measured(armed).joints), abs=0.5)


def test_the_target_never_leaves_the_workspace(armed: Client) -> None:
    for _ in range(2):
        steps = armed.play((0, 0, -0.045, 0, 0, 0))
    assert {s.verdict for s in steps} <= {steps[0].CLAMPED, steps[0].HOLD}
    heights = [s.t_base_target[11] for s in armed.heard["step"][-8:]]
    assert min(heights) >= 0.022 - 1e-9


def test_the_gripper_closes_and_opens(armed: Client) -> None:
    def finger() -> float:
        return float(armed.heard["wx250s/joint_states"][-1].position[7])

    armed.play(STILL, actions=1, gripper=0.0)
    armed.until(lambda: finger() < 0.017, "a closed gripper")
    assert abs(armed.heard["wx250s/commands/joint_single"][-1].cmd) <= 350
    armed.play(STILL, actions=1, gripper=1.0)
    armed.until(lambda: finger() > 0.033, "an open gripper")


@pytest.mark.parametrize("bad", ["nan", "short", "old"])
def test_bad_chunks_move_nothing(armed: Client, bad: str) -> None:
    commands = len(armed.heard["wx250s/commands/joint_group"])
    if bad == "nan":
        sequence = armed.send_chunk((float("nan"), 0, 0, 0, 0, 0))
    elif bad == "old":
        sequence = armed.send_chunk(FORWARD, frame_age_s=60.0)
    else:
        sequence = 10_000
        armed.say("action_chunk", convert.ActionChunkMsg, base.RELIABLE,
                  convert.ActionChunkMsg(sequence=sequence, chunk_size=4, dt_s=0.2, deltas=[0.1] * 8))
    armed.spin(0.4)
    assert not [s for s in armed.steps_of(sequence) if s.verdict < s.HOLD]
    goals = [np.array(m.cmd) for m in armed.heard["wx250s/commands/joint_group"][commands:]]
    assert all(np.abs(g - measured(armed).joints).max() < 0.05 for g in goals)  # at most the hold of a starved arm
    assert armed.play(FORWARD)[0].verdict == convert.StepMsg.OK  # and the next good one is played


def test_without_the_next_chunk_the_arm_holds_where_it_is(armed: Client) -> None:
    commands = armed.heard["wx250s/commands/joint_group"]
    last_goal = np.array(armed.play((0.04, 0, 0, 0, 0, 0))[-1].commanded_joints)
    start = time.monotonic()
    armed.until(lambda: np.abs(np.array(commands[-1].cmd) - last_goal).max() < 1e-6, "the last action's command")
    armed.until(lambda: np.abs(np.array(commands[-1].cmd) - last_goal).max() > 1e-6, "a hold")
    took_s = time.monotonic() - start
    assert took_s < (0.55 if TICK else PATIENCE_S)
    armed.until_state(convert.ArmStatusMsg.ARMED, "no chunk")
    armed.until(lambda: np.abs(np.array(commands[-1].cmd) - measured(armed).joints).max() < 0.05, "a hold at rest")


def test_hold_latches_until_armed_again(armed: Client) -> None:
    assert armed.trigger("hold").success
    armed.until_state(convert.ArmStatusMsg.HOLDING, "operator")
    sequence = armed.send_chunk(FORWARD)
    armed.spin(0.4)
    assert not armed.steps_of(sequence)
    armed.arm()
    assert armed.play(FORWARD)[0].verdict == convert.StepMsg.OK


def test_a_judge_that_calls_the_task_done_makes_the_arm_hold(armed: Client) -> None:
    done = convert.DiagnosticStatus(name="reflector_node", hardware_id="judge", message="judge says that it is done")
    armed.say("task_done", convert.DiagnosticStatus, base.RELIABLE, done)
    armed.until_state(convert.ArmStatusMsg.HOLDING, HoldCause.TASK_DONE.value)
    sequence = armed.send_chunk(FORWARD)
    armed.spin(0.5)
    assert not armed.steps_of(sequence)
    armed.arm()  # a person goes on
    assert armed.play(FORWARD, actions=1)[0].verdict == convert.StepMsg.OK


def test_stop_latches_and_only_release_disarm_arm_clears_it(armed: Client) -> None:
    sequence = armed.send_chunk((0.02, 0, 0, 0, 0, 0), actions=20)
    armed.until(lambda: armed.steps_of(sequence), "the first step")
    armed.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=True))
    armed.until_state(convert.ArmStatusMsg.STOPPED, "stop pressed")
    played = len(armed.steps_of(sequence))
    armed.spin(0.5)
    assert len(armed.steps_of(sequence)) == played < 20
    for name in ("arm", "disarm", "arm"):
        assert not armed.trigger(name).success
    armed.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=False))
    armed.spin(0.2)
    assert armed.heard["arm_status"][-1].state == convert.ArmStatusMsg.STOPPED  # release alone starts nothing
    assert "disarm" in armed.trigger("arm").message
    assert armed.trigger("disarm").success and armed.trigger("arm").success
    assert armed.play(FORWARD)[0].verdict == convert.StepMsg.OK


def test_a_silent_driver_holds_and_nothing_is_sent_blindly(armed: Client, ros: tuple[Client, graph.Graph]) -> None:
    twin = ros[1].nodes["twin_node"].process
    sequence = armed.send_chunk((0.02, 0, 0, 0, 0, 0), actions=20)
    armed.until(lambda: armed.steps_of(sequence), "the first step")
    os.kill(twin.pid, signal.SIGSTOP)
    try:
        armed.until(lambda: armed.steps_of(sequence)[-1].verdict == convert.StepMsg.HOLD, "a held step")
        assert "old" in armed.steps_of(sequence)[-1].reason
    finally:
        os.kill(twin.pid, signal.SIGCONT)


def test_arming_an_armed_arm_leaves_its_driver_alone(armed: Client) -> None:
    answer = armed.trigger("arm")
    assert answer.success and answer.message == "already armed"


def test_a_publisher_of_stop_that_promises_nothing_is_heard(armed: Client) -> None:
    armed.until(lambda: armed.play(FORWARD, actions=1)[-1].verdict < convert.StepMsg.HOLD, "an arm that plays")
    armed.say("stop", convert.Bool, base.NEWEST, convert.Bool(data=True))
    armed.until_state(convert.ArmStatusMsg.STOPPED, "stop pressed")
    armed.destroy_publisher(armed._senders.pop("stop"))


def test_a_motor_without_torque_stops_the_arm(armed: Client) -> None:
    torque = {"cmd_type": "group", "name": "all"}
    armed.call("wx250s/torque_enable", convert.xs_srv.TorqueEnable, **torque, enable=False)
    armed.until_state(convert.ArmStatusMsg.STOPPED, "torque")
    armed.call("wx250s/torque_enable", convert.xs_srv.TorqueEnable, **torque, enable=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_holds_before_the_node_goes(
    ros: tuple[Client, graph.Graph], tmp_path: Path, number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    """An arm node under another name, ended in the middle of a chunk, SIGHUP by an ssh session that drops."""
    c, first = ros
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the node would inherit that it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    if "arm_node" in first.nodes:  # the last that it is needed for: it would be a second commander
        first.nodes["arm_node"].process.send_signal(signal.SIGINT)
        assert first.nodes.pop("arm_node").process.wait(PATIENCE_S) == 0
        c.until(lambda: c.count_publishers("wx250s/commands/joint_group") == 0, "the end of the first")
    second = graph.NodeSpec("arm_node", "config/arm.yaml", {"max_arm_age_s": 1.0},
                            {"__node": "arm_two", "action_chunk": "chunk_two", "step": "step_two"})
    steps, commands = c.hear("step_two", convert.StepMsg), c.heard["wx250s/commands/joint_group"]
    with running([second], tmp_path) as nodes:
        c.until(lambda: c.call("arm_two/arm", convert.Trigger).success, "arming")
        steps.clear()
        now_ns = c.get_clock().now().nanoseconds
        chunk = convert.ActionChunk(np.tile(np.float32([0.0, 0, 0.02, 0, 0, 0, 1]), (20, 1)), now_ns)
        c.say("chunk_two", convert.ActionChunkMsg, base.RELIABLE,
              convert.chunk_msg(chunk, 1, "x", now_ns, now_ns, now_ns))
        c.until(lambda: len(steps) >= 2, "two steps")
        process = nodes.nodes["arm_node"].process
        start = time.monotonic()
        process.send_signal(number)
        c.until(lambda: process.poll() is not None, "the end of the node")
        took_s = time.monotonic() - start
        assert process.returncode == 0
        c.spin(0.3)
        c.until(lambda: np.abs(np.array(commands[-1].cmd) - np.array(steps[-1].commanded_joints)).max() > 1e-6,
                "a last command that is a hold, not the last action")
        c.until(lambda: np.abs(np.array(commands[-1].cmd) - measured(c).joints).max() < 0.1, "a hold at rest")
        assert took_s < (1.0 if TICK else PATIENCE_S)


class Slow:
    """A driver that is still thinking about `health`."""

    def __await__(self) -> Iterator[None]:
        yield

    def rivals(self) -> str:
        return ""

    async def health(self) -> tuple[str, tuple[int, ...]]:
        await self
        return "the driver does not answer", ()


@pytest.mark.parametrize("armings_meanwhile", [0, 1])
def test_only_an_answer_asked_for_since_arming_can_stop_the_arm(armings_meanwhile: int) -> None:
    stops: list[str] = []
    node: Any = SimpleNamespace(_checking=False, _armings=1, _moves=True, _tick=lambda: None, driver=Slow(),
                                player=SimpleNamespace(mode=ArmMode.ARMED, stop=stops.append))
    check = ArmNode._on_health(node)
    check.send(None)
    node._armings += armings_meanwhile  # the driver was restarted and the arm armed again
    with pytest.raises(StopIteration):
        check.send(None)
    assert len(stops) == 1 - armings_meanwhile and not node._checking
