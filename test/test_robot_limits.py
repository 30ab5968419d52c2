"""The robot's limits have one owner: what the guard keeps to on the arm holds in imagination too."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from world_gymnast_ros.adaptation.rollout import imagine
from world_gymnast_ros.config import robot_limits
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.loading.load import TABLETOP_JUDGES, load_judges, load_world_model
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.robot.actions import RobotLimits, StepLimits, Workspace
from world_gymnast_ros.tabletop.geometric_judge import GeometricJudge
from world_gymnast_ros.testing.fakes import FakeJudge, FakePolicy, FakeWorldModel, start_frame
from world_gymnast_ros.types import Frame, RolloutFacts, Start

STATE = np.array([0.3, 0.0, 0.12, 0, 0, 0, 1], np.float32)


def lab(tmp_path: Path, **values: object) -> str:
    text = share_path("config/arm.yaml").read_text()
    for name, value in values.items():
        lines = [f"    {name}: {value}" if line.strip().startswith(f"{name}:") else line for line in text.splitlines()]
        text = "\n".join(lines) + "\n"
    (tmp_path / "arm.yaml").write_text(text)
    return str(tmp_path / "arm.yaml")


def test_the_shipped_limits_are_those_that_the_shipped_models_were_trained_with() -> None:
    world, limits = load_world_model(), robot_limits()
    assert world.max_step == (limits.step.max_step_m, limits.step.max_step_rad) == (0.05, 0.25)
    low = tuple(np.asarray(world.config.workspace_low_m))  # type: ignore[attr-defined]
    assert limits.workspace == Workspace(low, tuple(world.config.workspace_high_m))  # type: ignore[attr-defined]


def test_a_lab_that_halves_the_step_imagines_and_judges_half_steps(tmp_path: Path) -> None:
    limits = robot_limits(lab(tmp_path, max_step_m=0.02, workspace_low_m="[0.12, -0.03, 0.022]"))
    world, judges = load_world_model("", TABLETOP_JUDGES, limits=limits), load_judges(TABLETOP_JUDGES, limits=limits)
    assert world.max_step[0] == 0.02
    start = Start(Frame(np.zeros((64, 64, 3), np.uint8), 0), STATE, "reach the red block")
    dream = world.begin([start], 0)
    dream.play(np.tile(np.float32([0.02, -0.02, 0, 0, 0, 0, 1]), (1, 2, 1)))
    assert dream.state[0, :2] == pytest.approx([0.34, -0.03], abs=1e-3)  # type: ignore[attr-defined]
    measuring = next(j for j in judges.judges if isinstance(j, GeometricJudge))  # type: ignore[attr-defined]
    facts = RolloutFacts([start.frame.rgb], [STATE], np.tile(np.float32([0.05, -0.05, 0, 0, 0, 0, 1]), (1, 2, 1)))
    hand = measuring.hands(facts)[0, -1]
    assert hand[0] < 0.34 and hand[1] > -0.035, "the judge moves as the world model does"


def test_rollouts_are_cut_to_the_step_of_the_world_model() -> None:
    world = FakeWorldModel(noise_px=0.0)
    world.max_step = (0.01, 0.25)
    group = imagine(FakePolicy(), world, FakeJudge(), Start(start_frame(), None, "go right"), 6, 8, 1.0, 0)
    lengths = np.linalg.norm(np.concatenate([c.deltas for c in group.chunks], 1)[..., :3], axis=-1)
    assert lengths.max() == pytest.approx(0.01, abs=1e-6)


def test_a_robot_that_allows_longer_steps_than_were_trained_on_is_refused() -> None:
    with pytest.raises(BadConfig, match=r"0\.08 m.*trained on at most 0\.05 m.*max_step_m"):
        load_world_model(limits=RobotLimits(StepLimits(0.08, 0.25), robot_limits().workspace))
