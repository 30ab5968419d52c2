"""A background that moves as it was learned to: what the hand pushes, carries and drops, from images and poses alone.

The background is the scene without the arm (`background.py`). A small recurrent network looks at a crop of it around
the fingertips, at the arm's computed silhouette before and after an action and at the target poses, and says which
pixels an action takes along, and how far, beginning at the shift of the fingertips. A pixel remembers
where in the start frame it comes from, so it is resampled once however often it moves and stays sharp; where pixels
have left, the start frame is filled in from around. What a pixel is part of, the network has to see: it is given no
object.

Moving pixels by few learned shifts: Finn et al. 2016 (arXiv 1605.07157). Pose maps as input: World-Env (arXiv
2509.24948).

Image coordinates u, v in -1..1; B clips, S pixels along the crop's edge.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.models.checkpoint import CONFIG, WEIGHTS, read_config, save_model
from world_gymnast_ros.models.checkpoint import fill as fill_weights
from world_gymnast_ros.models.world_models.action_dit import silhouette_at
from world_gymnast_ros.models.world_models.background import fill, project
from world_gymnast_ros.robot.arm_silhouette import GROUPS

FOLDER = "moving_background"
"""Where it lies in the folder of the world model that it belongs to."""
FINGERS = slice(4, 6)
"""Capsules of the silhouette that are the fingers; their second ends are the tips."""
SHIFTS = 1
"""Ways that pixels may go in one action, beside staying."""
NUMBERS = 14 + 4
"""Target states before and after the action, normalised; what the fingertips, and the table below them, move, px."""
LOOK = 3 + 2 * len(GROUPS) + 4 + 4 + 1
"""Channels of a crop: colours; distance from the arm, place from the tips and from the table below, each before and
after; whether a pixel has moved."""
REACH = 5.0
"""How far a learned shift may be from that of the fingertips, pixels."""
HINT = 0.1
"""Share from which, while it trains, a pixel counts as one that may leave."""
UNSEEN = 1.3
"""A hand farther than this from the image's centre, in halves of the image, moves nothing."""


@dataclass(frozen=True)
class MovingBackgroundConfig:
    """Sizes; written to `config.json`. `crop`: pixels along its edge, a multiple of 4. `state_center`, `state_scale`:
    normalisation of Bridge states (7,)."""

    model_type: ClassVar[str] = "moving_background"
    name: str = "moving-background-tiny"
    image_size: int = 64
    crop: int = 24
    channels: tuple[int, int] = (40, 56)
    memory: int = 32
    state_center: tuple[float, ...] = (0.28, 0.02, 0.10, 0.0, 0.0, 0.0, 0.5)
    state_scale: tuple[float, ...] = (0.08, 0.10, 0.08, 0.3, 0.3, 0.3, 0.5)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):  # JSON knows no tuples
                object.__setattr__(self, name, tuple(value))
        if self.crop % 4 or not 8 <= self.crop <= self.image_size:
            raise BadConfig(f"crop is {self.crop}; it must be a multiple of 4 within 8..{self.image_size}")

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds."""
        return {"model_type": self.model_type, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MovingBackgroundConfig:
        """Build from `config.json`; TypeError on an unknown key."""
        return cls(**{k: v for k, v in values.items() if k != "model_type"})


@dataclass
class Moved:
    """B backgrounds under way: `now`, `start` (B, 3, H, W), 0..1; `source` (B, H, W, 2), the pixel x, y of the start
    frame that each shows; `filled` bool (B, H, W), whether it shows what was filled in there; `taken` bool (B, H, W) of
    the start frame, what has been moved from there; `memory` (B, m, S / 4, S / 4), in the crop's coordinates. For
    training, of the last action: `soft` (B, 3, S, S), the crop's mixture; `corner` (B, 2), its first column and row;
    `logits` (B, 1 + K, S, S), whether a pixel stays or goes; `shifts` (B, K, 2), how far, px."""

    now: Tensor
    start: Tensor
    source: Tensor
    filled: Tensor
    taken: Tensor
    memory: Tensor
    soft: Tensor | None = None
    corner: Tensor | None = None
    logits: Tensor | None = None
    shifts: Tensor | None = None

    def keep(self, copies: Tensor) -> None:
        """Go on with these clips alone, indices."""
        for name, value in vars(self).items():
            setattr(self, name, None if value is None else value[copies])


class MovingBackground(nn.Module):
    """The network. `begin` starts at clean backgrounds, `step` goes on by an action."""

    def __init__(self, config: MovingBackgroundConfig) -> None:
        super().__init__()
        self.config = config
        a, b = config.channels
        m = config.memory
        self.numbers = nn.Sequential(nn.Linear(NUMBERS, 64), nn.SiLU(), nn.Linear(64, 2 * (a + b)))
        self.enter = nn.Conv2d(4 * LOOK, a, 3, padding=1)  # at half the crop's resolution
        self.inner = nn.Conv2d(a, a, 3, padding=1)
        self.down = nn.Conv2d(a, b, 3, 2, 1)
        self.recall = nn.Conv2d(b + m, b, 1)
        self.deep1, self.deep2 = nn.Conv2d(b, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)
        self.gates = nn.Conv2d(b + m, 2 * m, 1)
        self.join = nn.Conv2d(a + b, a, 1)
        self.outer = nn.Conv2d(a, a, 3, padding=1)
        self.which = nn.Conv2d(a, 4 * (1 + SHIFTS), 1)
        self.far1, self.far2 = nn.Linear(b + NUMBERS, 64), nn.Linear(64, 2 * SHIFTS)
        self.attend = nn.Conv2d(b, 1, 1)
        for zero in (self.far2, self.which):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        with torch.no_grad():  # first nearly everything stays where it is
            self.which.bias[:4] = 3.0
        self.register_buffer("offsets", torch.arange(config.crop), persistent=False)

    def begin(self, clean: Tensor) -> Moved:
        """Begin at clean backgrounds (B, 3, H, W), 0..1."""
        B, _, H, W = clean.shape
        y, x = torch.meshgrid(torch.arange(H, device=clean.device), torch.arange(W, device=clean.device), indexing="ij")
        source = torch.stack([x, y], -1).to(clean.dtype).expand(B, H, W, 2)
        no = torch.zeros(B, H, W, dtype=torch.bool, device=clean.device)
        quarter = self.config.crop // 4
        return Moved(clean, clean, source, no, no, clean.new_zeros(B, self.config.memory, quarter, quarter))

    def step(self, moved: Moved, capsules: Tensor, ground: Tensor, states: Tensor) -> Moved:
        """Go on by one action. Each (B, 2, ...), before and after it: `capsules` (B, 2, 6, 6) of the silhouette;
        `ground` (B, 2, 2), the point of the table under the fingertips, u, v; target `states` (B, 2, 7)."""
        size, side = self.config.image_size, self.config.crop
        tips = capsules[:, :, FINGERS, 3:5].mean(2)  # (B, 2, 2)
        gone = (tips.abs() > UNSEEN).flatten(1).any(1)
        tips = tips.clamp(-UNSEEN, UNSEEN)
        corner = ((tips.mean(1) + 1.0) * size / 2).floor().long().sub(side // 2).clamp(0, size - side)  # x, y
        cols, rows = (corner[:, i, None] + self.offsets for i in (0, 1))  # (B, S) each
        clip = torch.arange(len(tips), device=tips.device)[:, None, None]
        y, x = rows[:, :, None], cols[:, None]
        pixel = torch.stack(torch.broadcast_tensors(x, y), -1)  # (B, S, S, 2)
        here = (pixel + 0.5) * (2.0 / size) - 1.0
        now = moved.now.permute(0, 2, 3, 1)[clip, y, x]  # (B, S, S, 3)
        source = moved.source[clip, y, x]
        arm = [silhouette_at(capsules[:, i:i + 1], here)[:, 0, ..., len(GROUPS):] for i in (0, 1)]
        away = [(here - p[:, i, None, None]).clamp(-1.0, 1.0) * 2.0 for p in (tips, ground) for i in (0, 1)]
        other = ((source - pixel).abs().amax(-1, keepdim=True) > 0.25).float()
        seen = torch.cat([2.0 * (now - now.mean((1, 2), keepdim=True)), *arm, *away, other], -1)
        hand = torch.cat([(p[:, 1] - p[:, 0]) * (size / 2) for p in (tips, ground)], 1)
        center, scale = (states.new_tensor(v) for v in (self.config.state_center, self.config.state_scale))
        numbers = torch.cat([((states - center) / scale).flatten(1), hand / 4.0], 1)
        logits, far, memory = self._look(seen.permute(0, 3, 1, 2), numbers, moved.memory)
        shifts = hand[:, None, :2] + REACH * torch.tanh(far.unflatten(1, (SHIFTS, 2)) / REACH)  # (B, K, 2) px
        share = logits.softmax(1).permute(0, 2, 3, 1)  # (B, S, S, 1 + K) of what is there before: stays, goes by k
        if bool(gone.any()):
            still = torch.tensor([1.0, *[0.0] * SHIFTS], device=share.device)
            share = torch.where(gone[:, None, None, None], still, share)

        goes = 1.0 - share[..., 0].detach()
        taken = self._taken(moved, source, goes > 0.5, (clip, y, x))
        # While it trains, what may leave is already filled in, or there would be nothing to learn from.
        hinted = self._taken(moved, source, goes > HINT, (clip, y, x)) if self.training else taken
        bare = moved.start
        if bool(hinted.any()):
            bare = fill(moved.start, 1.0 - F.max_pool2d(hinted.unsqueeze(1).float(), 3, 1, 1))
        both = torch.cat([moved.start, bare], 1)

        # What arrives at each pixel: by k from `pixel - shift`, whose own way goes on by the rest of a pixel.
        arrives, colours, sources, fills = [], [], [], []
        for k in range(SHIFTS):
            before = pixel - shifts[:, k, None, None]
            near = before.detach().round()
            inside = near - corner[:, None, None]
            ok = ((inside >= 0) & (inside < side)).all(-1)
            near = near.long().clamp(0, size - 1)
            grid = (before - corner[:, None, None] + 0.5) * (2.0 / side) - 1.0
            part = F.grid_sample(share[..., 1 + k].unsqueeze(1), grid, mode="bilinear", padding_mode="zeros",
                                 align_corners=False)[:, 0]
            came = moved.source[clip, near[..., 1], near[..., 0]] + (before - near)
            full = moved.filled[clip, near[..., 1], near[..., 0]]
            picked = F.grid_sample(both, (came + 0.5) * (2.0 / size) - 1.0, mode="bilinear", padding_mode="border",
                                   align_corners=False)
            colours.append(torch.where(full.unsqueeze(1), picked[:, 3:], picked[:, :3]).permute(0, 2, 3, 1))
            arrives.append(part * ok)
            sources.append(came)
            fills.append(full)
        coming = torch.stack(arrives, -1)  # (B, S, S, K)
        total = coming.sum(-1, keepdim=True)
        coming = coming / total.clamp_min(1.0)
        rest = (1.0 - total).clamp_min(0.0)
        weights = torch.cat([rest * share[..., :1], rest * (1.0 - share[..., :1]), coming], -1)
        revealed = bare.permute(0, 2, 3, 1)[clip, y, x]
        options = torch.stack([now, revealed, *colours], -2)  # (B, S, S, 2 + K, 3)
        soft = (weights.unsqueeze(-1) * options).sum(-2)
        best = weights.detach().argmax(-1)
        ways = torch.stack([source, pixel.to(source.dtype), *sources], -2)
        filled = torch.stack([moved.filled[clip, y, x], torch.ones_like(fills[0]), *fills], -1)
        way = ways.gather(-2, best[..., None, None].expand(*best.shape, 1, 2)).squeeze(-2)
        shown = options.gather(-2, best[..., None, None].expand(*best.shape, 1, 3)).squeeze(-2)
        new_now, new_source, new_filled = (v.clone() for v in (moved.now, moved.source, moved.filled))
        new_now.permute(0, 2, 3, 1)[clip, y, x] = shown.detach()
        new_source[clip, y, x] = way
        new_filled[clip, y, x] = filled.gather(-1, best.unsqueeze(-1)).squeeze(-1)
        return Moved(new_now, moved.start, new_source, new_filled, taken, memory, soft.permute(0, 3, 1, 2), corner,
                     logits, shifts)

    def _taken(self, moved: Moved, source: Tensor, goes: Tensor, crop: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return what has been moved from the start frame, bool (B, H, W), where these pixels of the crop go too."""
        taken = moved.taken.clone()
        where = (goes & ~moved.filled[crop]).nonzero(as_tuple=True)
        at = source.detach()[where].round().long().clamp(0, self.config.image_size - 1)
        taken[where[0], at[:, 1], at[:, 0]] = True
        return taken

    def _look(self, x: Tensor, numbers: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, 1 + K, S, S), shifts (B, 2 K) and the new memory, from crops (B, LOOK, S, S)."""
        a, b = self.config.channels
        (s1, t1), (s2, t2) = (p.chunk(2, 1) for p in self.numbers(numbers)[:, :, None, None].split((2 * a, 2 * b), 1))
        top = F.silu(self.enter(F.pixel_unshuffle(x, 2)) * (1 + s1) + t1)
        top = top + F.silu(self.inner(top))
        low = F.silu(self.down(top) * (1 + s2) + t2)
        low = low + F.silu(self.recall(torch.cat([low, memory], 1)))
        low = low + F.silu(self.deep1(low))
        low = low + F.silu(self.deep2(low))
        gate, fresh = self.gates(torch.cat([low, memory], 1)).chunk(2, 1)
        gate = torch.sigmoid(gate - 1.0)
        memory = memory + gate * (torch.tanh(fresh) - memory)
        up = F.silu(self.join(torch.cat([top, F.interpolate(low, scale_factor=2.0)], 1)))
        up = up + F.silu(self.outer(up))
        logits = F.pixel_shuffle(self.which(up), 2)
        heat = self.attend(low).flatten(2).softmax(-1)
        pooled = (low.flatten(2) * heat).sum(-1)
        far = self.far2(F.silu(self.far1(torch.cat([pooled, numbers], 1))))
        return logits, far, memory


def under_tips(camera: Tensor, affine: Tensor | None, states: Tensor) -> Tensor:
    """Return the points of the table, u, v (B, 2), under the end effector of states (B, 7), by cameras (B, 12) moved by
    `affine` (B, 6)."""
    on_table = torch.cat([states[:, :2], torch.full_like(states[:, :1], 0.01)], 1)
    seen = project(camera, on_table)[0]
    if affine is None:
        return seen
    linear, shift = affine.split((4, 2), -1)
    return seen + (seen[:, None] @ linear.view(-1, 2, 2).mT)[:, 0] + shift


def load_moving_background(directory: Path) -> MovingBackground | None:
    """Load the moving background of a world model's folder; None where it has none. BadCheckpoint where it is broken.
    """
    folder = directory / FOLDER
    if not any((folder / name).is_file() for name in (CONFIG, WEIGHTS)):  # or a training into it has just begun
        return None
    values = read_config(folder, MovingBackgroundConfig.model_type)
    try:
        network = MovingBackground(MovingBackgroundConfig.from_dict(values))
    except (TypeError, ValueError, BadConfig) as error:
        raise BadCheckpoint(f"{folder / 'config.json'} does not describe a moving background ({error})") from error
    fill_weights(network, folder)
    return network


def save_moving_background(network: MovingBackground | None, directory: Path) -> None:
    """Write it into a world model's folder, where there is one: a new version of the world model keeps it."""
    if network is not None:
        save_model(network, network.config.to_dict(), directory / FOLDER)
