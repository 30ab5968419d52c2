"""Is the surrogate fit to give derivatives? Its errors against copying, and its derivatives against differences."""
from __future__ import annotations

import torch
from torch import Tensor

from world_gymnast_ros.first_order.global_model import GlobalModel, Imagined
from world_gymnast_ros.first_order.operator import decoupled
from world_gymnast_ros.first_order.surrogate import LatentSurrogate, Sequences


@torch.no_grad()
def k_step_errors(surrogate: LatentSurrogate, data: Sequences, warm_up: int = 2,
                  horizons: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Return root-mean-square latent errors of the surrogate and of copying the last latent, by horizon.

    Open loop with the recorded actions, after `warm_up` steps that fill the memory.
    """
    memory = surrogate.start(data.actions.shape[0])
    for t in range(warm_up):
        _, memory = surrogate.step(data.latents[:, t], data.actions[:, t], memory)
    z, start, errors = data.latents[:, warm_up], data.latents[:, warm_up], {}
    for k in range(1, min(max(horizons), data.actions.shape[1] - warm_up) + 1):
        z, memory = surrogate.step(z, data.actions[:, warm_up + k - 1], memory)
        if k in horizons:
            true = data.latents[:, warm_up + k]
            errors[f"surrogate_{k}"] = float((z - true).square().mean().sqrt())
            errors[f"copy_{k}"] = float((start - true).square().mean().sqrt())
    return errors


def derivative_cosines(model: GlobalModel, surrogate: LatentSurrogate, state: Imagined, actions: Tensor, seed: int,
                       step: float = 0.25) -> dict[str, Tensor]:
    """Compare derivatives with respect to the first action with central differences of the global model.

    `actions` (B, T, A) are played from `state`, the differences under the same noise. Returns cosines (B,): `latent` of
    the next latent's Jacobian (Z x A, flattened), `reward` of the gradient (A,) of the sum of rewards over T steps, and
    `size` (B,), the norm of the latter by differences: where nothing depends on the action a cosine means nothing.
    """
    noises = [model.noise(actions.shape[0], torch.Generator().manual_seed(seed + t)) for t in range(actions.shape[1])]
    latent, reward = [], []
    for i in range(actions.shape[2]):
        nudge = torch.zeros_like(actions)
        nudge[:, 0, i] = step
        (z_high, high), (z_low, low) = (_roll(model, state, actions + sign * nudge, noises) for sign in (1.0, -1.0))
        latent.append((z_high - z_low) / (2.0 * step))
        reward.append((high - low) / (2.0 * step))
    true_latent, true_reward = torch.stack(latent, -1).flatten(1), torch.stack(reward, -1)
    own_latent, own_reward = surrogate_derivatives(model, surrogate, state, actions, noises)
    return {"latent": torch.cosine_similarity(own_latent, true_latent, dim=1),
            "reward": torch.cosine_similarity(own_reward, true_reward, dim=1), "size": true_reward.norm(dim=1)}


@torch.no_grad()
def _roll(model: GlobalModel, state: Imagined, actions: Tensor, noises: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the latent (B, Z) after one step and the sum of rewards (B,) over all."""
    first, total = state.z, torch.zeros(actions.shape[0])
    for t, noise in enumerate(noises):
        state, reward = model.step(state, actions[:, t], noise)
        first = state.z if t == 0 else first
        total = total + reward
    return first, total


def surrogate_derivatives(model: GlobalModel, surrogate: LatentSurrogate, state: Imagined, actions: Tensor,
                          noises: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the decoupled Jacobian of the next latent (B, Z * A) and gradient of the sum of rewards (B, A)."""
    first = actions[:, 0].clone().requires_grad_(True)
    z, memory = state.z, surrogate.start(actions.shape[0])
    following, total = z, torch.zeros(actions.shape[0])
    for t, noise in enumerate(noises):
        action = first if t == 0 else actions[:, t]
        estimate, memory = surrogate.step(z, action, memory)
        state, reward = model.step(state, action, noise)
        z = decoupled(state.z, estimate)
        following = z if t == 0 else following
        total = total + decoupled(reward, surrogate.reward(z))
    rows = [torch.autograd.grad(following[:, j].sum(), first, retain_graph=True)[0]
            for j in range(following.shape[1])]
    gradient = torch.autograd.grad(total.sum(), first)[0]
    return torch.stack(rows, 1).flatten(1).detach(), gradient.detach()
