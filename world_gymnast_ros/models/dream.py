"""`ActionDiTWorld`: the world model as the rest of the package sees it. Physical units and pictures in and out.

Conversion to model units happens here and nowhere else, on copies. The dream integrates the commanded target with the
same limits and the same arithmetic as the arm node, so that an action means the same in dream and reality.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from world_gymnast_ros.actions import StepLimits, Workspace, clip_delta, gripper_is_open, integrate_states
from world_gymnast_ros.errors import BadAction, BadCheckpoint, BadFrame
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.models.action_dit import NOISE_SCALE, ActionDiT, ActionDiTConfig, KeyValues
from world_gymnast_ros.models.checkpoint import fill, read_config, save_model
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.types import ACTION_DIM, F32, U8, Frame

LIMITS = StepLimits()
WORKSPACE = Workspace(np.array([0.12, -0.20, 0.022]), np.array([0.42, 0.25, 0.25]))
"""The workspace of the shipped `config/arm.yaml`; the dream stops where the arm would be stopped."""
_STATE_CENTRE = np.array([0.28, 0.02, 0.10, 0, 0, 0, 0.5], np.float32)
_STATE_SCALE = np.array([0.08, 0.10, 0.08, 0.3, 0.3, 0.3, 0.5], np.float32)
_ACTION_SCALE = np.array([0.05, 0.05, 0.05, 0.25, 0.25, 0.25, 0.5], np.float32)
_ACTION_CENTRE = np.array([0, 0, 0, 0, 0, 0, 0.5], np.float32)


def condition(deltas: F32, next_states: F32, known: Any) -> Tensor:
    """Return model conditions (..., 15) of actions (..., 7) and the target states (..., 7) they lead to.

    `known` broadcasts to the leading shape: 0 hides the state (clips that come without one).
    """
    flag = np.broadcast_to(np.asarray(known, np.float32), next_states.shape[:-1])[..., None]
    parts = [(deltas - _ACTION_CENTRE) / _ACTION_SCALE, (next_states - _STATE_CENTRE) / _STATE_SCALE * flag, flag]
    return torch.from_numpy(np.concatenate(parts, -1).astype(np.float32))


def to_tensor(frames: U8) -> Tensor:
    """Return uint8 (..., H, W, 3) as float (..., 3, H, W), 0..1."""
    x = torch.from_numpy(np.ascontiguousarray(frames))
    return x.movedim(-1, -3).float() / 255


class ActionDiTDream:
    """One batch of dreams with persistent keys and values; see `types.Dream`. Single use."""

    def __init__(self, network: ActionDiT, first: Tensor, states: F32 | None, seeds: list[int]) -> None:
        self._network, self._first, self._now = network, first, first
        self._states = states
        self._generators = [torch.Generator().manual_seed(s) for s in seeds]
        self._cache: KeyValues = {}

    def _noise(self, shape: torch.Size) -> Tensor:
        return torch.stack([torch.randn(shape[1:], generator=g) for g in self._generators]).to(self._now.device)

    def step(self, deltas: F32) -> U8:
        """Apply one action per copy, float32 (G, 7); return the next frames uint8 (G, H, W, 3)."""
        copies = len(self._now)
        if deltas.shape != (copies, ACTION_DIM):
            raise BadAction(f"this dream has {copies} copies and takes actions ({copies}, 7), got {deltas.shape}")
        sent = clip_delta(deltas, LIMITS).astype(np.float32)
        sent[:, 6] = gripper_is_open(sent[:, 6])
        if self._states is not None:
            self._states = integrate_states(self._states, sent, LIMITS, WORKSPACE)
        states = np.zeros_like(sent) if self._states is None else self._states
        c = condition(sent, states, float(self._states is not None)).unsqueeze(1).to(self._now.device)
        change = self._sample(c)
        still = self._network.config.still_level
        self._now = (self._now + torch.where(change.abs() < still, torch.zeros(()), change)).clamp(0, 1)
        pictures: U8 = (self._now.movedim(-3, -1) * 255).round().to(torch.uint8).cpu().numpy()
        return pictures

    @torch.inference_mode()
    def _sample(self, c: Tensor) -> Tensor:
        """Denoise the change in `sampling_steps` passes; the last pass leaves its keys and values in the cache."""
        x = NOISE_SCALE * self._noise(self._now.shape)
        steps = self._network.config.sampling_steps
        for i in range(steps):
            level = 1.0 - i / steps
            # A trial cache for all but the last pass: lists are copied, tensors are shared.
            cache = self._cache if i == steps - 1 else {n: (list(k), list(v)) for n, (k, v) in self._cache.items()}
            with fast_math(x.device):
                tokens = self._network(self._now[:, None], self._first, x[:, None],
                                       torch.full((len(x), 1), level, device=x.device), c, cache=cache)
            clean = self._network.unpatch(tokens[:, 0].float())
            if i < steps - 1:  # deterministic step to the next level along the line from clean to noise
                eps = (x - (1 - level) * clean) / level
                after = 1.0 - (i + 1) / steps
                x = (1 - after) * clean + after * eps
        return clean


class ActionDiTWorld:
    """A loaded world model; implements `types.WorldModel`. `frame_size` is what it draws."""

    def __init__(self, network: ActionDiT, name: str, device: str = "cpu") -> None:
        self.network = network.to(torch.device(device)).eval()
        self.network.requires_grad_(False)
        self.name = name
        self.frame_size = (network.config.image_size,) * 2

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> ActionDiTWorld:
        """Load a checkpoint directory; BadCheckpoint names the file and the remedy."""
        directory = Path(path)
        values = read_config(directory, ActionDiTConfig.model_type)
        try:
            network = ActionDiT(ActionDiTConfig(**values))
        except (TypeError, ValueError, KeyError) as error:
            raise BadCheckpoint(f"{directory / 'config.json'} does not describe a world model ({error})") from error
        digest = fill(network, directory)
        return cls(network, f"{network.config.name}@{digest[:12]}", device)

    def save(self, directory: str | Path) -> str:
        """Write config.json and model.safetensors; return the weights' SHA-256."""
        return save_model(self.network, self.network.config.to_dict(), Path(directory))

    def begin(self, frame: Frame, state: F32 | None, copies: int, seed: int) -> ActionDiTDream:
        """Start `copies` dreams from one frame of any size; `state` (7,) Bridge state there, or None."""
        rgb = frame.rgb if frame.rgb.shape[:2] == self.frame_size else resize_rgb(frame.rgb, self.frame_size)
        states = None if state is None else np.repeat(np.asarray(state, np.float32)[None], copies, 0)
        return self.begin_many(np.repeat(rgb[None], copies, 0), states, [seed * 4096 + i for i in range(copies)])

    def begin_many(self, frames: U8, states: F32 | None, seeds: list[int]) -> ActionDiTDream:
        """Start one dream from each of `frames` uint8 (G, H, W, 3) with its own state (G, 7) and noise seed."""
        if frames.shape[1:] != (*self.frame_size, 3):
            raise BadFrame(f"frames are {frames.shape}, the world model draws {self.frame_size}; resize them first")
        if states is not None and not np.isfinite(states).all():
            raise BadAction("a start state is not finite; pass None if the arm's state is unknown")
        device = self.network.places.device
        return ActionDiTDream(self.network, to_tensor(frames).to(device), states, seeds)
