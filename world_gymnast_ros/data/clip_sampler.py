"""Training clips cut from episodes: augmentation of small data, and batches."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.objects import ObjectTracks
from world_gymnast_ros.types import F32, F64, I64, U8

MOST_OBJECTS = 8
"""Of one clip."""
MIRROR = np.array([1, -1, 1, -1, 1, -1, 1], np.float32)
"""A left-right mirrored scene: y, roll and yaw change sign."""


@dataclass(frozen=True)
class Batch:
    """Training clips. `previous`, `following` uint8 (B, T, H, W, 3); `first` uint8 (B, 1, H, W, 3), start frames;
    `deltas` float32 (B, T, 7); `states` float32 (B, T + 1, 7), the target before the first and after each action;
    `first_states` float32 (B, 7), at the start frame; `known` bool (B,). `places_m` float32 (B, T + 1, N, 3) of objects
    at the start frame and after each action, NaN where there are none or nothing is known; `cameras` (B, 12), which see
    them; `sizes_m` (B, N, 2), their radii and heights. `silhouette_camera` float64 (B, 12), the cameras that the arm is
    drawn for, NaN for the model's own. `behind` uint8 (B, T, H, W, 3): what is behind the arm after each action, as a
    moving background predicts it; None where nothing does."""

    previous: U8
    following: U8
    first: U8
    deltas: F32
    states: F32
    first_states: F32
    known: np.ndarray
    places_m: F32
    cameras: F32
    sizes_m: F32
    silhouette_camera: F64
    behind: U8 | None = None


def places_at(tracks: Sequence[ObjectTracks | None], rows: Sequence[I64]) -> tuple[F32, F32, F32]:
    """Return places float32 (B, R, N, 3) of each clip's objects at its frames `rows` (R,), cameras (B, 12) and sizes
    (B, N, 2).

    NaN where there are none; past an episode's end those of its last frame.
    """
    places_m = np.full((len(tracks), len(rows[0]), MOST_OBJECTS, 3), np.nan, np.float32)
    sizes_m = np.full((len(tracks), MOST_OBJECTS, 2), np.nan, np.float32)
    cameras = np.zeros((len(tracks), 12), np.float32)
    for i, (some, frames) in enumerate(zip(tracks, rows, strict=True)):
        if some is not None:
            path_m = some.path_m[np.minimum(frames, len(some.path_m) - 1), :MOST_OBJECTS]
            places_m[i, :, :path_m.shape[1]], cameras[i] = path_m, some.camera
            sizes_m[i, :path_m.shape[1]] = some.sizes_m[:MOST_OBJECTS]
    return places_m, cameras, sizes_m


def variants(episode: Episode, size_px: int, count: int, rng: np.random.Generator) -> Iterator[Episode]:
    """Yield `count` versions of one clip: cut, shifted, mirrored (with its actions), brighter or tinted.

    One choice for the whole clip, so that motion stays consistent.
    """
    height, width = episode.frames.shape[1:3]
    for _ in range(count):
        scale = rng.uniform(0.72, 1.0, 2)
        left, top = rng.uniform(0, (1 - scale)) * (width, height)
        box = (left, top, left + scale[0] * width, top + scale[1] * height)
        frames = np.stack([np.asarray(Image.fromarray(f).resize((size_px, size_px), Image.Resampling.BOX, box=box))
                           for f in episode.frames])
        gain, gamma = rng.uniform(0.75, 1.2) * rng.uniform(0.9, 1.1, 3), rng.uniform(0.8, 1.25)
        table = np.clip(255.0 * gain * (np.arange(256)[:, None] / 255.0) ** gamma, 0, 255).round().astype(np.uint8)
        frames = np.stack([table[frames[..., c], c] for c in range(3)], -1)
        deltas = episode.deltas
        if rng.random() < 0.5:
            frames, deltas = np.ascontiguousarray(frames[:, :, ::-1]), deltas * MIRROR
        yield replace(episode, frames=frames, deltas=deltas)


def task_balance(episodes: Sequence[Episode], task_weights: dict[str, float]) -> F64:
    """Return a weight per episode (E,) that gives each task its share (missing: 1), however many it has."""
    names = np.array([e.task for e in episodes])
    share = {f: task_weights.get(str(f), 1.0) / np.count_nonzero(names == f) for f in np.unique(names)}
    return np.array([share[n] for n in names])


class ClipSource:
    """Draw training clips from episodes, tasks balanced by `task_weights` (missing: 1), or by `weights` (E,)."""

    def __init__(self, episodes: Sequence[Episode], clip_frames: int, task_weights: dict[str, float],
                 weights: F64 | None = None) -> None:
        self.episodes, self.clip_frames = list(episodes), clip_frames
        short = [e.name for e in self.episodes if e.steps < clip_frames]
        if short:
            raise BadConfig(f"episode {short[0]} has fewer than {clip_frames} actions, as {len(short)} of "
                            f"{len(self.episodes)} have; move them away, or record longer ones")
        self.moving = all(e.background is not None for e in self.episodes)
        """Whether a background is predicted for every episode: one step from the next, so not from any frame."""
        if weights is None:
            weights = task_balance(self.episodes, task_weights)
        self.cumulative = np.cumsum(weights / weights.sum())

    def draw(self, rng: np.random.Generator, count: int) -> I64:
        """Draw `count` episode indices."""
        return np.minimum(np.searchsorted(self.cumulative, rng.random(count), "right"), len(self.episodes) - 1)

    def batch(self, rng: np.random.Generator, count: int, state_dropout: float,
              own: dict[int, U8] | None = None) -> Batch:
        """Cut `count` clips. With `own` (episode index to frames imagined of it), half get imagined previous frames.

        The start frame of a clip is its episode's first frame or, in one case of four, any frame up to the clip; always
        the first where a moving background is predicted from there.
        """
        indices, T = self.draw(rng, count), self.clip_frames
        redrawn = sorted(own) if own else []  # whatever order a resumed run read them in
        if redrawn:
            indices[: count // 2] = rng.choice(redrawn, count // 2)
        rows, behind = [], []
        for i, index in enumerate(indices):
            e = self.episodes[index]
            past = own[int(index)] if own and redrawn and i < count // 2 else e.frames
            s = int(rng.integers(0, e.steps - T + 1))
            f = int(rng.integers(0, s + 1)) if rng.random() < 0.25 and not self.moving else 0
            known = e.states is not None and rng.random() >= state_dropout
            targets = e.states if known and e.states is not None else np.zeros((e.steps + 1, 7), np.float32)
            places_m, camera, sizes_m = places_at([e.objects if known else None], [np.r_[f, s + 1:s + T + 1]])
            if self.moving and e.background is not None:
                behind.append(e.background[s + 1:s + T + 1] if known else np.repeat(e.background[:1], T, 0))
            rows.append((past[s:s + T], e.frames[s + 1:s + T + 1], e.frames[f:f + 1], e.deltas[s:s + T],
                         targets[s:s + T + 1], targets[f], known, places_m[0], camera[0], sizes_m[0],
                         np.full(12, np.nan) if e.silhouette_camera is None else e.silhouette_camera))
        batch = Batch(*(np.stack(column) for column in zip(*rows, strict=True)))
        return replace(batch, behind=np.stack(behind)) if behind else batch
