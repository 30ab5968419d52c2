"""`Cosmos3World`: imagined continuations drawn by NVIDIA's Cosmos 3 through diffusers. Implements `types.WorldModel`.

Each call of the pipeline draws `stride` actions of one copy from one frame: copies are calls of their own, chunks are
padded with standing still, and longer ones are chained. A call draws its noise on the CPU from a seed of its own copy
and place: what a copy sees depends neither on the other copies, nor on whether some of them have left.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from world_gymnast_ros.errors import BadAction, BadCheckpoint, BadConfig, BadFrame
from world_gymnast_ros.images import check_rgb, resize_rgb
from world_gymnast_ros.models.vision import _cpu_has_bf16_matrices
from world_gymnast_ros.models.world_models.cosmos3_actions import (
    Quantiles,
    bridge_actions,
    read_statistics,
    relative_actions,
)
from world_gymnast_ros.models.world_models.cosmos3_files import load_pipeline, pipeline_folder
from world_gymnast_ros.models.world_models.cosmos3_settings import FRAMES_PER_LATENT, Cosmos3Settings
from world_gymnast_ros.robot.actions import (
    RobotLimits,
    StepLimits,
    Workspace,
    check_limits,
    clip_delta,
    gripper_is_open,
    integrate_states,
)
from world_gymnast_ros.types import ACTION_DIM, CONTROL_DT_S, F32, I64, U8, Start

LIMITS = StepLimits()
DOMAIN = "bridge_orig_lerobot"


class Cosmos3Rollouts:
    """A single-use batch of imagined continuations, each of its start frame. Implements `types.RolloutBatch`."""

    def __init__(self, world: Cosmos3World, frames: list[U8], states: F32, instructions: list[str], seed: int) -> None:
        """`frames` of the world's size, `states` float32 (G, 7) there."""
        self._world, self._frames, self._states, self._instructions = world, frames, states, instructions
        self._seed, self._copies, self._calls = seed, np.arange(len(frames)), 0

    def play(self, deltas: F32) -> U8:
        """Apply K actions per copy, float32 (G, K, 7), physical units; return frames uint8 (G, K, H, W, 3).

        Actions beyond the step limits are clipped as on the arm. BadAction on a wrong shape or a number that is not
        finite.
        """
        shape = np.shape(deltas)
        if len(shape) != 3 or shape[0] != len(self._frames) or shape[1] < 1 or shape[2] != ACTION_DIM:
            raise BadAction(f"this dream takes actions of shape ({len(self._frames)}, K, {ACTION_DIM}) with K at least "
                            f"1, got {shape}")
        wanted = clip_delta(np.asarray(deltas, np.float32), LIMITS)
        stride = self._world.stride
        return np.concatenate([self._call(wanted[:, i:i + stride]) for i in range(0, shape[1], stride)], 1)

    def _call(self, deltas: F32) -> U8:
        """Draw at most `stride` actions of each copy."""
        played, world = deltas.shape[1], self._world
        states = [self._states]
        grippers = gripper_is_open(deltas[..., 6]).astype(np.float32)
        for t in range(played):
            states.append(integrate_states(states[-1], deltas[:, t], LIMITS, world.workspace))
        rest = world.stride - played  # standing still
        path = np.stack(states + states[-1:] * rest, 1)
        commands = np.concatenate([grippers, grippers[:, -1:].repeat(rest, 1)], 1)
        numbers = world.statistics.normalised(relative_actions(path, commands))
        drawn = np.stack([world.draw(frame, words, numbers[i], _seed(self._seed, int(copy), self._calls))[:played]
                          for i, (frame, words, copy) in enumerate(zip(self._frames, self._instructions, self._copies,
                                                                       strict=True))])
        self._frames, self._states, self._calls = list(drawn[:, -1]), states[-1], self._calls + 1
        return drawn

    def keep(self, copies: I64) -> None:
        """Go on with these copies alone."""
        self._frames, self._instructions = ([values[i] for i in copies] for values in (self._frames,
                                                                                       self._instructions))
        self._states, self._copies = self._states[copies], self._copies[copies]


def _seed(*path: int) -> int:
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> 1)


class Cosmos3World:
    """Cosmos 3 on the weights of a diffusers repository, as a world model of the Bridge arm."""

    max_step = (LIMITS.max_step_m, LIMITS.max_step_rad)

    def __init__(self, pipeline: Any, statistics: Quantiles, settings: Cosmos3Settings, name: str) -> None:
        """Put the parts together: a `Cosmos3OmniPipeline` and what its actions are normalised by. BadConfig where the
        pipeline draws frames of another size than `frame_size`."""
        if pipeline.vae_scale_factor_temporal != FRAMES_PER_LATENT:
            raise BadCheckpoint(f"the autoencoder makes one latent frame of {pipeline.vae_scale_factor_temporal} "
                                f"frames, not of {FRAMES_PER_LATENT}")
        drawn = settings.drawn_size(pipeline.vae_scale_factor_spatial)
        if drawn != settings.frame_size:
            raise BadConfig(f"frame_size is {list(settings.frame_size)}; of such a frame, tier "
                            f"{settings.resolution_tier} draws {list(drawn)}: write that, or another resolution_tier")
        self._pipeline, self.statistics, self.settings, self.name = pipeline, statistics, settings, name
        self.frame_size, self.stride = settings.frame_size, settings.stride
        self.workspace: Workspace | None = None

    def limited(self, limits: RobotLimits) -> Cosmos3World:
        """Keep to the robot's limits; BadConfig where they are wider than what was trained on. Returns itself."""
        check_limits(self.name, limits.step)
        self.max_step, self.workspace = (limits.step.max_step_m, limits.step.max_step_rad), limits.workspace
        return self

    @classmethod
    def from_pretrained(cls, where: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Cosmos3World:
        """Load the folder of a `config.json` (see `Cosmos3Settings`), or of a diffusers repository with the statistics
        in it; BadCheckpoint names what is missing and the remedy.

        `dtype` None: bfloat16 where the device multiplies it in hardware.
        """
        folder = Path(where)
        settings = Cosmos3Settings.read(folder)
        statistics = read_statistics(folder / settings.statistics)
        placed = torch.device(device)
        if dtype is None:
            fast = placed.type == "cuda" or _cpu_has_bf16_matrices()
            dtype = torch.bfloat16 if fast else torch.float32
        pipeline = load_pipeline(pipeline_folder(settings, folder), settings.flow_shift, placed, dtype)
        return cls(pipeline, statistics, settings, folder.resolve().name)

    def begin(self, starts: Sequence[Start], seed: int) -> Cosmos3Rollouts:
        """Begin one continuation of each start (its frame resized to `frame_size`); the same seed, the same frames.
        BadConfig for a start without a state: the actions are told in the axes of the hand."""
        if not len(starts):
            raise BadConfig("no start; a world model begins at one frame at least")
        frames = [resize_rgb(check_rgb(s.frame.rgb, "Frame.rgb"), self.frame_size) for s in starts]
        return Cosmos3Rollouts(self, frames, self._states(starts), [s.instruction for s in starts], abs(int(seed)))

    def _states(self, starts: Sequence[Start]) -> F32:
        states = [s.state for s in starts if s.state is not None]
        if len(states) < len(starts):
            raise BadConfig(f"the arm's state is not known at {len(starts) - len(states)} of {len(starts)} starts, and "
                            f"{self.name} is told actions in the axes of the hand: give --state, or capture with the "
                            "driver running")
        return np.stack(states).astype(np.float32)

    def draw(self, frame: U8, instruction: str, numbers: F32, seed: int) -> U8:
        """Return the frames uint8 (stride, H, W, 3) after one, under the model's own numbers float32 (stride, 10)."""
        video = self._run("forward_dynamics", instruction, seed, image=_pil(frame),
                          raw_actions=torch.from_numpy(numbers)).video
        frames: U8 = np.rint(np.asarray(video, np.float32) * 255.0).astype(np.uint8)
        if frames.shape != (self.stride + 1, *self.frame_size, 3):
            raise BadFrame(f"{self.name} drew {frames.shape} for {self.stride} actions, frame_size is "
                           f"{self.frame_size}; another version of diffusers than the locked one?")
        return frames[1:]

    def recovered(self, starts: Sequence[Start], frames: U8, seed: int) -> F32:
        """Return the actions float32 (G, T, 7) that the model reads out of rollouts uint8 (G, T+1, H, W, 3), which
        began at `starts`: inverse dynamics, `stride` actions at once. BadFrame for frames of another size."""
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[2:4] != self.frame_size or \
                frames.shape[0] != len(starts) or frames.shape[1] < 2:
            raise BadFrame(f"rollouts of {frames.dtype} {frames.shape}; uint8 ({len(starts)}, T + 1, "
                           f"{self.frame_size[0]}, {self.frame_size[1]}, 3) are needed")
        steps = frames.shape[1] - 1
        numbers = np.empty((len(starts), steps, self.statistics.low.size), np.float32)
        for g, start in enumerate(starts):
            for i in range(0, steps, self.stride):
                clip = [_pil(rgb) for rgb in frames[g, i:i + self.stride + 1]]  # a short one is padded with its last
                found = self._run("inverse_dynamics", start.instruction, _seed(abs(int(seed)), g, i), video=clip).action
                numbers[g, i:i + self.stride] = found[0].float().numpy()[:steps - i]
        return bridge_actions(self._states(starts), self.statistics.raw(numbers))

    def _run(self, mode: str, instruction: str, seed: int, **given: Any) -> Any:
        from diffusers import CosmosActionCondition

        c = self.settings
        action = CosmosActionCondition(mode=mode, chunk_size=self.stride, domain_name=DOMAIN,
                                       resolution_tier=c.resolution_tier, view_point=c.view_point, **given)
        return self._pipeline(prompt=instruction, action=action, fps=round(1.0 / CONTROL_DT_S),
                              num_inference_steps=c.sampling_steps, guidance_scale=c.guidance, use_system_prompt=False,
                              generator=torch.Generator().manual_seed(seed), output_type="np")


def _pil(rgb: U8) -> Any:
    from PIL import Image

    return Image.fromarray(rgb)
