"""One forward pass at a time on a policy that several threads use, in the order in which they came."""
from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class Turn:
    """A re-entrant lock that is fair: a training loop that takes it again at once does not keep the arm waiting."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[int] = deque()
        self._holder, self._depth = 0, 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._holder != me:
                self._queue.append(me)
                self._changed.wait_for(lambda: not self._holder and self._queue[0] == me)
                self._queue.popleft()
                self._holder = me
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._holder = 0
                self._changed.notify_all()


def in_turn(method: F) -> F:
    """Let a method of an object with a `turn` wait for it."""
    @functools.wraps(method)
    def waiting(self: Any, *args: Any, **options: Any) -> Any:
        with self.turn:
            return method(self, *args, **options)
    return cast(F, waiting)
