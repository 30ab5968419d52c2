"""The step table: one row per control step, from `Step` messages, kept as `steps.parquet`."""
from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from world_gymnast_ros.episodes.files import write_whole
from world_gymnast_ros.episodes.outcome import Outcome
from world_gymnast_ros.episodes.provenance import stamp_ns
from world_gymnast_ros.episodes.tables import read_table
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.types import F32, F64, I64, U8

REMEDY = "`world-gymnast episodes repair` rebuilds it"
VERDICT_OK, VERDICT_CLAMPED, VERDICT_HOLD, VERDICT_STOP = range(4)
"""Values of Step.verdict, as in msg/Step.msg."""


@dataclass(frozen=True)
class StepTable:
    """T control steps in order of sending. Row t is the action taken at frame t. Units as in msg/Step.msg.

    `policy_output` (as the chunk had it), `requested` (of the guard), `sent` float32 (T, 7); `verdict` uint8 (T,);
    poses float64 (T, 4, 4) in base_link, m; joints rad. `frame`: number, in order of capture, of the recorded image
    that the action was taken at. `stamps_ns` when it was sent, `frame_stamps_ns` capture of the image behind its
    chunk, `chunk_stamps_ns` when that was published. `world_model`: the one that the adapter was trained in, empty for
    the base. From other topics come `frame`, `policy_output`, the times of inference and chunk, `policy`,
    `adapter_sha256` and `world_model`; where those were not recorded they are -1, NaN, 0 and empty.
    """

    stamps_ns: I64
    frame_stamps_ns: I64
    chunk_sequence: I64
    chunk_index: I64
    chunk_size: I64
    frame: I64
    inference_start_ns: I64
    inference_end_ns: I64
    chunk_stamps_ns: I64
    policy_output: F32
    requested: F32
    sent: F32
    verdict: U8
    reason: tuple[str, ...]
    T_base_target: F64
    T_base_measured: F64
    joints: F64
    joint_velocities: F64
    efforts: F64
    commanded_joints: F64
    gripper: F32
    gripper_command: F32
    policy: tuple[str, ...]
    adapter: tuple[str, ...]
    adapter_sha256: tuple[str, ...]
    world_model: tuple[str, ...]
    instruction: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def executed(self) -> F32:
        """Return what the arm was told, float32 (T, 7): `sent`, and on a held row no motion and the held gripper.

        `sent` is all zeros there, and a zero in the gripper column would mean "close".
        """
        out = self.sent.copy()
        held = self.verdict >= VERDICT_HOLD
        out[held, :6] = 0.0
        out[held, 6] = self.gripper_command[held]
        return out


_SHAPES: dict[str, tuple[int, ...]] = {
    "policy_output": (7,), "requested": (7,), "sent": (7,), "T_base_target": (4, 4), "T_base_measured": (4, 4),
    "joints": (6,), "joint_velocities": (6,), "efforts": (6,), "commanded_joints": (6,),
}
_DTYPES: dict[str, Any] = {
    **dict.fromkeys(("stamps_ns", "frame_stamps_ns", "chunk_sequence", "chunk_index", "chunk_size", "frame",
                     "inference_start_ns", "inference_end_ns", "chunk_stamps_ns"), np.int64),
    **dict.fromkeys(("policy_output", "requested", "sent", "gripper", "gripper_command"), np.float32),
    **dict.fromkeys(("T_base_target", "T_base_measured", "joints", "joint_velocities", "efforts", "commanded_joints"),
                    np.float64),
    "verdict": np.uint8,
}
_TEXTS = ("reason", "policy", "adapter", "adapter_sha256", "world_model", "instruction")
_NAMES = tuple(f.name for f in fields(StepTable))
_UNKNOWN: dict[str, Any] = {
    "frame": -1, "inference_start_ns": 0, "inference_end_ns": 0, "chunk_stamps_ns": 0, "policy_output": [np.nan] * 7,
    "policy": "", "adapter_sha256": "", "world_model": "",
}
"""What comes from other topics, before they are heard."""


def step_row(message: Any) -> dict[str, Any]:
    """Return the row of one decoded Step. Raises EpisodeError if it is another version's."""
    same = ("chunk_sequence", "chunk_index", "chunk_size", "requested", "sent", "verdict", "reason", "joints",
            "joint_velocities", "efforts", "commanded_joints", "gripper", "gripper_command", "adapter", "instruction")
    missing = [name for name in (*same, "header", "frame_stamp", "t_base_target") if not hasattr(message, name)]
    if missing:
        raise EpisodeError(f"this Step has no {', '.join(missing)}: another version recorded it; use that version")
    return {
        **_UNKNOWN, **{name: getattr(message, name) for name in same},
        "stamps_ns": stamp_ns(message.header.stamp), "frame_stamps_ns": stamp_ns(message.frame_stamp),
        "T_base_target": message.t_base_target, "T_base_measured": message.t_base_measured,
    }


def table_of(rows: Sequence[dict[str, Any]]) -> StepTable:
    """Return the table of rows as `step_row` made them."""
    return _table({name: [row[name] for row in rows] for name in _NAMES}, len(rows))


def _table(columns: dict[str, Any], rows: int) -> StepTable:
    values: dict[str, Any] = {}
    for name in _NAMES:
        if name in _TEXTS:
            values[name] = tuple(str(text) for text in columns[name])
        else:
            values[name] = _array(columns[name], name).reshape(rows, *_SHAPES.get(name, ()))
    return StepTable(**values)


def _array(column: Any, name: str) -> NDArray[Any]:
    return np.asarray(column, dtype=_DTYPES[name])


def label_steps(path: Path, outcome: Outcome, ended_by: str = "", source: Path | None = None) -> None:
    """Write the labels of the episode into the table at `path`, the same in every row. Raises EpisodeError.

    They are a copy, for who reads nothing but the table. `source`: the table without them, if that is another file.
    Without `ended_by` that label stays.
    """
    table = _read(source or path)
    score = np.nan if outcome.partial_score is None else outcome.partial_score
    for name, value in (("outcome", outcome.outcome), ("partial_score", score), ("marked_by", outcome.marked_by),
                        *([("ended_by", ended_by)] if ended_by else [])):
        column = pa.array([value] * len(table), pa.float32() if name == "partial_score" else pa.string())
        place = table.schema.get_field_index(name)
        table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_whole(path, buffer.getvalue())


def outcome_in_table(path: Path) -> str:
    """Return the outcome that the table tells, "" where it has no row or no such column. Raises EpisodeError."""
    table = _read(path)
    return str(table["outcome"][0]) if len(table) and "outcome" in table.column_names else ""


def to_arrow(table: StepTable) -> pa.Table:
    """Return the table as it is stored: vectors as fixed-size lists, poses row major."""
    arrays: list[pa.Array] = []
    for name in _NAMES:
        value = getattr(table, name)
        if name in _TEXTS:
            arrays.append(pa.array(list(value), type=pa.string()))
        elif name in _SHAPES:
            width = int(np.prod(_SHAPES[name]))
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1)), width))
        else:
            arrays.append(pa.array(value))
    return pa.table(arrays, names=list(_NAMES))


def read_steps(path: Path) -> StepTable:
    """Read an episode's table, in order of sending. Raises EpisodeError when it is missing or lacks a column of Step.

    Columns that come from other topics were not always there: without them their values are unknown.
    """
    table = _read(path)
    missing = [name for name in _NAMES if name not in table.column_names and name not in _UNKNOWN]
    if missing:
        raise EpisodeError(f"{path} lacks the columns {missing}; {REMEDY}")
    columns: dict[str, Any] = {}
    try:
        if np.any(np.diff(table["stamps_ns"].to_numpy()) < 0):
            table = table.sort_by("stamps_ns")
        for name in _NAMES:
            if name not in table.column_names:
                columns[name] = [_UNKNOWN[name]] * len(table)
                continue
            column = table[name].combine_chunks()
            if name in _SHAPES:
                column = column.flatten() if isinstance(column, pa.FixedSizeListArray) else pa.array([])
            columns[name] = column.to_pylist() if name in _TEXTS else column.to_numpy(zero_copy_only=False)
        return _table(columns, table.num_rows)
    except Exception as error:  # a column of another type
        raise EpisodeError(f"{path} holds other columns than a step table's ({error!r:.160}); {REMEDY}") from error


def _read(path: Path) -> pa.Table:
    return read_table(path, REMEDY)
