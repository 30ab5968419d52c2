"""One self-contained HTML file about an adaptation session, for a person: one line first, evidence below.

The line says whether the arm may move with what the session made: yes, no, or not shown, because ...
Pictures are inline PNG, charts inline SVG; no script and nothing fetched. Reads on a phone as on a desk.
"""
from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from world_gymnast_ros.adaptation.arm_advice import Advice, Answer
from world_gymnast_ros.adaptation.log import AdaptReport, Strip
from world_gymnast_ros.adaptation.promotion import GateDecision
from world_gymnast_ros.adaptation.rollout_filter import TrustCounts
from world_gymnast_ros.adaptation.trust import Known, TaskRelease, Trust
from world_gymnast_ros.files import write_text
from world_gymnast_ros.report.charts import interval_bar, learning_curve, share_bar
from world_gymnast_ros.statistics import Interval
from world_gymnast_ros.types import U8

BEFORE, AFTER = "#7a8fa6", "#0b6e4f"
FRAME_PX = 256
"""A frame of a strip is stored at least this wide; a small one is enlarged by a whole factor, without blurring it."""
CAPTURED_PX = 640
HEAD, HEAD_END, TRUTH_PLACE = "<!-- head -->", "<!-- head ends -->", "<!-- what really happened -->"
"""Where `truth.py` puts what was measured after the session had written its page."""
HEADLINES = {"promoted": "Adapter promoted", "would_promote": "Adapter would be promoted (dry run)",
             "kept": "Present policy kept", "cancelled": "Cancelled, present policy kept"}

STYLE = """
:root{color-scheme:light;--ink:#1d2329;--quiet:#5c6670;--line:#dfe3e7;--paper:#fff;--wash:#f5f7f8}
*{box-sizing:border-box}body{margin:0;background:var(--wash);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 20px 60px}h1{font-size:1.7rem;margin:.1em 0 .3em;line-height:1.2}
h1.yes,h1.no,h1.open{font-size:1.3rem;border-left:8px solid #9a6700;padding:.1em 0 .1em .6em}
h1.yes{border-color:#0b6e4f}h1.no{border-color:#5c6670}.red{color:#b3261e}h1.red{border-color:#b3261e}
h2{font-size:1.15rem;margin:0 0 .6em}section{background:var(--paper);border:1px solid var(--line);
border-radius:8px;padding:18px 20px;margin:16px 0}.verdict{font-size:1.12rem;margin:.2em 0}
.quiet,figcaption{color:var(--quiet);
font-size:.88rem}.two{display:grid;grid-template-columns:minmax(0,5fr) minmax(0,7fr);
gap:20px;align-items:start}figure{margin:0}img{display:block;width:100%;height:auto;border-radius:3px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px;margin:0}
.tiles div{background:var(--wash);border-radius:6px;padding:8px 12px}.tiles dt{color:var(--quiet);font-size:.82rem}
.tiles dd{margin:0;font-size:1.25rem;font-weight:600}.strip{margin:0 0 16px}.strip h3{font-size:.95rem;margin:0}
.film{display:grid;grid-template-columns:repeat(5,minmax(128px,1fr));gap:6px;margin-top:5px}
.film b{display:block;height:5px;background:var(--line);margin-top:3px}
.film b i{display:block;height:100%;background:#0b6e4f}.film span{font-size:.72rem;color:var(--quiet)}
svg{width:100%;height:auto;display:block}svg text{font-size:12px;fill:#5c6670}.grid{stroke:#dfe3e7;stroke-width:1}
svg.share{height:18px;border-radius:4px}
svg.interval{width:200px}.scroll td{white-space:nowrap}.legend span{margin-right:16px;font-size:.85rem;
white-space:nowrap;display:inline-block}.legend i{display:inline-block;width:10px;height:10px;margin-right:5px}
.legend{margin:.5em 0 0}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:middle}
th{color:var(--quiet);font-weight:500}
@media(max-width:640px){main{padding:12px 10px 40px}.two{grid-template-columns:1fr}section{padding:14px}
.film{grid-template-columns:repeat(2,minmax(128px,1fr))}h1{font-size:1.35rem}.verdict{font-size:1.02rem}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}svg.interval{display:none}table{font-size:.85rem}
svg text{font-size:21px}}
"""


def write_report(path: Path, report: AdaptReport, advice: Advice, *, trusts: Sequence[Trust] = (),
                 release: Mapping[str, TaskRelease] | None = None) -> Path:
    """Write the report to `path` (temporary name, then moved) and return it; it begins with the line of `advice`.

    `trusts`: how far the dream may be believed for each task of the session; `release`: the paired-replay table of the
    world model with its judges, by task. The figures of a task are shown only where the dream may be believed.
    """
    held_out = [s for s in report.strips if s.paired]
    others = [s for s in report.strips if not s.paired]
    body = [
        head(advice, f"{HEADLINES[report.outcome]}: {report.message}", "Imagined success is an estimate by world model "
             "and judge; nothing was measured on an arm."),
        _scene(report), TRUTH_PLACE,
        section("Gate", _gate(report)),
        section("Before and after, same held-out seed, imagined", *map(strip_html, held_out)) if held_out else "",
        section("Learning curve", _curve(report), quiet(f"Training ended: {report.stop_reason}.")),
        section("Imagined rollouts", quiet("The green bar under a frame is its score, the lower one of the judges'."),
                 *map(strip_html, others)) if others else "",
        section("Distrust", _trust(report), _release(trusts, release or {})),
        section("Cost", _cost(report)),
    ]
    html = ("<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width,initial-scale=1'>"
            f"<title>{escape(advice.answer.value)}: {escape(report.starts[0].instruction)}</title>"
            f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n")
    write_text(path, html)
    return path


def head(advice: Advice, verdict: str, caution: str) -> str:
    """Return the top of the page: the line, red where true episodes contradict the promotion test, and what it is of.
    """
    kind = {Answer.YES: "yes", Answer.NO: "no", Answer.NOT_SHOWN: "open"}[advice.answer]
    red = " red" if advice.contradicted else ""
    line = advice.line[:1].upper() + advice.line[1:]
    return (f"{HEAD}<h1 class='{kind}{red}'>{escape(line)}.</h1>"
            f"<p class='verdict'>{escape(verdict)}.</p><p class='quiet'>{escape(caution)}</p>{HEAD_END}")


def section(title: str, *parts: str) -> str:
    """Return a section of the page."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def quiet(text: str) -> str:
    """Return a paragraph of small print, nothing for no text."""
    return f"<p class='quiet'>{escape(text)}</p>" if text else ""


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def png(rgb: U8, max_width: int = FRAME_PX, aspect: float | None = None) -> str:
    """Return a picture as a data URL: shrunk to `max_width` where wider, and enlarged to at least `FRAME_PX` where
    narrower, each pixel to a block of its own. `aspect`: width by height that it was squashed from, to undo that.
    """
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    if picture.width > max_width:
        picture = picture.resize((max_width, round(picture.height * max_width / picture.width)), Image.Resampling.BOX)
    width = picture.width * -(-min(FRAME_PX, max_width) // picture.width)
    height = round(width / aspect) if aspect else picture.height * width // picture.width
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _of(interval: Interval) -> str:
    return f"{round(interval.value * interval.n)} of {interval.n}"


def _scene(report: AdaptReport) -> str:
    tasks = dict.fromkeys(s.instruction for s in report.starts)
    first = report.starts[0]
    tiles = {"updates": str(len(report.curve)), "imagined rollouts": f"{report.imagined_rollouts:,}",
             "rejected": f"{report.counts.rejected:,}", "no verdict": f"{report.counts.no_verdict:,}",
             "wall time": f"{report.seconds.get('total', 0.0):.0f} s"}
    if report.gate and report.gate.after.n:
        tiles = {"imagined before": _percent(report.gate.before.value),
                 "imagined after": _percent(report.gate.after.value), **tiles}
    parts = {k.replace("_", " "): v for k, v in report.names.items()}
    if report.adapter:
        parts["adapter"] = report.adapter.name
    names = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in parts.items())
    many = f", first of {len(report.starts)}" if len(report.starts) > 1 else ""
    return (f"<section class='two'><figure><img src='{png(first.captured.rgb, CAPTURED_PX)}' alt='captured frame'>"
            f"<figcaption>captured frame{many}: “{escape('”, “'.join(tasks))}”</figcaption></figure>"
            f"<div><dl class='tiles'>{''.join(f'<div><dt>{k}</dt><dd>{v}</dd></div>' for k, v in tiles.items())}</dl>"
            f"<table style='margin-top:12px'>{names}</table></div></section>")


def strip_html(strip: Strip) -> str:
    """Return a strip of frames with their scores; the first is the camera's own frame, where it is known."""
    first = strip.captured
    aspect = None if first is None else first.shape[1] / first.shape[0]
    cells = []
    for i, frame in enumerate(strip.frames):
        score = ""
        if strip.scores is not None:
            s = min(1.0, max(0.0, float(strip.scores[i])))
            score = f"<b><i style='width:{100 * s:.0f}%'></i></b><span>{s:.2f}</span>"
        seen = png(frame, CAPTURED_PX, aspect) if i or first is None else png(first, CAPTURED_PX)
        told = "captured frame" if first is not None and not i else f"frame {i + 1} of {len(strip.frames)}"
        cells.append(f"<div><img src='{seen}' alt='{told}'>{score}</div>")
    return (f"<div class='strip'><h3>{escape(strip.title)}</h3><span class='quiet'>{escape(strip.note)}</span>"
            f"<div class='film'>{''.join(cells)}</div></div>")


def interval_row(name: str, interval: Interval, colour: str) -> str:
    """Return a table row of successes with their interval, in figures and drawn."""
    return (f"<tr><th>{escape(name)}</th><td>{_of(interval)}</td><td>{_percent(interval.value)} "
            f"[{_percent(interval.low)}, {_percent(interval.high)}]</td>"
            f"<td>{interval_bar(interval.low, interval.value, interval.high, colour)}</td></tr>")


def _gate(report: AdaptReport) -> str:
    gate: GateDecision | None = report.gate
    if gate is None:
        return quiet(f"The gate was not reached: {report.message}.")
    rows = interval_row("before", gate.before, BEFORE) + interval_row("after", gate.after, AFTER)
    for words, before, after in gate.each:
        rows += interval_row(f"{words}, before", before, BEFORE) + interval_row(f"{words}, after", after, AFTER)
    return (f"<p>{escape(gate.reason[:1].upper() + gate.reason[1:])}.</p><div class='scroll'><table><tr><th></th>"
            f"<th>imagined successes</th><th>rate [{gate.before.confidence:.0%} interval]</th><th></th></tr>{rows}"
            "</table></div>" +
            quiet("Both sides ran the same start frames, world-model noise and sampling noise, on seeds that neither "
                   "training nor the choice of the checkpoint had seen. The bound is the lower of a bootstrap over "
                   "whole dreams and the paired Newcombe interval. A success counts only if the same actions succeed "
                   "again under fresh noise."))


def _curve(report: AdaptReport) -> str:
    rows = report.curve
    return learning_curve({
        "mean reward": [(r.update, r.mean_reward) for r in rows],
        "imagined success, training": [(r.update, r.imagined_success) for r in rows],
        "imagined success, held-out": [(r.update, r.held_out) for r in rows if r.held_out is not None]})


def _trust(report: AdaptReport) -> str:
    c = report.counts
    cells = {"rollouts judged": c.rollouts, "dreamed again (claimed successes)": c.rerolled,
             "rejected: success not reproduced": c.not_reproduced, "rejected: static picture": c.static,
             "rejected: blurred picture": c.blurred, "rejected: colours drifted": c.colour,
             "no verdict from the judges": c.no_verdict}
    return _agreement(c) + f"<table>{''.join(f'<tr><th>{k}</th><td>{v}</td></tr>' for k, v in cells.items())}</table>"


def _agreement(c: TrustCounts) -> str:
    seen = c.all_judges + c.some_judges + c.no_judge
    if not seen:
        return ""
    cells = {"all saw a success": c.all_judges, "some did, some did not": c.some_judges, "none did": c.no_judge}
    rows = "".join(f"<tr><th>{name}</th><td>{count:,}</td></tr>" for name, count in cells.items())
    return (f"<p>Several judges looked at each of {seen:,} rollouts. Only where all of them see a success does one "
            f"count.</p><table>{rows}</table>")


def _release(trusts: Sequence[Trust], release: Mapping[str, TaskRelease]) -> str:
    """Say how far the dream may be believed for each task; its figures stand only where that was measured."""
    lines = "".join(f"<p><b>{escape(t.task)}</b>: believed? {escape(t.line)}.</p>" for t in trusts)
    shown = [(t.task, release[t.task]) for t in trusts if t.known is not Known.UNKNOWN and t.task in release]
    if not shown:
        return lines
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{row.auc:.2f} [{row.low:.2f}, {row.high:.2f}]</td>"
                   f"<td>{row.episodes}</td><td>{escape(row.pictures.source if row.pictures else 'not recorded')}</td>"
                   "</tr>" for name, row in shown)
    return (f"<div style='margin-top:1em'>{lines}</div><p>How well this world model and judge rank true outcomes "
            "(paired replay, held-out scenes):</p><table><tr><th>task</th><th>AUC [95 %]</th><th>episodes</th>"
            f"<th>measured on pictures of</th></tr>{rows}</table>")


def _cost(report: AdaptReport) -> str:
    stages = [(k, v) for k, v in report.seconds.items() if k != "total"]
    other = report.seconds.get("total", 0.0) - sum(v for _, v in stages)
    if other > 0.05:
        stages.append(("rest", other))
    rate = report.imagined_frames / max(report.seconds.get("total", 0.0), 1e-9)
    total = report.seconds.get("total", 0.0)
    return share_bar(stages) + quiet(f"About {report.imagined_frames:,} imagined frames in {total:.1f} s, "
                                      f"{rate:.0f} per second over everything.")
