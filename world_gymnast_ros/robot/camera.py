"""Where the camera is, from where parts of the arm are seen: maximum a posteriori around the nominal pose.

The arm's pose is measured, so its parts are known points in the base frame; seen in one image or several of the same
camera, they correct the nominal camera by Gauss-Newton on six numbers (shift in base axes, rotation in camera axes).
What the parts do not tell is left to the prior. Image coordinates u, v in -1..1, as in `arm_silhouette.py`.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from world_gymnast_ros.robot.actions import rpy_to_matrix
from world_gymnast_ros.types import F64

ITERATIONS = 6
BRIDGE_CAMERA_XYZ_M = (0.0, -0.16, 0.36)
BRIDGE_CAMERA_LOOK = (1.0, 0.553, -1.085)
BRIDGE_CAMERA_FOCAL = 623.588 / 480
"""The over-the-shoulder camera of the Bridge set-up, nominal: place and line of sight in base axes, focal length in
heights of its 4:3 image (ManiSkill2_real2sim, agents/configs/widowx/defaults.py)."""
_NUDGE = 1e-5


def level_camera(xyz_m: tuple[float, ...], look: tuple[float, ...]) -> F64:
    """Return T_base_camera (4, 4), m, optical axes, of a camera at `xyz_m` that looks along `look`, not tilted."""
    forward = np.asarray(look, np.float64) / np.linalg.norm(look)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = xyz_m
    return pose


@dataclass(frozen=True)
class CameraPrior:
    """The nominal camera and how far from it a tripod may stand (one standard deviation).

    `T_base_camera` (4, 4), optical axes, m; `focal_u`, `focal_v` in halves of the image; `seen_sigma` how exactly a
    part is seen, in the same unit.
    """

    T_base_camera: F64
    focal_u: float
    focal_v: float
    shift_sigma_m: float = 0.02
    rotation_sigma_rad: float = 0.03
    seen_sigma: float = 0.012


@dataclass(frozen=True)
class FittedCamera:
    """A corrected pose T_base_camera (4, 4), and the root mean square distance of the parts, halves of the image."""

    T_base_camera: F64
    focal_u: float
    focal_v: float
    rms: float

    def on_plane(self, uv: F64, z_m: float | F64) -> F64:
        """Return the base points (..., 3) on the plane z = `z_m` that are seen at uv (..., 2)."""
        uv = np.asarray(uv, np.float64)
        rays = np.stack([uv[..., 0] / self.focal_u, uv[..., 1] / self.focal_v, np.ones(uv.shape[:-1])], -1)
        rays = rays @ self.T_base_camera[:3, :3].T
        origin = self.T_base_camera[:3, 3]
        down = np.where(np.abs(rays[..., 2]) < 1e-6, -1e-6, rays[..., 2])
        return np.asarray(origin + ((z_m - origin[2]) / down)[..., None] * rays)


def project(pose: F64, prior: CameraPrior, points: F64) -> F64:
    """Return u, v (..., 2) of base points (..., 3) m by a camera at `pose` (4, 4)."""
    seen = (points - pose[:3, 3]) @ pose[:3, :3]
    depth = np.maximum(seen[..., 2], 0.02)
    return np.stack([prior.focal_u * seen[..., 0] / depth, prior.focal_v * seen[..., 1] / depth], -1)


def moved(prior: CameraPrior, x: F64) -> F64:
    """Return the nominal pose shifted by x[:3] m (base axes) and rotated by x[3:] rad (rpy, camera axes)."""
    pose = prior.T_base_camera.copy()
    pose[:3, 3] += x[:3]
    pose[:3, :3] = pose[:3, :3] @ rpy_to_matrix(x[3:])
    return pose


def fit_camera(prior: CameraPrior, points: F64, seen: F64, weights: F64) -> FittedCamera:
    """Fit the camera to parts `points` (N, 3) m seen at (N, 2) with `weights` (N,), 0 where not seen.

    A part that fits badly counts less (Cauchy weights at 2.5 sigma), so that one mistaken part costs little; one that
    turns out to lie beyond the image's edge was mistaken for another, and counts for nothing. With no part seen the
    answer is the nominal camera, rms infinite.
    """
    base = np.where(np.asarray(weights, np.float64) > 0, weights, 0.0)
    pose = _fitted(prior, points, seen, base)
    inside = np.abs(project(pose, prior, points)).max(-1) <= 1.0
    if (base[~inside] > 0).any():
        base = np.where(inside, base, 0.0)
        pose = _fitted(prior, points, seen, base)
    use = base > 0
    rms = float(np.sqrt(np.average(np.square(project(pose, prior, points[use]) - seen[use]).sum(-1), weights=base[use]))
                ) if use.any() else float("inf")
    return FittedCamera(pose, prior.focal_u, prior.focal_v, rms)


def _fitted(prior: CameraPrior, points: F64, seen: F64, weights: F64) -> F64:
    """Return the camera's pose (4, 4) by the parts with a weight."""
    x = np.zeros(6)
    spread = np.array([prior.shift_sigma_m] * 3 + [prior.rotation_sigma_rad] * 3)
    use = weights > 0
    points, seen, base = points[use], seen[use], weights[use]
    for _ in range(ITERATIONS if use.any() else 0):
        off = project(moved(prior, x), prior, points) - seen
        size = np.linalg.norm(off, axis=-1) / prior.seen_sigma
        w = np.sqrt(base / (1.0 + (size / 2.5) ** 2))[:, None] / prior.seen_sigma
        columns = []
        for k in range(6):
            step = np.zeros(6)
            step[k] = _NUDGE
            columns.append(((project(moved(prior, x + step), prior, points) - seen - off) / _NUDGE * w).ravel())
        jacobian = np.concatenate([np.stack(columns, -1), np.diag(1.0 / spread)])
        residual = np.concatenate([(off * w).ravel(), x / spread])
        x = x - np.linalg.lstsq(jacobian, residual, rcond=None)[0]
    return moved(prior, x)
