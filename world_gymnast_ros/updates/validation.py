"""Is what the dream promoted better on the arm? Pairs of trials with the present adapter until the answer is clear.

The sequential test of `world-gymnast evaluate`, within a round of the loop: both act as they would be deployed, in an
order drawn by lot, and whoever watches does not know which. Every trial is kept, and is learned from later.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.episode_files import write_episodes
from world_gymnast_ros.data.read import read_arrays
from world_gymnast_ros.evaluation.environment import Environment
from world_gymnast_ros.evaluation.paired_trials import Trial, TrialLog, Verdict, compare
from world_gymnast_ros.evaluation.sequential_test import PairedTest
from world_gymnast_ros.types import AdapterRef, Policy
from world_gymnast_ros.updates.real_episodes import successes


@dataclass(frozen=True)
class Validated:
    """The verdict, and the trials whose outcome is known: of the candidate ("adapter") and of the present ("base")."""

    verdict: Verdict
    trials: dict[str, list[Episode]]

    @property
    def episodes(self) -> list[Episode]:
        """All trials of known outcome."""
        return [e for some in self.trials.values() for e in some]

    def record(self, policy: str) -> tuple[int, int]:
        """Return successes and trials of one of the two."""
        return successes(self.trials[policy]), len(self.trials[policy])


def validate(environment: Environment, policy: Policy, present: AdapterRef | None, candidate: AdapterRef | None,
             instruction: str, seeds: Sequence[int], limit_pairs: int, confidence: float, seed: int, folder: Path
             ) -> Validated:
    """Compare two adapters in pairs of trials from `seeds`, one seed a pair; `seed` draws the order.

    Trials that `folder` holds are not run again. KeyboardInterrupt where a person stops it: nothing is decided then.
    """
    stopped = False
    log = TrialLog(folder, {"adapter": candidate.sha256 if candidate else "", "present": present.sha256 if present else
                            "", "instruction": instruction, "where": environment.name, "seed": seed})

    def outcome(trial: Trial) -> bool | None:
        nonlocal stopped
        try:
            environment.reset(trial.seed, instruction)
            episode = environment.run(policy, candidate if trial.policy == "adapter" else present, instruction, 0.0,
                                      trial.seed)
            success = environment.outcome()
        except KeyboardInterrupt:
            stopped = True
            raise
        if success is not None:
            write_episodes(folder / f"{trial.pair:04d}-{trial.policy}.npz", [replace(
                episode, success=success, done_step=episode.done_step if success else None)])
        return success

    verdict = compare(outcome, log, PairedTest(limit_pairs, confidence), seed, seeds[0])
    if stopped:
        raise KeyboardInterrupt
    return Validated(verdict, {name: [e for path in sorted(folder.glob(f"*-{name}.npz")) for e in read_arrays(path)]
                               for name in ("adapter", "base")})
