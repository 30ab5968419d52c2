"""What each reason for distrust is worth: paired replay of recorded episodes, with one judge or two, filter by filter.

Every episode of known outcome is dreamed again with its own actions. A claim is a success in the dream, a false one
where the truth was failure. A filter earns its place where it takes away false claims and leaves true ones. Also in a
world model that is wrong here, where a session should notice: name one with --other. Where the shipped world model
never does what a filter looks for, --broken breaks its dreams on purpose, and counts who notices.

    python bench/trust.py --data data/held_out --family reach [--other runs/bridge_wm] [--broken]
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from world_gymnast_ros.adaptation.rollout import Start, facts_of, is_success, judge_safely, replay
from world_gymnast_ros.adaptation.rollout_filter import TrustConfig, filter_group, picture_faults
from world_gymnast_ros.evaluation.release import Recorded, read_play
from world_gymnast_ros.models import load as build
from world_gymnast_ros.models.judges.consensus import TwoJudges, agree
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld
from world_gymnast_ros.statistics import paired_replay_auc, wilson
from world_gymnast_ros.types import (
    F32,
    U8,
    Dream,
    Frame,
    Judge,
    Judgement,
    RolloutGroup,
    SampledChunks,
    WorldModel,
)

DECIDERS = ("one judge, who looks", "one judge, who measures", "both must agree")
NO_FILTER = TrustConfig(moved_m=1e3, sharpness_floor=0.0, colour_shift_levels=1e3, reroll=False)
FILTERS = {"static picture": replace(NO_FILTER, moved_m=TrustConfig().moved_m),
           "blurred picture": replace(NO_FILTER, sharpness_floor=TrustConfig().sharpness_floor),
           "colours drifted": replace(NO_FILTER, colour_shift_levels=TrustConfig().colour_shift_levels),
           "arm drawn elsewhere, 6 px": replace(NO_FILTER, arm_px=6.0),
           "arm drawn elsewhere, 10 px": replace(NO_FILTER, arm_px=10.0),
           "success not reproduced": replace(NO_FILTER, reroll=True)}

ASTRAY_M = (0.005, 0.01)
"""How far a step of a loose world model goes astray, standard deviation along each axis."""


def start_of(episode: Recorded) -> Start:
    """Return what a recorded episode began from."""
    first = np.ascontiguousarray(episode.frames[0])
    return Start(Frame(first, 0), episode.state, episode.instruction,
                 Frame(first if episode.captured is None else episode.captured, 0))


def standing_still(frames: np.ndarray) -> np.ndarray:
    """Return dreams (G, T+1, H, W, 3) in which nothing happens."""
    return np.repeat(frames[:, :1], frames.shape[1], 1)


def blurring(frames: np.ndarray) -> np.ndarray:
    """Return dreams that lose a little sharpness with every frame, as one that feeds on its own pictures does."""
    out = frames.astype(np.float32)
    for t in range(1, out.shape[1]):
        for axis in (2, 3):
            out[:, t:] = (np.roll(out[:, t:], 1, axis) + 2 * out[:, t:] + np.roll(out[:, t:], -1, axis)) / 4
    return out.round().astype(np.uint8)


def drifting(frames: np.ndarray) -> np.ndarray:
    """Return dreams whose red rises by 4 grey levels a frame."""
    rise = np.arange(frames.shape[1])[:, None, None, None] * np.array([4, 0, 0])
    return np.clip(frames + rise, 0, 255).astype(np.uint8)


class Loose:
    """A world model that follows actions loosely: each step of a dream goes astray by chance, in the next dream
    otherwise. `astray_m`: standard deviation along each axis."""

    def __init__(self, world: ActionDiTWorld, astray_m: float) -> None:
        self.world, self.astray_m, self.name = world, astray_m, f"{world.name}, loose"
        self.frame_size = world.frame_size

    def begin(self, frame: Frame, state: F32 | None, copies: int, seed: int) -> Dream:
        return _LooseDream(self.world.begin(frame, state, copies, seed), self.astray_m, seed)

    def begin_many(self, frames: U8, states: F32 | None, seed: int, captured: Sequence[U8] | None = None) -> Dream:
        return _LooseDream(self.world.begin_many(frames, states, seed, captured), self.astray_m, seed)


class _LooseDream:
    def __init__(self, dream: Dream, astray_m: float, seed: int) -> None:
        self.dream, self.astray_m, self.rng = dream, astray_m, np.random.default_rng(seed)

    def step(self, deltas: F32) -> U8:
        astray = deltas.copy()
        astray[:, :3] += self.rng.normal(0.0, self.astray_m, (len(deltas), 3))
        return self.dream.step(astray)


def broken(world_model: ActionDiTWorld, looking: Judge, episodes: list[Recorded], seed: int) -> list[str]:
    """Return the table of dreams broken on purpose: how many are noticed, and what the judge that looks made of
    them."""
    noticed: dict[str, list[bool]] = {}
    claims: dict[str, list[tuple[bool, bool]]] = {}
    true_claims: dict[str, list[tuple[bool, bool]]] = {}
    for i, episode in enumerate(tqdm(episodes, unit="episode", desc="broken")):
        start = start_of(episode)
        sound = replay(world_model, start, episode.deltas[None], seed + i)
        facts = facts_of([start], episode.deltas[None])
        for name, frames in (("as dreamed", sound), ("standing still", standing_still(sound)),
                             ("blurring", blurring(sound)), ("colours drifting", drifting(sound))):
            verdict = judge_safely(looking, frames, episode.instruction, facts)[0]
            fault = picture_faults(as_group(episode, frames, verdict, world_model.name), TrustConfig())[0]
            wrong = is_success(verdict) and not episode.success
            noticed.setdefault(name, []).append(bool(fault))
            claims.setdefault(name, []).append((wrong, wrong and not fault))
        for astray_m in ASTRAY_M:  # which no single picture tells, only a second dream of the same actions
            loose = Loose(world_model, astray_m)
            frames = replay(loose, start, episode.deltas[None], seed + i)
            verdict = judge_safely(looking, frames, episode.instruction, facts)[0]
            kept, counts = filter_group(loose, looking, start, as_group(episode, frames, verdict, loose.name),
                                        TrustConfig(), seed + 10_000 + i)
            name = f"going astray by {1000 * astray_m:g} mm a step"
            noticed.setdefault(name, []).append(counts.rejected > 0)
            claims.setdefault(name, []).append((is_success(verdict) and not episode.success,
                                                is_success(kept.judgements[0]) and not episode.success))
            true_claims.setdefault(name, []).append((is_success(verdict) and episode.success,
                                                     is_success(kept.judgements[0]) and episode.success))
    failures = sum(not e.success for e in episodes)
    lines = ["\n| dreams | rejected | failures the judge that looks claims: unfiltered | filtered |",
             "|---|---|---|---|"]
    for name, told in noticed.items():
        before, after = (wilson(sum(c[k] for c in claims[name]), failures) for k in (0, 1))
        lines.append(f"| {name} | {wilson(sum(told), len(told))} | {before} | {after} |")
    lines += [f"{name}: true claims {sum(c[0] for c in some)}, of which {sum(c[1] for c in some)} stay"
              for name, some in true_claims.items()]
    return lines


def as_group(episode: Recorded, frames: np.ndarray, verdict: Judgement, world_model: str) -> RolloutGroup:
    """Return one replayed episode as a group of one rollout."""
    T = len(episode.deltas)
    chunk = SampledChunks(episode.deltas[None], np.zeros((1, T, 7), np.int64), np.zeros((1, T, 7), np.float32))
    return RolloutGroup(frames, (chunk,), (0,), (verdict,), np.ones((1, 1), np.bool_), episode.instruction, "",
                        world_model)


def measure(world_model: WorldModel, judges: TwoJudges, episodes: list[Recorded], seed: int) -> list[str]:
    """Return the table's lines for one world model."""
    claims: dict[str, list[bool]] = {}
    truth, levels = [], []
    for i, episode in enumerate(tqdm(episodes, unit="episode", desc=world_model.name)):
        start = start_of(episode)
        frames = replay(world_model, start, episode.deltas[None], seed + i)
        facts = facts_of([start], episode.deltas[None])
        looked, measured = (judge_safely(j, frames, episode.instruction, facts)[0]
                            for j in (judges.looking, judges.measuring))
        again = replay(world_model, start, episode.deltas[None], seed + 20_000 + i)
        levels.append(float(np.abs(again[0, -1].astype(np.float32) - frames[0, -1]).mean()))
        truth.append(episode.success)
        both = agree(looked, measured)
        for name, verdict in zip(DECIDERS, (looked, measured, both), strict=True):
            claims.setdefault(name, []).append(is_success(verdict))
        for name, verdict, judge in (("who looks", looked, judges.looking), ("both", both, judges)):
            group = as_group(episode, frames, verdict, world_model.name)
            for words, config in FILTERS.items():
                kept, _ = filter_group(world_model, _placing(judge, judges), start, group, config, seed + 10_000 + i)
                claims.setdefault(f"{name}, without: {words}", []).append(is_success(kept.judgements[0]))
    true = np.array(truth)
    lines = [f"\n{world_model.name}: {len(true)} episodes, {int(true.sum())} truly successful\n",
             "| who decides, which claims are dropped | false claims among failures | true claims among successes |",
             "|---|---|---|"]
    for name, told in claims.items():
        said = np.array(told)
        lines.append(f"| {name} | {wilson(int((said & ~true).sum()), int((~true).sum()))} "
                     f"| {wilson(int((said & true).sum()), int(true.sum()))} |")
    return [*lines, *disagreement(np.array(levels), {k: np.array(claims[k]) for k in DECIDERS}, true)]


def disagreement(levels: np.ndarray, claims: dict[str, np.ndarray], true: np.ndarray) -> list[str]:
    """Return whether two dreams of the same actions differ more where the verdict is wrong.

    `levels`: mean difference of their last frames, grey levels. As a weight it would be worth something only if
    wrong verdicts were told by it: AUC of `levels` for "wrong", 0.5 where it tells nothing.
    """
    lines = [f"\ntwo dreams' last frames differ by {np.median(levels):.2f} grey levels (median; 5 to 95 %: "
             f"{np.quantile(levels, 0.05):.2f} to {np.quantile(levels, 0.95):.2f})\n",
             "| who decides | verdicts wrong | AUC of the difference for a wrong verdict | for a false claim |",
             "|---|---|---|---|"]
    for name, said in claims.items():
        wrong = said != true
        cells = [str(paired_replay_auc(list(levels[keep]), list(wrong[keep]))) if wrong[keep].any() else "none wrong"
                 for keep in (np.ones(len(true), np.bool_), said)]
        lines.append(f"| {name} | {int(wrong.sum())} of {len(true)} | {cells[0]} | {cells[1]} |")
    return lines


def _placing(judge: Judge, judges: TwoJudges) -> Judge:
    """Return a judge that decides as `judge` and can tell where the arm is drawn."""
    return judge if judge is judges else TwoJudges(judge, _Agreeing(judges))


class _Agreeing:
    """Measures where the arm is, and leaves the verdict to the other judge."""

    def __init__(self, judges: TwoJudges) -> None:
        self.name, self.judges = "agreeing", judges

    def score(self, frames, instruction, facts=None):  # type: ignore[no-untyped-def]
        return [Judgement(1.0, 0)] * len(frames)

    def arm_misplaced_px(self, frames, facts):  # type: ignore[no-untyped-def]
        return self.judges.arm_misplaced_px(frames, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="play data with captured frames")
    parser.add_argument("--family", default="reach")
    parser.add_argument("--episodes", type=int, default=100, help="per file")
    parser.add_argument("--other", default="", help="a world model of other scenes, as one that is wrong here")
    parser.add_argument("--broken", action="store_true", help="dreams of the shipped world model, broken on purpose")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    episodes = [e for e in read_play(sorted(args.data.glob("*.npz")), args.episodes) if e.family == args.family]
    judges = build.load_judges()
    assert isinstance(judges, TwoJudges)
    if args.broken:
        print("\n".join(broken(build.load_world_model(""), judges.looking, episodes, args.seed)), flush=True)
        return
    for path in ["", *([args.other] if args.other else [])]:
        print("\n".join(measure(build.load_world_model(path), judges, episodes, args.seed)), flush=True)


if __name__ == "__main__":
    main()
