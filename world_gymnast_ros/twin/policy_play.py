"""True episodes of a policy on the twin in the play-data format, with truth."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from world_gymnast_ros.twin.bridge_loop import BridgeLoop
from world_gymnast_ros.twin.play import RENDER_HEIGHT, RENDER_WIDTH, Act, record
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.types import F32, Frame, Policy


def record_policy(twin: Twin, policy: Policy, seed: int, instruction: str, temperature: float, behaviour: str
                  ) -> dict[str, np.ndarray]:
    """Run one episode from reset `seed` and return its row; greedy at temperature 0, else sampled with `seed`.

    The same actions as `rollout.run_episode` takes for the same arguments.
    """
    def begin(loop: BridgeLoop) -> Act:
        chunk: list[F32] = []

        def act(t: int) -> F32:
            if not chunk:
                frame = Frame(twin.render(RENDER_WIDTH, RENDER_HEIGHT), round(twin.time_s * 1e9))
                if temperature == 0.0:
                    chunk.extend(policy.act(frame, instruction).deltas)
                else:
                    chunk.extend(policy.sample(frame.rgb[None], instruction, temperature, seed * 1000 + t).deltas[0])
            return chunk.pop(0)
        return act

    return record(twin, seed, instruction, behaviour, begin)


def policy_episodes(twin: Twin, policy: Policy, seeds: Sequence[int], instruction: str, temperature: float,
                    behaviour: str, progress: Callable[[], object] = lambda: None) -> list[dict[str, np.ndarray]]:
    """Return one row per seed."""
    rows = []
    for seed in seeds:
        rows.append(record_policy(twin, policy, seed, instruction, temperature, behaviour))
        progress()
    return rows
