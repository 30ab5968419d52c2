"""How far a dream may be believed: for one task, with the judges it was measured with, on images of one kind.

A release table says, for each task by name, how well a world model with its judges ranked recorded episodes as they
truly went, and what the images were like on which that was measured. A session's captured frames are compared with
them: whatever was not measured is *unknown*, not good.

A kind of image is a range for each of a few plain statistics (`image_statistics`) over the measured images. An
image is of the kind if each of its statistics lies in the range, widened by 1/sqrt(n) of its width: the extremes of
n images are known no better. This tells a rendered image from a photograph, another aspect ratio, and a black, grey
or washed-out image from a good one. It does not tell whether the arm stands where it should in the image: that is
seen by the judges, who then give no verdict, and a session without verdicts is never trusted.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.images import check_rgb, resize_rgb
from world_gymnast_ros.instructions import task_of
from world_gymnast_ros.types import U8

RELEASE_AUC = 0.9
"""A dream that ranks recorded episodes worse than this is not believed."""
RELEASE_FALSE_SUCCESS = 0.15
"""Nor is one in which more failures may pass for successes (upper end of the 95 % interval)."""
MIN_IMAGES = 20
"""Fewer images say nothing of a kind."""
GRID = (96, 128)
"""Height and width at which statistics are taken, so that the camera's resolution does not count."""
FLAT_LEVELS = 2.0
"""Grey levels by which a pixel of an even surface may differ from the mean of its four neighbours, times four."""
ASPECT_TOLERANCE = 0.02

STATISTICS = {
    "aspect ratio": "width by height", "brightness": "mean grey level", "contrast": "standard deviation of the grey "
    "levels", "red against green": "mean difference, levels", "blue against green": "mean difference, levels",
    "edges": "mean absolute Laplacian, levels", "sharpest edges": "99th percentile of the absolute Laplacian as a part "
    "of the contrast: blur lowers it", "even surface": "share of pixels whose absolute Laplacian is at most 2 levels: "
    "noise and texture lower it"}
"""What is compared, and what each number means."""


def image_statistics(rgb: U8) -> dict[str, float]:
    """Return the statistics of one image uint8 (H, W, 3), in the order of `STATISTICS`. Raises BadFrame."""
    height, width = check_rgb(rgb).shape[:2]
    small = resize_rgb(rgb, GRID).astype(np.float64)
    grey = small.mean(-1)
    laplacian = np.abs(grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1])
    values = (width / height, grey.mean(), grey.std(),
              (small[..., 0] - small[..., 1]).mean(), (small[..., 2] - small[..., 1]).mean(),
              laplacian.mean(), np.percentile(laplacian, 99) / max(float(grey.std()), 1.0),
              (laplacian <= FLAT_LEVELS).mean())
    return {name: float(value) for name, value in zip(STATISTICS, values, strict=True)}


@dataclass(frozen=True)
class ImageKind:
    """What the images were like on which something was measured.

    `source` where they came from, in words; `count` how many; `height_px` of the smallest; `ranges` the smallest and
    the largest value of each statistic.
    """

    source: str
    count: int
    height_px: int
    ranges: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        if set(self.ranges) != set(STATISTICS):
            raise BadConfig(f"ranges are of {', '.join(self.ranges)}; they must be of {', '.join(STATISTICS)}")
        if not all(math.isfinite(low) and low <= high < math.inf for low, high in self.ranges.values()):
            raise BadConfig(f"ranges must be finite and in order, got {dict(self.ranges)}")
        if self.count < 1:
            raise BadConfig(f"count is {self.count}; a kind is of at least one image")

    @classmethod
    def of(cls, images: Sequence[U8], source: str) -> ImageKind:
        """Return the kind of images uint8 (H, W, 3), as the camera gave them. Raises BadConfig where there is none.
        """
        if not len(images):
            raise BadConfig("no images to take statistics of")
        rows = [image_statistics(p) for p in images]
        ranges = {name: (min(r[name] for r in rows), max(r[name] for r in rows)) for name in STATISTICS}
        return cls(source, len(rows), min(p.shape[0] for p in images), ranges)

    def departures(self, rgb: U8) -> list[str]:
        """Return what sets an image uint8 (H, W, 3) apart from this kind, in words; nothing where it is of it."""
        if self.count < MIN_IMAGES:
            return [f"only {self.count} images were measured on, fewer than {MIN_IMAGES}"]
        wrong = []
        if rgb.shape[0] < self.height_px:
            wrong.append(f"height {rgb.shape[0]} pixels (measured: {self.height_px} or more)")
        for name, value in image_statistics(rgb).items():
            low, high = self.ranges[name]
            slack = max((high - low) / math.sqrt(self.count), ASPECT_TOLERANCE if name == "aspect ratio" else 0.0)
            if not low - slack <= value <= high + slack:
                wrong.append(f"{name} {value:.3g} (measured: {low:.3g} to {high:.3g})")
        return wrong

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a release table."""
        return {"source": self.source, "count": self.count, "height_px": self.height_px,
                "ranges": {name: [low, high] for name, (low, high) in self.ranges.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ImageKind:
        """Read what `to_json` wrote. Raises KeyError, TypeError, ValueError or BadConfig."""
        return cls(str(value["source"]), int(value["count"]), int(value["height_px"]),
                   {str(name): (float(low), float(high)) for name, (low, high) in value["ranges"].items()})


@dataclass(frozen=True)
class TaskRelease:
    """One row of a release table: paired replay of recorded episodes of one task.

    `auc` of imagined reward against what happened, with its 95 % interval `low` to `high`; `episodes` replayed;
    `false_success_high` the upper end of the 95 % interval of the share of failures that pass for successes;
    `images` the kind that the episodes began with, None where it was not kept. `instructions`: the sentences that
    the task covers, "*" for any words; `horizon_steps`: actions of its longest episode, 0 where unknown.
    """

    auc: float
    low: float = math.nan
    high: float = math.nan
    episodes: int = 0
    false_success_high: float = 1.0
    images: ImageKind | None = None
    instructions: tuple[str, ...] = ()
    horizon_steps: int = 0

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TaskRelease:
        """Read one row; other keys are left alone. Raises KeyError, TypeError, ValueError or BadConfig."""
        kind = row.get("images")
        return cls(float(row["auc"]), float(row["low"]), float(row["high"]), int(row["episodes"]),
                   float(row["false_success_high"]), None if kind is None else ImageKind.from_json(kind),
                   tuple(str(s) for s in row.get("instructions", ())), int(row.get("horizon_steps", 0)))


def released_task(instruction: str, release: Mapping[str, TaskRelease]) -> str:
    """Return what a release table calls the task of an instruction; the sentence itself where it has no such task."""
    return task_of(instruction, {task: row.instructions or (task,) for task, row in release.items()})


class Known(str, Enum):
    """Whether a dream may be believed."""

    YES = "yes, within limits"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Trust:
    """Whether the dream may be believed for one task on a session's images, and why, in words."""

    task: str
    known: Known
    because: str

    @property
    def line(self) -> str:
        return f"{self.known.value}. {self.because[:1].upper()}{self.because[1:]}"


def image_doubt(release: TaskRelease | None, images: Sequence[U8]) -> str:
    """Return why captured frames uint8 (H, W, 3) are not of the kind that a task was measured on; '' where all are."""
    if release is None or release.images is None:
        return "it was not recorded which kind of image was measured on"
    for number, rgb in enumerate(images, 1):
        if wrong := release.images.departures(rgb):
            which = f"frame {number} of {len(images)}" if len(images) > 1 else "the captured frame"
            return f"{which} is not of the kind that was measured on ({release.images.source}): {'; '.join(wrong)}"
    return "" if len(images) else "no frame was captured"


def trust_of(task: str, release: TaskRelease | None, world_model: str, images: Sequence[U8], judged: bool) -> Trust:
    """Say how far the dream of `world_model` may be believed for a task, by its row of the release table (or None).

    `images` are the captured frames uint8 (H, W, 3), as the camera gave them; `judged`: the judges gave verdicts on
    most rollouts of the session.
    """
    doubt = "imagined success says nothing about the real arm here; do not move one with an adapter from it"
    if release is None or math.isnan(release.auc):
        return Trust(task, Known.UNKNOWN,
                     f"'{world_model}' was never shown to rank '{task}' (no paired replay): {doubt}")
    auc = f"ranks '{task}' with AUC {release.auc:.2f} in paired replay"
    if not release.auc >= RELEASE_AUC:
        return Trust(task, Known.NO, f"'{world_model}' {auc}, below {RELEASE_AUC:g}: {doubt}")
    if not release.false_success_high <= RELEASE_FALSE_SUCCESS:
        return Trust(task, Known.NO, f"up to {release.false_success_high:.0%} of failures of '{task}' pass for "
                     f"successes in paired replay, more than {RELEASE_FALSE_SUCCESS:.0%}: {doubt}")
    if wrong := image_doubt(release, images):
        return Trust(task, Known.UNKNOWN, f"{wrong}: {doubt}")
    if not judged:
        return Trust(task, Known.UNKNOWN, f"the judges gave no verdict on most rollouts: {doubt}")
    return Trust(task, Known.YES, f"'{world_model}' {auc} (needed: {RELEASE_AUC:g}), on images of this kind; watch "
                 "the first real episodes")
