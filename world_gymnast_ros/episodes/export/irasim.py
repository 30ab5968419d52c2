"""IRASim's layout: `annotation/<split>/<id>.json` beside `videos/<split>/<id>/0/rgb.mp4` (bytedance/IRASim, Bridge).

Its actions are recomputed from states in the previous end effector's frame, so states and a continuous gripper
suffice; they are written too, in its scaling (times 20), for readers that take them as they are. Ours are `captured_ns`
and `sent_ns`, when the images were taken and the actions sent, nanoseconds since the epoch; `sent`, the actions in
base axes, m and rad; `target_state`, what they were added to; and `outcome`, `ended_by`, `adapter`.
"""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from world_gymnast_ros.episodes.files import episode_error, write_json
from world_gymnast_ros.episodes.reader import Episode
from world_gymnast_ros.robot.actions import matrix_to_rpy, rpy_to_matrix
from world_gymnast_ros.types import F32
from world_gymnast_ros.video import write_mp4

FRAME_SIZE = (256, 320)
ACTION_SCALE = 20.0
CLIP_FPS = 5


def relative_actions(states: F32) -> F32:
    """Return (T, 7): motion from state t to t+1 in the frame of state t, scaled by 20, and the gripper at t+1.

    `states` float32 (T+1, 7), Bridge states. Rotations are Bridge's R D^T, as in the data IRASim was trained on.
    """
    R = rpy_to_matrix(states[:, 3:6])
    to_previous = np.swapaxes(R[:-1], -1, -2)
    moved = np.einsum("tij,tj->ti", to_previous, states[1:, :3].astype(np.float64) - states[:-1, :3])
    turned = matrix_to_rpy(to_previous @ R[1:])
    return np.concatenate([moved * ACTION_SCALE, turned * ACTION_SCALE, states[1:, 6:]], axis=1).astype(np.float32)


def export_irasim(episodes: Iterable[Episode], folder: Path, split: str = "train") -> list[Path]:
    """Write every episode and return the annotation files. Raises EpisodeError."""
    written: list[Path] = []
    for episode in episodes:
        video = Path("videos") / split / episode.episode_id / "0" / "rgb.mp4"
        annotation = folder / "annotation" / split / f"{episode.episode_id}.json"
        try:
            (folder / video).parent.mkdir(parents=True, exist_ok=True)
            annotation.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise episode_error("make", folder, error) from error
        write_mp4(folder / video, [episode.frames], FRAME_SIZE, CLIP_FPS)
        write_json(annotation, {
            "task": "robot_trajectory_prediction", "texts": [episode.instruction], "episode_id": episode.episode_id,
            "videos": [{"video_path": video.as_posix()}], "latent_videos": [],
            "state": episode.states[:, :6].tolist(), "continuous_gripper_state": episode.states[:, 6].tolist(),
            "action": relative_actions(episode.states).tolist(), "success": episode.outcome.outcome == "success",
            "sent": episode.actions.tolist(), "target_state": episode.target_states.tolist(),
            "outcome": episode.outcome.outcome, "ended_by": episode.ended_by, "adapter": episode.adapter,
            "captured_ns": episode.frame_stamps_ns.tolist(), "sent_ns": episode.steps.stamps_ns.tolist(),
        })
        written.append(annotation)
    return written
