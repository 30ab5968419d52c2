"""The frozen part of the surrogate: an image encoder with an orthonormal projection, and the reward of an image.

Trained once on play data to say what the simulator labelled there and what the image was paid, then frozen. Attention
maps are read as places (soft arg-max, as in deep spatial autoencoders), so that the latent moves smoothly with what
moves in the image, and some also as what is seen at those places. The reward head stands for the global model's
reward; the surrogate learns one of its own.
"""
from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from world_gymnast_ros.errors import BadBudget, BadCheckpoint
from world_gymnast_ros.files import write_text
from world_gymnast_ros.first_order.play import Play
from world_gymnast_ros.models.checkpoint import load_frozen, save_model
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.training.optim import warm_then_decay
from world_gymnast_ros.training.run_state import STATE, PlainRun

KIND = "first-order-encoder"
SHARPNESS = 8.0
"""Factor on the logits of attention: without it maps stay flat for thousands of steps."""


@dataclass(frozen=True)
class EncoderConfig:
    """`maps`: attention maps that are read as places; `looks`: of these, how many also say what is seen there;
    `features`: width of the output; `latent`: what the projection keeps; `labels`: numbers that play data say of an
    image."""

    side: int = 32
    width: int = 32
    maps: int = 16
    looks: int = 6
    features: int = 64
    latent: int = 24
    labels: int = 18

    def __post_init__(self) -> None:
        if self.side % 2 or not 1 <= self.latent <= self.features:
            raise BadCheckpoint(f"side {self.side} must be even, latent {self.latent} in 1..{self.features}")


class FrameEncoder(nn.Module):
    """uint8 images to features, latents and rewards; `freeze` fixes the projection and ends training."""

    projection: Tensor
    centre: Tensor
    scale: Tensor
    mean_image: Tensor
    grid: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        w, n = config.width, config.side // 2
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, w, 5, 2, 2), nn.SiLU(), nn.Conv2d(w, w, 3, padding=1), nn.SiLU(),
            nn.Conv2d(w, w, 3, padding=1), nn.SiLU())
        self.maps, self.seen = nn.Conv2d(w, config.maps, 3, padding=1), nn.Conv2d(w, w, 3, padding=1)
        self.neck = nn.Sequential(nn.Linear(2 * config.maps + w * config.looks, 128), nn.SiLU(),
                                  nn.Linear(128, config.features))
        self.label_head, self.reward_head = (
            nn.Sequential(nn.SiLU(), nn.Linear(config.features, 128), nn.SiLU(), nn.Linear(128, outputs))
            for outputs in (config.labels, 1))
        line = torch.linspace(-1.0, 1.0, n)
        self.register_buffer("grid", torch.stack([line.repeat(n), line.repeat_interleave(n)], 1), persistent=False)
        self.register_buffer("mean_image", torch.full((3, config.side, config.side), 0.5))
        self.register_buffer("projection", torch.eye(config.features)[:, :config.latent].contiguous())
        self.register_buffer("centre", torch.zeros(config.features))
        self.register_buffer("scale", torch.ones(()))

    def features(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map uint8 (B, S, S, 3) to features (B, features). With `generator`, as in training: faster, and with noise of
        a few grey levels, because the images of a world model are not clean."""
        x = images.permute(0, 3, 1, 2).float() / 255.0 - self.mean_image
        if generator is not None:
            level = 0.02 * torch.rand(x.shape[0], 1, 1, 1, generator=generator)
            x = x + level * torch.randn(x.shape, generator=generator)
        # Places are read in float32: bfloat16 would move them by pixels.
        with fast_math(images.device) if generator is not None else nullcontext():
            y = self.convolutions(x.contiguous(memory_format=torch.channels_last) * 4.0)
            maps, seen = self.maps(y), self.seen(y)
        attention = (SHARPNESS * maps.float().flatten(2)).softmax(-1)
        looks = attention[:, :self.config.looks] @ seen.float().flatten(2).transpose(1, 2)
        out: Tensor = self.neck(torch.cat([(attention @ self.grid).flatten(1), looks.flatten(1)], 1))
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


def train_encoder(play: Play, config: EncoderConfig, steps: int, seed: int, out: Path, batch: int = 64,
                  lr: float = 3e-3) -> dict[str, float]:
    """Train and freeze an encoder, write it to `out` with what it gets wrong on held-out play; return that.

    `errors.json`: label_rmse and worst_label_rmse in 0..1 of the image's side, reward_rmse and
    reward_std (the error of a constant).
    """
    if steps < 1:
        raise BadBudget(f"steps {steps} must be at least 1")
    if play.labels.shape[-1] != config.labels or play.images.shape[-2] != config.side:
        raise BadCheckpoint(f"play data have {play.labels.shape[-1]} labels and {play.images.shape[-2]} px, the "
                            f"encoder {config.labels} and {config.side}; record them again")
    held = play.held_out
    images, rewards = play.images[:-held].flatten(0, 1), play.rewards[:-held].flatten()
    labels = play.labels[:-held].flatten(0, 1)
    torch.manual_seed(seed)
    encoder = FrameEncoder(config)
    encoder.mean_image.copy_(images[::7].permute(0, 3, 1, 2).float().mean(0) / 255.0)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(seed)
    state = PlainRun(out / STATE, encoder, optimiser, generator)
    done = state.resume()
    bar = tqdm(range(done, steps), initial=done, total=steps, desc="encoder", mininterval=5.0)
    for step in bar:
        optimiser.param_groups[0]["lr"] = lr * warm_then_decay(step, steps, 100)
        at = torch.randint(images.shape[0], (batch,), generator=generator)
        off, paid = _errors(encoder, images[at], labels[at], rewards[at], generator)
        optimiser.zero_grad()
        (10.0 * off.square().mean().sqrt() + 5.0 * paid).backward()  # the label that is furthest off weighs most
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        state.tell(step + 1)
        if step % 50 == 0:
            bar.set_postfix(label=f"{float(off.detach().mean()) ** 0.5:.4f}",
                            reward=f"{float(paid.detach()) ** 0.5:.4f}", refresh=False)
    kept = encoder.freeze(images[::5])
    with torch.no_grad():
        off, paid = _errors(encoder, play.images[-held:].flatten(0, 1), play.labels[-held:].flatten(0, 1),
                            play.rewards[-held:].flatten())
    errors = {"label_rmse": float(off.mean().sqrt()), "worst_label_rmse": float(off.max().sqrt()),
              "reward_rmse": float(paid.sqrt()),
              "reward_std": float(play.rewards[-held:].std()), "variance_kept": kept}
    save_model(encoder, {"model_type": KIND, **asdict(config)}, out)
    write_text(out / "errors.json", json.dumps(errors, indent=2) + "\n")
    return errors


def _errors(encoder: FrameEncoder, images: Tensor, labels: Tensor, rewards: Tensor,
            generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean squared errors of each label (L,) and of the reward."""
    f = encoder.features(images, generator)
    return ((encoder.label_head(f) - labels).square().mean(0),
            (encoder.reward_head(f).squeeze(-1) - rewards).square().mean())


def load_encoder(folder: Path) -> FrameEncoder:
    """Return the frozen encoder of a folder. BadCheckpoint where it is missing or does not fit."""
    return load_frozen(folder, KIND, lambda **values: FrameEncoder(EncoderConfig(**values)))
