"""Vary a captured start a little, so that the adapter learns the scene and not one image of it."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from world_gymnast_ros.types import U8, Frame, Start


def jitter_rgb(rgb: U8, seed: int, max_shift: float, max_colour: float) -> U8:
    """Shift uint8 (H, W, 3) by up to `max_shift` of its width and scale its colours by 1 +- `max_colour`.

    Edges are repeated. Whole pixels only: interpolation would blur, and blur is what the trust filter looks for.
    """
    rng = np.random.default_rng(seed)
    reach = round(max_shift * rgb.shape[1])
    dx, dy = rng.integers(-reach, reach + 1, 2) if reach else (0, 0)
    gain = (1 + rng.uniform(-max_colour, max_colour)) * (1 + rng.uniform(-max_colour, max_colour, 3) / 2)
    padded = np.pad(rgb, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = rgb.shape[:2]
    moved = padded[reach + dy: reach + dy + height, reach + dx: reach + dx + width]
    return np.clip(moved * gain + 0.5, 0, 255).astype(np.uint8)


def jitter_start(start: Start, seed: int, max_shift: float, max_colour: float) -> Start:
    """Return `start` with its image jittered; state and instruction stay."""
    rgb = jitter_rgb(start.frame.rgb, seed, max_shift, max_colour)
    return replace(start, frame=Frame(rgb, start.frame.stamp_ns), original=start.captured)
