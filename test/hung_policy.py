"""policy_node that hangs on request while its process, and the middleware's own threads in it, live.

SIGUSR1: the thread that serves its topics hangs for 3 s. SIGUSR2: the whole interpreter does.
"""
from __future__ import annotations

import ctypes
import signal
import time

from world_gymnast_ros.nodes import policy_node

HANG_S = 3

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: time.sleep(HANG_S))
    signal.signal(signal.SIGUSR2, lambda *_: ctypes.PyDLL(None).sleep(HANG_S))  # PyDLL keeps the interpreter's lock
    raise SystemExit(policy_node.main())
