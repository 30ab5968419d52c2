"""What a round replays: each set of episodes once in each world model, however many judges are asked about it."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.evaluation.replay import Replays, replay_episodes
from world_gymnast_ros.loading.load import load_judges, load_world_model


class ReplayCache:
    """Replays of sets of episodes, by the names of their models and of the set."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._replays: dict[Any, Replays] = {}
        self._rollouts: dict[Any, list[Any]] = {}

    def clear(self) -> None:
        """Forget all: other episodes have come."""
        self._replays.clear()
        self._rollouts.clear()

    def replay(self, world_model: str, drawn_by: tuple[str, ...], judges: Sequence[str], which: str,
               episodes: Sequence[Episode]) -> Replays:
        """Replay the set of episodes called `which` in a world model; `drawn_by`: the judges with which
        that is loaded: a geometric one among them knows the camera and finds the objects."""
        key, same = (world_model, drawn_by, *judges, which), (world_model, drawn_by, which)
        if key not in self._replays:
            world = load_world_model(world_model, drawn_by)
            self._replays[key] = replay_episodes(world, load_judges(judges), episodes, self.seed,
                                                 rollouts=self._rollouts.get(same))
            self._rollouts[same] = self._replays[key].rollouts
        return self._replays[key]
