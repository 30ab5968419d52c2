"""`world-gymnast bench fog`: the learner of a session, first-order gradients (FoG) against the policy gradient.

On the twin, per scene: the same policy with a Laplace head, the same captured frames, seeds and world model, the same
processor time; only the learner differs. Time is this process's own, so that what else runs on the machine does not
count. True episodes are the same for all. Rows are appended to `rows.jsonl` as they are measured, and what is there is
not measured again.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from world_gymnast_ros import seeds as seed_ranges
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.log import Progress
from world_gymnast_ros.adaptation.rollout import derive_seed, imagine, replay
from world_gymnast_ros.benchmark import rows as rows_of
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.evaluation.environment import Environment, outcomes
from world_gymnast_ros.first_order.session_learner import FogLearner, SessionFog
from world_gymnast_ros.models.policies.regression import RegressionPolicy
from world_gymnast_ros.statistics import Interval, newcombe_paired, wilson
from world_gymnast_ros.twin.environment import TwinEnvironment
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.types import RolloutFacts, Start
from world_gymnast_ros.updates.adaptation import Parts, lora_config, run_session

FOG, GRADIENT = "first-order gradients", "policy gradient"
LEARNERS = (GRADIENT, FOG)
NUDGE_M = 0.005
"""By so much every action of a chunk is moved for a finite difference."""


@dataclass(frozen=True)
class Row:
    """One learner in one scene with one seed. `before`, `after`: true outcomes on the same episodes. `curve`: [seconds,
    held-out imagined success] where it was measured; `imagined_before`, `imagined_after`: the promotion test's.
    `kept`, `undone`: updates that the world model confirmed or not (FoG). `figures`: of the learner's last update, and
    of FoG's surrogate at the end `nudge_cosines`."""

    scene: str
    instruction: str
    learner: str
    seed: int
    before: list[bool]
    after: list[bool]
    outcome: str
    message: str
    seconds: float
    updates: int
    curve: list[tuple[float, float]]
    imagined_before: float | None = None
    imagined_after: float | None = None
    kept: int = 0
    undone: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.scene, self.learner, self.seed


def read_rows(path: Path) -> list[Row]:
    """Read what was measured into a folder so far, or into a file of rows."""
    return rows_of.read_rows(path, Row)


def fog_learner(parts: Parts, config: AdaptNodeConfig, seed: int, fog: SessionFog) -> FogLearner:
    """Return a session's learner by first-order gradients. BadConfig where the policy has no Laplace head."""
    policy = parts.policy
    if not isinstance(policy, RegressionPolicy):
        raise BadConfig(f"policy '{policy.name}' has no Laplace head, through which a first-order gradient could flow; "
                        "make one with `world-gymnast train regression`")
    return FogLearner(policy, lora_config(config, policy), parts.world_model, parts.judge, config.progress_weight, seed,
                      fog)


def measure(parts: Parts, scene: str, learner: str, seed: int, episodes: int, captures: int, config: AdaptNodeConfig,
            fog: SessionFog, before: Sequence[bool] | None, progress: Callable[[Progress], None]) -> Row:
    """Run one session with a learner and measure what it leaves; `before`: outcomes of the base (None: measured)."""
    loaded = load_scene(scene)
    words = loaded.instructions[0]
    environment: Environment = TwinEnvironment(loaded)
    episode_seeds = seed_ranges.evaluation(episodes)
    try:
        first = list(before) if before is not None else outcomes(environment, parts.policy, None, episode_seeds, words)
        starts = [environment.reset(s, words) for s in seed_ranges.captures(captures)]
        made = fog_learner(parts, config, seed, fog) if learner == FOG else None
        chosen = parts if made is None else replace(parts, learner=lambda _: made)
        began = time.process_time()
        report = run_session(chosen, starts, config, seed, time.time_ns(), progress=progress,
                             now_s=time.process_time).report
        seconds = time.process_time() - began
        figures = dict(report.curve[-1].stats) if report.curve else {}
        if made is not None and made.trained:
            figures |= nudge_cosines(made, starts[0], config, seed)
        after = outcomes(environment, parts.policy, report.adapter, episode_seeds, words) if report.adapter else first
    finally:
        parts.policy.load_adapter(None)
        environment.close()
    decided = [row.stats["kept"] for row in report.curve if "kept" in row.stats]
    promotion = report.promotion
    return Row(scene, words, learner, seed, first, list(after), report.outcome, report.message, round(seconds, 1),
               len(report.curve), [(round(r.t_s, 1), r.held_out) for r in report.curve if r.held_out is not None],
               None if promotion is None else promotion.before.value,
               None if promotion is None else promotion.after.value,
               int(sum(decided)), int(len(decided) - sum(decided)), figures)


def nudge_cosines(learner: FogLearner, start: Start, config: AdaptNodeConfig, seed: int) -> dict[str, float]:
    """Compare, on one group of rollouts, derivatives of the mean value with respect to a nudge (3,) of the hand's way
    in the first chunk: the surrogate's, and central differences of world model and judges under common noise.

    Returns the median cosine and the share of positive ones, over the rollouts where the differences are not zero.
    """
    group = imagine(learner.policy, learner.world_model, learner.judge, start, config.copies, config.horizon_steps,
                    config.temperature, derive_seed(seed, 8, 0), judge_every_chunks=0)
    found = learner.sequences(group)
    if found is None or group.facts is None:
        return {}
    data, known = found
    K, facts, starts = learner.policy.chunk_size, group.facts.rows(known), [start] * len(known)
    actions = data.actions.clone().requires_grad_(True)
    own = torch.autograd.grad(learner.return_of(data, actions).sum(), actions)[0][:, :K, :3].sum(1).numpy()
    differences = np.zeros_like(own)
    for axis in range(3):
        for sign in (1.0, -1.0):
            nudged = (data.actions.numpy() * learner.units()).astype(np.float32)
            nudged[:, :K, axis] += sign * NUDGE_M
            frames = replay(learner.world_model, starts, nudged, derive_seed(seed, 8, 1))
            values = learner.values_so_far(frames, start.instruction,
                                           RolloutFacts(facts.captured, facts.states, nudged))
            differences[:, axis] += sign * values.mean(1) / (2.0 * NUDGE_M)
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(differences, axis=1)
    cosines = (own * differences).sum(1)[norms > 0] / norms[norms > 0]
    return {"cosine": float(np.median(cosines)), "positive": float((cosines > 0).mean())} if len(cosines) else {}


def bench(parts: Parts, scenes: Sequence[str], learners: Sequence[str], seed: int, episodes: int, captures: int,
          config: AdaptNodeConfig, fog: SessionFog, folder: Path, progress: Callable[[str, Progress | None], None]
          ) -> list[Row]:
    """Measure what is not in `folder` yet and return all rows."""
    for scene in scenes:
        for learner in learners:
            rows = read_rows(folder)
            if (scene, learner, seed) in {r.key for r in rows}:
                continue
            label = f"{scene}, {learner}, seed {seed}"
            progress(label, None)
            known = next((r.before for r in rows if r.scene == scene and len(r.before) == episodes), None)
            rows_of.append_row(folder, measure(parts, scene, learner, seed, episodes, captures, config, fog, known,
                                               lambda p, label=label: progress(label, p)))  # type: ignore[misc]
    return read_rows(folder)


def paired(a: Sequence[bool], b: Sequence[bool]) -> Interval:
    """Return the paired difference of outcomes `b` above `a`, on the same episodes."""
    pairs = list(zip(a, b, strict=True))
    return newcombe_paired(*(pairs.count(cell) for cell in ((True, True), (True, False), (False, True),
                                                            (False, False))))


def markdown(rows: Sequence[Row]) -> str:
    """Format the rows: a line for each session, then FoG against the policy gradient in each scene."""
    lines = ["| scene, instruction | learner | true before | true after | promotion test, imagined | updates "
             "| kept, undone | processor time, s | outcome |", "|---|---|---|---|---|---|---|---|---|"]
    for r in rows:
        tested = "" if r.imagined_after is None else f"{r.imagined_before:.2f} to {r.imagined_after:.2f}"
        steps = f"{r.kept}, {r.undone}" if r.learner == FOG else ""
        lines.append(f"| {r.scene}: {r.instruction} | {r.learner} | {wilson(sum(r.before), len(r.before))} "
                     f"| {wilson(sum(r.after), len(r.after))} | {tested} | {r.updates} | {steps} | {r.seconds:.0f} "
                     f"| {r.outcome} |")
    lines.append("")
    for r in (r for r in rows if r.learner == FOG):
        rival = next((o for o in rows if (o.scene, o.seed, o.learner) == (r.scene, r.seed, GRADIENT)), None)
        if rival is not None:
            gain = paired(rival.after, r.after)
            lines.append(f"- {r.scene}, seed {r.seed}: {FOG} against {GRADIENT}, {len(r.after)} paired true episodes: "
                         f"{100 * gain.value:+.0f} points [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]")
    return "\n".join(lines)
