"""`Reflector`: the learned judge. Per frame, how likely the task is done; it also says when a rollout may stop.

The idea of World-Env's instant reflector (arXiv 2509.24948): a vision-language trunk with a light head on top, trained
with cross-entropy on per-frame success. The trunk is that of a small policy, taught to localise on all play frames and
kept in the checkpoint; or any frozen image-text model (`frozen_trunk.py`), which the checkpoint names. Frame t is
judged from the features of the first frame, frame t - 1 and frame t, each read once.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from world_gymnast_ros.errors import BadCheckpoint, BadFrame, BadInstruction
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.instructions import task_of
from world_gymnast_ros.models.checkpoint import fill, read_config, save_model
from world_gymnast_ros.models.judges.feature_cache import FeatureCache
from world_gymnast_ros.models.judges.frozen_trunk import FrozenTrunk
from world_gymnast_ros.models.policies.vla_network import PLACES, OpenVLAConfig, OpenVLAForActionPrediction
from world_gymnast_ros.models.policies.words import WordReader
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.types import F32, U8, Judgement, RolloutFacts

BATCH = 64
"""Frames per forward: measured best on a CPU (larger batches fall out of its caches)."""


class ReflectorConfig(PretrainedConfig):
    """`trunk` is an OpenVLAConfig as a dict; empty where `frozen_trunk` names an image-text model (folder or hub name),
    with `frozen_files` the SHA-256 of its weights, `feature_dim` its width and `frame_px` the frames' size. Calibrated
    logit = `logit_scale` * logit + `logit_offset`, or in place of the latter what `task_offsets` holds for the task;
    `instructions`: the sentences of each task, "*" for any words."""

    model_type = "world_gymnast_reflector"

    name: str = "reflector-tiny"
    trunk: dict[str, Any] = field(default_factory=dict)
    frozen_trunk: str = ""
    frozen_files: dict[str, str] = field(default_factory=dict)
    feature_dim: int = 0
    frame_px: int = 224
    fusion_dim: int = 256
    heads: int = 3
    logit_scale: float = 1.0
    logit_offset: float = 0.0
    task_offsets: dict[str, float] = field(default_factory=dict)
    done_threshold: float = 0.5
    instructions: dict[str, list[str]] = field(default_factory=dict)

    def calibrate(self, scale: float, offset: float) -> None:
        """Set one calibration for all tasks."""
        self.logit_scale, self.logit_offset, self.task_offsets = scale, offset, {}

    def trunk_config(self) -> OpenVLAConfig:
        """Return the trunk's config: no language layers above the readout."""
        config = OpenVLAConfig(**self.trunk)
        config.text_config = {**config.text_config, "num_hidden_layers": config.aux_layer}
        return config


class ReflectorNetwork(PreTrainedModel):
    """Trunk (where it is not a frozen model's), and `heads` small networks that vote."""

    config_class = ReflectorConfig
    base_model_prefix = "reflector"
    main_input_name = "frames"

    def __init__(self, config: ReflectorConfig) -> None:
        super().__init__(config)
        dim = features = config.feature_dim
        if not config.frozen_trunk:
            self.trunk = OpenVLAForActionPrediction(config.trunk_config())
            self.trunk.keep_trunk_only()
            dim = self.trunk.config.llama().hidden_size
            features = dim + 3 * len(PLACES)
        width = config.fusion_dim
        self.norm = nn.LayerNorm(dim)
        self.fusion = nn.ModuleList(
            nn.Sequential(nn.Linear(4 * features, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
                          nn.Linear(width, 2)) for _ in range(config.heads))

    def fuse(self, first: Tensor, before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        """Return success logits (B, heads) and progress (B, heads) from three features (B, d + 9) each."""
        x = torch.cat([first, now, now - first, 3.0 * (now - before)], dim=-1)
        out = torch.stack([head(x).float() for head in self.fusion], dim=1)
        return out[..., 0], torch.sigmoid(out[..., 1])

    def features(self, tokens: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, d + 9) and places (B, 9) of seen images (`trunk.see`) under instructions."""
        readout, places = self.trunk.read(tokens, ids)
        return torch.cat([self.norm(readout), places], dim=-1), places

    def read_frames(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Return features (B, d + 9) of frames uint8 (B, H, W, 3) under ids (B, L)."""
        return torch.cat([self.features(self.trunk.see(frames[i:i + BATCH]), ids[i:i + BATCH])[0]
                          for i in range(0, len(frames), BATCH)])

    def forward(self, now: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and progress (G, T+1, heads) of rollouts whose frames have features (G, T+1, d + 9), or the
        last hidden states (G, T+1, feature_dim) of a frozen trunk."""
        g, n = now.shape[:2]
        if self.config.frozen_trunk:
            now = self.norm(now)
        before = torch.cat([now[:, :1], now[:, :-1]], dim=1)
        logits, progress = self.fuse(*(x.flatten(0, 1) for x in (now[:, :1].expand_as(now), before, now)))
        return logits.view(g, n, -1), progress.view(g, n, -1)


class Reflector:
    """The judge that adaptation uses. Implements `types.Judge`."""

    def __init__(self, network: ReflectorNetwork, sha256: str, device: str = "cpu", frozen: FrozenTrunk | None = None
                 ) -> None:
        self.config: ReflectorConfig = network.config
        self.frozen = frozen
        self.device = torch.device(device)
        self.model = network.to(self.device).eval().requires_grad_(False)
        self.name: str = self.config.name
        self.sha256 = sha256
        if frozen is None:
            trunk = self.model.trunk.config
            self.reader = WordReader(trunk.words, trunk.max_words)
        self.frame_px: int = self.config.frame_px if frozen is not None else trunk.image_size
        self.cache = FeatureCache()
        self._weights = self._versions()

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Reflector:
        """Load a checkpoint directory; BadCheckpoint names the file and the remedy. `dtype`: of a frozen trunk."""
        directory = Path(path)
        values = read_config(directory, ReflectorConfig.model_type)
        try:
            network = ReflectorNetwork(ReflectorConfig(**values))
        except (TypeError, ValueError, KeyError) as error:
            raise BadCheckpoint(f"{directory / 'config.json'} does not describe a judge ({error})") from error
        config, frozen = network.config, None
        if config.frozen_trunk:
            beside = directory / config.frozen_trunk
            frozen = FrozenTrunk.from_pretrained(beside if beside.is_dir() else config.frozen_trunk, device, dtype,
                                                 config.frozen_files)
        return cls(network, fill(network, directory), device, frozen)

    @classmethod
    def on_frozen(cls, frozen: FrozenTrunk, heads: int = 3, name: str = "") -> Reflector:
        """Start an untrained judge on a frozen image-text model."""
        config = ReflectorConfig(name=name or f"reflector-{Path(frozen.name).name}", frozen_trunk=frozen.name,
                                 frozen_files=frozen.files, feature_dim=frozen.dim, heads=heads)
        return cls(ReflectorNetwork(config), sha256="", device=str(frozen.device), frozen=frozen)

    @classmethod
    def from_policy(cls, network: OpenVLAForActionPrediction, heads: int = 3) -> Reflector:
        """Start an untrained judge with a copy of a policy's trunk."""
        judge = ReflectorNetwork(ReflectorConfig(trunk=network.config.to_dict(), heads=heads))
        wanted, given = judge.trunk.state_dict(), network.state_dict()
        judge.trunk.load_state_dict({name: given[name].clone() for name in wanted})
        return cls(judge, sha256="")

    def save(self, directory: str | Path) -> str:
        """Write config.json and model.safetensors; return the weights' SHA-256."""
        self.sha256 = save_model(self.model, self.config.to_dict(), Path(directory))
        return self.sha256

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of the frames that it sees, px."""
        return self.frame_px, self.frame_px

    @property
    def threshold(self) -> float:
        """Above this score it predicts success."""
        return self.config.done_threshold

    @property
    def tasks(self) -> Mapping[str, Sequence[str]]:
        """The sentences of each task that it knows by a name."""
        return self.config.instructions

    def pick(self, rollouts: U8) -> U8:
        """Return the frames that it looks at: all of them."""
        return rollouts

    def calibrate(self, scale: float, offset: float) -> None:
        """Set one calibration for all tasks."""
        self.config.calibrate(scale, offset)

    def calibrate_task(self, task: str, scale: float, offset: float) -> None:
        """Let it predict success in one task from the logit on at which this calibration does; others stay as they
        are, and so does the scale, which all share."""
        threshold = self.config.done_threshold
        logit = (math.log(threshold / (1.0 - threshold)) - offset) / scale
        self.config.task_offsets = {**self.config.task_offsets,
                                    task: offset_at(logit, self.config.logit_scale, threshold)}

    def success_logits(self, frames: U8, instruction: str) -> F32:
        """Return uncalibrated logits float32 (G,): of the best two frames in a row."""
        return np.array([best_logit(row) for row in self.raw(frames, instruction)[0]], np.float32)

    def raw(self, frames: U8, instructions: str | Sequence[str]) -> tuple[F32, F32]:
        """Return uncalibrated logits and progress, float32 (G, T+1, heads), under one instruction or one for each."""
        features = self.seen(frames, instructions)
        with torch.inference_mode(), fast_math(self.device):
            logits, progress = self.model(features.to(self.device))
        return logits.float().cpu().numpy(), progress.float().cpu().numpy()

    def seen(self, frames: U8, instructions: str | Sequence[str]) -> Tensor:
        """Return features (G, T+1, F) of rollouts uint8 (G, T+1, H, W, 3); frames that were read before are not read
        again, which is most of a rollout that is judged as it grows."""
        if frames.ndim != 5 or frames.dtype != np.uint8 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise BadFrame(f"rollouts must be uint8 (G, T+1, H, W, 3), got {frames.dtype} {frames.shape}")
        if frames.shape[2:4] != self.frame_size:
            frames = resize_rgb(frames, self.frame_size)
        g, n = frames.shape[:2]
        texts = [instructions] * g if isinstance(instructions, str) else list(instructions)
        if self._versions() != self._weights:
            self.cache.clear()
            self._weights = self._versions()
        with torch.inference_mode(), fast_math(self.device):
            flat = self.cache.features(frames.reshape(g * n, *frames.shape[2:]), [t for t in texts for _ in range(n)],
                                       self.read)
        return flat.view(g, n, -1)

    def read(self, frames: U8, texts: Sequence[str]) -> Tensor:
        """Return features (B, F) of frames uint8 (B, frame_px, frame_px, 3), each under an instruction of its own."""
        if self.frozen is not None:
            return self.frozen.read(frames, texts)
        ids = torch.tensor(self.reader.batch(texts), device=self.device)
        return self.model.read_frames(torch.from_numpy(np.ascontiguousarray(frames)).to(self.device), ids)

    def _versions(self) -> int:
        """Return a number that grows when a weight that reads frames is written in place: by an optimiser, or by
        loading others. A frozen trunk's never is."""
        parts = () if self.frozen is not None else (self.model.trunk, self.model.norm)
        return sum(p._version for part in parts for p in part.parameters())

    def probability(self, logits: NDArray[np.floating[Any]], task: str = "") -> F32:
        """Return calibrated probabilities of uncalibrated logits, for a task by name."""
        offset = self.config.task_offsets.get(task, self.config.logit_offset)
        x = self.config.logit_scale * logits.astype(np.float64) + offset
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30, 30))), np.float32)

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Judge rollouts uint8 (G, T+1, H, W, 3) by their images alone.

        What goes wrong inside becomes *no verdict*, with the reason.

        A bad instruction or frame array is the caller's mistake and is raised.
        """
        try:
            logits, progress = self.raw(frames, instruction)
        except (BadInstruction, BadFrame):
            raise
        except Exception as error:  # memory, device, numerics: none may turn into a score
            return [Judgement(None, detail=f"{self.name}: {type(error).__name__}: {error}")] * len(frames)
        task = task_of(instruction, self.config.instructions)
        return [self._judge(one, way, task) for one, way in zip(logits, progress, strict=True)]

    def _judge(self, logits: F32, progress: F32, task: str) -> Judgement:
        if not (np.isfinite(logits).all() and np.isfinite(progress).all()):
            return Judgement(None, detail=f"{self.name}: the network gave numbers that are not finite")
        frames = self.probability(logits.mean(-1), task)
        steady = two_in_a_row(frames)
        done = np.flatnonzero(steady > self.config.done_threshold)
        votes = tuple(float(two_in_a_row(self.probability(logits[:, k], task)).max()) for k in range(logits.shape[1]))
        return Judgement(score=float(steady.max()), done_at=int(done[0]) if done.size else None, votes=votes,
                         frame_scores=frames, progress=float(two_in_a_row(progress.mean(-1)).max()))


def best_logit(logits: F32) -> float:
    """Return an episode's logit, of frames with logits (T+1, heads): the best two in a row, mean of the heads."""
    return float(two_in_a_row(logits.mean(-1)).max())


def two_in_a_row(values: F32) -> F32:
    """Return min(v[t], v[t + 1]): one lucky frame convinces nobody. A single frame stands for itself."""
    return values if len(values) < 2 else np.minimum(values[:-1], values[1:])


def offset_at(logit: float, scale: float, threshold: float) -> float:
    """Return the offset with which logits above `logit` count as a success."""
    return float(np.log(threshold / (1.0 - threshold)) - scale * logit)


def fit_platt(logits: np.ndarray, labels: np.ndarray, steps: int = 50) -> tuple[float, float]:
    """Return (scale > 0, offset) that make sigmoid(scale * logit + offset) a probability (Platt 1999, Newton).

    Labels are softened as Platt proposes, so that separable data do not drive the scale to infinity.
    """
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        raise BadCheckpoint(f"calibration needs both outcomes, got {positive} successes and {negative} failures")
    target = np.where(labels, (positive + 1) / (positive + 2), 1 / (negative + 2))
    design = np.stack([logits.astype(np.float64), np.ones(len(logits))], axis=1)
    theta = np.array([1.0, math.log(positive / negative)])
    for _ in range(steps):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ theta, -30, 30)))
        gradient = design.T @ (p - target)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-3 * np.eye(2)
        theta = theta - np.clip(np.linalg.solve(hessian, gradient), -1.0, 1.0)
        theta[0] = max(theta[0], 0.05)
    return float(theta[0]), float(theta[1])
