"""What a JPEG round trip in TensorFlow does to a frame, to the last bit.

OpenVLA's training frames, and its evaluation, went through `encode_jpeg` and `decode_image`, which decodes with the
fast inverse transform of libjpeg. Pillow can only decode with the accurate one: on camera frames that differs by about
one grey level on average, nearly as much as leaving JPEG out. So the round trip is written out here, without the
entropy coding, which loses nothing: quality 95, colour at half resolution.

All arithmetic is libjpeg's, in integers (sources: the comments of jccolor, jcsample, jfdctint, jidctfst, jdsample and
jdcolor; Arai, Agui and Nakajima 1988 for the fast transform).
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.types import U8

I32 = NDArray[np.int32]

LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]], np.int32)
CHROMINANCE = np.full((8, 8), 99, np.int32)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
"""The quantisation tables of the JPEG standard's annex K."""
QUALITY = 95


def jpeg_round_trip(rgb: U8) -> U8:
    """Return what is left of a frame uint8 (H, W, 3) after JPEG at TensorFlow's default settings."""
    height, width = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -height % 2), (0, -width % 16), (0, 0)), mode="edge").astype(np.int32)
    luma, blue, red = _to_ycc(padded)
    luma = _planes(luma[:height, :width], LUMINANCE)
    small = [_planes(_halve(plane), CHROMINANCE) for plane in (blue, red)]
    blue, red = (_double(plane[:, :(width + 1) // 2])[:height, :width] for plane in small)
    return _to_rgb(luma, blue - 128, red - 128)


def _to_ycc(rgb: I32) -> tuple[I32, I32, I32]:
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    half = (128 << 16) + 32767
    return ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16, (-11059 * r - 21709 * g + 32768 * b + half) >> 16,
            (32768 * r - 27439 * g - 5329 * b + half) >> 16)


def _to_rgb(y: I32, blue: I32, red: I32) -> U8:
    r = y + ((91881 * red + 32768) >> 16)
    g = y + ((-22554 * blue - 46802 * red + 32768) >> 16)
    b = y + ((116130 * blue + 32768) >> 16)
    return np.asarray(np.clip(np.stack([r, g, b], axis=-1), 0, 255), np.uint8)


def _halve(plane: I32) -> I32:
    """Average 2 x 2; the rounding alternates from column to column."""
    total = plane[::2, ::2] + plane[::2, 1::2] + plane[1::2, ::2] + plane[1::2, 1::2]
    return np.asarray((total + np.tile([1, 2], (total.shape[1] + 1) // 2)[:total.shape[1]]) >> 2, np.int32)


def _double(plane: I32) -> I32:
    """Enlarge 2 x 2 by libjpeg's triangle filter: 3/4 of the nearer, 1/4 of the further sample, along both axes."""
    rows = np.pad(plane, ((1, 1), (0, 0)), mode="edge")
    out = np.empty((2 * plane.shape[0], 2 * plane.shape[1]), np.int32)
    for first, other in ((0, rows[:-2]), (1, rows[2:])):
        column = np.pad(3 * plane + other, ((0, 0), (1, 1)), mode="edge")
        out[first::2, ::2] = (3 * column[:, 1:-1] + column[:, :-2] + 8) >> 4
        out[first::2, 1::2] = (3 * column[:, 1:-1] + column[:, 2:] + 7) >> 4
    return out


def _planes(plane: I32, table: I32) -> I32:
    """Return a plane of samples after transform, quantisation and back."""
    height, width = plane.shape
    whole = np.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge")
    blocks = whole.reshape(whole.shape[0] // 8, 8, whole.shape[1] // 8, 8).transpose(1, 3, 0, 2).astype(np.int32)
    steps = np.clip((table * (200 - 2 * QUALITY) + 50) // 100, 1, 255).astype(np.int32)[:, :, None, None]
    found = _forward(blocks - 128)
    size = (np.abs(found) + 4 * steps) // (8 * steps)
    back = _fast_inverse(np.sign(found) * size, steps)
    samples = back.transpose(2, 0, 3, 1).reshape(whole.shape)[:height, :width]
    return np.clip(samples + 128, 0, 255).astype(np.int32)


def _forward(blocks: I32) -> I32:
    """The accurate forward transform (Loeffler, Ligtenberg, Moschytz) of (8, 8, ...) samples, 8 times too large."""
    rows = _forward_pass(blocks.swapaxes(0, 1), 2, 13 - 2, up=True).swapaxes(0, 1)
    return _forward_pass(rows, 2, 13 + 2, up=False)


def _forward_pass(x: I32, bits: int, shift: int, *, up: bool) -> I32:
    """Transform along axis 0. The first pass keeps `bits` more bits, the second takes them away."""
    plus, minus = x[:4] + x[7:3:-1], x[:4] - x[7:3:-1]
    even, odd = plus[:2] + plus[3:1:-1], plus[:2] - plus[3:1:-1]
    out = np.empty_like(x)

    def descale(value: I32, by: int) -> I32:
        return np.asarray((value + (1 << (by - 1))) >> by, np.int32)

    total, difference = even[0] + even[1], even[0] - even[1]
    out[0], out[4] = (total << bits, difference << bits) if up else (descale(total, bits), descale(difference, bits))
    z1 = (odd[1] + odd[0]) * 4433
    out[2], out[6] = descale(z1 + odd[0] * 6270, shift), descale(z1 - odd[1] * 15137, shift)
    t7, t6, t5, t4 = minus
    z5 = (t4 + t6 + t5 + t7) * 9633
    z1, z2 = (t4 + t7) * -7373, (t5 + t6) * -20995
    z3, z4 = (t4 + t6) * -16069 + z5, (t5 + t7) * -3196 + z5
    out[7], out[5] = descale(t4 * 2446 + z1 + z3, shift), descale(t5 * 16819 + z2 + z4, shift)
    out[3], out[1] = descale(t6 * 25172 + z2 + z3, shift), descale(t7 * 12299 + z1 + z4, shift)
    return out


def _fast_inverse(coefficients: I32, steps: I32) -> I32:
    """The fast inverse transform of (8, 8, ...) quantised coefficients; products are cut, not rounded."""
    k = np.arange(8)
    scales = np.where(k == 0, 1.0, np.sqrt(2.0) * np.cos(k * np.pi / 16))
    table = np.rint(np.outer(scales, scales) * (1 << 14)).astype(np.int64)[:, :, None, None]
    factors = ((steps.astype(np.int64) * table + (1 << 11)) >> 12).astype(np.int32)
    columns = _inverse_pass(coefficients * factors)
    return np.asarray(_inverse_pass(columns.swapaxes(0, 1)).swapaxes(0, 1) >> 5, np.int32)


def _inverse_pass(x: I32) -> I32:
    """Transform along axis 0 (Arai, Agui, Nakajima)."""

    def times(value: I32, constant: int) -> I32:
        return np.asarray((value * constant) >> 8, np.int32)

    t10, t11, t13 = x[0] + x[4], x[0] - x[4], x[2] + x[6]
    t12 = times(x[2] - x[6], 362) - t13
    t0, t3, t1, t2 = t10 + t13, t10 - t13, t11 + t12, t11 - t12
    z13, z10, z11, z12 = x[5] + x[3], x[5] - x[3], x[1] + x[7], x[1] - x[7]
    t7, t11 = z11 + z13, times(z11 - z13, 362)
    z5 = times(z10 + z12, 473)
    t10, t12 = times(z12, 277) - z5, times(z10, -669) + z5
    t6 = t12 - t7
    t5 = t11 - t6
    t4 = t10 + t5
    return np.stack([t0 + t7, t1 + t6, t2 + t5, t3 - t4, t3 + t4, t2 - t5, t1 - t6, t0 - t7])
