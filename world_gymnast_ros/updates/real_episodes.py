"""Real episodes of a round: run in an environment, kept one by one, then dealt out to learning and checking.

Each episode lies on disk before the next begins. On a robot each costs a person a minute, so a stopped round goes on
where it was.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.episode_files import write_episodes
from world_gymnast_ros.data.read import read_arrays
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.evaluation.environment import Environment
from world_gymnast_ros.types import AdapterRef, Policy

PARTS = ("held_out", "training", "calibration", "training")
"""Where real episodes go, in turn, failures from the first, successes from the second: of eight, two at least are held
out. All but those held out train the world model; the judge's weights see training alone, and the threshold of such
weights is set on calibration; what has few parameters (camera, height, margin, a threshold of weights that saw none of
them) learns from both. Held out decides."""
ATTEMPTS = 2
"""Times as many episodes as asked for are run at most: one whose outcome nobody can say is run again."""


def collect(environment: Environment, policy: Policy, adapter: AdapterRef | None, seeds: Sequence[int], count: int,
            instruction: str, temperature: float, folder: Path,
            progress: Callable[[int, int], object] = lambda done, count: None) -> list[Episode]:
    """Run `count` real episodes of known outcome, or go on with those that `folder` holds; return them in order.

    `seeds`: at least ATTEMPTS times `count`. An episode whose outcome nobody can say is left out and run again from the
    next seed. EpisodeError where too many have none.
    """
    episodes: list[Episode] = []
    for i, seed in enumerate(seeds[:ATTEMPTS * count]):
        if len(episodes) == count:
            break
        path, unknown = folder / f"{i:04d}.npz", folder / f"{i:04d}.unknown"
        if path.is_file():
            episodes += read_arrays(path)
        elif not unknown.is_file():
            environment.reset(seed, instruction)
            episode = environment.run(policy, adapter, instruction, temperature, seed)
            success = environment.outcome()
            if success is None:
                folder.mkdir(parents=True, exist_ok=True)
                unknown.touch()
                continue
            episode = replace(episode, success=success, done_step=episode.done_step if success else None)
            write_episodes(path, [episode])
            episodes.append(episode)
        progress(len(episodes), count)
    if len(episodes) < count:
        raise EpisodeError(f"{len(episodes)} of {count} episodes have an outcome after {ATTEMPTS * count} attempts: "
                           "whoever watches must be able to tell success from failure; begin the round anew")
    return episodes


def deal(episodes: Sequence[Episode], folder: Path, name: str) -> None:
    """Write episodes to `folder`/PART/`name`.npz, each outcome by itself dealt out as PARTS says."""
    parts: dict[str, list[Episode]] = {part: [] for part in PARTS}
    for outcome in (True, False):
        for i, episode in enumerate((e for e in episodes if e.success == outcome), int(outcome)):
            parts[PARTS[i % len(PARTS)]].append(episode)
    for part, some in parts.items():
        path = folder / part / f"{name}.npz"
        path.unlink(missing_ok=True)  # of an attempt that was stopped
        if some:
            write_episodes(path, some)


def successes(episodes: Sequence[Episode]) -> int:
    """Return how many succeeded."""
    return sum(bool(e.success) for e in episodes)
