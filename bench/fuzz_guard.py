"""Fuzz the guard with hostile steps and check every promise: `python bench/fuzz_guard.py [--steps 1000000] [--player]`.

With --player the chunk player above it too: chunks in any order, old, of any size, with any number in them; joint
states that are stale, frozen, jump or are nonsense; operators and faults at any moment; denormal and NaN times.

A hold is exempt from some of it, since it must be sent whatever it takes: it has joints within their limits and no
motion in its record, but it is not checked for speed, acceleration, workspace or distances.
It is where the arm is measured, or, where that cannot be believed, a goal that was checked before.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "test"))
from capsule_arm import CapsuleArm

from world_gymnast_ros.control.arm_state import observe, plausible
from world_gymnast_ros.control.chunk_player import ArmMode, ChunkPlayer
from world_gymnast_ros.control.guard import GuardInputs, GuardState, guard, remember
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.robot.actions import pose_from_state, rpy_to_matrix
from world_gymnast_ros.robot.clearance import BOW_M
from world_gymnast_ros.robot.kinematics import JOINT_LOWER_RAD, JOINT_UPPER_RAD, NEUTRAL, fk, ik
from world_gymnast_ros.types import ActionChunk, ArmCommand, ArmState, Verdict

STRANGE = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 1e-300, 5e-324, 3.5, -np.pi, 0.0])
MOVES = (Verdict.OK, Verdict.CLAMPED)


def hostile_vector(rng: np.random.Generator, usual: np.ndarray) -> Any:
    """Return `usual`, or something a broken policy or bus might deliver in its place."""
    kind = rng.random()
    if kind < 0.80:
        return usual
    if kind < 0.88:
        return usual * 10.0 ** rng.uniform(0, 4)
    if kind < 0.97:
        broken = usual.copy()
        broken[rng.integers(len(usual))] = rng.choice(STRANGE)
        return broken
    return [None, "up", usual[:-1], usual[None], usual.tolist(), usual.astype(object), np.full(len(usual), -np.pi),
            {}][rng.integers(8)]


def hostile_inputs(rng: np.random.Generator, joints: np.ndarray, now_ns: int) -> GuardInputs:
    """Return inputs around `joints`, sometimes stale, absent, overloaded, in error or nonsense."""
    measured = hostile_vector(rng, joints) if rng.random() < 0.2 else joints
    efforts = hostile_vector(rng, rng.normal(0.0, 300.0, 6)) if rng.random() < 0.2 else np.zeros(6)
    strange = float(rng.choice(STRANGE))
    gripper = strange if rng.random() < 0.1 else float(rng.random())
    arm = ArmState(fk(joints), measured, np.zeros(6), efforts, gripper, now_ns)
    ages = [strange if rng.random() < 0.03 else float(rng.exponential(scale)) for scale in (0.02, 0.3)]
    errors = (0, 0, 4) if rng.random() < 0.04 else ()
    return GuardInputs(None if rng.random() < 0.02 else arm, ages[0], ages[1], now_ns, errors)


class Motors:
    """What the servos' time profile makes of the goals that reach the driver: even speed between two ramps, begun at
    the speed that the last profile has when a goal comes. Independent of `profile`: knots and areas.
    """

    def __init__(self, joints: np.ndarray, config: SafetyConfig) -> None:
        self.ramp_s, self.moving_s = config.accel_time_s, config.moving_time_s
        self.knots_s, self.sent_ns = np.array([0.0, self.ramp_s, self.moving_s - self.ramp_s, self.moving_s]), 0
        self.speeds, self.start = np.zeros((4, 6)), joints

    def go(self, goal: np.ndarray, now_ns: int) -> tuple[float, float]:
        """Take a goal; return the largest speed and acceleration of any joint on the way to it."""
        elapsed_s = min((now_ns - self.sent_ns) * 1e-9, self.moving_s)
        times = np.concatenate([self.knots_s[self.knots_s < elapsed_s], [elapsed_s]])
        speeds = np.stack([np.interp(times, self.knots_s, self.speeds[:, i]) for i in range(6)], axis=1)
        self.start = self.start + ((speeds[1:] + speeds[:-1]) / 2.0 * np.diff(times)[:, None]).sum(axis=0)
        begin = speeds[-1]
        # Area under the trapezoid: (begin + even)/2 ramp + even (moving - 2 ramp) + even/2 ramp = goal - start.
        even = (goal - self.start - begin * self.ramp_s / 2.0) / (self.moving_s - self.ramp_s)
        self.speeds, self.sent_ns = np.stack([begin, even, even, np.zeros(6)]), now_ns
        steepness = np.diff(self.speeds, axis=0) / np.diff(self.knots_s)[:, None]
        return float(np.abs(even).max()), float(np.abs(steepness).max())


def check_clearance(
    oracle: CapsuleArm, command: ArmCommand, start: np.ndarray, measured: np.ndarray, gripper: Any, config: SafetyConfig
) -> None:
    """Assert, with MuJoCo's kinematics and distances, that nothing comes too close, at the goal and half-way to it."""
    known = isinstance(gripper, (int, float, np.floating)) and -1e9 < gripper < 1e9
    finger_m = 0.010 + 0.025 * max(command.gripper, min(gripper, 1.1) if known else 1.1)

    def room(joints: np.ndarray) -> np.ndarray:
        oracle.place(joints, finger_m)
        return np.concatenate([[oracle.table().min() - config.table_z_m - config.min_table_clearance_m],
                               oracle.links() - config.min_self_clearance_m])

    goal, half_way = room(command.joints), room((measured + command.joints) / 2.0)
    if goal.min() >= 0.0 and half_way.min() >= -BOW_M:
        return
    before, from_here = np.minimum(room(start), 0.0), np.minimum(room(measured), 0.0)
    assert (goal >= before - 1e-5).all(), (goal, before)
    assert (half_way >= np.minimum(before, from_here) - BOW_M - 1e-5).all(), half_way


def check_promises(
    command: ArmCommand, memory: GuardState, inputs: GuardInputs, config: SafetyConfig, oracle: CapsuleArm
) -> None:
    """Assert what the guard promises about any command it returns."""
    assert isinstance(command, ArmCommand) and command.verdict in Verdict
    assert command.requested.shape == command.sent.shape == (7,) and command.sent.dtype == np.float32
    assert 0.0 <= command.gripper <= 1.0 and bool(command.reason) == (command.verdict is not Verdict.OK)
    if not np.isfinite(command.joints).all():
        assert command.verdict is Verdict.STOP and np.isnan(command.joints).all()
        return
    assert (command.joints >= JOINT_LOWER_RAD - 1e-6).all() and (command.joints <= JOINT_UPPER_RAD + 1e-6).all()
    assert np.abs(fk(command.joints) - command.T_base_target).max() < 1e-6
    if command.verdict in (Verdict.HOLD, Verdict.STOP):
        assert not command.sent[:6].any()
        goal = None if memory.profile is None else memory.profile.goal
        places = (memory.held, getattr(inputs.arm, "joints", None), memory.good_joints, goal)
        assert any(p is not None and np.abs(p - command.joints).max() < 1e-9 for p in map(plausible, places))
        return
    assert inputs.arm is not None and not any(inputs.hardware_errors)
    measured = np.asarray(inputs.arm.joints, float)
    assert (np.abs(command.joints - measured) <= config.max_joint_step_rad + 1e-6).all()
    assert -0.05 <= inputs.arm_age_s <= config.max_arm_age_s
    assert inputs.frame_age_s <= config.max_action_age_s
    start = memory.T_target if memory.T_target is not None and "re-seeded" not in command.reason else fk(measured)
    # Turning about the measured point moves a target that leads it: that much comes on top of the step itself.
    lead = float(np.linalg.norm(start[:3, 3] - fk(measured)[:3, 3]))
    widest = rpy_to_matrix(config.max_step_rad * np.array([-1.0, 1.0, 1.0]))  # of all that the box allows
    turn = np.sqrt(3.0 - np.trace(widest))  # 2 sin of half its angle
    raised = 0.0 if memory.armed_joints is None else 0.01  # of a target that sagged since arming
    # A start a motor tick (up to 0.1 rad when implausible) outside the joint limits is moved onto them first.
    slack = raised + (0.1 if (np.clip(measured, JOINT_LOWER_RAD, JOINT_UPPER_RAD) != measured).any() else 1e-6)
    position = command.T_base_target[:3, 3]
    assert np.linalg.norm(position - start[:3, 3]) <= config.max_step_m + turn * lead + slack
    low = np.minimum(config.workspace_low_m, start[:3, 3]) - slack
    assert (position >= low).all() and (position <= np.maximum(config.workspace_high_m, start[:3, 3]) + slack).all()
    assert np.abs(command.sent[3:6]).max() <= config.max_step_rad + 1e-6
    assert np.linalg.norm(command.sent[:3]) <= config.max_step_m + turn * lead + slack
    inside = np.clip(measured, JOINT_LOWER_RAD, JOINT_UPPER_RAD)
    kept = memory.T_target is not None and "re-seeded" not in command.reason
    check_clearance(oracle, command, ik(start, measured) if kept else inside, measured, inputs.arm.gripper, config)


def fuzz(steps: int, seed: int) -> Counter[Verdict]:
    """Run `steps` guarded steps on an arm that follows, lags and is sometimes moved; return the verdicts' counts.

    In every other thousand the measured joints are judged against the last good ones first, as the player does.
    """
    rng, oracle = np.random.default_rng(seed), CapsuleArm()
    config, counts = SafetyConfig(), Counter[Verdict]()
    memory, joints, now_ns = GuardState(), np.array([0.0, 0.022, 0.183, 0.0, 1.366, 0.0]), 0
    motors: Motors | None = None
    for number in range(steps):
        if rng.random() < 0.02:  # begin again somewhere else, with or without memory
            joints = rng.uniform(JOINT_LOWER_RAD, JOINT_UPPER_RAD)
            memory = GuardState() if rng.random() < 0.7 else memory
        if rng.random() < 0.01:
            memory = GuardState(T_target=rng.normal(size=(4, 4)), good_joints=rng.normal(size=6) * 3, good_ns=now_ns)
        inputs = hostile_inputs(rng, joints, now_ns)
        if number // 1000 % 2:
            memory = observe(memory, inputs, config)
        usual = np.concatenate([rng.normal(0.0, [0.02] * 3 + [0.1] * 3), [rng.random()]])
        command = guard(hostile_vector(rng, usual), memory, inputs, config)
        check_promises(command, memory, inputs, config, oracle)
        counts[command.verdict] += 1
        if np.isfinite(command.joints).all():
            if memory.profile is None or motors is None:  # begun anew: the motors are at rest where they are measured
                at = plausible(getattr(inputs.arm, "joints", None))
                motors = Motors(command.joints if at is None else at, config)
            speed, acceleration = motors.go(command.joints, now_ns)
            if command.verdict in (Verdict.OK, Verdict.CLAMPED):
                assert speed <= np.pi + 1e-6 and acceleration <= config.max_joint_acceleration_rad_s2 + 1e-4
            joints = joints + rng.uniform(0.5, 1.0) * (command.joints - joints)
        memory = remember(memory, command, inputs, config)
        now_ns += int(rng.choice([20, 100, 180, 200, 220, 1000], p=[0.02, 0.03, 0.1, 0.7, 0.1, 0.05])) * 1_000_000
    return counts


class PlayerFuzz:
    """A player, an arm that follows its goals with a lag, and everything that may go wrong between them."""

    def __init__(self, seed: int) -> None:
        self.rng, self.config = np.random.default_rng(seed), SafetyConfig(workspace_low_m=(0.12, -0.2, 0.022))
        self.player, self.oracle, self.now_ns = ChunkPlayer(self.config), CapsuleArm(), 10**12
        self.joints = self.goal = np.array([0.0, 0.022, 0.183, 0.0, 1.366, 0.0])
        self.heard, self.heard_ns, self.fault, self.fault_until_ns = self.joints.copy(), self.now_ns, "", 0
        self.motors: Motors | None = None
        self.sane = False  # armed where the arm is, at rest
        self.armed_ns, self.played_ns, self.sequence, self.last_sequence = 0, 0, 0, -1
        self.counts: Counter[Verdict] = Counter()

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def strange(self, usual: float, share: float = 0.03) -> float:
        return float(self.rng.choice(STRANGE)) if self.chance(share) else usual

    def hear(self) -> GuardInputs:
        """Return what the node would know of the arm now; a fault lasts for up to two seconds."""
        rng = self.rng
        if self.now_ns >= self.fault_until_ns:
            self.fault = str(rng.choice(["", "stale", "frozen", "jump", "-pi", "none"],
                                        p=[0.9, 0.03, 0.02, 0.03, 0.01, 0.01]))
            self.fault_until_ns = self.now_ns + int(rng.uniform(0.02, 2.0 if self.fault else 0.5) * 1e9)
            self.sane &= self.fault != "frozen"  # nobody can know until it has lasted
            self.wrong = rng.uniform(JOINT_LOWER_RAD, JOINT_UPPER_RAD)
            self.wrong = np.where(np.arange(6) == rng.integers(6), self.wrong, self.joints)
        if self.fault != "stale":
            self.heard_ns = self.now_ns
            self.heard = {"jump": self.wrong, "-pi": np.full(6, -np.pi), "frozen": self.heard}.get(
                self.fault, self.joints)
        measured = hostile_vector(rng, self.heard) if self.chance(0.01) else self.heard.copy()
        efforts = hostile_vector(rng, rng.normal(0.0, 300.0, 6)) if self.chance(0.01) else np.zeros(6)
        arm = ArmState(fk(self.heard), measured, np.zeros(6), efforts, self.strange(rng.random(), 0.01), self.now_ns)
        age_s = self.strange((self.now_ns - self.heard_ns) * 1e-9, 0.005)
        return GuardInputs(None if self.fault == "none" else arm, age_s, 0.0, self.now_ns,
                           (0, 0, 4) if self.chance(0.001) else ())

    def operate(self, inputs: GuardInputs) -> None:
        """Press something, or arm again where nothing moves."""
        player, act = self.player, self.rng.random()
        if player.mode is not ArmMode.ARMED and not player.going_home and act < 0.1:
            player.disarm()
            if self.chance(0.3):  # by hand
                place = self.rng.uniform([0.15, -0.15, 0.02], [0.35, 0.2, 0.2])
                self.joints = self.goal = ik(pose_from_state(np.array([*place, 0.0, 0.0, 0.0, 1.0])), NEUTRAL)
                return
            if player.arm(self.now_ns, inputs.arm, inputs.arm_age_s, inputs.hardware_errors) == "":
                self.armed_ns, self.played_ns, self.last_sequence, self.motors = self.now_ns, 0, -1, None
                away = np.abs([self.player.memory.good_joints - self.joints, self.goal - self.joints])
                self.sane = bool(away.max() < 0.1)
        elif act < 0.106:
            [player.hold, player.disarm, player.stop, lambda: player.abandon("gone"),
             lambda: player.go_home(self.now_ns, inputs.arm, inputs.arm_age_s)][self.rng.integers(5)]()

    def offer(self) -> None:
        """Offer a chunk, usually a good one."""
        rng, size = self.rng, int(self.rng.choice([0, 1, 4, 8, 64, 65], p=[0.02, 0.2, 0.5, 0.2, 0.06, 0.02]))
        deltas = np.concatenate([rng.normal(0.0, [0.02] * 3 + [0.1] * 3, (size, 6)), rng.random((size, 1))], axis=1)
        if size and self.chance(0.1):
            with np.errstate(over="ignore"):
                deltas[rng.integers(size), rng.integers(7)] = rng.choice([*STRANGE, 1e-45, 0.5, 40.0])
        with np.errstate(over="ignore"):
            chunk = ActionChunk(deltas.astype(np.float32), int(self.now_ns + rng.normal(0, 1e8) * self.chance(0.1)),
                                dt_s=self.strange(self.config.dt_s, 0.05))
        self.sequence += int(rng.choice([1, 0, -3, 5], p=[0.9, 0.04, 0.03, 0.03]))
        age_s = self.strange(float(rng.exponential(0.1)))
        refusal = self.player.accept(chunk, self.now_ns, sequence=self.sequence, frame_age_s=age_s)
        if refusal == "":
            assert np.isfinite(chunk.deltas).all() and 1 <= size <= 64 and self.sequence > self.last_sequence
            assert abs(chunk.dt_s - self.config.dt_s) <= 1e-3 and -0.05 <= age_s <= self.config.max_frame_age_s
            assert self.now_ns - round(age_s * 1e9) >= self.armed_ns
            self.last_sequence = self.sequence

    def tick(self) -> None:
        """Let a tick pass and judge what would reach the driver."""
        inputs, player = self.hear(), self.player
        self.operate(inputs)
        if self.chance(0.1):
            self.offer()
        memory = observe(player.memory, inputs, self.config)
        armed, home = player.mode is ArmMode.ARMED, player.going_home
        played = player.tick(self.now_ns, inputs.arm, inputs.arm_age_s, inputs.hardware_errors)
        if played is not None:
            command, action = played.command, played.action
            self.counts[command.verdict] += 1
            assert played.send == bool(np.isfinite(command.joints).all())
            if action is not None or command.verdict not in MOVES:
                check_promises(command, memory, replace(inputs, frame_age_s=played.frame_age_s), self.config,
                               self.oracle)
            if command.verdict not in MOVES and self.sane and played.send:
                # Whatever the joint states say: a hold is where the arm is, or at most one step on, on its way.
                assert np.abs(command.joints - self.joints).max() < 0.6, (command.reason, command.joints - self.joints)
            if command.verdict in MOVES:
                assert armed if action is not None else home
            if action is not None:
                assert action.sequence == self.last_sequence and action.frame_ns >= self.armed_ns
                assert self.now_ns - self.played_ns > 0.75 * self.config.dt_s * 1e9
                self.played_ns = self.now_ns
            if played.send:
                self._send(command, memory, inputs)
        step_ns = int(self.rng.choice([2, 10, 20, 50, 300], p=[0.05, 0.55, 0.2, 0.18, 0.02])) * 1_000_000
        self.joints = self.joints + (1 - 0.1 ** (step_ns / 2e8)) * (self.goal - self.joints)
        self.now_ns += step_ns

    def _send(self, command: ArmCommand, memory: GuardState, inputs: GuardInputs) -> None:
        if memory.profile is None or self.motors is None:
            at = plausible(getattr(inputs.arm, "joints", None))
            self.motors = Motors(command.joints if at is None else at, self.config)
        speed, acceleration = self.motors.go(command.joints, self.now_ns)
        if command.verdict in MOVES:
            assert speed <= np.pi + 1e-6 and acceleration <= self.config.max_joint_acceleration_rad_s2 + 1e-4
        self.goal = command.joints


def fuzz_player(steps: int, seed: int) -> Counter[Verdict]:
    """Run `steps` ticks of the player; return the verdicts' counts of what it sent."""
    run = PlayerFuzz(seed)
    for _ in range(steps):
        run.tick()
    return run.counts


def main() -> None:
    """Print the verdicts and the rate; an AssertionError names the broken promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--player", action="store_true", help="ticks of the chunk player, not steps of the guard alone")
    args = parser.parse_args()
    begin = time.perf_counter()
    counts = (fuzz_player if args.player else fuzz)(args.steps, args.seed)
    seconds = time.perf_counter() - begin
    what = "ticks" if args.player else "steps"
    print(f"{args.steps} hostile {what} in {seconds:.0f} s, no exception and no broken promise: "
          + ", ".join(f"{v.value} {counts[v]}" for v in Verdict))


if __name__ == "__main__":
    main()
