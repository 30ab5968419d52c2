"""`ActionDiT`: the action-conditioned video world model, a factorised space-time diffusion transformer.

After WorldGym (arXiv 2506.00613): diffusion forcing (a noise level of its own for every frame), actions through
adaLN, full attention inside a frame, causal attention over time. What differs, because it has to learn contact from
minutes of data on a processor: it diffuses the *change* of the picture, the frame before enters clean through
overlapping windows that also skip to the output, the first frame anchors what the arm hides later, and the *target
state* of the arm (not only its change) conditions every frame, so that the arm cannot drift.

Written for processors with bfloat16 matrix units: windows by unfold and linear, attention written out (the fused
kernel is slow in backward there), optional training on the tokens that move (`tokens`).
"""
from __future__ import annotations

import math
from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

NOISE_SCALE = 0.5
"""Standard deviation of the noise at level 1, in units of picture values 0..1."""
CONDITION_DIM = 15
"""Action 7, target state 7, and whether the state is known."""
KeyValues = dict[int, tuple[list[Tensor], list[Tensor]]]


class ActionDiTConfig(PretrainedConfig):
    """Sizes. `context` frames are seen by each temporal layer; `temporal_blocks` says which blocks have one."""

    model_type = "world_gymnast_action_dit"

    name: str = "action-dit-tiny"
    image_size: int = 64
    patch: int = 8
    window: int = 16
    dim: int = 192
    depth: int = 6
    heads: int = 4
    mlp_ratio: int = 3
    skip_dim: int = 256
    context: int = 6
    temporal_blocks: list[int] = field(default_factory=lambda: [2, 4])
    still_level: float = 0.03
    sampling_steps: int = 1

    @property
    def side(self) -> int:
        """Tokens along one edge of the picture."""
        return self.image_size // self.patch


def place_table(side: int, dim: int) -> Tensor:
    """Return sine-cosine places (side * side, dim), loud enough (0.7) to localise from the first steps."""
    frequency = torch.exp(torch.linspace(0, math.log(side * 2), dim // 4)) / side * math.pi
    grid = torch.arange(side) + 0.5
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    parts = [wave for axis in (rows, columns) for wave in ((axis.reshape(-1, 1) * frequency).sin(),
                                                           (axis.reshape(-1, 1) * frequency).cos())]
    return 0.7 * torch.cat(parts, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + bias) v over the last two axes."""
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (weights if bias is None else weights + bias).softmax(-1) @ v


class Block(nn.Module):
    """Temporal attention (in some blocks), spatial attention and MLP, the last two under adaLN-zero."""

    def __init__(self, config: ActionDiTConfig, temporal: bool) -> None:
        super().__init__()
        d = config.dim
        self.heads, self.context, self.temporal = config.heads, config.context, temporal
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, config.mlp_ratio * d), nn.Linear(config.mlp_ratio * d, d)
        self.modulation = nn.Linear(d, 6 * d)
        if temporal:
            self.time_qkv, self.time_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def _time(self, x: Tensor, bias: Tensor, cache: tuple[list[Tensor], list[Tensor]] | None) -> Tensor:
        B, T, M, d = x.shape
        shape = (B, T, M, 3, self.heads, d // self.heads)
        q, k, v = self.time_qkv(F.layer_norm(x, (d,))).view(shape).permute(3, 0, 2, 4, 1, 5).unbind(0)
        if cache is not None:
            for kept, new in zip(cache, (k, v), strict=True):
                kept.append(new)
                del kept[:-self.context]
            k, v = torch.cat(cache[0], -2), torch.cat(cache[1], -2)
        out: Tensor = self.time_proj(attend(q, k, v, bias).permute(0, 3, 1, 2, 4).reshape(B, T, M, d))
        return out

    def forward(self, x: Tensor, c: Tensor, bias: Tensor, cache: tuple[list[Tensor], list[Tensor]] | None) -> Tensor:
        """Map tokens (B, T, M, d) under conditions (B, T, d)."""
        B, T, M, d = x.shape
        m = self.modulation(c).unsqueeze(2).chunk(6, -1)
        if self.temporal:
            x = x + self._time(x, bias, cache)
        y = F.layer_norm(x, (d,)) * (1 + m[0]) + m[1]
        q, k, v = self.qkv(y).view(B * T, M, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + m[2] * self.proj(attend(q, k, v).transpose(1, 2).reshape(B, T, M, d))
        y = F.layer_norm(x, (d,)) * (1 + m[3]) + m[4]
        out: Tensor = x + m[5] * self.down(F.gelu(self.up(y), approximate="tanh"))
        return out


class ActionDiT(PreTrainedModel):
    """Predicts the clean change of the picture from a noisy one. See the module docstring."""

    config_class = ActionDiTConfig
    places: Tensor
    frequencies: Tensor

    def __init__(self, config: ActionDiTConfig) -> None:
        super().__init__(config)
        d, inside = config.dim, 3 * config.window**2
        self.see, self.see_in = nn.Linear(inside, config.skip_dim), nn.Linear(config.skip_dim, d)
        self.anchor = nn.Linear(inside, d)
        self.noisy = nn.Linear(3 * config.patch**2, d)
        self.condition = nn.Sequential(nn.Linear(CONDITION_DIM + 64, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU())
        self.blocks = nn.ModuleList(Block(config, i in config.temporal_blocks) for i in range(config.depth))
        self.modulation = nn.Linear(d, 2 * d)
        self.out_in, self.out = nn.Linear(d + config.skip_dim, config.skip_dim), nn.Linear(config.skip_dim, 3 * config.patch**2)
        self.time_bias = nn.Parameter(torch.zeros(32, config.heads))
        self.register_buffer("places", place_table(config.side, d), persistent=False)
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(200), 32)), persistent=False)
        self.post_init()
        for module in self.modules():  # adaLN-zero, and a network that starts by predicting "nothing changes"
            if isinstance(module, Block):
                for zero in (module.modulation, *([module.time_proj] if module.temporal else [])):
                    nn.init.zeros_(zero.weight)
                    nn.init.zeros_(zero.bias)
        for last in (self.modulation, self.out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def _init_weights(self, module: nn.Module) -> None:
        """Keep torch's own initialisation."""

    def windows(self, frames: Tensor) -> Tensor:
        """Cut (N, 3, H, W) into overlapping windows (N, tokens, 3 window^2)."""
        pad = (self.config.window - self.config.patch) // 2
        return F.unfold(F.pad(frames, (pad,) * 4, mode="replicate"), self.config.window,
                        stride=self.config.patch).transpose(1, 2)

    def patches(self, frames: Tensor) -> Tensor:
        """Cut (N, 3, H, W) into patches (N, tokens, 3 patch^2)."""
        return F.unfold(frames, self.config.patch, stride=self.config.patch).transpose(1, 2)

    def unpatch(self, tokens: Tensor) -> Tensor:
        """Put patches (N, tokens, 3 patch^2) together to (N, 3, H, W)."""
        size = (self.config.image_size,) * 2
        return F.fold(tokens.transpose(1, 2), size, self.config.patch, stride=self.config.patch)

    def _time_bias(self, queries: int, keys: int) -> Tensor:
        """Return (heads, queries, keys): learned by distance, blocked for the future and beyond the context."""
        offset = keys - queries
        distance = (torch.arange(queries, device=self.places.device)[:, None] + offset
                    - torch.arange(keys, device=self.places.device)[None])
        hidden = (distance < 0) | (distance >= self.config.context)
        return self.time_bias[distance.clamp(0, 31)].permute(2, 0, 1).masked_fill(hidden, -1e4)

    def forward(self, previous: Tensor, first: Tensor, noisy: Tensor, noise: Tensor, condition: Tensor,
                tokens: Tensor | None = None, cache: KeyValues | None = None, **_: Any) -> Tensor:
        """Predict changes as patches (B, T, M, 3 patch^2).

        `previous`, `noisy` (B, T, 3, H, W): the frame before, the noisy change. `first` (B, 3, H, W). `noise` (B, T)
        0..1. `condition` (B, T, 15). `tokens` (B, M): only these tokens. `cache`: keys and values of earlier frames,
        extended in place; with it T is 1 and the result equals a run over the whole sequence.
        """
        B, T = noise.shape
        seen = self.windows(previous.flatten(0, 1)).view(B, T, self.config.side**2, -1)
        change = self.patches(noisy.flatten(0, 1)).view(B, T, self.config.side**2, -1)
        anchor, places = self.windows(first), self.places.expand(B, -1, -1)
        if tokens is not None:
            def pick(t: Tensor) -> Tensor:
                index = tokens[:, None] if t.dim() == 4 else tokens
                return t.gather(-2, index.unsqueeze(-1).expand(*t.shape[:-2], -1, t.shape[-1]))
            seen, change, anchor, places = pick(seen), pick(change), pick(anchor), pick(places)
        skip = F.gelu(self.see(seen), approximate="tanh")
        x = (self.see_in(skip) + self.noisy(change) + (self.anchor(anchor) + places).unsqueeze(1)).to(skip.dtype)
        wave = noise.unsqueeze(-1) * self.frequencies
        c = self.condition(torch.cat([condition, wave.sin(), wave.cos()], -1))
        for i, block in enumerate(self.blocks):
            mine = cache.setdefault(i, ([], [])) if cache is not None and block.temporal else None
            keys = T if mine is None else min(len(mine[0]) + 1, self.config.context)
            x = block(x, c, self._time_bias(T, keys).to(x.dtype) if block.temporal else c, mine)
        m = self.modulation(c).unsqueeze(2).chunk(2, -1)
        x = F.layer_norm(x, x.shape[-1:]) * (1 + m[0]) + m[1]
        out: Tensor = self.out(F.gelu(self.out_in(torch.cat([x, skip], -1)), approximate="tanh"))
        return out
