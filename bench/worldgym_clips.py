"""Train a small WorldGym network on recorded clips, hold the last one out, and measure how far its frames are off.

    nice -n 10 python bench/worldgym_clips.py CLIPS AUTOENCODER OUT --steps 300       all weights, from scratch
    nice -n 10 python bench/worldgym_clips.py CLIPS AUTOENCODER OUT --pretrain BRIDGE.tfrecord --steps 2400

CLIPS holds clips in WorldGym's format, AUTOENCODER what `WorldGym` takes as `vae`. With --pretrain the network is first
trained on other footage (episodes of Bridge in the RLDS format, of the debug data set that Octo publishes), and then
fine-tuned on the clips as `world-gymnast train world-model --episodes` does it: a LoRA and, beside it, all weights.
A run that was stopped goes on where it was.

Rollouts begin at every fourth frame of the held-out clip and follow its recorded actions. Beside the model: repeating
the first frame, the recorded frames through the autoencoder (no latent model can be nearer), shorter schedules, and
what a window that is not computed anew changes, in grey levels of 255.
"""
from __future__ import annotations

import argparse
import io
import json
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.worldgym import read_clip
from world_gymnast_ros.evaluation.image_metrics import psnr_db, squared_error
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.models.world_models.autoencoder import load_autoencoder
from world_gymnast_ros.models.world_models.worldgym import WorldGym
from world_gymnast_ros.models.world_models.worldgym_dit import DiTShape, WorldGymDiT
from world_gymnast_ros.models.world_models.worldgym_settings import PERSISTENT, WorldGymSettings
from world_gymnast_ros.training.worldgym import WorldGymTrainer, WorldGymTraining
from world_gymnast_ros.types import U8
from world_gymnast_ros.updates.world_model import UpdateConfig, fine_tune

HORIZONS = (1, 5, 16)
EVERY = 4
"""A rollout begins at every so manieth frame."""
CAMERAS = ("image_0", "image_1", "image_2")
"""Of the pretraining episodes, all of which show the same motion."""
ACTIONS = 7


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _messages(data: bytes) -> Iterator[bytes]:
    """Yield the length-delimited fields of a protobuf message; Example, Features and their lists hold no others."""
    at = 0
    while at < len(data):
        _, at = _varint(data, at)
        size, at = _varint(data, at)
        yield data[at:at + size]
        at += size


def read_rlds(path: Path) -> list[Episode]:
    """Read Bridge episodes of a TFRecord file, each once for every camera that saw anything."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        size, = struct.unpack_from("<Q", data, at)  # and a checksum of four bytes, here and behind the record
        features, = _messages(data[at + 12:at + 12 + size])
        at += size + 16
        columns = {}
        for entry in _messages(features):
            name, feature = _messages(entry)
            columns[name.decode().removeprefix("steps/")], = _messages(feature)
        numbers, = _messages(columns["action"])
        deltas = np.frombuffer(numbers, "<f4").reshape(-1, ACTIONS)
        for camera in CAMERAS:
            jpegs = _messages(columns[f"observation/{camera}"])
            frames = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs])
            if frames.any():
                name = f"{path.stem}-{len(found)}"
                found.append(Episode(frames, deltas[:len(frames) - 1].copy(), None, name=name))
    return found


def nearest(some: list[Episode], others: list[Episode], size: tuple[int, int]) -> float:
    """Return the smallest root mean squared difference, grey levels, of a first frame of `some` to any of `others`."""
    frames = np.concatenate([resize_rgb(e.frames, size) for e in others]).astype(np.float32)
    return float(min(np.sqrt(((frames - resize_rgb(e.frames[:1], size)) ** 2).mean((1, 2, 3))).min() for e in some))


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


def trained(args: argparse.Namespace, episodes: list[Episode], out: Path) -> dict[str, Any]:
    """Train all weights from scratch on `episodes`, and write the checkpoint; what is there already is left alone."""
    if (out / "model.safetensors").is_file():
        return {}
    world = untrained(args.autoencoder, args.size, args.dim, args.depth, 4, args.window)
    config = WorldGymTraining(steps=args.steps, batch=args.batch, clip_frames=args.window, lora_rank=0,
                              learning_rate=args.rate, average=0.99, save_every=100)
    trainer, state, losses = WorldGymTrainer(world, episodes, config), out / "run.safetensors", []
    out.mkdir(parents=True, exist_ok=True)
    if state.is_file():
        trainer.resume(state)
    wall, cpu = time.perf_counter(), time.process_time()

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 100 == 0:
            spent_s = time.process_time() - cpu
            print(f"step {step}: loss {np.mean(losses[-100:]):.4f}, processor {spent_s:.0f} s", flush=True)

    trainer.run(report, state)
    trainer.save(out, args.autoencoder, "scratch", "")
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def tuned(args: argparse.Namespace, base: Path, clips: list[Episode], rank: int, out: Path) -> dict[str, Any]:
    """Fine-tune the checkpoint `base` on the clips in the folder `out`, by the package's own path; rank 0: all weights.
    """
    config = UpdateConfig(steps=args.tune, batch=args.batch, lora_rank=rank, lora_lr=args.tune_rate, save_every=100)
    wall, cpu = time.perf_counter(), time.process_time()
    fine_tune(base, clips, [], [], config, out)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def main() -> None:
    """Train, save, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pretrain", type=Path, help="TFRecord file of other footage; then fine-tune on the clips")
    parser.add_argument("--steps", type=int, default=1500, help="from scratch")
    parser.add_argument("--tune", type=int, default=300, help="steps of fine-tuning")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--tune-rate", type=float, default=1e-3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--window", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips = [read_clip(path) for path in sorted(args.clips.glob("*.mp4"))]
    if len(clips) < 2:
        parser.error(f"{args.clips} holds {len(clips)} clips; one to train on and one to hold out are needed")
    held, file = clips.pop(), args.out / "measured.json"
    found: dict[str, Any] = {"clips": len(clips), "held_out": held.name, "steps": args.steps}
    if args.pretrain is None:
        found |= trained(args, clips, args.out)
        runs = {"from scratch": args.out}
    else:
        others = read_rlds(args.pretrain)
        found |= {"pretraining_episodes": len(others), "tune_steps": args.tune, "rank": args.rank,
                  "nearest_clip_grey_levels": nearest(others, [*clips, held], (args.size, args.size))}
        runs = {"base": args.out, "LoRA": args.out / "lora", "all weights": args.out / "all"}
        found["base"] = trained(args, others, args.out)
        for name, rank in (("LoRA", args.rank), ("all weights", 0)):
            found[name] = tuned(args, args.out, clips, rank, runs[name])
            print(f"{name}: {found[name]}", flush=True)
    found["psnr_db"] = {}
    for name, run in runs.items():
        world = WorldGym.from_pretrained(run, dtype=torch.float32)
        found["parameters"] = sum(p.numel() for p in world.network.parameters())
        found["psnr_db"][name] = measure(world, held)
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    print("| | " + " | ".join(map(str, HORIZONS)) + " |\n|---|" + "---|" * len(HORIZONS))
    for name, rows in found["psnr_db"].items():
        for what, row in rows.items():
            if isinstance(row, dict):
                print(f"| {name}: {what} | " + " | ".join(f"{row[h]:.1f}" for h in HORIZONS) + " |")


if __name__ == "__main__":
    main()
