"""Image-text models that answer in words: a transformers folder here, or any OpenAI-compatible server."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from world_gymnast_ros.errors import RemoteModelError, one_line
from world_gymnast_ros.models.judges.vlm_processor import find_model, load_model, load_processor
from world_gymnast_ros.serving.openai_client import OpenAIClient, Question, user_message
from world_gymnast_ros.types import U8

MAX_TOKENS = 2048
"""Of an answer; a model that reasons aloud first needs most of them."""
TEMPERATURE = 0.7
"""Answers shall differ."""


class LocalImageText:
    """A model of transformers on this machine. Implements `types.ImageTextModel`."""

    def __init__(self, model: Any, processor: Any, name: str, timeout_s: float = 120.0) -> None:
        self.model, self.processor, self.name, self.timeout_s = model, processor, name, timeout_s
        self._no_thinking = {"enable_thinking": False} if "enable_thinking" in str(processor.chat_template) else {}

    @classmethod
    def from_pretrained(cls, where: str, device: str = "cpu", dtype: torch.dtype | None = None,
                        timeout_s: float = 120.0) -> LocalImageText:
        """Load a folder or hub name; safetensors alone, no code of it is run. BadCheckpoint or NotInstalled."""
        folder = find_model(where)
        number = dtype or (torch.bfloat16 if str(device).startswith("cuda") else torch.float32)
        return cls(load_model(folder, str(device), number), load_processor(folder), folder.name, timeout_s)

    def answer(self, text: str, images: Sequence[U8], seed: int) -> str:
        """Return what the model says; it is cut off after `timeout_s`. RemoteModelError for whatever goes wrong."""
        talk = [{"role": "user", "content": [*({"type": "image", "image": Image.fromarray(rgb)} for rgb in images),
                                             {"type": "text", "text": text}]}]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        try:
            inputs = self.processor.apply_chat_template([talk], add_generation_prompt=True, tokenize=True,
                                                        return_dict=True, return_tensors="pt", **self._no_thinking)
            inputs = inputs.to(self.model.device, self.model.dtype)
            with torch.inference_mode(), torch.random.fork_rng(devices):
                torch.manual_seed(seed)
                out = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, max_time=self.timeout_s, do_sample=True,
                                          temperature=TEMPERATURE)
            said: str = self.processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        except Exception as error:  # memory, device, numerics, a prompt that is too long: none ends the session
            why = one_line(error, 200)
            raise RemoteModelError(f"{self.name}: {type(error).__name__}: {why}") from error
        return said


class RemoteImageText:
    """A model on a server. Implements `types.ImageTextModel`."""

    def __init__(self, url: str, timeout_s: float = 120.0, environment: Mapping[str, str] = os.environ) -> None:
        """`url`: http(s)://HOST:PORT/v1#MODEL; `timeout_s` holds for one answer with all its tries. Nothing is sent
        yet. BadConfig for an address that cannot be one."""
        self.client = OpenAIClient(url, timeout_s=timeout_s, environment=environment)

    @property
    def name(self) -> str:
        """The model and where it runs."""
        return self.client.name

    def answer(self, text: str, images: Sequence[U8], seed: int) -> str:
        """Return what the server's model says. RemoteModelError where nothing usable came in time."""
        asked = Question([user_message(text, list(images))], MAX_TOKENS, TEMPERATURE, seed=seed)
        return self.client.ask(asked).choices[0].text
