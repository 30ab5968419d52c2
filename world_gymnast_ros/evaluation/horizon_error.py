"""How far dreams are from what happened: errors over the horizon beside copying the start frame, and film strips."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from world_gymnast_ros.data.clip_sampler import places_at
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.evaluation.image_metrics import psnr_db
from world_gymnast_ros.images import write_film_strips
from world_gymnast_ros.models.world_models.action_dit import ActionDiT
from world_gymnast_ros.models.world_models.action_dit_world import FrameSampler, condition_vector, to_uint8
from world_gymnast_ros.types import U8

HORIZONS = (1, 5, 10)
CHANGED_LEVEL = 0.06
"""A pixel has changed where some channel differs by more than this (0..1 grey) from the start frame."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a true episode to be imagined: from frame `start`, `steps` actions."""

    episode: Episode
    start: int
    steps: int

    @property
    def frames(self) -> U8:
        """The true frames uint8 (steps + 1, H, W, 3)."""
        return self.episode.frames[self.start:self.start + self.steps + 1]


def segments(episodes: Sequence[Episode], steps: int, stride: int) -> list[Segment]:
    """Cut stretches of up to `steps` actions at every `stride`-th frame; at least one per episode."""
    return [Segment(e, s, min(steps, e.steps - s))
            for e in episodes for s in range(0, max(1, e.steps - steps + 1), stride)]


def imagine_segments(network: ActionDiT, stretches: Sequence[Segment], seed: int, denoising_steps: int | None = None,
               known: bool = True, batch: int = 64) -> list[U8]:
    """Imagine each stretch from its start frame; return frames uint8 (steps + 1, H, W, 3). `known` False: no state."""
    out: list[U8] = []
    device = network.age_bias.device
    for i in range(0, len(stretches), batch):
        part = stretches[i:i + batch]
        first = np.stack([c.frames[0] for c in part])
        generator = torch.Generator(device).manual_seed(seed + i)
        ahead = np.arange(max(c.steps for c in part) + 1)
        places_m, cameras, sizes_m = places_at([c.episode.objects if known else None for c in part],
                                      [c.start + ahead for c in part])
        sampler = FrameSampler(network, torch.from_numpy(first).to(device).float() / 255.0,
                               denoising_steps or network.config.sampling_steps, generator,
                               (places_m[:, 0], cameras, sizes_m))
        # A background that is predicted from an episode's first frame is of no use from a later one.
        moving = known and all(c.episode.background is not None and c.start == 0 for c in part)
        drawn = [first]
        for t in range(max(c.steps for c in part)):
            condition = np.stack([_condition(network, c, t, known) for c in part])
            drawn.append(to_uint8(sampler.step(torch.from_numpy(condition), places_m[:, t + 1],
                                               behind=_behind(part, t) if moving else None)))
        rollouts = np.stack(drawn, 1)
        out += [rollouts[j, :c.steps + 1] for j, c in enumerate(part)]
    return out


def _behind(part: Sequence[Segment], t: int) -> torch.Tensor:
    """Return the predicted backgrounds (B, H, W, 3), 0..1, after action t."""
    frames = [c.episode.background[min(t + 1, c.episode.steps)] for c in part if c.episode.background is not None]
    return torch.from_numpy(np.stack(frames)).float().div_(255.0)


def _condition(network: ActionDiT, segment: Segment, t: int, known: bool) -> np.ndarray:
    e = segment.episode
    row = min(segment.start + t, e.steps - 1)  # past its end a shorter stretch is not looked at
    has = known and e.states is not None
    before, after = (e.states[row], e.states[row + 1]) if has and e.states is not None else np.zeros((2, 7), np.float32)
    return condition_vector(network.config, e.deltas[row], before, after, has, e.silhouette_camera)


def horizon_errors(stretches: Sequence[Segment], rollouts: Sequence[U8], horizons: Sequence[int] = HORIZONS
                   ) -> dict[str, Any]:
    """Return, per horizon: MSE and PSNR of the dream and of copying the start frame, and both in the changed region."""
    rows: dict[str, Any] = {}
    for h in horizons:
        pairs = [(c, f) for c, f in zip(stretches, rollouts, strict=True) if c.steps >= h]
        if not pairs:
            continue
        true = np.stack([c.frames[h] for c, _ in pairs]).astype(np.float32) / 255.0
        start = np.stack([c.frames[0] for c, _ in pairs]).astype(np.float32) / 255.0
        imagined = np.stack([f[h] for _, f in pairs]).astype(np.float32) / 255.0
        changed = (np.abs(true - start).max(-1) > CHANGED_LEVEL)[..., None]
        error, error_copy = (imagined - true) ** 2, (start - true) ** 2
        mse, copy = float(error.mean()), float(error_copy.mean())
        inside, inside_copy = float((error * changed).sum()), float((error_copy * changed).sum())
        rows[str(h)] = {"mse": mse, "mse_copy": copy, "ratio": mse / max(copy, 1e-12), "psnr_db": psnr_db(mse),
                        "psnr_copy_db": psnr_db(copy), "changed_ratio": inside / max(inside_copy, 1e-12),
                        "count": len(pairs)}
    return rows


def by_task(stretches: Sequence[Segment], rollouts: Sequence[U8]) -> dict[str, Any]:
    """Return `horizon_errors` of each task family."""
    tasks = sorted({c.episode.task for c in stretches})
    mine = {f: [i for i, c in enumerate(stretches) if c.episode.task == f] for f in tasks}
    return {f: horizon_errors([stretches[i] for i in ids], [rollouts[i] for i in ids]) for f, ids in mine.items()}


def error_line(errors: dict[str, Any]) -> str:
    """Format the changed-region error of each family, as a share of copying the start frame, over the horizons."""
    return " | ".join(f"{family} " + " ".join(f"@{h} {row['changed_ratio']:.3f}" for h, row in rows.items())
                      for family, rows in errors.items())


def write_strips(path: Path, stretches: Sequence[Segment], rollouts: Sequence[U8], count: int = 9, columns: int = 12
                 ) -> None:
    """Write film strips as a PNG: above what happened, below what was imagined; up to `count` stretches, all tasks."""
    order = np.argsort([c.episode.task for c in stretches], kind="stable")
    picks = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]
    write_film_strips(path, [(stretches[i].frames, rollouts[i]) for i in picks], columns)
