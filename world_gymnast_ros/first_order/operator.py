"""The decoupled operator: the value of one model, the derivative of another."""
from __future__ import annotations

import torch
from torch import Tensor

from world_gymnast_ros.errors import BadAction


class _Decoupled(torch.autograd.Function):
    """Written as a function of its own, because value + (surrogate - surrogate) is not `value` bit for bit."""

    @staticmethod
    def forward(ctx: object, value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def decoupled(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return z' = sg(value) + surrogate - sg(surrogate): forward the value, bit for bit; backward the surrogate.

    Both float, of one shape and dtype; BadAction where they differ. No gradient reaches what made `value`.
    """
    if value.shape != surrogate.shape or value.dtype != surrogate.dtype:
        raise BadAction(f"the value is {tuple(value.shape)} {value.dtype}, the surrogate {tuple(surrogate.shape)} "
                        f"{surrogate.dtype}; both must be of one shape and dtype")
    result: Tensor = _Decoupled.apply(value.detach(), surrogate)
    return result
