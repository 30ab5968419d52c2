"""Roll a policy out inside a world model and have a judge score what came of it.

The inner loop of the paper: frame -> policy -> chunk -> K dreamed frames -> judge. It knows neither which policy, nor
which world model, nor which judge. The world model is asked for every action, the policy once per chunk.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadAction, BadBudget, BadFrame, BadInstruction, WorldGymnastError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.types import (
    ACTION_DIM,
    F32,
    U8,
    Dream,
    Frame,
    Judge,
    Judgement,
    Policy,
    RolloutFacts,
    RolloutGroup,
    SampledChunks,
    WorldModel,
)

SUCCESS_THRESHOLD = 0.5
"""A score counts as success strictly above this: a tie is not success."""


class Cancelled(WorldGymnastError):
    """The operator cancelled; nothing was changed."""


@dataclass(frozen=True)
class Start:
    """Where imagination begins: a captured frame, the Bridge state float32 (7,) there (or None), the task in words.

    `original`: the camera's own frame, where `frame` is a variation of it (see jitter.py)."""

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


def derive_seed(seed: int, *path: int) -> int:
    """Derive an independent 31-bit seed for the branch `path` of `seed` (numpy SeedSequence)."""
    return int(np.random.SeedSequence([abs(int(seed)), *path]).generate_state(1)[0] >> 1)


def is_success(judgement: Judgement) -> bool:
    """Tell whether a judgement claims success. No verdict is not success, and neither is a tie."""
    return judgement.score is not None and judgement.score > SUCCESS_THRESHOLD


def judge_safely(judge: Judge, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
    """Score rollouts uint8 (G, T+1, H, W, 3); whatever goes wrong in the judge becomes *no verdict*, never 0.

    BadInstruction and BadFrame pass: what the judge cannot read at all is the caller's mistake, and would never end.
    """
    copies = len(frames)
    try:
        judgements = judge.score(frames, instruction, facts)
    except (BadInstruction, BadFrame):
        raise
    except Exception as error:  # any judge may be plugged in, and none may crash or bias the session
        return [Judgement(None, detail=f"judge failed: {type(error).__name__}: {error}")] * copies
    if len(judgements) != copies:
        return [Judgement(None, detail=f"judge gave {len(judgements)} verdicts for {copies} rollouts")] * copies
    return [j if j.score is None or 0.0 <= j.score <= 1.0  # NaN fails this comparison too
            else Judgement(None, detail=f"score {j.score} is outside 0..1") for j in judgements]


def facts_of(starts: Sequence[Start], deltas: F32) -> RolloutFacts:
    """Return what is known of rollouts that began at `starts` (one for each) with actions (G, T, 7)."""
    return RolloutFacts([s.captured.rgb for s in starts], [s.state for s in starts], deltas)


def start_picture(start: Start, world_model: WorldModel) -> U8:
    """Return the start frame at the size the world model draws, so that every frame of a rollout has one size.

    A world model says its size in an attribute `frame_size` (h, w); without one the captured size is kept.
    """
    size: tuple[int, int] | None = getattr(world_model, "frame_size", None)
    rgb = start.frame.rgb
    if size is None or rgb.shape[:2] == tuple(size):
        return rgb
    return resize_rgb(rgb, (int(size[0]), int(size[1])))


def check_frames(frames: U8, like: U8, world_model: str) -> U8:
    """Refuse frames of a world model that are not uint8 and shaped like the start pictures (G, H, W, 3)."""
    if frames.dtype != np.uint8 or frames.shape != like.shape:
        raise BadFrame(f"world model {world_model} drew {frames.dtype} {frames.shape}, expected uint8 {like.shape}; "
                       "give the world model a matching `frame_size` attribute")
    return frames


def never() -> bool:
    """Stand for 'nobody cancels'."""
    return False


class _SeveralDreams:
    """Dreams of different starts, stepped as one."""

    def __init__(self, dreams: list[Dream], copies: list[int]) -> None:
        self.dreams, self.ends = dreams, np.cumsum(copies)[:-1]

    def step(self, deltas: F32) -> U8:
        return np.concatenate([d.step(part) for d, part in zip(self.dreams, np.split(deltas, self.ends), strict=True)])


def begin_dreams(world_model: WorldModel, firsts: U8, states: Sequence[F32 | None], seed: int,
                 captured: Sequence[U8] | None = None) -> Dream:
    """Start one dream from each of `firsts` uint8 (G, H, W, 3), each with its own noise.

    A world model that can mix starts in one batch says so with `begin_many(frames, states, seed, captured)`; for
    others, neighbours with the same picture share a batch. `captured`: the camera's own frames, where they are known.
    """
    many = getattr(world_model, "begin_many", None)
    if many is not None:
        known = [s for s in states if s is not None]
        batch: Dream = many(firsts, np.stack(known) if len(known) == len(states) else None, seed, captured)
        return batch
    cuts = [0, *(i for i in range(1, len(firsts)) if (firsts[i] != firsts[i - 1]).any()), len(firsts)]
    dreams = [world_model.begin(Frame(firsts[i], 0), states[i], j - i, derive_seed(seed, i))
              for i, j in pairwise(cuts)]
    return dreams[0] if len(dreams) == 1 else _SeveralDreams(dreams, [j - i for i, j in pairwise(cuts)])


def imagine(policy: Policy, world_model: WorldModel, judge: Judge, start: Start | Sequence[Start], copies: int,
            horizon_steps: int, temperature: float, seed: int, *, judge_every_chunks: int = 1,
            cancelled: Callable[[], bool] = never) -> RolloutGroup:
    """Imagine `copies` rollouts of about `horizon_steps` actions (rounded up to whole chunks) from a start.

    Several starts of one instruction may share the batch: rollout i then begins at start i // copies. A copy judged
    successful is finished: its later chunks are masked in `valid` and its picture stands still. `judge_every_chunks`
    0 judges once, at the end; otherwise the dream ends as soon as every copy is finished, with its last frame repeated.
    Raises Cancelled between chunks, BadAction for a non-finite action, BadFrame for a malformed dream.
    """
    if copies < 1 or horizon_steps < 1:
        raise BadBudget(f"copies {copies} and horizon_steps {horizon_steps} must both be at least 1")
    starts = [start] if isinstance(start, Start) else list(start)
    words = starts[0].instruction
    if any(s.instruction != words for s in starts):
        raise BadInstruction(f"one group has one instruction, got {sorted({s.instruction for s in starts})}")
    K = policy.chunk_size
    N = -(-horizon_steps // K)
    firsts = np.repeat(np.stack([start_picture(s, world_model) for s in starts]), copies, 0)
    G = len(firsts)
    frames = np.repeat(firsts[:, None], N * K + 1, 1)
    dream = begin_dreams(world_model, firsts, [s.state for s in starts for _ in range(copies)], derive_seed(seed, 0),
                         [s.captured.rgb for s in starts for _ in range(copies)])
    chunks: list[SampledChunks] = []
    judgements = [Judgement(None, detail="not judged")] * G
    last_chunk = np.full(G, N - 1)
    active = np.ones(G, np.bool_)
    for n in range(N):
        if cancelled():
            raise Cancelled(f"cancelled while imagining chunk {n + 1} of {N}")
        chunk = policy.sample(frames[:, n * K], words, temperature, derive_seed(seed, 1, n))
        _check_chunk(chunk, G, K)
        chunks.append(chunk)
        for k in range(K):
            drawn = check_frames(dream.step(chunk.deltas[:, k]), firsts, world_model.name)
            frames[active, n * K + k + 1] = drawn[active]
        frames[:, (n + 1) * K + 1:] = frames[:, (n + 1) * K, None]  # what comes next, or the still of a finished copy
        if n == N - 1 or (judge_every_chunks and (n + 1) % judge_every_chunks == 0):
            facts = facts_of([starts[i // copies] for i in np.flatnonzero(active)],
                             np.concatenate([c.deltas[active] for c in chunks], axis=1))
            verdicts = judge_safely(judge, frames[active, : (n + 1) * K + 1], words, facts)
            for i, verdict in zip(np.flatnonzero(active), verdicts, strict=True):
                judgements[i] = verdict
                if verdict.done_at is not None or is_success(verdict):
                    done_at = verdict.done_at if verdict.done_at is not None else (n + 1) * K
                    last_chunk[i] = min((done_at - 1) // K, n)
                    active[i] = False
        if not active.any():
            break
    for rollout, verdict in zip(frames, judgements, strict=True):
        if verdict.done_at is not None:
            end = _finished_after(verdict.done_at, K, len(chunks))
            rollout[end + 1:] = rollout[end]
    valid = np.arange(len(chunks))[None, :] <= last_chunk[:, None]
    valid &= np.array([j.score is not None for j in judgements])[:, None]
    return RolloutGroup(frames, tuple(chunks), tuple(n * K for n in range(len(chunks))), tuple(judgements), valid,
                        words, chunks[0].adapter, world_model.name)


def replay(world_model: WorldModel, start: Start, deltas: F32, seed: int,
           cancelled: Callable[[], bool] = never) -> U8:
    """Replay actions float32 (G, T, 7) from one start in a fresh dream; return frames uint8 (G, T+1, H, W, 3)."""
    firsts = np.repeat(start_picture(start, world_model)[None], len(deltas), 0)
    return replay_from(world_model, firsts, [start.state] * len(deltas), deltas, seed, cancelled,
                       [start.captured.rgb] * len(deltas))


def replay_from(world_model: WorldModel, firsts: U8, states: Sequence[F32 | None], deltas: F32, seed: int,
                cancelled: Callable[[], bool] = never, captured: Sequence[U8] | None = None) -> U8:
    """Replay actions float32 (G, T, 7), each row from its own first picture and state, under the noise of `seed`.

    `captured`: the camera's own frames, where they are known.
    """
    frames = np.repeat(firsts[:, None], deltas.shape[1] + 1, 1)
    dream = begin_dreams(world_model, firsts, states, derive_seed(seed, 0), captured)
    for t in range(deltas.shape[1]):
        if cancelled():
            raise Cancelled(f"cancelled while replaying step {t + 1} of {deltas.shape[1]}")
        frames[:, t + 1] = check_frames(dream.step(deltas[:, t]), firsts, world_model.name)
    return frames


def group_deltas(group: RolloutGroup) -> F32:
    """Return the actions of a group as float32 (G, T, 7)."""
    return np.concatenate([chunk.deltas for chunk in group.chunks], axis=1)


def executed_steps(group: RolloutGroup) -> NDArray[np.int64]:
    """Return int64 (G,): how many actions of each rollout were played before it was finished."""
    K, N = group.chunks[0].deltas.shape[1], len(group.chunks)
    return np.array([N * K if j.done_at is None else _finished_after(j.done_at, K, N) for j in group.judgements])


def _finished_after(done_at: int, chunk_size: int, chunks: int) -> int:
    """Return the action after which a rollout is over: one frame beyond `done_at`, since a judge may ask for two in a
    row, up to the end of that chunk."""
    return min(-(-(done_at + 1) // chunk_size), chunks) * chunk_size


def _check_chunk(chunk: SampledChunks, copies: int, chunk_size: int) -> None:
    expected = (copies, chunk_size, ACTION_DIM)
    if chunk.deltas.shape != expected:
        raise BadAction(f"the policy gave actions of shape {chunk.deltas.shape}, expected {expected}")
    if not np.isfinite(chunk.deltas).all():
        raise BadAction("the policy gave a non-finite action; its weights or its adapter are broken, load the base")
