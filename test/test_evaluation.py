"""Sequential evaluation: it errs as rarely as it says, stops early where the answer is clear, and loses no trial."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from world_gymnast_ros.cli import main
from world_gymnast_ros.errors import BadConfig, EpisodeError
from world_gymnast_ros.evaluation import power
from world_gymnast_ros.evaluation.paired_trials import LOG_NAME, Trial, TrialLog, compare, order_of
from world_gymnast_ros.evaluation.sequential_test import PairedTest

ABOUT = {"adapter": "abc", "instruction": "reach the red block"}


def simulate(base: float, adapter: float, evaluations: int) -> tuple[dict[str, int], float]:
    rng = np.random.default_rng(0)
    counts, pairs = {"better": 0, "worse": 0, "unclear": 0}, 0
    for _ in range(evaluations):
        test = PairedTest(40)
        while not test.decision:
            test.add(bool(rng.random() < base), bool(rng.random() < adapter))
        counts[test.decision] += 1
        pairs += len(test.outcomes)
    return counts, pairs / evaluations


@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_no_difference_is_rarely_called_one_although_one_looks_after_every_pair(rate: float) -> None:
    counts, _ = simulate(rate, rate, 250)
    assert counts["better"] + counts["worse"] <= 20  # 5 % of 250 are 12.5; P(more than 20) < 2 % even at the limit


def test_a_large_difference_is_found_early_and_with_the_right_sign() -> None:
    up, pairs = simulate(0.15, 0.75, 60)
    assert up["better"] >= 57 and up["worse"] == 0 and pairs < 22
    down, _ = simulate(0.75, 0.15, 60)
    assert down["worse"] >= 57 and down["better"] == 0


def test_the_bounds_hold_the_truth_and_narrow() -> None:
    rng, missed, widths = np.random.default_rng(3), 0, []
    for _ in range(60):
        test = PairedTest(60)
        for _ in range(60):
            test.add(bool(rng.random() < 0.3), bool(rng.random() < 0.6))
            missed += not test.difference.low <= 0.3 <= test.difference.high
        widths.append(test.difference.high - test.difference.low)
    assert missed / (60 * 60) < 0.05 and np.mean(widths) < 0.75


def test_earlier_pairs_give_the_same_bounds_as_pairs_added_one_by_one() -> None:
    pairs = [(False, True), (True, True), (False, False), (False, True)]
    one_by_one = PairedTest()
    for pair in pairs:
        one_by_one.add(*pair)
    assert PairedTest(outcomes=list(pairs)).difference == one_by_one.difference


@pytest.mark.parametrize("bad", [{"limit_pairs": 0}, {"confidence": 1.0}, {"confidence": 0.2}])
def test_bad_settings_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match=str(next(iter(bad.values())))):
        PairedTest(**bad)


def test_order_is_drawn_by_lot_and_repeatable() -> None:
    firsts = [order_of(7, pair)[0] for pair in range(200)]
    assert 70 < firsts.count("base") < 130 and firsts == [order_of(7, pair)[0] for pair in range(200)]


def _better(trial: Trial) -> bool:
    return trial.policy == "adapter" or trial.seed % 5 == 0


def test_both_of_a_pair_share_their_start_and_the_answer_is_reached(tmp_path: Path) -> None:
    seen: list[Trial] = []

    def outcome(trial: Trial) -> bool:
        seen.append(trial)
        return _better(trial)

    verdict = compare(outcome, TrialLog(tmp_path, ABOUT), PairedTest(50), 1, 100)
    assert verdict.decision == "better" and len(seen) == 2 * len(verdict.test.outcomes) < 40
    assert all(a.seed == b.seed and {a.policy, b.policy} == {"base", "adapter"}
               for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert "the adapter is better" in verdict.words and verdict.as_json()["difference"][1] > 0


def test_unknown_outcomes_drop_their_pair_and_end_somewhere(tmp_path: Path) -> None:
    verdict = compare(lambda trial: None, TrialLog(tmp_path, ABOUT), PairedTest(3), 0, 0)
    assert verdict.decision == "" and verdict.dropped == 6 and "no complete pair" in verdict.words


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = compare(_better, TrialLog(tmp_path / "whole", ABOUT), PairedTest(50), 1, 100)
    count = 0

    def outcome(trial: Trial) -> bool:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return _better(trial)

    first = compare(outcome, TrialLog(tmp_path / "cut", ABOUT), PairedTest(50), 1, 100)
    assert first.decision == "" and len(first.test.outcomes) == 2
    path = tmp_path / "cut" / LOG_NAME
    path.write_text(path.read_text() + '{"pair": 2, "pol', encoding="utf-8")  # the machine went down while it wrote
    again = compare(outcome, TrialLog(tmp_path / "cut", ABOUT), PairedTest(50), 1, 100)
    assert again.as_json() == whole.as_json()
    assert count == 2 * len(whole.test.outcomes) + 1  # nothing twice, but the one that was cut
    assert [json.loads(x) for x in path.read_text().splitlines()] == [
        json.loads(x) for x in (tmp_path / "whole" / LOG_NAME).read_text().splitlines()]


def test_another_evaluations_folder_is_refused(tmp_path: Path) -> None:
    TrialLog(tmp_path, ABOUT)
    with pytest.raises(EpisodeError, match="another evaluation"):
        TrialLog(tmp_path, {**ABOUT, "adapter": "other"})


def test_the_chance_of_an_answer_is_that_of_the_test_itself() -> None:
    better = [power.chance_shown(d, 40) for d in (0.0, 0.3, 0.6)]
    counts = [simulate((1 - d) / 2, (1 + d) / 2, 300)[0]["better"] / 300 for d in (0.0, 0.3, 0.6)]
    assert np.abs(np.subtract(better, counts)).max() < 0.08, (better, counts)  # three standard errors of 300


def test_what_a_number_of_pairs_can_show_is_said() -> None:
    shown = [power.difference_shown(power.OFTEN, pairs) for pairs in (10, 20, 50)]
    assert shown == sorted(shown, reverse=True) and 0.3 < shown[-1] < 0.5
    assert f"{100 * shown[1]:.0f} points is shown in 4 of 5" in power.what_pairs_show(20)
    fewest = power.fewest_pairs()
    assert "can show nothing" in power.what_pairs_show(fewest - 1) and np.isnan(power.difference_shown(0.8, fewest - 1))
    assert "can show nothing" not in power.what_pairs_show(fewest)


def test_a_robot_is_asked_how_many_pairs_it_can_afford(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "test", "reach the red block", "--robot"]) == 2
    said = capsys.readouterr().err
    assert "--pairs" in said and "10 show a difference of" in said and "Traceback" not in said
    assert main(["evaluate", "test", "reach", "--robot", "--limit-pairs", "9"]) == 2
    assert "--limit-pairs is called --pairs now" in capsys.readouterr().err
