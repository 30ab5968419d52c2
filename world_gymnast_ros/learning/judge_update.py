"""Teach the judge the new scene: true episodes of known outcome, and their dreams by the updated world model.

The dreams carry the labels of what the same actions truly did, so where the dream still lies the judge learns not to
believe it. Earlier play and its dreams are mixed in. Weights are trained first, then the offset of the logit is set
on episodes that were not trained on.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.evaluate import Interval, auc, paired_bootstrap
from world_gymnast_ros.learning.dream_play import dream_file
from world_gymnast_ros.learning.play_table import read_play
from world_gymnast_ros.learning.train_reflector import (
    ReflectorTraining,
    Verdicts,
    WindowSampler,
    fit,
    judge_episodes,
)
from world_gymnast_ros.learning.world_model_metrics import Replays
from world_gymnast_ros.learning.world_model_update import MIN_HELD_OUT, Decision
from world_gymnast_ros.models.checkpoint import WEIGHTS
from world_gymnast_ros.models.dream import ActionDiTWorld
from world_gymnast_ros.models.reflector import Reflector
from world_gymnast_ros.store import Kind

JUDGE = Kind("judge version", "version.json", "model.safetensors", ("config.json", "model.safetensors"))


@dataclass(frozen=True)
class JudgeUpdate:
    """Settings. `shares`: of windows from new true frames, new dreams, earlier true frames, earlier dreams.
    `max_false_success`: share of the failures among calibration dreams that may be called successes."""

    steps: int = 40
    windows: int = 10
    shares: tuple[float, float, float, float] = (0.3, 0.4, 0.1, 0.2)
    muon_lr: float = 6e-4
    adamw_lr: float = 3e-4
    max_false_success: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or abs(sum(self.shares) - 1.0) > 1e-6:
            raise BadConfig(f"steps {self.steps}, shares {self.shares}: give at least one step, and shares that add up "
                            "to 1")


def update_judge(start: Path, world: ActionDiTWorld, training: Path, calibration: Path, replay: Path, out: Path,
                 settings: JudgeUpdate) -> Path:
    """Train on from the judge `start` and write `out`, a checkpoint; leaves a complete one as it is.

    `training`, `calibration`, `replay`: folders of play data (true episodes with truth). Dreams are written
    below `out`.
    """
    if (out / WEIGHTS).is_file():
        return out
    judge = Reflector.from_pretrained(start)
    tables = []
    for name, folder in (("new", training), ("earlier", replay)):
        for i, path in enumerate(sorted(folder.glob("*.npz"))):
            dream_file(world, path, out / "dreams" / name / path.name, 10**6, settings.seed + 1000 * i)
        tables += [read_play(folder), read_play(out / "dreams" / name)]
    samplers = [WindowSampler(table, table.episodes) for table in tables]
    fit(judge, samplers, settings.shares, ReflectorTraining(
        steps=settings.steps, windows=settings.windows, muon_lr=settings.muon_lr, adamw_lr=settings.adamw_lr,
        seed=settings.seed))
    for i, path in enumerate(sorted(calibration.glob("*.npz"))):
        dream_file(world, path, out / "dreams" / "calibration" / path.name, 10**6, settings.seed + 7000 + i)
    held = read_play(out / "dreams" / "calibration")
    calibrate(judge, judge_episodes(judge, held, held.episodes), settings.max_false_success)
    judge.save(out)
    return out


def calibrate(judge: Reflector, verdicts: Verdicts, max_false_success: float) -> None:
    """Move the threshold to where the most claims are right, balanced, and false successes at most that share.

    The scale of the logit is kept: a few dozen episodes say where to cut, not how sure to be. Without both outcomes
    nothing is moved.
    """
    won, failed = np.sort(verdicts.logits[verdicts.success]), np.sort(verdicts.logits[~verdicts.success])
    if not len(won) or not len(failed):
        return
    both = np.unique(verdicts.logits)
    cuts = np.append((both[:-1] + both[1:]) / 2, both[-1] + 0.5)
    false = np.array([(failed > c).mean() for c in cuts])
    right = np.array([(won > c).mean() for c in cuts]) - false
    allowed = np.flatnonzero(false <= max_false_success)
    cut = float(cuts[allowed[np.argmax(right[allowed])]])
    threshold = judge.config.done_threshold
    judge.config.logit_offset = float(np.log(threshold / (1.0 - threshold)) - judge.config.logit_scale * cut)


def decide_judge(before: Replays, after: Replays, old: tuple[Replays, Replays], seed: int) -> Decision:
    """Decide from the same dreams judged by the old and the new judge: on the new scene, and on old scenes."""
    if len(before.success) < MIN_HELD_OUT:
        return Decision(False, (f"FAILS: {len(before.success)} held-out episodes of the new scene, at least "
                                f"{MIN_HELD_OUT} are needed to compare",))
    lines = []

    def rule(holds: bool, text: str) -> bool:
        lines.append(f"{'holds' if holds else 'FAILS'}: {text}")
        return holds

    def false(r: Replays) -> float:
        return float(r.claimed[~r.success].mean()) if (~r.success).any() else 0.0

    def right(r: Replays) -> np.ndarray:
        return (r.claimed == r.success).astype(np.float64)

    change: Interval = paired_bootstrap(right(after) - right(before), seed=seed)
    good = rule(change.value > 0 or false(after) < false(before) - 0.1,
                f"new scene, agreement with outcomes changes by {change}; it must rise, or false successes fall by 10 "
                f"points ({false(before):.3f} to {false(after):.3f})")
    good &= rule(false(after) <= false(before) + 0.05,
                 f"new scene, false successes {false(before):.3f} to {false(after):.3f}; at most 5 points more")
    if len(old[0].success) >= MIN_HELD_OUT:
        ranks = [auc(r.score, r.success) for r in old]
        good &= rule(not ranks[1] < ranks[0] - 0.05,
                     f"old scenes, AUC {ranks[0]:.3f} to {ranks[1]:.3f}; at most 0.05 less")
        good &= rule(false(old[1]) <= false(old[0]) + 0.1,
                     f"old scenes, false successes {false(old[0]):.3f} to {false(old[1]):.3f}; at most 10 points more")
    return Decision(good, tuple(lines))
