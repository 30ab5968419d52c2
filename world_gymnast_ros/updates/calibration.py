"""Calibrate a judge on episodes whose true outcome is known, and measure how far it may be believed.

Calibration changes two numbers of the judge (scale and offset of its logit), never its weights. It is fitted on one
half of the episodes and measured on the other, so that no figure is of the data it was fitted to.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros.episodes.files import PARTIAL_SUFFIX
from world_gymnast_ros.episodes.reader import read_episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.instructions import task_of
from world_gymnast_ros.models.judges.reflector import Reflector, fit_platt, offset_at, two_in_a_row
from world_gymnast_ros.statistics import Interval, auc, wilson
from world_gymnast_ros.training.reflector import Verdicts, calibration_error, reliability, strict_offset

MIN_EPISODES = 20
"""Of each outcome. Below that half of them fits two numbers to noise."""


def judge_recorded(judge: Reflector, folders: Sequence[Path]) -> tuple[Verdicts, list[str]]:
    """Judge recorded episodes that a person or rule has marked; also return why others were left out."""
    size = judge.model.trunk.config.image_size
    logits, success, family, left_out = [], [], [], []
    for folder in folders:
        if folder.name.endswith(PARTIAL_SUFFIX):
            left_out.append(f"{folder.name}: never finished")
            continue
        try:
            episode = read_episode(folder, (size, size))
        except EpisodeError as error:
            left_out.append(f"{folder.name}: {error}")
            continue
        if episode.outcome.outcome == "unknown":
            left_out.append(f"{folder.name}: not marked")
            continue
        raw = judge.raw(episode.frames[None], episode.instruction)[0].mean(-1)
        logits.append(float(two_in_a_row(raw[0]).max()))
        success.append(episode.outcome.outcome == "success")
        family.append(task_of(episode.instruction, judge.config.instructions))
    return Verdicts(np.array(logits), np.array(success, np.bool_), np.array(family, np.str_)), left_out


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
    missed: Interval
    reliability: tuple[tuple[float, float, int], ...]
    roc: tuple[tuple[float, float], ...]
    episodes: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"scale": self.scale, "offset": self.offset, "threshold": self.threshold, "auc": self.auc,
                "calibration_error": self.calibration_error, "false_success": str(self.false_success),
                "missed": str(self.missed), "reliability": self.reliability, "roc": self.roc,
                "episodes": self.episodes}


def veto_offset(judged: Verdicts, scale: float, threshold: float, share: float) -> float:
    """Return the offset at which the judge claims all but `share` of the true successes.

    Beside a geometric judge well, one that must be convinced by smeared pictures only costs true successes: it is
    left to stop what it is sure about. Raises EpisodeError with too few successes.
    """
    won = judged.logits[judged.success]
    if len(won) < MIN_EPISODES:
        raise EpisodeError(f"a veto needs at least {MIN_EPISODES} true successes, got {len(won)}; dream more play of "
                           "this family (`world-gymnast train dreams`)")
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
    claims = score > threshold
    bins = reliability(score, truth)
    falling = np.unique(score)[::-1]
    roc = ((0.0, 0.0), *((float((score[~truth] >= t).mean()), float((score[truth] >= t).mean())) for t in falling))
    return Calibration(scale, offset, threshold, auc(score, truth), calibration_error(bins),
                       wilson(int((claims & ~truth).sum()), int((~truth).sum())),
                       wilson(int((~claims & truth).sum()), int(truth.sum())), bins, roc, len(judged.logits))
