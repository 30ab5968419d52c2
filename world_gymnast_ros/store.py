"""Adapters and world-model versions on disk: one directory each, whole or absent, checked by hash when read.

    <root>/<name>/adapter.json               name, hashes, parent, base policy, scores (a world model: version.json)
    <root>/<name>/adapter_model.safetensors  the weights
    <root>/<name>/adapter_config.json        what peft needs to rebuild the layers
    <root>/<name>/moving_background/         a world model's, where it has one

There is no index file that could disagree with the directories: the index is a scan. Only files with expected names
are read, never a pickle, never through a symbolic link.
"""
from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from world_gymnast_ros.errors import AdapterMismatch, BadCheckpoint
from world_gymnast_ros.files import sha256_file
from world_gymnast_ros.types import AdapterRef

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class Kind:
    """What a directory of one kind holds: the card (JSON about it), its weights, and the files that must be there.
    `parts`: sub-folders that may be there, each with the files that it must hold then."""

    label: str
    card: str
    weights: str
    files: tuple[str, ...]
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def held(self, directory: Path) -> tuple[str, ...]:
        """Return the files that a directory must hold, its sub-folders being what they are."""
        return (*self.files, *(f"{part}/{name}" for part, names in self.parts.items() if (directory / part).exists()
                               for name in names))


ADAPTER = Kind("adapter", "adapter.json", "adapter_model.safetensors",
               ("adapter_config.json", "adapter_model.safetensors"))
MODEL_FILES = ("config.json", "model.safetensors")
WORLD_MODEL = Kind("world-model version", "version.json", "model.safetensors", MODEL_FILES,
                   {"moving_background": MODEL_FILES})


def slug(words: str) -> str:
    """Return `words` as a short name of lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:48] or "unnamed"


def check_safetensors(path: Path) -> None:
    """Check that a file is whole safetensors: header length, JSON header, data offsets that end at the file's end."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, 100 << 20):
                raise ValueError(f"header length {length} in a file of {size} bytes")
            header = json.loads(stream.read(length))
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise BadCheckpoint(f"{path} is not safetensors ({error}); store it again") from error
    if end + 8 + length != size:
        raise BadCheckpoint(f"{path} has {size} bytes, its header describes {end + 8 + length}: it was cut or padded")


class Store:
    """Directories of one kind under `root`. The root is made on the first `put`, not before."""

    def __init__(self, root: Path, kind: Kind = ADAPTER) -> None:
        self.root, self.kind = root, kind

    def put(self, name: str, write: Callable[[Path], None], *, parent: str, base_policy: str,
            scores: dict[str, Any], created_ns: int) -> AdapterRef:
        """Store what `write(directory)` writes under `name`-<first 8 of its hash>; return its reference.

        `sha256` of the reference is that of the weights file; the card has one for every file.

        Everything is written to a temporary directory beside, synced, checked, and then moved in one step: a crash or
        a full disk leaves nothing that a reader could take for an adapter. Files that are not expected are dropped.
        """
        stem = slug(name)
        scratch = self.root / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            scratch.mkdir()
            write(scratch)
            hashes = self._keep_expected(scratch)
            sha256 = hashes[self.kind.weights]
            full_name = f"{stem}-{sha256[:8]}"
            card = {"kind": self.kind.label, "name": full_name, "sha256": sha256, "files": hashes, "parent": parent,
                    "base_policy": base_policy, "scores": scores, "created_ns": created_ns}
            (scratch / self.kind.card).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            for path in (*scratch.rglob("*"), scratch):
                _sync(path)
            target = self.root / full_name
            if not target.exists():  # the same bytes stored twice are the same thing
                os.replace(scratch, target)
                _sync(self.root)
        except Exception as error:
            # The writer of safetensors raises a bare type of its own when the disk is full.
            if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
                raise
            why = getattr(error, "strerror", None) or error
            raise BadCheckpoint(f"cannot store {self.kind.label} '{stem}' under {self.root}: {why} "
                                "(nothing was kept); free space, or choose a writable folder") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self.get(full_name)

    def _keep_expected(self, directory: Path) -> dict[str, str]:
        wanted = self.kind.held(directory)
        for path in directory.rglob("*"):
            if not path.is_dir() and path.relative_to(directory).as_posix() not in wanted:
                path.unlink()
        for folder in (path for path in sorted(directory.rglob("*"), reverse=True) if path.is_dir()):
            if not any(folder.iterdir()):
                folder.rmdir()
        for name in wanted:
            if not (directory / name).is_file():
                raise BadCheckpoint(f"{name} was not written; a {self.kind.label} needs {', '.join(wanted)}")
            if name.endswith(".safetensors"):
                check_safetensors(directory / name)
        return {name: sha256_file(directory / name) for name in wanted}

    def _sweep(self) -> None:
        """Remove temporary directories of processes that died while writing."""
        for path in self.root.glob(".tmp-*"):
            owner = path.name.split("-")[1]
            if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
                shutil.rmtree(path, ignore_errors=True)

    def get(self, name: str) -> AdapterRef:
        """Return the verified reference of a name. Raises BadCheckpoint or AdapterMismatch, naming what is off."""
        if not NAME.fullmatch(name):
            raise BadCheckpoint(f"{name!r} is not a name of a stored {self.kind.label} (letters, digits, . _ -)")
        return read_card(self.root / name, self.kind)

    def refs(self) -> list[AdapterRef]:
        """Return all sound references, oldest first. Broken directories are left out; `problems` names them."""
        return [ref for _, ref in sorted(self._scan()[0])]

    def problems(self) -> list[str]:
        """Return one line for every directory that cannot be used."""
        return self._scan()[1]

    def newest(self) -> AdapterRef | None:
        """Return the reference stored last, or None."""
        refs = self.refs()
        return refs[-1] if refs else None

    def _scan(self) -> tuple[list[tuple[_Age, AdapterRef]], list[str]]:
        found: list[tuple[_Age, AdapterRef]] = []
        wrong: list[str] = []
        for path in sorted(self.root.iterdir()) if self.root.is_dir() else []:
            if path.name.startswith(".") or not path.is_dir() or not (path / self.kind.card).exists():
                continue
            try:
                ref = self.get(path.name)
                found.append((_Age(int(_read_json(path / self.kind.card).get("created_ns", 0)), path.name), ref))
            except (BadCheckpoint, AdapterMismatch, ValueError, TypeError) as error:
                wrong.append(f"{path.name}: {error}")
        return found, wrong


@dataclass(frozen=True, order=True)
class _Age:
    created_ns: int
    name: str


def read_card(directory: Path, kind: Kind = ADAPTER) -> AdapterRef:
    """Read and verify one directory: card, names, hashes and format. Works for a directory outside any store too."""
    card = _read_json(directory / kind.card)
    for key in ("name", "sha256", "files", "parent", "base_policy"):
        if key not in card:
            raise BadCheckpoint(f"{directory / kind.card} lacks {key!r}; store the {kind.label} again")
    if card.get("kind") != kind.label or card["name"] != directory.name:
        raise BadCheckpoint(f"{directory} says it is {card.get('kind')!r} {card['name']!r}; expected {kind.label!r} "
                            f"{directory.name!r}: it was renamed or copied by hand")
    hashes = card["files"]
    known = {*kind.files, *(f"{part}/{name}" for part, names in kind.parts.items() for name in names)}
    if not isinstance(hashes, dict) or not set(kind.files) <= set(hashes) <= known \
            or hashes[kind.weights] != card["sha256"]:
        raise AdapterMismatch(f"{directory / kind.card} was edited: its hashes do not agree with one another")
    for name in kind.held(directory):
        if name not in hashes:
            raise AdapterMismatch(f"{directory / name} is not in {kind.card}: it was put there after the "
                                  f"{kind.label} was stored; take it away")
    for name, expected in hashes.items():
        path = directory / name
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
            raise BadCheckpoint(f"{path} is missing or a link; store the {kind.label} again")
        if sha256_file(path) != expected:
            raise AdapterMismatch(f"{path} has SHA-256 {sha256_file(path)[:12]}, {kind.card} says {expected[:12]}: "
                                  "it was changed after it was stored")
    check_safetensors(directory / kind.weights)
    scores = card.get("scores")
    return AdapterRef(card["name"], directory, card["sha256"], str(card["parent"]), str(card["base_policy"]),
                      scores if isinstance(scores, dict) else {})


def load_adapter(path: str | Path) -> AdapterRef:
    """Return the verified reference of an adapter directory. Raises BadCheckpoint or AdapterMismatch."""
    return read_card(Path(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.is_symlink() or path.stat().st_size > MAX_JSON_BYTES:
            raise BadCheckpoint(f"{path} is a link or larger than {MAX_JSON_BYTES} bytes; it is not ours")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read: {error.strerror}; check the name") from error
    except ValueError as error:
        raise BadCheckpoint(f"{path} is not JSON ({error}); store it again") from error
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
