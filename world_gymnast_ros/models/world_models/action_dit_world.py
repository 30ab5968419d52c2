"""`ActionDiTWorld`: imagined continuations of one image, drawn by an `ActionDiT`. Implements `types.WorldModel`.

Physical units come in and uint8 images go out; normalised units stay in `condition_vector`. The dream's target
pose is integrated by the same function and limits as the arm's, and the gripper command meets the same threshold.
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

from world_gymnast_ros.errors import BadAction, BadCheckpoint, BadConfig
from world_gymnast_ros.images import check_rgb, resize_rgb
from world_gymnast_ros.models.checkpoint import fill, read_config, save_model
from world_gymnast_ros.models.vision import _cpu_has_bf16_matrices
from world_gymnast_ros.models.world_models.action_dit import (
    NUMBERS,
    SILHOUETTE,
    ActionDiT,
    ActionDiTConfig,
    TemporalCache,
    moved,
)
from world_gymnast_ros.models.world_models.background import Background
from world_gymnast_ros.models.world_models.moving_background import (
    Moved,
    MovingBackground,
    load_moving_background,
    save_moving_background,
    under_tips,
)
from world_gymnast_ros.objects import ObjectDynamics, ObjectPaths
from world_gymnast_ros.robot.actions import (
    RobotLimits,
    StepLimits,
    Workspace,
    check_limits,
    clip_delta,
    gripper_is_open,
    integrate_states,
)
from world_gymnast_ros.robot.arm_silhouette import CAPSULE_DIM, CAPSULES, silhouette
from world_gymnast_ros.types import ACTION_DIM, F32, I64, U8, Start

LIMITS = StepLimits()


def condition_vector(config: ActionDiTConfig, deltas: NDArray[Any], before: NDArray[Any], after: NDArray[Any],
                     known: NDArray[Any] | bool, cameras: NDArray[Any] | None = None,
                     drawn_before: F32 | None = None) -> F32:
    """Return the condition float32 (..., C) of actions that lead from one target state to the next.

    Normalised action (7), normalised state after it (7), state-known flag (1); where the model knows a camera, the
    arm's silhouette before and after (72). `deltas`, `before`, `after` (..., 7) in physical units, not changed; `known`
    broadcasts against the leading axes, and where it is False the state reads zero and the silhouette is parked. The
    gripper of a command is made 0 or 1 by the arm's threshold. `cameras` (..., 12), broadcast likewise: those that the
    silhouette is drawn for where they are not the model's own (None, NaN), in clips of several set-ups. `drawn_before`
    (..., 36): the silhouette before, where it is at hand.
    """
    action = np.array(deltas, np.float32)
    action[..., 6] = gripper_is_open(action[..., 6])
    action[..., 6] -= 0.5
    action /= np.asarray(config.action_scale, np.float32)
    center, scale = np.asarray(config.state_center, np.float32), np.asarray(config.state_scale, np.float32)
    state = (np.asarray(after, np.float32) - center) / scale
    flag = np.broadcast_to(np.asarray(known, np.float32)[..., None], (*action.shape[:-1], 1))
    parts = [action, state * flag, flag]
    if config.camera is not None:
        states = [np.asarray(x, np.float32) for x in ((after,) if drawn_before is not None else (before, after))]
        both = np.stack(states, -2).reshape(-1, ACTION_DIM)
        drawn_for: NDArray[Any] = np.asarray(config.camera)
        if cameras is not None:
            own = np.where(np.isnan(cameras), drawn_for, cameras)
            drawn_for = np.repeat(np.broadcast_to(own, (*action.shape[:-1], len(drawn_for))).reshape(-1, 12),
                                  len(states), 0)
        seen = silhouette(both, np.repeat(flag.ravel() > 0.5, len(states)), drawn_for)
        parts += [] if drawn_before is None else [drawn_before]
        parts.append(seen.reshape(*action.shape[:-1], -1))
    return np.concatenate(parts, -1).astype(np.float32)


class FrameSampler:
    """Draw frames one after another for a batch of clips, each with its own start frame. Exact persistent cache."""

    def __init__(self, network: ActionDiT, first: Tensor, steps: int, generator: torch.Generator,
                 objects: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None, sparse: bool = True,
                 moving: MovingBackground | None = None) -> None:
        """Start at frames `first` float32 (G, H, W, 3), 0..1; `steps` denoising steps per frame.

        `objects` on the table there: places (G, N, 3) m, NaN where there is none, cameras (G, 12) that see them, and
        sizes (G, N, 2) m. `sparse`: compute the places that the arm or what it moves can touch; False: all. `moving`:
        moves the background as it has learned to, in the place of objects.
        """
        self.sparse = sparse
        self.network, self.steps, self.generator = network, steps, generator
        self.dtype = network.age_bias.dtype
        self.frame = first
        self.affine: Tensor | None = None
        self.background: Background | None = None
        self.moving = moving
        self._moved: Moved | None = None
        self._looked: tuple[Tensor, Tensor] | None = None  # at all places of the clean background
        self._objects = None if objects is None else tuple(
            torch.from_numpy(np.asarray(x, np.float32)).to(first.device) for x in objects)
        self.cache = TemporalCache(network.config.context_frames)
        self._begun, self._rows = len(first), torch.arange(len(first), device=first.device)

    @torch.inference_mode()
    def step(self, condition: Tensor, places_m: NDArray[Any] | None = None, states: Tensor | None = None,
             behind: Tensor | None = None) -> Tensor:
        """Draw the next frame (G, H, W, 3) float32, 0..1, under the condition float32 (G, C).

        `places_m` (G, N, 3): where the objects are then, as predicted; None: where they were. `states` (G, 2, 7),
        target states before and after, is what a moving background needs. `behind` (G, H, W, 3): the background after
        the action, where it is at hand.
        """
        net, c = self.network, self.network.config
        # Noise of all copies that began, so that what one copy sees does not hang on which others are finished.
        shape = (self._begun, 1, c.tokens, 3 * c.patch**2)
        noisy = (c.noise_scale * torch.randn(shape, generator=self.generator, device=self.frame.device))[self._rows]
        condition = condition[:, None].to(self.frame.device)
        background = self._begin(condition[:, 0])
        now_m = None if places_m is None else torch.from_numpy(np.asarray(places_m, np.float32)).to(self.frame.device)
        if behind is not None:
            behind = behind[:, None]
        elif self.moving is not None and states is not None:
            behind = self._move(background, condition[:, 0], states)
        else:
            behind = background.at(None if now_m is None else now_m[:, None])
        places = net.touched(self.frame, condition[:, 0], self.affine, behind[:, 0]) if self.sparse else None
        self.cache.begin(places, len(self.frame), c.tokens, self.frame.device)
        tokens = None if places is None else places.tokens
        if tokens is not None:
            noisy = noisy.gather(2, tokens[:, None, :, None].expand(-1, -1, -1, noisy.shape[-1]))
        change = self._denoise(net.windows(self.frame[:, None], tokens), net.windows(behind, tokens), noisy, condition,
                               tokens, self._look(behind, tokens))[:, 0]
        self.cache.commit()  # the keys of the last denoising pass stay: no extra pass on the clean frame
        change = c.change_gain * F.hardshrink(change, c.still_threshold)
        if places is not None:
            whole = change.new_zeros(len(change), c.tokens, change.shape[-1])
            index = places.tokens[..., None].expand_as(change)
            change = whole.scatter_(1, index, change * places.own[..., None])
        self.frame = (self.frame + net.image(change)).clamp_(0.0, 1.0)
        return self.frame

    def _begin(self, condition: Tensor) -> Background:
        """Return the background of the start frames: before the first action the silhouette, of `condition` (G, C), is
        theirs."""
        if self.background is None:
            self.affine = self.network.fit(self.frame, condition)
            self.background = self.network.background(self.frame, condition, self.affine, *(self._objects or ()))
        return self.background

    @torch.inference_mode()
    def backgrounds(self, conditions: Tensor, states: Tensor) -> Tensor:
        """Return the background alone, float32 (G, T+1, H, W, 3), as it moves under the conditions (G, T, C) of actions
        between target states (G, T+1, 7)."""
        background = self._begin(conditions[:, 0])
        moved_on = [self._move(background, conditions[:, t], states[:, t:t + 2]) for t in range(conditions.shape[1])]
        return torch.cat([background.at(None)[:, :1], *moved_on], 1)

    def _move(self, background: Background, condition: Tensor, states: Tensor) -> Tensor:
        """Return the background (G, 1, H, W, 3) after an action of `condition` (G, C) between `states` (G, 2, 7)."""
        assert self.moving is not None
        if self._moved is None:
            self._moved = self.moving.begin(background.at(None)[:, 0].permute(0, 3, 1, 2))
        capsules = condition[:, NUMBERS:].unflatten(-1, (2, CAPSULES, CAPSULE_DIM)).float()
        if self.affine is not None:
            capsules = moved(capsules.flatten(1, 2), self.affine).view_as(capsules)
        states = states.to(self.frame.device)
        camera = torch.tensor(self.network.config.camera, device=self.frame.device).expand(len(states), -1)
        ground = torch.stack([under_tips(camera, self.affine, states[:, i]) for i in (0, 1)], 1)
        self._moved = self.moving.step(self._moved, capsules, ground, states)
        return self._moved.now.permute(0, 2, 3, 1).unsqueeze(1)

    def _look(self, behind: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return what the network makes of the background at `tokens`, which is the same until an object moves; None
        then."""
        assert self.background is not None
        clean = self.background.at(None)
        if tokens is None or not torch.equal(behind, clean):
            return None
        if self._looked is None:
            self._looked = self.network.look(self.network.windows(clean).to(self.dtype))
        seen, embedded = (x.gather(2, tokens[:, None, :, None].expand(-1, -1, -1, x.shape[-1])) for x in self._looked)
        return seen, embedded

    def _denoise(self, previous: Tensor, behind: Tensor, noisy: Tensor, condition: Tensor, tokens: Tensor | None,
                 looked: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the clean change (G, 1, M, 3 patch^2) float32 at the places `tokens`."""
        previous, behind = previous.to(self.dtype), behind.to(self.dtype)
        for i in range(self.steps):
            s, s_next = 1.0 - i / self.steps, 1.0 - (i + 1) / self.steps
            level = torch.full((len(self.frame), 1), s, device=self.frame.device)
            change = self.network(previous, behind, noisy.to(self.dtype), level, condition, tokens=tokens,
                                  affine=self.affine, cache=self.cache, looked=looked).float()
            if s_next > 0.0:  # deterministic step: keep the noise that this prediction implies
                noisy = (1.0 - s_next) * change + (s_next / s) * (noisy - (1.0 - s) * change)
        return change

    def keep(self, copies: NDArray[np.int64]) -> None:
        """Go on with these copies alone, indices into the present ones."""
        rows = torch.from_numpy(np.ascontiguousarray(copies)).to(self.frame.device)
        self.frame, self._rows = self.frame[rows], self._rows[rows]
        self.affine = None if self.affine is None else self.affine[rows]
        self._objects = None if self._objects is None else tuple(x[rows] for x in self._objects)
        if self.background is not None:
            self.background.keep(rows)
        if self._moved is not None:
            self._moved.keep(rows)
        if self._looked is not None:
            self._looked = self._looked[0][rows], self._looked[1][rows]
        self.cache.keep(rows)


class ActionDiTRollouts:
    """A single-use batch of imagined continuations, each of its start frame. Implements `types.RolloutBatch`."""

    def __init__(self, sampler: FrameSampler, config: ActionDiTConfig, states: F32, known: NDArray[np.bool_],
                 objects: ObjectPaths | None = None) -> None:
        """`states` float32 (G, 7), target states at the start, read where `known` (G,); `objects` that the hand moves.
        """
        self._sampler, self._config, self._known, self._objects = sampler, config, known, objects
        self._states = np.where(known[:, None], states, np.float32(0.0)).astype(np.float32)
        low, high = config.workspace_low_m, config.workspace_high_m
        self._workspace = None if low is None or high is None else Workspace(low, high)
        self._drawn: F32 | None = None  # the silhouette as it is now (G, 36), where a camera is known

    @property
    def state(self) -> F32 | None:
        """Target states (G, 7) by now; None where none is known."""
        return self._states if self._known.any() else None

    def play(self, deltas: F32) -> U8:
        """Apply K actions per copy, float32 (G, K, 7), physical units; return frames uint8 (G, K, H, W, 3).

        Actions beyond the step limits are clipped as on the arm. BadAction on a wrong shape.
        """
        shape = np.shape(deltas)
        if len(shape) != 3 or shape != (len(self._states), shape[1], ACTION_DIM) or not shape[1]:
            raise BadAction(f"this dream takes actions of shape ({len(self._states)}, K, {ACTION_DIM}) with K at least "
                            f"1, got {shape}")
        return np.stack([self._step(deltas[:, t]) for t in range(deltas.shape[1])], 1)

    def _step(self, deltas: F32) -> U8:
        clipped = clip_delta(np.array(deltas, np.float32), LIMITS)
        clipped[:, 6] = gripper_is_open(clipped[:, 6])
        before = self._states
        after = np.where(self._known[:, None], integrate_states(before, clipped, LIMITS, self._workspace),
                         np.float32(0.0)).astype(np.float32)
        places_m = None if self._objects is None else self._objects.step(after)
        condition = condition_vector(self._config, clipped, before, after, self._known, drawn_before=self._drawn)
        self._states = after
        self._drawn = None if self._config.camera is None else condition[:, -SILHOUETTE // 2:]
        states = torch.from_numpy(np.stack([before, after], 1)) if self._known.all() else None
        return to_uint8(self._sampler.step(torch.from_numpy(condition), places_m, states))

    def keep(self, copies: I64) -> None:
        """Go on with these copies alone."""
        self._states, self._known = self._states[copies], self._known[copies]
        self._drawn = None if self._drawn is None else self._drawn[copies]
        if self._objects is not None:
            self._objects.keep(copies)
        self._sampler.keep(copies)


def to_uint8(frames: Tensor) -> U8:
    """Return images uint8 of float images 0..1."""
    out: U8 = frames.mul(255.0).round_().to(torch.uint8).cpu().numpy()
    return out


class ActionDiTWorld:
    """An action-conditioned video world model on an `ActionDiT`. Implements `types.WorldModel`."""

    stride = 1
    max_step = (LIMITS.max_step_m, LIMITS.max_step_rad)

    def __init__(self, network: ActionDiT, device: str = "cpu", dtype: torch.dtype | None = None,
                 objects: ObjectDynamics | None = None, moving: MovingBackground | None = None) -> None:
        """Wrap a network, in place. `dtype` None: bfloat16 where the device multiplies it in hardware.

        `moving`: moves the background as it has learned to where no `objects` are given.

        `objects`: finds objects in captured frames, so that those which the hand moves are drawn where it takes them.
        It also knows where the camera of the set-up is, which the arm's silhouette is then computed for.
        """
        self.objects = objects
        self.device = torch.device(device)
        self.moving = None if moving is None else moving.to(self.device).eval().requires_grad_(False)
        if dtype is None:
            fast = self.device.type == "cuda" or _cpu_has_bf16_matrices()
            dtype = torch.bfloat16 if fast else torch.float32
        self.config = network.config = seen_by(network.config, objects)
        self.network = network.to(self.device, dtype).eval().requires_grad_(False)
        self.name = self.config.name
        self.frame_size = (self.config.image_size, self.config.image_size)
        self.sampling_steps = self.config.sampling_steps

    def with_objects(self, objects: ObjectDynamics) -> ActionDiTWorld:
        """Return the same model with another source of objects: another camera, other objects found."""
        world = ActionDiTWorld(copy(self.network), str(self.device), next(self.network.parameters()).dtype, objects,
                               self.moving)
        world.max_step = self.max_step
        return world

    def limited(self, limits: RobotLimits) -> ActionDiTWorld:
        """Keep to the robot's limits; BadConfig where they are wider than what was trained on. Returns itself."""
        check_limits(self.name, limits.step)
        self.max_step = (limits.step.max_step_m, limits.step.max_step_rad)
        self.config = self.network.config = replace(self.config, workspace_low_m=limits.workspace.low_m,
                                                    workspace_high_m=limits.workspace.high_m)
        return self

    def seen_from(self, camera: tuple[float, ...]) -> None:
        """Draw the arm for this camera, 12 numbers of `arm_silhouette.projection`, where the model draws for one."""
        if self.config.camera is not None:
            self.config = self.network.config = replace(self.config, camera=camera)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu", dtype: torch.dtype | None = None,
                        objects: ObjectDynamics | None = None) -> ActionDiTWorld:
        """Load a checkpoint directory (config.json, model.safetensors); BadCheckpoint names the file and the remedy."""
        network, _ = load_network(Path(path))
        return cls(network, device, dtype, objects, load_moving_background(Path(path)))

    def save(self, directory: str | Path) -> str:
        """Write config.json, model.safetensors and the moving background, where there is one; return the SHA-256 of the
        weights.
        """
        save_moving_background(self.moving, Path(directory))
        return save_model(self.network, self.config.to_dict(), Path(directory))

    def begin(self, starts: Sequence[Start], seed: int) -> ActionDiTRollouts:
        """Begin one continuation of each start (its frame resized to `frame_size`); the same seed, the same frames.

        A start without a state goes on without one: the arm's silhouette is not computed for it.
        """
        if not len(starts):
            raise BadConfig("no start; a world model begins at one frame at least")
        frames = np.stack([resize_rgb(check_rgb(s.frame.rgb, "Frame.rgb"), self.frame_size) for s in starts])
        known = np.array([s.state is not None for s in starts])
        states = np.stack([np.zeros(ACTION_DIM, np.float32) if s.state is None else s.state for s in starts]
                          ).astype(np.float32)
        first = torch.from_numpy(frames).to(self.device).float().div_(255.0)
        found = None
        if self.objects is not None and self.config.plate and known.all():
            found = self.objects.begin([s.captured.rgb for s in starts], states)
        objects, seen = None, None
        if found is not None:
            objects, cameras = found
            seen = (objects.places_m, cameras, objects.sizes_m)
        sampler = FrameSampler(self.network, first, self.sampling_steps, torch.Generator(self.device).manual_seed(seed),
                               seen, moving=self.moving if self.objects is None and known.all() else None)
        return ActionDiTRollouts(sampler, self.config, states, known, objects)


def seen_by(config: ActionDiTConfig, objects: ObjectDynamics | None) -> ActionDiTConfig:
    """Return the settings with the camera that `objects` knows, where the model draws for one."""
    return config if objects is None or config.camera is None else replace(config, camera=objects.projection)


def load_network(directory: Path) -> tuple[ActionDiT, str]:
    """Load an `ActionDiT` and the SHA-256 of its weights; BadCheckpoint where the files do not describe one."""
    values = read_config(directory, ActionDiTConfig.model_type)
    try:
        network = ActionDiT(ActionDiTConfig.from_dict(values))
    except (TypeError, ValueError, ZeroDivisionError, BadConfig) as error:
        raise BadCheckpoint(f"{directory / 'config.json'} does not describe a world model ({error})") from error
    return network, fill(network, directory)
