"""A LeRobot dataset, format v3.0, written with pyarrow and av alone.

Layout of huggingface/lerobot (CODEBASE_VERSION v3.0): `meta/{info.json, stats.json, tasks.parquet,
episodes/chunk-000/file-000.parquet}`, `data/chunk-000/file-000.parquet`, `videos/<key>/chunk-000/file-000.mp4`.
One row per action: T rows per episode, the image after the last action is left out. `action` is what was sent, as in
Bridge: dx dy dz in m and droll dpitch dyaw in rad along base axes, the gripper absolute, 1 open. LeRobot's own
timestamps are frame_index / fps; the true times are in `extra.captured_ns` (the image) and `extra.sent_ns` (the
action), nanoseconds since the epoch. What is ours is called `extra.*`, because LeRobot's policies take every feature
that begins with `observation` for an input and with `action` for an output.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from world_gymnast_ros.episodes.export.lerobot_stats import column_stats, image_stats, merge_stats
from world_gymnast_ros.episodes.files import PARTIAL_SUFFIX, episode_error, write_json
from world_gymnast_ros.episodes.reader import Episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.types import U8
from world_gymnast_ros.video import write_mp4

FPS = 5
CAMERA = "observation.images.image_0"
SIZE = (256, 256)
STATE_NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
JOINTS = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"]
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
ACTION_NAMES = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
FEATURES: dict[str, tuple[str, int, list[str] | None]] = {
    "observation.state": ("float32", 7, STATE_NAMES),
    "action": ("float32", 7, ACTION_NAMES),
    "extra.requested": ("float32", 7, ACTION_NAMES),
    "extra.verdict": ("int64", 1, None),
    "extra.target_state": ("float32", 7, STATE_NAMES),
    "extra.joint_position": ("float32", 6, JOINTS),
    "extra.captured_ns": ("int64", 1, None),
    "extra.sent_ns": ("int64", 1, None),
    "next.reward": ("float32", 1, None),
    "next.done": ("bool", 1, None),
    "next.success": ("bool", 1, None),
    "timestamp": ("float32", 1, None),
    "frame_index": ("int64", 1, None),
    "episode_index": ("int64", 1, None),
    "index": ("int64", 1, None),
    "task_index": ("int64", 1, None),
}
"""Columns of the data table: dtype, width, names. `extra.requested` is what was asked of the guard, `extra.verdict` its
answer (msg/Step.msg), `extra.target_state` the target that the action was added to."""


def export_lerobot(episodes: Iterable[Episode], folder: Path, size: tuple[int, int] = SIZE) -> Path:
    """Write a new dataset to `folder` and return it. Raises EpisodeError; `folder` is then absent, or as it was."""
    if folder.exists():
        raise EpisodeError(f"{folder} exists; a dataset is written as a whole: choose another folder or remove it")
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for place in ("meta/episodes/chunk-000", "data/chunk-000", f"videos/{CAMERA}/chunk-000"):
            (partial / place).mkdir(parents=True)
        _write(episodes, partial, size)
        partial.rename(folder)
    except OSError as error:
        raise episode_error("write", folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write(episodes: Iterable[Episode], partial: Path, size: tuple[int, int]) -> None:
    tasks: dict[str, int] = {}
    tables: list[dict[str, NDArray[Any]]] = []
    rows: list[dict[str, Any]] = []
    stats: list[dict[str, dict[str, Any]]] = []

    def clips() -> Iterator[U8]:
        """Hand the images on one episode at a time: a dataset need not fit in memory."""
        start = 0
        for number, episode in enumerate(episodes):
            task = tasks.setdefault(episode.instruction, len(tasks))
            tables.append(_table(episode, number, start, task))
            frames = resize_rgb(episode.frames[:-1], size)
            stats.append({name: column_stats(column) for name, column in tables[-1].items()})
            stats[-1][CAMERA] = image_stats(frames)
            rows.append(_episode_row(episode, number, start, stats[-1]))
            start += len(episode.steps)
            yield frames

    write_mp4(partial / VIDEO_PATH.format(video_key=CAMERA, chunk_index=0, file_index=0), clips(), size, FPS)
    if not rows:
        raise EpisodeError("no episode to export; record some, or choose others")
    data = pa.table({name: _column(np.concatenate([table[name] for table in tables])) for name in FEATURES})
    pq.write_table(data, partial / DATA_PATH.format(chunk_index=0, file_index=0))
    pq.write_table(pa.Table.from_pylist(rows), partial / EPISODES_PATH)
    _write_tasks(list(tasks), partial / "meta" / "tasks.parquet")
    write_json(partial / "meta" / "stats.json", merge_stats(stats))
    write_json(partial / "meta" / "info.json", _info(len(rows), len(data), len(tasks), size))


def _table(episode: Episode, number: int, start: int, task: int) -> dict[str, NDArray[Any]]:
    count = len(episode.steps)
    frame = np.arange(count)
    success = episode.outcome.outcome == "success"
    done = frame == count - 1
    return {
        "observation.state": episode.states[:-1],
        "action": episode.actions, "extra.requested": episode.steps.requested,
        "extra.verdict": episode.steps.verdict.astype(np.int64),
        "extra.target_state": episode.target_states[:-1],
        "extra.joint_position": episode.steps.joints.astype(np.float32),
        "extra.captured_ns": episode.frame_stamps_ns[:-1], "extra.sent_ns": episode.steps.stamps_ns,
        "next.reward": (done & success).astype(np.float32), "next.done": done, "next.success": done & success,
        "timestamp": (frame / FPS).astype(np.float32), "frame_index": frame.astype(np.int64),
        "episode_index": np.full(count, number, np.int64), "index": (frame + start).astype(np.int64),
        "task_index": np.full(count, task, np.int64),
    }


def _episode_row(episode: Episode, number: int, start: int, stats: dict[str, dict[str, Any]]) -> dict[str, Any]:
    end = start + len(episode.steps)
    return {
        "episode_index": number, "tasks": [episode.instruction], "length": len(episode.steps),
        "dataset_from_index": start, "dataset_to_index": end, "data/chunk_index": 0, "data/file_index": 0,
        f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": 0,
        f"videos/{CAMERA}/from_timestamp": start / FPS, f"videos/{CAMERA}/to_timestamp": end / FPS,
        "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
        # Ours: a reader that does not know them passes them by.
        "recording": episode.episode_id, "ended_by": episode.ended_by, "outcome": episode.outcome.outcome,
        "marked_by": episode.outcome.marked_by, "adapter": episode.adapter,
        **{f"stats/{name}/{key}": value for name, of in stats.items() for key, value in of.items()},
    }


def _column(values: NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def _write_tasks(tasks: list[str], path: Path) -> None:
    """Write the task table; LeRobot reads it with pandas and takes the texts from the index."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    columns = [{"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
               for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0",
              "creator": {"library": "pyarrow", "version": pa.__version__}}
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _info(episodes: int, frames: int, tasks: int, size: tuple[int, int]) -> dict[str, Any]:
    features: dict[str, Any] = {
        name: {"dtype": dtype, "shape": [width], "names": names} for name, (dtype, width, names) in FEATURES.items()
    }
    features[CAMERA] = {
        "dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channels"],
        "info": {"video.fps": FPS, "video.height": size[0], "video.width": size[1], "video.channels": 3,
                 "video.codec": "h264", "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "has_audio": False},
    }
    return {
        "codebase_version": "v3.0", "robot_type": "widow_x", "fps": FPS, "features": features,
        "total_episodes": episodes, "total_frames": frames, "total_tasks": tasks, "chunks_size": 1000,
        "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "data_path": DATA_PATH, "video_path": VIDEO_PATH,
        "splits": {"train": f"0:{episodes}"},
    }
