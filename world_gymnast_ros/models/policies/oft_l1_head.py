"""OpenVLA-OFT's L1 head: the features of seven slots to one action, under its published names.

Source: openvla-oft `prismatic/models/action_heads.py` (`L1RegressionActionHead`).
"""
from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.models.policies.openvla_checkpoint import load_part
from world_gymnast_ros.types import ACTION_DIM

HEAD_FILES = "action_head--*_checkpoint.pt"
BLOCKS = 2


class _ResidualBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ffn(x) + x
        return out


class _ResidualNetwork(nn.Module):
    def __init__(self, dim_in: int, dim: int, dim_out: int) -> None:
        super().__init__()
        self.layer_norm1, self.fc1 = nn.LayerNorm(dim_in), nn.Linear(dim_in, dim)
        self.mlp_resnet_blocks = nn.ModuleList(_ResidualBlock(dim) for _ in range(BLOCKS))
        self.layer_norm2, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, dim_out)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        out: Tensor = self.layer_norm2(x)
        return out


class L1Head(nn.Module):
    """Slot features (B, 7 K, llm_dim) to normalised actions (B, K, 7). Runs in float32."""

    def __init__(self, llm_dim: int) -> None:
        super().__init__()
        self.model = _ResidualNetwork(llm_dim * ACTION_DIM, llm_dim, ACTION_DIM)

    @classmethod
    def from_folder(cls, folder: Path, llm_dim: int) -> tuple[L1Head, Path]:
        """Read the one head file of a checkpoint; return the head and the file."""
        found = sorted(folder.glob(HEAD_FILES))
        if len(found) != 1:
            raise BadCheckpoint(f"{folder} holds {len(found)} files {HEAD_FILES}, decoding 'l1' needs exactly one; "
                                "keep the one that belongs to the weights")
        head = cls(llm_dim)
        load_part(head, found[0])
        return head, found[0]

    def features(self, slots: Tensor) -> Tensor:
        """Return the features (B, K, llm_dim) before the last layer."""
        per_action = slots.reshape(len(slots), -1, ACTION_DIM * slots.shape[-1])
        return self.model.features(per_action.float())

    def forward(self, features: Tensor) -> Tensor:
        """Map `features(slots)` to normalised actions (B, K, 7)."""
        out: Tensor = self.model.fc2(features)
        return out
