"""From images to latent frames and back: any autoencoder of `diffusers`, or a pair of TAESD files, from a named folder.

A latent frame is channels-last and multiplied by the autoencoder's scaling factor. A shift factor, which Stable
Diffusion 3 has, is not applied: WorldGym was trained without it. Of an autoencoder that gives a distribution the mode
is taken, so that one image always gives one latent frame.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.models.checkpoint import CONFIG, misfits, named, read_tensors

PIXELS_AT_ONCE = 16 * 256 * 256
"""Images are encoded and decoded in batches of about so many pixels: the memory that it takes does not grow with G."""
REMEDY = ("name a folder with config.json and diffusion_pytorch_model.safetensors of a diffusers autoencoder (or its "
          "parent, with a subfolder vae), or one with *_encoder.pth and *_decoder.pth of a TAESD")


class Autoencoder(Protocol):
    """What a latent world model needs of an autoencoder."""

    channels: int
    downscale: int

    def encode(self, images: Tensor) -> Tensor:
        """Return latent frames float32 (N, h, w, C) of images (N, H, W, 3), 0..1."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return images float32 (N, H, W, 3), 0..1, of latent frames (N, h, w, C)."""


def load_autoencoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """Load the autoencoder that `folder` holds; BadCheckpoint says what is missing or unexpected there."""
    for directory in (folder, folder / "vae"):
        if (directory / CONFIG).is_file():
            return DiffusersAutoencoder(_from_diffusers(directory).to(device, dtype))
    encoders, decoders = ([file for ending in ("safetensors", "pth") for file in folder.glob(f"*_{part}.{ending}")]
                          for part in ("encoder", "decoder"))
    if len(encoders) == 1 and len(decoders) == 1:
        return TinyAutoencoder(encoders[0], decoders[0], device, dtype)
    raise BadCheckpoint(f"{folder} holds no autoencoder; {REMEDY}")


def _from_diffusers(directory: Path) -> Any:
    """Return the diffusers model of a folder; its class is the one that config.json names, of diffusers only."""
    import diffusers

    try:
        name = json.loads((directory / CONFIG).read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{directory / CONFIG} names no _class_name ({error!r}); {REMEDY}") from error
    kind = getattr(diffusers, name, None) if str(name).startswith("Autoencoder") else None
    if kind is None:
        raise BadCheckpoint(f"{directory / CONFIG} names {name!r}, which is no autoencoder of diffusers "
                            f"{diffusers.__version__}; {REMEDY}")
    try:
        model, info = kind.from_pretrained(directory, local_files_only=True, use_safetensors=True,
                                           output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise BadCheckpoint(f"{directory} cannot be read as {name} ({error}); {REMEDY}") from error
    wrong = [f"{what.split('_')[0]} {key}" for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
             for key in info[what]]
    if wrong:
        raise BadCheckpoint(f"the weights in {directory} do not fit {name}: {named(wrong)}; {REMEDY}")
    return model.eval().requires_grad_(False)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).float()


class DiffusersAutoencoder:
    """An autoencoder of diffusers that takes images -1..1, channels first."""

    def __init__(self, model: Any) -> None:
        """Wrap `model`; a blank image tells its latent channels and downscale. BadCheckpoint if it takes no image."""
        self.model = model
        self.scale = float(getattr(model.config, "scaling_factor", 1.0) or 1.0)
        try:
            latent = self.encode(torch.zeros(1, 64, 64, 3))
        except (RuntimeError, ValueError, TypeError) as error:
            raise BadCheckpoint(f"{type(model).__name__} encodes no image of 64x64 ({error}); {REMEDY}") from error
        self.channels, self.downscale = latent.shape[-1], 64 // latent.shape[1]

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return latent frames float32 (N, h, w, C) of images (N, H, W, 3), 0..1."""
        parts = []
        for batch in _batches(images, images.shape[1] * images.shape[2]):
            x = _channels_first(batch).to(self.model.device, self.model.dtype) * 2.0 - 1.0
            out = self.model.encode(x)
            z = out.latents if hasattr(out, "latents") else out.latent_dist.mode()
            parts.append(_channels_last(z) * self.scale)
        return torch.cat(parts)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images float32 (N, H, W, 3), 0..1, of latent frames (N, h, w, C)."""
        parts = []
        for batch in _batches(latents, latents.shape[1] * latents.shape[2] * self.downscale**2):
            z = (_channels_first(batch) / self.scale).to(self.model.device, self.model.dtype)
            parts.append(_channels_last(self.model.decode(z, return_dict=False)[0]).add(1.0).mul(0.5).clamp(0.0, 1.0))
        return torch.cat(parts)


def _batches(x: Tensor, pixels: int) -> list[Tensor]:
    return list(x.split(max(1, PIXELS_AT_ONCE // pixels)))


class TinyBlock(nn.Module):
    """Three convolutions beside a skip; with `pooled`, after a normalised mixing of channels (TAESD for FLUX.2)."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), *([nn.ReLU()] if i < 2 else [])]
        self.conv = nn.Sequential(*layers)
        if pooled:
            self.pool = nn.Sequential(nn.Conv2d(width, 4 * width, 1, bias=False), nn.GroupNorm(4, 4 * width), nn.ReLU(),
                                      nn.Conv2d(4 * width, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, h, w)."""
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """Softly limit latents to -3..3, as the decoder was trained."""

    def forward(self, x: Tensor) -> Tensor:
        """Map latents of any shape."""
        return torch.tanh(x / 3.0) * 3.0


class TinyAutoencoder:
    """TAESD: an encoder and a decoder of convolutions, 1/8 of the image's size. Images 0..1, latents ready to diffuse.

    Source: the public TAESD (MIT); sizes are read off the files.
    """

    downscale = 8

    def __init__(self, encoder: Path, decoder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Load the two files; BadCheckpoint names what does not fit."""
        down, up = _tensors(encoder), _tensors(decoder)
        try:
            width = down["0.weight"].shape[0]
            self.channels = down["14.bias"].shape[0]
        except KeyError as error:
            raise BadCheckpoint(f"{encoder} is no TAESD encoder: {error} is missing; {REMEDY}") from error
        self.encoder = _filled(self._encoder(width, "12.pool.0.weight" in down), down, encoder).to(device, dtype)
        self.decoder = _filled(self._decoder(width, "3.pool.0.weight" in up), up, decoder).to(device, dtype)

    def _encoder(self, width: int, pooled: bool) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), TinyBlock(width, False)]
        for last in (False, False, True):
            layers.append(nn.Conv2d(width, width, 3, 2, 1, bias=False))
            layers += [TinyBlock(width, pooled and last) for _ in range(3)]
        return nn.Sequential(*layers, nn.Conv2d(width, self.channels, 3, padding=1))

    def _decoder(self, width: int, pooled: bool) -> nn.Sequential:
        layers: list[nn.Module] = [Clamp(), nn.Conv2d(self.channels, width, 3, padding=1), nn.ReLU()]
        for first in (True, False, False):
            layers += [TinyBlock(width, pooled and first) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        return nn.Sequential(*layers, TinyBlock(width, False), nn.Conv2d(width, 3, 3, padding=1))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return latent frames float32 (N, h, w, C) of images (N, H, W, 3), 0..1."""
        return torch.cat([_channels_last(self.encoder(_channels_first(batch).to(*self._where())))
                          for batch in _batches(images, images.shape[1] * images.shape[2])])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images float32 (N, H, W, 3), 0..1, of latent frames (N, h, w, C)."""
        return torch.cat([_channels_last(self.decoder(_channels_first(batch).to(*self._where()))).clamp(0.0, 1.0)
                          for batch in _batches(latents, latents.shape[1] * latents.shape[2] * self.downscale**2)])

    def _where(self) -> tuple[torch.device, torch.dtype]:
        weight = self.encoder[0].weight
        return weight.device, weight.dtype


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises its own types for a truncated or foreign file
        raise BadCheckpoint(f"{path} cannot be read ({error}); {REMEDY}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise BadCheckpoint(f"{path} holds no table of tensors; {REMEDY}")
    return tensors


def _filled(model: nn.Sequential, tensors: dict[str, Tensor], path: Path) -> nn.Sequential:
    wrong = misfits(model.state_dict(), tensors)
    if wrong:
        raise BadCheckpoint(f"{path} is no TAESD: {named(wrong)}; {REMEDY}")
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)
