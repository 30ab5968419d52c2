"""Push-T of gym-pusht: what is read from it, and the whole comparison, on each task, at a size of a minute."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from world_gymnast_ros import cli
from world_gymnast_ros.errors import BadAction, BadCheckpoint, NotInstalled
from world_gymnast_ros.first_order import comparison, play, stages, true_test
from world_gymnast_ros.first_order import pusht as module
from world_gymnast_ros.first_order.diffusion import DiffusionConfig
from world_gymnast_ros.first_order.encoder import EncoderConfig
from world_gymnast_ros.first_order.policy_training import RunConfig
from world_gymnast_ros.first_order.task import Task
from world_gymnast_ros.twin.ego import HIGH_M, LOW_M, MARK_M, REACH_M, EgoPush

SMALL = stages.Scale(episodes=10, episode_steps=16, world_model_steps=6, encoder_steps=20, surrogate_updates=30,
                     policy_steps=160, test_episodes=2)
SETTINGS = {"fog": {"copies": 4, "confirm_every": 2, "confirm_starts": 3, "confirm_steps": 8},
            "surrogate": {"copies": 4}, "ppo": {"copies": 4, "window": 8, "batch": 16}}


def test_without_the_package_the_command_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(NotInstalled, match=r"world-gymnast-ros\[fog\]"):
        module.PushT()
    assert cli.main(["fog", "pusht", "data", "--out", str(tmp_path)]) == 2
    assert "pip install 'world-gymnast-ros[fog]'" in capsys.readouterr().err
    assert not list((tmp_path / "play").glob("*"))


def test_the_verb_loads_no_torch_before_it_is_run() -> None:
    program = "import sys, world_gymnast_ros.cli.fog; print([m for m in ('torch', 'gym_pusht') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("words", "named"), [
    (["train", "--set", "actor_lr=fast"], "actor_lr=fast"),
    (["train", "--set", "speed=3"], "speed"),
    (["report"], "no finished run"),
    (["world-model"], "play-"),
])
def test_bad_input_is_refused_in_one_line(words: list[str], named: str, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    if "speed=3" in words:
        with pytest.raises(Exception, match=named):
            stages.make_learner(None, None, tmp_path, None, "ppo", {"speed": 3}, 0)  # type: ignore[arg-type]
        return
    assert cli.main(["fog", "pusht", *words, "--out", str(tmp_path)]) == 2
    assert named in capsys.readouterr().err


def test_the_reward_is_greatest_on_the_mark_and_falls_with_distance_and_turn() -> None:
    goal = np.array([256.0, 256.0, np.pi / 4])
    away = np.array([40.0, 480.0])
    there = module.reward_of(goal, goal, away)
    moved = module.reward_of(goal + np.array([30.0, 0.0, 0.0]), goal, away)
    turned = module.reward_of(goal + np.array([0.0, 0.0, 0.5]), goal, away)
    assert there == pytest.approx(1.0, abs=0.02) and moved < there - 0.3 and turned < there - 0.2
    assert module.reward_of(goal, goal, np.array([256.0, 256.0])) > there


needs_pusht = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import gym_pusht"], capture_output=True).returncode != 0,
    reason="gym-pusht is not installed (the optional extra fog)")


@needs_pusht
def test_corners_are_the_environments_key_points_and_the_mark_is_where_it_draws_it() -> None:
    env = module.PushT()
    view = env.reset(3)
    theirs = env.env.get_keypoints(env.env._block_shapes)
    ours = module.keypoints(view.block_pose)
    assert np.abs(ours[:, None] - theirs[None]).sum(-1).min(1).max() < 1e-6
    assert view.image.shape == (module.SIDE_PX, module.SIDE_PX, 3) and view.coverage == 0.0
    x, y = (view.agent_px / module.FIELD_PX * module.SIDE_PX).astype(int)
    assert view.image[y, x, 2] > view.image[y, x, 0] + 60  # the agent is blue


@needs_pusht
def test_an_action_moves_the_agent_there_and_bad_ones_are_refused() -> None:
    env = module.PushT()
    before = env.reset(1).agent_px
    after = env.step(np.array([1.0, 0.0])).agent_px
    assert 10.0 < after[0] - before[0] < module.REACH_PX and abs(after[1] - before[1]) < 1.0
    with pytest.raises(BadAction, match="finite"):
        env.step(np.array([np.nan, 0.0]))


@needs_pusht
def test_play_is_the_same_for_the_same_seed_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    play.collect(module.PushT, tmp_path, 7, 2, 4)
    [path] = tmp_path.glob("*.safetensors")
    bytes_before = path.read_bytes()
    play.collect(module.PushT, tmp_path, 7, 2, 4)
    assert path.read_bytes() == bytes_before
    path.unlink()
    play.collect(module.PushT, tmp_path, 7, 2, 4)
    assert path.read_bytes() == bytes_before
    play.collect(module.PushT, tmp_path, 100, 1, 5)
    with pytest.raises(BadCheckpoint, match=r"\[4, 5\]"):
        play.read(tmp_path)


@needs_pusht
def test_a_t_on_its_mark_is_a_success_and_a_random_policy_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still:
        def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(images), 3), torch.zeros(len(images))

    result = true_test.play_truly(module.PushT(), true_test.random_policy(0), Still(), 3, 5, steps=10)  # type: ignore[arg-type]
    assert result.episodes == 3 and result.successes == 0 and 0.0 <= result.final_coverage <= result.best_coverage

    def on_the_mark(self: module.PushT, seed: int) -> module.View:
        self.env.reset(seed=seed)
        self.env.block.angle = np.pi / 4  # the angle first: setting it turns the T about its centre of mass
        self.env.block.position = (256.0, 256.0)
        self.env.agent.position = (40.0, 40.0)
        self.env.space.step(0.01)
        return self._view(self.env._get_info(), 0.0)

    monkeypatch.setattr(module.PushT, "reset", on_the_mark)
    still = true_test.play_truly(module.PushT(), lambda z: torch.zeros(1, 2), Still(), 2, 5, steps=3)  # type: ignore[arg-type]
    assert still.successes == 2 and still.final_coverage > 0.99 and still.reward > 0.98


@pytest.mark.parametrize("name", [pytest.param("pusht", marks=needs_pusht),
                                  pytest.param("ego", marks=pytest.mark.slow)])
def test_the_whole_comparison_at_the_size_of_a_minute(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                      ) -> None:
    task: type[Task] = EgoPush if name == "ego" else module.PushT
    stages.data(task, tmp_path, SMALL)
    errors = stages.world_model(tmp_path, SMALL, 0, DiffusionConfig(width=8),
                                EncoderConfig(width=8, maps=6, looks=2, features=16, latent=8, labels=task.labels))
    assert set(errors) == {"encoder", "world_model", "surrogate"}
    result = stages.diagnose(tmp_path, tmp_path / "surrogate", starts=6, steps=2)
    assert -1.0 <= result["latent_cosine"] <= 1.0 and result["surrogate_1"] > 0.0
    assert stages.tuned(tmp_path, "fog") == {}
    for method, settings in SETTINGS.items():
        run = RunConfig(method, steps=SMALL.policy_steps, evaluate_every=80, eval_starts=3, eval_steps=3,
                        true_episodes=1)
        curve = stages.train(task, tmp_path, run, settings, tmp_path / "policies" / f"{method}-0")
        assert curve[0]["steps"] == 0 and curve[-1]["steps"] >= SMALL.policy_steps
        assert all(np.isfinite(list(row.values())).all() and 0.0 <= row["coverage"] <= 1.0 for row in curve)
    tests = stages.test(task, tmp_path, SMALL)
    assert set(tests) == {"random", "fog-0", "ppo-0", "surrogate-0"} and tests["fog-0"]["episodes"] == 2
    assert cli.main(["fog", name, "report", "--out", str(tmp_path)]) == 0
    assert "| FoG | 1 |" in capsys.readouterr().out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report.json").read_text())["claim"]["verdict"] in ("void", "holds", "fails")
    assert comparison.steps_to_reach([{"steps": 5, "imagined": 0.1}], 0.2) is None


def test_the_wrist_camera_sees_the_block_ahead_and_a_push_moves_it_to_the_mark() -> None:
    env = EgoPush()
    view = env.reset(4)
    assert np.array_equal(view.image, env.reset(4).image) and not np.array_equal(view.image, env.reset(5).image)
    image = view.image.astype(int)
    red = np.argwhere(image[..., 0] > image[..., 1] + 80)
    ahead, left = view.block - view.hand
    assert len(red) > 4 and ahead > 0.0
    assert (red[:, 1].mean() < module.SIDE_PX / 2) == (left > 0.0)  # left of the hand is left in the image
    env.reset(4)
    env.twin.place("red block", MARK_M - np.array([0.05, 0.0]))
    for _ in range(8):  # to the block's middle line, well behind it
        view = env.step(np.array([-1.0, np.clip(-view.hand[1] / REACH_M, -1.0, 1.0)]))
    before = view.coverage
    best = max(env.step(np.array([0.5, 0.0])).coverage for _ in range(12))
    assert before == 0.0 and best > env.success_coverage
    with pytest.raises(BadAction, match="finite"):
        env.step(np.array([np.nan, 0.0]))


def test_the_hand_stays_in_its_field() -> None:
    env = EgoPush()
    env.reset(0)
    for action in (np.array([-1.0, 1.0]), np.array([0.3, -1.0])):
        for _ in range(10):
            view = env.step(action)
        assert (view.hand > LOW_M - 0.01).all() and (view.hand < HIGH_M + 0.01).all()
