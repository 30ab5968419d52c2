"""Look after recorded episodes: list, check, repair, review, mark, judge, export, or draw one as a film strip.

examples:
  world-gymnast episodes list runs/episodes
  world-gymnast episodes check runs/episodes                  every episode there; exit status 1 if one has a fault
  world-gymnast episodes repair runs/episodes/CUT.partial   after a crash or a full disk
  world-gymnast episodes mark runs/episodes/ID success --by alice
  world-gymnast episodes keys --by alice                      while the graph records: s success, f failure, ...
  world-gymnast episodes review runs/episodes --by alice      a page to play and mark them, on this machine alone
  world-gymnast episodes review runs/episodes --lan           the same for a phone in this network, with a token
  world-gymnast episodes judge runs/episodes                  have the judge's opinion stored beside the outcome
  world-gymnast episodes export runs/episodes dataset --format lerobot
  world-gymnast episodes show runs/episodes/ID strip.png
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from world_gymnast_ros import episodes as recorded
from world_gymnast_ros.cli import options, ros_child
from world_gymnast_ros.cli.checks import whole
from world_gymnast_ros.episodes.export.bridge_npz import export_bridge
from world_gymnast_ros.episodes.export.irasim import export_irasim
from world_gymnast_ros.episodes.export.lerobot_v3 import export_lerobot
from world_gymnast_ros.episodes.export.worldgym import export_worldgym
from world_gymnast_ros.episodes.files import MCAP_NAME, PARTIAL_SUFFIX, episode_error
from world_gymnast_ros.episodes.reader import Episode
from world_gymnast_ros.episodes.review import LOOPBACK, Review, ReviewServer, network_address
from world_gymnast_ros.episodes.strip import film_strip
from world_gymnast_ros.errors import EpisodeError, WorldGymnastError
from world_gymnast_ros.progress import shown

HELP = "recorded episodes: list, check, repair, review, mark, judge, export, show"
EXPORTS: dict[str, Callable[[Iterator[Episode], Path], object]] = {
    "lerobot": export_lerobot, "worldgym": export_worldgym, "bridge": export_bridge, "irasim": export_irasim,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs of `world-gymnast episodes`."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (("list", "one line per episode"), ("check", "read everything and name what is wrong"),
                       ("repair", "rebuild what a crash left")):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("path", type=Path, help="an episode, or a folder of episodes")
        if name != "repair":
            options.json_result(verb)
    mark = verbs.add_parser("mark", help="say what came of an episode")
    mark.add_argument("path", type=Path, help="an episode")
    mark.add_argument("outcome", choices=recorded.OUTCOMES)
    mark.add_argument("--by", required=True, help="who says so")
    mark.add_argument("--score", type=float, help="partial success, 0 to 1")
    keys = verbs.add_parser("keys", help="mark by single keys, beside a running graph")
    keys.add_argument("--by", required=True, help="who says so")
    review = verbs.add_parser("review", help="play and mark episodes in a browser")
    review.add_argument("path", type=Path, help="an episode, or a folder of episodes")
    review.add_argument("--by", default="", help="who marks; asked on the page otherwise")
    whole(review, "--port", 0, 65535, default=0, help="of the page (default: any free one)")
    review.add_argument("--lan", nargs="?", const="", metavar="ADDRESS", help="open the page to the network, for a "
                        "phone or tablet: whoever has the printed address, with its token, sees the images and can "
                        "mark; nothing is encrypted (ADDRESS: of this machine, where it has several; default without "
                        "--lan: this machine alone)")
    judge = verbs.add_parser("judge", help="store the judge's opinion beside the outcome, never instead of it")
    judge.add_argument("path", type=Path, help="an episode, or a folder of episodes")
    options.judge(judge)
    export = verbs.add_parser("export", help="write another project's format")
    export.add_argument("path", type=Path, help="an episode, or a folder of episodes")
    export.add_argument("out", type=Path, help="folder to write")
    export.add_argument("--format", choices=sorted(EXPORTS), required=True)
    export.add_argument("--outcome", choices=recorded.OUTCOMES, help="only episodes marked so")
    show = verbs.add_parser("show", help="draw a film strip")
    show.add_argument("path", type=Path, help="an episode")
    show.add_argument("out", type=Path, help="PNG file to write")
    show.add_argument("--frames", type=int, default=8)
    for verb in (review, judge, export, show):
        verb.add_argument("--camera", default="", metavar="TOPIC",
                          help="topic of the images, where several cameras were recorded")


def run(args: argparse.Namespace) -> int:
    """Run one verb; return 1 when `check` found a fault, or something could not be repaired, judged or exported."""
    actions = {"list": _list, "check": _check, "repair": _repair, "mark": _mark, "keys": _keys,
               "review": _review, "judge": _judge,
               "export": _export, "show": _show}
    return actions[args.action](args)


def _folders(path: Path) -> list[Path]:
    if (path / MCAP_NAME).is_file():
        return [path]
    return [info.path for info in recorded.list_episodes(path)]


def _list(args: argparse.Namespace) -> int:
    infos = [recorded.describe(folder) for folder in _folders(args.path)]
    args.result = [asdict(info) for info in infos]
    for info in infos:
        score = "" if info.outcome.partial_score is None else f" {info.outcome.partial_score:.2f}"
        by = f" ({info.outcome.marked_by})" if info.outcome.marked_by else ""
        state = "not finished" if info.partial else info.ended_by
        print(f"{info.path.name}  {info.steps:4d} steps  {info.duration_s:6.1f} s  {state:12s}  "
              f"{info.outcome.outcome}{score}{by}  {info.instruction}")
    print(f"{len(infos)} episodes in {args.path}", file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> int:
    args.result = {}
    for folder in _folders(args.path):
        args.result[folder.name] = problems = recorded.check(folder)
        print(f"{folder.name}: {'; '.join(problems) if problems else 'good'}")
    return 1 if any(args.result.values()) else 0


def _repair(args: argparse.Namespace) -> int:
    alone = (args.path / MCAP_NAME).is_file()
    # Of a whole folder only what needs it; a named episode in any case.
    folders = [args.path] if alone else [f for f in _folders(args.path) if f.name.endswith(PARTIAL_SUFFIX)]
    failed = 0
    for folder in folders:
        try:
            final, saved = recorded.repair(folder, time.time_ns())
        except EpisodeError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        lost = f", lost {saved.lost_chunks} corrupt chunks" if saved.lost_chunks else ""
        print(f"{final}: saved {saved.messages} messages, {saved.steps} steps{lost}")
    if not folders:
        print(f"nothing to repair in {args.path}")
    return 1 if failed else 0


def _mark(args: argparse.Namespace) -> int:
    if not (args.path / MCAP_NAME).is_file():
        raise EpisodeError(f"{args.path} is not an episode; name a folder that holds {MCAP_NAME}")
    marked = recorded.mark_outcome(args.path, args.outcome, args.by, args.score, time.time_ns())
    print(f"{args.path.name}: {marked.outcome}, says {marked.marked_by}")
    return 0


def _keys(args: argparse.Namespace) -> int:
    command = ros_child.command("mark_keys", "--by", args.by)
    os.execv(command[0], command)


def _review(args: argparse.Namespace) -> int:
    address = LOOPBACK if args.lan is None else args.lan or network_address()
    with ReviewServer(Review(args.path, time.time_ns, args.camera), args.port, args.by, address) as server:
        if server.token:
            print("the page is OPEN TO THE NETWORK: whoever has this address sees the images and can mark; nothing "
                  "is encrypted", file=sys.stderr)
        place = "on a device in this network" if server.token else "in a browser on this machine"
        print(f"open {server.url} {place}; Ctrl-C ends", flush=True)
        server.serve_forever()
    return 0


def _judge(args: argparse.Namespace) -> int:
    folders = [folder for folder in _folders(args.path) if not folder.name.endswith(PARTIAL_SUFFIX)]
    from world_gymnast_ros.loading.load import JUDGE, load
    from world_gymnast_ros.types import Counts
    from world_gymnast_ros.updates.calibration import LogitJudge

    judge = load(JUDGE, args.judge)
    size = judge.frame_size if isinstance(judge, LogitJudge) else None
    failed = 0
    for folder in folders:
        try:
            episode = recorded.read_episode(folder, size, args.camera or None)
            opinion = judge.score(episode.frames[None], episode.instruction)[0]
        except (WorldGymnastError, OSError) as error:  # an episode without steps, words that the judge cannot read
            failed += 1
            print(f"{folder.name}: not judged: {error}", file=sys.stderr)
            continue
        recorded.add_judgement(folder, judge.name, opinion, time.time_ns())
        said = f"no verdict ({opinion.detail})" if opinion.score is None else f"{opinion.score:.2f}"
        print(f"{folder.name}: {judge.name} says {said}; marked {episode.outcome.outcome}")
    if isinstance(judge, Counts) and judge.spent:
        print(judge.spent)
    return 1 if failed else 0


def _export(args: argparse.Namespace) -> int:
    infos = [info for info in map(recorded.describe, _folders(args.path)) if not info.partial]
    wanted = [info.path for info in infos if info.steps and args.outcome in (None, info.outcome.outcome)]
    if not wanted:
        raise EpisodeError(f"no finished episode with steps{f' marked {args.outcome}' if args.outcome else ''} "
                           f"in {args.path}; see `world-gymnast episodes list {args.path}`")
    left_out: list[str] = []
    EXPORTS[args.format](_readable(wanted, args.camera, left_out), args.out)
    print(f"{len(wanted) - len(left_out)} of {len(wanted)} episodes to {args.out} ({args.format})")
    if left_out:
        print(f"left out {len(left_out)}: {', '.join(left_out)}; see `world-gymnast episodes check {args.path}`",
              file=sys.stderr)
    return 1 if left_out else 0


def _readable(folders: list[Path], camera: str, left_out: list[str]) -> Iterator[Episode]:
    """Yield the episodes that can be read; name each other one at once, and add it to `left_out`."""
    for folder in shown(folders, "exporting", "episode"):
        try:
            episode = recorded.read_episode(folder, image_topic=camera or None)
        except (WorldGymnastError, OSError) as error:
            left_out.append(folder.name)
            print(f"{folder.name}: left out: {error}", file=sys.stderr)
            continue
        yield episode


def _show(args: argparse.Namespace) -> int:
    if args.frames < 1:
        raise EpisodeError(f"--frames is {args.frames}; at least 1 is needed")
    strip = film_strip(recorded.read_episode(args.path, image_topic=args.camera or None), args.frames)
    try:
        Image.fromarray(strip).save(args.out, "PNG")
    except OSError as error:
        raise episode_error("write", args.out, error) from error
    print(args.out)
    return 0
