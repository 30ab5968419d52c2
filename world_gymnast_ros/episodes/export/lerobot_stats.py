"""The statistics that LeRobot keeps per episode and for the whole dataset."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.types import U8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Stats = dict[str, Any]


def column_stats(values: NDArray[Any]) -> Stats:
    """Return min, max, mean, std, quantiles (lists as long as a row is wide) and count of a column (T,) or (T, n)."""
    return _stats(values.reshape(len(values), -1).astype(np.float64), len(values))


def image_stats(frames: U8) -> Stats:
    """Return the same of images uint8 (T, H, W, 3), in 0..1, per channel as nested lists (3, 1, 1)."""
    # Every fourth pixel: LeRobot too takes its image statistics from reduced images.
    pixels = frames[:, ::4, ::4].reshape(-1, 3).astype(np.float64) / 255.0
    stats = _stats(pixels, len(frames))
    return {key: value if key == "count" else np.reshape(value, (3, 1, 1)).tolist() for key, value in stats.items()}


def merge_stats(episodes: Sequence[dict[str, Stats]]) -> dict[str, Stats]:
    """Return the statistics of the whole dataset. Quantiles are weighted means of the episodes', as LeRobot's are."""
    return {name: _merge([stats[name] for stats in episodes]) for name in episodes[0]}


def _stats(values: NDArray[Any], count: int) -> Stats:
    stats: Stats = {
        "min": values.min(0).tolist(), "max": values.max(0).tolist(), "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(), "count": [count],
    }
    for name, quantile in QUANTILES.items():
        stats[name] = np.quantile(values, quantile, axis=0).tolist()
    return stats


def _merge(parts: list[Stats]) -> Stats:
    weights = np.array([part["count"][0] for part in parts], dtype=np.float64)
    arrays = {key: np.array([part[key] for part in parts], dtype=np.float64) for key in parts[0] if key != "count"}

    def mean(values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.tensordot(weights / weights.sum(), values, axes=1))

    total = mean(arrays["mean"])
    merged: Stats = {key: mean(values).tolist() for key, values in arrays.items()}
    merged["min"], merged["max"] = arrays["min"].min(0).tolist(), arrays["max"].max(0).tolist()
    merged["std"] = np.sqrt(mean(arrays["std"] ** 2 + (arrays["mean"] - total) ** 2)).tolist()
    merged["count"] = [int(weights.sum())]
    return merged
