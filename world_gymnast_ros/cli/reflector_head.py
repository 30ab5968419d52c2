"""Train a judge's head on a frozen image-text model, from marked recordings.

Every frame is read once by the frozen model; only a light head is trained, in seconds. Episodes are held out to
calibrate the probability and to measure; the figures are printed and lie beside the judge.

examples:
  world-gymnast train reflector-head --trunk Qwen/Qwen3-VL-4B-Instruct --episodes runs/episodes --out judges/mine
  world-gymnast train reflector-head --trunk models/smolvlm --episodes data/held_out runs/episodes --out judges/mine

Then: world-gymnast judge calibrate, bench replay --write, adapt --judge judges/mine
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from world_gymnast_ros.cli import options
from world_gymnast_ros.cli.checks import present, real, whole, writable_folder


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    out = argparse.ArgumentParser(prog="world-gymnast train reflector-head", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--trunk", required=True, metavar="NAME", help="image-text model: a folder, or a hub name")
    present(out, "--episodes", options.EPISODES, nargs="+", required=True, help="folders of marked recordings")
    out.add_argument("--out", type=Path, required=True, help="folder for the judge")
    out.add_argument("--name", default="", help="what reports call it (default: of the trunk)")
    whole(out, "--steps", 1, 100_000, default=300, help="of the head's training (default: %(default)s)")
    whole(out, "--heads", 1, 32, default=3, help="small networks that vote (default: %(default)s)")
    real(out, "--held-out-share", 0.05, 0.9, default=0.25, help="of the episodes (default: %(default)s)")
    real(out, "--max-false-success", 0.001, 0.5, default=0.05,
         help="share of held-out failures that may be called successes (default: %(default)s)")
    whole(out, "--seed", 0, default=0, help="of split and training")
    whole(out, "--threads", 1, 256, default=2, help="torch threads (default: %(default)s)")
    options.device(out)
    options.dtype(out)
    return out


def run(words: list[str]) -> int:
    """Train, print the figures, and write the judge."""
    args = parser().parse_args(words)
    import torch

    from world_gymnast_ros.data.read import read_episodes
    from world_gymnast_ros.loading.load import resolve_device, resolve_dtype
    from world_gymnast_ros.models.judges.frozen_trunk import FrozenTrunk
    from world_gymnast_ros.models.judges.reflector import ReflectorConfig
    from world_gymnast_ros.training.model_card import write_card
    from world_gymnast_ros.training.reflector_head import HeadTraining, train_head

    torch.set_num_threads(args.threads)
    writable_folder(args.out)
    found = read_episodes(args.episodes, ReflectorConfig.frame_px, args.out / "decoded", min_steps=2)
    for why in found.left_out:
        print(f"left out {why}")
    frozen = FrozenTrunk.from_pretrained(args.trunk, resolve_device(args.device), resolve_dtype(args.dtype))
    settings = HeadTraining(steps=args.steps, heads=args.heads, held_out_share=args.held_out_share,
                            max_false_success=args.max_false_success, seed=args.seed)
    judge, figures = train_head(frozen, found.marked, settings, args.name)
    judge.save(args.out)
    write_card(args.out, f"Reflector on {Path(args.trunk).name}", figures, vars(settings))
    print(json.dumps(figures, indent=1))
    print(f"judge: {args.out}; measure it with the world model before a session: world-gymnast bench replay --write")
    return 0
