"""A judge that a scene can be taught: by a few settings, from marked episodes, without weights."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.objects import ObjectDynamics
from world_gymnast_ros.types import U8, Judge

MIN_OUTCOMES = 3
"""Successes, and failures, that a setting is learned from."""


class SceneJudge(Judge, Protocol):
    """Judges by what it measures, and shares its camera and its objects with the world model."""

    @property
    def objects(self) -> ObjectDynamics:
        """Finds the objects that it judges by, as it has learned the camera."""

    def with_camera(self, episodes: Sequence[Episode]) -> tuple[Self, str]:
        """Return it with the camera where these episodes show it, or as it is, and a line about that. Needs no outcome.
        """

    def learned(self, episodes: Sequence[Episode]) -> tuple[Self, list[str]]:
        """Return it with the settings that explain the outcomes of one instruction best, and lines about each.
        BadInstruction where it cannot measure the instruction."""

    def strictness(self, episodes: Sequence[Episode]) -> Any:
        """Return how strict it is about what the episodes ask for; the greater of two is the stricter."""

    def predicted_by_strictness(self, rollouts: Sequence[U8], episodes: Sequence[Episode]
                                ) -> Mapping[Any, NDArray[np.bool_]]:
        """Return which rollouts (T+1, H, W, 3) it calls a success, bool (E,), at each strictness that it knows."""

    def set_strictness(self, strictness: Any, episodes: Sequence[Episode]) -> None:
        """Be so strict about what the episodes ask for; in place, for what it measured stays true."""

    def save(self, directory: Path) -> None:
        """Write its checkpoint."""
