"""Progress: on a terminal, after a while, with the time left; never in a log."""
from __future__ import annotations

import io
import sys
import time

import pytest

from world_gymnast_ros import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, each_s: float) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    for number, item in enumerate(progress.shown("abcdef", "reading", "episode")):
        assert item == "abcdef"[number]
        time.sleep(each_s)
    return stream.getvalue()


def test_what_takes_long_is_shown_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.2)
    said = shown_on(Terminal(), monkeypatch, 0.15)
    assert "reading" in said and "5/6" in said and "<00:00" in said


def test_what_is_quick_and_what_goes_to_a_log_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_on(Terminal(), monkeypatch, 0.0) == ""
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.0)
    assert shown_on(io.StringIO(), monkeypatch, 0.01) == ""
