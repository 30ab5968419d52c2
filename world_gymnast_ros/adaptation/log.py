"""What an adaptation session leaves behind: progress, learning curve, film strips, and a log that can be replayed."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros.adaptation.advantage import group_advantages
from world_gymnast_ros.adaptation.promotion import Promotion, decide_each
from world_gymnast_ros.adaptation.rollout_filter import TrustCounts
from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.types import F32, U8, AdapterRef, Start

LOG_NAME = "session.jsonl"


@dataclass(frozen=True)
class Progress:
    """Feedback while a session runs. `imagined_success` is the newest rate, in training or held-out. `notice`: what the
    user should read now, or ''; where it `warns`, the session will not do what it was asked for."""

    stage: str
    update: int
    max_updates: int
    mean_reward: float
    imagined_success: float
    seconds_left: float
    rejected: int
    notice: str = ""
    warns: bool = False


@dataclass(frozen=True)
class UpdateRow:
    """One point of the learning curve. `held_out` is the confirmed success on the selection seeds, where measured."""

    update: int
    mean_reward: float
    imagined_success: float
    rejected: int
    t_s: float
    held_out: float | None = None
    stats: dict[str, float] = field(default_factory=dict)


class StopKind(Enum):
    """Why training ended."""

    DONE = "all updates were made"
    TIME = "time"
    TRUST = "too many rollouts were rejected"
    SOLVED = "solved"
    NO_SIGNAL = "nothing to learn from"
    NO_PROGRESS = "no progress"
    NO_VERDICT = "no verdict"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Stop:
    """Why training ended, for the program and in words."""

    kind: StopKind
    text: str


class Outcome(StrEnum):
    """What a session came to."""

    PROMOTED = "promoted"
    WOULD_PROMOTE = "would_promote"
    """As promoted, in a dry run: nothing was stored."""
    KEPT = "kept"
    CANCELLED = "cancelled"

    @property
    def better(self) -> bool:
        """Whether an adapter passed the promotion test, stored or not."""
        return self in (Outcome.PROMOTED, Outcome.WOULD_PROMOTE)


class StripKind(Enum):
    """What a strip is shown for."""

    EXTREME = "best or worst of an update"
    REJECTED = "rejected"
    PAIRED = "base or adapter on one held-out seed"
    TRUE = "what truly happened"
    VARIED = "a varied start, beside the captured frame"


@dataclass(frozen=True)
class Strip:
    """A few frames uint8 (n, H, W, 3) of one rollout with their scores (n,) and what became of it.

    `captured` uint8 (H, W, 3): the camera's own frame of what the first one shows, where it is known.
    """

    title: str
    frames: U8
    scores: F32 | None
    note: str
    kind: StripKind = StripKind.EXTREME
    captured: U8 | None = None


@dataclass(frozen=True)
class AdaptReport:
    """What a session came to.

    `starved`: '' or how far the session fell short of the updates it was asked for, for want of time."""

    outcome: Outcome
    message: str
    adapter: AdapterRef | None
    promotion: Promotion | None
    curve: tuple[UpdateRow, ...]
    strips: tuple[Strip, ...]
    counts: TrustCounts
    seconds: dict[str, float]
    imagined_rollouts: int
    imagined_frames: int
    starts: tuple[Start, ...]
    names: dict[str, str]
    stop: Stop
    starved: str = ""
    notes: tuple[str, ...] = ()
    """What training began with beside the captured frames, in words."""

    @property
    def stop_reason(self) -> str:
        return self.stop.text

    @property
    def judged(self) -> bool:
        """Whether the judges gave verdicts on at least half of the rollouts."""
        return 0 < self.counts.rollouts >= 2 * self.counts.no_verdict

    @property
    def promoted(self) -> bool:
        return self.outcome is Outcome.PROMOTED


class Stopwatch:
    """Adds up seconds per stage of the session with the clock it is given."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.now_s, self.start_s = now_s, now_s()
        self.seconds: dict[str, float] = {}

    @property
    def elapsed_s(self) -> float:
        return self.now_s() - self.start_s

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = self.now_s()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.now_s() - began


class SessionLog:
    """Appends one JSON object per decision to a file; each line is flushed, so a crash loses at most the last one."""

    def __init__(self, path: Path | None, elapsed_s: Callable[[], float]) -> None:
        self.path, self.elapsed_s = path, elapsed_s
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, event: str, **facts: Any) -> None:
        if self.path is None:
            return
        line = json.dumps({"event": event, "t_s": round(self.elapsed_s(), 3), **facts}, default=_plain)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def read_session(path: Path) -> list[dict[str, Any]]:
    """Read a session log; a torn last line (a crash while writing) is left out, any other bad line is an error."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadCheckpoint(f"no session log at {path}: {error}") from error
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise BadCheckpoint(f"{path} line {number} is not JSON: {error}") from error
    return events


def check_session(events: list[dict[str, Any]]) -> list[str]:
    """Decide everything again from the logged facts and return what differs: nothing, for a sound log.

    Recomputes every group's advantages, the choice of the checkpoint, and the promotion test.
    """
    wrong: list[str] = []
    config = next((e["config"] for e in events if e["event"] == "session"), None)
    if config is None:
        return ["the log has no 'session' line"]
    best, best_update, tested = (-1.0, -1.0), 0, False
    for event in events:
        if event["event"] == "group":
            again = group_advantages(event["rewards"], config["advantage"])
            if not np.allclose(again.values, event["advantages"], atol=1e-4) or again.degenerate != event["degenerate"]:
                wrong.append(f"advantages of update {event['update']} differ")
        elif event["event"] == "held_out":
            if (rank := (event["rate"], event.get("mean_reward", event["mean_score"]))) > best:
                best, best_update = rank, event["update"]
        elif event["event"] == "select" and event["update"] != best_update:
            wrong.append(f"checkpoint {event['update']} was selected, {best_update} was best")
        elif event["event"] == "promote" and not tested:
            wrong.append("an adapter was promoted without a promotion test")
        elif event["event"] == "promotion_test":
            tested = True
            decision = decide_each(np.array(event["success_before"]), np.array(event["success_after"]),
                                   np.array(event["known"]), event["instructions"], config["margin"],
                                   config["allowed_loss"], config["confidence"],
                                   event["seed"]).withhold(event.get("withheld", ""))
            if decision.promote != event["promote"] or abs(decision.lower_bound - event["lower_bound"]) > 1e-9:
                wrong.append(f"the promotion test decides {decision.promote}, log says {event['promote']}")
    return wrong
