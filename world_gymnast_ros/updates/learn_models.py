"""The stages of a round in which world model and judges learn from real episodes, each promoted only if its release
check says so."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.read import read_episodes
from world_gymnast_ros.evaluation.replay import Replays
from world_gymnast_ros.files import sha256_file
from world_gymnast_ros.loading import load as build
from world_gymnast_ros.loading.release import write_release
from world_gymnast_ros.models.checkpoint import WEIGHTS
from world_gymnast_ros.objects import drawn_with
from world_gymnast_ros.updates.judges import JUDGE, SETTINGS, decide_judge, update_judge, update_pair
from world_gymnast_ros.updates.run import OFF, Round, drawn_by, judge_pair, objects_of
from world_gymnast_ros.updates.world_model import parent_name, put_version
from world_gymnast_ros.updates.world_model_run import Data, play_folder, update

Judged = tuple[Replays, Replays, Replays | None]
"""On held-out episodes, on all, and on old scenes (None: there are none)."""


def learn_camera(here: Round) -> dict[str, Any]:
    """Learn what needs no outcome, before anything is drawn by it: where the camera stands, from where the arm is
    seen. The geometric judge and the world model share it."""
    state = here.state
    if state.geometric == OFF:
        return {"geometric": OFF, "message": "there is no geometric judge"}
    start = build.checkpoint_dir(state.geometric, build.JUDGE)
    before = build.load_scene_judge(start)
    judge, message = before.with_camera(here.episodes("training", "calibration"))
    here.say(message)
    if judge is before:
        return {"geometric": state.geometric, "message": message}
    judge.save(here.folder / "setup")
    ref = put_version(here.where / "geometric_judges", here.folder / "setup",
                      f"{here.name}-setup-{here.run.environment.name}", parent_name(start), {"learned": message},
                      here.run.now_ns(), JUDGE)
    return {"geometric": str(ref.path), "message": message}


def learn_world_model(here: Round) -> dict[str, Any]:
    """Update, check, store; the version is used where it was promoted."""
    run, state = here.run, here.state
    found = read_episodes([here.where / "training", here.where / "calibration"])
    data = Data(found.marked, here.episodes("held_out"), play_folder(run.play("replay")), play_folder(run.play("old")),
                found.hashes)
    run.replays.clear()

    def figures(world_model: Path, some: Sequence[Episode]) -> Replays:
        if some is data.held:
            return run.replays.replay(str(world_model), drawn_by(state.geometric), state.judges, "held out", some)
        return run.replays.replay(str(world_model), drawn_by(run.seen_by("old")), state.judges, "old", some)
    result = update(Path(state.world_model), data, dataclasses.replace(run.config.update, seed=here.seed(2)),
                    run.config.margins, figures, here.folder / "world_model", here.where / "world_models",
                    f"{run.environment.name}-{here.name}", run.now_ns(),
                    objects_of(state.world_model, state.geometric),
                    objects_of(state.world_model, run.seen_by("replay")))
    promoted = result.decision.promote
    run.say(f"world model {result.version.name}: {'promoted' if promoted else 'not promoted'}")
    return {"version": result.version.name, "promoted": promoted, "decision": result.decision.lines,
            "figures": result.figures, "use": str(result.version.path) if promoted else state.world_model}


def learn_judges(here: Round) -> dict[str, Any]:
    """Teach the judges on true episodes and their rollouts in the present world model; check, store, choose.

    Each candidate must pass the check against the present judges; of those that do, the one that is right most often
    on held-out real episodes is used, of equals the first.
    """
    run, state = here.run, here.state
    candidates, lines = _candidates(here)
    held, old = here.episodes("held_out"), play_folder(run.play("old"))
    everything = here.episodes()

    def judged(judge: str | Path, geometric: str) -> Judged:
        pair, camera = judge_pair(judge, geometric), drawn_by(geometric)
        other = geometric if geometric == OFF else run.seen_by("old")
        usual = judge_pair(judge, other)
        return (run.replays.replay(state.world_model, camera, pair, "held out", held),
                run.replays.replay(state.world_model, camera, pair, "all", everything),
                run.replays.replay(state.world_model, drawn_by(other), usual, "old", old) if old else None)
    before = judged(state.judge, state.geometric)
    chosen, right = "", -1.0
    after: dict[str, Judged] = {}
    for name, pair in candidates.items():
        after[name] = some = judged(*pair)
        earlier = (before[2], some[2]) if before[2] is not None and some[2] is not None else None
        decision = decide_judge((before[0], some[0]), earlier, run.config.seed, (before[1], some[1]),
                                weights=name != SETTINGS)
        agree = float((some[0].predicted == some[0].success).mean())
        lines += [f"{name}: {line}" for line in decision.lines]
        if decision.promote and agree > right:
            chosen, right = name, agree
    figures = {name: {which: r.summary() for which, r in zip(("new", "all", "old"), some, strict=True) if r}
               for name, some in {"before": before, **after}.items()}
    stored = _stored(here, candidates, chosen, {"decision": lines, "figures": figures})
    use, geometric = stored.get(chosen, (state.judge, state.geometric))
    run.say(f"judges: {f'promoted, {chosen}' if chosen else 'not promoted'}")
    run.replays.clear()
    return {"version": Path(use).name, "promoted": bool(chosen), "chosen": chosen, "decision": lines,
            "figures": figures, "use": use, "geometric": geometric,
            "release": release(here.at(judge=use, geometric=geometric), after.get(chosen, before)[0])}


def _candidates(here: Round) -> tuple[dict[str, tuple[Path, str]], list[str]]:
    """Teach, and return (learned judge, geometric judge) by what was learned, and lines about it: the pair with new
    settings alone ("threshold" where the weights have seen earlier rounds), the pair with new weights in the learned
    judge, and, where no camera was learned, that judge alone."""
    run, state = here.run, here.state
    settings = dataclasses.replace(run.config.judge, seed=here.seed(3))
    world = build.load_world_model(state.world_model, state.judges)
    replay = run.play("replay")
    finder = objects_of(state.world_model, run.seen_by("replay"))
    taught = None if replay is None else update_judge(  # with nothing to mix in, weights would forget: left alone
        Path(state.judge), world, world if finder is None else drawn_with(world, finder), here.where / "training",
        here.where / "calibration", replay, here.folder / "judge", settings, run.play_labels)
    # Without the geometric judge nobody would know a camera that was learned.
    here_finder = objects_of(state.world_model, state.geometric)
    moved = here_finder is not None and here_finder.projection != build.load_objects().projection
    candidates: dict[str, tuple[Path, str]] = {} if moved or taught is None else {"alone": (taught, OFF)}
    lines = [] if replay else ["the learned judge keeps its weights: there is no earlier data to mix in"]
    if state.geometric == OFF:
        return candidates, lines
    fresh = sha256_file(Path(state.judge) / WEIGHTS) == sha256_file(Path(run.start().judge) / WEIGHTS)
    learned = {SETTINGS if fresh else "threshold": Path(state.judge), **({"weights": taught} if taught else {})}
    pairs, geometric, more = update_pair(build.checkpoint_dir(state.geometric, build.JUDGE), learned, world,
                                         here.episodes("training"), here.episodes("calibration"),
                                         here.folder / "pair", settings)
    return {**{name: (path, str(geometric)) for name, path in pairs.items()}, **candidates}, lines + more


def _stored(here: Round, candidates: dict[str, tuple[Path, str]], chosen: str, scores: dict[str, Any]
            ) -> dict[str, tuple[str, str]]:
    """Store every candidate with its figures; return where they lie."""
    now_ns, stored = here.run.now_ns(), {}
    for name, (path, geometric) in candidates.items():
        found = {**scores, "settings": asdict(here.run.config.judge), "promoted": name == chosen, "candidate": name}
        label = f"{here.name}-{name}-{here.run.environment.name}"
        ref = put_version(here.where / "judges", path, label, parent_name(Path(here.state.judge)), found, now_ns, JUDGE)
        if geometric != OFF:
            parent = parent_name(build.checkpoint_dir(here.state.geometric, build.JUDGE))
            geometric = str(put_version(here.where / "geometric_judges", Path(geometric), label, parent, found, now_ns,
                                        JUDGE).path)
        stored[name] = (str(ref.path), geometric)
    return stored


def release(here: Round, found: Replays) -> dict[str, Any]:
    """Write the release table of the state's models beside the world model, where that is a version of this run.

    Returns the table. It is measured on the held-out episodes of this scene, which also chose the judges.
    """
    run, state = here.run, here.state
    rows = {run.config.task or run.instruction: found.release_row(run.environment.name)}
    if Path(state.world_model).is_relative_to(run.out):
        write_release(state.world_model, state.judges, rows, run.config.seed)
    return rows
