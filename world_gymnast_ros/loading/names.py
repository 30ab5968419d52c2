"""What the name of a model may stand for, without loading anything: said before torch is imported, which takes seconds.
"""
from __future__ import annotations

from pathlib import Path

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.paths import share_dir
from world_gymnast_ros.serving.exchange import is_address

POLICY, WORLD_MODEL, JUDGE = "policy", "world model", "judge"
TABLETOP = "tabletop"
"""Stands for two judges that ship: a geometric one for small objects on a table, and the learned one beside it."""


def find(name: str) -> Path | None:
    """Return what a path or the name of a shipped checkpoint stands for; None where there is no such thing."""
    return next((path for path in (Path(name), share_dir() / "checkpoints" / name) if path.exists()), None)


def shipped() -> str:
    """Return the names of the checkpoints that ship."""
    folder = share_dir() / "checkpoints"
    return ", ".join(sorted(str(p.parent.relative_to(folder)) for p in folder.glob("*/*/config.json")))


def missing(name: str, kind: str) -> BadCheckpoint:
    """Return what to say of a name that stands for nothing."""
    other = ", the address of a server (http://HOST:PORT/v1#MODEL)" if kind == JUDGE else ""
    return BadCheckpoint(f"checkpoint folder {name} does not exist; give the path of a folder that holds a {kind}"
                         f"{other}, or a shipped one: {shipped()}")


def check_name(name: str, kind: str) -> None:
    """Raise BadCheckpoint for a name that can stand for no model: no folder, no address, no name on the hub."""
    if not name or (name == TABLETOP and kind == JUDGE) or find(name) is not None or is_address(name):
        return
    from world_gymnast_ros.models.hub import is_hub_name

    if not is_hub_name(name):
        raise missing(name, kind)
