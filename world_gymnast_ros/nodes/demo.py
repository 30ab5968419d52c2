"""`world-gymnast demo`: fail in a novel scene, adapt inside the dream, do better on the same scene. No robot needed.

Starts the whole graph on the twin as separate processes over DDS, runs N true episodes with the base policy, captures
the frame before the camera, adapts, runs the same N episodes (same seeds) again, prints the table and writes
`report.html`. Nothing here is specific to the twin but the reset and the truth.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import rclpy
from rclpy.signals import SignalHandlerOptions
from tqdm import tqdm

from world_gymnast_ros import seeds
from world_gymnast_ros.adaptation.arm_advice import Advice
from world_gymnast_ros.adaptation.record import RECORD_NAME, read_record
from world_gymnast_ros.adaptation.strips import true_strip
from world_gymnast_ros.cli.checks import writable_folder
from world_gymnast_ros.cli.demo import add_arguments
from world_gymnast_ros.errors import BadInstruction, WorldGymnastError
from world_gymnast_ros.nodes import graph, verb
from world_gymnast_ros.nodes.operator import Operator, TrueRun
from world_gymnast_ros.report.session_report import Truth, write_report
from world_gymnast_ros.statistics import ABRow, ab_json, ab_markdown, ab_row, wilson
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.tasks import parse_instruction

CAPTURES = 4
VIDEOS = 3
"""So many true episodes before and after are shown; the images of the others are not kept."""


@dataclass(frozen=True)
class DemoOptions:
    """What to run. `budget_s` bounds the adaptation; `max_updates` 0: as in adapt.yaml."""

    scene: str
    instruction: str
    episodes: int
    budget_s: float
    max_updates: int
    seed: int
    out: Path
    record: bool


def options_from(args: argparse.Namespace) -> DemoOptions:
    """Check the arguments before anything starts."""
    scene = load_scene(args.scene)
    instruction = args.instruction or scene.instructions[0]
    task = parse_instruction(instruction)
    names = [spec.name for spec in scene.objects]
    for name in filter(None, (task.target, task.goal)):
        if name not in names:
            raise BadInstruction(f"'{instruction}' names '{name}', but scene '{scene.name}' holds only: "
                                 f"{', '.join(names)}")
    out = args.out or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    writable_folder(out)
    return DemoOptions(args.scene, instruction, args.episodes, args.budget_s, args.updates, args.seed, out.absolute(),
                       not args.no_record)


def true_episodes(operator: Operator, o: DemoOptions, label: str) -> list[TrueRun]:
    """Run the N true episodes; seeds are the same whichever policy runs, so that they make pairs."""
    steps = parse_instruction(o.instruction).horizon_steps
    runs: list[TrueRun] = []
    with tqdm(total=o.episodes, desc=label, unit="episode", file=sys.stdout) as bar:
        for i, seed in enumerate(seeds.demo(o.episodes)):
            run = operator.run_episode(o.scene, o.instruction, seed, steps, o.record)
            runs.append(run if i < VIDEOS else replace(run, video=()))
            bar.set_postfix_str(f"{sum(r.success for r in runs)} succeeded")
            bar.update()
    return runs


def adaptation(operator: Operator, o: DemoOptions) -> Any:
    """Capture, adapt, and show progress; return the action's result."""
    for seed in seeds.captures(CAPTURES):  # the scene set up anew for each; none is of an episode that is measured
        operator.reset_twin(o.scene, o.instruction, seed)
        operator.capture()
    operator.say(o.instruction)
    with tqdm(total=o.max_updates or None, desc="adapting", unit="update", file=sys.stdout) as bar:
        def feedback(f: Any) -> None:
            bar.total = f.max_updates
            bar.n = f.update
            bar.set_postfix_str(f"{f.stage}: reward {f.mean_reward:.2f}, imagined success {f.imagined_success:.0%}, "
                                f"rejected {f.rejected}, {f.seconds_left:.0f} s left")
        return operator.adapt(o.instruction, o.budget_s, o.max_updates, o.seed, feedback)


def memory_mib(pids: Sequence[int]) -> float:
    """Return the summed proportional memory of processes and this one, MiB (Linux)."""
    total = 0.0
    for pid in (*pids, os.getpid()):
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += float(line.split()[1]) / 1024
        except OSError:
            continue
    return total


def write_results(o: DemoOptions, before: list[TrueRun], after: list[TrueRun], result: Any, row: ABRow,
                  seconds: dict[str, float], peak_mib: float) -> tuple[Path, Advice]:
    """Write the session's page with what truly happened, and demo.json; return the page's path and the line that both
    begin with."""
    session = read_record(Path(result.report_path).with_name(RECORD_NAME))
    strips = [true_strip(f"{label}, seed {r.seed}", r.success, r.video)
              for label, runs in (("before", before), ("after", after)) for r in runs[:VIDEOS] if r.video]
    report, advice = write_report(o.out / "report.html", session, Truth(row, strips)), session.advice_with(row)
    summary = {"line": advice.line, "scene": o.scene, "instruction": o.instruction, "seed": o.seed,
               "promoted": bool(result.promoted), "message": result.message,
               "before": [r.success for r in before], "after": [r.success for r in after],
               "imagined_before": result.imagined_before, "imagined_after": result.imagined_after,
               "table": ab_json([row]), "seconds": seconds, "peak_memory_mib": round(peak_mib)}
    (o.out / "demo.json").write_text(json.dumps(summary, indent=1, default=str), encoding="utf-8")
    return report, advice


def run_demo(o: DemoOptions, domain_id: int | None) -> int:
    """Run the story; return 0 when it ran to its end, whatever the verdict. `domain_id` None: a free one."""
    if domain_id is None:
        with graph.claim_domain() as claim:
            return run_demo(o, int(claim.name.rpartition("_")[2]))
    env = graph.ros_environment(domain_id, o.out / "logs")
    os.environ.update(env)
    began = time.monotonic()
    seconds: dict[str, float] = {}
    specs = [s.with_overrides(**{"adapt_node": {"directory": str(o.out)},
                                 "recorder_node": {"directory": str(o.out / "episodes")}}.get(s.name, {}))
             for s in graph.twin_graph(o.scene)]
    print(f"{o.scene}: '{o.instruction}'. Results and logs: {o.out}", flush=True)
    with graph.start(specs, env, o.out / "logs") as nodes:
        # No signal handler of rclpy: Ctrl-C raises KeyboardInterrupt here, and the graph's exit holds the arm first.
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        operator = Operator(nodes.check)
        try:
            operator.wait_for_graph()
            seconds["start"] = time.monotonic() - began
            before = true_episodes(operator, o, "before")
            seconds["before"] = time.monotonic() - began - sum(seconds.values())
            result = adaptation(operator, o)
            seconds["adapt"] = time.monotonic() - began - sum(seconds.values())
            print(result.message, flush=True)
            if not result.report_path:
                raise WorldGymnastError(f"the session left no report; {o.out / 'logs'} holds what adapt_node said")
            peak_mib = memory_mib([n.process.pid for n in nodes.nodes.values()])
            after = true_episodes(operator, o, "after")
            seconds["after"] = time.monotonic() - began - sum(seconds.values())
            wanted = result.adapter.name if result.promoted else "base"
            if operator.adapter not in (wanted, ""):
                raise WorldGymnastError(f"the arm ran adapter '{operator.adapter}', expected '{wanted}'")
        finally:
            operator.destroy_node()
            rclpy.try_shutdown()
    row = ab_row(f"{o.scene}: {o.instruction}", [r.success for r in before], [r.success for r in after])
    report, advice = write_results(o, before, after, result, row, seconds, peak_mib)
    total = time.monotonic() - began
    print(f"\n{advice.line}\n\n{ab_markdown([row])}\n")
    print(f"imagined success {result.imagined_before:.0%} -> {result.imagined_after:.0%} (an estimate, not the truth)")
    print(f"{'adapter promoted: ' + result.adapter.name if result.promoted else 'base kept'}; true success after: "
          f"{wilson(sum(r.success for r in after), len(after))}")
    print(f"{total / 60:.1f} min in all ({', '.join(f'{k} {v:.0f} s' for k, v in seconds.items())}); "
          f"memory of the graph {peak_mib / 1024:.1f} GiB\nreport: {report}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors into one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="world-gymnast demo", description=(__doc__ or "").split("\n\n", 1)[0])
    add_arguments(parser)
    return verb.run(parser, lambda args: run_demo(options_from(args), args.domain_id), argv,
                    "stopped; the arm was told to hold, every file is whole")


if __name__ == "__main__":
    raise SystemExit(main())
