"""Bridge action algebra: states, deltas, step limits and workspace boxes, one definition for dream and arm.

Matrices are composed and never rpy added: Bridge's rpy of R D^T stays near zero when the gripper points down, where
the raw rpy of R is at gimbal lock (there "roll" and "yaw" swap). Every function takes leading batch axes `...`.

Source of the rules: rail-berkeley/bridge_data_robot `transformation_utils.py`, `robot_base_env.py`, and SimplerEnv's
`pd_ee_pose.py`, which agree.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadAction, BadConfig
from world_gymnast_ros.types import ACTION_DIM, F32, F64

D_GRIPPER_DOWN: F64 = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Rotation of the end effector in base axes when the gripper points straight down: Bridge rpy is zero here."""
D_GRIPPER_DOWN.setflags(write=False)


@dataclass(frozen=True)
class StepLimits:
    """Limits of one 0.2 s action. `max_step_m` holds per axis and for the vector; `max_step_rad` per axis.

    0.05 m in 0.2 s is 250 mm/s, the usual figure for reduced-speed operation; only the vector norm really keeps it.
    """

    max_step_m: float = 0.05
    max_step_rad: float = 0.25

    def __post_init__(self) -> None:
        for name, value, top in (("max_step_m", self.max_step_m, 0.1), ("max_step_rad", self.max_step_rad, 0.5)):
            if not 0.0 < value <= top:
                raise BadConfig(f"StepLimits.{name} is {value}; it must lie in (0, {top}]: choose a value in range")


@dataclass(frozen=True)
class Workspace:
    """An axis-aligned box for the end effector position in base axes. `low_m`, `high_m` (3,), m."""

    low_m: tuple[float, ...]
    high_m: tuple[float, ...]

    def __post_init__(self) -> None:
        low, high = tuple(float(v) for v in self.low_m), tuple(float(v) for v in self.high_m)
        object.__setattr__(self, "low_m", low)  # YAML gives lists; tuples keep the dataclass hashable
        object.__setattr__(self, "high_m", high)
        if len(low) != 3 or len(high) != 3:
            raise BadConfig(f"Workspace needs 3 numbers for low_m and high_m, got {low} and {high}")
        for axis, a, b in zip("xyz", low, high, strict=True):
            if not (np.isfinite(a) and np.isfinite(b) and a < b):
                raise BadConfig(f"Workspace {axis}: low {a} must be finite and below high {b}; swap or correct them")

    def clip(self, position: NDArray[Any]) -> NDArray[Any]:
        """Return positions (..., 3) moved to the nearest point of the box."""
        low, high = np.asarray(self.low_m, position.dtype), np.asarray(self.high_m, position.dtype)
        clipped: NDArray[Any] = np.minimum(np.maximum(position, low), high)
        return clipped


@dataclass(frozen=True)
class RobotLimits:
    """What the robot's configuration allows: the guard keeps to it on the arm, world model and judges imagining."""

    step: StepLimits
    workspace: Workspace


WORKSPACES: dict[str, Workspace] = {
    "service": Workspace((0.10, -0.15, -0.10), (0.45, 0.25, 0.18)),
    "bridge": Workspace((0.10, -0.15, -0.01), (0.45, 0.25, 0.25)),
    "openvla": Workspace((0.10, -0.20, -0.01), (0.45, 0.25, 0.30)),
    "reaching": Workspace((0.19, -0.08, 0.05), (0.31, 0.08, 0.055)),
    "autoeval_drawer": Workspace((0.1260, -0.1645, 0.0216), (0.3636, 0.0770, 0.1637)),
    "autoeval_sink": Workspace((0.1998, -0.0985, 0.0871), (0.3647, 0.1950, 0.2340)),
    "autoeval_cloth": Workspace((0.1620, -0.1477, 0.0204), (0.4013, 0.2674, 0.1787)),
}
"""Boxes of the public evaluations ("bridge" is also Octo's)."""


def check_limits(name: str, step: StepLimits) -> None:
    """Raise BadConfig where the robot allows longer steps than Bridge's, on which world models are trained."""
    trained = StepLimits()
    if step.max_step_m > trained.max_step_m or step.max_step_rad > trained.max_step_rad:
        raise BadConfig(f"the robot allows steps of {step.max_step_m} m and {step.max_step_rad} rad; world model "
                        f"'{name}' was trained on at most {trained.max_step_m} m and {trained.max_step_rad} rad: lower "
                        "max_step_m and max_step_rad in arm.yaml, or train one on longer steps")


def rpy_to_matrix(rpy: NDArray[Any]) -> F64:
    """Return R = Rz(yaw) Ry(pitch) Rx(roll), (..., 3, 3), of fixed-axis rpy (..., 3) in rad."""
    angles = np.asarray(rpy, np.float64)
    c, s = np.cos(angles), np.sin(angles)
    cr, cp, cy, sr, sp, sy = c[..., 0], c[..., 1], c[..., 2], s[..., 0], s[..., 1], s[..., 2]
    R = np.empty((*angles.shape[:-1], 3, 3))
    R[..., 0, 0], R[..., 0, 1], R[..., 0, 2] = cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr
    R[..., 1, 0], R[..., 1, 1], R[..., 1, 2] = sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr
    R[..., 2, 0], R[..., 2, 1], R[..., 2, 2] = -sp, cp * sr, cp * cr
    return R


def matrix_to_rpy(R: NDArray[Any]) -> F64:
    """Return fixed-axis rpy (..., 3), rad, of rotations (..., 3, 3); at gimbal lock roll is 0, yaw the rest."""
    R = np.asarray(R, np.float64)
    cos_pitch = np.hypot(R[..., 0, 0], R[..., 1, 0])
    locked = cos_pitch < 1e-9
    rpy = np.empty(R.shape[:-1])
    rpy[..., 0] = np.where(locked, 0.0, np.arctan2(R[..., 2, 1], R[..., 2, 2]))
    rpy[..., 1] = np.arctan2(-R[..., 2, 0], cos_pitch)
    rpy[..., 2] = np.where(locked, np.arctan2(-R[..., 0, 1], R[..., 1, 1]), np.arctan2(R[..., 1, 0], R[..., 0, 0]))
    return rpy


def matrix_to_quaternion(R: NDArray[Any]) -> F64:
    """Return the unit quaternion (x, y, z, w), w >= 0, of a rotation (3, 3)."""
    m = np.asarray(R, np.float64)
    sums = np.array([*(2 * m.diagonal() - m.trace()), m.trace()])  # 4 times each square, less 1: the largest is exact
    largest = int(sums.argmax())
    w = (m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1])
    q = np.empty(4)
    if largest == 3:
        q[:] = (*w, 1.0 + sums[3])
    else:
        i, j, k = ((0, 1, 2), (1, 2, 0), (2, 0, 1))[largest]
        q[[i, j, k, 3]] = 1.0 + sums[i], m[i, j] + m[j, i], m[i, k] + m[k, i], w[i]
    unit: F64 = q / np.copysign(np.linalg.norm(q), q[3])
    return unit


def orthonormalised(R: F64) -> F64:
    """Return the rotations (..., 3, 3) with rounding error removed (one Newton step of the polar decomposition)."""
    return 1.5 * R - 0.5 * R @ (np.swapaxes(R, -1, -2) @ R)


def bridge_state(T_base_ee: NDArray[Any], gripper: float | NDArray[Any]) -> F32:
    """Return the Bridge state float32 (..., 7) of poses (..., 4, 4): xyz [m], rpy of R D^T [rad], gripper."""
    T = np.asarray(T_base_ee, np.float64)
    state = np.empty((*T.shape[:-2], ACTION_DIM), np.float32)
    state[..., :3] = T[..., :3, 3]
    state[..., 3:6] = matrix_to_rpy(T[..., :3, :3] @ D_GRIPPER_DOWN.T)
    state[..., 6] = gripper
    return state


def pose_from_state(state: NDArray[Any]) -> F64:
    """Return T_base_ee (..., 4, 4) of Bridge states (..., 7): the inverse of `bridge_state`."""
    state = np.asarray(state, np.float64)
    T = np.zeros((*state.shape[:-1], 4, 4))
    T[..., :3, :3] = rpy_to_matrix(state[..., 3:6]) @ D_GRIPPER_DOWN
    T[..., :3, 3] = state[..., :3]
    T[..., 3, 3] = 1.0
    return T


def clip_delta(delta: NDArray[Any], limits: StepLimits) -> NDArray[Any]:
    """Return actions (..., 7) inside the limits: per axis box, then translation norm; gripper to [0, 1].

    Raises BadAction on a wrong last axis or a non-finite number, which no clip can make safe.
    """
    delta = np.asarray(delta)
    if delta.ndim < 1 or delta.shape[-1] != ACTION_DIM:
        raise BadAction(f"delta must have shape (..., {ACTION_DIM}), got {delta.shape}: pass Bridge actions")
    if not np.isfinite(delta).all():
        raise BadAction("delta holds a non-finite number; drop the action and hold")
    out = delta.astype(delta.dtype if delta.dtype.kind == "f" else np.float64)  # a copy, in the caller's precision
    np.clip(out[..., :3], -limits.max_step_m, limits.max_step_m, out=out[..., :3])
    np.clip(out[..., 3:6], -limits.max_step_rad, limits.max_step_rad, out=out[..., 3:6])
    np.clip(out[..., 6], 0.0, 1.0, out=out[..., 6])
    norm = np.sqrt(np.square(out[..., :3]).sum(axis=-1, keepdims=True))
    out[..., :3] *= np.minimum(1.0, limits.max_step_m / np.maximum(norm, 1e-12))
    return out


def apply_delta(T_target: NDArray[Any], T_measured: NDArray[Any], delta: NDArray[Any]) -> F64:
    """Return the next target (..., 4, 4): the delta on the previous *target*, pivoting at the *measured* position.

    p' = R (p_target - p_measured) + p_measured + dxyz;  R' = R R_target, with R the delta's rotation in base axes.
    """
    T_target, delta = np.asarray(T_target, np.float64), np.asarray(delta, np.float64)
    pivot = np.asarray(T_measured, np.float64)[..., :3, 3]
    R = rpy_to_matrix(delta[..., 3:6])
    T = np.zeros(np.broadcast_shapes(T_target.shape, (*delta.shape[:-1], 4, 4), (*pivot.shape[:-1], 4, 4)))
    T[..., :3, :3] = orthonormalised(R @ T_target[..., :3, :3])  # so that hundreds of steps do not drift
    T[..., :3, 3] = (R @ (T_target[..., :3, 3] - pivot)[..., None])[..., 0] + pivot + delta[..., :3]
    T[..., 3, 3] = 1.0
    return T


def gripper_is_open(gripper: float | NDArray[Any], threshold: float = 0.5) -> Any:
    """Tell open (True) from closed for gripper values of any shape; exactly `threshold` counts as closed."""
    result = np.asarray(gripper) > threshold
    return bool(result) if result.ndim == 0 else result


def integrate_states(
    states: NDArray[Any], deltas: NDArray[Any], limits: StepLimits, workspace: Workspace | None = None
) -> F32:
    """Return Bridge states float32 (G, 7) after one ideal step: what the dream believes the arm does.

    The same as `clip_delta`, `apply_delta` with measured == target, the workspace clip and `bridge_state`. With
    measured == target the pivot drops out, and R' D^T = dR (R D^T), so D drops out too.
    """
    states, step = np.asarray(states, np.float64), clip_delta(np.asarray(deltas, np.float64), limits)
    out = np.empty(states.shape, np.float32)
    position = states[..., :3] + step[..., :3]
    out[..., :3] = position if workspace is None else workspace.clip(position)
    out[..., 3:6] = matrix_to_rpy(rpy_to_matrix(step[..., 3:6]) @ rpy_to_matrix(states[..., 3:6]))
    out[..., 6] = step[..., 6]
    return out
