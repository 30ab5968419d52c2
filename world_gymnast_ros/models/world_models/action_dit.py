"""`ActionDiT`: a video world model as a factorised space-time transformer with action-conditioned adaLN.

Diffusion forcing (every frame of a clip carries its own noise level), attention inside a frame in every block and
causal attention over time, within a window of `context_frames`, in some. Some things differ from the large model
of WorldGym, because they decide whether a small one learns at all on a processor:

- it diffuses the *change* R_t = x_t - x_(t-1), not the frame: noisy input (1 - s) R + s * noise_scale * eps;
- the previous frame enters clean, as overlapping windows, with a skip to the output;
- the answer is a mixture per pixel: keep, take the background's pixel, paint a colour, or add a change. The background
  is the start frame without the arm, with the objects that the hand moves on their predicted path (`background.py`). So
  what the arm uncovers or moves is sharp, what it covers is erased whole, and still places stay still;
- where the camera is roughly known, the computed silhouette of the arm enters per pixel (`outline`), before and
  after the action, straightened by an affine that the network reads from the start frame (a camera is never where
  it should be). So capacity goes to what the arm touches, not to drawing the arm;
- places are seen relative to points that the network projects from the arm's target state, which is all that a model
  of an unknown camera has to learn *where* things happen.

One denoising step is enough, because R is almost determined by the condition.

Images are channels-last; a frame is `tokens` patches in row-major order. Sizes: B clips, T frames, M tokens, C
condition numbers.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.models.world_models.background import Background, grid_of
from world_gymnast_ros.robot.arm_silhouette import CAPSULE_DIM, CAPSULES, GROUPS, PARKED

NUMBERS = 15
"""Action (7), target state after it (7), flag: state known (1). See `models.dream.condition_vector`."""
SILHOUETTE = 2 * CAPSULES * CAPSULE_DIM
"""Numbers of the arm's silhouette before and after the action, behind the others where the camera is known."""
PLACE_AMPLITUDE = 0.7
"""Places must be as loud as content from the first step, or positions are not learned in thousands of steps."""
BANNED = -1e4
STATE = slice(7, 14)
"""Where the target state lies in the condition."""
OCTAVES = 5
NOISE_FEATURES = 64
POINT_RADII = (0.2, 0.6)
"""Reach of a projected point, in halves of the image."""
SOURCES = 4
"""Of a pixel: kept, background, painted, changed."""
SILHOUETTE_FEATURES = 2 * 2 * len(GROUPS)
"""Per pixel: before and after, inside and distance, of each group of capsules."""
TOUCHED = 0.05
"""Places nearer to the arm than this may change, halves of the image: its shadow, and what it touches."""
STALE = 0.05
"""Places may change whose pixels differ from the background by more than this, 0..1 grey."""
EDGE = 0.02
"""Softness of a silhouette's edge, in halves of the image: two thirds of a pixel of 64."""


@dataclass(frozen=True)
class ActionDiTConfig:
    """Sizes of the network, its diffusion, and the units of its condition. Written to `config.json`.

    `state_center`, `state_scale`: Bridge state (7,) is normalised as (state - center) / scale. `action_scale`
    likewise, around zero for the motion and 0.5 for the gripper. `workspace_low_m`, `workspace_high_m`: box to which
    the dream clips its target, None for no box. `still_threshold`: changes below it (0..1 grey) are not drawn.
    `change_gain`: drawn changes are multiplied by it; below 1 for a model trained on little data, chosen on validation.
    `camera`: nominal projection, 12 numbers of `arm_silhouette.projection`; None where the camera's place is unknown.
    `plate` (as checkpoints call it): the background, the start frame without the arm and what it moves, is shown in the
    place of the start frame.
    """

    model_type: ClassVar[str] = "action_dit"
    name: str = "action-dit-tiny"
    image_size: int = 64
    patch: int = 8
    window: int = 16
    window_dim: int = 256
    dim: int = 192
    depth: int = 6
    heads: int = 4
    mlp_ratio: int = 3
    temporal_blocks: tuple[int, ...] = (2, 4)
    context_frames: int = 6
    points: int = 12
    dropout: float = 0.0
    noise_scale: float = 0.5
    still_threshold: float = 0.03
    change_gain: float = 1.0
    sampling_steps: int = 1
    action_scale: tuple[float, ...] = (0.05, 0.05, 0.05, 0.25, 0.25, 0.25, 0.5)
    state_center: tuple[float, ...] = (0.28, 0.02, 0.10, 0.0, 0.0, 0.0, 0.5)
    state_scale: tuple[float, ...] = (0.08, 0.10, 0.08, 0.3, 0.3, 0.3, 0.5)
    workspace_low_m: tuple[float, ...] | None = None
    workspace_high_m: tuple[float, ...] | None = None
    camera: tuple[float, ...] | None = None
    plate: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):  # JSON knows no tuples
                object.__setattr__(self, name, tuple(value))
        rules = (
            ("patch", self.patch >= 2 and self.patch % 2 == 0, "even"),
            ("image_size", self.image_size % self.patch == 0, "a multiple of patch"),
            ("window", self.window >= self.patch and (self.window - self.patch) % 2 == 0, "patch plus an even margin"),
            ("dim", self.dim % self.heads == 0 and self.dim % 4 == 0, "a multiple of heads and of 4"),
            ("temporal_blocks", all(0 <= i < self.depth for i in self.temporal_blocks), "indices below depth"),
            ("context_frames", self.context_frames >= 1, "at least 1"),
            ("sampling_steps", 1 <= self.sampling_steps <= 1000, "within 1..1000"),
            ("change_gain", 0.0 < self.change_gain <= 1.0, "within 0..1, above 0"),
            ("camera", self.camera is None or len(self.camera) == 12, "12 numbers, or null"),
        )
        for name, good, limit in rules:
            if not good:
                raise BadConfig(f"ActionDiTConfig.{name} is {getattr(self, name)}; it must be {limit}")

    @property
    def side(self) -> int:
        """Patches along one edge of the image."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Patches in an image."""
        return self.side**2

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds."""
        return {"model_type": self.model_type, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ActionDiTConfig:
        """Build from `config.json`; TypeError on an unknown key."""
        return cls(**{k: v for k, v in values.items() if k != "model_type"})


def place_table(side: int, dim: int) -> Tensor:
    """Return sine-cosine places float32 (side * side, dim): half the channels for the row, half for the column."""
    frequency = torch.exp(torch.linspace(0.0, math.log(side * 2), dim // 4)) / side * math.pi
    centre = torch.arange(side) + 0.5
    rows, cols = torch.meshgrid(centre, centre, indexing="ij")
    angles = [c.reshape(-1, 1) * frequency for c in (rows, cols)]
    return PLACE_AMPLITUDE * torch.cat([part for a in angles for part in (a.sin(), a.cos())], 1)


def octaves(values: Tensor) -> Tensor:
    """Return sines and cosines (..., 2 OCTAVES n) of values (..., n), wavelengths 4, 2, 1...: fine steps of a state."""
    angle = (values.unsqueeze(-1) * (math.pi / 2 * 2.0 ** torch.arange(OCTAVES, device=values.device))).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


class ProjectedPoints(nn.Module):
    """Points of the image that the network finds from the condition, and where each place lies from them."""

    def __init__(self, config: ActionDiTConfig, features: int) -> None:
        super().__init__()
        self.find_in, self.find_out = nn.Linear(features, 128), nn.Linear(128, 2 * config.points)
        self.embed = nn.Linear(3 * len(POINT_RADII) * config.points, config.dim)
        nn.init.normal_(self.find_out.weight, 0.0, 0.15)
        nn.init.uniform_(self.find_out.bias, -0.6, 0.6)
        nn.init.zeros_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.register_buffer("grid", grid_of(config.side, config.side).flatten(0, 1), persistent=False)

    def forward(self, features: Tensor, tokens: Tensor | None) -> Tensor:
        """Embed each place (B, T, M, dim) under condition features (B, T, n)."""
        points = self.find_out(F.silu(self.find_in(features))).float().unflatten(-1, (-1, 2))
        grid = self.grid if tokens is None else self.grid[tokens].unsqueeze(1)
        offset = grid.float().unsqueeze(-2) - points.unsqueeze(2)
        squared = offset.square().sum(-1, keepdim=True)
        near = [(torch.exp(squared / (-2 * r**2)), r) for r in POINT_RADII]
        parts = [g for g, _ in near] + [offset / r * g for g, r in near]
        return self.embed(torch.cat(parts, -1).flatten(-2).to(features.dtype))


class SilhouetteFeatures(nn.Module):
    """The arm's computed silhouette as features of each pixel, and the affine that fits it to this camera."""

    def __init__(self, config: ActionDiTConfig) -> None:
        super().__init__()
        size = config.image_size
        sides = [size, *(-(-size // 2**i) for i in (1, 2, 3))]
        channels = (3 + 2 * len(GROUPS), 24, 48, 64)
        self.look = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(channels))
        self.read_in, self.read_head = nn.Linear(channels[-1] * sides[-1] ** 2, 128), nn.Linear(128, 6)
        self.embed = nn.Linear(SILHOUETTE_FEATURES * config.patch**2, config.window_dim)
        self.pixel_head = nn.Linear(SILHOUETTE_FEATURES, SOURCES)
        for zero in (self.read_head, self.pixel_head):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        grid, p = grid_of(size, size), config.patch
        patches = grid.unfold(0, p, p).unfold(1, p, p).permute(0, 1, 3, 4, 2).reshape(config.tokens, p * p, 2)
        self.register_buffer("whole", grid.reshape(1, -1, 2), persistent=False)
        self.register_buffer("patches", patches, persistent=False)
        coarse = (torch.arange(3) * 2 + 1) * p // 6  # nine pixels of a patch, for a first look
        few = patches.unflatten(1, (p, p))[:, coarse][:, :, coarse].flatten(1, 2)
        self.register_buffer("few", few, persistent=False)
        self.cell = math.sqrt(2.0) * p / 3 / size  # how far a pixel may lie from the nearest of these

    def fit(self, start: Tensor, capsules: Tensor) -> Tensor:
        """Return the affine (B, 6) that moves the nominal silhouette onto the arm of the start frame.

        `start` (B, H, W, 3), 0..1; `capsules` (B, 6, 6) of the arm in that frame.
        """
        drawn = self.measure(capsules[:, None], self.whole)  # (B, 1, 1, H * W, 2 groups)
        drawn = drawn.view(*start.shape[:3], -1)
        x = torch.cat([start - 0.5, drawn], -1).permute(0, 3, 1, 2).to(self.read_in.weight.dtype)
        for layer in self.look:
            x = F.silu(layer(x))
        return 0.1 * self.read_head(F.silu(self.read_in(x.flatten(1)))).float()

    def measure(self, capsules: Tensor, points: Tensor) -> Tensor:
        """Return inside and distance (B, T, M, P, 2 groups) at points (M, P, 2) or (B, M, P, 2); capsules (B, T, 6, 6).
        """
        return silhouette_at(capsules, points)

    def distance(self, capsules: Tensor) -> Tensor:
        """Return how far each pixel is from the arm (B, H * W), halves of the image, up to 0.4; capsules (B, 6, 6).
        """
        return from_arm(capsules, self.whole)

    def far(self, capsules: Tensor) -> Tensor:
        """Return how far each patch is from the arm at least (B, tokens), as `distance`; capsules (B, 6, 6)."""
        few = self.measure(capsules[:, None], self.few)[:, 0, :, :, len(GROUPS):]
        return few.amin((-1, -2)) / 2.5 - self.cell

    def forward(self, outline: Tensor, affine: Tensor, tokens: Tensor | None) -> Tensor:
        """Return features (B, T, M, P, 12) under silhouettes (B, T, 72) moved by affines (B, 6)."""
        capsules = outline.float().unflatten(-1, (2, CAPSULES, CAPSULE_DIM))
        capsules = moved(capsules.flatten(1, 3), affine).view_as(capsules)
        points = self.patches if tokens is None else self.patches[tokens]
        return torch.cat([self.measure(capsules[:, :, i], points) for i in (0, 1)], -1)


def silhouette_at(capsules: Tensor, points: Tensor) -> Tensor:
    """Return inside and distance (B, T, M, P, 2 groups) at points (M, P, 2) or (B, M, P, 2); capsules (B, T, 6, 6)."""
    points = points.unsqueeze(0) if points.ndim == 3 else points
    u, v = points.unsqueeze(1).unbind(-1)  # (B, 1, M, P) each: an axis of length 2 would cost several times as much
    far = []
    for group in GROUPS:
        nearest = None
        for capsule in capsules[:, :, group].unsqueeze(-2).unsqueeze(-2).unbind(2):  # each (B, T, 1, 1, 6)
            a_u, a_v, ra, b_u, b_v, rb = capsule.unbind(-1)
            along_u, along_v, off_u, off_v = b_u - a_u, b_v - a_v, u - a_u, v - a_v
            share = (off_u * along_u + off_v * along_v) / (along_u.square() + along_v.square() + 1e-6)
            share = share.clamp(0.0, 1.0)
            distance = (off_u - share * along_u).square() + (off_v - share * along_v).square()
            distance = distance.add(1e-8).sqrt() - (ra + share * (rb - ra))
            nearest = distance if nearest is None else torch.minimum(nearest, distance)
        far.append(nearest)
    distance = torch.stack(far, -1)
    return torch.cat([torch.sigmoid(distance / -EDGE), distance.clamp(-0.2, 0.4) * 2.5], -1)


def from_arm(capsules: Tensor, points: Tensor) -> Tensor:
    """Return how far points (1, P, 2) are from the arm (B, P), halves of the image, up to 0.4; capsules (B, 6, 6)."""
    return silhouette_at(capsules[:, None], points)[:, 0, 0, :, len(GROUPS):].amin(-1) / 2.5


def moved(capsules: Tensor, affine: Tensor) -> Tensor:
    """Return capsules (B, N, 6) with their ends moved by affines (B, 6): p + A p + b, A row-major (2, 2)."""
    places, radii = capsules.unflatten(-1, (2, 3)).split((2, 1), -1)
    linear, shift = affine.split((4, 2), -1)
    places = places + places @ linear.view(-1, 1, 2, 2).mT + shift.view(-1, 1, 1, 2)
    return torch.cat([places, radii], -1).flatten(-2)


@dataclass(frozen=True)
class Places:
    """Places of the image that are computed, for each of B clips: `tokens` int64 (B, M), of which only the `own`
    bool (B, M) are meant; the others fill up the row, nothing attends to them, and what comes of them is dropped."""

    tokens: Tensor
    own: Tensor

    @property
    def hidden(self) -> Tensor:
        """The attention bias (B, 1, 1, M) that keeps others out."""
        return torch.zeros(self.own.shape, device=self.own.device).masked_fill_(~self.own, BANNED)[:, None, None]


class TemporalCache:
    """Keys and values of the last `context_frames` frames of one dream, per temporal block, in a ring.

    Each frame's keys and values depend on that frame's features alone once they are computed, and every temporal
    layer looks back by the same window. So reuse equals a full recomputation under a banded causal mask for any
    number of frames, also after the ring has turned (the receptive field reaches further back with depth). Where a
    frame is computed at some `places` alone, the others have no entry for it, and nothing attends to what is not there.
    """

    def __init__(self, context_frames: int) -> None:
        self.context_frames = context_frames
        self.frame = 0
        self.places: Places | None = None
        self._rings: dict[int, tuple[Tensor, Tensor]] = {}
        self._written: Tensor | None = None  # at which frame, int64 (B, places, context_frames); -1: never

    def begin(self, places: Places | None, copies: int, tokens: int, device: torch.device) -> None:
        """Begin a frame that is computed at `places` of `tokens` (None: at all)."""
        if self._written is None:
            self._written = torch.full((copies, tokens, self.context_frames), -1, device=device)
        self.places = places
        mine = self._written[:, :, self.frame % self.context_frames]
        if places is None:
            mine.fill_(self.frame)
        else:
            mine.scatter_(1, places.tokens, torch.where(places.own, self.frame, -1))

    def put(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the current frame's keys and values (B, M, heads, 1, head_dim); return those of the ring."""
        assert self._written is not None
        if block not in self._rings:
            shape = (*self._written.shape[:2], k.shape[2], self.context_frames, k.shape[-1])
            self._rings[block] = (k.new_zeros(shape), v.new_zeros(shape))
        keys, values = self._rings[block]
        slot = self.frame % self.context_frames
        if self.places is None:
            keys[:, :, :, slot] = k[:, :, :, 0]
            values[:, :, :, slot] = v[:, :, :, 0]
            return keys, values
        rows, tokens = torch.arange(len(k), device=k.device)[:, None], self.places.tokens
        keys[rows, tokens, :, slot] = k[:, :, :, 0]
        values[rows, tokens, :, slot] = v[:, :, :, 0]
        return keys[rows, tokens], values[rows, tokens]

    def ages(self) -> Tensor:
        """Return how many frames ago each entry was written, int64 (B, M, 1, context_frames); -1: never."""
        assert self._written is not None
        written = self._written
        if self.places is not None:
            written = written[torch.arange(len(written), device=written.device)[:, None], self.places.tokens]
        return torch.where(written < 0, -1, self.frame - written).unsqueeze(2)

    def keep(self, copies: Tensor) -> None:
        """Go on with these copies alone, indices."""
        self._rings = {block: (k[copies], v[copies]) for block, (k, v) in self._rings.items()}
        self._written = None if self._written is None else self._written[copies]

    def commit(self) -> None:
        """Go on to the next frame; until then a frame's entries may be overwritten (further denoising steps)."""
        self.frame += 1


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T + bias) v, written out: in bfloat16 on CPU the fused kernel is six times slower backward.

    The softmax is taken in float32: more exact, and faster there for widths that are no multiple of 32.
    """
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        weights = weights + bias
    return weights.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


class Block(nn.Module):
    """Attention over time (if `temporal`), attention inside the frame, MLP; adaLN-zero from the condition."""

    def __init__(self, config: ActionDiTConfig, index: int) -> None:
        super().__init__()
        d = config.dim
        self.index, self.heads, self.temporal = index, config.heads, index in config.temporal_blocks
        self.spatial_qkv, self.spatial_out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp_up, self.mlp_down = nn.Linear(d, config.mlp_ratio * d), nn.Linear(config.mlp_ratio * d, d)
        self.modulation = nn.Linear(d, 6 * d)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        if self.temporal:
            self.temporal_qkv, self.temporal_out = nn.Linear(d, 3 * d), nn.Linear(d, d)
            nn.init.zeros_(self.temporal_out.weight)
        self.dropout = config.dropout

    def over_time(self, x: Tensor, bias: Tensor, cache: TemporalCache | None) -> Tensor:
        """Attend to earlier frames at the same place; x (B, T, M, dim), bias (heads, T, frames seen)."""
        B, T, M, d = x.shape
        q, k, v = self.temporal_qkv(F.layer_norm(x, (d,))).view(B, T, M, 3, self.heads, -1).permute(3, 0, 2, 4, 1, 5)
        if cache is not None:
            k, v = cache.put(self.index, k, v)
        return self.temporal_out(attend(q, k, v, bias).permute(0, 3, 1, 2, 4).reshape(B, T, M, d))

    def in_frame(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """Attend among the tokens of each frame; x (B, T, M, dim), `hidden` as of `Places`."""
        B, T, M, d = x.shape
        q, k, v = self.spatial_qkv(x).view(B * T, M, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.spatial_out(attend(q, k, v, hidden).transpose(1, 2).reshape(B, T, M, d))

    def forward(self, x: Tensor, condition: Tensor, bias: Tensor, cache: TemporalCache | None,
                hidden: Tensor | None = None) -> Tensor:
        """Map tokens (B, T, M, dim) under a condition embedding (B, T, dim)."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition).unsqueeze(2).chunk(6, -1)
        drop = self.dropout if self.training else 0.0
        if self.temporal:
            x = x + self.over_time(x, bias, cache)
        y = self.in_frame(F.layer_norm(x, x.shape[-1:]) * (1 + scale1) + shift1, hidden)
        x = x + gate1 * (F.dropout(y, drop) if drop else y)
        y = F.layer_norm(x, x.shape[-1:]) * (1 + scale2) + shift2
        y = self.mlp_down(F.gelu(self.mlp_up(y)))
        return x + gate2 * (F.dropout(y, drop) if drop else y)


class ActionDiT(nn.Module):
    """The network. It sees tokens; `windows`, `patches` and `image` convert. It predicts the clean change R."""

    def __init__(self, config: ActionDiTConfig) -> None:
        super().__init__()
        self.config = config
        d, seen, drawn = config.dim, 3 * config.window**2, 3 * config.patch**2
        self.embed_window, self.embed_previous = nn.Linear(seen, config.window_dim), nn.Linear(config.window_dim, d)
        self.embed_first, self.embed_noisy = nn.Linear(seen, d), nn.Linear(drawn, d)
        features = NUMBERS + 2 * OCTAVES * 7
        self.condition = nn.Sequential(nn.Linear(features + NOISE_FEATURES, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU())
        self.points = ProjectedPoints(config, features)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.modulation = nn.Linear(d, 2 * d)
        # What reads the arm's silhouette is called `outline` in the weights of every checkpoint, and stays so.
        self.outline = SilhouetteFeatures(config) if config.camera is not None else None
        self.embed_outline = nn.Linear(config.window_dim, d) if config.camera is not None else None
        self.head_in = nn.Linear(d + (3 if config.camera is not None else 2) * config.window_dim, 256)
        self.head_out = nn.Linear(256, 2 * drawn + SOURCES * config.patch**2)
        for zero in (self.modulation, self.head_out):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        with torch.no_grad():  # first the change, which learns fastest; the other sources take over
            self.head_out.bias[drawn:2 * drawn] = 0.3
            self.head_out.bias[2 * drawn:].view(SOURCES, -1)[3] = 2.5
        self.age_bias = nn.Parameter(torch.zeros(config.context_frames, config.heads))
        self.register_buffer("places", place_table(config.side, d), persistent=False)
        frequencies = torch.exp(torch.linspace(0.0, math.log(200.0), NOISE_FEATURES // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)

    # ---- images and tokens -----------------------------------------------------------------------------------

    def windows(self, frames: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return overlapping windows (B, T, M, 3 window^2) of frames (B, T, H, W, 3), edges repeated.

        `tokens` int64 (B, M) keeps only these places of each clip. Any dtype, values as they are.
        """
        c = self.config
        margin = (c.window - c.patch) // 2
        line = torch.arange(-margin, c.image_size + margin, device=frames.device).clamp(0, c.image_size - 1)
        padded = frames.index_select(2, line).index_select(3, line)
        return _pick(padded.unfold(2, c.window, c.patch).unfold(3, c.window, c.patch), c.side, tokens)

    def patches(self, frames: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return patches (B, T, M, 3 patch^2) of frames (B, T, H, W, 3); `tokens` as in `windows`."""
        c = self.config
        return _pick(frames.unfold(2, c.patch, c.patch).unfold(3, c.patch, c.patch), c.side, tokens)

    def image(self, patches: Tensor) -> Tensor:
        """Return images (..., H, W, 3) of all their patches (..., tokens, 3 patch^2)."""
        c = self.config
        grid = patches.unflatten(-1, (c.patch, c.patch, 3)).unflatten(-4, (c.side, c.side))
        return grid.transpose(-4, -3).reshape(*patches.shape[:-2], c.image_size, c.image_size, 3)

    @torch.no_grad()
    def fit(self, start: Tensor, condition: Tensor) -> Tensor | None:
        """Return the affine (B, 6) between nominal and true silhouette at `start` (B, H, W, 3); None: no camera known.

        `condition` (B, C) of an action that begins at that frame. Without gradient: see `training/camera.py`.
        """
        if self.outline is None:
            return None
        return self.outline.fit(start, condition[:, NUMBERS:].unflatten(-1, (2, CAPSULES, CAPSULE_DIM))[:, 0].float())

    @torch.no_grad()
    def background(self, start: Tensor, condition: Tensor, affine: Tensor | None, places_m: Tensor | None = None,
                   cameras: Tensor | None = None, sizes_m: Tensor | None = None) -> Background:
        """Return the background of dreams that begin at `start` (B, H, W, 3) with an action of `condition` (B, C).

        `affine` as from `fit`; `places_m` (B, N, 3) of objects there, seen by `cameras` (B, 12), with
        `sizes_m` (B, N, 2); None: none are known.
        """
        if self.outline is None or not self.config.plate:
            return Background(start, None, None, None)
        arm = condition[:, NUMBERS:].unflatten(-1, (2, CAPSULES, CAPSULE_DIM))[:, 0].float()
        distance = self.outline.distance(arm if affine is None else moved(arm, affine))
        return Background(start, distance.view(start.shape[:3]), places_m, cameras, sizes_m)

    @torch.no_grad()
    def touched(self, frame: Tensor, condition: Tensor, affine: Tensor | None, background: Tensor) -> Places | None:
        """Return the places that the next frame may differ in: those near the arm before or after the action, and those
        that do not show the background. None: all of them may.

        `frame`, `background` (B, H, W, 3), `condition` (B, C). Training computes no more in most steps: what changes.
        """
        if self.outline is None or not self.config.plate:
            return None
        capsules = condition[:, NUMBERS:].unflatten(-1, (2, CAPSULES, CAPSULE_DIM)).float()
        unseen = (capsules[..., 0].abs() > PARKED / 2).all(-1).any(-1)
        if affine is not None:
            capsules = moved(capsules.flatten(1, 2), affine).view_as(capsules)
        near = torch.stack([self.outline.far(capsules[:, i]) for i in (0, 1)]).amin(0) < TOUCHED
        stale = (frame - background).abs().amax(-1).unflatten(-1, (self.config.side, -1)).unflatten(
            1, (self.config.side, -1)).amax((2, 4)).flatten(1) > STALE
        own = near | stale | unseen[:, None]
        most = int(own.sum(1).max())
        if most == self.config.tokens:
            return None
        order = own.to(torch.uint8).sort(dim=1, descending=True, stable=True)
        return Places(order.indices[:, :most], order.values[:, :most].bool())

    # ---- prediction --------------------------------------------------------------------------------------------

    def temporal_bias(self, ages: Tensor) -> Tensor:
        """Return the attention bias (..., heads, queries, keys) for ages int64 (..., queries, keys) in frames."""
        last = self.config.context_frames - 1
        bias = self.age_bias[ages.clamp(0, last)].movedim(-1, -3)
        return bias.masked_fill(((ages < 0) | (ages > last)).unsqueeze(-3), BANNED)

    def look(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network makes of windows (B, T, M, .) of the background before it knows of anything else."""
        return F.gelu(self.embed_window(first)), self.embed_first(first)

    def forward(self, previous: Tensor, first: Tensor, noisy: Tensor, noise: Tensor, condition: Tensor,
                tokens: Tensor | None = None, affine: Tensor | None = None,
                cache: TemporalCache | None = None, looked: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Predict the clean change (B, T, M, 3 patch^2), grey 0..1, that leads to each frame.

        `previous` windows (B, T, M, .) of the frame before; `first` windows (B, T or 1, M, .) of the backgrounds;
        `noisy` patches (B, T, M, .); `noise` level s (B, T); `condition` (B, T, C); `tokens` int64 (B, M) says which
        places these are (None: all); `affine` (B, 6) as from `outline.fit` (None: the nominal camera). With a `cache`,
        T is 1 and the cache holds the frames before, and which of the tokens are meant. `looked`: what `look` made of
        `first`, where it is at hand.
        """
        condition, arm = condition[..., :NUMBERS], condition[..., NUMBERS:]
        T, dtype = noise.shape[1], self.age_bias.dtype
        seen = F.gelu(self.embed_window(previous))
        seen_first, embedded_first = self.look(first) if looked is None else looked
        fine = octaves(condition[..., STATE]) * condition[..., -1:]  # zero where the state is unknown
        features = torch.cat([condition, fine], -1)
        places = self.places if tokens is None else self.places[tokens].unsqueeze(1)
        x = self.embed_previous(seen) + self.embed_noisy(noisy) + (embedded_first + places)
        x = (x + self.points(features.to(dtype), tokens)).to(seen.dtype)
        drawn = [seen, seen_first.expand(-1, T, -1, -1)]
        bonus = None
        if self.outline is not None and self.embed_outline is not None:
            affine = torch.zeros(len(x), 6, device=x.device) if affine is None else affine
            pixels = self.outline(arm, affine, tokens).to(dtype)
            bonus = self.outline.pixel_head(pixels)
            drawn.append(F.gelu(self.outline.embed(pixels.flatten(-2))))
            x = x + self.embed_outline(drawn[-1])
        angle = noise.unsqueeze(-1) * self.frequencies
        embedded = self.condition(torch.cat([features, angle.sin(), angle.cos()], -1).to(dtype))
        if cache is None:
            line = torch.arange(T, device=x.device)
            ages = line[:, None] - line[None, :]
        else:
            ages = cache.ages()
        bias = self.temporal_bias(ages).to(x.dtype)
        hidden = None if cache is None or cache.places is None else cache.places.hidden.to(x.dtype)
        for block in self.blocks:
            x = block(x, embedded, bias, cache, hidden)
        scale, shift = self.modulation(embedded).unsqueeze(2).chunk(2, -1)
        x = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        x = self.head_in(torch.cat([x, *drawn], -1))
        return self.mix(self.head_out(F.gelu(x)), previous, first, bonus)

    def mix(self, drawn: Tensor, previous: Tensor, first: Tensor, bonus: Tensor | None = None) -> Tensor:
        """Return the change (B, T, M, 3 patch^2) float32 that the head's output makes of both windows' centres.

        `bonus` (B, T, M, patch^2, 4) is added to the logits of the sources.
        """
        def pixels(part: Tensor) -> Tensor:
            return part.float().unflatten(-1, (-1, 3))

        def centre(windows: Tensor) -> Tensor:
            c = self.config
            inner = slice((c.window - c.patch) // 2, (c.window + c.patch) // 2)
            return pixels(windows.unflatten(-1, (c.window, c.window, 3))[..., inner, inner, :].flatten(-3))

        n = self.config.patch**2
        change, colour, shares = drawn.split((3 * n, 3 * n, SOURCES * n), -1)
        logits = shares.float().unflatten(-1, (SOURCES, n))
        share = (logits if bonus is None else logits + bonus.float().transpose(-1, -2)).softmax(-2)
        _, from_first, painted, changed = share.unsqueeze(-1).unbind(-3)
        now = centre(previous)
        mixed = from_first * (centre(first) - now) + painted * (pixels(colour) - now) + changed * pixels(change)
        return mixed.flatten(-2)


def _pick(grid: Tensor, side: int, tokens: Tensor | None) -> Tensor:
    """Return (B, T, M, size * size * 3) from a view (B, T, side, side, 3, size, size), copying only what is picked."""
    grid = grid.permute(0, 1, 2, 3, 5, 6, 4)
    if tokens is None:
        return grid.reshape(*grid.shape[:2], side * side, -1)
    clip = torch.arange(grid.shape[0], device=grid.device)[:, None, None]
    frame = torch.arange(grid.shape[1], device=grid.device)[None, :, None]
    return grid[clip, frame, (tokens // side)[:, None], (tokens % side)[:, None]].flatten(3)
