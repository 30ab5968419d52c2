"""Do a window that is not computed anew, and fewer denoising steps, change what a judge decides?

    world-gymnast twin play train_play --family reach --count 160 --seed 901 --out TRAIN/reach.npz
    world-gymnast twin play train_play --family reach --count 60 --seed 900 --out HELD/reach.npz
    nice -n 10 python bench/worldgym_judged.py TRAIN HELD AUTOENCODER OUT

Trains a small WorldGym network on scripted play, and replays the held-out episodes in it: from their first frames,
under their recorded actions, with the same noise for all methods. A judge scores each rollout. "other noise" is the
first method with another seed: what chance alone changes. A run that was stopped goes on where it was; one that is
finished is only measured.
"""
from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from worldgym_clips import untrained

from world_gymnast_ros.data.read import read_arrays
from world_gymnast_ros.evaluation.replay import Replays, replay_episodes
from world_gymnast_ros.loading.load import load_judges
from world_gymnast_ros.models.world_models.worldgym import WorldGym
from world_gymnast_ros.models.world_models.worldgym_settings import PERSISTENT, RECOMPUTE
from world_gymnast_ros.training.worldgym import WorldGymTrainer, WorldGymTraining

FIRST = f"{RECOMPUTE}, 10 steps"


def trained(args: argparse.Namespace) -> WorldGym:
    """Return the network trained for `args.steps`, from scratch or from where an earlier run stopped."""
    if not (args.out / "model.safetensors").is_file():
        world = untrained(args.autoencoder, args.size, args.dim, args.depth, 4, args.window)
        episodes = [e for file in sorted(args.train.glob("*.npz")) for e in read_arrays(file)]
        config = WorldGymTraining(steps=args.steps, batch=args.batch, clip_frames=args.window, lora_rank=0,
                                  learning_rate=args.rate, average=0.995, save_every=100)
        trainer, state, losses = WorldGymTrainer(world, episodes, config), args.out / "run.safetensors", []
        args.out.mkdir(parents=True, exist_ok=True)
        if state.is_file():
            trainer.resume(state)

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            if step % 100 == 0:
                spent_s = time.process_time()
                print(f"step {step}: loss {np.mean(losses[-100:]):.4f}, processor {spent_s:.0f} s", flush=True)

        trainer.run(report, state)
        trainer.save(args.out, args.autoencoder, "scratch", "")
    return WorldGym.from_pretrained(args.out, dtype=torch.float32)


def methods(world: WorldGym) -> dict[str, tuple[WorldGym, int]]:
    """Return what is compared, and the seed of its noise."""
    def of(mode: str, steps: int, together: int = 1) -> WorldGym:
        settings = replace(world.settings, after_window=mode, sampling_steps=steps, frames_at_once=together)
        return WorldGym(world.network, world.autoencoder, settings, world.name)
    found = {FIRST: (of(RECOMPUTE, 10), 0), "other noise": (of(RECOMPUTE, 10), 1)}
    for mode, steps in ((PERSISTENT, 10), (PERSISTENT, 4), (PERSISTENT, 2), (PERSISTENT, 1), (RECOMPUTE, 1)):
        found[f"{mode}, {steps} step{'s' * (steps > 1)}"] = of(mode, steps), 0
    together = world.settings.window // 2
    for steps in (10, 4, 2):
        found[f"{PERSISTENT}, {steps} steps, {together} together"] = of(PERSISTENT, steps, together), 0
    return found


def against(first: Replays, other: Replays, window: int) -> dict[str, Any]:
    """Return how far frames and verdicts of a method are from those of the first one.

    Grey levels are means of absolute differences, over the frames within the window and over those beyond it.
    """
    pairs = zip(first.rollouts, other.rollouts, strict=True)
    apart = np.stack([np.abs(a.astype(np.int16) - b).mean((1, 2, 3)) for a, b in pairs])
    both = np.isfinite(first.score) & np.isfinite(other.score)
    return {"grey_levels_in_window": float(apart[:, 1:window].mean()),
            "grey_levels_beyond": float(apart[:, window:].mean()),
            "score_apart": float(np.abs(first.score - other.score)[both].mean()),
            "gained": int((other.predicted & ~first.predicted).sum()),
            "lost": int((first.predicted & ~other.predicted).sum())}


def line(name: str, row: dict[str, Any]) -> str:
    """Return a row of the table."""
    s, o = row["summary"], row["against_first"]
    return (f"| {name} | {o['grey_levels_in_window']:.2f} / {o['grey_levels_beyond']:.2f} "
            f"| {s['psnr_db_by_step']['1']:.1f} / {s['psnr_db_by_step']['10']:.1f} | {s['auc']:.3f} "
            f"| {s['false_success']:.2f} | {1 - s['false_negative']:.2f} | {o['gained']} / {o['lost']} "
            f"| {o['score_apart']:.3f} |")


def main() -> None:
    """Train, replay, judge, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="folder of .npz files of play")
    parser.add_argument("held_out", type=Path, help="another one")
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--judge", nargs="+", default=["tiny/reflector"])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--window", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    world = trained(args)
    held = [e for file in sorted(args.held_out.glob("*.npz")) for e in read_arrays(file)]
    judge = load_judges(args.judge, "cpu", "float32")
    rows: dict[str, Any] = {}
    first: Replays | None = None
    for name, (model, seed) in methods(world).items():
        begin = time.process_time()
        found = replay_episodes(model, judge, held, seed, ceiling=first is None)
        first = first or found
        rows[name] = {"summary": found.summary(), "against_first": against(first, found, args.window),
                      "cpu_s": time.process_time() - begin}
    assert first is not None
    ceiling = replace(first, score=first.true_score).summary()["auc"]
    print("| method | grey levels in the window / beyond | PSNR at 1 / 10 steps, dB | AUC | false positives | recall "
          "| verdicts gained / lost | score apart |\n|---|---|---|---|---|---|---|---|")
    print("\n".join(line(name, row) for name, row in rows.items()))
    print(f"{len(held)} episodes, {int(first.success.sum())} successes; AUC on recorded frames {ceiling:.3f}")
    (args.out / "judged.json").write_text(json.dumps({"auc_recorded": ceiling, "window": args.window, "rows": rows},
                                                     indent=1) + "\n")


if __name__ == "__main__":
    main()
