"""The report: whole, self-contained, says the verdict, and does not trust its inputs."""
import base64
import io
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from world_gymnast_ros.adaptation.config import AdaptConfig
from world_gymnast_ros.adaptation.log import Outcome
from world_gymnast_ros.adaptation.record import SessionRecord
from world_gymnast_ros.adaptation.rollout import Start
from world_gymnast_ros.adaptation.session import adapt
from world_gymnast_ros.adaptation.trust import Known, TaskRelease, Trust
from world_gymnast_ros.report.html import FRAME_PX, png
from world_gymnast_ros.report.session_report import write_report
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


def page_of(path, report, trusts=(), release=None):
    return write_report(path, SessionRecord(report, tuple(trusts), release))


def parsed(path):
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    return checker


def test_the_report_is_whole_and_needs_nothing_else(session, tmp_path):
    page = parsed(page_of(tmp_path / "deep" / "report.html", session))
    assert page.sources and all(s.startswith("data:image/png;base64,") for s in page.sources)
    assert "script" not in page.count and page.count["img"] > 20 and page.count["svg"] >= 4
    assert not re.search(r"https?://", (tmp_path / "deep" / "report.html").read_text())
    assert page.text.split("}")[-1].lstrip().startswith("Let the arm move: yes, because") and page.count["h1"] == 1
    assert session.message[1:] in page.text and "go right" in page.text
    assert "nothing was measured on an arm" in page.text
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_figures_stand_only_where_the_dream_may_be_believed(session, tmp_path):
    release = {"reach": TaskRelease(0.93, 0.9, 0.96, 200, 0.05), "push": TaskRelease(0.97, 0.95, 0.98, 100, 0.05)}
    trusts = (Trust("reach", Known.YES, "measured on such images"),)
    page = parsed(page_of(tmp_path / "r.html", session, trusts, release=release))
    assert "0.93 [0.90, 0.96]" in page.text and "Measured on such images" in page.text
    assert "0.97" not in page.text, "another task was not asked for"
    trusts = (Trust("reach", Known.UNKNOWN, "another kind of image"),)
    page = parsed(page_of(tmp_path / "r.html", session, trusts, release=release))
    assert "0.93" not in page.text and "AUC" not in page.text and "unknown. Another kind of image" in page.text


def test_other_outcomes_are_told_too(session, tmp_path):
    for outcome, says in ((Outcome.KEPT, "Present policy kept"), (Outcome.CANCELLED, "Cancelled")):
        bare = replace(session, outcome=outcome, promotion=None, curve=(), strips=(), message="<b>no & nothing</b>")
        page = parsed(page_of(tmp_path / "r.html", bare))
        assert says in page.text and "<b>no & nothing</b>" in page.text
        assert "promotion test was not reached" in page.text
        assert page.count.get("b", 0) == 0, "text is escaped"


def pixels(url):
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_frames_are_large_and_sharp_and_begin_with_what_the_camera_saw(session, tmp_path):
    camera = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    strip = session.strips[0]
    assert strip.captured is not None, "a session keeps the camera's frame"
    bare = replace(session, strips=(replace(strip, captured=camera),))
    page = parsed(page_of(tmp_path / "r.html", bare))
    shown = [pixels(s) for s in page.sources][1:]  # the first image of the page is the scene
    assert (shown[0] == camera).all(), "at its own resolution"
    for image, frame in zip(shown[1:], strip.frames[1:], strict=True):
        assert image.shape[1] >= FRAME_PX >= 128 and image.shape[1] * 3 == image.shape[0] * 4, "as wide as seen"
        assert set(map(tuple, image.reshape(-1, 3))) == set(map(tuple, frame.reshape(-1, 3))), "no colour is mixed"


def test_small_frames_are_enlarged_by_whole_blocks_and_large_ones_shrunk():
    small = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert (pixels(png(small)) == small.repeat(4, 0).repeat(4, 1)).all()
    big = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    assert pixels(png(big, 160)).shape == (120, 160, 3) and (pixels(png(big, 640)) == big).all()
