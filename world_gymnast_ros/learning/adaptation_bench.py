"""`world-gymnast bench adaptation`: true success on the twin before and after one adaptation, scene by scene.

One process, the same Bridge loop as the graph, true episodes with the same seeds before and after. The frames that the
session starts from are of no episode that is measured: the scene is set up anew for each of them.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from world_gymnast_ros.adapt_config import AdaptNodeConfig
from world_gymnast_ros.evaluate import ABRow, ab_row
from world_gymnast_ros.imagine import Start
from world_gymnast_ros.learning.adaptation import Parts, run_session
from world_gymnast_ros.session import Progress
from world_gymnast_ros.twin.rollout import capture, success_rate
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.sim import Twin

CAPTURE_SEED = 9_999
FIRST_EPISODE_SEED = 40_000


@dataclass(frozen=True)
class SceneResult:
    """One scene. `imagined` before and after, NaN where the gate was not reached; `seconds` of the session."""

    scene: str
    instruction: str
    row: ABRow
    outcome: str
    message: str
    imagined_before: float
    imagined_after: float
    updates: int
    seconds: float


def measure_scene(parts: Parts, scene: str, instruction: str, episodes: int, config: AdaptNodeConfig, seed: int,
                  captures: int = 1, progress: Callable[[Progress], None] = lambda _: None) -> SceneResult:
    """Measure base, adapt once from `captures` frames, measure again with what the gate decided."""
    loaded = load_scene(scene)
    instruction = instruction or loaded.instructions[0]
    policy = parts.policy
    twin = Twin(loaded)
    seeds = range(FIRST_EPISODE_SEED, FIRST_EPISODE_SEED + episodes)
    try:
        policy.load_adapter(None)
        before = success_rate(twin, policy, instruction, seeds)
        starts = []
        for i in range(captures):
            twin.reset(CAPTURE_SEED - i, instruction)
            frame, state = capture(twin)
            starts.append(Start(frame, state, instruction))
        began = time.monotonic()
        report = run_session(parts, starts, config, seed, time.time_ns(), progress=progress).report
        seconds = time.monotonic() - began
        after = before
        if report.adapter is not None:
            policy.load_adapter(report.adapter)
            after = success_rate(twin, policy, instruction, seeds)
    finally:
        policy.load_adapter(None)
        twin.close()
    gate = report.gate
    return SceneResult(scene, instruction, ab_row(f"{scene}: {instruction}", before, after), report.outcome,
                       report.message, gate.before.value if gate else float("nan"),
                       gate.after.value if gate else float("nan"), len(report.curve), seconds)


def results_markdown(results: list[SceneResult]) -> str:
    """Format the table; the last line averages over scenes."""
    lines = ["| scene, instruction | true before | true after | difference | imagined | updates | seconds | outcome |",
             "|---|---|---|---|---|---|---|---|"]
    for r in results:
        imagined = ("gate not reached" if math.isnan(r.imagined_after)
                    else f"{r.imagined_before:.2f} to {r.imagined_after:.2f}")
        lines.append(f"| {r.scene}: {r.instruction} | {r.row.before} | {r.row.after} | {r.row.difference} "
                     f"| {imagined} | {r.updates} | {r.seconds:.0f} "
                     f"| {r.outcome} |")
    n = len(results)
    before, after = (sum(getattr(r.row, k).value for r in results) / n for k in ("before", "after"))
    worst = min(r.row.after.value - r.row.before.value for r in results)
    lines.append(f"| mean of {n} | {before:.0%} | {after:.0%} | {after - before:+.0%} (worst {worst:+.0%}) | | | "
                 f"{sum(r.seconds for r in results) / n:.0f} | |")
    return "\n".join(lines)
