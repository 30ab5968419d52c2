"""Pushing and grasping by poses alone: by hand, and against the twin's physics."""
from __future__ import annotations

import numpy as np
import pytest

from world_gymnast_ros.contact import CONTACT_M, along_and_aside, grasped, pushed


def hands(*poses: tuple[float, float, float, float]) -> np.ndarray:
    """(1, T+1, 7) from x, y, z and gripper."""
    out = np.zeros((1, len(poses), 7))
    out[0, :, [0, 1, 2, 6]] = np.array(poses).T
    return out


def test_a_low_hand_pushes_what_is_ahead_and_nothing_else() -> None:
    way = hands((0.20, 0, 0.03, 0), (0.25, 0, 0.03, 0), (0.30, 0, 0.03, 0))
    ahead, beside, behind = (pushed(way, np.array([[0.27, y]]) - [x, 0])[0]
                             for x, y in ((0, 0), (0, 0.04), (0.15, 0)))
    assert ahead[-1] == pytest.approx((0.30 + CONTACT_M, 0.0))
    assert (beside == beside[0]).all() and (behind == behind[0]).all()
    high = way + np.array([0, 0, 0.05, 0, 0, 0, 0])
    assert (pushed(high, np.array([[0.27, 0.0]]))[0] == [0.27, 0.0]).all()
    back = pushed(way[:, ::-1], np.array([[0.34, 0.0]]))[0]
    assert (back == back[0]).all(), "a hand that goes away pulls nothing along"


def test_a_closing_hand_takes_what_it_is_over_and_lets_it_go() -> None:
    way = hands((0.25, 0, 0.02, 1), (0.25, 0, 0.02, 0), (0.25, 0, 0.10, 0), (0.30, 0.1, 0.10, 0), (0.30, 0.1, 0.05, 1),
                (0.20, 0, 0.15, 1))
    path, held = grasped(way, np.array([[0.26, 0.0]]))
    assert held[0].tolist() == [False, True, True, True, False, False]
    assert path[0, 3] == pytest.approx((0.31, 0.1)) and path[0, 5] == pytest.approx((0.31, 0.1))
    for wrong in (way + np.array([0, 0, 0.05, 0, 0, 0, 0]), way + np.array([0.08, 0, 0, 0, 0, 0, 0])):
        path, held = grasped(wrong, np.array([[0.26, 0.0]]))
        assert not held.any() and (path == path[:, :1]).all()


def test_along_and_aside() -> None:
    along, aside = along_and_aside(np.array([[0.2, 0.0], [0.25, 0.0], [0.25, 0.03]]), (1.0, 0.0))
    assert along == pytest.approx([0.0, 0.05, 0.05]) and aside == pytest.approx([0.0, 0.0, 0.03])


def test_it_says_where_the_twins_physics_takes_things() -> None:
    pytest.importorskip("mujoco")
    from world_gymnast_ros.twin.play import record_episode
    from world_gymnast_ros.twin.scene import load_scene

    scene = load_scene("train_grey")
    words = next(w for w in scene.instructions if w.startswith("push"))
    from dataclasses import replace

    from world_gymnast_ros.tasks import parse_instruction
    off = []
    for seed in range(6):
        row = record_episode(replace(scene, instructions=(words,)), 300 + seed, "demo", False)
        thing = [str(n) for n in row["object_names"]].index(parse_instruction(words).target)
        true = row["objects_xyz"][:, thing, :2]
        assert np.linalg.norm(true[-1] - true[0]) > 0.03, "a demonstration moves it"
        off.append(np.linalg.norm(pushed(row["measured"][None].astype(np.float64), true[:1])[0, -1] - true[-1]))
    assert np.median(off) < 0.015, off
