"""One adaptation session with real models: load the parts, refuse untrusted tasks, adapt, store, report.

`adapt_node` and `world-gymnast adapt` both run this; they differ only in where frames come from.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.log import LOG_NAME, Progress, SessionLog
from world_gymnast_ros.adaptation.practice import Practice, VariedStart
from world_gymnast_ros.adaptation.record import RECORD_NAME, SessionRecord, write_record
from world_gymnast_ros.adaptation.rollout_filter import check_recovers
from world_gymnast_ros.adaptation.session import Learner, adapt
from world_gymnast_ros.adaptation.time_plan import TimePlan, recorded_rate
from world_gymnast_ros.adaptation.trust import TaskRelease, image_doubt, released_task, trust_of
from world_gymnast_ros.config import robot_limits
from world_gymnast_ros.data.read import read_episodes
from world_gymnast_ros.errors import NotTrusted
from world_gymnast_ros.loading.load import load_judges, load_policy, load_world_model
from world_gymnast_ros.loading.release import release_table
from world_gymnast_ros.report.session_report import write_report
from world_gymnast_ros.robot.camera import BRIDGE_CAMERA_XYZ_M
from world_gymnast_ros.store import Store, slug
from world_gymnast_ros.types import AdapterRef, Counts, Judge, Policy, Start, TrainablePolicy, WorldModel
from world_gymnast_ros.updates.behaviour_cloning import Imitation, cloning_loss
from world_gymnast_ros.updates.memory_plan import lora_settings, memory_plan
from world_gymnast_ros.updates.policy_gradient import LoraConfig, LoraLearner, Regulariser, trainable
from world_gymnast_ros.updates.practice_starts import along_starts, replay_starts
from world_gymnast_ros.updates.variations import edited_starts, varied_starts

REPORT_NAME = "report.html"
DECODED_PX = 256
"""Size of recorded frames that a session is held to; every policy resizes them as it likes."""


@dataclass(frozen=True)
class Parts:
    """Loaded models, the paired-replay table of the world model with its judges by task, and a learner.

    `learner(parent)` makes one for `policy` that starts from an adapter (None: the base).
    """

    policy: Policy
    world_model: WorldModel
    judge: Judge
    release: Mapping[str, TaskRelease]
    learner: Callable[[AdapterRef | None], Learner]


@dataclass(frozen=True)
class SessionResult(SessionRecord):
    """What a session came to, and where its page and its log lie; beside them is the record itself."""

    report_path: Path = Path()
    log_path: Path = Path()


def lora_config(config: AdaptNodeConfig, policy: Policy) -> LoraConfig:
    """Return the learner's part of the settings; what they leave open is as a policy of this size wants it."""
    return lora_settings(config, bool(getattr(policy, "full_size", False)))


def real_successes(policy: TrainablePolicy, config: AdaptNodeConfig) -> Regulariser | None:
    """Return the loss that holds a session to what succeeded among the recordings that are in `config.episodes` now.

    None where no folder is named or nothing in it succeeded. Raises EpisodeError where it holds no episode at all.
    """
    if not config.episodes:
        return None
    found = read_episodes([Path(config.episodes)], DECODED_PX, Path(config.directory) / "decoded",
                          camera=config.episodes_camera)
    episodes, left_out = found.marked, found.left_out
    loss = cloning_loss(policy, episodes, Imitation())
    if loss is None:
        return None
    told = f"{sum(bool(e.success) for e in episodes)} real successes of {config.episodes}"
    if left_out:
        told += f" ({len(left_out)} recordings left out, such as {left_out[0]})"
    return Regulariser(lambda rng: config.cloning_coefficient * loss(rng), told)


def learner_of(policy: Policy, config: AdaptNodeConfig) -> Callable[[AdapterRef | None], Learner]:
    """Return what makes a learner with these settings, from an adapter (None: the base)."""
    def learner(parent: AdapterRef | None) -> LoraLearner:
        regulariser = real_successes(trainable(policy), config)
        return LoraLearner(policy, lora_config(config, policy), parent, regulariser)
    return learner


def load_parts(config: AdaptNodeConfig, tell: Callable[[str], None] = lambda _: None) -> Parts:
    """Tell the memory plan, then load policy, world model and judges. Raises BadCheckpoint, or BadConfig: before
    anything is loaded, where the plan does not fit."""
    c = config
    plan = memory_plan(c)
    if not plan.unread:  # else the loader says first what is wrong
        tell(plan.text)
    if c.check_memory:
        plan.check()
    policy = trainable(load_policy(c.policy, c.device, c.dtype, c.four_bit))
    limits, camera = robot_limits(c.arm_params), c.camera()
    world_model = load_world_model(c.world_model, c.judges, c.device, c.dtype, limits, c.world_model_timeout_s, camera)
    check_recovers(world_model, c.trust)
    judge = load_judges(c.judges, c.device, c.dtype, limits, camera)
    if camera is not None:
        away_m = np.linalg.norm(camera.pose()[:3, 3] - BRIDGE_CAMERA_XYZ_M)
        tell(f"judges and world model take the camera from {c.camera_calibration}, {1000 * away_m:.0f} mm from where "
             "the shipped ones were measured; far from there it is not known how well they rank rollouts")
    if plan.unread:
        tell(plan.text)
    return Parts(policy, world_model, judge, release_table(c.world_model, c.judges), learner_of(policy, c))


FORMS = 4
"""So many sentences of a task are named where it is refused."""


def check_released(release: Mapping[str, TaskRelease], instructions: Sequence[str], min_auc: float,
                   max_false_success: float = 1.0) -> None:
    """Refuse tasks that this world model with this judge was not shown to rank well. Raises NotTrusted.

    Training where imagination ranks badly, or takes failures for successes, makes the policy worse while imagined
    success rises. `max_false_success` bounds the upper end of that share's 95 % interval. `min_auc` 0 accepts any.
    """
    for instruction in instructions if min_auc > 0 else ():
        task = released_task(instruction, release)
        row = release.get(task)
        if row is None or not row.auc >= min_auc:
            found = "unknown" if row is None else f"{row.auc:.2f}"
            raise NotTrusted(f"'{instruction}' ({task}): paired-replay AUC is {found}, at least {min_auc:.2f} is "
                             f"required; measured with these models: {_measured(release)}. Say it in one of these "
                             "forms, name judges with which it is offered (`world-gymnast doctor`), or record and mark "
                             "episodes of it and measure them with `world-gymnast bench replay --episodes DIR --task "
                             "NAME --write`")
        false = row.false_success_high
        if not false <= max_false_success:
            raise NotTrusted(f"'{instruction}' ({task}): up to {false:.0%} of failures pass for successes in paired "
                             f"replay, at most {max_false_success:.0%} is allowed; calibrate the judge "
                             "(`world-gymnast judge calibrate`), or raise max_false_success")


def _measured(release: Mapping[str, TaskRelease]) -> str:
    """Return the tasks of a release table, with the forms of their sentences: the first few, where there are many."""
    def forms(name: str, row: TaskRelease) -> str:
        of = row.instructions or (name,)
        more = f" and {len(of) - FORMS} more" if len(of) > FORMS else ""
        return f"{', '.join(repr(form) for form in of[:FORMS])}{more}"
    return "; ".join(f"{name} {row.auc:.2f} ({forms(name, row)})" for name, row in release.items()) or "nothing"


def session_config(config: AdaptNodeConfig, instructions: Sequence[str], release: Mapping[str, TaskRelease]
                   ) -> AdaptNodeConfig:
    """Return the config with the horizon of the longest measured task, where that is asked for."""
    rows = [release[task] for task in (released_task(i, release) for i in instructions) if task in release]
    steps = max((row.horizon_steps for row in rows), default=0)
    return replace(config, horizon_steps=steps) if config.horizon_from_task and steps else config


def practice_for(parts: Parts, starts: Sequence[Start], config: AdaptNodeConfig, seed: int,
                 cancelled: Callable[[], bool] = lambda: False) -> Practice:
    """Return where training begins beside the captured frames, as the config names it. EpisodeError, BadConfig or
    BadFrame names what is missing."""
    instructions = list(dict.fromkeys(s.instruction for s in starts))
    along = along_starts([Path(config.starts)], instructions, parts.judge,
                         Path(config.directory) / "decoded") if config.starts else None
    begun = along.starts if along else ()
    replay = replay_starts(config.replay, config.policy) if config.replay else ()
    notes = [along.summary] if along else []
    notes += [f"{len(replay)} frames of earlier scenes ({config.replay})"] if replay else []
    varied: tuple[VariedStart, ...] = ()
    if config.varied:
        made = varied_starts(parts.judge, starts, config, seed)
        varied, notes = made.made, [*notes, made.summary]
    if not (config.editor and config.edits):
        return Practice(begun, varied, replay, tuple(notes))
    edited, said = edited_starts(parts.judge, starts, config, seed, cancelled)
    return Practice(begun, varied, replay, (*notes, said), edited)


def time_notice(directory: Path, config: AdaptNodeConfig, instructions: int) -> Progress:
    """Return what to say of a session's time before it starts, by an earlier one of the same models and settings."""
    told = Progress("planning", 0, config.max_updates, 0.0, 0.0, config.budget_s, 0)
    known = recorded_rate(directory, config)
    if known is None:
        return replace(told, notice="no earlier session recorded how fast these models are here; the first group will")
    plan = TimePlan(config, instructions, known[0])
    return replace(told, notice=f"{plan.words} (as session {known[1]} ran)", warns=plan.short)


def run_session(parts: Parts, starts: Sequence[Start], config: AdaptNodeConfig, seed: int, created_ns: int, *,
                practice: Practice | None = None, parent: AdapterRef | None = None, dry_run: bool = False,
                progress: Callable[[Progress], None] = lambda _: None,
                cancelled: Callable[[], bool] = lambda: False,
                now_s: Callable[[], float] = time.monotonic, notes: Sequence[str] = ()) -> SessionResult:
    """Adapt from `parent` (None: the base) to the starts; store what is promoted; write log and report.

    `practice`: where training begins beside the starts (None: what the config names, see `practice_for`). `notes`: what
    log and report shall say of where instructions and starts came from.
    The policy of `parts` is as `parent` left it afterwards. Raises NotTrusted, BadBudget, BadInstruction and whatever
    a part raises; then the log says where it stopped.
    """
    instructions = list(dict.fromkeys(s.instruction for s in starts))
    check_released(parts.release, instructions, config.min_release_auc, config.max_false_success)
    config = session_config(config, instructions, parts.release)
    root = Path(config.directory).resolve()  # the policy node may run elsewhere
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(created_ns / 1e9))
    folder = _unused(root / "sessions" / f"{stamp}-{slug(instructions[0])}")
    store = Store(root / "adapters")
    progress(time_notice(root, config, len(instructions)))

    def save(trained: Learner, scores: dict[str, Any]) -> AdapterRef:
        return store.put(instructions[0], trained.save, parent=parent.name if parent else "base",
                         base_policy=parts.policy.name, scores={**scores, "session": str(folder)},
                         created_ns=created_ns)

    tasks = list(dict.fromkeys(released_task(i, parts.release) for i in instructions))
    images = [start.captured.rgb for start in {id(start.frame): start for start in starts}.values()]
    doubts = [doubt for task in tasks if (doubt := image_doubt(parts.release.get(task), images))]
    parts.policy.load_adapter(parent)
    practice = practice_for(parts, starts, config, seed, cancelled) if practice is None else practice
    log_path = folder / LOG_NAME
    report = adapt(parts.policy, parts.world_model, parts.judge, parts.learner(parent), starts, config, seed, now_s,
                   progress, cancelled, log_path=log_path, save=None if dry_run else save,
                   withheld=doubts[0] if doubts and config.min_release_auc > 0 else "",
                   practice=replace(practice, notes=(*notes, *practice.notes)))
    trusts = tuple(trust_of(task, parts.release.get(task), parts.world_model.name, images, report.judged)
                   for task in tasks)
    if isinstance(parts.judge, Counts) and parts.judge.spent:
        SessionLog(log_path, lambda: report.seconds["total"]).write("judges", spent=parts.judge.spent)
    result = SessionResult(report, trusts, parts.release, folder / REPORT_NAME, log_path)
    write_record(folder / RECORD_NAME, result)
    write_report(result.report_path, result)
    return result


def _unused(path: Path) -> Path:
    """Return `path`, or with a number behind it where two sessions began in the same second."""
    candidate, n = path, 1
    while candidate.exists():
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate
