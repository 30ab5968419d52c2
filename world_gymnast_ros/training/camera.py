"""Teach the world model where the camera really is: fit the arm's computed silhouette to the arm in an image.

The only part of an `ActionDiT` that is trained with labels: play data know their camera. It comes first and is then
left alone, so that the rest learns on silhouettes that lie where the arm is. (Left to the image loss, it did not move.)
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.models.world_models.action_dit import ActionDiT, SilhouetteFeatures, moved
from world_gymnast_ros.robot.arm_silhouette import silhouette
from world_gymnast_ros.training.optim import MuonAdamW, warm_then_decay
from world_gymnast_ros.types import F32, U8

VISIBLE = slice(2, 6)
"""Capsules that the fit must place well: hand, carriage and fingers."""
BATCH = 48


def fit_parts(features: SilhouetteFeatures) -> list[torch.nn.Module]:
    """Return the modules that make the fit."""
    return [features.look, features.read_in, features.read_head]


def draw(episodes: Sequence[Episode], camera: tuple[float, ...], rng: np.random.Generator, count: int
         ) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (B, H, W, 3), 0..1, and the arm's capsules (B, 6, 6) under nominal and true camera."""
    frames: list[U8] = []
    states: list[F32] = []
    true: list[F32] = []
    while len(frames) < count:
        e = episodes[int(rng.integers(len(episodes)))]
        t = 0 if rng.random() < 0.4 else int(rng.integers(e.steps + 1))
        assert e.states is not None and e.camera is not None
        here = silhouette(e.states[t:t + 1], np.ones(1, np.bool_), tuple(e.camera))
        if np.abs(here[0].reshape(-1, 2, 3)[VISIBLE, :, :2]).min() < 1.0:  # some of it is in the image
            frames.append(e.frames[t])
            states.append(e.states[t])
            true.append(here[0])
    nominal = silhouette(np.stack(states), np.ones(count, np.bool_), camera)
    images = torch.from_numpy(np.stack(frames)).float().div_(255.0)
    gain = torch.from_numpy(rng.uniform(0.8, 1.25, (count, 1, 1, 3)).astype(np.float32))
    return (images * gain).clamp_(0.0, 1.0), torch.from_numpy(nominal), torch.from_numpy(np.stack(true))


def misfit(affine: Tensor, nominal: Tensor, true: Tensor) -> Tensor:
    """Return the distance (B,) of the hand's moved capsule ends from the true ones, halves of the image, mean."""
    gap = (moved(nominal, affine) - true)[:, VISIBLE].unflatten(-1, (2, 3))[..., :2]
    return gap.square().sum(-1).add(1e-8).sqrt().mean((1, 2))


def train_camera_fit(network: ActionDiT, episodes: Sequence[Episode], steps: int, seed: int) -> float:
    """Train the fit in place on frames of `episodes`; return its mean misfit in pixels on episodes set aside.

    Does nothing (returns nan) where the network has no camera or no episode knows its own.
    """
    known = [e for e in episodes if e.camera is not None and e.states is not None]
    if network.outline is None or network.config.camera is None or not known or steps == 0:
        return float("nan")
    rng = np.random.default_rng((seed, 31))
    order = rng.permutation(len(known))
    aside, training = [known[i] for i in order[: max(1, len(known) // 20)]], [known[i] for i in order]
    training = training[len(aside):] or aside
    parts = torch.nn.ModuleList(fit_parts(network.outline))
    optimiser = MuonAdamW(parts, 1e-3, 2e-3)
    device = network.age_bias.device
    pixels = network.config.image_size / 2
    bar = tqdm(range(steps), unit="step", desc="camera fit")
    for step in bar:
        optimiser.set_scale(warm_then_decay(step, steps))
        start, nominal, true = (x.to(device) for x in draw(training, network.config.camera, rng, BATCH))
        loss = misfit(network.outline.fit(start, nominal), nominal, true).mean()
        loss.backward()
        optimiser.step()
        if step % 20 == 0:
            bar.set_postfix(misfit_px=f"{pixels * float(loss.detach()):.2f}", refresh=False)
    check = np.random.default_rng((seed, 32))
    with torch.inference_mode():
        start, nominal, true = (x.to(device) for x in draw(aside, network.config.camera, check, 512))
        return pixels * float(misfit(network.outline.fit(start, nominal), nominal, true).mean())
