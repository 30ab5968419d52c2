"""Rows of a bench in a folder, one JSON object a line: appended as they are measured, read when a bench goes on."""
from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from world_gymnast_ros.errors import EpisodeError

T = TypeVar("T")
ROWS = "rows.jsonl"


def read_rows(path: Path, kind: type[T], remedy: str = "") -> list[T]:
    """Read what was measured into a folder, or into a file *.jsonl, as rows of the dataclass `kind`.

    A torn last line, as a crash leaves it, is left out. Raises EpisodeError for any other that is no row; `remedy` is
    added to what it says.
    """
    file = path / ROWS if path.suffix != ".jsonl" else path
    lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [kind(**json.loads(line))] if line.strip() else []
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise EpisodeError(f"{file} line {number} is no row ({error}); move the file away{remedy}") from error
    return rows


def append_row(folder: Path, row: Any) -> None:
    """Append one row, a dataclass."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ROWS).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(row)) + "\n")
