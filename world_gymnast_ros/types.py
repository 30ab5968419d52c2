"""The vocabulary of the package: frozen dataclasses of numpy arrays, and the protocols between parts.

Imports only the standard library and numpy, so that any module (and any ROS node) may use it.

Axis letters used everywhere:
    G  copies in a rollout group        N  chunks in an episode
    K  actions in a chunk               T  actions in an episode (frames: T + 1)
    H, W  image height and width      7  Bridge action or state

Conventions (`docs/concepts.md`):
    action (7,)  dx dy dz [m, base axes], droll dpitch dyaw [rad, axes parallel to base],
                 gripper absolute, 1 open, 0 closed; applied to the previous *target*.
    state (7,)   x y z [m]; fixed-axis rpy of R D^T with D the gripper-down rotation [rad]; gripper 0..1.
    row t of an episode is the action taken *at* frame t.
    images are RGB uint8.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadAction, BadFrame, BadInstruction

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

ACTION_DIM = 7
CONTROL_DT_S = 0.2
"""Bridge control period: 5 Hz, non-blocking."""
SIMULATION = "simulation"
"""What a policy's card says under `trained_on` when it has seen simulated images only."""
SUCCESS_THRESHOLD = 0.5
"""A judge's score counts as success strictly above this: a tie is not success."""


def _check(name: str, value: Any, shape: tuple[int | None, ...], dtype: Any, error: type[Exception]) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        got = getattr(value, "dtype", type(value).__name__)
        raise error(f"{name} must be a numpy array of {np.dtype(dtype)}, got {got}")
    if value.ndim != len(shape) or any(s is not None and s != v for s, v in zip(shape, value.shape, strict=False)):
        raise error(f"{name} must have shape {shape}, got {value.shape}")


@dataclass(frozen=True)
class Frame:
    """One camera image. `rgb` uint8 (H, W, 3), RGB. `stamp_ns` is the capture time."""

    rgb: U8
    stamp_ns: int

    def __post_init__(self) -> None:
        _check("Frame.rgb", self.rgb, (None, None, 3), np.uint8, BadFrame)


@dataclass(frozen=True)
class Start:
    """Where imagination begins: a captured frame, the Bridge state float32 (7,) there (None: unknown), the instruction.

    `original`: the camera's own frame, where `frame` is a variation of it (see `adaptation/jitter.py`).
    """

    frame: Frame
    state: F32 | None
    instruction: str
    original: Frame | None = None

    @property
    def captured(self) -> Frame:
        """The frame as the camera gave it, where `frame` is a variation of it."""
        return self.original or self.frame

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise BadInstruction("the instruction is empty; say what the arm shall do, e.g. 'reach the red block'")
        if self.state is not None and (self.state.shape != (ACTION_DIM,) or not np.isfinite(self.state).all()):
            raise BadAction(f"Start.state must be finite and of shape (7,), got {self.state!r}; pass None if unknown")


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
    """One sampled chunk for each of G copies.

    `deltas` float32 (G, K, 7). What a policy gradient needs beside them is None where the policy cannot be trained:
    `tokens` (G, K, 7), what was drawn in the policy's own units (int64 bins, or float32 normalised actions of a
    continuous head); `logprobs` float32 (G, K, 7) of them, at the sampling temperature.
    """

    deltas: F32
    tokens: NDArray[Any] | None = None
    logprobs: F32 | None = None
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

    `score` probability of success, 0..1. `done_at` index of the first frame judged done, or None. `votes` scores that
    one judge gave itself (ensemble heads, repeated answers). `members` of a consensus: (judge, score) each; who was
    not asked is left out. `frame_scores` float32 (frames,) per-frame probability, `progress` the furthest progress
    0..1 of two frames in a row, where the judge gives them. `rejected`: the rollout filter took its verdict.
    """

    score: float | None
    done_at: int | None = None
    votes: tuple[float, ...] = ()
    detail: str = ""
    frame_scores: F32 | None = None
    progress: float | None = None
    members: tuple[tuple[str, float | None], ...] = ()
    rejected: bool = False


@dataclass(frozen=True)
class RolloutFacts:
    """What is known of G rollouts beside their images: for a geometric judge instead of looking.

    `captured` G images uint8 (H, W, 3) as the camera gave them, of any size, before a rollout's first frame was made
    of them; `states` the Bridge state float32 (7,) there, or None where unknown; `deltas` float32 (G, T, 7), the
    actions between the frames.
    """

    captured: Sequence[U8]
    states: Sequence[F32 | None]
    deltas: F32

    def rows(self, which: I64) -> RolloutFacts:
        """Return what is known of the rollouts `which`, indices."""
        return RolloutFacts([self.captured[i] for i in which], [self.states[i] for i in which], self.deltas[which])


@dataclass(frozen=True)
class RolloutGroup:
    """G imagined rollouts from one start frame.

    `frames` uint8 (G, T+1, H, W, 3); `chunks` one SampledChunks per policy query (N of them, T = N K);
    `query_frames` indices (N,) of the frame each chunk was chosen at; `judgements` G of them;
    `valid` bool (G, N): False for chunks after the first success, and for rejected rollouts. `facts`: what the judges
    knew of them beside their frames; None: nothing. `late`: decodes frames of rollouts, indices of both, that are not
    in `frames` yet; None: all are (`seen`).
    """

    frames: U8
    chunks: tuple[SampledChunks, ...]
    query_frames: tuple[int, ...]
    judgements: tuple[Judgement, ...]
    valid: NDArray[np.bool_]
    instruction: str
    adapter: str
    world_model: str
    facts: RolloutFacts | None = None
    late: Callable[[Sequence[int] | I64, Sequence[int] | I64], None] | None = None

    def seen(self, rollout: int, steps: Sequence[int] | I64) -> U8:
        """Return these frames of a rollout, uint8 (n, H, W, 3), decoded where they were not."""
        if self.late is not None:
            self.late([rollout], steps)
        return self.frames[rollout, steps]


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
    """A VLA: enough to act, and to be evaluated in imagination. Frames have any (H, W); the policy resizes.

    An instruction is any sentence; a policy that cannot read one raises BadInstruction.
    """

    @property
    def name(self) -> str:
        """What the base is called; adapters are tied to it."""

    @property
    def chunk_size(self) -> int:
        """K, actions per chunk."""

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        """Choose one chunk greedily (temperature 0)."""

    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        """Sample one chunk for each of `frames` uint8 (G, H, W, 3); the same seed gives the same chunks."""

    def load_adapter(self, ref: AdapterRef | None) -> None:
        """Swap to this adapter (None: the base). Raises AdapterMismatch and changes nothing if it does not fit."""


@runtime_checkable
class ActsOnState(Protocol):
    """What a policy can also do that looks at the arm's state beside the image."""

    def sample_at(self, frames: U8, states: F32, instruction: str, temperature: float, seed: int) -> SampledChunks:
        """Sample one chunk for each of `frames` uint8 (G, H, W, 3), with the arm at `states`: Bridge states float32
        (G, 7), a row of NaN where none is known. Temperature 0 is greedy."""


class TrainablePolicy(Policy, Protocol):
    """A policy whose LoRA adapter a policy gradient can train. Tensors are torch's; sampler and trainer share one code
    path, so that the first probability ratio is 1."""

    def logprobs(self, frames: U8, instructions: Sequence[str] | str, tokens: NDArray[Any], temperature: float) -> Any:
        """Return log-probabilities, tensor float32 (B, K, 7), of `tokens` (B, K, 7), differentiable in the adapter."""

    def cloning_loss(self, frames: U8, instructions: Sequence[str], deltas: F32) -> Any:
        """Return the behaviour-cloning loss, a scalar tensor, of chunks float32 (B, K, 7) taken at frames."""

    def add_lora(self, rank: int, alpha: float, seed: int = 0) -> list[Any]:
        """Put in a fresh adapter (outputs unchanged) and return its parameters, trainable."""

    def trainable_parameters(self) -> list[Any]:
        """Return the present adapter's parameters, made trainable (to go on from a loaded adapter)."""

    def save_adapter(self, directory: str | Path) -> str:
        """Write the present adapter (peft layout, safetensors); return the SHA-256 of its weights."""

    def without_adapter(self) -> AbstractContextManager[Any]:
        """Act as the base inside the block; the adapter's weights stay."""


class RolloutBatch(Protocol):
    """A single-use batch of imagined continuations, one copy per start."""

    def play(self, deltas: F32) -> U8:
        """Apply K actions per copy, float32 (G, K, 7), physical units; return frames uint8 (G, K, H, W, 3).

        K is any positive number; a world model whose `stride` does not divide it pads with standing still and drops
        what that adds.
        """

    def keep(self, copies: I64) -> None:
        """Go on with these copies alone, indices int64 into the present ones; what they see does not change by it."""


@runtime_checkable
class DrawsLatents(Protocol):
    """What a batch of imagined continuations of a latent world model can also do."""

    def draw(self, deltas: F32) -> Any:
        """Do as `play` does, but return latent frames, indexed by copy and step."""

    @property
    def decode(self) -> Callable[[list[Any]], U8]:
        """What decodes n latent frames to images uint8 (n, H, W, 3); it outlives the batch, and does not hold it."""


@runtime_checkable
class TellsState(Protocol):
    """What a batch of imagined continuations can also do."""

    @property
    def state(self) -> F32 | None:
        """Target states (G, 7) by now, read where the start's was known; None where none was."""


class WorldModel(Protocol):
    """An action-conditioned video world model."""

    @property
    def name(self) -> str:
        """What the checkpoint is called."""

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of the frames that it draws, px."""

    @property
    def stride(self) -> int:
        """Actions that it draws at once: 1 where every action is a step of its own."""

    @property
    def max_step(self) -> tuple[float, float]:
        """Longest translation, m, and rotation per axis, rad, of an action: the robot's; rollouts are limited to it."""

    def begin(self, starts: Sequence[Start], seed: int) -> RolloutBatch:
        """Begin one imagined continuation of each start, as one batch; the same seed gives the same frames."""


@runtime_checkable
class RecoversActions(Protocol):
    """What a world model can also do: inverse dynamics, a check of what it drew itself."""

    def recovered(self, starts: Sequence[Start], frames: U8, seed: int) -> F32:
        """Return the actions float32 (G, T, 7) that it reads out of rollouts uint8 (G, T+1, H, W, 3), of its own frame
        size, which began at `starts`."""


class Judge(Protocol):
    """Scores rollouts against an instruction. An internal error must surface as `score=None`, never as 0.

    One that judges by the facts alone and looks at no frame says so with `reads_frames = False`: it costs little, so a
    consensus asks it first.
    """

    @property
    def name(self) -> str:
        """What the checkpoint or service is called."""

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts uint8 (G, T+1, H, W, 3). `facts`: what else is known of them, for who can use it."""


@runtime_checkable
class LooksAtSome(Protocol):
    """What a judge can also say."""

    def looks_at(self, frames: int) -> Sequence[int]:
        """Return which of the so many frames of a rollout it looks at; its score depends on no others."""


def looked_at(judge: Judge, frames: int) -> Sequence[int]:
    """Return which of the so many frames of a rollout a judge looks at: all, where it does not say."""
    if not getattr(judge, "reads_frames", True):
        return ()
    return judge.looks_at(frames) if isinstance(judge, LooksAtSome) else range(frames)


@runtime_checkable
class Counts(Protocol):
    """What a judge can also do that is paid for, in money or in waiting."""

    @property
    def spent(self) -> str:
        """What was asked and used so far, in words; '' where nothing is counted."""


@runtime_checkable
class TakesPartialCredit(Protocol):
    """What a judge that is asked in words can also do."""

    def take_partial_credit(self, sentences: Mapping[str, str]) -> tuple[str, ...]:
        """Ask about these instructions with the sentence of each that says what counts as half done; return the names
        of the judges that do."""


class ImageTextModel(Protocol):
    """Looks at images and answers in words."""

    @property
    def name(self) -> str:
        """What the model is called, and where it runs."""

    def answer(self, text: str, images: Sequence[U8], seed: int) -> str:
        """Return what it says to a text behind images uint8 (H, W, 3). RemoteModelError where there is no answer."""


class ImageEditor(Protocol):
    """Paints where a mask allows it."""

    @property
    def name(self) -> str:
        """What the editor is called, and where it runs."""

    def paint(self, rgb: U8, mask: NDArray[np.bool_], prompt: str, seed: int) -> U8:
        """Return what it makes of an image uint8 (S, S, 3) where `mask` bool (S, S) is set. RemoteModelError where it
        gives none; who asks looks at the size and at what was painted beside the mask."""


@runtime_checkable
class TellsPossible(Protocol):
    """What a judge that is asked in words can also do."""

    def possible(self, images: U8, instruction: str) -> list[Judgement]:
        """Return of each image uint8 (G, H, W, 3), by itself, how likely it is that the instruction can be carried out
        in the scene that it shows; no verdict is not a no."""


@runtime_checkable
class Confirms(Protocol):
    """What a judge made of several can also do."""

    def confirm(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge as `score` does where only a yes or no is wanted: later judges are not asked about failures."""


@runtime_checkable
class Grades(Protocol):
    """What a judge made of several can also do."""

    def grade(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge as `score` does where sure failures need not be told apart: dear judges are not asked about them."""


class EndsEpisodes(Protocol):
    """Says when the task of a real episode is done, from its frames as they come."""

    def begin(self, instruction: str) -> None:
        """Begin an episode."""

    def look(self, rgb: U8) -> bool:
        """Look at the next frame, uint8 (H, W, 3); return whether the task is done."""
