"""Close the loop: real episodes improve the world model, the world model improves the policy, both are measured.

A round: real episodes, two thirds explored with the present adapter; the camera is found from where the arm is seen;
world model and judges learn from outcomes and are promoted only if their release checks say so; the real successes are
cloned; adaptation in the world model, regularised by them; validation on the arm, greedy, of what was promoted there,
or else of the BC policy; true evaluation. A stopped run goes on with the same command.

examples:
  world-gymnast iterate "reach the red block" --robot --out runs/red   beside a running graph; you set the scene and
                                                                       say what came of it, not told which policy ran
  world-gymnast iterate --scene lab_bottle --rounds 3 --episodes 24    on the simulated twin
  world-gymnast iterate --scene lab_camera --methods loop adaptation_only imitation  beside two baselines, same budget
  world-gymnast iterate --scene my_lab.yaml --out runs/mine --replay data/replay --old data/old_scenes

exit status: 0 all rounds are done, 2 refused, 130 stopped
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from world_gymnast_ros import seeds
from world_gymnast_ros.cli import options, ros_child
from world_gymnast_ros.cli.checks import real, whole, writable_folder
from world_gymnast_ros.errors import BadConfig

if TYPE_CHECKING:
    from world_gymnast_ros.adaptation.config import AdaptNodeConfig
    from world_gymnast_ros.evaluation.environment import Environment
    from world_gymnast_ros.updates.run import EarlierData, IterateConfig

HELP = "rounds of real episodes, model updates, adaptation and evaluation, on the robot or the twin"
PLAY_EPISODES = 64
"""Of each family, made on the twin to be mixed into updates, and a quarter as many to check them on."""
ON_ROBOT = {"episodes": 24, "evaluation": 10, "captures": 4, "pairs": 10}
ON_TWIN = {"episodes": 24, "evaluation": 40, "captures": 16, "pairs": 0}
"""Defaults: each real episode on a robot costs a person a minute."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; `nodes/iterator.py` reads the same words."""
    parser.add_argument("instruction", nargs="?", default="", help="the task in words (default: the scene's first)")
    where = parser.add_mutually_exclusive_group(required=True)
    options.scene(where, help="on the twin: shipped scene or YAML file")
    where.add_argument("--robot", action="store_true", help="beside a running graph (bringup.launch.py)")

    def by_place(name: str) -> str:
        return f"(default: {ON_ROBOT[name]} on a robot, {ON_TWIN[name]} on the twin)"
    whole(parser, "--rounds", 1, seeds.MAX_ROUNDS, default=3, help="default: %(default)s")
    whole(parser, "--episodes", 12, seeds.MAX_EPISODES, help="real episodes a round; fewer than 24 may hold out too "
          f"few to promote a judge or a world model in the first {by_place('episodes')}")
    whole(parser, "--evaluation", 2, seeds.MAX_EVALUATION, help=f"true episodes after a round {by_place('evaluation')}")
    whole(parser, "--captures", 1, seeds.MAX_CAPTURES, help=f"frames an adaptation starts from {by_place('captures')}")
    whole(parser, "--pairs", 0, seeds.MAX_EPISODES // 2, help="validate on the arm in pairs of trials, at most "
          f"so many; 0: a third of the episodes, unpaired {by_place('pairs')}")
    options.renamed(parser, "--limit-pairs", "--pairs")
    parser.add_argument("--methods", nargs="+", choices=("loop", "adaptation_only", "imitation"), default=["loop"],
                        help="loop; adaptation_only: world model and judge stay as they are; imitation: cloning "
                             "the successes (Iter-SFT) (default: loop)")
    real(parser, "--temperature", 0.05, 10.0, default=1.2, help="of exploration (default: %(default)s)")
    whole(parser, "--update-steps", 2, 10**6, default=40, help="of the world model, a round (default: %(default)s)")
    whole(parser, "--judge-steps", 1, 10**6, default=40, help="of the judge, a round (default: %(default)s)")
    whole(parser, "--imitation-steps", 1, 10**6, default=60, help="of the BC policy, a round (default: %(default)s)")
    parser.add_argument("--replay", default="", help="folder of earlier data to mix into updates (default: replay/ "
                        "beside the world model; with --scene the twin makes some; without any, updates are small)")
    parser.add_argument("--old", default="", help="folder of earlier data in which nothing may get worse (default: "
                        "held_out/ within --replay; with --scene the twin makes some; without any it is not checked)")
    parser.add_argument("--task", default="", help="what a release table calls the task (default: the instruction)")
    real(parser, "--trial-s", 1.0, 600.0, default=20.0, help="with --robot: longest episode (default: %(default)s s)")
    real(parser, "--wait-s", 1.0, 3600.0, default=300.0, help="with --robot: longest wait for nodes to come up, "
         "and for the policy to load what it is offered (default: %(default)s s)")
    whole(parser, "--horizon-steps", 1, 1000, help="actions of an imagined episode (default: as in adapt.yaml; with "
          "--scene the task's)")
    options.camera(parser)
    options.seed(parser, most=seeds.MAX_SEED)
    options.threads(parser)
    parser.add_argument("--out", type=Path, help="run folder (default: runs/iterate/SCENE, or runs/iterate/robot)")
    options.session(parser)  # min_release_auc is 0 unless set: the table says how far the world model was wrong


def run(args: argparse.Namespace) -> int:
    """Run all rounds of all methods on the twin, or beside a graph."""
    if args.robot:
        ros_child.become("iterator", args, ("scene",))
    return _on_twin(args)


def _on_twin(args: argparse.Namespace) -> int:
    if args.camera:
        raise BadConfig(f"--camera {args.camera} is for --robot; a scene of the twin has one camera: leave it out")
    from world_gymnast_ros.twin.scene import load_scene
    from world_gymnast_ros.twin.tasks import parse_instruction

    scene = load_scene(args.scene)
    instruction = args.instruction or scene.instructions[0]
    parse_instruction(instruction)
    adapt = session_settings(args)
    # Not before the arguments are known to be right: loading torch takes seconds.
    from world_gymnast_ros.loading.load import frame_size
    from world_gymnast_ros.twin.environment import TwinEnvironment
    from world_gymnast_ros.twin.labels import frame_labels
    from world_gymnast_ros.twin.play import make_replay
    from world_gymnast_ros.updates.run import EarlierData

    environment = TwinEnvironment(scene, frame_size(adapt.world_model))
    try:
        environment.reset(0, instruction)  # a wrong instruction is refused before anything is written
        out = args.out or Path("runs/iterate") / Path(args.scene).stem
        play = {name: str(Path(given).resolve()) if given else f"play/{name}"
                for name, given in (("replay", args.replay), ("old", args.old))}
        config, adapt = settings(args, instruction, args.task or environment.twin.task.family, play, ON_TWIN,
                                 args.horizon_steps or environment.horizon_steps)

        def make_play(name: str, folder: Path) -> None:
            episodes = PLAY_EPISODES // (4 if name == "old" else 1)
            make_replay(folder, episodes, args.seed, name == "old", lambda line: print(line, flush=True))
        return iterate(args, config, adapt, environment, out, EarlierData(make_play, frame_labels))
    finally:
        environment.close()


def session_settings(args: argparse.Namespace) -> AdaptNodeConfig:
    """Return the settings of a run's sessions."""
    # No limit of wall time: a budget in seconds would make a resumed run differ from one that was not stopped.
    words = ("min_release_auc=0", "max_updates=8", "copies=20", "select_groups=6", "budget_s=86400.0")
    return options.session_settings(args, words=words, on_twin=bool(args.scene))


def settings(args: argparse.Namespace, instruction: str, task: str, play: dict[str, str], defaults: dict[str, int],
             horizon_steps: int | None) -> tuple[IterateConfig, AdaptNodeConfig]:
    """Return the settings of a run and of its sessions."""
    from world_gymnast_ros.updates.behaviour_cloning import Imitation
    from world_gymnast_ros.updates.judges import JudgeUpdate
    from world_gymnast_ros.updates.run import IterateConfig
    from world_gymnast_ros.updates.world_model import UpdateConfig

    adapt = session_settings(args)

    def count(name: str) -> int:
        given = getattr(args, name)
        return defaults[name] if given is None else int(given)
    return IterateConfig(
        instruction, horizon_steps or adapt.horizon_steps, task, args.rounds, count("episodes"), count("evaluation"),
        args.temperature, count("captures"), count("pairs"), replay=play["replay"], old=play["old"],
        seed=args.seed, update=UpdateConfig(steps=args.update_steps), judge=JudgeUpdate(steps=args.judge_steps),
        imitation=Imitation(steps=args.imitation_steps)), adapt


def iterate(args: argparse.Namespace, config: IterateConfig, adapt: AdaptNodeConfig, environment: Environment,
            out: Path, earlier: EarlierData | None = None) -> int:
    """Run all rounds of all methods in an environment, then write table and report. `earlier` as for `Run`."""
    import torch

    from world_gymnast_ros.report.loop_report import write_run_report
    from world_gymnast_ros.updates.loop import run_method
    from world_gymnast_ros.updates.run import Run

    torch.set_num_threads(args.threads)
    writable_folder(out)
    a_run = Run(config, adapt, environment, out, lambda line: print(line, flush=True), earlier=earlier)
    results = {method: run_method(a_run, method) for method in dict.fromkeys(args.methods)}
    table = write_run_report(out, environment.name, a_run.instruction, results)
    print(table)
    print(f"report: {out / 'report.html'}")
    return 0
