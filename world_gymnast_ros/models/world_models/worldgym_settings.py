"""`WorldGymSettings`: everything about a WorldGym world model that its tensors do not tell, stated in one place."""
from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.robot.actions import StepLimits, clip_delta, gripper_is_open
from world_gymnast_ros.types import F32

LIMITS = StepLimits()
RECOMPUTE, PERSISTENT = "recompute", "persistent"
NOISE_LEVELS = 1000


@dataclass(frozen=True)
class WorldGymSettings:
    """Settings of the published model on Bridge; written to `config.json`.

    Of the network: `heads`, `spatial_positions` ("pixel" for the first, Bridge-only checkpoint), `window` frames that
    it was trained on. `frame_size` H, W.

    Of the action: `translation` and `rotation`, a step in m and rad and the number it becomes (linear, clipped there,
    `clip_margin` inside); the gripper becomes -1 open, +1 closed by the arm's own threshold. `action_offset` 1: a frame
    is drawn under the action that led to it, as the public inference code does. 0: under the action taken *at* it, as
    the rows of the public training clips are; a frame that is being drawn then carries the newest action, and the one
    taken at it once that is known.

    Of the sampler: `sampling_steps` of deterministic DDIM from level 999 down; `context_level`, which clean frames are
    said and scaled to have (no noise is added); `guidance`, 1 is none, the mixed published checkpoint was released with
    3, the Bridge-only one with 1; `frames_at_once` > 1 draws so many frames in steps staggered by one, so that frames
    then depend on how many actions are played at once.

    `after_window`: what a frame sees once the window is full. "recompute": the window's frames and nothing else; their
    keys are computed anew for each frame. "persistent": keys stay as they were computed, and so carry frames that have
    left the window; faster, and not the same.

    `vae`: folder of the autoencoder, as seen from the folder of the weights.
    """

    model_type: ClassVar[str] = "worldgym"
    heads: int = 16
    spatial_positions: str = "standard"
    window: int = 20
    frame_size: tuple[int, int] = (256, 256)
    translation: tuple[float, float] = (0.05, 1.75)
    rotation: tuple[float, float] = (0.25, 1.4)
    clip_margin: float = 0.0
    action_offset: int = 1
    sampling_steps: int = 10
    context_level: int = 14
    guidance: float = 1.0
    frames_at_once: int = 1
    after_window: str = RECOMPUTE
    vae: str = "vae"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # JSON knows no tuples
                object.__setattr__(self, field.name, tuple(value))
        rules = (
            ("window", self.window >= 2, "at least 2"),
            ("frame_size", len(self.frame_size) == 2 and min(self.frame_size) >= 1, "a height and a width, px"),
            ("translation", len(self.translation) == 2 and min(self.translation) > 0, "two numbers above 0"),
            ("rotation", len(self.rotation) == 2 and min(self.rotation) > 0, "two numbers above 0"),
            ("clip_margin", 0.0 <= self.clip_margin < 1.0, "within 0..1, below 1"),
            ("action_offset", self.action_offset in (0, 1), "0 or 1"),
            ("sampling_steps", 1 <= self.sampling_steps <= NOISE_LEVELS, f"within 1..{NOISE_LEVELS}"),
            ("context_level", 0 <= self.context_level < NOISE_LEVELS, f"within 0..{NOISE_LEVELS - 1}"),
            ("guidance", np.isfinite(self.guidance) and 0.0 < self.guidance <= 20.0,
             "above 0 and at most 20; 1 for none (0 would ignore the actions)"),
            ("frames_at_once", 1 <= self.frames_at_once < self.window, f"within 1..{self.window - 1}"),
            ("after_window", self.after_window in (RECOMPUTE, PERSISTENT), f"{RECOMPUTE!r} or {PERSISTENT!r}"),
        )
        for name, good, limit in rules:
            if not good:
                raise BadConfig(f"WorldGymSettings.{name} is {getattr(self, name)!r}; it must be {limit}")

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds."""
        return {"model_type": self.model_type, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WorldGymSettings:
        """Build from `config.json`; BadConfig on an unknown key."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known - {"model_type"})
        if unknown:
            raise BadConfig(f"unknown WorldGym settings {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return cls(**{k: v for k, v in values.items() if k in known})

    def model_actions(self, deltas: F32, action_dim: int) -> F32:
        """Return the model's numbers float32 (..., action_dim) of actions (..., 7): m, rad, gripper 1 open.

        Actions are first limited as the arm limits them, by the same function. `deltas` is not changed. Numbers beyond
        the seventh (base motion) are 0.
        """
        step = clip_delta(np.asarray(deltas, np.float32), LIMITS)
        numbers = np.zeros((*step.shape[:-1], action_dim), np.float32)
        for columns, (most, becomes) in ((slice(0, 3), self.translation), (slice(3, 6), self.rotation)):
            limit = becomes - self.clip_margin
            numbers[..., columns] = np.clip(step[..., columns] * (becomes / most), -limit, limit)
        numbers[..., 6] = np.where(gripper_is_open(step[..., 6]), -1.0, 1.0)
        return numbers
