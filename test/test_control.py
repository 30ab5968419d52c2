"""The chunk player as a node would use it, on an arm that follows with a lag; and Bridge's gripper loop."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from world_gymnast_ros.control.chunk_player import ArmMode, ChunkPlayer, PlayedStep
from world_gymnast_ros.control.homing import way_home
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.robot.actions import pose_from_state
from world_gymnast_ros.robot.gripper import GripperLoop, GripWatch, finger_from_gripper, gripper_from_finger
from world_gymnast_ros.robot.kinematics import JOINT_LOWER_RAD, JOINT_UPPER_RAD, NEUTRAL, fk, ik
from world_gymnast_ros.types import ActionChunk, ArmState, Verdict

TICK_NS = 10_000_000
DT_NS = 200_000_000
MOVES = (Verdict.OK, Verdict.CLAMPED)
LOW = ik(pose_from_state(np.array([0.3, 0, 0.015, 0, 0, 0, 1.0])), NEUTRAL)
OVER_TABLE = ik(pose_from_state(np.array([0.3, 0, 0.15, 0, 0, 0, 1.0])), NEUTRAL)


class Bench:
    """A player with a clock and an arm that covers 90 % of the way to its goal in a control period."""

    def __init__(self, **config: Any) -> None:
        self.player = ChunkPlayer(SafetyConfig(**config))
        self.now_ns = 10**12
        self.joints = OVER_TABLE.copy()
        self.goal = self.joints
        self.sequence = 0
        self.driver_alive = True
        self.heard_ns = self.now_ns
        self.heard: ArmState | None = None
        self.errors: tuple[int, ...] = ()
        self.efforts = np.zeros(6)
        self.frozen = False
        self._hear()

    def _hear(self) -> None:
        if self.driver_alive:
            self.heard_ns = self.now_ns
            self.heard = ArmState(fk(self.joints), self.joints.copy(), np.zeros(6), self.efforts, 1.0, self.now_ns)

    def arm(self) -> str:
        """Arm, and let the time pass in which a frame is taken and looked at."""
        refusal = self.player.arm(self.now_ns, self.heard, (self.now_ns - self.heard_ns) * 1e-9, self.errors)
        self.now_ns += 0 if refusal else 100_000_000
        return refusal

    def chunk(self, *actions: Any, age_s: float = 0.1, **changes: Any) -> str:
        deltas = np.array(actions or [[0.01, 0, 0, 0, 0, 0, 1]] * 4, np.float32)
        chunk = replace(ActionChunk(deltas, self.now_ns - round(age_s * 1e9)), **changes)
        self.sequence += 1
        return self.player.accept(chunk, self.now_ns, sequence=self.sequence, frame_age_s=age_s, instruction="reach")

    def run(self, seconds: float, tick_ns: int = TICK_NS) -> list[tuple[float, PlayedStep]]:
        """Tick for a while; return the steps with their times, s since the call."""
        begin, steps = self.now_ns, []
        while self.now_ns - begin < seconds * 1e9:
            if not self.frozen:
                self.joints = self.joints + (1 - 0.1 ** (tick_ns / DT_NS)) * (self.goal - self.joints)
            self._hear()
            played = self.player.tick(self.now_ns, self.heard, (self.now_ns - self.heard_ns) * 1e-9, self.errors)
            if played is not None:
                steps.append(((self.now_ns - begin) * 1e-9, played))
                self.goal = played.command.joints if played.send else self.goal
            self.now_ns += tick_ns
        return steps


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    assert bench.arm() == ""
    return bench


def verdicts(steps: list[tuple[float, PlayedStep]]) -> list[Verdict]:
    return [played.command.verdict for _, played in steps]


def test_plays_a_chunk_at_five_hertz_and_names_every_action(bench: Bench) -> None:
    assert bench.chunk(adapter="lora-3") == ""
    steps = bench.run(0.75)
    np.testing.assert_allclose([t for t, _ in steps], [0.0, 0.2, 0.4, 0.6], atol=0.011)
    assert verdicts(steps) == [Verdict.OK] * 4
    for i, (_, played) in enumerate(steps):
        action = played.action
        assert action is not None
        assert (action.sequence, action.index, action.size, action.adapter) == (1, i, 4, "lora-3")
        assert action.instruction == "reach" and played.frame_age_s == pytest.approx(0.1 + 0.2 * i, abs=0.02)
    assert steps[-1][1].command.T_base_target[0, 3] == pytest.approx(0.34, abs=1e-6)  # of targets, whatever the lag


def test_chunks_in_a_row_keep_the_beat_and_the_target(bench: Bench) -> None:
    times, last = [], None
    for _ in range(5):
        assert bench.chunk(*[[0.005, 0.002, -0.004, 0, 0, 0.02, 1]] * 2) == ""
        steps = bench.run(0.4)
        times += [bench.now_ns * 1e-9 - 0.4 + t for t, _ in steps]
        last = steps[-1][1].command
        assert verdicts(steps) == [Verdict.OK] * 2
    np.testing.assert_allclose(np.diff(times), 0.2, atol=0.011)
    assert last is not None
    np.testing.assert_allclose(last.T_base_target[:3, 3], [0.35, 0.02, 0.11], atol=2e-3)


def test_actions_never_bunch_up_after_a_stall(bench: Bench) -> None:
    bench.chunk()
    bench.run(0.1)
    bench.now_ns += 700_000_000  # the process was not scheduled
    steps = bench.run(0.7)
    assert np.diff([t for t, _ in steps]).min() > 0.17


def test_a_slow_ticker_keeps_the_rate(bench: Bench) -> None:
    bench.chunk(*[[0.001, 0, 0, 0, 0, 0, 1]] * 10)
    steps = bench.run(1.95, tick_ns=17_000_000)
    assert len(steps) == 10


def test_a_chunk_whose_policy_is_gone_is_not_played_to_its_end(bench: Bench) -> None:
    bench.chunk()
    bench.run(0.25)
    bench.player.abandon("the policy is gone or frozen")
    steps = bench.run(1.0)
    assert verdicts(steps) == [Verdict.HOLD] and steps[0][0] < 0.011
    assert bench.player.mode is ArmMode.ARMED and "gone" in bench.player.reason
    bench.player.abandon("again")
    assert not bench.run(0.1)  # one hold, not one per event
    assert bench.chunk() == "" and bench.player.reason == "armed by the operator"  # it is back in time: goes on
    assert verdicts(bench.run(0.5))[0] is Verdict.OK


def test_a_policy_that_stays_gone_latches_the_hold(bench: Bench) -> None:
    bench.chunk()
    bench.run(0.25)
    bench.player.abandon("the policy is gone or frozen")
    bench.run(5.5)
    assert bench.player.mode is ArmMode.HOLDING and "check the policy" in bench.player.reason


def test_a_disarmed_player_has_nothing_to_abandon() -> None:
    bench = Bench()
    bench.player.abandon("gone")
    assert not bench.run(0.1) and bench.player.mode is ArmMode.DISARMED


def test_a_newer_chunk_replaces_the_rest_of_the_old(bench: Bench) -> None:
    bench.chunk(*[[0.01, 0, 0, 0, 0, 0, 1]] * 4)
    bench.run(0.25)
    bench.chunk(*[[0, 0.01, 0, 0, 0, 0, 1]] * 2)
    steps = bench.run(0.7)
    played = [(p.action.sequence, p.action.index) for _, p in steps if p.action]
    assert played == [(2, 0), (2, 1)]
    assert steps[0][0] >= 0.14  # not before the old action had its time


@pytest.mark.parametrize(("changes", "words"), [
    ({"dt_s": float("nan")}, "dt_s is nan"),
    ({"age_s": 1.5}, "1.500 s old, limit 1.0"), ({"age_s": float("inf")}, "old"), ({"age_s": -1.0}, "old"),
    ({"dt_s": 0.1}, "dt_s is 0.1"), ({"deltas": np.full((4, 7), np.nan, np.float32)}, "non-finite"),
    ({"deltas": np.zeros((0, 7), np.float32)}, "0 actions"), ({"deltas": np.zeros((65, 7), np.float32)}, "65 actions"),
    ({"frame_stamp_ns": 5}, "older than the last"),
])
def test_refuses_bad_chunks_and_keeps_the_good_one(bench: Bench, changes: dict[str, Any], words: str) -> None:
    assert bench.chunk() == ""
    age_s = changes.pop("age_s", 0.1)
    chunk = ActionChunk(np.zeros((4, 7), np.float32), bench.now_ns)
    refusal = bench.player.accept(replace(chunk, **changes), bench.now_ns, sequence=9, frame_age_s=age_s)
    assert words in refusal and bench.player.refused_chunks == 1
    assert len(bench.run(0.75)) == 4


def test_refuses_repeated_and_late_chunks(bench: Bench) -> None:
    bench.chunk()
    bench.sequence = 0
    assert "sequence 1 is not after 1" in bench.chunk()
    bench.player.disarm()
    assert "DISARMED" in bench.chunk()
    assert bench.arm() == "" and bench.chunk() == ""  # a restarted policy counts from the beginning


def test_the_chunk_is_copied(bench: Bench) -> None:
    deltas = np.array([[0.01, 0, 0, 0, 0, 0, 1]] * 2, np.float32)
    bench.player.accept(ActionChunk(deltas, bench.now_ns), bench.now_ns, sequence=1, frame_age_s=0.0)
    deltas[:] = 9.0
    assert verdicts(bench.run(0.3)) == [Verdict.OK] * 2


def test_nothing_moves_unless_armed() -> None:
    bench = Bench()
    assert "DISARMED" in bench.chunk()
    assert bench.run(1.0) == []
    assert bench.player.mode is ArmMode.DISARMED


def test_arming_needs_a_healthy_arm() -> None:
    bench = Bench()
    bench.errors = (0, 4)
    assert "hardware error" in bench.arm()
    bench.errors = ()
    bench.driver_alive = False
    bench.now_ns += 10**9
    assert "1.000 s old" in bench.arm()
    assert "no arm state" in bench.player.arm(0, None, 0.0)
    assert bench.player.mode is ArmMode.DISARMED


def test_starvation_holds_once_then_latches() -> None:
    bench = Bench(command_timeout_s=0.6, latch_timeout_s=2.0)
    bench.arm()
    bench.chunk(*[[0.02, 0, 0, 0, 0, 0, 1]] * 2)
    steps = bench.run(1.5)
    assert verdicts(steps) == [Verdict.OK, Verdict.OK, Verdict.HOLD]
    assert steps[-1][0] == pytest.approx(0.2 + 0.6, abs=0.03) and "no chunk" in steps[-1][1].command.reason
    assert bench.player.mode is ArmMode.ARMED
    assert bench.chunk() == ""  # a fresh chunk goes on, from where the arm is
    assert verdicts(bench.run(0.5))[0] is Verdict.OK
    steps = bench.run(4.0)
    assert verdicts(steps)[-1] is Verdict.HOLD and bench.player.mode is ArmMode.HOLDING
    assert "arm again" in bench.player.reason
    assert "HOLDING" in bench.chunk() and bench.run(1.0) == []
    assert bench.arm() == "" and bench.chunk() == ""


def test_repeated_holds_latch(bench: Bench) -> None:
    """A pressed arm: every action is held, the rest of its chunk dropped, and after ten the player gives up."""
    bench.run(0.1)
    bench.efforts = np.array([0.0, -1800.0, 0.0, 0.0, 0.0, 0.0])
    reasons = []
    for i in range(12):
        refusal = bench.chunk()
        steps = [played for _, played in bench.run(0.25) if played.action]
        reasons += [played.command.reason for played in steps]
        assert len(steps) == (1 if i < 10 else 0)
        assert bool(refusal) == (i >= 10)
    assert len(reasons) == 10 and all("effort of shoulder" in r for r in reasons)
    assert bench.player.mode is ArmMode.HOLDING and "10 holds in a row" in bench.player.reason
    assert bench.player.verdict_counts[Verdict.HOLD] == 10


def test_a_driver_that_went_latches_without_any_chunk(bench: Bench) -> None:
    bench.run(0.1)
    bench.driver_alive = False
    steps = bench.run(1.2)
    assert bench.player.mode is ArmMode.HOLDING and "no joint states" in bench.player.reason
    assert [v for v in verdicts(steps) if v is not Verdict.HOLD] == []
    bench.driver_alive = True
    assert bench.run(1.0) == [] and bench.player.mode is ArmMode.HOLDING
    assert bench.arm() == ""


def test_readings_that_never_change_latch_only_while_told_to_move(bench: Bench) -> None:
    bench.frozen = True
    bench.chunk(*[[0, 0, 0, 0, 0, 0, 1]] * 10)
    assert set(verdicts(bench.run(2.0))) == {Verdict.OK}  # an arm at rest may well read the same
    bench.chunk(*[[0.03, 0, 0, 0, 0, 0, 1]] * 10)
    steps = [played for _, played in bench.run(2.0)]
    assert bench.player.mode is ArmMode.HOLDING and "frozen" in bench.player.reason
    assert len(steps) <= 6 and steps[-1].command.verdict is Verdict.HOLD
    bench.frozen = False
    assert bench.arm() == "" and bench.chunk() == "" and verdicts(bench.run(0.1)) == [Verdict.OK]


def home(bench: Bench) -> str:
    return bench.player.go_home(bench.now_ns, bench.heard, (bench.now_ns - bench.heard_ns) * 1e-9)


def test_go_home_is_a_slow_walk_that_ends_holding(bench: Bench) -> None:
    bench.chunk()
    assert home(bench) == "" and "HOLDING" in bench.chunk()
    steps = bench.run(20.0)
    goals = np.array([played.command.joints for _, played in steps])
    assert np.abs(np.diff(goals, axis=0)).max() <= 0.08 + 1e-9 and np.diff([t for t, _ in steps]).min() > 0.19
    np.testing.assert_allclose(goals[-1], NEUTRAL, atol=1e-9)
    assert bench.player.mode is ArmMode.HOLDING and "at home" in bench.player.reason and not bench.player.going_home
    assert bench.arm() == ""


@pytest.mark.parametrize("what", ["hold", "stop", "disarm", "effort", "blocked", "silent"])
def test_the_way_home_can_be_ended(bench: Bench, what: str) -> None:
    assert home(bench) == ""
    bench.run(0.5)
    if what in ("hold", "stop", "disarm"):
        getattr(bench.player, what)()
    bench.frozen, bench.driver_alive = what == "blocked", what != "silent"
    bench.efforts = np.full(6, 5000.0 if what == "effort" else 0.0)
    steps = [played for _, played in bench.run(3.0)]
    assert steps[-1].command.verdict in (Verdict.HOLD, Verdict.STOP) and not bench.player.going_home
    assert bench.player.mode is not ArmMode.ARMED and np.abs(steps[-1].command.joints - NEUTRAL).max() > 0.1


def test_every_step_home_is_judged_when_it_is_due(bench: Bench) -> None:
    """Something has changed the goals, or the arm was pushed: what the guard would not send is not sent."""
    for spoil, words in ((lambda q: q + 0.6, "rad in one step"), (lambda q: q * np.array([1, 1, 1, 1, 1, 0]) + np.array(
            [0, 0, 0, 0, 0, JOINT_UPPER_RAD[5] - 0.01]), "of its limit"), (lambda q: LOW, "from the table")):
        bench.player.disarm()
        bench.run(0.1)
        bench.joints = bench.goal = OVER_TABLE if "table" not in words else LOW + np.array([0, -0.05, 0, 0, 0, 0])
        if "limit" in words:
            bench.joints = bench.goal = np.array([*OVER_TABLE[:5], JOINT_UPPER_RAD[5] - 0.2])
        bench.run(0.05)
        assert bench.arm() == "" and home(bench) == ""
        bench.run(0.05)
        bench.player._way[0] = spoil(bench.joints)
        steps = [played for _, played in bench.run(0.3)]
        assert steps[-1].command.verdict is Verdict.HOLD and words in bench.player.reason, bench.player.reason
        assert not bench.player.going_home


def test_no_way_home_from_a_disarmed_or_stopped_arm_or_through_the_table() -> None:
    bench = Bench()
    assert "arm it first" in home(bench)
    assert bench.arm() == ""
    bench.player.stop()
    assert "STOPPED" in home(bench)
    goals, refusal = way_home(np.zeros(6), SafetyConfig(workspace_low_m=(0.1, -0.2, 0.3),
                                                       workspace_high_m=(0.5, 0.2, 0.6)))
    assert goals == [] and "floor" in refusal


@pytest.mark.parametrize("act", ["hold", "disarm", "stop"])
def test_each_way_out_holds_the_measured_joints_once(bench: Bench, act: str) -> None:
    bench.chunk(*[[0.04, 0, 0, 0, 0, 0, 1]] * 4)
    bench.run(0.05)
    measured = bench.joints.copy()
    getattr(bench.player, act)("because")
    steps = bench.run(1.0)
    assert len(steps) == 1 and steps[0][1].action is None and steps[0][1].send
    command = steps[0][1].command
    assert command.verdict is (Verdict.STOP if act == "stop" else Verdict.HOLD) and command.reason == "because"
    np.testing.assert_allclose(command.joints, measured, atol=0.02)
    expected = {"hold": ArmMode.HOLDING, "disarm": ArmMode.DISARMED, "stop": ArmMode.STOPPED}
    assert bench.player.mode is expected[act]


def test_a_stop_stays_until_disarmed(bench: Bench) -> None:
    bench.player.stop("operator pressed stop")
    bench.run(0.1)
    assert "operator pressed stop" in bench.arm()
    bench.player.hold("other")
    bench.player.stop("later")
    assert bench.player.mode is ArmMode.STOPPED and bench.player.reason == "operator pressed stop"
    assert "STOPPED" in bench.chunk()
    bench.player.disarm()
    assert bench.arm() == "" and bench.player.mode is ArmMode.ARMED


def test_a_stop_while_disarmed_sends_nothing_but_blocks_arming() -> None:
    bench = Bench()
    bench.player.stop("pressed")
    assert bench.run(0.5) == []
    assert "pressed" in bench.arm()


def test_a_hardware_error_stops_at_the_next_tick(bench: Bench) -> None:
    bench.chunk()
    bench.run(0.05)
    bench.errors = (0, 0, 0, 32)
    steps = bench.run(0.05)
    assert verdicts(steps) == [Verdict.STOP] and bench.player.mode is ArmMode.STOPPED


def test_an_arm_that_is_seen_no_more_is_held_where_it_was_armed(bench: Bench) -> None:
    bench.player.hold()
    played = bench.player.tick(bench.now_ns, None, float("inf"))
    assert played is not None and played.command.verdict is Verdict.HOLD and played.send
    np.testing.assert_allclose(played.command.joints, OVER_TABLE, atol=1e-9)


def test_a_bad_reading_between_actions_is_caught_by_the_joints_before_it(bench: Bench) -> None:
    bench.chunk(*[[0.01, 0, 0, 0, 0, 0, 1]] * 4)
    bench.run(0.19)
    good = bench.joints.copy()
    bench.now_ns += TICK_NS
    fault = np.array([0.0, 0.9, 0.9, 0.0, 0.9, 0.0])
    broken = replace(bench.heard, joints=good - fault) if bench.heard else None
    played = bench.player.tick(bench.now_ns, broken, 0.0)
    assert played is not None and played.command.verdict is Verdict.HOLD and "jumped" in played.command.reason
    np.testing.assert_allclose(played.command.joints, bench.goal, atol=1e-9)  # the last, which it has almost reached
    assert np.abs(bench.goal - good).max() < 0.01


@pytest.mark.parametrize("joint", range(6))
@pytest.mark.parametrize("way", [-1.0, 1.0])
def test_a_joint_that_reads_wrong_does_not_become_good_by_waiting(bench: Bench, joint: int, way: float) -> None:
    """One motor answers with a number within its limits, for as long as one likes: the arm is not driven there."""
    true = bench.joints.copy()
    wrong = np.clip(true[joint] + way * 3.0, JOINT_LOWER_RAD[joint], JOINT_UPPER_RAD[joint])
    bench.run(0.1)

    def read(joints: Any, seconds: float) -> list[PlayedStep]:
        steps = []
        for _ in range(round(seconds / 0.01)):
            arm = ArmState(fk(joints), joints, np.zeros(6), np.zeros(6), 1.0, bench.now_ns)
            played = bench.player.tick(bench.now_ns, arm, 0.0)
            steps += [] if played is None else [played]
            bench.now_ns += TICK_NS
        return steps

    bad = true.copy()
    bad[joint] = wrong
    bench.chunk(*[[0, 0, 0, 0, 0, 0, 1]] * 4)
    steps = read(bad, 0.9)
    assert steps and bench.player.mode is ArmMode.ARMED
    steps += read(bad, 5.0)
    assert bench.player.mode is ArmMode.HOLDING and "jumped" in bench.player.reason, bench.player.reason
    assert home(bench) and "jumped" in bench.player.go_home(bench.now_ns, steps[-1].arm, 0.0)
    bench.player.stop("pressed")
    steps += read(bad, 0.1)
    assert steps[-1].command.verdict is Verdict.STOP
    for played in steps:
        np.testing.assert_allclose(played.command.joints, true, atol=1e-6)
    bench.player.disarm()
    arm = ArmState(fk(bad), bad, np.zeros(6), np.zeros(6), 1.0, bench.now_ns)
    assert bench.player.arm(bench.now_ns, arm, 0.0) == ""  # the operator has looked: that is where the arm is


def test_a_short_jump_is_forgotten_wherever_the_arm_went_meanwhile(bench: Bench) -> None:
    bench.chunk(*[[0.04, 0, 0, 0, 0, 0, 1]] * 4)
    bench.run(0.02)
    bad = bench.joints - np.array([0, 0, 0, 0, 0, 3.0])
    for _ in range(15):
        arm = ArmState(fk(bad), bad, np.zeros(6), np.zeros(6), 1.0, bench.now_ns)
        bench.player.tick(bench.now_ns, arm, 0.0)
        bench.now_ns += TICK_NS
    bench.joints = bench.goal.copy()
    assert np.abs(bench.goal - OVER_TABLE).max() > 0.1
    assert Verdict.OK in verdicts(bench.run(0.5)) and bench.player.mode is ArmMode.ARMED


def test_an_arm_that_is_lost_in_motion_comes_to_rest_at_its_last_goal(bench: Bench) -> None:
    """Not where it was seen last: it has gone on since, and would turn round at speed."""
    bench.chunk(*[[0.05, 0, 0, 0, 0, 0, 1]] * 4)
    seen = bench.run(0.41)
    bench.driver_alive = False
    steps = bench.run(1.5)
    goals = [played.command.joints for _, played in seen + steps if played.command.verdict in MOVES]
    held = [played.command for _, played in steps if played.command.verdict is Verdict.HOLD]
    assert held and bench.player.mode is ArmMode.HOLDING
    for command in held:
        np.testing.assert_allclose(command.joints, goals[-1], atol=1e-9)
    assert bench.heard is not None and np.abs(goals[-1] - bench.heard.joints).max() > 0.1


def test_frames_from_before_the_arming_are_refused(bench: Bench) -> None:
    assert "before the arming" in bench.chunk(age_s=0.2)
    assert bench.chunk(age_s=0.05) == ""
    bench.run(0.3)
    bench.player.hold()
    bench.run(0.3)
    assert bench.arm() == "" and "before the arming" in bench.chunk(age_s=0.15) and bench.chunk(age_s=0.05) == ""


def test_sagging_at_every_hold_does_not_creep_down() -> None:
    """A loaded arm rests 5 mm below its goal; held and moved again a hundred times, it stays near the floor."""
    low_m = 0.022
    bench = Bench(workspace_low_m=(0.12, -0.2, low_m))
    start = ik(pose_from_state(np.array([0.3, 0, low_m + 0.001, 0, 0, 0, 1.0])), OVER_TABLE)
    bench.joints, bench.goal = start.copy(), start.copy()
    bench.run(0.01)
    assert bench.arm() == ""
    lowest = []
    for _ in range(100):
        bench.chunk([0, 0, -0.002, 0, 0, 0, 1], age_s=0.05)
        lowest += [p.command.T_base_target[2, 3] for _, p in bench.run(0.2) if p.command.verdict in MOVES]
        T = fk(bench.joints)
        T[2, 3] -= 0.005
        bench.joints = ik(T, bench.joints)
        bench.player.abandon("no policy")
        bench.run(0.02)
    assert len(lowest) > 50 and min(lowest) > low_m - 0.0031, min(lowest)


def test_rearming_starts_from_where_the_arm_is(bench: Bench) -> None:
    bench.chunk(*[[0.04, 0, 0, 0, 0, 0, 1]] * 2)
    bench.run(0.3)
    bench.player.disarm()
    bench.run(0.1)
    moved = ik(pose_from_state(np.array([0.25, 0.1, 0.2, 0, 0, 0, 1.0])), OVER_TABLE)
    bench.joints, bench.goal = moved.copy(), moved.copy()  # by hand, while disarmed
    bench.run(0.1)
    assert bench.arm() == "" and bench.chunk() == ""
    first = bench.run(0.05)[0][1].command
    assert first.verdict is Verdict.OK
    np.testing.assert_allclose(first.T_base_target[:3, 3], [0.26, 0.1, 0.2], atol=1e-3)


def grip(watch: GripWatch, fingers: Any, playing: bool, begin_s: float = 0.0) -> list[bool]:
    return [watch.drives(round((begin_s + 0.02 * i) * 1e9), finger, playing) for i, finger in enumerate(fingers)]


def test_a_held_gripper_goes_on_only_if_it_had_come_to_rest() -> None:
    closing, resting = np.linspace(0.035, 0.02, 20), np.full(20, 0.02)
    moving, still, blind, lost = GripWatch(), GripWatch(), GripWatch(), GripWatch()
    assert all(grip(moving, closing, True)) and not any(grip(moving, resting, False, 0.4))
    assert all(grip(moving, resting, True, 0.8))  # armed again
    assert all(grip(still, resting, True)) and all(grip(still, resting + 0.0004, False, 0.4))
    assert not any(grip(still, resting[:3] - 0.002, False, 0.8)), "it slipped: it moves after all"
    assert not any(grip(blind, resting, False)), "nothing was seen before"
    assert all(grip(lost, resting, True)) and all(grip(lost, resting, False, 0.4))
    lost.lost()
    assert not any(grip(lost, resting, False, 0.8)) and not any(grip(lost, [float("nan")] * 3, True, 1.2))
    late = GripWatch()  # told to close just before the hold: it begins to move after it
    assert all(grip(late, resting, True)) and grip(late, closing[:10] - 0.015, False, 0.4)[-1] is False


def test_gripper_scale_and_loop() -> None:
    assert gripper_from_finger(0.035) == pytest.approx(1.0) and gripper_from_finger(0.010) == pytest.approx(0.0)
    assert gripper_from_finger(0.0375) == pytest.approx(1.1)
    assert finger_from_gripper(gripper_from_finger(0.02)) == pytest.approx(0.02)
    loop = GripperLoop()
    assert loop.pwm(1.0, 0.010) == 350.0  # 25 mm away: saturated
    assert loop.pwm(0.0, 0.037) == -350.0
    assert loop.pwm(1.0, 0.034) == pytest.approx(300 * 0.001 * 350)
    assert loop.pwm(0.0, 0.015) == -350.0  # at the finger's limit it still squeezes
    assert loop.pwm(0.6, 0.035) == pytest.approx(0.0) and loop.pwm(0.5, 0.010) == pytest.approx(0.0)
    assert GripperLoop(binary=False).pwm(0.6, 0.025) == pytest.approx(0.0)
    assert loop.pwm(float("nan"), 0.02) == 0.0 and loop.pwm(1.0, float("inf")) == 0.0
    with pytest.raises(BadConfig, match="max_pwm"):
        GripperLoop(max_pwm=2000)
