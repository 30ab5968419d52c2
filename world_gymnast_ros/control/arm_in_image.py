"""Is the arm seen where its joints say it is? Its computed silhouette against the brightness of the image.

The WidowX is black, so inside its silhouette an image is darker than just outside. How much darker, in units of the
spread of both parts, is a correlation from -1 to 1 that neither exposure nor contrast changes. The camera may stand
elsewhere than nominal: the silhouette is tried at all shifts, those far away at a price. The same is done with the
image mirrored, turned and flipped. An image is definitely one of these when that fits well, and much better than the
image as it is, for which the price of a shift is lower: a moved camera must never look like a mirrored image.

Several images at different poses share one shift, which makes chance agreement rare.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from world_gymnast_ros.control.image_statistics import Finding, ImageFault
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.robot.arm_silhouette import PARKED, silhouette
from world_gymnast_ros.types import F32, F64, U8

ROWS, COLUMNS = 36, 48
"""Cells of the image: one is 2 % of its width, less than the shapes of the silhouette are off."""
SHIFT_ROWS, SHIFT_COLUMNS = 18, 24
"""Largest shift that is tried: half the image, as of a camera turned by 14 degrees."""
RING_CELLS = 3.0
"""Width of the part just outside the silhouette."""
MIN_CELLS = 20
"""Of the silhouette, and of its ring, that must be in the image."""
GOOD, BETTER = 0.6, 0.2
"""A fit, and by how much it must exceed that of the image as it is. Of 3,572 images of the twin, single ones at any
pose, 2 were taken for mirrored; of 250 of real Bridge robots with other cameras, none (`bench/image_check.py`)."""
BAD = 0.2
"""Below this fit the arm is not where it should be: a hint only, a camera mounted elsewhere gives it too."""
PRICE, PRICE_AS_IT_IS = 1.4, 0.35
"""Of a shift by the whole half of an image, squared; a tripod that was knocked (3 cm, 3 degrees) moves it by 0.15."""
TURNS: tuple[tuple[ImageFault | None, tuple[int, int]], ...] = (
    (None, (1, 1)), (ImageFault.MIRRORED, (1, -1)), (ImageFault.UPSIDE_DOWN, (-1, -1)),
    (ImageFault.FLIPPED, (-1, 1)))
"""What may have been done to an image, and the steps along rows and columns that undo it."""
_PAD = (2 * SHIFT_ROWS + ROWS, 2 * SHIFT_COLUMNS + COLUMNS)
HERE = np.s_[SHIFT_ROWS:SHIFT_ROWS + ROWS, SHIFT_COLUMNS:SHIFT_COLUMNS + COLUMNS]
"""Where the image lies on the canvas of an `ArmView`."""
_NOISE = 0.05  # of the log brightness; keeps a flat part from counting as contrast
DARK = 8.0
"""Levels added before a logarithm, so that noise in the dark does not count."""


class ArmView(NamedTuple):
    """An image and where the arm must be in it: `levels` float64 (ROWS, COLUMNS, 3) of RGB, 0..255; `inside` the arm's
    silhouette and `ring` the part just outside, on a canvas that reaches SHIFT_ROWS and SHIFT_COLUMNS further."""

    levels: F64
    inside: np.ndarray
    ring: np.ndarray


class Fit(NamedTuple):
    """How well the silhouette fits, for each of TURNS (4,), -1..1."""

    scores: F64


def view_arm(rgb: U8, state: F32, camera: tuple[float, ...]) -> ArmView | None:
    """Return an image uint8 (H, W, 3) with the arm's silhouette. `state` (7,) Bridge, `camera` as from
    `arm_silhouette.projection`. None where the arm is not in view, or its pose is out of reach."""
    beyond = cells_beyond(silhouette(state[None], np.ones(1, np.bool_), camera)[0])
    inside, ring = beyond <= 0.0, (beyond > 0.0) & (beyond <= RING_CELLS)
    if inside[HERE].sum() < MIN_CELLS or ring[HERE].sum() < MIN_CELLS:
        return None
    return ArmView(resize_rgb(rgb, (ROWS, COLUMNS)).astype(np.float64), inside, ring)


def light(view: ArmView) -> F64:
    """Return the log brightness (ROWS, COLUMNS) of an image."""
    brightness: F64 = np.log(view.levels.mean(-1) + DARK)
    return brightness


def silhouette_maps(view: ArmView) -> F64:
    """Return by how much an image is darker inside the arm's silhouette than around it, -1..1, for each of TURNS and
    every shift: (4, 2 SHIFT_ROWS + 1, 2 SHIFT_COLUMNS + 1)."""
    return _darker(turned(light(view)), np.fft.rfft2(view.inside), np.fft.rfft2(view.ring))


def turned(values: F64) -> list[F64]:
    """Return values (ROWS, COLUMNS) of an image as each of TURNS would be undone."""
    return [values[::down, ::right] for _, (down, right) in TURNS]


def fit_silhouette(maps: Sequence[F64]) -> Fit:
    """Return how well the arm fits images of one camera, of their `silhouette_maps`."""
    rows = (SHIFT_ROWS - np.arange(2 * SHIFT_ROWS + 1)) / ROWS
    columns = (SHIFT_COLUMNS - np.arange(2 * SHIFT_COLUMNS + 1)) / COLUMNS
    away = 4 * (np.square(rows)[:, None] + np.square(columns)[None])
    darker = np.mean(maps, axis=0)
    darker[0] -= PRICE_AS_IT_IS / 2 * away
    darker[1:] -= PRICE / 2 * away
    return Fit(darker.max(axis=(1, 2)))


def arm_finding(fit: Fit) -> Finding | None:
    """Return what the fit says of the image, or None: the arm is where it should be, or nothing can be said."""
    best = 1 + int(fit.scores[1:].argmax())
    fault = TURNS[best][0]
    if fault is not None and fit.scores[best] >= GOOD and fit.scores[best] >= fit.scores[0] + BETTER:
        return Finding(fault, f"the arm's silhouette then fits with {fit.scores[best]:.2f}, as it is with "
                       f"{fit.scores[0]:.2f}; limits {GOOD} and {BETTER} better", True)
    if fit.scores.max() < BAD:
        return Finding(ImageFault.ARM_ELSEWHERE, f"its silhouette fits with {fit.scores[0]:.2f}, limit {BAD}", False)
    return None


def cells_beyond(capsules: F32) -> F64:
    """Return how far each cell (_PAD) lies outside capsules (6, 6), in cells, below 0 inside; the image is in the
    middle."""
    y = np.arange(_PAD[0])[:, None] + 0.5 - _PAD[0] / 2
    x = np.arange(_PAD[1])[None] + 0.5 - _PAD[1] / 2
    out = np.full(_PAD, np.inf)
    for u0, v0, r0, u1, v1, r1 in np.asarray(capsules, np.float64):
        if u0 >= PARKED - 1:
            continue
        start = np.array([u0 * COLUMNS, v0 * ROWS]) / 2
        along = np.array([u1 * COLUMNS, v1 * ROWS]) / 2 - start
        share = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / max(along @ along, 1e-9), 0.0, 1.0)
        far = np.hypot(x - start[0] - share * along[0], y - start[1] - share * along[1])
        np.minimum(out, far - (r0 + (r1 - r0) * share) * np.sqrt(ROWS * COLUMNS) / 2, out=out)
    return out


def _darker(lights: Sequence[F64], inside: np.ndarray, ring: np.ndarray) -> F64:
    """Return for each image and shift by how much the silhouette is darker than its ring, -1..1; 0 where too little
    is seen.

    `lights`: log brightness (ROWS, COLUMNS); `inside`, `ring`: spectra of what they cover. Sums over what a shifted
    mask covers are correlations.
    """
    ones = spectrum(np.ones((ROWS, COLUMNS)))
    a, b = shifted_sums(ones, inside), shifted_sums(ones, ring)
    seen = (a >= MIN_CELLS - 0.5) & (b >= MIN_CELLS - 0.5)
    a, b = np.maximum(a, 1.0), np.maximum(b, 1.0)
    weight = np.where(seen, np.sqrt(a * b) / (a + b), 0.0)
    out = np.empty((len(lights), *a.shape))
    for i, light in enumerate(lights):
        values = spectrum(light)
        in_sum, ring_sum = shifted_sums(values, inside), shifted_sums(values, ring)
        squares = shifted_sums(spectrum(light * light), inside + ring)
        spread = np.sqrt(np.maximum(squares / (a + b) - ((in_sum + ring_sum) / (a + b)) ** 2, 0.0)) + _NOISE
        out[i] = (ring_sum / b - in_sum / a) / spread * weight
    return out


def spectrum(values: F64) -> np.ndarray:
    """Return the spectrum of values (ROWS, COLUMNS) of an image, for `shifted_sums`."""
    padded = np.zeros(_PAD)
    padded[:ROWS, :COLUMNS] = values
    return np.conj(np.fft.rfft2(padded))


def shifted_sums(values: np.ndarray, mask: np.ndarray) -> F64:
    """Return the sum of an image's values, as `spectrum`, over what a mask (its rfft2) covers, at every shift."""
    sums: F64 = np.fft.irfft2(values * mask, _PAD)
    return sums[:2 * SHIFT_ROWS + 1, :2 * SHIFT_COLUMNS + 1]
