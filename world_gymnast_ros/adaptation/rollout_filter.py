"""Distrust the dream: reject rollouts that look wrong, and successes that do not happen again or show other actions.

A rejected rollout loses its verdict (`score=None`) and takes no part in the advantages. It is never scored 0: the
dream failed there, not the policy.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.adaptation.rollout import (
    derive_seed,
    executed_steps,
    facts_of,
    group_deltas,
    is_success,
    judge_safely,
    never,
    replay,
)
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.types import (
    SUCCESS_THRESHOLD,
    U8,
    Judge,
    Judgement,
    RecoversActions,
    RolloutGroup,
    Start,
    WorldModel,
)


@dataclass(frozen=True)
class TrustConfig:
    """Limits of the image checks, and whether predicted successes are imagined a second time.

    `moved_m` commanded path above which an image must change; `static_fraction` share of pixels that must then
    differ by more than `static_levels` grey levels; `sharpness_floor` smallest allowed ratio of edge energy to the
    start frame's; `colour_shift_levels` largest allowed shift of the mean colour. `action_error_m`: largest mean
    distance of a step between the translation that was commanded and the one that the world model reads out of a
    predicted success (`RecoversActions`); 0: it is not asked.
    """

    moved_m: float = 0.03
    static_levels: float = 16.0
    static_fraction: float = 0.001
    sharpness_floor: float = 0.2
    colour_shift_levels: float = 40.0
    reroll: bool = True
    action_error_m: float = 0.0

    def __post_init__(self) -> None:
        for name in ("moved_m", "static_levels", "static_fraction", "sharpness_floor", "colour_shift_levels",
                     "action_error_m"):
            if not 0.0 <= getattr(self, name) < 1e4:
                raise BadConfig(f"trust.{name} must be zero or positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrustCounts:
    """What happened to the rollouts of one or more groups. `no_verdict`: the judges gave none. `recovered`: predicted
    successes whose actions were read back; `other_actions`: those of them that showed others than were commanded.

    Where several judges decide: how often all, some or none of those that were asked saw a success.
    """

    rollouts: int = 0
    static: int = 0
    blurred: int = 0
    colour: int = 0
    not_reproduced: int = 0
    no_verdict: int = 0
    rerolled: int = 0
    all_judges: int = 0
    some_judges: int = 0
    no_judge: int = 0
    recovered: int = 0
    other_actions: int = 0

    @property
    def rejected(self) -> int:
        return self.static + self.blurred + self.colour + self.not_reproduced + self.other_actions

    @property
    def rejection_rate(self) -> float:
        return self.rejected / self.rollouts if self.rollouts else 0.0

    def __add__(self, other: TrustCounts) -> TrustCounts:
        return TrustCounts(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


def edge_energy(frames: U8) -> NDArray[np.float64]:
    """Return the mean squared response of a Laplacian on grey frames uint8 (..., H, W, 3): small means blurred."""
    grey = frames.astype(np.float32).mean(-1)
    inner = grey[..., 1:-1, 1:-1]
    laplacian = grey[..., :-2, 1:-1] + grey[..., 2:, 1:-1] + grey[..., 1:-1, :-2] + grey[..., 1:-1, 2:] - 4 * inner
    return np.asarray((laplacian.astype(np.float64) ** 2).mean((-1, -2)))


def changed(frames: U8, config: TrustConfig) -> float:
    """Return the largest share of pixels by which a frame of (T+1, H, W, 3) differs from the first."""
    apart = np.abs(frames[1:].astype(np.float32) - frames[0].astype(np.float32)).max(-1)
    return float((apart > config.static_levels).mean((-1, -2)).max())


def image_faults(group: RolloutGroup, config: TrustConfig) -> list[str]:
    """Return for each rollout '' or what is wrong with its images: 'static', 'blurred' or 'colour'."""
    deltas = group_deltas(group)
    faults: list[str] = []
    for i, steps in enumerate(executed_steps(group)):
        seen = group.frames[i, : int(steps) + 1]
        start, last = seen[0].astype(np.float32), seen[-1]
        if len(seen) < 2:
            faults.append("")
            continue
        path_m = float(np.linalg.norm(deltas[i, : int(steps), :3], axis=-1).sum())
        sharpness = float(edge_energy(last) / max(float(edge_energy(seen[0])), 1e-6))
        shift = float(np.abs(last.mean((0, 1)) - start.mean((0, 1))).max())
        if path_m > config.moved_m and changed(seen, config) < config.static_fraction and \
                changed(group.seen(i, range(len(seen))), config) < config.static_fraction:  # of those not decoded, too
            faults.append("static")
        elif sharpness < config.sharpness_floor:
            faults.append("blurred")
        else:
            faults.append("colour" if shift > config.colour_shift_levels else "")
    return faults


def filter_group(world_model: WorldModel, judge: Judge, start: Start | Sequence[Start], group: RolloutGroup,
                 config: TrustConfig, seed: int, cancelled: Callable[[], bool] = never
                 ) -> tuple[RolloutGroup, TrustCounts]:
    """Reject what cannot be trusted; return the group with those rollouts without verdict, and counts.

    `start` is what the group was imagined from. Claimed successes are replayed, same actions, in a new dream with
    noise `seed`; a success that does not come again is dropped (dual-noise verification, as in RAW-Dream). A re-roll
    without verdict also drops it. What is left is compared with the actions that the world model reads out of it, where
    `action_error_m` says so; BadConfig where it cannot.
    """
    check_recovers(world_model, config)
    judgements = list(group.judgements)
    no_verdict = sum(j.score is None for j in judgements)
    starts = [start] if isinstance(start, Start) else list(start)
    began = [starts[i * len(starts) // len(judgements)] for i in range(len(judgements))]
    faults = image_faults(group, config)
    for i, fault in enumerate(faults):
        if judgements[i].score is None:
            faults[i] = ""
        elif fault:
            judgements[i] = Judgement(None, detail=f"rejected: {fault} (was {judgements[i].score:.2f})",
                                      frame_scores=judgements[i].frame_scores, rejected=True)
    predicted = [i for i, j in enumerate(judgements) if is_success(j)] if config.reroll else []
    lost = 0
    if predicted:
        again = reroll(world_model, judge, group, predicted, [began[i] for i in predicted], seed, cancelled)
        for i, second in zip(predicted, again, strict=True):
            if not is_success(second):
                lost += 1
                told = "no verdict" if second.score is None else f"{second.score:.2f}"
                first = judgements[i]
                judgements[i] = Judgement(None, detail=f"rejected: not reproduced ({first.score:.2f}, then {told})",
                                          frame_scores=first.frame_scores, rejected=True)
    left = [i for i, j in enumerate(judgements) if is_success(j)] if config.action_error_m else []
    others = _show_other_actions(world_model, group, left, [began[i] for i in left], config, seed)
    for i, detail in others.items():
        judgements[i] = Judgement(None, detail=detail, frame_scores=judgements[i].frame_scores, rejected=True)
    valid = group.valid & np.array([j.score is not None for j in judgements])[:, None]
    saw = [[score > SUCCESS_THRESHOLD for _, score in j.members if score is not None] for j in group.judgements
           if len(j.members) > 1]
    agreed = sum(all(some) for some in saw)
    none = sum(not any(some) for some in saw)
    counts = TrustCounts(len(judgements), faults.count("static"), faults.count("blurred"), faults.count("colour"),
                         lost, no_verdict, len(predicted), agreed, len(saw) - agreed - none, none, len(left),
                         len(others))
    return replace(group, judgements=tuple(judgements), valid=valid), counts


def check_recovers(world_model: WorldModel, config: TrustConfig) -> None:
    """Raise BadConfig where actions shall be read out of frames, and the world model cannot."""
    if config.action_error_m and not isinstance(world_model, RecoversActions):
        raise BadConfig(f"action_error_m is {config.action_error_m:g}, and world model '{world_model.name}' reads no "
                        "actions out of frames: set it to 0, or name one that does (Cosmos 3)")


def _show_other_actions(world_model: WorldModel, group: RolloutGroup, which: list[int], starts: Sequence[Start],
                        config: TrustConfig, seed: int) -> dict[int, str]:
    """Return why rollouts among `which` are rejected: their frames show other translations than were commanded."""
    if not which or not isinstance(world_model, RecoversActions):
        return {}
    steps = executed_steps(group)
    longest = max(int(steps[which].max()), 1)
    frames = np.stack([group.seen(i, range(longest + 1)) for i in which])
    seen = world_model.recovered(starts, frames, derive_seed(seed, 2))
    wanted, why = group_deltas(group), {}
    for i, found in zip(which, seen, strict=True):
        end = max(int(steps[i]), 1)
        off_m = float(np.linalg.norm(found[:end, :3] - wanted[i, :end, :3], axis=-1).mean())
        if not off_m <= config.action_error_m:
            why[i] = (f"rejected: its frames show other actions ({1000 * off_m:.0f} mm a step off, at most "
                      f"{1000 * config.action_error_m:.0f})")
    return why


def reroll(world_model: WorldModel, judge: Judge, group: RolloutGroup, which: list[int],
           starts: Sequence[Start], seed: int, cancelled: Callable[[], bool] = never) -> list[Judgement]:
    """Imagine the same actions of rollouts `which`, each begun at one of `starts`, once more under noise `seed`, as far
    as they went; judge that."""
    steps = executed_steps(group)[which]
    longest = max(int(steps.max()), 1)
    deltas = group_deltas(group)[which, :longest]
    frames = replay(world_model, starts, deltas, seed, cancelled, steps, judge)  # finished ones stand still
    for i, end in enumerate(steps):
        deltas[i, int(end):, :6] = 0.0
    return judge_safely(judge, frames, group.instruction, facts_of(starts, deltas), yes_or_no=True)
