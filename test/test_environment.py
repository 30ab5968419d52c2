"""The twin as an environment: what happens there happens through the player and the guard of the arm node."""
from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from world_gymnast_ros.config import ArmConfig
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.episode_files import read_starts, write_episodes, write_starts
from world_gymnast_ros.data.labels import FrameLabels, labels_by_outcome
from world_gymnast_ros.data.read import read_arrays
from world_gymnast_ros.errors import BadInstruction, EpisodeError
from world_gymnast_ros.evaluation.environment import Environment, episodes, outcomes
from world_gymnast_ros.twin.environment import TwinEnvironment
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.types import U8, ActionChunk, AdapterRef, Frame, SampledChunks

WORDS = "reach the red block"


class Straight:
    """A policy that always goes one way; it remembers what it was shown."""

    name = "straight"

    def __init__(self, delta: tuple[float, ...], chunk_size: int = 4) -> None:
        self.delta, self.chunk_size = np.array(delta, np.float32), chunk_size
        self.shown: list[Frame] = []
        self.seeds: list[int] = []

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        self.shown.append(frame)
        return ActionChunk(np.tile(self.delta, (self.chunk_size, 1)), frame.stamp_ns)

    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        self.seeds.append(seed)
        return SampledChunks(np.tile(self.delta, (len(frames), self.chunk_size, 1)))

    def load_adapter(self, ref: AdapterRef | None) -> None:
        pass


def played(policy: Straight, seed: int = 1, temperature: float = 0.0, **more: object) -> Episode:
    environment: Environment = TwinEnvironment(load_scene("train_oak"), **more)  # type: ignore[arg-type]
    try:
        environment.reset(seed, WORDS)
        return environment.run(policy, None, WORDS, temperature, seed)
    finally:
        environment.close()


def test_the_same_seed_is_the_same_episode_and_targets_are_what_was_sent() -> None:
    policies = [Straight((0.01, 0.004, -0.005, 0, 0, 0, 1)) for _ in range(3)]
    a, b, c = (played(p, seed) for p, seed in zip(policies, (1, 1, 2), strict=True))
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.deltas, b.deltas)
    assert (a.frames[0] != c.frames[0]).any()
    assert a.steps == 16 and a.ended_by == "time" and a.success is None and len(a.frames) == len(a.states) == 17
    np.testing.assert_allclose(np.diff(a.states[:, :3], axis=0), a.deltas[:, :3], atol=2e-3)
    assert np.linalg.norm(a.measured[-1, :3] - a.states[-1, :3]) < 0.02, "the arm follows its target"


def test_the_policy_looks_when_the_arm_has_come_to_rest_and_acts_on_the_beat() -> None:
    policy = Straight((0.01, 0, 0, 0, 0, 0, 1))
    environment = TwinEnvironment(load_scene("train_oak"))
    try:
        start = environment.reset(3, WORDS)
        environment.run(policy, None, WORDS, 0.0, 3)
        lasted_s = environment.twin.time_s
    finally:
        environment.close()
    np.testing.assert_array_equal(policy.shown[0].rgb, start.frame.rgb)
    gaps_s = np.diff([f.stamp_ns for f in policy.shown]) * 1e-9
    np.testing.assert_allclose(gaps_s, 4 * 0.2, atol=1e-6)
    assert lasted_s == pytest.approx(0.02 + 16 * 0.2), "one inference, then an action every 0.2 s"
    slow = played(Straight((0.01, 0, 0, 0, 0, 0, 1)), inference_s=0.7)
    assert slow.steps == 16 and slow.ended_by == "time", "an arm that starves holds and goes on with the next chunk"


def test_what_the_guard_does_not_allow_does_not_happen() -> None:
    with pytest.raises(EpisodeError, match="speaks another convention"):
        played(Straight((0.2, 0, -0.2, 0, 0, 0, 1)))
    down = played(Straight((0.06, 0, -0.06, 0, 0, 0, 1)))
    low, high = ArmConfig().workspace_low_m, ArmConfig().workspace_high_m
    assert (np.linalg.norm(down.deltas[:, :3], axis=1) <= 0.05 + 1e-6).all()
    assert (down.states[:, :3] >= np.array(low) - 1e-4).all() and (down.states[:, :3] <= np.array(high) + 1e-4).all()
    slower = played(Straight((0.05, 0, 0, 0, 0, 0, 1)), arm=ArmConfig(max_step_m=0.01))
    assert (np.abs(slower.deltas[:, 0]) <= 0.01 + 1e-6).all() and slower.deltas[0, 0] == pytest.approx(0.01)


def test_an_arm_that_presses_too_hard_is_held_and_the_episode_ends_with_the_reason() -> None:
    limits = (1360.0, 5.0, 1020.0, 1020.0, 1020.0, 1190.0)  # the shoulder carries the arm: more at once
    with_effort = ArmConfig(max_efforts=limits, max_consecutive_holds=3)
    environment = TwinEnvironment(load_scene("train_oak"), arm=with_effort)
    try:
        environment.reset(1, WORDS)
        with pytest.raises(EpisodeError, match="effort of shoulder is"):
            environment.run(Straight((0.01, 0, 0, 0, 0, 0, 1)), None, WORDS, 0.0, 1)
    finally:
        environment.close()
    through_the_table = ArmConfig(workspace_low_m=(0.12, -0.2, -0.1), table_z_m=-0.2, max_efforts=(700.0,) * 6)
    pressed = played(Straight((0, 0, -0.05, 0, 0, 0, 0)), arm=through_the_table)
    held = ~pressed.deltas[:, :6].any(1)
    assert pressed.steps == 16 and 0 < held.sum() < 16, "a hold is a step that does not move; the next look goes on"
    latched = played(Straight((0, 0, -0.05, 0, 0, 0, 0)), arm=dataclasses.replace(through_the_table,
                                                                                  max_consecutive_holds=1))
    assert latched.ended_by == "fault" and "1 holds in a row, the last: effort of" in latched.reason
    assert latched.steps == int(np.argmax(held)) + 1 and not latched.deltas[-1, :6].any()


def test_a_policy_without_sense_plays_nothing() -> None:
    with pytest.raises(EpisodeError, match="no action was played: chunk holds a non-finite number"):
        played(Straight((np.nan, 0, 0, 0, 0, 0, 1)))


def test_exploration_is_seeded_and_an_episode_needs_a_reset() -> None:
    policy = Straight((0.01, 0, 0, 0, 0, 0, 1))
    played(policy, seed=7, temperature=1.2)
    assert policy.seeds == [7000, 7004, 7008, 7012]
    environment = TwinEnvironment(load_scene("train_oak"))
    try:
        with pytest.raises(EpisodeError, match="reset the twin first"):
            environment.run(policy, None, WORDS, 0.0, 1)
        with pytest.raises(BadInstruction):
            environment.reset(1, "wipe the table")
    finally:
        environment.close()


def test_outcomes_are_those_of_physics_and_unknown_ones_are_left_out() -> None:
    environment = TwinEnvironment(load_scene("train_oak"))
    try:
        environment.reset(4, WORDS)
        way = (environment.twin.object_xyz("red block") - environment.twin.ee_xyz()) / 12 * (1, 1, 0.7)
        there = next(episodes(environment, Straight((*way, 0, 0, 0, 1), 12), None, [4], WORDS))
        assert there.success and there.done_step and 8 < there.done_step <= 16
        assert outcomes(environment, Straight((0, 0, 0, 0, 0, 0, 1)), None, [4, 5], WORDS) == [False, False]
        environment.outcome = lambda: None  # type: ignore[method-assign]
        assert outcomes(environment, Straight((0, 0, 0, 0, 0, 0, 1)), None, [4], WORDS) == []
    finally:
        environment.close()


def test_episodes_of_different_length_share_a_file_and_come_back_whole(tmp_path: Path) -> None:
    full = dataclasses.replace(played(Straight((0.01, 0, 0, 0, 0, 0, 1))), success=True, done_step=9)
    cut = dataclasses.replace(full, frames=full.frames[:6], deltas=full.deltas[:5], states=full.states[:6],
                              measured=full.measured[:6], success=False, done_step=None)
    write_episodes(tmp_path / "a.npz", [full, cut])
    for mine, theirs in zip((full, cut), read_arrays(tmp_path / "a.npz"), strict=True):
        for name in ("frames", "deltas", "states", "measured", "captured"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        assert (theirs.success, theirs.done_step, theirs.instruction) == (mine.success, mine.done_step, WORDS)
    with np.load(tmp_path / "a.npz") as data:  # what only physics knows is not kept: a robot could not know it
        assert not {"objects_xyz", "alt_success"} & set(data.files)
    bare = dataclasses.replace(full, done_step=None)  # as a robot's: only its outcome is known
    write_episodes(tmp_path / "b.npz", [bare])
    again = read_arrays(tmp_path / "b.npz")[0]
    assert again.success and again.done_step == 16
    with pytest.raises(EpisodeError, match="nobody has said"):
        write_episodes(tmp_path / "c.npz", [dataclasses.replace(full, success=None)])
    (tmp_path / "c.npz").write_bytes(b"nonsense")
    with pytest.raises(EpisodeError, match="holds no episodes"):
        read_arrays(tmp_path / "c.npz")
    with pytest.raises(EpisodeError, match="measured states"):
        write_episodes(tmp_path / "d.npz", [dataclasses.replace(full, measured=None)])


def test_captured_frames_come_back_with_their_states(tmp_path: Path) -> None:
    environment = TwinEnvironment(load_scene("train_oak"))
    try:
        starts = [environment.reset(seed, WORDS) for seed in (1, 2)]
    finally:
        environment.close()
    write_starts(tmp_path / "a.npz", [starts[0], dataclasses.replace(starts[1], state=None)])
    back = read_starts(tmp_path / "a.npz")
    np.testing.assert_array_equal(back[0].frame.rgb, starts[0].frame.rgb)
    np.testing.assert_array_equal(back[0].state, starts[0].state)
    assert back[1].state is None and back[1].instruction == WORDS


def test_of_an_outcome_alone_only_what_is_sure_becomes_a_label() -> None:
    def of(*latched: bool) -> FrameLabels:
        return labels_by_outcome(SimpleNamespace(labels=lambda *_: np.array(latched)), None, WORDS)

    won = of(*[False] * 5, True)
    assert won.clear.tolist() == [True, False, False, False, False, True] and won.done.tolist() == [False] * 5 + [True]
    assert won.graded.tolist() == won.clear.tolist()
    noted = of(False, False, True, True, True)  # the arm may have left its target after that frame
    assert noted.done.tolist() == [False, False, True, False, False]
    assert noted.clear.tolist() == [True, False, True, False, False]
    lost = of(*[False] * 6)
    assert lost.clear.all() and not lost.done.any() and lost.graded.tolist() == [True] + [False] * 5
