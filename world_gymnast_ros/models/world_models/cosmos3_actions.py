"""Bridge actions as Cosmos 3 reads them: the hand's relative pose from one frame to the next, ten numbers, normalised.

The ten numbers of a step are a translation in m (3), the first two columns of a rotation (6), both in the hand's own
axes before the step, and the gripper that is commanded, 1 open. The hand is the arm's `gripper_link`, 0.093575 m behind
Bridge's end effector, with OpenCV's axes (x right, y down, z ahead). The model was trained on *measured* poses; an
imagined arm reaches what it is told, so its lag and sag are not in these numbers.

Source: NVIDIA's public `cosmos-framework` (OpenMDW-1.1), whose outputs are the golden values of the tests.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadAction, BadCheckpoint
from world_gymnast_ros.robot.actions import bridge_state, matrix_to_rpy, pose_from_state
from world_gymnast_ros.types import ACTION_DIM, F32, F64

WIDTH = 10
TOOL_TO_HAND_M = -0.093575
"""Along the tool's x axis."""
AXES_OPENCV: F64 = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""OpenCV's axes in the arm's: a rotation (3, 3) by whose columns they are given."""
AXES_OPENCV.setflags(write=False)
STATISTICS_REMEDY = ("name NVIDIA's bridge_orig_lerobot_stats.json (cosmos-framework, data/generator/action/"
                     "normalizer_stats), or quantiles of your own recordings in the same form")


@dataclass(frozen=True)
class Quantiles:
    """What becomes -1 (`low`) and 1 (`high`) of each of the ten numbers, float32 (10,): the 1 % and 99 % quantiles."""

    low: F32
    high: F32

    def normalised(self, raw: NDArray[np.floating]) -> F32:
        """Return the model's numbers float32 (..., 10) of ten numbers in m, without unit, gripper 0..1."""
        spread = np.maximum(self.high - self.low, 1e-8)
        out: F32 = (2.0 * (np.asarray(raw, np.float32) - self.low) / spread - 1.0).astype(np.float32)
        return out

    def raw(self, normalised: NDArray[np.floating]) -> F32:
        """Return the inverse of `normalised`."""
        part = 0.5 * (np.asarray(normalised, np.float32) + 1.0)
        out: F32 = (part * (self.high - self.low) + self.low).astype(np.float32)
        return out


def read_statistics(path: Path) -> Quantiles:
    """Read `q01` and `q99`, ten numbers each, from a JSON file; BadCheckpoint says what is wrong with it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        low, high = (np.array(values[key], np.float32) for key in ("q01", "q99"))
    except OSError as error:
        raise BadCheckpoint(f"the action statistics {path} cannot be read ({error.strerror or error}); "
                            f"{STATISTICS_REMEDY}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{path} holds no q01 and q99 of numbers ({error!r}); {STATISTICS_REMEDY}") from error
    if low.shape != (WIDTH,) or high.shape != (WIDTH,):
        raise BadCheckpoint(f"{path} has {low.shape} and {high.shape} quantiles; {WIDTH} each are needed: translation, "
                            f"two columns of the rotation, gripper; {STATISTICS_REMEDY}")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise BadCheckpoint(f"{path}: each q01 must be finite and below its q99; {STATISTICS_REMEDY}")
    return Quantiles(low, high)


def hand_pose(states: NDArray[np.floating]) -> F64:
    """Return the hand's pose in base axes (..., 4, 4) of Bridge states (..., 7)."""
    T = pose_from_state(states)
    T[..., :3, 3] += TOOL_TO_HAND_M * T[..., :3, 0]
    T[..., :3, :3] = T[..., :3, :3] @ AXES_OPENCV
    return T


def hand_state(T: F64, gripper: NDArray[np.floating]) -> F32:
    """Return Bridge states (..., 7) of poses of the hand (..., 4, 4): the inverse of `hand_pose`."""
    tool = np.array(T, np.float64)
    tool[..., :3, :3] = tool[..., :3, :3] @ AXES_OPENCV.T
    tool[..., :3, 3] -= TOOL_TO_HAND_M * tool[..., :3, 0]
    return bridge_state(tool, gripper)


def relative_actions(states: NDArray[np.floating], grippers: NDArray[np.floating]) -> F32:
    """Return ten numbers float32 (..., K, 10) of the K steps between states (..., K + 1, 7); `grippers` (..., K), the
    commands."""
    T = hand_pose(states)
    back = np.swapaxes(T[..., :-1, :3, :3], -1, -2)
    out = np.empty((*T.shape[:-3], T.shape[-3] - 1, WIDTH), np.float32)
    out[..., :3] = (back @ (T[..., 1:, :3, 3] - T[..., :-1, :3, 3])[..., None])[..., 0]
    turned = back @ T[..., 1:, :3, :3]
    out[..., 3:6], out[..., 6:9] = turned[..., :, 0], turned[..., :, 1]
    out[..., 9] = grippers
    return out


def poses_after(first: F64, actions: NDArray[np.floating]) -> F64:
    """Return the hand's poses (..., K + 1, 4, 4) that begin at `first` (..., 4, 4) and go on by ten numbers (..., K,
    10); two columns that are no rotation's are replaced by the nearest."""
    actions = np.asarray(actions, np.float64)
    x, y = actions[..., 3:6], actions[..., 6:9]
    U, _, Vt = np.linalg.svd(np.stack([x, y, np.cross(x, y)], -1))
    U[..., :, -1] *= np.sign(np.linalg.det(U @ Vt))[..., None]
    turned = U @ Vt
    out = np.empty((*actions.shape[:-1], 4, 4))
    T = np.asarray(first, np.float64)
    for k in range(actions.shape[-2]):
        step = np.zeros(T.shape)
        step[..., :3, :3], step[..., :3, 3], step[..., 3, 3] = turned[..., k, :, :], actions[..., k, :3], 1.0
        T = T @ step
        out[..., k, :, :] = T
    return np.concatenate([np.asarray(first, np.float64)[..., None, :, :], out], -3)


def bridge_actions(states: NDArray[np.floating], actions: NDArray[np.floating]) -> F32:
    """Return Bridge actions float32 (..., K, 7) of ten numbers (..., K, 10) from states (..., 7) on. BadAction where a
    number is not finite."""
    if not np.isfinite(actions).all():
        raise BadAction("the world model gave actions that are not finite; its weights or the statistics are broken")
    T = poses_after(hand_pose(states), actions)
    moved = hand_state(T, 0.0 * T[..., 0, 0])
    R = T[..., :3, :3]
    out = np.empty((*actions.shape[:-1], ACTION_DIM), np.float32)
    out[..., :3] = moved[..., 1:, :3] - moved[..., :-1, :3]
    out[..., 3:6] = matrix_to_rpy(R[..., 1:, :, :] @ np.swapaxes(R[..., :-1, :, :], -1, -2))
    out[..., 6] = np.clip(actions[..., 9], 0.0, 1.0)
    return out
