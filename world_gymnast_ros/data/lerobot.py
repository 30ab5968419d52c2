"""Read a LeRobot dataset v3.0 whose actions are Bridge's, ours or another's: images and actions of every episode.

Rows are sorted by `frame_index`; images are those nearest to the rows' `timestamp` in the video. A set of another
rate than 5 per second is resampled: image j is the one nearest to j * 0.2 s, and its action is all that was done
until image j + 1, translations added, rotations multiplied in order, the gripper as it was told last.

Refused rather than guessed: fewer than 5 rows a second, actions that are no Bridge steps, or several cameras of which
none was named. An episode that is broken is named and left out; the others are read.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from world_gymnast_ros.episodes.files import read_json
from world_gymnast_ros.episodes.tables import read_table
from world_gymnast_ros.errors import BadFrame, EpisodeError, one_line
from world_gymnast_ros.images import decode_rgb, resize_rgb
from world_gymnast_ros.robot.actions import StepLimits, matrix_to_rpy, rpy_to_matrix
from world_gymnast_ros.types import CONTROL_DT_S, F32, F64, I64, U8
from world_gymnast_ros.video import video_frames

FPS = round(1.0 / CONTROL_DT_S)
SLACK = 1.01
"""Limits of a step that rounding may exceed."""
REMEDY = "is the dataset whole?"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
"""Where LeRobot v3.0 puts its files; `info.json` may say otherwise."""


@dataclass(frozen=True)
class LeRobotEpisode:
    """T rows, 0.2 s apart. `frames` uint8 (T, H, W, 3); `actions` float32 (T, 7), row t taken at frame t, the last
    leads nowhere; `stamps_ns` int64 (T,) true capture times, or None where the dataset has only its own.

    Of our own exports: `targets` and `measured` float32 (T, 7), Bridge states at the frames, and `outcome`, `ended_by`,
    `adapter`. `outcome` of others: success or failure where the set has `next.success`, else unknown.
    """

    index: int
    task: str
    frames: U8
    actions: F32
    stamps_ns: I64 | None
    targets: F32 | None = None
    measured: F32 | None = None
    outcome: str = "unknown"
    ended_by: str = ""
    adapter: str = ""
    recording: str = ""


@dataclass(frozen=True)
class _Set:
    folder: Path
    fps: float
    camera: str
    is_video: bool
    data_path: str
    video_path: str
    words: dict[Any, str]


def is_lerobot(folder: Path) -> bool:
    """Tell whether `folder` looks like a LeRobot dataset."""
    return (folder / "meta" / "info.json").is_file()


def read_lerobot(folder: Path, size: tuple[int, int] | None = None, camera: str = "",
                 left_out: list[str] | None = None) -> Iterator[LeRobotEpisode]:
    """Yield the episodes in order, images resized to `size` (h, w) if given. Raises EpisodeError.

    `camera` names one of several, in full or by its last part. `left_out`: list that gets a line for each broken
    episode; without it, the first one raises.
    """
    found = _opened(folder, camera)
    paths = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    rows = [row for path in paths for row in read_table(path, REMEDY).to_pylist()]
    if not all(isinstance(row.get("episode_index"), int) for row in rows):
        raise EpisodeError(f"{folder}/meta/episodes has rows without episode_index; {REMEDY}")
    held: tuple[Path, pa.Table] | None = None
    for row in sorted(rows, key=lambda r: int(r["episode_index"])):
        try:
            path = folder / _path(found.data_path, row, "data")
            held = held if held is not None and held[0] == path else (path, read_table(path, REMEDY))
            yield _episode(found, row, held[1], size)
        except (EpisodeError, BadFrame) as error:
            if left_out is None:
                raise EpisodeError(f"{folder.name}, episode {row['episode_index']}: {error}") from error
            left_out.append(f"{folder.name}, episode {row['episode_index']}: {error}")


def _opened(folder: Path, camera: str) -> _Set:
    """Return what the set says of itself, or raise EpisodeError."""
    info = read_json(folder / "meta" / "info.json")
    try:
        version, fps, features = str(info["codebase_version"]), float(info["fps"]), dict(info["features"])
        shape = list(features["action"]["shape"])
        cameras = {k: f["dtype"] == "video" for k, f in features.items() if f["dtype"] in ("video", "image")}
    except (KeyError, TypeError, ValueError) as error:
        raise EpisodeError(f"{folder}/meta/info.json lacks {error}; is this a LeRobot dataset?") from error
    if not version.startswith("v3."):
        raise EpisodeError(f"{folder} has format {version}; convert it to v3.0 with lerobot's own converter")
    if not FPS <= fps <= 1000:
        raise EpisodeError(f"{folder} has {fps:g} frames a second, the world model steps {FPS} times: what was not "
                           "recorded cannot be made up; record at least as often")
    if shape != [7]:
        raise EpisodeError(f"{folder}: actions of shape {shape}; Bridge's have 7 numbers (dx dy dz droll dpitch dyaw "
                           "gripper), convert them")
    chosen = [k for k in cameras if camera in ("", k, k.rpartition(".")[2])]
    if len(chosen) != 1:
        if not cameras:
            raise EpisodeError(f"{folder} has no camera (a feature of dtype video or image)")
        raise EpisodeError(f"{folder} has the cameras {', '.join(cameras)}, and {camera or 'none'} is chosen; choose "
                           "one with --camera")
    return _Set(folder, fps, chosen[0], cameras[chosen[0]], str(info.get("data_path") or DATA_PATH),
                str(info.get("video_path") or VIDEO_PATH), _words(folder / "meta" / "tasks.parquet"))


def _episode(found: _Set, row: dict[str, Any], table: pa.Table, size: tuple[int, int] | None) -> LeRobotEpisode:
    try:
        mine = _sorted(table.filter(pc.equal(table["episode_index"], row["episode_index"])))
        recorded = _column(mine, "action", 7)
        if recorded is None:
            raise EpisodeError("it has no actions")
        chosen = _chosen(len(mine), found.fps)
        actions = _composed(recorded, chosen)
        _check_actions(actions[:-1] if found.fps != FPS else actions)
        frames = _frames(found, row, mine, chosen, size)
        stamps = _numbers(mine, "extra.captured_ns")
        episode = LeRobotEpisode(int(row["episode_index"]), _task(found, row, mine), frames, actions,
                                 None if stamps is None else stamps.astype(np.int64)[chosen])
        return _with_our_own(episode, row, mine, chosen)
    except (EpisodeError, BadFrame):
        raise
    except Exception as error:  # a set can be odd in any way: columns of other types, nulls, other nesting
        raise EpisodeError(f"{type(error).__name__}: {one_line(error)}; {REMEDY}") from error


def _sorted(rows: pa.Table) -> pa.Table:
    """Return an episode's rows in order of frame_index, each once and none missing."""
    if len(rows) == 0:
        raise EpisodeError("it has no rows")
    if "frame_index" not in rows.column_names:
        raise EpisodeError("its rows have no frame_index, so nobody knows their order")
    index = rows["frame_index"].to_numpy()
    order = np.argsort(index, kind="stable")
    wrong = np.flatnonzero(index[order] != np.arange(len(index)))
    if len(wrong):
        raise EpisodeError(f"its rows have frame_index {index[order][wrong[0]]} where {wrong[0]} belongs: rows are "
                           "missing or there twice")
    return rows.take(order)


def _column(rows: pa.Table, name: str, width: int) -> F32 | None:
    """Return a column of vectors float32 (T, width), or None where the set has none."""
    if name not in rows.column_names:
        return None
    values = rows[name].to_pylist()
    missing = [t for t, value in enumerate(values) if value is None or len(value) != width or None in value]
    if missing:
        raise EpisodeError(f"{name} of frame {missing[0]} is {values[missing[0]]}; {width} numbers are needed")
    return np.array(values, np.float32)


def _numbers(rows: pa.Table, name: str) -> F64 | I64 | None:
    if name not in rows.column_names or rows[name].null_count:
        return None
    return np.asarray(rows[name].to_numpy())


def _chosen(count: int, fps: float) -> I64:
    """Return which of `count` rows are taken: those nearest to multiples of 0.2 s."""
    rows = np.rint(np.arange(0, count * FPS / fps + 1) * fps / FPS).astype(np.int64)
    return rows[rows < count]


def _composed(actions: F32, chosen: I64) -> F32:
    """Return what was done from each chosen row until the next, float32 (n, 7)."""
    if len(chosen) == len(actions):
        return actions
    out = np.empty((len(chosen), 7), np.float32)
    for j, (begin, end) in enumerate(zip(chosen, [*chosen[1:], len(actions)], strict=True)):
        R = np.eye(3)
        for part in actions[begin:end]:
            R = rpy_to_matrix(part[3:6]) @ R
        out[j] = [*actions[begin:end, :3].sum(0), *matrix_to_rpy(R), actions[end - 1, 6]]
    return out


def _check_actions(actions: F32) -> None:
    limits = StepLimits()
    for part, limit, unit in ((slice(0, 3), limits.max_step_m, "m"), (slice(3, 6), limits.max_step_rad, "rad")):
        largest = float(np.abs(actions[:, part]).max(initial=0))
        if not largest <= SLACK * limit:
            raise EpisodeError(f"a step of {largest:.3g} {unit} in {CONTROL_DT_S:g} s, Bridge's limit is {limit}; "
                               "these are no steps of the end effector: convert them")
    low, high = float(actions[:, 6].min(initial=0)), float(actions[:, 6].max(initial=0))
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise EpisodeError(f"gripper values {low:.3g} to {high:.3g}, Bridge's are 0 closed to 1 open; convert them")


def _frames(found: _Set, row: dict[str, Any], rows: pa.Table, chosen: I64, size: tuple[int, int] | None) -> U8:
    if found.is_video:
        times, begin = _numbers(rows, "timestamp"), row.get(f"videos/{found.camera}/from_timestamp")
        if begin is None:
            raise EpisodeError(f"meta/episodes does not say where it begins in the video of {found.camera}")
        times = np.arange(len(rows)) / found.fps if times is None else times
        wanted = float(begin) + times.astype(np.float64)[chosen]
        path = found.folder / _path(found.video_path, row, f"videos/{found.camera}", found.camera)
        shown = _at_times(path, wanted, 0.5 / found.fps)
    else:
        cells = rows[found.camera].to_pylist()
        shown = (_image(found, cells[t], f"the image of frame {t}") for t in chosen.tolist())
    return np.stack([rgb if size is None else resize_rgb(rgb, size) for rgb in shown])


def _at_times(path: Path, wanted_s: F64, tolerance_s: float) -> Iterator[U8]:
    """Yield the images of a video nearest to the times, which rise."""
    place = 0
    best: tuple[float, U8] | None = None
    for time_s, rgb in video_frames(path, max(0.0, float(wanted_s[0]) - tolerance_s)):
        while place < len(wanted_s) and time_s > wanted_s[place]:
            nearer = best is not None and wanted_s[place] - best[0] < time_s - wanted_s[place]
            found = best if nearer and best is not None else (time_s, rgb)
            _check_time(path, found[0], float(wanted_s[place]), tolerance_s)
            yield found[1]
            place += 1
        if place == len(wanted_s):
            return
        best = (time_s, rgb)
    for time_s in wanted_s[place:]:  # up to the last image
        _check_time(path, -1.0 if best is None else best[0], float(time_s), tolerance_s)
        if best is not None:
            yield best[1]


def _check_time(path: Path, found_s: float, wanted_s: float, tolerance_s: float) -> None:
    if not abs(found_s - wanted_s) <= tolerance_s * SLACK:
        raise EpisodeError(f"{path} has no image at {wanted_s:.2f} s; the nearest is at {found_s:.2f} s: it was cut, "
                           "or is of another episode")


def _image(found: _Set, cell: Any, name: str) -> U8:
    """Return an image that lies in the table itself, or beside it."""
    if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes):
        return decode_rgb(cell["bytes"], name)
    if isinstance(cell, dict) and isinstance(cell.get("path"), str):
        return decode_rgb(found.folder / cell["path"], name)
    raise EpisodeError(f"{name} is missing")


def _path(pattern: str, row: dict[str, Any], group: str, key: str = "") -> Path:
    numbers = {name: row.get(f"{group}/{name}") for name in ("chunk_index", "file_index")}
    if not all(isinstance(n, int) for n in numbers.values()):
        raise EpisodeError(f"meta/episodes does not say in which file of {group} it lies; {REMEDY}")
    return Path(pattern.format(video_key=key, **numbers))


def _task(found: _Set, row: dict[str, Any], rows: pa.Table) -> str:
    if "task_index" in rows.column_names and (words := found.words.get(rows["task_index"][0].as_py())):
        return words
    tasks = row.get("tasks")
    return str(tasks[0]) if isinstance(tasks, list) and tasks else ""


def _with_our_own(episode: LeRobotEpisode, row: dict[str, Any], rows: pa.Table, chosen: I64) -> LeRobotEpisode:
    """Return the episode with what our export says beside LeRobot's columns."""
    outcome, success = row.get("outcome"), _numbers(rows, "next.success")
    if outcome is None and success is not None:
        outcome = "success" if success.any() else "failure"
    targets = _column(rows, "extra.target_state", 7)
    if targets is None:
        return replace(episode, outcome=str(outcome or "unknown"))
    measured = _column(rows, "observation.state", 7)
    return replace(episode, targets=targets[chosen], measured=None if measured is None else measured[chosen],
                   outcome=str(outcome or "unknown"), ended_by=str(row.get("ended_by") or ""),
                   adapter=str(row.get("adapter") or ""), recording=str(row.get("recording") or ""))


def _words(path: Path) -> dict[Any, str]:
    """Return the texts of the task table: pandas keeps them in its index, whatever that is called. {} without one."""
    if not path.is_file():
        return {}
    table = read_table(path, REMEDY)
    try:
        index = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    except (ValueError, AttributeError):
        index = []
    name = next((n for n in ("task", *index, "__index_level_0__") if n in table.column_names), None)
    if name is None or "task_index" not in table.column_names:
        return {}
    return dict(zip(table["task_index"].to_pylist(), map(str, table[name].to_pylist()), strict=True))
