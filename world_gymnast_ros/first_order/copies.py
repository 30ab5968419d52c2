"""Imagined scenes that are kept going: each starts from a random moment of play and is replaced when it is old."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from world_gymnast_ros.errors import BadBudget
from world_gymnast_ros.first_order.global_model import GlobalModel, Imagined
from world_gymnast_ros.first_order.play import Play
from world_gymnast_ros.first_order.surrogate import Sequences


def draw_starts(play: Play, copies: int, generator: torch.Generator, evaluation: bool = False) -> tuple[Tensor, Tensor]:
    """Draw (episode, time), int64 (copies,): from the held-out episodes for evaluation, else from the others."""
    episodes, held = play.images.shape[0], play.held_out
    low, high = (episodes - held, episodes) if evaluation else (0, episodes - held)
    return (torch.randint(low, high, (copies,), generator=generator),
            torch.randint(play.images.shape[1], (copies,), generator=generator).clamp(max=play.actions.shape[1] - 1))


class Copies:
    """`count` imagined scenes of at most `episode_steps` steps, in windows of `window` steps."""

    def __init__(self, model: GlobalModel, play: Play, count: int, window: int, episode_steps: int,
                 generator: torch.Generator) -> None:
        if count < 1 or window < 1 or episode_steps % window:
            raise BadBudget(f"{count} copies in windows of {window} of {episode_steps} steps: give at least 1 copy, "
                            "and a window that divides the episode")
        self.model, self.play, self.generator = model, play, generator
        self.window, self.episode_steps = window, episode_steps
        self.state = model.begin(play, *draw_starts(play, count, generator))
        # Ages differ from the start, so that each window holds early and late moments.
        self.ages = window * torch.randint(episode_steps // window, (count,), generator=generator)

    def renew(self) -> Tensor:
        """Replace the copies that are old by new ones; return their indices."""
        old = torch.nonzero(self.ages >= self.episode_steps).flatten()
        if len(old):
            new = self.model.begin(self.play, *draw_starts(self.play, len(old), self.generator))
            self.state = self.state.replaced(old, new)
            self.ages[old] = 0
        return old

    def step(self, action: Tensor) -> Tensor:
        """Step all copies in the global model; return the rewards (B,)."""
        noise = self.model.noise(action.shape[0], self.generator)
        self.state, reward = self.model.step(self.state, action, noise)
        self.ages += 1
        return reward

    def tensors(self) -> dict[str, Tensor]:
        """Return what a stopped run needs."""
        s = self.state
        return {"past": s.past, "past_actions": s.actions, "z": s.z, "ages": self.ages,
                "rng": self.generator.get_state()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `tensors`."""
        self.state = Imagined(tensors["past"], tensors["past_actions"], tensors["z"])
        self.ages = tensors["ages"]
        self.generator.set_state(tensors["rng"])


@torch.no_grad()
def greedy_returns(model: GlobalModel, play: Play, act: Callable[[Tensor], Tensor], starts: int, steps: int, seed: int,
                   evaluation: bool) -> tuple[Tensor, Sequences]:
    """Play `steps` steps from `starts` fixed moments under fixed noise, the same for every policy with this `seed`.

    `act` maps latents (B, Z) to actions (B, A). Returns the mean reward of each copy (B,), and what a
    replay takes.
    """
    generator = torch.Generator().manual_seed(seed)
    state = model.begin(play, *draw_starts(play, starts, generator, evaluation))
    z, actions, rewards = [state.z], [], []
    for _ in range(steps):
        actions.append(act(state.z))
        state, reward = model.step(state, actions[-1], model.noise(starts, generator))
        z.append(state.z)
        rewards.append(reward)
    paid = torch.stack(rewards, 1)
    return paid.mean(1), Sequences(torch.stack(z, 1), torch.stack(actions, 1), paid)
