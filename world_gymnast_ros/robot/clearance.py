"""How far the arm's links stay from the table and from each other: capsules, in closed form, for many poses at once.

Each link is up to three capsules (a segment with a radius). They enclose Interbotix's wx250s meshes, but for 5 mm at
the lower edge of the base's plate and 1 mm at the gripper bar's tag; the corners of the finger tips, which come nearest
to the table, are points of their own. Links that share a joint are not compared: there the joint limits decide.
Lengths in m, base axes; the table is a plane z = constant.

Not here: the objects on the table, the camera's stand, cables, anything else in the room.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.types import F64

BOW_M = 0.002
"""Slack on the way between two poses: joints that move straight move the links on a bow."""

_SHOULDER_Z, _UPPER, _ELBOW_X, _FOREARM, _HAND = 0.11065, 0.25, 0.04975, 0.25, 0.158575  # as in kinematics.py

LINKS = ("base", "base", "column", "shoulder", "upper arm", "elbow", "forearm", "hand", "gripper bar", "left finger",
         "right finger")
"""Names of the capsules."""
RADII_M: F64 = np.array([0.0785, 0.050, 0.052, 0.036, 0.030, 0.045, 0.038, 0.0395, 0.018, 0.018, 0.018])
_FIXED_M = np.array([
    [(-0.08, 0.0, 0.009), (0.0, 0.0, 0.009)],  # the base's plate, under the column
    [(-0.115, -0.040, 0.020), (-0.115, 0.040, 0.020)],  # and where the cables leave it
    [(0.0, 0.0, 0.020), (0.0, 0.0, 0.070)],
])


def _points(finger_m: float) -> F64:
    """Return (20, 8): both ends of capsules 3 to 10, then the finger tips' corners, as sums of the eight vectors of
    `_vectors`: up (1 m), along the upper arm, across its plane, left, along the forearm, and the hand's x, y, z."""
    top = (_SHOULDER_Z, _UPPER, 0, 0, 0, 0, 0, 0)
    wrist = (_SHOULDER_Z, _UPPER, _ELBOW_X, 0, _FOREARM, 0, 0, 0)

    def motors(aside: float) -> tuple[float, ...]:
        return (_SHOULDER_Z, _UPPER, 0.026, aside, 0, 0, 0, 0)

    def hand(x: float, y: float = 0.0, z: float = 0.0) -> tuple[float, ...]:
        """A point `x` before the end effector, in the hand's axes."""
        return (*wrist[:5], _HAND + x, y, z)

    inner, outer = finger_m - 0.003, finger_m + 0.006  # of the finger's middle, and of its outer edge
    return np.array([
        (0.108, 0, 0, 0.036, 0, 0, 0, 0), (0.108, 0, 0, -0.036, 0, 0, 0, 0), (_SHOULDER_Z, 0, 0, 0, 0, 0, 0, 0), top,
        motors(0.036), motors(-0.036), (*top[:2], _ELBOW_X, 0, 0, 0, 0, 0), wrist,
        wrist, hand(-0.0636), hand(-0.0396, 0.046), hand(-0.0396, -0.046),
        hand(-0.032, inner), hand(0.010, inner), hand(-0.032, -inner), hand(0.010, -inner),
        *(hand(0.0134, y, z) for y in (outer, -outer) for z in (0.0105, -0.0105)),
    ], np.float64)


PAIRS = np.array([(a, b) for a, b in (
    *((low, link) for low in (0, 1, 2, 3) for link in (6, 7, 8, 9, 10)),  # base to shoulder from forearm to fingers
    *((0, 5), (1, 5)),  # the elbow may be lowered onto the base from behind
    *((link, other) for link in (4, 5) for other in (7, 8, 9, 10)),
    *((6, other) for other in (8, 9, 10)),
)])
"""Rows of `LINKS` that are compared, in the order of `Clearances.links`."""
_FIRST, _SECOND = PAIRS.T
_GAPS = RADII_M[PAIRS].sum(axis=1)
_TABLE = (  # row of `_points` (a capsule's lowest point is at an end), its radius and its name
    (4, 0.045, "elbow"), (5, 0.045, "elbow"), (6, 0.038, "elbow"), (7, 0.0395, "wrist"), (9, 0.0395, "hand"),
    (10, 0.018, "gripper bar"), (11, 0.018, "gripper bar"), (16, 0.004, "left finger"), (17, 0.004, "left finger"),
    (18, 0.004, "right finger"), (19, 0.004, "right finger"))
_TABLE_POINTS = [row for row, _, _ in _TABLE]
_TABLE_RADII = np.array([radius for _, radius, _ in _TABLE])


class Clearances(NamedTuple):
    """Distances in m, negative inside: `table` (N, 11) heights above z = 0, `links` (N, pairs) between two links."""

    table: F64
    links: F64


def clearances(joints: NDArray[np.float64], finger_m: float) -> Clearances:
    """Return the clearances of N poses (N, 6) rad, each finger `finger_m` from the hand's axis."""
    points = _points(finger_m) @ _vectors(np.asarray(joints, np.float64))
    return Clearances(points[:, _TABLE_POINTS, 2] - _TABLE_RADII, _distances(_capsules(points)) - _GAPS)


def capsules(joints: NDArray[np.float64], finger_m: float) -> F64:
    """Return both ends (11, 2, 3) of the capsules of `LINKS`, m, base axes, of one pose (6,) rad."""
    points = _points(finger_m) @ _vectors(np.asarray(joints, np.float64)[None])
    ends: F64 = _capsules(points)[0]
    return ends


def _capsules(points: F64) -> F64:
    """Return both ends of every capsule (N, 11, 2, 3)."""
    ends = np.empty((len(points), len(LINKS), 2, 3))
    ends[:, :3] = _FIXED_M
    ends[:, 3:] = points[:, :16].reshape(len(points), -1, 2, 3)
    return ends


def _vectors(q: F64) -> F64:
    """Return the eight unit vectors (N, 8, 3) whose multiples add up to any point of the arm, in base axes."""
    angles = q.T.copy()
    angles[2] += q[:, 1]  # pitch of the forearm
    c1, c2, ch, c4, c5, c6 = np.cos(angles)
    s1, s2, sh, s4, s5, s6 = np.sin(angles)
    v = np.zeros((len(q), 8, 3))  # in the arm's own plane first: x forward, y to the left, z up
    v[:, 0, 2] = v[:, 3, 1] = 1.0
    v[:, 1, 0], v[:, 1, 2], v[:, 2, 0], v[:, 2, 2] = s2, c2, c2, -s2
    v[:, 4, 0], v[:, 4, 2] = ch, -sh
    s4c5, c4c5 = s4 * c5, c4 * c5
    for i, (x, y, z) in enumerate((  # columns of Rx(roll) Ry(angle) Rx(rotate), then Ry(pitch) of them
        (c5, s4 * s5, -c4 * s5), (s5 * s6, c4 * c6 - s4c5 * s6, s4 * c6 + c4c5 * s6),
        (s5 * c6, -c4 * s6 - s4c5 * c6, -s4 * s6 + c4c5 * c6),
    ), 5):
        v[:, i, 0], v[:, i, 1], v[:, i, 2] = ch * x + sh * z, y, ch * z - sh * x
    x, y = v[..., 0].copy(), v[..., 1]
    c, s = c1[:, None], s1[:, None]
    v[..., 0], v[..., 1] = c * x - s * y, s * x + c * y
    return v


def _distances(ends: F64) -> F64:
    """Return the distances (N, pairs) of the axes of the capsules (N, 11, 2, 3) that are compared."""
    xyz = np.ascontiguousarray(np.moveaxis(ends, -1, 0))  # coordinates first, for speed
    base, way = xyz[..., 0], xyz[..., 1] - xyz[..., 0]
    squared = np.square(way).sum(axis=0)  # none is 0
    d1, d2, r = way[:, :, _FIRST], way[:, :, _SECOND], base[:, :, _FIRST] - base[:, :, _SECOND]
    a, e = squared[:, _FIRST], squared[:, _SECOND]
    b, c, f = (d1 * d2).sum(axis=0), (d1 * r).sum(axis=0), (d2 * r).sum(axis=0)
    s = np.minimum(np.maximum((b * f - c * e) / np.maximum(a * e - b * b, 1e-12), 0.0), 1.0)
    t = np.minimum(np.maximum((b * s + f) / e, 0.0), 1.0)
    s = np.minimum(np.maximum((b * t - c) / a, 0.0), 1.0)
    distances: F64 = np.sqrt(np.square(r + s * d1 - t * d2).sum(axis=0))
    return distances


def names(column: int) -> tuple[str, str]:
    """Return what is compared in a column of both fields side by side: a part of the arm, and what it is near to."""
    if column < len(_TABLE):
        return _TABLE[column][2], "table"
    fixed, moving = PAIRS[column - len(_TABLE)]
    return LINKS[moving], LINKS[fixed]
