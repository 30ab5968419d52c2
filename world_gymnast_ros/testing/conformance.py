"""What every policy, world model and judge must do, as checks that run on any of them: a user's own, too.

    faults = world_model_faults(my_world, starts)        # [] where it keeps the protocol of types.py
    faults = policy_faults(my_policy, frames, "put the eggplant in the sink")
    faults = judge_faults(my_judge, rollouts, "put the eggplant in the sink")

Each fault is a sentence that names what was done, what came and what must. Nothing here knows a class, and nothing
stays changed: adapters that are put in are taken out.
"""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from world_gymnast_ros.errors import (
    AdapterMismatch,
    BadAction,
    BadConfig,
    BadFrame,
    BadInstruction,
    WorldGymnastError,
)
from world_gymnast_ros.types import (
    ACTION_DIM,
    F32,
    U8,
    ActionChunk,
    AdapterRef,
    Confirms,
    Frame,
    Judge,
    Judgement,
    Policy,
    RolloutFacts,
    Start,
    TrainablePolicy,
    WorldModel,
)

LEVELS = 2
"""Grey levels by which frames may differ where a batch of another size may round differently."""
SCORE_TOLERANCE = 1e-3
"""The same for scores and log-probabilities."""
DELTA_TOLERANCE = 1e-4
Faults = list[str]


def world_model_faults(world: WorldModel, starts: Sequence[Start], seed: int = 0) -> Faults:
    """Return what a world model does otherwise than `types.WorldModel` says. `starts`: two or more, of other frames."""
    if len(starts) < 2:
        raise BadConfig(f"{len(starts)} starts; two different ones at least are needed")
    faults = [] if world.name.strip() else ["it has no name"]
    if world.stride < 1 or min(world.frame_size) < 1 or min(world.max_step) <= 0:
        return [*faults, f"stride {world.stride}, frame_size {world.frame_size}, max_step {world.max_step} must be "
                "positive"]
    for check in (_frames_are_whole, _seeds_decide, _copies_are_apart, _time_is_cut_anywhere, _finished_copies_leave,
                  _wrong_actions_are_refused):
        faults += _safely(check, world, list(starts), seed)
    return faults


def _safely(check: Callable[..., Faults], *given: Any) -> Faults:
    """Run one check; an error that it did not ask for is a fault."""
    try:
        return check(*given)
    except Exception as error:  # any class may be checked, and the other checks shall still run
        return [f"{check.__name__.strip('_').replace('_', ' ')}: {type(error).__name__}: {error}"]


def _actions(copies: int, steps: int, seed: int) -> F32:
    deltas = np.random.default_rng(seed).uniform(-0.02, 0.02, (copies, steps, ACTION_DIM)).astype(np.float32)
    deltas[..., 6] = np.random.default_rng(seed).random((copies, steps)) > 0.5
    return deltas


def _apart(a: U8, b: U8) -> int:
    """Return the largest difference of two arrays of frames, grey levels; 256 where their shapes differ."""
    return 256 if a.shape != b.shape else int(np.abs(a.astype(np.int16) - b).max(initial=0))


def _frames_are_whole(world: WorldModel, starts: list[Start], seed: int) -> Faults:
    faults = []
    for steps in {1, world.stride, world.stride + 1}:
        deltas = _actions(len(starts), steps, seed)
        before, seen = deltas.copy(), [s.frame.rgb.copy() for s in starts]
        frames = world.begin(starts, seed).play(deltas)
        wanted = (len(starts), steps, *world.frame_size, 3)
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.shape != wanted:
            faults.append(f"{steps} actions gave {getattr(frames, 'dtype', type(frames))} {np.shape(frames)}; uint8 "
                          f"{wanted} is needed")
        if not np.array_equal(deltas, before):
            faults.append("it changed the actions that it was given")
        if any(not np.array_equal(s.frame.rgb, rgb) for s, rgb in zip(starts, seen, strict=True)):
            faults.append("it changed the start frames that it was given")
    return faults


def _seeds_decide(world: WorldModel, starts: list[Start], seed: int) -> Faults:
    deltas = _actions(len(starts), 2 * world.stride, seed)
    first = world.begin(starts, seed).play(deltas)
    one, other = world.begin(starts, seed), world.begin(list(reversed(starts)), seed + 1)
    other.play(deltas[:, :world.stride])
    parts = [one.play(deltas[:, :world.stride])]
    other.play(deltas[:, world.stride:])
    parts.append(one.play(deltas[:, world.stride:]))
    faults = []
    if not np.array_equal(world.begin(starts, seed).play(deltas), first):
        faults.append("the same starts, seed and actions gave other frames")
    if _apart(np.concatenate(parts, 1), first) > LEVELS:
        faults.append("another dream in between changed what a dream shows: state is shared")
    return faults


def _copies_are_apart(world: WorldModel, starts: list[Start], seed: int) -> Faults:
    """What a copy sees hangs neither on its companions' frames nor on their actions."""
    pair, same = [starts[0], starts[1]], [starts[0], starts[0]]
    deltas = _actions(2, 2 * world.stride, seed)
    others = deltas.copy()
    others[1] = _actions(1, 2 * world.stride, seed + 1)[0]
    alone = world.begin(pair, seed).play(deltas)[0]
    faults = []
    if _apart(world.begin(pair, seed).play(others)[0], alone) > LEVELS:
        faults.append("a copy's frames changed with another copy's actions")
    if _apart(world.begin(same, seed).play(deltas)[0], alone) > LEVELS:
        faults.append("a copy's frames changed with another copy's start frame")
    return faults


def _time_is_cut_anywhere(world: WorldModel, starts: list[Start], seed: int) -> Faults:
    """A rollout is played chunk by chunk, a replay in longer pieces: the frames are the same."""
    deltas, stride = _actions(len(starts), 3 * world.stride, seed), world.stride
    whole, rollouts = world.begin(starts, seed).play(deltas), world.begin(starts, seed)
    parts = np.concatenate([rollouts.play(deltas[:, i:i + stride]) for i in range(0, 3 * stride, stride)], 1)
    return [] if _apart(parts, whole) <= LEVELS else [
        f"{3 * stride} actions at once and {stride} at a time gave frames that differ by {_apart(parts, whole)} levels"]


def _finished_copies_leave(world: WorldModel, starts: list[Start], seed: int) -> Faults:
    deltas, stride = _actions(len(starts), 2 * world.stride, seed), world.stride
    whole, rollouts = world.begin(starts, seed).play(deltas), world.begin(starts, seed)
    rollouts.play(deltas[:, :stride])
    left = np.arange(1, len(starts), dtype=np.int64)
    rollouts.keep(left)
    after = rollouts.play(deltas[left, stride:])
    return [] if _apart(after, whole[left, stride:]) <= LEVELS else [
        f"after keep({left.tolist()}) the copies that went on saw other frames ({_apart(after, whole[left, stride:])} "
        "levels)"]


def _wrong_actions_are_refused(world: WorldModel, starts: list[Start], seed: int) -> Faults:
    faults = []
    good = _actions(len(starts), world.stride, seed)
    wanted, rollouts = world.begin(starts, seed).play(good), world.begin(starts, seed)
    bad = good.copy()
    bad[0, 0, 0] = np.nan
    for what, deltas in (("of one copy too many", np.concatenate([good, good[:1]])), ("of six numbers", good[..., :6]),
                         ("without a copy axis", good[0]), ("with a NaN", bad), ("of no step", good[:, :0])):
        faults += _not_refused(f"actions {what}", BadAction, rollouts.play, deltas)
    if not faults and _apart(rollouts.play(good), wanted) > LEVELS:
        faults.append("a refused action changed what the dream showed next")
    return faults + _not_refused("begin without a start", BadConfig, world.begin, [], seed)


def _not_refused(what: str, error: type[WorldGymnastError], call: Callable[..., Any], *given: Any) -> Faults:
    """Return a fault where a call does not raise `error`."""
    try:
        call(*given)
    except error:
        return []
    except Exception as other:  # refused, but not as a caller can tell
        return [f"{what}: {type(other).__name__} was raised ({str(other)[:80]}); {error.__name__} is needed"]
    return [f"{what}: was taken; {error.__name__} is needed"]


# --- policies ---------------------------------------------------------------------------------------------------------


def policy_faults(policy: Policy, frames: U8, instruction: str, *, acts_only: bool = False, seed: int = 0) -> Faults:
    """Return what a policy does otherwise than `types.Policy` says. `frames` uint8 (n, H, W, 3), two different ones at
    least. `acts_only`: it cannot sample (one behind `POST /act`). What can be trained is checked as such."""
    faults = [] if policy.name.strip() else ["it has no name"]
    checks = [_acts, *([] if acts_only else [_samples, _foreign_adapters_are_refused])]
    if not acts_only and callable(getattr(policy, "logprobs", None)):
        checks.append(_trains)
    for check in checks:
        faults += _safely(check, policy, frames, instruction, seed)
    return faults


def _chunk_fault(chunk: ActionChunk, policy: Policy, stamp_ns: int) -> Faults:
    wanted = (policy.chunk_size, ACTION_DIM)
    good = chunk.deltas.shape == wanted and chunk.deltas.dtype == np.float32 and np.isfinite(chunk.deltas).all()
    faults = [] if good else [f"act gave {chunk.deltas.dtype} {chunk.deltas.shape}; finite float32 {wanted} is needed"]
    return faults if chunk.frame_stamp_ns == stamp_ns else [*faults, "a chunk does not carry the stamp of its frame"]


def _acts(policy: Policy, frames: U8, instruction: str, seed: int) -> Faults:
    faults, before = [], frames.copy()
    first = policy.act(Frame(frames[0], 5), instruction)
    faults += _chunk_fault(first, policy, 5)
    for i, size in enumerate(((480, 640), (64, 48)), 1):  # any camera
        tiled = np.resize(frames[1], (*size, 3)).astype(np.uint8)
        faults += _chunk_fault(policy.act(Frame(tiled, i), instruction), policy, i)
    again = policy.act(Frame(frames[0], 5), instruction)
    if not np.array_equal(first.deltas, again.deltas):
        faults.append("the same frame gave another chunk after other frames: it has a memory, or is not greedy")
    if not np.array_equal(frames, before):
        faults.append("it changed the frames that it was given")
    return faults + _not_refused("an empty instruction", BadInstruction, policy.act, Frame(frames[0], 5), " ")


def _samples(policy: Policy, frames: U8, instruction: str, seed: int) -> Faults:
    faults, before = [], frames.copy()
    one, two = (policy.sample(frames, instruction, 1.0, seed) for _ in range(2))
    wanted = (len(frames), policy.chunk_size, ACTION_DIM)
    if one.deltas.shape != wanted or one.deltas.dtype != np.float32 or not np.isfinite(one.deltas).all():
        return [f"sample gave {one.deltas.dtype} {one.deltas.shape}; finite float32 {wanted} is needed"]
    if not np.array_equal(one.deltas, two.deltas):
        faults.append("the same seed sampled other chunks")
    for name, values in (("tokens", one.tokens), ("logprobs", one.logprobs)):
        if values is not None and values.shape != wanted:
            faults.append(f"{name} of samples have shape {values.shape}; {wanted} is needed")
    companions = frames.copy()
    companions[1:] = frames[0]
    mixed = policy.sample(companions, instruction, 1.0, seed)
    if one.tokens is not None and one.logprobs is not None and mixed.tokens is not None \
            and mixed.logprobs is not None and np.array_equal(mixed.tokens[0], one.tokens[0]):
        if np.abs(mixed.logprobs[0] - one.logprobs[0]).max() > SCORE_TOLERANCE:
            faults.append("log-probabilities of a frame changed with the other frames of the batch")
    elif np.abs(mixed.deltas[0] - one.deltas[0]).max() > DELTA_TOLERANCE:
        faults.append("the chunk of a frame changed with the other frames of the batch")
    if not np.array_equal(frames, before):
        faults.append("it changed the frames that it was given")
    return faults


def _foreign_adapters_are_refused(policy: Policy, frames: U8, instruction: str, seed: int) -> Faults:
    with tempfile.TemporaryDirectory() as folder:
        ref = AdapterRef("foreign", Path(folder), "0" * 64, "base", "a policy of another name")
        before = policy.act(Frame(frames[0], 0), instruction)
        faults = _not_refused("an adapter of another base", AdapterMismatch, policy.load_adapter, ref)
    after = policy.act(Frame(frames[0], 0), instruction)
    same = np.array_equal(before.deltas, after.deltas) and before.adapter == after.adapter
    return faults if same else [*faults, "a refused adapter changed the policy"]


def _trains(policy: Policy, frames: U8, instruction: str, seed: int) -> Faults:
    """A fresh adapter changes nothing, the first ratio is 1, and the base is there again afterwards."""
    trainable, faults = cast(TrainablePolicy, policy), []
    before = policy.sample(frames, instruction, 1.0, seed)
    weights = trainable.add_lora(4, 8.0, seed)
    try:
        sampled = policy.sample(frames, instruction, 1.0, seed)
        if not np.array_equal(sampled.deltas, before.deltas):
            faults.append("a fresh adapter changed what is sampled")
        if sampled.tokens is None or sampled.logprobs is None:
            return [*faults, "it can be trained, but its samples hold no tokens or log-probabilities"]
        now = trainable.logprobs(frames, [instruction] * len(frames), sampled.tokens, 1.0)
        off = float(np.abs(np.exp(now.detach().float().cpu().numpy() - sampled.logprobs) - 1).max())
        if off > SCORE_TOLERANCE:
            faults.append(f"the first probability ratio is off 1 by {off:.2g}: sampler and trainer compute differently")
        now.sum().backward()
        if not any(w.grad is not None and bool((w.grad != 0).any()) for w in weights):
            faults.append("no gradient reaches the adapter")
    finally:
        policy.load_adapter(None)
    after = policy.sample(frames, instruction, 1.0, seed)
    same = np.array_equal(before.deltas, after.deltas)
    return faults if same else [*faults, "load_adapter(None) left something behind"]


# --- judges -----------------------------------------------------------------------------------------------------------


def judge_faults(judge: Judge, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> Faults:
    """Return what a judge does otherwise than `types.Judge` says. `frames` uint8 (G, T+1, H, W, 3), two rollouts at
    least, of which one judge at least has an opinion."""
    faults = [] if judge.name.strip() else ["it has no name"]
    for check in (_verdicts_are_whole, _verdicts_are_each_its_own, _broken_rollouts_are_no_failures):
        faults += _safely(check, judge, frames, instruction, facts)
    return faults


def _scores(found: Sequence[Judgement]) -> F32:
    return np.array([np.nan if j.score is None else j.score for j in found], np.float32)


def _verdicts_are_whole(judge: Judge, frames: U8, instruction: str, facts: RolloutFacts | None) -> Faults:
    before, faults = frames.copy(), []
    ask = {"score": judge.score}
    if isinstance(judge, Confirms):
        ask["confirm"] = judge.confirm
    for name, call in ask.items():
        found = call(frames, instruction, facts)
        if len(found) != len(frames):
            faults.append(f"{name} gave {len(found)} verdicts for {len(frames)} rollouts")
        for j in found:
            if j.score is not None and not 0.0 <= j.score <= 1.0:
                faults.append(f"{name} gave {j.score}, which is no probability")
            if j.done_at is not None and not 0 <= j.done_at < frames.shape[1]:
                faults.append(f"{name} says done at frame {j.done_at} of {frames.shape[1]}")
            if j.score is None and not j.detail:
                faults.append(f"{name} has no verdict and does not say why")
    if not np.array_equal(frames, before):
        faults.append("it changed the frames that it was given")
    return faults


def _verdicts_are_each_its_own(judge: Judge, frames: U8, instruction: str, facts: RolloutFacts | None) -> Faults:
    """A batch equals one by one, in any order, at any time."""
    whole = _scores(judge.score(frames, instruction, facts))
    order = np.arange(len(frames))[::-1]
    turned = _scores(judge.score(frames[order], instruction, None if facts is None else facts.rows(order)))
    single = np.concatenate([_scores(judge.score(frames[i:i + 1], instruction,
                                                 None if facts is None else facts.rows(np.array([i]))))
                             for i in range(len(frames))])
    faults = []
    for what, other in (("in another order", turned[order]), ("one by one", single),
                        ("again", _scores(judge.score(frames, instruction, facts)))):
        if not np.allclose(whole, other, atol=SCORE_TOLERANCE, equal_nan=True):
            faults.append(f"judged {what}, rollouts got {other.tolist()}, before {whole.tolist()}")
    return faults


def _broken_rollouts_are_no_failures(judge: Judge, frames: U8, instruction: str, facts: RolloutFacts | None) -> Faults:
    """What cannot be judged is refused or has no verdict; a score of 0 would train against the policy."""
    faults = []
    for what, rollouts, words in (("frames of float", frames.astype(np.float32), instruction),
                                  ("frames without colour", frames[..., 0], instruction),
                                  ("an empty instruction", frames, " ")):
        try:
            found = judge.score(cast(U8, rollouts), words, facts)
        except (BadFrame, BadInstruction):
            continue
        if any(j.score is not None for j in found):
            faults.append(f"{what} got a score; BadFrame, BadInstruction, or no verdict is needed")
    return faults
