"""What a world model may be told of objects that the arm moves: an optional source, behind a protocol.

Whoever finds objects in a captured frame and predicts where hands take them implements `ObjectDynamics`; a world model
that knows a clean background draws them there. Without one a world model sees frames and actions alone.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from world_gymnast_ros.types import F32, F64, I64, U8, WorldModel


@dataclass(frozen=True)
class ObjectTracks:
    """Where the movable objects of one episode are predicted, from the first frame and the actions.

    `path_m` float32 (T+1, N, 3), base axes, NaN where there is none; `sizes_m` float32 (N, 2), radius and height;
    `camera` float32 (12,), the projection that sees them, as from `arm_silhouette.projection`.
    """

    path_m: F32
    sizes_m: F32
    camera: F32


class ObjectPaths(Protocol):
    """Objects of G imagined continuations, N in each, step by step."""

    places_m: F64
    """(G, N, 3), base axes, NaN where there is none."""
    sizes_m: F64
    """(G, N, 2), radius and height, m."""

    def step(self, targets: F32) -> F64:
        """Go on to target states (G, 7); return the places (G, N, 3)."""

    def keep(self, copies: I64) -> None:
        """Go on with these continuations alone."""


class ObjectDynamics(Protocol):
    """Finds objects in captured frames and predicts where the hand takes them."""

    @property
    def projection(self) -> tuple[float, ...]:
        """The calibrated camera, 12 numbers as of `arm_silhouette.projection`."""

    def begin(self, captured: Sequence[U8], states: F32) -> tuple[ObjectPaths, F32] | None:
        """Find the objects in captured frames (G of any size) at states (G, 7); return them with cameras (G, 12)."""

    def predict(self, captured: U8, states: F32) -> ObjectTracks | None:
        """Return the predicted path of the objects in one captured frame under target states (T+1, 7)."""


@runtime_checkable
class DrawsObjects(WorldModel, Protocol):
    """A world model that draws the arm for a calibrated camera, and objects where they are predicted."""

    def with_objects(self, objects: ObjectDynamics) -> Self:
        """Return the same model with another source of objects: another camera, other objects found."""


def drawn_with(world: WorldModel, objects: ObjectDynamics) -> WorldModel:
    """Return a world model with another source of objects; as it is where it draws from frames and actions alone."""
    return world.with_objects(objects) if isinstance(world, DrawsObjects) else world
