"""Is an adapter truly better than the base policy? Pairs of true trials until the answer is clear.

Base and adapter take turns in an order drawn by lot, and the comparison stops as soon as the bounds on the difference
exclude zero (a confidence sequence: looking after every pair does not raise the error rate). On a robot you set the
scene, watch, and say what came of it; you are not told which policy runs.

examples:
  world-gymnast evaluate runs/demo-1/adapters/NAME --scene novel_evening     on the simulated twin, by its physics
  world-gymnast evaluate adapters/NAME "reach the red block" --robot --pairs 20    beside a graph, marked by you
  world-gymnast evaluate adapters/NAME --scene a.yaml --pairs 100            for smaller differences

exit status: 0 better, 1 not shown to be better, 2 refused
"""
from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path

from world_gymnast_ros import seeds
from world_gymnast_ros.cli import options, ros_child
from world_gymnast_ros.cli.checks import present, real, whole, writable_folder
from world_gymnast_ros.errors import BadConfig

ON_TWIN = 50
"""Pairs on the twin, where none is said."""
HELP = "true trials of base and adapter in random order, until the answer is clear"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; `nodes/evaluator.py` reads the same words."""
    present(parser, "adapter", "name what `adapt` stored, such as runs/adapt/adapters/NAME",
            help="adapter folder, as `adapt` wrote it")
    parser.add_argument("instruction", nargs="?", default="", help="the task in words (default: the scene's first)")
    where = parser.add_mutually_exclusive_group(required=True)
    options.scene(where, help="on the twin: shipped scene or YAML file")
    where.add_argument("--robot", action="store_true", help="beside a running graph (bringup.launch.py)")
    whole(parser, "--pairs", 1, seeds.MAX_PAIRS, help="how many pairs of trials you can afford: it ends earlier "
          f"where the answer is clear, and says first what so many can show (default: {ON_TWIN} with --scene)")
    options.renamed(parser, "--limit-pairs", "--pairs")
    real(parser, "--confidence", 0.5, 0.999, default=0.95, help="of the decision (default: %(default)s)")
    real(parser, "--trial-s", 1.0, 600.0, default=20.0, help="with --robot: longest trial (default: %(default)s s)")
    real(parser, "--wait-s", 1.0, 3600.0, default=300.0, help="with --robot: longest wait for nodes to come up, "
         "and for the policy to load what it is offered (default: %(default)s s)")
    options.seed(parser, "the order and of the twin's scenes", seeds.MAX_SEED)
    options.policy(parser)
    options.json_result(parser)
    parser.add_argument("--out", type=Path, help="result folder; one that was stopped goes on "
                        "(default: runs/evaluate-<time>)")


def folder_of(args: argparse.Namespace) -> Path:
    """Return the result folder, made sure to be writable."""
    return writable_folder(args.out or Path("runs") / f"evaluate-{datetime.now():%Y%m%d-%H%M%S}")


def run(args: argparse.Namespace) -> int:
    """Run the evaluation on the twin, or beside a graph."""
    if args.robot:
        if args.pairs is None:
            raise BadConfig(f"say how many pairs of trials you can afford with --pairs: {offers(args.confidence)}")
        ros_child.become("evaluator", args, ("adapter", "scene", "policy"), str(args.adapter))
    return _on_twin(args)


def offers(confidence: float) -> str:
    """Return what some numbers of pairs show, in points of success rate."""
    from world_gymnast_ros.evaluation.power import OFTEN, difference_shown

    shown = {pairs: difference_shown(OFTEN, pairs, confidence) for pairs in (10, 20, 50)}
    return ", ".join(f"{pairs} show a difference of {100 * d:.0f} points in 4 of 5 evaluations" if d == d else
                     f"{pairs} show none at confidence {confidence:g}" for pairs, d in shown.items())


def _on_twin(args: argparse.Namespace) -> int:
    from world_gymnast_ros.store import load_adapter
    from world_gymnast_ros.twin.scene import load_scene
    from world_gymnast_ros.twin.tasks import parse_instruction

    scene = load_scene(args.scene)
    instruction = args.instruction or scene.instructions[0]
    parse_instruction(instruction)
    adapter = load_adapter(args.adapter)
    # Not before the arguments are known to be right: loading torch takes seconds.
    from tqdm import tqdm

    from world_gymnast_ros.evaluation.environment import Environment
    from world_gymnast_ros.evaluation.paired_trials import Trial, TrialLog, compare
    from world_gymnast_ros.evaluation.power import what_pairs_show
    from world_gymnast_ros.evaluation.sequential_test import PairedTest
    from world_gymnast_ros.loading.load import load_policy
    from world_gymnast_ros.twin.environment import TwinEnvironment

    policy = load_policy(args.policy)
    policy.load_adapter(adapter)  # an adapter of another base is refused here
    folder = folder_of(args)
    log = TrialLog(folder, {"adapter": adapter.sha256, "instruction": instruction, "where": scene.name,
                            "seed": args.seed})
    environment: Environment = TwinEnvironment(scene)
    pairs = args.pairs or ON_TWIN
    print(what_pairs_show(pairs, args.confidence), flush=True)
    try:
        with tqdm(total=pairs, unit="pair") as bar:
            def outcome(trial: Trial) -> bool | None:
                environment.reset(trial.seed, instruction)
                environment.run(policy, adapter if trial.policy == "adapter" else None, instruction, 0.0, trial.seed)
                return environment.outcome()

            def after_pair(test: PairedTest, dropped: int) -> None:
                bar.update()
                bar.set_postfix_str(f"adapter - base {test.difference}")
            verdict = compare(outcome, log, PairedTest(pairs, args.confidence), args.seed,
                              seeds.validation(args.seed).start, after_pair)
    finally:
        policy.load_adapter(None)
        environment.close()
    return tell(verdict.as_json(), folder, args)


def tell(verdict: dict[str, object], folder: Path, args: argparse.Namespace) -> int:
    """Print and store the verdict; return the exit status."""
    from world_gymnast_ros.evaluation.paired_trials import RESULT_NAME

    (folder / RESULT_NAME).write_text(json.dumps(verdict, indent=1) + "\n", encoding="utf-8")
    print(f"{verdict['words']}\nstored in {folder / RESULT_NAME}")
    args.result = {**verdict, "folder": folder}
    return 0 if verdict["decision"] == "better" else 1
