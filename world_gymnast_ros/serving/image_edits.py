"""A client for `POST /v1/images/edits` of an OpenAI-compatible server: an image, a mask and words in, an image out.

Retries, time limit, key and cost are those of `OpenAIClient`. The image is taken from the answer itself (`b64_json`);
an address in its place is not fetched.
"""
from __future__ import annotations

import base64
import binascii
import io
import secrets
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from world_gymnast_ros.errors import BadFrame, RemoteModelError
from world_gymnast_ros.images import decode_rgb
from world_gymnast_ros.serving.exchange import error_text
from world_gymnast_ros.serving.openai_client import OpenAIClient
from world_gymnast_ros.types import U8

PATH = "/images/edits"
OPTIONAL = ("response_format", "size", "n")
"""Fields that some servers refuse by name; then they are left out."""


class ImageEditsClient(OpenAIClient):
    """Asks one model of one server for edits. Implements `types.ImageEditor`."""

    max_answer_bytes = 64 * 2**20

    def paint(self, rgb: U8, mask: NDArray[np.bool_], prompt: str, seed: int) -> U8:
        """Return what the server makes of an image uint8 (S, S, 3) where `mask` bool (S, S) is set; of any size. The
        API knows no seed. RemoteModelError where nothing usable came within `timeout_s`."""
        began = time.monotonic()
        hole = np.dstack([rgb, np.where(mask, 0, 255).astype(np.uint8)])  # transparent: to be painted
        files = {"image": _png(rgb), "mask": _png(hole)}
        try:
            fields = {"model": self.model(), "prompt": prompt, "n": "1", "size": f"{rgb.shape[1]}x{rgb.shape[0]}",
                      "response_format": "b64_json"}
            image = self._image(self._json(self._send(fields, files, began + self.timeout_s)))
        except RemoteModelError:
            self._count(failures=1, seconds=time.monotonic() - began)
            raise
        self._count(seconds=time.monotonic() - began)
        return image

    def _send(self, fields: Mapping[str, str], files: Mapping[str, bytes], deadline: float) -> Any:
        """Send a form; where the server refuses a field by name, send it without that field from then on."""
        while True:
            with self._lock:
                left = {k: v for k, v in fields.items() if k not in self._left_out}
            boundary = secrets.token_hex(16)
            reply = self._try("POST", PATH, _form(left, files, boundary), deadline,
                              f"multipart/form-data; boundary={boundary}")
            refused = next((name for name in OPTIONAL if name in left and name in error_text(reply.body)), "") \
                if reply.status in (400, 422) else ""
            if not refused:
                return reply
            with self._lock:
                self._left_out |= {refused}

    def _image(self, value: Any) -> U8:
        rows = value.get("data") if isinstance(value, dict) else None
        first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
        text = first.get("b64_json")
        if not isinstance(text, str):
            held = "an address in place of an image, which is not fetched" if first.get("url") else "no image"
            raise RemoteModelError(f"{self.url}{PATH} answered 200 with {held}; is this a server that edits images?")
        try:
            return decode_rgb(base64.b64decode(text, validate=True), "the image")
        except (binascii.Error, ValueError, BadFrame) as error:
            raise RemoteModelError(f"{self.url}{PATH} answered with what is no image ({error})") from error


def _png(pixels: U8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _form(fields: Mapping[str, str], files: Mapping[str, bytes], boundary: str) -> bytes:
    """Return the body of a form (multipart/form-data)."""
    parts = [(f'name="{name}"', "", value.encode()) for name, value in fields.items()]
    parts += [(f'name="{name}"; filename="{name}.png"', "Content-Type: image/png\r\n", data)
              for name, data in files.items()]
    return b"".join(f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n{kind}\r\n".encode() + data + b"\r\n"
                    for head, kind, data in parts) + f"--{boundary}--\r\n".encode()
