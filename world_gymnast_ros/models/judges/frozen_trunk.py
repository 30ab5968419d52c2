"""A frozen image-text model as the trunk of a reflector: a frame and an instruction to its last hidden state.

World-Env's instant reflector (arXiv 2509.24948) reads frames with a frozen vision encoder and language model, and
trains nothing but a light head on the last hidden state. Any transformers image-text-to-text model serves.
"""
from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.models import hub
from world_gymnast_ros.models.judges.vlm_processor import find_model, load_model, load_processor
from world_gymnast_ros.types import U8

PROMPT = "A robot arm shall: {instruction}. Is the task done in this frame?"
BATCH = 8
"""Frames per forward pass."""


class FrozenTrunk:
    """Reads frames under instructions. Weights are never trained, and never copied into a reflector's folder."""

    def __init__(self, model: Any, processor: Any, name: str, files: dict[str, str]) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.name, self.files = name, files
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.dim = int(model.config.get_text_config().hidden_size)
        forward = inspect.signature(type(model).forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}

    @classmethod
    def from_pretrained(cls, where: str | Path, device: str = "cpu", dtype: torch.dtype | None = None,
                        files: dict[str, str] | None = None) -> FrozenTrunk:
        """Load a folder or hub name. `dtype`: by default bfloat16 on a GPU, float32 on the CPU. `files`: SHA-256 of its
        weights, by name, as a reflector was trained on them; BadCheckpoint where they differ."""
        folder = find_model(where)
        found = {name: hub.content_hash(folder / name) for name in hub.weight_files(folder)[0]}
        if files is not None and files != found:
            wrong = sorted(name for name in set(files) | set(found) if files.get(name) != found.get(name))
            raise BadCheckpoint(f"{where}: {wrong[0]} is not the file that this reflector's head was trained on; give "
                                "the same version of the model, or train the head again")
        number = dtype or (torch.bfloat16 if str(device).startswith("cuda") else torch.float32)
        name = str(Path(where).resolve()) if Path(where).is_dir() else str(where)
        return cls(load_model(folder, str(device), number), load_processor(folder), name, found)

    @torch.inference_mode()
    def read(self, frames: U8, texts: Sequence[str]) -> Tensor:
        """Return the last hidden states float32 (B, dim) at the place of the answer, of frames uint8 (B, H, W, 3) under
        as many instructions. Prompts of one length share a forward pass, so that nothing is padded."""
        out = torch.empty(len(frames), self.dim)
        by_text: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            by_text.setdefault(text, []).append(i)
        for text, rows in by_text.items():
            for first in range(0, len(rows), BATCH):
                part = rows[first:first + BATCH]
                out[part] = self._batch(frames[part], text)
        return out

    def _batch(self, frames: U8, text: str) -> Tensor:
        content = [{"type": "text", "text": PROMPT.format(instruction=text)}]
        talks = [[{"role": "user", "content": [{"type": "image", "image": Image.fromarray(rgb)}, *content]}]
                 for rgb in frames]
        inputs = self.processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True,
                                                    return_tensors="pt").to(self.device, self.dtype)
        states = self.model(**inputs, use_cache=False, output_hidden_states=True, **self._last_only).hidden_states
        last: Tensor = states[-1][:, -1].float().cpu()
        return last
