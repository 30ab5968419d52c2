"""Fine-tune a regression policy on a handful of demonstrations: the trunk of a small policy, heads of its own.

As OpenVLA-OFT begins: a policy that was trained elsewhere gets a new regression head, and all of it learns from a few
demonstrations of one task. The loss is the policy's own, the Laplace likelihood, which is L1 where the scale is fixed.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadConfig, EpisodeError
from world_gymnast_ros.models.policies.openvla import OpenVLA
from world_gymnast_ros.models.policies.regression import RegressionConfig, RegressionNetwork, RegressionPolicy
from world_gymnast_ros.training.optim import MuonAdamW, warm_then_decay
from world_gymnast_ros.updates.behaviour_cloning import Imitation, cloning_loss

HEADS = ("action_head.", "scale_head.")


@dataclass(frozen=True)
class FineTuning:
    """Settings. `heads_only`: the trunk stays as it was. `learned_scale`, `action_scale`, `least_scale`: see
    `RegressionConfig`."""

    steps: int = 150
    batch: int = 32
    muon_lr: float = 2e-4
    adamw_lr: float = 5e-4
    heads_only: bool = False
    learned_scale: bool = True
    action_scale: float = RegressionConfig.action_scale
    least_scale: float = RegressionConfig.least_scale
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise BadConfig(f"steps {self.steps}, batch {self.batch}: both must be at least 1")


def with_regression_heads(start: OpenVLA, settings: FineTuning, name: str) -> RegressionPolicy:
    """Return a policy with the trunk and action statistics of `start`, and fresh heads."""
    values = {k: v for k, v in start.config.to_dict().items() if k in RegressionConfig.__annotations__
              or k in type(start.config).__annotations__}
    config = RegressionConfig(**{**values, "name": name, "action_scale": settings.action_scale,
                                 "least_scale": settings.least_scale, "learned_scale": settings.learned_scale})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = RegressionNetwork(config)
    own = network.state_dict()
    shared = {k: v for k, v in start.model.state_dict().items() if k in own}
    missing = [k for k in own if k not in shared and not k.startswith(HEADS)]
    assert not missing, missing
    network.load_state_dict({**own, **shared})
    return RegressionPolicy(network, base_hash="", device=str(start.device))


def fine_tune(policy: RegressionPolicy, episodes: Sequence[Episode], settings: FineTuning,
              progress: Callable[[int, float], object] = lambda step, loss: None) -> None:
    """Train the base weights of `policy` on the successes among `episodes`, up to their success.

    Raises EpisodeError where none succeeded, BadConfig where an adapter is in.
    """
    loss_of = cloning_loss(policy, episodes, Imitation(settings.steps, settings.batch, seed=settings.seed))
    if loss_of is None:
        raise EpisodeError(f"none of {len(episodes)} episodes is marked as a success; there is nothing to imitate")
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(not settings.heads_only or name.startswith(HEADS))
    policy.model.train()
    optimiser = MuonAdamW(policy.model, settings.muon_lr, settings.adamw_lr)
    rng = np.random.default_rng((settings.seed, 37))
    try:
        for step in range(settings.steps):
            optimiser.set_scale(warm_then_decay(step, settings.steps, warmup=settings.steps // 10 + 1))
            loss = loss_of(rng)
            loss.backward()
            optimiser.step()
            progress(step + 1, float(loss.detach()))
    finally:
        policy.model.eval().requires_grad_(False)


