"""Close the loop on the twin: real episodes improve the dream, the dream improves the policy, both are measured.

A round: real episodes, two thirds explored with the present adapter; what the measured joints tell is learned (where
the camera stands, what stops the arm); world model and judges learn from outcomes and are promoted only if their
release checks say so; the real successes are cloned; adaptation in the dream, held to them; the last third tries on the
arm, without chance, what the dream promoted, or else the clone; true evaluation. A stopped run goes on with the same
command.

examples:
  world-gymnast iterate --scene lab_bottle --rounds 3 --episodes 24              the loop, in runs/iterate/lab_bottle
  world-gymnast iterate --scene lab_camera --methods loop unchanged imitation    beside two baselines, same budget
  world-gymnast iterate --scene my_lab.yaml --out runs/mine --replay data/replay --old data/old_scenes

exit status: 0 all rounds are done, 2 refused
"""
from __future__ import annotations

import argparse
from pathlib import Path

from world_gymnast_ros.cli.checks import adapt_settings, real, whole, writable_folder

HELP = "rounds of real episodes, world-model update, adaptation and evaluation on the twin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scene", required=True, help="shipped name or YAML file")
    parser.add_argument("--instruction", default="", help="default: the scene's first")
    whole(parser, "--rounds", 1, 90, default=3, help="default: %(default)s")
    whole(parser, "--episodes", 12, 1000, default=24, help="real episodes a round; fewer than 24 may hold out too few "
          "to promote a judge or a world model in the first (default: %(default)s)")
    whole(parser, "--evaluation", 2, 10000, default=40, help="true episodes after a round (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=("loop", "unchanged", "imitation"), default=["loop"],
                        help="loop; unchanged: adaptation alone, world model and judge as they are; imitation: cloning "
                             "the successes (Iter-SFT) (default: loop)")
    real(parser, "--temperature", 0.05, 10.0, default=1.2, help="of exploration (default: %(default)s)")
    whole(parser, "--captures", 1, 100, default=16, help="frames an adaptation starts from (default: %(default)s)")
    whole(parser, "--update-steps", 2, 10**6, default=40, help="of the world model, a round (default: %(default)s)")
    whole(parser, "--judge-steps", 1, 10**6, default=40, help="of the judge, a round (default: %(default)s)")
    whole(parser, "--imitation-steps", 1, 10**6, default=60, help="of a clone, a round (default: %(default)s)")
    parser.add_argument("--replay", default="", help="folder of earlier play data (default: fresh play is made)")
    parser.add_argument("--old", default="", help="folder of play data of old scenes, to check that nothing got worse "
                                                  "there (default: fresh play is made)")
    whole(parser, "--seed", 0, 1000, default=0)
    whole(parser, "--threads", 1, 256, default=2, help="torch threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/iterate/SCENE)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE",
                        help="settings of adapt.yaml; here min_release_auc is 0 unless set: the scene is one where the "
                             "world model is not yet known to be right, and the table says how far it was wrong")


def run(args: argparse.Namespace) -> int:
    """Run all rounds of all methods, then write table and report."""
    import torch

    from world_gymnast_ros.report.loop_report import write_run_report
    from world_gymnast_ros.updates.behaviour_cloning import Imitation
    from world_gymnast_ros.updates.judges import JudgeUpdate
    from world_gymnast_ros.updates.loop import IterateConfig, Run
    from world_gymnast_ros.updates.world_model import UpdateConfig

    torch.set_num_threads(args.threads)
    out = args.out or Path("runs/iterate") / Path(args.scene).stem
    # No limit of wall time: a budget in seconds would make a resumed run differ from one that was not stopped.
    adapt = adapt_settings(None, ["min_release_auc=0", "max_updates=8", "copies=20", "select_dreams=6",
                                  "budget_s=86400.0", *args.set], {})
    config = IterateConfig(
        args.scene, args.instruction, args.rounds, args.episodes, args.evaluation, args.temperature, args.captures,
        replay=args.replay, old=args.old, seed=args.seed, update=UpdateConfig(steps=args.update_steps),
        judge=JudgeUpdate(steps=args.judge_steps), imitation=Imitation(steps=args.imitation_steps))
    writable_folder(out)
    loop = Run(config, adapt, out, lambda line: print(line, flush=True))
    try:
        results = {method: loop.method(method) for method in dict.fromkeys(args.methods)}
    finally:
        loop.close()
    table = write_run_report(out, loop.scene.name, loop.instruction, results)
    print(table)
    print(f"report: {out / 'report.html'}")
    return 0
