"""Play data as one flat table of frames, for policy and judge: rows are frames, episodes are runs of rows.

The files are described in `docs/reference/formats.md`; they hold plain arrays and are read without pickle.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.types import F32, I64, U8

NEEDED = ("frames", "deltas", "measured", "length", "success", "instruction", "family", "scene", "behaviour", "seed")
TRUTH = ("object_names", "objects_xyz", "alt_instructions", "alt_success")
"""What only a simulator knows."""


@dataclass(frozen=True)
class Episode:
    """One episode: rows `first` .. `first + steps` of the table. `alternatives`: other instructions of the scene."""

    first: int
    steps: int
    instruction: str
    family: str
    scene: str
    behaviour: str
    seed: int
    objects: tuple[str, ...]
    alternatives: tuple[str, ...]


@dataclass(frozen=True)
class PlayTable:
    """N frames of E episodes. `frames` (N, H, W, 3); `deltas` (N, 7), zero in the last row of an episode;
    `tip_m` (N, 3) measured gripper tip, `objects_m` (N, O, 3), base frame; `success` (N,) of the own instruction,
    `alt_success` (N, A)."""

    frames: U8
    deltas: F32
    tip_m: F32
    objects_m: F32
    success: NDArray[np.bool_]
    alt_success: NDArray[np.bool_]
    episodes: tuple[Episode, ...]

    def labels(self, episode: Episode, instruction: str) -> NDArray[np.bool_]:
        """Return the true success (steps + 1,) of one of the episode's instructions."""
        rows = slice(episode.first, episode.first + episode.steps + 1)
        if instruction == episode.instruction:
            return self.success[rows]
        return self.alt_success[rows, episode.alternatives.index(instruction)]

    def places(self, episode: Episode, row: I64 | int, instruction: str) -> tuple[F32, NDArray[np.bool_]]:
        """Return positions (..., 3, 3) of tip, named object, destination, and which of them are known (3,)."""
        words = instruction.lower().split()
        names = [i for i, name in enumerate(episode.objects) if name and name in " ".join(words)]
        names.sort(key=lambda i: " ".join(words).find(episode.objects[i]))
        out = np.zeros((*np.shape(row), 3, 3), np.float32)
        known = np.array([True, len(names) > 0, len(names) > 1])
        out[..., 0, :] = self.tip_m[row]
        for slot, index in enumerate(names[:2]):
            out[..., slot + 1, :] = self.objects_m[row, index]
        return out, known


def read_play(directory: str | Path, scenes: Sequence[str] | None = None, families: Sequence[str] | None = None,
              size_px: int | None = None) -> PlayTable:
    """Read all files of a play directory, keeping episodes of `scenes` and `families` (None: all). `size_px`: square
    size of the frames (None: as they are)."""
    files = sorted(Path(directory).glob("*.npz"))
    parts: list[dict[str, NDArray[np.generic]]] = []
    episodes: list[Episode] = []
    rows = 0
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as archive:
                data = {key: archive[key] for key in NEEDED}
                data |= {key: archive[key] for key in TRUTH} if set(TRUTH) <= set(archive.files) else _unknown(data)
        except (OSError, ValueError, KeyError) as error:
            raise EpisodeError(f"{file} is not a play file ({error}); make the play data again") from error
        keep = [i for i in range(len(data["length"])) if (scenes is None or str(data["scene"][i]) in scenes)
                and (families is None or str(data["family"][i]) in families)]
        for i in keep:
            steps = int(data["length"][i])
            episodes.append(_episode(data, i, rows, steps))
            parts.append(_rows(data, i, steps))
            if size_px is not None:
                parts[-1]["frames"] = resize_rgb(parts[-1]["frames"], (size_px, size_px))  # type: ignore[arg-type]
            rows += steps + 1
    if not episodes:
        raise EpisodeError(f"no episodes in {directory} ({len(files)} files) for scenes {scenes or 'all'} and families "
                           f"{families or 'all'}; make play data first or name other scenes")
    flat = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    return PlayTable(**flat, episodes=tuple(episodes))  # type: ignore[arg-type]


def _unknown(data: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """Return TRUTH where nobody knows: no object and no other instruction."""
    count, frames = data["success"].shape
    return {"object_names": np.zeros((count, 0), "U64"), "objects_xyz": np.zeros((count, frames, 0, 3), np.float32),
            "alt_instructions": np.zeros((count, 0), "U64"), "alt_success": np.zeros((count, 0, frames), np.bool_)}


def _episode(data: dict[str, NDArray[np.generic]], i: int, first: int, steps: int) -> Episode:
    return Episode(first, steps, str(data["instruction"][i]), str(data["family"][i]), str(data["scene"][i]),
                   str(data["behaviour"][i]), int(data["seed"][i]), tuple(str(n) for n in data["object_names"][i]),
                   tuple(str(a) for a in data["alt_instructions"][i] if a))


def _rows(data: dict[str, NDArray[np.generic]], i: int, steps: int) -> dict[str, NDArray[np.generic]]:
    deltas = np.zeros((steps + 1, 7), np.float32)
    deltas[:steps] = data["deltas"][i][:steps]
    return {"frames": data["frames"][i][:steps + 1], "deltas": deltas, "tip_m": data["measured"][i][:steps + 1, :3],
            "objects_m": data["objects_xyz"][i][:steps + 1], "success": data["success"][i][:steps + 1],
            "alt_success": data["alt_success"][i].T[:steps + 1]}


def held_out(episodes: Sequence[Episode], share: float) -> tuple[list[Episode], list[Episode]]:
    """Split episodes into (training, held out) by their seed, so that a split never depends on file order."""
    mark = [(episode.seed * 2654435761 % 2**32) / 2**32 < share for episode in episodes]
    return ([e for e, m in zip(episodes, mark, strict=True) if not m],
            [e for e, m in zip(episodes, mark, strict=True) if m])
