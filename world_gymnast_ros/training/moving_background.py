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
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.read import read_episodes
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.models.checkpoint import save_model
from world_gymnast_ros.models.world_models.action_dit import ActionDiT, from_arm, moved
from world_gymnast_ros.models.world_models.action_dit_world import condition_vector, load_network
from world_gymnast_ros.models.world_models.background import ARM_MARGIN, fill, grid_of
from world_gymnast_ros.models.world_models.moving_background import (
    FINGERS,
    FOLDER,
    MovingBackground,
    MovingBackgroundConfig,
    load_moving_background,
    under_tips,
)
from world_gymnast_ros.robot.arm_silhouette import silhouette
from world_gymnast_ros.training.progress import ProgressLine
from world_gymnast_ros.training.run_state import STATE, PlainRun
from world_gymnast_ros.types import U8

HORIZONS = ((0.15, 5), (0.5, 8), (1.0, 14))
"""Up to which share of the steps how many actions are rolled out: the way must be short before it can be long."""
ACTIONS_PER_STEP = 160
LEARNING_RATE, WARMUP_STEPS = 2e-3, 50
MOVED_WEIGHT = 10.0
"""Extra loss weight where something has moved, or the network says so."""
FARTHEST, UNLIKE, ENOUGH, NEARER = 8, 0.08, 0.3, 0.02
"""Of what moves: the farthest that is looked for, px; how it differs from the table; how much must be explained by a
shift (grey levels 0..1 summed over pixels), and how much each pixel of its length costs."""
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
    grid = grid_of(size, size).reshape(1, -1, 2)
    free = [from_arm(some, grid) > ARM_MARGIN for some in flat.split(1024)]
    return torch.cat(free).view(*capsules.shape[:-2], size, size)


def travelled(before: Tensor, after: Tensor, free: Tensor) -> Tensor:
    """Return how far, px, what moves between crops (B, S, S, 3), 0..1, has gone, float32 (B, 2); NaN where nothing has.

    By the whole shift that explains most of what has changed and is unlike the table (the crop's median), from `free`
    pixels bool (B, S, S) alone. So the shift is known from images only, and learned at once.
    """
    table = after.flatten(1, 2).median(1).values[:, None, None]
    stayed = (after - before).abs().amax(-1)
    counts = ((after - table).abs().amax(-1) > UNLIKE) & (stayed > SEEN) & free
    best, found = before.new_full((len(before),), ENOUGH), before.new_full((len(before), 2), math.nan)
    padded = F.pad(before.permute(0, 3, 1, 2), (FARTHEST,) * 4, value=-1.0)
    seen, side = after.permute(0, 3, 1, 2), after.shape[1]
    for dy in range(-FARTHEST, FARTHEST + 1):
        for dx in range(-FARTHEST, FARTHEST + 1):
            came = padded[:, :, FARTHEST - dy:FARTHEST - dy + side, FARTHEST - dx:FARTHEST - dx + side]
            score = ((stayed - (seen - came).abs().amax(1)) * counts).sum((1, 2)) - NEARER * math.hypot(dx, dy)
            better = (score > best) & (dx != 0 or dy != 0)
            best = torch.where(better, score, best)
            found[better] = found.new_tensor([float(dx), float(dy)])
    return found


def rollout_loss(network: MovingBackground, stretch: tuple[Tensor, Tensor, Tensor, Tensor], bare: bool
                 ) -> tuple[Tensor, Tensor]:
    """Return the weighted error along a stretch, and the last background (B, 3, H, W).

    Of the mixture in each crop, of the shift against `travelled`, and of the choice of each pixel, whether it fits the
    next frame better where it is or gone along.
    """
    frames, capsules, ground, states = stretch
    size, side = frames.shape[-1], network.config.crop
    free = _clear(capsules, size)
    begin_free = free[:, 0].unsqueeze(1).float()
    clean = frames[:, 0] * begin_free + (1.0 - begin_free) * fill(frames[:, 0], begin_free)
    now, total = network.begin(clean), frames.new_zeros(())
    line, clip = torch.arange(side), torch.arange(len(frames))[:, None, None]
    for k in range(frames.shape[1] - 1):
        was = now.now
        now = network.step(now, capsules[:, k:k + 2], ground[:, k:k + 2], states[:, k:k + 2])
        assert now.soft is not None and now.corner is not None and now.logits is not None and now.shifts is not None
        y, x = (now.corner[:, 1, None] + line)[:, :, None], (now.corner[:, 0, None] + line)[:, None]

        def cut(image: Tensor, y: Tensor = y, x: Tensor = x) -> Tensor:
            return image.permute(0, 2, 3, 1)[clip, y, x]

        other = ((frames[:, k + 1] - frames[:, 0]).abs().amax(1, keepdim=True) > CHANGED).float()
        target = frames[:, k + 1] * other + clean * (1.0 - other)
        known = torch.ones_like(free[:, 0])[clip, y, x] if bare else (free[:, 0] & free[:, k + 1])[clip, y, x]
        both = known if bare else known & free[:, k][clip, y, x]
        aim, old, still, drawn = cut(target), cut(was), cut(clean), cut(now.now)
        counts = ((aim - still).abs().amax(-1) > SEEN) | ((old - aim).abs().amax(-1) > SEEN)
        weight = known * (0.3 + MOVED_WEIGHT * (counts | ((drawn - still).abs().amax(-1) > SEEN)))
        error = (now.soft.permute(0, 2, 3, 1) - aim) * known.unsqueeze(-1)
        wide = F.avg_pool2d(error.permute(0, 3, 1, 2), 4, 2)
        total = total + (weight.unsqueeze(-1) * (error.square() + 1e-4).sqrt()).mean()
        total = total + 10.0 * (wide.square() + 1e-5).sqrt().mean()

        hand = (capsules[:, k + 1, FINGERS, 3:5].mean(1) - capsules[:, k, FINGERS, 3:5].mean(1)) * (size / 2)
        shift = travelled(cut(frames[:, k]), cut(frames[:, k + 1]), both)
        moves = shift.isfinite().all(1)
        gone = torch.where(moves[:, None], shift, hand)
        there = torch.stack(torch.broadcast_tensors(x, y), -1) + gone[:, None, None]
        along = F.grid_sample(target, (there + 0.5) * (2.0 / size) - 1.0, padding_mode="border", align_corners=False)
        stays, goes = ((old - p).abs().amax(-1).sub(0.03).clamp_min(0.0) for p in (aim, along.permute(0, 2, 3, 1)))
        sure = (stays - goes).abs() * (moves | (hand.norm(dim=1) > 0.3))[:, None, None] + 0.004
        choice = F.binary_cross_entropy_with_logits(now.logits[:, 1] - now.logits[:, 0], (stays - goes > 0.02).float(),
                                                    reduction="none")
        total = total + 20.0 * (sure * both * choice).mean()
        wrong = ((now.shifts[:, 0] - gone).abs() - 0.3).clamp_min(0.0).sum(1)
        total = total + 0.05 * (wrong * moves).mean()
    return total / (frames.shape[1] - 1), now.now


def train(network: MovingBackground, training: Stretches, steps: int, seed: int, state: Path) -> MovingBackground:
    """Train for `steps` steps, going on from the file `state` where it is; return the averaged network."""
    generator = torch.Generator().manual_seed(seed)
    network.train()
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
    average.eval()
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


def main(episodes: Sequence[Path], held_out: Sequence[Path], world_model: Path, out: Path, steps: int, seed: int,
         threads: int) -> int:
    """Train for the world model in a folder, and write the folder `out` as its `moving_background/`."""
    torch.set_num_threads(threads)
    drawing, _ = load_network(world_model)
    drawing.eval()
    size = drawing.config.image_size
    if drawing.config.camera is None or not drawing.config.plate:
        raise EpisodeError(f"{world_model} draws no background for a known camera, so nothing can move in it; "
                           "name a world model that does, such as the shipped one")
    training = Stretches.of(read_episodes(episodes, size).episodes, drawing)
    torch.manual_seed(seed)
    c = drawing.config
    network = load_moving_background(world_model) or MovingBackground(MovingBackgroundConfig(
        image_size=size, state_center=c.state_center, state_scale=c.state_scale))
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
