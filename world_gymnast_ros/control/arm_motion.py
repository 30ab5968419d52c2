"""Does the image change where the arm moved? Two images, two measured poses, no colour, no brightness of the arm.

What its computed silhouette covers at one of the poses alone is where the image must change. The share of the change
that lies there is a correlation from -1 to 1, for the images as they are and mirrored, turned and flipped, at all
shifts, as in `arm_in_image`. It needs neither a dark arm nor a bright table, and objects that lie still count for
nothing. It needs a camera that looks roughly from where it is said to: from elsewhere another turn may fit as well.
"""
from __future__ import annotations

import numpy as np

from world_gymnast_ros.control.arm_in_image import (
    COLUMNS,
    DARK,
    HERE,
    MIN_CELLS,
    ROWS,
    TURNS,
    ArmView,
    Fit,
    light,
    shifted_sums,
    spectrum,
    turned,
)
from world_gymnast_ros.control.image_statistics import Finding
from world_gymnast_ros.types import F64

GOOD, BETTER = 0.35, 0.15
"""A fit, and by how much it must exceed that of the images as they are: 0.07 at most, of 836 right ones of the twin
and of real Bridge robots (`bench/image_check.py`). A camera on the other side than is said exceeds it more often."""
ALIKE = 0.9
"""Two images of one camera with the arm at the same place correlate by more; else the camera was changed."""
ALIKE_BETTER = 0.1
"""By so much more than mirrored, turned or flipped ones: in a symmetric scene these correlate, too."""
MIN_FREE = 0.25
"""Share of the image beside the arm that says which scene it is."""
_HIGHEST, _FLOOR = 0.95, 0.05  # a change counts as whole from this quantile on, plus noise


def change_maps(before: ArmView, after: ArmView) -> F64:
    """Return how well the change between two images is explained by the arm's motion, -1..1, for each of TURNS and
    every shift: (4, 2 SHIFT_ROWS + 1, 2 SHIFT_COLUMNS + 1)."""
    change = np.abs(np.log(after.levels + DARK) - np.log(before.levels + DARK)).mean(-1)
    change = change - np.median(change)  # of all the image: the exposure
    change = np.clip(change / (np.quantile(change, _HIGHEST) + _FLOOR), 0.0, 1.0)
    mask, cells = np.fft.rfft2(before.inside ^ after.inside), ROWS * COLUMNS
    count = shifted_sums(spectrum(np.ones((ROWS, COLUMNS))), mask)
    share = np.clip(count / cells, 1e-6, 1.0 - 1e-6)
    spread = np.sqrt(share * (1.0 - share)) * (change.std() + 1e-6)
    maps = np.stack([shifted_sums(spectrum(c), mask) / cells - share * change.mean() for c in turned(change)])
    fits: F64 = np.where(count >= MIN_CELLS - 0.5, maps / spread, 0.0)
    return fits


def alike(before: ArmView, after: ArmView) -> bool:
    """Tell whether two images with the arm at the same place may be of one camera."""
    return _correlation(light(before), light(after)) >= ALIKE


def same_scene(before: ArmView, after: ArmView) -> bool:
    """Tell whether two images show the same scene from the same place, wherever the arm stands in them.

    What the arm covers in either is left out; the rest must correlate, and less so mirrored, turned or flipped.
    """
    free = ~(before.inside | before.ring | after.inside | after.ring)[HERE]
    if free.mean() < MIN_FREE:
        return False
    was = light(before)[free]
    as_it_is, *otherwise = (_correlation(was, now[free]) for now in turned(light(after)))
    return as_it_is >= ALIKE and as_it_is >= max(otherwise) + ALIKE_BETTER


def _correlation(a: F64, b: F64) -> float:
    """Return the correlation of two images' values, 0 where one is flat."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (np.sqrt(np.square(a).sum() * np.square(b).sum()) + 1e-12))


def motion_finding(fit: Fit, moves: int) -> Finding | None:
    """Return what `moves` motions of the arm say of its images: mirrored, turned or flipped, or None."""
    best = 1 + int(fit.scores[1:].argmax())
    fault = TURNS[best][0]
    if fault is None or fit.scores[best] < GOOD or fit.scores[best] < fit.scores[0] + BETTER:
        return None
    return Finding(fault, f"then it changes where the arm moved, in {moves} motions, with {fit.scores[best]:.2f}, "
                   f"as it is with {fit.scores[0]:.2f}; limits {GOOD} and {BETTER} better; or the camera "
                   "looks from another side than camera_xyz_m and camera_look say", True)


def motion_agrees(fit: Fit) -> bool:
    """Tell whether the arm's motions speak for the images as they are."""
    return bool(fit.scores[0] >= GOOD and fit.scores[0] >= fit.scores[1:].max() + BETTER)
