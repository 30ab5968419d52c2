"""Play data: a task moved by a scripted player who wanders and pushes the block about, half of the time to the mark."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.first_order.task import MakeTask, Task, View
from world_gymnast_ros.models.checkpoint import read_tensors, save_tensors
from world_gymnast_ros.types import F64

EPISODES_PER_FILE = 25
STEPS = 50
HELD_OUT_EPISODES = 25
ARRIVED, ASIDE, BEHIND = 25.0 / 60.0, 50.0 / 60.0, (80.0 / 60.0, 130.0 / 60.0)
"""In reaches: how near a place is reached, how far off the block's middle is aimed, how far behind it a push starts."""


class Player:
    """Moves by intents of a few steps: wander, go beside the block, or push it. Not an expert: it never turns the block
    on purpose and pushes to the mark only half of the time."""

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self.task, self.rng, self.left = task, rng, 0
        self.target = self.direction = np.zeros(2)
        self.pushing = False

    def act(self, view: View) -> F64:
        """Return an action (2,) in -1..1."""
        reach = self.task.reach
        if self.left == 0:
            self._choose(view)
        self.left -= 1
        if self.pushing:
            self.target = view.hand + reach * self.direction
        elif np.linalg.norm(self.target - view.hand) < ARRIVED * reach:
            self.left = 0
        wanted = (self.target - view.hand) / reach
        wanted = wanted / max(1.0, float(np.linalg.norm(wanted)))
        return np.clip(wanted + 0.25 * self.rng.standard_normal(2), -1.0, 1.0)

    def _choose(self, view: View) -> None:
        rng, reach = self.rng, self.task.reach
        if not self.pushing and np.any(self.direction):  # beside the block: now push
            self.pushing, self.left = True, int(rng.integers(3, 8))
            return
        self.pushing, self.left = False, 8
        self.direction = np.zeros(2)
        if rng.random() < 0.2:
            self.target = rng.uniform(self.task.low, self.task.high)
            return
        aim = view.block + reach * rng.uniform(-ASIDE, ASIDE, 2)
        angle = rng.uniform(-np.pi, np.pi)
        if rng.random() < 0.5:
            to_goal = self.task.goal - aim
            angle = np.arctan2(to_goal[1], to_goal[0]) + 0.3 * rng.standard_normal()
        self.direction = np.array([np.cos(angle), np.sin(angle)])
        self.target = np.clip(aim - reach * rng.uniform(*BEHIND) * self.direction, self.task.low, self.task.high)


@dataclass(frozen=True)
class Play:
    """Episodes of one length: images uint8 (E, T + 1, S, S, 3), actions (E, T, A), rewards (E, T + 1), and what the
    simulator knows of each image, (E, T + 1, L) (`View.labels`).

    Labels train the encoder. No policy and no world model sees them, and nothing reads them after training.
    """

    images: Tensor
    actions: Tensor
    rewards: Tensor
    labels: Tensor

    @property
    def steps(self) -> int:
        """Number of recorded actions."""
        return int(self.actions.shape[0] * self.actions.shape[1])

    @property
    def held_out(self) -> int:
        """Number of the last episodes that nothing is trained on."""
        return max(1, min(HELD_OUT_EPISODES, int(self.images.shape[0]) // 5))


def record(make: MakeTask, first_seed: int, episodes: int, steps: int) -> dict[str, Tensor]:
    """Play `episodes` episodes from consecutive seeds; return the tensors of a `Play` by name."""
    task = make()
    side = task.side_px
    images = np.zeros((episodes, steps + 1, side, side, 3), np.uint8)
    actions, rewards = np.zeros((episodes, steps, 2), np.float32), np.zeros((episodes, steps + 1), np.float32)
    labels = np.zeros((episodes, steps + 1, task.labels), np.float32)
    for e in range(episodes):
        player = Player(task, np.random.default_rng(first_seed + e))
        view = task.reset(first_seed + e)
        for t in range(steps + 1):
            images[e, t], rewards[e, t], labels[e, t] = view.image, view.reward, view.labels
            if t < steps:
                actions[e, t] = player.act(view)
                view = task.step(actions[e, t].astype(np.float64))
    return {"images": torch.from_numpy(images), "actions": torch.from_numpy(actions),
            "rewards": torch.from_numpy(rewards), "labels": torch.from_numpy(labels)}


def collect(make: MakeTask, folder: Path, first_seed: int, episodes: int, steps: int = STEPS) -> None:
    """Write play data as files of EPISODES_PER_FILE episodes; files that are there are kept, so a stopped run goes on.

    A file is named by its first seed and its number of steps: a run with other seeds adds other files.
    """
    for start in tqdm(range(0, episodes, EPISODES_PER_FILE), desc="play", unit="file"):
        count = min(EPISODES_PER_FILE, episodes - start)
        path = folder / f"play-{first_seed + start:07d}-{count}x{steps}.safetensors"
        if not path.is_file():
            save_tensors(record(make, first_seed + start, count, steps), path)


def read(folder: Path) -> Play:
    """Return all play data of a folder. BadCheckpoint where there is none, or lengths differ."""
    paths = sorted(folder.glob("play-*.safetensors"))
    if not paths:
        raise BadCheckpoint(f"{folder} holds no play data (play-*.safetensors); record some with "
                            "`world-gymnast fog TASK data`")
    parts = [read_tensors(path) for path in paths]
    lengths = sorted({int(part["actions"].shape[1]) for part in parts})
    if len(lengths) > 1:
        raise BadCheckpoint(f"{folder} holds episodes of {lengths} steps; use one folder for each length")
    whole = {name: torch.cat([part[name] for part in parts]) for name in ("images", "actions", "rewards", "labels")}
    return Play(whole["images"], whole["actions"], whole["rewards"], whole["labels"])
