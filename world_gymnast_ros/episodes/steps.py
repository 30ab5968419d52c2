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
from world_gymnast_ros.episodes.schemas import STEP, decoder
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.types import F32, F64, I64, U8

VERDICT_OK, VERDICT_CLAMPED, VERDICT_HOLD, VERDICT_STOP = range(4)
"""Values of Step.verdict, as in msg/Step.msg."""


@dataclass(frozen=True)
class StepTable:
    """T control steps in order of sending. Row t is the action taken at frame t. Units as in msg/Step.msg.

    `requested`, `sent` float32 (T, 7); `verdict` uint8 (T,); poses float64 (T, 4, 4) in base_link, m; joints rad.
    """

    stamps_ns: I64
    frame_stamps_ns: I64
    chunk_sequence: I64
    chunk_index: I64
    chunk_size: I64
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
    adapter: tuple[str, ...]
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
    "requested": (7,), "sent": (7,), "T_base_target": (4, 4), "T_base_measured": (4, 4), "joints": (6,),
    "joint_velocities": (6,), "efforts": (6,), "commanded_joints": (6,),
}
_DTYPES: dict[str, Any] = {
    **dict.fromkeys(("stamps_ns", "frame_stamps_ns", "chunk_sequence", "chunk_index", "chunk_size"), np.int64),
    **dict.fromkeys(("requested", "sent", "gripper", "gripper_command"), np.float32),
    **dict.fromkeys(("T_base_target", "T_base_measured", "joints", "joint_velocities", "efforts", "commanded_joints"),
                    np.float64),
    "verdict": np.uint8,
}
_TEXTS = ("reason", "adapter", "instruction")
_NAMES = tuple(f.name for f in fields(StepTable))


def _stamp_ns(time: Any) -> int:
    return int(time.sec) * 1_000_000_000 + int(time.nanosec)


def _row(message: Any) -> dict[str, Any]:
    same = ("chunk_sequence", "chunk_index", "chunk_size", "requested", "sent", "verdict", "reason", "joints",
            "joint_velocities", "efforts", "commanded_joints", "gripper", "gripper_command", "adapter", "instruction")
    missing = [name for name in (*same, "header", "frame_stamp", "t_base_target") if not hasattr(message, name)]
    if missing:
        raise EpisodeError(f"this Step has no {', '.join(missing)}: another version recorded it; use that version")
    return {
        **{name: getattr(message, name) for name in same},
        "stamps_ns": _stamp_ns(message.header.stamp), "frame_stamps_ns": _stamp_ns(message.frame_stamp),
        "T_base_target": message.t_base_target, "T_base_measured": message.t_base_measured,
    }


def step_table(cdrs: Sequence[bytes], definition: str | None = None) -> StepTable:
    """Build the table from serialized Step messages, sorted by send time. Raises EpisodeError on other bytes.

    `definition`: the Step definition that the recording carries, when it may be another version's.
    """
    decode = decoder(STEP, definition)
    rows = sorted((_row(decode(cdr)) for cdr in cdrs), key=lambda row: int(row["stamps_ns"]))
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


def write_steps(path: Path, table: StepTable) -> None:
    """Write the table as parquet, whole or not at all: vectors as fixed-size lists, poses row major."""
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
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays, names=list(_NAMES)), buffer)
    write_whole(path, buffer.getvalue())


def read_steps(path: Path) -> StepTable:
    """Read a table written by `write_steps`. Raises EpisodeError when it is missing or has other columns."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise EpisodeError(f"cannot read {path}: {error}; `world-gymnast episodes repair` rebuilds it") from error
    missing = [name for name in _NAMES if name not in table.column_names]
    if missing:
        raise EpisodeError(f"{path} lacks the columns {missing}; `world-gymnast episodes repair` rebuilds it")
    columns: dict[str, Any] = {}
    for name in _NAMES:
        column = table[name].combine_chunks()
        if name in _SHAPES:
            column = column.flatten() if isinstance(column, pa.FixedSizeListArray) else pa.array([])
        columns[name] = column.to_pylist() if name in _TEXTS else column.to_numpy(zero_copy_only=False)
    return _table(columns, table.num_rows)
