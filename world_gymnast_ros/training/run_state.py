"""Everything a stopped run needs to go on, in one safetensors file: tensors, optimiser states, and numbers as JSON."""
from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.models.checkpoint import read_tensors, save_tensors

STATE = "state.safetensors"


def save_run(path: Path, modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer],
             tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Write one file, so that a kill can leave no weights beside the numbers of another step."""
    whole = {f"tensor.{k}": v for k, v in tensors.items()}
    for name, module in modules.items():
        whole |= {f"module.{name}.{k}": v for k, v in module.state_dict().items()}
    for name, optimiser in optimisers.items():
        for index, row in optimiser.state_dict()["state"].items():
            whole |= {f"optimiser.{name}.{index}.{k}": v for k, v in row.items()}
    save_tensors(whole, path, {"format": "pt", "numbers": json.dumps(dict(numbers))})


def load_run(path: Path, modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer],
             ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Fill modules and optimisers in place; return tensors and numbers, or None where no run was saved.

    BadCheckpoint where the file is of another kind of run.
    """
    if not path.is_file():
        return None
    whole = read_tensors(path)
    try:
        with safe_open(path, "pt") as header:
            numbers: dict[str, Any] = json.loads(header.metadata()["numbers"])
        for name, module in modules.items():
            module.load_state_dict(under(whole, f"module.{name}."))
        for name, optimiser in optimisers.items():
            state = optimiser.state_dict()
            state["state"] = {}
            for key, value in under(whole, f"optimiser.{name}.").items():
                index, entry = key.split(".", 1)
                state["state"].setdefault(int(index), {})[entry] = value
            optimiser.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadCheckpoint(f"{path} does not fit this run ({error}); name another --out, or remove it") from error
    return under(whole, "tensor."), numbers


class PlainRun:
    """A training of one network by one optimiser, drawn by one generator: saved every `every_s` seconds."""

    def __init__(self, path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator,
                 every_s: float = 30.0) -> None:
        self.path, self.generator, self.every_s = path, generator, every_s
        self.modules, self.optimisers = {"network": network}, {"optimiser": optimiser}
        self.written = time.monotonic()

    def resume(self) -> int:
        """Fill everything from the file and return the steps that are done: 0 where there is none."""
        if (saved := load_run(self.path, self.modules, self.optimisers)) is None:
            return 0
        self.generator.set_state(saved[0]["rng"])
        return int(saved[1]["step"])

    def tell(self, step: int) -> None:
        """Save where it is time."""
        if time.monotonic() - self.written >= self.every_s:
            save_run(self.path, self.modules, self.optimisers, {"rng": self.generator.get_state()}, {"step": step})
            self.written = time.monotonic()


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, named without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
