"""Choose and cut the few frames of a session that a person will look at."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from world_gymnast_ros.adaptation.log import Strip, StripKind
from world_gymnast_ros.adaptation.practice import VariedStart
from world_gymnast_ros.adaptation.rollout import executed_steps, is_success
from world_gymnast_ros.types import U8, RolloutGroup

FRAMES_PER_STRIP = 5
"""Few and large: a miss by a finger's width must be seen."""


def cut_strip(group: RolloutGroup, i: int, title: str, kind: StripKind, captured: U8 | None = None) -> Strip:
    """Return evenly spaced frames of rollout `i`, up to where it was finished, with the judge's score at each.

    `captured`: the camera's frame uint8 (H, W, 3) that it began at.
    """
    judgement = group.judgements[i]
    end = int(executed_steps(group)[i]) or group.frames.shape[1] - 1
    picks = np.unique(np.linspace(0, end, FRAMES_PER_STRIP).round().astype(int))
    scores = None
    if judgement.frame_scores is not None and len(judgement.frame_scores):
        scores = judgement.frame_scores[np.minimum(picks, len(judgement.frame_scores) - 1)].astype(np.float32)
    if judgement.score is None:
        note = judgement.detail or "no verdict"
    else:
        done = f", done at frame {judgement.done_at}" if judgement.done_at is not None else ""
        note = f"{'success' if is_success(judgement) else 'not a success'}, score {judgement.score:.2f}{done}"
    return Strip(f"{title}: {group.instruction}", group.seen(i, picks).copy(), scores, note, kind, captured)


def true_strip(title: str, success: bool, frames: Sequence[U8]) -> Strip:
    """Return evenly spaced frames of one true episode."""
    picks = np.linspace(0, len(frames) - 1, min(FRAMES_PER_STRIP, len(frames))).round().astype(int)
    return Strip(title, np.stack([frames[i] for i in picks]), None, "success" if success else "not a success",
                 StripKind.TRUE)


def strip_varied(varied: VariedStart, what: str) -> Strip:
    """Return a varied start beside the frame that it was made of; `what` it is called."""
    start = varied.start
    return Strip(f"{what}: {start.instruction}", start.frame.rgb[None].copy(), None, f"on the right: {varied.how}",
                 StripKind.VARIED, start.captured.rgb)


def keep_extremes(strips: list[Strip], group: RolloutGroup, update: int, captured: U8 | None = None) -> list[Strip]:
    """Return the strips with the newest best and worst rollout, and up to two rejected ones of the whole session.

    `captured`: the camera's frame that the group began at, or the variation of it.
    """
    rejected = [s for s in strips if s.kind is StripKind.REJECTED]
    for i, judgement in enumerate(group.judgements):
        if judgement.rejected and len(rejected) < 2:
            rejected.append(cut_strip(group, i, f"rejected, update {update}", StripKind.REJECTED, captured))
    scored = [(j.score, i) for i, j in enumerate(group.judgements) if j.score is not None]
    extremes = []
    if scored:
        extremes = [cut_strip(group, max(scored)[1], f"best, update {update}", StripKind.EXTREME, captured),
                    cut_strip(group, min(scored)[1], f"worst, update {update}", StripKind.EXTREME, captured)]
    return extremes + rejected


def strip_pair(before: RolloutGroup, after: RolloutGroup, captured: Sequence[U8] = ()) -> list[Strip]:
    """Return one pair of held-out rollouts with the same seed, base and adapter.

    Shows a pair that the adapter turned from failure into success where there is one, otherwise the first pair.
    `captured`: the camera's frame that each rollout began at.
    """
    turned = [i for i, (a, b) in enumerate(zip(before.judgements, after.judgements, strict=True))
              if is_success(b) and not is_success(a)]
    i = turned[0] if turned else 0
    camera = captured[i] if len(captured) else None
    return [cut_strip(before, i, "before, held-out seed", StripKind.PAIRED, camera),
            cut_strip(after, i, "after, same seed", StripKind.PAIRED, camera)]
