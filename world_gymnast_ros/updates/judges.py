"""Teach the judges the new scene: true episodes of known outcome, and the same imagined by the updated world model.

Imagined episodes carry the labels of what their actions truly did, so where one still lies the judge learns not to
believe it. Earlier play and the same imagined are mixed in. Weights are trained first, then the offset of the logit is
set on episodes that these weights have not seen (the world model may have: it learns from them before). The judge that
measures learns a few numbers (`evaluation/scene_judge.py`).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.frame_table import read_play
from world_gymnast_ros.data.labels import LabelSource, labels_by_outcome
from world_gymnast_ros.decision import Decision, Rules
from world_gymnast_ros.errors import BadConfig, EpisodeError
from world_gymnast_ros.evaluation.replay import Replays, imagine_again, replay_episodes
from world_gymnast_ros.evaluation.scene_judge import MIN_OUTCOMES
from world_gymnast_ros.loading.load import load_scene_judge
from world_gymnast_ros.models.checkpoint import CONFIG
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.reflector import Reflector, best_logit, offset_at
from world_gymnast_ros.objects import drawn_with
from world_gymnast_ros.progress import shown
from world_gymnast_ros.statistics import Interval, auc, paired_bootstrap
from world_gymnast_ros.store import Kind
from world_gymnast_ros.training.reflector import (
    ReflectorTraining,
    Verdicts,
    WindowSampler,
    fit,
    judge_episodes,
)
from world_gymnast_ros.types import F64, U8, WorldModel
from world_gymnast_ros.updates.imagined import imagine_file
from world_gymnast_ros.updates.real_episodes import successes
from world_gymnast_ros.updates.world_model import MIN_HELD_OUT, split

SETTINGS = "settings"
"""The candidate that learned a few settings and no weights."""
EXCHANGE = 0.1
"""So much agreement on the few held-out episodes may be given for so many fewer false successes."""
JUDGE = Kind("judge version", "version.json", "model.safetensors", ("config.json", "model.safetensors"))


@dataclass(frozen=True)
class JudgeUpdate:
    """Settings. `shares`: of windows from new true frames, new imagined ones, earlier true ones, earlier imagined ones.
    `max_false_success`: share of the failures among imagined calibration episodes that may be called successes."""

    steps: int = 40
    windows: int = 10
    shares: tuple[float, float, float, float] = (0.3, 0.4, 0.1, 0.2)
    muon_lr: float = 6e-4
    adamw_lr: float = 3e-4
    max_false_success: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or abs(sum(self.shares) - 1.0) > 1e-6:
            raise BadConfig(f"steps {self.steps}, shares {self.shares}: give at least one step, and shares that add up "
                            "to 1")


def update_judge(start: Path, world: WorldModel, old_world: WorldModel, training: Path, calibration: Path,
                 replay: Path, out: Path, settings: JudgeUpdate, replay_labels: LabelSource = labels_by_outcome
                 ) -> Path:
    """Train on from the judge `start` and write `out`, a checkpoint; leaves a complete one as it is.

    `training`, `calibration`: folders of real episodes, of which only the marked outcome is used. `replay`: of earlier
    play data, with `replay_labels`. What is imagined is written below `out`, of `replay` by `old_world`, the world
    model with the camera that those scenes were seen by. The threshold is set for a judge that decides alone.
    """
    if (out / CONFIG).is_file():  # written last
        return out
    judge = Reflector.from_pretrained(start)
    samplers, size = [], judge.model.trunk.config.image_size
    for name, folder, model in (("new", training, world), ("earlier", replay, old_world)):
        for i, path in enumerate(sorted(folder.glob("*.npz"))):
            imagine_file(model, path, out / "imagined" / name / path.name, 10**6, settings.seed + 1000 * i)
        labels = labels_by_outcome if name == "new" else replay_labels
        samplers += [WindowSampler(table, table.episodes, labels)
                     for table in (read_play(d, size_px=size) for d in (folder, out / "imagined" / name))]
    fit(judge, samplers, settings.shares, ReflectorTraining(
        steps=settings.steps, windows=settings.windows, muon_lr=settings.muon_lr, adamw_lr=settings.adamw_lr,
        seed=settings.seed))
    for i, path in enumerate(sorted(calibration.glob("*.npz"))):
        imagine_file(world, path, out / "imagined" / "calibration" / path.name, 10**6, settings.seed + 7000 + i)
    held = read_play(out / "imagined" / "calibration")
    calibrate(judge, judge_episodes(judge, held, held.episodes), settings.max_false_success)
    judge.save(out)
    return out


def logits_of(judge: Reflector, rollouts: Sequence[U8], episodes: Sequence[Episode]) -> np.ndarray:
    """Return the uncalibrated logit (E,) on which the judge decides about each rollout."""
    pairs = list(zip(rollouts, episodes, strict=True))
    return np.array([best_logit(judge.raw(frames[None], e.instruction)[0][0])
                     for frames, e in shown(pairs, "the learned judge looks", "episode")], np.float64)


def pair_threshold(learned: F64, geometric_at: Mapping[Any, NDArray[np.bool_]], success: NDArray[np.bool_],
                   max_false_success: float) -> tuple[Any, float] | None:
    """Return (strictness, cut) with which the pair is right most often, balanced; None without enough of both outcomes.

    `learned` (E,): logits of the learned judge; `geometric_at`: predicted success bool (E,) of the geometric
    one at each strictness. A pair predicts success where the logit is above the threshold and the other predicts it
    too. At most `max_false_success` of the failures may be predicted successes; among equals the stricter, then the
    higher threshold.
    """
    if min(success.sum(), (~success).sum()) < MIN_OUTCOMES:
        return None
    values = np.unique(learned)
    thresholds = np.concatenate([[values[0] - 0.5], (values[:-1] + values[1:]) / 2, [values[-1] + 0.5]])
    best, found = -np.inf, None
    for strictness in sorted(geometric_at, reverse=True):
        for threshold in thresholds[::-1]:
            predicted = geometric_at[strictness] & (learned > threshold)
            false = float(predicted[~success].mean())
            right = float(predicted[success].mean()) - false
            if false <= max_false_success and right > best + 1e-9:
                best, found = right, (strictness, float(threshold))
    return found


def update_pair(second: Path, looks: dict[str, Path], world: WorldModel, training: Sequence[Episode],
                calibration: Sequence[Episode], out: Path, settings: JudgeUpdate
                ) -> tuple[dict[str, Path], Path, list[str]]:
    """Teach the geometric judge (checkpoint `second`), and cut it with one that looks as a pair.

    `looks`: checkpoints of the learned judge; under "settings" with the weights that it had, under any other name
    with weights that have seen `training`. Returns those with a threshold for the pair, the geometric judge, and
    lines about what was learned. All episodes, imagined, set the margin, and the threshold where the weights have not
    seen them; those of `calibration` alone where they have.
    """
    episodes = [*training, *calibration]
    geometric, lines = load_scene_judge(second).learned(episodes)
    world = drawn_with(world, geometric.objects)  # the camera that was just learned
    rollouts = [r[0] for r in imagine_again(world, episodes, settings.seed + 9000)]
    predicted = geometric.predicted_by_strictness(rollouts, episodes)
    success = np.array([e.success for e in episodes])
    held = np.arange(len(episodes)) >= len(training)
    pairs: dict[str, Path] = {}
    for name, start in looks.items():
        judge = Reflector.from_pretrained(start)
        rows = np.ones_like(held) if name == SETTINGS else held
        present = geometric.strictness(episodes)
        some = predicted if name == SETTINGS else {present: predicted[present]}
        found = pair_threshold(logits_of(judge, rollouts, episodes)[rows], {s: c[rows] for s, c in some.items()},
                               success[rows], settings.max_false_success)
        if found is None:
            lines.append(f"pair with {name}: too few outcomes to cut it")
            continue
        strictness, threshold = found
        geometric.set_strictness(strictness, episodes)
        set_threshold(judge, threshold)
        judge.save(out / name)
        pairs[name] = out / name
        lines.append(f"pair with {name}: {strictness}, threshold of the learned judge {threshold:.2f}")
    geometric.save(out / "geometric")
    return pairs, out / "geometric", lines


@dataclass(frozen=True)
class Learned:
    """What `learn_settings` found: checkpoints below the folder that it was given, the verdict, and why."""

    learned: Path
    geometric: Path
    promote: bool
    lines: tuple[str, ...]


def learn_settings(judge: Path, second: Path, world: WorldModel, episodes: Sequence[Episode],
                   held_out_share: float, out: Path, max_false_success: float, seed: int) -> Learned:
    """Learn settings of both judges from real episodes of one scene and instruction, and decide whether to use them:
    where they agree with more of all outcomes, and with no fewer of those held out.

    EpisodeError with too few episodes, of one outcome only, or of several instructions.
    """
    instructions = sorted({e.instruction for e in episodes})
    if len(instructions) > 1:
        raise EpisodeError(f"the episodes are of {len(instructions)} instructions ({'; '.join(instructions[:3])}); "
                           "name the folders of one: a height is learned for one object at a time")
    fitted, held = split(episodes, held_out_share, seed)
    if len(held) < MIN_HELD_OUT:
        raise EpisodeError(f"{len(held)} of {len(episodes)} episodes are held out, at least {MIN_HELD_OUT} are needed "
                           "to decide on; record more, or hold out a greater share")
    pairs, geometric, lines = update_pair(second, {SETTINGS: judge}, world, fitted, [], out,
                                          JudgeUpdate(max_false_success=max_false_success, seed=seed))
    if SETTINGS not in pairs:
        raise EpisodeError(f"{'; '.join(lines)}: {successes(fitted)} successes and "
                           f"{len(fitted) - successes(fitted)} failures among {len(fitted)} episodes to learn from, "
                           f"at least {MIN_OUTCOMES} of each are needed; record and mark more")

    def judged(look: Path, measure: Path, imagined: tuple[list[U8], list[U8]]) -> tuple[Replays, Replays]:
        pair = Consensus((Reflector.from_pretrained(look), load_scene_judge(measure)))
        return (replay_episodes(world, pair, held, seed, rollouts=imagined[0]),
                replay_episodes(world, pair, episodes, seed, rollouts=imagined[1]))
    imagined = ([r[0] for r in imagine_again(world, held, seed + 1)],
              [r[0] for r in imagine_again(world, episodes, seed)])
    before, after = judged(judge, second, imagined), judged(pairs[SETTINGS], geometric, imagined)
    decision = decide_judge((before[0], after[0]), None, seed, (before[1], after[1]))
    figures = [f"{when}: agrees with {r[1].summary()['agreement']:.2f} of {len(episodes)} outcomes, "
               f"{r[1].summary()['false_negative']:.2f} false negatives, {r[1].summary()['false_success']:.2f} "
               "false positives" for when, r in (("before", before), ("after", after))]
    return Learned(pairs[SETTINGS], geometric, decision.promote, (*lines, *figures, *decision.lines))


def calibrate(judge: Reflector, verdicts: Verdicts, max_false_success: float) -> None:
    """Move the threshold to where the most predictions are right, balanced, and false successes at most that share.

    The scale of the logit is kept: a few dozen episodes say where to cut, not how sure to be. Without both outcomes
    nothing is moved.
    """
    won, failed = np.sort(verdicts.logits[verdicts.success]), np.sort(verdicts.logits[~verdicts.success])
    if not len(won) or not len(failed):
        return
    both = np.unique(verdicts.logits)
    thresholds = np.append((both[:-1] + both[1:]) / 2, both[-1] + 0.5)
    false = np.array([(failed > c).mean() for c in thresholds])
    right = np.array([(won > c).mean() for c in thresholds]) - false
    allowed = np.flatnonzero(false <= max_false_success)
    set_threshold(judge, float(thresholds[allowed[np.argmax(right[allowed])]]))


def set_threshold(judge: Reflector, threshold: float) -> None:
    """Let the judge predict success where its uncalibrated logit is above `threshold`."""
    config = judge.config
    config.calibrate(config.logit_scale, offset_at(threshold, config.logit_scale, config.done_threshold))


def false_positive_rate(replays: Replays) -> float:
    """Return the share of recorded failures that are called a success; 0 where there is no failure."""
    failed = ~replays.success
    return float(replays.predicted[failed].mean()) if failed.any() else 0.0


def recall(replays: Replays) -> float:
    """Return the share of recorded successes that are detected; 0 where there is no success."""
    return float(replays.predicted[replays.success].mean()) if replays.success.any() else 0.0


def agreement_change(pair: tuple[Replays, Replays], seed: int) -> Interval:
    """Return by how much more outcomes a judge agrees with, paired."""
    before, after = ((r.predicted == r.success).astype(np.float64) for r in pair)
    return paired_bootstrap(after - before, seed=seed)


def decide_judge(new: tuple[Replays, Replays], old: tuple[Replays, Replays] | None, seed: int,
                 everything: tuple[Replays, Replays] | None = None, weights: bool = False) -> Decision:
    """Decide from the same rollouts judged by (the present, the new) judges: on held-out episodes of the new scene, and
    on old scenes (None: the judges are for this scene alone).

    `everything`: on all recorded episodes. Held-out episodes are few. So for a candidate that learned nothing but a few
    settings from the others, agreement must rise over all, and must not fall on those held out; for one that learned
    `weights` from them, those held out decide. Where the false positive rate falls by 10 points, agreement on held-out
    episodes may fall by as many. A candidate that detects fewer than half of the successes that the present judge
    detects is rejected, in new and in old scenes.
    """
    rules = Rules()
    count = len(new[0].episodes)
    if not rules.check("held-out episodes", count, MIN_HELD_OUT, count >= MIN_HELD_OUT,
                       f"{count} held-out episodes of the new scene; at least {MIN_HELD_OUT} are needed to compare"):
        return rules.decide(False)
    change = agreement_change(new, seed)
    most = new if weights else everything or new
    false = [false_positive_rate(r) for r in most]
    stricter = false[1] < false[0] - EXCHANGE and change.value >= -EXCHANGE - 1e-9
    instead = f"or the false positive rate must fall by 10 points ({false[0]:.3f} to {false[1]:.3f}) at no higher price"
    if everything is None or weights:
        good = rules.check("agreement", change.value, 0.0, change.value > 0 or stricter,
                           f"new scene: agreement with outcomes changes by {change}; it must rise, {instead}")
    else:
        over_all = agreement_change(everything, seed)
        good = rules.check("agreement", over_all.value, 0.0, over_all.value > 0 and (change.value >= 0 or stricter),
                           f"new scene: agreement with outcomes changes by {over_all} over all "
                           f"{len(everything[0].episodes)} episodes and by {change} over those held out; it must rise "
                           f"over all and not fall on those held out, {instead}")
    for where, pair in (("held out", new), ("all", None if weights else everything)):
        if pair is not None:
            good &= _limited(rules, f"new scene, {where}", pair, 0.05)
    good &= _detects(rules, f"new scene, {'all' if everything else 'held out'}", everything or new)
    if old is not None and len(old[0].episodes) >= MIN_HELD_OUT:
        ranks = [auc(r.score[known], r.success[known]) for r in old for known in (np.isfinite(r.score),)]
        good &= rules.check("old scenes ranking", ranks[1], ranks[0] - 0.05,
                            not np.isfinite(ranks[0]) or ranks[1] >= ranks[0] - 0.05,
                            f"old scenes: AUC {ranks[0]:.3f} to {ranks[1]:.3f}; at most 0.05 less")
        good &= _limited(rules, "old scenes", old, 0.1)
        good &= _detects(rules, "old scenes", old)
    return rules.decide(good)


def _limited(rules: Rules, where: str, pair: tuple[Replays, Replays], most: float) -> bool:
    before, after = map(false_positive_rate, pair)
    return rules.check(f"{where}, false positives", after, before + most, after <= before + most,
                       f"{where}: false positive rate {before:.3f} to {after:.3f}; at most {100 * most:.0f} points "
                       "more")


def _detects(rules: Rules, where: str, pair: tuple[Replays, Replays]) -> bool:
    before, after = map(recall, pair)
    return rules.check(f"{where}, recall", after, before / 2, after >= before / 2,
                       f"{where}: successes detected {before:.3f} to {after:.3f}; at least half as many")
