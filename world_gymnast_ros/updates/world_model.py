"""Fine-tune a world model on what really happened, and decide whether the new version may follow the old one.

All weights are trained, for a few dozen steps, half on new episodes and the rest on a replay of earlier data; where
that costs old scenes too much, half or a quarter of the way there is tried, between the weights before and after. A run
is a folder; killed and started again it goes on from its last save and ends in the same weights. A version is stored
whatever is decided about it, with its parent, the hashes of its data and its figures; promotion is a line in its card.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from world_gymnast_ros.data.clip_sampler import task_balance
from world_gymnast_ros.data.episode import Episode, seen_with
from world_gymnast_ros.decision import Decision, Rules
from world_gymnast_ros.errors import BadCheckpoint, BadConfig, EpisodeError
from world_gymnast_ros.evaluation.replay import Replays
from world_gymnast_ros.files import sha256_file, write_text
from world_gymnast_ros.loading.load import holds
from world_gymnast_ros.models.checkpoint import CONFIG, WEIGHTS, read_tensors, save_tensors
from world_gymnast_ros.models.world_models.action_dit import ActionDiTConfig
from world_gymnast_ros.models.world_models.action_dit_world import load_network, seen_by
from world_gymnast_ros.models.world_models.moving_background import (
    FOLDER,
    load_moving_background,
    save_moving_background,
)
from world_gymnast_ros.models.world_models.worldgym import WorldGym
from world_gymnast_ros.models.world_models.worldgym_files import read_weights, weights_file
from world_gymnast_ros.models.world_models.worldgym_settings import WorldGymSettings
from world_gymnast_ros.objects import ObjectDynamics
from world_gymnast_ros.statistics import Interval, newcombe_paired, paired_bootstrap
from world_gymnast_ros.store import WORLD_MODEL, Store
from world_gymnast_ros.training.backgrounds import with_backgrounds
from world_gymnast_ros.training.run_state import STATE
from world_gymnast_ros.training.world_model import TASK_WEIGHTS, TRAINING, TrainConfig, Trainer
from world_gymnast_ros.training.worldgym import WorldGymTrainer, WorldGymTraining
from world_gymnast_ros.types import F64, AdapterRef

INPUTS = "inputs.json"
SHARES = (1.0, 0.5, 0.25)
"""Of the way from the weights before an update to those after it, tried in turn."""
MIN_HELD_OUT = 4
"""Fewer held-out episodes of the new scene decide nothing."""


@dataclass(frozen=True)
class UpdateConfig:
    """One update. `replay_share`: share of clips drawn from earlier data. `own_rollouts`: episodes imagined anew,
    twice a run; these frames serve as previous ones in half of each batch. Rates are about a tenth of training's.
    `lora_rank`, `lora_lr`: of a WorldGym model, of which only a LoRA is trained."""

    steps: int = 40
    batch: int = 8
    replay_share: float = 0.5
    muon_lr: float = 2e-4
    adamw_lr: float = 1.3e-4
    own_rollouts: int = 32
    save_every: int = 20
    lora_rank: int = 32
    lora_lr: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 2 or self.batch < 2 or self.save_every < 1:
            raise BadConfig(f"steps {self.steps}, batch {self.batch}, save_every {self.save_every}: give at least 2, 2 "
                            "and 1")
        if not 0.0 <= self.replay_share < 1.0:
            raise BadConfig(f"replay_share {self.replay_share} is outside 0..1; 0.5 keeps earlier scenes")


def split(episodes: Sequence[Episode], held_out_share: float, seed: int
          ) -> tuple[list[Episode], list[Episode]]:
    """Split into (training, held out), each outcome by itself; EpisodeError where a side would be empty."""
    rng = np.random.default_rng((seed, 5))
    held: set[int] = set()
    for outcome in (True, False):
        rows = [i for i, e in enumerate(episodes) if e.success == outcome]
        held.update(rng.permutation(rows)[:round(len(rows) * held_out_share)].tolist() if rows else [])
    if not held or len(held) == len(episodes):
        raise EpisodeError(f"{len(episodes)} episodes cannot be split with a held-out share of {held_out_share}; "
                           "record more, or name held-out episodes of their own")
    return ([e for i, e in enumerate(episodes) if i not in held], [e for i, e in enumerate(episodes) if i in held])


def fine_tune(parent: Path, new: Sequence[Episode], replay: Sequence[Episode], held_out: Sequence[Episode],
              config: UpdateConfig, out: Path, objects: ObjectDynamics | None = None,
              replay_objects: ObjectDynamics | None = None) -> Path:
    """Train on from the checkpoint `parent` in the run folder `out`, which then is a checkpoint; returns it.

    `objects` finds objects in the new episodes' captured frames and knows their camera (None: what moves behind the arm
    is as the model's moving background predicts); `replay_objects` (None: the same) does so for `replay`, which was
    recorded before a camera was mounted anew.

    A run that was stopped goes on; one that is complete is left as it is. BadCheckpoint where `out` holds a run of
    other data, another parent or other settings.
    """
    trainer = check_updatable(parent)
    clips = [e if by is None or trainer is _worldgym else seen_with(e, by)
             for some, by in ((new, objects), (replay, replay_objects or objects)) for e in some]
    sha256 = sha256_file(weights_file(parent))
    inputs = json.dumps({"parent_sha256": sha256, "config": asdict(config), "new": [e.name for e in new],
                         "images": _fingerprint(clips)}, sort_keys=True)
    note = out / TRAINING / INPUTS
    if note.is_file() and note.read_text() != inputs:
        raise BadCheckpoint(f"{out} holds an update of other episodes, settings or another parent; name another folder")
    shares = np.concatenate([np.full(len(new), 1.0 / len(new)) * (1.0 - config.replay_share if replay else 1.0),
                             _normal(task_balance(replay, TASK_WEIGHTS)) * config.replay_share
                             if replay else np.empty(0)])
    return trainer(Fine(parent, sha256, clips, held_out, shares, config, out, inputs, objects))


@dataclass(frozen=True)
class Fine:
    """One fine-tuning: the checkpoint `parent` with its hash, clips with their `shares` (C,), the run folder `out`, and
    what is noted there of its `inputs`."""

    parent: Path
    sha256: str
    clips: Sequence[Episode]
    held_out: Sequence[Episode]
    shares: F64
    config: UpdateConfig
    out: Path
    inputs: str
    objects: ObjectDynamics | None


def _action_dit(run: Fine) -> Path:
    """Train all weights of an ActionDiT."""
    config = run.config
    network, _ = load_network(run.parent)
    network.config = seen_by(network.config, run.objects)
    moving, clips, held_out = load_moving_background(run.parent), run.clips, run.held_out
    if run.objects is None and moving is not None:  # as it is drawn in a session without a geometric judge
        clips, held_out = (with_backgrounds(network.eval(), moving.eval(), some) for some in (clips, held_out))
    training = TrainConfig(steps=config.steps, batch=config.batch, muon_lr=config.muon_lr, adamw_lr=config.adamw_lr,
                           warmup_steps=max(1, config.steps // 10), ema=0.97, rollouts_from=0.0,
                           rollout_every=max(1, config.steps // 2), rollout_count=config.own_rollouts,
                           report_every_s=1e9, save_every=config.save_every, seed=config.seed)
    trainer = Trainer(network, clips, held_out, training, run.out, run.shares)
    if (run.out / TRAINING / STATE).is_file():
        trainer.resume()
        if trainer.done_share >= 1.0 and (run.out / WEIGHTS).is_file():
            return run.out
    write_text(run.out / TRAINING / INPUTS, run.inputs)
    save_moving_background(moving, run.out)
    trainer.run()
    return run.out


def _worldgym(run: Fine) -> Path:
    """Train a LoRA of a WorldGym model, which sees images and actions and no objects; the checkpoint has it merged."""
    config, out = run.config, run.out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = WorldGym.from_pretrained(run.parent, device, torch.float32)
    training = WorldGymTraining(
        steps=config.steps, batch=config.batch, lora_rank=config.lora_rank, learning_rate=config.lora_lr, average=0.97,
        clip_frames=min(world.settings.window, WorldGymTraining.clip_frames), save_every=config.save_every,
        warmup_steps=max(1, config.steps // 10), seed=config.seed)
    trainer, state = WorldGymTrainer(world, run.clips, training, run.shares.tolist()), out / TRAINING / STATE
    if state.is_file():
        trainer.resume(state)
        if trainer.done and (out / WEIGHTS).is_file():
            return out
    write_text(out / TRAINING / INPUTS, run.inputs)
    trainer.run(state=state)
    return trainer.save(out, weights_file(run.parent).parent / world.settings.vae, run.parent.name, run.sha256)


TRAINERS: dict[str, Callable[[Fine], Path]] = {ActionDiTConfig.model_type: _action_dit,
                                               WorldGymSettings.model_type: _worldgym}
"""What a folder holds -> how such a world model learns from episodes."""


def check_updatable(world_model: str | Path) -> Callable[[Fine], Path]:
    """Return how a world model learns from episodes; BadConfig names one that cannot, and the remedy."""
    kind = holds(Path(world_model))
    if kind not in TRAINERS:
        raise BadConfig(f"world_model {world_model} holds {repr(kind) if kind else 'none that is known'}: of "
                        f"{' and '.join(TRAINERS)} it is known how they learn from episodes; name one of these, add a "
                        "trainer to updates/world_model.py, or leave out the method loop (adaptation_only and "
                        "imitation take any world model)")
    return TRAINERS[kind]


def mixed(parent: Path, trained: Path, share: float, out: Path) -> Path:
    """Write the checkpoint that lies `share` of the way from `parent` to `trained` into the folder `out`; return it.

    Between weights before and after fine-tuning most of what was learned is kept and most of what was forgotten is not
    (WiSE-FT, arXiv:2109.01903).
    """
    before, after = read_weights(weights_file(parent)), read_tensors(trained / WEIGHTS)
    save_tensors({k: torch.lerp(before[k].float(), w.float(), share).to(w.dtype) if w.is_floating_point() else w
                  for k, w in after.items()}, out / WEIGHTS)
    write_text(out / CONFIG, (trained / CONFIG).read_text())
    save_moving_background(load_moving_background(trained), out)
    return out


def _normal(weights: F64) -> F64:
    return np.asarray(weights / weights.sum())


def _fingerprint(clips: Sequence[Any]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for clip in clips:
        digest.update(np.ascontiguousarray(clip.frames).data)
        digest.update(np.ascontiguousarray(clip.deltas).data)
        if clip.objects is not None:  # as a locator found them: with another it is another run
            digest.update(np.ascontiguousarray(clip.objects.path_m).data)
        if clip.silhouette_camera is not None:  # so it is for another camera
            digest.update(clip.silhouette_camera.data)
    return digest.hexdigest()


# ---- the release check -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Margins:
    """What a version may cost. `false_success`: how much more of the failures it may take for successes, new and old
    scenes alike; `structural`: how much worse, as a share, the image may become on old scenes; `agreement`: how many
    fewer outcomes may agree on old scenes."""

    false_success: float = 0.05
    structural: float = 0.05
    agreement: float = 0.05


def false_success_change(before: Replays, after: Replays) -> Interval | None:
    """Return the paired change of the false success rate with its interval; None without a failure."""
    failed = ~before.success
    if not failed.any():
        return None
    a, b = before.predicted[failed], after.predicted[failed]
    return newcombe_paired(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))


def decide(new: tuple[Replays, Replays], old: tuple[Replays, Replays] | None, margins: Margins, seed: int) -> Decision:
    """Decide from (before, after) on held-out episodes of the new scene, and on those of old scenes (None: none).

    Better: on the new scene the false success rate fell surely (95 %, paired), or the image error did while false
    successes did not rise by more than the margin. Not worse: no other figure fell by more than its margin (point
    estimate).
    """
    rules = Rules()
    count = len(new[0].episodes)
    if not rules.check("held-out episodes", count, MIN_HELD_OUT, count >= MIN_HELD_OUT,
                       f"{count} held-out episodes of the new scene; at least {MIN_HELD_OUT} are needed to compare"):
        return rules.decide(False)
    fewer = false_success_change(*new)
    image = paired_bootstrap(new[1].structural - new[0].structural, seed=seed)
    better = rules.check(
        "new scene better", image.high, 0.0, image.high < 0 or (fewer is not None and fewer.high < 0),
        f"new scene: false positives change by {'unknown (no failures)' if fewer is None else _points(fewer)}, "
        f"structural error by {image}; one of them must fall with its whole 95 % interval")
    more = 0.0 if fewer is None else fewer.value
    good = rules.check("new scene false positives", more, margins.false_success, more <= margins.false_success,
                       f"new scene: false positives change by {'unknown' if fewer is None else _points(fewer)}; at "
                       f"most {100 * margins.false_success:+.0f} points")
    if old is not None and len(old[0].episodes) >= MIN_HELD_OUT:
        change = paired_bootstrap(old[1].structural - old[0].structural, seed=seed)
        limit = margins.structural * float(old[0].structural.mean())
        good &= rules.check("old scenes image", change.value, limit, change.value <= limit,
                            f"old scenes: structural error changes by {change}; at most {limit:+.4f}")
        also = false_success_change(*old)
        if also is not None:
            good &= rules.check("old scenes false positives", also.value, margins.false_success,
                                also.value <= margins.false_success, f"old scenes: false positives change by "
                                f"{_points(also)}; at most {100 * margins.false_success:+.0f} points")
        before, after = (float((r.predicted == r.success).mean()) for r in old)
        good &= rules.check("old scenes agreement", after, before - margins.agreement,
                            after >= before - margins.agreement,
                            f"old scenes: outcomes agree in {after:.1%} of episodes, were {before:.1%}; at most "
                            f"{100 * margins.agreement:.0f} points fewer")
    return rules.decide(better and good, better)


def _points(change: Interval) -> str:
    return f"{100 * change.value:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def store_version(root: Path, run: Path, name: str, parent: str, figures: Mapping[str, Any], hashes: Mapping[str, str],
                  decision: Decision, config: UpdateConfig, created_ns: int) -> AdapterRef:
    """Put the run's checkpoint into the store `root` (world_models/) with its card."""
    return put_version(root, run, name, parent, {"decision": decision.lines, "promoted": decision.promote,
                       "figures": figures, "data_sha256": dict(hashes), "settings": asdict(config)}, created_ns)


def put_version(root: Path, run: Path, name: str, parent: str, scores: dict[str, Any], created_ns: int,
                kind: Any = WORLD_MODEL) -> AdapterRef:
    """Copy weights and settings of `run`, and its moving background where it has one, into a store of versions."""
    def write(directory: Path) -> None:
        for part in (WEIGHTS, CONFIG, *(f"{FOLDER}/{p}" for p in (WEIGHTS, CONFIG) if (run / FOLDER / p).is_file())):
            (directory / part).parent.mkdir(exist_ok=True)
            (directory / part).write_bytes((run / part).read_bytes())
    return Store(root, kind).put(name, write, parent=parent, base_policy="", scores=scores, created_ns=created_ns)


def parent_name(checkpoint: Path) -> str:
    """Return what a version's card calls its parent: name and first digits of the weights' hash."""
    digest = sha256_file(weights_file(checkpoint))[:8]
    return checkpoint.name if checkpoint.name.endswith(digest) else f"{checkpoint.name}-{digest}"
