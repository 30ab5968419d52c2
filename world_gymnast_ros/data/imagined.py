"""Dream recorded episodes: same first frames, same actions, imagined pictures, true labels. Data for the judge.

A judge that has only seen true frames believes a flattering dream. Trained on dreams labelled with what the same
actions truly did, it learns which dreams lie. To be done again after every change of the world model.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from world_gymnast_ros.data.play_data import PlayEpisode, object_tracks, places_at, seen_with
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.models.load import load_world_model
from world_gymnast_ros.models.world_models.action_dit_world import (
    ActionDiTWorld,
    FrameSampler,
    condition_vector,
    to_uint8,
)
from world_gymnast_ros.objects import ObjectTracks
from world_gymnast_ros.types import F32, U8

BATCH = 64


def dream_episodes(world: ActionDiTWorld, first: U8, deltas: F32, states: F32, seed: int,
                   tracks: Sequence[ObjectTracks | None] | None = None) -> U8:
    """Return dreams uint8 (E, T+1, H, W, 3) of actions (E, T, 7), target states (E, T+1, 7), frames (E, H, W, 3)."""
    places_m, cameras, sizes_m = places_at(tracks or [None] * len(first), [np.arange(deltas.shape[1] + 1)] * len(first))
    frames = np.repeat(first[:, None], deltas.shape[1] + 1, axis=1)
    for i in range(0, len(first), BATCH):
        part = slice(i, i + BATCH)
        start = torch.from_numpy(np.ascontiguousarray(first[part])).to(world.device).float().div_(255.0)
        generator = torch.Generator(world.device).manual_seed(seed + i)
        sampler = FrameSampler(world.network, start, world.sampling_steps, generator,
                               (places_m[part, 0], cameras[part], sizes_m[part]))
        conditions = torch.from_numpy(condition_vector(
            world.config, deltas[part], states[part, :-1], states[part, 1:], True))
        for t in range(deltas.shape[1]):
            frames[part, t + 1] = to_uint8(sampler.step(conditions[:, t], places_m[part, t + 1]))
    return frames


def tracks_of(world: ActionDiTWorld, arrays: dict[str, np.ndarray]) -> list[ObjectTracks | None]:
    """Return the object tracks of each episode of play data: found in captured frames, where the file holds them."""
    if "captured" in arrays and world.objects is not None:
        objects = world.objects
        return [seen_with(PlayEpisode(frames[:n + 1], deltas[:n], states[:n + 1], "", "", captured=captured),
                            objects).objects for frames, deltas, states, captured, n in zip(
                                arrays["frames"], arrays["deltas"], arrays["states"], arrays["captured"],
                                arrays["length"].tolist(), strict=True)]
    return object_tracks(arrays)


def dream_file(world: ActionDiTWorld, source: Path, target: Path, episodes: int, seed: int) -> int:
    """Dream up to `episodes` of a play-data file into a file of the same format; return how many."""
    try:
        with np.load(source, allow_pickle=False) as data:
            arrays = {k: data[k][:episodes] for k in data.files}
    except (OSError, ValueError) as error:
        raise EpisodeError(f"{source} is not play data ({error}); make some with `world-gymnast twin play`") from error
    arrays["frames"] = dream_episodes(world, arrays["frames"][:, 0], arrays["deltas"], arrays["states"], seed,
                                      tracks_of(world, arrays))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(stream, **arrays)
    os.replace(partial, target)
    return len(arrays["frames"])


def main(argv: Sequence[str] | None = None) -> int:
    """Dream from the command line."""
    parser = argparse.ArgumentParser(prog="world-gymnast train dreams", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--play", type=Path, required=True, help="directory of play data (*.npz)")
    parser.add_argument("--world-model", default="", help="checkpoint folder (default: the shipped tiny one)")
    parser.add_argument("--out", type=Path, required=True, help="directory to write, same file names")
    parser.add_argument("--episodes", type=int, default=100, help="at most so many per file (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    world = load_world_model(args.world_model)
    files = sorted(args.play.glob("*.npz"))
    if not files:
        raise EpisodeError(f"no *.npz in {args.play}; make play data with `world-gymnast twin play`")
    for i, path in enumerate(tqdm(files, unit="file", desc="dreaming")):
        dream_file(world, path, args.out / path.name, args.episodes, args.seed + 1000 * i)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
