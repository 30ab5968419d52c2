"""Mark a recorded episode. A judge's opinion stands beside the outcome and never becomes it.

`outcome.json` may change after the recording, and its copy in the step table; the recording itself never does.
"""
from __future__ import annotations

from pathlib import Path

from world_gymnast_ros.episodes.files import OUTCOME_NAME, STEPS_NAME, read_json
from world_gymnast_ros.episodes.outcome import Outcome, read_outcome, write_outcome
from world_gymnast_ros.episodes.steps import label_steps
from world_gymnast_ros.types import Judgement


def mark_outcome(folder: Path, outcome: str, marked_by: str, partial_score: float | None, now_ns: int) -> Outcome:
    """Mark a finished episode, keeping earlier marks as history and every judge's opinion. Raises EpisodeError.

    `outcome.json` counts; the step table's copy follows it.
    """
    path = folder / OUTCOME_NAME
    old = read_json(path) if path.exists() else {}
    marked = Outcome(outcome, marked_by, partial_score, now_ns, tuple(old.get("judgements", ())))
    history = list(old.get("history", ()))
    if old.get("marked_by"):
        history.append({key: old[key] for key in ("outcome", "marked_by", "partial_score", "marked_ns")})
    write_outcome(folder, marked, history)
    if (folder / STEPS_NAME).exists():
        label_steps(folder / STEPS_NAME, marked)
    return marked


def add_judgement(folder: Path, judge: str, judgement: Judgement, now_ns: int) -> Outcome:
    """Lay a judge's opinion beside the outcome, which it leaves as it is. Raises EpisodeError."""
    old = read_json(folder / OUTCOME_NAME)
    current = read_outcome(folder)
    opinion = {"judge": judge, "score": judgement.score, "done_at": judgement.done_at, "detail": judgement.detail,
               "judged_ns": now_ns}
    judged = Outcome(current.outcome, current.marked_by, current.partial_score, current.marked_ns,
                     (*current.judgements, opinion))
    write_outcome(folder, judged, list(old.get("history", ())))
    return judged
