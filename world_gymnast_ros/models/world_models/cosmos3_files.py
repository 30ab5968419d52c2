"""Read the parts of Cosmos 3 that its world model needs from the folder of a diffusers repository. No code of it runs.

Loaded are transformer, autoencoder, scheduler and tokenizer. The sound tokenizer, the vision tower of the reasoner and
the guardrail, which a repository may hold too, are not.
"""
from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.models import hub
from world_gymnast_ros.models.checkpoint import CONFIG
from world_gymnast_ros.models.world_models.cosmos3_actions import WIDTH
from world_gymnast_ros.models.world_models.cosmos3_settings import Cosmos3Settings

INDEX = "model_index.json"
PIPELINES = ("Cosmos3OmniPipeline", "Cosmos3OmniDiffusersPipeline")
PARTS = {"transformer": "Cosmos3OmniTransformer", "vae": "AutoencoderKLWan", "scheduler": "UniPCMultistepScheduler"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
NEEDED = (INDEX, "transformer/*", "vae/*", "scheduler/*", "text_tokenizer/*")
REMEDY = "give the folder of a Cosmos 3 repository for diffusers, such as nvidia/Cosmos3-Nano"


def is_cosmos3(where: Path) -> bool:
    """Tell whether a folder is a Cosmos 3 repository for diffusers."""
    return _index(where).get("_class_name") in PIPELINES


def _index(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def pipeline_folder(settings: Cosmos3Settings, folder: Path) -> Path:
    """Return the folder of the repository that settings in `folder` name. BadCheckpoint."""
    beside = folder / settings.pipeline
    return beside if beside.is_dir() else hub.find_folder(settings.pipeline, "Cosmos 3", "nvidia/Cosmos3-Nano", NEEDED)


def model_files(where: Path) -> list[Path]:
    """Return the files that decide what the world model of a folder draws: statistics, weights, settings, tokenizer."""
    settings = Cosmos3Settings.read(where)
    folder = pipeline_folder(settings, where)
    parts = [p for part in (*PARTS, "text_tokenizer") for p in sorted((folder / part).glob("*"))
             if p.suffix in (".safetensors", ".json", ".jinja")]
    return [where / settings.statistics, folder / INDEX, *parts]


def _check(folder: Path) -> dict[str, Any]:
    """Return model_index.json; BadCheckpoint where it is another model's, or a file that it needs is not there."""
    index = _index(folder)
    if index.get("_class_name") not in PIPELINES:
        raise BadCheckpoint(f"{folder / INDEX} names {index.get('_class_name')!r}, not {PIPELINES[0]}; {REMEDY}")
    for part, wanted in PARTS.items():
        found = index.get(part)
        if not isinstance(found, list) or len(found) != 2 or found[1] != wanted:
            raise BadCheckpoint(f"{folder / INDEX} names {found!r} as {part}, {wanted} is needed: distilled "
                                f"repositories draw no actions; {REMEDY}")
    missing = [name for part in ("transformer", "vae") for name in _weights(folder / part)
               if not (folder / name).is_file()]
    missing += [name for name in ("transformer/" + CONFIG, "vae/" + CONFIG, "scheduler/scheduler_config.json",
                                  "text_tokenizer/tokenizer_config.json") if not (folder / name).is_file()]
    if missing:
        raise BadCheckpoint(f"{folder} lacks {', '.join(sorted(missing))}; fetch the repository again")
    return index


def _weights(part: Path) -> list[str]:
    listed = part / f"{WEIGHTS}.index.json"
    if not listed.is_file():
        return [f"{part.name}/{WEIGHTS}"]
    try:
        names = set(json.loads(listed.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise BadCheckpoint(f"{listed} is not an index of shards ({error!r}); fetch it again") from error
    return [f"{part.name}/{name}" for name in sorted(names)]


def load_pipeline(folder: Path, flow_shift: float, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the diffusers pipeline of a folder on a device; BadCheckpoint names every tensor that is missing.

    Its guardrail is left out: imagined frames are looked at by policy and judge, and shown in the report.
    """
    from diffusers import AutoencoderKLWan, Cosmos3OmniPipeline, Cosmos3OmniTransformer, UniPCMultistepScheduler
    from transformers import AutoTokenizer

    index = _check(folder)
    transformer = _loaded(Cosmos3OmniTransformer, folder / "transformer", dtype)
    if not transformer.config.action_gen or int(transformer.config.action_dim or 0) < WIDTH:
        raise BadCheckpoint(f"{folder / 'transformer'} has action_gen {transformer.config.action_gen} and action_dim "
                            f"{transformer.config.action_dim}; one that was trained on actions is needed, at least "
                            f"{WIDTH} numbers wide; {REMEDY}")
    vae = _loaded(AutoencoderKLWan, folder / "vae", dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "text_tokenizer", local_files_only=True,
                                                  trust_remote_code=False)
        scheduler = UniPCMultistepScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadCheckpoint(f"tokenizer and scheduler in {folder} cannot be read ({error}); {REMEDY}") from error
    if tokenizer.chat_template is None:
        raise BadCheckpoint(f"{folder / 'text_tokenizer'} has no chat template; {REMEDY}")
    scheduler = UniPCMultistepScheduler.from_config(scheduler.config, flow_shift=flow_shift, use_karras_sigmas=False)
    pipeline = Cosmos3OmniPipeline(
        transformer, tokenizer, vae, scheduler, enable_safety_checker=False,
        default_use_system_prompt=bool(index.get("default_use_system_prompt", True)),
        use_native_flow_schedule=bool(index.get("use_native_flow_schedule", False)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _loaded(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    try:
        model, info = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype,
                                           output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise BadCheckpoint(f"{folder} cannot be read as {kind.__name__} ({error}); {REMEDY}") from error
    wrong = [f"{what.split('_')[0]} {key}" for what in ("missing_keys", "mismatched_keys") for key in info[what]]
    if wrong:
        raise BadCheckpoint(f"the weights in {folder} do not fit {kind.__name__}: {', '.join(wrong)}; {REMEDY}")
    if info["unexpected_keys"]:
        logging.getLogger(__name__).warning("%s: not used by %s: %s", folder, kind.__name__,
                                            ", ".join(sorted(info["unexpected_keys"])))
    return model.eval().requires_grad_(False)
