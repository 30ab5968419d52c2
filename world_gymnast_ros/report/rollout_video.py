"""Film strips of replayed episodes, for a person."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from world_gymnast_ros.evaluation.replay import Replays
from world_gymnast_ros.images import write_film_strips


def write_replays(path: Path, *replays: Replays, count: int = 4) -> None:
    """Write a PNG of up to `count` episodes, successes and failures mixed: what was recorded, and below it what each of
    `replays` (of the same episodes, such as the old and the new world model) imagined."""
    episodes = replays[0].episodes
    order = np.argsort([bool(e.success) for e in episodes], kind="stable")
    picks = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]
    write_film_strips(path, [(episodes[i].frames, *(r.rollouts[i] for r in replays)) for i in picks])
