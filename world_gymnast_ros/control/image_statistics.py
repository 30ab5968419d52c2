"""What an image's own numbers tell of a camera that is not well: no model, no other image, no known scene.

Definite: black, white, without structure, grey, of another shape, with black bars. Only a hint: more blue than red, as
images with swapped channels (BGR) have. On real images and on scenes with a brown or pale table the hint is right;
a blue, green or grey table gives it too, and no statistic of one image can tell the two apart. So it never refuses.
"""
from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import numpy as np

from world_gymnast_ros.types import F64, U8

BLACK_LEVEL, WHITE_LEVEL = 24.0, 235.0
"""Of 255. A covered lens gives a few levels of noise; the darkest scene of the twin reaches 112."""
FLAT_LEVELS = 2.0
"""Standard deviation of the brightness; the flattest real image has 30."""
GREY_LEVELS = 12.0
"""Largest difference of channels, but for one pixel in a thousand. JPEG gives a grey image up to 4; the least
colourful of the real images and of the twin's scenes has 109."""
BAR_SHARE, BAR_LEVEL = 0.04, 16.0
"""A bar: so much of the image's height on both sides (or of its width), nowhere brighter than so many levels."""
ASPECT_TOLERANCE = 0.08
"""Relative. 4:3 against 5:4 is 0.06, and hardly seen; against 16:10 it is 0.2, against 16:9 0.33."""
COLD_SHARE = 0.2
"""Less than so much of the difference between red and blue is red."""
_STRIDE_PX = 160  # an image is looked at in steps that leave about so many pixels each way


class ImageFault(Enum):
    """What can be wrong with an image. The value says what it looks like and what to do."""

    BLACK = "the image is black: take the cap off, switch the light on, or set the exposure"
    WHITE = "the image is white: set the exposure"
    FLAT = "the image shows nothing, all of it is one brightness: check camera and cable"
    GREY = "the image has no colour: the policy needs RGB; set the camera's pixel format"
    ASPECT = "the image has another shape: set the camera to the policy's, such as 640x480"
    BARS = "the image has black bars on two sides: it was padded; set the camera to the policy's shape"
    MIRRORED = "the image is mirrored left to right: switch the camera's horizontal flip off"
    UPSIDE_DOWN = "the image is upside down: turn the camera or the image by 180 degrees"
    FLIPPED = "the image is flipped top to bottom: switch the camera's vertical flip off"
    COLD_COLOURS = ("more blue than red, as with red and blue swapped (BGR taken for RGB); a blue or green table looks "
                    "like that too")
    ARM_ELSEWHERE = "the arm is not seen where its joints say it is: another camera, a moved one, or another arm"


class Finding(NamedTuple):
    """A fault, the numbers behind it, and whether it is definite: only a definite one keeps the arm from moving."""

    fault: ImageFault
    numbers: str
    definite: bool

    @property
    def words(self) -> str:
        """The sentence for people."""
        return f"{self.fault.value} ({self.numbers})"


def still_finding(rgb: U8, aspect: float) -> Finding | None:
    """Return the first fault of an image uint8 (H, W, 3), or None.

    `aspect` width / height that the policy was trained for; 0: any. Square images pass: Bridge data are stored
    squashed to a square.
    """
    height, width = rgb.shape[:2]
    if aspect and abs(width / height / aspect - 1.0) > ASPECT_TOLERANCE and width != height:
        return Finding(ImageFault.ASPECT, f"{width}x{height} is {width / height:.2f} to 1, wanted {aspect:.2f}", True)
    thin = rgb[::max(1, height // _STRIDE_PX), ::max(1, width // _STRIDE_PX)]
    red, green, blue = (thin[..., i].astype(np.float64) for i in range(3))
    light, highest = (red + green + blue) / 3.0, np.maximum(np.maximum(red, green), blue)
    bright, dark = float(np.quantile(light, 0.99)), float(np.quantile(light, 0.01))
    if bright <= BLACK_LEVEL:
        return Finding(ImageFault.BLACK, f"99 % of it is below {bright:.0f} of 255, limit {BLACK_LEVEL:.0f}", True)
    if dark >= WHITE_LEVEL:
        return Finding(ImageFault.WHITE, f"99 % of it is above {dark:.0f} of 255, limit {WHITE_LEVEL:.0f}", True)
    if light.std() < FLAT_LEVELS:
        return Finding(ImageFault.FLAT, f"its brightness varies by {light.std():.1f} of 255, limit {FLAT_LEVELS}",
                       True)
    colour = float(np.quantile(highest - np.minimum(np.minimum(red, green), blue), 0.999))
    if colour <= GREY_LEVELS:
        return Finding(ImageFault.GREY, f"red, green and blue differ by {colour:.0f} of 255, limit {GREY_LEVELS:.0f}",
                       True)
    bar = max(_bar(highest.max(1)), _bar(highest.max(0)))
    if bar >= BAR_SHARE:
        return Finding(ImageFault.BARS, f"{100 * bar:.0f} % of it on both sides, limit {100 * BAR_SHARE:.0f} %", True)
    return _cold(red - blue)


def _bar(brightest: F64) -> float:
    """Return which share of the rows is black at both ends, of the brightest value of each row (N,)."""
    lit = np.flatnonzero(brightest > BAR_LEVEL)
    return float(min(lit[0], len(brightest) - 1 - lit[-1]) / len(brightest)) if len(lit) else 0.0


def _cold(warm: F64) -> Finding | None:
    share = float(np.maximum(warm, 0.0).sum() / max(float(np.abs(warm).sum()), 1.0))
    if share >= COLD_SHARE:
        return None
    return Finding(ImageFault.COLD_COLOURS, f"red leads in {100 * share:.0f} % of the difference to blue, usual is "
                   f"{100 * COLD_SHARE:.0f} % or more", False)
