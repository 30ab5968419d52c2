"""The local model: recurrent residual dynamics of a latent, a reward head, and the replay it learns from."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from world_gymnast_ros.errors import BadAction, BadBudget


class LatentSurrogate(nn.Module):
    """z_hat' = z + g(h', z, a) with h' = GRU(h, [z, a]); the reward is a function of the next latent."""

    def __init__(self, latent: int, action_dim: int, hidden: int = 128, width: int = 256) -> None:
        super().__init__()
        self.latent, self.action_dim, self.hidden = latent, action_dim, hidden
        self.cell = nn.GRUCell(latent + action_dim, hidden)
        self.change = nn.Sequential(nn.Linear(hidden + latent + action_dim, width), nn.LayerNorm(width), nn.SiLU(),
                                    nn.Linear(width, width), nn.SiLU(), nn.Linear(width, latent))
        self.reward_head = nn.Sequential(nn.Linear(latent, width), nn.LayerNorm(width), nn.SiLU(),
                                         nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, 1))
        nn.init.zeros_(self.change[-1].weight)  # starts as "nothing changes"
        nn.init.zeros_(self.change[-1].bias)

    def start(self, batch: int) -> Tensor:
        """Return the memory (B, hidden) of an episode that begins."""
        return torch.zeros(batch, self.hidden)

    def step(self, z: Tensor, action: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Map latent (B, Z), action (B, A), memory (B, hidden) to the next latent and memory."""
        x = torch.cat([z, action], -1)
        memory = self.cell(x, memory)
        return z + self.change(torch.cat([memory, x], -1)), memory

    def reward(self, following: Tensor) -> Tensor:
        """Map the next latent (..., Z) to its reward (...)."""
        out: Tensor = self.reward_head(following).squeeze(-1)
        return out


@dataclass(frozen=True)
class Sequences:
    """Latents (N, L + 1, Z), actions (N, L, A) and the rewards (N, L) of the latents they lead to."""

    latents: Tensor
    actions: Tensor
    rewards: Tensor

    def __post_init__(self) -> None:
        n, length = self.actions.shape[:2]
        if self.latents.shape[:2] != (n, length + 1) or self.rewards.shape != (n, length):
            raise BadAction(f"sequences of {tuple(self.latents.shape)} latents, {tuple(self.actions.shape)} actions "
                            f"and {tuple(self.rewards.shape)} rewards do not fit; give L + 1 latents for L actions")


class Replay:
    """A ring of sequences of one length. Every rollout in the global model goes in, whoever made it."""

    def __init__(self, capacity: int, length: int, latent: int, action_dim: int) -> None:
        if capacity < 1 or length < 1:
            raise BadBudget(f"a replay of {capacity} sequences of {length} steps holds nothing; give at least 1")
        self.latents = torch.zeros(capacity, length + 1, latent)
        self.actions = torch.zeros(capacity, length, action_dim)
        self.rewards = torch.zeros(capacity, length)
        self.length, self.added = length, 0

    def __len__(self) -> int:
        return min(self.added, int(self.latents.shape[0]))

    def add(self, new: Sequences) -> None:
        """Cut sequences into pieces of the replay's length and store them; a rest that is too short is dropped."""
        for start in range(0, new.actions.shape[1] - self.length + 1, self.length):
            end = start + self.length
            rows = (self.added + torch.arange(new.actions.shape[0])) % self.latents.shape[0]
            self.latents[rows] = new.latents[:, start:end + 1].detach()
            self.actions[rows] = new.actions[:, start:end].detach()
            self.rewards[rows] = new.rewards[:, start:end].detach()
            self.added += new.actions.shape[0]

    def draw(self, batch: int, generator: torch.Generator, recent: int = 0) -> Sequences:
        """Draw sequences with replacement; half of them from the newest `recent`, where that is not 0."""
        if not len(self):
            raise BadBudget("the replay is empty; add a rollout first")
        rows = torch.randint(len(self), (batch,), generator=generator)
        if recent:
            back = torch.randint(min(recent, len(self)), (batch // 2,), generator=generator)
            rows[:batch // 2] = (self.added - 1 - back) % self.latents.shape[0]
        return Sequences(self.latents[rows], self.actions[rows], self.rewards[rows])


def surrogate_loss(surrogate: LatentSurrogate, data: Sequences, open_loop_from: int = 1) -> dict[str, Tensor]:
    """Return the losses `one_step`, `k_step` and `reward` on sequences of length L.

    `one_step`: every step from the true latent. `k_step`: from step `open_loop_from` on, the surrogate goes on from
    its own latents to the end. `reward`: of true latents and of its own.
    """
    memory = surrogate.start(data.actions.shape[0])
    rolled, rolled_memory = data.latents[:, 0], memory
    one, far, paid = [], [], []
    for t in range(data.actions.shape[1]):
        true, action = data.latents[:, t + 1], data.actions[:, t]
        if t <= open_loop_from:
            rolled, rolled_memory = data.latents[:, t], memory
        near, memory = surrogate.step(data.latents[:, t], action, memory)
        if t > open_loop_from:
            rolled, rolled_memory = surrogate.step(rolled, action, rolled_memory)
            far.append((rolled - true).square().mean())
        else:
            rolled, rolled_memory = near, memory
        one.append((near - true).square().mean())
        paid.append((surrogate.reward(near) - data.rewards[:, t]).square().mean())
        paid.append((surrogate.reward(true) - data.rewards[:, t]).square().mean())
    zero = torch.zeros(())
    return {"one_step": torch.stack(one).mean(), "k_step": torch.stack(far).mean() if far else zero,
            "reward": torch.stack(paid).mean()}


def update_surrogate(surrogate: LatentSurrogate, optimiser: torch.optim.Optimizer, replay: Replay, updates: int,
                     batch: int, generator: torch.Generator, recent: int = 0) -> dict[str, float]:
    """Take `updates` steps on the replay; return the last losses. Rewards vary less than latents: they weigh more."""
    parts: dict[str, Tensor] = {}
    for _ in range(updates):
        parts = surrogate_loss(surrogate, replay.draw(batch, generator, recent))
        optimiser.zero_grad()
        (parts["one_step"] + 0.5 * parts["k_step"] + 10.0 * parts["reward"]).backward()
        torch.nn.utils.clip_grad_norm_(surrogate.parameters(), 1.0)
        optimiser.step()
    return {name: float(value.detach()) for name, value in parts.items()}
