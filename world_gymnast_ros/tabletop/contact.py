"""Where the hand takes an object: pushed ahead of it, or grasped and let go. Quasi-static, from poses alone.

A dream of 64x64 pixels smears what is touched, so where an object ends cannot be read from it. Where the hand goes is
known from the actions, and where the object lay from the captured frame; on a table with friction a push and a grasp
follow from these two to within a cm. Mass, friction and tipping are not in it: what slides on or falls over is not
foreseen; other sizes than about 4 cm only where recordings have taught them (`calibration.py`).

The lengths were fitted to scripted play in the simulated twin.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.types import F32, F64

THIN_M, EDGE_M, FACE_M = 0.002, 0.018, 0.012
"""Half of what the closed fingers fill along the hand's x axis (forward where its yaw is 0), and across: as far as they
touch what lies beside them, and as far as they push what lies before them, their edges being round."""
OBJECT_SIZE_M = (0.022, 0.04)
"""What is pushed is an upright disc of this radius, and this high, unless others are given: a ball, which rolls on,
acts as a greater one."""
TURN_ASIDE, TURN_AHEAD, SLIP = 1.2, 2.0, 1.5
"""Where the fingers meet it off its middle, the disc goes aside: in the direction of the force, whose slope against the
normal of contact is that of the hand's way over TURN (what turning takes of it; a disc under even pressure would have
3.25, Goyal et al. 1991), at their thin side or their wide one, and at most SLIP (friction). All three are fitted."""
OVER_M = 0.005
"""The hand passes over objects when it is higher than their top by this."""
GRASP_RADIUS_M, GRASP_HEIGHT_M = 0.03, 0.04
"""What is within this of a closing hand, and the hand no higher than that, is grasped."""
GRAZING = 0.05
"""Cosine of the hand's way to the normal of contact below which it drags nothing along."""
SUBSTEPS = 16
LONGEST_PUSH_M = 0.012
"""In one of them: how far it throws aside what the hand was lowered onto."""
HAND_LAG = 0.3
HAND_SAG_M = (0.0015, 0.0, 0.003)
"""Where the hand is, given its targets: this share of the last step behind, and below (base axes)."""


def hand_after(before: F64, after: F64, lag: float = HAND_LAG, sag_m: Sequence[float] = HAND_SAG_M) -> F64:
    """Return the hand's pose (..., 7) after a step between target states `before` and `after` (..., 7)."""
    hand = np.array(after, np.float64)
    hand[..., :3] -= lag * (np.asarray(after)[..., :3] - np.asarray(before)[..., :3]) + np.array(sag_m)
    return hand


def push(places_m: F64, before: F64, after: F64, pushing: NDArray[np.bool_],
           sizes_m: F64 | tuple[float, float] = OBJECT_SIZE_M) -> F64:
    """Return where objects at `places_m` (G, N, 2) are after hands go from `before` to `after` (G, 7).

    `pushing` (G, N): which of them the hand may push at all. `sizes_m` (G, N, 2): their radii and
    heights, or one pair for all.
    """
    place = np.array(places_m, np.float64)
    radii_m, over_m = np.asarray(sizes_m)[..., 0], np.asarray(sizes_m)[..., 1] + OVER_M
    if not (pushing & (np.minimum(before[:, 2], after[:, 2])[:, None] < over_m)).any():
        return place
    way = (after - before)[:, :2]
    length = np.linalg.norm(way, axis=1)
    ahead = (way / np.maximum(length, 1e-9)[:, None])[:, None]
    yaw = after[:, None, 5]
    wide = _wide_side_leads(ahead, yaw)
    across_m, turn = np.where(wide, FACE_M, EDGE_M), np.where(wide, TURN_AHEAD, TURN_ASIDE)
    for s in (np.arange(SUBSTEPS) + 1) / SUBSTEPS:
        hand = before + (after - before) * s
        normal, distance = _nearest(place - hand[:, None, :2], yaw, across_m)
        normal = np.where((distance > 0)[..., None], normal, ahead)
        touched = pushing & (hand[:, None, 2] < over_m) & (length > 1e-4)[:, None] & (distance < radii_m)
        into = (normal * ahead).sum(-1)
        aside = ahead - into[..., None] * normal
        across = np.linalg.norm(aside, axis=-1)
        slope = np.minimum(across / np.maximum(into, GRAZING) / turn, SLIP) * (into > GRAZING)
        sideways = aside / np.maximum(across, 1e-9)[..., None]
        depth = np.where(touched, np.minimum(radii_m - distance, LONGEST_PUSH_M), 0.0)
        place = place + depth[..., None] * (normal + slope[..., None] * sideways)
    return place


def _wide_side_leads(ahead: F64, yaw: F64) -> NDArray[np.bool_]:
    """Return whether hands of `yaw` (G, 1) that go `ahead` (G, 1, 2) do so with their fingers' wide side (G, 1)."""
    return np.asarray(np.abs(ahead[..., 0] * np.cos(yaw) + ahead[..., 1] * np.sin(yaw)) > np.sqrt(0.5))


def _nearest(gap_m: F64, yaw: F64, across_m: F64) -> tuple[F64, F64]:
    """Return the direction (G, N, 2) and distance (G, N) to points at `gap_m` (G, N, 2) from hands of `yaw` (G, 1),
    from the nearest of their fingers, `across_m` (G, 1) to either side; the distance is 0 inside."""
    c, s = np.cos(yaw), np.sin(yaw)
    along, across = gap_m[..., 0] * c + gap_m[..., 1] * s, gap_m[..., 1] * c - gap_m[..., 0] * s
    along, across = along - np.clip(along, -THIN_M, THIN_M), across - np.clip(across, -across_m, across_m)
    distance = np.hypot(along, across)
    off = np.stack([along * c - across * s, along * s + across * c], -1)
    return off / np.maximum(distance, 1e-9)[..., None], distance


class ObjectPaths:
    """Objects of G scenes, N in each, as hands push, lift, carry and drop them, step by step.

    A closed hand pushes; a hand that closes takes what is in it, and opening lets it fall to the height it lay at.
    Implements `models.world_models.objects.ObjectPaths`.
    """

    def __init__(self, places_m: F64, sizes_m: F64 | tuple[float, float] = OBJECT_SIZE_M,
                 hand: F64 | F32 | None = None, lag: float = HAND_LAG, sag_m: Sequence[float] = HAND_SAG_M) -> None:
        """Begin with objects at `places_m` (G, N, 3) in base axes, NaN where there is none; sizes as of `push`.

        `hand` (G, 7), Bridge states at the start, with the `lag` and `sag_m` of `hand_after`, is what `step` needs.
        """
        self.places_m = np.array(places_m, np.float64)
        self.sizes_m = np.broadcast_to(np.asarray(sizes_m, np.float64), (*self.places_m.shape[:2], 2)).copy()
        self.rest_m = self.places_m[..., 2].copy()
        self.held = np.zeros(self.places_m.shape[:2], np.bool_)
        self._offset = np.zeros_like(self.places_m)
        self._hand = None if hand is None else np.array(hand, np.float64)
        self._target, self._lag, self._sag_m = self._hand, lag, sag_m

    def step(self, targets: NDArray[Any]) -> F64:
        """Go on to target states (G, 7), after which the hands follow; return the places (G, N, 3)."""
        assert self._hand is not None and self._target is not None
        hand = hand_after(self._target, np.asarray(targets, np.float64), self._lag, self._sag_m)
        places_m = self.move(self._hand, hand)
        self._hand, self._target = hand, np.array(targets, np.float64)
        return places_m

    def keep(self, copies: NDArray[np.int64]) -> None:
        """Go on with these scenes alone."""
        for name in ("places_m", "sizes_m", "rest_m", "held", "_offset", "_hand", "_target"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[copies])

    def move(self, before: F64, after: F64) -> F64:
        """Move the hands from `before` to `after` (G, 7), Bridge states; return the places (G, N, 3)."""
        place = np.where(self.held[..., None], after[:, None, :3] + self._offset, self.places_m)
        closed, was_closed = (hand[:, 6, None] <= 0.5 for hand in (after, before))
        near = np.linalg.norm(place[..., :2] - after[:, None, :2], axis=-1) < GRASP_RADIUS_M
        taken = ~self.held & closed & ~was_closed & near & (after[:, None, 2] < GRASP_HEIGHT_M)
        self._offset = np.where(taken[..., None], place - after[:, None, :3], self._offset)
        self.held = (self.held | taken) & closed
        place[..., 2] = np.where(self.held, place[..., 2], self.rest_m)
        place[..., :2] = push(place[..., :2], before, after, closed & ~self.held, self.sizes_m)
        self.places_m = place
        return place.copy()


def object_paths(hands: F64, places_m: F64, sizes_m: F64 | tuple[float, float] = OBJECT_SIZE_M
                 ) -> tuple[F64, NDArray[np.bool_]]:
    """Return where objects at `places_m` (G, N, 3) are at each frame (G, T+1, N, 3) under hands (G, T+1, 7), and at
    which frames they are in the hand (G, T+1, N)."""
    objects = ObjectPaths(places_m, sizes_m)
    path, held = [objects.places_m.copy()], [objects.held]
    for t in range(hands.shape[1] - 1):
        path.append(objects.move(hands[:, t], hands[:, t + 1]))
        held.append(objects.held)
    return np.stack(path, 1), np.stack(held, 1)


def hands_of(states: F64, lag: float = HAND_LAG, sag_m: Sequence[float] = HAND_SAG_M) -> F64:
    """Return the hands (G, T+1, 7) of target states (G, T+1, 7)."""
    hands = np.array(states, np.float64)
    hands[:, 1:] = hand_after(states[:, :-1], states[:, 1:], lag, sag_m)
    return hands


def predicted_path(states: F64, places_m: F64, sizes_m: F64 | tuple[float, float] = OBJECT_SIZE_M,
                   lag: float = HAND_LAG, sag_m: Sequence[float] = HAND_SAG_M) -> F64:
    """Return where objects at `places_m` (G, N, 3) are at each frame (G, T+1, N, 3) under target states (G, T+1, 7)."""
    return object_paths(hands_of(states, lag, sag_m), places_m, sizes_m)[0]


def along_and_aside(path_m: F64, direction: Sequence[float]) -> tuple[F64, F64]:
    """Return how far a path (T+1, 2) has gone in a unit direction (2,) and to its side since its beginning, m."""
    shift, unit = path_m - path_m[0], np.array(direction, np.float64)
    along = shift @ unit
    return along, np.linalg.norm(shift - along[:, None] * unit, axis=-1)
