"""Vary a captured start: objects that are not the task's, light, colour, blur, a camera turned a little. Pixels alone.

Whatever is changed, the arm is not: its silhouette is computed from the state, and its pixels are put back. A turned
camera turns the whole image, arm included, by the homography of a rotation about the optical centre, which needs no
depth and leaves the state in base axes right; a camera that is shifted would show what no image holds, and is not
imitated.

Nothing here knows what the task's objects are. Cut-outs are put where the table is bare: pixels of the table's own
colour with nothing that stands out in a cut-out's whole footprint, and outside what the user keeps free. So they cover
nothing that can be seen against the table; an object of the table's colour they might.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from world_gymnast_ros.errors import BadConfig, BadFrame
from world_gymnast_ros.robot.actions import rpy_to_matrix
from world_gymnast_ros.robot.arm_silhouette import PARKED, silhouette
from world_gymnast_ros.types import F64, U8, Frame, Start

Mask = NDArray[np.bool_]
ARM_MARGIN, NEAR_ARM = 0.03, 0.3
"""How far beyond the arm's silhouette its pixels are kept, in halves of the image (no camera is known exactly), and
how far beyond that other light comes in gradually, so that no edge is drawn around the arm."""
TABLE_LEVELS, FLAT_LEVELS = 36, 14
"""Grey levels per channel by which bare table differs at most from the table's colour, and from its surroundings."""
TABLE_FROM = 0.35
"""The table's colour is looked for below this share of the image's height."""
CUT_OUT_HEIGHT = (0.08, 0.16)
"""Height of a cut-out, as a part of the image's."""
TRIES = 60


@dataclass(frozen=True)
class VariationConfig:
    """How much a start is varied at most: `objects` cut-outs; light as gain, its fall across the image and colour,
    all parts of 1; `blur_px` for an image 240 pixels high; `turn_rad` of the camera about each of its axes."""

    objects: int = 3
    gain: float = 0.2
    fall: float = 0.15
    colour: float = 0.06
    blur_px: float = 0.6
    turn_rad: float = 0.015


def arm_distance(state: NDArray[np.float32], camera: ArrayLike, size: tuple[int, int]) -> F64:
    """Return how far each pixel (H, W) lies outside the silhouette of an arm at a Bridge state (7,), halves of the
    image; 0 or less inside.

    `camera` (12,) as from `arm_silhouette.projection`. BadFrame where the pose is out of reach: then nobody knows.
    """
    capsules = silhouette(state[None].astype(np.float32), np.array([True]), camera)[0].reshape(-1, 2, 3)
    if (capsules[..., :2] >= PARKED).all():
        raise BadFrame("the arm's state is out of reach, so its place in the image is unknown; it is not varied")
    height, width = size
    u, v = (np.arange(width) + 0.5) / width * 2 - 1, (np.arange(height) + 0.5) / height * 2 - 1
    grid = np.stack(np.meshgrid(u, v), -1)
    outside = np.full(size, np.inf)
    for (u0, v0, r0), (u1, v1, r1) in capsules.astype(np.float64):
        a, along = np.array([u0, v0]), np.array([u1 - u0, v1 - v0])
        t = np.clip(((grid - a) @ along) / max(float(along @ along), 1e-12), 0.0, 1.0)
        outside = np.minimum(outside, np.linalg.norm(grid - a - t[..., None] * along, axis=-1) - r0 - t * (r1 - r0))
    return outside


def bare_table(rgb: U8, taken: Mask) -> Mask:
    """Return which pixels bool (H, W) show bare table: of its colour, without edges, and not `taken`."""
    low = rgb[round(TABLE_FROM * len(rgb)):][~taken[round(TABLE_FROM * len(rgb)):]]
    if not len(low):
        return np.zeros_like(taken)
    cells = (low // 16).astype(np.int64) @ (256, 16, 1)
    colour = low[cells == np.bincount(cells).argmax()].mean(0)
    around = box_mean(rgb.astype(np.float64), max(2, len(rgb) // 40))
    plain = (np.abs(rgb - around).max(-1) < FLAT_LEVELS) & (np.abs(rgb - colour).max(-1) < TABLE_LEVELS)
    return np.asarray(plain & ~taken, np.bool_)


def box_mean(image: F64, reach: int) -> F64:
    """Return the mean of float64 (H, W, C) over a square of `reach` pixels to each side; edges are repeated."""
    for axis in (0, 1):
        padded = np.pad(image, [(reach + 1, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        total = padded.cumsum(axis)
        n = image.shape[axis]
        image = (np.take(total, range(2 * reach + 1, 2 * reach + 1 + n), axis)
                 - np.take(total, range(n), axis)) / (2 * reach + 1)
    return image


def read_cut_outs(folder: Path) -> list[U8]:
    """Return the cut-outs uint8 (h, w, 4) in a folder of PNG files with transparency. Raises BadConfig."""
    found = []
    for path in sorted(folder.glob("*.png")) if folder.is_dir() else []:
        try:
            with Image.open(path, formats=("PNG",)) as image:
                rgba = np.array(image.convert("RGBA"))
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            raise BadConfig(f"{path} is no readable PNG ({type(error).__name__}); take it out, or save it again"
                            ) from error
        if not (rgba[..., 3] > 0).any() or (rgba[..., 3] > 0).all():
            raise BadConfig(f"{path} has no transparent background; cut the object out, and leave the rest transparent")
        found.append(rgba)
    if not found:
        raise BadConfig(f"{folder} holds no cut-outs (*.png with transparency); put some there, or name another folder")
    return found


def place_cut_out(rgb: U8, free: Mask, cut_out: U8, rng: np.random.Generator) -> tuple[U8, Mask] | None:
    """Return the image with a cut-out on `free` table, and the pixels that it covers; None where it has no room."""
    height, width = free.shape
    tall = max(4, round(height * rng.uniform(*CUT_OUT_HEIGHT)))
    wide = max(4, round(tall * cut_out.shape[1] / cut_out.shape[0]))
    if tall >= height or wide >= width:
        return None
    small = np.array(Image.fromarray(cut_out).resize((wide, tall), Image.Resampling.BOX))
    if rng.random() < 0.5:
        small = small[:, ::-1]
    solid = small[..., 3] > 0
    for _ in range(TRIES):
        y, x = int(rng.integers(height - tall)), int(rng.integers(width - wide))
        if free[y:y + tall, x:x + wide][solid].all():
            out, covered = rgb.copy(), np.zeros_like(free)
            alpha = small[..., 3:] / 255.0
            patch = out[y:y + tall, x:x + wide]
            patch[:] = np.round(patch * (1 - alpha) + small[..., :3] * alpha).astype(np.uint8)
            covered[y:y + tall, x:x + wide] = solid
            return out, covered
    return None


def relight(rgb: U8, config: VariationConfig, rng: np.random.Generator) -> U8:
    """Return the image in other light: brighter or darker, falling off to one side, tinted, a little out of focus."""
    height, width = rgb.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    v, u = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    gain = 1 + rng.uniform(-config.gain, config.gain)
    field = gain * (1 + rng.uniform(0, config.fall) * (np.cos(angle) * u + np.sin(angle) * v))
    tint = 1 + rng.uniform(-config.colour, config.colour, 3)
    sigma = rng.uniform(0, config.blur_px) * height / 240
    near = box_mean(rgb.astype(np.float64), 1)
    mix = min(1.0, sigma)
    soft = rgb * (1 - mix) + near * mix
    return np.asarray(np.clip(soft * field[..., None] * tint + 0.5, 0, 255), np.uint8)


def turned(rgb: U8, rpy_rad: F64, focal: tuple[float, float]) -> U8:
    """Return what the camera sees once it is turned by `rpy_rad` (3,) about its own axes (right, down, forward);
    `focal` in halves of the image. What it did not see before repeats the edge."""
    height, width = rgb.shape[:2]
    v, u = np.meshgrid((np.arange(height) + 0.5) / height * 2 - 1, (np.arange(width) + 0.5) / width * 2 - 1,
                       indexing="ij")
    rays = np.stack([u / focal[0], v / focal[1], np.ones_like(u)], -1) @ rpy_to_matrix(np.asarray(rpy_rad)).T
    x = np.clip((rays[..., 0] / rays[..., 2] * focal[0] + 1) / 2 * width - 0.5, 0, width - 1)
    y = np.clip((rays[..., 1] / rays[..., 2] * focal[1] + 1) / 2 * height - 0.5, 0, height - 1)
    x0, y0 = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    top = rgb[y0, x0] * (1 - fx) + rgb[y0, x0 + 1] * fx
    low = rgb[y0 + 1, x0] * (1 - fx) + rgb[y0 + 1, x0 + 1] * fx
    return np.asarray(top * (1 - fy) + low * fy + 0.5, np.uint8)


def turned_camera(camera: ArrayLike, rpy_rad: F64) -> tuple[F64, tuple[float, float]]:
    """Return the projection (12,) of a camera once it is turned, and its focal lengths in halves of the image."""
    P = np.asarray(camera, np.float64).reshape(3, 4)
    focal = float(np.linalg.norm(P[0, :3])), float(np.linalg.norm(P[1, :3]))
    scale = np.diag([*focal, 1.0])
    return (scale @ rpy_to_matrix(np.asarray(rpy_rad)).T @ np.linalg.inv(scale) @ P).ravel(), focal


def vary(start: Start, camera: ArrayLike, cut_outs: Sequence[U8], config: VariationConfig, seed: int,
         keep: Mask | None = None) -> tuple[Start, str]:
    """Return a start with its captured frame varied, and in words what was done.

    `keep` bool (H, W): pixels that nothing is put on. `original` of the result is the frame as the turned camera sees
    it, before anything else: judges measure there. BadFrame where the state is not known, and so the arm's place.
    """
    if start.state is None:
        raise BadFrame("without the arm's state its place in the image is unknown; give --state, or do not vary")
    rng = np.random.default_rng(seed)
    rpy = rng.uniform(-config.turn_rad, config.turn_rad, 3)
    seen_by, focal = turned_camera(camera, rpy)
    rgb = turned(start.captured.rgb, rpy, focal) if config.turn_rad else start.captured.rgb
    size = rgb.shape[0], rgb.shape[1]
    outside = arm_distance(start.state, seen_by, size)
    arm = outside <= ARM_MARGIN
    taken = arm if keep is None else arm | keep
    out, placed, bare = rgb, 0, bare_table(rgb, taken)
    for _ in range(int(rng.integers(1, config.objects + 1)) if cut_outs and config.objects else 0):
        found = place_cut_out(out, bare, cut_outs[int(rng.integers(len(cut_outs)))], rng)
        if found is not None:
            out, placed, bare = found[0], placed + 1, bare & ~found[1]
    share = np.clip((outside - ARM_MARGIN) / NEAR_ARM, 0.0, 1.0)[..., None]
    out = np.round(out * (1 - share) + relight(out, config, rng) * share).astype(np.uint8)
    turn_deg = np.degrees(np.abs(rpy).max())
    summary = f"{placed} object{'s' * (placed != 1)} put there, camera turned {turn_deg:.1f} degrees, other light"
    stamp_ns = start.captured.stamp_ns
    return replace(start, frame=Frame(out, stamp_ns), original=Frame(rgb, stamp_ns)), summary
