"""Vision tower of the small models: overlapping windows, sine-cosine places, a few attention blocks.

Written for processors with bfloat16 matrix units: windows are a linear layer over an unfolded view (backward of a
convolution costs more than the rest of the network), attention is written out (the fused kernel is slow in
backward on CPU), and weights stay float32 under autocast.
"""
from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLACE_AMPLITUDE = 0.7
"""Places must be as loud as content from the first step, or positions are not learned in thousands of steps."""


@lru_cache(maxsize=1)
def _cpu_has_bf16_matrices() -> bool:
    caps = torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, "cpu") else ""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return caps.startswith(("AVX512", "AMX")) and bool(amx or bf16)


def fast_math(device: torch.device) -> AbstractContextManager[object]:
    """Return a bfloat16 autocast where the device multiplies bfloat16 matrices in hardware, else do nothing."""
    if device.type == "cuda" or (device.type == "cpu" and _cpu_has_bf16_matrices()):
        autocast: AbstractContextManager[object] = torch.autocast(device.type, dtype=torch.bfloat16)
        return autocast
    return nullcontext()


def place_table(side: int, dim: int) -> Tensor:
    """Return sine-cosine places float32 (side * side, dim): half the channels for the row, half for the column."""
    wavelengths = math.pi * 2.0 ** torch.linspace(0.0, math.log2(side / 2.0), dim // 4)
    angle = torch.linspace(-1.0, 1.0, side)[:, None] * wavelengths
    line = torch.cat([angle.sin(), angle.cos()], dim=-1)
    rows, cols = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return PLACE_AMPLITUDE * torch.cat([rows, cols], dim=-1).reshape(side * side, dim)


class Block(nn.Module):
    """A pre-norm transformer block, attention among all tokens."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, mlp_ratio * dim), nn.Linear(mlp_ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, dim) to (B, N, dim)."""
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax((q * (d // self.heads) ** -0.5) @ k.transpose(-2, -1), dim=-1).to(v.dtype)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))
        return x + hidden


class WindowTower(nn.Module):
    """Images to tokens: `window` x `window` px windows every `stride` px, then `layers` blocks."""

    places: Tensor

    def __init__(self, image_size: int, window: int, stride: int, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.window, self.stride, self.side = window, stride, image_size // stride
        self.pad = (window - stride) // 2
        self.stem_in, self.stem_out = nn.Linear(3 * window * window, dim), nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.register_buffer("places", place_table(self.side, dim), persistent=False)

    def windows(self, frames: Tensor) -> Tensor:
        """Cut uint8 (B, H, W, 3) into windows (B, side * side, 3 * window * window), values -1..1."""
        x = frames.permute(0, 3, 1, 2).float().mul(1.0 / 127.5).sub(1.0)
        if frames.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            x = x.to(torch.bfloat16)
        x = F.pad(x, [self.pad] * 4)
        x = x.unfold(2, self.window, self.stride).unfold(3, self.window, self.stride)
        return x.permute(0, 2, 3, 1, 4, 5).reshape(frames.shape[0], self.side * self.side, -1)

    def forward(self, frames: Tensor) -> Tensor:
        """Map uint8 images (B, H, W, 3) to tokens (B, side * side, dim)."""
        x = self.stem_out(F.gelu(self.stem_in(self.windows(frames)), approximate="tanh"))
        x = x.float() + self.places
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


class Projector(nn.Module):
    """Merge 2 x 2 neighbouring tokens and map them to the language model's width."""

    def __init__(self, side: int, dim: int, out_dim: int) -> None:
        super().__init__()
        self.side = side
        self.fc1, self.fc2 = nn.Linear(4 * dim, out_dim), nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, side * side, dim) to (B, side * side / 4, out_dim)."""
        b, _, d = x.shape
        s = self.side // 2
        x = x.view(b, s, 2, s, 2, d).transpose(2, 3).reshape(b, s * s, 4 * d)
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out
