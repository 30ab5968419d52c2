"""Time inverse kinematics over random reachable poses: `python bench/ik.py [--poses 20000]`."""
from __future__ import annotations

import argparse
import time

import numpy as np

from world_gymnast_ros.robot.kinematics import JOINT_LOWER_RAD, JOINT_UPPER_RAD, fk, ik


def main() -> None:
    """Print p50, p99 and the largest pose error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--poses", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    joints = rng.uniform(JOINT_LOWER_RAD, JOINT_UPPER_RAD, (args.poses, 6))
    seeds = joints + rng.normal(0.0, 0.2, joints.shape)
    wall_us, cpu_us, errors = np.empty(args.poses), np.empty(args.poses), np.empty(args.poses)
    for i, (q, seed) in enumerate(zip(joints, seeds, strict=True)):
        T = fk(q)
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        solution = ik(T, seed)
        cpu_us[i], wall_us[i] = (time.thread_time_ns() - cpu) / 1e3, (time.perf_counter_ns() - wall) / 1e3
        errors[i] = np.abs(fk(solution) - T).max()
    print(f"ik: {args.poses} poses, largest error {errors.max():.1e} (m, rotation entry)")
    for name, values in (("wall", wall_us), ("this thread's processor time", cpu_us)):
        p50, p99 = np.percentile(values, [50, 99])
        print(f"  {name}: p50 {p50:.1f} us  p99 {p99:.1f} us")


if __name__ == "__main__":
    main()
