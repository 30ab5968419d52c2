"""What a finished session came to, kept beside its page: who measures on, writes the page again with more known."""
from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from world_gymnast_ros.adaptation.arm_advice import Advice, advise, evidence_of
from world_gymnast_ros.adaptation.log import AdaptReport
from world_gymnast_ros.adaptation.trust import TaskRelease, Trust
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.files import whole
from world_gymnast_ros.statistics import ABRow

RECORD_NAME = "session.npz"
VALUES = "values"


@dataclass(frozen=True)
class SessionRecord:
    """A session, how far its dream may be believed for each task, and the release table of its models, by task."""

    report: AdaptReport
    trusts: tuple[Trust, ...] = ()
    release: Mapping[str, TaskRelease] | None = None

    @property
    def advice(self) -> Advice:
        """The line that the session ends with."""
        return self.advice_with(None)

    def advice_with(self, truth: ABRow | None) -> Advice:
        """Return the line that it ends with once true episodes were run."""
        return advise(evidence_of(self.report, self.trusts), truth)


def write_record(path: Path, record: SessionRecord) -> None:
    """Write a session: its arrays, and everything else as JSON; whole or absent."""
    arrays: list[np.ndarray] = []
    values = {f.name: _packed(getattr(record, f.name), arrays) for f in fields(SessionRecord)}
    with whole(path) as partial, partial.open("wb") as stream:
        named: dict[str, Any] = {VALUES: np.array(json.dumps(values)), **{str(i): a for i, a in enumerate(arrays)}}
        np.savez_compressed(stream, **named)


def read_record(path: Path) -> SessionRecord:
    """Read what `write_record` wrote; EpisodeError where the file is missing or of another version."""
    try:
        with np.load(path, allow_pickle=False) as data:
            record: SessionRecord = _unpacked(SessionRecord, json.loads(str(data[VALUES])), data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EpisodeError(f"{path} holds no finished session of this version ({error}); look at the log beside it"
                           ) from error
    return record


def _packed(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return len(arrays) - 1
    if is_dataclass(value):
        return {f.name: _packed(getattr(value, f.name), arrays) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _packed(v, arrays) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(v, arrays) for v in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


def _unpacked(hint: Any, value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return None if value is None else _unpacked(next(a for a in inner if a is not type(None)), value, arrays)
    if kind is np.ndarray:
        return arrays[str(value)]
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{k: _unpacked(hints[k], v, arrays) for k, v in value.items()})  # type: ignore[operator]
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return {k: _unpacked(inner[1], v, arrays) for k, v in value.items()}
    if kind is tuple:
        many = inner[-1] is Ellipsis
        return tuple(_unpacked(inner[0] if many else inner[i], v, arrays) for i, v in enumerate(value))
    return hint(value) if isinstance(hint, type) and issubclass(hint, (Enum, Path)) else value
