"""`world-gymnast bench sessions`: what several instructions, varied starts, replay and starts along the way change.

Each case is one scene with sessions that differ in one thing, and the tests that each is put to: true episodes on the
twin with the same seeds before and after and in every session (pairs). Rows are appended as they are measured, and what
is there is not measured again.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from world_gymnast_ros import seeds as seed_ranges
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.log import Progress
from world_gymnast_ros.adaptation.practice import Practice
from world_gymnast_ros.benchmark import rows as rows_of
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.evaluation.environment import episodes as real_episodes
from world_gymnast_ros.evaluation.environment import outcomes
from world_gymnast_ros.statistics import ab_row, newcombe_paired, wilson
from world_gymnast_ros.twin.environment import TwinEnvironment
from world_gymnast_ros.twin.observer import CAPTURE_HEIGHT, CAPTURE_WIDTH
from world_gymnast_ros.twin.play import record_episode
from world_gymnast_ros.twin.scene import ObjectSpec, Scene, load_scene
from world_gymnast_ros.types import Start
from world_gymnast_ros.updates.adaptation import Parts, learner_of, run_session
from world_gymnast_ros.updates.practice_starts import WITH_POLICY, Along, along_episodes, replay_starts
from world_gymnast_ros.updates.variations import varied_starts

MISSES = 8
"""Real episodes of the base whose frames a session with `near misses` begins at."""
TARGET_KL, VARIED = 0.02, 24
DISTRACTORS = (ObjectSpec("cyan", "ball", (0.37, 0.10)), ObjectSpec("green", "bottle", (0.24, -0.08), 0.03),
               ObjectSpec("white", "bar", (0.36, 0.02), 0.03))
"""Stand beside the task's objects in a test of distractors; no cut-out that ships shows one of them."""
EARLIER = {"train_oak": "reach the red block", "train_grey": "reach the green block",
           "train_green": "reach the blue cylinder"}
"""Scenes of the policy's own demonstrations, with what it does there almost always."""


@dataclass(frozen=True)
class Case:
    """A scene with the sessions that are compared in it. `tests`: instructions of the scene that are truly run;
    `distractors`: the first of them also with objects that nothing showed; `earlier`: also in EARLIER scenes."""

    name: str
    scene: str
    tests: tuple[str, ...]
    sessions: tuple[str, ...]
    distractors: bool = False
    earlier: bool = False


FOUR = ("reach the purple block", "reach the orange block", "push the purple block left", "push the orange block right")
REACH = ("reach the red block",)
NEVER = ("captured alone", "varied starts", "near misses", "one demonstration")
"""Sessions of scenes in which the base never succeeds."""
ALONE = "alone: "
"""Begins the name of a session that trains one instruction of a case, the words behind it."""
CASES = (
    Case("evening", "novel_evening", FOUR, ("one instruction", "replay", "replay, KL", "varied starts"),
         distractors=True, earlier=True),
    Case("four at once", "novel_evening", FOUR, ("four instructions", *(ALONE + words for words in FOUR))),
    Case("dark red", "novel_dark_red", REACH, ("one instruction", "replay", "replay, KL"), earlier=True),
    Case("dark table", "lab_dark_table", REACH, NEVER),
    Case("maroon cloth", "lab_maroon_cloth", REACH, NEVER),
)


@dataclass(frozen=True)
class Row:
    """One session: true outcomes `before` and `after` it by test, what it came to, and its cost.

    A session that kept the base is not run again: `after` equals `before`. `cpu_s`: processor seconds of the session,
    0 where they were not taken."""

    case: str
    session: str
    seed: int
    before: dict[str, list[bool]]
    after: dict[str, list[bool]]
    outcome: str
    message: str
    seconds: float
    updates: int
    notes: dict[str, float] = field(default_factory=dict)
    cpu_s: float = 0.0

    @property
    def key(self) -> tuple[str, str, int]:
        return self.case, self.session, self.seed


def read_rows(path: Path) -> list[Row]:
    """Read what was measured into a folder so far, or into a file of rows."""
    return rows_of.read_rows(path, Row)


def tests_of(case: Case) -> dict[str, tuple[Scene, str]]:
    """Return the tests of a case by name: a scene and an instruction each."""
    scene = load_scene(case.scene)
    tests = {instruction: (scene, instruction) for instruction in case.tests}
    if case.distractors:
        instruction = case.tests[0]
        tests[f"{instruction}, distractors"] = (replace(scene, distractors=DISTRACTORS), instruction)
    if case.earlier:
        tests |= {f"earlier: {name}": (load_scene(name), instruction) for name, instruction in EARLIER.items()}
    return tests


def near_misses(parts: Parts, scene: Scene, instruction: str, seed: int) -> Along:
    """Return the frames of real episodes of the base, explored a little, as starts along the way."""
    environment = TwinEnvironment(scene, (CAPTURE_HEIGHT, CAPTURE_WIDTH))
    try:
        found = [*real_episodes(environment, parts.policy, None, seed_ranges.real(seed, 1)[:MISSES], instruction, 1.0)]
    finally:
        environment.close()
    return along_episodes(found, [instruction], parts.judge, "real episodes of the base")


def demonstrated(parts: Parts, scene: Scene, instruction: str, seed: int) -> Along:
    """Return the frames of one scripted demonstration as starts along the way; its actions are not used."""
    asked = replace(scene, instructions=(instruction,))
    row = record_episode(asked, seed_ranges.demonstrations(seed, 1)[0], "demo", False,
                         (CAPTURE_HEIGHT, CAPTURE_WIDTH))
    success = row["success"]
    episode = Episode(row["frames"], row["deltas"], row["states"], instruction, "demonstration",
                      success=bool(success[-1]), done_step=int(success.argmax()) if success[-1] else None,
                      measured=row["measured"])
    return along_episodes([episode], [instruction], parts.judge, "a demonstration")


def practice_of(parts: Parts, session: str, scene: Scene, starts: Sequence[Start], config: AdaptNodeConfig, seed: int
                ) -> tuple[Practice, AdaptNodeConfig]:
    """Return what a session of that name trains on beside the captured frames, and its settings."""
    instruction = starts[0].instruction
    if session in ("replay", "replay, KL"):
        config = replace(config, target_kl=TARGET_KL) if session == "replay, KL" else config
        return Practice(replay=replay_starts(WITH_POLICY, config.policy)), config
    if session == "varied starts":
        config = replace(config, varied=VARIED)
        made = varied_starts(parts.judge, starts, config, seed)
        return Practice(varied=made.made, notes=(made.summary,)), config
    if session == "near misses":
        return _begun_at(near_misses(parts, scene, instruction, seed)), config
    if session == "one demonstration":
        return _begun_at(demonstrated(parts, scene, instruction, seed)), config
    return Practice(), config


def _begun_at(along: Along) -> Practice:
    return Practice(along=along.starts, notes=(along.summary,))


def measure(parts: Parts, case: Case, session: str, seed: int, episodes: int, captures: int, config: AdaptNodeConfig,
            known: Mapping[str, Sequence[bool]], progress: Callable[[Progress], None] = lambda _: None) -> Row:
    """Run one session and the tests of its case, with the base too where `known` lacks it."""
    scene = load_scene(case.scene)
    policy = parts.policy
    before = {name: list(known[name]) if name in known else truly(parts, None, *test, episodes)
              for name, test in tests_of(case).items()}
    asked = (case.tests if session == "four instructions" else (session.removeprefix(ALONE),)
             if session.startswith(ALONE) else case.tests[:1])
    environment = TwinEnvironment(scene)
    try:
        first = [environment.reset(s, asked[0]) for s in seed_ranges.captures(captures)]
    finally:
        environment.close()
    starts = [replace(s, instruction=instruction) for s in first for instruction in asked]
    policy.load_adapter(None)
    began, began_cpu = time.monotonic(), time.process_time()
    practice, config = practice_of(parts, session, scene, starts, config, seed)
    parts = replace(parts, learner=learner_of(policy, config))
    report = run_session(parts, starts, config, seed, time.time_ns(), practice=practice, progress=progress).report
    seconds, cpu_s = time.monotonic() - began, time.process_time() - began_cpu
    ref = report.adapter
    try:
        after = {name: before[name] if ref is None else truly(parts, ref, *test, episodes)
                 for name, test in tests_of(case).items()}
    finally:
        policy.load_adapter(None)
    last = report.curve[-1].stats if report.curve else {}
    return Row(case.name, session, seed, before, after, report.outcome, report.message, round(seconds, 1),
               len(report.curve), {k: round(v, 5) for k, v in last.items() if k in ("kl", "kl_coefficient")},
               round(cpu_s, 1))


def truly(parts: Parts, ref: object, scene: Scene, instruction: str, episodes: int) -> list[bool]:
    """Return the true outcomes of the policy with adapter `ref` (None: the base) in a scene."""
    environment = TwinEnvironment(scene)
    try:
        return outcomes(environment, parts.policy, ref, seed_ranges.evaluation(episodes), instruction)  # type: ignore[arg-type]
    finally:
        environment.close()


def bench(parts: Parts, cases: Sequence[Case], seed: int, episodes: int, captures: int, config: AdaptNodeConfig,
          folder: Path, progress: Callable[[str, Progress | None], None]) -> list[Row]:
    """Measure what is not in `folder` yet; return all rows."""
    for case in cases:
        for session in case.sessions:
            rows = read_rows(folder)
            if (case.name, session, seed) in {r.key for r in rows}:
                continue
            label = f"{case.name}, {session}"
            progress(label, None)
            known = next((r.before for r in rows if r.case == case.name
                          and all(len(v) == episodes for v in r.before.values())), {})
            row = measure(parts, case, session, seed, episodes, captures, config, known,
                          lambda p, label=label: progress(label, p))  # type: ignore[misc]
            rows_of.append_row(folder, row)
    return read_rows(folder)


def markdown(rows: Sequence[Row]) -> str:
    """Format the rows as one table: a line for each session and test, with the paired difference of after and before,
    and of each session to the first of its case."""
    lines = ["| scene | session | test | base | after | gain | against the first session | outcome | s | processor s |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    firsts: dict[tuple[str, int], Row] = {}
    for row in rows:
        first = firsts.setdefault((row.case, row.seed), row)
        for name, before in row.before.items():
            after = row.after[name]
            gain = ab_row("", before, after).difference
            against = "" if row is first or name not in first.after else _points(first.after[name], after)
            lines.append(f"| {row.case} | {row.session} | {name} | {sum(before)}/{len(before)} "
                         f"| {wilson(sum(after), len(after))} | {100 * gain.value:+.0f} [{100 * gain.low:+.0f}, "
                         f"{100 * gain.high:+.0f}] | {against} | {row.outcome} | {row.seconds:.0f} "
                         f"| {f'{row.cpu_s:.0f}' if row.cpu_s else ''} |")
    return "\n".join(lines)


def _points(a: Sequence[bool], b: Sequence[bool]) -> str:
    """Return the paired difference of outcomes `b` above `a`, in points."""
    cells = [sum((x, y) == cell for x, y in zip(a, b, strict=True))
             for cell in ((True, True), (True, False), (False, True), (False, False))]
    d = newcombe_paired(*cells)
    return f"{100 * d.value:+.0f} [{100 * d.low:+.0f}, {100 * d.high:+.0f}]"
