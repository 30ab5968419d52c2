"""One training run of a policy inside the world model: budget in global-model steps, curve, checkpoints, resuming."""
from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from world_gymnast_ros.errors import BadBudget, BadCheckpoint
from world_gymnast_ros.files import write_text
from world_gymnast_ros.first_order.actor_critic import Actor
from world_gymnast_ros.first_order.copies import greedy_returns
from world_gymnast_ros.first_order.fog import FogConfig, FogLearner
from world_gymnast_ros.first_order.global_model import GlobalModel
from world_gymnast_ros.first_order.play import Play
from world_gymnast_ros.first_order.ppo import PpoConfig, PpoLearner
from world_gymnast_ros.first_order.surrogate import LatentSurrogate, Replay, Sequences, update_surrogate
from world_gymnast_ros.models.checkpoint import fill, read_config, save_model
from world_gymnast_ros.training.run_state import STATE, PlainRun, load_run, save_run

METHODS = ("fog", "ppo", "surrogate")
SURROGATE_KIND, POLICY_KIND = "first-order-surrogate", "first-order-policy"
SEQUENCE, CAPACITY = 8, 8192
"""Length of the replay's sequences, and how many it holds."""


class Learner(Protocol):
    """What a method is to the training loop."""

    numbers: dict[str, Any]

    def policy(self) -> Actor: ...

    def update(self) -> dict[str, float]: ...

    def parts(self) -> tuple[dict[str, torch.nn.Module], dict[str, torch.optim.Optimizer], dict[str, Tensor]]: ...

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class RunConfig:
    """Budget and evaluation of one run. `steps`: global-model steps, confirmations included, evaluations not.

    Every `evaluate_every` steps the greedy policy plays `eval_starts` held-out starts for `eval_steps` steps in the
    world model, and `true_episodes` episodes in the true environment (0: none); the latter chooses nothing.
    """

    method: str
    steps: int = 12_000
    seed: int = 0
    evaluate_every: int = 2_000
    eval_starts: int = 24
    eval_steps: int = 24
    true_episodes: int = 8
    save_every_s: float = 45.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadBudget(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        if self.steps < 1 or self.evaluate_every < 1:
            raise BadBudget(f"steps {self.steps} and evaluate_every {self.evaluate_every} must be at least 1")


def play_replay(model: GlobalModel, encoded: Sequences, held: int) -> Replay:
    """Return a replay that holds encoded play but its last `held` episodes."""
    replay = Replay(CAPACITY, SEQUENCE, model.latent, model.action_dim)
    replay.add(Sequences(encoded.latents[:-held], encoded.actions[:-held], encoded.rewards[:-held]))
    return replay


def train_surrogate(model: GlobalModel, replay: Replay, updates: int, seed: int, out: Path,
                    lr: float = 1e-3, batch: int = 64) -> dict[str, float]:
    """Train the surrogate on play, before any policy, and write it to `out`; return its last losses."""
    torch.manual_seed(seed)
    surrogate = LatentSurrogate(model.latent, model.action_dim)
    optimiser = torch.optim.Adam(surrogate.parameters(), lr)
    generator, losses = torch.Generator().manual_seed(seed), {"one_step": 0.0}
    state = PlainRun(out / STATE, surrogate, optimiser, generator)
    bar = tqdm(range(state.resume(), updates, 25), desc="surrogate, 25 updates", mininterval=5.0)
    for done in bar:
        optimiser.param_groups[0]["lr"] = lr * (1.0 if done < 0.6 * updates else 0.3)
        losses = update_surrogate(surrogate, optimiser, replay, min(25, updates - done), batch, generator)
        state.tell(done + 25)
        bar.set_postfix({k: f"{v:.4f}" for k, v in losses.items()}, refresh=False)
    save_surrogate(surrogate, out)
    return losses


def save_surrogate(surrogate: LatentSurrogate, folder: Path) -> None:
    """Write a surrogate in bfloat16."""
    save_model(surrogate, {"model_type": SURROGATE_KIND, "latent": surrogate.latent,
                           "action_dim": surrogate.action_dim}, folder)


def load_surrogate(folder: Path) -> LatentSurrogate:
    """Return the surrogate of a folder. BadCheckpoint where it is missing or does not fit."""
    config = read_config(folder, SURROGATE_KIND)
    surrogate = LatentSurrogate(int(config["latent"]), int(config["action_dim"]))
    fill(surrogate, folder)
    return surrogate


def load_policy(folder: Path) -> Actor:
    """Return the policy of a folder. BadCheckpoint where it is missing or does not fit."""
    config = read_config(folder, POLICY_KIND)
    actor = Actor(int(config["latent"]), int(config["action_dim"]))
    fill(actor, folder)
    actor.requires_grad_(False)
    return actor


def make_learner(model: GlobalModel, play: Play, surrogate_folder: Path, replay: Replay | None, method: str,
                 settings: dict[str, Any], seed: int) -> Learner:
    """Return the learner of a method with `settings` on top of its defaults. BadBudget names an unknown setting."""
    try:
        if method == "ppo":
            return PpoLearner(model, play, PpoConfig(**settings), seed)
        config = FogConfig(local_only=method == "surrogate", **settings)
    except TypeError as error:
        raise BadBudget(f"{method} cannot take the settings {settings} ({error}); leave them out, or correct the "
                        "name") from error
    assert replay is not None
    return FogLearner(model, play, load_surrogate(surrogate_folder), replay, config, seed)


def train_policy(model: GlobalModel, play: Play, learner: Learner, run: RunConfig, settings: dict[str, Any], out: Path,
                 test_truly: Callable[[Actor], dict[str, float]] | None = None) -> list[dict[str, Any]]:
    """Train until the budget is spent, or go on from what `out` holds; return the curve.

    Writes curve.json and, under `best` and `last`, the policies. The best is chosen by its imagined return alone.
    """
    text = json.dumps([asdict(run), settings], sort_keys=True)
    modules, optimisers, _ = learner.parts()
    curve: list[dict[str, Any]] = []
    model.steps = 0
    if (saved := load_run(out / STATE, modules, optimisers)) is not None:
        if saved[1]["settings"] != text:
            raise BadCheckpoint(f"{out} holds a run with other settings ({saved[1]['settings']}); name another --out")
        learner.restore(saved[0], saved[1]["learner"])
        model.steps, curve = saved[1]["steps"], saved[1]["curve"]

    def save() -> None:
        fresh = learner.parts()
        save_run(out / STATE, fresh[0], fresh[1], fresh[2],
                 {"settings": text, "steps": model.steps, "curve": curve, "learner": learner.numbers})

    def evaluate() -> None:
        row = {"steps": model.steps, "imagined": imagined_return(model, play, learner.policy().greedy, run)}
        if test_truly is not None:
            row |= test_truly(learner.policy())
        if not curve or row["imagined"] > max(r["imagined"] for r in curve):
            save_policy(learner.policy(), out / "best")
        curve.append(row)
        write_text(out / "curve.json", json.dumps(curve, indent=1) + "\n")
        save()

    if not curve:
        evaluate()
    bar = tqdm(total=run.steps, initial=min(model.steps, run.steps), desc=f"{run.method} {run.seed}", mininterval=5.0)
    written = time.monotonic()
    while model.steps < run.steps:
        before = model.steps
        notes = learner.update()
        bar.set_postfix({k: f"{v:.3f}" for k, v in notes.items()}, refresh=False)
        bar.update(model.steps - before)
        if before // run.evaluate_every < model.steps // run.evaluate_every:
            evaluate()
        if time.monotonic() - written > run.save_every_s:
            save()
            written = time.monotonic()
    bar.close()
    if curve[-1]["steps"] < model.steps:
        evaluate()
    save_policy(learner.policy(), out / "last")
    return curve


def save_policy(actor: Actor, folder: Path) -> None:
    """Write a policy in bfloat16."""
    first = actor.net[0]
    save_model(actor, {"model_type": POLICY_KIND, "latent": first.in_features,
                       "action_dim": actor.net[-1].out_features // 2}, folder)


def imagined_return(model: GlobalModel, play: Play, act: Callable[[Tensor], Tensor], run: RunConfig) -> float:
    """Return the mean reward per step on the held-out starts, the same for every policy; not counted as training."""
    steps = model.steps
    returns, _ = greedy_returns(model, play, act, run.eval_starts, run.eval_steps, seed=0, evaluation=True)
    model.steps = steps
    return float(returns.mean())
