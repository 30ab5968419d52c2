"""May a captured image start an adaptation? The arm must rest, and enough of its hand must be in the image.

World model and judges find the arm in the image to know where things are. Pure: poses and the camera come in.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from world_gymnast_ros.control.homing import CAPTURE_STATE
from world_gymnast_ros.robot.arm_silhouette import PARKED, silhouette
from world_gymnast_ros.types import F32, ArmState

REST_RAD = 0.02
"""A joint that moves by more while it is listened to (REST_S) is under way; servos at rest jitter by 0.003."""
REST_S = 0.2
HAND = slice(2, 6)
"""Capsules of the silhouette that are hand, carriage and fingers."""
POINTS = 41


def turned_rad(states: Sequence[ArmState]) -> float:
    """Return by how much the joint that moves most has moved over these states; 0 for none."""
    if not states:
        return 0.0
    joints = np.stack([np.asarray(state.joints, np.float64) for state in states])
    return float(np.ptp(joints, axis=0).max())


def hand_fault(state: F32, camera: tuple[float, ...], least: float) -> str:
    """Return why an image with the arm at a Bridge state (7,) shows too little of the hand, or "". `least`: 0..1."""
    seen = hand_seen(state, camera)
    if seen >= least:
        return ""
    x, y, z = CAPTURE_STATE[:3]
    return (f"{100 * seen:.0f} % of the hand is in the image, at least {100 * least:.0f} % must be: it is at "
            f"({state[0]:.2f}, {state[1]:.2f}, {state[2]:.2f}) m. Move it into view, such as to ({x}, {y}, {z}) m, "
            "pointing down; an armed arm walks there with world-gymnast robot capture --go. Where the image does "
            "show the hand, the camera stands elsewhere than thought: calibrate it (world-gymnast robot calibrate)")


def hand_seen(state: F32, camera: tuple[float, ...]) -> float:
    """Return which part of the hand at a Bridge state (7,) is in the image, 0..1, weighed by width.

    `camera` as from `arm_silhouette.projection`; 0 for a pose out of reach.
    """
    share = np.linspace(0.0, 1.0, POINTS)
    inside = total = 0.0
    for u0, v0, r0, u1, v1, r1 in silhouette(state[None], np.ones(1, np.bool_), camera)[0, HAND].astype(np.float64):
        if u0 >= PARKED - 1:
            total += 1.0
            continue
        u, v, width = u0 + (u1 - u0) * share, v0 + (v1 - v0) * share, r0 + (r1 - r0) * share
        total += float(width.sum())
        inside += float(width[(np.abs(u) <= 1.0) & (np.abs(v) <= 1.0)].sum())
    return inside / total if total else 0.0
