"""One world-model update from start to verdict: fine-tune, replay held-out episodes in old and new, decide, store.

`world-gymnast train world-model --episodes` and every round of `world-gymnast iterate` run this.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.decision import Decision, Rule
from world_gymnast_ros.evaluation.replay import Replays
from world_gymnast_ros.objects import ObjectDynamics
from world_gymnast_ros.report.rollout_video import write_replays
from world_gymnast_ros.twin.play import make_file
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

REPLAY_SEED, OLD_SEED = 91_000, 92_000
FAMILIES = ("reach", "push")

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
    """Update the world model `parent` in the folder `run` (a stopped one goes on), write `dreams.png` there, and put
    the version into `store` with its decision, promoted or not.

    What is better on the new scene and worse on old ones is tried again nearer to `parent` (SHARES); the version is the
    first that may follow, else the last that was tried. `objects` knows the camera of the new episodes, `old_objects`
    that of `replay` (None: the same).
    """
    trained = fine_tune(parent, data.new, data.replay, [], config, run, objects, old_objects)
    rules: list[Rule] = []
    for share in SHARES:
        candidate = trained if share == 1.0 else mixed(parent, trained, share, run / f"share-{share:g}")
        new, old = ((figures(parent, some), figures(candidate, some)) for some in (data.held, data.old))
        decision = decide(new, old, margins, config.seed)
        rules += [replace(rule, text=f"{share:.0%} of the update, {rule.text}") for rule in decision.rules]
        if decision.promote or not decision.better:
            break
    decision = replace(decision, rules=tuple(rules))
    write_replays(run / "dreams.png", *new)
    found = {"new": [r.summary() for r in new], "old": [r.summary() for r in old]}
    ref = store_version(store, candidate, name, parent_name(parent), found, data.hashes, decision, config, created_ns)
    return Updated(ref, decision, found)


def fresh_play(folder: Path, episodes: int, first_seed: int, say: Callable[[str], None]) -> Path:
    """Make play in scenes of random looks, one file per family, where the folder has none yet; return it.

    Stands for the play that the shipped models were trained on, which is not in the repository.
    """
    for i, family in enumerate(FAMILIES):
        path = folder / f"{family}.npz"
        if not path.is_file():
            say(f"making {episodes} episodes of {family} play in {folder}")
            make_file(path, family, "wide_play", episodes, first_seed + i)
    return folder
