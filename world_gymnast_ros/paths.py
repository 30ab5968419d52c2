"""Where the package's data lies: config, launch files, checkpoints, docs."""
from __future__ import annotations

import os
import sys
from pathlib import Path

from world_gymnast_ros.errors import BadConfig

PACKAGE = "world_gymnast_ros"
SHARE_VARIABLE = "WORLD_GYMNAST_SHARE"
TWIN_ADAPT = "config/twin_adapt.yaml"
"""What adaptation on the twin has instead of the settings in config/adapt.yaml."""


def share_dir() -> Path:
    """Return the folder that holds `config/`, `launch/` and `checkpoints/` of the running copy.

    Looked for in this order: the environment variable WORLD_GYMNAST_SHARE; the source tree, when the code runs from
    one; share/world_gymnast_ros beside the code, under AMENT_PREFIX_PATH, and under the interpreter's prefix.
    Raises BadConfig when there is none, or when the variable names a folder without `config/`.
    """
    wanted = os.environ.get(SHARE_VARIABLE)
    if wanted:
        if not (Path(wanted) / "config").is_dir():
            raise BadConfig(f"{SHARE_VARIABLE}={wanted} holds no config/; name the folder that does, or unset it")
        return Path(wanted).resolve()
    here = Path(__file__).resolve()
    source_tree = here.parents[1]
    if (source_tree / "package.xml").is_file() and (source_tree / "config").is_dir():
        return source_tree
    prefixes = [*here.parents, *_ament_prefixes(), Path(sys.prefix)]
    for prefix in prefixes:
        share = prefix / "share" / PACKAGE
        if (share / "config").is_dir():
            return share
    raise BadConfig(
        f"no share/{PACKAGE} with config/ beside {here.parent}, in AMENT_PREFIX_PATH or in {sys.prefix}; "
        f"install the package again, or set {SHARE_VARIABLE} to a source tree"
    )


def share_path(relative: str) -> Path:
    """Return a file or folder of the share folder, such as "config/adapt.yaml". Raises BadConfig when it is missing."""
    path = share_dir() / relative
    if not path.exists():
        raise BadConfig(f"{relative} is missing from {share_dir()}; install the package again or name another path")
    return path


def _ament_prefixes() -> list[Path]:
    return [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
