"""A small regression policy: OpenVLA-OFT's L1 head on the small trunk, and a learned Laplace scale beside it.

Actions are continuous. Per number of a chunk the head gives the mean of a Laplace distribution; its scale is constant,
or what a second head says (World-Env, arXiv 2509.24948), so that the policy explores most where its demonstrations
disagree most. The mean is what acts.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.models.policies import laplace_head
from world_gymnast_ros.models.policies.laplace_head import MAX_SCALE, MIN_SCALE, LaplaceScale
from world_gymnast_ros.models.policies.lora import TARGETS
from world_gymnast_ros.models.policies.oft_l1_head import L1Head
from world_gymnast_ros.models.policies.small_policy import SmallPolicy, check_temperature
from world_gymnast_ros.models.policies.turns import in_turn
from world_gymnast_ros.models.policies.vla_network import ChunkTrunk, OpenVLAConfig
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.types import ACTION_DIM, F32, U8, SampledChunks


class RegressionConfig(OpenVLAConfig):
    """As `OpenVLAConfig`; scales in normalised units (actions span -1..1).

    `action_scale`: at first, and for ever where `learned_scale` is False; `least_scale`: the learned one's lower limit.
    """

    model_type = "world_gymnast_regression"

    name: str = "regression-tiny"
    action_scale: float = 0.1
    least_scale: float = 0.02
    learned_scale: bool = True


class RegressionNetwork(PreTrainedModel, ChunkTrunk):
    """Images and an instruction to means and log-scales of K * 7 normalised actions."""

    config_class = RegressionConfig
    base_model_prefix = "regression"
    main_input_name = "frames"

    def __init__(self, config: RegressionConfig) -> None:
        super().__init__(config)
        if not MIN_SCALE < config.action_scale <= MAX_SCALE:
            raise BadConfig(f"action_scale is {config.action_scale}; it must lie in {MIN_SCALE}..{MAX_SCALE} "
                            "(normalised units)")
        self.build(config)
        self.language_model.lm_head = nn.Identity()
        dim = config.llama().hidden_size
        self.action_head = L1Head(dim)
        if config.learned_scale:
            self.scale_head = LaplaceScale(dim, ACTION_DIM, config.action_scale, config.least_scale)

    def forward(self, frames: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-scales, float32 (B, K, 7); arguments as of `slots`.

        The heads compute in float32: a density is steep where the scale is small.
        """
        with fast_math(frames.device):
            slots = self.slots(frames, ids)[0]
        features = self.action_head.features(slots.float())
        mean = self.action_head(features)
        if not self.config.learned_scale:
            return mean, torch.full_like(mean, float(np.log(self.config.action_scale)))
        return mean, self.scale_head(features)


class RegressionPolicy(SmallPolicy):
    """A small policy of continuous actions. Implements `types.TrainablePolicy`; LoRA covers its heads too."""

    config_class, network_class = RegressionConfig, RegressionNetwork
    targets = f"{TARGETS}|action_head\\.model\\.(fc[12]|mlp_resnet_blocks\\.\\d+\\.ffn\\.1)|scale_head\\.fc"

    def distribution(self, frames: U8, instructions: Sequence[str] | str) -> tuple[Tensor, Tensor]:
        """Return normalised means and log-scales (B, K, 7) at images (B, H, W, 3), with gradient where enabled."""
        images, ids = self.inputs(frames, instructions)
        mean, log_scale = self.model(images, ids)
        return mean, log_scale

    @in_turn
    def greedy(self, frames: U8, instructions: Sequence[str] | str) -> F32:
        """Return the means, chunks float32 (B, K, 7) for images (B, H, W, 3), physical units."""
        with torch.inference_mode():
            mean = self.distribution(frames, instructions)[0].cpu().numpy()
        return self.stats.unnormalise(mean)

    @in_turn
    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        """Sample one chunk for each of `frames` uint8 (G, H, W, 3); the same seed gives the same chunks.

        `tokens` are the normalised actions, float32; the scale is multiplied by `temperature`.
        """
        check_temperature(temperature)
        uniform = torch.rand((len(frames), self.chunk_size, ACTION_DIM), dtype=torch.float64,
                             generator=torch.Generator().manual_seed(seed)).float()
        with torch.inference_mode():
            mean, log_scale = (x.cpu() for x in self.distribution(frames, instruction))
            actions, scores = laplace_head.sample(mean, log_scale, temperature, uniform)
        return SampledChunks(self.stats.unnormalise(actions.numpy()), actions.numpy(), scores.numpy(), self.adapter)

    def logprobs(self, frames: U8, instructions: Sequence[str] | str, tokens: np.ndarray, temperature: float) -> Tensor:
        """Return log-densities float32 (B, K, 7) of normalised actions `tokens` (B, K, 7), differentiable."""
        check_temperature(temperature)
        mean, log_scale = self.distribution(frames, instructions)
        actions = torch.from_numpy(np.ascontiguousarray(tokens)).to(mean)
        return laplace_head.scored(actions, mean, log_scale, temperature)

    def cloning_loss(self, frames: U8, instructions: Sequence[str], deltas: F32) -> Tensor:
        """Return the negative log-density of chunks float32 (B, K, 7) taken at frames, mean over numbers.

        With a constant scale this is OFT's L1 loss, but for a factor and a constant.
        """
        return -self.logprobs(frames, instructions, self.stats.normalise(deltas), 1.0).mean()
