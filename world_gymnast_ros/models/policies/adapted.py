"""A policy with one LoRA slot: one copy of the base weights for acting, for sampling and as the reference."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from world_gymnast_ros.errors import AdapterMismatch, BadCheckpoint, BadConfig
from world_gymnast_ros.files import sha256_file
from world_gymnast_ros.models.policies.lora import LoraSlot, LoraWeights, adapter_file, read_adapter, write_adapter
from world_gymnast_ros.models.policies.turns import Turn, in_turn
from world_gymnast_ros.store import ADAPTER, read_card
from world_gymnast_ros.types import AdapterRef

BASE = "base"
"""Name of the policy without an adapter."""
MAX_RANK = 512


class AdaptedPolicy:
    """The half of a `types.TrainablePolicy` that puts adapters in, takes them out, reads and writes them.

    Several threads may use it: whoever computes, or changes the slot, holds `turn`. Who trains holds it from the
    forward pass to the end of the backward pass.
    """

    def __init__(self, network: nn.Module, name: str, base_hash: str, targets: str) -> None:
        """`base_hash` identifies what an adapter is tied to; `targets` names the layers it wraps."""
        self.name, self.base_hash, self.adapter = name, base_hash, BASE
        self.trained_on = ""  # types.SIMULATION where its card says so; "": it does not say
        self._slot = LoraSlot(network, targets)
        self.turn = Turn()
        network.requires_grad_(False)

    @in_turn
    def add_lora(self, rank: int = 32, alpha: float = 64.0, seed: int = 0) -> list[nn.Parameter]:
        """Put in a fresh adapter (outputs unchanged) and return its weights, trainable."""
        if not 1 <= rank <= MAX_RANK:
            raise BadConfig(f"LoRA rank {rank} is outside 1..{MAX_RANK}")
        self._slot.add(rank, alpha, seed)
        self.adapter = "new"
        return self._slot.parameters()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the present adapter's weights, made trainable (to go on from a loaded adapter)."""
        return self._slot.parameters()

    @in_turn
    def load_adapter(self, ref: AdapterRef | None) -> None:
        """Swap to this adapter (None: the base). AdapterMismatch or BadCheckpoint change nothing."""
        if ref is None:
            self.remove_lora()
            return
        self._slot.put(self.read_adapter(ref))
        self.adapter = ref.name

    def read_adapter(self, ref: AdapterRef) -> LoraWeights:
        """Read an adapter of this policy, its hash checked. Raises AdapterMismatch or BadCheckpoint."""
        if ref.base_policy not in (self.name, self.base_hash):
            raise AdapterMismatch(f"adapter '{ref.name}' is for policy '{ref.base_policy}', this is '{self.name}' "
                                  f"({self.base_hash[:12]}); load that policy or adapt again")
        file = adapter_file(Path(ref.path))
        if not file.is_file():
            raise BadCheckpoint(f"{file} is missing; choose another adapter or the base")
        card = file.parent / ADAPTER.card
        found = read_card(file.parent).sha256 if card.is_file() else sha256_file(file)
        if found != ref.sha256:
            raise AdapterMismatch(f"{file.parent} has SHA-256 {found[:12]}, the record says {ref.sha256[:12]}; "
                                  "the files were changed or damaged: adapt again or choose another adapter")
        return read_adapter(file, self.base_hash)

    @contextmanager
    def acting_as(self, name: str, weights: LoraWeights | None) -> Iterator[Any]:
        """Act with `weights` (None: the base) inside the block, as adapter `name`; what is in the slot, and may be
        trained, comes back as it was. AdapterMismatch where they do not fit."""
        with self.turn, self._slot.swapped(weights):
            before, self.adapter = self.adapter, name
            try:
                yield self
            finally:
                self.adapter = before

    @in_turn
    def save_adapter(self, directory: str | Path) -> str:
        """Write the present adapter (peft layout, safetensors); return the SHA-256 of its weights."""
        if self._slot.tuner is None:
            raise BadConfig("there is no adapter to save; call add_lora or load_adapter first")
        return sha256_file(write_adapter(Path(directory), self._slot, self.name, self.base_hash))

    @in_turn
    def remove_lora(self) -> None:
        """Take the adapter out: the base again."""
        self._slot.remove()
        self.adapter = BASE

    @contextmanager
    def without_adapter(self) -> Iterator[Any]:
        """Act as the base inside the block (for comparisons); cheap, weights stay."""
        with self.acting_as(BASE, None):
            yield self
