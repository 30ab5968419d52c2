"""What lies in a published OpenVLA folder, and what its files do not say: how the checkpoint was trained.

    config.json                     network, usually `norm_stats`
    dataset_statistics.json         statistics of a fine-tune; they replace config.json's
    model-*.safetensors             weights, in shards with an index, or one file
    preprocessor_config.json        normalisation of each vision tower
    tokenizer.json                  Llama-2's tokenizer
    action_head--N_checkpoint.pt    OpenVLA-OFT's L1 head, where it has one
    world_gymnast.json              the recipe (`Recipe`): decoding scheme, chunk length, statistics key, crop

A base model and a parallel-decoding fine-tune have the same files, and their weights run under either scheme; the
wrong one answers plausible nonsense. So the recipe is stated, by the caller or in world_gymnast.json, never guessed.
"""
from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.models import hub
from world_gymnast_ros.models.checkpoint import CONFIG, misfits, named, read_config
from world_gymnast_ros.models.policies.action_bins import ActionStats
from world_gymnast_ros.models.policies.prismatic import MODEL_TYPE, PrismaticConfig, PrismaticVLA
from world_gymnast_ros.types import ACTION_DIM

AUTOREGRESSIVE, PARALLEL, L1 = "autoregressive", "parallel", "l1"
SCHEMES = (AUTOREGRESSIVE, PARALLEL, L1)
RECIPE, STATISTICS = "world_gymnast.json", "dataset_statistics.json"
BRIDGE_KEYS = ("bridge_orig", "bridge_dataset")
HUB_FILES = ["*.json", "*.safetensors", "action_head--*_checkpoint.pt"]
FOREIGN = {"proprio_projector--": "reads the arm's state beside the image",
           "noisy_action_projector--": "draws its actions by diffusion",
           "vision_backbone--": "modulates its vision towers by the instruction (FiLM)"}
"""Files of OpenVLA-OFT variants that this package cannot run, and what such a policy does."""


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is to be run.

    `decoding`: "autoregressive" (OpenVLA), "parallel" (OFT, action tokens) or "l1" (OFT, its L1 head). `chunk_size`
    actions at once, 1 if autoregressive. `statistics` key of the un-normalisation; None where only one can be meant.
    `crop_area`, `jpeg`, `lanczos`: see `openvla_preprocess`. `action_scale`: for the L1 head, the Laplace scale
    (normalised units, 0..1) with which it explores; None: it acts, and cannot be trained.
    """

    decoding: str
    chunk_size: int
    statistics: str | None = None
    crop_area: float = 1.0
    jpeg: bool = True
    lanczos: bool = True
    action_scale: float | None = None

    def __post_init__(self) -> None:
        if self.decoding not in SCHEMES:
            raise BadConfig(f"decoding is '{self.decoding}', known are {', '.join(SCHEMES)}")
        if isinstance(self.chunk_size, bool) or not isinstance(self.chunk_size, int) or not 1 <= self.chunk_size <= 64:
            raise BadConfig(f"chunk_size is {self.chunk_size}, it must be a whole number 1..64")
        if self.decoding == AUTOREGRESSIVE and self.chunk_size != 1:
            raise BadConfig(f"chunk_size is {self.chunk_size}: an autoregressive OpenVLA gives one action (1)")
        if self.action_scale is not None and (self.decoding != L1 or not 1e-4 <= self.action_scale <= 1.0):
            raise BadConfig(f"action_scale is {self.action_scale} with decoding '{self.decoding}'; it belongs to 'l1' "
                            "and lies in 0.0001..1")

    @classmethod
    def read(cls, folder: Path, name: str, stated: dict[str, Any]) -> Recipe:
        """Return the recipe of a folder: world_gymnast.json, or a published default, overridden by what is `stated`."""
        path = folder / RECIPE
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = asdict(PUBLISHED[name]) if name in PUBLISHED else {}
        if path.is_file():
            try:
                values = {**values, **json.loads(path.read_text(encoding="utf-8"))}
            except (ValueError, TypeError) as error:
                raise BadConfig(f"{path} is not a JSON object ({error})") from error
        values.update({key: value for key, value in stated.items() if value is not None})
        if values.keys() - known:
            raise BadConfig(f"'{sorted(values.keys() - known)[0]}' is no part of a recipe; known are {sorted(known)}")
        lacking = [key for key in ("decoding", "chunk_size") if key not in values]
        if lacking:
            raise BadConfig(f"{' and '.join(lacking)} of {folder} must be stated: write "
                            '{"decoding": "parallel", "chunk_size": 5} (an OFT fine-tune) or '
                            '{"decoding": "autoregressive", "chunk_size": 1} (the base model and its plain fine-tunes) '
                            f"to {path}")
        return cls(**values)


PUBLISHED = {"openvla/openvla-7b": Recipe(AUTOREGRESSIVE, 1, "bridge_orig")}
"""Recipes of checkpoints whose authors publish them, by hub name."""


def is_published(where: str | Path) -> bool:
    """Whether a folder holds a published OpenVLA checkpoint, or `where` is no folder and reads as a hub name."""
    path = Path(where)
    if not path.is_dir():
        return hub.is_hub_name(where)
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def find_folder(where: str | Path) -> Path:
    """Return the folder of a checkpoint: a path, or a hub name from the local cache or the hub; no code is fetched."""
    return hub.find_folder(where, "policy", "openvla/openvla-7b", HUB_FILES)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint; BadCheckpoint names those that are missing."""
    names, missing = hub.weight_files(folder)
    if missing and not (folder / hub.INDEX).is_file() and (folder / "lora_adapter").is_dir():
        raise BadCheckpoint(f"{folder} holds an unmerged LoRA (lora_adapter/) and no weights; merge it with "
                            "OpenVLA-OFT's merge_lora_weights_and_save.py and give that folder")
    if missing:
        raise BadCheckpoint(f"{folder} lacks {', '.join(missing)} of {len(names)} weight files; fetch them again")
    return [folder / name for name in names]


def refuse_foreign_parts(folder: Path) -> None:
    """Refuse a fine-tune that needs more than image, instruction and language model."""
    for prefix, what in FOREIGN.items():
        found = sorted(folder.glob(f"{prefix}*"))
        if found:
            raise BadCheckpoint(f"{found[0]}: this policy {what}, which cannot be run here; use a fine-tune without it")


def read_statistics(folder: Path, config: PrismaticConfig, key: str | None) -> tuple[str, ActionStats]:
    """Return the key and the action statistics; without a key, the only one there is, or the only Bridge one."""
    path = folder / STATISTICS
    try:
        table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else config.norm_stats or {}
        names = list(table)
        bridge = [name for name in BRIDGE_KEYS if name in table]
        chosen = key or (names[0] if len(names) == 1 else bridge[0] if len(bridge) == 1 else "")
        if chosen not in table:
            raise BadConfig(f"statistics '{key}' are not in {path.name if path.is_file() else CONFIG} of {folder}; it "
                            f"has {names or 'none'}: state the key of the data set the policy was tuned on")
        action = table[chosen]["action"]
        mask = action.get("mask", [True] * ACTION_DIM)
        return chosen, ActionStats(tuple(action["q01"]), tuple(action["q99"]), tuple(bool(m) for m in mask))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"the action statistics of {folder} cannot be read ({error!r})") from error


def load_network(folder: Path, device: str, dtype: torch.dtype, four_bit: bool = False) -> PrismaticVLA:
    """Load the network in `dtype`, 4-bit (NF4) language model if asked; each tensor that is missing, unexpected or of
    another shape is named."""
    values = read_config(folder, MODEL_TYPE)
    files = weight_files(folder)
    options: dict[str, Any] = {"quantization_config": _four_bit(dtype)} if four_bit else {}
    if device != "cpu" or four_bit:
        options["device_map"] = {"": device}
    try:
        config = PrismaticConfig(**{k: v for k, v in values.items() if k not in ("auto_map", "torch_dtype", "dtype")})
        network, found = PrismaticVLA.from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation="sdpa", local_files_only=True, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except BadCheckpoint:
        raise
    except Exception as error:  # torch, safetensors and transformers each raise their own
        raise BadCheckpoint(f"{folder} cannot be loaded as an OpenVLA policy ({error})") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):  # the loader itself would fill them at random
        names = sorted(n if isinstance(n, str) else f"{n[0]} {tuple(n[1])}, not {tuple(n[2])}" for n in found[kind])
        if names:
            raise BadCheckpoint(f"{folder}: {len(names)} {kind.split('_')[0]} tensors in {len(files)} files, "
                                f"{', '.join(names[:20])}{' ...' if len(names) > 20 else ''}; config.json and the "
                                "weights are not of one model")
    bad = [n for n, p in network.named_parameters() if p.is_floating_point() and not bool(torch.isfinite(p).all())]
    if bad:
        raise BadCheckpoint(f"{folder}: tensor {bad[0]} holds numbers that are not finite; fetch the files again")
    for layer in network.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # a 4-bit layer whose repacked weights give no gradient
            layer.support_avx512bf16_for_cpu = False
    loaded: PrismaticVLA = network.requires_grad_(False).eval()
    return loaded


def _four_bit(dtype: torch.dtype) -> Any:
    """Return the settings of a 4-bit language model; BadConfig names the package where it is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadConfig("a 4-bit policy needs the package bitsandbytes, which is not installed: "
                        "pip install bitsandbytes, or load the policy in bfloat16")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
                              bnb_4bit_use_double_quant=True,
                              llm_int8_skip_modules=["vision_backbone", "projector", "lm_head"])


def load_part(module: nn.Module, path: Path) -> None:
    """Fill `module` from a published .pt of plain tensors (read with `weights_only=True`, no pickle is run)."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        plain = {name.removeprefix("module."): value for name, value in tensors.items()}
    except Exception as error:  # torch raises many types for a file that is not plain tensors
        raise BadCheckpoint(f"{path} cannot be read as plain tensors ({str(error).splitlines()[0]}); it is not "
                            "unpickled, save it again as a state dict") from error
    own = module.state_dict()
    wrong = misfits(own, plain)
    if wrong:
        raise BadCheckpoint(f"{path} does not fit: {named(wrong)}; it belongs to another policy")
    if not all(bool(torch.isfinite(t).all()) for t in plain.values()):
        raise BadCheckpoint(f"{path} holds numbers that are not finite")
    module.load_state_dict(plain)


def base_hash(files: list[Path], recipe: Recipe) -> str:
    """Return what adapters are tied to: the bytes of `files`, and how they are decoded."""
    digest = hashlib.sha256(f"{recipe.decoding} {recipe.chunk_size}\n".encode())
    for path in sorted(files):
        digest.update(f"{path.name} {hub.content_hash(path)}\n".encode())
    return digest.hexdigest()
