"""Files that are whole or absent, and what tells two of them apart."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadConfig, EpisodeError, one_line


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, and move it into place afterwards; after an error nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_npz(path: Path, needed: Sequence[str], wanted: Sequence[str], remedy: str) -> dict[str, NDArray[Any]]:
    """Return the arrays `needed`, and those `wanted` that are there, of an .npz file. Nothing in it is unpickled.

    Raises EpisodeError with `remedy`, whatever numpy and zipfile raise on a damaged file.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            return {k: data[k] for k in (*needed, *(k for k in wanted if k in data.files))}
    except Exception as error:
        raise EpisodeError(f"cannot read {path} ({type(error).__name__}: {one_line(error)}); {remedy}") from error


def read_yaml(path: Path, name: str = "") -> Any:
    """Return what a YAML file holds. Raises BadConfig, which calls the file `name` (default: its path)."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadConfig(f"{name or path} cannot be read as YAML: {one_line(error, 400)}") from error
