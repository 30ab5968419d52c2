"""Adapt the policy to one image of a scene, inside the dream. No ROS and no arm; prints the verdict, writes a report.

examples:
  world-gymnast adapt --scene novel_camera_shift --budget-s 120          an image of the simulated twin
  world-gymnast adapt "reach the red block" --frame a.png --state 0.28 0.02 0.1 0 0 0 1 --judge tabletop
      an image of your camera
  world-gymnast adapt "reach the red block" "push the red block left" --scene novel_blue_cloth    two tasks at once
  world-gymnast adapt --tasks tasks.yaml --replay policy --judge tabletop    several tasks, each with its own images
  world-gymnast adapt "push the red block left" --scene novel_blue_cloth --starts runs/episodes
      begin also where recordings came by
  world-gymnast adapt --scene novel_evening --episodes runs/episodes     held to what succeeded on the arm
  world-gymnast adapt --frame a.png --state 0.28 0.02 0.1 0 0 0 1 --propose 6 --proposer http://HOST:8000/v1#MODEL
      a model looks at the image and proposes what to train; you tick
  world-gymnast adapt --scene novel_evening --editor stable-diffusion-v1-5/stable-diffusion-inpainting --edits 8
      further starts with other things on the table, painted by a model of yours
  world-gymnast adapt --scene novel_night --set copies=24 margin=0.1     other settings of adapt.yaml

Models of your own are named in the same way: --policy openvla/openvla-7b --world-model /models/worldgym
--judge Qwen/Qwen3-VL-4B-Instruct --judge https://HOST/v1#MODEL. Where only a yes or no is asked, judges are asked in
their order, each about what all before it called a success: put the cheap ones first.

--state is where the arm was when the images were taken (adapt_node measures it by itself); the shipped world model
needs it. The shipped models know the words of the twin alone, and were measured on images of it alone: of a
photograph nothing is shown (trust: unknown). With the default judge, which needs no geometry of objects, none of
their tasks is offered; with --judge tabletop (small objects on a table) all are. A --scene of the twin has it.

exit status: 0 promoted (or would be, with --dry-run), 1 the present policy was kept, 2 refused
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from world_gymnast_ros import seeds
from world_gymnast_ros.cli import options, proposing
from world_gymnast_ros.cli.checks import whole, writable_folder
from world_gymnast_ros.errors import BadConfig, BadFrame, BadInstruction
from world_gymnast_ros.files import read_yaml
from world_gymnast_ros.images import decode_rgb
from world_gymnast_ros.types import F32, Counts, Frame, Start

if TYPE_CHECKING:
    from world_gymnast_ros.adaptation.config import AdaptNodeConfig
    from world_gymnast_ros.updates.adaptation import SessionResult

HELP = "adapt to an image of a scene, inside the dream"
REACH_M = 0.8
"""No point of the WidowX 250s gets further from its base."""
MIN_IMAGE_PX = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instruction", nargs="*", help="the task in words; several are trained together")
    parser.add_argument("--frame", nargs="+", type=Path, default=[], help="images of the scene (PNG, JPEG)")
    parser.add_argument("--state", nargs=7, type=float, metavar="X", help="Bridge state of the arm in the images: "
                        "x y z in m, roll pitch yaw in rad, gripper 0..1; needed with --frame where a "
                        "judge measures")
    parser.add_argument("--scene", default="", help="image of a twin scene instead: shipped name or YAML file")
    whole(parser, "--scene-seed", 0, default=seeds.CAPTURE[-1], help="start state of the twin (default: %(default)s)")
    parser.add_argument("--config", type=Path, help="settings (default: the shipped config/adapt.yaml)")
    parser.add_argument("--budget-s", type=float, help="wall time (default: as in the settings)")
    parser.add_argument("--updates", type=int, help="at most so many updates (default: as in the settings)")
    options.seed(parser)
    parser.add_argument("--parent", type=Path, help="adapter folder to start from (default: the base policy)")
    parser.add_argument("--episodes", type=Path, help="folder of recorded real episodes, whose successes "
                        "regularise the session (default: as in the settings)")
    options.camera(parser)
    parser.add_argument("--tasks", type=Path, help="YAML file in place of words, --frame and --state: a list of "
                        "{instruction, frames, state, partial_credit}; see docs/howto/own_instruction.md")
    proposing.add_arguments(parser)
    parser.add_argument("--starts", type=Path, metavar="DIR", help="folder of recordings in this scene (near misses, a "
                        "hand-guided approach): training begins at their frames too, near their end first")
    whole(parser, "--vary", 0, 1000, help="make so many varied starts: other light, a camera turned a little, objects "
          "beside the task's; the judges look at each (default: as in the settings)")
    parser.add_argument("--cut-outs", metavar="DIR", help="objects for them, PNG with transparency (default: those "
                        "that ship)")
    parser.add_argument("--keep-free", metavar="FILE", help="image whose bright parts they keep free of objects")
    parser.add_argument("--editor", metavar="NAME", help="have an image editor paint bare table in further starts, the "
                        "arm untouched: folder or hub name of an inpainting pipeline of diffusers, or address of an "
                        "OpenAI-compatible server (http://HOST:PORT/v1#MODEL); the judges look at each")
    whole(parser, "--edits", 1, 32, help="so many (default: as in the settings)")
    parser.add_argument("--replay", metavar="WHAT", help="frames of earlier scenes that training returns to, so that "
                        "less is forgotten: policy (what ships with it), or a folder of sessions")
    parser.add_argument("--out", type=Path, help="folder for adapters/ and sessions/ (default: as in the settings)")
    whole(parser, "--policy-port", 1, 65535, help="serve the policy meanwhile, on this machine alone, so that "
          "policy_node acts through this one copy (policy_url: http://127.0.0.1:PORT). It ends with the command, and "
          "the arm then holds: adapt_node keeps serving (default: as in the settings)")
    parser.add_argument("--dry-run", action="store_true", help="do everything but store an adapter")
    options.json_result(parser)
    options.session(parser)


def run(args: argparse.Namespace) -> int:
    """Run one session and print its verdict."""
    config = options.session_settings(
        args, args.config, on_twin=bool(args.scene), budget_s=args.budget_s, max_updates=args.updates,
        directory=str(args.out) if args.out else None, episodes=str(args.episodes) if args.episodes else None,
        episodes_camera=args.camera or None, starts=str(args.starts) if args.starts else None, replay=args.replay,
        varied=args.vary, cut_outs=args.cut_outs, keep_free=args.keep_free, editor=args.editor, edits=args.edits,
        policy_port=args.policy_port)
    _check(args, config)
    credit: dict[str, str] = {}  # sentences about partial credit, by instruction
    if args.tasks:
        starts, credit = _task_starts(args.tasks)
    else:
        starts = _twin_start(args) if args.scene else _image_starts(args)

    # Not before the arguments are known to be right: loading torch takes seconds.
    import torch
    from tqdm import tqdm

    from world_gymnast_ros.adaptation.log import Progress
    from world_gymnast_ros.loading.load import needs_state
    from world_gymnast_ros.models.policies.shared import serve_copy, stop_serving
    from world_gymnast_ros.store import load_adapter
    from world_gymnast_ros.updates.adaptation import check_released, load_parts, run_session
    from world_gymnast_ros.updates.proposals import give_partial_credit

    if any(s.state is None for s in starts) and (whose := needs_state(config.world_model, config.judges)):
        raise BadConfig(f"--state is missing: {whose} needs to know where the arm is in an image; give --state X Y Z "
                        "ROLL PITCH YAW GRIPPER (m, rad, 0..1)")
    torch.set_num_threads(config.threads)
    asked = proposing.ask(args, config, starts)
    parts = load_parts(config, lambda plan: print(plan, file=sys.stderr))
    if asked is None:
        check_released(parts.release, [s.instruction for s in starts], config.min_release_auc, config.max_false_success)
    choice = proposing.choose(args, asked, parts, starts, config)
    starts, credit = choice.starts, credit | choice.partial_credit
    notes = [*choice.notes, *filter(None, [give_partial_credit(parts, credit)])]
    parent = load_adapter(args.parent) if args.parent else None
    parts.policy.load_adapter(parent)
    writable_folder(Path(config.directory))
    with ExitStack() as served, tqdm(total=config.max_updates, unit="update", desc="adapting") as bar:
        if config.policy_port:
            shared: Any = parts.policy
            server = serve_copy(shared, Path(config.directory) / "adapters", config.policy_port)
            served.callback(stop_serving, server)
            print(f"policy_node may act through this copy until the session ends: policy_url:={server.url}",
                  file=sys.stderr)
        def progress(p: Progress) -> None:
            bar.n = p.update
            bar.set_postfix_str(f"{p.stage}: reward {p.mean_reward:.2f}, imagined success {p.imagined_success:.0%}, "
                                f"rejected {p.rejected}, {p.seconds_left:.0f} s left")
            if p.notice:
                bar.write(f"{'WARNING: ' * p.warns}{p.notice}", file=sys.stderr)
        try:
            result = run_session(parts, starts, config, args.seed, time.time_ns(), dry_run=args.dry_run,
                                 parent=parent, progress=progress, notes=notes)
        except OSError as error:
            raise BadConfig(f"the session under {config.directory} could not be written ({error.strerror or error}), "
                            "no adapter was stored; free space there, or name another folder with --out") from error
    args.result = _tell(result, bool(config.episodes), parts.judge.spent if isinstance(parts.judge, Counts) else "")
    return 0 if result.report.outcome.better else 1


def _check(args: argparse.Namespace, config: AdaptNodeConfig) -> None:
    """Refuse arguments that do not go together. Raises BadConfig or BadInstruction."""
    if args.edits and not config.editor:
        raise BadConfig(f"--edits {args.edits} needs an image editor: name one with --editor")
    if args.scene and (args.frame or args.state):
        raise BadConfig(f"--scene {args.scene} makes its own image and state; leave out --frame and "
                        "--state, or --scene")
    if config.episodes and not Path(config.episodes).is_dir():
        raise BadConfig(f"--episodes {config.episodes} does not exist; name a folder of recordings, or leave it out")
    if any(not words.strip() for words in args.instruction):
        raise BadInstruction("an instruction is empty; say what to do, e.g. 'reach the red block'")
    if args.tasks and (args.scene or args.frame or args.state or args.instruction):
        raise BadConfig(f"--tasks {args.tasks} names words, images and states itself; leave out the others, or "
                        "--tasks")
    proposing.check(args)


def _tell(result: SessionResult, regularised: bool, spent: str) -> dict[str, Any]:
    """Print what a session came to, and return it for a program. `regularised`: by recordings; `spent`: what judges
    that count have used."""
    report = result.report
    print(result.advice.line)
    print(f"{report.outcome}: {report.message}")
    for one in report.promotion.each if report.promotion else ():
        before, after = (f"{round(x.value * x.n)}/{x.n}" for x in (one.before, one.after))
        print(f"  {one.instruction}: imagined {before} before, {after} after")
    for note in report.notes:
        print(f"note: {note}")
    if regularised:
        print(f"learner: {report.names['learner']}")
    if report.adapter is not None:
        print(f"adapter: {report.adapter.path}")
    if spent:
        print(f"judges: {spent}")
    for trust in result.trusts:
        print(f"trust: {trust.line}")
    print(f"report: {result.report_path}")
    return {"outcome": report.outcome, "promoted": report.promoted, "message": report.message,
            "advice": result.advice.line, "adapter": report.adapter.path if report.adapter else None,
            "report": result.report_path, "trust": [trust.line for trust in result.trusts]}


def _image_starts(args: argparse.Namespace) -> list[Start]:
    if not args.frame:
        raise BadFrame("no image: give --frame with an image of the scene, or --scene with a twin scene")
    if not args.instruction and not args.propose:
        raise BadInstruction("say what to do, e.g. world-gymnast adapt 'reach the red block' --frame scene.png --state "
                             "0.28 0.02 0.1 0 0 0 1")
    return starts_of(args.instruction or [proposing.PLACEHOLDER], args.frame, args.state)


def _task_starts(path: Path) -> tuple[list[Start], dict[str, str]]:
    """Return the starts that a YAML file of tasks names, its images relative to it, and the partial-credit sentences
    of instructions that have one. Raises BadConfig."""
    tasks = read_yaml(path, f"--tasks {path}")
    starts: list[Start] = []
    credit: dict[str, str] = {}
    for number, task in enumerate(tasks if isinstance(tasks, list) else [None], 1):
        good = (isinstance(task, dict) and set(task) <= {"instruction", "frames", "state", "partial_credit"}
                and isinstance(task.get("instruction"), str) and isinstance(task.get("frames"), list)
                and isinstance(task.get("partial_credit", ""), str)
                and task["frames"] and all(isinstance(f, str) for f in task["frames"]))
        state = task.get("state") if isinstance(task, dict) else None
        if not good or not (state is None or (isinstance(state, list) and len(state) == 7 and all(
                isinstance(x, (int, float)) for x in state))):
            raise BadConfig(f"--tasks {path}, entry {number}: give a list of {{instruction: WORDS, frames: [FILE, "
                            "...], state: [x, y, z, roll, pitch, yaw, gripper], partial_credit: SENTENCE}; the last "
                            "two may be left out")
        if task.get("partial_credit", "").strip():
            credit[task["instruction"]] = task["partial_credit"]
        starts += starts_of([task["instruction"]], [path.parent / f for f in task["frames"]], state)
    return starts, credit


def starts_of(instructions: Sequence[str], images: Sequence[Path], values: Sequence[float] | None) -> list[Start]:
    """Return each image with each instruction and the Bridge state of --state. Raises BadFrame or BadConfig."""
    state = _state(values)
    frames = []
    for path in images:
        rgb = decode_rgb(path, str(path))
        if min(rgb.shape[:2]) < MIN_IMAGE_PX:
            raise BadFrame(f"{path} has {rgb.shape[1]}x{rgb.shape[0]} pixels; at least {MIN_IMAGE_PX} each way are "
                           "needed, give the camera's own image")
        frames.append(Frame(rgb, 0))
    return [Start(frame, state, words) for frame in frames for words in instructions]


def _state(values: Sequence[float] | None) -> F32 | None:
    """Return a Bridge state (7,) that the arm can be in, or None. Raises BadConfig."""
    if values is None:
        return None
    limits = (*[(-REACH_M, REACH_M)] * 3, *[(-np.pi, np.pi)] * 3, (0.0, 1.0))
    for name, value, (low, high) in zip(("x", "y", "z", "roll", "pitch", "yaw", "gripper"), values, limits,
                                        strict=True):
        if not low <= value <= high:
            raise BadConfig(f"--state {name} is {value:g}; it must lie in {low:.4g}..{high:.4g} (m, rad, gripper 0 "
                            "closed to 1 open); leave --state out where it is not known")
    return np.array(values, np.float32)


def _twin_start(args: argparse.Namespace) -> list[Start]:
    from world_gymnast_ros.twin.observer import capture
    from world_gymnast_ros.twin.scene import load_scene
    from world_gymnast_ros.twin.sim import Twin

    scene = load_scene(args.scene)
    words = args.instruction or [scene.instructions[0]]
    twin = Twin(scene)
    try:
        twin.reset(args.scene_seed, words[0])
        frame, state = capture(twin)
    finally:
        twin.close()
    return [Start(frame, state, w) for w in words]
