"""A policy of another convention: recognised by its numbers, refused, and held; a right one is never taken for it."""
from __future__ import annotations

import numpy as np
import pytest
from test_control import Bench

from world_gymnast_ros.control.action_convention import Convention, ConventionRules, convention_fault
from world_gymnast_ros.control.chunk_player import ArmMode
from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.robot.actions import StepLimits
from world_gymnast_ros.types import Verdict

RULES = ConventionRules()
POSE = np.array([0.30, 0.02, 0.12, 0.05, -0.1, 0.3, 1.0])


def along(first: np.ndarray, step: tuple[float, float, float], actions: int = 4) -> np.ndarray:
    chunk = np.tile(first, (actions, 1))
    chunk[:, :3] += np.arange(actions)[:, None] * np.array(step)
    return chunk


def normalised(seed: int) -> np.ndarray:
    chunk = np.random.default_rng(seed).uniform(-0.45, 0.45, (4, 7))
    chunk[:, 6] = 1.0
    return chunk


STEP = np.array([0.02, -0.01, 0.0, 0.0, 0.0, 0.02, 1.0])


@pytest.mark.parametrize(("chunk", "convention"), [
    (along(POSE, (0.01, 0.0, -0.01)), Convention.ABSOLUTE_POSE),
    (along(np.array([0.03, 0, 0, 0, 0, 0, 1.0]), (0.03, 0.0, 0.0), 8), Convention.FROM_CHUNK_START),
    (POSE[None], Convention.NOT_UNNORMALISED), (normalised(0), Convention.NOT_UNNORMALISED),
    (along(1000 * STEP, (0, 0, 0)), Convention.OTHER_UNIT), (along(STEP * 1e300, (0, 0, 0)), Convention.OTHER_UNIT),
    (along(STEP * [1, 1, 1, 1, 1, 300, 1], (0, 0, 0)), Convention.DEGREES),
    (along(STEP * [1, 1, 1, 1, 1, 50, 1], (0, 0, 0)), Convention.ANGLES),
    (along(STEP * [1, 1, 1, 1, 1, 1, -1], (0, 0, 0)), Convention.GRIPPER),
    (along(STEP * [1, 1, 1, 1, 1, 1, 255], (0, 0, 0)), Convention.GRIPPER),
], ids=lambda value: value.name if isinstance(value, Convention) else "")
def test_another_convention_is_named(chunk: np.ndarray, convention: Convention) -> None:
    fault = convention_fault(chunk, RULES)
    assert fault is not None and fault.convention is convention
    assert "another convention" in fault.words and "limit" in fault.words


def test_bridge_actions_are_none(seed: int = 3) -> None:
    """What teleoperation and policies do, up to an outlier at the corner of the quantiles of Bridge data."""
    rng = np.random.default_rng(seed)
    chunks = [along(STEP * 0.001, (0, 0, 0)), along(STEP * [1, 1, 1, 1, 1, 1, 0], (0, 0, 0)),
              np.array([[0.0287, 0.0417, 0.0402, 0.082, 0.093, 0.207, 1.12]]),
              np.array([[0.05, -0.05, 0.05, 0.25, 0.25, -0.25, -0.1]])]
    for _ in range(200):
        chunk = rng.normal(0, [0.015, 0.015, 0.015, 0.03, 0.03, 0.06, 0], (4, 7))
        chunk[:, 6] = rng.integers(0, 2, 4)
        chunks.append(chunk)
    assert [c for c in chunks if convention_fault(c, RULES)] == []


@pytest.mark.parametrize("chunk", [along(POSE, (0.01, 0.0, 0.0)), normalised(1)], ids=["absolute", "normalised"])
def test_a_server_of_another_convention_moves_nothing_and_latches(chunk: np.ndarray) -> None:
    bench = Bench()
    assert not bench.arm()
    before = bench.joints.copy()
    for count in range(1, 4):
        assert "another convention" in bench.chunk(*chunk)
        assert bench.player.warning or count == 3
        assert all(step.command.verdict is Verdict.HOLD for _, step in bench.run(0.3))
    assert bench.player.mode is ArmMode.HOLDING and bench.player.cause is HoldCause.ANOTHER_CONVENTION
    assert "3 chunks refused in a row, limit 3" in bench.player.reason
    assert np.abs(bench.joints - before).max() < 1e-3
    assert "HOLDING" in bench.chunk()  # a good one does not end it
    assert not bench.arm()
    assert bench.player.cause is HoldCause.NONE and not bench.player.warning and not bench.chunk()


def test_one_outlier_among_good_chunks_does_not_latch() -> None:
    bench = Bench()
    assert not bench.arm()
    for _ in range(6):
        assert bench.chunk(*normalised(2)) and not bench.chunk([0.001, 0, 0, 0, 0, 0, 1])
        bench.run(0.3)
    assert bench.player.mode is ArmMode.ARMED and not bench.player.warning


def play(bench: Bench, actions: list[list[float]], at_once: int = 10) -> None:
    """Play actions in chunks, each as soon as the last is over."""
    for first in range(0, len(actions), at_once):
        refusal = bench.chunk(*actions[first:first + at_once])
        assert not refusal or bench.player.mode is ArmMode.HOLDING, refusal
        bench.run(0.2 * at_once)


def there_and_back(length: float, actions: int) -> list[list[float]]:
    return [[length * (-1) ** i, 0, 0, 0, 0, 0, 1] for i in range(actions)]


def test_a_run_of_too_long_steps_warns_then_latches() -> None:
    bench = Bench()
    assert not bench.arm() and not bench.chunk(*there_and_back(0.09, 30))
    bench.run(5.5 * 0.2)
    assert bench.player.mode is ArmMode.ARMED and "limit 10" in bench.player.warning
    steps = bench.run(3.0)
    assert bench.player.mode is ArmMode.HOLDING and bench.player.cause is HoldCause.STEP_LIMITED
    assert "10 actions in a row, limit 10" in bench.player.reason
    assert steps[-1][1].command.verdict is Verdict.HOLD
    assert bench.player.verdict_counts[Verdict.CLAMPED] == 10


def test_a_policy_that_is_limited_now_and_then_goes_on() -> None:
    """Four of five actions too long: the most that a teleoperated Bridge episode was seen to have in a row is five."""
    bench = Bench()
    actions = [a if i % 5 else [0.0, 0, 0, 0, 0, 0, 1] for i, a in enumerate(there_and_back(0.07, 60))]
    assert not bench.arm()
    play(bench, actions)
    assert bench.player.mode is ArmMode.ARMED and bench.player.verdict_counts[Verdict.CLAMPED] > 30


def test_a_tighter_limit_of_the_operator_is_no_fault_of_the_policy() -> None:
    bench = Bench(max_step_m=0.005)
    assert not bench.arm()
    play(bench, there_and_back(0.03, 60))
    assert bench.player.mode is ArmMode.ARMED and bench.player.verdict_counts[Verdict.CLAMPED] > 50
    assert not bench.player.warning and bench.player.config.limits == StepLimits(0.005, 0.25)


@pytest.mark.parametrize(("limit", "mode"), [(100, ArmMode.ARMED), (20, ArmMode.HOLDING)])
def test_pressing_against_the_workspace_may_last_longer(limit: int, mode: ArmMode) -> None:
    bench = Bench(max_consecutive_clamped=limit, workspace_low_m=(0.12, -0.2, 0.022))
    assert not bench.arm()
    play(bench, [[0, 0, -0.02, 0, 0, 0, 1]] * 50)
    assert bench.player.mode is mode
    assert (bench.player.cause is HoldCause.CLAMPED) is (mode is ArmMode.HOLDING)
