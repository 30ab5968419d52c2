"""Images: one check and one resize for policy, world model, recorder and twin, so that all see the same pixels."""
from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from world_gymnast_ros.errors import BadFrame
from world_gymnast_ros.files import whole
from world_gymnast_ros.types import U8


def check_rgb(rgb: Any, name: str = "rgb") -> U8:
    """Return `rgb` if it is uint8 (..., H, W, 3) with no empty axis among the last three; else raise BadFrame."""
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8:
        got = getattr(rgb, "dtype", type(rgb).__name__)
        raise BadFrame(f"{name} must be a uint8 numpy array, got {got}: convert at the boundary (RGB, 0..255)")
    if rgb.ndim < 3 or rgb.shape[-1] != 3 or 0 in rgb.shape[-3:]:
        raise BadFrame(f"{name} must have shape (..., H, W, 3), got {rgb.shape}: drop alpha, put channels last")
    return rgb


def resize_rgb(rgb: U8, size: tuple[int, int]) -> U8:
    """Return images uint8 (..., h, w, 3) of `size` (h, w), squashed to that shape as Bridge does (no crop).

    Shrinking averages the covered area (box filter: no aliasing, like cv2.INTER_AREA); enlarging is bilinear.
    """
    check_rgb(rgb)
    height, width = int(size[0]), int(size[1])
    if height < 1 or width < 1:
        raise BadFrame(f"size is {size}; height and width must be at least 1")
    if rgb.shape[-3:-1] == (height, width):
        return rgb.copy()
    shrinks = height <= rgb.shape[-3] and width <= rgb.shape[-2]
    resample = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    flat = np.ascontiguousarray(rgb).reshape(-1, *rgb.shape[-3:])
    out = np.empty((len(flat), height, width, 3), np.uint8)
    for i, image in enumerate(flat):
        out[i] = np.asarray(Image.fromarray(image).resize((width, height), resample))
    return out.reshape(*rgb.shape[:-3], height, width, 3)


def decode_rgb(source: bytes | Path, name: str) -> U8:
    """Return a PNG or JPEG, upright as its EXIF has it, as uint8 (H, W, 3). Raises BadFrame, whatever Pillow raises.

    A damaged file makes Pillow raise nearly anything: OSError, SyntaxError, struct.error, IndexError. More than 8 bits
    of grey, as depth and thermal cameras have, are refused: they would become white. `name`: what errors call it.
    """
    try:
        with _opened(source) as image:
            _refuse_deep(image, name)
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except BadFrame:
        raise
    except Exception as error:
        raise _unreadable(source, name, error) from error


def check_image(data: bytes, name: str) -> tuple[int, int]:
    """Return (height, width) of a PNG or JPEG that `decode_rgb` takes; raise BadFrame as it does, but more quickly.

    Of a JPEG, every byte is read and an eighth of the size is made.
    """
    try:
        with _opened(data) as image:
            _refuse_deep(image, name)
            size = (image.height, image.width)
            if image.format == "JPEG":
                image.draft("L", (image.width // 8, image.height // 8))
            image.load()
            return size
    except BadFrame:
        raise
    except Exception as error:
        raise _unreadable(data, name, error) from error


def _opened(source: bytes | Path) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=("JPEG", "PNG"))


def _refuse_deep(image: Image.Image, name: str) -> None:
    if image.mode[0] in "IF":  # I, I;16, I;16B, F
        raise BadFrame(f"{name} has more than 8 bits of grey (Pillow's mode {image.mode}), as depth and thermal "
                       "cameras have; give the colour image, 8 bits a channel")


def _unreadable(source: bytes | Path, name: str, error: Exception) -> BadFrame:
    what = f" ({len(source)} bytes)" if isinstance(source, bytes) else ""
    message = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    words = " ".join(re.sub(r"<[^>]*at 0x[0-9a-f]+>|'?/[^ ]*'?", "", message).split())[:160]
    return BadFrame(f"{name}{what} cannot be decoded ({type(error).__name__}: {words}); a whole PNG or JPEG is needed")


def write_film_strips(path: Path, groups: Sequence[Sequence[U8]], columns: int = 10, scale: int = 2) -> None:
    """Write a PNG of rollouts as film strips, `columns` evenly spaced frames each; whole or not at all.

    `groups`: rollouts uint8 (T+1, H, W, 3) that belong together, one above the other, such as what happened and what
    was imagined; a white line parts the groups. `scale`: whole-number enlargement, edges kept sharp.
    """
    rows = []
    for group in groups:
        size = group[0].shape[1:3]
        for frames in group:
            picks = np.linspace(0, len(frames) - 1, columns).round().astype(int)
            rows.append(np.concatenate(list(resize_rgb(frames[picks], size)), 1))
        rows.append(np.full((4, rows[-1].shape[1], 3), 255, np.uint8))
    widest = max(row.shape[1] for row in rows)
    sheet = Image.fromarray(np.concatenate([np.pad(r, ((0, 0), (0, widest - r.shape[1]), (0, 0))) for r in rows[:-1]]))
    with whole(path) as partial:
        sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST).save(partial, format="PNG")
