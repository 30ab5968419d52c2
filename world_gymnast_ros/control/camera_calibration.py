"""Where a camera stands, from images of the arm at several poses: no marker, no checkpoint, no known scene.

The camera and the scene stay, the arm moves: where an image differs from the median of all, there the arm is, or was
in most of the others. The arm's computed silhouettes tell the same for any camera. The camera whose silhouettes
correlate best with what was seen to change is the answer; what is left is measured image by image, in pixels.

A shadow that moves with the arm, or a thing that was moved between two images, counts as change: even light and hands
off the scene help. Six numbers are fitted (place and direction); the focal length is the camera's own and given.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.optimize import minimize

from world_gymnast_ros.errors import BadConfig, BadFrame
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.robot.arm_silhouette import PARKED, silhouette_ends, silhouette_of_ends
from world_gymnast_ros.robot.camera import CameraPrior, moved
from world_gymnast_ros.types import F32, F64, U8

MIN_IMAGES = 6
"""Each place of the scene must be free of the arm in most of the images."""
MIN_APART_M = 0.04
"""Two images with the hand nearer to each other count as one."""
GRIDS = ((48, 36, 2.0), (96, 72, 1.0), (160, 120, 0.7))
"""Columns, rows and blur (cells) of the images that the fit looks at, one after the other."""
SEARCHED = 400
"""Cameras drawn around the nominal one, of which the best KEPT are followed."""
KEPT = 4
MAX_TRIES = 350
"""Cameras that following one of them may look at, on each grid."""
SEARCH_SHIFT_M, SEARCH_TURN_RAD = 0.06, 0.10
"""One standard deviation of that draw: 6 cm, 6 degrees."""
MIN_MATCH = 0.35
"""Correlation of silhouettes and change below which the camera was not found."""
MAX_RESIDUAL_PX = 12.0
"""At 640 columns; above it the camera was not found. The shapes of the links alone are off by 3 to 5 px."""
ARM, HAND = slice(0, 2), slice(2, 6)
"""Capsules of the silhouette: upper arm and forearm; hand, carriage and fingers."""
WIDER = 1.6
MIN_CELLS = 40
"""Of the hand, below which an image has no residual."""
RESIDUAL_CELLS = 6
"""An image's residual is looked for up to so many cells of the finest grid, each way."""


class CalibrationImage(NamedTuple):
    """An image uint8 (H, W, 3) with the arm at rest at a measured Bridge state (7,)."""

    rgb: U8
    state: F32


@dataclass(frozen=True)
class Calibrated:
    """`T_base_camera` (4, 4), m, optical axes. `residual_px` (N,): how far each image's silhouette lies from where
    the arm was seen, pixels of the image's own width. `match`: correlation of all, -1..1."""

    T_base_camera: F64
    residual_px: F64
    match: float

    @property
    def rms_px(self) -> float:
        """Root mean square of the residuals, pixels."""
        return float(np.sqrt(np.mean(np.square(self.residual_px))))


def distinct(images: Sequence[CalibrationImage]) -> list[CalibrationImage]:
    """Return the images, without those whose hand is within MIN_APART_M of a later one's."""
    kept: list[CalibrationImage] = []
    for image in reversed(images):
        if all(np.linalg.norm(image.state[:3] - other.state[:3]) >= MIN_APART_M for other in kept):
            kept.append(image)
    return kept[::-1]


def calibrate_camera(images: Sequence[CalibrationImage], prior: CameraPrior, seed: int = 0,
                     grids: Sequence[tuple[int, int, float]] = GRIDS,
                     progress: Callable[[float], object] = lambda share: None) -> Calibrated:
    """Return the camera that saw these images. `prior`: where it is roughly, within some 15 cm and 15 degrees.

    `grids`: columns, rows and blur of the images that are looked at, from coarse to fine. `progress` hears which
    share of the work is done, 0 to 1, as often as a camera was tried; the search may end early.

    Raises BadConfig where there are too few poses, BadFrame where no camera explains what changed.
    """
    used = distinct(images)
    if len(used) < MIN_IMAGES:
        raise BadConfig(f"{len(used)} images with the hand at least {100 * MIN_APART_M:.0f} cm apart, {MIN_IMAGES} "
                        "are needed: move the arm to other places in view and capture there")
    ends = silhouette_ends(np.stack([p.state for p in used]))
    seen = _Changes(used, *grids[0])
    starts = np.random.default_rng(seed).normal(size=(SEARCHED, 6)) * ([SEARCH_SHIFT_M] * 3 + [SEARCH_TURN_RAD] * 3)
    starts[0] = 0.0
    work = _Work(grids, progress)
    losses = [work.after(0, -seen.match(_capsules(ends, prior, x))) for x in starts]
    best = [starts[i] for i in np.argsort(losses)[:KEPT]]
    for grid, (columns, rows, blur) in enumerate(grids):
        seen = _Changes(used, columns, rows, blur)
        found = [_descend(seen, ends, prior, x, 0.5**grid, partial(work.after, grid)) for x in best]
        work.reached(grid)
        found.sort(key=lambda pair: pair[1])
        best = [x for x, _ in found[:1]]
    capsules = _capsules(ends, prior, best[0])
    match = seen.match(capsules)
    scale = used[0].rgb.shape[1] / grids[-1][0]
    result = Calibrated(moved(prior, best[0]), scale * seen.residual_cells(capsules), match)
    limit_px = MAX_RESIDUAL_PX * used[0].rgb.shape[1] / 640
    if match < MIN_MATCH or result.rms_px > limit_px:
        raise BadFrame(f"no camera near the given one explains the images: match {match:.2f}, at least {MIN_MATCH}; "
                       f"residual {result.rms_px:.1f} px, at most {limit_px:.1f}. Keep camera, light and things still "
                       "while the arm moves, keep people out of the image, and name the camera's place more closely")
    return result


def arm_mask(capsules: F32, columns: int, rows: int) -> np.ndarray:
    """Return what capsules (6, 6) cover, bool (rows, columns)."""
    y = (np.arange(rows)[:, None] + 0.5) * 2 / rows - 1
    x = (np.arange(columns)[None] + 0.5) * 2 / columns - 1
    aspect = columns / rows  # radii are in the mean unit of both axes
    covered = np.zeros((rows, columns), np.bool_)
    for u0, v0, r0, u1, v1, r1 in np.asarray(capsules, np.float64):
        if u0 >= PARKED - 1:
            continue
        du, dv = (u1 - u0) * aspect, v1 - v0
        px, py = (x - u0) * aspect, y - v0
        share = np.clip((px * du + py * dv) / max(du * du + dv * dv, 1e-9), 0.0, 1.0)
        radius = (r0 + (r1 - r0) * share) * np.sqrt(aspect)
        covered |= np.hypot(px - share * du, py - share * dv) <= radius
    return covered


def overlay(images: Sequence[CalibrationImage], T_base_camera: F64, prior: CameraPrior, columns: int = 4) -> U8:
    """Return the images side by side, uint8 (H, W, 3), with the edge of the computed silhouette in red."""
    at = CameraPrior(T_base_camera, prior.focal_u, prior.focal_v)
    capsules = _capsules(silhouette_ends(np.stack([p.state for p in images])), at, np.zeros(6))
    tiles = []
    for image, here in zip(images, capsules, strict=True):
        tile = resize_rgb(image.rgb, (240, 320)).copy()
        covered = arm_mask(here, 320, 240)
        tile[binary_dilation(covered) & ~covered] = (255, 0, 0)
        tiles.append(tile)
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.concatenate([np.concatenate(tiles[i:i + columns], 1) for i in range(0, len(tiles), columns)])


def _capsules(ends: F64, prior: CameraPrior, x: F64) -> F32:
    return silhouette_of_ends(ends, moved(prior, x), prior.focal_u, prior.focal_v)


class _Work:
    """How much of a calibration is done, in cells that were looked at, of as many as it may take."""

    def __init__(self, grids: Sequence[tuple[int, int, float]], progress: Callable[[float], object]) -> None:
        self._cells = [columns * rows for columns, rows, _ in grids]
        tries = [SEARCHED + KEPT * MAX_TRIES, *[MAX_TRIES] * (len(grids) - 1)]
        self._until = np.cumsum([cells * n for cells, n in zip(self._cells, tries, strict=True)])
        self._done, self._progress = 0, progress

    def after(self, grid: int, loss: float) -> float:
        """Note that a camera was tried on this grid; return its loss."""
        self._done = min(self._done + self._cells[grid], int(self._until[grid]))
        self._progress(self._done / int(self._until[-1]))
        return loss

    def reached(self, grid: int) -> None:
        """Note that all is done on this grid."""
        self._done = int(self._until[grid])


def _descend(seen: _Changes, ends: F64, prior: CameraPrior, x: F64, size: float, after: Callable[[float], float]
             ) -> tuple[F64, float]:
    """Return the best camera near x (6,) and its loss, by Nelder and Mead: silhouettes have no derivative.
    `after` hears each loss and returns it."""
    def loss(x: F64) -> float:
        return after(-seen.match(_capsules(ends, prior, x)))
    steps = np.diag([0.02 * size] * 3 + [0.03 * size] * 3)
    found = minimize(loss, x, method="Nelder-Mead", options={"initial_simplex": np.stack([x, *(x + steps)]),
                                                             "maxfev": MAX_TRIES, "xatol": 2e-4, "fatol": 1e-5})
    return np.asarray(found.x, np.float64), float(found.fun)


class _Changes:
    """Where images differ from their median, as a grid of cells."""

    def __init__(self, images: Sequence[CalibrationImage], columns: int, rows: int, blur: float) -> None:
        self._size, self._blur = (rows, columns), blur
        small = np.stack([resize_rgb(p.rgb, self._size) for p in images]).astype(np.float32)
        change = np.abs(small - np.median(small, axis=0)).max(-1)
        noise = float(np.median(change)) + 4.0
        self._seen = self._smooth(np.clip(change / (6.0 * noise), 0.0, 1.0))

    def _smooth(self, stack: np.ndarray) -> F64:
        return np.asarray(gaussian_filter(stack.astype(np.float32), (0.0, self._blur, self._blur)), np.float64)

    def _predicted(self, capsules: F32) -> tuple[F64, F64]:
        """Return what should change, for a camera's capsules (N, 6, 6), and where that counts, both (N, rows, columns):
        where the hand is and mostly is not, or where it mostly is and is not now. Upper arm and forearm are of a
        coarser shape and so near to the camera that a few mm move them far: where they may be, nothing counts."""
        masks = np.stack([arm_mask(c[HAND], self._size[1], self._size[0]) for c in capsules])
        arms = np.stack([arm_mask(_wider(c[ARM]), self._size[1], self._size[0]) for c in capsules]) & ~masks
        return self._smooth(masks != (masks.mean(0) > 0.5)), 1.0 - arms

    def match(self, capsules: F32) -> float:
        """Return the correlation of what should change and what did, -1..1."""
        return _correlation(*self._predicted(capsules), self._seen)

    def residual_cells(self, capsules: F32) -> F64:
        """Return, per image that shows the hand, by how many cells its foretold change must be shifted to fit best.
        """
        out = []
        shifts = range(-RESIDUAL_CELLS, RESIDUAL_CELLS + 1)
        for predicted, counts, seen in zip(*self._predicted(capsules), self._seen, strict=True):
            if predicted.sum() < MIN_CELLS:
                continue
            scores = np.array([[_correlation(np.roll(predicted, (down, right), (0, 1)), counts, seen)
                                for right in shifts] for down in shifts])
            down, right = np.unravel_index(int(scores.argmax()), scores.shape)
            out.append(np.hypot(_peak(scores[:, right], int(down)), _peak(scores[down], int(right))))
        return np.array(out or [np.inf])


def _wider(capsules: F32) -> F32:
    """Return capsules (N, 6) with radii WIDER times as large."""
    return capsules * np.array([1, 1, WIDER, 1, 1, WIDER], np.float32)


def _peak(line: F64, at: int) -> float:
    """Return where a line of scores peaks near index `at`, as a shift, by a parabola through three."""
    shift = float(at - RESIDUAL_CELLS)
    if 0 < at < len(line) - 1:
        below, here, above = line[at - 1:at + 2]
        bend = below - 2 * here + above
        shift += float(0.5 * (below - above) / bend) if bend < -1e-12 else 0.0
    return shift


def _correlation(a: F64, counts: F64, b: F64) -> float:
    """Return the correlation of two stacks, weighed by `counts`."""
    total = max(float(counts.sum()), 1.0)
    a, b = a - (a * counts).sum() / total, b - (b * counts).sum() / total
    return float((a * b * counts).sum() / np.sqrt(max((a * a * counts).sum() * (b * b * counts).sum(), 1e-12)))
