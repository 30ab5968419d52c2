"""The stages of a comparison on one task, each of which reads and writes one folder and goes on where it stopped.

    OUT/play  OUT/world_model  OUT/encoder  OUT/surrogate  OUT/tuning/<method>.json  OUT/policies/<method>-<seed>
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from world_gymnast_ros.errors import BadBudget, BadCheckpoint
from world_gymnast_ros.files import sha256_file, write_text
from world_gymnast_ros.first_order import play as play_data
from world_gymnast_ros.first_order.actor_critic import Actor
from world_gymnast_ros.first_order.copies import draw_starts
from world_gymnast_ros.first_order.diagnostics import derivative_cosines, k_step_errors
from world_gymnast_ros.first_order.diffusion import DiffusionConfig, load_diffusion
from world_gymnast_ros.first_order.encoder import EncoderConfig, load_encoder, train_encoder
from world_gymnast_ros.first_order.fog import FogLearner
from world_gymnast_ros.first_order.global_model import GlobalModel, encoded_play
from world_gymnast_ros.first_order.play import Play
from world_gymnast_ros.first_order.policy_training import (
    RunConfig,
    imagined_return,
    load_policy,
    load_surrogate,
    make_learner,
    play_replay,
    save_surrogate,
    train_policy,
    train_surrogate,
)
from world_gymnast_ros.first_order.surrogate import Sequences
from world_gymnast_ros.first_order.task import MakeTask
from world_gymnast_ros.first_order.train_diffusion import DiffusionTraining, train_diffusion
from world_gymnast_ros.first_order.true_test import CURVE_SEED, PLAY_SEED, TEST_SEED, play_truly, random_policy
from world_gymnast_ros.first_order.tuning import TRIALS, trial_name
from world_gymnast_ros.models.checkpoint import WEIGHTS, read_tensors, save_tensors

TUNING_SHARE = 0.4
"""Budget of a tuning trial, as a share of the full budget."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the whole comparison: the default is what the tables are made with."""

    episodes: int = 500
    episode_steps: int = play_data.STEPS
    world_model_steps: int = 2840
    encoder_steps: int = 1500
    surrogate_updates: int = 800
    policy_steps: int = 12_000
    test_episodes: int = 30


def data(make: MakeTask, out: Path, scale: Scale) -> Play:
    """Record play data, or what is missing of it."""
    play_data.collect(make, out / "play", PLAY_SEED, scale.episodes, scale.episode_steps)
    return play_data.read(out / "play")


def world_model(out: Path, scale: Scale, seed: int, diffusion: DiffusionConfig | None = None,
                encoder: EncoderConfig | None = None) -> dict[str, dict[str, float]]:
    """Train the diffusion model, the encoder and, on play, the surrogate; skip what is finished; return errors."""
    play = play_data.read(out / "play")
    made: dict[str, dict[str, float]] = {}
    if not (out / "encoder" / "errors.json").is_file():
        train_encoder(play, encoder or EncoderConfig(labels=int(play.labels.shape[-1])), scale.encoder_steps, seed,
                      out / "encoder")
    if not (out / "world_model" / "errors.json").is_file():
        training = DiffusionTraining(steps=scale.world_model_steps, seed=seed)
        train_diffusion(play, diffusion or DiffusionConfig(), training, out / "world_model")
    model = load_global(out)
    if not (out / "surrogate" / "errors.json").is_file():
        encoded, held = encoded_once(out, model, play), play.held_out
        train_surrogate(model, play_replay(model, encoded, held), scale.surrogate_updates, seed, out / "surrogate")
        errors = k_step_errors(load_surrogate(out / "surrogate"), last_of(encoded, held))
        write_text(out / "surrogate" / "errors.json", json.dumps(errors, indent=2) + "\n")
    for name in ("encoder", "world_model", "surrogate"):
        made[name] = json.loads((out / name / "errors.json").read_text())
    return made


def load_global(out: Path) -> GlobalModel:
    """Return the global model of a folder."""
    return GlobalModel(load_diffusion(out / "world_model"), load_encoder(out / "encoder"))


def encoded_once(out: Path, model: GlobalModel, play: Play) -> Sequences:
    """Return the play data as latents, from `out`/encoder/play.safetensors where this encoder wrote them before."""
    path = out / "encoder" / "play.safetensors"
    key = sha256_file(out / "encoder" / WEIGHTS)[:12] + f"-{play.images.shape[0]}"
    if path.is_file() and key in (stored := read_tensors(path)):
        return Sequences(stored[key], play.actions, stored["rewards"])
    encoded = encoded_play(model.encoder, play)
    save_tensors({key: encoded.latents, "rewards": encoded.rewards}, path)
    return encoded


def last_of(data: Sequences, count: int) -> Sequences:
    """Return the last `count` sequences."""
    return Sequences(data.latents[-count:], data.actions[-count:], data.rewards[-count:])


def diagnose(out: Path, surrogate_folder: Path, starts: int = 96, steps: int = 5, seed: int = 0) -> dict[str, float]:
    """Return what decides whether the surrogate may give derivatives; write it beside the surrogate.

    k-step errors on held-out play; median cosine, and share of positive ones, between its derivatives and central
    differences of the global model at held-out moments with the recorded actions. `reward_*`: only moments where the
    sum of rewards depends on the action at all (the upper half by size).
    """
    model, play = load_global(out), play_data.read(out / "play")
    surrogate = load_surrogate(surrogate_folder)
    result: dict[str, float] = k_step_errors(surrogate, last_of(encoded_once(out, model, play), play.held_out))
    generator = torch.Generator().manual_seed(seed)
    episodes, times = draw_starts(play, starts, generator, evaluation=True)
    times = times.clamp(max=play.actions.shape[1] - steps)
    actions = play.actions[episodes[:, None], times[:, None] + torch.arange(steps)]
    state = model.begin(play, episodes, times)
    for name, horizon in (("1", 1), (str(steps), steps)):
        c = derivative_cosines(model, surrogate, state, actions[:, :horizon], seed)
        matters = c["size"] >= c["size"].median()
        result |= {f"reward_cosine_{name}": float(c["reward"][matters].median()),
                   f"reward_positive_{name}": float((c["reward"][matters] > 0).float().mean())}
        if horizon == 1:
            result |= {"latent_cosine": float(c["latent"].median()),
                       "latent_positive": float((c["latent"] > 0).float().mean())}
    write_text(surrogate_folder / "diagnostics.json", json.dumps(result, indent=2) + "\n")
    return result


def train(make: MakeTask | None, out: Path, run: RunConfig, settings: dict[str, Any], folder: Path
          ) -> list[dict[str, Any]]:
    """Train one policy in the world model, or go on from what `folder` holds; return its curve.

    `make`: the true environment of its curve; None: none.
    """
    model, play = load_global(out), play_data.read(out / "play")
    replay = None
    if run.method != "ppo":
        replay = play_replay(model, encoded_once(out, model, play), play.held_out)
    learner = make_learner(model, play, out / "surrogate", replay, run.method, settings, run.seed)

    task = make() if make is not None else None

    def test_truly(actor: Actor) -> dict[str, float]:
        assert task is not None
        result = play_truly(task, actor.greedy, model.encoder, run.true_episodes, CURVE_SEED)
        return {"coverage": result.final_coverage, "best_coverage": result.best_coverage, "reward": result.reward}

    tested = test_truly if run.true_episodes and task is not None else None
    curve = train_policy(model, play, learner, run, settings, folder, tested)
    if isinstance(learner, FogLearner):
        save_surrogate(learner.surrogate, folder / "surrogate")
    return curve


def tune(out: Path, method: str, scale: Scale) -> dict[str, Any]:
    """Run the listed trials of a method on a seed of their own; write and return the best settings and all results."""
    if method not in TRIALS:
        raise BadBudget(f"method {method!r} has no trials; give one of {', '.join(TRIALS)}")
    rows = []
    steps = max(1, int(TUNING_SHARE * scale.policy_steps))
    for settings in TRIALS[method]:
        run = RunConfig(method, steps=steps, seed=1000, evaluate_every=max(1, steps // 2), true_episodes=0)
        curve = train(None, out, run, settings, out / "tuning" / method / trial_name(settings))
        rows.append({"settings": settings, "steps": curve[-1]["steps"], "imagined": max(r["imagined"] for r in curve)})
    best = max(rows, key=lambda row: row["imagined"])
    result = {"method": method, "best": best["settings"], "trials": rows}
    write_text(out / "tuning" / f"{method}.json", json.dumps(result, indent=2) + "\n")
    return result


def tuned(out: Path, method: str) -> dict[str, Any]:
    """Return the settings that tuning chose, or none where the method was not tuned.

    The surrogate alone takes those of FoG where it has none of its own: it is the same learner.
    """
    path = out / "tuning" / f"{method}.json"
    if not path.is_file():
        return tuned(out, "fog") if method == "surrogate" else {}
    best: dict[str, Any] = json.loads(path.read_text())["best"]
    return best


def test(make: MakeTask, out: Path, scale: Scale) -> dict[str, Any]:
    """Play every trained policy (the best by imagined return) and a random one in the true environment.

    Writes test.json in each run's folder and random.json in `out`; what is there with as many episodes is kept.
    """
    model, play = load_global(out), play_data.read(out / "play")
    task = make()
    results: dict[str, Any] = {}
    random_path = out / "random.json"
    if not random_path.is_file():
        run = RunConfig("ppo")
        result = play_truly(task, random_policy(0), model.encoder, scale.test_episodes, TEST_SEED).to_dict()
        result["imagined"] = imagined_return(model, play, random_policy(0), run)
        write_text(random_path, json.dumps(result, indent=2) + "\n")
    results["random"] = json.loads(random_path.read_text())
    for folder in run_folders(out):
        path = folder / "test.json"
        old = json.loads(path.read_text()) if path.is_file() else {}
        if old.get("episodes") != scale.test_episodes:
            actor = load_policy(folder / "best")
            old = play_truly(task, actor.greedy, model.encoder, scale.test_episodes, TEST_SEED).to_dict()
            write_text(path, json.dumps(old, indent=2) + "\n")
        results[folder.name] = old
    return results


def run_folders(out: Path) -> list[Path]:
    """Return the folders of finished runs. BadCheckpoint where there is none."""
    found = sorted(path.parent for path in (out / "policies").glob("*/last"))
    if not found:
        raise BadCheckpoint(f"{out / 'policies'} holds no finished run; train one with `world-gymnast fog TASK train`")
    return found
