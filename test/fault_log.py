"""Find the hold among an arm's commands, and note how long it took."""
from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from ros_tools import Client

LOG = os.environ.get("WORLD_GYMNAST_FAULT_LOG", "")
"""File that gets one JSON line per measured fault; bench/faults.py sets it."""


def holds_after(c: Client, topic: str, since: float) -> list[float]:
    """Return when (monotonic s) the commands came after `since` that no moving action asked for.

    Every played action is one Step and one command; a command without one, or with a Step that says HOLD, is a hold.
    """
    steps = [(np.array(s.commanded_joints), s.verdict >= s.HOLD) for s in c.heard["step"]]
    holds = []
    for when, message in zip(c.times[topic], c.heard[topic], strict=True):
        if when <= since:
            continue
        goal = np.array(message.cmd)
        match = next((i for i, (joints, _) in enumerate(steps) if np.abs(joints - goal).max() < 1e-6), None)
        if match is None or steps.pop(match)[1]:
            holds.append(when)
    return holds


def record(row: str, took_s: float | None, told: str) -> None:
    """Note one measured row of the fault table; `took_s` None where nothing has to happen."""
    print(f"{row}: {'' if took_s is None else f'{1000 * took_s:.0f} ms, '}{told}")
    if LOG:
        with Path(LOG).open("a") as file:
            file.write(json.dumps({"row": row, "took_s": took_s, "told": told}) + "\n")
