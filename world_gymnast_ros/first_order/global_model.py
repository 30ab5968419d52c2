"""The global model as an environment of many copies: diffusion for images, the frozen encoder for latent and reward."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from world_gymnast_ros.errors import BadAction
from world_gymnast_ros.first_order.diffusion import DiffusionWorldModel
from world_gymnast_ros.first_order.encoder import FrameEncoder
from world_gymnast_ros.first_order.play import Play
from world_gymnast_ros.first_order.surrogate import Sequences
from world_gymnast_ros.first_order.train_diffusion import history


@dataclass(frozen=True)
class Imagined:
    """Past images, scaled (B, past, 3, S, S), past actions (B, past - 1, A), and the latent of the newest (B, Z)."""

    past: Tensor
    actions: Tensor
    z: Tensor

    def rows(self, at: Tensor) -> Imagined:
        """Return the copies at the indices `at`."""
        return Imagined(self.past[at], self.actions[at], self.z[at])

    def replaced(self, at: Tensor, new: Imagined) -> Imagined:
        """Return a state whose copies at the indices `at` are `new`."""
        past, actions, z = self.past.clone(), self.actions.clone(), self.z.clone()
        past[at], actions[at], z[at] = new.past, new.actions, new.z
        return Imagined(past, actions, z)


class GlobalModel:
    """Steps copies of the imagined scene and counts every step: the unit in which learners are compared."""

    def __init__(self, diffusion: DiffusionWorldModel, encoder: FrameEncoder) -> None:
        if diffusion.config.side != encoder.config.side:
            raise BadAction(f"the world model draws {diffusion.config.side} px, the encoder reads "
                            f"{encoder.config.side} px; train both on the same images")
        self.diffusion, self.encoder = diffusion, encoder
        self.latent, self.action_dim = encoder.config.latent, diffusion.config.action_dim
        self.steps = 0

    def begin(self, play: Play, episodes: Tensor, times: Tensor) -> Imagined:
        """Return copies that start from recorded images at (episode, time), both int64 (B,)."""
        images, actions = history(play, episodes, times, self.diffusion.config.past)
        return Imagined(self.diffusion.scaled(images), actions[:, :-1], self.encoder.encode(images[:, -1])[0])

    def noise(self, copies: int, generator: torch.Generator) -> Tensor:
        """Draw the noise of one step."""
        side = self.diffusion.config.side
        return torch.randn(copies, 3, side, side, generator=generator)

    @torch.no_grad()
    def step(self, state: Imagined, action: Tensor, noise: Tensor) -> tuple[Imagined, Tensor]:
        """Return the state after `action` (B, A), and its rewards (B,). Counts B steps; no gradient passes."""
        action = action.detach()
        if not bool(torch.isfinite(action).all()):
            raise BadAction("a policy gave an action that is not finite; lower its learning rate")
        actions = torch.cat([state.actions, action[:, None]], 1)
        image = self.diffusion.sample(state.past, actions, noise)
        seen = self.diffusion.images(image)  # what a camera would give: whole grey levels
        z, reward = self.encoder.encode(seen)
        self.steps += action.shape[0]
        past = torch.cat([state.past[:, 1:], self.diffusion.scaled(seen)[:, None]], 1)
        return Imagined(past, actions[:, 1:], z), reward


def encoded_play(encoder: FrameEncoder, play: Play) -> Sequences:
    """Return play data as sequences of latents, with the rewards that the encoder reads from the images."""
    z, reward = zip(*(encoder.encode(images) for images in play.images), strict=True)
    return Sequences(torch.stack(z), play.actions, torch.stack(reward)[:, 1:])
