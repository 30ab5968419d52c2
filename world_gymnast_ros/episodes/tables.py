"""Parquet tables: whatever pyarrow raises on a damaged one is an EpisodeError."""
from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from world_gymnast_ros.errors import EpisodeError, one_line


def read_table(path: Path, remedy: str) -> pa.Table:
    """Return the table in a file. Raises EpisodeError with `remedy`; pyarrow alone raises a dozen kinds."""
    try:
        table = pq.read_table(path)
        table.validate(full=True)
        return table
    except Exception as error:
        raise EpisodeError(f"cannot read {path}: {one_line(error) or type(error).__name__}; {remedy}") from error
