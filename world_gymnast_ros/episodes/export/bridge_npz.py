"""Episodes in the shape of BridgeData V2's RLDS steps, as one npz each (no TensorFlow, no pickle).

Keys follow the RLDS feature names with "/" for nesting, e.g. `steps/observation/state`: T+1 steps, a zero action
appended, as the public conversion does (readers of RLDS relabel actions from states themselves). `action` is what was
sent, in base axes, the gripper absolute and 1 open. Ours are `captured_ns` and `sent_ns` (0 for the appended action),
when the images were taken and the actions sent, nanoseconds since the epoch; `target_state`, what the actions were
added to; and `outcome`, `ended_by`, `adapter`.
"""
from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros.episodes.files import episode_error, write_whole
from world_gymnast_ros.episodes.reader import Episode
from world_gymnast_ros.images import resize_rgb

IMAGE_SIZE = (256, 256)


def export_bridge(episodes: Iterable[Episode], folder: Path, size: tuple[int, int] = IMAGE_SIZE) -> list[Path]:
    """Write `<folder>/<episode id>.npz` per episode and return the paths. Raises EpisodeError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise episode_error("make", folder, error) from error
    written: list[Path] = []
    for episode in episodes:
        count = len(episode.frames)
        first, last = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        first[0] = last[-1] = True
        reward = np.zeros(count, np.float32)
        reward[-1] = episode.outcome.outcome == "success"
        path = folder / f"{episode.episode_id}.npz"
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {
            "steps/observation/image_0": resize_rgb(episode.frames, size),
            "steps/observation/state": episode.states,
            "steps/observation/captured_ns": episode.frame_stamps_ns,
            "steps/sent_ns": np.append(episode.steps.stamps_ns, 0),
            "steps/action": np.concatenate([episode.actions, np.zeros((1, 7), np.float32)]),
            "steps/is_first": first, "steps/is_last": last, "steps/is_terminal": last, "steps/reward": reward,
            "steps/discount": np.ones(count, np.float32),
            "steps/language_instruction": np.array([episode.instruction] * count),
            "episode_metadata/file_path": np.array(str(episode.path.name)),
            "steps/target_state": episode.target_states, "episode_metadata/outcome": np.array(episode.outcome.outcome),
            "episode_metadata/ended_by": np.array(episode.ended_by),
            "episode_metadata/adapter": np.array(episode.adapter),
            "episode_metadata/has_image_0": np.array(True),
            "episode_metadata/has_language": np.array(bool(episode.instruction)),
        }
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_whole(path, buffer.getvalue())
        written.append(path)
    return written
