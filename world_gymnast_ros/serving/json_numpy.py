"""Numpy arrays in JSON, as policy servers of OpenVLA and AutoEval write them (the json_numpy encoding):

    {"__numpy__": <base64 of the bytes, C order>, "dtype": "|u1", "shape": [480, 640, 3]}

What comes over a network is not trusted: three plain dtypes, bytes that fit the shape exactly, nothing that could run.
"""
from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadPayload

MAX_BODY_BYTES = 8 * 2**20
"""Of a request: an image of 1920x1080 just fits."""
MAX_DIMENSIONS = 4
DTYPES = {"|u1": np.uint8, "uint8": np.uint8, "<f4": np.float32, "float32": np.float32, "<f8": np.float64,
          "float64": np.float64}
"""Spellings of the dtypes that are read: numpy's own, and the names."""
_NAMES = {np.dtype(np.uint8): "|u1", np.dtype(np.float32): "<f4", np.dtype(np.float64): "<f8"}


def encode_array(array: NDArray[Any]) -> dict[str, Any]:
    """Return the JSON object of an array of uint8, float32 or float64. Raises BadPayload on another dtype."""
    name = _NAMES.get(array.dtype)
    if name is None:
        raise BadPayload(f"an array of {array.dtype} is not sent; use uint8, float32 or float64")
    return {"__numpy__": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii"), "dtype": name,
            "shape": list(array.shape)}


def decode_array(value: Any, name: str) -> NDArray[Any]:
    """Return the array that a JSON value holds (read-only); `name` is what errors call it. Raises BadPayload."""
    if not isinstance(value, dict) or not {"__numpy__", "dtype", "shape"} <= value.keys():
        raise BadPayload(f'{name} must be {{"__numpy__": base64, "dtype": ..., "shape": [...]}}, got '
                         f"{type(value).__name__}; encode it with json_numpy")
    dtype, shape, text = value["dtype"], value["shape"], value["__numpy__"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadPayload(f"{name} has dtype {str(dtype)[:40]!r}; send one of {', '.join(DTYPES)}")
    if (not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS
            or not all(type(n) is int and 0 <= n <= MAX_BODY_BYTES for n in shape)):
        raise BadPayload(f"{name} has shape {str(shape)[:80]}; send a list of at most {MAX_DIMENSIONS} whole numbers "
                         f"from 0 to {MAX_BODY_BYTES}")
    if not isinstance(text, str):
        raise BadPayload(f"{name} holds {type(text).__name__} under __numpy__; send a base64 string")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPayload(f"{name} is not base64 ({error}); encode it with json_numpy") from error
    kind = np.dtype(DTYPES[dtype])
    wanted = kind.itemsize
    for n in shape:  # Python's integers: no overflow, whatever the shape says
        wanted *= n
    if wanted != len(data):
        raise BadPayload(f"{name} has {len(data)} bytes, but shape {shape} of {kind} needs {wanted}; send the whole "
                         "array, C order")
    return np.frombuffer(data, kind.newbyteorder("<")).astype(kind, copy=False).reshape(shape)


def read_json(body: bytes, name: str) -> Any:
    """Return the value of a JSON text. Raises BadPayload; NaN and infinities are no JSON."""
    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not a number in JSON")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise BadPayload(f"{name} is not JSON ({str(error)[:120]}); send one JSON object in UTF-8") from error
