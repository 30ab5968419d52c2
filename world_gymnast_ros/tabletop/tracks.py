"""Object tracks of scripted play, whose files say what lay where: what a world model with a background learns from."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from world_gymnast_ros.objects import ObjectTracks
from world_gymnast_ros.tabletop.contact import OBJECT_SIZE_M, predicted_path

OBJECT_KEYS = ("objects_xyz", "object_names", "states", "camera", "length", "seed")
PLACE_SIGMA_M = 0.004
"""How inexactly places are measured (`LocatorConfig.sigma_m`); what is learned from must be as inexact."""


def object_tracks(play: Mapping[str, np.ndarray]) -> list[ObjectTracks | None]:
    """Return the object tracks of each episode of a play-data file, predicted from places as inexact as measured ones;
    None where the file does not say what lay where."""
    if not set(OBJECT_KEYS) <= set(play):
        return [None] * len(play["length"])
    data = {k: play[k] for k in OBJECT_KEYS}  # each read once: an open file decompresses at every look
    start = data["objects_xyz"][:, 0].astype(np.float64)
    names = data["object_names"]
    start[(names == "") | np.char.endswith(names, "plate")] = np.nan
    off = np.random.default_rng(int(data["seed"][0])).normal(0.0, PLACE_SIGMA_M, (*start.shape[:2], 3)) * (1, 1, 0)
    path = (predicted_path(data["states"], start + off) - off[:, None]).astype(np.float32)
    sizes_m = np.broadcast_to(np.asarray(OBJECT_SIZE_M, np.float32), (start.shape[1], 2))
    return [ObjectTracks(path[i, :n + 1], sizes_m, data["camera"][i]) for i, n in enumerate(data["length"].tolist())]
