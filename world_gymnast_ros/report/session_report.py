"""One self-contained HTML file about an adaptation session, for a person: one line first, evidence below.

The line says whether the arm may move with what the session made: yes, no, or not shown, because ...
Images are inline PNG, charts inline SVG; no script and nothing fetched. Reads on a phone as on a desk.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from world_gymnast_ros.adaptation.arm_advice import Advice, Answer
from world_gymnast_ros.adaptation.log import AdaptReport, Outcome, Strip, StripKind
from world_gymnast_ros.adaptation.promotion import EACH
from world_gymnast_ros.adaptation.record import SessionRecord
from world_gymnast_ros.adaptation.rollout_filter import TrustCounts
from world_gymnast_ros.adaptation.trust import Known, TaskRelease, Trust
from world_gymnast_ros.files import write_text
from world_gymnast_ros.report.charts import learning_curve, share_bar
from world_gymnast_ros.report.html import (
    AFTER,
    BEFORE,
    CAPTURED_PX,
    interval_row,
    page,
    percent,
    png,
    quiet,
    section,
    strip_html,
)
from world_gymnast_ros.statistics import ABRow

HEADLINES = {Outcome.PROMOTED: "Adapter promoted", Outcome.WOULD_PROMOTE: "Adapter would be promoted (dry run)",
             Outcome.KEPT: "Present policy kept", Outcome.CANCELLED: "Cancelled, present policy kept"}


@dataclass(frozen=True)
class Truth:
    """What truly happened: episodes with the same seeds before and after, and strips of some of them."""

    row: ABRow
    strips: Sequence[Strip] = ()


def write_report(path: Path, record: SessionRecord, truth: Truth | None = None) -> Path:
    """Write the page of a session to `path`, whole or not at all, and return it; it begins with the session's line.

    With `truth` that line rests on true episodes, and they are shown. The figures of a task's release table are shown
    only where the dream may be believed.
    """
    report, advice = record.report, record.advice_with(truth.row if truth else None)
    imagined = f"{HEADLINES[report.outcome]}: {report.message}"
    held_out = [s for s in report.strips if s.kind is StripKind.PAIRED]
    varied = [s for s in report.strips if s.kind is StripKind.VARIED]
    others = [s for s in report.strips if s.kind not in (StripKind.PAIRED, StripKind.VARIED)]
    parts = ((imagined, "Imagined success is an estimate by world model and judge; nothing was measured on an arm.")
            if truth is None else (_measured(truth.row), f"The session itself, before any of these: {imagined}."))
    write_text(path, page(f"{advice.answer.value}: {report.starts[0].instruction}", "".join([
        _head(advice, *parts), _scene(report), "" if truth is None else _truth(truth, advice, report),
        section("Where training began, too", *(quiet(f"{note}.") for note in report.notes), *map(strip_html, varied))
        if report.notes else "", section("Promotion test", _promotion(report)),
        section("Before and after, same held-out seed, imagined", *map(strip_html, held_out)) if held_out else "",
        section("Learning curve", _curve(report), quiet(f"Training ended: {report.stop_reason}.")),
        section("Imagined rollouts", quiet("The green bar under a frame is its score, the lower one of the judges'."),
                *map(strip_html, others)) if others else "",
        section("Distrust", _trust(report), _release(record.trusts, record.release or {})),
        section("Cost", _cost(report))])))
    return path


def _measured(row: ABRow) -> str:
    d = row.difference
    return (f"Truly measured, {row.name}: {round(row.before.value * row.before.n)} of {row.before.n} before, "
            f"{round(row.after.value * row.after.n)} of {row.after.n} after "
            f"({d.confidence:.0%} interval of the gain {100 * d.low:+.0f} to {100 * d.high:+.0f} points)")


def _truth(truth: Truth, advice: Advice, report: AdaptReport) -> str:
    row = truth.row
    after_name = "adapter" if report.outcome.better else "base again (nothing was promoted)"
    table = interval_row("base", row.before, BEFORE) + interval_row(after_name, row.after, AFTER)
    red = " class='red'" if advice.contradicted else ""
    return section("What really happened",
                   f"<p{red}>{escape(_measured(row))}.</p><div class='scroll'><table>{table}</table></div>",
                   quiet("True episodes with the same seeds before and after; success is read from physics, "
                         "not from images."), *map(strip_html, truth.strips))


def _head(advice: Advice, verdict: str, caution: str) -> str:
    """Return the top of the page: the line, red where true episodes contradict the promotion test, and what it is of.
    """
    kind = {Answer.YES: "yes", Answer.NO: "no", Answer.NOT_SHOWN: "open"}[advice.answer]
    red = " red" if advice.contradicted else ""
    line = advice.line[:1].upper() + advice.line[1:]
    return (f"<h1 class='{kind}{red}'>{escape(line)}.</h1>"
            f"<p class='verdict'>{escape(verdict)}.</p><p class='quiet'>{escape(caution)}</p>")


def _scene(report: AdaptReport) -> str:
    tasks = dict.fromkeys(s.instruction for s in report.starts)
    first = report.starts[0]
    tiles = {"updates": str(len(report.curve)), "imagined rollouts": f"{report.imagined_rollouts:,}",
             "rejected": f"{report.counts.rejected:,}", "no verdict": f"{report.counts.no_verdict:,}",
             "wall time": f"{report.seconds.get('total', 0.0):.0f} s"}
    if report.promotion and report.promotion.after.n:
        tiles = {"imagined before": percent(report.promotion.before.value),
                 "imagined after": percent(report.promotion.after.value), **tiles}
    parts = {k.replace("_", " "): v for k, v in report.names.items()}
    if report.adapter:
        parts["adapter"] = report.adapter.name
    names = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in parts.items())
    images = len({s.captured.rgb.tobytes() for s in report.starts})
    many = f", first of {images}" if images > 1 else ""
    return (f"<section class='two'><figure><img src='{png(first.captured.rgb, CAPTURED_PX)}' alt='captured frame'>"
            f"<figcaption>captured frame{many}: “{escape('”, “'.join(tasks))}”</figcaption></figure>"
            f"<div><dl class='tiles'>{''.join(f'<div><dt>{k}</dt><dd>{v}</dd></div>' for k, v in tiles.items())}</dl>"
            f"<table style='margin-top:12px'>{names}</table></div></section>")


def _promotion(report: AdaptReport) -> str:
    promotion = report.promotion
    if promotion is None:
        return quiet(f"The promotion test was not reached: {report.message}.")
    rows = interval_row("before", promotion.before, BEFORE) + interval_row("after", promotion.after, AFTER)
    for one in promotion.each:
        rows += (interval_row(f"{one.instruction}, before", one.before, BEFORE)
                 + interval_row(f"{one.instruction}, after", one.after, AFTER))
    rules = "; ".join(rule.text for rule in promotion.rules if rule.name.startswith(EACH))
    several = (quiet(f"Of several instructions each is tested by itself too: {rules}. All must pass.")
               if promotion.each else "")
    reason = escape(promotion.reason[:1].upper() + promotion.reason[1:])
    return (f"<p>{reason}.</p><div class='scroll'><table><tr><th></th>"
            f"<th>imagined successes</th><th>rate [{promotion.before.confidence:.0%} interval]</th><th></th></tr>{rows}"
            "</table></div>" + several +
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
    cells = {"rollouts judged": c.rollouts, "imagined again (predicted successes)": c.rerolled,
             "rejected: success not reproduced": c.not_reproduced, "rejected: static image": c.static,
             "rejected: blurred image": c.blurred, "rejected: colours drifted": c.colour,
             **({"asked for their actions (predicted successes)": c.recovered,
                 "rejected: frames show other actions": c.other_actions} if c.recovered else {}),
             "no verdict from the judges": c.no_verdict}
    return _agreement(c) + f"<table>{''.join(f'<tr><th>{k}</th><td>{v}</td></tr>' for k, v in cells.items())}</table>"


def _agreement(c: TrustCounts) -> str:
    seen = c.all_judges + c.some_judges + c.no_judge
    if not seen:
        return ""
    cells = {"all saw a success": c.all_judges, "some did, some did not": c.some_judges, "none did": c.no_judge}
    rows = "".join(f"<tr><th>{name}</th><td>{count:,}</td></tr>" for name, count in cells.items())
    return (f"<p>Several judges looked at each of {seen:,} rollouts; of the others one was sure at once that they had "
            f"failed. Only where all of them see a success does one count.</p><table>{rows}</table>")


def _release(trusts: Sequence[Trust], release: Mapping[str, TaskRelease]) -> str:
    """Say how far the dream may be believed for each task; its figures stand only where that was measured."""
    lines = "".join(f"<p><b>{escape(t.task)}</b>: believed? {escape(t.line)}.</p>" for t in trusts)
    shown = [(t.task, release[t.task]) for t in trusts if t.known is not Known.UNKNOWN and t.task in release]
    if not shown:
        return lines
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{row.auc:.2f} [{row.low:.2f}, {row.high:.2f}]</td>"
                   f"<td>{row.episodes}</td><td>{escape(row.images.source if row.images else 'not recorded')}</td>"
                   "</tr>" for name, row in shown)
    return (f"<div style='margin-top:1em'>{lines}</div><p>How well this world model and judge rank true outcomes "
            "(paired replay, held-out scenes):</p><table><tr><th>task</th><th>AUC [95 %]</th><th>episodes</th>"
            f"<th>measured on images of</th></tr>{rows}</table>")


def _cost(report: AdaptReport) -> str:
    stages = [(k, v) for k, v in report.seconds.items() if k != "total"]
    other = report.seconds.get("total", 0.0) - sum(v for _, v in stages)
    if other > 0.05:
        stages.append(("rest", other))
    rate = report.imagined_frames / max(report.seconds.get("total", 0.0), 1e-9)
    total = report.seconds.get("total", 0.0)
    return share_bar(stages) + quiet(f"About {report.imagined_frames:,} imagined frames in {total:.1f} s, "
                                      f"{rate:.0f} per second over everything.")
