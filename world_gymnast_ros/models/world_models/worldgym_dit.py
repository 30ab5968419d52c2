"""`WorldGymDiT`: the video diffusion transformer of WorldGym, with the published tensor names and a temporal cache.

A latent frame is cut into patches. Each block attends first among the patches of a frame, then, causally, among the
frames at one patch. A frame's noise level and its action enter through adaLN. Rotary positions are relative: keys are
cached as the frame's own number turns them, and stay right however far the window has moved.

A frame's modulations depend on its noise level and action alone, and both are known before the frame is drawn. So those
of all denoising steps are computed in one product (`modulate`), and the adaLN weights, a third of the network, are
read once per frame instead of once per step.

Source: arXiv 2506.00613 and the public model's tensors. Sizes: B clips (copies, twice that under guidance), T frames,
M patches of a frame, D width, h and w latent height and width, C latent channels, A action numbers.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_gymnast_ros.errors import BadCheckpoint, BadConfig

LEVEL_FEATURES = 256
"""Sines and cosines that a noise level is turned into."""
LONGEST_PERIOD = 10_000.0
"""Of those, and of rotary positions."""
PIXEL_FREQUENCIES = 128.0
"""Highest frequency of "pixel" positions, in half turns per half image."""
NORM_EPS = 1e-6
MOST_SEQUENCES = 32_768
"""Attended at once: a CUDA kernel takes at most 65,535, and 128 guided copies have 65,536 over time."""
SPATIAL_POSITIONS = ("standard", "pixel")


@dataclass(frozen=True)
class DiTShape:
    """Sizes of the network. The published one is the default: 608 million parameters.

    `heads` and `spatial_positions` are not to be seen in a checkpoint's tensors; everything else is (`of`).
    """

    channels: int = 16
    patch: int = 2
    dim: int = 1024
    depth: int = 16
    action_dim: int = 10
    heads: int = 16
    spatial_positions: str = "standard"

    def __post_init__(self) -> None:
        rules = (
            ("heads", self.heads >= 1 and self.dim % (4 * max(self.heads, 1)) == 0,
             f"a divisor of the width {self.dim} that leaves a multiple of 4 per head"),
            ("spatial_positions", self.spatial_positions in SPATIAL_POSITIONS, f"one of {SPATIAL_POSITIONS}"),
            ("depth", self.depth >= 1, "at least 1"),
            ("patch", self.patch >= 1, "at least 1"),
        )
        for name, good, limit in rules:
            if not good:
                raise BadConfig(f"DiTShape.{name} is {getattr(self, name)!r}; it must be {limit}")

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], heads: int, spatial_positions: str) -> DiTShape:
        """Read the sizes off a checkpoint's tensors; BadCheckpoint names a tensor that is missing for it."""
        try:
            dim, channels, patch, _ = tensors["x_proj.weight"].shape
            action_dim = tensors["action_embedder.weight"].shape[1]
        except (KeyError, ValueError) as error:
            raise BadCheckpoint(f"not a WorldGym model: {error} (wanted x_proj.weight of four axes and "
                                "action_embedder.weight); name a file that the WorldGym training wrote") from error
        depth = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")), default=-1)
        return cls(channels, patch, dim, depth, action_dim, heads, spatial_positions)


class Modulation(NamedTuple):
    """What adaLN does to R frames: `blocks` (two a block: in the frame, over time), each six of (B, R, 1, D): shift,
    scale, gate of the attention, then of the MLP; `final` two of (B, R, 1, D): shift, scale."""

    blocks: list[tuple[Tensor, ...]]
    final: tuple[Tensor, ...]

    def rows(self, start: int, stop: int) -> Modulation:
        """Return that of some of the frames."""
        return Modulation([tuple(t[:, start:stop] for t in block) for block in self.blocks],
                          tuple(t[:, start:stop] for t in self.final))


def level_features(levels: Tensor) -> Tensor:
    """Return cosines and sines (..., 256) of noise levels (...), 0 to 999."""
    half = LEVEL_FEATURES // 2
    frequency = torch.exp(torch.arange(half, device=levels.device) * (-math.log(LONGEST_PERIOD) / half))
    angle = levels.float().unsqueeze(-1) * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


@lru_cache(maxsize=16)
def spatial_turns(height: int, width: int, head_dim: int, positions: str, device: torch.device) -> Tensor:
    """Return unit complex numbers (M, head_dim / 2): the turn of each pair of channels at each patch, rows first.

    The first half of the pairs turns with the row, the second with the column.
    """
    half = head_dim // 4
    with torch.inference_mode(False):  # what is kept here serves training as well
        if positions == "pixel":
            frequency = torch.linspace(1.0, PIXEL_FREQUENCIES, half) * math.pi
            places = [torch.linspace(-1.0, 1.0, n) for n in (height, width)]
        else:
            frequency = 1.0 / LONGEST_PERIOD ** (torch.arange(half) / half)
            places = [torch.arange(n, dtype=torch.float32) for n in (height, width)]
        rows, cols = torch.meshgrid(*places, indexing="ij")
        angle = torch.cat([place.reshape(-1, 1) * frequency for place in (rows, cols)], -1)
        return torch.polar(torch.ones_like(angle), angle).to(device)


@lru_cache(maxsize=16)
def _time_frequencies(head_dim: int, device: torch.device) -> Tensor:
    half = head_dim // 2
    with torch.inference_mode(False):
        return (1.0 / LONGEST_PERIOD ** (torch.arange(half) / half)).to(device)


def time_turns(first: int, count: int, head_dim: int, device: torch.device) -> Tensor:
    """Return unit complex numbers (count, head_dim / 2): the turn of each pair of channels at frames from `first`."""
    frames = torch.arange(first, first + count, device=device, dtype=torch.float32)
    angle = frames.unsqueeze(-1) * _time_frequencies(head_dim, device)
    return torch.polar(torch.ones_like(angle), angle)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Return x (..., head_dim) with each pair of neighbouring channels turned, in float32 whatever the type of x."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


class TemporalCache:
    """Keys and values of a dream's frames, of every block, in a ring that is allocated once.

    A pass (`begin`) writes those of the frames that it is about, over what an earlier pass wrote for the same frames.
    A frame attends to `window` frames: itself and those before it that the ring holds.
    """

    def __init__(self, window: int, frames_at_once: int = 1) -> None:
        """`frames_at_once`: how many frames of a pass are not settled yet; the ring has room for them beside a window.
        """
        self.window, self.slots = window, window + frames_at_once
        self._first = 0
        self._held: list[int] = []
        self._frames = range(0)
        self._mask: Tensor | None = None
        self._rings: list[tuple[Tensor, Tensor]] = []

    def clear(self) -> None:
        """Forget all frames, and keep the memory."""
        self._held, self._frames = [], range(0)

    def begin(self, first: int, count: int, device: torch.device) -> None:
        """Announce a pass over `count` frames from frame `first`."""
        frames = range(first, first + count)
        if frames == self._frames:  # a further denoising step of the same frames
            return
        if count > self.slots or (self._held and first > max(self._held) + 1):
            raise ValueError(f"a pass of {count} frames from {first} does not fit: {self.slots} slots, {self._held}")
        if not self._held:
            self._first = first
        for frame in frames:
            self._held += [frame] * (len(self._held) == self._slot(frame))
            self._held[self._slot(frame)] = frame
        seen = [[held <= frame < held + self.window for held in self._held] for frame in frames]
        self._mask = None if all(map(all, seen)) else torch.tensor(seen).to(device, non_blocking=True)
        self._frames = frames

    def _slot(self, frame: int) -> int:
        return (frame - self._first) % self.slots

    def attend(self, block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return attention (B, M, heads, T, head_dim) of a pass's frames, and keep their keys and values."""
        if block == len(self._rings):
            shape = (*k.shape[:3], self.slots, k.shape[-1])
            self._rings.append((k.new_zeros(shape), v.new_zeros(shape)))
        keys, values = self._rings[block]
        for i, slot in enumerate(map(self._slot, self._frames)):
            keys[:, :, :, slot], values[:, :, :, slot] = k[:, :, :, i], v[:, :, :, i]
        filled = len(self._held)
        return attention(q, keys[:, :, :, :filled], values[:, :, :, :filled], self._mask)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch."""
        self._rings = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self._rings]

    @property
    def bytes(self) -> int:
        """Memory that the keys and values take."""
        return sum(t.numel() * t.element_size() for ring in self._rings for t in ring)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax attention (B, M, heads, T, head_dim) over the last but one axis; mask (T, S), True is seen."""
    q, k, v, leading = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), q.shape[:2]
    parts = (t.split(MOST_SEQUENCES) for t in (q, k, v))
    out = [F.scaled_dot_product_attention(a, b, c, attn_mask=mask) for a, b, c in zip(*parts, strict=True)]
    return (out[0] if len(out) == 1 else torch.cat(out)).unflatten(0, leading)


class Attention(nn.Module):
    """Among the patches of each frame or, with `over_time`, among this and earlier frames at each patch."""

    def __init__(self, dim: int, heads: int, over_time: bool) -> None:
        super().__init__()
        self.heads, self.over_time = heads, over_time
        self.qkv_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, turns: Tensor, cache: TemporalCache | None, block: int) -> Tensor:
        """Map tokens (B, T, M, D); `turns` of the patches or of the frames; `cache` is for attention over time."""
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).unbind(3)  # (B, T, M, heads, head_dim)
        if not self.over_time:
            q, k, v = (t.transpose(2, 3) for t in (q, k, v))
            out = attention(turned(q, turns), turned(k, turns), v, None).transpose(2, 3)
            return self.out_proj(out.flatten(3))
        q, k, v = (t.permute(0, 2, 3, 1, 4) for t in (q, k, v))
        q, k = turned(q, turns), turned(k, turns)
        if cache is not None:
            out = cache.attend(block, q, k, v)
        else:
            frames = x.shape[1]
            causal = torch.ones(frames, frames, dtype=torch.bool, device=x.device).tril() if frames > 1 else None
            out = attention(q, k, v, causal)
        return self.out_proj(out.permute(0, 3, 1, 2, 4).flatten(3))


def normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (B, T, M, D), each token normalised, then scaled and shifted."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


class SubBlock(nn.Module):
    """Attention and MLP under adaLN-zero."""

    def __init__(self, dim: int, heads: int, over_time: bool) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.attn = Attention(dim, heads, over_time)
        self.ffwd = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...], turns: Tensor, cache: TemporalCache | None, block: int
                ) -> Tensor:
        """Map tokens (B, T, M, D) under shift, scale, gate, shift, scale, gate, each (B, T, 1, D)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        x = torch.addcmul(x, gate, self.attn(normed(x, shift, scale), turns, cache, block))
        return torch.addcmul(x, gate_mlp, self.ffwd(normed(x, shift_mlp, scale_mlp)))


class Block(nn.Module):
    """Attention in the frame, then over time."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.s_block, self.t_block = SubBlock(dim, heads, False), SubBlock(dim, heads, True)


class FinalLayer(nn.Module):
    """From tokens to patches of v."""

    def __init__(self, dim: int, numbers: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, numbers)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))


class WorldGymDiT(nn.Module):
    """The network. `forward` is the plain computation over all frames; `run` with a cache is what a dream uses."""

    def __init__(self, shape: DiTShape) -> None:
        super().__init__()
        self.shape = shape
        dim = shape.dim
        self.x_proj = nn.Conv2d(shape.channels, dim, shape.patch, shape.patch)
        self.timestep_mlp = nn.Sequential(nn.Linear(LEVEL_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.action_embedder = nn.Linear(shape.action_dim, dim)
        self.blocks = nn.ModuleList(Block(dim, shape.heads) for _ in range(shape.depth))
        self.final_layer = FinalLayer(dim, shape.patch**2 * shape.channels)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and so of the computation."""
        return self.x_proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.x_proj.weight.device

    def modulate(self, levels: Tensor, actions: Tensor) -> Modulation:
        """Return the modulations of R frames under noise levels (R,) or (B, R) and actions (B, R, A)."""
        level = self.timestep_mlp(level_features(levels).to(self.dtype))
        condition = level + self.action_embedder(actions.to(self.dtype))
        blocks = [part.adaLN_modulation(condition).unsqueeze(2).chunk(6, -1)
                  for block in self.blocks for part in (block.s_block, block.t_block)]
        final = self.final_layer.adaLN_modulation(condition).unsqueeze(2).chunk(2, -1)
        return Modulation(blocks, final)

    def forward(self, latents: Tensor, levels: Tensor, actions: Tensor) -> Tensor:
        """Return the predicted v float (B, T, h, w, C) of noisy latents of the same shape, all frames causal.

        `levels` (B, T) noise levels, 0 to 999; `actions` (B, T, A): that of the frame.
        """
        return self.run(latents, self.modulate(levels, actions))

    def run(self, latents: Tensor, modulation: Modulation, cache: TemporalCache | None = None, first: int = 0,
            settled: int = 0) -> Tensor:
        """Return v (B, T - settled, h, w, C) of frames numbered from `first`, after those that the cache holds.

        The first `settled` of them are only there to be remembered; their v is not computed.
        """
        B, T, h, w, _ = latents.shape
        rows, cols = h // self.shape.patch, w // self.shape.patch
        x = self._tokens(latents)
        head_dim, device = self.shape.dim // self.shape.heads, x.device
        in_frame = spatial_turns(rows, cols, head_dim, self.shape.spatial_positions, device)
        over_time = time_turns(first, T, head_dim, device)
        if cache is not None:
            cache.begin(first, T, device)
        for i, block in enumerate(self.blocks):
            x = block.s_block(x, modulation.blocks[2 * i], in_frame, None, i)
            x = block.t_block(x, modulation.blocks[2 * i + 1], over_time, cache, i)
        shift, scale = (t[:, settled:] for t in modulation.final)
        v = self.final_layer.linear(normed(x[:, settled:], shift, scale))
        p = self.shape.patch
        v = v.view(B, T - settled, rows, cols, p, p, self.shape.channels)
        return v.permute(0, 1, 2, 4, 3, 5, 6).reshape(B, T - settled, h, w, self.shape.channels)

    def _tokens(self, latents: Tensor) -> Tensor:
        """Return tokens (B, T, M, D): the patch convolution as a product, without moving channels first."""
        p = self.shape.patch
        B, T, h, w, C = latents.shape
        patches = latents.to(self.dtype).view(B, T, h // p, p, w // p, p, C).permute(0, 1, 2, 4, 6, 3, 5)
        weight = self.x_proj.weight.flatten(1)
        return F.linear(patches.reshape(B, T, -1, C * p * p), weight, self.x_proj.bias)
