"""Episodes for world-model training: the twin's play data and recorded WorldGym-format clips, in one form.

Both give frames (T + 1) and the T actions between them: `deltas[t]` was taken *at* frame t and leads to frame t + 1.
A clip's file holds an action at its last frame too; that one leads nowhere and is dropped.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from world_gymnast_ros.data.lerobot import is_lerobot, read_lerobot
from world_gymnast_ros.errors import BadConfig, EpisodeError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.objects import ObjectDynamics, ObjectTracks
from world_gymnast_ros.tabletop.contact import OBJECT_SIZE_M, predicted_path
from world_gymnast_ros.types import F32, F64, I64, U8

WORLDGYM_SCALE = np.array([0.05 / 1.75] * 3 + [0.25 / 1.4] * 3, np.float32)
"""m and rad per WorldGym unit."""
OBJECT_KEYS = ("objects_xyz", "object_names", "states", "camera", "length", "seed")
PLACE_SIGMA_M = 0.004
"""How inexactly places are measured (`LocatorConfig.sigma_m`); what is learned from must be as inexact."""
MOST_OBJECTS = 8
"""Of one clip."""
MIRROR = np.array([1, -1, 1, -1, 1, -1, 1], np.float32)
"""A left-right mirrored scene: y, roll and yaw change sign."""


@dataclass(frozen=True)
class PlayEpisode:
    """`frames` uint8 (T+1, H, W, 3); `deltas` float32 (T, 7); `states` float32 (T+1, 7), target, or None if unknown."""

    frames: U8
    deltas: F32
    states: F32 | None
    family: str
    name: str
    camera: F32 | None = None
    """Projection of the true camera (12,), as from `outline.projection`, where it is known."""
    objects: ObjectTracks | None = None
    captured: U8 | None = None
    """The first frame as the camera gave it, uint8 (H, W, 3), where it was kept."""
    drawn_for: F64 | None = None
    """The camera (12,) that a dream of it draws the arm for, as its set-up has it (`seen_with`); None: the model's."""

    @property
    def steps(self) -> int:
        """The number of actions T."""
        return len(self.deltas)


@dataclass(frozen=True)
class Batch:
    """Training clips. `previous`, `following` uint8 (B, T, H, W, 3); `first` uint8 (B, 1, H, W, 3), start frames;
    `deltas` float32 (B, T, 7); `states` float32 (B, T + 1, 7), the target before the first and after each action;
    `first_states` float32 (B, 7), at the start frame; `known` bool (B,). `places_m` float32 (B, T + 1, N, 3) of objects
    at the start frame and after each action, NaN where there are none or nothing is known; `cameras` (B, 12), which see
    them; `sizes_m` (B, N, 2), their radii and heights. `drawn_for` float64 (B, 12), the cameras that the arm is drawn
    for, NaN for the model's own."""

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
    drawn_for: F64


# ---- reading ---------------------------------------------------------------------------------------------------


def read_play(directories: Iterable[Path], every: int = 1) -> list[PlayEpisode]:
    """Read every `every`-th episode of all play-data files (*.npz) in `directories`. EpisodeError names a bad file."""
    out: list[PlayEpisode] = []
    for path in (p for d in directories for p in sorted(Path(d).glob("*.npz"))):
        try:
            with np.load(path, allow_pickle=False) as data:
                frames, deltas, states, length, family = (
                    data[k] for k in ("frames", "deltas", "states", "length", "family"))
                camera = data["camera"] if "camera" in data.files else [None] * len(frames)
                tracks = object_tracks(data)
        except (OSError, ValueError, KeyError) as error:
            raise EpisodeError(f"{path} is not a play-data file ({error}); make one with `world-gymnast twin`"
                               ) from error
        for i in range(0, len(frames), every):
            n = int(length[i])
            out.append(PlayEpisode(frames[i, :n + 1], deltas[i, :n], states[i, :n + 1], str(family[i]),
                                   f"{path.stem}/{i}", camera[i], tracks[i]))
    if not out:
        raise EpisodeError(f"no play data (*.npz) in {', '.join(str(d) for d in directories) or 'no folder'}")
    return out


def object_tracks(play: Mapping[str, np.ndarray]) -> list[ObjectTracks | None]:
    """Return the object tracks of each episode of a play-data file, predicted from places as inexact as measured ones;
    None where the file does not say what lay where."""
    if not set(OBJECT_KEYS) <= set(play):
        return [None] * len(play["length"])
    data = {k: play[k] for k in OBJECT_KEYS}  # each read once: an open file decompresses at every look
    start = data["objects_xyz"][:, 0].astype(np.float64)
    names = data["object_names"]
    start[(names == "") | np.char.endswith(names, "plate")] = np.nan
    off = np.random.default_rng(int(data["seed"][0])).normal(0.0, PLACE_SIGMA_M, (*start.shape[:2], 3)) * (1, 1, 0)
    path = (predicted_path(data["states"], start + off) - off[:, None]).astype(np.float32)
    sizes_m = np.broadcast_to(np.float32(OBJECT_SIZE_M), (start.shape[1], 2))
    return [ObjectTracks(path[i, :n + 1], sizes_m, data["camera"][i]) for i, n in enumerate(data["length"].tolist())]


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


def seen_with(episode: PlayEpisode, objects: ObjectDynamics) -> PlayEpisode:
    """Return the episode as a world model with `objects` meets it: the arm's silhouette for the camera of its set-up,
    and the objects found in its captured frame, where that and the state are known."""
    episode = replace(episode, drawn_for=np.array(objects.projection))
    if episode.captured is None or episode.states is None:
        return episode
    return replace(episode, objects=objects.predict(episode.captured, episode.states))


def worldgym_deltas(rows: F32) -> F32:
    """Return Bridge actions float32 (T, 7) of WorldGym rows (T, >= 7): gripper -1 there is open, here 1."""
    rows = np.asarray(rows, np.float32)
    return np.concatenate([rows[:, :6] * WORLDGYM_SCALE, rows[:, 6:7] < 0.0], 1).astype(np.float32)


def decode_video(path: Path) -> U8:
    """Return all frames of a video, uint8 (T, H, W, 3), RGB."""
    import av

    try:
        with av.open(str(path)) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    except (OSError, av.FFmpegError) as error:
        raise EpisodeError(f"{path} cannot be decoded ({error}); copy the clip again") from error
    if not frames:
        raise EpisodeError(f"{path} holds no picture; copy the clip again")
    return np.stack(frames)


def read_clips(directory: Path) -> list[PlayEpisode]:
    """Read WorldGym-format clips (<id>.mp4 with <id>.npz), or a LeRobot v3 dataset, at their own size, without states.

    A LeRobot dataset has as many pictures as actions: the last action leads nowhere and is dropped.
    """
    if is_lerobot(directory):
        episodes = [PlayEpisode(e.frames, e.actions[:-1], None, "clip", f"{e.index:06d}")
                    for e in read_lerobot(directory) if len(e.actions) > 1]
        if not episodes:
            raise EpisodeError(f"no episode of two actions or more in {directory}")
        return episodes
    out = []
    for path in sorted(Path(directory).glob("*.mp4")):
        frames, file = decode_video(path), path.with_suffix(".npz")
        try:
            with np.load(file, allow_pickle=False) as data:
                rows = data["arr_0"]
        except (OSError, ValueError, KeyError) as error:
            raise EpisodeError(f"{file} does not hold the actions of {path.name} ({error}); copy it again") from error
        if rows.ndim != 2 or rows.shape[1] < 7 or len(rows) != len(frames) or len(frames) < 2:
            raise EpisodeError(f"{path.name} has {len(frames)} frames and actions {rows.shape}; expected one row of at "
                               "least 7 numbers per frame, and two frames or more")
        out.append(PlayEpisode(frames, worldgym_deltas(rows)[:-1], None, "clip", path.stem))
    if not out:
        raise EpisodeError(f"no clip (*.mp4 with *.npz) and no LeRobot dataset (meta/info.json) in {directory}")
    return out


# ---- picture augmentation of small data ------------------------------------------------------------------------


def resized(episode: PlayEpisode, size_px: int) -> PlayEpisode:
    """Return the episode with square pictures of `size_px`."""
    return replace(episode, frames=resize_rgb(episode.frames, (size_px, size_px)))


def variants(episode: PlayEpisode, size_px: int, count: int, rng: np.random.Generator) -> Iterator[PlayEpisode]:
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


# ---- batches ---------------------------------------------------------------------------------------------------


def family_balance(episodes: Sequence[PlayEpisode], family_weights: dict[str, float]) -> F64:
    """Return a weight per episode (E,) that gives each family its share (missing: 1), however many it has."""
    names = np.array([e.family for e in episodes])
    share = {f: family_weights.get(str(f), 1.0) / np.count_nonzero(names == f) for f in np.unique(names)}
    return np.array([share[n] for n in names])


class ClipSource:
    """Draw training clips from episodes, families balanced by `family_weights` (missing: 1), or by `weights` (E,)."""

    def __init__(self, episodes: Sequence[PlayEpisode], clip_frames: int, family_weights: dict[str, float],
                 weights: F64 | None = None) -> None:
        self.episodes, self.clip_frames = list(episodes), clip_frames
        short = [e.name for e in self.episodes if e.steps < clip_frames]
        if short:
            raise BadConfig(f"episode {short[0]} has fewer than {clip_frames} actions; choose a smaller clip length")
        if weights is None:
            weights = family_balance(self.episodes, family_weights)
        self.cumulative = np.cumsum(weights / weights.sum())

    def draw(self, rng: np.random.Generator, count: int) -> I64:
        """Draw `count` episode indices."""
        return np.minimum(np.searchsorted(self.cumulative, rng.random(count), "right"), len(self.episodes) - 1)

    def batch(self, rng: np.random.Generator, count: int, state_dropout: float,
              own: dict[int, U8] | None = None) -> Batch:
        """Cut `count` clips. With `own` (episode index to a dream of it), half of them get dreamed previous frames.

        The start frame of a clip is its episode's first frame or, in one case of four, any frame up to the clip.
        """
        indices, T = self.draw(rng, count), self.clip_frames
        dreamed = sorted(own) if own else []  # whatever order a resumed run read them in
        if dreamed:
            indices[: count // 2] = rng.choice(dreamed, count // 2)
        rows = []
        for i, index in enumerate(indices):
            e = self.episodes[index]
            past = own[int(index)] if own and dreamed and i < count // 2 else e.frames
            s = int(rng.integers(0, e.steps - T + 1))
            f = int(rng.integers(0, s + 1)) if rng.random() < 0.25 else 0
            known = e.states is not None and rng.random() >= state_dropout
            targets = e.states if known and e.states is not None else np.zeros((e.steps + 1, 7), np.float32)
            places_m, camera, sizes_m = places_at([e.objects if known else None], [np.r_[f, s + 1:s + T + 1]])
            rows.append((past[s:s + T], e.frames[s + 1:s + T + 1], e.frames[f:f + 1], e.deltas[s:s + T],
                         targets[s:s + T + 1], targets[f], known, places_m[0], camera[0], sizes_m[0],
                         np.full(12, np.nan) if e.drawn_for is None else e.drawn_for))
        return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))
