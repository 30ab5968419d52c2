"""What is learned from and what is measured never share an episode."""
from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from world_gymnast_ros import seeds
from world_gymnast_ros.errors import BadConfig

ENDS = (0, 1, 2, seeds.MAX_SEED)


def test_the_ranges_are_disjoint() -> None:
    for (a, one), (b, other) in itertools.combinations(seeds.RANGES.items(), 2):
        assert max(one.start, other.start) >= min(one.stop, other.stop), f"{a} and {b} share seeds"


def test_every_purpose_stays_in_its_range_for_all_seeds_and_rounds() -> None:
    drawn = {
        "captures": [seeds.captures(seeds.MAX_CAPTURES, n) for n in (0, 1, seeds.MAX_ROUNDS)],
        "demo": [seeds.demo(seeds.MAX_EPISODES)],
        "evaluation": [seeds.evaluation(seeds.MAX_EVALUATION)],
        "training": [seeds.play(s, seeds.EPISODES_PER_FILE) for s in (1, 7000, 30_000, seeds.MAX_PLAY_SEED)],
        "replay": [seeds.play(seeds.replay_file(s, i), 1000) for s in (0, seeds.MAX_SEED) for i in (0, 9)],
        "replay check": [seeds.play(seeds.replay_file(s, i, check=True), 1000) for s in (0, seeds.MAX_SEED)
                         for i in (0, 9)],
        "real rounds": [seeds.real(s, n, p) for s in ENDS for n in (1, 2, seeds.MAX_ROUNDS) for p in (0, 1)],
        "validation": [seeds.validation(s) for s in ENDS],
        "demonstrations": [seeds.demonstrations(s, 100) for s in ENDS],
        "simulator": [seeds.simulator(s, 1000) for s in ENDS],
    }
    assert set(drawn) == set(seeds.RANGES)
    for name, ranges in drawn.items():
        for some in ranges:
            assert len(some) > 0 and some[0] in seeds.RANGES[name] and some[-1] in seeds.RANGES[name], (name, some)
        for one, other in itertools.combinations(ranges, 2):
            assert not set(one[:: max(1, len(one) - 1)]) & set(other), f"two draws of {name} share seeds"


def test_evaluate_never_draws_what_a_loop_learned_from() -> None:
    """A loop with seed 0 once learned from 61000 on in its first round, which `evaluate --seed 1` then measured on."""
    for mine, theirs in itertools.product(ENDS, ENDS):
        pairs, learned = seeds.validation(mine), [seeds.real(theirs, n) for n in (1, 2, seeds.MAX_ROUNDS)]
        assert not any(some.start in pairs or pairs.start in some for some in learned)


@pytest.mark.parametrize("draw", [
    lambda: seeds.real(seeds.MAX_SEED + 1, 1), lambda: seeds.real(0, seeds.MAX_ROUNDS + 1), lambda: seeds.real(0, 0),
    lambda: seeds.validation(seeds.MAX_SEED + 1), lambda: seeds.captures(seeds.MAX_CAPTURES + 1),
    lambda: seeds.captures(1, seeds.MAX_ROUNDS + 1), lambda: seeds.play(0, 1), lambda: seeds.play(-1, 1),
    lambda: seeds.evaluation(seeds.MAX_EVALUATION + 1), lambda: seeds.replay_file(seeds.MAX_SEED + 1, 0),
])
def test_beyond_its_range_a_seed_is_refused(draw) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadConfig, match=r"is -?\d+; give \d+ to \d+"):
        draw()


def test_the_command_line_and_the_table_have_the_same_limits(tmp_path: Path) -> None:
    from world_gymnast_ros.cli import parser_of

    for words in (["evaluate", str(tmp_path), "--scene", "novel_evening", "--seed", str(seeds.MAX_SEED + 1)],
                  ["iterate", "--scene", "lab_camera", "--seed", str(seeds.MAX_SEED + 1)],
                  ["twin", "play", "demo", "--family", "reach", "--seed", "0", "--out", "a.npz"],
                  ["twin", "play", "demo", "--family", "reach", "--seed", "80000", "--out", "a.npz"]):
        with pytest.raises(BadConfig, match="--seed"):
            parser_of(words).parse_args(words)
