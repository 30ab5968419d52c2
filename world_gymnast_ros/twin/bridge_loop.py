"""The Bridge controller around the twin, in one process: for demonstrations, play data and fast evaluation.

The same arithmetic as the arm node (clip, previous-target delta, workspace, IK, 50 Hz gripper loop), without ROS.
"""
from __future__ import annotations

import numpy as np

from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.robot import actions, kinematics
from world_gymnast_ros.twin.sim import CONTROL_TICK_S, Twin
from world_gymnast_ros.types import CONTROL_DT_S, F32, F64

TABLE_WORKSPACE = actions.Workspace((0.12, -0.20, 0.022), (0.42, 0.25, 0.25))
"""Workspace of the twin: the Bridge evaluation box, its floor raised so that finger tips clear the table by 5 mm."""
GRIPPER_OPEN_M, GRIPPER_CLOSED_M = 0.035, 0.010
LIMITS = actions.StepLimits()


def gripper_pwm(is_open: bool, left_finger_m: float) -> float:
    """Bridge's PWM position loop (custom_gripper_controller.py): clip(300 (goal - finger), -1, 1) x 350."""
    goal = GRIPPER_OPEN_M if is_open else GRIPPER_CLOSED_M
    return float(np.clip(300.0 * (goal - left_finger_m), -1.0, 1.0) * 350.0)


class BridgeLoop:
    """Steps a Twin with Bridge actions. `target` is the previous target state (7,), as the real controller keeps it."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.begin()

    def begin(self) -> None:
        """Seed the target from the measured pose, as on arming."""
        state = self.twin.arm_state(0)
        self.T_target: F64 = state.T_base_ee.copy()
        self.gripper = 1.0 if state.gripper > 0.5 else 0.0

    @property
    def target(self) -> F32:
        """The target as Bridge state (7,) float32."""
        return actions.bridge_state(self.T_target, self.gripper)

    def step(self, delta: F32 | F64) -> F32:
        """Apply one action (7,) for 0.2 s; return the action after limits. An unreachable pose moves nothing."""
        sent = actions.clip_delta(np.asarray(delta, dtype=np.float32), LIMITS)
        measured = self.twin.arm_state(0)
        T_new = actions.apply_delta(self.T_target, measured.T_base_ee, sent)
        T_new[:3, 3] = np.clip(T_new[:3, 3], TABLE_WORKSPACE.low_m, TABLE_WORKSPACE.high_m)
        try:
            joints = kinematics.ik(T_new, measured.joints)
            self.T_target = T_new
            self.twin.set_joint_goals(joints)
        except Unreachable:
            sent = np.concatenate([np.zeros(6, np.float32), sent[6:]])
        is_open = actions.gripper_is_open(float(sent[6]))
        self.gripper = 1.0 if is_open else 0.0
        for _ in range(round(CONTROL_DT_S / CONTROL_TICK_S)):
            self.twin.set_gripper_pwm(gripper_pwm(is_open, self.twin.left_finger_m))
            self.twin.advance(CONTROL_TICK_S)
        return sent
