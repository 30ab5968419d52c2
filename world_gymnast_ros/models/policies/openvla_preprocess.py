"""What OpenVLA's evaluation does to a camera frame before the network sees it, without TensorFlow.

Camera frame uint8 (H, W, 3), any size
  -> JPEG round trip (quality 95, 4:2:0), because the training frames were stored so
  -> Lanczos-3 resize with antialiasing, squashed to a square, in float, rounded once at the end
  -> centre crop of `crop_area` of the area, bilinear, back to the square (fine-tunes trained with random crops: 0.9)
  -> one copy per vision tower, each with its own mean and deviation, joined along the channels.

The reference does this in TensorFlow (openvla `experiments/robot/bridge/bridgev2_utils.py`, openvla-oft
`experiments/robot/openvla_utils.py`). Reinforcement learning in a world model (World-Gymnast, SimpleVLA-RL) crops the
256 px frame directly: `jpeg` and `lanczos` off.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.images import check_rgb
from world_gymnast_ros.models.policies.jpeg_fast import jpeg_round_trip
from world_gymnast_ros.types import F32, U8

PREPROCESSOR = "preprocessor_config.json"
LANCZOS_RADIUS = 3.0


@dataclass(frozen=True)
class Preprocess:
    """Frames to the network's pixels. `size` px; `means`, `stds` one RGB triple per vision tower, of values 0..1."""

    size: int
    means: tuple[tuple[float, float, float], ...]
    stds: tuple[tuple[float, float, float], ...]
    crop_area: float = 1.0
    jpeg: bool = True
    lanczos: bool = True

    def __post_init__(self) -> None:
        if not 0.1 <= self.crop_area <= 1.0:
            raise BadConfig(f"crop_area {self.crop_area} is outside 0.1..1; OpenVLA's own checkpoints have 1 (no "
                            "crop), those trained with random crops 0.9")
        if len(self.means) != len(self.stds) or not self.means or min(min(s) for s in self.stds) <= 0:
            raise BadCheckpoint(f"{PREPROCESSOR} needs as many positive stds as means, got {self.means}, {self.stds}")

    @classmethod
    def from_folder(cls, folder: Path, size: int, towers: int, *, crop_area: float = 1.0, jpeg: bool = True,
                    lanczos: bool = True) -> Preprocess:
        """Read the normalisation of `towers` vision towers from the checkpoint's preprocessor_config.json."""
        path = folder / PREPROCESSOR
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            means, stds = (tuple((float(r), float(g), float(b)) for r, g, b in values[key])
                           for key in ("means", "stds"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadCheckpoint(f"{path} is missing or has no means and stds ({error}); copy it from the checkpoint "
                                "that this one was made from") from error
        if len(means) != towers:
            raise BadCheckpoint(f"{path} normalises for {len(means)} vision towers, config.json has {towers}")
        return cls(size, means, stds, crop_area, jpeg, lanczos)

    def image(self, rgb: U8) -> U8:
        """Return the square image uint8 (size, size, 3) of one frame uint8 (H, W, 3)."""
        out = check_rgb(rgb)
        if self.jpeg:
            out = jpeg_round_trip(out)
        if self.lanczos:
            out = lanczos3(out, self.size)
        if self.crop_area < 1.0:
            out = centre_crop(out, self.crop_area, self.size)
        if out.shape[:2] != (self.size, self.size):
            out = np.asarray(Image.fromarray(out).resize((self.size, self.size), Image.Resampling.BICUBIC))
        return out

    def __call__(self, frames: U8) -> F32:
        """Return pixels float32 (B, 3 * towers, size, size) of frames uint8 (B, H, W, 3)."""
        images = np.stack([self.image(frame) for frame in frames]).astype(np.float32) / np.float32(255.0)
        parts = [(images - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
                 for mean, std in zip(self.means, self.stds, strict=True)]
        return np.ascontiguousarray(np.concatenate(parts, axis=-1).transpose(0, 3, 1, 2))


@lru_cache(maxsize=16)
def _lanczos_rows(size_in: int, size_out: int) -> NDArray[np.float32]:
    """Return weights float32 (size_out, size_in) of a 1-D Lanczos-3 resize; shrinking widens the kernel."""
    scale = size_in / size_out
    wide = max(scale, 1.0)
    centres = (np.arange(size_out) + 0.5) * scale
    distance = np.abs(np.arange(size_in)[None] + 0.5 - centres[:, None]) / wide
    kernel = np.where(distance < LANCZOS_RADIUS, np.sinc(distance) * np.sinc(distance / LANCZOS_RADIUS), 0.0)
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True), np.float32)


def lanczos3(rgb: U8, size: int) -> U8:
    """Resize a frame uint8 (H, W, 3) to (size, size, 3), in float: Pillow's Lanczos rounds between its two passes."""
    rows, columns = _lanczos_rows(rgb.shape[0], size), _lanczos_rows(rgb.shape[1], size)
    down = np.tensordot(rows, rgb.astype(np.float32), axes=(1, 0))
    both = np.tensordot(columns, down, axes=(1, 1)).transpose(1, 0, 2)
    return np.clip(np.rint(both), 0, 255).astype(np.uint8)


def centre_crop(rgb: U8, area: float, size: int) -> U8:
    """Return the middle `area` (share of the area) of a frame uint8 (H, W, 3) as (size, size, 3), bilinear.

    Corners of the crop lie on corner pixels' centres, and values are cut, not rounded, as TensorFlow's
    `crop_and_resize` and `convert_image_dtype` do.
    """
    side = np.float32(math.sqrt(area))
    start = (np.float32(1.0) - side) / np.float32(2.0)
    image = rgb.astype(np.float32) * np.float32(1.0 / 255.0)

    def points(length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        step = (start + side - start) * np.float32(length - 1) / np.float32(size - 1)
        where = start * np.float32(length - 1) + np.arange(size, dtype=np.float32) * step
        low = np.floor(where).astype(np.int64)
        return low, np.ceil(where).astype(np.int64), (where - low).astype(np.float32)

    top, bottom, down = points(rgb.shape[0])
    left, right, across = points(rgb.shape[1])
    across, down = across[None, :, None], down[:, None, None]
    upper = image[top][:, left] + (image[top][:, right] - image[top][:, left]) * across
    lower = image[bottom][:, left] + (image[bottom][:, right] - image[bottom][:, left]) * across
    out = np.clip(upper + (lower - upper) * down, 0.0, 1.0)
    return np.minimum(out * np.float32(255.5), np.float32(255.0)).astype(np.uint8)
