"""Train the diffusion world model on play data, and measure it against copying the last image."""
from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from world_gymnast_ros.errors import BadBudget, BadCheckpoint
from world_gymnast_ros.files import write_text
from world_gymnast_ros.first_order.diffusion import DiffusionConfig, DiffusionWorldModel
from world_gymnast_ros.first_order.play import Play
from world_gymnast_ros.training.optim import follow, warm_then_decay
from world_gymnast_ros.training.run_state import STATE, load_run, save_run


@dataclass(frozen=True)
class DiffusionTraining:
    """One run: `steps` optimiser steps of `batch` transitions, a checkpoint every `save_every_s` seconds."""

    steps: int = 5000
    batch: int = 32
    lr: float = 8e-4
    ema: float = 0.997
    save_every_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise BadBudget(f"steps {self.steps} and batch {self.batch} must be at least 1")


def train_diffusion(play: Play, config: DiffusionConfig, training: DiffusionTraining, out: Path) -> dict[str, float]:
    """Train (or go on from what `out` holds), write the model to `out` and its errors to errors.json; return them."""
    held = play.held_out
    if not 1 <= held < play.images.shape[0]:
        raise BadCheckpoint(f"{play.images.shape[0]} episodes of play data are too few; record at least 5")
    torch.manual_seed(training.seed)
    model = DiffusionWorldModel(config)
    model.fit_scale(play.images[:-held, ::5].flatten(0, 1))
    average = copy.deepcopy(model).requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), training.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    generator = torch.Generator().manual_seed(training.seed)
    step = 0
    # Budget, noise levels and sampling are not among them: they may be changed when a run goes on.
    network = [config.side, config.past, config.action_dim, config.width, config.sigma_data]
    settings = json.dumps([network, training.batch, training.lr, training.ema, training.seed])
    modules = {"raw": model, "average": average}
    if (saved := load_run(out / STATE, modules, {"adamw": optimiser})) is not None:
        if saved[1]["settings"] != settings:
            raise BadCheckpoint(f"{out} holds a run with other settings ({saved[1]['settings']}); name another --out")
        step = int(saved[1]["step"])
        generator.set_state(saved[0]["rng"])

    def save() -> None:
        save_run(out / STATE, modules, {"adamw": optimiser}, {"rng": generator.get_state()},
                 {"step": step, "settings": settings})

    written, smooth = time.monotonic(), 0.0
    bar = tqdm(total=training.steps, initial=step, desc="world model", mininterval=5.0)
    while step < training.steps:
        optimiser.param_groups[0]["lr"] = training.lr * warm_then_decay(step, training.steps, 100)
        loss = model.loss(*draw(model, play, held, training.batch, generator), generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        follow(average, model, min(training.ema, step / (step + 10.0)))
        smooth = float(loss.detach()) if smooth == 0.0 else 0.98 * smooth + 0.02 * float(loss.detach())
        bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
        bar.update()
        if time.monotonic() - written > training.save_every_s:
            save()
            written = time.monotonic()
    bar.close()
    save()
    average.eval().save(out)
    errors: dict[str, float] = open_loop_errors(average, play, held, training.seed)
    write_text(out / "errors.json", json.dumps(errors, indent=2) + "\n")
    return errors


def draw(model: DiffusionWorldModel, play: Play, held: int, batch: int,
         generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw transitions from all episodes but the last `held`: past images, actions, next image, as `loss` takes them.

    Before the start of an episode the first image is repeated, with zero actions.
    """
    episodes, steps = play.actions.shape[0] - held, play.actions.shape[1]
    e = torch.randint(episodes, (batch,), generator=generator)
    t = torch.randint(steps, (batch,), generator=generator)
    past, actions = history(play, e, t, model.config.past)
    return model.scaled(past), actions, model.scaled(play.images[e, t + 1])


def history(play: Play, episodes: Tensor, times: Tensor, past: int) -> tuple[Tensor, Tensor]:
    """Return images uint8 (B, past, S, S, 3) up to each time and actions (B, past, A), the last the one taken there."""
    at = times[:, None] + torch.arange(1 - past, 1)
    known = (at >= 0).unsqueeze(-1)
    at = at.clamp(min=0)
    rows = episodes[:, None]
    return play.images[rows, at], play.actions[rows, at] * known


@torch.no_grad()
def open_loop_errors(model: DiffusionWorldModel, play: Play, held: int, seed: int,
                     horizons: tuple[int, ...] = (1, 5, 10, 20)) -> dict[str, float]:
    """Return root-mean-square errors in grey levels (0..255) at each horizon, of the model and of copying the start.

    On held-out episodes from their fifth image, the model sees its own images and the recorded actions.
    """
    generator = torch.Generator().manual_seed(seed)
    e = torch.arange(play.images.shape[0] - held, play.images.shape[0])
    start = min(4, play.actions.shape[1] - 1)
    past, _ = history(play, e, torch.full_like(e, start), model.config.past)
    first = past[:, -1].float()
    context, errors = model.scaled(past), {}
    for k in range(1, min(max(horizons), play.actions.shape[1] - start) + 1):
        t = start + k - 1
        _, actions = history(play, e, torch.full_like(e, t), model.config.past)
        noise = torch.randn(context[:, 0].shape, generator=generator)
        following = model.sample(context, actions, noise)
        context = torch.cat([context[:, 1:], following[:, None]], 1)
        if k in horizons:
            true = play.images[e, t + 1].float()
            errors[f"model_{k}"] = float((model.images(following).float() - true).square().mean().sqrt())
            errors[f"copy_{k}"] = float((first - true).square().mean().sqrt())
    return errors
