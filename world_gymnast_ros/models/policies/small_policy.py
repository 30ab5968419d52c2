"""What the small policies share: images and words in, units out, one adapter slot, files."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.models.checkpoint import fill, read_config, save_model
from world_gymnast_ros.models.policies.action_bins import ActionStats
from world_gymnast_ros.models.policies.adapted import AdaptedPolicy
from world_gymnast_ros.models.policies.turns import in_turn
from world_gymnast_ros.models.policies.vla_network import OpenVLAConfig
from world_gymnast_ros.models.policies.words import WordReader
from world_gymnast_ros.types import F32, U8, ActionChunk, Frame


class SmallPolicy(AdaptedPolicy, ABC):
    """A policy on the small trunk. Does not use the arm's state. A subclass names its config, its network and the
    layers that LoRA wraps."""

    config_class: ClassVar[type[OpenVLAConfig]]
    network_class: ClassVar[Any]
    targets: ClassVar[str]

    def __init__(self, network: Any, base_hash: str, device: str = "cpu") -> None:
        """Wrap a network; `base_hash` identifies its weights (adapters are tied to it)."""
        self.config: Any = network.config
        self.model = network.to(torch.device(device)).eval()
        super().__init__(self.model, self.config.name, base_hash, self.targets)
        self.trained_on: str = self.config.trained_on
        self.device = torch.device(device)
        self.chunk_size: int = self.config.chunk_size
        self.reader = WordReader(self.config.words, self.config.max_words)
        self.stats = ActionStats(tuple(self.config.action_q01), tuple(self.config.action_q99),
                                 tuple(self.config.action_mask))

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> Self:
        """Load a checkpoint directory; BadCheckpoint names the file and the remedy."""
        directory = Path(path)
        values = read_config(directory, cls.config_class.model_type)
        try:
            network = cls.network_class(cls.config_class(**values))
        except (TypeError, ValueError, KeyError, BadConfig) as error:
            raise BadCheckpoint(f"{directory / 'config.json'} does not describe a policy ({error})") from error
        return cls(network, fill(network, directory), device)

    def save(self, directory: str | Path) -> str:
        """Write the base (never the adapter) as config.json and model.safetensors; return the new `base_hash`."""
        if self._slot.tuner is not None:
            raise BadConfig("a policy with an adapter cannot be saved as a base; call load_adapter(None) first")
        self.base_hash = save_model(self.model, self.config.to_dict(), Path(directory))
        return self.base_hash

    def inputs(self, frames: U8, instructions: Sequence[str] | str) -> tuple[Tensor, Tensor]:
        """Return images uint8 (B, image_size, image_size, 3) and word ids (B, L), where the network computes."""
        texts = [instructions] * len(frames) if isinstance(instructions, str) else list(instructions)
        size = self.config.image_size
        if frames.shape[-3:-1] != (size, size):
            frames = resize_rgb(frames, (size, size))
        ids = torch.tensor(self.reader.batch(texts), device=self.device)
        return torch.from_numpy(np.ascontiguousarray(frames)).to(self.device), ids

    @abstractmethod
    def greedy(self, frames: U8, instructions: Sequence[str] | str) -> F32:
        """Return the most likely chunks float32 (B, K, 7) for images (B, H, W, 3), physical units."""

    @in_turn
    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        """Choose one chunk greedily."""
        deltas = self.greedy(frame.rgb[None], instruction)[0]
        return ActionChunk(deltas=deltas, frame_stamp_ns=frame.stamp_ns, adapter=self.adapter)

    def add_lora(self, rank: int = 16, alpha: float = 32.0, seed: int = 0) -> list[nn.Parameter]:
        """Put in a fresh adapter (outputs unchanged) and return its weights, trainable."""
        return super().add_lora(rank, alpha, seed)


def check_temperature(temperature: float) -> None:
    """Refuse a sampling temperature that is none."""
    if not 0.05 <= temperature <= 10.0:
        raise BadConfig(f"temperature {temperature} is outside 0.05..10; 1.0 to 1.6 explores, act() is greedy")
