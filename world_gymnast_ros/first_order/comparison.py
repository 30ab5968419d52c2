"""What the runs say together: curves as an image, a table, and whether the claim of fewer samples may be made."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros.files import write_text
from world_gymnast_ros.first_order.policy_training import METHODS
from world_gymnast_ros.first_order.stages import run_folders

NAMES = {"fog": "FoG", "ppo": "PPO", "surrogate": "surrogate alone"}
COLOURS = {"fog": "#0b6e4f", "ppo": "#9a6700", "surrogate": "#5b4b8a"}
FEWER = 5
"""The claim under test: FoG reaches PPO's best imagined return with at most one FEWERth of the steps."""


def steps_to_reach(curve: list[dict[str, Any]], wanted: float) -> int | None:
    """Return the global-model steps of the first point of a curve at or above `wanted`, or None."""
    return next((int(row["steps"]) for row in curve if row["imagined"] >= wanted), None)


def compare(out: Path) -> dict[str, Any]:
    """Read all finished and tested runs; write report.json, table.md and curves.png; return the report."""
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    tests: dict[str, list[dict[str, Any]]] = {}
    for folder in run_folders(out):
        method = folder.name.rpartition("-")[0]
        curves.setdefault(method, []).append(json.loads((folder / "curve.json").read_text()))
        if (folder / "test.json").is_file():
            tests.setdefault(method, []).append(json.loads((folder / "test.json").read_text()))
    random = json.loads((out / "random.json").read_text()) if (out / "random.json").is_file() else None
    report: dict[str, Any] = {"random": random, "methods": {}}
    for method in METHODS:
        if method in curves:
            report["methods"][method] = _summary(curves[method], tests.get(method, []))
    report["claim"] = claim(curves, random)
    write_text(out / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(out / "table.md", table(report))
    draw_curves(curves, random, out / "curves.png")
    return report


def _summary(curves: list[list[dict[str, Any]]], tests: list[dict[str, Any]]) -> dict[str, Any]:
    best = [max(row["imagined"] for row in curve) for curve in curves]
    row: dict[str, Any] = {"seeds": len(curves), "steps": max(curve[-1]["steps"] for curve in curves),
                           "best_imagined": best}
    for key in ("final_coverage", "best_coverage", "reward"):
        row[key] = [test[key] for test in tests]
    row["successes"], row["episodes"] = (sum(test[key] for test in tests) for key in ("successes", "episodes"))
    return row


def claim(curves: dict[str, list[list[dict[str, Any]]]], random: dict[str, Any] | None) -> dict[str, Any]:
    """Judge the claim of fewer samples: void where PPO's best is not above twice a random policy's return."""
    if "fog" not in curves or "ppo" not in curves or random is None:
        return {"verdict": "open", "why": "runs of FoG and PPO, and a test with the random policy, are needed"}
    best = float(np.mean([max(row["imagined"] for row in curve) for curve in curves["ppo"]]))
    if best <= 2.0 * random["imagined"]:
        return {"verdict": "void", "why": f"PPO's best imagined return, {best:.3f}, is not above twice a random "
                                          f"policy's, {random['imagined']:.3f}: it has hardly learned"}
    budget = max(curve[-1]["steps"] for curve in curves["ppo"])
    reached = [steps_to_reach(curve, best) for curve in curves["fog"]]
    good = all(steps is not None and steps * FEWER <= budget for steps in reached)
    return {"verdict": "holds" if good else "fails", "ppo_best": best, "ppo_steps": budget, "fog_steps": reached,
            "why": f"PPO's best imagined return {best:.3f} within {budget} steps; FoG was there after "
                   + ", ".join("never" if s is None else str(s) for s in reached) + " steps"}


def table(report: dict[str, Any]) -> str:
    """Return the table as Markdown: means over seeds, and the range where there are several."""
    lines = ["| method | seeds | global-model steps | best imagined return | true coverage, end | true coverage, best "
             "| successes |", "|---|---:|---:|---:|---:|---:|---:|"]
    for method, row in report["methods"].items():
        cells = [_span(row[key]) for key in ("best_imagined", "final_coverage", "best_coverage")]
        lines.append(f"| {NAMES[method]} | {row['seeds']} | {row['steps']} | {' | '.join(cells)} | "
                     f"{row['successes']} of {row['episodes']} |")
    if (r := report["random"]) is not None:
        lines.append(f"| random | – | 0 | {r['imagined']:.3f} | {r['final_coverage']:.3f} | {r['best_coverage']:.3f} | "
                     f"{r['successes']} of {r['episodes']} |")
    return "\n".join([*lines, "", f"Claim of a fifth: {report['claim']['verdict']} ({report['claim']['why']}).", ""])


def _span(values: list[float]) -> str:
    if not values:
        return "–"
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}–{max(values):.3f})"


def draw_curves(curves: dict[str, list[list[dict[str, Any]]]], random: dict[str, Any] | None, path: Path) -> None:
    """Draw imagined return and true coverage against global-model steps: means, with bands from least to greatest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"imagined": "return in the world model", "coverage": "coverage at the end, true environment (few starts)"}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for method, runs in curves.items():
            runs = [[row for row in run if key in row] for run in runs]
            if not runs or not all(runs):
                continue
            steps = np.asarray([row["steps"] for row in runs[0]], dtype=float)
            values = np.stack([np.interp(steps, [r["steps"] for r in run], [r[key] for r in run]) for run in runs])
            panel.plot(steps, values.mean(0), color=COLOURS.get(method, "#444"), label=NAMES.get(method, method))
            panel.fill_between(steps, values.min(0), values.max(0), color=COLOURS.get(method, "#444"), alpha=0.2)
        if random is not None and key == "imagined":  # its coverage was measured on the test's starts, not the curve's
            panel.axhline(random["imagined"], color="#888", linestyle=":", label="random")
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("global-model steps")
    panels[0].legend(frameon=False, fontsize=9)
    partial = path.with_name(path.stem + ".part.png")
    figure.savefig(partial, dpi=120)
    partial.replace(path)
