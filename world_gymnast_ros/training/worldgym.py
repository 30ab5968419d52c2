"""Train or fine-tune a WorldGym network on recorded episodes: diffusion forcing on latent frames.

Every frame of a clip gets a noise level of its own, and the network predicts v of all of them at once. Latent frames
are computed once, before the first step. With `lora_rank` only a LoRA adapter is trained; the weights that are written
have it merged, and the adapter lies beside them in peft's format.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadBudget, BadCheckpoint, BadConfig, EpisodeError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.models.checkpoint import save_model
from world_gymnast_ros.models.policies.lora import LoraSlot, write_adapter
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.models.world_models.worldgym import WorldGym
from world_gymnast_ros.models.world_models.worldgym_dit import WorldGymDiT
from world_gymnast_ros.models.world_models.worldgym_sampler import signal_shares
from world_gymnast_ros.models.world_models.worldgym_settings import NOISE_LEVELS
from world_gymnast_ros.progress import bar, shown
from world_gymnast_ros.training.optim import follow
from world_gymnast_ros.training.run_state import load_run, save_run
from world_gymnast_ros.types import F32

LORA_TARGETS = r"blocks\..*(qkv_proj|out_proj|ffwd\.[02]|adaLN_modulation\.1)|action_embedder|timestep_mlp\.[02]|" \
               r"final_layer\.(linear|adaLN_modulation\.1)"
"""Every linear layer; not the patch convolution."""
ADAPTER = "adapter"
"""Sub-folder of a run that holds the adapter."""


@dataclass(frozen=True)
class WorldGymTraining:
    """One training run. The budget is `minutes` of wall time, or `steps` where that is not 0.

    `lora_rank` 0 trains all weights. `action_dropout`: share of clips whose actions are all "no action", without which
    guidance has nothing to guide from. `average`: decay of the averaged weights, which are those that are written.
    `learning_rate`, `weight_decay`, `betas` are AdamW's. Defaults are for a LoRA of the published model, which was
    trained with 3e-5 on all weights.
    """

    minutes: float = 60.0
    steps: int = 0
    batch: int = 4
    clip_frames: int = 10
    lora_rank: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = 50
    max_gradient: float = 1.0
    average: float = 0.999
    action_dropout: float = 0.1
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or (self.steps == 0 and not self.minutes > 0):
            raise BadBudget(f"minutes {self.minutes} and steps {self.steps}: give a positive number of one of them")
        rules = (("batch", self.batch >= 1, "at least 1"), ("save_every", self.save_every >= 1, "at least 1"),
                 ("clip_frames", self.clip_frames >= 2, "at least 2"),
                 ("lora_rank", 0 <= self.lora_rank <= 512, "within 0..512"),
                 ("average", 0.0 <= self.average < 1.0, "within 0..1, below 1"),
                 ("action_dropout", 0.0 <= self.action_dropout < 1.0, "within 0..1, below 1"))
        for name, good, limit in rules:
            if not good:
                raise BadConfig(f"WorldGymTraining.{name} is {getattr(self, name)}; it must be {limit}")


def diffusion_loss(network: WorldGymDiT, latents: Tensor, numbers: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """Return the mean squared error of v on latent frames (B, T, h, w, C) under the model's actions (B, T, A).

    `levels` int64 (B, T), 0 to 999; `noise` like the latent frames.
    """
    left = torch.tensor(signal_shares(), device=latents.device)[levels][..., None, None, None]
    signal, spoilt = left.sqrt(), (1.0 - left).sqrt()
    v = network(signal * latents + spoilt * noise, levels, numbers)
    return F.mse_loss(v.float(), signal * noise - spoilt * latents)


@dataclass(frozen=True)
class LatentEpisode:
    """Latent frames (T + 1, h, w, C) and the model's actions at them (T + 1, A): at frame 0 none is known where the
    action that *led* to a frame is meant."""

    latents: Tensor
    numbers: Tensor


def encode(world: WorldGym, episode: Episode) -> LatentEpisode:
    """Encode one recorded episode as `world` would meet it."""
    frames = torch.from_numpy(resize_rgb(episode.frames, world.frame_size)).to(world.network.device)
    numbers = world.settings.model_actions(episode.deltas, world.network.shape.action_dim)
    idle: F32 = np.zeros_like(numbers[:1])
    lined_up = [idle, numbers] if world.settings.action_offset == 1 else [numbers, numbers[-1:]]
    return LatentEpisode(world.autoencoder.encode(frames.float().div_(255.0)).cpu(),
                         torch.from_numpy(np.concatenate(lined_up)))


class WorldGymTrainer:
    """A training run: steps on random clips, an average of the weights, a checkpoint at the end."""

    def __init__(self, world: WorldGym, episodes: Sequence[Episode], config: WorldGymTraining,
                 weights: Sequence[float] | None = None) -> None:
        """`world` is trained in place. `weights`: how often each episode is drawn (None: all alike).

        EpisodeError where no episode is as long as a clip.
        """
        self.world, self.config = world, config
        if config.clip_frames > world.settings.window:
            raise BadConfig(f"clip_frames {config.clip_frames} is above the {world.settings.window} frames of the "
                            "model's window; shorten the clips")
        long_enough = [i for i, e in enumerate(episodes) if len(e.frames) >= config.clip_frames]
        if not long_enough:
            raise EpisodeError(f"none of {len(episodes)} episodes has the {config.clip_frames} frames of a clip; "
                               "record longer ones")
        self.episodes = [encode(world, episodes[i]) for i in shown(long_enough, "encoding", "episode")]
        self.shares = torch.tensor([1.0 if weights is None else float(weights[i]) for i in long_enough])
        self.slot: LoraSlot | None = None
        if config.lora_rank:
            self.slot = LoraSlot(world.network, LORA_TARGETS)
            self.slot.add(config.lora_rank, float(config.lora_rank), config.seed)
            self.trained = nn.ParameterList(self.slot.parameters())
        else:
            self.trained = nn.ParameterList(world.network.requires_grad_(True).parameters())
        self.average = nn.ParameterList(p.detach().clone() for p in self.trained).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.trained, config.learning_rate, config.betas,
                                           weight_decay=config.weight_decay)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.steps_done, self.elapsed_s = 0, 0.0

    def step(self) -> float:
        """Take one optimiser step; return the loss."""
        c, device = self.config, self.world.network.device
        latents, numbers = (t.to(device) for t in self._clips())
        levels = torch.randint(0, NOISE_LEVELS, latents.shape[:2], generator=self.generator).to(device)
        noise = torch.randn(latents.shape, generator=self.generator).to(device)
        with fast_math(device):
            loss = diffusion_loss(self.world.network, latents, numbers, levels, noise)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, c.max_gradient)
        for group in self.optimiser.param_groups:
            group["lr"] = c.learning_rate * min(1.0, (self.steps_done + 1) / max(1, c.warmup_steps))
        self.optimiser.step()
        keep = min(c.average, (self.steps_done + 1) / (self.steps_done + 10))
        follow(self.average, self.trained, keep)
        self.steps_done += 1
        return float(loss.detach())

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        c = self.config
        return self.steps_done >= c.steps if c.steps else self.elapsed_s >= 60.0 * c.minutes

    def run(self, report: Callable[[int, float], None] = lambda step, loss: None, state: Path | None = None) -> None:
        """Spend the budget, then leave the averaged weights in the network. `report` hears each step and its loss.

        `state`: file to write every `save_every` steps, from which `resume` goes on to the same weights.
        """
        c, begin = self.config, time.monotonic() - self.elapsed_s

        def spent() -> int:
            return self.steps_done if c.steps else min(round(self.elapsed_s), round(60.0 * c.minutes))
        total, unit = (c.steps, "step") if c.steps else (round(60.0 * c.minutes), "s")
        with bar(total, "training the world model", unit, spent()) as line:
            while not self.done:
                loss = self.step()
                if not math.isfinite(loss):
                    raise BadConfig(f"the loss is {loss} at step {self.steps_done}; lower learning_rate "
                                    f"{c.learning_rate}")
                self.elapsed_s = time.monotonic() - begin
                report(self.steps_done, loss)
                line.update(spent() - line.n)
                if state is not None and (self.done or self.steps_done % c.save_every == 0):
                    self._write_state(state)
        with torch.no_grad():
            torch._foreach_copy_(list(self.trained), list(self.average))
        self.world.network.requires_grad_(False)

    def save(self, out: Path, autoencoder: Path, base: str, base_hash: str) -> Path:
        """Write a checkpoint folder: config.json and model.safetensors, the adapter merged in; return it.

        `autoencoder`: its folder; `base`, `base_hash`: what was trained from. The network keeps no adapter.
        """
        if self.slot is not None and self.slot.tuner is not None:
            write_adapter(out / ADAPTER, self.slot, base, base_hash)
            self.slot.tuner.merge_and_unload()
            self.slot = None
        settings = {**self.world.settings.to_dict(), "vae": str(autoencoder.resolve())}
        save_model(self.world.network, settings, out)
        return out

    def _parts(self) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
        return {"trained": self.trained, "average": self.average}, {"adamw": self.optimiser}

    def _write_state(self, file: Path) -> None:
        save_run(file, *self._parts(), {"rng": self.generator.get_state()},
                 {"steps": self.steps_done, "seconds": self.elapsed_s})

    def resume(self, file: Path) -> None:
        """Go on from a state that `run` wrote; BadCheckpoint where there is none or it is of another run."""
        if (saved := load_run(file, *self._parts())) is None:
            raise BadCheckpoint(f"{file} is not there: no run was stopped here")
        self.steps_done, self.elapsed_s = int(saved[1]["steps"]), float(saved[1]["seconds"])
        self.generator.set_state(saved[0]["rng"])

    def _clips(self) -> tuple[Tensor, Tensor]:
        """Draw latent frames (B, T, h, w, C) and actions (B, T, A), some clips without actions."""
        c = self.config

        def dice(sides: int) -> int:
            return int(torch.randint(sides, (1,), generator=self.generator))

        latents, numbers = [], []
        for _ in range(c.batch):
            episode = self.episodes[int(torch.multinomial(self.shares, 1, generator=self.generator))]
            start = dice(len(episode.latents) - c.clip_frames + 1)
            latents.append(episode.latents[start:start + c.clip_frames])
            told = episode.numbers[start:start + c.clip_frames].clone()
            if self.world.settings.action_offset == 1:
                told[0] = 0.0  # of a start frame nobody knows what led to it
            if float(torch.rand(1, generator=self.generator)) < c.action_dropout:
                told.zero_()[:, -1] = 1.0
            numbers.append(told)
        return torch.stack(latents), torch.stack(numbers)
