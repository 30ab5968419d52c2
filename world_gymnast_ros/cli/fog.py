"""FoG: train policies inside a world model by first-order gradients through a light surrogate, and compare with PPO.

Push-T of the public package gym-pusht, in this order; each stage goes on where it was stopped. The same stages with
`ego` in place of `pusht`: a block is pushed to a mark, seen by the wrist camera of the twin.

examples:
  world-gymnast fog pusht data --out runs/pusht                     play data, about 2 minutes
  world-gymnast fog pusht world-model --out runs/pusht              diffusion model, encoder, surrogate
  world-gymnast fog pusht diagnose --out runs/pusht                 is the surrogate fit to give derivatives?
  world-gymnast fog pusht tune --method ppo --out runs/pusht        the same number of trials for every method
  world-gymnast fog pusht train --method fog --seed 0 --out runs/pusht
  world-gymnast fog pusht train --method ppo --seed 0 --out runs/pusht
  world-gymnast fog pusht train --method surrogate --seed 0 --out runs/pusht
  world-gymnast fog pusht test --out runs/pusht                     all policies in the true environment
  world-gymnast fog pusht report --out runs/pusht                   curves.png, table.md, report.json
  world-gymnast fog ego data --episodes 300 --out runs/ego          the other task, with the same stages

Push-T needs the optional extra: pip install 'world-gymnast-ros[fog]'
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from world_gymnast_ros.cli import options
from world_gymnast_ros.cli.checks import whole, writable_folder
from world_gymnast_ros.errors import BadConfig

if TYPE_CHECKING:
    from world_gymnast_ros.first_order.stages import Scale
    from world_gymnast_ros.first_order.task import MakeTask

HELP = "train by first-order gradients through a surrogate of the world model"
STAGES = ("data", "world-model", "diagnose", "tune", "train", "test", "report")
METHODS = ("fog", "ppo", "surrogate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", choices=("pusht", "ego"), help="pusht: the public Push-T; ego: a block is "
                        "pushed to a mark, seen by the wrist camera of the twin")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, help="folder of the comparison (default: runs/TASK)")
    parser.add_argument("--method", choices=METHODS, default="fog",
                        help="tune (fog, ppo), train (default: %(default)s)")
    whole(parser, "--seed", 0, 900, default=0, help="of the trained network or policy (default: %(default)s)")
    whole(parser, "--steps", 1, help="train, tune: budget in global-model steps; world-model: of the diffusion model, "
          "which may differ when a stopped run goes on")
    whole(parser, "--episodes", 1, 100_000, help="data: episodes of play; test: episodes per policy")
    parser.add_argument("--set", nargs="*", default=None, metavar="KEY=VALUE", dest="settings",
                        help="train: settings of the method instead of those that tuning chose")
    parser.add_argument("--surrogate", type=Path, help="diagnose: its folder (default: the one trained on play)")
    options.threads(parser, 1)


def run(args: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(args.threads)
    args.out = args.out or Path("runs") / args.task
    writable_folder(args.out)
    stage = {"data": _data, "world-model": _world_model, "diagnose": _diagnose, "tune": _tune, "train": _train,
             "test": _test, "report": _report}[args.stage]
    return stage(args)


def _task(args: argparse.Namespace) -> MakeTask:
    """Return what makes the true environment."""
    if args.task == "ego":
        from world_gymnast_ros.twin.ego import EgoPush

        return EgoPush
    from world_gymnast_ros.first_order.pusht import PushT

    return PushT


def _scale(**changes: int | None) -> Scale:
    from dataclasses import replace

    from world_gymnast_ros.first_order.stages import Scale

    return replace(Scale(), **{key: value for key, value in changes.items() if value is not None})


def _data(args: argparse.Namespace) -> int:
    from world_gymnast_ros.first_order import stages

    play = stages.data(_task(args), args.out, _scale(episodes=args.episodes))
    print(f"{play.images.shape[0]} episodes, {play.steps} steps, images of {play.images.shape[2]} px in "
          f"{args.out / 'play'}")
    return 0


def _world_model(args: argparse.Namespace) -> int:
    from world_gymnast_ros.first_order import stages

    errors = stages.world_model(args.out, _scale(world_model_steps=args.steps), args.seed)
    print(json.dumps(errors, indent=2))
    return 0


def _diagnose(args: argparse.Namespace) -> int:
    from world_gymnast_ros.first_order import stages

    result = stages.diagnose(args.out, args.surrogate or args.out / "surrogate")
    print(json.dumps(result, indent=2))
    fit = result["surrogate_5"] < result["copy_5"] and result["reward_cosine_1"] > 0.0
    print("the surrogate beats copying, and its derivative of the reward points with the global model's" if fit else
          "the surrogate is not fit to give derivatives: train it longer or on more play")
    return 0 if fit else 1


def _tune(args: argparse.Namespace) -> int:
    from world_gymnast_ros.first_order import stages

    result = stages.tune(args.out, args.method, _scale(policy_steps=args.steps))
    for row in result["trials"]:
        print(f"{args.method} {row['settings'] or 'defaults'}: imagined return {row['imagined']:.3f} after "
              f"{row['steps']} steps")
    print(f"chosen: {result['best'] or 'defaults'}")
    return 0


def _train(args: argparse.Namespace) -> int:
    from world_gymnast_ros.first_order import stages
    from world_gymnast_ros.first_order.policy_training import RunConfig

    settings = _settings(args.settings) if args.settings is not None else stages.tuned(args.out, args.method)
    config = RunConfig(args.method, steps=_scale(policy_steps=args.steps).policy_steps, seed=args.seed)
    folder = args.out / "policies" / f"{args.method}-{args.seed}"
    curve = stages.train(_task(args), args.out, config, settings, folder)
    best = max(curve, key=lambda row: row["imagined"])
    print(f"{args.method}, seed {args.seed}, {settings or 'defaults'}: best imagined return {best['imagined']:.3f} "
          f"after {best['steps']} steps; wrote {folder}")
    return 0


def _settings(words: list[str]) -> dict[str, Any]:
    import yaml

    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        number = yaml.safe_load(value) if equals else None
        if isinstance(number, str):  # 1e-3 is a string in YAML 1.1
            try:
                number = float(number)
            except ValueError:
                number = None
        if not isinstance(number, int | float):
            raise BadConfig(f"--set takes KEY=NUMBER, got {word!r}")
        settings[key] = number
    return settings


def _test(args: argparse.Namespace) -> int:
    from world_gymnast_ros.first_order import stages

    for name, row in stages.test(_task(args), args.out, _scale(test_episodes=args.episodes)).items():
        print(f"{name}: true coverage at the end {row['final_coverage']:.3f} (standard error "
              f"{row['final_coverage_se']:.3f}), best {row['best_coverage']:.3f}, {row['successes']} of "
              f"{row['episodes']} successes")
    return 0


def _report(args: argparse.Namespace) -> int:
    from world_gymnast_ros.first_order import comparison

    print(comparison.table(comparison.compare(args.out)))
    print(f"wrote {args.out / 'curves.png'}, {args.out / 'table.md'} and {args.out / 'report.json'}")
    return 0
