"""FoG as the learner of a session: values of the world model and the judges, derivatives of the surrogate."""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from world_gymnast_ros.adaptation.advantage import group_advantages, rollout_rewards
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.rollout import imagine
from world_gymnast_ros.adaptation.session import Trained
from world_gymnast_ros.benchmark.first_order import FOG, GRADIENT, LEARNERS, Row, fog_learner, markdown
from world_gymnast_ros.cli import bench as bench_cli
from world_gymnast_ros.cli import main
from world_gymnast_ros.errors import BadBudget, BadConfig
from world_gymnast_ros.first_order.session_learner import FogLearner, FrozenReader, Rollouts, SessionFog
from world_gymnast_ros.loading.load import load_judges, load_policy
from world_gymnast_ros.models.policies.openvla import OpenVLA
from world_gymnast_ros.models.policies.regression import RegressionPolicy
from world_gymnast_ros.seeds import captures
from world_gymnast_ros.twin.environment import TwinEnvironment
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.types import F32, RolloutGroup, Start
from world_gymnast_ros.updates.adaptation import Parts, load_parts
from world_gymnast_ros.updates.fine_tuning import FineTuning, with_regression_heads

torch.set_num_threads(1)
WORDS, STEPS, TEMPERATURE = "reach the purple block", 8, 1.2
SMALL = SessionFog(latent=8, first_updates=5, updates=2, batch=4, confirm_copies=2)


@pytest.fixture(scope="module")
def policy() -> RegressionPolicy:
    start = load_policy("", "cpu")
    assert isinstance(start, OpenVLA)
    return with_regression_heads(start, FineTuning(), "laplace")


@pytest.fixture(scope="module")
def parts(policy: RegressionPolicy) -> Parts:
    return replace(load_parts(AdaptNodeConfig(device="cpu")), policy=policy)


@pytest.fixture(scope="module")
def starts() -> list[Start]:
    environment = TwinEnvironment(load_scene("novel_evening"))
    try:
        return [environment.reset(s, WORDS) for s in captures(1)]
    finally:
        environment.close()


@pytest.fixture(scope="module")
def group(parts: Parts, starts: list[Start]) -> RolloutGroup:
    return imagine(parts.policy, parts.world_model, parts.judge, starts[0], 3, STEPS, TEMPERATURE, 1,
                   judge_every_chunks=0)


@pytest.fixture
def learner(parts: Parts) -> Iterator[FogLearner]:
    made = fog_learner(parts, AdaptNodeConfig(), 0, SMALL)
    made.begin()
    torch.manual_seed(2)
    for net in (made.surrogate.change, made.surrogate.reward_head):  # at first it says that nothing changes
        torch.nn.init.normal_(net[-1].weight, std=0.3)
    for weight in made.weights:  # as if it had learned: a fresh adapter passes no gradient to one of its halves
        torch.nn.init.normal_(weight, std=0.02)
    yield made
    made.end()


def rolled(learner: FogLearner, group: RolloutGroup) -> Rollouts:
    found = learner.rollouts(group, TEMPERATURE)
    assert found is not None
    return found


def by_hand(learner: FogLearner, r: Rollouts) -> Tensor:
    """sg(f) + f_hat - sg(f_hat) for latent and reward, written out, on the actions that the policy draws now."""
    mean, log_scale = learner.policy.distribution(r.frames, WORDS)
    drawn = mean + log_scale.exp() * TEMPERATURE * r.noise
    stats = learner.policy.stats
    wide = torch.tensor(stats.q99) - torch.tensor(stats.q01)
    metres = torch.where(torch.tensor(stats.mask), (drawn + 1.0) / 2.0 * wide + torch.tensor(stats.q01), drawn)
    longest = torch.tensor([*[learner.world_model.max_step[0]] * 3, *[learner.world_model.max_step[1]] * 3, 1.0])
    actions = r.data.actions.unflatten(1, (-1, 4)).clone()
    actions[r.rows[:, 0], r.rows[:, 1]] = metres / longest + r.offset
    z, memory, total = r.data.latents[:, 0], learner.surrogate.start(len(actions)), torch.zeros(len(actions))
    for t, action in enumerate(actions.flatten(1, 2).unbind(1)):
        estimate, memory = learner.surrogate.step(z, action, memory)
        z = r.data.latents[:, t + 1] + (estimate - estimate.detach())
        paid = learner.surrogate.reward(z)
        total = total + r.data.rewards[:, t] + (paid - paid.detach())
    return (total / STEPS).mean()


def test_the_value_is_that_of_world_model_and_judges_bit_for_bit(learner: FogLearner, group: RolloutGroup) -> None:
    r = rolled(learner, group)
    summed = torch.zeros(len(r.data.rewards))
    for t in range(STEPS):
        summed = summed + r.data.rewards[:, t]
    assert torch.equal(learner.return_of(r.data, r.data.actions), summed / STEPS)
    value, _ = learner.objective(r, TEMPERATURE)
    assert torch.equal(value, (summed / STEPS).mean())
    last = rollout_rewards(group, 0.0, learner.progress_weight)
    np.testing.assert_allclose(r.data.rewards[:, -1], np.array(last, np.float32), rtol=1e-6), "as a session is rewarded"


def test_the_gradient_is_the_surrogates(learner: FogLearner, group: RolloutGroup) -> None:
    r = rolled(learner, group)
    own = torch.autograd.grad(learner.objective(r, TEMPERATURE)[0], learner.weights)
    expected = torch.autograd.grad(by_hand(learner, r), learner.weights)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-7) for a, b in zip(own, expected, strict=True))
    assert max(float(g.abs().max()) for g in own) > 1e-5
    with torch.no_grad():
        learner.surrogate.reward_head[-1].weight.neg_()
    other = torch.autograd.grad(learner.objective(r, TEMPERATURE)[0], learner.weights)
    assert all(torch.allclose(a, -b, rtol=1e-3, atol=1e-7) for a, b in zip(own, other, strict=True))


def test_an_action_is_what_was_executed(learner: FogLearner, group: RolloutGroup) -> None:
    """At the weights that sampled, mean + scale * noise is the action that the world model got, limits included."""
    for weight in learner.weights:
        torch.nn.init.zeros_(weight)
    r = rolled(learner, group)
    mean, log_scale = learner.policy.distribution(r.frames, WORDS)
    again = learner._physical(mean + log_scale.exp() * TEMPERATURE * r.noise) + r.offset
    longest = np.array([*[learner.world_model.max_step[0]] * 3, *[learner.world_model.max_step[1]] * 3, 1.0])
    played = np.stack([c.deltas for c in group.chunks], 1) / longest
    np.testing.assert_allclose(again.detach(), played[r.rows[:, 0], r.rows[:, 1]], atol=1e-5)


def test_nothing_flows_into_the_encoder_or_the_world_model(learner: FogLearner, group: RolloutGroup, parts: Parts
                                                           ) -> None:
    encoder = list(learner.reader.reflector.model.parameters())
    world = [p for part in vars(parts.world_model).values() if isinstance(part, torch.nn.Module)
             for p in part.parameters()]
    base = [p for n, p in learner.policy.model.named_parameters() if "lora_" not in n]
    assert encoder and world and base
    before = [p.requires_grad for p in (*encoder, *world)]
    try:
        for p in (*encoder, *world):
            p.requires_grad_(True)
        r = rolled(learner, group)
        assert not r.data.latents.requires_grad and not r.data.rewards.requires_grad
        learner.objective(r, TEMPERATURE)[0].backward()
        assert all(p.grad is None for p in (*encoder, *world, *base))
        assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in learner.weights)
    finally:
        for p, on in zip((*encoder, *world), before, strict=True):
            p.requires_grad_(on)


class Told(FogLearner):
    """Its confirmations are told beforehand."""

    values: list[float]

    def _confirmation(self, batch: Sequence[Trained], seed: int) -> F32:
        return np.array([self.values.pop(0), np.nan], np.float32)


@pytest.mark.parametrize(("values", "kept"), [([0.4, 0.5], True), ([0.4, 0.4], False), ([0.4, 0.3], False)])
def test_a_step_is_kept_only_where_the_world_model_confirms_it(learner: FogLearner, group: RolloutGroup,
                                                               values: list[float], kept: bool) -> None:
    learner.__class__, told = Told, list(values)
    assert isinstance(learner, Told)
    learner.values = told
    before = learner.snapshot()
    figures = learner.update([(group, group_advantages(rollout_rewards(group)))], TEMPERATURE, 0)
    same = all(torch.equal(before[k], v) for k, v in learner.snapshot().items())
    assert same is not kept and figures["kept"] == float(kept) and not told
    assert learner.optimiser is not None
    rate = learner.optimiser.param_groups[0]["lr"]
    assert rate == pytest.approx(learner.config.learning_rate * (1.0 if kept else 0.5))


def test_what_it_cannot_do_is_refused(learner: FogLearner, group: RolloutGroup, parts: Parts) -> None:
    earlier = [(group, group_advantages(rollout_rewards(group)))]
    with pytest.raises(BadConfig, match="earlier scenes"):
        learner.update(earlier, TEMPERATURE, 0, replay=earlier)
    with pytest.raises(BadConfig, match="no learned trunk"):
        FrozenReader(load_judges("tiny/locator", "cpu"), 8)
    with pytest.raises(BadConfig, match="train regression"):
        fog_learner(replace(parts, policy=load_policy("", "cpu")), AdaptNodeConfig(), 0, SMALL)
    with pytest.raises(BadBudget, match="passes=0"):
        SessionFog(passes=0)


def test_the_whole_comparison_in_small(policy: RegressionPolicy, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_cli.LEARNERS == LEARNERS
    policy.save(tmp_path / "policy")
    words = ["bench", "fog", "--policy", str(tmp_path / "policy"), "--scenes", "novel_evening", "--episodes", "2",
             "--captures", "1", "--updates", "1", "--out", str(tmp_path / "out"), "--threads", "1", "--set", "copies=2",
             "groups_per_update=1", "select_groups=1", "promotion_groups=4", "held_out_copies=1", "reroll=false",
             "horizon_from_task=false", "horizon_steps=4"]
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [r["learner"] for r in rows] == [GRADIENT, FOG] and rows[0]["before"] == rows[1]["before"]
    assert rows[1]["kept"] + rows[1]["undone"] == rows[1]["updates"] == 1
    assert "copy_4" in rows[1]["figures"] and rows[0]["kept"] == rows[0]["undone"] == 0
    capsys.readouterr()
    assert main(["bench", "fog", "--rows", str(tmp_path / "out")]) == 0
    assert "- novel_evening, seed 0: first-order gradients against policy gradient" in capsys.readouterr().out
    assert main(["bench", "fog", "--rows", "nowhere"]) == 2


def test_the_table_pairs_the_learners() -> None:
    row = Row("novel_evening", WORDS, GRADIENT, 0, [False] * 4, [True, False, True, False], "promoted", "", 9.6, 3, [],
              0.25, 0.75)
    text = markdown([row, replace(row, learner=FOG, after=[True, True, True, False], kept=2, undone=1)])
    assert "| 0.25 to 0.75 | 3 | 2, 1 | 10 | promoted |" in text and "4 paired true episodes: +25 points" in text
