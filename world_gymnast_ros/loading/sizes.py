"""What models take in memory, read from their config.json and the headers of their weights. No weights are loaded.

Weights are counted exactly. What a model needs while it works is estimated from its sizes: see `Stack`.
"""
from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.models.checkpoint import CONFIG

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of the number formats that a loader converts; others stay as they are."""
OTHERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
FOUR_BIT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a number in NF4 with double quantisation: the number, a byte for 64, four bytes for 64 times 256."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `kind` as safetensors calls its number format."""

    kind: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    def bytes(self, number_bytes: float | None) -> float:
        """Return its memory once loaded; `number_bytes` of a floating-point number, None: as it is stored."""
        own = FLOATS.get(self.kind, OTHERS.get(self.kind, 4))
        return self.count * (own if number_bytes is None or self.kind not in FLOATS else number_bytes)


def headers(*files: Path) -> dict[str, Stored]:
    """Return the tensors of safetensors files. BadCheckpoint where one cannot be read."""
    found: dict[str, Stored] = {}
    for file in files:
        try:
            with safe_open(file, "numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no mapping
                    part = tensors.get_slice(name)
                    found[name] = Stored(str(part.get_dtype()), tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            raise BadCheckpoint(f"{file} is no whole safetensors file ({error}); fetch it again") from error
    return found


def weight_bytes(tensors: Mapping[str, Stored], number_bytes: float | None) -> int:
    """Return what tensors take once loaded, with `number_bytes` a floating-point number (None: as stored)."""
    return round(sum(t.bytes(number_bytes) for t in tensors.values()))


def adapter_numbers(tensors: Mapping[str, Stored], targets: str, rank: int) -> int:
    """Return how many weights a LoRA of `rank` has on the linear layers whose names match `targets` wholly."""
    pattern = re.compile(targets)
    return sum(rank * sum(t.shape) for name, t in tensors.items()
               if len(t.shape) == 2 and name.endswith(".weight") and pattern.fullmatch(name.removesuffix(".weight")))


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object. BadCheckpoint where it is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{file} cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise BadCheckpoint(f"{file} is no JSON object")
    return values


def config_of(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder. BadCheckpoint where there is none."""
    return read_json(folder / CONFIG)


@dataclass(frozen=True)
class Stack:
    """A stack of transformer layers, and what passing through it takes: an estimate.

    `tokens` of one row of the batch; `width` of the residual stream, `hidden` of the MLP, `key_width` of keys and
    values together with all heads; `number_bytes` of an activation; `heads` where attention weights are written out
    (0: a fused kernel).
    """

    layers: int
    tokens: int
    width: int
    hidden: int
    number_bytes: int
    key_width: int = 0
    heads: int = 0

    def passing(self, rows: int) -> int:
        """Return the largest memory of a pass without a gradient: that of one layer."""
        tokens = rows * self.tokens
        return tokens * self.number_bytes * (5 * self.width + 3 * self.hidden) + self._attention(rows)

    def keys(self, rows: int) -> int:
        """Return the memory of the key/value cache of all layers."""
        return self.layers * 2 * rows * self.tokens * (self.key_width or self.width) * self.number_bytes

    def inputs(self, rows: int) -> int:
        """Return the memory of every layer's input, which recomputing keeps."""
        return self.layers * rows * self.tokens * self.number_bytes * self.width

    def layer(self, rows: int) -> int:
        """Return what one layer keeps for its backward pass. An adapter is float32, and so is what it reads."""
        if not self.layers:
            return 0
        tokens = rows * self.tokens
        plain = tokens * self.number_bytes * (8 * self.width + 3 * self.hidden)
        read = tokens * 4 * (6 * self.width + self.hidden) if self.number_bytes < 4 else 0
        return plain + read + 2 * self._attention(rows)

    def _attention(self, rows: int) -> int:
        return rows * self.heads * self.tokens**2 * 4
