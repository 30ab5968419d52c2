"""Play a policy that was trained in the world model in the true environment, which it has never met."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from world_gymnast_ros.errors import BadBudget
from world_gymnast_ros.first_order.encoder import FrameEncoder
from world_gymnast_ros.first_order.task import Task

TEST_SEED, CURVE_SEED = 9_000_000, 8_000_000
"""First seeds of the final test and of the curve during training; play data starts elsewhere (`PLAY_SEED`)."""
PLAY_SEED = 1_000_000


@dataclass(frozen=True)
class TrueResult:
    """Means over episodes: coverage at the start's first step, at the end, at its best; reward per step; successes."""

    episodes: int
    first_coverage: float
    final_coverage: float
    final_coverage_se: float
    best_coverage: float
    reward: float
    successes: int

    def to_dict(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)


def play_truly(task: Task, act: Callable[[Tensor], Tensor], encoder: FrameEncoder, episodes: int, first_seed: int,
               steps: int | None = None) -> TrueResult:
    """Play one episode of `steps` actions (None: the task's number) per seed, greedily, from images alone.

    `act` maps latents (1, Z) to actions (1, 2). All policies meet the same starts. An episode goes on after success,
    so that a policy which undoes it is seen.
    """
    if episodes < 1:
        raise BadBudget(f"episodes {episodes} must be at least 1")
    rows = []
    for seed in range(first_seed, first_seed + episodes):
        view = task.reset(seed)
        coverages, rewards = [], []
        for _ in range(steps or task.episode_steps):
            with torch.no_grad():
                z, _ = encoder.encode(torch.from_numpy(view.image)[None])
                action = act(z)[0].numpy().astype(np.float64)
            view = task.step(action)
            coverages.append(view.coverage)
            rewards.append(view.reward)
        rows.append((coverages[0], coverages[-1], max(coverages), float(np.mean(rewards))))
    first, final, best, reward = np.asarray(rows).T
    se = float(final.std(ddof=1) / np.sqrt(episodes)) if episodes > 1 else 0.0
    return TrueResult(episodes, float(first.mean()), float(final.mean()), se, float(best.mean()),
                      float(reward.mean()), int((best > task.success_coverage).sum()))


def random_policy(seed: int) -> Callable[[Tensor], Tensor]:
    """Return a policy that draws every action uniformly from -1..1."""
    generator = torch.Generator().manual_seed(seed)
    return lambda z: 2.0 * torch.rand(z.shape[0], 2, generator=generator) - 1.0
