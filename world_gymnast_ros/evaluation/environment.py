"""Where real episodes take place: whoever closes the loop, or measures, knows this and no simulator."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.types import AdapterRef, Policy, Start


class Environment(Protocol):
    """One scene with an arm. An episode: `reset`, `run`, `outcome`; `reset` alone gives a frame to imagine from."""

    @property
    def name(self) -> str:
        """What the scene is called."""

    def reset(self, seed: int, instruction: str) -> Start:
        """Set the scene up anew; return what the camera sees, at its own size, and the measured Bridge state."""

    def run(self, policy: Policy, adapter: AdapterRef | None, instruction: str, temperature: float, seed: int
            ) -> Episode:
        """Let the policy act with `adapter` (None: the base), greedily at temperature 0; the outcome is not asked yet.

        KeyboardInterrupt where a person stops it.
        """

    def outcome(self) -> bool | None:
        """Return what came of the episode that ran last; None where nobody can say."""

    def close(self) -> None:
        """Let go of everything."""


def episodes(environment: Environment, policy: Policy, adapter: AdapterRef | None, seeds: Sequence[int],
             instruction: str, temperature: float = 0.0) -> Iterator[Episode]:
    """Run one real episode from each seed; yield those whose outcome somebody could say."""
    for seed in seeds:
        environment.reset(seed, instruction)
        episode = environment.run(policy, adapter, instruction, temperature, seed)
        success = environment.outcome()
        if success is not None:
            yield replace(episode, success=success, done_step=episode.done_step if success else None)


def outcomes(environment: Environment, policy: Policy, adapter: AdapterRef | None, seeds: Sequence[int],
             instruction: str, temperature: float = 0.0) -> list[bool]:
    """Return the outcomes of one real episode from each seed; one that nobody can say is left out."""
    return [bool(e.success) for e in episodes(environment, policy, adapter, seeds, instruction, temperature)]
