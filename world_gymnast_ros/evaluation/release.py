"""The release gate of a world model: paired replay of recorded true episodes in the dream.

Same first frame, same actions: does the imagined reward rank episodes as reality did? A prototype found that adaptation
gained only where this AUC was above 0.9, while image error and imagined success predicted nothing.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros.adaptation.rollout import facts_of, is_success, judge_safely, replay
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.statistics import paired_replay_auc, wilson
from world_gymnast_ros.types import F32, U8, Frame, Judge, Start, WorldModel

RELEASE_AUC = 0.9


@dataclass(frozen=True)
class Recorded:
    """One recorded true episode: `frames` uint8 (T+1, H, W, 3), `deltas` float32 (T, 7), `state` (7,) or None.

    `captured` uint8 (H, W, 3): the first frame as the camera gave it, where it was kept."""

    family: str
    instruction: str
    frames: U8
    deltas: F32
    state: F32 | None
    success: bool
    captured: U8 | None = None


_NEEDED = ("frames", "deltas", "states", "success", "instruction", "family", "length")


def read_play(paths: Iterable[Path], limit: int | None = None) -> list[Recorded]:
    """Read up to `limit` episodes of each play-data file."""
    out: list[Recorded] = []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {k: data[k] for k in _NEEDED}
                captured = data["captured"] if "captured" in data.files else [None] * len(arrays["frames"])
        except (OSError, ValueError, KeyError) as error:
            raise EpisodeError(f"{path} is not play data ({error}); make some with `world-gymnast twin play`"
                               ) from error
        for i in range(min(len(arrays["frames"]), limit or 10**9)):
            T = int(arrays["length"][i])
            out.append(Recorded(str(arrays["family"][i]), str(arrays["instruction"][i]), arrays["frames"][i, :T + 1],
                                arrays["deltas"][i, :T], arrays["states"][i, 0], bool(arrays["success"][i, T]),
                                captured[i]))
    if not out:
        raise EpisodeError("no recorded episodes to replay; make some with `world-gymnast twin play`")
    return out


@dataclass(frozen=True)
class Replayed:
    """Imagined score of one recorded episode (mean over copies; None: no verdict) and the last dream's pictures."""

    recorded: Recorded
    score: float | None
    claimed: bool
    true_frame_score: float | None
    dream: U8


def replay_all(world_model: WorldModel, judge: Judge, episodes: list[Recorded], copies: int, seed: int,
               progress: Callable[[int], None] = lambda done: None) -> list[Replayed]:
    """Replay every episode in `copies` dreams; also judge the true frames (the ceiling the judge sets)."""
    out = []
    for i, episode in enumerate(episodes):
        first = np.ascontiguousarray(episode.frames[0])
        start = Start(Frame(first, 0), episode.state, episode.instruction,
                      Frame(first if episode.captured is None else episode.captured, 0))
        deltas = np.repeat(episode.deltas[None], copies, axis=0)
        dream = replay(world_model, [start] * copies, deltas, seed + i)
        facts = facts_of([start] * (copies + 1), np.repeat(episode.deltas[None], copies + 1, axis=0))
        verdicts = judge_safely(judge, np.concatenate([dream, episode.frames[None]]), episode.instruction, facts)
        scores = [v.score for v in verdicts[:-1] if v.score is not None]
        out.append(Replayed(episode, float(np.mean(scores)) if scores else None,
                            sum(is_success(v) for v in verdicts[:-1]) * 2 > copies, verdicts[-1].score, dream[0]))
        progress(i + 1)
    return out


def release_rows(replayed: list[Replayed]) -> dict[str, dict[str, Any]]:
    """Return per family: AUC in the dream and on true frames, false success rate, with intervals, and counts."""
    rows: dict[str, dict[str, Any]] = {}
    for family in sorted({r.recorded.family for r in replayed}):
        mine = [r for r in replayed if r.recorded.family == family]
        judged = [r for r in mine if r.score is not None]
        truth = [r.recorded.success for r in judged]
        dream = paired_replay_auc([r.score for r in judged if r.score is not None], truth)
        ceiling = paired_replay_auc([0.0 if r.true_frame_score is None else r.true_frame_score for r in judged], truth)
        failures = [r for r in judged if not r.recorded.success]
        false = wilson(sum(r.claimed for r in failures), max(len(failures), 1))
        wins = [r for r in judged if r.recorded.success]
        rows[family] = {
            "auc": dream.value, "low": dream.low, "high": dream.high, "auc_true_frames": ceiling.value,
            "false_success": false.value, "false_success_low": false.low, "false_success_high": false.high,
            "recall": float(np.mean([r.claimed for r in wins])) if wins else float("nan"),
            "episodes": len(mine), "successes": sum(r.recorded.success for r in mine),
            "no_verdict": len(mine) - len(judged),
            "released": float(dream.value >= RELEASE_AUC)}
    return rows


def release_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """Format the release table."""
    lines = ["| family | episodes (successes) | no verdict | AUC in the dream [95 %] | AUC on true frames "
             "| false success [95 %] | recall | offered |",
             "|---|---|---|---|---|---|---|---|"]
    for family, r in rows.items():
        why = "yes" if r["released"] else f"no: AUC below {RELEASE_AUC}"
        lines.append(f"| {family} | {r['episodes']} ({r['successes']}) | {r['no_verdict']} "
                     f"| {r['auc']:.3f} [{r['low']:.3f}, {r['high']:.3f}] "
                     f"| {r['auc_true_frames']:.3f} | {r['false_success']:.3f} [{r['false_success_low']:.3f}, "
                     f"{r['false_success_high']:.3f}] | {r['recall']:.2f} | {why} |")
    return "\n".join(lines)
