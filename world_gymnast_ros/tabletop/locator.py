"""`LocatorNetwork`: where in the image a named object is, and where the arm's parts are.

A small convolutional U-Net with one map of cells for each question. A question about an object is a colour word and a
shape word; the arm's parts are asked always, since they tell where the camera is (`robot/camera.py`).
"""
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from world_gymnast_ros.errors import BadCheckpoint, BadInstruction
from world_gymnast_ros.images import check_rgb, resize_rgb
from world_gymnast_ros.models.checkpoint import fill, read_config, save_model
from world_gymnast_ros.robot.camera_extrinsics import StoredCamera
from world_gymnast_ros.types import F32, U8

STRIDE = 2
"""Pixels per cell of a map."""
MAX_SIZE_M = 0.3
"""Nothing wider or higher is pushed."""
SHUFFLE = 2
"""The network works on maps this much coarser, and splits each of their cells at the end."""
WINDOW = 3
"""Cells to each side of the best cell that a place is averaged over."""


class LocatorConfig(PretrainedConfig):
    """What the network is, and what `GeometricJudge` needs to turn places in the image into m.

    Network: image size in pixels, words it knows, number of arm parts, widths. Camera: nominal `T_base_camera`
    (16 numbers, row-major), `focal` in halves of the image, how far from it a tripod may stand (one sigma), how
    exactly a part is seen. Arm: where the measured hand is, given its targets: `hand_lag` of the last step behind, and
    `hand_sag_m` below. Objects: `object_height_m`, the height of their middle above the table, `object_heights_m` of
    those by name that are otherwise, `approach_heights_m` how high the hand must be when it first comes near those
    that fall over where it does not come from above, `object_sizes_m` radius and height of those that are pushed as
    if they were wider, narrower, higher or lower than usual (`contact.py`), `object_found` the
    detection threshold of those that look unfamiliar. `sigma_m`: the error of a measured place, one sigma per axis; a
    limit counts as kept only where it is kept by `sure_sigmas` of them (1.28: 90 % sure). `found`: the detection
    threshold.
    `camera_rms`: parts that fit the camera worse than this are no basis for a verdict. Success: a hand as near as
    `reach_radius_m` and below `reach_height_m`; an object pushed `push_distance_m`, aside by less than `push_aside_m`;
    one put within `place_radius_m` of its goal.
    """

    model_type = "world_gymnast_locator"

    name: str = "locator-tiny"
    height: int = 144
    width: int = 192
    colours: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    parts: int = 6
    channels: list[int] = field(default_factory=lambda: [48, 64, 96, 96])
    T_base_camera: list[float] = field(default_factory=list)
    focal: list[float] = field(default_factory=lambda: [1.9487, 2.5983])
    shift_sigma_m: float = 0.02
    rotation_sigma_rad: float = 0.03
    seen_sigma: float = 0.012
    hand_lag: float = 0.3
    hand_sag_m: list[float] = field(default_factory=lambda: [0.0017, 0.0, 0.003])
    workspace_low_m: list[float] | None = None
    workspace_high_m: list[float] | None = None
    object_height_m: float = 0.02
    object_heights_m: dict[str, float] = field(default_factory=dict)
    approach_heights_m: dict[str, float] = field(default_factory=dict)
    object_sizes_m: dict[str, list[float]] = field(default_factory=dict)
    object_found: dict[str, float] = field(default_factory=dict)
    sigma_m: float = 0.004
    sure_sigmas: float = 1.28
    found: float = 0.5
    camera_rms: float = 0.05
    reach_radius_m: float = 0.022
    reach_height_m: float = 0.095
    push_distance_m: float = 0.05
    push_aside_m: float = 0.04
    place_radius_m: float = 0.04


class _Block(nn.Module):
    """Two 3x3 convolutions with a skip; `stride` 2 halves the map."""

    def __init__(self, inside: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.GroupNorm(8, out), nn.SiLU(),
                                  nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.GroupNorm(8, out))
        self.skip = nn.Identity() if inside == out and stride == 1 else nn.Sequential(
            nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(), nn.Conv2d(inside, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.silu(self.body(x) + self.skip(x))
        return y


class LocatorNetwork(PreTrainedModel):
    """Maps of cells, as logits; the last logit of each says "not in the image"."""

    config_class = LocatorConfig
    base_model_prefix = "locator"
    main_input_name = "images"

    def __init__(self, config: LocatorConfig) -> None:
        super().__init__(config)
        c = config.channels
        look = nn.Conv2d(5, c[0], 8, STRIDE * SHUFFLE, 2, bias=False)
        self.stem = nn.Sequential(look, nn.GroupNorm(8, c[0]), nn.SiLU())
        self.down = nn.ModuleList(_Block(a, b, 2) for a, b in pairwise(c))
        self.middle = _Block(c[-1], c[-1])
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(c))
        self.up = nn.ModuleList(_Block(a, a) for a in c[:-1])
        split = nn.PixelShuffle(SHUFFLE)
        self.read = nn.Sequential(nn.Conv2d(c[0], 32 * SHUFFLE**2, 1), split)
        self.parts = nn.Sequential(nn.Conv2d(c[0], config.parts * SHUFFLE**2, 1), split)
        self.parts_absent = nn.Linear(c[-1], config.parts)
        self.colour = nn.Embedding(max(len(config.colours), 1), 48)
        self.shape = nn.Embedding(max(len(config.shapes), 1), 48)
        self.ask = nn.Sequential(nn.Linear(96, 64), nn.SiLU(), nn.Linear(64, 32))
        self.absent = nn.Sequential(nn.Linear(96 + c[-1], 64), nn.SiLU(), nn.Linear(64, 1))
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, config.height), torch.linspace(-1, 1, config.width),
                                indexing="ij")
        self.register_buffer("grid", torch.stack([xs, ys])[None], persistent=False)

    def forward(self, images: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of objects (B, Q, cells + 1) and of parts (B, P, cells + 1).

        `images` float (B, 3, H, W), 0..1; `words` int64 (B, Q, 2), colour and shape indices.
        """
        x = self.stem(torch.cat([images - 0.5, self.grid.expand(len(images), -1, -1, -1).to(images)], 1))
        levels = [x]
        for block in self.down:
            levels.append(block(levels[-1]))
        x = self.middle(levels[-1])
        whole = x.mean((2, 3))
        for block, narrow, level in reversed(list(zip(self.up, self.narrow, levels[:-1], strict=True))):
            x = block(F.interpolate(narrow(x), size=level.shape[2:], mode="nearest") + level)
        asked = torch.cat([self.colour(words[..., 0]), self.shape(words[..., 1])], -1)
        cells = torch.einsum("bqc,bchw->bqhw", self.ask(asked), self.read(x)).flatten(2)
        absent = self.absent(torch.cat([asked, whole[:, None].expand(-1, asked.shape[1], -1)], -1))
        objects = torch.cat([cells, absent], -1)
        parts = torch.cat([self.parts(x).flatten(2), self.parts_absent(whole)[..., None]], -1)
        return objects.float(), parts.float()


def places(logits: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return places (..., 2) as u, v in -1..1 and the probability (...) of being there, from logits (..., cells + 1).

    The place is the mean over the cells around the best one; the probability is theirs together.
    """
    share = logits.softmax(-1)[..., :-1].unflatten(-1, (height, width))
    best = share.flatten(-2).argmax(-1)
    ys, xs = torch.arange(height, device=logits.device), torch.arange(width, device=logits.device)
    near = (((ys - (best // width)[..., None]).abs() <= WINDOW)[..., :, None]
            & ((xs - (best % width)[..., None]).abs() <= WINDOW)[..., None, :])
    mass = share * near
    total = mass.sum((-2, -1))
    safe = total.clamp_min(1e-9)
    u = (mass.sum(-2) * (2 * (xs + 0.5) / width - 1)).sum(-1) / safe
    v = (mass.sum(-1) * (2 * (ys + 0.5) / height - 1)).sum(-1) / safe
    return torch.stack([u, v], -1), total


def check_objects(config: LocatorConfig) -> None:
    """Raise ValueError where what a lab taught about objects by name cannot be."""
    def number(value: object, most: float) -> bool:
        return isinstance(value, int | float) and 0.0 < value <= most
    sizes_m, found = config.object_sizes_m, config.object_found
    if not (isinstance(sizes_m, dict) and all(isinstance(size_m, list) and len(size_m) == 2
                                              and all(number(s, MAX_SIZE_M) for s in size_m)
                                              for size_m in sizes_m.values())):
        raise ValueError(f"object_sizes_m is {sizes_m}; give radius and height by name, each above 0, up to "
                         f"{MAX_SIZE_M} m")
    if not (isinstance(found, dict) and all(number(confidence, 1.0) for confidence in found.values())):
        raise ValueError(f"object_found is {found}; give a detection threshold by name, above 0, up to 1")


class Locator:
    """Asks the network about images."""

    def __init__(self, network: LocatorNetwork, sha256: str, device: str = "cpu") -> None:
        self.config: LocatorConfig = network.config
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.name, self.sha256 = self.config.name, sha256

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> Locator:
        """Load a checkpoint directory; BadCheckpoint names the file and the remedy."""
        directory = Path(path)
        values = read_config(directory, LocatorConfig.model_type)
        try:
            config = LocatorConfig(**values)
            check_objects(config)
            network = LocatorNetwork(config)
        except (TypeError, ValueError, KeyError) as error:
            raise BadCheckpoint(f"{directory / 'config.json'} does not describe a locator ({error})") from error
        return cls(network, fill(network, directory), device)

    def save(self, directory: str | Path) -> str:
        """Write config.json and model.safetensors; return the weights' SHA-256."""
        self.sha256 = save_model(self.network, self.config.to_dict(), Path(directory))
        return self.sha256

    def seen_from(self, camera: StoredCamera) -> Locator:
        """Return the same network with the camera that a calibration found as the nominal one."""
        other = copy.copy(self)
        other.config = copy.deepcopy(self.config)
        other.config.T_base_camera = list(camera.T_base_camera)
        other.config.focal = [2 * camera.focal / camera.aspect, 2 * camera.focal]
        return other

    def word_indices(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Return (colour, shape) of names such as 'red block'. BadInstruction names a word that it does not know."""
        out = []
        for name in names:
            words = name.split()
            if len(words) != 2 or words[0] not in self.config.colours or words[1] not in self.config.shapes:
                raise BadInstruction(f"{self.name} cannot find '{name}'; it knows the colours "
                                     f"{', '.join(self.config.colours)} and the shapes {', '.join(self.config.shapes)}")
            out.append((self.config.colours.index(words[0]), self.config.shapes.index(words[1])))
        return out

    def detect(self, images: U8, names: Sequence[str], batch: int = 32) -> tuple[F32, F32, F32, F32]:
        """Find `names` and the arm's parts in images uint8 (B, H, W, 3) of any size.

        Returns places of the names (B, Q, 2), u, v in -1..1, and their confidence (B, Q); the same of the parts
        (B, P, 2), (B, P).
        """
        c = self.config
        small = resize_rgb(check_rgb(images, "images"), (c.height, c.width))
        words = torch.tensor(self.word_indices(names), dtype=torch.long, device=self.device).view(-1, 2)
        out: list[list[np.ndarray]] = []
        for i in range(0, len(small), batch):
            part = torch.from_numpy(small[i:i + batch]).to(self.device).permute(0, 3, 1, 2).float().div_(255.0)
            with torch.inference_mode():
                objects, parts = self.network(part, words.expand(len(part), -1, -1))
                found = (*places(objects, c.height // STRIDE, c.width // STRIDE),
                         *places(parts, c.height // STRIDE, c.width // STRIDE))
            out.append([x.cpu().numpy() for x in found])
        first, *rest = (np.concatenate(x) for x in zip(*out, strict=True))
        return (first, *rest)  # type: ignore[return-value]
