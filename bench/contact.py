"""How well is it foreseen where the hand takes things? `python bench/contact.py --data DIR [--measured]`.

Play data of pushing and pick-and-place: hands from the actions, things where they truly lay at the beginning, or with
--measured where the measuring judge found them in the captured frame. Prints by family how far off the foreseen last
place is, and how its distance to success ranks true outcomes (AUC). The lengths in `contact.py` were fitted to
play of tools/train_tiny (folder `all`); `data/held_out` is what the release gate replays.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from world_gymnast_ros.models import load as build
from world_gymnast_ros.models.judges.consensus import TwoJudges
from world_gymnast_ros.statistics import paired_replay_auc
from world_gymnast_ros.tabletop.contact import along_and_aside, handled
from world_gymnast_ros.tabletop.geometric_judge import MeasuringJudge
from world_gymnast_ros.twin.tasks import DIRECTIONS, PUSH_LATERAL_M, parse_instruction
from world_gymnast_ros.types import RolloutFacts


def foreseen(judge: MeasuringJudge, file: Path, measured: bool) -> dict[str, list[tuple[float, float, bool]]]:
    """Return by family, for each episode: error of the last place in m, how near to success (m), and the outcome."""
    out: dict[str, list[tuple[float, float, bool]]] = {}
    with np.load(file, allow_pickle=False) as play:
        data = {k: play[k] for k in play.files}
    for i, steps in enumerate(data["length"]):
        words = str(data["instruction"][i])
        task = parse_instruction(words)
        if task.family == "reach":
            continue
        names = (task.target, task.goal) if task.goal else (task.target,)
        index = [[str(n) for n in data["object_names"][i]].index(n) for n in names]
        places = data["objects_xyz"][i, 0, index].astype(np.float64)
        end = data["objects_xyz"][i, steps, index[0], :2]
        state = data["states"][i, 0]
        if measured:
            found = judge.reader.measure(data["captured"][i], state, names)
            if found.fault:
                continue
            places = found.places_m
        hand = judge.hands(RolloutFacts([data["frames"][i, 0]], [state], data["deltas"][i, None, :steps]))
        (path,), (held,) = (x[:, :, 0] for x in handled(hand, places[None, :1]))
        path = path[:, :2]
        if task.family == "push":
            along, aside = along_and_aside(path, DIRECTIONS[task.direction])
            near = along[-1] - max(0.0, aside[-1] - PUSH_LATERAL_M)
        else:
            near = -float(np.linalg.norm(path[-1] - places[1, :2])) - 0.05 * bool(held[-1])
        out.setdefault(task.family, []).append(
            (float(np.linalg.norm(path[-1] - end)), float(near), bool(data["success"][i, steps])))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of play data")
    parser.add_argument("--measured", action="store_true", help="places as the judge finds them, not the true ones")
    args = parser.parse_args()
    judges = build.load_judges()
    assert isinstance(judges, TwoJudges) and isinstance(judges.measuring, MeasuringJudge)
    rows: dict[str, list[tuple[float, float, bool]]] = {}
    for file in tqdm(sorted(args.data.glob("p*.npz")), unit="file"):
        for family, some in foreseen(judges.measuring, file, args.measured).items():
            rows.setdefault(family, []).extend(some)
    print("| family | episodes (successes) | last place off, mm: median, 90 % | AUC |\n|---|---|---|---|")
    for family, some in rows.items():
        off, near, won = (np.array(x) for x in zip(*some, strict=True))
        print(f"| {family} | {len(won)} ({int(won.sum())}) | {1000 * np.median(off):.1f}, "
              f"{1000 * np.quantile(off, 0.9):.1f} | {paired_replay_auc(list(near), list(won))} |")


if __name__ == "__main__":
    main()
