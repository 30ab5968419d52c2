"""FoG: the policy's gradient through the surrogate, along trajectories of the global model (arXiv 2602.06219).

A window of steps is rolled out in the global model. Each new latent and reward has the global model's value and the
surrogate's derivative (`operator.decoupled`); discounted rewards, entropy and a bootstrapped value at the end of the
window are differentiated back to the actor. Every few updates the policy is played against the last confirmed one from
the same starts under the same noise; what is given out is the last confirmed one, and a policy that the global model
finds clearly worse is taken back.
"""
from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from world_gymnast_ros.errors import BadBudget
from world_gymnast_ros.first_order.actor_critic import Actor, Critic, fit_critic, lambda_returns
from world_gymnast_ros.first_order.copies import Copies, greedy_returns
from world_gymnast_ros.first_order.global_model import GlobalModel
from world_gymnast_ros.first_order.operator import decoupled
from world_gymnast_ros.first_order.play import Play
from world_gymnast_ros.first_order.surrogate import LatentSurrogate, Replay, Sequences, update_surrogate


@dataclass(frozen=True)
class FogConfig:
    """One learner.

    `copies`, `window`: imagined scenes and steps of each per update. `local_only`: the surrogate alone, rolled out from
    the same latents; the global model then only fills the replay. `confirm_every`: updates between confirmations (0:
    never), each of `confirm_starts` starts x `confirm_steps` steps; `lr_after_rejection`: factor on the actor's rate.
    """

    copies: int = 8
    window: int = 8
    episode_steps: int = 40
    gamma: float = 0.95
    lam: float = 0.95
    actor_lr: float = 3e-3
    critic_lr: float = 1e-3
    surrogate_lr: float = 3e-4
    entropy: float = 3e-4
    critic_passes: int = 8
    surrogate_updates: int = 2
    surrogate_batch: int = 64
    confirm_every: int = 24
    confirm_starts: int = 24
    confirm_steps: int = 24
    lr_after_rejection: float = 0.7
    local_only: bool = False

    def __post_init__(self) -> None:
        if not (0.0 < self.gamma < 1.0 and 0.0 <= self.lam <= 1.0 and self.actor_lr > 0.0):
            raise BadBudget(f"gamma {self.gamma}, lam {self.lam} and actor_lr {self.actor_lr}: gamma and lam lie in "
                            "0..1, and a rate is positive")


class FogLearner:
    """Holds everything that changes in training. `surrogate` was trained on play; `replay` holds that play."""

    def __init__(self, model: GlobalModel, play: Play, surrogate: LatentSurrogate, replay: Replay, config: FogConfig,
                 seed: int) -> None:
        torch.manual_seed(seed)
        self.model, self.play, self.config, self.seed = model, play, config, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.copies = Copies(model, play, config.copies, config.window, config.episode_steps, self.generator)
        self.surrogate, self.replay = surrogate, replay
        self.actor, self.critic = Actor(model.latent, model.action_dim), Critic(model.latent)
        for net in (self.critic.net, self.critic.slow):  # the actor follows its slope: at first it must have none
            torch.nn.init.zeros_(net[-1].weight)
        self.confirmed = copy.deepcopy(self.actor)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), config.actor_lr)
        self.critic_optimiser = torch.optim.Adam(self.critic.net.parameters(), config.critic_lr)
        self.surrogate_optimiser = torch.optim.Adam(surrogate.parameters(), config.surrogate_lr)
        self.memory = surrogate.start(config.copies)
        self.numbers: dict[str, Any] = {"updates": 0, "accepted": 0, "rejected": 0, "confirmed_returns": None,
                                        "actor_lr": config.actor_lr}

    def policy(self) -> Actor:
        """Return the policy to judge the learner by: the last confirmed one, where steps are confirmed."""
        return self.confirmed if self._confirms() else self.actor

    def update(self) -> dict[str, float]:
        """Roll out one window, learn from it, and confirm where it is time; return figures for the progress bar."""
        c = self.config
        self.memory[self.copies.renew()] = 0.0
        self.surrogate.requires_grad_(False)
        rolled = self._local_window() if c.local_only else self._window()
        gradient = self._improve(rolled)
        self.surrogate.requires_grad_(True)
        losses = update_surrogate(self.surrogate, self.surrogate_optimiser, self.replay, c.surrogate_updates,
                                  c.surrogate_batch, self.generator, recent=512)
        self.numbers["updates"] += 1
        if self._confirms() and self.numbers["updates"] % c.confirm_every == 0:
            self._confirm()
        return {"reward": float(rolled.rewards.detach().mean()), "gradient": gradient, "one_step": losses["one_step"],
                "kept": self.numbers["accepted"], "undone": self.numbers["rejected"]}

    def _confirms(self) -> bool:
        return self.config.confirm_every > 0 and not self.config.local_only

    def _window(self) -> _Window:
        """Values of the global model, derivatives of the surrogate."""
        z, memory = self.copies.state.z, self.memory
        out = _Window([z])
        for _ in range(self.config.window):
            action, log_density, _ = self.actor.sample(z, self._noise())
            estimate, memory = self.surrogate.step(z, action, memory)
            reward = self.copies.step(action)
            z = decoupled(self.copies.state.z, estimate)
            out.add(z, action, decoupled(reward, self.surrogate.reward(z)), log_density)
        self.memory = memory.detach()
        self.replay.add(out.sequences())
        return out

    def _local_window(self) -> _Window:
        """The surrogate's values too, from the latents where the global model is; the global model fills the replay."""
        z, memory = self.copies.state.z, self.memory
        out, seen = _Window([z]), _Window([z])
        with torch.no_grad():
            for _ in range(self.config.window):
                action, log_density, _ = self.actor.sample(self.copies.state.z, self._noise())
                _, self.memory = self.surrogate.step(self.copies.state.z, action, self.memory)
                reward = self.copies.step(action)
                seen.add(self.copies.state.z, action, reward, log_density)
        self.replay.add(seen.sequences())
        for _ in range(self.config.window):
            action, log_density, _ = self.actor.sample(z, self._noise())
            z, memory = self.surrogate.step(z, action, memory)
            out.add(z, action, self.surrogate.reward(z), log_density)
        return out

    def _noise(self) -> Tensor:
        return torch.randn(self.config.copies, self.model.action_dim, generator=self.generator)

    def _improve(self, rolled: _Window) -> float:
        """Take one actor step and fit the critic; return the norm of the actor's gradient before clipping."""
        c = self.config
        loss = -window_return(rolled, self.critic, c.gamma, c.entropy).mean() / c.window
        self.actor_optimiser.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.actor.parameters(), 1.0))
        self.actor_optimiser.step()
        z = torch.stack(rolled.latents, 1).detach()
        with torch.no_grad():
            values = self.critic(z[:, 1:], slow=True)
            targets = lambda_returns(rolled.rewards.detach() - c.entropy * rolled.log_densities.detach(), values,
                                     torch.ones_like(values), c.gamma, c.lam)
        fit_critic(self.critic, self.critic_optimiser, z[:, :-1].flatten(0, 1), targets.flatten(), c.critic_passes)
        return norm

    def _confirm(self) -> None:
        """Keep the policy where the global model gives it more than the last confirmed one; take it back where it gives
        less by over a standard error of the paired differences; in between, train on and ask again."""
        new = self._confirmation(self.actor)
        if self.numbers["confirmed_returns"] is None:
            self.numbers["confirmed_returns"] = self._confirmation(self.confirmed).tolist()
        gain = new - torch.tensor(self.numbers["confirmed_returns"])
        if float(gain.mean()) > 0.0:
            self.confirmed.load_state_dict(self.actor.state_dict())
            self.numbers["confirmed_returns"] = new.tolist()
            self.numbers["accepted"] += 1
            return
        if float(gain.mean()) > -float(gain.std()) / len(gain) ** 0.5:
            return
        self.actor.load_state_dict(self.confirmed.state_dict())
        self.numbers["rejected"] += 1
        self.numbers["actor_lr"] *= self.config.lr_after_rejection
        self.actor_optimiser.state.clear()
        self.actor_optimiser.param_groups[0]["lr"] = self.numbers["actor_lr"]

    def _confirmation(self, actor: Actor) -> Tensor:
        """Return the mean reward of each start (N,), the same starts and noise for every policy."""
        c = self.config
        returns, seen = greedy_returns(self.model, self.play, actor.greedy, c.confirm_starts, c.confirm_steps,
                                       self.seed, evaluation=False)
        self.replay.add(seen)
        return returns

    def parts(self) -> tuple[dict[str, torch.nn.Module], dict[str, torch.optim.Optimizer], dict[str, Tensor]]:
        """Return modules, optimisers and tensors that a stopped run needs, beside `numbers`."""
        r = self.replay
        modules = {"actor": self.actor, "confirmed": self.confirmed, "critic": self.critic,
                   "surrogate": self.surrogate}
        optimisers = {"actor": self.actor_optimiser, "critic": self.critic_optimiser,
                      "surrogate": self.surrogate_optimiser}
        tensors = self.copies.tensors() | {"memory": self.memory, "replay_z": r.latents, "replay_a": r.actions,
                                           "replay_r": r.rewards, "replay_added": torch.tensor(r.added)}
        return modules, optimisers, tensors

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on from what `parts` and `numbers` gave; modules and optimisers are filled already."""
        self.copies.restore(tensors)
        self.memory, r = tensors["memory"], self.replay
        r.latents, r.actions, r.rewards = tensors["replay_z"], tensors["replay_a"], tensors["replay_r"]
        r.added, self.numbers = int(tensors["replay_added"]), numbers
        self.actor_optimiser.param_groups[0]["lr"] = numbers["actor_lr"]


class _Window:
    """What one window gives: latents (one more than steps), actions, rewards, log densities."""

    def __init__(self, latents: list[Tensor]) -> None:
        self.latents, self._actions = latents, list[Tensor]()
        self._rewards, self._log_densities = list[Tensor](), list[Tensor]()

    def add(self, z: Tensor, action: Tensor, reward: Tensor, log_density: Tensor) -> None:
        self.latents.append(z)
        self._actions.append(action)
        self._rewards.append(reward)
        self._log_densities.append(log_density)

    @property
    def rewards(self) -> Tensor:
        """Rewards (B, T)."""
        return torch.stack(self._rewards, 1)

    @property
    def log_densities(self) -> Tensor:
        """Log densities (B, T) of the actions."""
        return torch.stack(self._log_densities, 1)

    def sequences(self) -> Sequences:
        """Return it as the replay takes it."""
        return Sequences(torch.stack(self.latents, 1).detach(), torch.stack(self._actions, 1).detach(),
                         self.rewards.detach())


def window_return(rolled: _Window, critic: Critic, gamma: float, entropy: float) -> Tensor:
    """Return (B,): discounted rewards with entropy, and the discounted value of the last latent."""
    steps = rolled.rewards.shape[1]
    discounts = gamma ** torch.arange(steps)
    total: Tensor = ((rolled.rewards - entropy * rolled.log_densities) * discounts).sum(1)
    return total + gamma ** steps * critic(rolled.latents[-1])
