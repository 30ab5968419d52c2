"""The tuning trials of each method: as many for the rival as for FoG, listed here and nowhere else."""
from __future__ import annotations

from typing import Any

TRIALS: dict[str, list[dict[str, Any]]] = {
    "fog": [{}, {"actor_lr": 1e-3}, {"entropy": 3e-3}, {"window": 20, "confirm_every": 13}],
    "ppo": [{}, {"lr": 3e-3}, {"copies": 16, "window": 40}, {"epochs": 15}],
}
"""Settings on top of the defaults of `FogConfig` and `PpoConfig`. The surrogate alone takes FoG's."""


def trial_name(settings: dict[str, Any]) -> str:
    """Return a short name of settings, fit for a folder."""
    return "-".join(f"{key}_{value:g}" for key, value in settings.items()) or "default"
