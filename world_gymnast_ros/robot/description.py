"""The WidowX 250s as a tree of frames, and as URDF: what /tf, /robot_description and their viewers want.

Names of links and joints, and the offsets, are those of Interbotix's `wx250s.urdf.xacro`, so that either may describe
the arm to the same viewer. The shapes are the capsules of `clearance.py`: a viewer shows what the guard keeps clear.
"""
from __future__ import annotations

from math import cos, pi, sin
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np

from world_gymnast_ros.robot import clearance
from world_gymnast_ros.robot.actions import matrix_to_rpy
from world_gymnast_ros.robot.gripper import FINGER_CLOSED_M, FINGER_OPEN_M
from world_gymnast_ros.robot.kinematics import HOME, JOINT_LOWER_RAD, JOINT_NAMES, JOINT_UPPER_RAD
from world_gymnast_ros.types import F64

BASE_LINK = "base_link"
X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


class Joint(NamedTuple):
    """A joint between two links. `offset_m` of its axis in the parent; at 0 no link is turned against another."""

    name: str
    kind: str  # URDF's: revolute, continuous, prismatic or fixed
    parent: str
    child: str
    offset_m: tuple[float, float, float]
    axis: tuple[float, float, float] = X

    def transform(self, position: float) -> F64:
        """Return T_parent_child (4, 4), m; `position` in rad or m."""
        T = np.eye(4)
        T[:3, 3] = self.offset_m
        if self.kind == "prismatic":
            T[:3, 3] += np.asarray(self.axis) * position
        elif self.kind != "fixed":
            T[:3, :3] = _rotation(self.axis, position)
        return T


JOINTS = (
    Joint("waist", "revolute", BASE_LINK, "shoulder_link", (0, 0, 0.072), Z),
    Joint("shoulder", "revolute", "shoulder_link", "upper_arm_link", (0, 0, 0.03865), Y),
    Joint("elbow", "revolute", "upper_arm_link", "upper_forearm_link", (0.04975, 0, 0.25), Y),
    Joint("forearm_roll", "revolute", "upper_forearm_link", "lower_forearm_link", (0.175, 0, 0)),
    Joint("wrist_angle", "revolute", "lower_forearm_link", "wrist_link", (0.075, 0, 0), Y),
    Joint("wrist_rotate", "revolute", "wrist_link", "gripper_link", (0.065, 0, 0)),
    Joint("ee_arm", "fixed", "gripper_link", "ee_arm_link", (0.043, 0, 0)),
    Joint("gripper", "continuous", "ee_arm_link", "gripper_prop_link", (0.0055, 0, 0)),
    Joint("gripper_bar", "fixed", "ee_arm_link", "gripper_bar_link", (0, 0, 0)),
    Joint("ee_bar", "fixed", "gripper_bar_link", "fingers_link", (0.023, 0, 0)),
    Joint("left_finger", "prismatic", "fingers_link", "left_finger_link", (0, 0, 0), Y),
    Joint("right_finger", "prismatic", "fingers_link", "right_finger_link", (0, 0, 0), Y),
    Joint("ee_gripper", "fixed", "fingers_link", "ee_gripper_link", (0.027575, 0, 0)),
)
LINKS = (BASE_LINK, *(joint.child for joint in JOINTS))
_CAPSULE_LINKS = (BASE_LINK, BASE_LINK, BASE_LINK, "shoulder_link", "upper_arm_link", "upper_arm_link",
                  "upper_forearm_link", "wrist_link", "gripper_link", "left_finger_link", "right_finger_link")
"""The link that each capsule of `clearance.LINKS` is fixed to."""
_COLOUR = "0.15 0.15 0.17 1"


def moving(joints: F64, finger_m: float, gripper_rad: float = 0.0) -> list[tuple[str, str, F64]]:
    """Return (parent, child, T_parent_child (4, 4)) of every joint that moves; `joints` (6,) rad.

    `finger_m`: left_finger as the driver measures it; `gripper_rad`: its motor.
    """
    at = dict(zip(JOINT_NAMES, (float(q) for q in joints), strict=True))
    at |= {"left_finger": finger_m, "right_finger": -finger_m, "gripper": gripper_rad}
    return [(j.parent, j.child, j.transform(at[j.name])) for j in JOINTS if j.kind != "fixed"]


def still() -> list[tuple[str, str, F64]]:
    """Return (parent, child, T_parent_child (4, 4)) of every joint that does not move."""
    return [(j.parent, j.child, j.transform(0.0)) for j in JOINTS if j.kind == "fixed"]


def urdf(prefix: str) -> str:
    """Return the URDF; `prefix` stands before every link, such as "wx250s/"."""
    links = "".join(_link(prefix, name) for name in LINKS)
    joints = "".join(_joint(prefix, joint) for joint in JOINTS)
    return f'<?xml version="1.0"?>\n<robot name="wx250s">\n{links}{joints}</robot>\n'


def _rotation(axis: tuple[float, float, float], angle: float) -> F64:
    """Return the rotation (3, 3) about a base vector (Rodrigues)."""
    x, y, z = axis
    W = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    R: F64 = np.eye(3) + sin(angle) * W + (1.0 - cos(angle)) * W @ W
    return R


def _joint(prefix: str, joint: Joint) -> str:
    limit = ""
    if joint.kind == "prismatic":
        low, high = ((FINGER_CLOSED_M, FINGER_OPEN_M) if joint.name == "left_finger" else
                     (-FINGER_OPEN_M, -FINGER_CLOSED_M))
        limit = f'    <limit lower="{low:.6f}" upper="{high:.6f}" effort="5" velocity="1"/>\n'
    elif joint.kind == "revolute":
        row = JOINT_NAMES.index(joint.name)
        limit = (f'    <limit lower="{JOINT_LOWER_RAD[row]:.6f}" upper="{JOINT_UPPER_RAD[row]:.6f}" effort="20" '
                 f'velocity="{pi:.6f}"/>\n')
    axis = "" if joint.kind == "fixed" else f'    <axis xyz="{_words(joint.axis)}"/>\n'
    return (f'  <joint name="{joint.name}" type="{joint.kind}">\n'
            f"    <parent link={quoteattr(prefix + joint.parent)}/>\n"
            f"    <child link={quoteattr(prefix + joint.child)}/>\n"
            f'    <origin xyz="{_words(joint.offset_m)}" rpy="0 0 0"/>\n{axis}{limit}  </joint>\n')


def _link(prefix: str, name: str) -> str:
    """Return a link with the capsules that are fixed to it, each a cylinder between two spheres."""
    ends = clearance.capsules(HOME, FINGER_CLOSED_M) - _origins()[name]
    shapes = []
    for row, (start, end) in enumerate(ends):
        if _CAPSULE_LINKS[row] != name:
            continue
        radius = f"{clearance.RADII_M[row]:.4f}"
        length = float(np.linalg.norm(end - start))
        shapes += [(start, np.eye(3), f'<sphere radius="{radius}"/>'), (end, np.eye(3), f'<sphere radius="{radius}"/>'),
                   ((start + end) / 2, _upright(end - start), f'<cylinder radius="{radius}" length="{length:.5f}"/>')]
    bodies = "".join(
        f'    <{kind}>\n      <origin xyz="{_words(at)}" rpy="{_words(matrix_to_rpy(R))}"/>\n'
        f"      <geometry>{shape}</geometry>\n"
        + ('      <material name="dark"><color rgba="' + _COLOUR + '"/></material>\n' if kind == "visual" else "")
        + f"    </{kind}>\n" for at, R, shape in shapes for kind in ("visual", "collision"))
    return f"  <link name={quoteattr(prefix + name)}>\n{bodies}  </link>\n"


def _origins() -> dict[str, F64]:
    """Return where every link's frame lies at home (3,), m, base axes: there none is turned; the fingers closed."""
    at: dict[str, F64] = {BASE_LINK: np.zeros(3)}
    closed = {"left_finger": FINGER_CLOSED_M, "right_finger": -FINGER_CLOSED_M}
    for joint in JOINTS:
        at[joint.child] = at[joint.parent] + joint.transform(closed.get(joint.name, 0.0))[:3, 3]
    return at


def _upright(way: F64) -> F64:
    """Return a rotation (3, 3) that turns z, along which a cylinder lies, into the direction `way` (3,)."""
    z = way / np.linalg.norm(way)
    aside = np.cross(z, X if abs(z[0]) < 0.9 else Y)
    x = aside / np.linalg.norm(aside)
    R: F64 = np.stack([x, np.cross(z, x), z], axis=1)
    return R


def _words(values: tuple[float, ...] | F64) -> str:
    return " ".join(f"{float(v) + 0.0:.6g}" for v in values)
