"""Imagine recorded episodes again: same first frames, same actions, imagined images, true labels. Data for the judge.

A judge that has only seen true frames believes a flattering rollout. Trained on rollouts labelled with what the same
actions truly did, it learns which of them lie. To be done again after every change of the world model.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from world_gymnast_ros.data.read import read_arrays
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.evaluation.replay import imagine_again
from world_gymnast_ros.files import whole
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.loading.load import load_world_model
from world_gymnast_ros.types import WorldModel


def imagine_file(world: WorldModel, source: Path, target: Path, episodes: int, seed: int) -> int:
    """Imagine up to `episodes` of a file of episodes again, into a file of the same format; return how many."""
    try:
        with np.load(source, allow_pickle=False) as data:
            arrays = {k: data[k][:episodes] for k in data.files}
    except (OSError, ValueError) as error:
        raise EpisodeError(f"{source} holds no episodes ({error}); `world-gymnast twin play` makes such files"
                           ) from error
    recorded = read_arrays(source)[:episodes]
    frames = np.repeat(arrays["frames"][:, :1], arrays["frames"].shape[1], 1)
    for i, rollout in enumerate(imagine_again(world, recorded, seed)):
        frames[i, :rollout.shape[1]] = resize_rgb(rollout[0], frames.shape[2:4])
        frames[i, rollout.shape[1]:] = frames[i, rollout.shape[1] - 1]
    arrays["frames"] = frames
    with whole(target) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)
    return len(recorded)


def main(play: Path, world_model: str, out: Path, episodes: int, seed: int, threads: int,
         judge: Sequence[str] = ()) -> int:
    """Imagine every file of a folder, at most so many `episodes` of each, as with these judges: a geometric one among
    them draws contact by its geometry, without one it is as the world model has learned it."""
    torch.set_num_threads(threads)
    files = sorted(play.glob("*.npz"))
    if not files:
        raise EpisodeError(f"no *.npz in {play}; make play data with `world-gymnast twin play`")
    world = load_world_model(world_model, judge)
    for i, path in enumerate(tqdm(files, unit="file", desc="imagining")):
        imagine_file(world, path, out / path.name, episodes, seed + 1000 * i)
    return 0
