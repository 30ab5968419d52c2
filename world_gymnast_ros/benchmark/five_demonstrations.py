"""`world-gymnast bench five`: five demonstrations of a task, then reinforcement in the dream (World-Env's setting).

On the twin, per task: a regression policy is fine-tuned on exactly five demonstrations (SFT), and a session in the
dream trains it on, with leave-one-out advantages. The same with a constant Laplace scale in the place of the scale
head. Every policy plays the same true episodes once. Nobody ends them, but at every frame it is noted whether the
task's condition holds and whether the judge would say that it does; who would have ended an episode when is read from
that, so that nobody, judge and oracle are compared on the very same motion.

Rows are appended to `rows.jsonl` as they are measured, and what is there is not measured again.
"""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from world_gymnast_ros import seeds as seed_ranges
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.done_watch import DoneWatch
from world_gymnast_ros.adaptation.log import Progress
from world_gymnast_ros.benchmark import rows as rows_of
from world_gymnast_ros.data.episode_files import write_rows
from world_gymnast_ros.data.read import read_arrays
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.evaluation.environment import outcomes
from world_gymnast_ros.models.policies.openvla import OpenVLA
from world_gymnast_ros.models.policies.regression import RegressionPolicy
from world_gymnast_ros.statistics import Interval, newcombe_paired, wilson
from world_gymnast_ros.twin.environment import TwinEnvironment
from world_gymnast_ros.twin.play import record_episode
from world_gymnast_ros.twin.scene import Scene, load_scene
from world_gymnast_ros.twin.tasks import progress as task_progress
from world_gymnast_ros.types import SUCCESS_THRESHOLD, U8, AdapterRef, Judge, Policy
from world_gymnast_ros.updates.adaptation import Parts, load_parts, run_session
from world_gymnast_ros.updates.fine_tuning import FineTuning, fine_tune, with_regression_heads

DEMONSTRATIONS = 5
CASES = {"reach": ("novel_knocked", "reach the red cylinder"),
         "push": ("novel_dark_wood", "push the purple block forward"),
         "pick and place": ("novel_blue_cloth", "put the red block on the yellow plate")}
"""A task of each family: of the scenes in `docs/results.md` the one where the base succeeds least, but not never."""


def scattered(case: str) -> Scene:
    """Return the scene of a case with its objects anywhere on the table: where they hardly move, five demonstrations
    teach the whole task."""
    scene = load_scene(CASES[case][0])
    return dataclasses.replace(scene, instructions=(CASES[case][1],),
                               objects=tuple(dataclasses.replace(o, xy_m=None) for o in scene.objects))


SFT, RL = "SFT", "SFT + RL"
LEARNED, CONSTANT = "scale head", "constant scale"
LOOKS = 2
"""So many looks in a row must say done, as `reflector_node` has it."""
NO, YES, NO_VERDICT = "0", "1", "-"


@dataclass(frozen=True)
class Row:
    """One policy on one task. A letter for each frame of each episode: `holds`, whether the task's condition holds (0
    or 1), from the first frame to the end; `judged`, whether the judge says done (- is no verdict), without the end."""

    case: str
    scale: str
    policy: str
    seed: int
    holds: list[str]
    judged: list[str]
    outcome: str
    message: str
    seconds: float
    updates: int = 0
    captures: int = 0
    """Placements of the objects that the session began at; 0: there was none."""
    at_captured: list[bool] = field(default_factory=list)
    """True outcomes at placements that sessions begin at, one episode each."""

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        return self.case, self.scale, self.policy, self.seed, self.captures


@dataclass(frozen=True)
class Ended:
    """What comes of an episode if it is ended at frame `at`: `success`, whether the condition holds there; `redundant`,
    actions after it first held (0 where it did not); `early`: ended although it never had held."""

    at: int
    success: bool
    redundant: int
    early: bool


def ended_at(holds: str, at: int) -> Ended:
    """Return what comes of an episode that is ended at frame `at`."""
    first = holds.find(YES)
    never = first < 0 or first > at
    return Ended(at, holds[at] == YES, 0 if never else at - first, never and at < len(holds) - 1)


def by_nobody(row: Row) -> list[Ended]:
    """Return the episodes at the end of their time."""
    return [ended_at(h, len(h) - 1) for h in row.holds]


def by_judge(row: Row, looks: int = LOOKS) -> list[Ended]:
    """Return the episodes as the judge ends them: at the last of `looks` frames in a row that it calls done."""
    found = [j.find(YES * looks) for j in row.judged]
    return [ended_at(h, f + looks - 1 if f >= 0 else len(h) - 1) for h, f in zip(row.holds, found, strict=True)]


def by_oracle(row: Row) -> list[Ended]:
    """Return the episodes as one ends them who knows physics: at the first frame at which the condition holds."""
    return [ended_at(h, h.find(YES) if YES in h else len(h) - 1) for h in row.holds]


class Watch:
    """Notes frame by frame what holds and what the judge says, and ends nothing. Implements `types.EndsEpisodes`."""

    def __init__(self, environment: TwinEnvironment, judge: Judge) -> None:
        self.environment = environment
        self.judge = DoneWatch(judge, environment.frame_size)
        self.holds, self.judged = "", ""

    def begin(self, instruction: str) -> None:
        """Begin an episode."""
        self.judge.begin(instruction)
        self.holds, self.judged = "", ""

    def look(self, rgb: U8) -> bool:
        """Look at the next frame, uint8 (H, W, 3); return that the episode goes on."""
        self.judge.look(rgb)
        p = self.judge.probability
        self.judged += NO_VERDICT if p is None else YES if p > SUCCESS_THRESHOLD else NO
        self.note()
        return False

    def note(self) -> None:
        """Note whether the condition holds now."""
        twin = self.environment.twin
        self.holds += YES if task_progress(twin.task, twin.truth(twin.task))[0] else NO


def play(case: str, policy: Policy, adapter: AdapterRef | None, episodes: int, judge: Judge
         ) -> tuple[list[str], list[str]]:
    """Run true episodes; return `holds` and `judged` of a Row."""
    environment, instruction = TwinEnvironment(scattered(case)), CASES[case][1]
    environment.done = watch = Watch(environment, judge)
    holds, judged = [], []
    try:
        for seed in seed_ranges.evaluation(episodes):
            environment.reset(seed, instruction)
            environment.run(policy, adapter, instruction, 0.0, seed)
            watch.note()
            holds.append(watch.holds)
            judged.append(watch.judged)
    finally:
        environment.close()
        policy.load_adapter(None)
    return holds, judged


def at_placements(case: str, policy: Policy, adapter: AdapterRef | None, captures: int) -> list[bool]:
    """Return true outcomes at the placements that a session begins at, one episode each."""
    environment = TwinEnvironment(scattered(case))
    try:
        return outcomes(environment, policy, adapter, seed_ranges.captures(captures), CASES[case][1])
    finally:
        environment.close()
        policy.load_adapter(None)


def fine_tuned(start: Policy, case: str, scale: str, seed: int, settings: FineTuning, folder: Path) -> Path:
    """Return the folder of a policy fine-tuned on five demonstrations of a case; made where it is not there yet."""
    out = folder / "policies" / f"{case}-{scale}-{seed}".replace(" ", "_")
    if (out / "model.safetensors").is_file():
        return out
    if not isinstance(start, OpenVLA):
        raise BadConfig(f"--policy must name a small policy of action tokens, whose trunk is taken; '{start.name}' is "
                        "another one")
    demonstrations = folder / "demonstrations" / f"{case}-{seed}.npz".replace(" ", "_")
    if not demonstrations.is_file():
        write_rows(demonstrations, [record_episode(scattered(case), s, "demo", False)
                                    for s in seed_ranges.demonstrations(seed, DEMONSTRATIONS)])
    settings = dataclasses.replace(settings, learned_scale=scale == LEARNED, seed=seed)
    policy = with_regression_heads(start, settings, out.name)
    fine_tune(policy, read_arrays(demonstrations), settings)
    policy.save(out)
    return out


def reinforced(parts: Parts, case: str, seed: int, captures: int, config: AdaptNodeConfig,
               progress: Callable[[Progress], None]) -> tuple[AdapterRef | None, str, str, int]:
    """Run one session from captured frames of the case; return the adapter (None: kept), outcome, message, updates."""
    environment = TwinEnvironment(scattered(case))
    try:
        starts = [environment.reset(s, CASES[case][1]) for s in seed_ranges.captures(captures)]
    finally:
        environment.close()
    report = run_session(parts, starts, config, seed, time.time_ns(), progress=progress).report
    return report.adapter, report.outcome, report.message, len(report.curve)


def read_rows(path: Path) -> list[Row]:
    """Read what was measured into a folder so far, or into a file of rows."""
    return rows_of.read_rows(path, Row)


def bench(cases: Sequence[str], scales: Sequence[str], seed: int, episodes: int, captures: int, settings: FineTuning,
          config: AdaptNodeConfig, judge: Judge, folder: Path, progress: Callable[[str, Progress | None], None]
          ) -> list[Row]:
    """Measure what is not in `folder` yet and return all rows. `judge`: who ends episodes; `config.policy`: the small
    policy that is fine-tuned."""
    def add(case: str, scale: str, name: str, parts: Parts, adapter: AdapterRef | None, outcome: str, message: str,
            began: float, updates: int = 0, begun_at: int = 0) -> None:
        holds, judged = play(case, parts.policy, adapter, episodes, judge)
        row = Row(case, scale, name, seed, holds, judged, outcome, message, round(time.monotonic() - began, 1), updates,
                  begun_at, at_placements(case, parts.policy, adapter, captures))
        rows_of.append_row(folder, row)

    folder.mkdir(parents=True, exist_ok=True)
    start: Policy | None = None
    for case, scale in ((c, s) for s in scales for c in cases):
        done = {r.key for r in read_rows(folder)}
        todo = [name for name, n in ((SFT, 0), (RL, captures)) if (case, scale, name, seed, n) not in done]
        if not todo:
            continue
        progress(f"{case}, {scale}: SFT", None)
        start, began = start or load_parts(config).policy, time.monotonic()
        where = fine_tuned(start, case, scale, seed, settings, folder)
        parts = load_parts(dataclasses.replace(config, policy=str(where)))
        assert isinstance(parts.policy, RegressionPolicy)
        if SFT in todo:
            add(case, scale, SFT, parts, None, "cloned", f"{DEMONSTRATIONS} demonstrations", began)
        if RL in todo:
            label, began = f"{case}, {scale}: RL", time.monotonic()
            progress(label, None)
            adapter, outcome, message, updates = reinforced(
                parts, case, seed, captures, config, lambda p, label=label: progress(label, p))  # type: ignore[misc]
            add(case, scale, RL, parts, adapter, outcome, message, began, updates, captures)
    return read_rows(folder)


# ---- the table -----------------------------------------------------------------------------------------------------

def _count(ended: Sequence[Ended]) -> str:
    return f"{wilson(sum(e.success for e in ended), len(ended))}"


def _redundant(ended: Sequence[Ended]) -> int:
    return sum(e.redundant for e in ended)


def markdown(rows: Sequence[Row]) -> str:
    """Format the rows: a line for each policy of each task, then what they say about the three aims."""
    lines = [f"| task | policy | ended by nobody | by the judge | by an oracle | redundant actions: nobody, judge "
             f"({LOOKS} looks), judge (1 look) | ended too early | at the session's placements | session |",
             "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        nobody, judge, oracle, one = by_nobody(row), by_judge(row), by_oracle(row), by_judge(row, 1)
        session = row.outcome if row.policy == SFT else (f"{row.captures} placements, {row.updates} updates, "
                                                         f"{row.outcome}, {row.seconds:.0f} s")
        lines.append(f"| {row.case} | {row.policy}, {row.scale} | {_count(nobody)} | {_count(judge)} "
                     f"| {_count(oracle)} | {_redundant(nobody)}, {_redundant(judge)}, {_redundant(one)} "
                     f"| {sum(e.early for e in judge)} "
                     f"| {sum(row.at_captured)}/{len(row.at_captured)} | {session} |")
    return "\n".join([*lines, "", *(line for row in rows if row.policy == RL for line in _aims(row, rows))])


def _aims(row: Row, rows: Sequence[Row]) -> list[str]:
    """Return what a reinforced policy says about the aims: against its SFT, an oracle's stop, redundant actions."""
    before = next((r for r in rows if r.policy == SFT and (r.case, r.scale, r.seed) == (row.case, row.scale, row.seed)),
                  None)
    out = f"- {row.case}, {row.scale}, {row.captures} placements:"
    if before is not None:
        gain = paired([e.success for e in by_judge(before)], [e.success for e in by_judge(row)])
        first, then = (sum(e.success for e in by_judge(r)) for r in (before, row))
        times = f"{then / first:.2f} times SFT" if first else "SFT never succeeds"
        out += (f" RL against SFT, both ended by the judge, {100 * gain.value:+.0f} points "
                f"[{100 * gain.low:+.0f}, {100 * gain.high:+.0f}], {times};")
    nobody, judge, oracle = (sum(e.success for e in of(row)) for of in (by_nobody, by_judge, by_oracle))
    out += (f" of what an oracle's stop gives ({oracle - nobody:+d} episodes) the judge recovers {judge - nobody:+d};"
            if oracle > nobody else " an oracle's stop gives nothing;")
    all_of, left = _redundant(by_nobody(row)), _redundant(by_judge(row))
    return [out + (f" redundant actions fall by {1 - left / all_of:.0%}" if all_of else " no redundant actions")]


def paired(a: Sequence[bool], b: Sequence[bool]) -> Interval:
    """Return the paired difference of outcomes `b` above `a`, on the same episodes."""
    cells = [sum((x, y) == cell for x, y in zip(a, b, strict=True))
             for cell in ((True, True), (True, False), (False, True), (False, False))]
    return newcombe_paired(*cells)
