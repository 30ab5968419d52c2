"""Inpainting pipelines of `diffusers` as image editors: safetensors alone, and no code but the library's own."""
from __future__ import annotations

import inspect
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from world_gymnast_ros.errors import BadCheckpoint, NotInstalled, RemoteModelError, one_line
from world_gymnast_ros.models import hub
from world_gymnast_ros.types import U8

INDEX = "model_index.json"
EXAMPLE = "stable-diffusion-v1-5/stable-diffusion-inpainting"
FILES = (INDEX, "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")
NOT_FILES = ("*.fp16.*", "*.non_ema.*", "*.bf16.*")
LIBRARIES = ("diffusers", "transformers")


class InpaintingEditor:
    """Paints inside a mask. Implements `types.ImageEditor`."""

    def __init__(self, pipeline: Any, name: str, timeout_s: float = 120.0, steps: int | None = None) -> None:
        """`steps` of denoising; None: the pipeline's own number. `timeout_s`: longest time for one image."""
        self.pipeline, self.name, self.timeout_s = pipeline, name, timeout_s
        self._takes = set(inspect.signature(pipeline.__call__).parameters)
        self._steps = {} if steps is None else {"num_inference_steps": steps}

    @classmethod
    def from_pretrained(cls, where: str, device: str = "cpu", dtype: torch.dtype | None = None,
                        timeout_s: float = 120.0, steps: int | None = None) -> InpaintingEditor:
        """Load a folder or hub name that `diffusers` has an inpainting pipeline for. `dtype`: by default float16 on a
        GPU and float32 on the CPU. BadCheckpoint or NotInstalled."""
        folder = hub.find_folder(where, "inpainting pipeline", EXAMPLE, FILES, NOT_FILES)
        _check(folder)
        number = dtype or (torch.float16 if str(device).startswith("cuda") else torch.float32)
        try:
            from diffusers import AutoPipelineForInpainting

            pipeline = AutoPipelineForInpainting.from_pretrained(folder, dtype=number, use_safetensors=True,
                                                                 local_files_only=True)
        except ImportError as error:
            raise NotInstalled(f"the pipeline of {folder} needs a package that is not installed ({error})") from error
        except Exception as error:  # diffusers, transformers and safetensors each raise their own
            raise BadCheckpoint(f"{folder} cannot be loaded as an inpainting pipeline ({type(error).__name__}: "
                                f"{one_line(error, 300)}); give one such as {EXAMPLE}") from error
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline.to(device), folder.name, timeout_s, steps)

    def paint(self, rgb: U8, mask: NDArray[np.bool_], prompt: str, seed: int) -> U8:
        """Return what the pipeline makes of an image uint8 (S, S, 3) where `mask` bool (S, S) is set.

        RemoteModelError where it takes longer than `timeout_s`, fails, or refuses its own image."""
        end = time.monotonic() + self.timeout_s

        def in_time(_pipeline: Any, _step: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
            if time.monotonic() > end:
                raise TimeoutError(f"no image within {self.timeout_s:g} s")
            return values
        wanted: dict[str, Any] = {"prompt": prompt, "image": Image.fromarray(rgb), "mask_image": Image.fromarray(mask),
                                  "height": rgb.shape[0], "width": rgb.shape[1], "callback_on_step_end": in_time,
                                  "generator": torch.Generator("cpu").manual_seed(seed), **self._steps}
        try:
            out = self.pipeline(**{k: v for k, v in wanted.items() if k in self._takes})
            refused = any(getattr(out, "nsfw_content_detected", None) or ())
            image = np.array(out.images[0].convert("RGB"))
        except Exception as error:  # memory, device, numerics, a size that it cannot draw: none ends the session
            raise RemoteModelError(f"{self.name}: {type(error).__name__}: {one_line(error, 200)}"
                                   ) from error
        if refused:
            raise RemoteModelError(f"{self.name}: its safety checker refused the image")
        return image


def _check(folder: Path) -> None:
    """Refuse a folder that names a class of another library than diffusers' own. Raises BadCheckpoint."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        parts = {k: v for k, v in index.items() if isinstance(v, list)}
        kind = index["_class_name"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BadCheckpoint(f"{folder} holds no {INDEX} of a diffusers pipeline ({type(error).__name__}); give one "
                            f"such as {EXAMPLE}") from error
    from diffusers import pipelines

    foreign = sorted(f"{k} ({v[0]})" for k, v in parts.items() if len(v) != 2 or (
        v[0] is not None and v[0] not in LIBRARIES and not hasattr(pipelines, str(v[0]))))
    if foreign or not isinstance(kind, str):
        raise BadCheckpoint(f"{folder / INDEX} names code that is not diffusers' own: {', '.join(foreign) or kind}; no "
                            "code of a repository is run")
