"""The trust filter: what a bad dream looks like, and successes that do not come again."""
from dataclasses import replace

import numpy as np
import pytest

from world_gymnast_ros.adaptation.rollout import Start, imagine, is_success
from world_gymnast_ros.adaptation.rollout_filter import TrustConfig, TrustCounts, filter_group, image_faults
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.testing.fakes import (
    FakeJudge,
    FakePolicy,
    FakeRollouts,
    FakeWorldModel,
    draw_dot,
    find_dots,
    start_frame,
)
from world_gymnast_ros.types import Judgement

START = Start(start_frame(), None, "go right")
CONFIG = TrustConfig()


def rollouts(copies=12, **kwargs):
    return imagine(FakePolicy(), FakeWorldModel(**kwargs), FakeJudge(), START, copies, 12, 1.0, 3, judge_every_chunks=0)


def box_blur(frames, radius=2):
    out = frames.astype(np.float32)
    for axis in (2, 3):
        out = np.mean([np.roll(out, s, axis) for s in range(-radius, radius + 1)], 0)
    return out.astype(np.uint8)


def test_sound_dreams_have_no_faults():
    assert image_faults(rollouts(), CONFIG) == [""] * 12


def test_static_blurred_and_recoloured_dreams_are_told_apart():
    group = rollouts()
    still = replace(group, frames=np.repeat(group.frames[:, :1], group.frames.shape[1], 1))
    assert set(image_faults(still, CONFIG)) == {"static"}
    blurred = group.frames.copy()
    blurred[:, 1:] = box_blur(group.frames[:, 1:])
    assert set(image_faults(replace(group, frames=blurred), CONFIG)) == {"blurred"}
    red = group.frames.astype(int)
    red[:, 1:, ..., 0] += 90
    red = replace(group, frames=np.clip(red, 0, 255).astype(np.uint8))
    assert set(image_faults(red, replace(CONFIG, sharpness_floor=0.0))) == {"colour"}


def test_a_image_may_stand_still_when_nothing_was_commanded():
    group = rollouts()
    chunks = tuple(replace(c, deltas=np.zeros_like(c.deltas)) for c in group.chunks)
    still = replace(group, chunks=chunks, frames=np.repeat(group.frames[:, :1], group.frames.shape[1], 1))
    assert image_faults(still, CONFIG) == [""] * 12


class HallucinatingWorld(FakeWorldModel):
    """Every dream under an even seed carries the dot to the right goal, whatever was asked."""

    def begin(self, starts, seed):
        return SuckedRollouts(np.stack([find_dots(s.frame.rgb) for s in starts]), 0.0, seed)


class SuckedRollouts(FakeRollouts):
    lucky = True

    def play(self, deltas):
        frames = []
        for t in range(deltas.shape[1]):
            frames.append(super().play(deltas[:, t:t + 1])[:, 0])
            if SuckedRollouts.lucky:
                self.xy_px[:, 0] = np.minimum(self.xy_px[:, 0] + 3, 26)
                frames[-1] = draw_dot(self.xy_px[:, 0], self.xy_px[:, 1])
        return np.stack(frames, 1)


def test_a_success_that_does_not_come_again_is_dropped_and_counted():
    world = HallucinatingWorld()
    SuckedRollouts.lucky = True
    group = imagine(FakePolicy(), world, FakeJudge(), START, 8, 16, 1.0, 3)
    claims = sum(map(is_success, group.judgements))
    assert claims >= 6
    SuckedRollouts.lucky = False  # the same actions, dreamed again without the luck
    filtered, counts = filter_group(world, FakeJudge(), START, group, CONFIG, 5)
    kept = sum(map(is_success, filtered.judgements))
    assert counts.not_reproduced == claims - kept >= 4 and counts.rerolled == claims
    dropped = [i for i, j in enumerate(filtered.judgements) if j.score is None]
    assert not filtered.valid[dropped].any() and "not reproduced" in filtered.judgements[dropped[0]].detail
    off, none = filter_group(world, FakeJudge(), START, group, replace(CONFIG, reroll=False), 5)
    assert none.rejected == 0 and off.judgements == group.judgements


def test_honest_successes_stay():
    world = FakeWorldModel(noise_px=0.0)
    policy = FakePolicy()
    policy.tables["go right"][:, 0, 6] = 50.0
    policy.tables["go right"][:, 1, 3] = 50.0
    group = imagine(policy, world, FakeJudge(), START, 6, 16, 1.0, 3)
    filtered, counts = filter_group(world, FakeJudge(), START, group, CONFIG, 9)
    assert counts.rerolled == 6 and counts.rejected == 0 and all(map(is_success, filtered.judgements))
    assert (filtered.valid == group.valid).all()


def test_no_verdict_is_counted_apart_from_rejection():
    group = rollouts(4)
    judgements = (Judgement(None, detail="timeout"), *group.judgements[1:])
    _, counts = filter_group(FakeWorldModel(), FakeJudge(), START, replace(group, judgements=judgements), CONFIG, 0)
    assert counts.no_verdict == 1 and counts.rollouts == 4
    total = counts + TrustCounts(rollouts=4, static=2)
    assert total.rollouts == 8 and total.static == 2 and total.rejection_rate == total.rejected / 8
    assert TrustCounts().rejection_rate == 0.0


def test_limits_are_checked():
    with pytest.raises(BadConfig, match="sharpness_floor"):
        TrustConfig(sharpness_floor=-1.0)
