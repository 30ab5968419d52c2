"""Where the hand takes an object: pushed ahead of it, or grasped and let go. Quasi-static, from poses alone.

A dream of 64x64 pixels smears what is touched, so where an object ends cannot be read from it. Where the hand goes is
known from the actions, and where the object lay from the captured frame; on a table with friction a push and a grasp
follow from these two to within a cm. Mass, friction and tipping are not in it: what slides on or falls over is not
foreseen; other sizes than about 4 cm neither.

The lengths were fitted to 1,600 pushes and 900 pick-and-places of play in the twin, of scenes with which no judge is
ever checked; last places there are 3 and 2 mm off in the median (`bench/contact.py`).
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.types import F64

FINGERS_M = (0.002, 0.022)
"""Half of what the closed fingers fill, along the hand's x axis (forward where its yaw is 0) and across."""
THING_RADIUS_M = 0.020
"""What is pushed is a disc of this radius; it goes ahead of the fingers, unless their wide side meets it further off
their middle than they are wide: then it turns away."""
PUSH_HEIGHT_M = 0.045
"""The hand passes over things when it is higher than this."""
GRASP_RADIUS_M, GRASP_HEIGHT_M = 0.03, 0.04
"""What is within this of a closing hand, and the hand no higher than that, is grasped."""
SUBSTEPS, BISECTIONS, LONGEST_PUSH_M = 4, 8, 0.1
HAND_LAG = 0.3
HAND_SAG_M = (0.0015, 0.0, 0.003)
"""Where the hand is, given its targets: this share of the last step behind, and below (base axes)."""


def hand_after(before: F64, after: F64, lag: float = HAND_LAG, sag_m: Sequence[float] = HAND_SAG_M) -> F64:
    """Return the hand's pose (..., 7) after a step between target states `before` and `after` (..., 7)."""
    hand = np.array(after, np.float64)
    hand[..., :3] -= lag * (np.asarray(after)[..., :3] - np.asarray(before)[..., :3]) + np.array(sag_m)
    return hand


def shoved(places_m: F64, before: F64, after: F64, pushing: NDArray[np.bool_]) -> F64:
    """Return where objects at `places_m` (G, N, 2) are after hands go from `before` to `after` (G, 7).

    `pushing` (G, N): which of them the hand may push at all.
    """
    place = np.array(places_m, np.float64)
    way = (after - before)[:, :2]
    length = np.linalg.norm(way, axis=1)
    if not (pushing & (np.minimum(before[:, 2], after[:, 2]) < PUSH_HEIGHT_M)[:, None]).any():
        return place
    ahead = (way / np.maximum(length, 1e-9)[:, None])[:, None]
    yaw = after[:, None, 5]
    wide = np.abs(ahead[..., 0] * np.cos(yaw) + ahead[..., 1] * np.sin(yaw)) > np.sqrt(0.5)  # their wide side leads
    for s in (np.arange(SUBSTEPS) + 1) / SUBSTEPS:
        hand = before + (after - before) * s
        touched = pushing & ((hand[:, 2] < PUSH_HEIGHT_M) & (length > 1e-4))[:, None]
        gap = place - hand[:, None, :2]
        aside = np.abs(gap[..., 1] * ahead[..., 0] - gap[..., 0] * ahead[..., 1])
        touched &= _inside(gap, yaw) & (~wide | (aside < FINGERS_M[1]))
        near, far = np.zeros(touched.shape), np.full(touched.shape, LONGEST_PUSH_M)
        for _ in range(BISECTIONS if touched.any() else 0):  # how far along the hand's way it is free of the fingers
            middle = (near + far) / 2
            within = _inside(gap + middle[..., None] * ahead, yaw)
            near, far = np.where(within, middle, near), np.where(within, far, middle)
        place = place + np.where(touched, far, 0.0)[..., None] * ahead
    return place


def _inside(gap_m: F64, yaw: F64) -> NDArray[np.bool_]:
    """Tell whether discs with their middle at `gap_m` (G, N, 2) from hands of `yaw` (G, 1) touch the fingers."""
    c, s = np.cos(yaw), np.sin(yaw)
    along = np.abs(gap_m[..., 0] * c + gap_m[..., 1] * s) - FINGERS_M[0]
    across = np.abs(gap_m[..., 1] * c - gap_m[..., 0] * s) - FINGERS_M[1]
    outside = np.hypot(np.maximum(along, 0.0), np.maximum(across, 0.0))
    return np.asarray(outside + np.minimum(np.maximum(along, across), 0.0) < THING_RADIUS_M)


def pushed(hands: F64, places_m: F64) -> F64:
    """Return where objects at `places_m` (G, 2) are at each frame (G, T+1, 2), pushed by hands (G, T+1, 7)."""
    place = np.array(places_m, np.float64)[:, None]
    anything = np.ones(place.shape[:2], np.bool_)
    path = [place]
    for t in range(hands.shape[1] - 1):
        place = shoved(place, hands[:, t], hands[:, t + 1], anything)
        path.append(place)
    return np.concatenate(path, 1)


def grasped(hands: F64, places_m: F64) -> tuple[F64, NDArray[np.bool_]]:
    """Return where objects at `places_m` (G, 2) are at each frame (G, T+1, 2), carried by hands (G, T+1, 7), and at
    which frames they are in the hand (G, T+1)."""
    place = np.array(places_m, np.float64)
    offset, held = np.zeros_like(place), np.zeros(len(place), np.bool_)
    path, holding = [place], [held]
    for t in range(hands.shape[1] - 1):
        hand = hands[:, t + 1]
        place = np.where(held[:, None], hand[:, :2] + offset, place)
        closed = hand[:, 6] <= 0.5
        near = (np.linalg.norm(place - hand[:, :2], axis=1) < GRASP_RADIUS_M) & (hand[:, 2] < GRASP_HEIGHT_M)
        taken = ~held & closed & near
        offset = np.where(taken[:, None], place - hand[:, :2], offset)
        held = (held | taken) & closed
        path.append(place)
        holding.append(held)
    return np.stack(path, 1), np.stack(holding, 1)


class Handled:
    """Objects of G scenes, N in each, as hands push, lift, carry and drop them, step by step.

    A closed hand pushes; a hand that closes takes what is in it, and opening lets it fall to the height it lay at.
    """

    def __init__(self, places_m: F64) -> None:
        """Begin with objects at `places_m` (G, N, 3) in base axes; NaN where there is none."""
        self.places_m = np.array(places_m, np.float64)
        self.rest_m = self.places_m[..., 2].copy()
        self.held = np.zeros(self.places_m.shape[:2], np.bool_)
        self._offset = np.zeros_like(self.places_m)

    def step(self, before: F64, after: F64) -> F64:
        """Move the hands from `before` to `after` (G, 7), Bridge states; return the places (G, N, 3)."""
        place = np.where(self.held[..., None], after[:, None, :3] + self._offset, self.places_m)
        closed, was_closed = (hand[:, 6, None] <= 0.5 for hand in (after, before))
        near = np.linalg.norm(place[..., :2] - after[:, None, :2], axis=-1) < GRASP_RADIUS_M
        taken = ~self.held & closed & ~was_closed & near & (after[:, None, 2] < GRASP_HEIGHT_M)
        self._offset = np.where(taken[..., None], place - after[:, None, :3], self._offset)
        self.held = (self.held | taken) & closed
        place[..., 2] = np.where(self.held, place[..., 2], self.rest_m)
        place[..., :2] = shoved(place[..., :2], before, after, closed & ~self.held)
        self.places_m = place
        return place.copy()


def foreseen(states: F64, places_m: F64) -> F64:
    """Return where objects at `places_m` (G, N, 3) are at each frame (G, T+1, N, 3) under target states (G, T+1, 7)."""
    things = Handled(places_m)
    hand, path = np.asarray(states[:, 0], np.float64), [things.places_m.copy()]
    for t in range(states.shape[1] - 1):
        after = hand_after(states[:, t], states[:, t + 1])
        path.append(things.step(hand, after))
        hand = after
    return np.stack(path, 1)


def along_and_aside(path_m: F64, direction: Sequence[float]) -> tuple[F64, F64]:
    """Return how far a path (T+1, 2) has gone in a unit direction (2,) and to its side since its beginning, m."""
    shift, unit = path_m - path_m[0], np.array(direction, np.float64)
    along = shift @ unit
    return along, np.linalg.norm(shift - along[:, None] * unit, axis=-1)
