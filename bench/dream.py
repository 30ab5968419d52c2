"""How fast dreams are drawn: frames per second with the exact cache and with recomputing the window, 1 and 4 steps.

    python bench/dream.py                          the shipped world model, batch 32
    python bench/dream.py --checkpoint runs/wm --copies 64 --threads 1

Reports wall time and processor time: on a busy machine only the latter says something about the code.
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from world_gymnast_ros.models.load import load_world_model
from world_gymnast_ros.models.world_models.action_dit import ActionDiT, ActionDiTConfig
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld
from world_gymnast_ros.types import Frame


class Recomputing:
    """The same network without a cache: every frame recomputes the whole window, as the public WorldGym code does."""

    def __init__(self, world: ActionDiTWorld, copies: int, steps: int) -> None:
        self.network, self.steps, self.copies = world.network, steps, copies
        self.dtype = self.network.age_bias.dtype
        c = self.network.config
        self.first = self.network.windows(torch.rand(copies, 1, c.image_size, c.image_size, 3)).to(self.dtype)
        self.previous = self.first.expand(-1, c.context_frames, -1, -1).contiguous()
        self.noisy = torch.randn(copies, c.context_frames, c.tokens, 3 * c.patch**2).to(self.dtype)
        self.condition = torch.randn(copies, c.context_frames, 15)

    @torch.inference_mode()
    def step(self) -> None:
        """Draw one frame for each copy."""
        for _ in range(self.steps):
            self.network(self.previous, self.first, self.noisy, torch.ones(self.noisy.shape[:2]), self.condition)


def measure(step: Callable[[], object], copies: int, seconds: float) -> tuple[float, float]:
    """Return frames per second of wall time and of processor time."""
    step()
    frames, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        step()
        frames += copies
    return frames / (time.perf_counter() - wall), frames / (time.process_time() - cpu)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="", help="folder (default: the shipped one; 'new': untrained)")
    parser.add_argument("--copies", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="per figure")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    new = args.checkpoint == "new"
    world = ActionDiTWorld(ActionDiT(ActionDiTConfig())) if new else load_world_model(args.checkpoint)
    size = world.config.image_size
    start = Frame(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8), 0)
    deltas = np.random.default_rng(0).normal(0, 0.01, (args.copies, 7)).astype(np.float32)
    millions = sum(p.numel() for p in world.network.parameters()) / 1e6
    print(f"{millions:.2f} M parameters, {world.network.age_bias.dtype}, batch {args.copies}, {args.threads} threads")
    print("| steps per frame | cache | frames/s | frames/processor-s |\n|---|---|---|---|")
    for steps in (1, 4):
        world.sampling_steps = steps
        dream = world.begin(start, np.array([0.3, 0, 0.1, 0, 0, 0, 1], np.float32), args.copies, 0)
        recomputing = Recomputing(world, args.copies, steps)
        for name, step in (("exact", lambda d=dream: d.step(deltas)), ("none", recomputing.step)):
            wall, cpu = measure(step, args.copies, args.seconds)
            print(f"| {steps} | {name} | {wall:.0f} | {cpu:.0f} |", flush=True)


if __name__ == "__main__":
    main()
