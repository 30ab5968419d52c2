"""One line in the log per cause, not one per second; and one process per name of a node."""
from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from pathlib import Path

from world_gymnast_ros.errors import BadConfig

AWAY_S = 10.0
"""A cause that stayed away for so long is told again when it comes back."""
_MOST = 256
_NUMBER = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?")


class Causes:
    """Tells which lines are news. Lines that differ in their numbers alone have the same cause."""

    def __init__(self) -> None:
        self._last_s: dict[str, float] = {}

    def news(self, text: str, now_s: float | None = None) -> bool:
        """Return whether to log this line; each call counts as the cause's being there."""
        now_s = time.monotonic() if now_s is None else now_s
        cause = _NUMBER.sub("#", text)
        last_s = self._last_s.pop(cause, None)
        if len(self._last_s) >= _MOST:
            self._last_s.pop(next(iter(self._last_s)))  # the one that is away for longest
        self._last_s[cause] = now_s
        return last_s is None or now_s - last_s > AWAY_S

    def clear(self) -> None:
        """Forget all: somebody began anew, and wants to be told."""
        self._last_s.clear()


class NameClaim:
    """The only process on this machine with a node of this name; held until `release`, or until the process ends.

    A lock on a file, not the graph: DDS keeps a killed node for 20 s, and a restart after a crash must not wait.
    Raises BadConfig naming the other process. Other machines, and containers with a /tmp of their own, are not seen.
    """

    def __init__(self, name: str, domain: int) -> None:
        path = Path(tempfile.gettempdir()) / f"world_gymnast_node_{domain}{name.replace('/', '.')}.lock"
        self._file = os.open(path, os.O_RDWR) if path.exists() else os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            other = os.read(self._file, 20).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise BadConfig(f"{name} runs already in ROS domain {domain} (process {other}): services and parameters "
                            "would be of either. End it, or give this one another name (-r __node:=NAME) or namespace "
                            "(-r __ns:=/NAME)") from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Give the name back."""
        os.close(self._file)
