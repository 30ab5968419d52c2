"""Read a LeRobot dataset v3.0 whose actions are Bridge's, ours or another's: pictures and actions of every episode.

Refused rather than guessed: another rate than 5 per second, actions that are no Bridge steps, or several cameras of
which none was named.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from world_gymnast_ros.episodes.files import read_json
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.robot.actions import StepLimits
from world_gymnast_ros.types import CONTROL_DT_S, F32, I64, U8

FPS = round(1.0 / CONTROL_DT_S)
SLACK = 1.01
"""Limits of a step that rounding may exceed."""


@dataclass(frozen=True)
class LeRobotEpisode:
    """T rows. `frames` uint8 (T, H, W, 3); `actions` float32 (T, 7), row t taken at frame t; `stamps_ns` int64 (T,)
    true capture times, or None where the dataset has only its own, frame_index / fps."""

    index: int
    task: str
    frames: U8
    actions: F32
    stamps_ns: I64 | None


def is_lerobot(folder: Path) -> bool:
    """Tell whether `folder` looks like a LeRobot dataset."""
    return (folder / "meta" / "info.json").is_file()


def read_lerobot(folder: Path, size: tuple[int, int] | None = None, camera: str = "") -> Iterator[LeRobotEpisode]:
    """Yield the episodes in order, pictures resized to `size` (h, w) if given. Raises EpisodeError.

    `camera` names one of several video features.
    """
    info = read_json(folder / "meta" / "info.json")
    key = _check(folder, info, camera)
    tasks = _table(folder / "meta" / "tasks.parquet")
    words = dict(zip(tasks["task_index"].to_pylist(), _task_texts(tasks), strict=True))
    rows = [row for path in sorted((folder / "meta" / "episodes").glob("*/*.parquet")) for row in _rows(path, key)]
    held: tuple[Path, pa.Table] | None = None
    for row in sorted(rows, key=lambda r: int(r["episode_index"])):
        path = folder / info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        held = held if held is not None and held[0] == path else (path, _table(path))
        mine = held[1].filter(pa.compute.equal(held[1]["episode_index"], row["episode_index"]))
        actions = np.array(mine["action"].to_pylist(), np.float32)
        _check_actions(actions, f"{path.name}, episode {row['episode_index']}")
        video = folder / info["video_path"].format(video_key=key, chunk_index=row[f"videos/{key}/chunk_index"],
                                                   file_index=row[f"videos/{key}/file_index"])
        frames = _pictures(video, float(row[f"videos/{key}/from_timestamp"]), len(actions), size)
        stamps = mine["extra.captured_ns"].to_numpy() if "extra.captured_ns" in mine.column_names else None
        yield LeRobotEpisode(int(row["episode_index"]), str(words.get(mine["task_index"][0].as_py(), "")), frames,
                             actions, stamps)


def _check(folder: Path, info: dict[str, Any], camera: str) -> str:
    """Return the key of the camera, or raise EpisodeError."""
    try:
        version, fps, features = str(info["codebase_version"]), info["fps"], dict(info["features"])
        shape, cameras = list(features["action"]["shape"]), [k for k, f in features.items() if f["dtype"] == "video"]
    except (KeyError, TypeError, ValueError) as error:
        raise EpisodeError(f"{folder}/meta/info.json lacks {error}; is this a LeRobot dataset?") from error
    if not version.startswith("v3."):
        raise EpisodeError(f"{folder} has format {version}; convert it to v3.0 with lerobot's own converter")
    if fps != FPS:
        raise EpisodeError(f"{folder} has {fps} frames a second, the world model steps {FPS} times; resample it")
    if shape != [7]:
        raise EpisodeError(f"{folder}: actions of shape {shape}; Bridge's have 7 numbers (dx dy dz droll dpitch dyaw "
                           "gripper), convert them")
    chosen = [k for k in cameras if camera in ("", k)]
    if len(chosen) != 1:
        raise EpisodeError(f"{folder} has the cameras {cameras}; name one" if cameras else f"{folder} has no video")
    return str(chosen[0])


def _check_actions(actions: F32, name: str) -> None:
    limits = StepLimits()
    for part, limit, unit in ((slice(0, 3), limits.max_step_m, "m"), (slice(3, 6), limits.max_step_rad, "rad")):
        largest = float(np.abs(actions[:, part]).max(initial=0))
        if not largest <= SLACK * limit:
            raise EpisodeError(f"{name}: a step of {largest:.3g} {unit}, Bridge's limit is {limit}; these are no steps "
                               "of the end effector, or of another rate: convert them")
    low, high = float(actions[:, 6].min(initial=0)), float(actions[:, 6].max(initial=0))
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise EpisodeError(f"{name}: gripper values {low:.3g} to {high:.3g}, Bridge's are 0 closed to 1 open; convert "
                           "them")


def _pictures(path: Path, from_s: float, count: int, size: tuple[int, int] | None) -> U8:
    """Decode `count` pictures from `from_s` on."""
    pictures: list[U8] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if from_s > 0:
                container.seek(max(0, int((from_s - 1e-3) / stream.time_base)), stream=stream)
            for frame in container.decode(stream):
                if frame.time >= from_s - 0.5 / FPS and len(pictures) < count:
                    picture = frame.to_ndarray(format="rgb24")
                    pictures.append(picture if size is None else resize_rgb(picture, size))
                if len(pictures) == count:
                    break
    except (OSError, av.FFmpegError, IndexError) as error:
        raise EpisodeError(f"cannot read {path}: {error}; check that it is a whole video file") from error
    if len(pictures) < count:
        raise EpisodeError(f"{path} holds {len(pictures)} pictures from {from_s:.2f} s on, {count} belong there: it "
                           "was cut")
    return np.stack(pictures)


def _rows(path: Path, key: str) -> list[dict[str, Any]]:
    wanted = ["episode_index", "data/chunk_index", "data/file_index", f"videos/{key}/chunk_index",
              f"videos/{key}/file_index", f"videos/{key}/from_timestamp"]
    table = _table(path)
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise EpisodeError(f"{path} lacks the columns {missing}; is the dataset whole?")
    return list(table.select(wanted).to_pylist())


def _task_texts(table: pa.Table) -> list[str]:
    """Return the texts of the task table: pandas keeps them in its index, whatever that is called."""
    try:
        index = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    except ValueError:
        index = []
    name = next((n for n in ("task", *index, "__index_level_0__") if n in table.column_names), None)
    return [""] * len(table) if name is None else [str(text) for text in table[name].to_pylist()]


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise EpisodeError(f"cannot read {path}: {error}; is the dataset whole?") from error
