"""FoG as the learner of an adaptation session, for policies with a Laplace head.

The session imagines its groups as ever. Their frames, read by the learned judge's frozen trunk, are the latents; the
judges' value of a rollout so far is the reward of each step. Both have the world model's and the judges' values and the
derivatives of a light surrogate (`operator.decoupled`), which is trained on these very rollouts. A Laplace action is
`mean + scale * noise`, with the noise that was drawn, so the mean reward is differentiated to the adapter's weights.

The policy reads images, which nobody differentiates: what it does later is held as it was, and only what an action
changes by itself is followed.

After each update the policy is played greedily in the world model, and so is what it was before, from the same starts
under the same noise; where the judges do not find it better, the weights go back.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from world_gymnast_ros.adaptation.advantage import rollout_rewards
from world_gymnast_ros.adaptation.rollout import derive_seed, executed_steps, group_deltas, imagine, judge_safely
from world_gymnast_ros.adaptation.session import Trained
from world_gymnast_ros.errors import BadBudget, BadConfig
from world_gymnast_ros.first_order.diagnostics import k_step_errors
from world_gymnast_ros.first_order.operator import decoupled
from world_gymnast_ros.first_order.surrogate import LatentSurrogate, Replay, Sequences, update_surrogate
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.reflector import Reflector
from world_gymnast_ros.models.policies.laplace_head import entropy
from world_gymnast_ros.models.policies.regression import RegressionPolicy
from world_gymnast_ros.types import (
    ACTION_DIM,
    F32,
    I64,
    U8,
    AdapterRef,
    Frame,
    Judge,
    RolloutFacts,
    RolloutGroup,
    SampledChunks,
    Start,
    WorldModel,
)
from world_gymnast_ros.updates.policy_gradient import LoraConfig, LoraLearner

GREEDY = 0.05
"""Temperature at which steps are confirmed: the arm acts greedily."""


@dataclass(frozen=True)
class SessionFog:
    """Settings. `first_updates`, `updates`: of the surrogate, before the first policy steps and before later ones;
    `passes` over the groups, a policy step on each; `confirm_copies`: greedy episodes, imagined from the start of each
    group, that decide whether these steps are kept; `lr_after_rejection`: factor on `policy_lr` where they are not. A
    slope says little of what lies far off: `policy_lr` is smaller than that of the policy gradient."""

    latent: int = 16
    capacity: int = 2048
    first_updates: int = 200
    updates: int = 50
    batch: int = 32
    surrogate_lr: float = 1e-3
    policy_lr: float = 3e-4
    passes: int = 1
    entropy: float = 1e-3
    confirm_copies: int = 6
    lr_after_rejection: float = 0.5

    def __post_init__(self) -> None:
        if min(self.latent, self.capacity, self.first_updates, self.updates, self.batch, self.passes,
               self.confirm_copies) < 1:
            raise BadBudget(f"every count in {self} must be at least 1")


class FrozenReader:
    """The learned judge's trunk, frozen, and an orthonormal projection of what it reads, fixed by the first frames."""

    def __init__(self, judge: Judge, latent: int) -> None:
        judges = judge.judges if isinstance(judge, Consensus) else (judge,)
        found = [j for j in judges if isinstance(j, Reflector)]
        if not found:
            raise BadConfig(f"judge '{judge.name}' has no learned trunk that frames could be read with; name a "
                            "reflector (tiny/reflector) among the judges")
        self.reflector, self.latent = found[0], latent
        self.centre: Tensor | None = None
        self.projection, self.scale = torch.empty(0), torch.ones(())

    @torch.no_grad()
    def encode(self, frames: U8, instruction: str) -> Tensor:
        """Return latents (G, T+1, Z) of rollouts uint8 (G, T+1, H, W, 3), about unit size. Nothing flows through."""
        features = self.reflector.seen(frames, instruction).float().cpu().clone()
        if self.centre is None:
            flat = features.flatten(0, 1)
            self.centre = flat.mean(0)
            values, directions = torch.linalg.eigh(torch.cov(flat.T))  # the largest last
            self.projection = directions[:, -self.latent:].flip(1).contiguous()
            self.scale = values[-self.latent:].mean().clamp(min=1e-12).sqrt()
        return (features - self.centre) @ self.projection / self.scale


@dataclass(frozen=True)
class Rollouts:
    """Imagined rollouts as the surrogate takes them, `data` with actions in units of the longest step; and of the
    chunks that count (`rows`: rollout, chunk; int64 (C, 2)) the frames they were chosen at and the noise drawn, (C, K,
    7), with `offset`: executed less wished-for action, where limits cut it."""

    data: Sequences
    rows: Tensor
    frames: U8
    instruction: str
    noise: Tensor
    offset: Tensor


class FogLearner(LoraLearner):
    """`adaptation.Learner` by first-order gradients. `progress_weight` as in the session; `seed`: of the surrogate."""

    policy: RegressionPolicy

    def __init__(self, policy: RegressionPolicy, config: LoraConfig, world_model: WorldModel, judge: Judge,
                 progress_weight: float, seed: int, fog: SessionFog | None = None, parent: AdapterRef | None = None
                 ) -> None:
        self.fog = fog or SessionFog()
        super().__init__(policy, replace(config, learning_rate=self.fog.policy_lr), parent)
        self.world_model, self.judge, self.progress_weight = world_model, judge, progress_weight
        self.reader = FrozenReader(judge, self.fog.latent)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.surrogate = LatentSurrogate(self.fog.latent, ACTION_DIM)
        self.surrogate_optimiser = torch.optim.Adam(self.surrogate.parameters(), self.fog.surrogate_lr)
        self.generator = torch.Generator().manual_seed(seed)
        self.seen: Replay | None = None

    @property
    def name(self) -> str:
        return f"first-order gradients through a surrogate, {super().name}"

    @property
    def trained(self) -> bool:
        """Whether the surrogate has learned from rollouts by now."""
        return self.seen is not None

    def update(self, batch: Sequence[Trained], temperature: float, seed: int, replay: Sequence[Trained] = ()
               ) -> dict[str, float]:
        """Train the surrogate on the groups, take policy steps on each, keep them where the world model confirms them.

        Advantages are not used. BadConfig where groups of earlier scenes are given, for nothing here holds to them.
        """
        if self.optimiser is None:
            raise BadConfig("update before begin: call begin() first")
        if replay:
            raise BadConfig("first-order gradients hold to no earlier scenes; leave `replay` out")
        c = self.fog
        rollouts = [r for group, _ in batch if (r := self.rollouts(group, temperature)) is not None]
        if not rollouts:
            return {"chunks": 0.0}
        weights, value = self.snapshot(), self._confirmation(batch, seed)
        errors = k_step_errors(self.surrogate, rollouts[0].data, warm_up=0, horizons=(4,))
        first = self.seen is None
        for rolled in rollouts:
            self._store(rolled.data)
        losses = self._learn_surrogate(c.first_updates if first else c.updates)
        norms = [self._policy_step(rolled, temperature) for _ in range(c.passes) for rolled in rollouts]
        gain = float(np.nanmean(self._confirmation(batch, seed) - value))
        if not gain > 0.0:
            self._undo(weights)
        return {"value": float(np.mean([float(r.data.rewards.mean()) for r in rollouts])), "grad_norm": norms[0],
                "chunks": float(sum(len(r.rows) for r in rollouts)), **errors, **losses, "gain": gain,
                "kept": float(gain > 0.0)}

    # ---- what the world model showed, and the surrogate that learns from it

    def sequences(self, group: RolloutGroup) -> tuple[Sequences, I64] | None:
        """Return the rollouts of a group that have a verdict, and which they are; None where there is none."""
        known = np.flatnonzero([j.score is not None for j in group.judgements])
        if not len(known) or group.facts is None:
            return None
        deltas = group_deltas(group)[known]
        for row, end in zip(deltas, executed_steps(group)[known], strict=True):
            row[end:, :6] = 0.0  # its image stands still from here on
        frames = np.stack([group.seen(int(i), range(group.frames.shape[1])) for i in known])
        facts = group.facts.rows(known)
        rewards = self.values_so_far(frames, group.instruction, RolloutFacts(facts.captured, facts.states, deltas))
        return Sequences(self.reader.encode(frames, group.instruction), torch.from_numpy(deltas / self.units()),
                         torch.from_numpy(rewards)), known

    def rollouts(self, group: RolloutGroup, temperature: float) -> Rollouts | None:
        """Return a group as the surrogate takes it; None where no rollout has a verdict."""
        found = self.sequences(group)
        if found is None:
            return None
        data, known = found
        rows = np.argwhere(group.valid[known])
        at = group.frames[known][rows[:, 0], np.array(group.query_frames)[rows[:, 1]]]
        drawn = torch.from_numpy(np.stack([tokens_of(c) for c in group.chunks], 1)[known][rows[:, 0], rows[:, 1]])
        with torch.no_grad(), self._turn:
            mean, log_scale = (x.cpu() for x in self.policy.distribution(at, group.instruction))
        noise = (drawn - mean) / (log_scale.exp() * temperature)
        taken = data.actions.unflatten(1, (-1, self.policy.chunk_size))[rows[:, 0], rows[:, 1]]
        return Rollouts(data, torch.from_numpy(rows), at, group.instruction, noise, taken - self._physical(drawn))

    def values_so_far(self, frames: U8, instruction: str, facts: RolloutFacts) -> F32:
        """Return what the judges say after each action (G, T): score + progress_weight * progress, as the session is
        rewarded; 0 where they give no verdict on so short a rollout."""
        copies, steps, _ = facts.deltas.shape
        out = np.zeros((copies, steps), np.float32)
        for t in range(steps):
            so_far = RolloutFacts(facts.captured, facts.states, facts.deltas[:, :t + 1])
            judged = judge_safely(self.judge, frames[:, :t + 2], instruction, so_far, rank_failures=False)
            out[:, t] = [(j.score or 0.0) + self.progress_weight * (j.progress or 0.0) for j in judged]
        return out

    def units(self) -> F32:
        """Return the longest step (7,): m, rad, and 1 for the gripper."""
        metres, radians = self.world_model.max_step
        return np.array([metres] * 3 + [radians] * 3 + [1.0], np.float32)

    def _physical(self, tokens: Tensor) -> Tensor:
        """Map normalised actions (..., 7) to units of the longest step, as the policy does but without limits."""
        stats = self.policy.stats
        low, high = torch.tensor(stats.q01), torch.tensor(stats.q99)
        metres = torch.where(torch.tensor(stats.mask), 0.5 * (tokens + 1.0) * (high - low) + low, tokens)
        return metres / torch.from_numpy(self.units())

    def _store(self, data: Sequences) -> None:
        """Put rollouts into the replay, whose sequences are as long as the first."""
        if self.seen is None:
            self.seen = Replay(self.fog.capacity, data.actions.shape[1], self.fog.latent, ACTION_DIM)
        self.seen.add(data)

    def _learn_surrogate(self, updates: int) -> dict[str, float]:
        assert self.seen is not None
        self.surrogate.requires_grad_(True)
        losses = update_surrogate(self.surrogate, self.surrogate_optimiser, self.seen, updates, self.fog.batch,
                                  self.generator)
        self.surrogate.requires_grad_(False)
        return losses

    # ---- the policy

    def objective(self, rolled: Rollouts, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the mean value per step of rollouts, (): the judges' value, the surrogate's derivative with respect to
        the adapter; and the mean entropy."""
        mean, log_scale = (x.cpu() for x in self.policy.distribution(rolled.frames, rolled.instruction))
        wished = self._physical(mean + log_scale.exp() * temperature * rolled.noise) + rolled.offset
        data = rolled.data
        K = wished.shape[1]
        actions = data.actions.unflatten(1, (-1, K)).clone()
        actions[rolled.rows[:, 0], rolled.rows[:, 1]] = wished
        return self.return_of(data, actions.flatten(1, 2)).mean(), entropy(log_scale).mean()

    def return_of(self, data: Sequences, actions: Tensor) -> Tensor:
        """Return the mean reward (G,) of rollouts, differentiable in `actions` (G, T, 7) through the surrogate."""
        z, memory = data.latents[:, 0], self.surrogate.start(len(actions))
        total = torch.zeros(len(actions))
        for t in range(actions.shape[1]):
            estimate, memory = self.surrogate.step(z, actions[:, t], memory)
            z = decoupled(data.latents[:, t + 1], estimate)
            total = total + decoupled(data.rewards[:, t], self.surrogate.reward(z))
        return total / actions.shape[1]

    def _policy_step(self, rolled: Rollouts, temperature: float) -> float:
        """Take one optimiser step; return the gradient norm."""
        assert self.optimiser is not None
        self.optimiser.zero_grad(set_to_none=True)
        with self._turn:  # no other adapter may act between a forward pass and the end of its backward pass
            value, spread = self.objective(rolled, temperature)
            (-value - self.fog.entropy * spread).backward()
            norm = float(torch.nn.utils.clip_grad_norm_(self.weights, self.config.max_grad_norm))
            if not math.isfinite(norm):
                raise FloatingPointError(f"gradient norm is {norm}; lower the learning rate "
                                         f"({self.config.learning_rate})")
            self.optimiser.step()
        return norm

    def _undo(self, weights: dict[str, Tensor]) -> None:
        """Put weights back, and take smaller steps from there."""
        assert self.optimiser is not None
        self.restore(weights)
        for group in self.optimiser.param_groups:
            group["lr"] *= self.fog.lr_after_rejection

    def _confirmation(self, batch: Sequence[Trained], seed: int) -> F32:
        """Return the value of greedy imagined episodes from the starts of the groups, under the noise of `seed`; NaN
        where the judges give no verdict. They are rollouts as others are: the replay takes them, once it is there."""
        values: list[float | None] = []
        for i, (group, _) in enumerate(batch):
            played = imagine(self.policy, self.world_model, self.judge, start_of(group), self.fog.confirm_copies,
                             group.frames.shape[1] - 1, GREEDY, derive_seed(seed, i), judge_every_chunks=0)
            if self.seen is not None and (found := self.sequences(played)) is not None:
                self._store(found[0])
            values += rollout_rewards(played, 0.0, self.progress_weight)
        return np.array([np.nan if value is None else value for value in values], np.float32)


def start_of(group: RolloutGroup) -> Start:
    """Return where the first rollout of a group began."""
    if group.facts is None:
        raise BadConfig(f"the rollouts of '{group.instruction}' do not say where they began")
    captured = Frame(group.facts.captured[0], 0)
    return Start(Frame(group.frames[0, 0], 0), group.facts.states[0], group.instruction, captured)


def tokens_of(chunk: SampledChunks) -> F32:
    """Return the normalised actions (G, K, 7) that were drawn."""
    if chunk.tokens is None:
        raise BadConfig("the rollouts do not say what was drawn: this policy acts and is evaluated in imagination, and "
                        "cannot be trained")
    return chunk.tokens
