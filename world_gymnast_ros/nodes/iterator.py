"""`world-gymnast iterate --robot`: rounds of the loop beside a running graph, with a person who sets scenes and marks.

Ctrl-C and SIGTERM hold the arm first; the same command goes on with the episode that was stopped.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rclpy
from rclpy.signals import SignalHandlerOptions

from world_gymnast_ros.cli.iterate import ON_ROBOT, add_arguments, iterate, settings
from world_gymnast_ros.evaluation.power import what_pairs_show
from world_gymnast_ros.loading import load as build
from world_gymnast_ros.nodes import verb
from world_gymnast_ros.nodes.robot_environment import RobotEnvironment
from world_gymnast_ros.types import Frame
from world_gymnast_ros.updates.world_model_run import check_folder, replay_folder

BLACK = Frame(np.zeros((64, 64, 3), np.uint8), 0)


def run(args: argparse.Namespace) -> int:
    """Run all rounds; what is wrong in the settings is refused before the graph is looked for."""
    config, adapt = settings(args, args.instruction, args.task, {"replay": "", "old": ""}, ON_ROBOT, args.horizon_steps)
    replay = replay_folder(args.replay, build.checkpoint_dir(adapt.world_model, build.WORLD_MODEL))
    old = check_folder(args.old, replay)
    play = {name: str(folder.resolve()) if folder else "" for name, folder in (("replay", replay), ("old", old))}
    config, adapt = settings(args, args.instruction, args.task, play, ON_ROBOT, args.horizon_steps)
    for folder, consequence in ((replay, "no earlier data to mix in: the world model is changed little, and the "
                                         "learned judge's weights not at all"),
                                (old, "no earlier data to check on: nobody will know what an update costs elsewhere")):
        if folder is None:
            print(consequence)
    if config.limit_pairs:
        print(f"validation of what is to be deployed: {what_pairs_show(config.limit_pairs, config.confidence)}")
    build.load_policy(adapt.policy).act(BLACK, args.instruction)  # words that it cannot read are refused here
    # No signal handler of rclpy: Ctrl-C raises KeyboardInterrupt here, and the arm is held before this ends.
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    environment = RobotEnvironment(args.instruction, args.trial_s, args.wait_s, build.frame_size(adapt.world_model),
                                   adapt.robot_name, args.camera)
    try:
        environment.wait()
        return iterate(args, config, adapt, environment, args.out or Path("runs/iterate/robot"))
    finally:
        environment.close()
        rclpy.try_shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors into one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="world-gymnast iterate")
    add_arguments(parser)
    return verb.run(parser, run, argv, "stopped; the arm was told to hold. The same command goes on from here")


if __name__ == "__main__":
    raise SystemExit(main())
