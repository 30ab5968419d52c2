"""Train a world model's moving background: what the hand pushes, carries and drops, from frames, targets and poses.

It is rolled out over stretches of episodes with back-propagation through time. The target is the scene without the arm
where the episode holds it (`twin play contact_play` renders it), else the frame itself, of which the pixels under the
arm's silhouette are left out: so recordings of a real arm can teach it too. Pixels that move count most.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.read import read_episodes
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.loading.load import WORLD_MODEL, checkpoint_dir
from world_gymnast_ros.models.checkpoint import save_model
from world_gymnast_ros.models.world_models.action_dit import ActionDiT, moved, silhouette_at
from world_gymnast_ros.models.world_models.action_dit_world import condition_vector, load_network
from world_gymnast_ros.models.world_models.background import ARM_MARGIN, fill, grid_of
from world_gymnast_ros.models.world_models.moving_background import (
    FOLDER,
    MovingBackground,
    MovingBackgroundConfig,
    load_moving_background,
    under_tips,
)
from world_gymnast_ros.robot.arm_silhouette import GROUPS, silhouette
from world_gymnast_ros.training.progress import ProgressLine
from world_gymnast_ros.training.run_state import STATE, PlainRun
from world_gymnast_ros.types import U8

HORIZONS = ((0.25, 8), (0.6, 12), (1.0, 20))
"""Up to which share of the steps how many actions are rolled out: the way must be short before it can be long."""
ACTIONS_PER_STEP = 192
LEARNING_RATE, WARMUP_STEPS = 2e-3, 50
MOVED_WEIGHT, TOUCHED_WEIGHT = 15.0, 4.0
"""Extra loss weight where something has truly moved, and where the network says so."""
CHANGED, SEEN = 0.02, 0.06
"""Differences (0..1 grey) from which a pixel is another one, and from which it counts more."""
LIVELY = 0.8
"""Share of stretches that are drawn about a moment at which something moves."""


@dataclass(frozen=True)
class Stretches:
    """Episodes as tensors, E of them padded to T actions. `frames` uint8 (E, T+1, H, W, 3), without the arm where
    `bare`, else as recorded; `capsules` (E, T+1, 6, 6) as the world model fits them; `ground` (E, T+1, 2), u, v;
    `states` (E, T+1, 7); `length` (E,); `lively` bool (E, T), whether something moves after that action."""

    frames: Tensor
    capsules: Tensor
    ground: Tensor
    states: Tensor
    length: Tensor
    lively: Tensor
    bare: bool

    @classmethod
    def of(cls, episodes: Sequence[Episode], network: ActionDiT) -> Stretches:
        """Prepare episodes for a world model's `network`. EpisodeError where none is of use."""
        size = network.config.image_size
        usable = [e for e in episodes if e.states is not None and e.frames.shape[1:3] == (size, size)]
        if not usable:
            raise EpisodeError(f"no episode with target states and frames of {size}x{size}; recordings have them, "
                               "clips without states do not")
        bare = all(e.without_arm is not None for e in usable)
        longest = max(e.steps for e in usable)
        shown = [e.without_arm if bare and e.without_arm is not None else e.frames for e in usable]
        frames = torch.from_numpy(np.stack([_padded(f, longest + 1) for f in shown]))
        states = np.stack([_padded(np.asarray(e.states, np.float32), longest + 1) for e in usable])
        camera = network.config.camera
        assert camera is not None
        drawn = silhouette(states.reshape(-1, 7), np.ones(states[..., 0].size, bool), camera)
        first = torch.from_numpy(np.stack([e.frames[0] for e in usable])).float().div_(255.0)
        begin = states[:, 0]
        condition = condition_vector(network.config, np.zeros_like(begin), begin, begin, np.ones(len(usable), bool))
        affine = network.fit(first, torch.from_numpy(condition))
        capsules = torch.from_numpy(drawn).view(len(usable), -1, 6)
        if affine is not None:
            capsules = moved(capsules, affine)
        capsules = capsules.view(len(usable), longest + 1, 6, 6)
        cameras = torch.tensor(camera).expand(len(usable), -1)
        known = torch.from_numpy(states)
        ground = torch.stack([under_tips(cameras, affine, known[:, t]) for t in range(longest + 1)], 1)
        step = (frames[:, 1:].short() - frames[:, :-1].short()).abs().amax(-1) > 25
        if not bare:
            step &= _clear(capsules[:, 1:], size) & _clear(capsules[:, :-1], size)
        return cls(frames, capsules, ground, known, torch.tensor([e.steps for e in usable]), step.sum((2, 3)) > 2, bare)

    def draw(self, count: int, actions: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw stretches: frames float32 (B, K+1, 3, H, W), capsules, ground points and states, each (B, K+1, ...)."""
        def whole(high: int) -> int:
            return int(torch.randint(high, (1,), generator=generator))

        movers = self.lively.any(1).nonzero()[:, 0]
        rows, begins = [], []
        for _ in range(count):
            if len(movers) and float(torch.rand(1, generator=generator)) < LIVELY:
                row = int(movers[whole(len(movers))])
                moments = self.lively[row].nonzero()[:, 0]
                begin = int(moments[whole(len(moments))]) - whole(actions)
            else:
                row = whole(len(self.frames))
                begin = whole(int(self.length[row]))
            rows.append(row)
            begins.append(max(0, min(begin, int(self.length[row]) - actions)))
        at = (torch.tensor(begins)[:, None] + torch.arange(actions + 1)).clamp_(max=self.frames.shape[1] - 1)
        row_of = torch.tensor(rows)[:, None]
        frames = self.frames[row_of, at].float().div_(255.0).permute(0, 1, 4, 2, 3)
        return frames, self.capsules[row_of, at], self.ground[row_of, at], self.states[row_of, at]


def _padded(rows: NDArray[np.generic] | U8, length: int) -> NDArray[np.generic]:
    return np.concatenate([rows, np.repeat(rows[-1:], length - len(rows), 0)])


def _clear(capsules: Tensor, size: int) -> Tensor:
    """Return which pixels bool (..., H, W) the arm of capsules (..., 6, 6) leaves free."""
    flat = capsules.reshape(-1, 6, 6)
    free = []
    for some in flat.split(1024):
        grid = grid_of(size, size).reshape(1, -1, 2)
        far = silhouette_at(some[:, None], grid)[:, 0, 0, :, len(GROUPS):].amin(-1) / 2.5
        free.append(far > ARM_MARGIN)
    return torch.cat(free).view(*capsules.shape[:-2], size, size)


def rollout_loss(network: MovingBackground, stretch: tuple[Tensor, Tensor, Tensor, Tensor], bare: bool
                 ) -> tuple[Tensor, Tensor]:
    """Return the weighted error of the backgrounds along a stretch, and the last of them (B, 3, H, W)."""
    frames, capsules, ground, states = stretch
    size = frames.shape[-1]
    free = _clear(capsules, size).unsqueeze(2).float()
    clean = frames[:, 0] * free[:, 0] + (1.0 - free[:, 0]) * fill(frames[:, 0], free[:, 0])
    now, total = network.begin(clean), frames.new_zeros(())
    for k in range(frames.shape[1] - 1):
        now = network.step(now, capsules[:, k:k + 2], ground[:, k:k + 2], states[:, k:k + 2])
        other = ((frames[:, k + 1] - frames[:, 0]).abs().amax(1, keepdim=True) > CHANGED).float()
        target = frames[:, k + 1] * other + clean * (1.0 - other)
        weight = (1.0 + MOVED_WEIGHT * ((target - clean).abs().amax(1, keepdim=True) > SEEN)
                  + TOUCHED_WEIGHT * ((now.now.detach() - clean).abs().amax(1, keepdim=True) > SEEN))
        if not bare:
            weight = weight * free[:, k + 1] * free[:, 0]
        error = now.now - target
        total = total + (weight * (error.abs() + 2.0 * error.square())).mean()
    return 100.0 * total / (frames.shape[1] - 1), now.now


def train(network: MovingBackground, training: Stretches, steps: int, seed: int, state: Path) -> MovingBackground:
    """Train for `steps` steps, going on from the file `state` where it is; return the averaged network."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    both = torch.nn.ModuleDict({"network": network, "average": MovingBackground(network.config)})
    both["average"].load_state_dict(network.state_dict())
    run = PlainRun(state, both, optimiser, generator)
    line = ProgressLine("moving background", steps)
    for step in range(run.resume(), steps):
        share = step / steps
        actions = next(k for until, k in HORIZONS if share < until)
        scale = min(1.0, (step + 1) / WARMUP_STEPS) * max(
            0.02, 0.5 * (1.0 + math.cos(math.pi * max(0.0, share - 0.2) / 0.8)))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * scale
        stretch = training.draw(max(1, ACTIONS_PER_STEP // actions), actions, generator)
        loss, _ = rollout_loss(network, stretch, training.bare)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        keep = min(0.995, (step + 1) / (step + 20))
        with torch.no_grad():
            for mean, value in zip(both["average"].parameters(), network.parameters(), strict=True):
                mean.lerp_(value, 1.0 - keep)
        run.tell(step + 1)
        line.tell(step + 1, f"loss {float(loss.detach()):.2f}")
    average = both["average"]
    assert isinstance(average, MovingBackground)
    return average


def moved_error(network: MovingBackground, held_out: Stretches, actions: int, seed: int) -> tuple[float, float]:
    """Return the root mean square error, grey levels of 255, where something has moved `actions` actions on: of the
    network, and of a background that stands still."""
    stretch = held_out.draw(48, actions, torch.Generator().manual_seed(seed))
    frames, capsules = stretch[0], stretch[1]
    with torch.no_grad():
        _, last = rollout_loss(network, stretch, held_out.bare)
    free = _clear(capsules[:, [0, -1]], frames.shape[-1]).all(1, keepdim=True)
    there = ((frames[:, -1] - frames[:, 0]).abs().amax(1, keepdim=True) > SEEN) & (free | held_out.bare)
    if not bool(there.any()):
        return math.nan, math.nan
    share = there.float() / (3 * there.sum())
    return tuple(255.0 * float(((x - frames[:, -1]).square() * share).sum().sqrt())  # type: ignore[return-value]
                 for x in (last, frames[:, 0]))


def main(episodes: Sequence[Path], held_out: Sequence[Path], world_model: str, out: Path, steps: int, seed: int,
         threads: int) -> int:
    """Train for a world model (name or folder), and write the folder `out` as its `moving_background/`."""
    torch.set_num_threads(threads)
    where = checkpoint_dir(world_model, WORLD_MODEL)
    drawing, _ = load_network(where)
    drawing.eval()
    size = drawing.config.image_size
    if drawing.config.camera is None or not drawing.config.plate:
        raise EpisodeError(f"{where} draws no background for a known camera, so nothing can move in it; "
                           "name a world model that does, such as the shipped one")
    training = Stretches.of(read_episodes(episodes, size).episodes, drawing)
    torch.manual_seed(seed)
    c = drawing.config
    network = load_moving_background(where) or MovingBackground(MovingBackgroundConfig(
        image_size=size, camera=tuple(drawing.config.camera), state_center=c.state_center, state_scale=c.state_scale))
    print(f"{len(training.frames)} episodes {'without' if training.bare else 'with'} the arm, "
          f"{int(training.lively.any(1).sum())} in which something moves")
    average = train(network, training, steps, seed, out / "training" / STATE)
    if held_out:
        aside = Stretches.of(read_episodes(held_out, size).episodes, drawing)
        for actions in (12, 30):
            error, still = moved_error(average, aside, actions, seed)
            print(f"after {actions} actions, where something has moved: {error:.1f} grey levels (standing still "
                  f"{still:.1f})")
    save_model(average, average.config.to_dict(), out)
    print(f"wrote {out}; it belongs in the folder of the world model, as {FOLDER}/")
    return 0
