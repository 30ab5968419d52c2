"""A latent world model decodes what policy, judge, filter and report look at, and nothing that comes of it changes."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_worldgym import TINY, BoxAutoencoder, network, starts

from world_gymnast_ros.adaptation.config import AdaptConfig
from world_gymnast_ros.adaptation.log import AdaptReport
from world_gymnast_ros.adaptation.rollout import imagine
from world_gymnast_ros.adaptation.rollout_filter import TrustConfig, image_faults
from world_gymnast_ros.adaptation.session import adapt
from world_gymnast_ros.models.judges.asking import AskConfig
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.world_models.worldgym import WorldGym
from world_gymnast_ros.testing.fakes import GOALS, FakeLearner, FakePolicy
from world_gymnast_ros.types import U8, Judgement, RolloutFacts, Start, looked_at

GOAL = next(iter(GOALS))


class Few:
    """Scores by the brightness of three frames, and knows nothing of the others."""

    name = "few"

    def looks_at(self, frames: int) -> list[int]:
        return AskConfig(frames=3).rows(frames)

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        bright = frames[:, self.looks_at(frames.shape[1])].astype(np.float64).mean((1, 2, 3, 4))
        return [Judgement(float(v * 7 % 1), progress=float(v * 3 % 1)) for v in bright]


class All:
    """The same judge, which does not say at what it looks."""

    name = "few"

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        return Few().score(frames, instruction, facts)


class Measures(Few):
    """Looks at no frame."""

    name, reads_frames = "measures", False


def world() -> WorldGym:
    return WorldGym(network(), BoxAutoencoder(), replace(TINY, sampling_steps=2), "tiny")


def start() -> Start:
    return replace(starts(1)[0], instruction=GOAL)


def session(judge: Any, every: int) -> tuple[AdaptReport, int]:
    model, policy = world(), FakePolicy(chunk_size=4)
    config = AdaptConfig(max_updates=2, groups_per_update=1, copies=4, horizon_steps=12, judge_every_chunks=every,
                         select_groups=2, promotion_groups=4, sharpness_floor=0.0, colour_shift_levels=255.0,
                         static_levels=60.0, static_fraction=0.2, evaluate_every=1)
    report = adapt(policy, model, judge, FakeLearner(policy), [start()], config, 0, lambda: 0.0)
    return report, model.autoencoder.decoded


@pytest.mark.parametrize("every", [0, 1])
def test_a_session_whose_judge_looks_at_few_frames_is_the_same_and_decodes_fewer(every: int) -> None:
    (few, decoded), (whole, all_of_them) = session(Few(), every), session(All(), every)
    assert few.curve == whole.curve and few.counts == whole.counts
    assert few.outcome == whole.outcome and few.promotion == whole.promotion
    assert len(few.strips) == len(whole.strips) > 2
    for one, other in zip(few.strips, whole.strips, strict=True):
        assert one.title == other.title and one.note == other.note and np.array_equal(one.frames, other.frames)
    assert few.counts.rerolled and decoded < (0.8 if every else 0.65) * all_of_them, (decoded, all_of_them)


def test_frames_that_are_asked_for_later_are_those_of_a_rollout_that_decodes_all() -> None:
    def played(sparing: bool) -> Any:
        return imagine(FakePolicy(chunk_size=4), model, Few(), start(), 3, 12, 1.0, 5, judge_every_chunks=0,
                       sparing=sparing)
    model = world()
    group = played(True)
    assert model.autoencoder.decoded == 3 * 4  # the ends of three chunks, and the middle one of the judge's three
    whole = played(False)
    assert whole.late is None and not np.array_equal(group.frames, whole.frames)
    assert np.array_equal(group.frames[:, [0, 4, 6, 8, 12]], whole.frames[:, [0, 4, 6, 8, 12]])
    assert np.array_equal(group.seen(1, range(13)), whole.frames[1])
    assert group.judgements == whole.judgements and model.autoencoder.decoded == 3 * 4 + 3 * 12 + 8


def test_a_rollout_is_static_only_if_frames_that_nobody_looked_at_are_so_too() -> None:
    group = imagine(FakePolicy(chunk_size=4), world(), Few(), start(), 1, 12, 1.0, 5, judge_every_chunks=0,
                    sparing=True)
    first, bright = group.frames[0, :1].copy(), np.full_like(group.frames[0, 0], 255)
    group.frames[0] = first

    def late(rollouts: Sequence[int], steps: Sequence[int]) -> None:
        if 7 in steps:
            group.frames[0, 7] = bright
    always = TrustConfig(moved_m=0.0, sharpness_floor=0.0, colour_shift_levels=255.0)
    assert image_faults(replace(group, late=None), always) == ["static"]
    assert image_faults(replace(group, late=late), always) == [""]


def test_several_judges_look_at_what_any_of_them_does_and_one_that_does_not_say_at_all() -> None:
    assert looked_at(Few(), 13) == [0, 6, 12] and list(looked_at(Measures(), 13)) == []
    assert Consensus((Few(), Measures())).looks_at(13) == [0, 6, 12]
    assert list(looked_at(All(), 5)) == Consensus((Measures(), All())).looks_at(5) == [0, 1, 2, 3, 4]
