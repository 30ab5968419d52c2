"""How long tests wait for something that must happen: longer where this machine is slow, or busy with other work."""
from __future__ import annotations

import os
import time

QUIET_S = 0.03
"""What the work below takes on one quiet core of 3 GHz."""
TICK = os.environ.get("WORLD_GYMNAST_TEST_TIMING", "") != ""
"""Set WORLD_GYMNAST_TEST_TIMING=1 on a quiet machine to assert upper bounds of latencies too."""


def slowness() -> float:
    """Return how many times longer than on a quiet core a fixed piece of work takes here at worst, from 1 to 10."""
    took_s = []
    for _ in range(6):
        since = time.perf_counter()
        sum(i * i for i in range(500_000))
        took_s.append(time.perf_counter() - since)
    return min(max(max(took_s) / QUIET_S, 1.0), 10.0)


SLOWNESS = slowness()
PATIENCE_S = 60.0 * SLOWNESS
"""Longest wait for an event. Whoever waits goes on as soon as it comes, so that only a failing test takes this long."""
START_S = 300.0 * SLOWNESS
"""The same for a process that loads torch: 6 s of one core when quiet."""
