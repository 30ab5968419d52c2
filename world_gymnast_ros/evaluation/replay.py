"""Paired replay: recorded episodes imagined again, from their first frame with their own actions, and judged.

Does the imagined reward rank episodes as reality did, and which failures pass for successes? Adaptation gained only
where this AUC was above 0.9, while image error and imagined success predicted nothing; so it decides which tasks a
world model is offered for. Every figure is per episode, so that two versions of a model can be compared in pairs.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.adaptation.rollout import is_success, judge_safely, replay
from world_gymnast_ros.adaptation.trust import RELEASE_AUC, ImageKind
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.evaluation.image_metrics import psnr_db, squared_error, structural_error
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.instructions import normalise
from world_gymnast_ros.progress import bar, shown
from world_gymnast_ros.statistics import auc, paired_replay_auc, wilson
from world_gymnast_ros.types import F64, U8, Judge, RolloutFacts, WorldModel

BATCH = 64
"""Rollouts imagined at once."""
HORIZONS = (1, 5, 10)


@dataclass(frozen=True)
class Replays:
    """E recorded episodes replayed. `mse`, `structural` (E,): image error, mean over the horizon; `horizon_mse` (E, 3)
    at HORIZONS, NaN beyond an episode's end. `score` (E,): imagined score, mean over copies, NaN without a verdict;
    `predicted` bool (E,): more than half of the copies were called a success; `true_score` (E,): what the judge says of
    the recorded frames, the ceiling that it sets, NaN where not asked. `rollouts`: the frames of each first copy."""

    episodes: tuple[Episode, ...]
    mse: F64
    structural: F64
    horizon_mse: F64
    score: F64
    predicted: NDArray[np.bool_]
    true_score: F64
    rollouts: list[U8]

    @property
    def success(self) -> NDArray[np.bool_]:
        """The recorded outcomes bool (E,)."""
        return np.array([bool(e.success) for e in self.episodes])

    def rows(self, which: NDArray[np.int64]) -> Replays:
        """Return those of some episodes."""
        return Replays(tuple(self.episodes[i] for i in which), self.mse[which], self.structural[which],
                       self.horizon_mse[which], self.score[which], self.predicted[which], self.true_score[which],
                       [self.rollouts[i] for i in which])

    def summary(self) -> dict[str, Any]:
        """Return plain figures; false positive rate first."""
        success, known = self.success, np.isfinite(self.score)
        failed = ~success
        false = wilson(int((self.predicted & failed).sum()), max(1, int(failed.sum())))
        agree = wilson(int((self.predicted == success).sum()), len(success))
        steps = np.asarray(np.isfinite(self.horizon_mse).any(0))
        return {
            "false_success": false.value, "false_success_low": false.low, "false_success_high": false.high,
            "failures": int(failed.sum()), "episodes": len(success),
            "false_negative": float((~self.predicted[success]).mean()) if success.any() else float("nan"),
            "agreement": agree.value, "agreement_low": agree.low, "agreement_high": agree.high,
            "auc": auc(self.score[known], success[known]),
            "imagined_success": float(self.predicted.mean()), "true_success": float(success.mean()),
            "psnr_db": psnr_db(float(self.mse.mean())), "structural": float(self.structural.mean()),
            "psnr_db_by_step": {str(h): psnr_db(float(np.nanmean(self.horizon_mse[:, k])))
                                for k, h in enumerate(HORIZONS) if steps[k]}}

    def by_task(self, task: str = "", source: str = "recordings", instructions: Sequence[str] = ()
                ) -> dict[str, dict[str, Any]]:
        """Return the release table: per task AUC in imagination and on recorded frames, false and true positive rate,
        with 95 % intervals, and counts.

        A task is called `task` where that is given, else as the recording says, else by the sentence itself. `source`
        says in words where the episodes were taken. `instructions`: the sentences that the task covers, "*" for any
        words; by default those of its episodes.
        """
        names = np.array([task or e.task or normalise(e.instruction) for e in self.episodes])
        return {str(name): self.rows(np.flatnonzero(names == name)).release_row(source, instructions)
                for name in np.unique(names)}

    def release_row(self, source: str = "recordings", instructions: Sequence[str] = ()) -> dict[str, Any]:
        """Return one row of the release table, of all these episodes. `images` is the kind that they began with, None
        where the camera's own frames were not kept."""
        captured = [e.captured for e in self.episodes if e.captured is not None]
        kind = ImageKind.of(captured, source).to_json() if len(captured) == len(self.episodes) else None
        judged = np.isfinite(self.score)
        success, predicted = self.success[judged], self.predicted[judged]
        imagined = paired_replay_auc(self.score[judged].tolist(), success.tolist())
        ceiling = paired_replay_auc(np.nan_to_num(self.true_score[judged]).tolist(), success.tolist())
        false = wilson(int(predicted[~success].sum()), max(1, int((~success).sum())))
        recall = wilson(int(predicted[success].sum()), max(1, int(success.sum())))
        asked = bool(np.isfinite(self.true_score).any())
        return {"auc": imagined.value, "low": imagined.low, "high": imagined.high,
                "auc_true_frames": ceiling.value if asked else float("nan"),
                "false_success": false.value, "false_success_low": false.low, "false_success_high": false.high,
                "recall": recall.value if success.any() else float("nan"), "recall_low": recall.low,
                "recall_high": recall.high, "episodes": len(self.episodes), "successes": int(self.success.sum()),
                "no_verdict": int((~judged).sum()), "released": float(imagined.value >= RELEASE_AUC), "images": kind,
                "instructions": list(instructions) or sorted({normalise(e.instruction) for e in self.episodes}),
                "horizon_steps": max(e.steps for e in self.episodes)}


def imagine_again(world_model: WorldModel, episodes: Sequence[Episode], seed: int, copies: int = 1) -> list[U8]:
    """Return `copies` rollouts uint8 (copies, T+1, H, W, 3) of each episode, from its first frame with its actions."""
    out: list[U8] = [np.empty(0, np.uint8)] * len(episodes)
    parts = [part for steps in sorted({e.steps for e in episodes})
             for same in ([i for i, e in enumerate(episodes) if e.steps == steps],)
             for part in np.array_split(same, -(-len(same) * copies // BATCH))]
    with bar(len(episodes), "replay in the world model", "episode") as line:
        for part in parts:
            mine = [episodes[i] for i in part]
            starts = [start for e in mine for start in [e.start()] * copies]
            frames = replay(world_model, starts, np.stack([e.deltas for e in mine]).repeat(copies, 0),
                            seed + int(part[0]) if len(part) else seed)
            for k, i in enumerate(part):
                out[i] = frames[k * copies:(k + 1) * copies]
            line.update(len(part))
    return out


def judge_recorded(judge: Judge, rollouts: Sequence[U8], episodes: Sequence[Episode]
                   ) -> tuple[F64, NDArray[np.bool_]]:
    """Return scores (E,), NaN without a verdict, and predicted success bool (E,), of each episode's frames
    (T+1, H, W, 3)."""
    score, predicted = np.full(len(rollouts), np.nan), np.zeros(len(rollouts), np.bool_)
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for i, (frames, episode) in enumerate(zip(rollouts, episodes, strict=True)):
        groups.setdefault((episode.instruction, frames.shape), []).append(i)
    parts = [(words, part) for (words, _), rows in groups.items()
             for part in np.array_split(rows, -(-len(rows) // BATCH))]
    for instruction, rows in shown(parts, "judging", "group"):
        mine = [episodes[i] for i in rows]
        facts = RolloutFacts([e.first_frame for e in mine], [None if e.states is None else e.states[0] for e in mine],
                             np.stack([e.deltas for e in mine]))
        verdicts = judge_safely(judge, np.stack([rollouts[i] for i in rows]), instruction, facts)
        for i, verdict in zip(rows, verdicts, strict=True):
            predicted[i] = is_success(verdict)
            score[i] = np.nan if verdict.score is None else verdict.score
    return score, predicted


def replay_episodes(world_model: WorldModel, judge: Judge, episodes: Sequence[Episode], seed: int, *, copies: int = 1,
                    ceiling: bool = False, rollouts: list[U8] | None = None) -> Replays:
    """Replay recorded episodes of known outcome and judge what was imagined.

    `copies`: rollouts per episode, whose scores are averaged. `ceiling`: judge the recorded frames too. `rollouts`:
    those of an earlier call with the same world model, episodes and seed, for another judge. EpisodeError where an
    outcome is not known.
    """
    unmarked = [e.name for e in episodes if e.success is None]
    if unmarked:
        raise EpisodeError(f"episode {unmarked[0]} has no outcome ({len(unmarked)} of {len(episodes)}); mark it with "
                           "`world-gymnast episodes mark`, or leave it out")
    if not episodes:
        raise EpisodeError("no episode to replay; name folders of marked recordings or of *.npz files")
    imagined = [r[None] for r in rollouts] if rollouts is not None else imagine_again(world_model, episodes, seed,
                                                                                     copies)
    scores, predicted = zip(*(judge_recorded(judge, [r[c] for r in imagined], episodes)
                           for c in range(len(imagined[0]))), strict=True)
    known = np.isfinite(scores)
    score = np.where(known.any(0), np.where(known, scores, 0.0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    true_score = judge_recorded(judge, [e.frames for e in episodes], episodes)[0] if ceiling else \
        np.full(len(episodes), np.nan)
    by_step = np.full((len(episodes), len(HORIZONS)), np.nan)
    mse, structural = np.zeros(len(episodes)), np.zeros(len(episodes))
    for i, (episode, frames) in enumerate(zip(episodes, imagined, strict=True)):
        recorded = resize_rgb(episode.frames[1:], frames.shape[2:4])
        error = squared_error(frames[0, 1:], recorded)
        mse[i], structural[i] = error.mean(), structural_error(frames[0, 1:], recorded).mean()
        by_step[i, [k for k, h in enumerate(HORIZONS) if h <= len(error)]] = [
            error[h - 1] for h in HORIZONS if h <= len(error)]
    return Replays(tuple(episodes), mse, structural, by_step, score, np.mean(predicted, 0) > 0.5, true_score,
                   [r[0] for r in imagined])


def episodes_needed(row: Mapping[str, Any], limit: float = RELEASE_AUC) -> str:
    """Say what is missing for the AUC's whole interval to clear `limit`; '' where nothing is.

    The interval narrows with the square root of the number of episodes.
    """
    wins, count = int(row["successes"]), int(row["episodes"])
    if not 0 < wins < count:
        other = "failure" if wins else "success"
        return f"all {count} episodes are of one outcome; record and mark at least 10 of the other ({other})"
    if math.isnan(row["auc"]):
        return (f"the judges gave no verdict on {int(row['no_verdict'])} of {count} episodes, and none is left to rank "
                "of one outcome; look at why with `world-gymnast episodes judge`")
    if row["low"] >= limit:
        return ""
    if row["auc"] <= limit:
        return (f"AUC {row['auc']:.2f} is not above {limit:g}: more episodes would not change that; fine-tune the "
                "world model on such episodes (`world-gymnast train world-model --episodes`), or calibrate the judges")
    ratio = (row["auc"] - row["low"]) / max(row["auc"] - limit, 1e-3)
    more = max(1, math.ceil(count * (ratio**2 - 1.0)))
    return (f"AUC {row['auc']:.2f} has the lower bound {row['low']:.2f}; about {more} more episodes, half of them "
            f"successes, are needed for it to clear {limit:g}")


def release_markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the release table."""
    lines = ["| task | episodes (successes) | no verdict | AUC in imagination [95 %] | AUC on recorded frames "
             "| false positive rate [95 %] | recall [95 %] | offered |",
             "|---|---|---|---|---|---|---|---|"]
    for task, r in rows.items():
        why = "yes" if r["released"] else f"no: AUC below {RELEASE_AUC}"
        lines.append(f"| {task} | {r['episodes']} ({r['successes']}) | {r['no_verdict']} "
                     f"| {r['auc']:.3f} [{r['low']:.3f}, {r['high']:.3f}] | {r['auc_true_frames']:.3f} "
                     f"| {r['false_success']:.3f} [{r['false_success_low']:.3f}, {r['false_success_high']:.3f}] "
                     f"| {r['recall']:.2f} [{r['recall_low']:.2f}, {r['recall_high']:.2f}] | {why} |")
    return "\n".join(lines)
