"""The one line that a session ends with: yes, no, or not shown, because ..."""
from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from world_gymnast_ros.adaptation.arm_advice import Advice, Answer, Evidence, advise, evidence_of
from world_gymnast_ros.adaptation.config import AdaptConfig, AdaptNodeConfig
from world_gymnast_ros.adaptation.log import LOG_NAME, AdaptReport, Progress, StopKind, check_session, read_session
from world_gymnast_ros.adaptation.record import SessionRecord, read_record, write_record
from world_gymnast_ros.adaptation.rollout import Start
from world_gymnast_ros.adaptation.session import adapt
from world_gymnast_ros.adaptation.strips import true_strip
from world_gymnast_ros.adaptation.time_plan import RECORDED, Rate, TimePlan, recorded_rate
from world_gymnast_ros.adaptation.trust import Known, Trust
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.report.session_report import Truth, write_report
from world_gymnast_ros.statistics import ABRow, ab_row
from world_gymnast_ros.store import Store
from world_gymnast_ros.testing.fakes import FakeJudge, FakeLearner, FakePolicy, FakeWorldModel, start_frame
from world_gymnast_ros.types import Judgement
from world_gymnast_ros.updates.adaptation import time_notice

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
    report = session(save=storing(tmp_path / "adapters"), withheld="nobody measured such images")
    assert report.outcome == "kept" and not (tmp_path / "adapters").exists()
    assert "but nobody measured such images: present policy kept" in report.message
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


def test_a_session_that_cannot_do_its_updates_says_so_after_the_first(tmp_path: Path) -> None:
    told: list[Progress] = []
    log = tmp_path / "session.jsonl"
    report = starved(progress=told.append, log_path=log)
    notices = [p for p in told if p.notice]
    assert [p.warns for p in notices] == [False, True] and "rollouts per minute in the first group" in notices[0].notice
    words = notices[1].notice
    fit = int(re.search(r"about (\d+) of 100 fit into 800 s", words)[1])  # type: ignore[index]
    assert len(report.curve) / 2 <= fit <= 2 * len(report.curve), (words, len(report.curve))
    assert words.startswith("the session cannot do its updates") and f"(max_updates={fit})" in words
    first = next(i for i, p in enumerate(told) if p.update == 2)
    assert told.index(notices[1]) < first, "before the second update"
    fine: list[Progress] = []
    session(progress=fine.append)
    assert [p.warns for p in fine if p.notice] == [False, False] and "5 of 5 updates fit" in fine[-1].notice + "".join(
        p.notice for p in fine)


def test_a_budget_is_planned_as_the_session_runs_it() -> None:
    config = replace(CONFIG, budget_s=1000.0, max_updates=10, evaluate_every=2, groups_per_update=2, copies=10,
                     select_groups=5, held_out_copies=2, promotion_groups=10)
    plan = TimePlan(config, 1, Rate(2.0, 1.0))  # updates of 40 s, evaluations of 10 s, a promotion test of 40 s
    assert (plan.update_s, plan.select_s, plan.promotion_s) == (40.0, 10.0, 40.0)
    assert plan.needed_s(10) == 400 + 60 + 40 and plan.fitting == 10 and not plan.short
    assert replace(plan, config=replace(config, budget_s=500.0)).fitting == 10, "all of it"
    tight = replace(plan, config=replace(config, budget_s=210.0))
    assert tight.fitting == 3 and tight.short and tight.wanted == 5  # 10 + 3 x 40 + 10, then 40 for the promotion test
    assert "give it about 500 s (budget_s), or ask for 3 updates (max_updates=3)" in tight.words
    assert "max_updates=" not in replace(plan, config=replace(config, budget_s=20.0)).words, "none fits"
    assert replace(tight, instructions=4).update_s == 80.0, "each instruction has a group"


def test_an_earlier_session_tells_the_rate_of_the_next(tmp_path: Path) -> None:
    assert recorded_rate(tmp_path, CONFIG) is None
    folder = tmp_path / "sessions" / "20260101-000000-go-right"
    session(log_path=folder / LOG_NAME)
    found = recorded_rate(tmp_path, replace(CONFIG, budget_s=5.0))
    assert found is not None and found[1] == folder.name and found[0].train_s > 0 and found[0].held_out_s > 0
    assert recorded_rate(tmp_path, replace(CONFIG, horizon_steps=99)) is None, "another horizon takes another time"
    notice = time_notice(tmp_path, AdaptNodeConfig(), 1)
    assert not notice.warns and "no earlier session" in notice.notice
    (tmp_path / "sessions" / "30260101-000000-go-right").mkdir()
    (tmp_path / "sessions" / "30260101-000000-go-right" / LOG_NAME).write_text("{ torn")
    assert recorded_rate(tmp_path, CONFIG) == found, "a damaged log tells nothing"


def test_what_is_recorded_warns_before_the_next_session_starts(tmp_path: Path) -> None:
    log = tmp_path / "sessions" / "20260101-000000-reach" / LOG_NAME
    log.parent.mkdir(parents=True)
    config = AdaptNodeConfig(budget_s=100.0)
    log.write_text("".join(json.dumps(row) + "\n" for row in (
        {"event": "session", "config": asdict(config)}, {"event": RECORDED, "train_s": 5.0, "held_out_s": 1.0})))
    notice = time_notice(tmp_path, config, 1)
    assert notice.warns and notice.notice.startswith("the session cannot do its updates: about 0 of 12 fit into 100 s")
    assert log.parent.name in notice.notice
    assert not time_notice(tmp_path, replace(config, budget_s=10000.0), 1).warns
