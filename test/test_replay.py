"""Paired replay on any world model and judge: the table that permits adaptation."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.evaluation.replay import RELEASE_AUC, episodes_needed, release_markdown, replay_episodes
from world_gymnast_ros.report.rollout_video import write_replays
from world_gymnast_ros.testing.fakes import FakeJudge, FakeWorldModel, draw_dot


def recorded(goes_right: bool, seed: int, instruction: str = "go right", task: str = "", steps: int = 12) -> Episode:
    """A dot that truly goes right, or does not."""
    rng = np.random.default_rng(seed)
    deltas = np.zeros((steps, 7), np.float32)
    deltas[:, 0] = rng.uniform(0.010, 0.014) if goes_right else rng.uniform(-0.01, 0.004)
    x = 14.0 + np.concatenate([[0.0], np.cumsum(deltas[:, 0] / 0.01)])
    frames = draw_dot(np.clip(x, 0, 31), np.full(steps + 1, 16.0))
    return Episode(frames, deltas, None, instruction, f"e{seed}", task, success=bool(np.abs(x - 26).min() < 4))


EPISODES = [recorded(i % 2 == 0, i) for i in range(24)]


def test_episodes_are_ranked_as_they_truly_went_and_counted_per_task() -> None:
    other = [recorded(i % 2 == 0, 100 + i, "go right", "slow dots", 9) for i in range(6)]
    replays = replay_episodes(FakeWorldModel(), FakeJudge(), [*EPISODES, *other], 3, copies=3, ceiling=True)
    rows = replays.by_task()
    assert set(rows) == {"go right", "slow dots"}
    row = rows["go right"]
    assert row["auc"] > 0.95 and row["episodes"] == 24 and row["successes"] == sum(bool(e.success) for e in EPISODES)
    assert row["false_success"] == 0.0 < row["false_success_high"] < 0.35 and row["recall"] > 0.8
    assert row["auc_true_frames"] > 0.95 and row["released"] == 1.0 and row["no_verdict"] == 0
    assert "| go right | 24 (" in release_markdown(rows)
    assert set(replays.by_task("drawer")) == {"drawer"}, "the user says what it is called"


def test_a_world_model_that_flatters_is_told_by_its_false_positives() -> None:
    class Flattering(FakeWorldModel):
        """Carries the dot to the right, whatever was asked."""

        def begin(self, starts, seed):
            dream = super().begin(starts, seed)
            play = dream.play
            dream.play = lambda deltas: play(np.maximum(deltas, np.array([0.012] + [-1.0] * 6, np.float32)))
            return dream
    replays = replay_episodes(Flattering(), FakeJudge(), EPISODES, 3)
    summary, row = replays.summary(), replays.by_task()["go right"]
    assert summary["false_success"] > 0.7 and row["false_success_high"] > 0.8 and row["released"] == 0.0
    assert "more episodes would not change that" in episodes_needed(row)
    honest = replay_episodes(FakeWorldModel(), FakeJudge(), EPISODES, 3)
    assert honest.mse.mean() < replays.mse.mean() and honest.structural.mean() < replays.structural.mean()


def test_it_says_how_many_more_episodes_are_needed() -> None:
    row = replay_episodes(FakeWorldModel(), FakeJudge(), EPISODES, 3).by_task()["go right"]
    assert episodes_needed(row) == ""
    wide = {**row, "auc": 0.95, "low": 0.80, "episodes": 24, "successes": 12}
    more = int(episodes_needed(wide).split("about ")[1].split()[0])
    assert more == pytest.approx(24 * ((0.15 / 0.05) ** 2 - 1), abs=1.01) and str(RELEASE_AUC) in episodes_needed(wide)
    assert "of the other (success)" in episodes_needed({**row, "successes": 0})


def test_what_has_no_outcome_or_no_verdict_is_not_counted() -> None:
    import dataclasses

    with pytest.raises(EpisodeError, match="has no outcome"):
        replay_episodes(FakeWorldModel(), FakeJudge(), [dataclasses.replace(EPISODES[0], success=None)], 0)
    with pytest.raises(EpisodeError, match="no episode"):
        replay_episodes(FakeWorldModel(), FakeJudge(), [], 0)

    class Mute(FakeJudge):
        def score(self, frames, instruction, facts=None):
            raise TimeoutError("gone")
    row = replay_episodes(FakeWorldModel(), Mute(), EPISODES, 0).by_task()["go right"]
    assert "no verdict on 24 of 24 episodes" in episodes_needed(row)
    assert row["no_verdict"] == 24 and np.isnan(row["auc"]) and row["released"] == 0.0


def test_the_same_seed_gives_the_same_figures_and_rollouts_serve_another_judge(tmp_path: Path) -> None:
    one, two = (replay_episodes(FakeWorldModel(), FakeJudge(), EPISODES, 5) for _ in range(2))
    np.testing.assert_array_equal(one.score, two.score)
    again = replay_episodes(FakeWorldModel(fail_after_begins=0), FakeJudge(), EPISODES, 5, rollouts=one.rollouts)
    np.testing.assert_array_equal(one.score, again.score)
    write_replays(tmp_path / "strips.png", one, again)
    assert (tmp_path / "strips.png").stat().st_size > 1000
