"""How long a session takes: from a recorded rate before it starts, from its own first update once it runs.

A session that time cuts off before half of its updates promotes nothing. So it is said as soon as it is known.
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from world_gymnast_ros.adaptation.config import AdaptConfig
from world_gymnast_ros.adaptation.log import LOG_NAME

STARVED_SHARE = 0.5
"""A session that time cut off after fewer than this share of its updates was starved."""
PROMOTION_SHARE = 0.5
"""At most this share of the budget is kept for the promotion test."""
RECORDED = "measured_rate"
"""Event of a session's log that holds a `Rate`."""
ALIKE = ("policy", "world_model", "judges", "device", "dtype", "four_bit", "threads", "horizon_steps",
         "judge_every_chunks", "reroll", "epochs", "micro_chunks", "lora_rank")
"""Settings that a recorded rate must share with a session that it is used for."""
NEWEST = 20
"""So many of the newest sessions are looked at."""


@dataclass(frozen=True)
class Rate:
    """Seconds of one rollout: in an update, with its share of the learning, and held out."""

    train_s: float
    held_out_s: float

    @property
    def per_minute(self) -> float:
        """Rollouts per minute of training."""
        return 60.0 / max(self.train_s, 1e-9)


@dataclass(frozen=True)
class TimePlan:
    """What a session of so many different `instructions` takes at a rate; `spent_s` of its budget are over already, the
    first measurement of the base included (None: that is still to come); `extra_groups` of earlier scenes per update.
    """

    config: AdaptConfig
    instructions: int
    rate: Rate
    spent_s: float | None = None
    made: int = 0
    extra_groups: int = 0

    @property
    def update_s(self) -> float:
        """Seconds of one update."""
        groups = max(self.config.groups_per_update, self.instructions) + self.extra_groups
        return groups * self.config.copies * self.rate.train_s

    @property
    def select_s(self) -> float:
        """Seconds of one held-out evaluation."""
        return self.config.select_groups * self.instructions * self.config.held_out_copies * self.rate.held_out_s

    @property
    def promotion_s(self) -> float:
        """Seconds of the promotion test: base and best."""
        rollouts = 2 * self.config.promotion_groups * self.instructions * self.config.held_out_copies
        return rollouts * self.rate.held_out_s

    @property
    def reserve_s(self) -> float:
        """Seconds of the budget that are kept for the promotion test."""
        return min(self.promotion_s, PROMOTION_SHARE * self.config.budget_s)

    def needed_s(self, updates: int) -> float:
        """Return the seconds of a session with so many updates, promotion test included."""
        evaluations = 1 + math.ceil(updates / self.config.evaluate_every)
        return updates * self.update_s + evaluations * self.select_s + self.promotion_s

    @property
    def fitting(self) -> int:
        """How many updates the budget allows, those already `made` included."""
        c = self.config
        now_s = self.select_s if self.spent_s is None else self.spent_s
        for update in range(self.made + 1, c.max_updates + 1):
            if now_s + self.update_s + self.reserve_s > c.budget_s:
                return update - 1
            now_s += self.update_s + self.select_s * (update % c.evaluate_every == 0)
        return c.max_updates

    @property
    def wanted(self) -> int:
        """Fewest updates after which a session that time ends may still promote."""
        return math.ceil(STARVED_SHARE * self.config.max_updates)

    @property
    def short(self) -> bool:
        """Whether the budget allows fewer."""
        return self.fitting < self.wanted

    @property
    def words(self) -> str:
        """What the budget allows, and what to do where that is too little."""
        c, fit = self.config, self.fitting
        if not self.short:
            return (f"{fit} of {c.max_updates} updates fit into {c.budget_s:.0f} s, at {self.rate.per_minute:.0f} "
                    "rollouts per minute")
        fewer = f", or ask for {fit} updates (max_updates={fit})" if fit else ""
        return (f"the session cannot do its updates: about {fit} of {c.max_updates} fit into {c.budget_s:.0f} s at "
                f"{self.rate.per_minute:.0f} rollouts per minute, and with fewer than {self.wanted} nothing is "
                f"promoted; give it about {math.ceil(self.needed_s(c.max_updates))} s (budget_s){fewer}")


def recorded_rate(directory: Path, config: AdaptConfig) -> tuple[Rate, str] | None:
    """Return the rate of the newest session under `directory`/sessions with the same models and settings (`ALIKE`), and
    that session's name; None where there is none."""
    wanted = {key: value for key, value in asdict(config).items() if key in ALIKE}
    logs = sorted((directory / "sessions").glob(f"*/{LOG_NAME}"), reverse=True)
    for log in logs[:NEWEST]:
        rate = _read_rate(log, wanted)
        if rate is not None:
            return rate, log.parent.name
    return None


def _read_rate(log: Path, wanted: Mapping[str, Any]) -> Rate | None:
    try:
        with log.open(encoding="utf-8") as lines:
            first = json.loads(next(lines))
            if any(first["config"].get(key) != value for key, value in wanted.items()):
                return None
            for line in lines:
                row = json.loads(line) if f'"{RECORDED}"' in line else {}
                if row.get("event") == RECORDED:
                    return Rate(float(row["train_s"]), float(row["held_out_s"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):  # a damaged log tells nothing
        return None
    return None
