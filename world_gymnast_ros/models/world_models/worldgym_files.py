"""Read a WorldGym network from the file that its training wrote, or from safetensors of the same tensors."""
from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.models.checkpoint import CONFIG, WEIGHTS, misfits, read_config, read_tensors
from world_gymnast_ros.models.world_models.worldgym_dit import DiTShape, WorldGymDiT
from world_gymnast_ros.models.world_models.worldgym_settings import WorldGymSettings

ENDINGS = (".safetensors", ".pt", ".pth")
ENTRIES = ("ema", "model")
"""Of a training state, the weights to take: the averaged ones where they are there."""
REMEDY = "name the .pt file that the WorldGym training wrote, or safetensors with the same tensor names"


def is_worldgym(where: Path) -> bool:
    """Tell whether a folder or file is a WorldGym world model: by config.json, or by a .pt where there is none."""
    folder = where.parent if where.is_file() else where
    try:
        values = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        return where.suffix in ENDINGS if where.is_file() else bool(list(folder.glob("*.pt")))
    except (OSError, ValueError):  # whoever loads it says what is wrong
        return False
    return isinstance(values, dict) and values.get("model_type") == WorldGymSettings.model_type


def read_settings(folder: Path) -> WorldGymSettings:
    """Return the settings of config.json in a folder, or the published model's where there is none."""
    described = (folder / CONFIG).is_file()
    return WorldGymSettings.from_dict(read_config(folder, WorldGymSettings.model_type) if described else {})


def weights_file(where: Path) -> Path:
    """Return a folder's model.safetensors or else its one file of weights, or the file itself; BadCheckpoint where
    there is none or a choice."""
    if where.is_file():
        return where
    if (where / WEIGHTS).is_file():
        return where / WEIGHTS
    files = sorted(file for file in where.glob("*") if file.suffix in ENDINGS) if where.is_dir() else []
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise BadCheckpoint(f"{where} must hold one file of weights ({', '.join(ENDINGS)}), found {found}; {REMEDY}")
    return files[0]


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file. A .pt is mapped, not read, so optimiser state in it takes no memory, and nothing in
    it is executed (`weights_only`)."""
    if file.suffix == ".safetensors":
        return read_tensors(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the reader raises its own types for a truncated or foreign file
        raise BadCheckpoint(f"{file} cannot be read as a .pt of tensors ({error}); {REMEDY}") from error
    for entry in ENTRIES:
        if isinstance(state, dict) and isinstance(state.get(entry), dict):
            state = state[entry]
            break
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadCheckpoint(f"{file} holds no table of tensors, nor one under {' or '.join(ENTRIES)}; {REMEDY}")
    return state


def load_network(file: Path, heads: int, spatial_positions: str, device: torch.device, dtype: torch.dtype
                 ) -> WorldGymDiT:
    """Load the network of a file in `dtype` on `device`; BadCheckpoint names every tensor that is missing or unknown.

    The network is made without memory and takes the file's tensors one after another: there is no second copy.
    """
    tensors = read_weights(file)
    with torch.device("meta"):
        network = WorldGymDiT(DiTShape.of(tensors, heads, spatial_positions))
    own = network.state_dict()
    wrong = misfits(own, tensors)
    if wrong:
        raise BadCheckpoint(f"{file} is not a WorldGym model of this layout: {'; '.join(wrong)}. {REMEDY}")
    for name in own:
        tensors[name] = tensors[name].to(device, dtype)
        if not bool(torch.isfinite(tensors[name]).all()):
            raise BadCheckpoint(f"{file}: {name} holds numbers that are not finite; fetch the file again")
    network.load_state_dict(tensors, assign=True)
    network.eval().requires_grad_(False)
    return network
