"""Find the files of a published model: a folder, or a hub name from the local cache or the hub. No code is fetched."""
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.files import sha256_file

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
INDEX, ONE_FILE = "model.safetensors.index.json", "model.safetensors"


def is_hub_name(where: str | Path) -> bool:
    """Tell whether a text reads as OWNER/NAME."""
    return HUB_NAME.fullmatch(str(where)) is not None


def find_folder(where: str | Path, kind: str, example: str, patterns: Sequence[str],
                ignore: Sequence[str] = ()) -> Path:
    """Return the folder of a `kind` of model. `patterns`: files to fetch where it is not cached. BadCheckpoint."""
    path = Path(where)
    if path.is_dir():
        return path
    if not is_hub_name(where):
        raise BadCheckpoint(f"{kind} folder {path} does not exist; give a folder or a hub name such as {example}")
    try:
        return Path(snapshot_download(str(where), allow_patterns=list(patterns), ignore_patterns=list(ignore) or None))
    except Exception as error:  # the hub client raises many types; all mean that the files are not here
        raise BadCheckpoint(f"'{where}' is neither a folder nor in the local cache ({constants.HF_HUB_CACHE}), and the "
                            f"hub did not give it ({type(error).__name__}: {str(error).splitlines()[0]}); download it "
                            f"where there is a network and give the folder (needed: {', '.join(patterns)})") from error


def weight_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of a checkpoint's safetensors files, as its index lists them, and which are not there."""
    index = folder / INDEX
    names = [ONE_FILE]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise BadCheckpoint(f"{index} is not an index of shards ({error})") from error
    return names, [name for name in names if not (folder / name).is_file()]


def content_hash(path: Path) -> str:
    """Return a file's SHA-256. The hub's cache names large files by it, so those 15 GB are not read twice."""
    real = path.resolve()
    named = real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name)
    return real.name if named else sha256_file(real)
