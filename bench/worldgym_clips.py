"""Train a small WorldGym network on recorded clips, hold the last one out, and measure how far its frames are off.

    nice -n 10 python bench/worldgym_clips.py CLIPS AUTOENCODER OUT --steps 1500            all weights, from scratch
    nice -n 10 python bench/worldgym_clips.py CLIPS AUTOENCODER OUT2 --base OUT --rank 8    a LoRA of that

CLIPS holds clips in WorldGym's format, AUTOENCODER what `WorldGym` takes as `vae`. Rollouts begin at every fourth frame
of the held-out clip and follow its recorded actions. Beside the model: repeating the first frame, the recorded frames
through the autoencoder (no latent model can be nearer), shorter schedules, and what a window that is not computed anew
changes, in grey levels of 255.
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

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.worldgym import read_clip
from world_gymnast_ros.evaluation.image_metrics import psnr_db, squared_error
from world_gymnast_ros.files import sha256_file
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.models.world_models.autoencoder import load_autoencoder
from world_gymnast_ros.models.world_models.worldgym import WorldGym
from world_gymnast_ros.models.world_models.worldgym_dit import DiTShape, WorldGymDiT
from world_gymnast_ros.models.world_models.worldgym_settings import PERSISTENT, WorldGymSettings
from world_gymnast_ros.training.worldgym import WorldGymTrainer, WorldGymTraining
from world_gymnast_ros.types import U8

HORIZONS = (1, 5, 16)
EVERY = 4
"""A rollout begins at every so manieth frame."""


def untrained(autoencoder: Path, size: int, dim: int, depth: int, heads: int, window: int) -> WorldGym:
    """Return a model as its training begins: adaLN and output are zero, so that nothing is predicted yet."""
    torch.manual_seed(0)
    latent = load_autoencoder(autoencoder, torch.device("cpu"), torch.float32)
    network = WorldGymDiT(DiTShape(latent.channels, 2, dim, depth, 10, heads))
    for name, p in network.named_parameters():
        if "adaLN_modulation" in name or "final_layer" in name or name.endswith("bias"):
            torch.nn.init.zeros_(p)
        else:
            torch.nn.init.xavier_uniform_(p.view(len(p), -1))
    settings = WorldGymSettings(heads=heads, window=window, frame_size=(size, size), vae=str(autoencoder.resolve()))
    return WorldGym(network, latent, settings, "clips")


def rollouts(world: WorldGym, clip: Episode, seed: int = 0) -> U8:
    """Return frames uint8 (starts, 16, H, W, 3) imagined from every fourth frame under the clip's own actions."""
    starts = range(0, clip.steps - max(HORIZONS) + 1, EVERY)
    at = [replace(clip, frames=clip.frames[s:], deltas=clip.deltas[s:]).start() for s in starts]
    return world.begin(at, seed).play(np.stack([clip.deltas[s:s + max(HORIZONS)] for s in starts]))


def true_frames(clip: Episode, size: tuple[int, int]) -> tuple[U8, U8]:
    """Return what was recorded, (starts, 16, H, W, 3), and the first frames repeated."""
    frames = resize_rgb(clip.frames, size)
    starts = range(0, clip.steps - max(HORIZONS) + 1, EVERY)
    truth = np.stack([frames[s + 1:s + 1 + max(HORIZONS)] for s in starts])
    return truth, np.repeat(frames[list(starts), None], max(HORIZONS), 1)


def by_horizon(frames: U8, truth: U8) -> dict[int, float]:
    """Return the PSNR, dB, of the mean squared error over all rollouts at 1, 5 and 16 steps."""
    return {h: round(psnr_db(float(squared_error(frames[:, h - 1], truth[:, h - 1]).mean())), 2) for h in HORIZONS}


def measure(world: WorldGym, clip: Episode) -> dict[str, Any]:
    """Return PSNR by horizon of the model and of what it is compared with."""
    truth, repeated = true_frames(clip, world.frame_size)
    imagined = rollouts(world, clip)
    flat = torch.from_numpy(truth.reshape(-1, *truth.shape[2:])).float() / 255.0
    through = world.autoencoder.decode(world.autoencoder.encode(flat)).mul(255.0).round().to(torch.uint8).numpy()
    found: dict[str, Any] = {"model": by_horizon(imagined, truth), "first frame repeated": by_horizon(repeated, truth),
                             "through the autoencoder": by_horizon(through.reshape(truth.shape), truth)}
    for steps in (4, 2, 1):
        short = WorldGym(world.network, world.autoencoder, replace(world.settings, sampling_steps=steps), world.name)
        found[f"model, {steps} steps"] = by_horizon(rollouts(short, clip), truth)
    kept = WorldGym(world.network, world.autoencoder, replace(world.settings, after_window=PERSISTENT), world.name)
    drawn = rollouts(kept, clip)
    found["model, persistent"] = by_horizon(drawn, truth)
    moved = np.abs(drawn.astype(np.float32) - imagined).mean((0, 2, 3, 4))
    found["persistent against recompute, mean grey levels by step"] = [round(float(v), 2) for v in moved]
    return found


def main() -> None:
    """Train, save, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, help="checkpoint to go on from (default: from scratch)")
    parser.add_argument("--rank", type=int, default=0, help="of a LoRA; 0: all weights")
    parser.add_argument("--first", type=int, default=0, help="train on the first so many clips; 0: all but the last")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--window", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips = [read_clip(path) for path in sorted(args.clips.glob("*.mp4"))]
    if len(clips) < 2:
        parser.error(f"{args.clips} holds {len(clips)} clips; one to train on and one to hold out are needed")
    world = untrained(args.autoencoder, args.size, args.dim, args.depth, 4, args.window) if args.base is None else \
        WorldGym.from_pretrained(args.base, dtype=torch.float32)
    config = WorldGymTraining(steps=args.steps, batch=args.batch, clip_frames=world.settings.window,
                              lora_rank=args.rank, learning_rate=args.rate, average=0.99)
    trainer = WorldGymTrainer(world, clips[:args.first or -1], config)
    losses, wall, cpu = [], time.perf_counter(), time.process_time()

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 100 == 0:
            spent_s = time.process_time() - cpu
            print(f"step {step}: loss {np.mean(losses[-100:]):.4f}, processor {spent_s:.0f} s", flush=True)

    trainer.run(report)
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    base = "" if args.base is None else sha256_file(args.base / "model.safetensors")
    trainer.save(args.out, args.autoencoder, str(args.base or "scratch"), base)
    found = {"clips": len(clips[:args.first or -1]), "held_out": clips[-1].name, "parameters": sum(
        p.numel() for p in world.network.parameters()), "steps": args.steps, "rank": args.rank, **spent,
        "psnr_db": measure(world, clips[-1])}
    (args.out / "measured.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
