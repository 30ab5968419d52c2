"""Heavy work gives way to the control loop, also where the two were started in different terminals.

Desktop kernels share the processor between sessions first (`sched_autogroup`): every terminal, and every node that
`graph.start` starts, is one group, and niceness counts inside a group alone. So two trainers at niceness 10
get as much of a core as the arm's process in another terminal. What an ordinary user may do is lower his
own session's share, in /proc/self/autogroup, and put it back. A session that other jobs share is left alone: the arm
may be one of them, and inside a session niceness does count. The kernel takes one such change in 0.1 s.
"""
from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

AUTOGROUP = Path("/proc/self/autogroup")
"""Reads as "/autogroup-26 nice 0"; a number that is written is the niceness of the session. Not in every kernel."""
TRIES = 4


class _Process(NamedTuple):
    parent: int
    session: int


def lower_session(niceness: int) -> str:
    """Give the session of this process a niceness, 0 to 19, if it is ours alone; return "" or why it was not done."""
    others = other_jobs()
    if others:
        return f"{len(others)} other processes run in this terminal (such as {others[0]}): its share stays as it is"
    return _write(niceness)


def _write(niceness: int) -> str:
    for attempt in range(TRIES):
        try:
            AUTOGROUP.write_text(f"{niceness}\n")
            return ""
        except BlockingIOError:  # somebody changed one less than 0.1 s ago
            time.sleep(0.05 * (attempt + 1))
        except OSError as error:
            return f"{AUTOGROUP} cannot be written ({error.strerror}); this kernel has one queue for all sessions"
    return f"{AUTOGROUP} was busy"


@contextmanager
def lowered(niceness: int) -> Iterator[str]:
    """Give up priority inside the block, as a session where it is ours alone; yield "" or why the session kept it.

    Niceness inside the session is given up for good (nobody may take it back); the session's is put back at the end,
    for what comes next in this terminal. Threads that run already keep their own.
    """
    if niceness:
        os.nice(niceness)
    refused = lower_session(niceness) if niceness else ""
    try:
        yield refused
    finally:
        if niceness and not refused:
            restore_session()


def restore_session() -> None:
    """Give this session its ordinary share again: what lowered it was killed, or this terminal controls an arm now."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        if int(AUTOGROUP.read_text().split()[-1]) > 0:
            _write(0)


def other_jobs() -> list[int]:
    """Return the processes of this session that neither started us nor were started by us, such as other nodes of a
    launch file."""
    table = _processes()
    me = os.getpid()
    own = table.get(me)
    if own is None:
        return []
    ours = {me} | _ancestors(table, me)
    return sorted(pid for pid, p in table.items()
                  if p.session == own.session and pid not in ours and me not in _ancestors(table, pid))


def _ancestors(table: dict[int, _Process], pid: int) -> set[int]:
    found: set[int] = set()
    while pid in table and table[pid].parent not in found:
        pid = table[pid].parent
        found.add(pid)
    return found


def _processes() -> dict[int, _Process]:
    """Return every process that /proc shows."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            words = path.read_text().rpartition(")")[2].split()
            found[int(path.parent.name)] = _Process(int(words[1]), int(words[3]))
    return found
