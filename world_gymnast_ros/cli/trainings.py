"""Options of the trainings of `world-gymnast train` that have parsers of their own: read before torch is imported.

What a training decides by itself has no default here; its settings own it.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from world_gymnast_ros.cli import options
from world_gymnast_ros.cli.checks import present, whole

PLAY = "make play data with `world-gymnast twin play`"
TEXTS = {"policy": "the VLA: trunk, then behaviour cloning",
         "regression": "a policy of continuous actions, fine-tuned on a few demonstrations", "reflector": "the judge",
         "reflector-head": "a judge on a frozen image-text model, from marked recordings",
         "locator": "the geometric judge: where objects and the arm are in the image",
         "world-model": "the world model, on play data or recorded clips",
         "moving-background": "the world model's contact: what the hand pushes, carries and drops",
         "imagined": "recorded episodes imagined again, with their true labels: data for the judge"}


def _parser(what: str, out: str, threads: int = 1) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"world-gymnast train {what}", description=TEXTS[what])
    parser.add_argument("--out", type=Path, required=True, help=out)
    options.threads(parser, threads)
    return parser


def _settings(parser: argparse.ArgumentParser, whole_ones: Sequence[str], reals: Sequence[str]) -> None:
    for kind, names in ((int, whole_ones), (float, reals)):
        for name in names:
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X",
                                default=argparse.SUPPRESS)


def policy() -> argparse.ArgumentParser:
    """Return the options of `train policy`."""
    parser = _parser("policy", "checkpoint folder to write")
    present(parser, "--play", PLAY, required=True, help="folder of play data (*.npz)")
    present(parser, "--start", "name a checkpoint folder, or leave it out", help="checkpoint folder to go on from")
    parser.add_argument("--scenes", nargs="+", help="scenes to learn from, or 'all' (default: those for training)")
    _settings(parser, ("trunk_steps", "bc_steps", "trunk_batch", "bc_batch", "seed"),
              ("muon_lr", "adamw_lr", "bc_lr_scale", "sigma_bins", "aux_weight"))
    return parser


def reflector() -> argparse.ArgumentParser:
    """Return the options of `train reflector`."""
    parser = _parser("reflector", "checkpoint folder to write")
    present(parser, "--play", PLAY, required=True, help="folder of play data (*.npz), true frames")
    present(parser, "--start", "name the folder of a policy or of a judge", required=True,
            help="trunk (policy checkpoint) or judge to go on from")
    present(parser, "--imagined", "make some with `world-gymnast train imagined`",
            help="imagined episodes, play format, labelled with true outcomes")
    present(parser, "--test", PLAY, help="play data to report on only")
    parser.add_argument("--families", nargs="+", help="families to learn (default: all in the data)")
    _settings(parser, ("steps", "windows", "seed"), ("imagined_share", "muon_lr", "adamw_lr", "aux_weight",
                                                     "progress_weight"))
    return parser


def locator() -> argparse.ArgumentParser:
    """Return the options of `train locator`."""
    parser = _parser("locator", "checkpoint folder to write")
    present(parser, "--frames", "make some with `world-gymnast twin frames`", required=True,
            help="folder of single frames (*.npz); the last is held out")
    present(parser, "--play", PLAY, required=True, help="folder of play data: how the hand follows")
    whole(parser, "--steps", 1, default=3500, help="default: %(default)s")
    whole(parser, "--batch", 1, 65536, default=32, help="default: %(default)s")
    options.seed(parser)
    return parser


def imagined() -> argparse.ArgumentParser:
    """Return the options of `train imagined`."""
    parser = _parser("imagined", "folder to write, same file names", 2)
    present(parser, "--play", PLAY, required=True, help="folder of play data (*.npz)")
    options.world_model(parser)
    options.judges(parser)
    whole(parser, "--episodes", 1, default=100, help="at most so many per file (default: %(default)s)")
    options.seed(parser)
    return parser


def moving_background() -> argparse.ArgumentParser:
    """Return the options of `train moving-background`."""
    parser = _parser("moving-background", "folder to write; it belongs in the world model's, as moving_background/")
    present(parser, "--episodes", f"{PLAY}, kind contact_play", nargs="+", required=True, metavar="DIR",
            help="folders of contact_play, or of recordings with target states")
    present(parser, "--held-out", PLAY, nargs="+", default=[], metavar="DIR", help="likewise, to report on only")
    options.world_model(parser)
    whole(parser, "--steps", 1, default=1500, help="default: %(default)s; a stopped run goes on")
    options.seed(parser)
    return parser
