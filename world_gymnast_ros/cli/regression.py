"""Fine-tune a small regression policy on a few demonstrations: continuous actions, a Laplace scale to explore with.

The trunk of a small policy gets heads of its own, as OpenVLA-OFT does it; five demonstrations of one task are enough to
begin with. The session of adaptation trains what comes out like any other policy.

examples:
  world-gymnast train regression --episodes runs/episodes --out policies/mine
  world-gymnast train regression --episodes data/demo --heads-only --constant-scale --out policies/mine

Then: world-gymnast adapt --policy policies/mine --set advantage=leave_one_out
"""
from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from world_gymnast_ros.cli import options
from world_gymnast_ros.cli.checks import present, real, whole, writable_folder
from world_gymnast_ros.errors import BadConfig


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    out = argparse.ArgumentParser(prog="world-gymnast train regression", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    present(out, "--episodes", options.EPISODES, nargs="+", required=True, metavar="DIR", help="folders of marked "
            "recordings, of *.npz files, or LeRobot data sets; those that succeeded are imitated")
    options.camera(out)
    out.add_argument("--out", type=Path, required=True, help="folder for the policy")
    out.add_argument("--start", default="", metavar="NAME", help="folder or shipped name of the small policy whose "
                     "trunk it takes, or of a regression policy to go on from (default: the one that ships)")
    out.add_argument("--name", default="regression-tiny", help="what reports call it (default: %(default)s)")
    whole(out, "--steps", 1, 100_000, default=150, help="of training (default: %(default)s)")
    out.add_argument("--heads-only", action="store_true", help="leave the trunk as it is: quicker, and worse")
    out.add_argument("--constant-scale", action="store_true", help="no scale head: --action-scale everywhere")
    real(out, "--action-scale", 0.001, 1.0, default=0.1, help="Laplace scale at first, or for ever, in normalised "
         "units (actions span -1..1; default: %(default)s)")
    options.seed(out)
    options.threads(out)
    options.device(out)
    return out


def run(words: list[str]) -> int:
    """Train, and write the policy with a card."""
    args = parser().parse_args(words)
    import torch

    from world_gymnast_ros.data.read import read_episodes
    from world_gymnast_ros.loading.load import load_policy
    from world_gymnast_ros.models.policies.openvla import OpenVLA
    from world_gymnast_ros.models.policies.regression import RegressionPolicy
    from world_gymnast_ros.training.model_card import write_card
    from world_gymnast_ros.training.progress import ProgressLine
    from world_gymnast_ros.updates.fine_tuning import FineTuning, fine_tune, with_regression_heads

    torch.set_num_threads(args.threads)
    settings = FineTuning(steps=args.steps, heads_only=args.heads_only, learned_scale=not args.constant_scale,
                          action_scale=args.action_scale, seed=args.seed)
    start = load_policy(args.start, args.device)
    if not isinstance(start, OpenVLA | RegressionPolicy):
        raise BadConfig(f"--start {args.start} is a published policy, which has heads of its own; fine-tune it with "
                        "openvla-oft, then name it to `adapt --policy`")
    if isinstance(start, RegressionPolicy) and (args.constant_scale == start.config.learned_scale):
        raise BadConfig(f"--start {args.start} has {'a' if args.constant_scale else 'no'} scale head, and "
                        f"--constant-scale is {'' if args.constant_scale else 'not '}given; they must agree")
    writable_folder(args.out)
    found = read_episodes(args.episodes, start.config.image_size, args.out / "decoded", camera=args.camera)
    for why in found.left_out:
        print(f"left out: {why}")
    policy = with_regression_heads(start, settings, args.name) if isinstance(start, OpenVLA) else start
    line = ProgressLine("imitating", settings.steps)
    losses: list[float] = []

    def progress(step: int, loss: float) -> None:
        losses.append(loss)
        line.tell(step, f"loss {loss:.3f}")
    fine_tune(policy, found.marked, settings, progress)
    digest = policy.save(args.out)
    figures = {"successes imitated": sum(bool(e.success) for e in found.marked), "sha256": digest,
               "last loss (negative log-density, normalised units)": round(sum(losses[-20:]) / len(losses[-20:]), 3)}
    write_card(args.out, "Small regression policy", figures, {**asdict(settings), "start": args.start or "tiny/policy"})
    print(f"policy: {args.out}; next: world-gymnast adapt --policy {args.out} --set advantage=leave_one_out")
    return 0
