"""One world-model update from start to verdict: fine-tune, replay held-out episodes in old and new, decide, store.

`world-gymnast train world-model --episodes` and every round of `world-gymnast iterate` run this.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.read import read_array_folders
from world_gymnast_ros.decision import Decision, Rule
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.evaluation.replay import Replays
from world_gymnast_ros.objects import ObjectDynamics
from world_gymnast_ros.report.rollout_video import write_replays
from world_gymnast_ros.types import AdapterRef
from world_gymnast_ros.updates.world_model import (
    SHARES,
    Margins,
    UpdateConfig,
    decide,
    fine_tune,
    mixed,
    parent_name,
    store_version,
)

REPLAY, HELD_OUT = "replay", "held_out"
"""Folder of earlier data beside a checkpoint, and within it what is kept to check that nothing got worse."""
ALONE = (0.25,)
"""Of an update without earlier data to mix in, the share that is gone of the way: what nothing holds back forgets."""

UNCHECKED = "not checked: earlier scenes, for there is no earlier data of them; use this version in the new scene alone"

Figures = Callable[[Path, Sequence[Episode]], Replays]
"""Replays episodes in the world model of a folder."""


@dataclass(frozen=True)
class Data:
    """`new` is trained on, `held` decides; `replay` is mixed in, `old` must not get worse; `hashes` of the new data."""

    new: Sequence[Episode]
    held: Sequence[Episode]
    replay: Sequence[Episode]
    old: Sequence[Episode]
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class Updated:
    """The stored version, what was decided about it and on which figures: [before, after] on `new` and `old`."""

    version: AdapterRef
    decision: Decision
    figures: dict[str, Any]


def update(parent: Path, data: Data, config: UpdateConfig, margins: Margins, figures: Figures, run: Path, store: Path,
           name: str, created_ns: int, objects: ObjectDynamics | None = None, old_objects: ObjectDynamics | None = None
           ) -> Updated:
    """Update the world model `parent` in the folder `run` (a stopped one goes on), write `replays.png` there, and put
    the version into `store` with its decision, promoted or not.

    What is better on the new scene and worse on old ones is tried again nearer to `parent` (SHARES); the version is the
    first that may follow, else the last that was tried. `objects` knows the camera of the new episodes, `old_objects`
    that of `replay` (None: the same). Without `replay` only ALONE of the way is gone; without `old` nobody knows what
    it costs elsewhere, and the decision says so.
    """
    trained = fine_tune(parent, data.new, data.replay, [], config, run, objects, old_objects)
    rules = [Rule(name, 0.0, 0.0, True, text) for missing, name, text in (
        (not data.replay, "earlier data", f"no earlier data to mix in: {ALONE[0]:.0%} of the way at most"),
        (not data.old, "earlier scenes", UNCHECKED)) if missing]
    for share in SHARES if data.replay else ALONE:
        candidate = trained if share == 1.0 else mixed(parent, trained, share, run / f"share-{share:g}")
        new = figures(parent, data.held), figures(candidate, data.held)
        old = (figures(parent, data.old), figures(candidate, data.old)) if data.old else None
        decision = decide(new, old, margins, config.seed)
        rules += [replace(rule, text=f"{share:.0%} of the update, {rule.text}") for rule in decision.rules]
        if decision.promote or not decision.better:
            break
    decision = replace(decision, rules=tuple(rules))
    write_replays(run / "replays.png", *new)
    found = {"new": [r.summary() for r in new], "old": [r.summary() for r in old or ()]}
    ref = store_version(store, candidate, name, parent_name(parent), found, data.hashes, decision, config, created_ns)
    return Updated(ref, decision, found)


def replay_folder(given: str | Path | None, world_model: Path) -> Path | None:
    """Return the folder of earlier data that an update of `world_model` mixes in; None where there is none.

    It is `given`, or `replay/` beside the checkpoint. Raises BadConfig where `given` holds no play data.
    """
    if given:
        return holds_play(Path(given), "--replay")
    beside = world_model / REPLAY
    return beside if any(beside.glob("*.npz")) else None


def check_folder(given: str | Path | None, replay: Path | None) -> Path | None:
    """Return the folder of earlier data in which nothing may get worse: `given`, or `held_out/` within `replay`."""
    if given:
        return holds_play(Path(given), "--old")
    within = None if replay is None else replay / HELD_OUT
    return within if within is not None and any(within.glob("*.npz")) else None


def holds_play(folder: Path, option: str) -> Path:
    """Return `folder`; BadConfig where it holds no play data."""
    if not any(folder.glob("*.npz")):
        raise BadConfig(f"{option} {folder} holds no play data (*.npz); make some with `world-gymnast twin play`, or "
                        "leave it out")
    return folder


def play_folder(folder: Path | None) -> list[Episode]:
    """Return all episodes of a folder of play data; none where there is no folder."""
    return [] if folder is None else read_array_folders([folder])
