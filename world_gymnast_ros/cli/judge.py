"""How far may the judge be believed? Compare its verdicts with outcomes that a person (or physics) marked.

`calibrate` judges episodes of known outcome, fits the judge's probability on half of them, and measures on the other
half: reliability, ROC, how many failures it calls successes. The new judge is written only where that false success
rate, upper end of its interval, stays below --refuse-above, and where it tells successes from failures at all. Any
judge with a logit can be calibrated: the learned one, an image-text model (--judge Qwen/Qwen3-VL-4B-Instruct), a
server (--judge http://HOST:PORT/v1#MODEL).

`veto` leaves the one that looks, in one family of tasks, only to stop what it is sure about: it then passes all but
--share of the true successes. For families in which the geometric judge knows better.

`learn` teaches both judges a scene from marked recordings of it, settings only: where the camera stands, how high the
named object is, how it is pushed, whether it stops the arm, how sure a find and the pair must be. Written where they
are right more often then, and refused otherwise.

examples:
  world-gymnast judge calibrate --episodes runs/demo-*/episodes         your own marked recordings
  world-gymnast judge calibrate --episodes runs/episodes --judge judges/mine --out judges/better
  world-gymnast judge calibrate --play data/held_out --out judges/mine  play data of the twin
  world-gymnast judge veto --play data/imagined --task push --out judges/mine
  world-gymnast judge learn --episodes runs/episodes --out judges/lab   a moved camera, a new shape, what stops the arm
  world-gymnast bench replay --episodes data/held_out --judge judges/mine --judge tiny/locator --write   release it
  world-gymnast adapt --scene novel_evening --set "judges=judges/mine, tiny/locator"   and use it

exit status: 0 written (or, without --out, good enough), 1 refused as too often wrong or no better, 2
bad input
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from world_gymnast_ros.cli import options, trainings
from world_gymnast_ros.cli.checks import present, real, writable_folder
from world_gymnast_ros.errors import BadConfig

HELP = "measure and calibrate the judge on episodes of known outcome"
REPORT_NAME = "calibration.html"
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1c2530}
svg{max-width:22rem;width:100%;font:12px system-ui;margin-right:1rem}.grid{stroke:#ddd}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    calibrate = sub.add_parser("calibrate", help="fit the judge's probability, measure it on other episodes")
    source = calibrate.add_mutually_exclusive_group(required=True)
    present(source, "--episodes", options.EPISODES, nargs="+", metavar="DIR", help="folders of marked recordings, one "
                        "recording's own folder, or folders of *.npz files")
    options.camera(calibrate)
    present(source, "--play", trainings.PLAY, help="folder of play data (*.npz); imagined ones too (`train imagined`)")
    options.judge(calibrate)
    options.device(calibrate)
    calibrate.add_argument("--task", default="", help="only this task, e.g. reach; the learned judge keeps its "
                           "thresholds for others")
    real(calibrate, "--max-false-success", 0.001, 0.5, default=0.05,
         help="share of failures that may be called successes on the fitted half (default: %(default)s)")
    real(calibrate, "--refuse-above", 0.001, 1.0, default=0.15,
         help="refuse where the measured share may be higher, upper end of 95 %% (default: %(default)s)")
    options.seed(calibrate, "the halves")
    options.threads(calibrate)
    options.json_result(calibrate)
    calibrate.add_argument("--out", type=Path, help="folder for the calibrated judge and the report")

    veto = sub.add_parser("veto", help="let the learned judge only stop what it is sure about, in one family")
    present(veto, "--play", trainings.PLAY, required=True, help="folder of imagined play data (`train imagined`)")
    options.judge(veto)
    veto.add_argument("--task", required=True, help="what the kind of task is called in the data, such as push")
    real(veto, "--share", 0.01, 0.5, default=0.1, help="of the true successes that it may stop (default: %(default)s)")
    options.threads(veto)
    veto.add_argument("--out", type=Path, required=True, help="folder for the judge")

    learn = sub.add_parser("learn", help="teach both judges a scene: camera, height, margin")
    present(learn, "--episodes", options.EPISODES, nargs="+", required=True,
            help="folders that hold marked recordings, or play data (*.npz), of one scene and instruction")
    options.camera(learn)
    options.world_model(learn)
    options.judges(learn)
    options.renamed(learn, "--second-judge", "--judge, given twice")
    real(learn, "--held-out-share", 0.05, 0.9, default=0.34,
         help="of the episodes, to decide on (default: %(default)s)")
    real(learn, "--max-false-success", 0.0, 0.5, default=0.05,
         help="share of failures that the pair may call successes (default: %(default)s)")
    options.seed(learn, "the split and the rollouts")
    options.threads(learn)
    learn.add_argument("--out", type=Path, required=True, help="folder for learned/ and geometric/")


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    return {"learn": run_learn, "veto": run_veto, "calibrate": run_calibrate}[args.what](args)


def run_veto(args: argparse.Namespace) -> int:
    """Set the offset of one family and write the judge."""
    import torch

    from world_gymnast_ros.data.frame_table import read_play
    from world_gymnast_ros.loading.load import JUDGE, checkpoint_dir
    from world_gymnast_ros.models.judges.reflector import Reflector
    from world_gymnast_ros.training.reflector import judge_episodes
    from world_gymnast_ros.updates.calibration import veto_offset

    torch.set_num_threads(args.threads)
    writable_folder(args.out)
    judge = Reflector.from_pretrained(checkpoint_dir(args.judge, JUDGE))
    table = read_play(args.play)
    judged = judge_episodes(judge, table, [e for e in table.episodes if e.family == args.task])
    offset = veto_offset(judged, judge.config.logit_scale, judge.config.done_threshold, args.share)
    before = judge.probability(judged.logits, args.task) > judge.config.done_threshold
    judge.config.task_offsets = {**judge.config.task_offsets, args.task: offset}
    after = judge.probability(judged.logits, args.task) > judge.config.done_threshold
    for name, rows in (("true successes", judged.success), ("failures", ~judged.success)):
        print(f"{args.task}: of {rows.sum()} {name} it passes {after[rows].mean():.0%}, was "
              f"{before[rows].mean():.0%}")
    judge.save(args.out)
    print(f"judge: {args.out}; measure it with the geometric judge: world-gymnast bench replay --write")
    return 0


def run_learn(args: argparse.Namespace) -> int:
    """Learn settings of both judges, decide, and write them where they are better."""
    import tempfile

    import torch

    from world_gymnast_ros.data.read import read_episodes
    from world_gymnast_ros.loading import load as build
    from world_gymnast_ros.updates.judges import learn_settings

    torch.set_num_threads(args.threads)
    for name in ("learned", "geometric"):
        if (args.out / name).exists():
            raise BadConfig(f"{args.out / name} is there already; name another --out, or move it away")
    writable_folder(args.out)
    names = build.judge_names(args.judge or build.TABLETOP_JUDGES)
    geometric = build.geometric_judge(names)
    learned = [name for name in names if name != geometric]
    if not geometric or len(learned) != 1:
        raise BadConfig(f"--judge names {', '.join(names)}; give one learned judge and one geometric one, or none: "
                        "tabletop")
    world = build.load_world_model(args.world_model, names)
    read = read_episodes(args.episodes, world.frame_size[0], min_steps=2, camera=args.camera)
    episodes, left_out = read.marked, read.left_out
    for why in left_out:
        print(f"left out {why}")
    with tempfile.TemporaryDirectory(dir=args.out) as scratch:
        start, second = (build.checkpoint_dir(name, build.JUDGE) for name in (*learned, geometric))
        found = learn_settings(start, second, world, episodes, args.held_out_share, Path(scratch),
                               args.max_false_success, args.seed)
        print("\n".join(found.lines))
        if found.promote:
            for name, folder in (("learned", found.learned), ("geometric", found.geometric)):
                folder.rename(args.out / name)
            print(f"judges: {args.out}/learned and {args.out}/geometric; measure them with the world model before a "
                  "session: world-gymnast bench replay --write")
    return 0 if found.promote else 1


def run_calibrate(args: argparse.Namespace) -> int:
    """Calibrate, print the figures, and write the judge if it is good enough."""
    import torch

    from world_gymnast_ros.data.frame_table import read_play
    from world_gymnast_ros.data.read import read_episodes
    from world_gymnast_ros.loading.load import JUDGE, load
    from world_gymnast_ros.models.judges.reflector import Reflector
    from world_gymnast_ros.training.reflector import Verdicts, judge_episodes
    from world_gymnast_ros.types import Counts
    from world_gymnast_ros.updates.calibration import LogitJudge, calibrate, judge_recorded

    torch.set_num_threads(args.threads)
    judge = load(JUDGE, args.judge, args.device)
    if not isinstance(judge, LogitJudge):
        raise BadConfig(f"judge {args.judge} has no logit that two numbers could calibrate; a geometric judge learns a "
                        "scene with `world-gymnast judge learn`")
    if args.out:
        writable_folder(args.out)
    left_out: list[str] = []
    if args.play:
        if not isinstance(judge, Reflector):
            raise BadConfig(f"--play is for the learned judge that ships; calibrate {args.judge} on --episodes, which "
                            "may hold *.npz files too")
        table = read_play(args.play)
        judged = judge_episodes(judge, table, table.episodes)
    else:
        found_episodes = read_episodes(args.episodes, judge.frame_size[0], min_steps=1, camera=args.camera)
        judged, silent = judge_recorded(judge, found_episodes.marked)
        left_out = [*found_episodes.left_out, *silent]
    if args.task:
        mine = judged.family == args.task
        judged = Verdicts(judged.logits[mine], judged.success[mine], judged.family[mine])
    for why in left_out:
        print(f"left out {why}")
    if isinstance(judge, Counts) and judge.spent:
        print(judge.spent)
    found = calibrate(judged, judge.threshold, args.max_false_success, args.seed)
    refused = found.doubt(args.refuse_above)
    lines = [f"episodes {found.episodes}, half fitted, half measured",
             f"AUC {found.auc:.3f}, calibration error {found.calibration_error:.3f}",
             f"false successes among failures {found.false_success}, false negatives {found.false_negative}",
             f"refused: {refused}; name another judge, or train this one on more of these scenes" if refused else
             "good enough to adapt with, for scenes and tasks like these"]
    print("\n".join(lines))
    args.result = {**found.as_json(), "refused": refused or None}
    if args.out:
        (args.out / REPORT_NAME).write_text(_page(judge.name, lines, found), encoding="utf-8")
        (args.out / "calibration.json").write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")
        print(f"report: {args.out / REPORT_NAME}")
        if not refused:
            if args.task and isinstance(judge, Reflector):
                judge.calibrate_task(args.task, found.scale, found.offset)
            else:
                judge.calibrate(found.scale, found.offset)
            judge.save(args.out)
            print(f"judge: {args.out}")
    return 1 if refused else 0


def _page(name: str, lines: list[str], found: object) -> str:
    from html import escape

    from world_gymnast_ros.report.charts import curve
    from world_gymnast_ros.updates.calibration import Calibration

    assert isinstance(found, Calibration)
    largest = max(count for _, _, count in found.reliability)
    reliability = curve([(said, true) for said, true, _ in found.reliability], "score of the judge",
                        "share truly successful", [count / largest for _, _, count in found.reliability])
    roc = curve(found.roc, "failures called successes", "successes found")
    words = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return (f"<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
            f"<title>Judge {escape(name)}</title><style>{STYLE}</style><h1>Judge {escape(name)}</h1>{words}"
            f"<h2>Reliability</h2><p>On the dashed line the judge means what it says; a spot's area is the share of "
            f"episodes.</p>{reliability}<h2>ROC</h2>{roc}")
