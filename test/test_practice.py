"""Where training begins: instructions by turns, starts along the way, earlier scenes."""
import time
from dataclasses import replace

import numpy as np
import pytest

from world_gymnast_ros.adaptation.config import AdaptConfig
from world_gymnast_ros.adaptation.log import StripKind, check_session, read_session
from world_gymnast_ros.adaptation.practice import (
    AlongStart,
    Curriculum,
    Practice,
    VariedStart,
    by_turns,
    curricula,
)
from world_gymnast_ros.adaptation.promotion import EACH, GAIN, decide_each
from world_gymnast_ros.adaptation.record import SessionRecord
from world_gymnast_ros.adaptation.session import adapt
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.episode_files import REPLAY_NAME, read_starts, write_starts
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.loading.load import checkpoint_dir
from world_gymnast_ros.report.html import CAPTURED_PX, png
from world_gymnast_ros.report.session_report import write_report
from world_gymnast_ros.testing.fakes import FakeJudge, FakeLearner, FakePolicy, FakeWorldModel, draw_dot, start_frame
from world_gymnast_ros.types import Judgement, Start
from world_gymnast_ros.updates.practice_starts import DONE_ALREADY, along_episodes, replay_starts

CONFIG = AdaptConfig(budget_s=1e6, max_updates=4, copies=8, select_groups=2, promotion_groups=6, held_out_copies=4,
                     held_out_temperature=1.0, patience=9)


def at(x_px: float, words: str = "go right") -> Start:
    return Start(start_frame(x_px), None, words)


def session(starts, config=CONFIG, practice=None, judge=None, log=None, world=None):
    policy = FakePolicy()
    return adapt(policy, world or FakeWorldModel(), judge or FakeJudge(), FakeLearner(policy), starts, config, 0,
                 time.monotonic, log_path=log, practice=practice)


def groups(log):
    return [e for e in read_session(log) if e["event"] == "group"]


def test_instructions_take_turns_whatever_number_of_frames_each_has():
    turns = by_turns([at(1), at(2), at(3), at(9, "go up"), at(4, "go left"), at(5, "go left")])
    assert [s.instruction for s in turns] == ["go right", "go up", "go left"] * 3
    assert [s for s in turns if s.instruction == "go up"] == [turns[1]] * 3


def test_every_update_has_a_group_of_each_instruction_and_each_is_held_out(tmp_path):
    words = ["go right", "go left", "go up"]
    report = session([at(16, w) for w in words], log=tmp_path / "s.jsonl")
    for update in range(1, len(report.curve) + 1):
        assert [e["instruction"] for e in groups(tmp_path / "s.jsonl") if e["update"] == update] == words
    assert [e.instruction for e in report.promotion.each] == words
    assert all(e.before.n == CONFIG.promotion_groups * CONFIG.held_out_copies for e in report.promotion.each)
    shown = [s.title for s in report.strips if s.kind is StripKind.PAIRED]
    assert [t.split(": ")[1] for t in shown] == [w for w in words for _ in range(2)], "a pair of each"
    page = write_report(tmp_path / "r.html", SessionRecord(report)).read_text()
    assert "captured frame: “go right”, “go left”, “go up”" in page, "one image, whatever it is asked for"
    assert check_session(read_session(tmp_path / "s.jsonl")) == []


def test_each_instruction_must_be_shown_to_lose_little():
    before = np.zeros((48, 1), bool)
    before[1::2] = True  # 'b' is solved
    after, known, words = np.ones((48, 1), bool), np.ones((48, 1), bool), ["a", "b"] * 24
    assert not decide_each(before[:8], after[:8], known[:8], words[:8], 0.05, 0.1, 0.95, 0).promote, "too few pairs"
    enough = decide_each(before, after, known, words, 0.05, 0.15, 0.95, 0)
    assert enough.promote and [r.name for r in enough.rules][1:] == [GAIN, f"{EACH}: a", f"{EACH}: b"]
    after[[1, 3, 5]] = False
    lost = decide_each(before, after, known, words, 0.05, 0.15, 0.95, 0)
    rule = lost.rule(f"{EACH}: b")
    assert not lost.promote and lost.rule(GAIN).holds and not rule.holds and rule.limit == -0.15
    assert "'b' went from 24 to 21 of 24" in lost.reason


def test_the_curriculum_moves_back_as_success_comes():
    curriculum = Curriculum([AlongStart(at(26 - i), i) for i in range(1, 13)])
    assert curriculum.reach == 3 and not curriculum.finished
    drawn = {int(np.argmax(curriculum.draw(s).frame.rgb[16, :, 0].astype(int)
                           - curriculum.draw(s).frame.rgb[16, :, 1])) for s in range(20)}
    assert drawn <= {24, 23}, "the further half of what is within reach"
    curriculum.note(0.4)
    assert curriculum.reach == 3
    reaches = []
    while not curriculum.finished:
        curriculum.note(0.5)
        reaches.append(curriculum.reach)
    assert reaches == sorted(reaches) and reaches[-1] == 12


class Strict(FakeJudge):
    """Sees success alone, so that a start from which nothing succeeds teaches nothing."""

    def score(self, frames, instruction, facts=None):
        return [replace(j, score=float((j.score or 0) > 0.5), progress=None)
                for j in super().score(frames, instruction)]


def test_a_base_that_never_succeeds_learns_from_starts_along_the_way(tmp_path):
    start, config = [at(1.0)], replace(CONFIG, max_updates=14, horizon_steps=12, copies=16, promotion_groups=12)
    world = FakeWorldModel(noise_px=0.0)
    alone = session(start, config, judge=Strict(), log=tmp_path / "alone.jsonl", world=world)
    assert alone.stop_reason.startswith("no signal") and not alone.outcome.better
    way = Practice(along=tuple(AlongStart(at(float(x)), 24 - x) for x in range(1, 24)))
    helped = session(start, config, way, Strict(), tmp_path / "way.jsonl", world)
    assert helped.outcome.better and helped.promotion.before.value == 0.0 and helped.promotion.after.value > 0.5
    seen = groups(tmp_path / "way.jsonl")
    assert {e["start"] for e in seen} == {"captured", "along"}
    assert check_session(read_session(tmp_path / "way.jsonl")) == []
    assert seen[-1]["reach"]["go right"] > seen[0]["reach"]["go right"]
    assert {s.frame.rgb.tobytes() for s in helped.starts} == {start[0].frame.rgb.tobytes()}


class Distant(FakeJudge):
    """Calls nothing a success, and tells how far each came."""

    def score(self, frames, instruction, facts=None):
        return [replace(j, score=0.0, progress=j.score) for j in super().score(frames, instruction)]


def test_where_nothing_succeeds_the_checkpoint_is_the_one_that_came_furthest(tmp_path):
    log = tmp_path / "s.jsonl"
    report = session([at(1.0)], replace(CONFIG, max_updates=6, copies=16), judge=Distant(), log=log)
    events = read_session(log)
    chosen = next(e["update"] for e in events if e["event"] == "select")
    by_update = {e["update"]: e["mean_reward"] for e in events if e["event"] == "held_out"}
    assert chosen == max(by_update, key=by_update.get) > 0 and by_update[chosen] > by_update[0] > 0
    assert check_session(events) == [] and not report.outcome.better
    assert f"went from {by_update[0]:.2f} to {by_update[chosen]:.2f}: where it rises give more" in report.message


def test_a_near_miss_is_cut_where_it_came_nearest():
    x = np.array([4, 10, 16, 22, 18, 12, 6], float)
    deltas = np.zeros((6, 7), np.float32)
    states = np.arange(49, dtype=np.float32).reshape(7, 7) / 100

    class Progress(FakeJudge):
        def score(self, frames, instruction, facts=None):
            assert len(facts.captured) == len(frames) and (facts.deltas[..., :6] == 0).all()
            return [replace(j, progress=j.score) for j in super().score(frames, instruction)]
    miss = Episode(draw_dot(x, np.full(7, 16.0)), deltas, states, "Go right.", success=False, measured=states + 1)
    starts = along_episodes([miss], ["go right"], Progress(), "here").starts
    assert [a.steps_left for a in starts] == [3, 2, 1], "what comes after frame 3 leads away"
    np.testing.assert_array_equal(starts[1].start.state, states[1] + 1)
    hit = replace(miss, success=True, done_step=5)
    assert [a.steps_left for a in along_episodes([hit], ["go right"], Progress(), "here").starts] == [5, 4, 3, 2, 1]
    with pytest.raises(EpisodeError, match="record an approach"):
        along_episodes([miss], ["go up"], Progress(), "here")
    guided = replace(hit, instruction="")
    assert {a.start.instruction for a in along_episodes([guided], ["go up", "go left"], Progress(), "here").starts
            } == {"go up", "go left"}


def test_frames_that_teach_nothing_are_no_starts_along_the_way():
    states = np.zeros((101, 7), np.float32)
    hit = Episode(draw_dot(np.linspace(4, 30, 101), np.full(101, 16.0)), np.zeros((100, 7), np.float32), states,
                  "go right", success=True, done_step=100)

    class Blinks(FakeJudge):
        """Sees nothing on the left, each time for a reason with a figure, and calls the right half done."""

        def score(self, frames, instruction, facts=None):
            at_px = [int(np.argmax(f[-1, 16, :, 0].astype(int) - f[-1, 16, :, 1])) for f in frames]
            return [Judgement(None, detail=f"nothing was found (at {x} px); look there") if x < 7 else
                    Judgement(0.9 if x > 17 else 0.1) for x in at_px]
    found = along_episodes([hit], ["go right"], Blinks(), "here")
    dropped = dict(found.dropped)
    assert set(dropped) == {"nothing was found", DONE_ALREADY} and len(found.starts) + sum(dropped.values()) == 100
    assert 30 < len(found.starts) < 50 and min(a.steps_left for a in found.starts) >= 45
    assert f"{len(found.starts)} of 100 frames along the way, of here, are used; dropped" in found.summary
    none = along_episodes([hit], ["go right"], Strange(), "here")
    assert not none.starts and none.dropped == {"no verdict": 100} and curricula(none.starts) == {}


class Strange(FakeJudge):
    """Never knows."""

    def score(self, frames, instruction, facts=None):
        assert len(frames) <= 64, "a long recording is looked at in pieces"
        return [Judgement(None)] * len(frames)


def test_groups_of_earlier_scenes_go_to_the_learner_apart(tmp_path):
    heard = []

    class Listening(FakeLearner):
        def update(self, batch, temperature, seed, replay=()):
            heard.append((len(batch), len(replay)))
            assert {g.instruction for g, _ in replay} <= {"go up"}
            return super().update(batch, temperature, seed)
    policy = FakePolicy()
    report = adapt(policy, FakeWorldModel(), FakeJudge(), Listening(policy), [at(16)], CONFIG, 0, time.monotonic,
                   log_path=tmp_path / "s.jsonl", practice=Practice(replay=(at(16, "go up"),)))
    assert heard and all(n == (2, 1) for n in heard)
    assert [e["start"] for e in groups(tmp_path / "s.jsonl")][:3] == ["captured", "captured", "replay"]
    assert report.starts[0].instruction == "go right" and len(report.starts) == 1


def test_earlier_scenes_come_from_the_policy_a_file_or_sessions(tmp_path):
    shipped = replay_starts("policy", "")
    assert len(shipped) >= 12 and all(s.state is not None for s in shipped)
    assert (checkpoint_dir("") / REPLAY_NAME).stat().st_size < 300_000
    write_starts(tmp_path / "mine.npz", [at(3), at(4)], compressed=True)
    assert len(replay_starts(str(tmp_path / "mine.npz"), "")) == len(read_starts(tmp_path / "mine.npz")) == 2
    with pytest.raises(EpisodeError, match="no session"):
        replay_starts(str(tmp_path), "")
    (tmp_path / "policy").mkdir()
    with pytest.raises(EpisodeError, match=REPLAY_NAME):
        replay_starts("policy", str(tmp_path / "policy"))


def test_a_rollout_that_began_at_a_varied_start_is_shown_with_that():
    varied = replace(at(4), original=start_frame(16))
    config = replace(CONFIG, groups_per_update=1, max_updates=2)
    report = session([at(16)], config, Practice(varied=(VariedStart(varied, "moved"),)))
    began = {s.title.split(":")[0]: s.captured for s in report.strips if s.kind is StripKind.EXTREME}
    np.testing.assert_array_equal(began["best, update 2"], varied.frame.rgb)


def test_varied_starts_are_practised_on_and_shown_beside_what_they_were_made_of(tmp_path):
    varied = replace(at(14), original=start_frame(16))
    practice = Practice(varied=(VariedStart(varied, "darker"),), notes=("1 of 1 varied starts are used",))
    report = session([at(16)], practice=practice, log=tmp_path / "s.jsonl")
    assert {e["start"] for e in groups(tmp_path / "s.jsonl")} == {"captured", "varied"}
    assert read_session(tmp_path / "s.jsonl")[0]["notes"] == ["1 of 1 varied starts are used"]
    strip = next(s for s in report.strips if s.kind is StripKind.VARIED)
    np.testing.assert_array_equal(strip.captured, start_frame(16).rgb)
    page = write_report(tmp_path / "report.html", SessionRecord(report)).read_text()
    assert "Where training began, too" in page and "1 of 1 varied starts are used." in page
    assert "on the right: darker" in page and png(varied.frame.rgb, CAPTURED_PX, 1.0) in page, "it is shown, too"
