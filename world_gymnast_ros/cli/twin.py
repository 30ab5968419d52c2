"""Work with the simulated twin: look at scenes, make play data, measure a policy in one process.

examples:
  world-gymnast twin scenes                                   list the scenes that ship
  world-gymnast twin show novel_evening --out evening.png     the image its camera sees
  world-gymnast twin show my_scene.yaml --out mine.png        your own scene
  world-gymnast twin play wide_play --family reach --count 100 --seed 7 --out data/wide_play/reach-007.npz
  world-gymnast twin frames --count 1000 --seed 30000 --out data/frames/000.npz
  world-gymnast twin measure novel_evening --episodes 20      true success of the shipped policy, no ROS
"""
from __future__ import annotations

import argparse
from pathlib import Path

from world_gymnast_ros import seeds
from world_gymnast_ros.cli import options
from world_gymnast_ros.cli.checks import real, whole, writable_folder
from world_gymnast_ros.errors import BadConfig

HELP = "scenes, play data and quick measurements on the simulated twin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    sub.add_parser("scenes", help="list shipped scenes with their instructions")
    show = sub.add_parser("show", help="write the image a scene's camera sees")
    show.add_argument("scene", help="shipped name or YAML file")
    show.add_argument("--out", type=Path, required=True, help="PNG file")
    whole(show, "--seed", 0, default=0)
    play = sub.add_parser("play", help="make play data: true episodes of varied behaviour, with truth")
    play.add_argument("kind", choices=("demo", "train_play", "wide_play", "near_play", "contact_play"),
                      help="demo: demonstrations in the training scenes; train_play, wide_play: varied behaviour "
                           "there, or in scenes of varied looks; near_play: these, with near misses for the most part, "
                           "to calibrate judges; contact_play: varied scenes with objects of varied size, weight and "
                           "friction, and each without the arm, for `train moving-background`")
    play.add_argument("--family", choices=("reach", "push", "pick_place"), required=True)
    whole(play, "--count", 1, seeds.EPISODES_PER_FILE, default=100, help="episodes (default: %(default)s)")
    whole(play, "--seed", 1, seeds.MAX_PLAY_SEED, required=True, help="held-out files need seeds of their own")
    play.add_argument("--out", type=Path, required=True, help=".npz file")
    frames = sub.add_parser("frames", help="make single images of varied scenes with what is where, for the locator")
    whole(frames, "--count", 1, 100000, default=1000, help="images (default: %(default)s)")
    whole(frames, "--seed", 0, required=True, help="held-out files need seeds of their own")
    frames.add_argument("--out", type=Path, required=True, help=".npz file")
    measure = sub.add_parser("measure", help="true success of a policy (and adapter) in a scene")
    measure.add_argument("scene")
    options.policy(measure)
    measure.add_argument("--adapter", type=Path, help="adapter folder from the store")
    measure.add_argument("--instruction", default="", help="default: the scene's first")
    whole(measure, "--episodes", 1, 100000, default=20)
    whole(measure, "--seed", 0, default=seeds.EVALUATION.start, help="first episode seed")
    real(measure, "--temperature", 0.0, 10.0, default=0.0, help="0: greedy")


def run(args: argparse.Namespace) -> int:
    if args.what == "scenes":
        return _scenes()
    if args.what == "show":
        return _show(args)
    return _measure(args) if args.what == "measure" else _make(args)


def _scenes() -> int:
    from world_gymnast_ros.twin.scene import known_scenes, load_scene

    for name in known_scenes():
        scene = load_scene(name)
        print(f"{name} ({scene.split}): {'; '.join(scene.instructions)}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from PIL import Image

    from world_gymnast_ros.twin.scene import load_scene
    from world_gymnast_ros.twin.sim import Twin

    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg") or args.out.is_dir():
        raise BadConfig(f"--out {args.out} must be a file that ends in .png or .jpg")
    scene = load_scene(args.scene)
    writable_folder(args.out.parent)
    twin = Twin(scene, args.seed)
    try:
        twin.reset(args.seed, scene.instructions[0])
        image = Image.fromarray(twin.render())
    finally:
        twin.close()
    partial = args.out.with_name(f".{args.out.name}")
    try:
        image.save(partial, "PNG" if args.out.suffix.lower() == ".png" else "JPEG")
        partial.replace(args.out)
    except OSError as error:
        raise BadConfig(f"--out {args.out} could not be written ({error.strerror or error}); free space there, or name "
                        "another folder") from error
    finally:
        partial.unlink(missing_ok=True)
    print(f"wrote {args.out}")
    return 0


def _make(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from world_gymnast_ros.twin.play import make_file
    from world_gymnast_ros.twin.single_frames import make_single_frames

    if args.out.suffix != ".npz":
        raise BadConfig(f"--out {args.out} must be a file that ends in .npz")
    writable_folder(args.out.parent)
    try:
        with tqdm(total=args.count, unit="episode" if args.what == "play" else "image") as bar:
            if args.what == "frames":
                make_single_frames(args.out, args.count, args.seed, bar.update)
                rates = {}
            else:
                rates = make_file(args.out, args.family, args.kind, args.count, args.seed, bar.update)
    except OSError as error:
        raise BadConfig(f"--out {args.out} could not be written ({error.strerror or error}); free space there, or name "
                        "another folder") from error
    told = ", ".join(f"{k} {v:.2f}" for k, v in sorted(rates.items()))
    print(f"wrote {args.out}" + (f"; success by behaviour: {told}" if told else ""))
    return 0


def _measure(args: argparse.Namespace) -> int:
    import torch

    from world_gymnast_ros.evaluation.environment import outcomes
    from world_gymnast_ros.loading.load import load_policy
    from world_gymnast_ros.serving.client import HttpPolicy
    from world_gymnast_ros.statistics import wilson
    from world_gymnast_ros.store import read_card
    from world_gymnast_ros.twin.environment import TwinEnvironment
    from world_gymnast_ros.twin.scene import load_scene

    torch.set_num_threads(1)
    scene = load_scene(args.scene)
    policy = load_policy(args.policy)
    adapter = read_card(args.adapter) if args.adapter else None
    if isinstance(policy, HttpPolicy):
        policy.as_started = True
    instruction = args.instruction or scene.instructions[0]
    environment = TwinEnvironment(scene)
    try:
        wins = outcomes(environment, policy, adapter, range(args.seed, args.seed + args.episodes), instruction,
                        args.temperature)
    finally:
        environment.close()
    print(f"{args.scene}, {instruction!r}: {sum(wins)} of {len(wins)}, {wilson(sum(wins), len(wins))}")
    return 0
