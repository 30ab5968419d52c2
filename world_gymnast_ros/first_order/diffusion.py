"""A small diffusion world model: the next image from past images and actions (the kind of DIAMOND, arXiv 2405.12399).

Denoising with the preconditioning of EDM (Karras et al., 2022): a U-Net sees the noisy next image beside the past
ones, is modulated by noise level and actions, and is sampled with few deterministic (Euler) steps from given noise.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.models.checkpoint import load_frozen, save_model
from world_gymnast_ros.models.vision import fast_math

KIND = "first-order-diffusion"


@dataclass(frozen=True)
class DiffusionConfig:
    """Size and noise of the model.

    `past`: images and actions it sees; `width`: channels at half resolution (twice that below); `sigma_data`: standard
    deviation of the scaled images; `sigma_max`, `sigma_min`, `steps`: where sampling starts and how many evaluations it
    takes; `log_sigma_mean`, `log_sigma_std`: noise levels in training; `past_noise`: noise added to past images in
    training, so that the model bears its own errors.
    """

    side: int = 32
    past: int = 2
    action_dim: int = 2
    width: int = 40
    sigma_data: float = 0.5
    sigma_max: float = 5.0
    sigma_min: float = 0.3
    steps: int = 1
    rho: float = 7.0
    log_sigma_mean: float = 1.0
    log_sigma_std: float = 0.8
    past_noise: float = 0.05

    def __post_init__(self) -> None:
        if self.side % 8 or self.side < 8 or self.past < 1 or self.steps < 1 or self.width % 8:
            raise BadCheckpoint(f"side {self.side} and width {self.width} must be multiples of 8, past {self.past} and "
                                f"steps {self.steps} at least 1")


class Block(nn.Module):
    """Two convolutions with a residual; scale and shift per channel from the conditioning vector."""

    def __init__(self, channels_in: int, channels: int, condition: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels_in), nn.GroupNorm(8, channels, affine=False)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) and (B, condition) to (B, channels, H, W)."""
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1.0 + scale) + shift))
        out: Tensor = self.skip(x) + h
        return out


class UNet(nn.Module):
    """Three resolutions, all at or below half of the image's side, where convolutions are cheap."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        w, d = config.width, 4 * config.width
        self.config = config
        self.embed = nn.Sequential(nn.Linear(16 + config.past * config.action_dim, d), nn.SiLU(), nn.Linear(d, d),
                                   nn.SiLU())
        self.inlet = nn.Conv2d(12 * (1 + config.past), w, 3, padding=1)
        self.down1, self.down2 = Block(w, w, d), Block(2 * w, 2 * w, d)
        self.pool1 = nn.Conv2d(w, 2 * w, 2, stride=2)
        self.pool2 = nn.Conv2d(2 * w, 2 * w, 2, stride=2)
        self.middle = nn.ModuleList([Block(2 * w, 2 * w, d), Block(2 * w, 2 * w, d)])
        self.up2, self.up1 = Block(4 * w, 2 * w, d), Block(3 * w, w, d)
        self.norm, self.outlet = nn.GroupNorm(8, w), nn.Conv2d(w, 12, 3, padding=1)
        self.register_buffer("frequencies", 2.0 * math.pi * 2.0 ** torch.linspace(-3.0, 2.0, 8), persistent=False)
        nn.init.zeros_(self.outlet.weight)

    def forward(self, noisy: Tensor, past: Tensor, actions: Tensor, noise_level: Tensor) -> Tensor:
        """Map scaled (B, 3, S, S), past (B, past * 3, S, S), actions (B, past, A), noise level (B,) to (B, 3, S, S)."""
        angle = noise_level[:, None] * self.frequencies
        c = self.embed(torch.cat([angle.sin(), angle.cos(), actions.flatten(1)], 1))
        x = F.pixel_unshuffle(torch.cat([noisy, past], 1), 2).contiguous(memory_format=torch.channels_last)
        a = self.down1(self.inlet(x), c)
        b = self.down2(self.pool1(a), c)
        m = self.pool2(b)
        for block in self.middle:
            m = block(m, c)
        b = self.up2(torch.cat([F.interpolate(m, scale_factor=2.0), b], 1), c)
        a = self.up1(torch.cat([F.interpolate(b, scale_factor=2.0), a], 1), c)
        out: Tensor = F.pixel_shuffle(self.outlet(F.silu(self.norm(a))), 2)
        return out


class DiffusionWorldModel(nn.Module):
    """Denoiser with preconditioning, its loss and its sampler. Images are uint8 outside, scaled floats inside."""

    mean_image: Tensor
    spread: Tensor

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config, self.unet = config, UNet(config)
        self.register_buffer("mean_image", torch.full((3, config.side, config.side), 0.5))
        self.register_buffer("spread", torch.tensor(0.5))
        self.to(memory_format=torch.channels_last)

    def fit_scale(self, images: Tensor) -> None:
        """Take mean image and spread from uint8 images (N, S, S, 3): what never moves is then zero everywhere."""
        x = images.permute(0, 3, 1, 2).float() / 255.0
        self.mean_image.copy_(x.mean(0))
        self.spread.copy_((x - self.mean_image).std())

    def scaled(self, images: Tensor) -> Tensor:
        """Map uint8 (..., S, S, 3) to float (..., 3, S, S) with standard deviation `sigma_data`."""
        x = images.movedim(-1, -3).float() / 255.0
        return (x - self.mean_image) * (self.config.sigma_data / self.spread)

    def images(self, x: Tensor) -> Tensor:
        """Map scaled floats (..., 3, S, S) back to uint8 (..., S, S, 3)."""
        grey = x.float() * (self.spread / self.config.sigma_data) + self.mean_image
        return (grey * 255.0).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)

    def denoise(self, noisy: Tensor, sigma: Tensor, past: Tensor, actions: Tensor) -> Tensor:
        """Return the estimate of the clean next image (B, 3, S, S) from one with noise of deviation `sigma` (B,)."""
        d, s = self.config.sigma_data, sigma.view(-1, 1, 1, 1)
        root = (s * s + d * d).sqrt()
        with fast_math(noisy.device):
            f = self.unet(noisy / root, past / d, actions, sigma.log() / 4.0)
        return noisy * (d * d / root.square()) + f.float() * (s * d / root)

    def loss(self, past: Tensor, actions: Tensor, following: Tensor, generator: torch.Generator) -> Tensor:
        """Return the EDM loss for scaled past (B, past, 3, S, S), actions (B, past, A), next image (B, 3, S, S)."""
        c, b = self.config, following.shape[0]
        sigma = (c.log_sigma_mean + c.log_sigma_std * torch.randn(b, generator=generator)).exp()
        noise = torch.randn(following.shape, generator=generator)
        dirt = c.past_noise * torch.rand(b, 1, 1, 1, 1, generator=generator)
        past = past + dirt * torch.randn(past.shape, generator=generator)
        noisy = following + sigma.view(-1, 1, 1, 1) * noise
        weight = (sigma.square() + c.sigma_data ** 2) / (sigma * c.sigma_data).square()
        error = (self.denoise(noisy, sigma, past.flatten(1, 2), actions) - following).square().mean((1, 2, 3))
        out: Tensor = (weight * error).mean()
        return out

    @torch.no_grad()
    def sample(self, past: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
        """Return scaled next images (B, 3, S, S); `noise` standard normal of that shape decides everything random."""
        c = self.config
        ramp = torch.linspace(0.0, 1.0, c.steps) if c.steps > 1 else torch.zeros(1)
        high, low = c.sigma_max ** (1 / c.rho), c.sigma_min ** (1 / c.rho)
        sigmas = [float(s) for s in (high + ramp * (low - high)) ** c.rho] + [0.0]
        x = noise * sigmas[0]
        flat = past.flatten(1, 2)
        for sigma, following in pairwise(sigmas):
            clean = self.denoise(x, torch.full((x.shape[0],), sigma), flat, actions)
            x = clean + (x - clean) * (following / sigma)
        return x

    def save(self, folder: Path) -> None:
        """Write config.json and weights."""
        save_model(self, {"model_type": KIND, **asdict(self.config)}, folder)


def load_diffusion(folder: Path) -> DiffusionWorldModel:
    """Return the frozen model of a folder. BadCheckpoint where it is missing or does not fit."""
    return load_frozen(folder, KIND, lambda **values: DiffusionWorldModel(DiffusionConfig(**values)))
