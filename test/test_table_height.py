"""The height of the table, by finger tips that rest on it."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from world_gymnast_ros.control.table_height import table_height
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.robot import kinematics
from world_gymnast_ros.types import ArmState


def resting(height_m: float, pitch_rad: float = 1.3, gripper: float = 0.0) -> ArmState:
    """Return an arm whose hand points down at `pitch_rad`, its end effector at `height_m`."""
    T = np.eye(4)
    c, s = np.cos(pitch_rad), np.sin(pitch_rad)
    T[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    T[:3, 3] = 0.25, 0.02, height_m
    joints = kinematics.ik(T, kinematics.NEUTRAL)
    assert joints is not None
    return ArmState(kinematics.fk(joints), joints, np.zeros(6), np.zeros(6), gripper, 0)


def test_a_table_is_as_far_below_as_the_finger_tips_reach() -> None:
    high, low = (table_height([resting(z)] * 5)[0] for z in (0.03, 0.01))
    assert high - low == pytest.approx(0.02, abs=2e-4)
    height, part = table_height([resting(0.02, np.pi / 2)] * 3)  # straight down: 13.4 mm, and 4 mm of the tip
    assert "finger" in part and height == pytest.approx(0.02 - 0.0134 - 0.004, abs=0.002)


def test_what_is_no_touch_is_refused() -> None:
    still = resting(0.02)
    with pytest.raises(BadConfig, match=r"moves.*at most 0\.02 rad"):
        table_height([still, replace(still, joints=still.joints + 0.05)])
    with pytest.raises(BadConfig, match=r"mm from the foot of the arm, at most 150 mm"):
        table_height([resting(0.2)] * 3)
    with pytest.raises(BadConfig, match="lower the finger tips"):
        table_height([replace(still, joints=np.zeros(6))] * 3)  # the hand level, the wrist's motors below it
