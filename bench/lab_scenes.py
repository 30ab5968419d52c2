"""How wrong the shipped models are in scenes of a lab: what the base policy explores there, replayed in the dream.

A condition for the loop is worth building where the dream and its judges are wrong: where they call true failures
successes, or miss true successes. And where the base succeeds at times, or there is nothing to learn from. This is
looked at before any loop is run.

    python bench/lab_scenes.py                         # all scenes lab_*, each instruction
    python bench/lab_scenes.py --scenes my_lab.yaml    # yours, before you build on it
"""
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from world_gymnast_ros.data.recordings import play_file
from world_gymnast_ros.evaluation.replay import replay_figures
from world_gymnast_ros.models import load as build
from world_gymnast_ros.statistics import wilson
from world_gymnast_ros.twin.play import write_rows
from world_gymnast_ros.twin.policy_play import policy_episodes
from world_gymnast_ros.twin.scene import Scene, known_scenes, load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.types import Policy

FIRST_SEED = 70_000


def explored(policy: Policy, scene: Scene, instruction: str, episodes: int, temperature: float, out: Path) -> Path:
    """Write explored episodes of `policy` to the play-data file `out`; return it."""
    twin = Twin(scene)
    try:
        seeds = range(FIRST_SEED, FIRST_SEED + episodes)
        write_rows(out, policy_episodes(twin, policy, seeds, instruction, temperature, "policy"))
    finally:
        twin.close()
    return out


def main() -> None:
    """Print the table."""
    text, *_ = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(description=text)
    usual = sorted(name for name in known_scenes() if name.startswith("lab_"))
    parser.add_argument("--scenes", nargs="+", default=usual, help="names or YAML files (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=1.2, help="of exploration, as in the loop")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    policy, world = build.load_policy(), build.load_world_model()
    judges, probe = build.load_judges(), build.load_judge()
    tasks = [(scene, words) for scene in map(load_scene, args.scenes) for words in scene.instructions]
    lines = ["| scene | base succeeds | imagined | failures called successes | successes missed | outcomes agree "
             "[95 %] | structural error |", "|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for scene, words in tqdm(tasks, unit="task", desc="replaying"):
            file = explored(policy, scene, words, args.episodes, args.temperature, Path(folder) / "play.npz")
            found = replay_figures(world, judges, probe, play_file(file), seed=3)
            row = found.summary()
            agree = wilson(int((found.claimed == found.success).sum()), len(found.success))
            lines.append(f"| `{scene.name}`: {words} | {row['true_success']:.2f} | {row['imagined_success']:.2f} | "
                         f"{row['false_success']:.2f} of {row['failures']} | {row['missed']:.2f} | {agree} | "
                         f"{row['structural']:.3f} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
