"""Train the judge: per-frame success from true frames, and from imagined frames labelled with the true outcome.

A folder of imagined episodes has the format of play data, with imagined frames of actions whose true outcome is known:
so the judge learns which rollouts lie. Windows of frames are drawn so that about half the labels are positive, and
negatives are near misses, other instructions of a scene where something else was done, and random moments. The balance
is undone by calibration (Platt) on held-out episodes at their natural rate.
"""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from world_gymnast_ros.data.frame_table import Episode, PlayTable, held_out, read_play
from world_gymnast_ros.data.labels import FrameLabels, LabelSource, labels_by_outcome
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.models.judges.reflector import Reflector, best_logit, fit_platt, offset_at
from world_gymnast_ros.models.policies.openvla import OpenVLA
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.progress import bar
from world_gymnast_ros.statistics import auc, wilson
from world_gymnast_ros.training.model_card import write_card
from world_gymnast_ros.training.optim import MuonAdamW, warm_then_decay
from world_gymnast_ros.training.policy import normal_places, place_loss, relight
from world_gymnast_ros.training.progress import ProgressLine

WINDOW = 5
"""Consecutive frames per window; all but the first are judged."""


@dataclass(frozen=True)
class ReflectorTraining:
    """Settings. `windows` per step, each read under two instructions; `imagined_share` of them imagined, if given.

    `max_false_success`: a judge trained on imagined episodes predicts success on at most this share of the failures
    among held-out ones, family by family.
    """

    steps: int = 1200
    windows: int = 20
    imagined_share: float = 0.5
    muon_lr: float = 1e-3
    adamw_lr: float = 5e-4
    aux_weight: float = 0.3
    progress_weight: float = 0.3
    heldout_share: float = 0.1
    max_false_success: float = 0.03
    bootstrap: float = 0.75
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.windows < 2 or not 0.0 <= self.imagined_share <= 1.0:
            raise BadConfig("steps must be >= 0, windows >= 2 and imagined_share in 0..1")


MAX_SHIFT, MAX_TURN_RAD, MAX_ZOOM = 0.09, 0.05, 0.06
"""Of `reframe`: shift as a share of the half image (3 pixels of 64), turn, and change of scale."""


def reframe(windows: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift, turn and zoom half of the windows (B, T, H, W, 3): a knocked tripod, another lens.

    Success is about hand and object, so its labels hold; the trunk's places move by less than the camera's own jitter.
    """
    out = windows.clone()
    chosen = np.flatnonzero(rng.random(len(windows)) < 0.5)
    if not len(chosen):
        return out
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, (len(chosen), 2))
    turn = rng.uniform(-MAX_TURN_RAD, MAX_TURN_RAD, len(chosen))
    zoom = 1.0 + rng.uniform(-MAX_ZOOM, MAX_ZOOM, len(chosen))
    maps = np.stack([np.stack([zoom * np.cos(turn), -zoom * np.sin(turn), shift[:, 0]], -1),
                     np.stack([zoom * np.sin(turn), zoom * np.cos(turn), shift[:, 1]], -1)], axis=1)
    frames = windows.shape[1]
    images = windows[chosen].flatten(0, 1).permute(0, 3, 1, 2).float()
    each = torch.from_numpy(np.repeat(maps, frames, axis=0).astype(np.float32))
    grid = F.affine_grid(each, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    out[chosen] = moved.round_().to(torch.uint8).permute(0, 2, 3, 1).unflatten(0, (len(chosen), frames))
    return out


# ---- windows -------------------------------------------------------------------------------------------------

class WindowSampler:
    """Draws windows with balanced labels from one table. Labels are asked for once per (episode, instruction)."""

    def __init__(self, table: PlayTable, episodes: Sequence[Episode], source: LabelSource = labels_by_outcome) -> None:
        self.table, self.episodes, self.source = table, list(episodes), source
        self._labels: dict[tuple[int, str], FrameLabels] = {}
        self.done: dict[str, list[tuple[Episode, str]]] = {}
        """Family of the instruction -> (episode, instruction) pairs that succeed."""
        for episode in self.episodes:
            for text in (episode.instruction, *episode.alternatives):
                latched = table.labels(episode, text)
                if latched[-1] and not latched[0]:
                    self.done.setdefault(text.split()[0], []).append((episode, text))

    def labels(self, episode: Episode, text: str) -> FrameLabels:
        """Return the labels of an episode under an instruction."""
        key = (episode.first, text)
        if key not in self._labels:
            self._labels[key] = self.source(self.table, episode, text)
        return self._labels[key]

    def draw(self, rng: np.random.Generator) -> tuple[Episode, int, tuple[str, str]]:
        """Return an episode, the first frame of a window, and two instructions to read it under."""
        if self.done and rng.random() < 0.6:
            pairs = self.done[str(rng.choice(sorted(self.done)))]
            episode, text = pairs[int(rng.integers(len(pairs)))]
            positive = np.flatnonzero(self.labels(episode, text).done)
            onset = int(np.argmax(self.table.labels(episode, text)))
            centre = int(rng.choice(positive)) if len(positive) and rng.random() < 0.6 else onset
            return episode, self._start(episode, centre, rng), (text, self._other(episode, text, rng))
        episode = self.episodes[int(rng.integers(len(self.episodes)))]
        text = episode.instruction
        labels = self.labels(episode, text)
        nearest = int(np.argmax(np.where(labels.done, -1.0, labels.progress)))
        centre = nearest if rng.random() < 0.65 else int(rng.integers(episode.steps + 1))
        return episode, self._start(episode, centre, rng), (text, self._other(episode, text, rng))

    def _start(self, episode: Episode, centre: int, rng: np.random.Generator) -> int:
        return int(np.clip(centre - rng.integers(0, WINDOW), 0, episode.steps + 1 - WINDOW))

    def _other(self, episode: Episode, text: str, rng: np.random.Generator) -> str:
        """Return another instruction: often one that names the same object or was also done."""
        others = [t for t in (episode.instruction, *episode.alternatives) if t != text]
        if not others:
            return text
        done = [t for t in others if self.table.labels(episode, t)[-1]]
        if done and rng.random() < 0.4:
            return str(rng.choice(done))
        same = [t for t in others if t.split()[0] == text.split()[0] or t.split()[2:4] == text.split()[2:4]]
        return str(rng.choice(same if same and rng.random() < 0.7 else others))


@dataclass(frozen=True)
class WindowBatch:
    """W windows. `rows` (W, 1 + WINDOW) frame rows, first frame in front; `texts` (2 W) instructions, window-major;
    `done`, `clear`, `progress`, `graded` (2 W, WINDOW - 1); `places`, `known` (2 W, 1 + WINDOW, 9 | 3); `heads`
    (2 W, heads)."""

    rows: NDArray[np.int64]
    texts: list[str]
    done: Tensor
    clear: Tensor
    progress: Tensor
    graded: Tensor
    places: Tensor
    known: Tensor
    heads: Tensor


def window_batch(sampler: WindowSampler, count: int, heads: int, bootstrap: float, rng: np.random.Generator
                 ) -> WindowBatch:
    """Draw `count` windows."""
    rows, texts, labels, places, known, votes = [], [], [], [], [], []
    for _ in range(count):
        episode, start, pair = sampler.draw(rng)
        window = np.concatenate([[episode.first], episode.first + start + np.arange(WINDOW)])
        rows.append(window)
        mask = np.random.default_rng((abs(episode.seed) % 2**31, 11)).random(heads) < bootstrap
        for text in pair:
            texts.append(text)
            one = sampler.labels(episode, text)
            part = slice(start + 1, start + WINDOW)
            labels.append((one.done[part], one.clear[part], one.progress[part], one.graded[part]))
            where, seen = sampler.table.places(episode, window, text)
            places.append(normal_places(where))
            known.append(np.broadcast_to(seen, (len(window), 3)))
            votes.append(mask if mask.any() else np.ones(heads, bool))
    done, clear, progress, graded = (torch.from_numpy(np.stack(x)) for x in zip(*labels, strict=True))
    return WindowBatch(np.stack(rows), texts, done.float(), clear.float(), progress, graded.float(),
                       torch.from_numpy(np.stack(places)), torch.from_numpy(np.stack(known)),
                       torch.from_numpy(np.stack(votes)).float())


# ---- training ------------------------------------------------------------------------------------------------

def window_loss(judge: Reflector, frames: Tensor, batch: WindowBatch, settings: ReflectorTraining
                ) -> tuple[Tensor, str]:
    """Return the loss of one batch, `frames` (W, 6, H, W, 3): images are seen once, read under two instructions."""
    w, n = frames.shape[:2]
    model = judge.model
    tokens = model.trunk.see(frames.flatten(0, 1))
    tokens = tokens.view(w, n, *tokens.shape[1:]).repeat_interleave(2, dim=0).flatten(0, 1)
    ids = torch.tensor(judge.reader.batch(batch.texts)).repeat_interleave(n, dim=0)
    features, places = model.features(tokens, ids)
    features = features.view(2 * w, n, -1)
    first = features[:, :1].expand(-1, WINDOW - 1, -1)
    logits, progress = model.fuse(*(x.flatten(0, 1) for x in (first, features[:, 1:-1], features[:, 2:])))
    shape = (2 * w, WINDOW - 1, -1)
    logits, progress = logits.view(shape), progress.view(shape)
    weight = (batch.clear[..., None] * batch.heads[:, None]).expand_as(logits)
    losses = F.binary_cross_entropy_with_logits(logits, batch.done[..., None].expand_as(logits), reduction="none")
    success = (losses * weight).sum() / weight.sum().clamp(min=1)
    graded = batch.graded[..., None].expand_as(progress)
    way = F.smooth_l1_loss(progress, batch.progress[..., None].expand_as(progress), beta=0.1, reduction="none")
    way = (way * graded).sum() / graded.sum().clamp(min=1)
    aux = place_loss(places, batch.places.flatten(0, 1), batch.known.flatten(0, 1))
    note = f"success {success.item():.3f} progress {way.item():.4f} places {aux.item():.4f} " \
           f"positive {(batch.done * batch.clear).sum().item() / max(1.0, batch.clear.sum().item()):.2f}"
    return success + settings.progress_weight * way + settings.aux_weight * aux, note


def fit(judge: Reflector, samplers: Sequence[WindowSampler], shares: Sequence[float], settings: ReflectorTraining
        ) -> float:
    """Train on windows of the tables in the given shares; return seconds per step."""
    judge.model.train().requires_grad_(True)
    optimiser = MuonAdamW(judge.model, settings.muon_lr, settings.adamw_lr)
    rng = np.random.default_rng((settings.seed, 21))
    line, began = ProgressLine("reflector", settings.steps), time.monotonic()
    heads = judge.config.heads
    counts = [max(1, round(settings.windows * share)) for share in shares]
    for step in range(settings.steps):
        optimiser.set_scale(warm_then_decay(step, settings.steps, warmup=min(50, settings.steps // 10 + 1)))
        notes = []
        for sampler, count in zip(samplers, counts, strict=True):
            batch = window_batch(sampler, count, heads, settings.bootstrap, rng)
            images = torch.from_numpy(sampler.table.frames[batch.rows])
            images = reframe(relight(images.flatten(1, 2), rng).view_as(images), rng)
            with fast_math(torch.device("cpu")):
                loss, note = window_loss(judge, images, batch, settings)
            (loss * (count / sum(counts))).backward()
            notes.append(note)
        optimiser.step()
        line.tell(step + 1, " | ".join(notes))
    judge.model.eval().requires_grad_(False)
    return (time.monotonic() - began) / max(1, settings.steps)


# ---- measuring -----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Verdicts:
    """Episode-level: `logits` (E,) best two frames in a row, uncalibrated; `success` (E,) true; `family` (E,)."""

    logits: NDArray[np.float64]
    success: NDArray[np.bool_]
    family: NDArray[np.str_]


def judge_episodes(judge: Reflector, table: PlayTable, episodes: Sequence[Episode]) -> Verdicts:
    """Judge whole episodes under their own instruction."""
    logits = np.zeros(len(episodes))
    lengths = np.array([e.steps for e in episodes])
    parts = [part for steps in np.unique(lengths) for same in (np.flatnonzero(lengths == steps),)
             for part in np.array_split(same, -(-len(same) // 16))]
    with bar(len(episodes), "judging", "episode") as line:
        for part in parts:
            rows = np.array([episodes[i].first for i in part])[:, None] + np.arange(lengths[part[0]] + 1)
            raw = judge.raw(table.frames[rows], [episodes[i].instruction for i in part])[0]
            logits[part] = [best_logit(row) for row in raw]
            line.update(len(part))
    success = np.array([table.success[e.first + e.steps] for e in episodes])
    return Verdicts(logits, success, np.array([e.family for e in episodes]))


def calibrate(judge: Reflector, verdicts: Verdicts) -> None:
    """Set the judge's calibrated logit from held-out episodes at their natural success rate."""
    judge.config.calibrate(*fit_platt(verdicts.logits, verdicts.success))


def strict_offset(failed: NDArray[np.float64], scale: float, threshold: float, max_false_success: float) -> float:
    """Return the offset at which at most that share of the failures' logits is called a success."""
    return offset_at(float(np.quantile(failed, 1.0 - max_false_success, method="higher")), scale, threshold)


def be_strict(judge: Reflector, verdicts: Verdicts, max_false_success: float) -> None:
    """Shift the calibrated logit down until every family's false success rate is at most `max_false_success`.

    Policy learning looks for the rollouts that the judge is wrong about, so a false positive costs more than a false
    negative: an unbiased judge let a policy that misses by 3 cm start at 90 % imagined success. Families of too few
    failures for such a share have no say.
    """
    config = judge.config
    for family in sorted(set(verdicts.family.tolist())):
        failed = verdicts.logits[(verdicts.family == family) & ~verdicts.success]
        if len(failed) * max_false_success >= 1.0:
            config.logit_offset = min(config.logit_offset, strict_offset(failed, config.logit_scale,
                                                                         config.done_threshold, max_false_success))


def report(judge: Reflector, verdicts: Verdicts) -> dict[str, dict[str, Any]]:
    """Return per family: AUC, true and judged rate, expected calibration error, false-success rate with interval."""
    scores = np.zeros(len(verdicts.logits), np.float32)
    for family in set(verdicts.family.tolist()):
        mine = verdicts.family == family
        scores[mine] = judge.probability(verdicts.logits[mine], family)
    rows: dict[str, dict[str, Any]] = {}
    for name in ("all", *sorted(set(verdicts.family.tolist()))):
        pick = np.ones(len(scores), bool) if name == "all" else verdicts.family == name
        s, y = scores[pick], verdicts.success[pick]
        predicted = s > judge.config.done_threshold
        false = wilson(int((predicted & ~y).sum()), int((~y).sum())) if (~y).any() else None
        precise = wilson(int((predicted & y).sum()), int(predicted.sum())) if predicted.any() else None
        error = calibration_error(reliability(s, y))
        rows[name] = {"episodes": int(pick.sum()), "auc": round(auc(s, y), 3), "true rate": round(float(y.mean()), 3),
                      "judged rate": round(float(s.mean()), 3), "calibration error": round(error, 3),
                      "false successes among failures": str(false), "precision": str(precise),
                      "false negatives": round(float((~predicted & y).sum() / max(1, y.sum())), 3)}
    return rows


def reliability(scores: NDArray[np.floating], labels: NDArray[np.bool_], bins: int = 10
                ) -> tuple[tuple[float, float, int], ...]:
    """Return (mean score, true rate, count) of every bin of scores that holds any."""
    which = np.minimum((scores * bins).astype(int), bins - 1)
    return tuple((float(scores[which == b].mean()), float(labels[which == b].mean()), int((which == b).sum()))
                 for b in range(bins) if (which == b).any())


def calibration_error(rows: Sequence[tuple[float, float, int]]) -> float:
    """Return the expected calibration error of `reliability` rows."""
    return sum(abs(said - true) * count for said, true, count in rows) / sum(count for _, _, count in rows)


# ---- whole runs ----------------------------------------------------------------------------------------------

def train_reflector(play: str | Path, out: str | Path, start: str | Path, settings: ReflectorTraining,
                    imagined: str | Path | None = None, families: Sequence[str] | None = None,
                    test: str | Path | None = None, source: LabelSource = labels_by_outcome) -> dict[str, Any]:
    """Train, calibrate, save to `out` with a model card; return the figures.

    `start`: a policy-class checkpoint (its trunk is copied) or an earlier judge (trained on). `imagined`: imagined
    episodes in the play format; calibration then uses held-out ones, for these are what adaptation will show it.
    `test`: play data to report on that neither training nor calibration saw. `source`: of the labels of frames.
    """
    torch.manual_seed(settings.seed)
    judge = Reflector.from_pretrained(start) if _is_judge(start) else \
        Reflector.from_policy(OpenVLA.from_pretrained(start).model)
    tables = [read_play(directory, families=families) for directory in (play, *([imagined] if imagined else []))]
    splits = [held_out(table.episodes, settings.heldout_share) for table in tables]
    shares = [1.0 - settings.imagined_share, settings.imagined_share] if imagined else [1.0]
    samplers = [WindowSampler(table, split[0], source) for table, split in zip(tables, splits, strict=True)]
    seconds = fit(judge, samplers, shares, settings)
    verdicts = [judge_episodes(judge, table, split[1]) for table, split in zip(tables, splits, strict=True)]
    calibrate(judge, verdicts[-1])
    if imagined is not None:
        be_strict(judge, verdicts[-1], settings.max_false_success)
    judge.config.instructions = {task: sorted({e.instruction for t in tables for e in t.episodes if e.family == task})
                                 for task in sorted(set(verdicts[-1].family.tolist()))}
    figures: dict[str, Any] = {"seconds per step": round(seconds, 3), "episodes": sum(len(s[0]) for s in splits),
                               "parameters": sum(p.numel() for p in judge.model.parameters())}
    for name, verdict in zip(("true frames", "imagined frames"), verdicts, strict=False):
        figures |= {f"{name}, held out, {family}": row for family, row in report(judge, verdict).items()}
    if test is not None:
        table = read_play(test, families=families)
        rows = report(judge, judge_episodes(judge, table, table.episodes))
        figures |= {f"test set, {family}": row for family, row in rows.items()}
    figures["sha256"] = judge.save(out)
    write_card(out, "Reflector (judge), tiny", figures, {**asdict(settings), "imagined": imagined is not None})
    return figures


def _is_judge(directory: str | Path) -> bool:
    config = Path(directory) / "config.json"
    return config.is_file() and '"world_gymnast_reflector"' in config.read_text()


def main(play: Path, out: Path, start: Path, imagined: Path | None, families: Sequence[str] | None, test: Path | None,
         threads: int, source: LabelSource = labels_by_outcome, **settings: Any) -> int:
    """Train and print the figures. `source`: of the labels of frames; `settings`: ReflectorTraining's."""
    torch.set_num_threads(threads)
    figures = train_reflector(play=play, out=out, start=start, imagined=imagined, families=families, test=test,
                              settings=ReflectorTraining(**settings), source=source)
    for name, value in figures.items():
        print(f"{name}: {value}")
    return 0
