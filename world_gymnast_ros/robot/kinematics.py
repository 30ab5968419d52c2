"""Forward and inverse kinematics of the WidowX 250s (6 axes), in base axes, to rounding error.

Why closed form and not Newton: the last three axes (forearm_roll, wrist_angle, wrist_rotate) meet in one point, so the
pose splits into a wrist position (waist, shoulder, elbow) and a wrist orientation. All eight solutions then cost about
20 microseconds, without a Jacobian to lose rank at home, sleep or straight-wrist poses, without iterations to time out,
and the guard can try several poses in one control step. The solution nearest to the seed is taken.

Frames: space = base_link, end effector = ee_gripper_link. Units: m, rad.
Source of the numbers: Interbotix `mr_descriptions.py` (wx250s) and `wx250s.urdf.xacro`.
"""
from __future__ import annotations

from math import atan2, cos, hypot, isfinite, pi, sin, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.types import F64


def _constant(values: Any) -> F64:
    array = np.array(values, np.float64)
    array.setflags(write=False)
    return array


JOINT_NAMES = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
JOINT_LOWER_RAD = _constant([-3.141583, -1.884956, -2.146755, -3.141583, -1.745329, -3.141583])
JOINT_UPPER_RAD = _constant([3.141583, 1.989675, 1.605703, 3.141583, 2.146755, 3.141583])
MAX_JOINT_SPEED_RAD_S = _constant([pi] * 6)

HOME = _constant([0.0] * 6)
SLEEP = _constant([0.0, -1.80, 1.55, 0.0, 0.8, 0.0])
NEUTRAL = _constant([-0.13192235, -0.76238847, 0.44485444, -0.01994175, 1.7564081, -0.15953401])
"""Bridge's neutral pose: where an episode begins."""

# Offsets of the axes, for the closed forms below (m).
_SHOULDER_Z = 0.11065  # height of the shoulder axis
_ELBOW_X, _ELBOW_Z = 0.04975, 0.25  # elbow from shoulder, at home
_FOREARM = 0.25  # wrist point from elbow, at home: 0.29975 - 0.04975
_HAND = 0.158575  # end effector from wrist point: 0.458325 - 0.29975
_UPPER = hypot(_ELBOW_X, _ELBOW_Z)
_UPPER_TILT = atan2(_ELBOW_X, _ELBOW_Z)  # of the shoulder-elbow line from vertical, at home

_ROUNDING_RAD = 1e-9  # rounding may put a solution that far past a limit
_LOWER = tuple(q - _ROUNDING_RAD for q in JOINT_LOWER_RAD.tolist())
_HIGHER = tuple(q + _ROUNDING_RAD for q in JOINT_UPPER_RAD.tolist())
_AT_SINGULARITY = 1e-7  # below this an angle's direction is rounding error, so the seed decides it


def fk(joints: NDArray[Any]) -> F64:
    """Return T_base_ee (4, 4) of `joints` (6,): the product of exponentials, multiplied out."""
    q1, q2, q3, q4, q5, q6 = (float(q) for q in joints)
    c1, s1, c4, s4, c5, s5, c6, s6 = cos(q1), sin(q1), cos(q4), sin(q4), cos(q5), sin(q5), cos(q6), sin(q6)
    ch, sh = cos(q2 + q3), sin(q2 + q3)  # pitch of the forearm
    # Columns of Rx(q4) Ry(q5) Rx(q6), then of Ry(q2 + q3) times it, then of Rz(q1) times that.
    wrist = (
        (c5, s4 * s5, -c4 * s5),
        (s5 * s6, c4 * c6 - s4 * c5 * s6, s4 * c6 + c4 * c5 * s6),
        (s5 * c6, -c4 * s6 - s4 * c5 * c6, -s4 * s6 + c4 * c5 * c6),
    )
    columns = []
    for x, y, z in wrist:
        u, v = ch * x + sh * z, -sh * x + ch * z
        columns.append((c1 * u - s1 * y, s1 * u + c1 * y, v))
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = columns
    c2, s2 = cos(q2), sin(q2)
    reach = _ELBOW_X * c2 + _ELBOW_Z * s2 + _FOREARM * ch
    height = _SHOULDER_Z - _ELBOW_X * s2 + _ELBOW_Z * c2 - _FOREARM * sh
    return np.array([
        [ax, bx, cx, c1 * reach + _HAND * ax],
        [ay, by, cy, s1 * reach + _HAND * ay],
        [az, bz, cz, height + _HAND * az],
        [0.0, 0.0, 0.0, 1.0],
    ])


def ik(T_base_ee: NDArray[Any], seed_joints: NDArray[Any]) -> F64:
    """Return the joints (6,) inside the limits that reach `T_base_ee` (4, 4) and lie nearest to `seed_joints` (6,).

    Nearest is by the largest single joint move, since that decides how long the move takes. Raises Unreachable, naming
    joint, value and limit, when every solution leaves the limits; or the distance, when the arm is too short.
    """
    R, wrist = _checked_pose(T_base_ee)
    seed = tuple(float(q) for q in seed_joints)
    if len(seed) != 6 or not all(map(isfinite, seed)):
        raise Unreachable(f"seed joints {seed} must be 6 finite angles: pass the measured joints")
    best: tuple[float, ...] | None = None
    best_outside: tuple[float, ...] = seed
    nearest = nearest_outside = float("inf")
    for q1, q2, q3 in _arm_solutions(wrist, seed):
        for q4, q5, q6 in _wrist_solutions(R, q1, q2 + q3, seed):
            q = (q1, q2, q3, q4, q5, q6)
            distance = max(abs(a - b) for a, b in zip(q, seed, strict=True))
            inside = all(a <= v <= b for a, v, b in zip(_LOWER, q, _HIGHER, strict=True))
            if inside and distance < nearest:
                best, nearest = q, distance
            elif not inside and distance < nearest_outside:
                best_outside, nearest_outside = q, distance
    if best is None:
        raise Unreachable(_worst_limit(best_outside))
    return np.array(best)


def _checked_pose(T_base_ee: NDArray[Any]) -> tuple[list[list[float]], tuple[float, float, float]]:
    """Return the rotation as nested lists and the wrist point, or raise Unreachable if this is no rigid transform."""
    T = np.asarray(T_base_ee, np.float64)
    if T.shape != (4, 4) or not np.isfinite(T).all():
        raise Unreachable(f"T_base_ee must be a finite (4, 4) transform, got shape {T.shape}: hold, do not move")
    rows: list[list[float]] = T.tolist()
    (a, b, c, x), (d, e, f, y), (g, h, i, z) = rows[:3]
    lengths = (a * a + d * d + g * g, b * b + e * e + h * h, c * c + f * f + i * i)
    skew = (a * b + d * e + g * h, a * c + d * f + g * i, b * c + e * f + h * i)
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if determinant < 0 or max(max(abs(v - 1.0) for v in lengths), *(abs(v) for v in skew)) > 1e-5:
        raise Unreachable(f"T_base_ee's rotation is not orthonormal (determinant {determinant:.6f}): compose matrices")
    return rows, (x - _HAND * a, y - _HAND * d, z - _HAND * g)


def _arm_solutions(wrist: tuple[float, float, float], seed: tuple[float, ...]) -> list[tuple[float, float, float]]:
    """Return up to four (waist, shoulder, elbow) that place the wrist point: front or back, elbow up or down."""
    x, y, z = wrist
    flat = hypot(x, y)
    waist = seed[0] if flat < _AT_SINGULARITY else atan2(y, x)  # on the waist axis any waist angle will do
    height = z - _SHOULDER_Z
    squared = flat * flat + height * height
    cosine = (squared - _UPPER * _UPPER - _FOREARM * _FOREARM) / (2.0 * _UPPER * _FOREARM)
    if abs(cosine) > 1.0 + 1e-9:
        side, limit = ("far from", _UPPER + _FOREARM) if cosine > 0 else ("close to", abs(_UPPER - _FOREARM))
        raise Unreachable(f"wrist point is too {side} the shoulder: {sqrt(squared):.6f} m, limit {limit:.6f} m; "
                          "move the target back into reach")
    cosine = max(-1.0, min(1.0, cosine))
    sine = sqrt(1.0 - cosine * cosine)
    direction = atan2(flat, height)  # from vertical
    solutions = []
    for bend in (atan2(sine, cosine), -atan2(sine, cosine)):  # of the forearm from the upper arm's line
        lean = atan2(_FOREARM * sin(bend), _UPPER + _FOREARM * cos(bend))
        elbow = bend - pi / 2 + _UPPER_TILT
        solutions.append((_wrap(waist), _wrap(direction - lean - _UPPER_TILT), _wrap(elbow)))
        solutions.append((_wrap(waist + pi), _wrap(-direction - lean - _UPPER_TILT), _wrap(elbow)))
    return solutions


def _wrist_solutions(
    R: list[list[float]], waist: float, pitch: float, seed: tuple[float, ...]
) -> tuple[tuple[float, float, float], ...]:
    """Return the two (forearm_roll, wrist_angle, wrist_rotate) that orient the hand, given the forearm's direction."""
    c1, s1, ch, sh = cos(waist), sin(waist), cos(pitch), sin(pitch)

    def local(column: int) -> tuple[float, float, float]:
        x, y, z = R[0][column], R[1][column], R[2][column]
        u = c1 * x + s1 * y
        return ch * u - sh * z, c1 * y - s1 * x, sh * u + ch * z

    first_x, first_y, first_z = local(0)
    second_x, second_y, second_z = local(1)
    third_x, _, _ = local(2)
    bend = hypot(first_y, first_z)
    if bend < _AT_SINGULARITY:  # straight wrist: only the sum (or difference) of the two rolls counts
        total = atan2(second_z, second_y)
        straight = first_x > 0
        roll = seed[3]
        rotate = total - roll if straight else roll - total
        return ((roll, 0.0 if straight else pi, _wrap(rotate)),)
    roll, rotate = atan2(first_y, -first_z), atan2(second_x, third_x)
    angle = atan2(bend, first_x)
    return (
        (_wrap(roll), angle, _wrap(rotate)),
        (_wrap(roll + pi), -angle, _wrap(rotate + pi)),
    )


def _wrap(angle: float) -> float:
    """Return the angle in [-pi, pi]: the only turn that can be inside the limits, as no joint spans 2 pi."""
    return atan2(sin(angle), cos(angle))


def _worst_limit(q: tuple[float, ...]) -> str:
    """Describe the joint that is furthest outside its limits."""
    excess = [max(a - v, v - b) for a, v, b in zip(_LOWER, q, _HIGHER, strict=True)]
    i = excess.index(max(excess))
    limit = _LOWER[i] if q[i] < _LOWER[i] else _HIGHER[i]
    return (f"joint {JOINT_NAMES[i]} would be at {q[i]:.6f} rad, limit {limit:.6f} rad; "
            "move the target back into the workspace")
