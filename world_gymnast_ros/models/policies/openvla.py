"""`OpenVLA`: the policy that nodes and adaptation use. Bins, tokens and normalised units stay inside."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from world_gymnast_ros.models.policies.action_bins import decode_bins
from world_gymnast_ros.models.policies.lora import TARGETS
from world_gymnast_ros.models.policies.small_policy import SmallPolicy, check_temperature
from world_gymnast_ros.models.policies.turns import in_turn
from world_gymnast_ros.models.policies.vla_network import (
    OpenVLAConfig,
    OpenVLAForActionPrediction,
    soft_target_loss,
)
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.types import F32, U8, SampledChunks

CLONING_SIGMA_BINS = 12.0
"""Width of the soft targets of behaviour cloning: neighbouring bins are nearly as good."""


class OpenVLA(SmallPolicy):
    """A small OpenVLA-class policy. Implements `types.TrainablePolicy`."""

    config_class, network_class, targets = OpenVLAConfig, OpenVLAForActionPrediction, TARGETS

    def logits(self, frames: U8, instructions: Sequence[str] | str) -> Tensor:
        """Return bin logits float32 (B, K, 7, 256) of images (B, H, W, 3), with gradient where enabled."""
        images, ids = self.inputs(frames, instructions)
        with fast_math(self.device):
            out: Tensor = self.model(images, ids)[0]
        return out

    @in_turn
    def greedy(self, frames: U8, instructions: Sequence[str] | str) -> F32:
        """Return the most likely chunks float32 (B, K, 7) for images (B, H, W, 3), physical units."""
        with torch.inference_mode():
            bins = self.logits(frames, instructions).argmax(-1).cpu().numpy()
        return self.stats.unnormalise(decode_bins(bins))

    @in_turn
    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        """Sample one chunk for each of `frames` uint8 (G, H, W, 3); the same seed gives the same chunks."""
        check_temperature(temperature)
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            logp = torch.log_softmax(self.logits(frames, instruction).cpu() / temperature, dim=-1)
            flat = logp.reshape(-1, logp.shape[-1])
            bins = torch.multinomial(flat.exp(), 1, generator=generator)
            taken = flat.gather(1, bins).view(logp.shape[:-1]).numpy()
        tokens = bins.view(logp.shape[:-1]).numpy()
        return SampledChunks(deltas=self.stats.unnormalise(decode_bins(tokens)), tokens=tokens, logprobs=taken,
                             adapter=self.adapter)

    def logprobs(self, frames: U8, instructions: Sequence[str] | str, tokens: np.ndarray, temperature: float) -> Tensor:
        """Return log probabilities float32 (B, K, 7) of `tokens` int64 (B, K, 7), differentiable in the adapter."""
        check_temperature(temperature)
        logp = torch.log_softmax(self.logits(frames, instructions) / temperature, dim=-1)
        index = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device)[..., None]
        return logp.gather(-1, index)[..., 0]

    def cloning_loss(self, frames: U8, instructions: Sequence[str], deltas: F32) -> Tensor:
        """Return the cross-entropy of chunks float32 (B, K, 7) taken at frames, in softened bins."""
        values = torch.from_numpy(self.stats.normalise(deltas)).to(self.device)
        return soft_target_loss(self.logits(frames, instructions).float(), values, CLONING_SIGMA_BINS)
