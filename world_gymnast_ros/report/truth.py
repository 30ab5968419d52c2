"""Complete a session's report with what truly happened, measured after the session had written it.

The session knows only imagination; whoever ran the true episodes (`world-gymnast demo`) adds them here.
"""
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from world_gymnast_ros.adaptation.log import Strip
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.report.session_report import BEFORE, _interval_row, _quiet, _section, _strip
from world_gymnast_ros.statistics import ABRow
from world_gymnast_ros.types import U8

GATE_SECTION = "<section><h2>Gate</h2>"
"""The truth goes in front of it: a reader should meet what happened before what was imagined."""


@dataclass(frozen=True)
class TrueFilm:
    """One true episode as a film: pictures uint8 (H, W, 3), what it was, whether it succeeded."""

    title: str
    success: bool
    frames: Sequence[U8]


def _film(film: TrueFilm) -> str:
    picks = np.linspace(0, len(film.frames) - 1, min(8, len(film.frames))).round().astype(int)
    note = "success" if film.success else "not a success"
    return _strip(Strip(film.title, np.stack([film.frames[i] for i in picks]), None, note)) if len(picks) else ""


def complete_report(source: Path, target: Path, row: ABRow, films: Sequence[TrueFilm], promoted: bool) -> Path:
    """Write `source` to `target` with the true table, films and a sentence on top; whole or not at all."""
    try:
        html = source.read_text(encoding="utf-8")
    except OSError as error:
        raise EpisodeError(f"the session's report {source} cannot be read ({error}); look at the log of adapt_node"
                           ) from error
    after_name = "adapter" if promoted else "base again (the gate kept it)"
    table = (_interval_row("base", row.before, BEFORE) + _interval_row(after_name, row.after, "#0b6e4f"))
    d = row.difference
    sentence = (f"Truly measured, {row.name}: {round(row.before.value * row.before.n)} of {row.before.n} before, "
                f"{round(row.after.value * row.after.n)} of {row.after.n} after "
                f"({d.confidence:.0%} interval of the gain {100 * d.low:+.0f} to {100 * d.high:+.0f} points).")
    truth = _section("What really happened",
                     f"<p>{escape(sentence)}</p><div class='scroll'><table>{table}</table></div>",
                     _quiet("True episodes with the same seeds before and after; success is read from physics, "
                            "not from pictures."), *map(_film, films))
    if GATE_SECTION not in html:
        raise EpisodeError(f"{source} is not a report of this version; nothing was written")
    html = html.replace(GATE_SECTION, truth + GATE_SECTION, 1)
    caution = "Imagined success is an estimate by world model and judge; nothing was measured on an arm."
    html = html.replace(f"<p class='quiet'>{caution}</p>", f"<p class='verdict'>{escape(sentence)}</p>", 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, target)
    return target
