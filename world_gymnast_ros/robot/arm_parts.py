"""Points of the arm that an image shows well: the wrist, both ends of the finger carriage, both finger tips, elbow."""
from __future__ import annotations

import numpy as np

from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.robot.actions import pose_from_state
from world_gymnast_ros.robot.arm_silhouette import _elbow, _ends
from world_gymnast_ros.robot.kinematics import NEUTRAL, ik
from world_gymnast_ros.types import F32

PARTS = ("elbow", "wrist", "left end of the carriage", "right end of the carriage", "left finger tip",
         "right finger tip")


def part_points(states: F32) -> F32:
    """Return the PARTS of an arm at Bridge states (N, 7) as float32 (N, 6, 3), m, base frame; far away where a pose
    is out of reach."""
    out = np.full((len(states), len(PARTS), 3), 1e3, np.float32)
    for i, T in enumerate(pose_from_state(np.asarray(states))):
        try:
            elbow_m = _elbow(ik(T, NEUTRAL))
        except Unreachable:
            continue
        ends = _ends(T, elbow_m, float(np.clip(states[i, 6], 0.0, 1.0)))
        out[i] = ends[0, 1], ends[1, 1], ends[3, 0], ends[3, 1], ends[4, 1], ends[5, 1]
    return out
