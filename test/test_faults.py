"""Every fault of the arm's side, tried on arm_node as a process over DDS with a driver process that fails on request.

What is asserted always is what the arm does; how soon is asserted and recorded with WORLD_GYMNAST_TEST_TIMING=1, as
`bench/faults.py` runs it.
"""
from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
from fault_log import holds_after, record
from ros_tools import PATIENCE_S, TICK, Client, client, running, stamps_s
from rosgraph_msgs.msg import Clock

from world_gymnast_ros.config import ArmConfig
from world_gymnast_ros.control.arm_state import plausible
from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.robot.kinematics import NEUTRAL

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from fuzz_guard import Motors

pytestmark = pytest.mark.ros
STATUS, STEP = convert.ArmStatusMsg, convert.StepMsg
START = [0.0, 0.022, 0.183, 0.0, 1.366, 0.0]
SLOWLY = (0.004, 0, 0, 0, 0, 0)
GROUP, STATES = "wx250s/commands/joint_group", "wx250s/joint_states"
# A busy test machine must not look like a fault; the times are taken with the limits that ship.
LIMITS: dict[str, Any] = {} if TICK else {"max_arm_age_s": 1.0, "max_frame_age_s": 5.0, "max_action_age_s": 10.0,
                                         "command_timeout_s": 1.5, "policy_lease_s": 1.0}
LATCH = {"latch_timeout_s": 5.0 if TICK else 4.0}


@dataclass(frozen=True)
class Driver(graph.NodeSpec):
    """fault_driver.py, which is no part of the package."""

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("fault_driver.py")), *self.arguments()]


DRIVER = Driver("fault_driver")
ARM = graph.ARM.with_overrides(**LIMITS, **LATCH)


class Bench:
    """The client, the processes, and how to start one again."""

    def __init__(self, c: Client, nodes: graph.Graph, log_dir: Path) -> None:
        self.c, self.nodes, self.log_dir = c, nodes, log_dir

    def fault(self, **what: Any) -> float:
        """Tell the driver what is to be wrong; return the monotonic time."""
        self.c.say("fault", convert.String, base.RELIABLE, convert.String(data=json.dumps(what)))
        return time.monotonic()

    def signal(self, name: str, number: int) -> float:
        os.kill(self.nodes.nodes[name].process.pid, number)
        return time.monotonic()

    def restart(self, spec: graph.NodeSpec) -> None:
        self.nodes.nodes[spec.name].process.wait(PATIENCE_S)
        self.nodes.nodes.update(
            graph.start([spec], graph.ros_environment(log_dir=self.log_dir), self.log_dir / "again").nodes)

    def to_start(self) -> None:
        """Disarm, and drive the arm to where every test begins."""
        self.c.until(lambda: self.c.trigger("disarm").success, "disarm")
        goal = convert.xs_msg.JointGroupCommand(name="arm", cmd=START)
        self.c.say(GROUP, convert.xs_msg.JointGroupCommand, base.RELIABLE, goal)
        self.c.until(lambda: np.abs(np.array(self.c.heard[STATES][-1].position[:6]) - START).max() < 0.01,
                     "the arm at its start")
        self.c.destroy_publisher(self.c._senders.pop(GROUP))  # the guard must be the only one

    def arm(self) -> None:
        self.c.arm()

    @contextmanager
    def without_arm(self) -> Iterator[None]:
        """End the arm node, for another one on the same driver, and start it again."""
        process = self.nodes.nodes["arm_node"].process
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
        self.c.spin(0.5)  # its last words
        told = len(self.c.heard["arm_status"])
        yield
        self.restart(ARM)
        self.c.until(lambda: len(self.c.heard["arm_status"]) > told, "the arm node")
        self.c.spin(1.0)  # an answer of a service that is still being discovered would be lost

    def begin(self, delta: Any = SLOWLY, actions: int = 40) -> int:
        """Start a long chunk and wait for its second step; begin again if a busy machine looked like a fault."""
        for _ in range(3):
            sequence = self.c.send_chunk(delta, actions=actions)
            steps = self.c.until_over(sequence, 2)
            if steps[-1].verdict < STEP.HOLD:
                return sequence
            self.arm()
        raise AssertionError(f"held three times: {steps[-1].reason}")

    def moves(self) -> bool:
        return bool(self.c.play(SLOWLY, actions=2)[-1].verdict < STEP.HOLD)

    def held(self, since: float, row: str, limit_s: float, what: str = "") -> float:
        """Wait for the hold command that follows `since`; record how long it took and what the operator was told."""
        c = self.c
        c.until(lambda: holds_after(c, GROUP, since), f"a hold after {row}")
        took_s = holds_after(c, GROUP, since)[0] - since
        c.until(lambda: what in c.heard["arm_status"][-1].reason or what in held_reason(c), f"'{what}' for {row}")
        record(row, took_s, f"{c.heard['arm_status'][-1].state_name}: "
               f"{c.heard['arm_status'][-1].reason if what in c.heard['arm_status'][-1].reason else held_reason(c)}")
        assert took_s < (limit_s if TICK else PATIENCE_S), f"{row}: held after {took_s:.3f} s"
        return took_s


def held_reason(c: Client) -> str:
    return next((s.reason for s in reversed(c.heard["step"]) if s.verdict >= STEP.HOLD), "")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    log_dir = tmp_path_factory.mktemp("faults")
    with client() as c, running([DRIVER, ARM], log_dir) as nodes:
        c.hear("step", STEP)
        c.hear("arm_status", STATUS, base.LATCHED)
        c.hear("/diagnostics", convert.DiagnosticArray)
        c.hear(STATES, convert.JointState, base.NEWEST)
        c.hear(GROUP, convert.xs_msg.JointGroupCommand)
        c.until(lambda: c.heard[STATES] and c.heard["arm_status"], "driver and arm", check=nodes.check)
        yield Bench(c, nodes, log_dir)


@pytest.fixture()
def armed(bench: Bench) -> Iterator[Bench]:
    """An armed arm at its start; afterwards everything is well again and the arm disarmed."""
    bench.nodes.check()
    bench.fault()
    bench.to_start()
    bench.arm()
    yield bench
    bench.fault()
    bench.c.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=False))
    bench.c.until(lambda: bench.c.trigger("disarm").success, "disarm")


# --- joint states -----------------------------------------------------------------------------------------------------


def test_joint_states_gone_hold_then_latch(armed: Bench) -> None:
    armed.begin()
    since = armed.fault(joints="gone")
    armed.held(since, "joint states gone", 0.55, "old")
    armed.c.until_state(STATUS.HOLDING, "no joint states")
    record("joint states gone: latched", time.monotonic() - since, armed.c.heard["arm_status"][-1].reason)
    assert not armed.c.trigger("arm").success  # still blind
    armed.fault()
    sequence = armed.c.send_chunk(SLOWLY)
    armed.c.spin(0.5)
    assert not armed.c.steps_of(sequence) and armed.c.heard["arm_status"][-1].state == STATUS.HOLDING
    armed.arm()
    assert armed.moves()


def test_a_short_gap_in_joint_states_holds_one_chunk_only(armed: Bench) -> None:
    sequence = armed.begin()
    armed.fault(joints="gone")
    armed.c.until(lambda: armed.c.steps_of(sequence)[-1].verdict == STEP.HOLD, "a held step")
    armed.fault()
    armed.c.until(lambda: armed.moves(), "moving on")


def test_frozen_joint_states_latch_and_the_target_does_not_run_away(armed: Bench) -> None:
    sequence = armed.begin((0.03, 0, 0, 0, 0, 0), actions=20)
    since = armed.fault(joints="frozen")
    armed.held(since, "joint states frozen on one pose", 1.3, "frozen")
    armed.c.until_state(STATUS.HOLDING, "frozen")
    steps = armed.c.steps_of(sequence)
    told = np.array([s.commanded_joints for s in steps]) - np.array(steps[-1].joints)
    assert np.abs(told).max() < 0.6 and len(steps) < 10
    armed.fault()
    armed.arm()
    assert armed.moves()


def test_a_failed_bus_read_holds_the_last_good_place(armed: Bench) -> None:
    armed.begin()
    since = armed.fault(joints="minus_pi")
    armed.held(since, "joint states jump to -pi", 0.35, "servo bus")
    held = np.array(armed.c.heard[GROUP][-1].cmd, np.float64)
    assert plausible(held) is not None and np.abs(held - START).max() < 0.3
    armed.fault()
    armed.c.until(lambda: armed.moves(), "moving on once the bus answers")


def test_one_joint_that_reads_wrong_is_never_driven_there(armed: Bench) -> None:
    """Within its limits and with a fresh stamp: only where the arm can have gone tells that it is wrong."""
    c = armed.c
    armed.begin()
    since = armed.fault(joints="one_off")
    armed.held(since, "one joint reads wrong by 0.6 rad", 0.35, "jumped")
    c.until_state(STATUS.HOLDING, "no usable joint states")
    record("one joint reads wrong by 0.6 rad: latched", time.monotonic() - since, c.heard["arm_status"][-1].reason)
    sent = np.array([m.cmd for m, t in zip(c.heard[GROUP], c.times[GROUP], strict=True) if t > since], np.float64)
    assert np.abs(sent[:, 2] - START[2]).max() < 0.3
    armed.fault()
    armed.arm()
    assert armed.moves()


# --- motors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "fault", "words"), [
    ("one motor loses torque", {"torque": [1, 1, 0, 1, 1, 1, 1]}, "torque"),
    ("hardware error bit", {"errors": [0, 0, 0, 32, 0, 0, 0]}, "hardware error"),
    pytest.param("a motor does not answer", {"motors": 6}, "6 of 7", marks=pytest.mark.slow),
])
def test_a_sick_motor_stops_and_stays_stopped(armed: Bench, row: str, fault: dict[str, Any], words: str) -> None:
    armed.begin()
    since = armed.fault(**fault)
    armed.c.until_state(STATUS.STOPPED)
    armed.held(since, row, 2.6, words)
    assert armed.c.trigger("disarm").success
    refused = armed.c.trigger("arm")
    if "torque" not in fault:  # torque is switched on by arming; a motor that obeys is well again
        assert not refused.success
    armed.fault()
    armed.c.spin(0.3)
    assert armed.c.heard["arm_status"][-1].state == STATUS.DISARMED  # well again, and still disarmed
    armed.arm()
    assert armed.moves()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_effort_over_its_limit_holds_until_it_is_over(armed: Bench, sign: float) -> None:
    armed.begin()
    since = armed.fault(effort=[0.0, sign * 1800.0, 0.0, 0.0, 0.0, 0.0])
    armed.held(since, f"effort over its limit ({'+' if sign > 0 else '-'})", 0.35, "effort of shoulder")
    step = armed.c.play(SLOWLY)[-1]
    assert step.verdict == STEP.HOLD and "shoulder" in step.reason
    armed.fault()
    armed.c.until(lambda: armed.moves(), "moving on once the arm is free")


@pytest.mark.slow
def test_effort_that_stays_latches(armed: Bench) -> None:
    armed.fault(effort=[0.0, 1800.0, 0.0, 0.0, 0.0, 0.0])
    armed.c.until(lambda: "effort" in armed.c.play(SLOWLY, actions=1)[-1].reason, "the effort to be seen")

    def push() -> bool:
        if armed.c.heard["arm_status"][-1].state == STATUS.ARMED:
            armed.c.send_chunk(SLOWLY, actions=1)
        armed.c.spin(0.05)
        return bool(armed.c.heard["arm_status"][-1].state == STATUS.HOLDING)

    armed.c.until(push, "a latched hold")
    assert "holds in a row" in armed.c.heard["arm_status"][-1].reason


def test_out_of_reach_every_command_stays_within_the_limits(armed: Bench) -> None:
    """Into the far upper corner of the workspace, where no solution exists."""
    steps = [s for _ in range(3) for s in armed.c.play((0.03, 0.03, 0.02, 0, 0, 0.2))]
    assert {s.verdict for s in steps} <= {STEP.OK, STEP.CLAMPED, STEP.HOLD} and steps[-1].verdict != STEP.OK
    joints = np.array([s.commanded_joints for s in steps])
    assert all(plausible(j) is not None for j in joints)
    assert np.abs(joints - np.array([s.joints for s in steps])).max() < 0.48
    record("inverse kinematics fails", None, steps[-1].reason)
    armed.c.until(lambda: armed.c.play((-0.02, -0.02, 0, 0, 0, 0))[-1].verdict < STEP.HOLD, "a way back")


# --- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "words"), [
    ("NaN chunk", "non-finite"), ("wrong-length chunk", ""), ("chunk for an old frame", "old"),
    ("frame stamp from the future", "old"), ("chunks out of order", "is not after"), ("empty chunk", ""),
])
def test_a_bad_chunk_changes_nothing_about_the_good_one(armed: Bench, row: str, words: str) -> None:
    c, sequence = armed.c, armed.begin()
    now_ns = c.get_clock().now().nanoseconds
    good = convert.ActionChunk(np.tile(np.float32([*SLOWLY, 1.0]), (4, 1)), now_ns)
    msg = convert.chunk_msg(good, sequence + 1, "bad", now_ns, now_ns, now_ns)
    if row == "NaN chunk":
        msg.deltas[5] = float("nan")
    elif row == "wrong-length chunk":
        msg.chunk_size = 5
    elif row == "empty chunk":
        msg.chunk_size, msg.deltas = 0, []
    elif row == "chunks out of order":
        msg.sequence = sequence
    else:
        msg.frame_stamp = convert.to_time(now_ns + (-60 if "old" in row else 60) * 10**9)
    before, refused = len(c.steps_of(sequence)), refusals(c)
    c.say("action_chunk", convert.ActionChunkMsg, base.RELIABLE, msg)
    c.until(lambda: len(c.steps_of(sequence)) >= before + 3, "the good chunk to go on")
    assert not [s for s in c.heard["step"] if s.instruction == "bad"]
    if words:
        c.until(lambda: refusals(c) > refused and words in diagnosis(c)["last_refusal"], f"'{words}' in diagnostics")
        record(row, None, f"refused: {diagnosis(c)['last_refusal']}")
    else:
        record(row, None, "refused; error in the log")


def diagnosis(c: Client) -> dict[str, str]:
    mine = [m.status[0] for m in c.heard["/diagnostics"] if m.status[0].name == "arm_node"]
    return {v.key: v.value for v in mine[-1].values} if mine else {}


def refusals(c: Client) -> int:
    return int(diagnosis(c).get("refused_chunks", 0))


def test_a_slow_policy_is_waited_for_and_a_lost_one_latches(armed: Bench) -> None:
    c = armed.c
    for _ in range(2 if TICK else 1):  # slower than the timeout, faster than the latch
        step = c.play(SLOWLY, actions=1)[-1]
        since = time.monotonic()
        assert step.verdict < STEP.HOLD
        armed.held(since, "no next chunk (policy lost or slow), from the last action", 0.55, "no chunk")
    c.until_state(STATUS.HOLDING, "check the policy")
    record("no next chunk: latched", time.monotonic() - since, c.heard["arm_status"][-1].reason)
    sequence = c.send_chunk(SLOWLY)
    c.spin(0.4)
    assert not c.steps_of(sequence)
    armed.arm()
    assert armed.moves()


def test_two_policies_at_once_are_held(armed: Bench) -> None:
    c = armed.c
    armed.begin()
    since = time.monotonic()
    with client() as other:
        other.send_chunk(SLOWLY)
        c.until(lambda: c.count_publishers("action_chunk") == 2, "two publishers")

        def both() -> bool:
            other.send_chunk(SLOWLY)
            c.spin(0.1)
            return bool(c.heard["arm_status"][-1].state == STATUS.HOLDING)

        c.until(both, "a hold")
        armed.held(since, "two policies publish", 2.0, "2 publishers")
        assert "2 publishers" in c.trigger("arm").message
    c.until(lambda: c.trigger("arm").success, "one policy again")
    assert armed.moves()


@pytest.mark.parametrize("seam", ["in mid-chunk", "after a look"])
def test_the_motion_is_smooth_across_chunk_seams(armed: Bench, seam: str) -> None:
    """Goals at 5 Hz, the servos' own profile between them: what the joints measure has no step in place or in speed."""
    c, config = armed.c, ArmConfig().safety()
    states, times = c.heard[STATES], []
    c.spin(0.3)
    first, goals = len(states), len(c.heard[GROUP])
    for number in range(3):  # to and fro, so that a seam is against the motion too
        sequence = c.send_chunk((0.02 * (-1) ** number, 0.01, 0, 0, 0, 0.1), actions=6 if "mid" in seam else 3)
        c.until(lambda: len(c.steps_of(sequence)) >= 3, "three steps")  # noqa: B023
        assert all(s.verdict < STEP.HOLD for s in c.steps_of(sequence))
        times.append(c.times["step"][c.heard["step"].index(c.steps_of(sequence)[0])])
        if "look" in seam:
            c.spin(0.35)
    c.spin(0.5)
    joints = np.array([m.position[:6] for m in states[first:]])
    at_s = stamps_s(states[first:])
    speeds = np.diff(joints, axis=0) / np.diff(at_s)[:, None]
    middle_s = (at_s[1:] + at_s[:-1]) / 2.0
    pulls = np.abs(np.diff(speeds, axis=0)).max(axis=1) / np.diff(middle_s)
    # The same from the goals themselves, as they came to the driver; their arrival jitters, the profile does not mind.
    motors, told = Motors(np.array(START), config), []
    for when, goal in zip(c.times[GROUP][goals:], c.heard[GROUP][goals:], strict=True):
        told.append(motors.go(np.array(goal.cmd), round(when * 1e9)))
    worst_speed, worst_pull = (max(v) for v in zip(*told, strict=True))
    record(f"chunk seams {seam}: most rad/s and rad/s2 measured {np.abs(speeds).max():.2f} "
           f"{np.quantile(pulls, 0.99):.1f}, told {worst_speed:.2f} {worst_pull:.1f}", None, f"{len(times)} chunks")
    assert 0.3 < worst_speed < np.pi and 5.0 < worst_pull < 1.1 * config.max_joint_acceleration_rad_s2
    # No step in place: that would be a huge speed. On a busy machine goals reach the driver otherwise spaced than us.
    assert np.abs(speeds).max() < (1.05 * worst_speed + 0.02 if TICK else 1.3 * worst_speed)
    assert np.quantile(pulls, 0.99) < 1.3 * worst_pull  # no step in speed; but for samples that came in a bunch


# --- operator ---------------------------------------------------------------------------------------------------------


def test_stop_in_the_middle_of_a_chunk(armed: Bench) -> None:
    sequence = armed.begin()
    armed.c.until(lambda: armed.c.steps_of(sequence), "steps")
    since = time.monotonic()
    armed.c.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=True))
    armed.held(since, "stop pressed in the middle of a chunk", 0.05, "stop pressed")
    played = len(armed.c.steps_of(sequence))
    armed.c.spin(0.4)
    assert len(armed.c.steps_of(sequence)) == played


@pytest.mark.parametrize("name", ["disarm", "hold", "stop"])
def test_an_arming_under_way_can_be_called_off(armed: Bench, name: str) -> None:
    c = armed.c
    assert c.trigger("disarm").success
    armed.fault(wait_s=0.5)
    c.spin(0.2)
    answer = c.ask("arm_node/arm", convert.Trigger)
    c.spin(0.3)
    assert not answer.done()
    if name == "stop":
        c.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=True))
    else:
        c.trigger(name)
    c.until(answer.done, "the answer")
    assert not answer.result().success and "while arming" in answer.result().message
    assert c.heard["arm_status"][-1].state != STATUS.ARMED


@pytest.mark.parametrize("name", ["hold", "disarm"])
def test_hold_and_disarm_in_the_middle_of_a_chunk(armed: Bench, name: str) -> None:
    armed.begin()
    since = time.monotonic()
    assert armed.c.trigger(name).success
    armed.held(since, f"~/{name} in the middle of a chunk", 0.1, "operator")


def test_limits_cannot_be_changed_while_armed(armed: Bench) -> None:
    from rcl_interfaces.msg import Parameter, ParameterValue
    from rcl_interfaces.srv import SetParameters

    for name, value in (("max_step_m", 0.1), ("min_table_clearance_m", 0.0), ("command_timeout_s", 5.0)):
        wanted = Parameter(name=name, value=ParameterValue(type=3, double_value=value))
        answer = armed.c.call("arm_node/set_parameters", SetParameters, parameters=[wanted]).results[0]
        assert not answer.successful and "read-only" in answer.reason
    assert armed.moves()


def test_a_clamp_is_logged_once_per_cause_and_arming(armed: Bench) -> None:
    c, log = armed.c, armed.nodes.nodes["arm_node"].log

    def told() -> list[str]:
        return [line for line in log.read_text().splitlines() if "clamped: step limited" in line]

    before = len(told())
    for count in (1, 2):
        steps = [s for _ in range(2) for s in c.play((0.08, 0, 0, 0, 0, 0), actions=2)]
        steps += c.play((-0.08, 0, 0, 0, 0, 0), actions=2)
        assert len([s for s in steps if "step limited" in s.reason]) > 3
        c.spin(0.2)
        assert len(told()[before:]) == count  # whatever else was wrong with the same steps
        assert c.trigger("disarm").success
        armed.to_start()
        armed.arm()  # a new arming tells it again


def test_diagnostics_tell_rates_ages_temperatures_efforts_and_verdicts(armed: Bench) -> None:
    c = armed.c
    armed.fault(effort=[10.0, -20.0, 30.0, 0.0, 0.0, 0.0], temperatures=[31, 32, 33, 34, 35, 36, 37])
    sequence = armed.begin()
    c.until(lambda: diagnosis(c).get("efforts", "").startswith("[10.0, -20.0, 30.0"), "efforts")
    c.until(lambda: diagnosis(c)["temperatures_c"] == "[31, 32, 33, 34, 35, 36, 37]", "temperatures")
    c.until(lambda: float(diagnosis(c)["commands_per_s"]) > 3.0, "the rate")
    d = diagnosis(c)
    assert d["state"] == "ARMED" and 0.0 <= float(d["joint_state_age_s"]) < 2.0
    assert 0.0 <= float(d["command_age_s"]) < 2.0 and 0.0 < float(d["frame_age_s"]) < 12.0
    assert float(d["commands_per_s"]) < 6.0 and float(d["chunks_per_s"]) < 6.0
    assert 0 < int(d["ok"]) <= len(c.steps_of(sequence)) + 1 and d["chunk_publishers"] == "1"
    c.until(lambda: float(diagnosis(c)["joint_states_per_s"]) > 20.0, "the rate of the joint states")
    assert {"clamped", "hold", "stop", "refused_chunks", "last_refusal", "driver_fault"} <= set(d)


def test_the_gripper_loop_runs_at_50_hz_and_saturates(armed: Bench) -> None:
    c = armed.c
    pwm = c.hear("wx250s/commands/joint_single", convert.xs_msg.JointSingleCommand)
    armed.begin()
    c.until(lambda: len(pwm) > 5, "the loop")
    c.play((0, 0, 0, 0, 0, 0), gripper=0.0)
    c.until(lambda: any(m.cmd < 0.0 for m in pwm), "a closing gripper")
    first, since = len(pwm), time.monotonic()
    c.spin(2.0)
    rate_hz = (len(pwm) - first) / (time.monotonic() - since)
    record("gripper loop", None, f"{rate_hz:.1f} Hz")
    assert {m.name for m in pwm} == {"gripper"} and max(abs(m.cmd) for m in pwm) <= 350.0
    assert rate_hz < 60.0 and (not TICK or rate_hz > 45.0)


def test_go_home_walks_slowly_and_can_be_stopped(armed: Bench) -> None:
    c = armed.c
    commands = len(c.heard[GROUP])
    assert c.trigger("go_home").success
    c.until(lambda: len(c.heard[GROUP]) >= commands + 3, "some way")
    assert c.trigger("hold").success
    c.until_state(STATUS.HOLDING, "operator")
    reached = len(c.heard[GROUP])
    c.spin(0.5)
    assert len(c.heard[GROUP]) <= reached + 1
    assert c.trigger("go_home").success
    c.until_state(STATUS.HOLDING, "at home")
    c.until(lambda: np.abs(np.array(c.heard[GROUP][-1].cmd) - NEUTRAL).max() < 1e-6, "the command for neutral")
    goals = np.array([m.cmd for m in c.heard[GROUP][commands:]])
    assert np.abs(np.diff(goals, axis=0)).max() < 0.4 * 0.2 + 0.05
    armed.arm()
    assert armed.moves()


@pytest.mark.parametrize(("fault", "words"), [
    ({"torque": [1, 1, 0, 1, 1, 1, 1]}, "torque"), ({"errors": [0, 0, 0, 32, 0, 0, 0]}, "hardware error")])
def test_a_motor_that_gives_up_on_the_way_home_ends_the_walk(armed: Bench, fault: dict[str, Any], words: str) -> None:
    c = armed.c
    armed.begin((0.0, 0.03, 0, 0, 0, 0.2), actions=8)
    c.spin(1.2)
    assert c.trigger("go_home").success
    armed.fault(**fault)
    c.until_state(STATUS.STOPPED, words)
    assert np.abs(np.array(c.heard[GROUP][-1].cmd) - NEUTRAL).max() > 0.01


def test_a_second_commander_of_the_driver_latches_and_is_named(armed: Bench) -> None:
    """Who publishes goals past the guard, such as Interbotix's own arm modules."""
    c = armed.c
    armed.begin()
    rival = c.create_publisher(convert.xs_msg.JointGroupCommand, GROUP, base.RELIABLE)
    since = time.monotonic()
    try:
        armed.held(since, "a second commander of the driver", 2.6, "2 publishers of /wx250s/commands/joint_group")
        told = c.until_state(STATUS.HOLDING, "2 publishers of")
        assert "/test_client" in told.reason and "/arm_node" in told.reason
        assert "2 publishers of" in c.trigger("arm").message
    finally:
        c.destroy_publisher(rival)
    armed.arm()
    assert armed.moves()


def pwm_of(armed: Bench) -> list[Any]:
    return armed.c.hear("wx250s/commands/joint_single", convert.xs_msg.JointSingleCommand)


def finger_m(c: Client) -> float:
    return float(c.heard[STATES][-1].position[7])


def test_stop_ends_a_closing_gripper(armed: Bench) -> None:
    c, pwm = armed.c, pwm_of(armed)
    c.until(lambda: finger_m(c) > 0.033 or not c.play((0,) * 6, actions=1, gripper=1.0), "an open gripper")
    armed.fault(finger_m=0.0001)
    c.send_chunk((0,) * 6, gripper=0.0)
    c.until(lambda: finger_m(c) < 0.032, "a closing gripper")
    c.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=True))
    c.until_state(STATUS.STOPPED, "stop pressed")
    c.until(lambda: pwm and pwm[-1].cmd == 0.0, "a gripper that is off")
    c.spin(0.3)
    assert pwm[-1].cmd == 0.0 and finger_m(c) > 0.02


@pytest.mark.parametrize("way", ["stop", "hold"])
def test_a_gripper_that_holds_something_keeps_its_grip(armed: Bench, way: str) -> None:
    c, pwm = armed.c, pwm_of(armed)
    c.play((0,) * 6, gripper=0.0)
    c.until(lambda: finger_m(c) < 0.0155, "a closed gripper")
    c.play((0,) * 6, gripper=0.0)
    if way == "stop":
        c.say("stop", convert.Bool, base.RELIABLE, convert.Bool(data=True))
    else:
        assert c.trigger("hold").success
    c.until_state(STATUS.STOPPED if way == "stop" else STATUS.HOLDING)
    c.spin(0.5)
    assert -350.0 <= pwm[-1].cmd < 0.0
    armed.fault(joints="gone")  # nothing tells any more what it does
    c.until(lambda: pwm[-1].cmd == 0.0, "a gripper that is off")
    armed.fault()
    c.spin(0.5)
    assert pwm[-1].cmd == 0.0


def test_go_home_needs_an_armed_arm(bench: Bench) -> None:
    bench.c.until(lambda: bench.c.trigger("disarm").success, "disarm")
    refused = bench.c.trigger("go_home")
    assert not refused.success and "arm it first" in refused.message


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_driver_lost_and_back(armed: Bench) -> None:
    """SIGSTOP: for the graph the same as a peer that the network lost."""
    armed.begin()
    since = armed.signal("fault_driver", signal.SIGSTOP)
    try:
        armed.c.until_state(STATUS.HOLDING, "no joint states")
        record("driver frozen, or DDS peer lost: latched", time.monotonic() - since,
               armed.c.heard["arm_status"][-1].reason)
    finally:
        armed.signal("fault_driver", signal.SIGCONT)
    armed.c.spin(0.5)
    assert armed.c.heard["arm_status"][-1].state == STATUS.HOLDING
    armed.c.until(lambda: armed.c.trigger("arm").success, "arming")
    assert armed.moves()


@pytest.mark.slow
def test_a_driver_that_dds_forgot_and_found_again(armed: Bench) -> None:
    armed.begin()
    armed.signal("fault_driver", signal.SIGSTOP)
    try:
        armed.c.until(lambda: armed.c.count_publishers(STATES) == 0, "DDS to drop the peer")
    finally:
        armed.signal("fault_driver", signal.SIGCONT)
    armed.c.until(lambda: armed.c.count_publishers(STATES) == 1, "DDS to find the peer")
    assert armed.c.heard["arm_status"][-1].state == STATUS.HOLDING
    armed.c.until(lambda: armed.c.trigger("arm").success, "arming")
    assert armed.moves()


def test_a_driver_killed_and_restarted_is_prepared_anew(armed: Bench) -> None:
    pwm = pwm_of(armed)
    armed.c.play((0,) * 6, gripper=0.0)
    armed.begin()
    since = armed.signal("fault_driver", signal.SIGKILL)
    armed.c.until_state(STATUS.HOLDING, "no joint states")
    record("driver (twin) killed: latched", time.monotonic() - since, armed.c.heard["arm_status"][-1].reason)
    armed.c.spin(0.3)  # the hold
    commands = len(armed.c.heard[GROUP])
    heard = len(armed.c.heard[STATES])
    grips = len(pwm)
    armed.restart(DRIVER)
    armed.c.until(lambda: len(armed.c.heard[STATES]) > heard + 5, "the new driver")
    armed.c.spin(0.5)
    assert armed.c.heard["arm_status"][-1].state == STATUS.HOLDING and len(armed.c.heard[GROUP]) == commands
    assert len(pwm) == grips  # neither arm nor gripper: the new driver was not prepared
    armed.c.until(lambda: armed.c.trigger("go_home").success, "a walk home, which prepares it too")
    assert armed.c.trigger("hold").success
    armed.c.until(lambda: armed.c.trigger("arm").success, "arming")
    assert armed.moves()
    answer = armed.c.call("wx250s/get_motor_registers", convert.xs_srv.RegisterValues, cmd_type="group", name="arm",
                          reg="Profile_Velocity")
    assert list(answer.values) == [250] * 6


def test_an_arm_node_killed_while_armed_comes_back_disarmed(armed: Bench) -> None:
    c = armed.c
    sequence = armed.begin()
    since = armed.signal("arm_node", signal.SIGKILL)
    armed.nodes.nodes["arm_node"].process.wait(PATIENCE_S)
    c.spin(0.3)
    last = [t for t in c.times[GROUP] if t > since]
    record("arm node killed: last command after the kill", (last[-1] - since) if last else 0.0, "nothing (no process)")
    played, commands, told = len(c.steps_of(sequence)), len(c.heard[GROUP]), len(c.heard["arm_status"])
    armed.restart(ARM)
    c.until(lambda: len(c.heard["arm_status"]) > told, "the new arm node")
    assert c.heard["arm_status"][-1].state == STATUS.DISARMED
    late = c.send_chunk(SLOWLY)
    c.spin(0.6)
    assert not c.steps_of(late) and len(c.steps_of(sequence)) == played and len(c.heard[GROUP]) == commands
    c.until(lambda: c.trigger("arm").success, "arming")
    assert armed.moves()


# --- other nodes on the same driver -----------------------------------------------------------------------------------


def own_arm(name: str, **overrides: Any) -> graph.NodeSpec:
    """A second arm node, with topics of its own above and the same driver below."""
    topics = ("action_chunk", "step", "arm_status", "stop", "/diagnostics")
    return graph.NodeSpec("arm_node", "config/arm.yaml", {**LIMITS, **LATCH, **overrides},
                          {"__node": name, **{topic: f"{name}/{topic.lstrip('/')}" for topic in topics}})


def send_own(c: Client, name: str, sequence: int, frame_ns: int, actions: int = 4) -> None:
    chunk = convert.ActionChunk(np.tile(np.float32([*SLOWLY, 1.0]), (actions, 1)), frame_ns)
    c.say(f"{name}/action_chunk", convert.ActionChunkMsg, base.RELIABLE,
          convert.chunk_msg(chunk, sequence, "own", frame_ns, frame_ns, frame_ns))


@pytest.mark.slow
def test_a_stepped_clock_neither_hurries_nor_lets_old_images_in(bench: Bench, tmp_path: Path) -> None:
    """The wall clock of the node is /clock here, so that it can be stepped; its deadlines are on the steady clock."""
    c, offset = bench.c, [0.0]
    c.until(lambda: c.trigger("disarm").success, "disarm")
    clock = c.create_publisher(Clock, "clock", base.NEWEST_RELIABLE)

    def now_ns() -> int:
        return time.time_ns() + round(offset[0] * 1e9)

    timer = c.create_timer(0.02, lambda: clock.publish(Clock(clock=convert.to_time(now_ns()))))
    steps, told = c.hear("clocked/step", STEP), c.hear("clocked/arm_status", STATUS, base.LATCHED)
    with bench.without_arm(), running([own_arm("clocked", use_sim_time=True)], tmp_path):
        c.until(lambda: told, "the node")
        for number, jump_s in enumerate((-100.0, 100.0)):
            c.until(lambda: c.call("clocked/arm", convert.Trigger).success, "arming")
            first = len(steps)
            send_own(c, "clocked", 1, now_ns(), actions=5)
            c.until(lambda: len(steps) >= first + 2, "two steps")  # noqa: B023
            before_ns = now_ns()
            offset[0] += jump_s
            c.until(lambda: len(steps) >= first + 5, "the chunk to be played to its end")  # noqa: B023
            assert all(s.verdict < STEP.HOLD for s in steps[first:])
            arrivals = np.diff(c.times["clocked/step"][first:first + 5])
            # As this process heard them, which on a busy machine hears several at once.
            assert np.median(arrivals) > 0.1 and (not TICK or (arrivals.min() > 0.1 and arrivals.max() < 0.25))
            c.spin(0.1)
            send_own(c, "clocked", 2, before_ns if jump_s > 0 else now_ns())
            c.until(lambda: "refused" in told[-1].reason, "the refusal")
            record(f"clock stepped {'back' if jump_s < 0 else 'forward'} 100 s", None, told[-1].reason)
            assert len(steps) == first + 5
            if number:  # forward: an image taken after the step is fine; back: the operator arms again
                send_own(c, "clocked", 3, now_ns())
                c.until(lambda: len(steps) >= first + 6, "the next chunk")  # noqa: B023
            assert c.call("clocked/disarm", convert.Trigger).success
    c.destroy_timer(timer)


def test_the_dead_man_button_must_be_held(bench: Bench, tmp_path: Path) -> None:
    c = bench.c
    c.until(lambda: c.trigger("disarm").success, "disarm")
    joy, held = c.create_publisher(convert.Joy, "joy", base.RELIABLE), [0]
    timer = c.create_timer(0.02, lambda: joy.publish(convert.Joy(buttons=[0, held[0]])) if held[0] >= 0 else None)
    told, steps = c.hear("button/arm_status", STATUS, base.LATCHED), c.hear("button/step", STEP)
    timeout_s = 0.3 if TICK else 2.0
    with bench.without_arm(), running([own_arm("button", dead_man_button=1, dead_man_timeout_s=timeout_s)], tmp_path):
        c.until(lambda: told, "the node")
        assert "dead-man" in c.call("button/arm", convert.Trigger).message
        for gone, row in ((0, "dead-man button released"), (-1, "dead-man input silent")):
            held[0] = 1
            c.until(lambda: c.call("button/arm", convert.Trigger).success, "arming")
            first = len(steps)
            send_own(c, "button", 1, time.time_ns(), actions=40)
            c.until(lambda: len(steps) >= first + 2, "two steps")  # noqa: B023
            held[0], since = gone, time.monotonic()
            c.until(lambda: told[-1].state == STATUS.HOLDING, "a hold")
            record(row, time.monotonic() - since, told[-1].reason)
            assert "dead-man" in told[-1].reason and (not TICK or time.monotonic() - since < timeout_s + 0.1)
            held[0] = 1
            c.spin(0.3)
            assert told[-1].state == STATUS.HOLDING  # pressing it again starts nothing
        assert c.call("button/disarm", convert.Trigger).success
    c.destroy_timer(timer)

