"""One recorded episode, however it was recorded: what learning and evaluation read."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.objects import ObjectDynamics, ObjectTracks
from world_gymnast_ros.types import F32, F64, U8, Frame, Start

UNNAMED = "recorded actions"
"""In the place of an instruction where nobody gave one: the actions are given."""


@dataclass(frozen=True)
class Episode:
    """T actions and the T + 1 frames about them: `deltas[t]` was taken *at* frame t and leads to frame t + 1.

    `frames` uint8 (T+1, H, W, 3); `deltas` float32 (T, 7); `states` float32 (T+1, 7), target Bridge states, or None
    where unknown. `success`: the recorded outcome, None where nobody said; `done_step`: the frame at which success
    came, None where only the outcome is known. `captured` uint8 (H, W, 3): the first frame as the camera gave it.
    `camera` float32 (12,): projection of the true camera as from `arm_silhouette.projection`, where it is known.
    """

    frames: U8
    deltas: F32
    states: F32 | None
    instruction: str = ""
    name: str = ""
    task: str = ""
    """What its kind of task is called, where the recording says so."""
    success: bool | None = None
    done_step: int | None = None
    captured: U8 | None = None
    camera: F32 | None = None
    objects: ObjectTracks | None = None
    silhouette_camera: F64 | None = None
    """The camera (12,) that a world model draws the arm for, as its set-up has it (`seen_with`); None: the model's."""
    measured: F32 | None = None
    """Where the arm was at each frame, Bridge states float32 (T+1, 7), where it was measured."""
    without_arm: U8 | None = None
    """The scene without the arm at each frame, uint8 (T+1, H, W, 3), where a simulator rendered it."""
    background: U8 | None = None
    """The same as a world model's moving background predicts it from the first frame and the actions."""
    adapter: str = ""
    seed: int = 0
    ended_by: str = ""
    """done, time, fault or stopped, where the recording says so."""
    reason: str = ""
    """Why it ended, where that was a fault."""

    @property
    def steps(self) -> int:
        """T, the number of actions."""
        return len(self.deltas)

    @property
    def first_frame(self) -> U8:
        """The first frame at the camera's own size where it was kept, else as recorded."""
        return self.frames[0] if self.captured is None else self.captured

    def start(self) -> Start:
        """Return where an imagined continuation of this episode begins."""
        return Start(Frame(self.frames[0], 0), None if self.states is None else self.states[0],
                     self.instruction or UNNAMED, None if self.captured is None else Frame(self.captured, 0))


def seen_with(episode: Episode, objects: ObjectDynamics) -> Episode:
    """Return the episode as a world model with `objects` meets it: the arm's silhouette for the camera of its set-up,
    and the objects found in its captured frame, where that and the state are known."""
    episode = replace(episode, silhouette_camera=np.array(objects.projection))
    if episode.captured is None or episode.states is None:
        return episode
    return replace(episode, objects=objects.predict(episode.captured, episode.states))


def resized(episode: Episode, size_px: int) -> Episode:
    """Return the episode with square frames of `size_px`."""
    return replace(episode, frames=resize_rgb(episode.frames, (size_px, size_px)))
