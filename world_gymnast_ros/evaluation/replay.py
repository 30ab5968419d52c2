"""How far a world model with a judge may be believed about given true episodes: replayed from their first frame.

Every figure is per episode, so that two versions of a model can be compared in pairs. Image error is PSNR and a
structural error (1 - SSIM, mean over 64, 32 and 16 pixels): what a person would see, computed, not learned. Poses are
read off pictures by a probe (a judge's trunk, which was taught to localise), from the dream and from the true picture,
and compared with physics where the recording knows it; the probe's own error stands beside.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from world_gymnast_ros.adaptation.rollout import is_success, judge_safely, replay
from world_gymnast_ros.data.play_data import PlayEpisode
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.models.judges.reflector import Reflector
from world_gymnast_ros.models.policies.vla_network import PLACE_CENTRE_M, PLACE_SCALE_M
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.statistics import auc, wilson
from world_gymnast_ros.types import F32, F64, U8, Frame, Judge, RolloutFacts, Start, WorldModel

BATCH = 64
SSIM_WINDOW_PX = 7
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
SCALES = 3
REPLAY = "replay"
"""In the place of an instruction, where actions are given."""


@dataclass(frozen=True)
class RealEpisode:
    """A true episode of known outcome. `tip_m`, `object_m` (T+1, 3): gripper tip and named object, base frame, or None
    where nobody knows; `done_step`: the frame at which success came, None where only its outcome is known."""

    play: PlayEpisode
    instruction: str
    success: bool
    tip_m: F32 | None = None
    object_m: F32 | None = None
    done_step: int | None = None

    @property
    def captured(self) -> U8 | None:
        """The first frame at the camera's own size (H, W, 3), where it was kept."""
        return self.play.captured


@dataclass(frozen=True)
class Replays:
    """E episodes replayed. `mse`, `structural` (E,): mean over the horizon; `tip_mm`, `object_mm` (E,): horizontal
    error of the probe at the last frame of the dream, `tip_true_mm`, `object_true_mm` on the true picture, NaN where
    unknown;
    `score` (E,) NaN without a verdict; `claimed`, `success` bool (E,)."""

    mse: F64
    structural: F64
    tip_mm: F64
    object_mm: F64
    tip_true_mm: F64
    object_true_mm: F64
    score: F64
    claimed: np.ndarray
    success: np.ndarray
    horizon_psnr_db: dict[int, float]
    dreams: list[U8]

    def summary(self) -> dict[str, Any]:
        """Return plain figures; false success rate first."""
        failed, won = ~self.success, self.success
        false = wilson(int((self.claimed & failed).sum()), max(1, int(failed.sum())))
        agree = wilson(int((self.claimed == self.success).sum()), len(self.success))
        known = np.isfinite(self.score)
        return {
            "false_success": false.value, "false_success_low": false.low, "false_success_high": false.high,
            "failures": int(failed.sum()), "episodes": len(self.success),
            "missed": float((~self.claimed[won]).mean()) if won.any() else float("nan"),
            "agreement": agree.value, "agreement_low": agree.low, "agreement_high": agree.high,
            "auc": auc(self.score[known], self.success[known]),
            "imagined_success": float(self.claimed.mean()), "true_success": float(self.success.mean()),
            "psnr_db": float(-10 * np.log10(max(self.mse.mean(), 1e-10))), "structural": float(self.structural.mean()),
            "psnr_db_by_step": {str(h): v for h, v in self.horizon_psnr_db.items()},
            **{name: _mean(getattr(self, name)) for name in ("tip_mm", "object_mm", "tip_true_mm", "object_true_mm")}}


def _mean(values: F64) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def structural_error(a: U8, b: U8) -> F64:
    """Return 1 - SSIM (N,) of grey pictures uint8 (N, H, W, 3), mean over whole, half and quarter size."""
    x, y = (torch.from_numpy(np.ascontiguousarray(v)).float().div_(255.0).mean(-1)[:, None] for v in (a, b))
    errors = []
    for _ in range(SCALES):
        def mean(v: torch.Tensor) -> torch.Tensor:
            return F.avg_pool2d(v, SSIM_WINDOW_PX, 1)
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        ssim = ((2 * mx * my + SSIM_C1) * (2 * cov + SSIM_C2)) / ((mx**2 + my**2 + SSIM_C1) * (vx + vy + SSIM_C2))
        errors.append(1.0 - ssim.mean((1, 2, 3)))
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return torch.stack(errors).mean(0).double().numpy()


def locate(probe: Reflector, pictures: U8, instructions: Sequence[str]) -> F64:
    """Return where the probe sees tip, object and destination, m, float64 (N, 3, 3), in pictures uint8 (N, H, W, 3)."""
    size = probe.model.trunk.config.image_size
    pictures = pictures if pictures.shape[1:3] == (size, size) else resize_rgb(pictures, (size, size))
    ids = torch.tensor(probe.reader.batch(list(instructions)), device=probe.device)
    out = []
    with torch.inference_mode(), fast_math(probe.device):
        for i in range(0, len(pictures), BATCH):
            seen = probe.model.trunk.see(torch.from_numpy(np.ascontiguousarray(pictures[i:i + BATCH])).to(probe.device))
            out.append(probe.model.trunk.read(seen, ids[i:i + BATCH])[1].float().cpu().numpy())
    return np.concatenate(out).reshape(-1, 3, 3).astype(np.float64) * PLACE_SCALE_M + np.array(PLACE_CENTRE_M)


def start_of(episode: PlayEpisode) -> Start:
    """Return where an imagined continuation of a recorded episode begins."""
    frame = Frame(episode.frames[0], 0)
    return Start(frame, None if episode.states is None else episode.states[0], REPLAY,
                 None if episode.captured is None else Frame(episode.captured, 0))


def dream_all(world: WorldModel, episodes: Sequence[PlayEpisode], seed: int) -> list[U8]:
    """Return the dream uint8 (T+1, H, W, 3) of each episode, from its first frame with its own actions."""
    dreams: list[U8] = [np.empty(0, np.uint8)] * len(episodes)
    for steps in sorted({e.steps for e in episodes}):
        same = [i for i, e in enumerate(episodes) if e.steps == steps]
        for part in np.array_split(same, -(-len(same) // BATCH)):
            mine = [episodes[i] for i in part]
            films = replay(world, [start_of(e) for e in mine], np.stack([e.deltas for e in mine]), seed + int(part[0]))
            for i, film in zip(part, films, strict=True):
                dreams[i] = film
    return dreams


def judge_all(judge: Judge, films: Sequence[U8], episodes: Sequence[RealEpisode]) -> tuple[F64, np.ndarray]:
    """Return scores (E,), NaN without a verdict, and claims bool (E,), of films of what the episodes did."""
    score, claimed = np.full(len(films), np.nan), np.zeros(len(films), np.bool_)
    groups: dict[tuple[str, int], list[int]] = {}
    for i, (film, episode) in enumerate(zip(films, episodes, strict=True)):
        groups.setdefault((episode.instruction, len(film)), []).append(i)
    for (words, _), rows in groups.items():
        mine = [episodes[i] for i in rows]
        facts = RolloutFacts([e.play.frames[0] if e.captured is None else e.captured for e in mine],
                             [None if e.play.states is None else e.play.states[0] for e in mine],
                             np.stack([e.play.deltas for e in mine]))
        verdicts = judge_safely(judge, np.stack([films[i] for i in rows]), words, facts)
        for i, verdict in zip(rows, verdicts, strict=True):
            claimed[i] = is_success(verdict)
            score[i] = np.nan if verdict.score is None else verdict.score
    return score, claimed


def replay_figures(world: WorldModel, judge: Judge, probe: Reflector, episodes: Sequence[RealEpisode], seed: int,
                   dreams: list[U8] | None = None) -> Replays:
    """Replay the episodes in the dream of `world` and compare with what happened.

    `dreams`: those of an earlier call with the same world model, episodes and seed, for another judge.
    """
    words = [e.instruction for e in episodes]
    dreams = dream_all(world, [e.play for e in episodes], seed) if dreams is None else dreams
    score, claimed = judge_all(judge, dreams, episodes)
    mse, structural = [], []
    by_step: dict[int, list[float]] = {}
    for episode, dream in zip(episodes, dreams, strict=True):
        true = episode.play.frames
        error = ((dream[1:].astype(np.float32) - true[1:]) ** 2).mean((1, 2, 3)) / 255.0**2
        mse.append(float(error.mean()))
        structural.append(float(structural_error(dream[1:], true[1:]).mean()))
        for step in (1, 5, 10, len(error)):
            if step <= len(error):
                by_step.setdefault(step, []).append(float(error[step - 1]))
    in_dream = locate(probe, np.stack([d[-1] for d in dreams]), words)
    in_truth = locate(probe, np.stack([e.play.frames[-1] for e in episodes]), words)
    gaps = {}
    for name, slot in (("tip", 0), ("object", 1)):
        where = [getattr(e, f"{name}_m") for e in episodes]
        known = np.array([[np.nan] * 2 if w is None else w[-1, :2] for w in where])
        gaps[f"{name}_mm"] = 1000 * np.linalg.norm(in_dream[:, slot, :2] - known, axis=1)
        gaps[f"{name}_true_mm"] = 1000 * np.linalg.norm(in_truth[:, slot, :2] - known, axis=1)
    psnr = {step: float(-10 * np.log10(max(np.mean(v), 1e-10))) for step, v in sorted(by_step.items())}
    return Replays(np.array(mse), np.array(structural), gaps["tip_mm"], gaps["object_mm"], gaps["tip_true_mm"],
                   gaps["object_true_mm"], score, claimed, np.array([e.success for e in episodes]), psnr, dreams)
