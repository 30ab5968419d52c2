"""What does contact from data bring? Paired replay without contact, with the learned one, with the hand-written one.

    python bench/learned_contact.py                     100 held-out episodes of each task
    python bench/learned_contact.py --unseen --most 30  pushing objects that no training showed

One rollout an episode, judged by frames and instruction alone (`--judge`). Rates: each half of the episodes
judged with the threshold for 5 % false positives of the other half.
"""
from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch

from world_gymnast_ros.data.episode_files import write_rows
from world_gymnast_ros.data.read import read_arrays
from world_gymnast_ros.evaluation.replay import Replays, replay_episodes
from world_gymnast_ros.loading.load import load_judges, load_world_model
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld
from world_gymnast_ros.twin import play
from world_gymnast_ros.twin.scene import ObjectSpec, Scene
from world_gymnast_ros.types import F64

HELD_OUT = {"push": 7100, "pick_place": 7200, "reach": 7000}
"""Seeds of the held-out files of play."""
UNSEEN = {"bottle": {"shape": "bottle", "called": "cylinder"}, "bar": {"shape": "bar", "called": "block"},
          "ball": {"shape": "ball", "called": "block"}, "heavy": {"mass_kg": 0.2}, "slippery": {"friction": 0.15}}
"""What is changed of the object that is pushed; "called" is the word for it that the judge knows."""
FIRST_SEED, MOST = 990_000_000, 10_000
FALSE_POSITIVES = 0.05


def worlds() -> dict[str, ActionDiTWorld]:
    """Return the shipped world model with each kind of contact."""
    learned, hand_written = load_world_model("", "tiny/reflector", "cpu"), load_world_model("", "", "cpu")
    assert isinstance(learned, ActionDiTWorld) and isinstance(hand_written, ActionDiTWorld)
    nothing = ActionDiTWorld(learned.network, "cpu", next(learned.network.parameters()).dtype)
    return {"nothing moves": nothing, "learned": learned, "hand-written": hand_written}


def rates(score: F64, success: np.ndarray) -> tuple[float, float]:
    """Return false positive rate and recall of both halves, each with the threshold of the other."""
    score = np.nan_to_num(score, nan=-1.0)
    half = np.arange(len(score)) % 2 == 0
    called = np.zeros(len(score), bool)
    for fitted in (half, ~half):
        failed = score[fitted & ~success]
        threshold = min((t for t in np.unique(score[fitted]) if (failed >= t).mean() <= FALSE_POSITIVES), default=2.0)
        called[~fitted] = score[~fitted] >= threshold
    return float(called[~success].mean()), float(called[success].mean())


def changed(scene: Scene, words: str, change: dict[str, object]) -> Scene | None:
    """Return the scene with the object that `words` name changed; None where two would have one name then."""
    objects = tuple(dataclasses.replace(o, **change) if _is_meant(o, words) else o  # type: ignore[arg-type]
                    for o in scene.objects)
    old, new = next((a.name, b.name) for a, b in zip(scene.objects, objects, strict=True) if a is not b)
    names = [o.name for o in objects + scene.distractors]
    asked = words.replace(old, new)
    return dataclasses.replace(scene, objects=objects, instructions=(asked,)) if len({*names}) == len(names) else None


def _is_meant(spec: ObjectSpec, words: str) -> bool:
    return spec.name in words and spec.shape != "plate"


def make_unseen(path: Path, kind: int, change: dict[str, object], count: int) -> None:
    """Write episodes of pushing, experts and such that believe the object elsewhere by turns."""
    rows: list[dict[str, np.ndarray]] = []
    for seed in range(FIRST_SEED + kind * MOST, FIRST_SEED + (kind + 1) * MOST):
        drawn = play.wide_scene(np.random.default_rng((seed, 7)), "push")
        if (scene := changed(drawn, drawn.instructions[0], change)) is not None:
            rows.append(play.record_episode(scene, seed, ("expert", "perturbed")[len(rows) % 2], len(rows) % 4 < 2))
        if len(rows) == count:
            break
    write_rows(path, rows)


def line(name: str, found: dict[str, Replays]) -> str:
    """Return one row of the table."""
    cells = []
    for replays in found.values():
        row = replays.release_row()
        false, recall = rates(replays.score, replays.success)
        cells.append(f"{row['auc']:.3f} [{row['low']:.3f}, {row['high']:.3f}]; {false:.2f} / {recall:.2f}")
    return f"| {name} ({row['successes']} of {row['episodes']}) | {' | '.join(cells)} | {row['auc_true_frames']:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100, help="episodes of each kind (default: %(default)s)")
    parser.add_argument("--unseen", action="store_true", help="objects that no training showed")
    parser.add_argument("--only", nargs="+", help="these kinds alone")
    parser.add_argument("--judge", default="tiny/reflector", help="folder or shipped name of the learned judge "
                        "(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    judge = load_judges(args.judge, "cpu")
    print("| kind (successes) | " + " | ".join(f"{w}: AUC; false positives / recall" for w in worlds())
          + " | recorded frames |\n|" + "---|" * 5, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, kind in enumerate(UNSEEN if args.unseen else HELD_OUT):
            if args.only and kind not in args.only:
                continue
            path = Path(folder) / f"{kind}.npz"
            if args.unseen:
                make_unseen(path, number, dict(UNSEEN[kind]), args.most)
            else:
                play.make_file(path, kind, "wide_play", args.most, HELD_OUT[kind])
            episodes = read_arrays(path)
            print(line(kind, {name: replay_episodes(world, judge, episodes, args.seed, ceiling=True)
                              for name, world in worlds().items()}), flush=True)


if __name__ == "__main__":
    main()
