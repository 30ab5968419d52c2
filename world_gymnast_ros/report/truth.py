"""Complete a session's report with what truly happened, measured after the session had written it.

The session knows only imagination; whoever ran the true episodes (`world-gymnast demo`) adds them here.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from world_gymnast_ros.adaptation.arm_advice import Advice, Evidence, advise
from world_gymnast_ros.adaptation.log import Strip, read_session
from world_gymnast_ros.adaptation.strips import FRAMES_PER_STRIP
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.files import write_text
from world_gymnast_ros.report.session_report import (
    AFTER,
    BEFORE,
    HEAD,
    HEAD_END,
    TRUTH_PLACE,
    head,
    interval_row,
    quiet,
    section,
    strip_html,
)
from world_gymnast_ros.statistics import ABRow
from world_gymnast_ros.types import U8


@dataclass(frozen=True)
class TrueFilm:
    """One true episode as a film: pictures uint8 (H, W, 3), what it was, whether it succeeded."""

    title: str
    success: bool
    frames: Sequence[U8]


def read_evidence(log: Path) -> Evidence:
    """Return what a session knew at its end, from its log. Raises BadCheckpoint or EpisodeError."""
    for event in reversed(read_session(log)):
        if event.get("event") == "evidence":
            try:
                return Evidence.from_json(event)
            except (KeyError, TypeError) as error:
                raise EpisodeError(f"the last line of {log} is not of this version ({error})") from error
    raise EpisodeError(f"{log} does not say what the session came to: it did not end, or is of another version")


def _film(film: TrueFilm) -> str:
    picks = np.linspace(0, len(film.frames) - 1, min(FRAMES_PER_STRIP, len(film.frames))).round().astype(int)
    note = "success" if film.success else "not a success"
    return strip_html(Strip(film.title, np.stack([film.frames[i] for i in picks]), None, note)) if len(picks) else ""


def complete_report(source: Path, target: Path, found: Evidence, row: ABRow, films: Sequence[TrueFilm]) -> Advice:
    """Write the page `source` to `target` with true episodes, and with the line that they lead to, on top of it.

    `found`: what the session knew at its end. Returns the line. Whole or not at all; raises EpisodeError.
    """
    try:
        html = source.read_text(encoding="utf-8")
    except OSError as error:
        raise EpisodeError(f"the session's report {source} cannot be read ({error}); look at the log of adapt_node"
                           ) from error
    if not all(html.count(mark) == 1 for mark in (HEAD, HEAD_END, TRUTH_PLACE)):
        raise EpisodeError(f"{source} is not a report of this version; nothing was written")
    advice = advise(found, row)
    after_name = "adapter" if found.promoted else "base again (nothing was promoted)"
    table = interval_row("base", row.before, BEFORE) + interval_row(after_name, row.after, AFTER)
    d = row.difference
    sentence = (f"Truly measured, {row.name}: {round(row.before.value * row.before.n)} of {row.before.n} before, "
                f"{round(row.after.value * row.after.n)} of {row.after.n} after "
                f"({d.confidence:.0%} interval of the gain {100 * d.low:+.0f} to {100 * d.high:+.0f} points)")
    red = " class='red'" if advice.contradicted else ""
    truth = section("What really happened",
                    f"<p{red}>{escape(sentence)}.</p><div class='scroll'><table>{table}</table></div>",
                    quiet("True episodes with the same seeds before and after; success is read from physics, "
                          "not from pictures."), *map(_film, films))
    imagined = f"The session itself, before any of these: {found.evidence}."
    top = head(advice, sentence, imagined)
    html = html[:html.index(HEAD)] + top + html[html.index(HEAD_END) + len(HEAD_END):]
    write_text(target, html.replace(TRUTH_PLACE, truth))
    return advice
