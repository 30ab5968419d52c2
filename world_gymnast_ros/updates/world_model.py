"""Fine-tune a world model on what really happened, and decide whether the new version may follow the old one.

All weights are trained, for a few dozen steps, half on new episodes and the rest on a replay of earlier data; where
that costs old scenes too much, half or a quarter of the way there is tried, between the weights before and after. A run
is a folder; killed and started again it goes on from its last save and ends in the same weights. A version is stored
whatever is decided about it, with its parent, the hashes of its data and its figures; promotion is a line in its card.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from world_gymnast_ros.data.play_data import family_balance, seen_with
from world_gymnast_ros.errors import BadCheckpoint, BadConfig, EpisodeError
from world_gymnast_ros.evaluation.replay import RealEpisode, Replays
from world_gymnast_ros.models.checkpoint import CONFIG, WEIGHTS, read_tensors, save_tensors, sha256_file, write_text
from world_gymnast_ros.models.world_models.action_dit_world import load_network, seen_by
from world_gymnast_ros.objects import ObjectDynamics
from world_gymnast_ros.statistics import Interval, newcombe_paired, paired_bootstrap
from world_gymnast_ros.store import WORLD_MODEL, Store
from world_gymnast_ros.training.world_model import FAMILY_WEIGHTS, STATE, TRAINING, TrainConfig, Trainer
from world_gymnast_ros.types import AdapterRef

INPUTS = "inputs.json"
SHARES = (1.0, 0.5, 0.25)
"""Of the way from the weights before an update to those after it, tried in turn."""
MIN_HELD_OUT = 4
"""Fewer held-out episodes of the new scene decide nothing."""


@dataclass(frozen=True)
class UpdateConfig:
    """One update. `replay_share`: share of clips drawn from earlier data. `own_dreams`: episodes dreamed anew, twice a
    run, whose dreams serve as previous frames in half of each batch. Rates are about a tenth of training's."""

    steps: int = 40
    batch: int = 8
    replay_share: float = 0.5
    muon_lr: float = 2e-4
    adamw_lr: float = 1.3e-4
    own_dreams: int = 32
    save_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 2 or self.batch < 2 or self.save_every < 1:
            raise BadConfig(f"steps {self.steps}, batch {self.batch}, save_every {self.save_every}: give at least 2, 2 "
                            "and 1")
        if not 0.0 <= self.replay_share < 1.0:
            raise BadConfig(f"replay_share {self.replay_share} is outside 0..1; 0.5 keeps earlier scenes")


def split(episodes: Sequence[RealEpisode], held_out_share: float, seed: int
          ) -> tuple[list[RealEpisode], list[RealEpisode]]:
    """Split into (training, held out), each outcome by itself; EpisodeError where a side would be empty."""
    rng, held = np.random.default_rng((seed, 5)), set()
    for outcome in (True, False):
        rows = [i for i, e in enumerate(episodes) if e.success == outcome]
        held.update(rng.permutation(rows)[:round(len(rows) * held_out_share)].tolist() if rows else [])
    if not held or len(held) == len(episodes):
        raise EpisodeError(f"{len(episodes)} episodes cannot be split with a held-out share of {held_out_share}; "
                           "record more, or name held-out episodes of their own")
    return ([e for i, e in enumerate(episodes) if i not in held], [e for i, e in enumerate(episodes) if i in held])


def fine_tune(parent: Path, new: Sequence[RealEpisode], replay: Sequence[RealEpisode], held_out: Sequence[RealEpisode],
              config: UpdateConfig, out: Path, objects: ObjectDynamics | None = None,
              replay_objects: ObjectDynamics | None = None) -> Path:
    """Train on from the checkpoint `parent` in the run folder `out`, which then is a checkpoint; returns it.

    `objects` finds objects in the new episodes' captured frames and knows their camera; `replay_objects` (None: the
    same) does so for `replay`, which was recorded before a camera was mounted anew.

    A run that was stopped goes on; one that is complete is left as it is. BadCheckpoint where `out` holds a run of
    other data, another parent or other settings.
    """
    network, sha256 = load_network(parent)
    network.config = seen_by(network.config, objects)
    clips = [e.play if by is None else seen_with(e.play, by)
             for some, by in ((new, objects), (replay, replay_objects or objects)) for e in some]
    inputs = json.dumps({"parent_sha256": sha256, "config": asdict(config), "new": [e.play.name for e in new],
                         "pictures": _fingerprint(clips)}, sort_keys=True)
    note = out / TRAINING / INPUTS
    if note.is_file() and note.read_text() != inputs:
        raise BadCheckpoint(f"{out} holds an update of other episodes, settings or another parent; name another folder")
    shares = np.concatenate([np.full(len(new), 1.0 / len(new)) * (1.0 - config.replay_share if replay else 1.0),
                             _normal(family_balance([e.play for e in replay], FAMILY_WEIGHTS)) * config.replay_share
                             if replay else np.empty(0)])
    training = TrainConfig(steps=config.steps, batch=config.batch, muon_lr=config.muon_lr, adamw_lr=config.adamw_lr,
                           warmup_steps=max(1, config.steps // 10), ema=0.97, rollouts_from=0.0,
                           rollout_every=max(1, config.steps // 2), rollout_count=config.own_dreams,
                           report_every_s=1e9, save_every=config.save_every, seed=config.seed)
    trainer = Trainer(network, clips, [e.play for e in held_out], training, out, shares)
    if (out / TRAINING / STATE).is_file():
        trainer.resume()
        if trainer.done_share >= 1.0 and (out / WEIGHTS).is_file():
            return out
    write_text(note, inputs)
    trainer.run()
    return out


def mixed(parent: Path, trained: Path, share: float, out: Path) -> Path:
    """Write the checkpoint that lies `share` of the way from `parent` to `trained` into the folder `out`; return it.

    Between weights before and after fine-tuning most of what was learned is kept and most of what was forgotten is not
    (WiSE-FT, arXiv:2109.01903).
    """
    before, after = read_tensors(parent / WEIGHTS), read_tensors(trained / WEIGHTS)
    save_tensors({k: torch.lerp(before[k].float(), w.float(), share).to(w.dtype) if w.is_floating_point() else w
                  for k, w in after.items()}, out / WEIGHTS)
    write_text(out / CONFIG, (trained / CONFIG).read_text())
    return out


def _normal(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def _fingerprint(clips: Sequence[Any]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for clip in clips:
        digest.update(np.ascontiguousarray(clip.frames).data)
        digest.update(np.ascontiguousarray(clip.deltas).data)
        if clip.objects is not None:  # as a locator found them: with another it is another run
            digest.update(np.ascontiguousarray(clip.objects.path_m).data)
        if clip.drawn_for is not None:  # so it is for another camera
            digest.update(clip.drawn_for.data)
    return digest.hexdigest()


# ---- the release check -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Margins:
    """What a version must and may do. `false_success`: how much more of the failures it may take for successes, new and
    old scenes alike; `structural`: how much worse, as a share, the image may become on old scenes; `object_mm`: how
    much further off objects may be; `agreement`: how many fewer outcomes may agree on old scenes."""

    false_success: float = 0.05
    structural: float = 0.05
    object_mm: float = 3.0
    probe_mm: float = 40.0
    agreement: float = 0.05


@dataclass(frozen=True)
class Decision:
    """`promote`, and one line per rule: what was asked, what was found, whether it holds. `better`: on the new scene,
    whatever it costs elsewhere."""

    promote: bool
    lines: tuple[str, ...]
    better: bool = False


def false_success_change(before: Replays, after: Replays) -> Interval | None:
    """Return the paired change of the false success rate with its interval; None without a failure."""
    failed = ~before.success
    if not failed.any():
        return None
    a, b = before.claimed[failed], after.claimed[failed]
    return newcombe_paired(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))


def decide(new: tuple[Replays, Replays], old: tuple[Replays, Replays], margins: Margins, seed: int) -> Decision:
    """Decide from (before, after) on held-out episodes of the new scene, and on episodes of old scenes.

    Better: on the new scene the false success rate fell surely (95 %, paired), or the image error did while false
    successes did not rise by more than the margin. Not worse: no other figure fell by more than its margin (point
    estimate).
    """
    if len(new[0].success) < MIN_HELD_OUT:
        return Decision(False, (f"FAILS: {len(new[0].success)} held-out episodes of the new scene, at least "
                                f"{MIN_HELD_OUT} are needed to compare",))
    lines: list[str] = []

    def rule(holds: bool, text: str) -> bool:
        lines.append(f"{'holds' if holds else 'FAILS'}: {text}")
        return holds

    fewer = false_success_change(*new)
    image = paired_bootstrap(new[1].structural - new[0].structural, seed=seed)
    surely_fewer = fewer is not None and fewer.high < 0
    better = rule(surely_fewer or image.high < 0,
                  "new scene better: false successes change by "
                  f"{'unknown (no failures)' if fewer is None else _points(fewer)}, structural error by {image}; one "
                  "of them must fall with its whole 95 % interval")
    good = rule(fewer is None or fewer.value <= margins.false_success,
                f"new scene, false successes change by {'unknown' if fewer is None else _points(fewer)}; at most "
                f"{100 * margins.false_success:+.0f} points")
    known = np.isfinite(new[0].object_mm) & np.isfinite(new[1].object_mm)
    blind = known.sum() >= 2 and float(new[0].object_true_mm[known].mean()) > margins.probe_mm
    if blind:
        lines.append(f"unknown: where objects are in the dream; the probe is {new[0].object_true_mm[known].mean():.0f} "
                     f"mm off on the true pictures, more than {margins.probe_mm:g}")
    elif known.sum() >= 2:
        change = paired_bootstrap((new[1].object_mm - new[0].object_mm)[known], seed=seed)
        good &= rule(change.value <= margins.object_mm, f"new scene, objects in the dream are off by {change} mm more; "
                     f"at most {margins.object_mm:g} mm")
    if len(old[0].success) >= MIN_HELD_OUT:
        change = paired_bootstrap(old[1].structural - old[0].structural, seed=seed)
        limit = margins.structural * float(old[0].structural.mean())
        good &= rule(change.value <= limit, f"old scenes, structural error changes by {change}; at most {limit:+.4f}")
        more = false_success_change(*old)
        if more is not None:
            good &= rule(more.value <= margins.false_success, f"old scenes, false successes change by {_points(more)}; "
                         f"at most {100 * margins.false_success:+.0f} points")
        agree = [float((r.claimed == r.success).mean()) for r in old]
        good &= rule(agree[1] >= agree[0] - margins.agreement, f"old scenes, outcomes agree in {agree[1]:.1%} of "
                     f"episodes, were {agree[0]:.1%}; at most {100 * margins.agreement:.0f} points fewer")
    return Decision(better and good, tuple(lines), better)


def _points(change: Interval) -> str:
    return f"{100 * change.value:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def store_version(root: Path, run: Path, name: str, parent: str, figures: Mapping[str, Any], hashes: Mapping[str, str],
                  decision: Decision, config: UpdateConfig, created_ns: int) -> AdapterRef:
    """Put the run's checkpoint into the store `root` (world_models/) with its card."""
    return put_version(root, run, name, parent, {"decision": decision.lines, "promoted": decision.promote,
                       "figures": figures, "data_sha256": dict(hashes), "settings": asdict(config)}, created_ns)


def put_version(root: Path, run: Path, name: str, parent: str, scores: dict[str, Any], created_ns: int,
                kind: Any = WORLD_MODEL) -> AdapterRef:
    """Copy weights and settings of `run` into a store of versions."""
    def write(directory: Path) -> None:
        for part in (WEIGHTS, CONFIG):
            (directory / part).write_bytes((run / part).read_bytes())
    return Store(root, kind).put(name, write, parent=parent, base_policy="", scores=scores, created_ns=created_ns)


def parent_name(checkpoint: Path) -> str:
    """Return what a version's card calls its parent: name and first digits of the weights' hash."""
    digest = sha256_file(checkpoint / WEIGHTS)[:8]
    return checkpoint.name if checkpoint.name.endswith(digest) else f"{checkpoint.name}-{digest}"
