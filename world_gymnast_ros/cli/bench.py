"""Measure what is promised: the release gate of a world model, and true success before and after adaptation.

examples:
  world-gymnast bench replay --episodes runs/episodes --task drawer          may this world model be trusted with it?
  world-gymnast bench replay --episodes runs/episodes --task drawer --write  also store it beside the world model
  world-gymnast bench adaptation --seeds 0 1 2             ten novel scenes on the twin: true success before and after
  world-gymnast bench sessions                  several instructions, varied starts, replay, starts along the way
  world-gymnast bench imagined "reach the red block" --frame a.png --state 0.28 0.02 0.1 0 0 0 1
      how often a policy succeeds in imagination; --policy http://HOST:PORT asks any policy's server
  world-gymnast bench five                      five demonstrations, then the dream; who ends episodes; the scale head
  world-gymnast bench fog --policy policies/mine     first-order gradients against the policy gradient, at equal time
  world-gymnast bench adaptation --methods world_model sft simulator twin --out DIR     beside what else one could do
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from world_gymnast_ros import seeds
from world_gymnast_ros.cli import options
from world_gymnast_ros.cli.checks import present, real, whole, writable_folder
from world_gymnast_ros.errors import BadConfig, EpisodeError

RELEASE_TITLE = "## Release gate"
HELP = "release gate of a world model; true success before and after adaptation"
NOVEL_SCENES = ("novel_evening", "novel_blue_cloth", "novel_white_table", "novel_camera_shift", "novel_dark_wood",
                "novel_green_cloth", "novel_knocked", "novel_night", "novel_clutter", "novel_dark_red")
METHODS = ("world_model", "sft", "simulator", "twin")
"""As `benchmark.adaptation.METHODS`, whose import costs seconds."""
FAMILIES, SCALES = ("reach", "push", "pick and place"), ("scale head", "constant scale")
"""As `benchmark.five_demonstrations.CASES` and its scales."""
FOG_SCENES, LEARNERS = ("novel_white_table", "novel_knocked"), ("policy gradient", "first-order gradients")
"""Of `bench fog`; the second as `benchmark.first_order.LEARNERS`."""
PAPER = ("advantage=leave_one_out", "copies=8", "groups_per_update=4", "judge_every_chunks=1")
"""Of `bench five`, as World-Env has it: groups of eight, each against the mean of its others, ended once done."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    replay = sub.add_parser("replay", help="AUC of imagined reward against true success, same first frame and actions")
    present(replay, "--episodes", options.EPISODES, nargs="+", required=True, metavar="DIR",
            help="folders of recordings with marked outcomes, of *.npz files, or LeRobot data sets")
    options.camera(replay)
    replay.add_argument("--task", default="", help="what to call the task of all these episodes (default: as they say, "
                        "else each instruction by itself)")
    options.world_model(replay)
    options.judges(replay)
    replay.add_argument("--instructions", nargs="+", default=[], metavar="SENTENCE", help="what --task covers, * for "
                        "any words, such as 'open the *' (default: the sentences of its episodes)")
    options.device(replay)
    whole(replay, "--most", 1, default=100, help="episodes per task at most (default: %(default)s)")
    whole(replay, "--copies", 1, 64, default=2, help="rollouts per episode, averaged (default: %(default)s)")
    options.seed(replay)
    options.threads(replay)
    replay.add_argument("--images", type=Path, help="write a PNG of real and imagined frames here")
    options.renamed(replay, "--pictures", "--images")
    replay.add_argument("--source", default="", help="what the episodes were taken with, in words, for the table: the "
                        "simulated twin, the lab's webcam ... (default: the name of the folder)")
    options.json_result(replay)
    replay.add_argument("--write", action="store_true", help="store the table as release.json beside the world model")
    _add_imagined(sub)
    _add_sessions(sub)
    _add_five(sub)
    _add_fog(sub)
    adaptation = sub.add_parser("adaptation", help="true success on the twin before and after adapting to a scene")
    adaptation.add_argument("--scenes", nargs="+", default=list(NOVEL_SCENES), help="shipped names or YAML files")
    adaptation.add_argument("--instruction", default="", help="default: each scene's first")
    adaptation.add_argument("--methods", nargs="+", default=["world_model"], choices=METHODS,
                            help="world_model: a session; and what one could do in "
                            "its place: 5 demonstrations more (sft), the same learning in a simulator "
                            "built by hand, or in the true twin (default: world_model)")
    options.renamed(adaptation, "--arms", "--methods")
    whole(adaptation, "--episodes", 2, 1000, default=40, help="true episodes before and after (default: %(default)s)")
    whole(adaptation, "--captures", 1, seeds.MAX_CAPTURES, default=4, help="frames to start from, the scene "
          "set up anew for each (default: %(default)s)")
    real(adaptation, "--budget-s", 1.0, 86400.0, default=180.0, help="per scene (default: %(default)s)")
    whole(adaptation, "--updates", 0, default=0, help="default: as in adapt.yaml")
    adaptation.add_argument("--seeds", nargs="+", type=int, default=[0], help="a session for each (default: 0)")
    options.session(adaptation)
    options.threads(adaptation)
    adaptation.add_argument("--out", type=Path, default=Path("runs/bench-adaptation"))
    adaptation.add_argument("--rows", type=Path, nargs="+", metavar="PATH", help="measure nothing: print the table of "
                            "what was measured into these folders or files (*.jsonl)")


def _add_imagined(sub: Any) -> None:
    imagined = sub.add_parser("imagined", help="how often a policy succeeds in imagination, from images of a scene")
    imagined.add_argument("instruction", help="the task in words")
    imagined.add_argument("--frame", nargs="+", type=Path, required=True, help="images of the scene (PNG, JPEG)")
    imagined.add_argument("--state", nargs=7, type=float, metavar="X", help="Bridge state of the arm in the images: "
                          "x y z in m, roll pitch yaw in rad, gripper 0..1; some judges and world models need it")
    options.policy(imagined)
    imagined.add_argument("--adapter", type=Path, metavar="DIR", help="adapter of the policy (default: none)")
    options.world_model(imagined)
    options.judges(imagined)
    options.device(imagined)
    options.dtype(imagined)
    whole(imagined, "--rollouts", 1, 256, default=8, help="from each image, all at once (default: %(default)s)")
    whole(imagined, "--steps", 1, 2000, default=16, help="actions of a rollout, rounded up to whole chunks (default: "
          "%(default)s)")
    real(imagined, "--temperature", 0.05, 10.0, default=0.05, help="of the policy, where it has one; low, because the "
         "arm acts greedily (default: %(default)s)")
    options.seed(imagined)
    options.threads(imagined)


def _add_sessions(sub: Any) -> None:
    sessions = sub.add_parser("sessions", help="one instruction against four, replay, starts along the way")
    sessions.add_argument("--cases", nargs="+", default=[], metavar="NAME", help="dark table ... (default: all)")
    whole(sessions, "--episodes", 2, 1000, default=40, help="true episodes of each test (default: %(default)s)")
    whole(sessions, "--captures", 1, seeds.MAX_CAPTURES, default=4, help="frames to start from (default: %(default)s)")
    real(sessions, "--budget-s", 1.0, 86400.0, default=600.0, help="per session (default: %(default)s)")
    whole(sessions, "--updates", 1, default=10, help="per session (default: %(default)s)")
    options.seed(sessions, most=seeds.MAX_SEED)
    options.threads(sessions)
    options.session(sessions)
    sessions.add_argument("--out", type=Path, default=Path("runs/bench-sessions"))
    sessions.add_argument("--rows", type=Path, metavar="PATH", help="measure nothing: print the table of what was "
                          "measured into this folder or file (*.jsonl)")


def _add_five(sub: Any) -> None:
    five = sub.add_parser("five", help="five demonstrations, then the dream; who ends episodes; the scale head")
    five.add_argument("--cases", nargs="+", default=list(FAMILIES), choices=FAMILIES, help="families (default: all)")
    five.add_argument("--scales", nargs="+", default=list(SCALES), choices=SCALES, help="with the scale head, or "
                      "without (default: both)")
    whole(five, "--episodes", 2, 1000, default=40, help="true episodes of each policy (default: %(default)s)")
    whole(five, "--captures", 1, seeds.MAX_CAPTURES, default=8, help="placements of the objects that a session begins "
          "at (default: %(default)s)")
    real(five, "--budget-s", 1.0, 86400.0, default=900.0, help="per session (default: %(default)s)")
    whole(five, "--updates", 1, default=10, help="per session (default: %(default)s)")
    whole(five, "--sft-steps", 1, 100_000, default=150, help="of fine-tuning (default: %(default)s)")
    five.add_argument("--ends", default="tiny/reflector", metavar="NAME", help="the judge that ends episodes (default: "
                      "%(default)s)")
    options.seed(five, most=seeds.MAX_SEED)
    options.threads(five)
    options.session(five)
    five.add_argument("--out", type=Path, default=Path("runs/bench-five"))
    five.add_argument("--rows", type=Path, metavar="PATH", help="measure nothing: print the table of what was measured "
                      "into this folder or file (*.jsonl)")


def _add_fog(sub: Any) -> None:
    fog = sub.add_parser("fog", help="a session by first-order gradients against one by the policy gradient")
    fog.add_argument("--scenes", nargs="+", default=list(FOG_SCENES), metavar="NAME", help="(default: %(default)s)")
    fog.add_argument("--learners", nargs="+", default=list(LEARNERS), choices=LEARNERS, help="(default: both)")
    whole(fog, "--episodes", 2, 1000, default=40, help="true episodes of each policy (default: %(default)s)")
    whole(fog, "--captures", 1, seeds.MAX_CAPTURES, default=4, help="frames to start from (default: %(default)s)")
    real(fog, "--budget-s", 1.0, 86400.0, default=180.0, help="processor time per session (default: %(default)s)")
    whole(fog, "--updates", 1, default=12, help="at most, per session (default: %(default)s)")
    options.seed(fog, most=seeds.MAX_SEED)
    options.threads(fog)
    options.session(fog)
    fog.add_argument("--out", type=Path, default=Path("runs/bench-fog"))
    fog.add_argument("--rows", type=Path, metavar="PATH", help="measure nothing: print the table of what was measured "
                     "into this folder or file (*.jsonl)")


def run(args: argparse.Namespace) -> int:
    return {"replay": _replay, "adaptation": _adaptation, "sessions": _sessions, "imagined": _imagined,
            "five": _five, "fog": _fog}[args.what](args)


def _rows_printed(args: argparse.Namespace, read_rows: Callable[[Path], list[Any]], markdown: Callable[[list[Any]], str]
                  ) -> bool:
    """Print the table of --rows where it is given; tell whether it was. Raises EpisodeError where nothing is there."""
    if not args.rows:
        return False
    if not (rows := read_rows(args.rows)):
        raise EpisodeError(f"--rows {args.rows}: nothing was measured there; name what `bench {args.what} --out` wrote")
    print(markdown(rows))
    return True


def _fog(args: argparse.Namespace) -> int:
    from world_gymnast_ros.benchmark import first_order

    if _rows_printed(args, first_order.read_rows, first_order.markdown):
        return 0
    import torch

    from world_gymnast_ros.adaptation.log import Progress
    from world_gymnast_ros.first_order.session_learner import SessionFog
    from world_gymnast_ros.updates.adaptation import load_parts

    torch.set_num_threads(args.threads)
    config = options.session_settings(args, on_twin=True, budget_s=args.budget_s, max_updates=args.updates,
                                      directory=str(args.out))
    writable_folder(args.out)

    def progress(label: str, p: Progress | None) -> None:
        print(label if p is None else f"{label}: {p.stage} {p.update}, reward {p.mean_reward:.2f}, imagined "
              f"{p.imagined_success:.2f}, {p.seconds_left:.0f} s left", flush=True)
    rows = first_order.bench(load_parts(config), args.scenes, args.learners, args.seed, args.episodes, args.captures,
                             config, SessionFog(), args.out, progress)
    table = first_order.markdown(rows)
    (args.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0


def _imagined(args: argparse.Namespace) -> int:
    from world_gymnast_ros.cli.adapt import starts_of

    starts = starts_of([args.instruction], args.frame, args.state)  # a wrong image is said before torch is loaded
    import torch

    from world_gymnast_ros.adaptation.rollout import derive_seed, imagine, is_success, sample_at, states_of
    from world_gymnast_ros.adaptation.rollout_filter import TrustConfig, filter_group
    from world_gymnast_ros.adaptation.trust import released_task, trust_of
    from world_gymnast_ros.config import robot_limits
    from world_gymnast_ros.loading import load as build
    from world_gymnast_ros.loading.release import release_table
    from world_gymnast_ros.statistics import wilson
    from world_gymnast_ros.store import load_adapter

    torch.set_num_threads(args.threads)
    limits = robot_limits("")
    policy = build.load(build.POLICY, args.policy, args.device, args.dtype)
    if args.adapter:
        policy.load_adapter(load_adapter(args.adapter))
    world_model = build.load_world_model(args.world_model, args.judge, args.device, args.dtype, limits)
    judge = build.load_judges(args.judge, args.device, args.dtype, limits)
    first = starts[:1]  # what cannot act says so first, and a server how long its chunks are
    sample_at(policy, first[0].frame.rgb[None], states_of(first), args.instruction, args.temperature, args.seed)
    group = imagine(policy, world_model, judge, starts, args.rollouts, args.steps, args.temperature, args.seed)
    group, counts = filter_group(world_model, judge, starts, group, TrustConfig(), derive_seed(args.seed, 1))
    judged = [is_success(j) for j in group.judgements if j.score is not None]
    print(f"policy '{policy.name}', world model '{world_model.name}', judge '{judge.name}': {len(group.judgements)} "
          f"rollouts, {counts.rejected} rejected, {counts.no_verdict} without verdict")
    if judged:
        rate = wilson(sum(judged), len(judged))
        print(f"imagined success: {sum(judged)} of {len(judged)}, {rate.value:.0%} [{rate.low:.0%}, {rate.high:.0%}]")
    else:
        print("imagined success: unknown, no rollout has a verdict")
    release = release_table(args.world_model, args.judge)
    task = released_task(args.instruction, release)
    trust = trust_of(task, release.get(task), world_model.name, [s.frame.rgb for s in starts],
                     2 * len(judged) > len(group.judgements))
    print(f"trust: {trust.line}")
    return 0


def _five(args: argparse.Namespace) -> int:
    from world_gymnast_ros.benchmark import five_demonstrations as five

    if _rows_printed(args, five.read_rows, five.markdown):
        return 0
    import torch
    from tqdm import tqdm

    from world_gymnast_ros.adaptation.log import Progress
    from world_gymnast_ros.loading.load import load_judges
    from world_gymnast_ros.updates.fine_tuning import FineTuning

    torch.set_num_threads(args.threads)
    config = options.session_settings(args, words=PAPER, on_twin=True,
                                      budget_s=args.budget_s, max_updates=args.updates, directory=str(args.out))
    judge = load_judges(args.ends, args.device)
    writable_folder(args.out)
    with tqdm(total=2 * len(args.cases) * len(args.scales), unit="policy") as bar:
        def progress(label: str, p: Progress | None) -> None:
            bar.n = len([r for r in five.read_rows(args.out) if r.case in args.cases and r.scale in args.scales
                         and r.seed == args.seed and r.captures in (0, args.captures)])
            bar.set_postfix_str(label if p is None else f"{label}, {p.stage} {p.update}, imagined "
                                f"{p.imagined_success:.2f}")
        rows = five.bench(args.cases, args.scales, args.seed, args.episodes, args.captures,
                          FineTuning(steps=args.sft_steps), config, judge, args.out, progress)
        bar.update(bar.total - bar.n)
    table = five.markdown(rows)
    (args.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0


def _sessions(args: argparse.Namespace) -> int:
    if not args.rows:
        config = options.session_settings(args, on_twin=True, budget_s=args.budget_s, max_updates=args.updates,
                                          directory=str(args.out))
    from world_gymnast_ros.benchmark import sessions

    if _rows_printed(args, sessions.read_rows, sessions.markdown):
        return 0
    import torch

    from world_gymnast_ros.updates.adaptation import load_parts

    known = {case.name: case for case in sessions.CASES}
    if unknown := [name for name in args.cases if name not in known]:
        raise BadConfig(f"--cases {unknown[0]!r} is unknown; known: {', '.join(known)}")
    torch.set_num_threads(args.threads)
    writable_folder(args.out)
    rows = sessions.bench(load_parts(config), [known[name] for name in args.cases or known], args.seed, args.episodes,
                          args.captures, config, args.out,
                          lambda label, p: print(f"measuring: {label}") if p is None else None)
    table = sessions.markdown(rows)
    (args.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0


def _adaptation(args: argparse.Namespace) -> int:
    if args.rows:
        return _table(args.rows)
    from world_gymnast_ros.twin.scene import load_scene
    from world_gymnast_ros.twin.tasks import parse_instruction

    config = options.session_settings(args, on_twin=True, budget_s=args.budget_s, max_updates=args.updates or None,
                                      directory=str(args.out))
    for scene in args.scenes:  # all of them before the first takes its minutes
        parse_instruction(args.instruction or load_scene(scene).instructions[0])
    import torch
    from tqdm import tqdm

    from world_gymnast_ros.adaptation.log import Progress
    from world_gymnast_ros.benchmark import adaptation as adaptation_bench
    from world_gymnast_ros.updates.adaptation import load_parts

    torch.set_num_threads(args.threads)
    writable_folder(args.out)
    parts = load_parts(config)
    with tqdm(total=len(args.scenes) * len(args.methods) * len(args.seeds), unit="session") as bar:
        def progress(label: str, p: Progress | None) -> None:
            if p is None:
                bar.n = len(adaptation_bench.read_rows(args.out))
                bar.set_postfix_str(label)
            else:
                bar.set_postfix_str(f"{label}: {p.stage} {p.update}, reward {p.mean_reward:.2f}, imagined "
                                    f"{p.imagined_success:.2f}")
        rows = adaptation_bench.bench(parts, args.scenes, args.instruction, args.methods, args.seeds, args.episodes,
                                      args.captures, config, args.out, progress)
    table = adaptation_bench.markdown(rows)
    (args.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0


def _table(paths: list[Path]) -> int:
    """Print what was measured into folders or files."""
    from world_gymnast_ros.benchmark import adaptation as adaptation_bench

    found = [(path, adaptation_bench.read_rows(path)) for path in paths]
    empty = [str(path) for path, rows in found if not rows]
    if empty:
        raise EpisodeError(f"--rows {', '.join(empty)}: nothing was measured there; name folders that `bench "
                           "adaptation --out` wrote, or files of rows (*.jsonl)")
    rows = [row for _, some in found for row in some]
    twice = sorted({row.key for i, row in enumerate(rows) if row.key in {r.key for r in rows[:i]}})
    if twice:
        scene, words, method, seed = twice[0]
        raise EpisodeError(f"--rows: '{words}' in {scene}, {method}, seed {seed} is there more than once and would "
                           "count so; name each session once")
    print(adaptation_bench.markdown(rows))
    return 0


def _replay(args: argparse.Namespace) -> int:
    import torch

    from world_gymnast_ros.data.read import read_episodes
    from world_gymnast_ros.evaluation.replay import episodes_needed, release_markdown, replay_episodes
    from world_gymnast_ros.loading import load as build
    from world_gymnast_ros.loading.release import release_file
    from world_gymnast_ros.report.rollout_video import write_replays
    from world_gymnast_ros.types import Counts

    if args.write:
        release_file(args.world_model)  # refused before anything is measured
    torch.set_num_threads(args.threads)
    if args.images:
        writable_folder(args.images.parent, "--images")
    world_model = build.load_world_model(args.world_model, args.judge, args.device)
    judge = build.load_judges(args.judge, args.device)
    found = read_episodes(args.episodes, world_model.frame_size[0], min_steps=1, camera=args.camera)
    for line in found.left_out:
        print(f"left out: {line}")
    episodes = [e for task in dict.fromkeys(e.task for e in found.marked)
                for e in [f for f in found.marked if f.task == task][:args.most]]
    replays = replay_episodes(world_model, judge, episodes, args.seed, copies=args.copies, ceiling=True)
    rows = replays.by_task(args.task, args.source or f"episodes of {args.episodes[0].resolve().name}",
                           args.instructions)
    table = release_markdown(rows)
    print(table)
    args.result = rows
    for task, row in rows.items():
        if words := episodes_needed(row):
            print(f"{task}: {words}")
    if isinstance(judge, Counts) and judge.spent:
        print(judge.spent)
    if args.images:
        write_replays(args.images, replays, count=12)
    if args.write:
        _store_release(args, judge.name, rows, table)
    return 0


def _store_release(args: argparse.Namespace, judge: str, rows: dict[str, dict[str, Any]], table: str) -> None:
    """Write the release table beside the world model, and into its card."""
    from world_gymnast_ros.loading.release import write_release

    card = write_release(args.world_model, args.judge, rows, args.seed).with_name("README.md")
    before = card.read_text(encoding="utf-8").split(RELEASE_TITLE)[0] if card.is_file() else ""
    how = f"Paired replay of recorded held-out episodes, judged by `{judge}`, {args.copies} rollouts each."
    card.write_text(f"{before.rstrip()}\n\n{RELEASE_TITLE}\n\n{how}\n\n{table}\n", encoding="utf-8")
