"""Is it foreseen where the hand stands that something stops? `python bench/stops.py RUN... [--pictures]`.

RUN: folders of `world-gymnast iterate` of pushing tasks. What stops the arm is learned from the episodes that the run
learned from, and measured on the true evaluations after each round, of which nothing was learned: how far the hand is
from where it was measured (mean over frames and episodes, horizontal), knowing nothing of it and as learned; with
--pictures, too, how far the shipped world model's pictures of the same actions are off (structural error), and how the
judge that measures alone calls the outcomes.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from world_gymnast_ros.data.recordings import play_file
from world_gymnast_ros.evaluation.replay import replay_figures
from world_gymnast_ros.models import load as build
from world_gymnast_ros.tabletop.calibration import fit_lift, hands_off_m, with_settings
from world_gymnast_ros.tabletop.geometric_judge import MeasuringJudge
from world_gymnast_ros.tabletop.locator import Locator
from world_gymnast_ros.twin.tasks import parse_instruction


def main() -> None:
    """Print one row per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--pictures", action="store_true", help="dream the evaluations, without and with what is known")
    args = parser.parse_args()
    probe = build.load_judge("")
    print("| run | learned from | gives way, mm | episodes | hand off, mm: before, after |"
          + (" structural error | false successes | missed |" if args.pictures else ""))
    print("|---|---|---|---|---|" + ("---|---|---|" if args.pictures else ""))
    for run in args.runs:
        learned = [e for part in ("training", "calibration") for f in sorted((run / "loop" / part).glob("*.npz"))
                   for e in play_file(f)]
        held = [e for f in sorted(run.glob("loop/round-*/evaluation.npz")) for e in play_file(f)]
        if not learned or not held:
            raise SystemExit(f"{run} holds no episodes of a loop; name a folder that `world-gymnast iterate` wrote")
        before = MeasuringJudge(Locator.from_pretrained(build.checkpoint_dir("", "locator")))
        after = with_settings(before)
        fit_lift(after, learned)
        lift_m = after.reader.lift_m(parse_instruction(held[0].instruction).target)
        off_mm = 1000 * hands_off_m(before, held, (float("nan"), lift_m)).mean(0)
        cells = [str(run), str(len(learned)), "always" if np.isnan(lift_m) else f"{1000 * lift_m:.0f} higher",
                 str(len(held)), f"{off_mm[0]:.1f}, {off_mm[1]:.1f}"]
        if args.pictures:
            told = [replay_figures(build.load_world_model("", "").with_reader(j.reader), j, probe, held, 0).summary()
                    for j in (before, after)]
            cells += [", ".join(f"{t[k]:.3f}" for t in told) for k in ("structural", "false_success", "missed")]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
