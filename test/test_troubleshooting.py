"""Every message that docs/troubleshooting.md quotes is one that the code says, whatever its values."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_remedies import ROOT, messages, modules

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
VALUE = re.compile(r"/\S+|\b\d[\d.]*\b|\b[A-Z]{4,}\b|\b\w+_\w+\b|\bX\b")
"""Paths, numbers, states, names; and what `messages` has for what is filled in."""
SPACED = re.compile(r"[:;] |\.\.\.")
"""Where a message takes up another one, or the page leaves something out."""


def quotes(page: str) -> list[str]:
    """Return the parts of the messages in the first column."""
    rows = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    told = [quote for row in rows for quote in re.findall(r"`(.+?)`", row)]
    return [part for quote in told for part in (p.strip() for p in SPACED.split(quote)) if len(part) > 3]


@pytest.fixture(scope="module")
def said() -> str:
    return "\n".join(VALUE.sub("#", text) for path in modules() for _, text in messages(Path(path)))


@pytest.mark.parametrize("quote", quotes(PAGE))
def test_a_quoted_message_exists(quote: str, said: str) -> None:
    assert VALUE.sub("#", quote) in said


def test_the_check_sees_what_nobody_says(said: str) -> None:
    told = quotes("| message |\n| `3 doves within 2 s: let them go ...`, `... is black ...` | a | `no quote` |\n")
    assert told == ["3 doves within 2 s", "let them go", "is black"]
    assert [VALUE.sub("#", quote) in said for quote in told] == [False, False, True]
