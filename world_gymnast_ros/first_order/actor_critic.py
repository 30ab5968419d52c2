"""A stochastic policy and a value, both of the latent."""
from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_STD = (-2.5, 0.3)
"""Range of the logarithm of the standard deviation, before the squashing."""


def tower(inputs: int, outputs: int, width: int = 128) -> nn.Sequential:
    """Return a perceptron with two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width),
                         nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, outputs))


class Actor(nn.Module):
    """A Gaussian squashed by tanh: actions in -1..1, reparameterised."""

    def __init__(self, latent: int, action_dim: int) -> None:
        super().__init__()
        self.net = tower(latent, 2 * action_dim)
        last = self.net[-1]
        with torch.no_grad():
            last.weight.mul_(0.1)

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation (B, A) before the squashing."""
        mean, raw = self.net(z).chunk(2, -1)
        low, high = LOG_STD
        return mean, low + (high - low) * torch.sigmoid(raw + 1.0)

    def greedy(self, z: Tensor) -> Tensor:
        """Return the middle action (B, A)."""
        return torch.tanh(self.parts(z)[0])

    def sample(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return action (B, A), its log density (B,), and the value before squashing; `noise` standard normal."""
        mean, log_std = self.parts(z)
        raw = mean + log_std.exp() * noise
        return torch.tanh(raw), self.log_density(z, raw), raw

    def log_density(self, z: Tensor, raw: Tensor) -> Tensor:
        """Return the log density (B,) of the action tanh(`raw`)."""
        mean, log_std = self.parts(z)
        gauss = -0.5 * ((raw - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2.0 * math.pi)
        squash = 2.0 * (math.log(2.0) - raw - F.softplus(-2.0 * raw))
        out: Tensor = (gauss - squash).sum(-1)
        return out


class Critic(nn.Module):
    """A value of latents, with a slow copy for targets."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.net = tower(latent, 1)
        self.slow = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, z: Tensor, slow: bool = False) -> Tensor:
        """Map (..., Z) to values (...)."""
        out: Tensor = (self.slow if slow else self.net)(z).squeeze(-1)
        return out

    @torch.no_grad()
    def follow(self, keep: float = 0.98) -> None:
        """Move the slow copy towards the value."""
        for mine, new in zip(self.slow.parameters(), self.net.parameters(), strict=True):
            mine.lerp_(new, 1.0 - keep)


def lambda_returns(rewards: Tensor, values: Tensor, going: Tensor, gamma: float, lam: float) -> Tensor:
    """Return TD(lambda) targets (B, T) for rewards (B, T) and values of the states they lead to (B, T).

    `going` (B, T) is 0 where the episode was cut after that step: the target then ends at the value, not before it.
    """
    out, following = torch.empty_like(rewards), values[:, -1]
    for t in reversed(range(rewards.shape[1])):
        mixed = torch.where(going[:, t] > 0, (1.0 - lam) * values[:, t] + lam * following, values[:, t])
        following = rewards[:, t] + gamma * mixed
        out[:, t] = following
    return out


def fit_critic(critic: Critic, optimiser: torch.optim.Optimizer, z: Tensor, targets: Tensor, passes: int) -> float:
    """Regress values of latents (N, Z) on targets (N,) for `passes` steps; return the last loss."""
    loss = torch.zeros(())
    for _ in range(passes):
        loss = (critic(z) - targets).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(critic.net.parameters(), 1.0)
        optimiser.step()
        critic.follow()
    return float(loss.detach())
