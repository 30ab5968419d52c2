"""How fast a world model imagines: frames per second of wall time and of processor time.

    python bench/frames_per_second.py                       the shipped world model, 32 rollouts at once
    python bench/frames_per_second.py --world-model runs/wm --copies 64 --threads 2

On a busy machine only processor time says something about the code.
"""
from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from world_gymnast_ros.loading.load import load_world_model
from world_gymnast_ros.types import ACTION_DIM, F32, Frame, RolloutBatch, Start


def measure(rollouts: RolloutBatch, deltas: F32, seconds: float) -> tuple[float, float]:
    """Play `deltas` float32 (G, K, 7) again and again; return frames per second of wall and of processor time."""
    rollouts.play(deltas)
    frames, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        frames += int(np.prod(rollouts.play(deltas).shape[:2]))
    return frames / (time.perf_counter() - wall), frames / (time.process_time() - cpu)


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-model", default="", help="folder (default: the shipped one)")
    parser.add_argument("--copies", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world = load_world_model(args.world_model)
    rng = np.random.default_rng(0)
    frame = Frame(rng.integers(0, 256, (*world.frame_size, 3), dtype=np.uint8), 0)
    start = Start(frame, np.array([0.3, 0, 0.1, 0, 0, 0, 1], np.float32), "noise")
    deltas = rng.normal(0, 0.01, (args.copies, world.stride, ACTION_DIM)).astype(np.float32)
    wall, cpu = measure(world.begin([start] * args.copies, 0), deltas, args.seconds)
    print(f"{world.name}, {args.copies} rollouts, {args.threads} threads: {wall:.0f} frames/s, {cpu:.0f} per "
          "processor second", flush=True)


if __name__ == "__main__":
    main()
