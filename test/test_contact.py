"""Pushing and grasping by poses alone: by hand, and against the twin's physics."""
from __future__ import annotations

import numpy as np
import pytest

from world_gymnast_ros.tabletop.contact import (
    EDGE_M,
    FACE_M,
    HAND_SAG_M,
    OBJECT_SIZE_M,
    THIN_M,
    ObjectPaths,
    along_and_aside,
    object_paths,
    predicted_path,
)

AHEAD_M = THIN_M + OBJECT_SIZE_M[0]
ACROSS_M = EDGE_M + OBJECT_SIZE_M[0]


def hands(*poses: tuple[float, float, float, float]) -> np.ndarray:
    """(1, T+1, 7) from x, y, z and gripper."""
    out = np.zeros((1, len(poses), 7))
    out[0, :, [0, 1, 2, 6]] = np.array(poses).T
    return out


def pushed(way: np.ndarray, place_m: np.ndarray) -> np.ndarray:
    """Path (T+1, 2) of one thing at (2,)."""
    return object_paths(way, np.array([[[*place_m, 0.02]]]))[0][0, :, 0, :2]


def test_a_low_hand_pushes_what_is_ahead_and_nothing_else() -> None:
    way = hands((0.20, 0, 0.03, 0), (0.25, 0, 0.03, 0), (0.30, 0, 0.03, 0))
    ahead, beside, behind = (pushed(way, np.array([0.27 - x, y])) for x, y in ((0, 0), (0, 0.045), (0.15, 0)))
    assert ahead[-1] == pytest.approx((0.30 + AHEAD_M, 0.0), abs=1e-3)
    assert (beside == beside[0]).all() and (behind == behind[0]).all()
    turned = way + np.array([0, 0, 0, 0, 0, np.pi / 2, 0])  # now the fingers' wide side leads
    assert pushed(turned, np.array([0.27, 0.0]))[-1] == pytest.approx((0.30 + ACROSS_M, 0.0), abs=1e-3)
    high = way + np.array([0, 0, 0.05, 0, 0, 0, 0])
    assert (pushed(high, np.array([0.27, 0.0])) == [0.27, 0.0]).all()
    back = pushed(way[:, ::-1], np.array([0.34, 0.0]))
    assert (back == back[0]).all(), "a hand that goes away pulls nothing along"


def test_what_is_pushed_off_its_middle_goes_aside_until_the_hand_has_passed() -> None:
    """The thin side of the fingers leads: across their wide side, to the left."""
    way = hands(*((0.30, 0.02 * i, 0.03, 0) for i in range(8)))
    straight, aside, further = (pushed(way, np.array([0.30 + off, 0.07])) for off in (0.0, 0.008, 0.018))
    assert straight[-1] == pytest.approx((0.30, 0.14 + ACROSS_M), abs=1e-3)
    assert aside[-1, 0] > 0.312 and further[-1, 0] > 0.322, "away from the fingers"
    assert further[-1] == pytest.approx(further[-3]) and further[-1, 1] < 0.12, "it has slipped off"
    assert 0.17 < aside[-1, 1] < straight[-1, 1]
    mirrored = pushed(way, np.array([0.30 - 0.008, 0.07]))
    assert mirrored == pytest.approx(np.array([0.60, 0.0]) + aside * [-1, 1])
    turned = way.copy()  # all of it a quarter turn about the base
    turned[..., 0], turned[..., 1], turned[..., 5] = -way[..., 1], way[..., 0], np.pi / 2
    assert pushed(turned, np.array([-0.07, 0.308])) == pytest.approx(aside[:, ::-1] * [-1, 1])


def test_a_hand_that_grazes_drags_nothing_along_however_its_way_is_rounded() -> None:
    ends = []
    for slope in (0.0, 1e-12, -1e-12):
        way = hands((0.30, 0, 0.03, 0), (0.31, slope, 0.03, 0))
        ends.append(pushed(way, np.array([0.305, EDGE_M + OBJECT_SIZE_M[0] - 0.004]))[-1])
    assert np.ptp(np.array(ends), axis=0).max() < 1e-6


def test_what_the_wide_side_meets_beyond_its_face_slips_off() -> None:
    way = hands(*((0.20 + 0.02 * i, 0, 0.03, 0) for i in range(8)))
    middle, near, far = (pushed(way, np.array([0.25, y])) for y in (0.0, 0.010, 0.028))
    assert middle[-1, 0] == pytest.approx(near[-1, 0], abs=1e-3) and near[-1, 1] == 0.010
    assert far[-1] == pytest.approx(far[-2]) and far[-1, 0] < 0.31 and far[-1, 1] > OBJECT_SIZE_M[0] + FACE_M - 1e-3


def test_what_is_wider_is_met_earlier_and_what_is_higher_by_a_higher_hand() -> None:
    way = hands((0.20, 0, 0.06, 0), (0.25, 0, 0.06, 0), (0.30, 0, 0.06, 0))  # over what is 4 cm high
    two = np.array([[[0.27, 0.0, 0.02], [0.27, 0.2, 0.02]]])
    assert (object_paths(way, two)[0] == two[:, None]).all()
    sizes = np.array([[[0.022, 0.07], [0.022, 0.04]]])
    path = object_paths(way, two, sizes)[0][0, -1]
    assert path[0] == pytest.approx((0.30 + AHEAD_M, 0.0, 0.02), abs=1e-3) and path[1] == pytest.approx(two[0, 1])
    low = way - np.array([0, 0, 0.03, 0, 0, 0, 0])
    for radius_m in (0.014, 0.034):
        ahead = object_paths(low, two, (radius_m, 0.04))[0][0, -1, 0, 0]
        assert ahead == pytest.approx(0.30 + THIN_M + radius_m, abs=1e-3)
    assert np.array_equal(predicted_path(low, two), predicted_path(low, two, np.array([[OBJECT_SIZE_M] * 2])))


def test_a_closing_hand_takes_what_it_is_over_and_lets_it_go() -> None:
    way = hands((0.25, 0, 0.02, 1), (0.25, 0, 0.02, 0), (0.25, 0, 0.10, 0), (0.30, 0.1, 0.10, 0), (0.30, 0.1, 0.05, 1),
                (0.20, 0, 0.15, 1))
    thing = np.array([[[0.26, 0.0, 0.02]]])
    path, held = object_paths(way, thing)
    assert held[0, :, 0].tolist() == [False, True, True, True, False, False]
    assert path[0, 3, 0] == pytest.approx((0.31, 0.1, 0.10)) and path[0, 5, 0] == pytest.approx((0.31, 0.1, 0.02))
    for wrong in (way + np.array([0, 0, 0.05, 0, 0, 0, 0]), way + np.array([0.08, 0, 0, 0, 0, 0, 0])):
        path, held = object_paths(wrong, thing)
        assert not held.any() and (path == path[:, :1]).all()


def test_things_are_pushed_by_a_closed_hand_carried_by_a_closing_one_and_fall_when_it_opens() -> None:
    places = np.array([[[0.27, 0.0, 0.02], [0.27, 0.2, 0.02], [np.nan] * 3]])
    push = hands((0.20, 0, 0.03, 0), (0.25, 0, 0.03, 0), (0.30, 0, 0.03, 0))
    for closed, ends_m in ((True, 0.30 + AHEAD_M), (False, 0.27)):  # an open hand has the thing between its fingers
        things = ObjectPaths(places)
        for t in range(2):
            before, after = (push[:, i] + np.eye(7)[6] * (not closed) for i in (t, t + 1))
            now = things.move(before, after)
        assert now[0, 0] == pytest.approx((ends_m, 0.0, 0.02), abs=1e-3) and now[0, 1] == pytest.approx(places[0, 1])
        assert np.isnan(now[0, 2]).all() and not things.held.any()
    carry = hands((0.27, 0, 0.03, 1), (0.27, 0, 0.03, 0), (0.30, 0.1, 0.10, 0), (0.30, 0.1, 0.10, 1))
    things, path = ObjectPaths(places), []
    for t in range(3):
        path.append(things.move(carry[:, t], carry[:, t + 1])[0, 0])
    assert path[0] == pytest.approx((0.27, 0.0, 0.02)) and path[1] == pytest.approx((0.30, 0.1, 0.09))
    assert path[2] == pytest.approx((0.30, 0.1, 0.02)), "let go, it falls to the height it lay at"


def test_what_is_foreseen_from_targets_knows_that_the_hand_lags_and_sags() -> None:
    states = hands((0.20, 0, 0.03, 0), (0.25, 0, 0.03, 0), (0.30, 0, 0.03, 0), (0.30, 0, 0.03, 0))
    path = predicted_path(states, np.array([[[0.27, 0.0, 0.02]]]))[0, :, 0]
    assert path[0, 0] == 0.27
    assert path[2, 0] == pytest.approx(0.30 - 0.3 * 0.05 - HAND_SAG_M[0] + AHEAD_M, abs=1e-3)
    assert path[3, 0] == pytest.approx(0.30 - HAND_SAG_M[0] + AHEAD_M, abs=1e-3)


def test_along_and_aside() -> None:
    along, aside = along_and_aside(np.array([[0.2, 0.0], [0.25, 0.0], [0.25, 0.03]]), (1.0, 0.0))
    assert along == pytest.approx([0.0, 0.05, 0.05]) and aside == pytest.approx([0.0, 0.0, 0.03])


def test_it_says_where_the_twins_physics_takes_things() -> None:
    from world_gymnast_ros.twin.play import record_episode
    from world_gymnast_ros.twin.scene import load_scene

    scene = load_scene("train_grey")
    words = next(w for w in scene.instructions if w.startswith("push"))
    from dataclasses import replace

    from world_gymnast_ros.twin.tasks import parse_instruction
    off = []
    for seed in range(6):
        row = record_episode(replace(scene, instructions=(words,)), 300 + seed, "demo", False)
        thing = [str(n) for n in row["object_names"]].index(parse_instruction(words).target)
        true = row["objects_xyz"][:, thing, :2]
        assert np.linalg.norm(true[-1] - true[0]) > 0.03, "a demonstration moves it"
        off.append(np.linalg.norm(pushed(row["measured"][None].astype(np.float64), true[0])[-1] - true[-1]))
    assert np.median(off) < 0.015, off
