"""Calibrate a judge on episodes whose true outcome is known, and measure how far it may be believed.

Calibration changes two numbers of the judge (scale and offset of its logit), never its weights. It is fitted on one
half of the episodes and measured on the other, so that no figure is of the data it was fitted to.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.instructions import task_of
from world_gymnast_ros.models.judges.reflector import fit_platt, offset_at
from world_gymnast_ros.progress import bar
from world_gymnast_ros.statistics import Interval, auc, wilson
from world_gymnast_ros.training.reflector import Verdicts, calibration_error, reliability, strict_offset
from world_gymnast_ros.types import F32, U8, Judge

MIN_EPISODES = 20
"""Of each outcome. Below that half of them fits two numbers to noise."""
MIN_AUC = 0.7
"""Of episodes that the fit did not see. Below it a judge hardly tells them apart, whatever its threshold; a release
with a world model demands 0.9."""
GROUP = 16
"""Episodes judged at once."""


@runtime_checkable
class LogitJudge(Judge, Protocol):
    """A judge whose score is the sigmoid of a logit: two numbers calibrate it."""

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) to which recorded frames are best read, px."""

    @property
    def threshold(self) -> float:
        """Above this score it predicts success."""

    @property
    def tasks(self) -> Mapping[str, Sequence[str]]:
        """The sentences of each task that it knows by a name."""

    def pick(self, rollouts: U8) -> U8:
        """Return the frames that it looks at, uint8 (G, n, h, w, 3), of rollouts uint8 (G, T+1, H, W, 3)."""

    def success_logits(self, frames: U8, instruction: str) -> F32:
        """Return uncalibrated logits float32 (G,) of success; NaN where there is no verdict."""

    def calibrate(self, scale: float, offset: float) -> None:
        """Set scale and offset of the logit."""

    def save(self, directory: str | Path) -> object:
        """Write a folder from which the judge can be loaded."""


def judge_recorded(judge: LogitJudge, episodes: Sequence[Episode]) -> tuple[Verdicts, list[str]]:
    """Judge recorded episodes of known outcome; also return why others were left out.

    Episodes of one instruction are judged together, so that a judge on a server is asked about several at once.
    """
    logits = np.full(len(episodes), np.nan)
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    seen = [judge.pick(e.frames[None])[0] for e in episodes]
    for i, episode in enumerate(episodes):
        groups.setdefault((episode.instruction, seen[i].shape), []).append(i)
    parts = [(instruction, part) for (instruction, _), rows in groups.items()
             for part in np.array_split(rows, -(-len(rows) // GROUP))]
    with bar(len(episodes), "judging", "episode") as line:
        for instruction, part in parts:
            logits[part] = judge.success_logits(np.stack([seen[i] for i in part]), instruction)
            line.update(len(part))
    kept = np.isfinite(logits)
    family = np.array([e.task or task_of(e.instruction, judge.tasks) for e in episodes], np.str_)
    return (Verdicts(logits[kept], np.array([bool(e.success) for e in episodes], np.bool_)[kept], family[kept]),
            [f"{e.name}: the judge has no verdict" for e, had in zip(episodes, kept, strict=True) if not had])


@dataclass(frozen=True)
class Calibration:
    """Fitted on one half, everything else measured on the other. `reliability`: (mean score, true rate, count) per bin;
    `roc`: (false success rate, share of successes found) as the threshold falls; `threshold` in use."""

    scale: float
    offset: float
    threshold: float
    auc: float
    calibration_error: float
    false_success: Interval
    false_negative: Interval
    reliability: tuple[tuple[float, float, int], ...]
    roc: tuple[tuple[float, float], ...]
    episodes: int

    def doubt(self, refuse_above: float) -> str:
        """Say why the judge is not fit for adaptation, `refuse_above` being the share of failures that may pass for
        successes; '' where it is fit. A judge that calls nothing a success has no false ones, and is of no use."""
        if not self.auc >= MIN_AUC:
            return f"AUC {self.auc:.3f} is below {MIN_AUC:g}: it does not tell successes from failures"
        if self.false_negative.value >= 1.0:
            return "it calls none of the true successes a success"
        if self.false_success.high > refuse_above:
            return (f"up to {self.false_success.high:.0%} of failures may pass for successes, limit "
                    f"{refuse_above:.0%}")
        return ""

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"scale": self.scale, "offset": self.offset, "threshold": self.threshold, "auc": self.auc,
                "calibration_error": self.calibration_error, "false_success": str(self.false_success),
                "false_negative": str(self.false_negative), "reliability": self.reliability, "roc": self.roc,
                "episodes": self.episodes}


def veto_offset(judged: Verdicts, scale: float, threshold: float, share: float) -> float:
    """Return the offset at which the judge passes all but `share` of the true successes.

    Beside a geometric judge well, one that must be convinced by smeared images only costs true successes: it is
    left to stop what it is sure about. Raises EpisodeError with too few successes.
    """
    won = judged.logits[judged.success]
    if len(won) < MIN_EPISODES:
        raise EpisodeError(f"a veto needs at least {MIN_EPISODES} true successes, got {len(won)}; imagine more play of "
                           "this family (`world-gymnast train imagined`)")
    return offset_at(float(np.quantile(won, share)), scale, threshold)


def calibrate(judged: Verdicts, threshold: float, max_false_success: float, seed: int) -> Calibration:
    """Fit on a random half, measure on the other. Raises EpisodeError with too few of either outcome.

    The offset is lowered until at most `max_false_success` of the fitted half's failures are called successes.
    """
    positive, negative = int(judged.success.sum()), int((~judged.success).sum())
    if min(positive, negative) < MIN_EPISODES:
        raise EpisodeError(f"calibration needs at least {MIN_EPISODES} episodes of either outcome, got {positive} "
                           f"successes and {negative} failures; record and mark more (`world-gymnast episodes mark`)")
    rng = np.random.default_rng(seed)
    fitted = np.zeros(len(judged.logits), np.bool_)
    for outcome in (True, False):  # halve each outcome, so that neither half lacks one
        rows = rng.permutation(np.flatnonzero(judged.success == outcome))
        fitted[rows[:len(rows) // 2]] = True
    logits, success = judged.logits[fitted], judged.success[fitted]
    scale, offset = fit_platt(logits, success)
    offset = min(offset, strict_offset(logits[~success], scale, threshold, max_false_success))
    score = 1.0 / (1.0 + np.exp(-np.clip(scale * judged.logits[~fitted] + offset, -30, 30)))
    truth = judged.success[~fitted]
    predicted = score > threshold
    bins = reliability(score, truth)
    falling = np.unique(score)[::-1]
    roc = ((0.0, 0.0), *((float((score[~truth] >= t).mean()), float((score[truth] >= t).mean())) for t in falling))
    return Calibration(scale, offset, threshold, auc(score, truth), calibration_error(bins),
                       wilson(int((predicted & ~truth).sum()), int((~truth).sum())),
                       wilson(int((~predicted & truth).sum()), int(truth.sum())), bins, roc, len(judged.logits))
