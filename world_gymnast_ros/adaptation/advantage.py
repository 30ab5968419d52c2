"""Turn rewards of a group of rollouts into advantages: GRPO or leave-one-out. Imports numpy alone."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.types import F32, RolloutGroup

METHODS = ("grpo", "leave_one_out")


@dataclass(frozen=True)
class Advantages:
    """Advantages of one group.

    `values` float32 (G,), 0 where not `used`; `used` bool (G,), False where there was no verdict;
    `degenerate` True when nothing can be learned: fewer than two verdicts, or all rewards equal.
    """

    values: F32
    used: NDArray[np.bool_]
    degenerate: bool
    mean_reward: float


def group_advantages(rewards: Sequence[float | None], method: str = "grpo", eps: float = 1e-6) -> Advantages:
    """Compute advantages over one group; None rewards (no verdict) take no part.

    grpo: (r - group mean) / (group *sample* standard deviation + eps), Shao et al. 2024 as SimpleVLA-RL runs it.
    leave_one_out: r - mean of the other rewards (RLOO).
    """
    if method not in METHODS:
        raise BadConfig(f"advantage method {method!r} is unknown; choose one of {METHODS}")
    used = np.array([r is not None for r in rewards], np.bool_)
    known = np.array([r for r in rewards if r is not None], np.float64)
    if known.size and not np.isfinite(known).all():
        raise BadConfig(f"rewards must be finite or None, got {known[~np.isfinite(known)][0]}")
    values = np.zeros(len(rewards), np.float32)
    mean = float(known.mean()) if known.size else 0.0
    std = float(known.std(ddof=1)) if known.size > 1 else 0.0
    degenerate = known.size < 2 or float(np.ptp(known)) < 1e-9
    if not degenerate:
        centred = known - mean
        n = known.size
        values[used] = centred / (std + eps) if method == "grpo" else centred * n / (n - 1)
    return Advantages(values, used, degenerate, mean)


def rollout_rewards(group: RolloutGroup, speed_bonus: float = 0.0, progress_weight: float = 0.0,
                    success_threshold: float = 0.5) -> list[float | None]:
    """Return one reward per rollout: score + progress_weight * progress + speed bonus. None: no verdict.

    `progress` counts where the judge gives it; it is what tells failures apart when nothing succeeds yet. The bonus,
    speed_bonus (1 - done/T), only orders successes among themselves (sooner is better) and never rewards a failure.
    """
    steps = len(group.chunks) * group.chunks[0].deltas.shape[1]
    horizon = max(group.frames.shape[1] - 1, steps)
    rewards: list[float | None] = []
    for judgement in group.judgements:
        if judgement.score is None:
            rewards.append(None)
            continue
        reward = judgement.score + progress_weight * (judgement.progress or 0.0)
        if judgement.score > success_threshold and judgement.done_at is not None:
            reward += speed_bonus * (1.0 - judgement.done_at / horizon)
        rewards.append(reward)
    return rewards
