"""Read and write model directories: config.json and model.safetensors, nothing that executes."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.files import sha256_file, whole, write_text

WEIGHTS, CONFIG = "model.safetensors", "config.json"
M = TypeVar("M", bound=nn.Module)
REMEDY = "train one with `world-gymnast train`, or fetch the repository's checkpoints again"


def read_config(directory: Path, kind: str) -> dict[str, Any]:
    """Return config.json; BadCheckpoint where it is missing, unreadable or says another `model_type`."""
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise BadCheckpoint(f"no '{kind}' checkpoint at {directory} ({path.name} is missing); {REMEDY}") from error
    except ValueError as error:
        raise BadCheckpoint(f"{path} is not JSON ({error}); {REMEDY}") from error
    if not isinstance(config, dict) or config.get("model_type") != kind:
        found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise BadCheckpoint(f"{path} describes '{found}', expected '{kind}'; point at the right directory")
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; BadCheckpoint names the file and the remedy."""
    if not path.is_file():
        raise BadCheckpoint(f"{path} is missing; {REMEDY}")
    try:
        return load_file(path)
    except Exception as error:  # the reader raises its own bare type for a truncated or foreign file
        raise BadCheckpoint(f"{path} cannot be read as safetensors ({error}); {REMEDY}") from error


def misfits(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return each tensor of a file that is missing, unexpected, or of another shape than the network's `own`."""
    return [*(f"missing {name}" for name in own if name not in found),
            *(f"unexpected {name}" for name in found if name not in own),
            *(f"{name} is {tuple(found[name].shape)}, not {tuple(own[name].shape)}" for name in own
              if name in found and found[name].shape != own[name].shape)]


def named(wrong: Iterable[str], most: int = 20) -> str:
    """Return names in one line, the first `most` of them and how many there are."""
    names = list(wrong)
    return ", ".join(names[:most]) + (f" ... ({len(names)} in all)" if len(names) > most else "")


def fill(model: nn.Module, directory: Path) -> str:
    """Load the weights into `model` and return their SHA-256. A missing, extra or misshapen tensor is an error."""
    path = directory / WEIGHTS
    tensors = read_tensors(path)
    own = model.state_dict()
    wrong = misfits(own, tensors)
    if wrong:
        raise BadCheckpoint(f"{path} does not fit its config.json: {named(wrong)}; {REMEDY}")
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise BadCheckpoint(f"{path} holds numbers that are not finite; {REMEDY}")
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})
    return sha256_file(path)


def load_frozen(directory: Path, kind: str, make: Callable[..., M]) -> M:
    """Return a model whose config.json holds what `make` takes, with its weights, frozen. BadCheckpoint where the
    folder is missing or does not fit."""
    values = {k: v for k, v in read_config(directory, kind).items() if k != "model_type"}
    try:
        model = make(**values)
    except TypeError as error:
        raise BadCheckpoint(f"{directory} has a config.json of another version ({error}); {REMEDY}") from error
    fill(model, directory)
    model.eval().requires_grad_(False)
    return model


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write safetensors, whole or not at all."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with whole(path) as partial:
        save_file(plain, partial, metadata or {"format": "pt"})
        _sort_metadata(partial)
        partial.chmod(0o644)  # the writer makes it private, but a checkpoint is installed for every user


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order, in place: the writer's own order differs from run to run, and
    the same weights must have the same hash."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps({k: header[k] for k in ("__metadata__", *(k for k in header if k != "__metadata__"))},
                          separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def save_model(model: nn.Module, config: dict[str, Any], directory: Path) -> str:
    """Write config.json and model.safetensors in bfloat16 (half the size); return the weights' SHA-256."""
    tensors = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_tensors(tensors, directory / WEIGHTS)
    write_text(directory / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return sha256_file(directory / WEIGHTS)
