"""Arrays with a JSON object beside them as one binary body: safetensors, with the object in its header.

Nothing in it can run, sizes and offsets are checked by its reader, and many frames cost no base64. Names, dtypes and
shapes of what came are checked against what was expected: nothing over a network is trusted.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from world_gymnast_ros.errors import BadPayload
from world_gymnast_ros.serving.json_numpy import read_json

SAFETENSORS = "application/x-safetensors"
"""Content type of such a body."""
HEADER_BYTES = 2**20
"""Longest header; the arrays come on top."""
VALUES = "values"
"""Key of the JSON object in the header's metadata."""


def pack(arrays: Mapping[str, NDArray[Any]], **values: Any) -> bytes:
    """Return the body of arrays (uint8, int64, float32) and JSON values."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {VALUES: json.dumps(values)})


def unpack(body: bytes, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return arrays and values of a body; `name` is what errors call it. Raises BadPayload."""
    length = int.from_bytes(body[:8], "little") if len(body) >= 8 else 0
    if not 2 <= length <= min(HEADER_BYTES, len(body) - 8):
        raise BadPayload(f"{name} is no safetensors body ({len(body)} bytes, a header of {length}, at most "
                         f"{HEADER_BYTES})")
    header = read_json(body[8:8 + length], f"the header of {name}")
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    if not isinstance(metadata, dict) or not isinstance(metadata.get(VALUES, "{}"), str):
        raise BadPayload(f"the header of {name} has no text under {VALUES!r}; send the values as a JSON object there")
    values = read_json(metadata.get(VALUES, "{}").encode(), f"the values of {name}")
    if not isinstance(values, dict):
        raise BadPayload(f"the values of {name} are a {type(values).__name__}; send a JSON object")
    try:
        arrays = load(body)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:  # KeyError: a dtype that numpy lacks
        raise BadPayload(f"{name} cannot be read as safetensors ({str(error)[:120]})") from error
    return arrays, values


def array_of(arrays: Mapping[str, NDArray[Any]], key: str, dtype: Any, shape: tuple[int | None, ...], name: str
             ) -> NDArray[Any]:
    """Return the array `key` if it has this dtype and shape (None: any length, 1 at least). Raises BadPayload."""
    array = arrays.get(key)
    if array is None:
        raise BadPayload(f"{name} has no array {key!r}; it has {', '.join(sorted(arrays))[:120] or 'none'}")
    fits = array.ndim == len(shape) and all(n == m if m is not None else n >= 1
                                            for n, m in zip(array.shape, shape, strict=True))
    if array.dtype != dtype or not fits:
        wanted = ", ".join("any" if m is None else str(m) for m in shape)
        raise BadPayload(f"{key} of {name} is {array.dtype} {array.shape}; {np.dtype(dtype)} ({wanted}) is needed")
    return array
