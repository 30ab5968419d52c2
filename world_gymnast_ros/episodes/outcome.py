"""What came of an episode, said by a person or a rule, and kept apart from how the recording ended."""
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_gymnast_ros.episodes.files import OUTCOME_NAME, read_json, write_json
from world_gymnast_ros.errors import EpisodeError

OUTCOMES = ("success", "failure", "unknown")
ENDED_BY = ("done", "stopped", "fault", "time")


@dataclass(frozen=True)
class Outcome:
    """`outcome` success, failure or unknown; `partial_score` 0..1 or None; `judgements` as stored, oldest first."""

    outcome: str = "unknown"
    marked_by: str = ""
    partial_score: float | None = None
    marked_ns: int = 0
    judgements: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise EpisodeError(f"outcome {self.outcome!r} is not one of {', '.join(OUTCOMES)}")
        if self.outcome != "unknown" and not self.marked_by:
            raise EpisodeError(f"outcome {self.outcome!r} needs marked_by: who says so (a name, or a rule's name)")
        score = self.partial_score
        if score is not None and not (math.isfinite(score) and 0.0 <= score <= 1.0):
            raise EpisodeError(f"partial score {score} is outside 0..1; leave it out if there is none")


def check_ended_by(ended_by: str) -> str:
    """Return `ended_by`, or raise EpisodeError."""
    if ended_by not in ENDED_BY:
        raise EpisodeError(f"ended_by {ended_by!r} is not one of {', '.join(ENDED_BY)}")
    return ended_by


def read_outcome(folder: Path) -> Outcome:
    """Read an episode's outcome. Raises EpisodeError when it is missing or malformed."""
    value = read_json(folder / OUTCOME_NAME)
    try:
        return Outcome(
            outcome=str(value["outcome"]), marked_by=str(value["marked_by"]), partial_score=value["partial_score"],
            marked_ns=int(value["marked_ns"]), judgements=tuple(value["judgements"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EpisodeError(f"{folder / OUTCOME_NAME} is malformed: {error!r}; mark the episode again") from error


def write_outcome(folder: Path, outcome: Outcome, history: list[dict[str, Any]] | None = None) -> None:
    """Write `outcome.json` whole. `history` holds earlier marks."""
    write_json(folder / OUTCOME_NAME, {**_mark(outcome), "judgements": list(outcome.judgements),
                                       "history": history or []})


def _mark(outcome: Outcome) -> dict[str, Any]:
    return {"outcome": outcome.outcome, "marked_by": outcome.marked_by, "partial_score": outcome.partial_score,
            "marked_ns": outcome.marked_ns}
