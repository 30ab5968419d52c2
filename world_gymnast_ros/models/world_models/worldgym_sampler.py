"""Draw latent frames one after another with a `WorldGymDiT`: DDIM under diffusion forcing, on a persistent cache.

Each frame takes `sampling_steps` passes of itself alone. The keys of the frame before it are computed in the first of
them, once and for all: N frames cost N (steps + 1) frame-forwards as long as the window does not move. The conditional
and the unconditional half of guidance are one batch. Nothing waits for the device, and nothing grows with the dream.
"""
from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from world_gymnast_ros.models.world_models.worldgym_dit import Modulation, TemporalCache, WorldGymDiT
from world_gymnast_ros.models.world_models.worldgym_settings import NOISE_LEVELS, RECOMPUTE, WorldGymSettings

MOST_NOISE_A_STEP = 0.999


@lru_cache(maxsize=1)
def signal_shares() -> tuple[float, ...]:
    """Return, for each noise level 0 to 999, the share of the signal's power that is left.

    A sigmoid from -3 to 3 (arXiv 2212.11972), with the noise added from one level to the next at most 0.999.
    """
    with torch.inference_mode(False):
        edge = torch.linspace(0, NOISE_LEVELS, NOISE_LEVELS + 1, dtype=torch.float64) / NOISE_LEVELS
        left = torch.sigmoid(torch.tensor(3.0)) - torch.sigmoid(6.0 * edge - 3.0)
        left = left / left[0]
        added = (1.0 - left[1:] / left[:-1]).clip(0.0, MOST_NOISE_A_STEP).float()
        return tuple((1.0 - added).cumprod(0).tolist())


@dataclass(frozen=True)
class Pass:
    """One pass of the network over new frames `low`..`high` - 1, each with its noise level and its step.

    x becomes `keep` x + `take` v. The first `done` of them are clean then, and are remembered in the next pass.
    """

    low: int
    high: int
    done: int
    levels: tuple[int, ...]
    keep: tuple[float, ...]
    take: tuple[float, ...]


@lru_cache(maxsize=64)
def schedule(steps: int, frames: int) -> tuple[Pass, ...]:
    """Return the passes that draw `frames` frames together, each frame a step behind the one before it."""
    levels = torch.linspace(-1, NOISE_LEVELS - 1, steps + 1, dtype=torch.long).tolist()  # -1: clean
    shares, passes = signal_shares(), []
    for m in range(steps + frames - 1):
        low, high = max(0, m - steps + 1), min(frames, m + 1)
        before, keep, take = [], [], []
        for frame in range(low, high):
            level, following = levels[steps - (m - frame)], levels[steps - (m - frame) - 1]
            a, b = shares[level], 1.0 if following < 0 else shares[following]
            before.append(level)
            keep.append(math.sqrt(b * a) + math.sqrt((1.0 - b) * (1.0 - a)))
            take.append(math.sqrt((1.0 - b) * a) - math.sqrt(b * (1.0 - a)))
        passes.append(Pass(low, high, int(m >= steps - 1), tuple(before), tuple(keep), tuple(take)))
    return tuple(passes)


@lru_cache(maxsize=256)
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return values (n, 1, 1, 1) on the device, once: copying them there at every pass would wait for it."""
    return torch.tensor(values, device=device).view(-1, 1, 1, 1)


@lru_cache(maxsize=256)
def _levels(values: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)


@dataclass
class _Frame:
    """A clean latent frame (G, h, w, C) and the model's action (G, A) at it."""

    latent: Tensor
    action: Tensor


class LatentSampler:
    """The frames of G copies, drawn one after another."""

    def __init__(self, network: WorldGymDiT, settings: WorldGymSettings, first: Tensor) -> None:
        """Begin at clean latent frames `first` float32 (G, h, w, C)."""
        self.network, self.settings = network, settings
        self.frames = 1
        """Frames so far, the first included."""
        self.calls, self.frame_forwards = 0, 0
        """Passes of the network, and frames that went through it, each counted once for all copies and for guidance."""
        action = torch.zeros(len(first), network.shape.action_dim, device=first.device)
        self._past = deque([_Frame(first.float(), action)], maxlen=settings.window)
        self._settled = 0
        """Frames whose keys the cache has, counted from the dream's first."""
        self._oldest = 0
        """The first frame that the cache has seen."""
        self.cache = TemporalCache(settings.window, settings.frames_at_once)
        self._context_scale = math.sqrt(signal_shares()[settings.context_level])

    @property
    def device(self) -> torch.device:
        """Where the frames are."""
        return self._past[-1].latent.device

    @property
    def latent_size(self) -> torch.Size:
        """(h, w, C) of a latent frame."""
        return self._past[-1].latent.shape[1:]

    @torch.inference_mode()
    def advance(self, actions: Tensor, noise: Tensor) -> Tensor:
        """Draw K frames float32 (G, K, h, w, C) under the model's actions (G, K, A) from `noise` (G, K, h, w, C)."""
        parts = actions.split(self.settings.frames_at_once, 1), noise.split(self.settings.frames_at_once, 1)
        return torch.cat([self._draw(a.float(), n.float()) for a, n in zip(*parts, strict=True)], 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these copies only, int64 (n,)."""
        copies = len(self._past[0].latent)
        for frame in self._past:
            frame.latent, frame.action = frame.latent.index_select(0, rows), frame.action.index_select(0, rows)
        self.cache.keep(torch.cat([rows, rows + copies]) if self._guided else rows)

    @property
    def _guided(self) -> bool:
        return self.settings.guidance != 1.0

    def _draw(self, actions: Tensor, noise: Tensor) -> Tensor:
        """Draw a few frames together, from `noise` (G, n, h, w, C)."""
        x = noise.clone()
        then = actions if self.settings.action_offset == 1 else torch.cat([actions[:, 1:], actions[:, -1:]], 1)
        pending = self._pending(actions)
        clean = torch.stack([frame.latent for frame in pending], 1)
        passes = schedule(self.settings.sampling_steps, x.shape[1])
        modulation = self._modulate(passes, torch.stack([frame.action for frame in pending], 1), actions, then)
        row = 0
        for each in passes:
            active, settled = x[:, each.low:each.high], clean.shape[1]
            latents = torch.cat([clean * self._context_scale, active], 1)
            stop = row + latents.shape[1]
            v = self._predict(latents, modulation.rows(row, stop), self.frames + each.low - settled, settled)
            x[:, each.low:each.high] = active * _column(each.keep, x.device) + v * _column(each.take, x.device)
            clean, row = x[:, each.low:each.low + each.done], stop
        self._past.extend(_Frame(x[:, i], then[:, i]) for i in range(x.shape[1]))
        self.frames += x.shape[1]
        self._settled = self.frames - 1
        return x

    def _pending(self, actions: Tensor) -> list[_Frame]:
        """Return the clean frames whose keys the cache lacks for the next frames, which `actions` (G, n, A) draw."""
        if self.settings.action_offset == 0:
            self._past[-1].action = actions[:, 0]
        oldest = max(0, self.frames + actions.shape[1] - self.settings.window)
        if self.settings.after_window == RECOMPUTE and oldest > self._oldest:
            self.cache.clear()
            self._settled = self._oldest = oldest
        return [self._past[i - self.frames] for i in range(self._settled, self.frames)]

    def _modulate(self, passes: tuple[Pass, ...], pending: Tensor, actions: Tensor, then: Tensor) -> Modulation:
        """Return the modulations of every frame of every pass in turn, of copies without guidance and then with.

        `pending` (G, p, A) actions at the clean frames of the first pass, `actions` (G, n, A) that the new frames are
        drawn under, `then` (G, n, A) those at them once they are clean.
        """
        context = self.settings.context_level
        levels, parts = [context] * pending.shape[1], [pending]
        for i, each in enumerate(passes):
            if i:
                done = passes[i - 1].done
                levels += [context] * done
                parts.append(then[:, each.low - done:each.low])
            levels += each.levels
            parts.append(actions[:, each.low:each.high])
        rows = torch.cat(parts, 1)
        if self._guided:  # all zero would mean "stand still", so "no action" is told by the last number
            none = torch.zeros_like(rows)
            none[..., -1] = 1.0
            rows = torch.cat([rows, none])
        return self.network.modulate(_levels(tuple(levels), rows.device), rows)

    def _predict(self, latents: Tensor, modulation: Modulation, first: int, settled: int) -> Tensor:
        """Return v float32 (G, T - settled, h, w, C), guided."""
        self.calls, self.frame_forwards = self.calls + 1, self.frame_forwards + latents.shape[1]
        both = torch.cat([latents, latents]) if self._guided else latents
        v = self.network.run(both, modulation, self.cache, first, settled).float()
        if not self._guided:
            return v
        under, without = v.chunk(2)
        return torch.lerp(without, under, self.settings.guidance)
