"""What really came of recorded episodes, as a loss beside the dream's: successes are cloned, and all outcomes count as
rewards of a policy gradient.

A real episode is a rollout whose reward is known to be right, also where the dream is wrong; few of them carry little
weight alone, but failures say as much as successes about where not to go. The gradient is that of `lora_pg`, with the
outcomes of one instruction as a group. Who acted is another policy than the one that learns, so its probabilities are
not those of the sampling; in their place stand those of the policy at the beginning (as the proximal policy of
decoupled PPO, arXiv:2110.00641), and the clip keeps the session near it.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from world_gymnast_ros.advantage import group_advantages
from world_gymnast_ros.learning.lora_pg import LoraConfig, policy_loss
from world_gymnast_ros.learning.world_model_metrics import RealEpisode
from world_gymnast_ros.models.action_bins import encode_bins
from world_gymnast_ros.models.openvla import OpenVLA

CHUNKS_PER_STEP = 60
"""At most, and no more than `micro_chunks`, which memory sets."""


class OutcomeGradient:
    """Clipped policy-gradient loss of the true outcomes of `episodes` (success 1, failure 0), at `temperature`.

    `chunks` is 0 where nothing can be learned: no instruction has both a success and a failure.
    """

    def __init__(self, policy: OpenVLA, episodes: Sequence[RealEpisode], config: LoraConfig, temperature: float
                 ) -> None:
        self.policy, self.config, self.temperature = policy, config, temperature
        frames, tokens, advantages, weights = [], [], [], []
        self.words: list[str] = []
        size = policy.chunk_size
        for words in dict.fromkeys(e.instruction for e in episodes):
            group = [e for e in episodes if e.instruction == words]
            values = group_advantages([float(e.success) for e in group])
            for episode, value in zip(group, values.values, strict=True):
                # What it did once it had succeeded says nothing about success.
                end = episode.play.steps if episode.done_step is None else max(1, episode.done_step)
                begins = [t for t in range(0, end, size) if t + size <= episode.play.steps]
                for t in begins if not values.degenerate else ():
                    frames.append(episode.play.frames[t])
                    tokens.append(encode_bins(policy.stats.normalise(episode.play.deltas[t:t + size])))
                    advantages.append(float(value))
                    weights.append(1.0 / (len(begins) * tokens[-1].size * len(episodes)))
                    self.words.append(words)
        self.chunks, self.per_step = len(frames), min(CHUNKS_PER_STEP, config.micro_chunks)
        if frames:
            self.frames, self.tokens = np.stack(frames), np.stack(tokens)
        self.advantages, self.weights = torch.tensor(advantages), torch.tensor(weights)
        self._old: Tensor | None = None

    def _logprobs(self, rows: np.ndarray) -> Tensor:
        words = [self.words[i] for i in rows]
        found: Tensor = self.policy.logprobs(self.frames[rows], words, self.tokens[rows], self.temperature)
        return found.float()

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Return the loss of a random part of the chunks, in expectation that of all. The first call, which must come
        before anything is learned, remembers how likely the policy finds what was done."""
        if self._old is None:
            with torch.no_grad():
                parts = np.array_split(np.arange(self.chunks), math.ceil(self.chunks / self.per_step))
                self._old = torch.cat([self._logprobs(rows) for rows in parts])
        rows = rng.permutation(self.chunks)[:self.per_step]
        some = torch.from_numpy(rows).to(self._old.device)
        advantages, weights = (x.to(self._old.device)[some] for x in (self.advantages, self.weights))
        loss = policy_loss(self._logprobs(rows), self._old[some], advantages, weights, self.config.clip_low,
                           self.config.clip_high)
        return loss * (self.chunks / len(rows))
