"""Where the hand takes an object: pushed ahead of it, or grasped and let go. Quasi-static, from poses alone.

A dream of 64x64 pixels smears what is touched, so where an object ends cannot be read from it. Where the hand goes is
known from the actions, and where the object lay from the captured frame; on a table with friction a push and a grasp
follow from these two to within a cm. Mass, friction and tipping are not in it: what slides on or falls over is not
foreseen; other sizes than about 4 cm, and things that stop the arm, only where recordings have taught them
(`measuring_update.py`).

The lengths were fitted to play in the twin (docs/benchmarks.md says what else was looked at); on pushes made afterwards
last places are 2.6 mm off in the median, a tenth of them more than 32 mm (`bench/contact.py`).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.robot.actions import matrix_to_rpy, rpy_to_matrix
from world_gymnast_ros.types import F32, F64

THIN_M, EDGE_M, FACE_M = 0.002, 0.018, 0.012
"""Half of what the closed fingers fill along the hand's x axis (forward where its yaw is 0), and across: as far as they
touch what lies beside them, and as far as they push what lies before them, their edges being round."""
THING_SIZE_M = (0.022, 0.04)
"""What is pushed is an upright disc of this radius, and this high, unless others are given: a ball, which rolls on,
acts as a greater one."""
TURN_ASIDE, TURN_AHEAD, SLIP = 1.2, 2.0, 1.5
"""Where the fingers meet it off its middle, the disc goes aside: in the direction of the force, whose slope against the
normal of contact is that of the hand's way over TURN (what turning takes of it; a disc under even pressure would have
3.25, Goyal et al. 1991), at their thin side or their wide one, and at most SLIP (friction). All three are fitted."""
OVER_M = 0.005
"""The hand passes over things when it is higher than their top by this."""
GRASP_RADIUS_M, GRASP_HEIGHT_M = 0.03, 0.04
"""What is within this of a closing hand, and the hand no higher than that, is grasped."""
GRAZING = 0.05
"""Cosine of the hand's way to the normal of contact below which it drags nothing along."""
SUBSTEPS = 16
LONGEST_PUSH_M = 0.012
"""In one of them: how far it throws aside what the hand was lowered onto."""
STALL_CREEP, STALL_RISE = 0.15, 0.15
"""How much a hand that is stopped goes on and is lifted, of the way that its target goes on: what it pushes against
tips. Fitted, as the next is, to the measured hand of a compliant arm that pushes a rubber block on rubber."""
STALL_TILT = 5.9
"""How much it tilts, rad per m of that way: the wrist follows the target, the finger tips stay."""
HAND_LAG = 0.3
HAND_SAG_M = (0.0015, 0.0, 0.003)
"""Where the hand is, given its targets: this share of the last step behind, and below (base axes)."""


def hand_after(before: F64, after: F64, lag: float = HAND_LAG, sag_m: Sequence[float] = HAND_SAG_M) -> F64:
    """Return the hand's pose (..., 7) after a step between target states `before` and `after` (..., 7)."""
    hand = np.array(after, np.float64)
    hand[..., :3] -= lag * (np.asarray(after)[..., :3] - np.asarray(before)[..., :3]) + np.array(sag_m)
    return hand


def shoved(places_m: F64, before: F64, after: F64, pushing: NDArray[np.bool_],
           sizes_m: F64 | tuple[float, float] = THING_SIZE_M) -> F64:
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


class Handled:
    """Objects of G scenes, N in each, as hands push, lift, carry and drop them, step by step.

    A closed hand pushes; a hand that closes takes what is in it, and opening lets it fall to the height it lay at.
    """

    def __init__(self, places_m: F64, sizes_m: F64 | tuple[float, float] = THING_SIZE_M,
                 lifts_m: F64 | float = np.nan) -> None:
        """Begin with objects at `places_m` (G, N, 3) in base axes, NaN where there is none; sizes as of `shoved`.

        `lifts_m` (G, N), or one for all: what stops the arm, a compliant one (what is heavy, or does not slide), gives
        way only where the arm would go so much higher than its hand is; below zero: unless it presses down so much.
        NaN: it always gives way.
        """
        self.places_m, self.sizes_m = np.array(places_m, np.float64), sizes_m
        self.lifts_m = np.broadcast_to(np.asarray(lifts_m, np.float64), self.places_m.shape[:2])
        self.behind_m = np.zeros((len(self.places_m), 3))
        """How far hands that are stopped are from where they would be, base axes; zero where nothing stops them."""
        self._lead_m = np.zeros(len(self.places_m))
        self.rest_m = self.places_m[..., 2].copy()
        self.held = np.zeros(self.places_m.shape[:2], np.bool_)
        self._offset = np.zeros_like(self.places_m)

    def step(self, before: F64, after: F64) -> F64:
        """Move the hands from `before` to `after` (G, 7), Bridge states where nothing stops them; return the places
        (G, N, 3)."""
        if np.isfinite(self.lifts_m).any():
            before, after = self._stopped(before, after)
        place = np.where(self.held[..., None], after[:, None, :3] + self._offset, self.places_m)
        closed, was_closed = (hand[:, 6, None] <= 0.5 for hand in (after, before))
        near = np.linalg.norm(place[..., :2] - after[:, None, :2], axis=-1) < GRASP_RADIUS_M
        taken = ~self.held & closed & ~was_closed & near & (after[:, None, 2] < GRASP_HEIGHT_M)
        self._offset = np.where(taken[..., None], place - after[:, None, :3], self._offset)
        self.held = (self.held | taken) & closed
        place[..., 2] = np.where(self.held, place[..., 2], self.rest_m)
        place[..., :2] = shoved(place[..., :2], before, after, closed & ~self.held, self.sizes_m)
        self.places_m = place
        return place.copy()

    def _stopped(self, before: F64, after: F64) -> tuple[F64, F64]:
        """Return where the hands really are before and after a step that is free between `before` and `after` (G, 7).

        A hand stays where it touches what does not give way, until its target is lifted or turns away.
        """
        start, end = np.array(before, np.float64), np.array(after, np.float64)
        start[:, :3] += self.behind_m
        way = (end - start)[:, :2]
        length = np.linalg.norm(way, axis=1)
        ahead = (way / np.maximum(length, 1e-9)[:, None])[:, None]
        radii_m, over_m = np.asarray(self.sizes_m)[..., 0], np.asarray(self.sizes_m)[..., 1] + OVER_M
        stubborn = (after[:, 6, None] <= 0.5) & ~self.held & np.isfinite(self.lifts_m) & (length > 1e-4)[:, None]
        done = np.zeros(len(start), np.bool_)
        for k in range(SUBSTEPS):
            here = start + (end - start) * (k / SUBSTEPS)
            there = start + (end - start) * ((k + 1) / SUBSTEPS)
            across_m = np.where(_wide_side_leads(ahead, there[:, None, 5]), FACE_M, EDGE_M)
            normal, distance = _nearest(self.places_m[..., :2] - there[:, None, :2], there[:, 5, None], across_m)
            touched = stubborn & (there[:, 2, None] < over_m) & (distance < radii_m) & ((normal * ahead).sum(-1) > 0)
            stops = (touched & ((after[:, 2] - here[:, 2])[:, None] < self.lifts_m)).any(1) & ~done
            done |= touched.any(1)
            if stops.any():
                lead_m = np.linalg.norm(after[:, :2] - here[:, :2], axis=1)
                more_m = np.maximum(0.0, lead_m - self._lead_m)
                here[:, :2] += STALL_CREEP * more_m[:, None] * ahead[:, 0]
                here[:, 2] += STALL_RISE * more_m
                end[stops, :3] = here[stops, :3]
        self.behind_m = end[:, :3] - after[:, :3]
        self._lead_m = np.linalg.norm(self.behind_m[:, :2], axis=1)
        return start, end


def handled(hands: F64, places_m: F64, sizes_m: F64 | tuple[float, float] = THING_SIZE_M,
            lifts_m: F64 | float = np.nan) -> tuple[F64, NDArray[np.bool_]]:
    """Return where objects at `places_m` (G, N, 3) are at each frame (G, T+1, N, 3) under hands (G, T+1, 7), and at
    which frames they are in the hand (G, T+1, N). `hands` as they would be where nothing stops them."""
    things = Handled(places_m, sizes_m, lifts_m)
    path, held = [things.places_m.copy()], [things.held]
    for t in range(hands.shape[1] - 1):
        path.append(things.step(hands[:, t], hands[:, t + 1]))
        held.append(things.held)
    return np.stack(path, 1), np.stack(held, 1)


def behind(hands: F64, places_m: F64, sizes_m: F64 | tuple[float, float] = THING_SIZE_M,
           lifts_m: F64 | float = np.nan) -> F64:
    """Return how far `hands` (G, T+1, 7) are stopped from being there, m (G, T+1, 3), by objects as of `handled`."""
    things = Handled(places_m, sizes_m, lifts_m)
    out = [things.behind_m]
    for t in range(hands.shape[1] - 1):
        things.step(hands[:, t], hands[:, t + 1])
        out.append(things.behind_m)
    return np.stack(out, 1)


def where_stopped(states: NDArray[Any], behind_m: F64) -> F32:
    """Return the states float32 (..., 7) in which an arm is seen that aims at `states` (..., 7) and whose hand is
    `behind_m` (..., 3) from there."""
    out = np.array(states, np.float32)
    stopped = behind_m.any(-1)
    if stopped.any():
        lead_m = -behind_m[stopped]
        tilt = np.stack([-lead_m[:, 1], lead_m[:, 0], np.zeros(len(lead_m))], -1) * STALL_TILT
        out[stopped, :3] += behind_m[stopped]
        out[stopped, 3:6] = matrix_to_rpy(rpy_to_matrix(tilt) @ rpy_to_matrix(out[stopped, 3:6].astype(np.float64)))
    return out


def hands_of(states: F64) -> F64:
    """Return the hands (G, T+1, 7) of target states (G, T+1, 7), where nothing stops them."""
    hands = np.array(states, np.float64)
    hands[:, 1:] = hand_after(states[:, :-1], states[:, 1:])
    return hands


def foreseen(states: F64, places_m: F64, sizes_m: F64 | tuple[float, float] = THING_SIZE_M,
             lifts_m: F64 | float = np.nan) -> F64:
    """Return where objects at `places_m` (G, N, 3) are at each frame (G, T+1, N, 3) under target states (G, T+1, 7)."""
    return handled(hands_of(states), places_m, sizes_m, lifts_m)[0]


def along_and_aside(path_m: F64, direction: Sequence[float]) -> tuple[F64, F64]:
    """Return how far a path (T+1, 2) has gone in a unit direction (2,) and to its side since its beginning, m."""
    shift, unit = path_m - path_m[0], np.array(direction, np.float64)
    along = shift @ unit
    return along, np.linalg.norm(shift - along[:, None] * unit, axis=-1)
