"""`world-gymnast bench adaptation`: true success on the twin before and after adaptation, by scene and seed.

One process; the player and the guard that move an arm, in simulated time. True episodes have the same seeds before and
after and with every method; the frames that a session starts from are of no episode that is measured: the scene is set
up anew for each of them.

Methods: `world_model`, a session as `adapt_node` runs it; and what one could do in its place with the same budget of
time, see comparators.py. Forgetting, in a training scene, is measured with the first seed. Rows are appended to
`rows.jsonl` as they are measured, and what is there is not measured again.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros import seeds as seed_ranges
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.log import Progress
from world_gymnast_ros.adaptation.rollout import (
    derive_seed,
    facts_of,
    imagine,
    is_success,
    judge_safely,
    replay,
)
from world_gymnast_ros.benchmark import comparators
from world_gymnast_ros.benchmark import rows as rows_of
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.evaluation.environment import Environment, outcomes
from world_gymnast_ros.evaluation.environment import episodes as real_episodes
from world_gymnast_ros.statistics import ab_row, wilson
from world_gymnast_ros.twin.environment import TwinEnvironment
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.tasks import parse_instruction
from world_gymnast_ros.types import F32, AdapterRef, Start
from world_gymnast_ros.updates.adaptation import Parts, run_session

METHODS = ("world_model", *comparators.METHODS)
MATCHED_BATCH = 40
SAMPLED_AT = 0.05
"""Temperature at which the adapted policy acts in imagination, and once more in truth."""
ELSEWHERE = "train_oak"
"""Where forgetting is measured: a scene of the policy's own demonstrations, with the same kind of task."""


@dataclass(frozen=True)
class Row:
    """One method in one scene with one seed. `before`, `after`: true outcomes on the same episodes.

    `imagined_before`, `imagined_after`: the promotion test's, None where it was not reached. `matched`: the adapted
    policy imagined from the first frames of the very episodes of `after`, None where there was no verdict. `replayed`:
    the actions of those episodes imagined again, so that only world model and judges can be wrong; None: none.
    `repeated`: true outcomes of those episodes run once more, sampled as `matched` is: what a world model without fault
    would say there.
    `elsewhere_before`, `elsewhere_after`: true outcomes in `ELSEWHERE`.
    """

    scene: str
    instruction: str
    method: str
    seed: int
    before: list[bool]
    after: list[bool]
    outcome: str
    message: str
    seconds: float
    updates: int = 0
    imagined_before: float | None = None
    imagined_after: float | None = None
    matched: list[bool | None] = field(default_factory=list)
    elsewhere_before: list[bool] = field(default_factory=list)
    elsewhere_after: list[bool] = field(default_factory=list)
    replayed: list[bool | None] = field(default_factory=list)
    repeated: list[bool] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.scene, self.instruction, self.method, self.seed

    @property
    def predicted(self) -> float | None:
        """What the promotion test said of the policy that the session left; None where it was not reached."""
        return self.imagined_after if self.outcome == "promoted" else self.imagined_before


def read_rows(path: Path) -> list[Row]:
    """Read what was measured into a folder so far, or into a file of rows."""
    return rows_of.read_rows(path, Row, ". In a file of an earlier version write 'method' for 'arm' and 'world_model' "
                             "for 'dream'")


def imagined_from(parts: Parts, starts: Sequence[Start], seed: int) -> list[bool | None]:
    """Imagine one greedy rollout of the policy as it stands from each start; return who succeeded, None: no verdict."""
    steps = parse_instruction(starts[0].instruction).horizon_steps
    out: list[bool | None] = []
    for i in range(0, len(starts), MATCHED_BATCH):
        group = imagine(parts.policy, parts.world_model, parts.judge, starts[i:i + MATCHED_BATCH], 1, steps, SAMPLED_AT,
                        derive_seed(seed, 77, i), judge_every_chunks=0)
        out += [None if j.score is None else is_success(j) for j in group.judgements]
    return out


def replay_verdicts(parts: Parts, starts: Sequence[Start], episodes: Sequence[Episode], seed: int
                      ) -> list[bool | None]:
    """Imagine true episodes again, each from its start with its own actions; return what the judges say of each."""
    longest = max(e.steps for e in episodes)
    deltas = np.stack([np.concatenate([e.deltas, standing_still(e, longest)]) for e in episodes])
    frames = replay(parts.world_model, starts, deltas, derive_seed(seed, 78))
    verdicts = judge_safely(parts.judge, frames, starts[0].instruction, facts_of(starts, deltas))
    return [None if v.score is None else is_success(v) for v in verdicts]


def standing_still(episode: Episode, steps: int) -> F32:
    """Return the actions (n, 7) that an episode which the guard ended early lacks to `steps`: the gripper is kept."""
    rest = np.zeros((steps - episode.steps, 7), np.float32)
    rest[:, 6] = episode.deltas[-1, 6]
    return rest


def measure(parts: Parts, scene: str, instruction: str, method: str, seed: int, episodes: int, captures: int,
            config: AdaptNodeConfig, before: Sequence[bool] | None = None,
            elsewhere_before: Sequence[bool] | None = None, elsewhere: bool = True,
            progress: Callable[[Progress], None] = lambda _: None) -> Row:
    """Adapt once with `method` and measure; what is not given of the base is measured too. `elsewhere`: forgetting."""
    loaded = load_scene(scene)
    policy = parts.policy
    environment: Environment = TwinEnvironment(loaded)
    episode_seeds = seed_ranges.evaluation(episodes)
    extra: dict[str, Any] = {}
    try:
        first = list(before) if before is not None else outcomes(environment, policy, None, episode_seeds, instruction)
        policy.load_adapter(None)
        starts = [environment.reset(s, instruction) for s in seed_ranges.captures(captures)]
        began = time.monotonic()
        ref: AdapterRef | None
        outcome: str
        if method == "world_model":
            report = run_session(parts, starts, config, seed, time.time_ns(), progress=progress).report
            ref, outcome, message = report.adapter, report.outcome, report.message
            extra["updates"] = len(report.curve)
            if report.promotion is not None:
                extra |= {"imagined_before": report.promotion.before.value,
                          "imagined_after": report.promotion.after.value}
        else:
            ref, outcome, message = comparators.run(method, parts, loaded, instruction, config, seed, progress)
        seconds = time.monotonic() - began
        imagined = method == "world_model"
        played = [*real_episodes(environment, policy, ref, episode_seeds, instruction)] if ref or imagined else []
        after = [bool(e.success) for e in played] or first
        if imagined:
            begun = [environment.reset(s, instruction) for s in episode_seeds]
            policy.load_adapter(ref)
            extra["matched"] = imagined_from(parts, begun, seed)
            extra["replayed"] = replay_verdicts(parts, begun, played, seed)
            extra["repeated"] = outcomes(environment, policy, ref, episode_seeds, instruction, SAMPLED_AT)
        if elsewhere:
            extra |= forgetting(parts, ref, episodes, elsewhere_before)
    finally:
        policy.load_adapter(None)
        environment.close()
    return Row(scene, instruction, method, seed, first, after, outcome, message, round(seconds, 1), **extra)


def forgetting(parts: Parts, ref: AdapterRef | None, episodes: int, before: Sequence[bool] | None
               ) -> dict[str, list[bool]]:
    """Measure the base (where not given) and the adapter on half as many episodes of a training scene."""
    environment: Environment = TwinEnvironment(load_scene(ELSEWHERE))
    words = "reach the red block"
    episode_seeds = seed_ranges.evaluation(episodes // 2)
    try:
        if before is None:
            before = outcomes(environment, parts.policy, None, episode_seeds, words)
        after = list(before) if ref is None else outcomes(environment, parts.policy, ref, episode_seeds, words)
    finally:
        environment.close()
    return {"elsewhere_before": list(before), "elsewhere_after": after}


def bench(parts: Parts, scenes: Sequence[str], instruction: str, methods: Sequence[str], seeds: Sequence[int],
          episodes: int, captures: int, config: AdaptNodeConfig, folder: Path,
          progress: Callable[[str, Progress | None], None]) -> list[Row]:
    """Measure what is not in `folder` yet, all scenes with one seed before the next; return all rows."""
    for seed in seeds:
        for method in methods:
            for scene in scenes:
                words = instruction or load_scene(scene).instructions[0]
                rows = read_rows(folder)
                if (scene, words, method, seed) in {r.key for r in rows}:
                    continue
                label = f"{Path(scene).stem}, {method}, seed {seed}"
                progress(label, None)
                known = next((r for r in rows if (r.scene, r.instruction) == (scene, words)
                              and len(r.before) == episodes), None)
                other = next((r.elsewhere_before for r in rows if len(r.elsewhere_before) == episodes // 2), None)
                rows_of.append_row(folder, measure(parts, scene, words, method, seed, episodes, captures, config,
                                           known.before if known else None, other,
                                           seed == seeds[0],
                                           lambda p, label=label: progress(label, p)))  # type: ignore[misc]
    return read_rows(folder)


def correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Pearson's r; NaN for fewer than three points or none that varies."""
    a = np.array(pairs, np.float64)
    if len(a) < 3 or (a.std(0) < 1e-9).any():
        return float("nan")
    return float(np.asarray(np.corrcoef(a.T))[0, 1])


def _rate(outcomes: Sequence[bool]) -> str:
    return str(wilson(sum(outcomes), len(outcomes)))


def markdown(rows: Sequence[Row]) -> str:
    """Format all rows: one line per scene and method, seeds pooled; then what they say together, method by method."""
    lines = ["| scene, instruction | method | true before | true after, seeds pooled | each seed "
             "| promotion test, imagined | imagined from the same starts | s |", "|---|---|---|---|---|---|---|---|"]
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.scene, row.instruction, row.method), []).append(row)
    for (scene, words, method), mine in cells.items():
        after = [x for r in mine for x in r.after]
        tested = [f"{r.imagined_before:.2f} to {r.imagined_after:.2f}" if r.imagined_after is not None else r.outcome
                  for r in mine if method == "world_model"]
        matched = [x for r in mine for x in r.matched if x is not None]
        lines.append(f"| {Path(scene).stem}: {words} | {method} | {_rate(mine[0].before)} | {_rate(after)} "
                     f"| {', '.join(f'{np.mean(r.after):.2f}' for r in mine)} | {', '.join(tested)} "
                     f"| {f'{np.mean(matched):.2f}' if matched else ''} "
                     f"| {', '.join(f'{r.seconds:.0f}' for r in mine)} |")
    return "\n".join([*lines, "", *summaries(rows)])


def summaries(rows: Sequence[Row]) -> list[str]:
    """Return what the rows say together, a line per method and figure."""
    out = []
    for method in dict.fromkeys(r.method for r in rows):
        mine = [r for r in rows if r.method == method]
        before, after = (float(np.mean([np.mean(getattr(r, k)) for r in mine])) for k in ("before", "after"))
        worst = min(mine, key=lambda r: float(np.mean(r.after) - np.mean(r.before)))
        scenes = {(r.scene, r.instruction) for r in mine}
        out.append(f"- {method}, {len(mine)} sessions in {len(scenes)} scenes: true success {before:.1%} to "
                   f"{after:.1%} ({100 * (after - before):+.1f} points); worst session "
                   f"{100 * (np.mean(worst.after) - np.mean(worst.before)):+.1f} ({Path(worst.scene).stem}, seed "
                   f"{worst.seed}); {float(np.mean([r.seconds for r in mine])):.0f} s a session, longest "
                   f"{max(r.seconds for r in mine):.0f} s")
        elsewhere = [ab_row("", r.elsewhere_before, r.elsewhere_after) for r in mine if r.elsewhere_after]
        if elsewhere:
            gone = [e.after.value - e.before.value for e in elsewhere]
            out.append(f"- {method}, forgetting: in `{ELSEWHERE}` true success {elsewhere[0].before.value:.1%} before, "
                       f"{float(np.mean([e.after.value for e in elsewhere])):.1%} after on average, worst "
                       f"{100 * min(gone):+.0f} points")
    out += _imagination([r for r in rows if r.method == "world_model"])
    return out


def _by_scene(scenes: Sequence[Sequence[Row]], name: str) -> list[tuple[float, float]]:
    """Return (imagined, true) success of each scene that has verdicts in the field `name`, its seeds pooled."""
    pairs = []
    for mine in scenes:
        judged = [(x, a) for r in mine for x, a in zip(getattr(r, name), r.after, strict=False) if x is not None]
        if judged:
            pairs.append((float(np.mean([x for x, _ in judged])), float(np.mean([a for _, a in judged]))))
    return pairs


def _imagination(rows: Sequence[Row]) -> list[str]:
    """Return how imagined success agrees with true success over scenes, and how often it flatters."""
    scenes: dict[str, list[Row]] = {}
    for r in rows:
        scenes.setdefault(f"{r.scene} {r.instruction}", []).append(r)
    if not scenes:
        return []
    pairs, replays, repeats = (_by_scene(list(scenes.values()), k) for k in ("matched", "replayed", "repeated"))
    tested = [(r.predicted, float(np.mean(r.after))) for r in rows if r.predicted is not None]
    both = [(r.imagined_before, float(np.mean(r.before))) for r in rows if r.imagined_before is not None] + tested
    reported = [[r for r in mine if r.predicted is not None] for mine in scenes.values()]
    by_scene = [(float(np.mean([r.predicted for r in mine if r.predicted is not None])),
                 float(np.mean([np.mean(r.after) for r in mine]))) for mine in reported if mine]
    failed = [m for r in rows for m, a in zip(r.matched, r.after, strict=False) if m is not None and not a]
    again = [m for r in rows for m, a in zip(r.replayed, r.after, strict=False) if m is not None and not a]
    r_matched, r_tested, r_both = correlation(pairs), correlation(tested), correlation(both)
    out = [f"- imagined from the same first frames against true success after adaptation, over {len(pairs)} scenes: "
           f"r = {r_matched:.2f}" if not math.isnan(r_matched) else "- too few scenes for a correlation",
           f"- of {len(failed)} true failures after adaptation, imagined a success from the same first frame: "
           f"{_rate(failed)}" if failed else "- no true failure after adaptation"]
    twice = [m for r in rows for m, a in zip(r.repeated, r.after, strict=False) if not a]
    if twice:
        out.append(f"- of {len(twice)} true failures after adaptation, a success when the same episode was truly run "
                   f"once more, sampled as in imagination: {_rate(twice)}")
    if again:
        out.append(f"- of {len(again)} true failures after adaptation, called a success when their own actions were "
                   f"imagined again: {_rate(again)}")
    if not math.isnan(correlation(replays)):
        out.append(f"- success of those same actions in imagination against true success, over {len(replays)} scenes: "
                   f"r = {correlation(replays):.2f}")
    if not math.isnan(correlation(repeats)):
        out.append(f"- true success of those episodes run once more against true success, over {len(repeats)} scenes: "
                   f"r = {correlation(repeats):.2f}")
    if not math.isnan(correlation(by_scene)):
        out.append(f"- imagined success, in the promotion test, of the policy that a session left against true "
                   f"success, over {len(by_scene)} scenes: r = {correlation(by_scene):.2f}")
    if not math.isnan(r_tested):
        out.append(f"- the same over {len(tested)} sessions: r = {r_tested:.2f}; before and after together: r = "
                   f"{r_both:.2f}")
    return out
