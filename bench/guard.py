"""Time the guard on ordinary and on shortened steps: `python bench/guard.py [--steps 5000]`."""
from __future__ import annotations

import argparse
import time

import numpy as np

from world_gymnast_ros.config import ArmConfig
from world_gymnast_ros.control.guard import GuardInputs, GuardState, guard
from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.robot.actions import pose_from_state
from world_gymnast_ros.robot.kinematics import NEUTRAL, fk, ik
from world_gymnast_ros.types import ArmState, Verdict


def reachable_joints(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Return joints of gripper-down poses inside the workspace that ships."""
    box, found = ArmConfig().safety().workspace, []
    while len(found) < count:
        state = np.array([*rng.uniform(box.low_m, box.high_m), *rng.normal(0.0, 0.2, 3), 1.0])
        try:
            found.append(ik(pose_from_state(state), NEUTRAL))
        except Unreachable:
            continue
    return found


def main() -> None:
    """Print p50 and p99 for steps of Bridge's usual size and for steps ten times too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    config, poses = ArmConfig().safety(), reachable_joints(rng, args.steps)
    usual = np.array([0.0098, 0.0137, 0.0127, 0.0285, 0.0306, 0.0769, 0.5])  # bridge_orig standard deviations
    for name, size in (("usual", 1.0), ("huge", 10.0)):
        wall_us, cpu_us, verdicts = np.empty(args.steps), np.empty(args.steps), []
        for i, joints in enumerate(poses):
            arm = ArmState(fk(joints), joints, np.zeros(6), np.zeros(6), 1.0, 0)
            memory = GuardState(T_target=fk(joints + rng.normal(0.0, 0.005, 6)), good_joints=joints)
            inputs, delta = GuardInputs(arm, 0.01, 0.2, 0), rng.normal(0.0, usual) * size
            wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
            verdicts.append(guard(delta, memory, inputs, config).verdict)
            cpu_us[i], wall_us[i] = (time.thread_time_ns() - cpu) / 1e3, (time.perf_counter_ns() - wall) / 1e3
        print(f"guard, {args.steps} {name} steps: " + ", ".join(f"{v.value} {verdicts.count(v)}" for v in Verdict))
        for clock, values in (("wall", wall_us), ("this thread's processor time", cpu_us)):
            p50, p99 = np.percentile(values, [50, 99])
            print(f"  {clock}: p50 {p50:.0f} us  p99 {p99:.0f} us")


if __name__ == "__main__":
    main()
