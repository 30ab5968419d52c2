"""OpenVLA's action bins: 256 edges in [-1, 1], 255 centres, and the statistics that give them units.

Bin b holds values between edge b and edge b + 1 and is token `vocab_size - 1 - b` (source: openvla
`prismatic/vla/action_tokenizer.py`, facts in its paper). Bin 255 (the value 1.0 itself) decodes to the last centre.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadAction, BadCheckpoint
from world_gymnast_ros.types import ACTION_DIM, F32, I64

BINS = 256
EDGES: NDArray[np.float64] = np.linspace(-1.0, 1.0, BINS)
CENTRES: NDArray[np.float64] = (EDGES[:-1] + EDGES[1:]) / 2.0


def encode_bins(values: NDArray[Any]) -> I64:
    """Return bin indices 0..255 of normalised values (clipped to [-1, 1])."""
    return np.asarray(np.digitize(np.clip(values, -1.0, 1.0), EDGES) - 1, np.int64)


def decode_bins(bins: NDArray[Any]) -> F32:
    """Return the normalised centre value of each bin index 0..255."""
    bins = np.asarray(bins)
    if bins.size and (bins.min() < 0 or bins.max() >= BINS):
        raise BadAction(f"bin index {bins.min()}..{bins.max()} is outside 0..{BINS - 1}; these are not action tokens")
    return np.asarray(CENTRES[np.minimum(bins, BINS - 2)], np.float32)


@dataclass(frozen=True)
class ActionStats:
    """Per-dimension 1 % and 99 % quantiles, m and rad per step. Where `mask` is False the value passes through."""

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mask: tuple[bool, ...] = (True,) * 6 + (False,)

    def __post_init__(self) -> None:
        if not len(self.q01) == len(self.q99) == len(self.mask) == ACTION_DIM:
            raise BadCheckpoint(f"action statistics need {ACTION_DIM} numbers each; the checkpoint's config is broken")
        if any(m and not hi - lo > 1e-6 for lo, hi, m in zip(self.q01, self.q99, self.mask, strict=True)):
            raise BadCheckpoint(f"action statistics need q99 > q01, got {self.q01} and {self.q99}")

    @classmethod
    def of(cls, deltas: F32, min_range: float = 0.02) -> ActionStats:
        """Measure `deltas` (..., 7); a dimension that hardly moves gets the range +-`min_range` / 2 (m or rad)."""
        flat = deltas.reshape(-1, ACTION_DIM).astype(np.float64)
        lo, hi = np.quantile(flat, 0.01, axis=0), np.quantile(flat, 0.99, axis=0)
        short = hi - lo < min_range
        middle = (lo + hi) / 2.0
        lo, hi = np.where(short, middle - min_range / 2, lo), np.where(short, middle + min_range / 2, hi)
        lo[6], hi[6] = 0.0, 1.0
        return cls(tuple(lo.round(6).tolist()), tuple(hi.round(6).tolist()))

    def normalise(self, deltas: NDArray[Any]) -> F32:
        """Map physical actions (..., 7) to [-1, 1]."""
        q01, q99 = np.array(self.q01), np.array(self.q99)
        scaled = 2.0 * (deltas - q01) / np.maximum(q99 - q01, 1e-8) - 1.0
        return np.clip(np.where(self.mask, scaled, deltas), -1.0, 1.0).astype(np.float32)

    def unnormalise(self, values: NDArray[Any]) -> F32:
        """Map normalised values (..., 7) to physical actions; the gripper is clipped to [0, 1]."""
        q01, q99 = np.array(self.q01), np.array(self.q99)
        out = np.where(self.mask, 0.5 * (values + 1.0) * (q99 - q01) + q01, values)
        out[..., 6] = np.clip(out[..., 6], 0.0, 1.0)
        return out.astype(np.float32)
