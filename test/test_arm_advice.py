"""The one line that a session ends with: yes, no, or not shown, because ..."""
from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from world_gymnast_ros.adaptation.arm_advice import Advice, Answer, Evidence, advise, evidence_of
from world_gymnast_ros.adaptation.config import AdaptConfig
from world_gymnast_ros.adaptation.log import AdaptReport, StopKind, check_session, read_session
from world_gymnast_ros.adaptation.record import SessionRecord, read_record, write_record
from world_gymnast_ros.adaptation.rollout import Start
from world_gymnast_ros.adaptation.session import adapt
from world_gymnast_ros.adaptation.strips import true_strip
from world_gymnast_ros.adaptation.trust import Known, Trust
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.report.session_report import Truth, write_report
from world_gymnast_ros.statistics import ABRow, ab_row
from world_gymnast_ros.store import Store
from world_gymnast_ros.testing.fakes import FakeJudge, FakeLearner, FakePolicy, FakeWorldModel, start_frame
from world_gymnast_ros.types import Judgement

CONFIG = AdaptConfig(budget_s=1e6, max_updates=5, copies=16, select_groups=3, promotion_groups=8, held_out_copies=4,
                     held_out_temperature=1.0, solved_rate=1.0, patience=9)
BELIEVED = (Trust("go right", Known.YES, "measured"),)
DOUBTED = (Trust("go right", Known.UNKNOWN, "the captured frame is not of the kind"),)


class Clock:
    """A clock that ticks at every reading."""

    def __init__(self, tick_s: float) -> None:
        self.t_s, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.t_s += self.tick_s
        return self.t_s


def session(config: AdaptConfig = CONFIG, judge: Any = None, now_s: Callable[[], float] = time.monotonic, **more: Any
            ) -> AdaptReport:
    policy = FakePolicy()
    return adapt(policy, FakeWorldModel(), judge or FakeJudge(), FakeLearner(policy),
                 [Start(start_frame(), None, "go right")], config, 0, now_s, **more)


def storing(folder: Path) -> Callable[[Any, dict[str, Any]], Any]:
    return lambda learner, scores: Store(folder).put("go right", learner.save, parent="base", base_policy="fake-policy",
                                                     scores=scores, created_ns=1)


def line(report: AdaptReport, trusts: tuple[Trust, ...] = BELIEVED) -> Advice:
    return advise(evidence_of(report, trusts))


def test_a_session_that_was_given_time_and_won_says_yes(tmp_path: Path) -> None:
    report = session(save=storing(tmp_path))
    advice = line(report)
    assert report.promoted and not report.starved and advice.answer is Answer.YES
    assert advice.line.startswith("let the arm move: yes, because imagined success ")
    assert "not known before it is tried" in advice.line, "a gain in the dream is none on the arm"


def starved(**more: Any) -> AdaptReport:
    """A session whose gain in the dream is as sure as any, after few of the updates that were asked for."""
    return session(replace(CONFIG, budget_s=800, max_updates=100, patience=1000), now_s=Clock(3.0), **more)


def test_a_starved_session_says_so_first_and_promotes_nothing(tmp_path: Path) -> None:
    log = tmp_path / "session.jsonl"
    report = starved(save=storing(tmp_path / "adapters"), log_path=log)
    assert report.stop.kind is StopKind.TIME and 0 < len(report.curve) < 50
    assert report.promotion is not None and report.promotion.lower_bound > CONFIG.margin, "imagined, it is better"
    assert report.outcome == "kept" and report.adapter is None and not (tmp_path / "adapters").exists()
    made = f"{len(report.curve)} of 100 updates in its 800 s"
    assert made in report.starved and f"but the session was starved: {made}" in report.message
    needed_s = int(re.search(r"about (\d+) s", report.starved)[1])  # type: ignore[index]
    assert 800 * 100 / len(report.curve) * 0.2 < needed_s < 800 * 100 / len(report.curve) * 2
    assert line(report).line.startswith(f"let the arm move: not shown, because the session was starved ({made}")
    assert line(report).line.count("starved") == 1
    assert check_session(read_session(log)) == [], "the log tells why nothing was promoted"


def test_a_session_cut_off_late_or_for_another_reason_was_not_starved(tmp_path: Path) -> None:
    late = session(replace(CONFIG, budget_s=400, max_updates=8, patience=1000), now_s=Clock(3.0))
    assert late.stop.kind is StopKind.TIME and 4 <= len(late.curve) < 8 and not late.starved
    solved = session(replace(CONFIG, max_updates=100, solved_rate=0.3), save=storing(tmp_path))
    assert solved.stop.kind is StopKind.SOLVED and len(solved.curve) < 50 and not solved.starved and solved.promoted


def test_what_was_withheld_is_neither_stored_nor_said_to_be_better(tmp_path: Path) -> None:
    report = session(save=storing(tmp_path / "adapters"), withheld="nobody measured such pictures")
    assert report.outcome == "kept" and not (tmp_path / "adapters").exists()
    assert "but nobody measured such pictures: present policy kept" in report.message
    assert line(report, DOUBTED).answer is Answer.NOT_SHOWN


def test_without_verdicts_nothing_is_shown() -> None:
    class Mute(FakeJudge):
        def score(self, frames, instruction, facts=None):
            return [Judgement(None, detail="the state is not known")] * len(frames)
    report = session(judge=Mute())
    assert report.stop.kind is StopKind.NO_VERDICT and not report.judged
    assert line(report).line.startswith("let the arm move: not shown, because the judges gave no verdict on any")


def test_a_dream_that_may_not_be_believed_shows_nothing_whatever_it_says(tmp_path: Path) -> None:
    won = session(save=storing(tmp_path))
    assert line(won, DOUBTED).line.startswith("let the arm move: not shown, because the captured frame is not of the")
    lost = session(replace(CONFIG, margin=1.0))
    assert line(lost).answer is Answer.NO and "nothing was promoted" in line(lost).line
    assert line(lost, DOUBTED).answer is Answer.NOT_SHOWN


def truth(before: int, after: int, n: int = 180) -> ABRow:
    return ab_row("reach", [i < before for i in range(n)], [i < after for i in range(n)])


FOUND = Evidence(True, True, "24/48 before, 36/48 after", "", 0.18, ())


@pytest.mark.parametrize(("before", "after", "answer", "contradicted"), [
    (60, 150, Answer.YES, False), (90, 100, Answer.NOT_SHOWN, True), (90, 60, Answer.NO, True),
    (90, 110, Answer.YES, False),  # less than the dream said, and surely better
])
def test_truth_outweighs_the_dream(before: int, after: int, answer: Answer, contradicted: bool) -> None:
    rng = np.random.default_rng(0)
    row = ab_row("reach", list(rng.permutation(180) < before), list(rng.permutation(180) < after)) if (
        answer is Answer.NOT_SHOWN) else truth(before, after)
    advice = advise(FOUND, row)
    assert (advice.answer, advice.contradicted) == (answer, contradicted), advice.line
    assert "180 true episodes each" in advice.line and "sure of at least +18" in advice.line


def test_truth_of_a_policy_that_was_kept_changes_nothing() -> None:
    kept = replace(FOUND, promoted=False)
    assert advise(kept, truth(60, 60)) == advise(kept)


def test_the_page_is_written_again_with_the_truth_and_is_red_where_that_contradicts(tmp_path: Path) -> None:
    record = SessionRecord(session(save=storing(tmp_path / "adapters")), tuple(BELIEVED))
    page = write_report(tmp_path / "session.html", record)
    first = re.search(r"<main>(.*?)</h1>", page.read_text(), re.DOTALL)
    assert first and "<h1 class='yes'>Let the arm move: yes, because" in first[1]
    assert "What really happened" not in page.read_text()
    write_record(tmp_path / "session.npz", record)
    again = read_record(tmp_path / "session.npz")
    assert write_report(tmp_path / "again.html", again).read_text() == page.read_text()
    strips = [true_strip("after, seed 1", False, [np.full((240, 320, 3), 90, np.uint8)] * 12)]
    same = ab_row("go right", [True, False] * 20, [False, True] * 20)
    html = write_report(tmp_path / "demo.html", again, Truth(same, strips)).read_text()
    assert again.advice_with(same).contradicted
    assert "<h1 class='open red'>Let the arm move: not shown, because 40 true" in html
    assert html.count("<h1") == 1 and "<p class='red'>Truly measured" in html and "nothing was measured" not in html
    assert html.index("What really happened") < html.index("<h2>Promotion test")
    better = ab_row("go right", [False] * 40, [True] * 40)
    html = write_report(tmp_path / "demo.html", again, Truth(better, strips)).read_text()
    assert again.advice_with(better).answer is Answer.YES and "red'" not in html and "<h1 class='yes'>" in html


def test_what_is_no_record_of_a_session_is_named(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match=r"none\.npz holds no finished session"):
        read_record(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", values=np.array('{"report": {"outcome": "kept"}}'))
    with pytest.raises(EpisodeError, match=r"other\.npz holds no finished session"):
        read_record(tmp_path / "other.npz")
