"""Train an `ActionDiT` on recorded episodes, within a budget of minutes or steps; stop and resume at any time.

What makes it fast on a processor: only the places that move are trained in most steps (all places in some), windows
are picked before they are copied, bfloat16 under autocast, Muon. What makes rollouts hold: from some point on, half of
each batch continues the model's own rollouts, and regresses true next frame minus *imagined* previous frame.
"""
from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from world_gymnast_ros.data.clip_sampler import Batch, ClipSource
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadBudget, BadCheckpoint
from world_gymnast_ros.evaluation.horizon_error import by_task, error_line, imagine_segments, segments, write_strips
from world_gymnast_ros.files import write_text
from world_gymnast_ros.models.checkpoint import save_model
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.models.world_models.action_dit import ActionDiT, ActionDiTConfig
from world_gymnast_ros.models.world_models.action_dit_world import condition_vector, load_network
from world_gymnast_ros.training.optim import MuonAdamW, follow
from world_gymnast_ros.training.run_state import STATE, load_run, save_run, under
from world_gymnast_ros.types import F64, U8

TASK_WEIGHTS = {"reach": 0.9, "push": 1.4, "pick_place": 1.6}
"""Contact is learned last, so it is shown most."""
TRAINING = "training"
"""Sub-folder of a run that holds what only resuming needs."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The budget is `minutes` of wall time, or `steps` where that is not 0.

    `moved_tokens`, `other_tokens`: places trained per clip in a sparse step, those that move most and random others;
    `full_share`: share of steps on all places. `moving_weight`: extra loss weight of a moving pixel; `object_weight`:
    of one where an object that the hand moves is predicted, or was.
    `rollouts_from`: share of the budget after which own rollouts join, 1 for never; they are redrawn every
    `rollout_every` steps, `rollout_count` at a time. `keep_best`: the checkpoint is the best report's, judged by the
    error at 1 and 5 steps (early stopping for small data), not the last. `warmup_steps`: over which the learning rates
    rise. `save_every`: steps between saves, 0 for only with reports.
    """

    minutes: float = 60.0
    steps: int = 0
    batch: int = 16
    clip_frames: int = 8
    muon_lr: float = 1.9e-3
    adamw_lr: float = 1.2e-3
    weight_decay: float = 0.01
    moved_tokens: int = 22
    other_tokens: int = 4
    full_share: float = 0.12
    state_dropout: float = 0.15
    moving_weight: float = 3.0
    object_weight: float = 6.0
    ema: float = 0.998
    rollouts_from: float = 0.22
    rollout_every: int = 500
    rollout_count: int = 256
    report_every_s: float = 420.0
    keep_best: bool = False
    warmup_steps: int = 60
    save_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or (self.steps == 0 and not self.minutes > 0):
            raise BadBudget(f"minutes {self.minutes} and steps {self.steps}: give a positive number of one of them")


def noise_levels(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw a noise level 0..1 per frame (B, T): whole clips at 1, as one-step dreams are; else mixed levels."""
    def chance(p: float, size: tuple[int, int] = shape) -> Tensor:
        return torch.rand(size, generator=generator) < p

    uniform = torch.rand(shape, generator=generator)
    mixed = torch.where(chance(0.4), 0.0, torch.where(chance(0.6), 1.0, uniform))
    return torch.where(chance(0.6, (shape[0], 1)), 1.0, mixed)


def choose_tokens(network: ActionDiT, batch: Batch, moved: int, other: int, generator: torch.Generator) -> Tensor:
    """Return places int64 (B, moved + other) of each clip: those that change most, and random others."""
    c, half = network.config, np.s_[:, :, ::2, ::2]  # every other pixel says as much
    change = np.abs(batch.following[half].astype(np.int16) - batch.previous[half]).max(-1).sum(1, dtype=np.int32)
    blocks = torch.from_numpy(change).view(-1, c.side, c.patch // 2, c.side, c.patch // 2)
    motion = blocks.sum((2, 4)).flatten(1).float()
    dice = torch.rand(motion.shape, generator=generator)
    top = (motion + dice).topk(moved, 1).indices
    rest = dice.scatter(1, top, -1.0).topk(other, 1).indices
    return torch.cat([top, rest], 1)


def residual_loss(network: ActionDiT, batch: Batch, tokens: Tensor | None, moving_weight: float, object_weight: float,
                  generator: torch.Generator) -> Tensor:
    """Return the weighted squared error of the predicted change, on `tokens` (None: all places).

    Extra weight: `moving_weight` where a pixel truly changes, `object_weight` where moved objects are predicted.
    """
    def grey(frames: U8, cut: Any) -> Tensor:
        picked: Tensor = cut(torch.from_numpy(frames), tokens)
        return picked.to(network.age_bias.device).float().div_(255.0)

    previous = grey(batch.previous, network.windows)
    target = grey(batch.following, network.patches) - grey(batch.previous, network.patches)
    level = noise_levels(target.shape[:2], generator)
    noise = network.config.noise_scale * torch.randn(target.shape, generator=generator)
    level, noise = level.to(target.device), noise.to(target.device)
    s = level[..., None, None]
    condition = condition_vector(network.config, batch.deltas, batch.states[:, :-1], batch.states[:, 1:],
                                 batch.known[:, None], batch.silhouette_camera[:, None])
    at_start = condition_vector(network.config, batch.deltas[:, 0], batch.first_states, batch.first_states, batch.known,
                                batch.silhouette_camera)
    places = None if tokens is None else tokens.to(target.device)
    first, start, places_m, cameras, sizes_m = (torch.from_numpy(x).to(target.device) for x in (
        batch.first[:, 0], at_start, batch.places_m, batch.cameras, batch.sizes_m))
    first = first.float().div_(255.0)
    with fast_math(target.device):
        affine = network.fit(first, start)
    background = network.background(first, start, affine, places_m[:, 0], cameras, sizes_m)
    if batch.behind is None:
        behind = background.at(places_m[:, 1:] if network.config.plate else None)
    else:
        behind = torch.from_numpy(batch.behind).to(target.device).float().div_(255.0)
    # Where objects are predicted to leave or to be is little of the image, and what decides about a task.
    touched = ((behind - background.at(None)).abs().amax(-1, keepdim=True) > 0.05).float().expand(-1, -1, -1, -1, 3)
    with fast_math(target.device):
        out = network(previous, network.windows(behind, tokens), (1.0 - s) * target + s * noise, level,
                      torch.from_numpy(condition).to(target.device), places, affine)
    weight = 1.0 + moving_weight * (target.abs() > 0.03) + object_weight * network.patches(touched, tokens)
    weight = weight / (s + 0.25)
    return 100.0 * ((out.float() - target).square_() * weight).mean()


class Trainer:
    """A training run in a folder: `out/` is a loadable checkpoint (averaged weights), `out/training/` the rest."""

    def __init__(self, network: ActionDiT, episodes: Sequence[Episode], held_out: Sequence[Episode],
                 config: TrainConfig, out: Path, weights: F64 | None = None) -> None:
        """`weights` (E,): how often each episode is drawn (None: tasks balanced by TASK_WEIGHTS)."""
        self.config, self.out, self.held_out = config, Path(out), held_out
        self.network: ActionDiT = network.train()
        self.average: ActionDiT = copy.deepcopy(network).eval().requires_grad_(False)
        self.source = ClipSource(episodes, config.clip_frames, TASK_WEIGHTS, weights)
        self.optimiser = MuonAdamW(network, config.muon_lr, config.adamw_lr, config.weight_decay)
        self.rng = np.random.default_rng(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step_count, self.elapsed_s = 0, 0.0
        self.own: dict[int, U8] = {}
        self.own_step = -config.rollout_every
        self.best_score = math.inf
        self.chosen: dict[str, Tensor] = {}

    @property
    def done_share(self) -> float:
        """Share of the budget that is spent, 0..1."""
        if self.config.steps:
            return min(1.0, self.step_count / self.config.steps)
        return min(1.0, self.elapsed_s / (60 * self.config.minutes))

    def learning_rate_scale(self) -> float:
        """Warm up, stay, then fall as a cosine from a third of the budget on."""
        fall = 0.5 * (1.0 + math.cos(math.pi * max(0.0, self.done_share - 0.35) / 0.65))
        return min(1.0, (self.step_count + 1) / self.config.warmup_steps) * max(0.03, fall)

    def train_step(self) -> float:
        """Take one optimiser step; return the loss."""
        c, done = self.config, self.done_share
        if c.rollouts_from < 1.0 and done >= c.rollouts_from and self.step_count - self.own_step >= c.rollout_every:
            self.refresh_rollouts()
        batch = self.source.batch(self.rng, c.batch, c.state_dropout, self.own)
        full = self.rng.random() < (c.full_share if done < 0.8 else max(c.full_share, 0.3))
        sparse = c.moved_tokens + c.other_tokens < self.network.config.tokens and not full
        tokens = choose_tokens(self.network, batch, c.moved_tokens, c.other_tokens, self.generator) if sparse else None
        loss = residual_loss(self.network, batch, tokens, c.moving_weight, c.object_weight, self.generator)
        loss.backward()
        self.optimiser.set_scale(self.learning_rate_scale())
        self.optimiser.step(1.0)
        follow(self.average, self.network, min(c.ema, (self.step_count + 1) / (self.step_count + 10)))
        self.step_count += 1
        return float(loss.detach())

    def refresh_rollouts(self) -> None:
        """Imagine some training episodes anew with the averaged weights."""
        indices = np.unique(self.source.draw(self.rng, self.config.rollout_count))
        indices = indices[np.argsort([self.source.episodes[i].steps for i in indices], kind="stable")]
        stretches = [s for i in indices for s in segments([self.source.episodes[i]], 10**6, 1)]
        with fast_math(self.average.age_bias.device):
            rollouts = imagine_segments(self.average, stretches, seed=self.step_count)
        self.own, self.own_step = {int(i): f for i, f in zip(indices, rollouts, strict=True)}, self.step_count

    def report(self, steps: int = 10, stride: int = 6) -> dict[str, Any]:
        """Measure rollouts of the held-out episodes, print a line, write film strips and `held_out.json`."""
        if not self.held_out:
            return {}
        stretches = segments(self.held_out, steps, stride)
        with fast_math(self.average.age_bias.device):
            errors = by_task(stretches, imagine_segments(self.average, stretches, seed=1))
            whole = segments(self.held_out, 10**6, 1)[:: max(1, len(self.held_out) // 48)]
            rollouts = imagine_segments(self.average, whole, seed=2)
        write_strips(self.out / f"held_out_{self.step_count:06d}.png", whole, rollouts)
        record = {"step": self.step_count, "minutes": self.elapsed_s / 60, "families": errors}
        write_text(self.out / "held_out.json", json.dumps(record, indent=1) + "\n")
        score = float(np.mean([rows[h]["ratio"] for rows in errors.values() for h in ("1", "5") if h in rows]))
        if self.config.keep_best and score < self.best_score:
            self.best_score, self.chosen = score, {k: v.clone() for k, v in self.average.state_dict().items()}
        tqdm.write(f"step {self.step_count}, {self.elapsed_s / 60:.1f} min: {error_line(errors)}, "
                   f"error / copying {score:.4f}")
        return errors

    def run(self) -> dict[str, Any]:
        """Train until the budget is spent; report and save on the way and at the end. Returns the last report."""
        began, before, last_report = time.monotonic(), self.elapsed_s, time.monotonic()
        smooth = math.nan
        with tqdm(total=self.config.steps or None, initial=self.step_count, unit="step", desc="world model") as bar:
            while self.done_share < 1.0:
                loss = self.train_step()
                smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
                self.elapsed_s = before + time.monotonic() - began
                bar.update()
                bar.set_postfix(loss=f"{smooth:.3f}", spent=f"{self.done_share:.1%}", refresh=False)
                if self.config.save_every and self.step_count % self.config.save_every == 0:
                    self.save()
                if time.monotonic() - last_report > self.config.report_every_s:
                    self.report()
                    self.save()
                    last_report = time.monotonic()
        errors = self.report()
        self.save()
        return errors

    def checkpoint_network(self) -> ActionDiT:
        """Return the network that `out/` holds: the averaged weights, or those of the best report."""
        network = copy.deepcopy(self.average)
        network.load_state_dict(self.chosen or self.average.state_dict())
        return network

    # ---- stop and resume ---------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the averaged weights as a checkpoint, and everything that resuming needs."""
        save_model(self.checkpoint_network(), self.average.config.to_dict(), self.out)
        tensors = {"torch_rng": self.generator.get_state(), **{f"chosen.{k}": v for k, v in self.chosen.items()},
                   **{f"own.{i}": torch.from_numpy(f) for i, f in self.own.items()}}
        numbers = {"step": self.step_count, "elapsed_s": self.elapsed_s, "own_step": self.own_step,
                   "best_score": self.best_score if self.chosen else None, "rng": self.rng.bit_generator.state,
                   "config": asdict(self.config)}
        save_run(self.out / TRAINING / STATE, *self._parts(), tensors, numbers)

    def resume(self) -> None:
        """Go on from `save`; BadCheckpoint where the folder holds no run of this network."""
        if (saved := load_run(self.out / TRAINING / STATE, *self._parts())) is None:
            raise BadCheckpoint(f"{self.out} holds no run to resume; leave out --resume")
        tensors, numbers = saved
        self.generator.set_state(tensors["torch_rng"])
        self.own = {int(k): v.numpy() for k, v in under(tensors, "own.").items()}
        self.chosen = under(tensors, "chosen.")
        self.step_count, self.elapsed_s = int(numbers["step"]), float(numbers["elapsed_s"])
        self.own_step = int(numbers["own_step"])
        self.best_score = float(numbers["best_score"]) if self.chosen else math.inf
        self.rng.bit_generator.state = numbers["rng"]

    def _parts(self) -> tuple[dict[str, torch.nn.Module], dict[str, torch.optim.Optimizer]]:
        return {"raw": self.network, "average": self.average}, dict(zip("ab", self.optimiser.parts, strict=False))


def new_network(config: ActionDiTConfig, init: Path | None, seed: int) -> ActionDiT:
    """Build a network, from the weights of checkpoint `init` if given (whose sizes and units then hold)."""
    if init is not None:
        return load_network(Path(init))[0]
    torch.manual_seed(seed)
    return ActionDiT(config)
