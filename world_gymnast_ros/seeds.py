"""Every range of episode seeds, in one table. A seed says where objects and arm stand when an episode begins.

What is learned from and what is measured must never share an episode. So each purpose has a range of its own, the
ranges are disjoint (`test/test_seeds.py`), and a purpose that would leave its range is refused.
"""
from __future__ import annotations

from world_gymnast_ros.errors import BadConfig

MAX_SEED = 1000
"""Largest `--seed` of a run that draws episodes."""
MAX_ROUNDS, MAX_EPISODES, MAX_CAPTURES, MAX_PAIRS = 90, 1000, 100, 10_000
"""Of one run: rounds, real episodes in a round, captured frames in a round, pairs of an evaluation."""
MAX_EVALUATION = 10_000
EPISODES_PER_FILE = 100_000
MAX_PLAY_SEED = 79_999

CAPTURE = range(900, 10_000)
"""Scenes whose first frame an adaptation starts from; the last one first."""
DEMO = range(10_000, 20_000)
"""True episodes of `world-gymnast demo`, before and after."""
EVALUATION = range(40_000, 50_000)
"""True episodes that measure: benchmarks, and `iterate` after each round."""
TRAINING = range(1 * EPISODES_PER_FILE, (MAX_PLAY_SEED + 1) * EPISODES_PER_FILE)
"""Scripted play that policy, world model and judges are trained on: `twin play --seed 1` and on."""
REPLAY = range(TRAINING.stop, TRAINING.stop + 10 * (MAX_SEED + 1) * EPISODES_PER_FILE)
"""Play that `iterate --scene` mixes into updates."""
REPLAY_CHECK = range(REPLAY.stop, REPLAY.stop + 10 * (MAX_SEED + 1) * EPISODES_PER_FILE)
"""Play in which an update must not make anything worse."""
_PER_ROUND = 4 * MAX_EPISODES
REAL = range(REPLAY_CHECK.stop, REPLAY_CHECK.stop + (MAX_SEED + 1) * MAX_ROUNDS * _PER_ROUND)
"""Real episodes of `iterate`: a run's rounds learn from them."""
VALIDATION = range(REAL.stop, REAL.stop + (MAX_SEED + 1) * 2 * MAX_PAIRS)
"""Pairs of trials of `world-gymnast evaluate`."""
DEMONSTRATIONS = range(VALIDATION.stop, VALIDATION.stop + (MAX_SEED + 1) * 100)
"""Demonstrations that a comparison clones in place of a session."""
SIMULATOR = range(DEMONSTRATIONS.stop, DEMONSTRATIONS.stop + (MAX_SEED + 1) * 1000)
"""Episodes that a comparison learns from in a simulator."""

RANGES = {"captures": CAPTURE, "demo": DEMO, "evaluation": EVALUATION, "training": TRAINING, "replay": REPLAY,
          "replay check": REPLAY_CHECK, "real rounds": REAL, "validation": VALIDATION,
          "demonstrations": DEMONSTRATIONS, "simulator": SIMULATOR}


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise BadConfig(f"{name} is {value}; give {least} to {most}, for which there are episode seeds")


def captures(count: int, number: int = 0) -> range:
    """Return the seeds of the `count` scenes that are captured in round `number` (0: outside a loop)."""
    _check("number of captures", count, 1, MAX_CAPTURES)
    _check("round", number, 0, MAX_ROUNDS)
    first = CAPTURE[-1] - MAX_CAPTURES * number
    return range(first, first - count, -1)


def demo(count: int) -> range:
    """Return the seeds of the true episodes of a demo."""
    _check("number of episodes", count, 1, MAX_EPISODES)
    return DEMO[:count]


def evaluation(count: int) -> range:
    """Return the seeds of `count` true episodes that measure."""
    _check("number of evaluation episodes", count, 1, MAX_EVALUATION)
    return EVALUATION[:count]


def play(seed: int, count: int) -> range:
    """Return the seeds of the episodes of one file of scripted play, by the file's seed."""
    _check("seed of a play file", seed, 1, REPLAY_CHECK.stop // EPISODES_PER_FILE - 1)
    _check("number of episodes", count, 1, EPISODES_PER_FILE)
    return range(seed * EPISODES_PER_FILE, seed * EPISODES_PER_FILE + count)


def replay_file(seed: int, index: int, check: bool = False) -> int:
    """Return the seed of file `index` (0 to 9) of the play that a run with `seed` mixes in, or checks itself on."""
    _check("seed", seed, 0, MAX_SEED)
    _check("file of play", index, 0, 9)
    return (REPLAY_CHECK if check else REPLAY).start // EPISODES_PER_FILE + 10 * seed + index


def real(seed: int, number: int, part: int = 0) -> range:
    """Return the seeds of the real episodes of round `number` in a run with `seed`.

    `part` 0: explored, 1: tried without chance; each has twice MAX_EPISODES, for some may have to be repeated.
    """
    _check("seed", seed, 0, MAX_SEED)
    _check("round", number, 1, MAX_ROUNDS)
    _check("part of a round", part, 0, 1)
    first = (seed * MAX_ROUNDS + number - 1) * _PER_ROUND + part * 2 * MAX_EPISODES
    return REAL[first:first + 2 * MAX_EPISODES]


def validation(seed: int) -> range:
    """Return the seeds of the pairs of an evaluation with `seed`."""
    _check("seed", seed, 0, MAX_SEED)
    return VALIDATION[seed * 2 * MAX_PAIRS:(seed + 1) * 2 * MAX_PAIRS]


def demonstrations(seed: int, count: int) -> range:
    """Return the seeds of the demonstrations of a comparison with `seed`."""
    _check("seed", seed, 0, MAX_SEED)
    _check("number of demonstrations", count, 1, 100)
    return DEMONSTRATIONS[seed * 100:seed * 100 + count]


def simulator(seed: int, count: int) -> range:
    """Return the seeds of the episodes that a comparison with `seed` learns from in a simulator."""
    _check("seed", seed, 0, MAX_SEED)
    _check("number of episodes", count, 1, 1000)
    return SIMULATOR[seed * 1000:seed * 1000 + count]
