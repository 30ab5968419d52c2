"""The frozen part of the surrogate: an image encoder with an orthonormal projection, and the reward of an image.

Trained once on play data (reconstruction, reward, where the agent is), then frozen. The reward head reads the
encoder's full features and stands for the global model's reward; the surrogate learns a reward of its own.
"""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from world_gymnast_ros.errors import BadBudget, BadCheckpoint
from world_gymnast_ros.first_order.play import Play
from world_gymnast_ros.models.checkpoint import fill, read_config, save_model, write_text
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.training.optim import warm_then_decay

KIND = "first-order-encoder"


@dataclass(frozen=True)
class EncoderConfig:
    """`features`: width of the encoder's output; `latent`: dimensions that the projection keeps."""

    side: int = 32
    features: int = 96
    latent: int = 40
    width: int = 32

    def __post_init__(self) -> None:
        if self.side % 8 or not 1 <= self.latent <= self.features:
            raise BadCheckpoint(f"side {self.side} must be a multiple of 8, latent {self.latent} in 1..{self.features}")


class FrameEncoder(nn.Module):
    """uint8 images to features, latents and rewards; `freeze` fixes the projection and ends training."""

    projection: Tensor
    centre: Tensor
    scale: Tensor
    mean_image: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        w, n = config.width, config.side // 8
        self.net = nn.Sequential(
            nn.Conv2d(3, w, 5, 2, 2), nn.SiLU(), nn.Conv2d(w, 2 * w, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(2 * w, 2 * w, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(2 * w * n * n, 256), nn.SiLU(),
            nn.Linear(256, config.features))
        self.reward_head = nn.Sequential(nn.Linear(config.features, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(),
                                         nn.Linear(128, 1))
        self.register_buffer("mean_image", torch.full((3, config.side, config.side), 0.5))
        self.register_buffer("projection", torch.eye(config.features)[:, :config.latent].contiguous())
        self.register_buffer("centre", torch.zeros(config.features))
        self.register_buffer("scale", torch.ones(()))

    def features(self, images: Tensor) -> Tensor:
        """Map uint8 (B, S, S, 3) to features (B, features)."""
        x = images.permute(0, 3, 1, 2).float() / 255.0 - self.mean_image
        out: Tensor = self.net(x.contiguous(memory_format=torch.channels_last) * 4.0)
        return out

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents (B, latent), about unit size per dimension, and rewards (B,). Nothing flows through it."""
        f = self.features(images)
        return (f - self.centre) @ self.projection / self.scale, self.reward_head(f).squeeze(-1)

    @torch.no_grad()
    def freeze(self, images: Tensor) -> float:
        """Fix the projection to the main directions of the features of `images`; return the variance it keeps, 0..1.

        Its columns are orthonormal and it is one scale for all dimensions, so that the latent can neither collapse nor
        be stretched to please the surrogate.
        """
        f = torch.cat([self.features(part) for part in images.split(512)])
        self.centre.copy_(f.mean(0))
        _, values, directions = torch.linalg.svd(f - self.centre, full_matrices=False)
        kept = values[:self.config.latent].square()
        self.projection.copy_(directions[:self.config.latent].T)
        self.scale.copy_((kept.mean() / f.shape[0]).sqrt())
        self.eval().requires_grad_(False)
        return float(kept.sum() / values.square().sum())


class _Decoder(nn.Module):
    """Features back to an image and the agent's place; thrown away after training."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        w, self.n = config.width, config.side // 8
        self.grow = nn.Sequential(nn.Linear(config.features, 256), nn.SiLU(), nn.Linear(256, 2 * w * self.n ** 2))
        self.net = nn.Sequential(
            nn.ConvTranspose2d(2 * w, 2 * w, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(2 * w, w, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(w, 3, 4, 2, 1))
        self.agent = nn.Sequential(nn.Linear(config.features, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, features) to images (B, 3, S, S), as the encoder scales them, and places (B, 2) in 0..1."""
        x = F.silu(self.grow(features)).view(features.shape[0], -1, self.n, self.n)
        return self.net(x), self.agent(features)


def train_encoder(play: Play, config: EncoderConfig, steps: int, seed: int, out: Path, batch: int = 64,
                  lr: float = 1e-3) -> dict[str, float]:
    """Train and freeze an encoder, write it to `out` with what it gets wrong on held-out play; return that.

    `errors.json`: image_rmse in grey levels 0..255, agent_px, reward_rmse and reward_std (the error of a constant).
    """
    if steps < 1:
        raise BadBudget(f"steps {steps} must be at least 1")
    held = play.held_out
    images, rewards = play.images[:-held].flatten(0, 1), play.rewards[:-held].flatten()
    agents = play.agents[:-held].flatten(0, 1)
    torch.manual_seed(seed)
    encoder, decoder = FrameEncoder(config), _Decoder(config)
    encoder.mean_image.copy_(images[::7].permute(0, 3, 1, 2).float().mean(0) / 255.0)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(range(steps), desc="encoder", mininterval=5.0)
    for step in bar:
        optimiser.param_groups[0]["lr"] = lr * warm_then_decay(step, steps, 100)
        at = torch.randint(images.shape[0], (batch,), generator=generator)
        parts = _losses(encoder, decoder, images[at], rewards[at], agents[at], generator)
        optimiser.zero_grad()
        (20.0 * parts["image"] + 5.0 * parts["reward"] + 5.0 * parts["agent"] + 1e-3 * parts["size"]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 50 == 0:
            bar.set_postfix({k: f"{float(v.detach()):.4f}" for k, v in parts.items()}, refresh=False)
    kept = encoder.freeze(images[::5])
    errors = _errors(encoder, decoder, play, held) | {"variance_kept": kept}
    save_model(encoder, {"model_type": KIND, **asdict(config)}, out)
    write_text(out / "errors.json", json.dumps(errors, indent=2) + "\n")
    return errors


def _losses(encoder: FrameEncoder, decoder: _Decoder, images: Tensor, rewards: Tensor, agents: Tensor,
            generator: torch.Generator) -> dict[str, Tensor]:
    with fast_math(images.device):
        f = encoder.features(images)
        # Noise on the features makes near images near one another: the surrogate needs a latent that is smooth.
        image, place = decoder(f + 0.1 * torch.randn(f.shape, generator=generator))
    f = f.float()
    true = images.permute(0, 3, 1, 2).float() / 255.0 - encoder.mean_image
    return {"image": (image / 4.0 - true).square().mean(), "agent": (place - agents).square().mean(),
            "reward": (encoder.reward_head(f).squeeze(-1) - rewards).square().mean(), "size": f.square().mean()}


@torch.no_grad()
def _errors(encoder: FrameEncoder, decoder: _Decoder, play: Play, held: int) -> dict[str, float]:
    images, rewards = play.images[-held:].flatten(0, 1), play.rewards[-held:].flatten()
    f = encoder.features(images)
    image, place = decoder(f)
    true = images.permute(0, 3, 1, 2).float() / 255.0 - encoder.mean_image
    off = (place - play.agents[-held:].flatten(0, 1)) * 512.0
    return {"image_rmse": float((image / 4.0 - true).square().mean().sqrt() * 255.0),
            "agent_px": float(off.norm(dim=1).mean()),
            "reward_rmse": float((encoder.reward_head(f).squeeze(-1) - rewards).square().mean().sqrt()),
            "reward_std": float(rewards.std())}


def load_encoder(folder: Path) -> FrameEncoder:
    """Return the frozen encoder of a folder. BadCheckpoint where it is missing or does not fit."""
    values: dict[str, Any] = {k: v for k, v in read_config(folder, KIND).items() if k != "model_type"}
    try:
        encoder = FrameEncoder(EncoderConfig(**values))
    except TypeError as error:
        raise BadCheckpoint(f"{folder} has a config.json of another version ({error}); train it again") from error
    fill(encoder, folder)
    return encoder.eval().requires_grad_(False)
