"""Find the hold among an arm's commands, and note how long it took."""
from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
from ros_tools import Client

LOG = os.environ.get("WORLD_GYMNAST_FAULT_LOG", "")
"""File that gets one JSON line per measured fault; bench/faults.py sets it."""

STEP_LATE_S = 0.15
"""A Step is heard this much after its command at the latest."""
WINDOW_S = 5.0
"""Commands so long before are looked at too: a hold may repeat the goal of an action that was sent before."""


def holds_after(c: Client, topic: str, since: float) -> list[float]:
    """Return when (monotonic s) the commands came after `since` that no moving action asked for.

    Every played action is one Step and one command; a command without one, or with a Step that says HOLD, is a hold.
    """
    settled, window = time.monotonic() - STEP_LATE_S, since - WINDOW_S
    steps = [(np.array(s.commanded_joints), s.verdict >= s.HOLD)
             for when, s in zip(c.times["step"], c.heard["step"], strict=True) if when > window + STEP_LATE_S]
    holds = []
    for when, message in zip(c.times[topic], c.heard[topic], strict=True):
        if when <= window:
            continue
        goal = np.array(message.cmd)
        match = next((i for i, (joints, _) in enumerate(steps) if np.abs(joints - goal).max() < 1e-6), None)
        if match is None and when > settled:
            break  # its Step may be under way
        if (match is None or steps.pop(match)[1]) and when > since:
            holds.append(when)
    return holds


def record(row: str, took_s: float | None, told: str) -> None:
    """Note one measured row of the fault table; `took_s` None where nothing has to happen."""
    print(f"{row}: {'' if took_s is None else f'{1000 * took_s:.0f} ms, '}{told}")
    if LOG:
        with Path(LOG).open("a") as file:
            file.write(json.dumps({"row": row, "took_s": took_s, "told": told}) + "\n")
