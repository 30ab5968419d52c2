"""Film strips of held-out episodes: what happened above, what the old and the new world model dreamed below."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from world_gymnast_ros.evaluation.replay import RealEpisode
from world_gymnast_ros.types import U8

COLUMNS = 10


def write_dreams(path: Path, episodes: Sequence[RealEpisode], before: Sequence[U8], after: Sequence[U8], count: int = 4
                 ) -> None:
    """Write a PNG of up to `count` episodes, successes and failures mixed: truth, old dream, new dream."""
    order = np.argsort([e.success for e in episodes], kind="stable")
    rows = []
    for i in order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]:
        picks = np.linspace(0, episodes[i].play.steps, COLUMNS).round().astype(int)
        rows += [np.concatenate(list(f[picks]), 1) for f in (episodes[i].play.frames, before[i], after[i])]
        rows.append(np.full((4, rows[-1].shape[1], 3), 255, np.uint8))
    image = Image.fromarray(np.concatenate(rows[:-1]))
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(partial, format="PNG")
    partial.replace(path)
