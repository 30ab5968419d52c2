"""FoG without Push-T: the operator, the surrogate, the learners and their resuming, on a dot that is pushed about."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from world_gymnast_ros.errors import BadAction, BadBudget, BadCheckpoint
from world_gymnast_ros.first_order.actor_critic import Actor, Critic, lambda_returns
from world_gymnast_ros.first_order.comparison import claim
from world_gymnast_ros.first_order.copies import Copies, draw_starts
from world_gymnast_ros.first_order.diagnostics import derivative_cosines, k_step_errors, surrogate_derivatives
from world_gymnast_ros.first_order.diffusion import DiffusionConfig, DiffusionWorldModel, load_diffusion
from world_gymnast_ros.first_order.encoder import EncoderConfig, FrameEncoder, load_encoder, train_encoder
from world_gymnast_ros.first_order.fog import FogConfig, FogLearner, window_return
from world_gymnast_ros.first_order.global_model import GlobalModel, Imagined
from world_gymnast_ros.first_order.operator import decoupled
from world_gymnast_ros.first_order.play import Play
from world_gymnast_ros.first_order.policy_training import RunConfig, load_policy, train_policy
from world_gymnast_ros.first_order.ppo import PpoConfig, PpoLearner
from world_gymnast_ros.first_order.surrogate import LatentSurrogate, Replay, Sequences, surrogate_loss, update_surrogate
from world_gymnast_ros.first_order.train_diffusion import DiffusionTraining, train_diffusion

SIDE = 16
DIFFUSION = DiffusionConfig(side=SIDE, width=8)
ENCODER = EncoderConfig(side=SIDE, features=16, latent=8, width=8, maps=4, looks=2, labels=2)


def dots(episodes: int = 10, steps: int = 8) -> Play:
    """Play of a bright dot that an action moves by up to 2 px; the reward is how near it is to the middle."""
    generator = torch.Generator().manual_seed(0)
    actions = 2.0 * torch.rand(episodes, steps, 2, generator=generator) - 1.0
    at = [SIDE * torch.rand(episodes, 2, generator=generator)]
    for t in range(steps):
        at.append((at[-1] + 2.0 * actions[:, t]).clamp(1.0, SIDE - 1.0))
    places = torch.stack(at, 1)
    grid = torch.arange(SIDE) + 0.5
    glow = [torch.exp(-0.5 * (grid - places[..., i, None]).square()) for i in (0, 1)]
    image = (255 * glow[1][..., :, None] * glow[0][..., None, :]).to(torch.uint8)
    rewards = torch.exp(-(places - SIDE / 2).norm(dim=-1) / 4.0)
    return Play(image[..., None].expand(*image.shape, 3).contiguous(), actions, rewards, places / SIDE)


def small_model(play: Play) -> GlobalModel:
    """A global model with random weights that does react to actions."""
    torch.manual_seed(0)
    diffusion, encoder = DiffusionWorldModel(DIFFUSION), FrameEncoder(ENCODER)
    for part in diffusion.modules():  # what starts at zero would hide the action
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.normal_(part.weight, std=0.1)
    diffusion.fit_scale(play.images.flatten(0, 1))
    encoder.freeze(play.images.flatten(0, 1))
    return GlobalModel(diffusion.eval().requires_grad_(False), encoder)


def fog(model: GlobalModel, play: Play, **settings: Any) -> FogLearner:
    surrogate = LatentSurrogate(model.latent, 2, hidden=16, width=16)
    torch.nn.init.normal_(surrogate.change[-1].weight, std=0.1)
    config = FogConfig(copies=4, window=4, episode_steps=8, surrogate_batch=8, confirm_starts=4, confirm_steps=4,
                       **{"confirm_every": 2, **settings})
    return FogLearner(model, play, surrogate, Replay(64, 4, model.latent, 2), config, seed=0)


# ---- the operator

def test_the_value_is_the_global_models_bit_for_bit() -> None:
    value = torch.tensor([1.0, 1e-8, 3e38, -0.1])
    surrogate = torch.tensor([1e30, 1.0, -3e38, 0.2], requires_grad=True)
    assert torch.equal(decoupled(value, surrogate), value)
    naive = value + (surrogate - surrogate.detach())
    assert torch.equal(naive[:1], value[:1])  # the sum in this order happens to hold; in the other it does not
    assert not torch.equal((value + surrogate) - surrogate.detach(), value)


def test_the_gradient_is_the_surrogates() -> None:
    a = torch.randn(5, requires_grad=True)
    weight = torch.randn(5)
    (decoupled(torch.randn(5), (3.0 * a).sin()) * weight).sum().backward()
    expected = weight * 3.0 * (3.0 * a.detach()).cos()
    assert a.grad is not None and torch.allclose(a.grad, expected)


def test_nothing_flows_into_what_made_the_value() -> None:
    made, surrogate = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    decoupled(made * 2.0, surrogate).sum().backward()
    assert made.grad is None and surrogate.grad is not None


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(BadAction, match=r"\(3, 1\).*\(3,\)"):
        decoupled(torch.zeros(3, 1), torch.zeros(3))


def test_a_window_has_the_global_values_and_the_surrogates_derivative() -> None:
    """The whole chain: latents are those of the global model played alone; the gradient is the textbook formula's;
    encoder and diffusion model stay without a gradient even where they could have one."""
    play = dots()
    model = small_model(play)
    learner = fog(model, play)
    model.diffusion.requires_grad_(True)
    model.encoder.requires_grad_(True)
    start, ages, rng = learner.copies.state, learner.copies.ages.clone(), learner.generator.get_state()
    rolled = learner._window()
    loss = window_return(rolled, learner.critic, 0.9, 0.01).sum()
    own = torch.autograd.grad(loss, list(learner.actor.parameters()))
    loss_by_hand, latents = _by_hand(learner, start, rng)
    assert all(torch.equal(a, b) for a, b in zip(rolled.latents, latents, strict=True))
    by_hand = torch.autograd.grad(loss_by_hand, list(learner.actor.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(own, by_hand, strict=True))
    assert any(float(g.abs().max()) > 1e-6 for g in own)
    untouched = [*model.diffusion.parameters(), *model.encoder.parameters()]
    assert all(p.grad is None for p in untouched) and not rolled.latents[0].requires_grad
    assert (learner.copies.ages == ages + 4).all()


def _by_hand(learner: FogLearner, state: Imagined, rng: Tensor) -> tuple[Tensor, list[Tensor]]:
    """sg(f) + f_hat - sg(f_hat), written out, on the same noise."""
    generator = torch.Generator()
    generator.set_state(rng)
    z, memory, latents = state.z, torch.zeros_like(learner.memory), [state.z]
    total = torch.zeros(4)
    for t in range(4):
        action, log_density, _ = learner.actor.sample(z, torch.randn(4, 2, generator=generator))
        estimate, memory = learner.surrogate.step(z, action, memory)
        state, reward = learner.model.step(state, action, learner.model.noise(4, generator))
        z = state.z + (estimate - estimate.detach())
        value = learner.surrogate.reward(z)
        total = total + 0.9 ** t * (reward + (value - value.detach()) - 0.01 * log_density)
        latents.append(state.z)
    return (total + 0.9 ** 4 * learner.critic(z)).sum(), latents


# ---- the surrogate

def test_the_surrogate_learns_linear_dynamics_and_beats_copying() -> None:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    z, actions = torch.randn(200, 1, 4, generator=generator), torch.randn(200, 8, 2, generator=generator)
    push = torch.randn(2, 4, generator=generator)
    for t in range(8):
        z = torch.cat([z, 0.9 * z[:, -1:] + 0.4 * (actions[:, t] @ push)[:, None]], 1)
    data = Sequences(z, actions, z[:, 1:, 0].tanh())
    replay = Replay(200, 8, 4, 2)
    replay.add(data)
    surrogate = LatentSurrogate(4, 2, hidden=32, width=64)
    before = k_step_errors(surrogate, data, horizons=(1, 5))
    assert before["surrogate_5"] == pytest.approx(before["copy_5"])  # starts as "nothing changes"
    optimiser = torch.optim.Adam(surrogate.parameters(), 3e-3)
    update_surrogate(surrogate, optimiser, replay, 250, 64, generator)
    after = k_step_errors(surrogate, data, horizons=(1, 5))
    assert after["surrogate_1"] < 0.3 * after["copy_1"] and after["surrogate_5"] < 0.4 * after["copy_5"]


def test_the_open_loop_loss_goes_on_from_its_own_latents() -> None:
    """A surrogate with a constant error of 0.1 per step: one step is off by 0.1, four steps open loop by up to 0.4."""
    surrogate = LatentSurrogate(3, 2, hidden=4, width=8)
    torch.nn.init.constant_(surrogate.change[-1].bias, 0.1)
    still = Sequences(torch.zeros(5, 6, 3), torch.zeros(5, 5, 2), torch.zeros(5, 5))
    parts = surrogate_loss(surrogate, still, open_loop_from=1)
    assert float(parts["one_step"]) == pytest.approx(0.01)
    assert float(parts["k_step"]) == pytest.approx((0.2 ** 2 + 0.3 ** 2 + 0.4 ** 2) / 3)


def test_the_replay_keeps_the_newest_and_cuts_long_rollouts() -> None:
    replay = Replay(3, 2, 1, 1)
    long = Sequences(torch.arange(6.0).view(1, 6, 1), torch.zeros(1, 5, 1), torch.zeros(1, 5))
    replay.add(long)
    assert len(replay) == 2 and replay.latents[:2, :, 0].tolist() == [[0, 1, 2], [2, 3, 4]]
    replay.add(long)
    assert len(replay) == 3 and replay.latents[:, 0, 0].tolist() == [2, 2, 0]
    newest = replay.draw(64, torch.Generator().manual_seed(0), recent=1).latents[:32, 0, 0]
    assert set(newest.tolist()) == {2.0} and replay.added == 4
    with pytest.raises(BadBudget, match="empty"):
        Replay(3, 2, 1, 1).draw(1, torch.Generator())


def test_lambda_returns_at_both_ends() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 30.0]])
    going = torch.ones_like(rewards)
    assert torch.allclose(lambda_returns(rewards, values, going, 0.5, 0.0), rewards + 0.5 * values)
    discounted = 1.0 + 0.5 * (2.0 + 0.5 * (3.0 + 0.5 * 30.0))
    assert float(lambda_returns(rewards, values, going, 0.5, 1.0)[0, 0]) == pytest.approx(discounted)
    cut = lambda_returns(rewards, values, torch.tensor([[0.0, 1.0, 1.0]]), 0.5, 1.0)
    assert float(cut[0, 0]) == pytest.approx(1.0 + 0.5 * 10.0)


def test_the_log_density_is_that_of_the_squashed_gaussian() -> None:
    """Numerically: the density of one action dimension sums to 1 over -1..1."""
    actor = Actor(3, 1)
    actions = torch.linspace(-0.9999, 0.9999, 20001)[:, None]
    density = actor.log_density(torch.ones(1, 3), torch.atanh(actions)).exp()
    assert float(density.sum() * (actions[1] - actions[0])) == pytest.approx(1.0, abs=0.01)


# ---- learners

def test_an_update_of_the_actor_is_taken_back_where_the_global_model_does_not_confirm_it() -> None:
    play = dots()
    learner = fog(small_model(play), play, confirm_every=1)
    learner.numbers["confirmed_returns"] = [1e6] * 4  # nothing beats this
    before = {k: v.clone() for k, v in learner.actor.state_dict().items()}
    learner.update()
    assert learner.numbers["rejected"] == 1 and learner.numbers["actor_lr"] == pytest.approx(2.1e-3)
    assert all(torch.equal(before[k], v) for k, v in learner.actor.state_dict().items())
    learner.numbers["confirmed_returns"] = [-1e6] * 4
    learner.update()
    assert learner.numbers["accepted"] == 1
    learner.numbers["confirmed_returns"] = [-9e5, 1e6, 1e6, -9e5]  # less on the mean, but by chance as well
    kept = {k: v.clone() for k, v in learner.confirmed.state_dict().items()}
    learner.update()
    assert learner.numbers["accepted"] == 1 and learner.numbers["rejected"] == 1
    assert all(torch.equal(kept[k], v) for k, v in learner.confirmed.state_dict().items())
    assert not all(torch.equal(kept[k], v) for k, v in learner.actor.state_dict().items())
    assert not all(torch.equal(before[k], v) for k, v in learner.confirmed.state_dict().items())


def test_every_global_step_is_counted_and_fills_the_replay() -> None:
    play = dots()
    model = small_model(play)
    learner = fog(model, play)
    learner.update()
    assert model.steps == 16 and len(learner.replay) == 4
    learner.update()  # the second update is confirmed: the new policy and, this once, the first
    assert model.steps == 2 * 16 + 2 * 16 and len(learner.replay) == 4 * 4


def test_the_surrogate_alone_takes_no_value_from_the_global_model() -> None:
    play = dots()
    model = small_model(play)
    learner = fog(model, play, local_only=True)
    rolled = learner._local_window()
    z, memory = rolled.latents[0], learner.surrogate.start(4)
    assert model.steps == 16 and len(learner.replay) == 4  # the global model filled the replay
    z, memory = learner.surrogate.step(z, rolled.sequences().actions[:, 0], memory)
    assert torch.allclose(rolled.latents[1], z) and not torch.equal(learner.copies.state.z, rolled.latents[-1])


class Pulled(GlobalModel):
    """A global model whose latent follows the action and whose reward is greatest at a latent of 0.5."""

    def step(self, state: Imagined, action: Tensor, noise: Tensor) -> tuple[Imagined, Tensor]:
        z = state.z.clone()
        z[:, :2] = z[:, :2] + 0.3 * action.detach()
        self.steps += action.shape[0]
        return Imagined(state.past, state.actions, z), -(z[:, :2] - 0.5).square().sum(1)


@pytest.mark.parametrize("method", ["fog", "ppo"])
def test_learners_raise_the_return_where_it_can_be_raised(method: str) -> None:
    play = dots()
    base = small_model(play)
    model = Pulled(base.diffusion, base.encoder)
    if method == "fog":
        learner: Any = fog(model, play, actor_lr=3e-3, confirm_every=0, surrogate_updates=12, entropy=1e-4)
        learner.surrogate_optimiser.param_groups[0]["lr"] = 3e-3
        learner.actor_optimiser.param_groups[0]["lr"] = 0.0  # the surrogate first, as in a real run
        for _ in range(15):
            learner.update()
        learner.actor_optimiser.param_groups[0]["lr"] = 3e-3
        updates = 40
    else:
        learner = PpoLearner(model, play, PpoConfig(copies=16, window=8, episode_steps=8, batch=64, lr=3e-3), 0)
        updates = 40
    first = sum(learner.update()["reward"] for _ in range(5))
    for _ in range(updates - 10):
        learner.update()
    last = sum(learner.update()["reward"] for _ in range(5))
    assert last > 0.75 * first and first < 0.0  # rewards are negative: the loss falls by a quarter at least


def test_derivatives_of_a_perfect_surrogate_agree_with_finite_differences() -> None:
    play = dots()
    base = small_model(play)
    model = Pulled(base.diffusion, base.encoder)

    class Perfect(LatentSurrogate):
        def step(self, z: Tensor, action: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat([z[:, :2] + 0.3 * action, z[:, 2:]], 1), memory

        def reward(self, following: Tensor) -> Tensor:
            return -(following[:, :2] - 0.5).square().sum(1)

    state = model.begin(play, *draw_starts(play, 6, torch.Generator().manual_seed(0)))
    actions = torch.rand(6, 3, 2)
    right = derivative_cosines(model, Perfect(8, 2), state, actions, seed=0)
    assert float(right["latent"].min()) > 0.999 and float(right["reward"].min()) > 0.999
    noises = [model.noise(6, torch.Generator().manual_seed(0))] * 3
    _, gradient = surrogate_derivatives(model, Perfect(8, 2), state, actions, noises)
    assert float((gradient.norm(dim=1) - right["size"]).abs().max()) < 1e-2

    class Opposite(Perfect):
        def step(self, z: Tensor, action: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat([z[:, :2] - 0.3 * action, z[:, 2:]], 1), memory

    assert float(derivative_cosines(model, Opposite(8, 2), state, actions, seed=0)["latent"].max()) < -0.999


# ---- models and runs

def test_the_global_model_is_deterministic_under_common_noise_and_reacts_to_actions() -> None:
    play = dots()
    model = small_model(play)
    state = model.begin(play, *draw_starts(play, 3, torch.Generator().manual_seed(0)))
    noise, action = model.noise(3, torch.Generator().manual_seed(5)), torch.zeros(3, 2)
    one, two = (model.step(state, action, noise)[0] for _ in range(2))
    other = model.step(state, action + 1.0, noise)[0]
    assert torch.equal(one.z, two.z) and not torch.equal(one.z, other.z)
    with pytest.raises(BadAction, match="not finite"):
        model.step(state, action / 0.0, noise)


def test_a_diffusion_run_goes_on_to_the_same_weights_and_refuses_another_run(tmp_path: Path) -> None:
    play = dots()
    whole = DiffusionTraining(steps=6, batch=4)
    train_diffusion(play, DIFFUSION, whole, tmp_path / "whole")
    # The learning rate depends on the budget, so the first half is stopped by hand, as a kill would.
    calls = 0

    class Stop(Exception):
        pass

    from world_gymnast_ros.first_order import train_diffusion as module
    real = module.follow

    def stops(*args: Any) -> None:
        nonlocal calls
        real(*args)
        calls += 1
        if calls == 4:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(module, "follow", stops)
        train_diffusion(play, DIFFUSION, DiffusionTraining(steps=6, batch=4, save_every_s=0.0), tmp_path / "cut")
    train_diffusion(play, DIFFUSION, whole, tmp_path / "cut")
    one, two = load_diffusion(tmp_path / "whole"), load_diffusion(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert set(json.loads((tmp_path / "cut" / "errors.json").read_text())) >= {"model_1", "copy_1"}
    with pytest.raises(BadCheckpoint, match="other settings"):
        train_diffusion(play, DIFFUSION, DiffusionTraining(steps=6, batch=8), tmp_path / "cut")


def test_the_encoder_learns_on_play_and_keeps_its_frozen_latents_when_loaded(tmp_path: Path) -> None:
    play = dots(episodes=30)
    errors = train_encoder(play, ENCODER, 150, 0, tmp_path)
    assert errors["reward_rmse"] < 0.7 * errors["reward_std"]
    encoder = load_encoder(tmp_path)
    assert not any(p.requires_grad for p in encoder.parameters())
    gram = encoder.projection.T @ encoder.projection
    assert torch.allclose(gram, torch.eye(8), atol=0.02)  # stored in bfloat16


@pytest.mark.parametrize("method", ["fog", "ppo", "surrogate"])
def test_a_policy_run_that_was_stopped_ends_where_one_that_was_not_ends(method: str, tmp_path: Path) -> None:
    play = dots()

    def learner() -> Any:
        model = small_model(play)
        if method == "ppo":
            return model, PpoLearner(model, play, PpoConfig(copies=4, window=4, episode_steps=8, batch=8), 0)
        torch.manual_seed(3)
        return model, fog(model, play, local_only=method == "surrogate")

    run = RunConfig(method, steps=160, evaluate_every=64, eval_starts=3, eval_steps=2, save_every_s=0.0)
    model, whole = learner()
    curve = train_policy(model, play, whole, run, {}, tmp_path / "whole")

    class Stop(Exception):
        pass

    model, cut = learner()
    real, calls = cut.update, 0

    def stops() -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Stop
        return real()

    cut.update = stops
    with pytest.raises(Stop):
        train_policy(model, play, cut, run, {}, tmp_path / "cut")
    model, fresh = learner()
    again = train_policy(model, play, fresh, run, {}, tmp_path / "cut")
    assert again == curve and model.steps >= 160
    z = torch.randn(5, 8)
    a, b = (load_policy(tmp_path / name / "last").greedy(z) for name in ("whole", "cut"))
    assert torch.equal(a, b)


def test_copies_are_renewed_when_they_are_old() -> None:
    play = dots()
    copies = Copies(small_model(play), play, 4, 4, 8, torch.Generator().manual_seed(0))
    copies.ages = torch.tensor([0, 4, 8, 8])
    before = copies.state.z.clone()
    assert copies.renew().tolist() == [2, 3] and copies.ages.tolist() == [0, 4, 0, 0]
    assert torch.equal(copies.state.z[:2], before[:2])
    with pytest.raises(BadBudget, match="divides"):
        Copies(small_model(play), play, 4, 3, 8, torch.Generator())


def test_the_claim_is_void_where_ppo_has_hardly_learned() -> None:
    def curves(fog_steps: int, ppo: float) -> dict[str, Any]:
        return {"fog": [[{"steps": 0, "imagined": 0.1}, {"steps": fog_steps, "imagined": 0.5}]],
                "ppo": [[{"steps": 0, "imagined": 0.1}, {"steps": 1000, "imagined": ppo}]]}

    random = {"imagined": 0.1}
    assert claim(curves(200, 0.2), random)["verdict"] == "void"
    assert claim(curves(200, 0.4), random)["verdict"] == "holds"
    assert claim(curves(201, 0.4), random)["verdict"] == "fails"
    assert claim(curves(200, 0.6), random)["verdict"] == "fails"
    assert claim(curves(200, 0.4), None)["verdict"] == "open"


def test_the_critic_follows_slowly() -> None:
    critic = Critic(2)
    with torch.no_grad():
        critic.net[-1].bias.add_(1.0)
    critic.follow(0.75)
    z = torch.randn(4, 2)
    assert torch.allclose(critic(z) - critic(z, slow=True), torch.full((4,), 0.75), atol=1e-5)
