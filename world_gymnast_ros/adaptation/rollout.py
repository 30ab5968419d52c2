"""Roll a policy out inside a world model and have a judge score what came of it.

The inner loop of the paper: frame -> policy -> chunk -> K imagined frames -> judge. It knows neither which policy,
nor which world model, nor which judge. Policy and world model are asked once per chunk.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.adaptation.late_frames import LateFrames
from world_gymnast_ros.errors import BadAction, BadBudget, BadFrame, BadInstruction, WorldGymnastError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.robot.actions import StepLimits, clip_delta, gripper_is_open, integrate_states
from world_gymnast_ros.types import (
    ACTION_DIM,
    F32,
    SUCCESS_THRESHOLD,
    U8,
    ActsOnState,
    Confirms,
    Grades,
    Judge,
    Judgement,
    Policy,
    RolloutBatch,
    RolloutFacts,
    RolloutGroup,
    SampledChunks,
    Start,
    TellsState,
    WorldModel,
    looked_at,
)

REPLAY_STEPS = 8
"""Actions of a replay that are drawn between two looks at whether it was cancelled."""


class Cancelled(WorldGymnastError):
    """The operator cancelled; nothing was changed."""


def derive_seed(seed: int, *path: int) -> int:
    """Derive an independent 31-bit seed for the branch `path` of `seed` (numpy SeedSequence)."""
    return int(np.random.SeedSequence([abs(int(seed)), *path]).generate_state(1)[0] >> 1)


def is_success(judgement: Judgement) -> bool:
    """Tell whether a judgement predicts success. No verdict is not success, and neither is a tie."""
    return judgement.score is not None and judgement.score > SUCCESS_THRESHOLD


def judge_safely(judge: Judge, frames: U8, instruction: str, facts: RolloutFacts | None = None, *,
                 yes_or_no: bool = False, rank_failures: bool = True) -> list[Judgement]:
    """Score rollouts uint8 (G, T+1, H, W, 3); whatever goes wrong in the judge becomes *no verdict*, never 0.

    `yes_or_no`: only success is asked for, so a consensus may ask its dear judges about fewer rollouts. Without
    `rank_failures`, how sure the judges are of a sure failure does not matter, so it may leave those out.
    BadInstruction and BadFrame pass: what the judge cannot read at all is the caller's mistake, and would never end.
    """
    copies, ask = len(frames), judge.score
    if yes_or_no and isinstance(judge, Confirms):
        ask = judge.confirm
    elif not rank_failures and isinstance(judge, Grades):
        ask = judge.grade
    try:
        judgements = ask(frames, instruction, facts)
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


def first_frames(starts: Sequence[Start], world_model: WorldModel) -> U8:
    """Return the start frames uint8 (G, H, W, 3) at the size that the world model draws: a rollout has one size."""
    height, width = world_model.frame_size
    return np.stack([s.frame.rgb if s.frame.rgb.shape[:2] == (height, width) else
                     resize_rgb(s.frame.rgb, (height, width)) for s in starts])


def states_of(starts: Sequence[Start]) -> F32:
    """Return the Bridge states float32 (G, 7) at the starts, a row of NaN where none is known."""
    unknown = np.full(ACTION_DIM, np.nan, np.float32)
    return np.stack([unknown if s.state is None else s.state for s in starts]).astype(np.float32)


def states_after(rollouts: RolloutBatch, before: F32, deltas: F32, limits: StepLimits) -> F32:
    """Return where the arm is sent by actions (G, K, 7) from Bridge states (G, 7): as the world model gives it, else
    the sum of the actions. What was unknown (NaN) stays so."""
    given = rollouts.state if isinstance(rollouts, TellsState) else None
    after = before.copy()
    known = np.isfinite(before).all(-1)
    if given is not None:
        after[known] = given[known]
    elif known.any():
        steps = deltas[known].astype(np.float32)
        steps[..., 6] = gripper_is_open(steps[..., 6])
        for t in range(steps.shape[1]):
            after[known] = integrate_states(after[known], steps[:, t], limits)
    return after


def sample_at(policy: Policy, frames: U8, states: F32, instruction: str, temperature: float, seed: int
              ) -> SampledChunks:
    """Sample one chunk for each frame; a policy that looks at the arm's state gets it (G, 7), NaN: unknown."""
    if isinstance(policy, ActsOnState):
        return policy.sample_at(frames, states, instruction, temperature, seed)
    return policy.sample(frames, instruction, temperature, seed)


def never() -> bool:
    """Stand for 'nobody cancels'."""
    return False


def imagine(policy: Policy, world_model: WorldModel, judge: Judge, start: Start | Sequence[Start], copies: int,
            horizon_steps: int, temperature: float, seed: int, *, judge_every_chunks: int = 1,
            cancelled: Callable[[], bool] = never, sparing: bool = False) -> RolloutGroup:
    """Imagine `copies` rollouts of about `horizon_steps` actions (rounded up to whole chunks) from a start.

    Several starts of one instruction may share the batch: rollout i then begins at start i // copies. A copy judged
    successful is finished: its later chunks are masked in `valid` and its image stands still. `judge_every_chunks`
    0 judges once, at the end; otherwise the dream ends as soon as every copy is finished, with its last frame repeated.
    `sparing`: a latent world model decodes only what policy and judge look at, and of the rest what is asked for
    (`RolloutGroup.seen`); until then its place holds an earlier frame.
    Raises Cancelled between chunks, BadAction for a non-finite action, BadFrame for a malformed dream.
    """
    if copies < 1 or horizon_steps < 1:
        raise BadBudget(f"copies {copies} and horizon_steps {horizon_steps} must both be at least 1")
    starts = [start] if isinstance(start, Start) else list(start)
    instruction = starts[0].instruction
    if any(s.instruction != instruction for s in starts):
        raise BadInstruction(f"one group has one instruction, got {sorted({s.instruction for s in starts})}")
    K = policy.chunk_size
    N = -(-horizon_steps // K)
    each = [s for s in starts for _ in range(copies)]
    firsts = first_frames(starts, world_model).repeat(copies, 0)
    G = len(firsts)
    frames = np.repeat(firsts[:, None], N * K + 1, 1)
    limits = StepLimits(*world_model.max_step)
    rollouts = world_model.begin(each, derive_seed(seed, 0))
    drawn = LateFrames(frames, rollouts, world_model, judge if sparing else None)
    states = states_of(each)
    chunks: list[SampledChunks] = []
    judgements = [Judgement(None, detail="not judged")] * G
    last_chunk = np.full(G, N - 1)
    active = np.arange(G)
    for n in range(N):
        if cancelled():
            raise Cancelled(f"cancelled while imagining chunk {n + 1} of {N}")
        chunk = sample_at(policy, frames[active, n * K], states[active], instruction, temperature,
                          derive_seed(seed, 1, n))
        _check_chunk(chunk, len(active), K)
        chunk = replace(chunk, deltas=clip_delta(chunk.deltas, limits))  # as the guard does on the arm
        chunks.append(_scattered(chunk, active, G))
        drawn.play(rollouts, active, n * K + 1, chunk.deltas)
        states[active] = states_after(rollouts, states[active], chunk.deltas, limits)
        if n == N - 1 or (judge_every_chunks and (n + 1) % judge_every_chunks == 0):
            facts = facts_of([each[i] for i in active], np.concatenate([c.deltas[active] for c in chunks], axis=1))
            drawn.show(active, looked_at(judge, (n + 1) * K + 1))
            verdicts = judge_safely(judge, frames[active, : (n + 1) * K + 1], instruction, facts, rank_failures=False)
            done = np.zeros(len(active), np.bool_)
            for k, (i, verdict) in enumerate(zip(active, verdicts, strict=True)):
                judgements[i] = verdict
                if verdict.done_at is not None or is_success(verdict):
                    done_at = verdict.done_at if verdict.done_at is not None else (n + 1) * K
                    last_chunk[i] = min((done_at - 1) // K, n)
                    done[k] = True
            if done.any() and not done.all() and n < N - 1:  # finished copies leave the batch
                rollouts.keep(np.flatnonzero(~done))
            active = active[~done]
        if not len(active):
            break
    for row, verdict in enumerate(judgements):
        if verdict.done_at is not None:
            drawn.stand_still(row, _finished_after(verdict.done_at, K, len(chunks)))
    valid = np.arange(len(chunks))[None, :] <= last_chunk[:, None]
    valid &= np.array([j.score is not None for j in judgements])[:, None]
    return RolloutGroup(frames, tuple(chunks), tuple(n * K for n in range(len(chunks))), tuple(judgements), valid,
                        instruction, chunks[0].adapter, world_model.name,
                        facts_of(each, np.concatenate([c.deltas for c in chunks], axis=1)),
                        None if drawn.decode is None else drawn.show)


def replay(world_model: WorldModel, starts: Sequence[Start], deltas: F32, seed: int,
           cancelled: Callable[[], bool] = never, steps: NDArray[np.int64] | None = None, judge: Judge | None = None
           ) -> U8:
    """Replay actions float32 (G, T, 7), each row from its own start, under the noise of `seed`; return frames uint8
    (G, T+1, H, W, 3). Raises Cancelled between pieces of REPLAY_STEPS actions.

    `steps` int64 (G,): after so many actions a row is finished, leaves the batch and stands still (None: no row is).
    `judge`: who alone looks at them; a latent world model then need not decode all.
    """
    firsts, T = first_frames(starts, world_model), deltas.shape[1]
    frames = np.repeat(firsts[:, None], T + 1, 1)
    ends = np.full(len(firsts), T) if steps is None else np.minimum(steps, T)
    rollouts = world_model.begin(starts, derive_seed(seed, 0))
    drawn = LateFrames(frames, rollouts, world_model, judge)
    piece = -(-REPLAY_STEPS // world_model.stride) * world_model.stride
    active, t = np.arange(len(firsts)), 0
    while t < T:
        if cancelled():
            raise Cancelled(f"cancelled while replaying step {t + 1} of {T}")
        on = ends[active] > t
        if not on.any():
            break
        if not on.all():
            rollouts.keep(np.flatnonzero(on))
            active = active[on]
        until = int(ends[active].min()) - t  # up to where the next row is finished, in whole strides
        part = deltas[active, t:t + min(piece, -(-until // world_model.stride) * world_model.stride)]
        drawn.play(rollouts, active, t + 1, part)
        t += part.shape[1]
    for i, end in enumerate(ends.tolist()):
        drawn.stand_still(i, end)
    if judge is not None:
        drawn.show(range(len(ends)), looked_at(judge, T + 1))
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


def _scattered(chunk: SampledChunks, rows: NDArray[np.int64], copies: int) -> SampledChunks:
    """Return the chunk of the active `rows` as one of all `copies`; finished copies stand still, gripper open."""
    if len(rows) == copies:
        return chunk
    deltas = np.zeros((copies, *chunk.deltas.shape[1:]), np.float32)
    deltas[..., 6] = 1.0
    deltas[rows] = chunk.deltas

    def spread(values: NDArray[Any] | None) -> NDArray[Any] | None:
        if values is None:
            return None
        out = np.zeros((copies, *values.shape[1:]), values.dtype)
        out[rows] = values
        return out
    return SampledChunks(deltas, spread(chunk.tokens), spread(chunk.logprobs), chunk.adapter)


def _check_chunk(chunk: SampledChunks, copies: int, chunk_size: int) -> None:
    expected = (copies, chunk_size, ACTION_DIM)
    if chunk.deltas.shape != expected:
        raise BadAction(f"the policy gave actions of shape {chunk.deltas.shape}, expected {expected}")
    if not np.isfinite(chunk.deltas).all():
        raise BadAction("the policy gave a non-finite action; its weights or its adapter are broken, load the base")
