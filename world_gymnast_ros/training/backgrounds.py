"""What is behind the arm in an episode as a moving background predicts it, for training on what is drawn on it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.models.world_models.action_dit import ActionDiT
from world_gymnast_ros.models.world_models.action_dit_world import FrameSampler, condition_vector, to_uint8
from world_gymnast_ros.models.world_models.moving_background import MovingBackground


@torch.inference_mode()
def with_backgrounds(network: ActionDiT, moving: MovingBackground, episodes: Sequence[Episode], batch: int = 64
                     ) -> list[Episode]:
    """Return the episodes with the background that `moving` predicts from their first frames and actions; as they are
    where a target state is unknown in one of them."""
    device, out = network.age_bias.device, []
    if any(e.states is None for e in episodes):
        return list(episodes)
    for i in range(0, len(episodes), batch):
        part = episodes[i:i + batch]
        longest = max(e.steps for e in part)
        rows = [np.minimum(np.arange(longest + 1), e.steps) for e in part]  # past its end an episode is not looked at
        states = np.stack([e.states[r] for e, r in zip(part, rows, strict=True) if e.states is not None])
        deltas = np.stack([e.deltas[np.minimum(r[:-1], e.steps - 1)] for e, r in zip(part, rows, strict=True)])
        cameras = np.stack([np.full(12, np.nan) if e.silhouette_camera is None else e.silhouette_camera for e in part])
        conditions = condition_vector(network.config, deltas, states[:, :-1], states[:, 1:], True, cameras[:, None])
        first = torch.from_numpy(np.stack([e.frames[0] for e in part])).to(device).float().div_(255.0)
        sampler = FrameSampler(network, first, 1, torch.Generator(device), moving=moving)
        drawn = to_uint8(sampler.backgrounds(torch.from_numpy(conditions).to(device), torch.from_numpy(states)))
        out += [replace(e, background=drawn[j, :e.steps + 1]) for j, e in enumerate(part)]
    return out
