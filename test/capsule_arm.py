"""The arm's capsules in MuJoCo: its kinematics and its distances, an oracle for `clearance`.

Each capsule is given once more here, in the frame of its own link, with the offsets of wx250s.urdf.xacro.
"""
from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from world_gymnast_ros.robot.clearance import PAIRS, RADII_M
from world_gymnast_ros.robot.kinematics import JOINT_NAMES

# body, offset from its parent (m), axis, capsules in its frame (row of clearance.LINKS, from, to)
_BODIES: tuple[tuple[str, tuple[float, ...], tuple[int, ...], list[Any]], ...] = (
    ("shoulder", (0, 0, 0.072), (0, 0, 1), [(3, (0, 0.036, 0.036), (0, -0.036, 0.036))]),
    ("upper_arm", (0, 0, 0.03865), (0, 1, 0), [(4, (0, 0, 0), (0, 0, 0.25)),
                                                     (5, (0.026, 0.036, 0.25), (0.026, -0.036, 0.25))]),
    ("forearm", (0.04975, 0, 0.25), (0, 1, 0), [(6, (0, 0, 0), (0.25, 0, 0))]),
    ("lower_forearm", (0.175, 0, 0), (1, 0, 0), []),
    ("wrist", (0.075, 0, 0), (0, 1, 0), []),
    ("gripper", (0.065, 0, 0), (1, 0, 0), [(7, (-0.065, 0, 0), (0.029975, 0, 0)),
                                           (8, (0.053975, 0.046, 0), (0.053975, -0.046, 0))]),
)
_FINGER = ((-0.004425, 0.037575), 0.106975)  # from its own link's frame: both ends; tip, from the gripper's
_FINGER_LINK_X = 0.066


class CapsuleArm:
    """MuJoCo's view of one pose."""

    def __init__(self) -> None:
        ground = ('<geom name="0" type="capsule" fromto="-0.08 0 0.009 0 0 0.009" size="0.0785"/>'
                  '<geom name="1" type="capsule" fromto="-0.115 -0.04 0.02 -0.115 0.04 0.02" size="0.05"/>'
                  '<geom name="2" type="capsule" fromto="0 0 0.02 0 0 0.07" size="0.052"/>'
                  '<geom name="table" type="plane" size="2 2 0.1"/>')
        opening, closing = "", ""
        for joint, (name, offset, axis, capsules) in zip(JOINT_NAMES, _BODIES, strict=True):
            opening += (f'<body name="{name}" pos="{_v(offset)}"><inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/>'
                        f'<joint name="{joint}" axis="{_v(axis)}"/>')
            opening += "".join(f'<geom name="{i}" type="capsule" fromto="{_v(a)} {_v(b)}" size="{RADII_M[i]}"/>'
                               for i, a, b in capsules)
            closing += "</body>"
        for i, side in ((9, 1), (10, -1)):
            (back, front), tip = _FINGER
            inner, outer = -0.003 * side, 0.006 * side
            tips = "".join(f'<geom name="tip{i}{z}" type="sphere" pos="{tip - _FINGER_LINK_X} {outer} {z}" '
                           'size="0.004"/>' for z in (0.0105, -0.0105))
            opening += (f'<body name="finger{i}" pos="{_FINGER_LINK_X} 0 0"><joint name="finger{i}" type="slide" '
                        f'axis="0 {side} 0"/><inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/>'
                        f'<geom name="{i}" type="capsule" fromto="{back} {inner} 0 {front} {inner} 0" '
                        f'size="{RADII_M[i]}"/>{tips}</body>')
        xml = f"<mujoco><compiler angle='radian'/><worldbody>{ground}{opening}{closing}</worldbody></mujoco>"
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)

        tips = [f"tip{i}{z}" for i in (9, 10) for z in (0.0105, -0.0105)]
        self._table = [self._ids("table", name) for name in ("5", "6", "7", "8", *tips)]
        self._links = [self._ids(str(a), str(b)) for a, b in PAIRS]

    def _ids(self, one: str, other: str) -> tuple[int, int]:
        return self.model.geom(one).id, self.model.geom(other).id

    def place(self, joints: np.ndarray, finger_m: float) -> None:
        self.data.qpos[:6], self.data.qpos[6:8] = joints, finger_m
        mujoco.mj_kinematics(self.model, self.data)

    def table(self) -> np.ndarray:
        """Return the heights above the table of elbow, forearm, hand, gripper bar and the tips' corners (8,)."""
        return self._distances(self._table)

    def links(self) -> np.ndarray:
        """Return the distances of all pairs that `clearance` compares, in its order."""
        return self._distances(self._links)

    def _distances(self, pairs: list[tuple[int, int]]) -> np.ndarray:
        return np.array([mujoco.mj_geomDistance(self.model, self.data, a, b, 2.0, None) for a, b in pairs])


def _v(values: Any) -> str:
    return " ".join(str(float(v)) for v in values)
