"""The step table of a recording in the making: on disk a row group at a time, so that its length costs no memory."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from world_gymnast_ros.episodes.outcome import Outcome
from world_gymnast_ros.episodes.provenance import Provenance
from world_gymnast_ros.episodes.schemas import STEP, decoder
from world_gymnast_ros.episodes.steps import label_steps, step_row, table_of, to_arrow

ROWS_HELD = 320
"""About a minute of control."""
ROWS_LATE = 20
"""The newest rows wait: their chunk or image may reach the recorder after them."""


class StepsFile:
    """Takes every message of the recording, in any order of topics. Every method may raise OSError.

    Until `finish` the file has another name; rows are in order of arrival, and `read_steps` sorts.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(path.name + ".rows")
        self._provenance = Provenance()
        self._decode: Callable[[bytes], Any] | None = None
        self._rows: list[dict[str, Any]] = []
        self.count = 0
        self._file = self._temporary.open("wb")
        self._writer = pq.ParquetWriter(self._file, to_arrow(table_of([])).schema)

    def take(self, msg_type: str, cdr: bytes, definition: str | None = None) -> None:
        """Take one message. Raises EpisodeError on bytes that do not fit a type of interest; the table goes on."""
        if msg_type != STEP:
            self._provenance.hear(msg_type, cdr, definition)
            return
        self._decode = self._decode or decoder(STEP, definition)
        self._rows.append(step_row(self._decode(cdr)))
        self.count += 1
        if len(self._rows) > ROWS_HELD:
            self._write(ROWS_HELD - ROWS_LATE)

    def finish(self, ended_by: str, outcome: Outcome) -> None:
        """Write the rest and the labels of the episode, and give the file its name. Raises EpisodeError too."""
        self._write(len(self._rows))
        self._writer.close()
        self._file.close()
        label_steps(self._path, outcome, ended_by, source=self._temporary)
        self._temporary.unlink()

    def abandon(self) -> None:
        """Remove the file, which is of no use then: `repair` makes another from the recording."""
        for let_go in (self._writer.close, self._file.close, self._temporary.unlink):
            with contextlib.suppress(OSError, ValueError):
                let_go()

    def _write(self, count: int) -> None:
        rows, self._rows = self._rows[:count], self._rows[count:]
        self._provenance.complete(rows)
        self._writer.write_table(to_arrow(table_of(rows)))
