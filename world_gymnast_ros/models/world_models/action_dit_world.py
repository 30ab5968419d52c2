"""`ActionDiTWorld`: imagined continuations of one picture, drawn by an `ActionDiT`. Implements `types.WorldModel`.

Physical units come in and uint8 pictures go out; normalised units stay in `condition_vector`. The dream's target
pose is integrated by the same function and limits as the arm's, and the gripper command meets the same threshold.
Where a thing is known to stop the arm (`contact.py`) it is drawn where its hand stands, not where it aims.
"""
from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from world_gymnast_ros.errors import BadAction, BadCheckpoint, BadConfig, BadFrame
from world_gymnast_ros.images import check_rgb, resize_rgb
from world_gymnast_ros.models.checkpoint import fill, read_config, save_model
from world_gymnast_ros.models.vision import _cpu_has_bf16_matrices
from world_gymnast_ros.models.world_models.action_dit import OUTLINE, ActionDiT, ActionDiTConfig, TemporalCache
from world_gymnast_ros.models.world_models.background import Plate
from world_gymnast_ros.robot.actions import StepLimits, Workspace, clip_delta, gripper_is_open, integrate_states
from world_gymnast_ros.robot.arm_silhouette import outline
from world_gymnast_ros.tabletop.contact import Handled, hand_after, where_stopped
from world_gymnast_ros.tabletop.scene_reader import SceneReader, Seen
from world_gymnast_ros.types import ACTION_DIM, F32, F64, U8, Frame

LIMITS = StepLimits()


def condition_vector(config: ActionDiTConfig, deltas: NDArray[Any], before: NDArray[Any], after: NDArray[Any],
                     known: NDArray[Any] | bool, cameras: NDArray[Any] | None = None) -> F32:
    """Return the condition float32 (..., condition_dim) of actions that lead from one target state to the next.

    Normalised action (7), normalised state after it (7), state-known flag (1); where the model knows a camera, the
    arm's outline before and after (72). `deltas`, `before`, `after` (..., 7) in physical units, not changed; `known`
    broadcasts against the leading axes, and where it is False the state reads zero and the outline is parked. The
    gripper of a command is made 0 or 1 by the arm's threshold. `cameras` (..., 12), broadcast likewise: those that the
    outline is drawn for where they are not the model's own (None, NaN), in clips of several set-ups.
    """
    action = np.array(deltas, np.float32)
    action[..., 6] = gripper_is_open(action[..., 6])
    action[..., 6] -= 0.5
    action /= np.asarray(config.action_scale, np.float32)
    state = (np.asarray(after, np.float32) - np.float32(config.state_center)) / np.float32(config.state_scale)
    flag = np.broadcast_to(np.asarray(known, np.float32)[..., None], (*action.shape[:-1], 1))
    parts = [action, state * flag, flag]
    if config.camera is not None:
        both = np.stack([np.asarray(before, np.float32), np.asarray(after, np.float32)], -2).reshape(-1, ACTION_DIM)
        drawn_for: NDArray[Any] = np.asarray(config.camera)
        if cameras is not None:
            own = np.where(np.isnan(cameras), drawn_for, cameras)
            drawn_for = np.repeat(np.broadcast_to(own, (*action.shape[:-1], len(drawn_for))).reshape(-1, 12), 2, 0)
        seen = outline(both, np.repeat(flag.ravel() > 0.5, 2), drawn_for)
        parts.append(seen.reshape(*action.shape[:-1], OUTLINE))
    return np.concatenate(parts, -1).astype(np.float32)


class FrameSampler:
    """Draw frames one after another for a batch of clips, each with its own start frame. Exact persistent cache."""

    def __init__(self, network: ActionDiT, first: Tensor, steps: int, generator: torch.Generator,
                 places_m: NDArray[Any] | None = None, cameras: NDArray[Any] | None = None) -> None:
        """Start at frames `first` float32 (G, H, W, 3), 0..1; `steps` denoising steps per frame.

        `places_m` (G, N, 3) of things on the table there, NaN where there is none, seen by `cameras` (G, 12).
        """
        self.network, self.steps, self.generator = network, steps, generator
        self.dtype = network.age_bias.dtype
        self.frame = first
        self.affine: Tensor | None = None
        self.plate: Plate | None = None
        self._things = None if places_m is None or cameras is None else tuple(
            torch.from_numpy(np.asarray(x, np.float32)).to(first.device) for x in (places_m, cameras))
        self.cache = TemporalCache(network.config.context_frames)

    @torch.inference_mode()
    def step(self, condition: Tensor, places_m: NDArray[Any] | None = None) -> Tensor:
        """Draw the next frame (G, H, W, 3) float32, 0..1, under the condition float32 (G, C).

        `places_m` (G, N, 3): where the things are then, as far as it is foreseen; None: where they were.
        """
        net, c = self.network, self.network.config
        previous = net.windows(self.frame[:, None]).to(self.dtype)
        shape = (len(self.frame), 1, c.tokens, 3 * c.patch**2)
        noisy = c.noise_scale * torch.randn(shape, generator=self.generator, device=self.frame.device)
        condition = condition[:, None].to(self.frame.device)
        if self.plate is None:  # before the first action the outline is that of the start frame
            self.affine = net.fit(self.frame, condition[:, 0])
            self.plate = net.plate(self.frame, condition[:, 0], self.affine, *(self._things or ()))
        now_m = None if places_m is None else torch.from_numpy(np.asarray(places_m, np.float32)).to(self.frame.device)
        plate = net.windows(self.plate.at(None if now_m is None else now_m[:, None])).to(self.dtype)
        for i in range(self.steps):
            s, s_next = 1.0 - i / self.steps, 1.0 - (i + 1) / self.steps
            level = torch.full(shape[:2], s, device=self.frame.device)
            change = net(previous, plate, noisy.to(self.dtype), level, condition, affine=self.affine,
                         cache=self.cache).float()
            if s_next > 0.0:  # deterministic step: keep the noise that this prediction implies
                noisy = (1.0 - s_next) * change + (s_next / s) * (noisy - (1.0 - s) * change)
        self.cache.commit()  # the keys of the last denoising pass stay: no extra pass on the clean frame
        change = c.change_gain * F.hardshrink(change, c.still_threshold)
        self.frame = (self.frame + net.picture(change[:, 0])).clamp_(0.0, 1.0)
        return self.frame


class ActionDiTDream:
    """A single-use batch of imagined continuations, each of its start frame."""

    def __init__(self, sampler: FrameSampler, config: ActionDiTConfig, states: F32 | None,
                 things: Handled | None = None) -> None:
        """`things` that the sampler knows, as the hand will move them (`contact.py`)."""
        self._sampler, self._config, self._copies = sampler, config, len(sampler.frame)
        self.state: F32 | None = None if states is None else np.array(states, np.float32)
        self._hand = self._drawn = self.state
        self._things = things
        low, high = config.workspace_low_m, config.workspace_high_m
        self._workspace = None if low is None or high is None else Workspace(low, high)

    def step(self, deltas: F32) -> U8:
        """Apply one action per copy, float32 (G, 7), physical units; return next frames uint8 (G, H, W, 3).

        Actions beyond the step limits are clipped as on the arm. BadAction on a wrong shape or a non-finite number.
        """
        if np.shape(deltas) != (self._copies, ACTION_DIM):
            raise BadAction(f"this dream takes actions of shape {(self._copies, ACTION_DIM)}, got {np.shape(deltas)}")
        clipped = clip_delta(np.array(deltas, np.float32), LIMITS)
        clipped[:, 6] = gripper_is_open(clipped[:, 6])
        before = np.zeros_like(clipped) if self.state is None else self.state
        after = before if self.state is None else integrate_states(before, clipped, LIMITS, self._workspace)
        places_m, drawn = None, after
        if self.state is not None:
            hand = hand_after(before, after)
            if self._things is not None:
                places_m = self._things.step(self._hand, hand)
                drawn = where_stopped(after, self._things.behind_m)
            self.state, self._hand = after, hand
        condition = condition_vector(self._config, clipped, before if self._drawn is None else self._drawn, drawn,
                                     self.state is not None)
        self._drawn = None if self.state is None else drawn
        return to_uint8(self._sampler.step(torch.from_numpy(condition), places_m))


def to_uint8(frames: Tensor) -> U8:
    """Return pictures uint8 of float pictures 0..1."""
    out: U8 = frames.mul(255.0).round_().to(torch.uint8).cpu().numpy()
    return out


class ActionDiTWorld:
    """An action-conditioned video world model on an `ActionDiT`."""

    def __init__(self, network: ActionDiT, device: str = "cpu", dtype: torch.dtype | None = None,
                 reader: SceneReader | None = None) -> None:
        """Wrap a network, in place. `dtype` None: bfloat16 where the device multiplies it in hardware.

        `reader`: finds things in captured frames, so that those which the hand moves are drawn where it takes them. It
        also knows where the set-up's camera is, which the arm is then drawn for: a camera that was mounted anew and
        learned (`world-gymnast judge learn`) is a camera for both.
        """
        self.reader = reader
        self.device = torch.device(device)
        if dtype is None:
            fast = self.device.type == "cuda" or _cpu_has_bf16_matrices()
            dtype = torch.bfloat16 if fast else torch.float32
        self.config = network.config = seen_by(network.config, reader)
        self.network = network.to(self.device, dtype).eval().requires_grad_(False)
        self.name = self.config.name
        self.frame_size = (self.config.image_size, self.config.image_size)
        self.sampling_steps = self.config.sampling_steps

    def with_reader(self, reader: SceneReader) -> ActionDiTWorld:
        """Return the same model with another reader: another camera, other things found."""
        return ActionDiTWorld(copy(self.network), str(self.device), next(self.network.parameters()).dtype, reader)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu", dtype: torch.dtype | None = None,
                        reader: SceneReader | None = None) -> ActionDiTWorld:
        """Load a checkpoint directory (config.json, model.safetensors); BadCheckpoint names the file and the remedy."""
        network, _ = load_network(Path(path))
        return cls(network, device, dtype, reader)

    def save(self, directory: str | Path) -> str:
        """Write config.json and model.safetensors; return the SHA-256 of the weights."""
        return save_model(self.network, self.config.to_dict(), Path(directory))

    def begin(self, frame: Frame, state: F32 | None, copies: int, seed: int) -> ActionDiTDream:
        """Start `copies` dreams from one frame (resized to `frame_size`); the same seed gives the same dreams.

        `state` float32 (7,) Bridge state at that frame, or None where it is unknown.
        """
        if copies < 1:
            raise BadConfig(f"copies is {copies}; a dream needs at least 1")
        if state is not None and np.shape(state) != (ACTION_DIM,):
            raise BadAction(f"state must be {ACTION_DIM} finite numbers or None, got {state!r}")
        if check_rgb(frame.rgb, "Frame.rgb").ndim != 3:
            raise BadFrame(f"Frame.rgb must have shape (H, W, 3), got {frame.rgb.shape}")
        states = None if state is None else np.repeat(state[None].astype(np.float32), copies, 0)
        return self.begin_many(np.repeat(resize_rgb(frame.rgb, self.frame_size)[None], copies, 0), states, seed,
                               [frame.rgb] * copies)

    def begin_many(self, frames: U8, states: F32 | None, seed: int, captured: Sequence[U8] | None = None
                   ) -> ActionDiTDream:
        """Start one dream from each of `frames` uint8 (G, H, W, 3) with `states` (G, 7), as one batch.

        `captured`: the camera's own frame of each, before it was resized or varied, in which things can be found.
        """
        if check_rgb(frames, "frames").ndim != 4 or not len(frames):
            raise BadFrame(f"frames must have shape (G, H, W, 3), got {frames.shape}")
        if states is not None and (np.shape(states) != (len(frames), ACTION_DIM) or not np.isfinite(states).all()):
            raise BadAction(f"states must be {(len(frames), ACTION_DIM)} finite numbers or None, got {states!r}")
        first = torch.from_numpy(resize_rgb(frames, self.frame_size)).to(self.device).float().div_(255.0)
        things, cameras = self._things(captured, states)
        sampler = FrameSampler(self.network, first, self.sampling_steps, torch.Generator(self.device).manual_seed(seed),
                               None if things is None else things.places_m, cameras)
        return ActionDiTDream(sampler, self.config, states, things)

    def _things(self, captured: Sequence[U8] | None, states: F32 | None
                ) -> tuple[Handled, F64] | tuple[None, None]:
        """Return the things in captured frames, N at most in each, places NaN where there is none; cameras (G, 12)."""
        if captured is None or states is None or self.reader is None or not self.config.plate:
            return None, None
        found: dict[tuple[int, bytes], Seen | None] = {}  # copies of one start are looked at once
        keys = [(id(rgb), state.tobytes()) for rgb, state in zip(captured, states, strict=True)]
        for key, rgb, state in zip(keys, captured, states, strict=True):
            if key not in found:
                found[key] = self.reader.things(rgb, state)
        most = max((len(s.places_m) for s in found.values() if s is not None), default=0)
        places_m, sizes_m = np.full((len(keys), most, 3), np.nan), np.full((len(keys), most, 2), np.nan)
        lifts_m = np.full((len(keys), most), np.nan)
        cameras = np.zeros((len(keys), 12))
        for i, key in enumerate(keys):
            seen = found[key]
            if seen is not None:
                count = len(seen.places_m)
                places_m[i, :count], sizes_m[i, :count], cameras[i] = seen.places_m, seen.sizes_m, seen.camera
                lifts_m[i, :count] = seen.lifts_m
        return Handled(places_m, sizes_m, lifts_m), cameras


def seen_by(config: ActionDiTConfig, reader: SceneReader | None) -> ActionDiTConfig:
    """Return the settings with the camera that `reader` knows, where there is a reader and the model draws for one."""
    return config if reader is None or config.camera is None else replace(config, camera=reader.projection)


def load_network(directory: Path) -> tuple[ActionDiT, str]:
    """Load an `ActionDiT` and the SHA-256 of its weights; BadCheckpoint where the files do not describe one."""
    values = read_config(directory, ActionDiTConfig.model_type)
    try:
        network = ActionDiT(ActionDiTConfig.from_dict(values))
    except (TypeError, ValueError, ZeroDivisionError, BadConfig) as error:
        raise BadCheckpoint(f"{directory / 'config.json'} does not describe a world model ({error})") from error
    return network, fill(network, directory)
