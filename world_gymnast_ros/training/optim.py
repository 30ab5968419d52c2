"""Muon for the matrices, AdamW for the rest: the optimiser of every training in this package.

Muon orthogonalises the momentum of each hidden matrix (Jordan et al., 2024). Matrices of one shape are stacked
and orthogonalised together in bfloat16, so that a tiny model spends its time in the matrix unit, not in Python.
"""
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Quintic coefficients of the Newton-Schulz iteration, tuned for slope at zero (Jordan et al., 2024)."""
NOT_MATRICES = ("embed", "head", "queries", "position")
"""Names of 2-D parameters that are tables of vectors or output layers; they go to AdamW."""


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices, roughly: singular values end within about 0.7 to 1.2.

    `stack` (M, rows, cols), any float; the result is bfloat16 of the same shape.
    """
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.to(torch.bfloat16)
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalisation, then a step of RMS about 0.2 lr per element (so AdamW-like rates fit)."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient are left alone."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for same in shapes.values():
                self._step_shape(same, group)

    def _step_shape(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
        grads = [p.grad for p in params]
        torch._foreach_lerp_(momenta, grads, 1.0 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
        rows, cols = params[0].shape
        updates = orthogonalise(torch.stack(nesterov)).to(params[0].dtype)
        scale = 0.2 * math.sqrt(max(rows, cols))
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list(updates.unbind(0)), alpha=-group["lr"] * scale)


class MuonAdamW:
    """The pair as one optimiser: `step`, `zero_grad`, `set_scale`; `parts` hold what a stopped run goes on with."""

    def __init__(self, model: nn.Module, muon_lr: float, adamw_lr: float, weight_decay: float = 0.01) -> None:
        """Split the trainable parameters of `model`: hidden matrices to Muon, tables, biases and norms to AdamW."""
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name, p in model.named_parameters():
            if p.requires_grad:
                table = p.ndim != 2 or min(p.shape) < 8 or any(word in name for word in NOT_MATRICES)
                (rest if table else matrices).append(p)
        self.parameters: list[Tensor] = matrices + rest
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.97), weight_decay=0.0, foreach=True))
        self.base_lrs = [[g["lr"] for g in part.param_groups] for part in self.parts]

    def step(self, max_norm: float = 1.0) -> float:
        """Clip the gradient to `max_norm`, step, clear the gradient; return the norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, max_norm, foreach=True)
        for part in self.parts:
            part.step()
        self.zero_grad()
        return float(norm)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.parameters:
            p.grad = None

    def set_scale(self, scale: float) -> None:
        """Set every learning rate to `scale` times its starting value (for a schedule)."""
        for part, lrs in zip(self.parts, self.base_lrs, strict=True):
            for group, lr in zip(part.param_groups, lrs, strict=True):
                group["lr"] = lr * scale


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move every parameter of `average` to `keep` of itself and 1 - `keep` of `model`'s."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - keep)


def warm_then_decay(step: int, total: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Return the schedule's factor at `step`: linear warm-up, then a cosine from 1 down to `floor` at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
