"""Load an image-text-to-text model and its processor from public files, for still images and without torchvision.

transformers' AutoProcessor asks for torchvision as soon as a model can also see videos (Qwen-VL, SmolVLM). The parts
for still images need only PIL; so the processor class is built here of those parts, with none for videos. No remote
code is run, and weights are read from safetensors only.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from world_gymnast_ros.errors import BadCheckpoint, NotInstalled
from world_gymnast_ros.models import hub
from world_gymnast_ros.models.checkpoint import CONFIG, named

EXAMPLE = "Qwen/Qwen3-VL-4B-Instruct"
FILES = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
NOT_FILES = ("original/*", "consolidated*", "onnx/*")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
STILL = {"SmolVLMProcessor": "Idefics3Processor"}
"""Processors that need a package for videos alone, and the one that does the same to still images."""


def is_image_text_model(model_type: str) -> bool:
    """Tell whether transformers has a class that reads images and answers in text for a `model_type`."""
    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def find_model(where: str | Path) -> Path:
    """Return the folder of a model, from the local cache or the hub where a hub name is given. BadCheckpoint names the
    files that are missing, and what a folder holds instead."""
    folder = hub.find_folder(where, "image-text model", EXAMPLE, FILES, NOT_FILES)
    missing = [name for name in (CONFIG, "preprocessor_config.json") if not (folder / name).is_file()]
    if "preprocessor_config.json" in missing and _holds_images(folder / "processor_config.json"):
        missing.remove("preprocessor_config.json")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        missing.append(f"a tokenizer ({' or '.join(TOKENIZERS)})")
    missing += hub.weight_files(folder)[1]
    if missing:
        raise BadCheckpoint(f"{where} lacks {', '.join(missing)} (looked in {folder}); fetch them again, or give a "
                            "folder that is whole")
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type", "")
    except (ValueError, AttributeError) as error:
        raise BadCheckpoint(f"{folder / CONFIG} is not a JSON object ({error})") from error
    if not is_image_text_model(found):
        raise BadCheckpoint(f"{folder} holds a '{found}', which transformers has no image-text-to-text class for; give "
                            f"a model such as {EXAMPLE}")
    return folder


def _holds_images(path: Path) -> bool:
    """Tell whether newer transformers wrote the image processor's settings into processor_config.json."""
    try:
        return "image_processor" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def load_processor(folder: Path) -> Any:
    """Return the model's own processor, for text and still images. Raises BadCheckpoint or NotInstalled."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        kind = _still_images_only(PROCESSOR_MAPPING[type(config)])
        settings, _ = kind.get_processor_dict(folder, local_files_only=True)
        parts = {
            "tokenizer": AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
            "image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False,
                                                                  local_files_only=True)}
        processor = kind.from_args_and_dict([parts.get(name) for name in kind.get_attributes()], settings)
    except ImportError as error:
        raise NotInstalled(f"the processor of {folder} needs a package that is not installed ({error})") from error
    except Exception as error:  # transformers raises many types for files that do not fit
        raise BadCheckpoint(f"the processor of {folder} cannot be loaded ({type(error).__name__}: "
                            f"{str(error).splitlines()[0][:300]})") from error
    if processor.chat_template is None:
        processor.chat_template = parts["tokenizer"].chat_template
    if processor.chat_template is None:
        raise BadCheckpoint(f"{folder} has no chat template: it is no instruction-tuned model, and would not answer a "
                            "question; give one that is (often named ...-Instruct)")
    return processor


def _still_images_only(kind: Any) -> Any:
    """Return a processor class that takes None for the part that reads videos."""
    if kind.__name__ in STILL:
        import transformers
        kind = getattr(transformers, STILL[kind.__name__])

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else kind.check_argument_for_proper_class(self, name, part)
    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


def load_model(folder: Path, device: str, dtype: torch.dtype) -> Any:
    """Return the model in `dtype` on `device`, for inference; a tensor that is missing, unexpected or of another shape
    is named (BadCheckpoint)."""
    options: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}
    try:
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, local_files_only=True, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except Exception as error:  # torch, safetensors and transformers each raise their own
        raise BadCheckpoint(f"{folder} cannot be loaded as an image-text model ({type(error).__name__}: "
                            f"{str(error).splitlines()[0][:300]})") from error
    # The loader would fill missing ones at random; unexpected ones may be layers that config.json does not count.
    wrong = [f"{kind.split('_')[0]} {key if isinstance(key, str) else key[0]}"
             for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in sorted(found[kind], key=str)]
    if wrong:
        raise BadCheckpoint(f"{folder} does not fit its config.json: {named(wrong)}; config.json and the weights are "
                            "of two models")
    return model.requires_grad_(False).eval()
