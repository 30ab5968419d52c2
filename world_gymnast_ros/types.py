"""The vocabulary of the package: frozen dataclasses of numpy arrays, and the protocols between parts.

Imports only the standard library and numpy, so that any module (and any ROS node) may use it.

Axis letters used everywhere:
    G  copies in a rollout group        N  chunks in an episode
    K  actions in a chunk               T  actions in an episode (frames: T + 1)
    H, W  picture height and width      7  Bridge action or state

Conventions (`README.md`, section Conventions):
    action (7,)  dx dy dz [m, base axes], droll dpitch dyaw [rad, axes parallel to base],
                 gripper absolute, 1 open, 0 closed; applied to the previous *target*.
    state (7,)   x y z [m]; fixed-axis rpy of R D^T with D the gripper-down rotation [rad]; gripper 0..1.
    row t of an episode is the action taken *at* frame t.
    pictures are RGB uint8.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadAction, BadFrame

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

ACTION_DIM = 7
CONTROL_DT_S = 0.2
"""Bridge control period: 5 Hz, non-blocking."""


def _check(name: str, value: Any, shape: tuple[int | None, ...], dtype: Any, error: type[Exception]) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        got = getattr(value, "dtype", type(value).__name__)
        raise error(f"{name} must be a numpy array of {np.dtype(dtype)}, got {got}")
    if value.ndim != len(shape) or any(s is not None and s != v for s, v in zip(shape, value.shape, strict=False)):
        raise error(f"{name} must have shape {shape}, got {value.shape}")


@dataclass(frozen=True)
class Frame:
    """One camera picture. `rgb` uint8 (H, W, 3), RGB. `stamp_ns` is the capture time."""

    rgb: U8
    stamp_ns: int

    def __post_init__(self) -> None:
        _check("Frame.rgb", self.rgb, (None, None, 3), np.uint8, BadFrame)


@dataclass(frozen=True)
class ArmState:
    """Measured state of the arm.

    `T_base_ee` float64 (4, 4), m. `joints`, `joint_velocities`, `efforts` float64 (6,): rad, rad/s,
    raw driver units (mA; load for wrist_rotate). `gripper` 0 closed to 1 open (may read about 1.1).
    """

    T_base_ee: F64
    joints: F64
    joint_velocities: F64
    efforts: F64
    gripper: float
    stamp_ns: int


@dataclass(frozen=True)
class ActionChunk:
    """K actions chosen at one frame. `deltas` float32 (K, 7), see the module docstring."""

    deltas: F32
    frame_stamp_ns: int
    adapter: str = "base"
    dt_s: float = CONTROL_DT_S

    def __post_init__(self) -> None:
        _check("ActionChunk.deltas", self.deltas, (None, ACTION_DIM), np.float32, BadAction)


@dataclass(frozen=True)
class SampledChunks:
    """G sampled chunks with what the policy gradient needs.

    `deltas` float32 (G, K, 7). `tokens` int64 (G, K, 7), bin indices. `logprobs` float32 (G, K, 7), at the
    sampling temperature, over the action bins only.
    """

    deltas: F32
    tokens: I64
    logprobs: F32
    adapter: str = "base"


class Verdict(str, Enum):
    """What the guard did with a requested action. A HOLD is a command too."""

    OK = "OK"
    CLAMPED = "CLAMPED"
    HOLD = "HOLD"
    STOP = "STOP"


@dataclass(frozen=True)
class ArmCommand:
    """What goes to the driver, and why. Always produced; the guard never raises.

    `T_base_target` float64 (4, 4); `joints` float64 (6,) rad; `gripper` 0 closed to 1 open;
    `requested` float32 (7,), the delta as asked; `sent` float32 (7,), the delta after limits (on
    HOLD no motion, the gripper kept).
    """

    T_base_target: F64
    joints: F64
    gripper: float
    requested: F32
    sent: F32
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Judgement:
    """A judge's opinion of one rollout. `score` None means *no verdict*, which is not a failure.

    `score` probability of success, 0..1. `done_at` index of the first frame judged done, or None.
    `frame_scores` float32 (frames,) per-frame probability, `progress` the furthest progress 0..1 of two frames in a
    row, where the judge gives them.
    """

    score: float | None
    done_at: int | None = None
    votes: tuple[float, ...] = ()
    detail: str = ""
    frame_scores: F32 | None = None
    progress: float | None = None


@dataclass(frozen=True)
class RolloutFacts:
    """What is known of G rollouts beside their pictures: for a judge that measures instead of looking.

    `captured` G pictures uint8 (H, W, 3) as the camera gave them, of any size, before a rollout's first frame was made
    of them; `states` the Bridge state float32 (7,) there, or None where unknown; `deltas` float32 (G, T, 7), the
    actions between the frames.
    """

    captured: Sequence[U8]
    states: Sequence[F32 | None]
    deltas: F32


@dataclass(frozen=True)
class RolloutGroup:
    """G imagined rollouts from one start frame.

    `frames` uint8 (G, T+1, H, W, 3); `chunks` one SampledChunks per policy query (N of them, T = N K);
    `query_frames` indices (N,) of the frame each chunk was chosen at; `judgements` G of them;
    `valid` bool (G, N): False for chunks after the first success, and for rejected rollouts.
    """

    frames: U8
    chunks: tuple[SampledChunks, ...]
    query_frames: tuple[int, ...]
    judgements: tuple[Judgement, ...]
    valid: NDArray[np.bool_]
    instruction: str
    adapter: str
    world_model: str


@dataclass(frozen=True)
class AdapterRef:
    """A stored LoRA adapter. `scores` holds before/after with intervals, as written by the gate."""

    name: str
    path: Path
    sha256: str
    parent: str
    base_policy: str
    scores: dict[str, Any] = field(default_factory=dict)


class Policy(Protocol):
    """A VLA. Sizes: pictures any (H, W); the policy resizes. Instructions are plain English."""

    name: str
    chunk_size: int

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        """Choose one chunk greedily (temperature 0)."""

    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        """Sample one chunk for each of `frames` uint8 (G, H, W, 3)."""

    def load_adapter(self, ref: AdapterRef | None) -> None:
        """Swap to this adapter (None: the base). Raises AdapterMismatch and changes nothing if it does not fit."""


class Dream(Protocol):
    """A single-use batch of imagined continuations of one start frame."""

    def step(self, deltas: F32) -> U8:
        """Apply one action per copy, float32 (G, 7), physical units; return next frames uint8 (G, H, W, 3)."""


class WorldModel(Protocol):
    """An action-conditioned video world model."""

    name: str

    def begin(self, frame: Frame, state: F32 | None, copies: int, seed: int) -> Dream:
        """Start `copies` dreams from one frame. `state` float32 (7,) Bridge state at that frame, or None if unknown."""


@runtime_checkable
class Judge(Protocol):
    """Scores rollouts against an instruction. An internal error must surface as `score=None`, never as 0."""

    name: str

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts uint8 (G, T+1, H, W, 3). `facts`: what else is known of them, for who can use it."""


@runtime_checkable
class PlacesArm(Protocol):
    """What a judge that measures can also do."""

    def arm_misplaced_px(self, frames: U8, facts: RolloutFacts) -> F64:
        """Return how far the arm in the last frames uint8 (G, H, W, 3) is drawn from where the actions take it, px."""


class Arm(Protocol):
    """A driver port: the only thing that talks to the arm."""

    def state(self) -> ArmState | None:
        """Return the newest measured state, or None if nothing has been heard."""

    def send(self, command: ArmCommand) -> None:
        """Stream one guarded command."""

    def hold(self) -> None:
        """Command the measured joints: the safe stop of a position-held arm."""
