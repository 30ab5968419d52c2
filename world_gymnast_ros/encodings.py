"""Pixels of `sensor_msgs/Image` as RGB, by numpy alone: grey, BGR and alpha, YUV as webcams give it, Bayer mosaics.

The numbers are OpenCV's, hence cv_bridge's: BT.601 with limited range for YUV, bilinear interpolation for Bayer.
`8UC3` and `8UC4` name no colours; they are taken for BGR, which is what OpenCV writes.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadFrame
from world_gymnast_ros.types import U8

CHANNELS: dict[str, tuple[int, tuple[int, ...]]] = {
    "rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "8UC3": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)), "8UC4": (4, (2, 1, 0)), "mono8": (1, (0, 0, 0)), "8UC1": (1, (0, 0, 0)),
}
"""Interleaved encodings: channels on the wire, and which of them are R, G, B."""
PACKED_YUV = {"yuv422": (1, 0, 2), "uyvy": (1, 0, 2), "yuv422_yuy2": (0, 1, 3), "yuyv": (0, 1, 3)}
"""4:2:2 in two bytes a pixel: first byte of Y, U and V among the four bytes of two pixels."""
PLANAR_YUV = {"nv12": (0, 1), "nv21": (1, 0)}
"""4:2:0: a plane of Y, then one of half the height with U and V in turn; the places of U and V there."""
BAYER = {"bayer_rggb8": (0, 0), "bayer_grbg8": (0, 1), "bayer_gbrg8": (1, 0), "bayer_bggr8": (1, 1)}
"""Row and column of the red pixel among each 2 x 2."""
ENCODINGS = (*CHANNELS, *PACKED_YUV, *PLANAR_YUV, *BAYER)
DEEP = ("16", "32", "64")
"""What the names of encodings with more than 8 bits a channel hold: depth, thermal and raw sensor images."""


def rgb_of(encoding: str, data: U8, height: int, width: int, step: int) -> U8:
    """Return the image uint8 (H, W, 3) in the bytes `data` (N,), `step` bytes a row. Raises BadFrame.

    rgb8 without row padding is not copied: the image then shares the buffer of `data`.
    """
    if encoding not in ENCODINGS:
        deep = any(bits in encoding for bits in DEEP)
        why = " (more than 8 bits a channel)" if deep else ""
        raise BadFrame(f"image encoding '{encoding[:40]}' is not supported{why}; set the camera's colour image to "
                       f"one of {', '.join(ENCODINGS)}")
    planar = encoding in PLANAR_YUV
    row = width * (CHANNELS[encoding][0] if encoding in CHANNELS else 2 if encoding in PACKED_YUV else 1)
    rows = height + height // 2 if planar else height
    if height < 1 or width < 1 or step < row or len(data) < (rows - 1) * step + row:
        raise BadFrame(f"image of {width}x{height} {encoding} needs {row} bytes per row, {rows} rows; it has step "
                       f"{step} and {len(data)} bytes of data: the publisher is broken")
    even = (1, 2) if encoding in PACKED_YUV else (2, 2) if encoding not in CHANNELS else (1, 1)
    if height % even[0] or width % even[1]:
        raise BadFrame(f"image of {width}x{height} {encoding} has an odd size, which this encoding lacks: the "
                       "publisher is broken")
    data = np.ascontiguousarray(data)  # the strides below count bytes
    bytes_HW = np.lib.stride_tricks.as_strided(data, (rows, row), (step, 1), writeable=False)
    if encoding in CHANNELS:
        channels, order = CHANNELS[encoding]
        pixels = bytes_HW.reshape(height, width, channels) if step == row else np.lib.stride_tricks.as_strided(
            data, (height, width, channels), (step, channels, 1), writeable=False)
        return np.ascontiguousarray(pixels if order == (0, 1, 2) and channels == 3 else pixels[..., order])
    if encoding in PACKED_YUV:
        y, u, v = PACKED_YUV[encoding]
        four = bytes_HW.reshape(height, width // 2, 4)
        return _rgb_of_yuv(four[..., [y, y + 2]].reshape(height, width), four[..., u].repeat(2, 1),
                           four[..., v].repeat(2, 1))
    if planar:
        u, v = PLANAR_YUV[encoding]
        half = bytes_HW[height:].reshape(height // 2, width // 2, 2).repeat(2, 0).repeat(2, 1)
        return _rgb_of_yuv(bytes_HW[:height], half[..., u], half[..., v])
    return _rgb_of_bayer(bytes_HW, *BAYER[encoding])


def _rgb_of_yuv(y: U8, u: U8, v: U8) -> U8:
    """Return RGB of BT.601 with limited range (H, W) each, in OpenCV's fixed point of 20 bits."""
    luma = np.maximum(y.astype(np.int32) - 16, 0) * 1220542 + (1 << 19)
    blue, red = u.astype(np.int32) - 128, v.astype(np.int32) - 128
    rgb = np.empty((*y.shape, 3), np.uint8)
    for channel, (of_blue, of_red) in enumerate(((0, 1673527), (-409993, -852492), (2116026, 0))):
        rgb[..., channel] = np.clip((luma + of_blue * blue + of_red * red) >> 20, 0, 255)
    return rgb


def _rgb_of_bayer(mosaic: U8, red_row: int, red_column: int) -> U8:
    """Return RGB of a mosaic (H, W): the missing colours are means of the nearest pixels that have them.

    The outermost rows and columns, which lack neighbours, repeat the next ones inside, as OpenCV has it.
    """
    wide: NDArray[np.uint16] = mosaic.astype(np.uint16)
    if min(mosaic.shape) < 4:
        raise BadFrame(f"a Bayer image of {mosaic.shape[1]}x{mosaic.shape[0]} is too small; at least 4x4 is needed")
    up, down, left, right = wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]
    here = wide[1:-1, 1:-1]
    across, along = (left + right + 1) >> 1, (up + down + 1) >> 1
    cross = (up + down + left + right + 2) >> 2
    corners = (wide[:-2, :-2] + wide[:-2, 2:] + wide[2:, :-2] + wide[2:, 2:] + 2) >> 2
    in_red_row = (np.arange(1, here.shape[0] + 1) % 2 == red_row)[:, None]
    in_red_column = (np.arange(1, here.shape[1] + 1) % 2 == red_column)[None]
    is_red, is_blue = in_red_row & in_red_column, ~in_red_row & ~in_red_column
    rgb = np.empty((*mosaic.shape, 3), np.uint8)
    inner = rgb[1:-1, 1:-1]
    inner[..., 0] = np.where(is_red, here, np.where(is_blue, corners, np.where(in_red_row, across, along)))
    inner[..., 1] = np.where(is_red | is_blue, cross, here)
    inner[..., 2] = np.where(is_blue, here, np.where(is_red, corners, np.where(in_red_row, along, across)))
    rgb[0, 1:-1], rgb[-1, 1:-1] = rgb[1, 1:-1], rgb[-2, 1:-1]
    rgb[:, 0], rgb[:, -1] = rgb[:, 1], rgb[:, -2]
    return rgb
