"""Clipped policy gradient on LoRA weights: the learner of an adaptation session for token policies.

The loss of one batch of trajectories (GRPO with the token-level ratio, as SimpleVLA-RL and World-Gymnast run it):

    L = sum over trajectories i  1/M * sum over their valid tokens t  1/n_i * max(-A_i r, -A_i clip(r, 1-low, 1+high))
    r = exp(logprob_now - logprob_when_sampled), both at the sampling temperature

with M trajectories that have an advantage and n_i valid tokens in trajectory i, so **each trajectory weighs the same,
whatever its length**, also across groups and instructions. The kl_coefficient adds, with the same weights,
kl_coefficient * (exp(b - l) - (b - l) - 1), an unbiased and never negative estimate of KL(now || base) where b is the
log-probability under the base policy (adapter switched off). Where groups of earlier scenes are given (`replay`), they
are a second sum of the same form and the KL term is in theirs alone: the new scene may be learned freely. With a
`target_kl`, the coefficient is doubled when the measured divergence is above 1.5 times that and halved when it is below
that by the same factor (the adaptive penalty of PPO, arXiv:1707.06347).

A minibatch of m out of C chunks uses the same sum over its own chunks times C/m: its expectation over random
minibatches is the gradient of L, so the size of a step does not depend on the minibatch. Several epochs over the same
batch make the ratio leave 1; with a single step per batch the clip would never act.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from world_gymnast_ros.adaptation.advantage import Advantages
from world_gymnast_ros.adaptation.session import Trained
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.types import AdapterRef, Policy, RolloutGroup, TrainablePolicy

TRAINABLE = ("logprobs", "add_lora", "trainable_parameters", "save_adapter", "without_adapter")
"""What `TrainablePolicy` asks beyond `Policy`."""


@dataclass(frozen=True)
class LoraConfig:
    """Settings of the learner. `minibatch_chunks` per optimiser step, done in pieces of `micro_chunks` for memory."""

    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 1e-3
    epochs: int = 2
    minibatch_chunks: int = 80
    micro_chunks: int = 80
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_coefficient: float = 0.0
    target_kl: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        limits = {"rank": (1, 1024), "alpha": (1e-6, 1e4), "learning_rate": (1e-9, 1.0), "epochs": (1, 100),
                  "minibatch_chunks": (1, 10**6), "micro_chunks": (1, 10**6), "clip_low": (0, 1), "clip_high": (0, 10),
                  "kl_coefficient": (0, 100), "target_kl": (0, 10), "max_grad_norm": (1e-6, 1e6)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise BadConfig(f"lora.{name} must lie in [{low}, {high}], got {getattr(self, name)}")


FULL_SIZE = LoraConfig(rank=32, alpha=64.0, learning_rate=2e-5, micro_chunks=8, kl_coefficient=0.01)
"""Where a policy of billions of parameters begins: OpenVLA's rank, and a step and KL coefficient of the size that
fine-tunes of it use (1e-5 to 1e-4). Starting values: they were not tuned on one. An L1 head takes no larger step, since
its density is steep where the scale is small."""


KL_STEP, KL_TOLERANCE, KL_FIRST, KL_RANGE = 2.0, 1.5, 1.0, (1e-2, 100.0)
"""Of a coefficient that follows `target_kl`: factor of a change, factor off the target that asks for one, where it
begins (at least), and its limits."""


@dataclass(frozen=True)
class ChunkBatch:
    """C chunks flattened out of groups. `frames` uint8 (C, H, W, 3); `tokens` (C, K, 7); `old` logprobs (C, K, 7);
    `advantages` (C,); `weights` (C,), per token: 1 / (M n_i), so that weights x K 7 sum to 1; `held` (C,): 1 where the
    KL term acts, else 0; `instructions` C."""

    frames: np.ndarray
    tokens: np.ndarray
    old: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray
    held: np.ndarray
    instructions: list[str]


def flatten(batch: Sequence[tuple[RolloutGroup, Advantages]]) -> ChunkBatch:
    """Gather the valid chunks of all rollouts with an advantage. Groups may differ in instruction and length."""
    rows: list[tuple[Any, ...]] = []
    trajectories = 0
    for group, advantages in batch:
        if advantages.degenerate:
            continue
        for i in np.flatnonzero(advantages.used & group.valid.any(1)):
            trajectories += 1
            chunks = np.flatnonzero(group.valid[i])
            for n in chunks:
                sampled = group.chunks[n]
                if sampled.tokens is None or sampled.logprobs is None:
                    raise BadConfig(f"the rollouts of '{group.instruction}' hold no log-probabilities: this policy "
                                    "acts and is evaluated in imagination, and cannot be trained")
                rows.append((group.frames[i, group.query_frames[n]], sampled.tokens[i], sampled.logprobs[i],
                             advantages.values[i], 1.0 / (len(chunks) * sampled.tokens[i].size), group.instruction))
    if not rows:
        return ChunkBatch(np.empty(0), np.empty(0), np.empty(0), np.empty(0), np.empty(0), np.empty(0), [])
    frames, tokens, old, values, weights, instructions = zip(*rows, strict=True)
    return ChunkBatch(np.stack(frames), np.stack(tokens), np.stack(old), np.array(values, np.float32),
                      (np.array(weights) / trajectories).astype(np.float32), np.ones(len(rows), np.float32),
                      list(instructions))


def with_replay(batch: Sequence[Trained], replay: Sequence[Trained]) -> ChunkBatch:
    """Return the chunks of both, `weights` of each part summing as by itself; with replay, `held` is there alone.

    A replayed group whose rewards are all equal has no advantages, and is regularised towards the base all the same.
    """
    new = flatten(batch)
    old = flatten([(group, replace(a, degenerate=False)) for group, a in replay])
    if not old.instructions:
        return new
    if not new.instructions:
        return old
    joined = {k: np.concatenate([getattr(new, k), getattr(old, k)]) for k in ("frames", "tokens", "old", "advantages",
                                                                              "weights")}
    return ChunkBatch(**joined, held=np.concatenate([0.0 * new.held, old.held]),
                      instructions=new.instructions + old.instructions)


def policy_loss(now: Tensor, old: Tensor, advantages: Tensor, weights: Tensor, clip_low: float, clip_high: float,
                base: Tensor | None = None, kl_coefficient: float = 0.0, held: Tensor | None = None) -> Tensor:
    """Return the weighted sum of clipped losses; `now`, `old`, `base` (C, K, 7), `advantages`, `weights` (C,), `held`
    (C,) scales the KL term of each chunk (None: 1)."""
    ratio = torch.exp(now - old)
    adv = advantages[:, None, None]
    losses = torch.maximum(-adv * ratio, -adv * ratio.clamp(1 - clip_low, 1 + clip_high))
    if base is not None and kl_coefficient > 0:
        gap = base - now
        kl = torch.exp(gap) - gap - 1
        losses = losses + kl_coefficient * (kl if held is None else kl * held[:, None, None])
    return (losses * weights[:, None, None]).sum()


def trainable(policy: Policy) -> TrainablePolicy:
    """Return `policy` as one whose adapter can be trained; BadConfig says why where it cannot."""
    lacking = [name for name in TRAINABLE if not callable(getattr(policy, name, None))]
    if lacking:
        raise BadConfig(f"policy '{policy.name}' cannot be trained: it has no {lacking[0]}. A policy gradient needs "
                        "the log-probability of what was sampled, which policies of action tokens and of a Laplace "
                        "head give; diffusion, flow and remote policies can act and be evaluated in imagination")
    return cast(TrainablePolicy, policy)


@dataclass(frozen=True)
class Regulariser:
    """A loss that every step of a session adds; `told` says in words what it holds the policy to."""

    loss: Callable[[np.random.Generator], Tensor]
    told: str


class LoraLearner:
    """`adaptation.Learner` for any `TrainablePolicy`. One optimiser lives for the whole session.

    Training starts from `parent` (None: a fresh adapter on the base), and `end` puts `parent` back.
    `regulariser.loss(rng)` is added in every step: what imagination rewards is learned without leaving what is known to
    be true, the real successes (as DAPG adds demonstrations, arXiv:1709.10087).
    """

    def __init__(self, policy: Policy, config: LoraConfig | None = None, parent: AdapterRef | None = None,
                 regulariser: Regulariser | None = None) -> None:
        self.policy, self.config = trainable(policy), config or LoraConfig()
        self.parent, self.regulariser = parent, regulariser
        self.weights: list[torch.nn.Parameter] = []
        self.optimiser: torch.optim.Optimizer | None = None
        self._turn: AbstractContextManager[Any] = getattr(policy, "turn", nullcontext())
        self.kl_coefficient = self.config.kl_coefficient

    @property
    def name(self) -> str:
        by = f", regularised by {self.regulariser.told}" if self.regulariser else ""
        kl = f", KL {self.config.target_kl:g} per token aimed at" if self.config.target_kl else ""
        return f"LoRA of rank {self.config.rank}{kl}{by}"

    def begin(self) -> None:
        if self.parent is None:
            self.weights = self.policy.add_lora(self.config.rank, self.config.alpha)
        else:
            self.policy.load_adapter(self.parent)
            self.weights = self.policy.trainable_parameters()
        self.optimiser = torch.optim.AdamW(self.weights, lr=self.config.learning_rate, weight_decay=0.0)
        self.kl_coefficient = max(self.config.kl_coefficient, KL_FIRST if self.config.target_kl else 0.0)

    def update(self, batch: Sequence[Trained], temperature: float, seed: int, replay: Sequence[Trained] = ()
               ) -> dict[str, float]:
        """Run `epochs` passes of minibatches over the batch and the replayed groups; return loss, gradient norm, ratio
        and clip figures, and where there is a KL term the divergence that was measured before, and its coefficient."""
        if self.optimiser is None:
            raise BadConfig("update before begin: call begin() first")
        data = with_replay(batch, replay)
        count = len(data.instructions)
        if not count:
            return {"chunks": 0.0}
        c = self.config
        base = self._base_logprobs(data, temperature) if self.kl_coefficient > 0 else None
        kl = {} if base is None else self._follow_target(data, base)
        rng = np.random.default_rng(seed)
        figures: list[tuple[float, ...]] = []
        for _ in range(c.epochs):
            order = rng.permutation(count)
            for part in np.array_split(order, math.ceil(count / c.minibatch_chunks)):
                figures.append(self._step(data, part, count / len(part), temperature, base, rng))
        loss, norm, off, clipped = (float(np.mean(column)) for column in zip(*figures, strict=True))
        return {"loss": loss, "grad_norm": norm, "ratio_off": off, "clip_fraction": clipped,
                "first_ratio_off": figures[0][2], "chunks": float(count), **kl}

    def _follow_target(self, data: ChunkBatch, base: Tensor) -> dict[str, float]:
        """Set the KL coefficient by the divergence per token of the policy that sampled `data`; return both."""
        gap = base.cpu().numpy() - data.old
        per_chunk = (np.exp(gap) - gap - 1).mean((1, 2))
        weights = data.weights * data.held
        kl = float((per_chunk * weights).sum() / weights.sum())
        target = self.config.target_kl
        if target:
            step = KL_STEP if kl > KL_TOLERANCE * target else 1 / KL_STEP if kl < target / KL_TOLERANCE else 1.0
            self.kl_coefficient = float(np.clip(self.kl_coefficient * step, *KL_RANGE))
        return {"kl": kl, "kl_coefficient": self.kl_coefficient}

    def _step(self, data: ChunkBatch, part: np.ndarray, scale: float, temperature: float, base: Tensor | None,
              rng: np.random.Generator) -> tuple[float, ...]:
        """Take one optimiser step on the chunks `part`, in micro-batches whose gradients add up."""
        assert self.optimiser is not None
        c = self.config
        self.optimiser.zero_grad(set_to_none=True)
        figures = np.zeros(3)
        for micro in np.array_split(part, math.ceil(len(part) / c.micro_chunks)):
            with self._turn:  # no other adapter may act between a forward pass and the end of its backward pass
                loss, off, clipped = self._backward(data, micro, scale, temperature, base)
            figures += (loss, off * len(micro) / len(part), clipped * len(micro) / len(part))
        with self._turn:
            if self.regulariser is not None:
                extra = self.regulariser.loss(rng)
                extra.backward()
                figures[0] += float(extra.detach())
            norm = float(torch.nn.utils.clip_grad_norm_(self.weights, c.max_grad_norm))
            if not math.isfinite(norm):
                raise FloatingPointError(f"gradient norm is {norm}; lower the learning rate ({c.learning_rate})")
            self.optimiser.step()
        total, off, clipped = figures.tolist()
        return total, norm, off, clipped

    def _backward(self, data: ChunkBatch, micro: np.ndarray, scale: float, temperature: float, base: Tensor | None
                  ) -> tuple[float, float, float]:
        """Add the gradient of the chunks `micro`; return their loss, ratio and clip figures."""
        c = self.config
        now = self._logprobs(data, micro, temperature)
        old, advantages, weights, held = (torch.from_numpy(np.ascontiguousarray(a[micro])).to(now.device)
                                          for a in (data.old, data.advantages, data.weights, data.held))
        loss = policy_loss(now, old, advantages, weights, c.clip_low, c.clip_high,
                           None if base is None else base[torch.from_numpy(micro)], self.kl_coefficient,
                           held) * scale
        loss.backward()
        with torch.no_grad():
            ratio = torch.exp(now - old)
            outside = ((ratio > 1 + c.clip_high) | (ratio < 1 - c.clip_low)).float().mean()
            return float(loss), float((ratio - 1).abs().mean()), float(outside)

    def _logprobs(self, data: ChunkBatch, rows: np.ndarray, temperature: float) -> Tensor:
        instructions = [data.instructions[i] for i in rows]
        logprobs: Tensor = self.policy.logprobs(data.frames[rows], instructions, data.tokens[rows], temperature)
        return logprobs.float()

    @torch.no_grad()
    def _base_logprobs(self, data: ChunkBatch, temperature: float) -> Tensor:
        """Return log-probabilities (C, K, 7) with the adapter switched off."""
        rows = np.arange(len(data.instructions))
        with self.policy.without_adapter():
            return torch.cat([self._logprobs(data, micro, temperature)
                              for micro in np.array_split(rows, math.ceil(len(rows) / self.config.micro_chunks))])

    def snapshot(self) -> dict[str, Tensor]:
        with self._turn:
            return {str(i): p.detach().clone() for i, p in enumerate(self.weights)}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Any]) -> None:
        with self._turn:
            for i, parameter in enumerate(self.weights):
                parameter.copy_(weights[str(i)])

    def save(self, directory: Path) -> None:
        self.policy.save_adapter(directory)

    def end(self) -> None:
        if self.weights:
            self.policy.load_adapter(self.parent)
        self.weights, self.optimiser = [], None
