"""Where a WidowX 250s in a known pose lies in the image: six tapered capsules, projected by the nominal camera.

A video model that has only a vector of numbers must learn robot kinematics and the camera from pixels; on a small
budget it draws the arm as smoke. The arm is the one thing of the scene that we can compute, so we do (compare the
pose maps of EnerVerse-AC and Genie Envisioner). What is left to learn is how things answer to it.

Numbers: image coordinates u, v in -1..1 (left to right, top to bottom); a capsule is (u0, v0, r0, u1, v1, r1), its
radii in the same units. Shapes of the links: `wx250s.urdf.xacro` of Interbotix, rounded.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.robot.actions import pose_from_state
from world_gymnast_ros.robot.kinematics import NEUTRAL, ik
from world_gymnast_ros.types import F32, F64

GROUPS = (slice(0, 3), slice(3, 4), slice(4, 6))
"""Capsules of the arm (upper arm, forearm, hand), of the finger carriage, and of the two fingers."""
CAPSULES = 6
CAPSULE_DIM = 6
NEAR_M = 0.06
"""Nothing nearer to the camera is projected."""
PARKED = 9.0
"""Where a capsule goes that is not to be seen: far outside the image."""

_SHOULDER_M = (0.0, 0.0, 0.11065)
_ELBOW_M = (0.04975, 0.25)  # forward and up from the shoulder, upper arm upright
_WRIST_BACK_M, _HAND_BACK_M, _BAR_BACK_M = 0.158575, 0.070, 0.0486  # behind the end effector, along the hand
_FINGER_M = (-0.0376, 0.0174)  # along the hand, from the end effector
_FINGER_CLOSED_M, _FINGER_OPEN_M = 0.015, 0.0425  # centre of a finger from the hand's axis
_BAR_HALF_M = 0.062
_RADII_M = ((0.034, 0.034), (0.028, 0.026), (0.026, 0.028), (0.010, 0.010), (0.007, 0.007), (0.007, 0.007))


def projection(T_base_camera: NDArray[np.float64], focal_px: float, width_px: float, height_px: float
               ) -> tuple[float, ...]:
    """Return the 12 numbers, row-major (3, 4), that map base m to (u w, v w, w), w being the depth in m.

    `T_base_camera` (4, 4), optical axes; the principal point is the image's centre.
    """
    T_camera_base = np.linalg.inv(T_base_camera)[:3]
    scale = np.array([2 * focal_px / width_px, 2 * focal_px / height_px, 1.0])
    return tuple(round(float(x), 9) for x in (scale[:, None] * T_camera_base).ravel())


def silhouette(states: NDArray[np.float32], known: NDArray[np.bool_], camera: ArrayLike) -> F32:
    """Return the capsules float32 (N, 6, 6) of an arm at Bridge states (N, 7); parked where not `known` (N,).

    `camera` as from `projection`, one (12,) or one per state (N, 12). A pose out of reach is parked too.
    """
    out = np.full((len(states), CAPSULES, 2, 3), PARKED, np.float32)
    out[..., 2] = 0.0
    rows = [i for i in np.flatnonzero(known) if np.isfinite(states[i]).all()]
    ends, reached = [], []
    for i, T in zip(rows, pose_from_state(states[rows]), strict=True):
        try:
            elbow_m = _elbow(ik(T, NEUTRAL))
        except Unreachable:
            continue
        ends.append(_ends(T, elbow_m, float(np.clip(states[i, 6], 0.0, 1.0))))
        reached.append(i)
    if reached:
        cameras = np.broadcast_to(np.asarray(camera, np.float64).reshape(-1, 3, 4), (len(states), 3, 4))
        out[reached] = _project(np.stack(ends), cameras[reached])
    return out.reshape(len(states), CAPSULES, CAPSULE_DIM)


def silhouette_ends(states: F32) -> F64:
    """Return both ends (N, 6, 2, 3) of the capsules' axes in base axes, m, of an arm at Bridge states (N, 7).

    Raises Unreachable for a pose that the arm cannot take.
    """
    return np.stack([_ends(T, _elbow(ik(T, NEUTRAL)), float(np.clip(state[6], 0.0, 1.0)))
                     for T, state in zip(pose_from_state(states), states, strict=True)])


def silhouette_of_ends(ends: F64, T_base_camera: F64, focal_u: float, focal_v: float) -> F32:
    """Return the capsules float32 (N, 6, 6) of axes (N, 6, 2, 3) seen by a camera (4, 4); focal lengths in halves of
    the image."""
    rows = np.array([focal_u, focal_v, 1.0])[:, None] * np.linalg.inv(T_base_camera)[:3]
    return _project(ends, np.broadcast_to(rows, (len(ends), 3, 4))).reshape(len(ends), CAPSULES, CAPSULE_DIM)


def _elbow(joints: F64) -> tuple[float, float, float]:
    """Return the elbow's place in base axes, m."""
    waist, shoulder = float(joints[0]), float(joints[1])
    forward, up = _ELBOW_M
    reach = forward * np.cos(shoulder) + up * np.sin(shoulder)
    return reach * np.cos(waist), reach * np.sin(waist), _SHOULDER_M[2] - forward * np.sin(shoulder) + up * np.cos(
        shoulder)


def _ends(T_base_ee: F64, elbow_m: tuple[float, float, float], gripper: float) -> F64:
    """Return both ends (6, 2, 3) of the capsules' axes in base axes, m."""
    p, along, across = T_base_ee[:3, 3], T_base_ee[:3, 0], T_base_ee[:3, 1]
    wrist = p - _WRIST_BACK_M * along
    bar = p - _BAR_BACK_M * along
    aside = _FINGER_CLOSED_M + gripper * (_FINGER_OPEN_M - _FINGER_CLOSED_M)
    back, tip = _FINGER_M
    fingers = [(p + side * aside * across + back * along, p + side * aside * across + tip * along) for side in (1, -1)]
    return np.array([(_SHOULDER_M, elbow_m), (elbow_m, wrist), (wrist, p - _HAND_BACK_M * along),
                     (bar + _BAR_HALF_M * across, bar - _BAR_HALF_M * across), *fingers])


def _project(ends: F64, cameras: F64) -> F32:
    """Return capsules float32 (N, 6, 2, 3) of axes (N, 6, 2, 3) seen by cameras (N, 3, 4); the part nearer than NEAR_M
    is cut off."""
    seen = (cameras[:, None, None, :, :3] @ ends[..., None])[..., 0] + cameras[:, None, None, :, 3]
    depth = seen[..., 2]
    for near, far in ((0, 1), (1, 0)):  # move an end that is too near along the axis, to the near plane
        low = (depth[..., near] < NEAR_M) & (depth[..., far] > NEAR_M)
        share = np.where(low, (NEAR_M - depth[..., near]) / np.where(low, depth[..., far] - depth[..., near], 1.0), 0.0)
        seen[..., near, :] += share[..., None] * (seen[..., far, :] - seen[..., near, :])
    behind = (seen[..., 2] < NEAR_M - 1e-9).any(-1)
    w = np.maximum(seen[..., 2], NEAR_M)
    size = np.sqrt(np.linalg.norm(cameras[:, :2, :3], axis=-1).prod(-1))[:, None, None]
    out = np.empty(seen.shape, np.float32)
    out[..., :2] = seen[..., :2] / w[..., None]
    out[..., 2] = size * np.asarray(_RADII_M) / w
    out[behind] = (PARKED, PARKED, 0.0)
    return out
