"""How a process of a node ends on a signal: at once while it loads, and in order once it runs.

launch sends SIGINT, five seconds later SIGTERM, and then SIGKILL, after which DDS keeps the node for 20 s. A model that
takes a minute to load must not keep a process that long.
"""
from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOADING_S = 2.0
"""What is loading when the signal comes has so long to stop; nothing of a node that still loads can be lost."""


class StoppedWhileLoadingError(BaseException):
    """The signal came before the node was up. No Exception, so that no loader takes it for a fault of its own."""


def end_while_importing() -> None:
    """From now on a signal ends the process at once, with code 0; a node's `Signals` take over when it starts.

    For the seconds in which a process imports what it needs: nothing of it exists that could be lost.
    """
    def end(*_: object) -> None:
        os.write(sys.stderr.fileno(), b"ended while loading\n")
        os._exit(0)
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


class Signals:
    """SIGINT, SIGTERM and SIGHUP (unless nohup ignores it) as a flag. A context manager; main thread only."""

    def __init__(self) -> None:
        self.stopped = False
        self._loading = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        if self._loading:
            self._loading = False
            raise StoppedWhileLoadingError

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """While the body runs, a signal raises StoppedWhileLoadingError in it.

        One that is deep in a call which does not come back to Python (a large file that is read, a network that is
        built) is ended with the whole process, LOADING_S later and with code 0.
        """
        ear, mouth = os.pipe()
        os.set_blocking(mouth, False)
        loaded = threading.Event()

        def watch() -> None:
            if os.read(ear, 1) and not loaded.wait(LOADING_S):
                print("ended while loading", file=sys.stderr, flush=True)
                os._exit(0)

        before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        self._loading = not self.stopped
        try:
            if self.stopped:
                raise StoppedWhileLoadingError
            yield
        finally:
            self._loading = False
            loaded.set()
            signal.set_wakeup_fd(before)
            os.close(mouth)  # which ends the watcher's read, where no signal came
            watcher.join(LOADING_S)
            os.close(ear)
