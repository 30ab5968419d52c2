"""`WorldGym`: imagined continuations drawn by WorldGym's latent video model. Implements `types.WorldModel`.

Actions in physical units come in and uint8 images go out; the model's own numbers stay inside. Each start frame is
encoded once. Copies draw their noise each from its own seed, on the CPU: what a copy sees depends neither on the other
copies, nor on whether some of them have left, nor on the device.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from world_gymnast_ros.errors import BadAction, BadCheckpoint, BadConfig
from world_gymnast_ros.images import check_rgb, resize_rgb
from world_gymnast_ros.models.vision import _cpu_has_bf16_matrices
from world_gymnast_ros.models.world_models.autoencoder import Autoencoder, load_autoencoder
from world_gymnast_ros.models.world_models.worldgym_dit import WorldGymDiT
from world_gymnast_ros.models.world_models.worldgym_files import load_network, read_settings, weights_file
from world_gymnast_ros.models.world_models.worldgym_sampler import LatentSampler
from world_gymnast_ros.models.world_models.worldgym_settings import LIMITS, WorldGymSettings
from world_gymnast_ros.robot.actions import RobotLimits, check_limits
from world_gymnast_ros.types import ACTION_DIM, F32, I64, U8, Start


def decoded(autoencoder: Autoencoder, latents: Sequence[Tensor]) -> U8:
    """Return images uint8 (n, H, W, 3) of latent frames (h, w, C)."""
    images: U8 = autoencoder.decode(torch.stack(list(latents))).mul(255.0).round_().to(torch.uint8).cpu().numpy()
    return images


class WorldGymRollouts:
    """A single-use batch of imagined continuations, each of its start frame. Implements `types.RolloutBatch`."""

    def __init__(self, sampler: LatentSampler, autoencoder: Autoencoder, generators: list[torch.Generator]) -> None:
        """`generators`: the source of noise of each copy, on the CPU."""
        self.sampler, self._generators = sampler, generators
        self.decode: Callable[[Sequence[Tensor]], U8] = partial(decoded, autoencoder)
        """Decodes latent frames (h, w, C) to images; implements `types.DrawsLatents`."""

    def play(self, deltas: F32) -> U8:
        """Apply K actions per copy, float32 (G, K, 7), physical units; return frames uint8 (G, K, H, W, 3).

        Actions beyond the step limits are clipped as on the arm. BadAction on a wrong shape or a number that is not
        finite.
        """
        latents = self.draw(deltas)
        frames = self.decode(latents.flatten(0, 1).unbind())
        return frames.reshape(*latents.shape[:2], *frames.shape[1:])

    def draw(self, deltas: F32) -> Tensor:
        """Do as `play` does, but return latent frames float32 (G, K, h, w, C)."""
        shape = np.shape(deltas)
        if len(shape) != 3 or shape[0] != len(self._generators) or shape[1] < 1 or shape[2] != ACTION_DIM:
            raise BadAction(f"this dream takes actions of shape ({len(self._generators)}, K, {ACTION_DIM}) with K at "
                            f"least 1, got {shape}")
        settings, network = self.sampler.settings, self.sampler.network
        numbers = torch.from_numpy(settings.model_actions(deltas, network.shape.action_dim))
        device = self.sampler.device
        return self.sampler.advance(numbers.to(device, non_blocking=True), self._noise(shape[1]).to(device))

    def _noise(self, frames: int) -> Tensor:
        """Draw each copy's noise frame by frame, so that K actions at once and one by one are the same."""
        size = self.sampler.latent_size
        return torch.stack([torch.stack([torch.randn(size, generator=g) for _ in range(frames)])
                            for g in self._generators])

    def keep(self, copies: I64) -> None:
        """Go on with these copies alone."""
        self.sampler.keep(torch.from_numpy(np.asarray(copies, np.int64)).to(self.sampler.device))
        self._generators = [self._generators[i] for i in copies]


class WorldGym:
    """WorldGym's world model on its published weights."""

    stride = 1
    max_step = (LIMITS.max_step_m, LIMITS.max_step_rad)

    def __init__(self, network: WorldGymDiT, autoencoder: Autoencoder, settings: WorldGymSettings, name: str) -> None:
        """Put the parts together; BadCheckpoint where they do not fit, BadConfig where the frame size does not."""
        if autoencoder.channels != network.shape.channels:
            raise BadCheckpoint(f"the autoencoder has {autoencoder.channels} latent channels, the network "
                                f"{network.shape.channels}; name the autoencoder that it was trained with")
        cell = autoencoder.downscale * network.shape.patch
        if any(side % cell for side in settings.frame_size):
            raise BadConfig(f"frame_size {settings.frame_size} must be a multiple of {cell}: latent frames are "
                            f"{autoencoder.downscale} times smaller and cut into patches of {network.shape.patch}")
        if network.shape.action_dim <= ACTION_DIM:
            raise BadCheckpoint(f"the network takes {network.shape.action_dim} action numbers; {ACTION_DIM} and one "
                                "that tells 'no action' are needed")
        self.network, self.autoencoder, self.settings, self.name = network, autoencoder, settings, name
        self.frame_size = settings.frame_size

    def limited(self, limits: RobotLimits) -> WorldGym:
        """Keep to the robot's step limits; BadConfig where they are wider than what was trained on. Returns itself. The
        workspace is the policy's and the guard's: this world model is not told where the arm is."""
        check_limits(self.name, limits.step)
        self.max_step = (limits.step.max_step_m, limits.step.max_step_rad)
        return self

    @classmethod
    def from_pretrained(cls, where: str | Path, device: str = "cpu", dtype: torch.dtype | None = None,
                        settings: WorldGymSettings | None = None, vae: str | Path | None = None) -> WorldGym:
        """Load a folder with one file of weights, or such a file; BadCheckpoint names what is missing and the remedy.

        `settings` None: those of config.json beside the weights, or the published model's. `vae`: folder of the
        autoencoder; None: the one that the settings name, seen from the weights' folder. `dtype` None: bfloat16 where
        the device multiplies it in hardware.
        """
        where = Path(where)
        file = weights_file(where)
        settings = settings or read_settings(file.parent)
        placed = torch.device(device)
        if dtype is None:
            fast = placed.type == "cuda" or _cpu_has_bf16_matrices()
            dtype = torch.bfloat16 if fast else torch.float32
        autoencoder = load_autoencoder(Path(vae) if vae else file.parent / settings.vae, placed, dtype)
        network = load_network(file, settings.heads, settings.spatial_positions, placed, dtype)
        return cls(network, autoencoder, settings, file.stem if where.is_file() else where.name)

    def begin(self, starts: Sequence[Start], seed: int) -> WorldGymRollouts:
        """Begin one continuation of each start (its frame resized to `frame_size`); the same seed, the same frames.

        The model sees images and actions only: neither a start's state nor its instruction is used.
        """
        if not len(starts):
            raise BadConfig("no start; a world model begins at one frame at least")
        frames = [resize_rgb(check_rgb(s.frame.rgb, "Frame.rgb"), self.frame_size) for s in starts]
        order: dict[bytes, int] = {}
        which = [order.setdefault(frame.tobytes(), len(order)) for frame in frames]
        different = np.stack([frames[which.index(i)] for i in range(len(order))])
        latents = self.autoencoder.encode(torch.from_numpy(different).to(self.network.device).float().div_(255.0))
        sampler = LatentSampler(self.network, self.settings, latents[which])
        seeds = [np.random.SeedSequence([abs(int(seed)), i]).generate_state(1, np.uint64)[0] >> 1
                 for i in range(len(starts))]
        return WorldGymRollouts(sampler, self.autoencoder, [torch.Generator().manual_seed(int(s)) for s in seeds])

