"""Make varied starts for a session and have the judges look at each: is it not done already, can it still be judged?"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.rollout import derive_seed, is_success
from world_gymnast_ros.adaptation.variation import VariationConfig, read_cut_outs, vary
from world_gymnast_ros.errors import BadFrame
from world_gymnast_ros.images import decode_rgb, resize_rgb
from world_gymnast_ros.loading.load import geometric_judge, load_objects
from world_gymnast_ros.objects import ObjectDynamics
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.robot.arm_silhouette import projection
from world_gymnast_ros.robot.camera import BRIDGE_CAMERA_FOCAL, BRIDGE_CAMERA_LOOK, BRIDGE_CAMERA_XYZ_M, level_camera
from world_gymnast_ros.types import U8, Judge, Start
from world_gymnast_ros.updates.practice_starts import judge_frames

BRIGHT_LEVELS = 127
DONE_ALREADY = "the task is done already"


@dataclass(frozen=True)
class Variations:
    """Varied starts that the judges passed, what was done to each in words, and why others were dropped, with counts.
    """

    starts: tuple[Start, ...] = ()
    edits: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """What came of it, in words."""
        tried = len(self.starts) + sum(self.dropped.values())
        why = "; ".join(f"{count}: {reason}" for reason, count in self.dropped.items())
        return f"{len(self.starts)} of {tried} varied starts are used" + (f"; dropped {why}" if why else "")


def make_variations(starts: Sequence[Start], judge: Judge, cameras: Sequence[ArrayLike], cut_outs: Sequence[U8],
                    config: VariationConfig, count: int, seed: int, keep: U8 | None = None) -> Variations:
    """Make `count` variations of starts by turns and keep those that the judges pass, looking at the varied picture
    alone: they give a verdict (what they look for is still there), and the verdict is not success.

    `cameras`: the projection (12,) that sees each start. `keep` uint8 (H, W, 3): a picture whose bright parts stay free
    of objects, at any size.
    """
    made: list[tuple[Start, str]] = []
    dropped: Counter[str] = Counter()
    for i in range(count):
        start = starts[i % len(starts)]
        try:
            height, width = start.captured.rgb.shape[:2]
            free = None if keep is None else resize_rgb(keep, (height, width)).mean(-1) > BRIGHT_LEVELS
            made.append(vary(start, cameras[i % len(starts)], cut_outs, config, derive_seed(seed, 6, i), free))
        except BadFrame as error:
            dropped[str(error).split(";")[0]] += 1
    kept: list[tuple[Start, str]] = []
    for kind in dict.fromkeys(map(_kind, made)):  # judges take pictures of one size and one instruction
        mine = [pair for pair in made if _kind(pair) == kind]
        for pair, verdict in zip(mine, judge_frames(judge, [replace(s, original=None) for s, _ in mine]), strict=True):
            if verdict.score is None:
                dropped[verdict.detail or "no verdict"] += 1
            elif is_success(verdict):
                dropped[DONE_ALREADY] += 1
            else:
                kept.append(pair)
    return Variations(tuple(s for s, _ in kept), tuple(edit for _, edit in kept), dict(dropped))


def _kind(made: tuple[Start, str]) -> tuple[str, tuple[int, ...]]:
    return made[0].instruction, made[0].frame.rgb.shape


def varied_starts(judge: Judge, starts: Sequence[Start], config: AdaptNodeConfig, seed: int) -> Variations:
    """Make the varied starts that a session's settings ask for. BadConfig or BadFrame for a bad folder or picture."""
    cut_outs = read_cut_outs(Path(config.cut_outs) if config.cut_outs else share_path("config/cut_outs"))
    keep = decode_rgb(Path(config.keep_free), config.keep_free) if config.keep_free else None
    finder = load_objects(geometric, config.device) if (geometric := geometric_judge(config.judges)) else None
    cameras = [_camera(start, finder) for start in starts]
    return make_variations(starts, judge, cameras, cut_outs, VariationConfig(), config.varied, seed, keep)


def _camera(start: Start, finder: ObjectDynamics | None) -> NDArray[Any]:
    """Return the projection (12,) that sees a start: as fitted to the arm's parts in its picture, else the nominal one
    of the Bridge set-up."""
    rgb = start.captured.rgb
    found = None if finder is None or start.state is None else finder.begin([rgb], start.state[None])
    if found is not None and found[1][0].any():
        return np.asarray(found[1][0])
    nominal = level_camera(BRIDGE_CAMERA_XYZ_M, BRIDGE_CAMERA_LOOK)
    return np.array(projection(nominal, BRIDGE_CAMERA_FOCAL * rgb.shape[0], rgb.shape[1], rgb.shape[0]))
