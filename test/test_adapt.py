"""The adaptation session end to end on a small world that really learns: promotion, cancel, crash, budget, log."""
import json
import time
from dataclasses import replace

import numpy as np
import pytest

from world_gymnast_ros.adaptation.config import AdaptConfig, AdaptNodeConfig
from world_gymnast_ros.adaptation.log import check_session, read_session
from world_gymnast_ros.adaptation.promotion import decide, decide_each
from world_gymnast_ros.adaptation.rollout import Start
from world_gymnast_ros.adaptation.session import adapt
from world_gymnast_ros.config import load
from world_gymnast_ros.errors import BadBudget, BadConfig, BadInstruction
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.store import Store
from world_gymnast_ros.testing.fakes import FakeJudge, FakeLearner, FakePolicy, FakeWorldModel, start_frame
from world_gymnast_ros.types import Judgement

START = Start(start_frame(), None, "go right")
CONFIG = AdaptConfig(budget_s=1e6, max_updates=5, copies=16, select_groups=3, promotion_groups=8, held_out_copies=4,
                     held_out_temperature=1.0, solved_rate=1.0, patience=9)


def untouched(policy):
    return policy.adapter == "base" and all((table == 0).all() for table in policy.tables.values())


def run(config=CONFIG, world=None, judge=None, learner=None, seed=0, policy=None, **kwargs):
    policy = policy or FakePolicy()
    report = adapt(policy, world or FakeWorldModel(), judge or FakeJudge(), learner or FakeLearner(policy), [START],
                   config, seed, kwargs.pop("now_s", time.monotonic), **kwargs)
    assert untouched(policy)
    return report


def test_a_better_adapter_is_promoted_and_the_policy_left_alone(tmp_path):
    store, heard = Store(tmp_path / "adapters"), []
    log = tmp_path / "session.jsonl"
    report = run(progress=heard.append, log_path=log, save=lambda learner, scores: store.put(
        "go right", learner.save, parent="base", base_policy="fake-policy", scores=scores, created_ns=1))
    assert report.promoted and report.promotion.lower_bound > CONFIG.margin
    assert store.newest() == report.adapter
    assert report.adapter.scores["difference"]["low"] == report.promotion.lower_bound
    assert report.curve[-1].mean_reward > report.curve[0].mean_reward and "held-out seeds" in report.message
    assert [p.stage for p in heard][:2] == ["measuring the base", "training"] and heard[-1].stage == "promoted"
    assert {s.title.split(",")[0] for s in report.strips} >= {"best", "worst", "before", "after"}
    events = read_session(log)
    assert [e["event"] for e in events][-3:] == ["promotion_test", "promote", "end"] and check_session(events) == []


def test_the_stored_adapter_is_the_one_that_was_judged(tmp_path):
    from safetensors.numpy import load_file
    kept = []
    policy = FakePolicy()
    run(policy=policy, save=lambda learner, scores: (kept.append(learner.snapshot()), Store(tmp_path).put(
        "a", learner.save, parent="base", base_policy="fake-policy", scores=scores, created_ns=1))[1])
    weights = load_file(Store(tmp_path).newest().path / "adapter_model.safetensors")
    np.testing.assert_array_equal(weights["go_right"], kept[0]["go right"])
    assert np.abs(weights["go_right"]).max() > 0.1


def test_the_same_seed_gives_the_same_session(tmp_path):
    a, b, c = run(seed=4), run(seed=4), run(seed=5)
    assert a.promotion == b.promotion and [r.mean_reward for r in a.curve] == [r.mean_reward for r in b.curve]
    assert [r.mean_reward for r in a.curve] != [r.mean_reward for r in c.curve]


def test_a_dry_run_decides_and_stores_nothing():
    report = run()
    assert report.outcome == "would_promote" and report.adapter is None and not report.promoted


class NoLearner(FakeLearner):
    """Changes the weights at random: a checkpoint may look better by luck, the promotion test must see through it."""

    def update(self, batch, temperature, seed, replay=()):
        rng = np.random.default_rng(seed)
        for table in self.policy.tables.values():
            table += rng.normal(0, 0.05, table.shape)
        return {}


def test_luck_is_not_promoted():
    outcomes = []
    for seed in range(3):
        policy = FakePolicy()
        outcomes.append(run(policy=policy, learner=NoLearner(policy), seed=seed,
                            config=replace(CONFIG, max_updates=4, copies=4, evaluate_every=1)))
    assert not any(r.outcome == "would_promote" for r in outcomes)
    assert all("present policy kept" in r.message for r in outcomes)


def test_the_promotion_test_needs_margin_confidence_and_verdicts():
    rng = np.random.default_rng(0)
    before = rng.random((12, 4)) < 0.2
    known = np.ones((12, 4), bool)
    better = before | (rng.random((12, 4)) < 0.6)
    assert decide(before, better, known, 0.05, 0.95, 0).promote
    assert not decide(before, better, known, 0.9, 0.95, 0).promote
    assert not decide(before, before, known, 0.0, 0.95, 0).promote
    assert not decide(better, before, known, 0.05, 0.95, 0).promote
    unsure = decide(before, better, known, 0.0, 0.8, 0)  # rates are told with 95 %, whatever the test asks for
    assert unsure.before.confidence == unsure.after.confidence == 0.95
    assert unsure.difference.confidence == pytest.approx(0.6)
    few = known.copy()
    few[3:] = False
    refused = decide(before, better, few, 0.05, 0.95, 0)
    assert not refused.promote and "both verdicts" in refused.reason
    # all of the gain in one dream: bootstrapping whole dreams is not fooled by its four copies
    lonely = np.zeros((12, 4), bool)
    lonely[0] = True
    assert not decide(np.zeros((12, 4), bool), lonely, known, 0.0, 0.95, 0).promote
    assert decide(np.zeros((12, 4), bool), known, known, 0.05, 0.95, 0).lower_bound < 1.0


def test_a_gain_in_one_instruction_does_not_pay_for_another():
    before, known = np.zeros((12, 2), bool), np.ones((12, 2), bool)
    after = np.ones((12, 2), bool)
    words = ["go left", "go right", "go right"] * 4
    both = decide_each(before, after, known, words, 0.05, 0.1, 0.95, 0)
    assert both.promote and [(e.instruction, e.before.value, e.after.value) for e in both.each] == [
        ("go left", 0, 1), ("go right", 0, 1)]
    before[::3], after[::3] = True, [True, False]  # 'go left' was solved and loses half
    lost = decide_each(before, after, known, words, 0.05, 0.1, 0.95, 0)
    assert decide(before, after, known, 0.05, 0.95, 0).promote and not lost.promote
    assert "'go left' went from 8 to 4 of 8" in lost.reason
    assert "not above the loss of 0.10" in lost.reason and "one instruction at a time" in lost.reason
    known[::3] = False
    mute = decide_each(before, after, known, words, 0.05, 0.1, 0.95, 0)
    assert not mute.promote and "no decision on 'go left'" in mute.reason
    assert decide_each(before, after, known, ["go right"] * 12, 0.05, 0.1, 0.95, 0).each == ()


@pytest.mark.parametrize("after_calls", [0, 1, 7, 30, 60])
def test_cancel_at_any_time(after_calls, tmp_path):
    calls = iter(range(10**6))
    report = run(cancelled=lambda: next(calls) >= after_calls, log_path=tmp_path / "s.jsonl")
    assert report.outcome == "cancelled" and report.adapter is None and "present policy kept" in report.message
    assert read_session(tmp_path / "s.jsonl")[-1]["outcome"] == "cancelled"


@pytest.mark.parametrize("begins", [0, 3, 9, 20, 30])
def test_a_crash_of_the_world_model_restores_the_policy(begins, tmp_path):
    policy = FakePolicy()
    with pytest.raises(RuntimeError, match="out of memory"):
        adapt(policy, FakeWorldModel(fail_after_begins=begins), FakeJudge(), FakeLearner(policy), [START], CONFIG, 0,
              time.monotonic, log_path=tmp_path / "s.jsonl")
    assert untouched(policy)
    assert read_session(tmp_path / "s.jsonl")[-1]["event"] == "crash"


def test_a_full_disk_while_promoting_restores_the_policy():
    def full(learner, scores):
        raise OSError(28, "No space left on device")
    policy = FakePolicy()
    with pytest.raises(OSError, match="No space"):
        adapt(policy, FakeWorldModel(), FakeJudge(), FakeLearner(policy), [START], CONFIG, 0, time.monotonic, save=full)
    assert untouched(policy)


class SilentJudge(FakeJudge):
    """Judges `calls` times, and then no more."""

    def __init__(self, calls):
        self.left = calls

    def score(self, frames, instruction, facts=None):
        self.left -= 1
        if self.left >= 0:
            return super().score(frames, instruction, facts)
        return [Judgement(None, detail="server gone")] * len(frames)


def test_a_judge_without_verdicts_stops_the_session_and_says_why():
    at_once = run(judge=SilentJudge(0))
    assert at_once.outcome == "kept" and at_once.stop_reason == "no verdict: server gone" and not at_once.curve
    assert at_once.counts.no_verdict > 0 and at_once.counts.rejected == 0
    later = run(judge=SilentJudge(2))
    assert later.outcome == "kept" and later.stop_reason.startswith("no signal: 4"), later.stop_reason


class FickleJudge(FakeJudge):
    """Says success the first time it sees rollouts and failure when they are dreamed again."""

    def __init__(self):
        self.calls = 0

    def score(self, frames, instruction, facts=None):
        self.calls += 1
        return [Judgement(0.9 if self.calls % 2 else 0.1 + 0.01 * i) for i in range(len(frames))]


def test_too_many_rejections_stop_the_session():
    report = run(judge=FickleJudge(), config=replace(CONFIG, max_rejection_rate=0.3))
    assert report.outcome == "kept" and "trust:" in report.stop_reason and report.counts.not_reproduced > 0
    assert len(report.curve) == 1


class Clock:
    """A clock that ticks at every reading."""

    def __init__(self, tick_s):
        self.t_s, self.tick_s = 0.0, tick_s

    def __call__(self):
        self.t_s += self.tick_s
        return self.t_s


def test_the_budget_is_kept_with_time_for_the_promotion_test():
    report = run(config=replace(CONFIG, budget_s=400, max_updates=1000, patience=1000), now_s=Clock(3.0))
    assert report.stop_reason.startswith("time:") and report.promotion is not None
    assert report.seconds["total"] < 430 and 2 <= len(report.curve) < 100
    nothing = run(config=replace(CONFIG, budget_s=3), now_s=Clock(1.0))
    assert nothing.outcome == "kept" and "no update was made (time" in nothing.message and nothing.promotion is None


def test_senseless_orders_are_refused():
    with pytest.raises(BadBudget, match="budget_s"):
        AdaptConfig(budget_s=0)
    with pytest.raises(BadBudget, match="-5"):
        AdaptConfig(budget_s=-5)
    with pytest.raises(BadBudget, match="max_updates"):
        AdaptConfig(max_updates=0)
    with pytest.raises(BadConfig, match=r"confidence is 1.0"):
        AdaptConfig(confidence=1.0)
    with pytest.raises(BadConfig, match="advantage"):
        AdaptConfig(advantage="ppo")
    with pytest.raises(BadInstruction, match="at least one"):
        policy = FakePolicy()
        adapt(policy, FakeWorldModel(), FakeJudge(), FakeLearner(policy), [], CONFIG, 0, time.monotonic)


def test_several_instructions_train_in_one_session():
    policy = FakePolicy()
    starts = [Start(start_frame(), None, words) for words in ("go right", "go left")]
    report = adapt(policy, FakeWorldModel(), FakeJudge(), FakeLearner(policy), starts,
                   replace(CONFIG, groups_per_update=2), 0, time.monotonic)
    assert report.outcome == "would_promote"


def test_a_tampered_log_is_found_out(tmp_path):
    log = tmp_path / "session.jsonl"
    run(log_path=log)
    events = read_session(log)
    tested = next(e for e in events if e["event"] == "promotion_test")
    untested = [*(e for e in events if e is not tested), {"event": "promote"}]
    assert check_session(untested) == ["an adapter was promoted without a promotion test"]
    tested["promote"] = not tested["promote"]
    assert check_session(events) == ["the promotion test decides True, log says False"]
    group = next(e for e in events if e["event"] == "group")
    group["rewards"][0] = 0.123
    assert len(check_session(events)) == 2
    with log.open("a") as stream:
        stream.write('{"event": "torn')
    assert len(read_session(log)) == len(events)
    assert json.loads(log.read_text().splitlines()[0])["config"]["margin"] == CONFIG.margin


def test_the_shipped_file_is_the_declaration():
    assert load(AdaptNodeConfig, share_path("config/adapt.yaml")) == AdaptNodeConfig()


def test_a_solved_dream_is_not_trained_on():
    policy = FakePolicy()
    for table in policy.tables.values():
        table[:, 0, 5], table[:, 1, 3] = 50.0, 50.0  # straight to the goal
    report = adapt(policy, FakeWorldModel(noise_px=0.0), FakeJudge(), FakeLearner(policy), [START], CONFIG, 0,
                   time.monotonic)
    assert report.outcome == "kept" and report.stop_reason.startswith("solved: 100%") and not report.curve


@pytest.mark.parametrize(("starts", "least"), [(1, 1), (8, 4)])
def test_a_dream_is_solved_only_once_every_start_was_practised_on(starts, least):
    config = replace(CONFIG, evaluate_every=1, max_updates=9, solved_rate=0.3, groups_per_update=2)
    policy = FakePolicy()
    report = adapt(policy, FakeWorldModel(noise_px=0.0), FakeJudge(), FakeLearner(policy), [START] * starts, config, 0,
                   time.monotonic)
    first = next(i for i, row in enumerate(report.curve, 1) if row.held_out is not None and row.held_out >= 0.3)
    assert first < 4, "it learns within a few updates"
    assert report.stop_reason.startswith("solved") and len(report.curve) >= max(first, least)


def test_of_equal_checkpoints_the_earliest_is_taken(tmp_path):
    log = tmp_path / "s.jsonl"
    run(config=replace(CONFIG, evaluate_every=1, max_updates=6, solved_rate=1.0), log_path=log)
    events = read_session(log)
    rates = [e["rate"] for e in events if e["event"] == "held_out"]
    assert next(e["update"] for e in events if e["event"] == "select") == rates.index(max(rates))
