"""Fuzz the guard with hostile steps and check every promise: `python bench/fuzz_guard.py [--steps 1000000]`."""
from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Any

import numpy as np

from world_gymnast_ros.kinematics import JOINT_LOWER_RAD, JOINT_UPPER_RAD, fk
from world_gymnast_ros.limits import SafetyConfig
from world_gymnast_ros.safety import GuardInputs, GuardState, guard, remember
from world_gymnast_ros.types import ArmCommand, ArmState, Verdict

STRANGE = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 1e-300, 3.5, -np.pi, 0.0])


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


def check_promises(command: ArmCommand, memory: GuardState, inputs: GuardInputs, config: SafetyConfig) -> None:
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
        return
    assert inputs.arm is not None and not any(inputs.hardware_errors)
    measured = np.asarray(inputs.arm.joints, float)
    assert (np.abs(command.joints - measured) <= config.max_joint_step_rad + 1e-6).all()
    assert -0.05 <= inputs.arm_age_s <= config.max_arm_age_s
    assert inputs.frame_age_s <= config.max_action_age_s
    start = memory.T_target if memory.T_target is not None and "re-seeded" not in command.reason else fk(measured)
    # Turning about the measured point moves a target that leads it: that much comes on top of the step itself.
    lead = float(np.linalg.norm(start[:3, 3] - fk(measured)[:3, 3]))
    turn = 2.0 * np.sin(min(np.pi / 2, np.sqrt(3.0) * config.max_step_rad / 2.0))
    # A start a motor tick (up to 0.1 rad when implausible) outside the joint limits is moved onto them first.
    slack = 0.1 if (np.clip(measured, JOINT_LOWER_RAD, JOINT_UPPER_RAD) != measured).any() else 1e-6
    position = command.T_base_target[:3, 3]
    assert np.linalg.norm(position - start[:3, 3]) <= config.max_step_m + turn * lead + slack
    low = np.minimum(config.workspace_low_m, start[:3, 3]) - slack
    assert (position >= low).all() and (position <= np.maximum(config.workspace_high_m, start[:3, 3]) + slack).all()
    assert np.abs(command.sent[3:6]).max() <= config.max_step_rad + 1e-6
    assert np.linalg.norm(command.sent[:3]) <= config.max_step_m + turn * lead + slack


def fuzz(steps: int, seed: int) -> Counter[Verdict]:
    """Run `steps` guarded steps on an arm that follows, lags and is sometimes moved; return the verdicts' counts."""
    rng = np.random.default_rng(seed)
    config, counts = SafetyConfig(), Counter[Verdict]()
    memory, joints, now_ns = GuardState(), np.array([0.0, 0.022, 0.183, 0.0, 1.366, 0.0]), 0
    for _ in range(steps):
        if rng.random() < 0.02:  # begin again somewhere else, with or without memory
            joints = rng.uniform(JOINT_LOWER_RAD, JOINT_UPPER_RAD)
            memory = GuardState() if rng.random() < 0.7 else memory
        if rng.random() < 0.01:
            memory = GuardState(T_target=rng.normal(size=(4, 4)), good_joints=rng.normal(size=6) * 3, good_ns=now_ns)
        inputs = hostile_inputs(rng, joints, now_ns)
        usual = np.concatenate([rng.normal(0.0, [0.02] * 3 + [0.1] * 3), [rng.random()]])
        command = guard(hostile_vector(rng, usual), memory, inputs, config)
        check_promises(command, memory, inputs, config)
        counts[command.verdict] += 1
        memory = remember(memory, command)
        if np.isfinite(command.joints).all():
            joints = joints + rng.uniform(0.5, 1.0) * (command.joints - joints)
        now_ns += 200_000_000
    return counts


def main() -> None:
    """Print the verdicts and the rate; an AssertionError names the broken promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin = time.perf_counter()
    counts = fuzz(args.steps, args.seed)
    seconds = time.perf_counter() - begin
    print(f"{args.steps} hostile steps in {seconds:.0f} s, no exception and no broken promise: "
          + ", ".join(f"{v.value} {counts[v]}" for v in Verdict))


if __name__ == "__main__":
    main()
