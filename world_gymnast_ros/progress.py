"""How far something is that takes longer than SHOW_AFTER_S, with the time left: on the terminal, never in a log."""
from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
SHOW_AFTER_S = 2.0


def bar(total: int, what: str, unit: str, done: int = 0) -> Any:
    """Return a bar of tqdm's, a context manager with `update(n)`: it comes up late, and goes when all is done.

    `done`: how many an earlier run did, which says nothing about the pace of this one.
    """
    return tqdm(total=total, initial=done, desc=what, unit=unit, delay=SHOW_AFTER_S, leave=False, disable=None)


def shown(items: Collection[T], what: str, unit: str) -> Iterator[T]:
    """Yield the items, showing how many are done."""
    with bar(len(items), what, unit) as line:
        for item in items:
            yield item
            line.update()
