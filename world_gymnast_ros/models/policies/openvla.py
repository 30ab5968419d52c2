"""`OpenVLA`: the policy that nodes and adaptation use. Bins, tokens and normalised units stay inside."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.models.checkpoint import fill, read_config, save_model
from world_gymnast_ros.models.policies.action_bins import ActionStats, decode_bins
from world_gymnast_ros.models.policies.adapted import AdaptedPolicy
from world_gymnast_ros.models.policies.lora import TARGETS
from world_gymnast_ros.models.policies.turns import in_turn
from world_gymnast_ros.models.policies.vla_network import (
    OpenVLAConfig,
    OpenVLAForActionPrediction,
    soft_target_loss,
)
from world_gymnast_ros.models.policies.words import WordReader
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.types import F32, U8, ActionChunk, Frame, SampledChunks

CLONING_SIGMA_BINS = 12.0
"""Width of the soft targets of behaviour cloning: neighbouring bins are nearly as good."""


class OpenVLA(AdaptedPolicy):
    """A small OpenVLA-class policy. Implements `types.TrainablePolicy`. Does not use the arm's state."""

    def __init__(self, network: OpenVLAForActionPrediction, base_hash: str, device: str = "cpu") -> None:
        """Wrap a network; `base_hash` identifies its weights (adapters are tied to it)."""
        self.config: OpenVLAConfig = network.config
        self.model = network.to(torch.device(device)).eval()
        super().__init__(self.model, self.config.name, base_hash, TARGETS)
        self.trained_on: str = self.config.trained_on
        self.device = torch.device(device)
        self.chunk_size: int = self.config.chunk_size
        self.reader = WordReader(self.config.words, self.config.max_words)
        self.stats = ActionStats(tuple(self.config.action_q01), tuple(self.config.action_q99),
                                 tuple(self.config.action_mask))

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> OpenVLA:
        """Load a checkpoint directory; BadCheckpoint names the file and the remedy."""
        directory = Path(path)
        values = read_config(directory, OpenVLAConfig.model_type)
        try:
            network = OpenVLAForActionPrediction(OpenVLAConfig(**values))
        except (TypeError, ValueError, KeyError) as error:
            raise BadCheckpoint(f"{directory / 'config.json'} does not describe a policy ({error})") from error
        return cls(network, fill(network, directory), device)

    def save(self, directory: str | Path) -> str:
        """Write the base (never the adapter) as config.json and model.safetensors; return the new `base_hash`."""
        if self._slot.tuner is not None:
            raise BadConfig("a policy with an adapter cannot be saved as a base; call load_adapter(None) first")
        self.base_hash = save_model(self.model, self.config.to_dict(), Path(directory))
        return self.base_hash

    # ---- seeing and acting -------------------------------------------------------------------------------------

    def _inputs(self, frames: U8, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        size = self.config.image_size
        if frames.shape[-3:-1] != (size, size):
            frames = resize_rgb(frames, (size, size))
        ids = torch.tensor(self.reader.batch(instructions), device=self.device)
        return torch.from_numpy(np.ascontiguousarray(frames)).to(self.device), ids

    def logits(self, frames: U8, instructions: Sequence[str] | str) -> Tensor:
        """Return bin logits float32 (B, K, 7, 256) of pictures (B, H, W, 3), with gradient where enabled."""
        texts = [instructions] * len(frames) if isinstance(instructions, str) else list(instructions)
        pictures, ids = self._inputs(frames, texts)
        with fast_math(self.device):
            out: Tensor = self.model(pictures, ids)[0]
        return out

    @in_turn
    def greedy(self, frames: U8, instructions: Sequence[str] | str) -> F32:
        """Return the most likely chunks float32 (B, K, 7) for pictures (B, H, W, 3), physical units."""
        with torch.inference_mode():
            bins = self.logits(frames, instructions).argmax(-1).cpu().numpy()
        return self.stats.unnormalise(decode_bins(bins))

    @in_turn
    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        """Choose one chunk greedily."""
        deltas = self.greedy(frame.rgb[None], instruction)[0]
        return ActionChunk(deltas=deltas, frame_stamp_ns=frame.stamp_ns, adapter=self.adapter)

    @in_turn
    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        """Sample one chunk for each of `frames` uint8 (G, H, W, 3); the same seed gives the same chunks."""
        _check_temperature(temperature)
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
        _check_temperature(temperature)
        logp = torch.log_softmax(self.logits(frames, instructions) / temperature, dim=-1)
        index = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device)[..., None]
        return logp.gather(-1, index)[..., 0]

    def cloning_loss(self, frames: U8, instructions: Sequence[str], deltas: F32) -> Tensor:
        """Return the cross-entropy of chunks float32 (B, K, 7) taken at frames, in softened bins."""
        values = torch.from_numpy(self.stats.normalise(deltas)).to(self.device)
        return soft_target_loss(self.logits(frames, instructions).float(), values, CLONING_SIGMA_BINS)

    def add_lora(self, rank: int = 16, alpha: float = 32.0, seed: int = 0) -> list[nn.Parameter]:
        """Put in a fresh adapter (outputs unchanged) and return its weights, trainable."""
        return super().add_lora(rank, alpha, seed)


def _check_temperature(temperature: float) -> None:
    if not 0.05 <= temperature <= 10.0:
        raise BadConfig(f"temperature {temperature} is outside 0.05..10; 1.0 to 1.6 explores, act() is greedy")
