"""Laplace actions around a regression head: log-densities, samples, and the head that gives their scale.

OpenVLA-OFT trains its action head with an L1 loss, which is the likelihood of a Laplace distribution of fixed scale; so
a learned scale beside it keeps the head's meaning and makes it explore (World-Env, arXiv 2509.24948). Per dimension

    log p(a) = -|a - mean| / scale - log(2 scale)

A sample is `mean - scale sign(u) log(1 - 2 |u|)` with u uniform in (-1/2, 1/2): differentiable in mean and scale, as
first-order gradients need it. A temperature multiplies the scale.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from world_gymnast_ros.errors import BadConfig

LOG_2 = math.log(2.0)
MIN_SCALE, MAX_SCALE = 1e-5, 2.0
"""Limits of the scale in normalised units (actions span -1..1)."""


def log_density(actions: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return the Laplace log-density of each element of `actions`; all tensors share a shape (or broadcast)."""
    return -(actions - mean).abs() * torch.exp(-log_scale) - log_scale - LOG_2


def entropy(log_scale: Tensor) -> Tensor:
    """Return the entropy of each element, 1 + log(2 scale)."""
    return log_scale + LOG_2 + 1.0


def draw(mean: Tensor, log_scale: Tensor, uniform: Tensor) -> Tensor:
    """Return samples, differentiable in `mean` and `log_scale`; `uniform` lies in 0..1."""
    u = uniform.clamp(1e-6, 1.0 - 1e-6) - 0.5
    return mean - torch.exp(log_scale) * torch.sign(u) * torch.log1p(-2.0 * u.abs())


def sample(mean: Tensor, log_scale: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return samples at a temperature and their log-densities at that temperature, element by element."""
    actions = draw(mean, log_scale + math.log(temperature), uniform)
    return actions, scored(actions, mean, log_scale, temperature)


def scored(actions: Tensor, mean: Tensor, log_scale: Tensor, temperature: float) -> Tensor:
    """Return the log-density of each element of `actions` at a temperature."""
    return log_density(actions, mean, log_scale + math.log(temperature))


class LaplaceScale(nn.Module):
    """Features (..., dim) to log-scales (..., actions), from `least` to MAX_SCALE; at first `scale` everywhere.

    Its layer starts at zero, so LoRA on it (or training it whole) begins at the stated constant scale. The lower limit
    is smooth, scale = least + exp(layer): where a clamp acts there would be no gradient that leads away from it.
    """

    def __init__(self, dim: int, actions: int, scale: float, least: float = MIN_SCALE) -> None:
        super().__init__()
        if not MIN_SCALE <= least < scale <= MAX_SCALE:
            raise BadConfig(f"a Laplace scale of {scale} and a least one of {least} do not keep to {MIN_SCALE} <= "
                            f"least < scale <= {MAX_SCALE}")
        self.log_least = math.log(least)
        self.fc = nn.Linear(dim, actions)
        nn.init.zeros_(self.fc.weight)
        nn.init.constant_(self.fc.bias, math.log(scale - least))

    def forward(self, features: Tensor) -> Tensor:
        """Return the log-scales, float32."""
        raw = self.fc(features).float()
        return torch.logaddexp(raw, torch.full_like(raw, self.log_least)).clamp(max=math.log(MAX_SCALE))
