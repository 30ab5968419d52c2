"""Small file helpers of the recorder: whole-or-absent writes, and OS errors told as EpisodeError."""
from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from world_gymnast_ros.errors import EpisodeError

PARTIAL_SUFFIX = ".partial"
MCAP_NAME = "episode.mcap"
METADATA_NAME = "metadata.yaml"
STEPS_NAME = "steps.parquet"
HEADER_NAME = "episode.json"
OUTCOME_NAME = "outcome.json"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_REMEDIES = {
    errno.ENOSPC: "free space or record to another disk",
    errno.EDQUOT: "free space or raise the quota",
    errno.EFBIG: "the file reached a size limit: raise it (ulimit -f) or record shorter episodes",
    errno.EROFS: "the file system is read-only: name a writable folder",
    errno.EACCES: "this user may not write there: name a writable folder or change its permissions",
    errno.EPERM: "this user may not write there: name a writable folder or change its permissions",
    errno.ENOENT: "the folder was removed or moved while in use: make it again",
    errno.EIO: "the disk reports a fault: record to another one",
}


def check_episode_id(episode_id: str) -> str:
    """Return `episode_id`, or raise EpisodeError if it cannot be a folder name."""
    if not _ID.fullmatch(episode_id) or episode_id.endswith(PARTIAL_SUFFIX):
        raise EpisodeError(
            f"episode id {episode_id!r} is not usable as a folder name; use up to 120 letters, digits, . _ - "
            f"and do not end it in {PARTIAL_SUFFIX}"
        )
    return episode_id


def episode_error(doing: str, path: Path, error: OSError) -> EpisodeError:
    """Tell an OS error as an EpisodeError that names the file, the free space and the remedy."""
    remedy = _REMEDIES.get(error.errno or 0, "check the disk")
    return EpisodeError(f"could not {doing} {path}: {error.strerror or error} ({_free(path)}); {remedy}")


def free_bytes(path: Path) -> int:
    """Return the bytes free for this user on the file system of `path`, or of its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _free(path: Path) -> str:
    try:
        return f"{free_bytes(path) / 2**20:.0f} MiB free"
    except OSError:
        return "free space unknown"


def write_whole(path: Path, data: bytes) -> None:
    """Write `path` so that it is the old file or the new one, never half of one. Raises EpisodeError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise episode_error("write", path, error) from error


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` outlast a power cut. May raise OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write JSON to `path`, whole or not at all. Raises EpisodeError."""
    write_whole(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises EpisodeError when it is missing or not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise episode_error("read", path, error) from error
    except ValueError as error:
        raise EpisodeError(f"{path} is not JSON ({error}); `world-gymnast episodes repair` rebuilds it") from error
    if not isinstance(value, dict):
        raise EpisodeError(f"{path} holds a {type(value).__name__}, expected an object")
    return value
