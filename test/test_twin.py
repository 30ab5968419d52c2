"""The twin: physics decides success, scenes are strict, the same seed gives the same episode."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from world_gymnast_ros.errors import BadConfig, BadInstruction, UnknownScene
from world_gymnast_ros.robot import kinematics
from world_gymnast_ros.twin import play
from world_gymnast_ros.twin.bridge_loop import BridgeLoop
from world_gymnast_ros.twin.expert import demonstrator
from world_gymnast_ros.twin.scene import known_scenes, load_scene, place_objects
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.twin.tasks import parse_instruction


@pytest.fixture(scope="module")
def twin():
    twin = Twin(load_scene("train_oak"), 3)
    yield twin
    twin.close()


def run(twin: Twin, instruction: str, seed: int, offset_m: float = 0.0) -> Twin:
    twin.reset(seed, instruction)
    loop = BridgeLoop(twin)
    hand = demonstrator(parse_instruction(instruction), loop, np.random.default_rng(seed))
    for way in hand._waypoints:
        way.xyz = way.xyz + np.array([-offset_m, 0.0, 0.0])
    for _ in range(twin.task.horizon_steps):
        loop.step(hand.act(loop))
    return twin


@pytest.mark.parametrize("instruction", ["reach the red block", "push the red block left",
                                         "put the red block on the white plate"])
def test_a_demonstrator_succeeds_and_one_that_misses_by_6_cm_does_not(twin, instruction):
    assert run(twin, instruction, 5).success()
    assert not run(twin, instruction, 5, offset_m=0.06).success()


def test_a_grasped_block_is_held_by_friction_alone(twin):
    run(twin, "put the red block on the white plate", 5)
    assert np.linalg.norm(twin.object_xyz("red block")[:2] - twin.object_xyz("white plate")[:2]) < 0.04
    twin.reset(5, "put the red block on the white plate")
    before = twin.object_xyz("red block")  # and it stays where it is when nobody touches it
    twin.advance(1.0)
    assert np.linalg.norm(twin.object_xyz("red block") - before) < 1e-3


def test_end_effector_agrees_with_the_kinematics(twin):
    twin.reset(1, "reach the red block")
    twin.advance(0.5)
    state = twin.arm_state(7)
    assert state.stamp_ns == 7
    np.testing.assert_allclose(kinematics.fk(state.joints)[:3, 3], twin.ee_xyz(), atol=1e-6)


def test_servos_arrive_within_the_accuracy_of_the_real_arm(twin):
    twin.reset(1, "reach the red block")
    here = kinematics.ik(twin.arm_state(0).T_base_ee, twin.arm_state(0).joints)
    goal = here + np.array([0.1, 0.05, -0.05, 0, 0.05, 0])
    twin.set_joint_goals(goal)
    twin.advance(1.0)
    gap_m = np.linalg.norm(kinematics.fk(twin.arm_state(0).joints)[:3, 3] - kinematics.fk(goal)[:3, 3])
    assert 0.0 < gap_m < 0.008


def test_gripper_obeys_pwm_and_squeezes_no_further_than_its_range(twin):
    twin.reset(1, "reach the red block")
    twin.set_gripper_pwm(-350)
    twin.advance(1.0)
    assert twin.left_finger_m == pytest.approx(0.010, abs=1e-3)
    twin.set_gripper_pwm(350)
    twin.advance(1.0)
    assert twin.left_finger_m == pytest.approx(0.0375, abs=1e-3)


def test_the_same_seed_gives_the_same_episode_and_another_seed_another():
    scene = play.wide_scene(np.random.default_rng(4), "push")
    a, b, c = (play.record_episode(scene, seed, "perturbed", True) for seed in (4, 4, 5))
    np.testing.assert_array_equal(a["frames"], b["frames"])
    np.testing.assert_array_equal(a["deltas"], b["deltas"])
    assert (a["frames"] != c["frames"]).any()


def test_play_files_hold_what_the_format_promises(tmp_path):
    path = tmp_path / "reach.npz"
    rates = play.make_file(path, "reach", "demo", 2, seed=11)
    assert rates["demo"] == 1.0
    with np.load(path, allow_pickle=False) as data:
        assert data["frames"].shape == (2, 17, 64, 64, 3) and data["frames"].dtype == np.uint8
        assert data["deltas"].shape == (2, 16, 7) and data["states"].shape == (2, 17, 7)
        moved_m = np.diff(data["states"][..., :3], axis=1)
        np.testing.assert_allclose(moved_m, data["deltas"][..., :3], atol=1e-5)
        assert set(data["scene"]) <= set(play.TRAIN_SCENES)
    assert not list(tmp_path.glob("*.partial"))


def test_near_play_misses_narrowly(tmp_path):
    play.make_file(tmp_path / "reach.npz", "reach", "near_play", 12, seed=12)
    with np.load(tmp_path / "reach.npz", allow_pickle=False) as data:
        near = np.flatnonzero(data["behaviour"] == "near")
        assert len(near) >= 6 and set(data["behaviour"]) <= {"expert", "near", "halting"}
        last_m = []
        for i in near:
            names = data["object_names"][i]
            target = next(k for k, name in enumerate(names) if name and name in data["instruction"][i])
            last_m.append(np.linalg.norm(data["measured"][i, -1, :2] - data["objects_xyz"][i, -1, target, :2]))
        assert 0.005 < np.median(last_m) < 0.05


def test_every_shipped_scene_loads_and_its_instructions_can_be_measured():
    for name in known_scenes():
        scene = load_scene(name)
        twin = Twin(scene, 0)
        for instruction in scene.instructions:
            twin.reset(0, instruction)
            assert not twin.success()
        assert twin.render(64, 48).std() > 5
        twin.close()


def test_objects_keep_their_distance():
    scene = dataclasses.replace(load_scene("novel_white_table"), objects=tuple(
        dataclasses.replace(o, xy_m=None) for o in load_scene("novel_white_table").objects), distractors=())
    for seed in range(30):
        places = np.array(place_objects(scene, np.random.default_rng(seed)))[:, :2]
        gaps = [np.linalg.norm(places[i] - places[j]) for i in range(3) for j in range(i)]
        assert min(gaps) >= 0.075


def test_bad_scenes_are_refused_by_name(tmp_path):
    with pytest.raises(UnknownScene, match=r"'nowhere' is unknown; known: .*train_oak"):
        load_scene("nowhere")
    with pytest.raises(UnknownScene, match="does not exist"):
        load_scene(str(tmp_path / "none.yaml"))
    for text, words in [("name: x\ninstructions: [a]\nobjects: [{colour: pink, shape: block}]", "pink"),
                        ("name: x\ninstructions: []\nobjects: []", "no instructions"),
                        ("name: x\ncolour_of_sky: blue\ninstructions: [a]", "colour_of_sky"),
                        ("[1, 2", "cannot be read as YAML"),
                        ("name: x\ninstructions: [a]\nobjects: [{colour: red, shape: block, mass_kg: 3}]",
                         "mass_kg 3")]:
        path = tmp_path / "scene.yaml"
        path.write_text(text)
        with pytest.raises(BadConfig, match=words):
            load_scene(str(path))


def test_an_instruction_about_something_that_is_not_here_is_refused_and_changes_nothing(twin):
    twin.reset(1, "reach the red block")
    with pytest.raises(BadInstruction, match=r"'green ball'.*red block"):
        twin.reset(2, "reach the green ball")
    with pytest.raises(BadInstruction, match="cannot measure"):
        twin.reset(2, "tidy up")
    assert twin.seed == 1
