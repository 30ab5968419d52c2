"""Small numpy stand-ins for policy, world model, judge and learner that really work, for tests and dry runs.

The world is a dot on a 32 x 32 image, moved by the xy of the action. The policy holds one table of categorical
logits, so its log-probabilities are exact and it can truly learn.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import AdapterMismatch, BadAction, BadConfig, BadFrame, BadInstruction
from world_gymnast_ros.images import check_rgb, resize_rgb
from world_gymnast_ros.types import (
    ACTION_DIM,
    F32,
    I64,
    U8,
    ActionChunk,
    AdapterRef,
    Frame,
    Judgement,
    RolloutFacts,
    SampledChunks,
    Start,
)

SIZE = 32
"""Image height and width in pixels; one pixel is 1 cm."""
PIXEL_M = 0.01
BINS = 7
STEP_M = 0.03
GOALS = {"go left": (6, 16), "go right": (26, 16), "go up": (16, 6)}
"""Instruction -> goal pixel (x, y)."""


def draw_dot(x_px: NDArray[np.float64], y_px: NDArray[np.float64]) -> U8:
    """Draw red dots at pixel positions (G,), (G,) on a grey table; return uint8 (G, 32, 32, 3)."""
    grid = np.arange(SIZE)
    across, down = np.exp(-((grid - x_px[:, None]) ** 2) / 4.0), np.exp(-((grid - y_px[:, None]) ** 2) / 4.0)
    ink = (down[:, :, None] * across[:, None, :])[..., None]
    table = np.full((SIZE, SIZE, 3), 110.0)
    table[::4] += 30.0  # stripes: an image with edges, so that blur can be told
    return np.asarray(table * (1 - ink) + np.array([255.0, 0.0, 0.0]) * ink, np.uint8)


def find_dots(frames: U8) -> NDArray[np.float64]:
    """Return the centroid (..., 2), pixels x y, of what is red in frames uint8 (..., 32, 32, 3)."""
    red = np.clip(frames[..., 0].astype(np.int16) - frames[..., 1] - 60, 0, None) + 1e-9
    grid = np.arange(frames.shape[-2])
    total = red.sum((-1, -2))
    return np.stack([(red * grid).sum((-1, -2)) / total, (red * grid[:, None]).sum((-1, -2)) / total], -1)


def start_frame(x_px: float = 16.0, y_px: float = 16.0) -> Frame:
    """Return a captured frame with the dot at a pixel."""
    return Frame(draw_dot(np.array([x_px]), np.array([y_px]))[0], stamp_ns=0)


class FakeWorldModel:
    """A point mass with seeded noise."""

    name = "fake-point-mass"
    frame_size = (SIZE, SIZE)
    stride = 1
    max_step = (0.05, 0.25)

    def __init__(self, noise_px: float = 0.3, fail_after_begins: int | None = None) -> None:
        self.noise_px, self.fail_after_begins, self.begins = noise_px, fail_after_begins, 0

    def begin(self, starts: Sequence[Start], seed: int) -> FakeRollouts:
        self.begins += 1
        if self.fail_after_begins is not None and self.begins > self.fail_after_begins:
            raise RuntimeError("the world model ran out of memory (a fault put in on purpose)")
        if not len(starts):
            raise BadConfig("no start; a world model begins at one frame at least")
        return FakeRollouts(np.stack([find_dots(resize_rgb(s.frame.rgb, self.frame_size)) for s in starts]),
                         self.noise_px, seed)


class FakeRollouts:
    """The running dream of a FakeWorldModel."""

    def __init__(self, xy_px: NDArray[np.float64], noise_px: float, seed: int) -> None:
        self.xy_px, self.noise_px, self.rng = xy_px, noise_px, np.random.default_rng(seed)
        self.begun, self.rows = len(xy_px), np.arange(len(xy_px))

    def play(self, deltas: F32) -> U8:
        shape = np.shape(deltas)
        if len(shape) != 3 or shape[0] != len(self.rows) or not shape[1] or shape[2] != ACTION_DIM \
                or not np.isfinite(deltas).all():
            raise BadAction(f"finite actions of shape ({len(self.rows)}, K, {ACTION_DIM}) are needed, got {shape}")
        frames = []
        for t in range(deltas.shape[1]):
            noise = self.rng.normal(0, self.noise_px, (self.begun, 2))[self.rows]
            self.xy_px = np.clip(self.xy_px + deltas[:, t, :2].astype(np.float64) / PIXEL_M + noise, 0, SIZE - 1)
            frames.append(draw_dot(self.xy_px[:, 0], self.xy_px[:, 1]))
        return np.stack(frames, 1)

    def keep(self, copies: I64) -> None:
        self.xy_px, self.rows = self.xy_px[copies], self.rows[copies]


class FakeJudge:
    """Scores how near the dot came to the goal of the instruction; above 0.5 within about 4 pixels."""

    name = "fake-judge"

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        if check_rgb(frames).ndim != 5:
            raise BadFrame(f"rollouts uint8 (G, T+1, H, W, 3) are needed, got {frames.shape}")
        distance = np.linalg.norm(find_dots(frames) - np.array(GOALS[_known(instruction)]), axis=-1)
        per_frame = np.exp(-((distance / 4.8) ** 2)).astype(np.float32)
        out = []
        for scores in per_frame:
            done = np.flatnonzero(scores > 0.5)
            out.append(Judgement(float(scores.max()), int(done[0]) if done.size else None, frame_scores=scores))
        return out


class FakePolicy:
    """Independent categorical actions per instruction: logits (K, 7, BINS), one table per instruction."""

    name = "fake-policy"

    def __init__(self, chunk_size: int = 4) -> None:
        self.chunk_size, self.adapter = chunk_size, "base"
        self.tables: dict[str, NDArray[np.float64]] = {
            goal: np.zeros((chunk_size, ACTION_DIM, BINS)) for goal in GOALS}

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        return ActionChunk(decode(self.tables[_known(instruction)].argmax(-1)), frame.stamp_ns, self.adapter)

    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        logp = log_softmax(self.tables[_known(instruction)] / max(temperature, 1e-3))
        u = np.random.default_rng(seed).random((len(frames), *logp.shape[:2], 1))
        tokens = np.minimum((np.exp(logp).cumsum(-1)[None] < u).sum(-1), BINS - 1)
        chosen = np.take_along_axis(np.broadcast_to(logp, (len(frames), *logp.shape)), tokens[..., None], -1)[..., 0]
        return SampledChunks(decode(tokens), tokens.astype(np.int64), chosen.astype(np.float32), self.adapter)

    def load_adapter(self, ref: AdapterRef | None) -> None:
        if ref is not None and ref.base_policy != self.name:
            raise AdapterMismatch(f"adapter {ref.name} is for {ref.base_policy}, this policy is {self.name}")
        self.adapter = "base" if ref is None else ref.name


class FakeLearner:
    """Plain policy-gradient ascent on the tables of a FakePolicy. Implements `adapt.Learner`."""

    name = "policy gradient on tables"

    def __init__(self, policy: FakePolicy, learning_rate: float = 3.0) -> None:
        self.policy, self.learning_rate = policy, learning_rate
        self.before: dict[str, NDArray[np.float64]] | None = None

    def begin(self) -> None:
        self.before = self.snapshot()

    def update(self, batch: Sequence[Any], temperature: float, seed: int, replay: Sequence[Any] = ()
               ) -> dict[str, float]:
        size = 0.0
        for group, advantages in batch:
            table = self.policy.tables[group.instruction]
            p = np.exp(log_softmax(table / temperature))
            gradient = np.zeros_like(table)
            for n, chunk in enumerate(group.chunks):
                weight = advantages.values * group.valid[:, n]
                onehot = np.eye(BINS)[chunk.tokens]
                gradient += (weight[:, None, None, None] * (onehot - p)).mean(0) / temperature
            table += self.learning_rate * gradient
            size += float(np.abs(gradient).max())
        return {"loss": 0.0, "grad_norm": size}

    def snapshot(self) -> dict[str, NDArray[np.float64]]:
        return {key: table.copy() for key, table in self.policy.tables.items()}

    def restore(self, weights: Mapping[str, NDArray[np.float64]]) -> None:
        self.policy.tables = {key: table.copy() for key, table in weights.items()}

    def save(self, directory: Path) -> None:
        from safetensors.numpy import save_file
        save_file({key.replace(" ", "_"): t for key, t in self.policy.tables.items()},
                  directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps({"kind": "fake"}))

    def end(self) -> None:
        if self.before is not None:
            self.restore(self.before)
        self.before = None


def _known(instruction: str) -> str:
    if instruction not in GOALS:
        raise BadInstruction(f"'{instruction}' is no goal of the fakes; those are {', '.join(GOALS)}")
    return instruction


def decode(tokens: NDArray[np.int64]) -> F32:
    """Turn bins (..., K, 7) into deltas: xy evenly spaced over +-3 cm, the rest zero, gripper open."""
    deltas = np.zeros(tokens.shape, np.float32)
    deltas[..., :2] = (tokens[..., :2] / (BINS - 1) * 2 - 1) * STEP_M
    deltas[..., 6] = 1.0
    return deltas


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log-probabilities over the last axis."""
    z = logits - logits.max(-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(-1, keepdims=True)))
