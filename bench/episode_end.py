"""What does it bring that a judge ends episodes? True episodes on the twin: nobody ends them, the judge, or an oracle.

    python bench/episode_end.py                      40 episodes of each task, scene train_oak, the shipped models

"holds at the end": the task's condition holds in the last moment. A redundant action is one after the condition first
held. The oracle ends an episode at the first frame at which it holds; nothing on a robot knows that.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from world_gymnast_ros.adaptation.done_watch import DoneWatch
from world_gymnast_ros.loading.load import load_judges, load_policy
from world_gymnast_ros.seeds import EVALUATION
from world_gymnast_ros.statistics import wilson
from world_gymnast_ros.twin.environment import TwinEnvironment
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.tasks import progress
from world_gymnast_ros.types import U8, Judgement, Policy, RolloutFacts

TASKS = ("reach the red block", "push the red block left")


class Oracle:
    """Knows physics: whether the condition holds now."""

    name = "oracle"

    def __init__(self, environment: TwinEnvironment) -> None:
        self.environment = environment

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        return [Judgement(float(holds(self.environment)))]


def holds(environment: TwinEnvironment) -> bool:
    """Whether the task's condition holds at this moment."""
    twin = environment.twin
    return progress(twin.task, twin.truth(twin.task))[0]


def measure(environment: TwinEnvironment, policy: Policy, instruction: str, episodes: int, ended: str
            ) -> dict[str, object]:
    """Run episodes; count those whose condition holds at the end, and the actions after it first held."""
    at_end, ever, redundant, actions, early = 0, 0, 0, 0, 0
    for seed in tqdm(range(EVALUATION.start, EVALUATION.start + episodes), desc=f"{instruction}, {ended}", leave=False):
        environment.reset(seed, instruction)
        episode = environment.run(policy, None, instruction, 0.0, seed)
        done = bool(environment.outcome())
        at_end, ever, actions = at_end + holds(environment), ever + done, actions + episode.steps
        early += episode.ended_by == "done" and not done
        redundant += episode.steps - episode.done_step if done and episode.done_step is not None else 0
    return {"task": instruction, "ended by": ended, "episodes": episodes, "holds at the end": at_end,
            "interval": str(wilson(at_end, episodes)), "held at some time": ever, "redundant actions": redundant,
            "actions": actions, "ended before it was done": early}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--scene", default="train_oak")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--judge", default="tiny/reflector")
    parser.add_argument("--looks", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    args = parser.parse_args()
    policy, rows = load_policy(), []
    for task in args.tasks:
        for ended in ("nobody", "judge", "oracle"):
            environment = TwinEnvironment(load_scene(args.scene))
            size = environment.frame_size
            environment.done = {"nobody": None, "judge": DoneWatch(load_judges(args.judge), size, looks=args.looks),
                                "oracle": DoneWatch(Oracle(environment), size, looks=1)}[ended]
            try:
                rows.append(measure(environment, policy, task, args.episodes, ended))
            finally:
                environment.close()
            print(json.dumps(rows[-1]), flush=True)
    if args.out is not None:
        with args.out.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
