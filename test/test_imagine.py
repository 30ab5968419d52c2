"""Imagined rollouts: order of calls, masking after success, early stop, no verdict, cancel."""
import numpy as np
import pytest

from world_gymnast_ros.adaptation.jitter import jitter_rgb, jitter_start
from world_gymnast_ros.adaptation.rollout import (
    Cancelled,
    executed_steps,
    group_deltas,
    imagine,
    is_success,
    judge_safely,
    replay,
)
from world_gymnast_ros.errors import BadAction, BadFrame, BadInstruction
from world_gymnast_ros.testing.fakes import FakeJudge, FakePolicy, FakeWorldModel, find_dots, start_frame
from world_gymnast_ros.types import Judgement, Start

START = Start(start_frame(), None, "go right")


def driven(direction: int, chunk_size: int = 4) -> FakePolicy:
    """A policy that surely moves right (bin 6) or left (bin 0)."""
    policy = FakePolicy(chunk_size)
    for table in policy.tables.values():
        table[:, 0, direction] = 50.0
        table[:, 1, 3] = 50.0
    return policy


def test_rollout_shapes_and_timing():
    policy = driven(4)  # 1 cm = 1 px per step
    group = imagine(policy, FakeWorldModel(noise_px=0.0), FakeJudge(), Start(start_frame(6), None, "go right"), 3, 10,
                    1.0, 0)
    assert group.frames.shape == (3, 13, 32, 32, 3)  # 10 steps are rounded up to 3 chunks of 4
    assert group.query_frames == (0, 4, 8) and len(group.chunks) == 3
    deltas = group_deltas(group)
    assert deltas.shape == (3, 12, 7)
    # row t of the actions is what happened between frame t and frame t + 1
    x = find_dots(group.frames)[..., 0]
    np.testing.assert_allclose(np.diff(x, axis=1)[:, :8], 1.0, atol=0.1)


def test_chunks_after_success_are_masked_and_the_dream_stops_early():
    world = FakeWorldModel(noise_px=0.0)
    group = imagine(driven(6), world, FakeJudge(), START, 2, 40, 1.0, 0)  # 3 px per step: done in the first chunk
    assert len(group.chunks) == 1 and group.valid.tolist() == [[True], [True]]
    assert all(is_success(j) and j.done_at is not None and 1 <= j.done_at <= 4 for j in group.judgements)
    assert (group.frames[:, 4:] == group.frames[:, 4:5]).all() and group.frames.shape[1] == 41
    assert executed_steps(group).tolist() == [4, 4]


def test_replayed_rows_end_where_they_are_told_to():
    world, deltas = FakeWorldModel(), np.full((3, 12, 7), 0.01, np.float32)
    whole = replay(world, [START] * 3, deltas, 1)
    drawn: list[int] = []
    begin = world.begin

    def counting(*args):
        dream = begin(*args)
        play = dream.play
        dream.play = lambda d: drawn.append(d.shape[0] * d.shape[1]) or play(d)
        return dream
    world.begin = counting
    ended = replay(world, [START] * 3, deltas, 1, steps=np.array([4, 12, 7]))
    assert sum(drawn) == 4 + 12 + 7
    for i, end in enumerate((4, 12, 7)):
        assert np.array_equal(ended[i, :end + 1], whole[i, :end + 1]) and (ended[i, end:] == ended[i, end]).all()


def test_a_finished_copy_stands_still_while_others_go_on():
    group = imagine(FakePolicy(), FakeWorldModel(), FakeJudge(), START, 24, 16, 1.0, 3)
    done = [i for i, j in enumerate(group.judgements) if is_success(j) and (j.done_at or 99) <= 8]
    going = [i for i, j in enumerate(group.judgements) if not is_success(j)]
    assert done and going and len(group.chunks) == 4
    for i in done:
        last = int(executed_steps(group)[i])
        assert (group.frames[i, last:] == group.frames[i, last]).all()
        assert group.valid[i].sum() == -(-group.judgements[i].done_at // 4)
    assert group.valid[going].all()


def test_finished_copies_leave_the_batch():
    class Counting(FakeWorldModel):
        def __init__(self):
            super().__init__()
            self.played = []

        def begin(self, starts, seed):
            rollouts, played = super().begin(starts, seed), self.played
            play = rollouts.play
            rollouts.play = lambda deltas: played.append(len(deltas)) or play(deltas)
            return rollouts
    world = Counting()
    group = imagine(FakePolicy(), world, FakeJudge(), START, 24, 16, 1.0, 3)
    assert world.played == [int((group.valid[:, n]).sum()) for n in range(4)] and world.played[-1] < 24
    assert (group.chunks[-1].deltas[~group.valid[:, -1], :, :6] == 0).all()


def test_what_a_copy_sees_does_not_hang_on_who_has_left():
    deltas = np.random.default_rng(0).normal(0, 0.02, (5, 6, 7)).astype(np.float32)
    whole, left = (FakeWorldModel().begin([START] * 5, 1) for _ in range(2))
    frames = whole.play(deltas)
    assert (left.play(deltas[:, :2]) == frames[:, :2]).all()
    rows = np.array([4, 1])
    left.keep(rows)
    assert (left.play(deltas[rows, 2:]) == frames[rows, 2:]).all()


def test_success_at_the_start_leaves_nothing_to_learn():
    there = Start(start_frame(26, 16), None, "go right")
    group = imagine(FakePolicy(), FakeWorldModel(), FakeJudge(), there, 3, 8, 1.0, 0)
    assert all(j.done_at == 0 for j in group.judgements) and not group.valid.any()


class BrokenJudge:
    name = "broken"

    def score(self, frames, instruction, facts=None):
        raise TimeoutError("server gone")


def test_an_instruction_the_judge_cannot_read_is_an_error():
    class Strict(BrokenJudge):
        def score(self, frames, instruction, facts=None):
            raise BadInstruction("unknown word")
    with pytest.raises(BadInstruction):
        imagine(FakePolicy(), FakeWorldModel(), Strict(), START, 2, 4, 1.0, 0)


class OddJudge:
    name = "odd"

    def __init__(self, scores):
        self.scores = scores

    def score(self, frames, instruction, facts=None):
        return [Judgement(s) for s in self.scores]


def test_a_failing_judge_gives_no_verdict_and_not_zero():
    group = imagine(FakePolicy(), FakeWorldModel(), BrokenJudge(), START, 3, 8, 1.0, 0)
    assert [j.score for j in group.judgements] == [None] * 3 and not group.valid.any()
    assert "server gone" in group.judgements[0].detail


@pytest.mark.parametrize("scores", [[0.2], [float("nan"), 0.1], [1.5, -0.1]])
def test_senseless_verdicts_become_no_verdict(scores):
    verdicts = judge_safely(OddJudge(scores), np.zeros((2, 3, 8, 8, 3), np.uint8), "go right")
    assert verdicts[0].score is None and len(verdicts) == 2


def test_a_tie_is_not_success():
    assert not is_success(Judgement(0.5)) and is_success(Judgement(0.51)) and not is_success(Judgement(None))


def test_same_seed_same_rollouts_other_seed_other_rollouts():
    a, b, c = (imagine(FakePolicy(), FakeWorldModel(), FakeJudge(), START, 4, 8, 1.0, s) for s in (7, 7, 8))
    assert (a.frames == b.frames).all() and (a.chunks[0].tokens == b.chunks[0].tokens).all()
    assert (a.chunks[0].tokens != c.chunks[0].tokens).any()
    # two queries of one rollout must not draw the same noise
    assert (a.chunks[0].tokens != a.chunks[1].tokens).any()


def test_replay_repeats_the_actions_under_other_noise():
    group = imagine(FakePolicy(), FakeWorldModel(), FakeJudge(), START, 4, 8, 1.0, 7, judge_every_chunks=0)
    again = replay(FakeWorldModel(noise_px=0.0), [START] * 4, group_deltas(group), 1)
    assert again.shape == group.frames.shape
    assert np.abs(find_dots(again) - find_dots(group.frames)).max() < 3.0
    assert (again != group.frames).any()


def test_cancel_between_chunks():
    calls = iter([False, True])
    with pytest.raises(Cancelled, match="chunk 2 of 4"):
        imagine(FakePolicy(), FakeWorldModel(), FakeJudge(), START, 2, 16, 1.0, 0, cancelled=lambda: next(calls))


def test_bad_parts_are_named():
    policy = FakePolicy()
    policy.tables["go right"][:] = np.nan
    with pytest.raises(BadInstruction):
        Start(start_frame(), None, "  ")
    with pytest.raises(BadAction, match=r"\(7,\)"):
        Start(start_frame(), np.full(7, np.nan, np.float32), "go right")

    class SmallRollouts(FakeWorldModel):
        def begin(self, starts, seed):
            rollouts = super().begin(starts, seed)
            play = rollouts.play
            rollouts.play = lambda deltas: play(deltas)[:, :, :16]
            return rollouts

    with pytest.raises(BadFrame, match="frame_size"):
        imagine(FakePolicy(), SmallRollouts(), FakeJudge(), START, 2, 4, 1.0, 0)


def test_a_camera_frame_of_another_size_is_brought_to_the_dream_size():
    big = np.kron(start_frame().rgb, np.ones((4, 5, 1), np.uint8))
    from world_gymnast_ros.types import Frame
    group = imagine(FakePolicy(), FakeWorldModel(), FakeJudge(), Start(Frame(big, 5), None, "go right"), 2, 4, 1.0, 0)
    assert group.frames.shape[2:] == (32, 32, 3)
    assert np.abs(group.frames[0, 0].astype(int) - start_frame().rgb.astype(int)).max() <= 1


def test_several_starts_share_a_batch():
    starts = [Start(start_frame(x), None, "go right") for x in (6.0, 16.0)]
    group = imagine(driven(4), FakeWorldModel(noise_px=0.0), FakeJudge(), starts, 3, 4, 1.0, 0, judge_every_chunks=0)
    x = find_dots(group.frames)[..., 0]
    assert x.shape == (6, 5)
    np.testing.assert_allclose(x[:, 0], [6, 6, 6, 16, 16, 16], atol=0.1)
    np.testing.assert_allclose(x[:, -1] - x[:, 0], 4, atol=0.2)
    with pytest.raises(BadInstruction, match="one instruction"):
        imagine(driven(4), FakeWorldModel(), FakeJudge(), [START, Start(start_frame(), None, "go left")], 3, 4, 1.0, 0)


def test_jitter_moves_by_whole_pixels_and_keeps_edges_sharp():
    rgb = start_frame().rgb
    seen = {tuple(np.round(find_dots(jitter_rgb(rgb, s, 0.1, 0.0)) - find_dots(rgb)).astype(int)) for s in range(60)}
    assert len(seen) > 20 and all(abs(dx) <= 3 and abs(dy) <= 3 for dx, dy in seen)
    assert (jitter_rgb(rgb, 3, 0.0, 0.0) == rgb).all()
    brighter = [jitter_rgb(rgb, s, 0.0, 0.05).mean() / rgb.mean() for s in range(20)]
    assert 0.9 < min(brighter) < 0.99 and 1.01 < max(brighter) < 1.1
    assert jitter_start(START, 1, 0.1, 0.1).instruction == "go right"
