"""Is what the hand moves drawn where it truly went? `python bench/moved_things.py --data DIR [--world-model DIR]`.

Play data of pushing and pick-and-place is dreamed again, same first frame, same actions. Of every thing that truly
moved by 4 cm and 5 pixels and is seen in the last true picture: how much of its colour does the dream show at its true
last place ("arrived": 1 its colour, 0 the table's), and how much at its first ("left behind")? In the true picture, in
the dream, and in the dream of a world model that is told of no things.
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from world_gymnast_ros.adaptation.rollout import replay_from
from world_gymnast_ros.models import load as build
from world_gymnast_ros.models.world_models.background import project
from world_gymnast_ros.types import F64, U8

MOVED_M, MOVED_PX, SEEN, CONTRAST = 0.04, 5, 0.6, 40.0
BATCH = 25


@dataclass(frozen=True)
class Moved:
    """Things that truly moved: row of the file, pixels (2,) at first and last, colours there in the first frame."""

    rows: np.ndarray
    first_px: F64
    last_px: F64
    colour: F64
    table: F64

    def likeness(self, pictures: U8, places_px: F64) -> F64:
        """Return how much of each thing's colour pictures (N, H, W, 3) show at places: 1 its own, 0 the table's."""
        toward = self.colour - self.table
        return np.asarray(((patch(pictures, places_px) - self.table) * toward).sum(1) / (toward * toward).sum(1))


def patch(pictures: U8, places_px: F64) -> F64:
    """Return the mean colour (N, 3) of 3x3 pixels about places (N, 2), column and row."""
    side = pictures.shape[1]
    col, row = (np.clip(np.round(places_px[:, i]).astype(int), 1, side - 2) for i in (0, 1))
    n = np.arange(len(pictures))
    return np.asarray(np.mean([pictures[n, row + i, col + j].astype(np.float64) for i in (-1, 0, 1)
                               for j in (-1, 0, 1)], 0))


def pixels(places_m: F64, cameras: F64, side: int) -> F64:
    """Return pixels (N, 2), column and row, of places (N, 3) seen by cameras (N, 12)."""
    uv, _ = project(torch.from_numpy(cameras).double(), torch.from_numpy(places_m)[:, None])
    return np.asarray((uv[:, 0].numpy() + 1.0) * side / 2 - 0.5)


def find_moved(data: dict[str, np.ndarray]) -> Moved:
    """Return what truly moved, is seen at its last place and differs from the table."""
    E, end, side = np.arange(len(data["length"])), data["length"], data["frames"].shape[2]
    start_m, end_m = data["objects_xyz"][:, 0].astype(np.float64), data["objects_xyz"][E, end].astype(np.float64)
    row, thing = np.nonzero((np.linalg.norm(end_m - start_m, axis=-1) > MOVED_M) & (data["object_names"] != ""))
    first_px, last_px = (pixels(x[row, thing], data["camera"][row], side) for x in (start_m, end_m))
    inside = np.all([((p > 2) & (p < side - 3)).all(1) for p in (first_px, last_px)], 0)
    good = inside & (np.abs(last_px - first_px).max(1) > MOVED_PX)
    row, first_px, last_px = row[good], first_px[good], last_px[good]
    first = data["frames"][row, 0]
    some = Moved(row, first_px, last_px, patch(first, first_px), patch(first, last_px))
    seen = some.likeness(data["frames"][row, end[row]], last_px) > SEEN
    seen &= np.linalg.norm(some.colour - some.table, axis=1) > CONTRAST
    return Moved(*(getattr(some, k)[seen] for k in ("rows", "first_px", "last_px", "colour", "table")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of play data with captured frames")
    parser.add_argument("--world-model", default="", help="checkpoint folder (default: the shipped tiny one)")
    args = parser.parse_args()
    world = build.load_world_model(args.world_model)
    reader = world.reader
    shown: dict[tuple[str, str], list[F64]] = {}
    for file in tqdm(sorted(args.data.glob("p*.npz")), unit="file"):
        with np.load(file, allow_pickle=False) as play:
            data = {k: play[k] for k in play.files}
        moved, end = find_moved(data), data["length"]
        films = {"true": data["frames"]}
        for name, known in (("dream", reader), ("dream, no things known", None)):
            world.reader = known
            parts = np.array_split(np.arange(len(end)), -(-len(end) // BATCH))
            films[name] = np.concatenate([replay_from(
                world, data["frames"][part, 0], list(data["states"][part, 0]), data["deltas"][part], int(part[0]),
                captured=list(data["captured"][part])) for part in parts])
        for name, film in films.items():
            last = film[moved.rows, end[moved.rows]]
            both = np.stack([moved.likeness(last, moved.last_px), moved.likeness(last, moved.first_px)], 1)
            shown.setdefault((str(data["family"][0]), name), []).append(both)
    print("| family | pictures | things | arrived: mean, over one half | left behind: mean, over one half |\n"
          "|---|---|---|---|---|")
    for (family, name), parts in shown.items():
        arrived, left = np.concatenate(parts).T
        print(f"| {family} | {name} | {len(arrived)} | {arrived.mean():.2f}, {(arrived > 0.5).mean():.0%} "
              f"| {left.mean():.2f}, {(left > 0.5).mean():.0%} |")


if __name__ == "__main__":
    main()
