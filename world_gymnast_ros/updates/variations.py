"""Make varied and edited starts for a session and have the judges look at each: is the task not done already, can it
still be judged, and is it still possible there?"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.editing import edited
from world_gymnast_ros.adaptation.practice import VariedStart, no_verdict, what_is_used
from world_gymnast_ros.adaptation.rollout import derive_seed, is_success, never
from world_gymnast_ros.adaptation.variation import VariationConfig, read_cut_outs, vary
from world_gymnast_ros.errors import BadConfig, BadFrame, RemoteModelError
from world_gymnast_ros.images import decode_rgb, resize_rgb
from world_gymnast_ros.loading.load import geometric_judge, load_editor, load_objects
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.objects import ObjectDynamics
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.robot.arm_silhouette import projection
from world_gymnast_ros.robot.camera import BRIDGE_CAMERA_FOCAL, BRIDGE_CAMERA_LOOK, BRIDGE_CAMERA_XYZ_M, level_camera
from world_gymnast_ros.robot.camera_extrinsics import StoredCamera
from world_gymnast_ros.types import U8, ImageEditor, Judge, Start, TellsPossible
from world_gymnast_ros.updates.practice_starts import DONE_ALREADY, judge_frames

BRIGHT_LEVELS = 127
NOT_POSSIBLE = "the task is no longer possible there"
GIVE_UP_AFTER = 2
"""An editor that fails so often in a row is not asked again."""


@dataclass(frozen=True)
class Variations:
    """Varied starts that the judges passed, what was done to each in words, and why others were dropped, with counts.
    `kind`: what they are called.
    """

    starts: tuple[Start, ...] = ()
    edits: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    kind: str = "varied starts"

    @property
    def made(self) -> tuple[VariedStart, ...]:
        """The starts with what was done to each."""
        return tuple(map(VariedStart, self.starts, self.edits))

    @property
    def summary(self) -> str:
        """What came of it, in words."""
        return what_is_used(len(self.starts), self.dropped, self.kind)


def make_variations(starts: Sequence[Start], judge: Judge, cameras: Sequence[ArrayLike], cut_outs: Sequence[U8],
                    config: VariationConfig, count: int, seed: int, keep: U8 | None = None) -> Variations:
    """Make `count` variations of starts by turns and keep those that the judges pass, looking at the varied image
    alone: they give a verdict (what they look for is still there), and the verdict is not success.

    `cameras`: the projection (12,) that sees each start. `keep` uint8 (H, W, 3): an image whose bright parts stay free
    of objects, at any size.
    """
    made: list[tuple[Start, str]] = []
    dropped: Counter[str] = Counter()
    for i in range(count):
        start = starts[i % len(starts)]
        try:
            made.append(vary(start, cameras[i % len(starts)], cut_outs, config, derive_seed(seed, 6, i),
                             _kept_free(keep, start)))
        except BadFrame as error:
            dropped[str(error).split(";")[0]] += 1
    return _looked_at(made, dropped, judge)


def _kept_free(keep: U8 | None, start: Start) -> NDArray[np.bool_] | None:
    height, width = start.captured.rgb.shape[:2]
    return None if keep is None else np.asarray(resize_rgb(keep, (height, width)).mean(-1) > BRIGHT_LEVELS)


def _looked_at(made: Sequence[tuple[Start, str]], dropped: Counter[str], judge: Judge,
               kind_of_start: str = "varied starts") -> Variations:
    """Return those starts that the judges pass; the others are added to what is `dropped`."""
    kept: list[tuple[Start, str]] = []
    for kind in dict.fromkeys(map(_kind, made)):  # judges take images of one size and one instruction
        mine = [pair for pair in made if _kind(pair) == kind]
        for pair, verdict in zip(mine, judge_frames(judge, [replace(s, original=None) for s, _ in mine]), strict=True):
            if verdict.score is None:
                dropped[no_verdict(verdict)] += 1
            elif is_success(verdict):
                dropped[DONE_ALREADY] += 1
            else:
                kept.append(pair)
    return Variations(tuple(s for s, _ in kept), tuple(edit for _, edit in kept), dict(dropped), kind_of_start)


def make_edits(starts: Sequence[Start], judge: Judge, cameras: Sequence[ArrayLike], editor: ImageEditor,
               prompts: Sequence[str], count: int, size_px: int, seed: int, keep: U8 | None = None,
               cancelled: Callable[[], bool] = never) -> Variations:
    """Have an editor make `count` starts by turns, of starts and of prompts, and keep those that the judges pass.

    An editor that fails `GIVE_UP_AFTER` times in a row is not asked again: one that hangs costs two time limits. Judges
    that are asked in words also say whether the task is still possible in the edited image. Arguments as in
    `make_variations`; `size_px` see `Canvas`.
    """
    made: list[tuple[Start, str]] = []
    dropped: Counter[str] = Counter()
    failed = 0
    for i in range(count):
        if failed >= GIVE_UP_AFTER or cancelled():
            dropped["not asked for, since the editor failed" if failed >= GIVE_UP_AFTER else "cancelled"] += count - i
            break
        start, prompt = starts[i % len(starts)], prompts[(i + i // math.lcm(len(starts), len(prompts))) % len(prompts)]
        try:
            made.append((edited(start, cameras[i % len(starts)], editor, prompt, size_px, derive_seed(seed, 7, i),
                                _kept_free(keep, start)), prompt))
            failed = 0
        except BadFrame as error:
            dropped[str(error).split(";")[0]] += 1
        except RemoteModelError as error:
            dropped[str(error)[:200]] += 1
            failed += 1
    possible = []
    for pair in made:
        if why := _impossible(judge, pair[0]):
            dropped[why] += 1
        else:
            possible.append(pair)
    return _looked_at(possible, dropped, judge, f"starts edited by {editor.name}")


def _impossible(judge: Judge, start: Start) -> str:
    """Return why judges that are asked in words do not take a start, or ''."""
    for one in judge.judges if isinstance(judge, Consensus) else (judge,):
        if isinstance(one, TellsPossible):
            verdict = one.possible(start.frame.rgb[None], start.instruction)[0]
            if verdict.score is None:
                return verdict.detail or "no verdict"
            if not is_success(verdict):
                return NOT_POSSIBLE
    return ""


def _kind(made: tuple[Start, str]) -> tuple[str, tuple[int, ...]]:
    return made[0].instruction, made[0].frame.rgb.shape


def varied_starts(judge: Judge, starts: Sequence[Start], config: AdaptNodeConfig, seed: int) -> Variations:
    """Make the varied starts that a session's settings ask for. BadConfig or BadFrame for a bad folder or image."""
    cut_outs = read_cut_outs(Path(config.cut_outs) if config.cut_outs else share_path("config/cut_outs"))
    keep = decode_rgb(Path(config.keep_free), config.keep_free) if config.keep_free else None
    return make_variations(starts, judge, _cameras(starts, config), cut_outs, VariationConfig(), config.varied, seed,
                           keep)


def edited_starts(judge: Judge, starts: Sequence[Start], config: AdaptNodeConfig, seed: int,
                  cancelled: Callable[[], bool] = never) -> tuple[tuple[VariedStart, ...], str]:
    """Make the edited starts that a session's settings ask for; return them, and in words what came of it.

    BadCheckpoint or BadConfig where there is no such editor; what goes wrong with one that is there ends nothing."""
    prompts = [p.strip() for p in config.edit_prompts.split(";") if p.strip()]
    if not prompts:
        raise BadConfig("edit_prompts is empty; say what the editor shall paint, such as 'a table with a red cloth'")
    if config.editor_px % 8:
        raise BadConfig(f"editor_px is {config.editor_px}; it must be a multiple of 8")
    editor = load_editor(config.editor, config.device, config.dtype, config.editor_timeout_s)
    keep = decode_rgb(Path(config.keep_free), config.keep_free) if config.keep_free else None
    made = make_edits(starts, judge, _cameras(starts, config), editor, prompts, config.edits, config.editor_px, seed,
                      keep, cancelled)
    return made.made, made.summary


def _cameras(starts: Sequence[Start], config: AdaptNodeConfig) -> list[NDArray[Any]]:
    known, geometric = config.camera(), geometric_judge(config.judges)
    finder = load_objects(geometric, config.device, known) if geometric else None
    return [_camera(start, finder, known) for start in starts]


def _camera(start: Start, finder: ObjectDynamics | None, known: StoredCamera | None) -> NDArray[Any]:
    """Return the projection (12,) that sees a start: as fitted to the arm's parts in its image, else the calibrated
    one, else the nominal one of the Bridge set-up."""
    rgb = start.captured.rgb
    found = None if finder is None or start.state is None else finder.begin([rgb], start.state[None])
    if found is not None and found[1][0].any():
        return np.asarray(found[1][0])
    if known is not None:
        return np.array(known.projection())
    nominal = level_camera(BRIDGE_CAMERA_XYZ_M, BRIDGE_CAMERA_LOOK)
    return np.array(projection(nominal, BRIDGE_CAMERA_FOCAL * rgb.shape[0], rgb.shape[1], rgb.shape[0]))
