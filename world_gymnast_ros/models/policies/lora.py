"""One LoRA slot on a network: add, read, write, switch off, take away. Files are peft's, weights safetensors."""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from world_gymnast_ros.errors import AdapterMismatch, BadCheckpoint
from world_gymnast_ros.files import write_text
from world_gymnast_ros.models.checkpoint import misfits, named, read_tensors, save_tensors

SLOT = "live"
PARTS = ("lora_A", "lora_B")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TARGETS = r".*(vision_backbone\.blocks|projector|language_model\.model\.layers)\..*" \
          r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|qkv|proj|fc1|fc2)|projector\.fc[12]"
"""Every linear layer of vision blocks, projector and language model; not the heads, tables and window stem."""


@dataclass(frozen=True)
class LoraWeights:
    """A read adapter: `rank`, `alpha`, tensors by peft's file names."""

    rank: int
    alpha: float
    tensors: dict[str, Tensor]


class LoraSlot:
    """Wraps the linear layers of `network` that the pattern `targets` names while an adapter is in it.

    The adapter's weights are float32 whatever the base's number format: in bfloat16 small steps would round to nothing.
    """

    def __init__(self, network: nn.Module, targets: str = TARGETS) -> None:
        self.network, self.targets = network, targets
        self.tuner: LoraModel | None = None
        self.rank, self.alpha = 0, 0.0

    def layers(self) -> list[tuple[str, LoraLayer]]:
        """Return the wrapped layers by name."""
        return [(n, m) for n, m in self.network.named_modules() if isinstance(m, LoraLayer)]

    def add(self, rank: int, alpha: float, seed: int) -> None:
        """Put a fresh adapter in (its product is zero, so outputs do not change); any earlier one is dropped."""
        self.remove()
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=self.targets, lora_dropout=0.0, bias="none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tuner = LoraModel(self.network, config, SLOT)
        for parameter in self.parameters():
            parameter.data = parameter.data.float()
        self.rank, self.alpha = rank, alpha

    def remove(self) -> None:
        """Take the adapter out; the network has its own layers again."""
        if self.tuner is not None:
            self.tuner.unload()
            self.tuner, self.rank, self.alpha = None, 0, 0.0
        self.network.requires_grad_(False)

    def parameters(self) -> list[nn.Parameter]:
        """Return the adapter's weights, set trainable; everything else stays frozen."""
        found = [p for n, p in self.network.named_parameters() if "lora_" in n]
        for p in found:
            p.requires_grad_(True)
        return found

    def enable(self, on: bool) -> None:
        """Switch the adapter on or off; neither weights nor their trainability change (peft's own switch alters it)."""
        for _, layer in self.layers():
            layer._disable_adapters = not on

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of the adapter's weights by peft's file names."""
        out: dict[str, Tensor] = {}
        for name, layer in self.layers():
            for part in PARTS:
                out[file_name(name, part)] = getattr(layer, part)[SLOT].weight.detach().clone()
        return out

    @contextmanager
    def swapped(self, weights: LoraWeights | None) -> Iterator[None]:
        """Compute with other weights (None: with none) inside the block. The parameters stay the same objects, so that
        an optimiser goes on with them; AdapterMismatch, and no change, if the weights do not fit."""
        if weights is None or self.tuner is None:
            with self._without() if weights is None else self._with(weights):
                yield
            return
        kept = []
        try:
            for name, layer in self._fitting(weights):
                kept.append((layer, layer.scaling[SLOT], [getattr(layer, part)[SLOT].weight.data for part in PARTS]))
                layer.scaling[SLOT] = weights.alpha / weights.rank
                for part in PARTS:
                    parameter = getattr(layer, part)[SLOT].weight
                    parameter.data = weights.tensors[file_name(name, part)].to(parameter)
            yield
        finally:
            for layer, scaling, tensors in kept:
                layer.scaling[SLOT] = scaling
                for part, tensor in zip(PARTS, tensors, strict=True):
                    getattr(layer, part)[SLOT].weight.data = tensor

    @contextmanager
    def _without(self) -> Iterator[None]:
        self.enable(False)
        try:
            yield
        finally:
            self.enable(True)

    @contextmanager
    def _with(self, weights: LoraWeights) -> Iterator[None]:
        """Put an adapter into an empty slot, and take it out again."""
        self.put(weights)
        try:
            yield
        finally:
            self.remove()

    def _fitting(self, weights: LoraWeights) -> list[tuple[str, LoraLayer]]:
        """Return the wrapped layers where weights, of any rank, fit them. Raises AdapterMismatch."""
        own = {}
        for name, layer in self.layers():
            for part, shape in zip(PARTS, ((weights.rank, layer.in_features), (layer.out_features, weights.rank)),
                                   strict=True):
                own[file_name(name, part)] = torch.empty(shape, device="meta")
        _check_fit(own, weights)
        return self.layers()

    def put(self, weights: LoraWeights | None) -> None:
        """Replace the adapter by `weights` (None: none); AdapterMismatch, and no change, if they do not fit."""
        if weights is None:
            self.remove()
            return
        before = LoraWeights(self.rank, self.alpha, self.tensors()) if self.tuner is not None else None
        if before is None or (before.rank, before.alpha) != (weights.rank, weights.alpha):
            self.add(weights.rank, weights.alpha, seed=0)
        try:
            _check_fit(self.tensors(), weights)
        except AdapterMismatch:
            self.put(before)
            raise
        with torch.no_grad():
            for name, layer in self.layers():
                for part in PARTS:
                    getattr(layer, part)[SLOT].weight.copy_(weights.tensors[file_name(name, part)])
        for p in self.parameters():
            p.requires_grad_(False)
        self.enable(True)


def file_name(layer: str, part: str) -> str:
    """Return the name that peft's files give a part of an adapter."""
    return f"base_model.model.{layer}.{part}.weight"


def _check_fit(own: Mapping[str, Tensor], weights: LoraWeights) -> None:
    wrong = misfits(own, weights.tensors)
    if wrong:
        raise AdapterMismatch(f"the adapter does not fit this policy: {named(wrong)}; it was made for another network: "
                              "adapt again from this base")


def write_adapter(directory: Path, slot: LoraSlot, base_policy: str, base_hash: str) -> Path:
    """Write an adapter directory that peft can read too; return the weights file."""
    config = {"peft_type": "LORA", "r": slot.rank, "lora_alpha": slot.alpha, "target_modules": slot.targets,
              "bias": "none", "lora_dropout": 0.0, "base_model_name_or_path": base_policy, "inference_mode": True}
    save_tensors(slot.tensors(), directory / WEIGHTS,
                 {"format": "pt", "base_policy": base_policy, "base_hash": base_hash})
    write_text(directory / CONFIG, json.dumps(config, indent=2) + "\n")
    return directory / WEIGHTS


def adapter_file(path: Path) -> Path:
    """Return the weights file of an adapter given as its directory or as the file itself."""
    return path / WEIGHTS if path.is_dir() or path.suffix != ".safetensors" else path


def read_adapter(path: Path, base_hash: str) -> LoraWeights:
    """Read an adapter; AdapterMismatch if it belongs to another base, BadCheckpoint if it cannot be read."""
    file = adapter_file(path)
    tensors = read_tensors(file)
    with safe_open(file, "pt") as header:
        stored = (header.metadata() or {}).get("base_hash", "")
    if stored != base_hash:
        raise AdapterMismatch(f"{file} was trained for base policy weights {stored[:12] or 'unknown'}, this policy has "
                              f"{base_hash[:12]}; load the matching policy or adapt again")
    try:
        config = json.loads((file.parent / CONFIG).read_text())
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{file.parent / CONFIG} is missing or broken ({error}); adapt again") from error
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise BadCheckpoint(f"{file} holds numbers that are not finite; adapt again")
    if not 1 <= rank <= 512:
        raise BadCheckpoint(f"{file.parent / CONFIG} has rank {rank}, the limit is 1..512; adapt again")
    return LoraWeights(rank, alpha, tensors)
