"""PPO in the same global model on the same latents: the rival, which needs no derivative of anything."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from world_gymnast_ros.errors import BadBudget
from world_gymnast_ros.first_order.actor_critic import Actor, Critic, lambda_returns
from world_gymnast_ros.first_order.copies import Copies
from world_gymnast_ros.first_order.global_model import GlobalModel
from world_gymnast_ros.first_order.play import Play


@dataclass(frozen=True)
class PpoConfig:
    """One learner: `copies` x `window` steps per update, `epochs` passes in minibatches of `batch` steps."""

    copies: int = 32
    window: int = 20
    episode_steps: int = 40
    gamma: float = 0.95
    lam: float = 0.95
    lr: float = 1e-3
    clip: float = 0.2
    entropy: float = 3e-3
    epochs: int = 6
    batch: int = 160

    def __post_init__(self) -> None:
        if not (0.0 < self.gamma < 1.0 and 0.0 < self.clip < 1.0 and self.lr > 0.0 and self.batch > 0):
            raise BadBudget(f"gamma {self.gamma}, clip {self.clip}, lr {self.lr}, batch {self.batch}: gamma and clip "
                            "lie in 0..1, lr and batch are positive")


class PpoLearner:
    """Holds everything that changes in training."""

    def __init__(self, model: GlobalModel, play: Play, config: PpoConfig, seed: int) -> None:
        torch.manual_seed(seed)
        self.model, self.config = model, config
        self.generator = torch.Generator().manual_seed(seed)
        self.copies = Copies(model, play, config.copies, config.window, config.episode_steps, self.generator)
        self.actor, self.critic = Actor(model.latent, model.action_dim), Critic(model.latent)
        self.optimiser = torch.optim.Adam([*self.actor.parameters(), *self.critic.net.parameters()], config.lr)
        self.numbers: dict[str, Any] = {"updates": 0}

    def policy(self) -> Actor:
        """Return the policy to judge the learner by."""
        return self.actor

    def update(self) -> dict[str, float]:
        """Roll out one window and learn from it; return figures for the progress bar."""
        c = self.config
        self.copies.renew()
        z, raw, old, rewards = self._collect()
        with torch.no_grad():
            values = self.critic(z)
            targets = lambda_returns(rewards, values[:, 1:], torch.ones_like(rewards), c.gamma, c.lam)
            advantage = targets - values[:, :-1]
        flat = [x.flatten(0, 1) for x in (z[:, :-1], raw)] + [x.flatten() for x in (old, advantage, targets)]
        for _ in range(c.epochs):
            for at in torch.randperm(len(flat[0]), generator=self.generator).split(c.batch):
                self._minibatch(*(x[at] for x in flat))
        self.numbers["updates"] += 1
        return {"reward": float(rewards.mean())}

    @torch.no_grad()
    def _collect(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return latents (B, T + 1, Z), actions before squashing (B, T, A), log densities and rewards (B, T)."""
        z, raws, olds, rewards = [self.copies.state.z], [], [], []
        for _ in range(self.config.window):
            noise = torch.randn(self.config.copies, self.model.action_dim, generator=self.generator)
            action, log_density, raw = self.actor.sample(z[-1], noise)
            rewards.append(self.copies.step(action))
            raws.append(raw)
            olds.append(log_density)
            z.append(self.copies.state.z)
        return torch.stack(z, 1), torch.stack(raws, 1), torch.stack(olds, 1), torch.stack(rewards, 1)

    def _minibatch(self, z: Tensor, raw: Tensor, old: Tensor, advantage: Tensor, targets: Tensor) -> None:
        c = self.config
        log_density = self.actor.log_density(z, raw)
        ratio = (log_density - old).exp()
        scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        gain = torch.minimum(ratio * scaled, ratio.clamp(1.0 - c.clip, 1.0 + c.clip) * scaled).mean()
        noise = torch.randn(raw.shape, generator=self.generator)
        entropy = -self.actor.sample(z, noise)[1].mean()
        loss = -gain - c.entropy * entropy + 0.5 * (self.critic(z) - targets).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.optimiser.param_groups[0]["params"], 0.5)
        self.optimiser.step()

    def parts(self) -> tuple[dict[str, torch.nn.Module], dict[str, torch.optim.Optimizer], dict[str, Tensor]]:
        """Return modules, optimisers and tensors that a stopped run needs, beside `numbers`."""
        return {"actor": self.actor, "critic": self.critic}, {"adam": self.optimiser}, self.copies.tensors()

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on from what `parts` and `numbers` gave; modules and optimisers are filled already."""
        self.copies.restore(tensors)
        self.numbers = numbers
