"""States of one arm out of joint states that several publishers send to one topic, merged by name.

A gripper's own driver, or a second broadcaster, publishes beside the arm's: a message without the arm's joints is no
fault and no state, and a finger that the arm's driver does not tell may come from it. The arm's six joints always come
from one message: parts of two moments are no pose.
"""
from __future__ import annotations

from typing import Any

from world_gymnast_ros.nodes import convert
from world_gymnast_ros.robot.kinematics import JOINT_NAMES
from world_gymnast_ros.types import ArmState

FINGER_AGE_S = 0.5
"""A finger measured longer before the arm's joints came is not merged with them."""


class JointMerge:
    """Give every message to `add`, in the order of receipt."""

    def __init__(self) -> None:
        self.others: tuple[str, ...] = ()
        """Names in the newest message that had none of the arm's joints; () while every message had them."""
        self._finger: tuple[float, int] | None = None

    def add(self, msg: Any, received_ns: int) -> ArmState | None:
        """Return the arm's state in a JointState, or None where it tells nothing of the arm's joints.

        `received_ns`: steady. Raises BadAction as `convert.arm_state`.
        """
        has_arm = any(name in msg.name for name in JOINT_NAMES)
        if not has_arm:
            self.others = tuple(msg.name)
            if "left_finger" in msg.name and len(msg.position) == len(msg.name):
                self._finger = float(msg.position[list(msg.name).index("left_finger")]), received_ns
            return None
        finger = None
        if self._finger is not None and received_ns - self._finger[1] <= FINGER_AGE_S * 1e9:
            finger = self._finger[0]
        return convert.arm_state(msg, finger)
