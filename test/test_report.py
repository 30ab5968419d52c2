"""The report: whole, self-contained, says the verdict, and does not trust its inputs."""
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from world_gymnast_ros.adaptation.config import AdaptConfig
from world_gymnast_ros.adaptation.log import Strip
from world_gymnast_ros.adaptation.rollout import Start
from world_gymnast_ros.adaptation.session import adapt
from world_gymnast_ros.report.session_report import png, write_report
from world_gymnast_ros.statistics import ab_row
from world_gymnast_ros.testing.fakes import FakeJudge, FakeLearner, FakePolicy, FakeWorldModel, start_frame


@pytest.fixture(scope="module")
def session():
    policy = FakePolicy()
    return adapt(policy, FakeWorldModel(), FakeJudge(), FakeLearner(policy), [Start(start_frame(), None, "go right")],
                 AdaptConfig(budget_s=1e6, max_updates=4, copies=16), 0, time.monotonic)


class Checker(HTMLParser):
    """Counts elements, checks that they are closed, and collects text."""

    def __init__(self):
        super().__init__()
        self.open, self.count, self.text, self.sources = [], {}, "", []

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text += data


def parsed(path):
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    return checker


def test_the_report_is_whole_and_needs_nothing_else(session, tmp_path):
    page = parsed(write_report(tmp_path / "deep" / "report.html", session))
    assert page.sources and all(s.startswith("data:image/png;base64,") for s in page.sources)
    assert "script" not in page.count and page.count["img"] > 20 and page.count["svg"] >= 4
    assert not re.search(r"https?://", (tmp_path / "deep" / "report.html").read_text())
    assert session.message[1:] in page.text and "go right" in page.text
    assert "nothing was measured on an arm" in page.text
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_true_results_are_put_on_top(session, tmp_path):
    row = ab_row("go right", [False] * 9 + [True], [True] * 7 + [False] * 3)
    strips = [Strip("before, seed 3", np.zeros((8, 16, 16, 3), np.uint8), None, "not a success")]
    page = parsed(write_report(tmp_path / "r.html", session, true_rows=[row], true_strips=strips,
                               true_note="on the twin",
                               release={"reach": {"auc": 0.93, "low": 0.9, "high": 0.96, "episodes": 200}}))
    assert "1 of 10 before, 7 of 10 after" in page.text and "nothing was measured" not in page.text
    assert "0.93 [0.90, 0.96]" in page.text and "on the twin" in page.text
    assert page.text.index("What really happened") < page.text.index("Gate")


def test_other_outcomes_are_told_too(session, tmp_path):
    for outcome, says in (("kept", "Present policy kept"), ("cancelled", "Cancelled")):
        bare = replace(session, outcome=outcome, gate=None, curve=(), strips=(), message="<b>no & nothing</b>")
        page = parsed(write_report(tmp_path / "r.html", bare))
        assert says in page.text and "<b>no & nothing</b>" in page.text and "gate was not reached" in page.text
        assert page.count.get("b", 0) == 0, "text is escaped"


def test_large_pictures_are_shrunk():
    big = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    assert len(png(big, 160)) < 120_000 < len(png(big, 640))
