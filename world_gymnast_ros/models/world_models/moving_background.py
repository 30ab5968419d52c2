"""A background that moves as it was learned to: what the hand pushes, carries and drops, from pictures and poses alone.

The background is the scene without the arm (`background.py`). A small recurrent network looks at a crop of it around
the fingertips, at the arm's computed silhouette before and after an action and at the target poses, and says for each
pixel where it comes from: from nearby in the background as it is, from the start frame along the way that it has come
so far (which stays sharp however long the dream), or painted. It knows neither objects nor physics:
both are in its weights.
Warping pixels by a learned flow: Finn et al. 2016 (arXiv 1605.07157). Pose maps as input: World-Env (arXiv 2509.24948).

Picture coordinates u, v in -1..1; B clips, S pixels along the crop's edge.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.models.checkpoint import fill, read_config
from world_gymnast_ros.models.world_models.action_dit import SILHOUETTE_FEATURES, silhouette_at
from world_gymnast_ros.models.world_models.background import project

FOLDER = "moving_background"
"""Where it lies in the folder of the world model that it belongs to."""
FINGERS = slice(4, 6)
"""Capsules of the silhouette that are the fingers; their second ends are the tips."""
NUMBERS = 14
"""Target states before and after the action, normalised."""
REACH = 8.0
"""The farthest that a pixel comes from in one action, pixels: a step of 5 cm is about 7 of 64."""
UNSEEN = 2.0
"""A hand farther than this from the picture's centre, in halves of the picture, moves nothing."""


@dataclass(frozen=True)
class MovingBackgroundConfig:
    """Sizes; written to `config.json`. `crop`: pixels along its edge, a multiple of 4. `camera`: nominal projection, 12
    numbers of `arm_silhouette.projection`. `state_center`, `state_scale`: normalisation of Bridge states (7,)."""

    model_type: ClassVar[str] = "moving_background"
    name: str = "moving-background-tiny"
    image_size: int = 64
    crop: int = 28
    channels: tuple[int, int, int] = (24, 40, 56)
    memory: int = 8
    camera: tuple[float, ...] = ()
    state_center: tuple[float, ...] = (0.28, 0.02, 0.10, 0.0, 0.0, 0.0, 0.5)
    state_scale: tuple[float, ...] = (0.08, 0.10, 0.08, 0.3, 0.3, 0.3, 0.5)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):  # JSON knows no tuples
                object.__setattr__(self, name, tuple(value))
        if self.crop % 4 or not 8 <= self.crop <= self.image_size:
            raise BadConfig(f"crop is {self.crop}; it must be a multiple of 4 within 8..{self.image_size}")
        if len(self.camera) != 12:
            raise BadConfig(f"camera has {len(self.camera)} numbers; it must have 12")

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds."""
        return {"model_type": self.model_type, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MovingBackgroundConfig:
        """Build from `config.json`; TypeError on an unknown key."""
        return cls(**{k: v for k, v in values.items() if k != "model_type"})


@dataclass
class Moved:
    """B backgrounds under way: `now`, `start` (B, 3, H, W), 0..1; `way` (B, 2, H, W), how far each pixel has come, px;
    `memory` (B, m, S, S), in the crop's coordinates."""

    now: Tensor
    start: Tensor
    way: Tensor
    memory: Tensor

    def keep(self, copies: Tensor) -> None:
        """Go on with these clips alone, indices."""
        self.now, self.start, self.way, self.memory = (
            x[copies] for x in (self.now, self.start, self.way, self.memory))


class MovingBackground(nn.Module):
    """The network. `begin` starts at clean backgrounds, `step` goes on by an action."""

    def __init__(self, config: MovingBackgroundConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c = config.channels
        seen = 3 + 3 + 2 + SILHOUETTE_FEATURES + 4 + config.memory
        self.numbers = nn.Sequential(nn.Linear(NUMBERS, 64), nn.SiLU(), nn.Linear(64, 2 * (a + b + c)))
        self.enter = nn.Conv2d(seen, a, 3, padding=1)
        self.down1, self.inner1 = nn.Conv2d(a, b, 3, 2, 1), nn.Conv2d(b, b, 3, padding=1)
        self.down2, self.inner2 = nn.Conv2d(b, c, 3, 2, 1), nn.Conv2d(c, c, 3, padding=1)
        self.inner3 = nn.Conv2d(c, c, 3, padding=1)
        self.join1, self.outer1 = nn.Conv2d(b + c, b, 1), nn.Conv2d(b, b, 3, padding=1)
        self.join2, self.outer2 = nn.Conv2d(a + b, a, 1), nn.Conv2d(a, a, 3, padding=1)
        self.head = nn.Conv2d(a, 2 + 4 + 3 + 2 * config.memory, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():  # first everything stays as it is
            self.head.bias[2] = 3.0
        self.register_buffer("offsets", torch.arange(config.crop), persistent=False)

    def begin(self, clean: Tensor) -> Moved:
        """Begin at clean backgrounds (B, 3, H, W), 0..1."""
        B, _, H, W = clean.shape
        side = self.config.crop
        return Moved(clean, clean, clean.new_zeros(B, 2, H, W), clean.new_zeros(B, self.config.memory, side, side))

    def step(self, moved: Moved, capsules: Tensor, ground: Tensor, states: Tensor) -> Moved:
        """Go on by one action. Each (B, 2, ...), before and after it: `capsules` (B, 2, 6, 6) of the silhouette;
        `ground` (B, 2, 2), the point of the table under the fingertips, u, v; target `states` (B, 2, 7)."""
        size, side = self.config.image_size, self.config.crop
        tips = capsules[:, 1, FINGERS, 3:5].mean(1)  # (B, 2)
        gone = (tips.abs() > UNSEEN).any(1) | ~tips.isfinite().all(1)
        centre = torch.where(gone[:, None], torch.zeros_like(tips), tips)
        corner = ((centre + 1.0) * size / 2).floor().long() - side // 2  # the crop stays inside the picture
        cols, rows = (corner[:, i, None].clamp(0, size - side) + self.offsets for i in (0, 1))  # (B, S) each
        clip = torch.arange(len(tips), device=tips.device)[:, None, None]
        y, x = rows[:, :, None], cols[:, None]

        def cut(picture: Tensor) -> Tensor:
            return picture.permute(0, 2, 3, 1)[clip, y, x].permute(0, 3, 1, 2)

        here = torch.stack(torch.broadcast_tensors(
            (cols + 0.5)[:, None] / size * 2 - 1, (rows + 0.5)[:, :, None] / size * 2 - 1), -1)  # (B, S, S, 2)
        arm = torch.cat([silhouette_at(capsules[:, i:i + 1], here)[:, 0] for i in (0, 1)], -1)  # (B, S, S, 12)
        under = torch.cat([(here - ground[:, i, None, None]).clamp(-1.5, 1.5) for i in (0, 1)], -1) * 2.0
        sharp = self._from_start(moved.start, here, cut(moved.way))
        parts = (cut(moved.now) - 0.5, sharp - 0.5, cut(moved.way) / REACH, arm.permute(0, 3, 1, 2),
                 under.permute(0, 3, 1, 2), moved.memory)
        drawn = self._look(torch.cat(parts, 1), states)
        flow, logits, paint, keep, memory = drawn.split((2, 4, 3, self.config.memory, self.config.memory), 1)
        flow = REACH * torch.tanh(flow / REACH)
        source = here + flow.permute(0, 2, 3, 1) * (2.0 / size)
        warped = sample(torch.cat([moved.now, moved.way], 1), source)
        way = warped[:, 3:] + flow
        share = logits.softmax(1).unsqueeze(2)  # (B, 4, 1, S, S)
        new = (share[:, 0] * cut(moved.now) + share[:, 1] * warped[:, :3]
               + share[:, 2] * self._from_start(moved.start, here, way) + share[:, 3] * torch.sigmoid(paint))
        way = share[:, 0] * cut(moved.way) + (1.0 - share[:, 0]) * way
        new, way = (torch.where(gone[:, None, None, None], cut(old), fresh)
                    for old, fresh in ((moved.now, new), (moved.way, way)))
        both = torch.cat([moved.now, moved.way], 1).permute(0, 2, 3, 1).clone()
        both[clip, y, x] = torch.cat([new, way], 1).permute(0, 2, 3, 1)
        now, ways = both.permute(0, 3, 1, 2).split((3, 2), 1)
        gate = torch.sigmoid(keep + 1.0)
        return Moved(now, moved.start, ways, gate * moved.memory + (1.0 - gate) * torch.tanh(memory))

    def _from_start(self, start: Tensor, here: Tensor, way: Tensor) -> Tensor:
        return sample(start, here + way.permute(0, 2, 3, 1) * (2.0 / self.config.image_size))

    def _look(self, x: Tensor, states: Tensor) -> Tensor:
        center, scale = (states.new_tensor(v) for v in (self.config.state_center, self.config.state_scale))
        a, b, c = self.config.channels
        told = self.numbers(((states - center) / scale).flatten(1))[:, :, None, None]
        (s1, t1), (s2, t2), (s3, t3) = (part.chunk(2, 1) for part in told.split((2 * a, 2 * b, 2 * c), 1))
        top = F.silu(self.enter(x) * (1 + s1) + t1)
        middle = F.silu(self.down1(top) * (1 + s2) + t2)
        middle = middle + F.silu(self.inner1(middle))
        low = F.silu(self.down2(middle) * (1 + s3) + t3)
        low = low + F.silu(self.inner2(low))
        low = low + F.silu(self.inner3(low))
        up = F.silu(self.join1(torch.cat([middle, F.interpolate(low, scale_factor=2.0)], 1)))
        up = up + F.silu(self.outer1(up))
        out = F.silu(self.join2(torch.cat([top, F.interpolate(up, scale_factor=2.0)], 1)))
        head: Tensor = self.head(out + F.silu(self.outer2(out)))
        return head


def sample(picture: Tensor, where: Tensor) -> Tensor:
    """Return pixels (B, C, S, S) of pictures (B, C, H, W) at u, v `where` (B, S, S, 2), the edge repeated."""
    return F.grid_sample(picture, where, mode="bilinear", padding_mode="border", align_corners=False)


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
    if not folder.is_dir():
        return None
    values = read_config(folder, MovingBackgroundConfig.model_type)
    try:
        network = MovingBackground(MovingBackgroundConfig.from_dict(values))
    except (TypeError, ValueError, BadConfig) as error:
        raise BadCheckpoint(f"{folder / 'config.json'} does not describe a moving background ({error})") from error
    fill(network, folder)
    return network
