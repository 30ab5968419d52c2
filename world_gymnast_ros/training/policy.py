"""Train an OpenVLA-class policy from play data, in two stages.

1. The trunk learns to localise: from a frame and an instruction naming any object of the scene, regress where the
   gripper tip, the object and the destination are. All frames of the given scenes serve, whatever the behaviour.
2. Behaviour cloning of demonstrations: soft targets over neighbouring bins (so that sampling explores smoothly),
   chunks starting at any step; the regression stays on with a small weight.

Only episodes of `scenes` are read: a scene left out is in no training data of the policy. Given all scenes, stage 1
alone makes the trunk of the judge.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from world_gymnast_ros.data.episode_files import REPLAY_NAME, replay_starts_of, write_starts
from world_gymnast_ros.data.frame_table import Episode, PlayTable, held_out, read_play
from world_gymnast_ros.data.read import read_array_folders
from world_gymnast_ros.errors import BadConfig, EpisodeError
from world_gymnast_ros.models.policies.action_bins import ActionStats
from world_gymnast_ros.models.policies.openvla import OpenVLA
from world_gymnast_ros.models.policies.vla_network import (
    PLACE_CENTRE_M,
    PLACE_SCALE_M,
    OpenVLAConfig,
    OpenVLAForActionPrediction,
    soft_target_loss,
)
from world_gymnast_ros.models.policies.words import WordReader
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.training.model_card import write_card
from world_gymnast_ros.training.optim import MuonAdamW, warm_then_decay
from world_gymnast_ros.training.progress import ProgressLine
from world_gymnast_ros.types import F32, I64

TRAINING_SCENES = ("train_oak", "train_grey", "train_green")
DIRECTIONS = ("left", "right", "forward")
REPLAY_STARTS = 24
"""First frames that are kept beside the policy, for sessions elsewhere to return to."""


@dataclass(frozen=True)
class PolicyTraining:
    """Settings of both stages. `sigma_bins`: width of the soft targets; one bin is 1/255 of the action range."""

    trunk_steps: int = 2500
    bc_steps: int = 3000
    trunk_batch: int = 96
    bc_batch: int = 64
    muon_lr: float = 2e-3
    adamw_lr: float = 1e-3
    bc_lr_scale: float = 0.7
    sigma_bins: float = 4.0
    aux_weight: float = 0.5
    demonstrators: tuple[str, ...] = ("demo", "expert")
    heldout_share: float = 0.04
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.trunk_steps, self.bc_steps) < 0 or min(self.trunk_batch, self.bc_batch) < 1:
            raise BadConfig("training steps must be >= 0 and batches >= 1")
        if not 0.3 <= self.sigma_bins <= 40:
            raise BadConfig(f"sigma_bins {self.sigma_bins} is outside 0.3..40")


# ---- batches -------------------------------------------------------------------------------------------------------

def any_instruction(episode: Episode, rng: np.random.Generator) -> str:
    """Return an instruction that names objects of the episode's scene, whether or not it was the task."""
    movable = [n for n in episode.objects if n and not n.endswith("plate")]
    plates = [n for n in episode.objects if n.endswith("plate")]
    name = str(rng.choice(movable))
    kind = rng.random()
    if plates and kind < 0.45:
        return f"put the {name} on the {rng.choice(plates)}"
    return f"push the {name} {rng.choice(DIRECTIONS)}" if kind < 0.72 else f"reach the {name}"


def normal_places(places_m: F32) -> F32:
    """Normalise positions (..., 3, 3) in m to the readout's units, flattened to (..., 9)."""
    scaled = (places_m - np.array(PLACE_CENTRE_M)) / PLACE_SCALE_M
    return np.asarray(scaled.reshape(*places_m.shape[:-2], 9), np.float32)


def place_loss(predicted: Tensor, places: Tensor, known: Tensor) -> Tensor:
    """Return the mean Huber loss of known positions, linear beyond 1 cm."""
    weight = known.float().repeat_interleave(3, dim=-1)
    losses = F.smooth_l1_loss(predicted, places, beta=0.1, reduction="none")
    return (losses * weight).sum() / weight.sum().clamp(min=1.0)


def relight(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary brightness (15 %) and white balance (4 %) of uint8 images (B, H, W, 3)."""
    gain = rng.uniform(0.85, 1.15, (len(frames), 1, 1, 1)) * rng.uniform(0.96, 1.04, (len(frames), 1, 1, 3))
    return (frames.float() * torch.from_numpy(gain.astype(np.float32))).clamp_(0, 255).to(torch.uint8)


def frame_batch(table: PlayTable, episodes: Sequence[Episode], count: int, per_frame: int, rng: np.random.Generator
                ) -> tuple[I64, list[str], F32, np.ndarray]:
    """Draw `count` frames and `per_frame` instructions for each; return rows, instructions, places (9), known (3)."""
    rows, texts, places, known = [], [], [], []
    for i in rng.integers(len(episodes), size=count):
        episode = episodes[i]
        row = episode.first + int(rng.integers(episode.steps + 1))
        rows.append(row)
        for _ in range(per_frame):
            text = any_instruction(episode, rng)
            where, seen = table.places(episode, row, text)
            texts.append(text)
            places.append(where)
            known.append(seen)
    return np.array(rows), texts, normal_places(np.stack(places)), np.stack(known)


# ---- loops ---------------------------------------------------------------------------------------------------------

def _loop(name: str, model: OpenVLAForActionPrediction, steps: int, lr_scale: float, settings: PolicyTraining,
          loss_of: Callable[[np.random.Generator], tuple[Tensor, str]]) -> float:
    """Run `steps` optimiser steps; return seconds per step."""
    model.train().requires_grad_(True)
    optimiser = MuonAdamW(model, settings.muon_lr * lr_scale, settings.adamw_lr * lr_scale)
    rng = np.random.default_rng((settings.seed, len(name)))
    began = time.monotonic()
    line = ProgressLine(name, steps)
    for step in range(steps):
        optimiser.set_scale(warm_then_decay(step, steps, warmup=min(50, steps // 10 + 1)))
        with fast_math(torch.device("cpu")):
            loss, note = loss_of(rng)
        loss.backward()
        optimiser.step()
        line.tell(step + 1, note)
    model.eval()
    return (time.monotonic() - began) / max(1, steps)


def pretrain_trunk(model: OpenVLAForActionPrediction, table: PlayTable, episodes: Sequence[Episode],
                   settings: PolicyTraining) -> float:
    """Stage 1: teach the readout where objects are; return seconds per step."""
    reader = WordReader(model.config.words, model.config.max_words)

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, str]:
        rows, texts, places, known = frame_batch(table, episodes, settings.trunk_batch, 2, rng)
        tokens = model.see(relight(torch.from_numpy(table.frames[rows]), rng)).repeat_interleave(2, dim=0)
        predicted = model.read(tokens, torch.tensor(reader.batch(texts)))[1]
        loss = place_loss(predicted, torch.from_numpy(places), torch.from_numpy(known))
        return loss, f"places {loss.item():.4f}"

    return _loop("trunk", model, settings.trunk_steps, 1.0, settings, loss_of)


def behaviour_clone(model: OpenVLAForActionPrediction, table: PlayTable, demos: Sequence[Episode],
                    others: Sequence[Episode], settings: PolicyTraining) -> float:
    """Stage 2: behaviour cloning of `demos`; the regression goes on over `others`. Return seconds per step."""
    config = model.config
    reader = WordReader(config.words, config.max_words)
    stats = ActionStats(tuple(config.action_q01), tuple(config.action_q99), tuple(config.action_mask))
    values = stats.normalise(table.deltas)
    K = config.chunk_size

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, str]:
        chosen = [demos[i] for i in rng.integers(len(demos), size=settings.bc_batch)]
        rows = np.array([e.first + rng.integers(e.steps - K + 1) for e in chosen])
        texts = [e.instruction for e in chosen]
        where, known = zip(*(table.places(e, r, t) for e, r, t in zip(chosen, rows, texts, strict=True)), strict=True)
        wanted = torch.from_numpy(values[rows[:, None] + np.arange(K)])
        frames = relight(torch.from_numpy(table.frames[rows]), rng)
        logits, predicted = model(frames, torch.tensor(reader.batch(texts)))
        cloning = soft_target_loss(logits, wanted, settings.sigma_bins)
        aux = place_loss(predicted, torch.from_numpy(normal_places(np.stack(where))), torch.from_numpy(np.stack(known)))
        rows, texts, places, seen = frame_batch(table, others, settings.bc_batch // 2, 1, rng)
        more = model.read(model.see(relight(torch.from_numpy(table.frames[rows]), rng)),
                          torch.tensor(reader.batch(texts)))[1]
        aux = 0.5 * (aux + place_loss(more, torch.from_numpy(places), torch.from_numpy(seen)))
        return cloning + settings.aux_weight * aux, f"cloning {cloning.item():.3f} places {aux.item():.4f}"

    return _loop("behaviour cloning", model, settings.bc_steps, settings.bc_lr_scale, settings, loss_of)


# ---- measuring -----------------------------------------------------------------------------------------------------

def _median_xy_cm(gap: F32, known: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(gap[known], axis=-1)) * 100) if known.any() else float("nan")


@torch.inference_mode()
def localisation_cm(model: OpenVLAForActionPrediction, table: PlayTable, episodes: Sequence[Episode], seed: int,
                    count: int = 400) -> dict[str, float]:
    """Return the median horizontal error in cm of tip, object and destination on random frames of `episodes`."""
    if not episodes:
        return {}
    reader = WordReader(model.config.words, model.config.max_words)
    rows, texts, places, known = frame_batch(table, episodes, count, 1, np.random.default_rng(seed))
    with fast_math(torch.device("cpu")):
        predicted = torch.cat([
            model.read(model.see(torch.from_numpy(table.frames[rows[i:i + 100]])),
                       torch.tensor(reader.batch(texts[i:i + 100])))[1] for i in range(0, count, 100)])
    gap = ((predicted.numpy() - places) * PLACE_SCALE_M).reshape(-1, 3, 3)
    return {f"{name}_cm": round(_median_xy_cm(gap[:, k, :2], known[:, k]), 2)
            for k, name in enumerate(("tip", "object", "destination"))}


def cloning_error_mm(policy: OpenVLA, table: PlayTable, demos: Sequence[Episode], seed: int, count: int = 200
                     ) -> dict[str, float]:
    """Return the mean error in mm of the greedy chunk's translation, and how often the gripper command agrees."""
    if not demos:
        return {}
    rng = np.random.default_rng(seed)
    chosen = [demos[i] for i in rng.integers(len(demos), size=count)]
    rows = np.array([e.first + rng.integers(e.steps - policy.chunk_size + 1) for e in chosen])
    wanted = table.deltas[rows[:, None] + np.arange(policy.chunk_size)]
    got = policy.greedy(table.frames[rows], [e.instruction for e in chosen])
    gap = np.linalg.norm(got[..., :3] - wanted[..., :3], axis=-1)
    agree = (got[..., 6] > 0.5) == (wanted[..., 6] > 0.5)
    return {"step_error_mm": round(float(gap.mean() * 1000), 2), "gripper_agrees": round(float(agree.mean()), 3)}


# ---- whole runs ----------------------------------------------------------------------------------------------------

def train_policy(play: str | Path, out: str | Path, settings: PolicyTraining, scenes: Sequence[str] | None,
                 start: str | Path | None = None, sizes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train, save to `out` with a model card, and return the figures. `start`: a checkpoint to go on from.

    With `bc_steps` 0 only the trunk is trained (scenes None: the judge's trunk, which may see every frame).
    """
    torch.manual_seed(settings.seed)
    table = read_play(play, scenes)
    training, test = held_out(table.episodes, settings.heldout_share)
    demos = [e for e in training if e.behaviour in settings.demonstrators]
    if settings.bc_steps and not demos:
        raise EpisodeError(f"no demonstrations ({', '.join(settings.demonstrators)}) in {play}; make play data first")
    if start is None:
        chunk_rows = np.concatenate([np.arange(e.first, e.first + e.steps) for e in (demos or training)])
        stats = ActionStats.of(table.deltas[chunk_rows])
        config = OpenVLAConfig(**{"action_q01": list(stats.q01), "action_q99": list(stats.q99), **(sizes or {})})
        model = OpenVLAForActionPrediction(config)
    else:
        model = OpenVLA.from_pretrained(start).model
    began = time.monotonic()
    seconds = {"trunk": pretrain_trunk(model, table, training, settings) if settings.trunk_steps else 0.0,
               "behaviour cloning": 0.0}
    if settings.bc_steps:
        seconds["behaviour cloning"] = behaviour_clone(model, table, demos, training, settings)
    figures: dict[str, Any] = {
        "localisation on held-out episodes": localisation_cm(model, table, test, settings.seed + 1)}
    policy = OpenVLA(model, base_hash="")
    if settings.bc_steps:
        tests = [e for e in test if e.behaviour in settings.demonstrators]
        figures["cloning on held-out demonstrations"] = cloning_error_mm(policy, table, tests, settings.seed + 2)
    digest = policy.save(out)
    if settings.bc_steps and (starts := replay_starts_of(read_array_folders([Path(play)]), REPLAY_STARTS)):
        write_starts(Path(out) / REPLAY_NAME, starts, compressed=True)
    figures |= {"episodes": len(training), "demonstrations": len(demos), "held-out episodes": len(test),
                "parameters": sum(p.numel() for p in model.parameters()), "seconds per step": seconds,
                "minutes": round((time.monotonic() - began) / 60, 1), "sha256": digest}
    write_card(out, "OpenVLA-class policy, tiny" if settings.bc_steps else "Trunk for the judge, tiny", figures,
               {**asdict(settings), "scenes": list(scenes) if scenes else "all"})
    return figures


def main(play: Path, out: Path, start: Path | None, scenes: Sequence[str] | None, threads: int, **settings: Any) -> int:
    """Train and print the figures. `scenes`: None for those of training, ["all"] for all; `settings`: PolicyTraining's.
    """
    torch.set_num_threads(threads)
    chosen = None if scenes == ["all"] else scenes or list(TRAINING_SCENES)
    for name, value in train_policy(play, out, PolicyTraining(**settings), chosen, start).items():
        print(f"{name}: {value}")
    return 0
