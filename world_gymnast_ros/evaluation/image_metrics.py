"""How far imagined frames are from recorded ones: computed, not learned."""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from world_gymnast_ros.types import F64, U8

SSIM_WINDOW_PX = 7
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
SCALES = 3


def squared_error(a: U8, b: U8) -> F64:
    """Return the mean squared error (N,) of frames uint8 (N, H, W, 3), grey 0..1."""
    return np.asarray(((a.astype(np.float32) - b) ** 2).mean((1, 2, 3)) / 255.0**2, np.float64)


def psnr_db(mse: float) -> float:
    """Return the peak signal-to-noise ratio of a mean squared error (grey 0..1)."""
    return float(-10.0 * np.log10(max(mse, 1e-10)))


def structural_error(a: U8, b: U8) -> F64:
    """Return 1 - SSIM (N,) of grey images uint8 (N, H, W, 3), mean over whole, half and quarter size."""
    x, y = (torch.from_numpy(np.ascontiguousarray(v)).float().div_(255.0).mean(-1)[:, None] for v in (a, b))
    errors = []
    for _ in range(SCALES):
        def mean(v: torch.Tensor) -> torch.Tensor:
            return F.avg_pool2d(v, SSIM_WINDOW_PX, 1)
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        ssim = ((2 * mx * my + SSIM_C1) * (2 * cov + SSIM_C2)) / ((mx**2 + my**2 + SSIM_C1) * (vx + vy + SSIM_C2))
        errors.append(1.0 - ssim.mean((1, 2, 3)))
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return np.asarray(torch.stack(errors).mean(0).numpy(), np.float64)
