"""Calibration of the judge: fitted on one half, measured on the other, and refused where it errs too often."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_play import write_toy_play

from world_gymnast_ros import cli
from world_gymnast_ros.data.frame_table import read_play
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.loading.load import checkpoint_dir
from world_gymnast_ros.models.judges.reflector import Reflector
from world_gymnast_ros.report.charts import curve
from world_gymnast_ros.training.reflector import Verdicts, judge_episodes
from world_gymnast_ros.updates.calibration import calibrate, veto_offset


def verdicts(separation: float, episodes: int = 800, seed: int = 0) -> Verdicts:
    rng = np.random.default_rng(seed)
    success = rng.random(episodes) < 0.4
    return Verdicts(rng.normal(0, 1, episodes) + separation * success - 3.0, success, np.full(episodes, "reach"))


def test_a_shifted_judge_is_made_to_mean_what_it_says() -> None:
    found = calibrate(verdicts(3.0), 0.5, 0.5, 0)
    assert found.calibration_error < 0.06 and found.auc > 0.95
    assert found.offset > 1.0  # its logits were 3 too low
    assert found.roc[0] == (0.0, 0.0) and found.roc[-1] == (1.0, 1.0)
    assert sum(count for _, _, count in found.reliability) == 400


@pytest.mark.parametrize("limit", [0.02, 0.1])
def test_the_false_success_rate_on_the_other_half_is_about_the_limit(limit: float) -> None:
    found = calibrate(verdicts(1.5, 4000), 0.5, limit, 1)
    assert found.false_success.low <= limit <= found.false_success.high + 0.02
    assert found.false_negative.value > 0.05  # strictness has its price


def test_too_few_outcomes_are_refused_with_the_number() -> None:
    with pytest.raises(EpisodeError, match="at least 20"):
        calibrate(verdicts(2.0, 30), 0.5, 0.1, 0)


def test_a_veto_costs_the_share_of_true_successes_that_it_may() -> None:
    judged = verdicts(1.5, 4000)
    offset = veto_offset(judged, 0.7, 0.6, 0.1)
    predicted = 1.0 / (1.0 + np.exp(-(0.7 * judged.logits + offset))) > 0.6
    assert predicted[judged.success].mean() == pytest.approx(0.9, abs=0.005)
    assert predicted[~judged.success].mean() < 0.6, "it still stops failures"
    with pytest.raises(EpisodeError, match="at least 20 true successes, got"):
        veto_offset(verdicts(2.0, 20), 1.0, 0.5, 0.1)


def test_the_command_writes_the_same_weights_with_one_family_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                                 ) -> None:
    words = ["judge", "veto", "--task", "reach", "--threads", "1", "--share", "0.2"]
    write_toy_play(tmp_path / "few" / "a.npz", 6, 0)
    assert cli.main([*words, "--play", str(tmp_path / "few"), "--out", str(tmp_path / "none")]) == 2
    assert "at least 20 true successes, got" in capsys.readouterr().err and not list((tmp_path / "none").iterdir())
    write_toy_play(tmp_path / "play" / "a.npz", 42, 1)
    assert cli.main([*words, "--play", str(tmp_path / "play"), "--out", str(tmp_path / "judge")]) == 0
    before, after = (Reflector.from_pretrained(p) for p in (checkpoint_dir("tiny/reflector"), tmp_path / "judge"))
    assert after.sha256 == before.sha256
    assert after.config.task_offsets.keys() == before.config.task_offsets.keys() | {"reach"}
    table = read_play(tmp_path / "play")
    judged = judge_episodes(after, table, table.episodes)
    predicted = after.probability(judged.logits, "reach") > after.config.done_threshold
    assert predicted[judged.success].mean() == pytest.approx(0.8, abs=0.05)


def test_a_calibration_for_one_task_leaves_the_others_alone() -> None:
    judge = Reflector.from_pretrained(checkpoint_dir("tiny/reflector"))
    logits = np.array([1.4, 1.6])
    pushed = judge.probability(logits, "push")
    judge.calibrate_task("reach", 2.0, -3.0)  # success from a logit of 1.5 on
    assert (judge.probability(logits, "reach") > judge.config.done_threshold).tolist() == [False, True]
    assert (judge.probability(logits, "push") == pushed).all()


def test_unmarked_and_broken_recordings_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                               ) -> None:
    (tmp_path / "one").mkdir()
    status = cli.main(["judge", "calibrate", "--episodes", str(tmp_path / "one"), "--out", str(tmp_path / "out")])
    assert status == 2 and "no episode" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_chart_of_a_curve_has_its_points_inside() -> None:
    svg = curve([(0.0, 0.0), (0.5, 1.0), (1.0, 1.0)], "x", "y & z", [0.1, 0.5, 1.0])
    assert svg.count("<circle") == 3 and "y &amp; z" in svg
