"""Iter-SFT: train the policy further by imitation of its own successes. The baseline that a loop must beat.

The same LoRA adapter, store and base as adaptation by reinforcement, but the loss is cloning of what the arm did in
true episodes that succeeded, up to their success. It needs no world model and no judge, only true outcomes.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.learning.lora_pg import LoraConfig, LoraLearner
from world_gymnast_ros.learning.optim import warm_then_decay
from world_gymnast_ros.learning.play_table import PlayTable
from world_gymnast_ros.learning.train_policy import relight, soft_target_loss
from world_gymnast_ros.models.openvla import OpenVLA
from world_gymnast_ros.store import Store
from world_gymnast_ros.types import AdapterRef


@dataclass(frozen=True)
class Imitation:
    """Settings. `after_success`: actions kept beyond the step where success came, so that the arm learns to stay."""

    steps: int = 60
    batch: int = 32
    sigma_bins: float = 12.0
    after_success: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise BadConfig(f"steps {self.steps}, batch {self.batch}: both must be at least 1")


def success_rows(table: PlayTable, chunk: int, after_success: int) -> tuple[np.ndarray, list[str]]:
    """Return frame rows (R,) at which a chunk of a successful episode starts, and the instruction of each."""
    rows, words = [], []
    for e in table.episodes:
        done = table.success[e.first:e.first + e.steps + 1]
        if done[-1]:
            last = min(e.steps, int(np.argmax(done)) + after_success) - chunk
            rows += list(range(e.first, e.first + max(0, last) + 1))
            words += [e.instruction] * (max(0, last) + 1)
    return np.array(rows, np.int64), words


def imitate(policy: OpenVLA, table: PlayTable, lora: LoraConfig, settings: Imitation, parent: AdapterRef | None,
            store: Store, name: str, scores: dict[str, Any], created_ns: int,
            progress: Callable[[int, float], object] = lambda step, loss: None) -> AdapterRef | None:
    """Clone the successes of `table` into an adapter that starts from `parent`; None where there are none.

    The policy is as `parent` left it afterwards.
    """
    rows, words = success_rows(table, policy.chunk_size, settings.after_success)
    if not len(rows):
        return None
    learner = LoraLearner(policy, lora, parent)
    rng = np.random.default_rng((settings.seed, 31))
    values = policy.stats.normalise(table.deltas)
    chunk = np.arange(policy.chunk_size)
    learner.begin()
    try:
        assert learner.optimiser is not None
        for step in range(settings.steps):
            picks = rng.integers(len(rows), size=min(settings.batch, max(8, len(rows))))
            frames = relight(torch.from_numpy(table.frames[rows[picks]]), rng).numpy()
            logits = policy.logits(frames, [words[i] for i in picks])
            wanted = torch.from_numpy(values[rows[picks][:, None] + chunk])
            loss = soft_target_loss(logits.float(), wanted, settings.sigma_bins)
            scale = warm_then_decay(step, settings.steps, warmup=settings.steps // 10 + 1)
            for group in learner.optimiser.param_groups:
                group["lr"] = lora.learning_rate * scale
            learner.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learner.weights, 1.0)
            learner.optimiser.step()
            progress(step + 1, float(loss.detach()))
        return store.put(name, learner.save, parent=parent.name if parent else "base", base_policy=policy.name,
                         scores=scores, created_ns=created_ns)
    finally:
        learner.end()
