"""The table and the page of a run of `world-gymnast iterate`."""
from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros.files import write_text
from world_gymnast_ros.report.charts import interval_bar
from world_gymnast_ros.report.html import STYLE
from world_gymnast_ros.statistics import Interval, newcombe, paired_bootstrap

COLUMNS = ("method", "round", "true success [95 %]", "imagined", "gap", "false success (of failures)", "world model",
           "judge", "adapter")


def rows_of(results: Mapping[str, Sequence[dict[str, Any]]]) -> list[list[str]]:
    """Return the table's cells, round 0 once."""
    out = []
    for number, (method, rows) in enumerate(results.items()):
        for row in rows if number == 0 else rows[1:]:
            e = row["evaluation"]
            imagined = ["", "", ""]
            if "imagined" in e:
                false, low, high, failures = e["false_success"]
                imagined = [_interval(e["imagined"]), _gap(e["true"], e["imagined"]),
                         f"{false:.2f} [{low:.2f}, {high:.2f}] ({failures})" if failures else "no failure"]
            out.append([
                "start" if row["round"] == 0 else method, str(row["round"]), _interval(e["true"]), *imagined,
                *(_version(row.get(kind)) for kind in ("world_model", "judge")),
                ", ".join(told for told in (row.get("learning", {}).get("outcome", ""), _tried(row)) if told)])
    return out


def _tried(row: Mapping[str, Any]) -> str:
    trial = row.get("validation", {})
    if not trial.get("candidate"):
        return ""
    return ("" if trial["promoted"] else "BC policy ") + ("followed" if trial["used"] else "dropped") + " on the arm"


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _gap(true: Mapping[str, float], imagined: Mapping[str, float]) -> str:
    """Imagined less true success, [95 %] as if the dreams and the true episodes were independent: they share their
    first frames, so it is rather too wide."""
    (a, n), (b, m) = ((round(rate["value"] * rate["n"]), int(rate["n"])) for rate in (true, imagined))
    gap = newcombe(a, n, b, m)
    return f"{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"


def _version(part: Mapping[str, Any] | None) -> str:
    return "" if part is None else "promoted" if part["promoted"] else "kept"


def markdown(results: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Format the table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in rows_of(results)])


def ahead(results: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Interval]:
    """Return, per baseline, how far the loop is ahead of it after the last round that both have: difference of true
    success with its 95 % interval, paired by episode (all methods are evaluated on the same ones)."""
    found = {}
    for method, rows in results.items():
        last = min(len(rows), len(results.get("loop", ()))) - 1
        if method != "loop" and last > 0:
            loop, other = (np.array(r[last]["evaluation"]["outcomes"], np.float64) for r in (results["loop"], rows))
            found[method] = paired_bootstrap(loop - other)
    return found


def ahead_lines(results: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """Format `ahead`."""
    return [f"the loop ahead of {method}: {100 * v.value:+.1f} points [{100 * v.low:+.1f}, {100 * v.high:+.1f}] of "
            "true success after the last round that both have" for method, v in ahead(results).items()]


def write_run_report(out: Path, scene: str, instruction: str, results: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Write table.md, table.json and report.html into the run folder; return the table."""
    table = "\n\n".join([markdown(results), *ahead_lines(results)])
    write_text(out / "table.md", f"{scene}: {instruction}\n\n{table}\n")
    write_text(out / "table.json", json.dumps({"scene": scene, "instruction": instruction, "results": results},
                                              indent=1) + "\n")
    write_text(out / "report.html", page(out, scene, instruction, results))
    return table


def page(out: Path, scene: str, instruction: str, results: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Return the page: table, how success moved, and what each update changed, with images."""
    head = "".join(f"<th>{escape(c)}</th>" for c in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>" for cells in rows_of(results))
    parts = [_section("Rounds", f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"),
             _section("True (green) and imagined (grey) success", _bars(results) + "".join(
                 f"<p>{escape(line.capitalize())}.</p>" for line in ahead_lines(results)))]
    for method, rows in results.items():
        for row in rows[1:]:
            parts.append(_section(f"{method}, round {row['round']}", _round(out, method, row)))
    return ("<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<title>{escape(scene)}: the loop</title><style>{STYLE}td{{white-space:nowrap}}"
            "td:last-child{white-space:normal;min-width:9rem}main table{font-size:.8rem}"
            "main svg.interval{display:block}</style></head><body><main>"
            f"<h1>{escape(scene)}: {escape(instruction)}</h1>"
            "<p class='quiet'>Real episodes improve the dream, the dream improves the policy. True success is read "
            "from physics; imagined success is the policy in the dream from the same first frames; false successes are "
            "true failures whose actions, replayed in the dream, pass for successes. 95 % intervals: Wilson's, of the "
            "gap Newcombe's.</p>"
            f"{''.join(parts)}</main></body></html>")


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"


def _bars(results: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    lines = []
    for method, rows in results.items():
        for row in rows:
            e = row["evaluation"]
            bars = "".join(interval_bar(e[k]["low"], e[k]["value"], e[k]["high"], colour)
                           for k, colour in (("true", "#0b6e4f"), ("imagined", "#7a8fa6")) if k in e)
            lines.append(f"<div style='display:flex;align-items:center;gap:1rem'><span style='width:7rem'>"
                         f"{escape(method)} {row['round']}</span><span>{bars}</span></div>")
    return "".join(lines)


def _round(out: Path, method: str, row: Mapping[str, Any]) -> str:
    parts = []
    if "real" in row:
        real = row["real"]
        parts.append(f"<p>{real['successes']} of {real['episodes']} explored real episodes succeeded.</p>")
    if "setup" in row:
        parts.append(f"<p><b>Set-up</b>: {escape(row['setup']['message'])}.</p>")
    for kind, name in (("world_model", "World model"), ("judge", "Judge")):
        if kind in row:
            part = row[kind]
            verdict = "promoted" if part["promoted"] else "not promoted, the old one is kept"
            rules = "".join(f"<li>{escape(line)}</li>" for line in part["decision"])
            parts.append(f"<p><b>{name} {escape(part['version'])}</b>: {verdict}.</p><details><summary>what was asked "
                         f"and found</summary><ul class='quiet'>{rules}</ul></details>")
    if "cloning" in row:
        bc_policy, begin = row["cloning"]["adapter"], row["begin"]
        begun = "where adaptation began" if begin["adapter"] == bc_policy else "kept beside it"
        note = f"{begun}; {begin['message']}" if bc_policy else begin["message"]
        parts.append(f"<p><b>Behaviour cloning of the real successes</b>: {escape(note)}.</p>")
    parts.append(f"<p><b>Policy</b>: {escape(row['learning']['outcome'])}. {escape(row['learning']['message'])}</p>")
    if row.get("validation", {}).get("candidate"):
        stays = "it follows" if row["validation"]["used"] else "it is dropped"
        parts.append(f"<p><b>On-robot validation</b>: {escape(row['validation']['message'])}; {stays}.</p>")
    elif "validation" in row:
        trial = row["validation"]
        parts.append(f"<p>Nothing new to try; the present policy, greedy, succeeded in {trial['successes']} of "
                     f"{trial['episodes']} episodes more.</p>")
    image = out / method / f"round-{row['round']}" / "world_model" / "replays.png"
    if image.is_file():
        data = base64.b64encode(image.read_bytes()).decode()
        parts.append("<figure><img style='image-rendering:pixelated' alt='film strips' "
                     f"src='data:image/png;base64,{data}'>"
                     "<figcaption>Held-out real episodes, in threes of rows: what happened; dreamed by the world model "
                     "before; after this update.</figcaption></figure>")
    return "".join(parts)
