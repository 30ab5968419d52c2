"""Train a reflector's head on a frozen image-text model, from marked recordings.

World-Env's instant reflector (arXiv 2509.24948) trains a light head on the last hidden state with cross-entropy on
per-frame success. Every frame is read by the frozen model once; the head then learns in seconds. Whole episodes are
held out: the probability is calibrated on them, and every figure is of them.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadConfig, EpisodeError
from world_gymnast_ros.models.judges.frozen_trunk import FrozenTrunk
from world_gymnast_ros.models.judges.reflector import Reflector, best_logit
from world_gymnast_ros.training.progress import ProgressLine
from world_gymnast_ros.training.reflector import Verdicts, be_strict, calibrate, report

MIN_OF_EACH = 2
"""Held-out episodes of either outcome, below which nothing can be calibrated."""


@dataclass(frozen=True)
class HeadTraining:
    """Settings. `max_false_success`: share of held-out failures, task by task, that may be called successes."""

    steps: int = 300
    heads: int = 3
    episodes: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    held_out_share: float = 0.25
    bootstrap: float = 0.75
    max_false_success: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.episodes < 2 or not 0.0 < self.held_out_share < 1.0:
            raise BadConfig("steps must be >= 1, episodes >= 2 and held_out_share in 0..1")


@dataclass(frozen=True)
class Labels:
    """Of one episode's frames: `done` and `clear` (use it), bool (T + 1,)."""

    done: NDArray[np.bool_]
    clear: NDArray[np.bool_]


def frame_labels(episode: Episode) -> Labels:
    """Return what a marked outcome says of each frame.

    Every frame of a failure shows none. Of a success the frames from `done_step` on show it and those before do not;
    where only the outcome was marked, the last two frames show it and the first half does not, and what lies between
    is unclear. Raises EpisodeError for an episode that nobody marked.
    """
    if episode.success is None:
        raise EpisodeError(f"{episode.name or 'an episode'} is not marked; mark it with `world-gymnast episodes mark`")
    index, last = np.arange(episode.steps + 1), episode.steps
    if not episode.success:
        return Labels(np.zeros(last + 1, np.bool_), np.ones(last + 1, np.bool_))
    if episode.done_step is not None:
        return Labels(index >= episode.done_step, np.ones(last + 1, np.bool_))
    done = index >= last - 1
    return Labels(done, done | (index <= last // 2))


def train_head(frozen: FrozenTrunk, episodes: Sequence[Episode], settings: HeadTraining, name: str = ""
               ) -> tuple[Reflector, dict[str, dict[str, Any]]]:
    """Return a calibrated reflector, and its figures on episodes that were held out, by task.

    Raises EpisodeError where either outcome is too rare to train on one part and calibrate on the other.
    """
    torch.manual_seed(settings.seed)
    training, held = _split(episodes, settings)
    judge = Reflector.on_frozen(frozen, settings.heads, name)
    features = _read(judge, [*training, *held])
    rng = np.random.default_rng((settings.seed, 31))
    _fit(judge, training, features[:len(training)], settings, rng)
    kinds = [e.task or e.instruction for e in held]
    with torch.no_grad():
        logits = [best_logit(judge.model(f[None])[0][0].numpy()) for f in features[len(training):]]
    verdicts = Verdicts(np.array(logits), np.array([bool(e.success) for e in held]), np.array(kinds, np.str_))
    calibrate(judge, verdicts)
    be_strict(judge, verdicts, settings.max_false_success)
    return judge, report(judge, verdicts)


def _split(episodes: Sequence[Episode], settings: HeadTraining) -> tuple[list[Episode], list[Episode]]:
    rng = np.random.default_rng((settings.seed, 30))
    parts: tuple[list[Episode], list[Episode]] = ([], [])
    for outcome in (True, False):
        mine = [e for e in episodes if e.success is outcome]
        held = max(MIN_OF_EACH, round(settings.held_out_share * len(mine)))
        if len(mine) < held + 1:
            raise EpisodeError(f"{len(mine)} {'successes' if outcome else 'failures'} among {len(episodes)} episodes; "
                               f"at least {MIN_OF_EACH + 1} are needed to train on some and calibrate on others")
        order = rng.permutation(len(mine))
        parts[1].extend(mine[i] for i in order[:held])
        parts[0].extend(mine[i] for i in order[held:])
    return parts


def _read(judge: Reflector, episodes: Sequence[Episode]) -> list[Tensor]:
    """Return features (T + 1, F) of each episode's frames under its instruction."""
    line = ProgressLine("frozen model reads episodes", len(episodes))
    out = []
    for i, episode in enumerate(episodes):
        out.append(judge.seen(episode.frames[None], episode.instruction)[0])
        line.tell(i + 1, f"{len(episode.frames)} frames")
    return out


def _fit(judge: Reflector, episodes: Sequence[Episode], features: Sequence[Tensor], settings: HeadTraining,
         rng: np.random.Generator) -> None:
    """Train on whole episodes: as many successes as failures in each batch, positive and negative frames of one
    weight."""
    judge.model.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(judge.model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    labels = [frame_labels(e) for e in episodes]
    votes = rng.random((len(episodes), judge.config.heads)) < settings.bootstrap
    votes[~votes.any(1)] = True
    won = np.flatnonzero([bool(e.success) for e in episodes])
    lost = np.flatnonzero([not e.success for e in episodes])
    line = ProgressLine("head", settings.steps)
    for step in range(settings.steps):
        half = settings.episodes // 2
        chosen = [*rng.choice(won, half), *rng.choice(lost, settings.episodes - half)]
        loss = torch.stack([_loss(judge, features[i], labels[i], votes[i]) for i in chosen]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.model.parameters(), 1.0)
        optimiser.step()
        line.tell(step + 1, f"loss {loss.item():.3f}")
    judge.model.eval().requires_grad_(False)


def _loss(judge: Reflector, features: Tensor, labels: Labels, votes: NDArray[np.bool_]) -> Tensor:
    """Return the loss of one episode: cross-entropy of success, and of progress towards the end where it succeeded."""
    logits, progress = judge.model(features[None].clone())
    done = torch.from_numpy(labels.done).float()[:, None].expand_as(logits[0])
    weight = torch.from_numpy(labels.clear.astype(np.float32) * _balance(labels))[:, None] * torch.from_numpy(
        votes.astype(np.float32))
    success = F.binary_cross_entropy_with_logits(logits[0], done, weight, reduction="sum")
    success = success / weight.sum().clamp(min=1e-6)
    if not labels.done.any():
        return success
    way = torch.linspace(0.0, 1.0, len(features))[:, None].expand_as(progress[0])
    return success + 0.3 * F.smooth_l1_loss(progress[0], way, beta=0.1)


def _balance(labels: Labels) -> NDArray[np.float32]:
    """Return weights (T + 1,) that give the positive and the negative frames of an episode the same say."""
    positive = labels.done & labels.clear
    negative = ~labels.done & labels.clear
    out = np.ones(len(labels.done), np.float32)
    if positive.any() and negative.any():
        out[positive], out[negative] = 0.5 / positive.sum(), 0.5 / negative.sum()
    else:
        out[labels.clear] = 1.0 / max(1, labels.clear.sum())
    return out
