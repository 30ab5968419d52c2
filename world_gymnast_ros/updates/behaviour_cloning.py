"""Iter-SFT: train the policy further by imitation of its own successes. The baseline that a loop must beat.

The same LoRA adapter, store and base as adaptation by reinforcement, but the loss is cloning of what the arm did in
true episodes that succeeded, up to their success. It needs no world model and no judge, only true outcomes.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.store import Store
from world_gymnast_ros.training.optim import warm_then_decay
from world_gymnast_ros.training.policy import relight
from world_gymnast_ros.types import AdapterRef, TrainablePolicy
from world_gymnast_ros.updates.policy_gradient import LoraConfig, LoraLearner


@dataclass(frozen=True)
class Imitation:
    """Settings. `after_success`: actions kept beyond the step where success came, so that the arm learns to stay."""

    steps: int = 60
    batch: int = 32
    after_success: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise BadConfig(f"steps {self.steps}, batch {self.batch}: both must be at least 1")


def success_chunks(episodes: Sequence[Episode], chunk: int, after_success: int) -> list[tuple[Episode, int]]:
    """Return every place in a successful episode, up to its success, at which `chunk` actions begin."""
    out = []
    for e in episodes:
        if e.success:
            done = e.steps if e.done_step is None else e.done_step + after_success
            out += [(e, t) for t in range(max(0, min(e.steps, done) - chunk + 1))]
    return out


def cloning_loss(policy: TrainablePolicy, episodes: Sequence[Episode], settings: Imitation
                 ) -> Callable[[np.random.Generator], Tensor] | None:
    """Return a function that draws a batch of what succeeded and gives its loss; None where nothing did."""
    chunks = success_chunks(episodes, policy.chunk_size, settings.after_success)
    if not chunks:
        return None

    def loss(rng: np.random.Generator) -> Tensor:
        picks = [chunks[i] for i in rng.integers(len(chunks), size=min(settings.batch, max(8, len(chunks))))]
        frames = relight(torch.from_numpy(np.stack([e.frames[t] for e, t in picks])), rng).numpy()
        deltas = np.stack([e.deltas[t:t + policy.chunk_size] for e, t in picks])
        out: Tensor = policy.cloning_loss(frames, [e.instruction for e, _ in picks], deltas)
        return out
    return loss


def imitate(policy: TrainablePolicy, episodes: Sequence[Episode], lora: LoraConfig, settings: Imitation,
            parent: AdapterRef | None, store: Store, name: str, scores: dict[str, Any], created_ns: int,
            progress: Callable[[int, float], object] = lambda step, loss: None) -> AdapterRef | None:
    """Clone the successes of `episodes` into an adapter that starts from `parent`; None where there are none.

    The policy is as `parent` left it afterwards.
    """
    loss_of = cloning_loss(policy, episodes, settings)
    if loss_of is None:
        return None
    learner = LoraLearner(policy, lora, parent)
    rng = np.random.default_rng((settings.seed, 31))
    learner.begin()
    try:
        assert learner.optimiser is not None
        for step in range(settings.steps):
            loss = loss_of(rng)
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
