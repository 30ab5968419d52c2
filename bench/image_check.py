"""How often the check of the camera's images is right: false alarms and detections, by what was done to an image.

    python bench/image_check.py                            # the twin, all shipped scenes, arm anywhere
    python bench/image_check.py --frames mine.npz          # images of a robot: frames (N, H, W, 3) uint8, states
                                                             # (N, 7) Bridge states, episode (N,) int
    python bench/image_check.py --clips FOLDER             # clips without poses: image statistics alone

Every image is shown to the check as it is, and with each fault. An episode is a few images, the arm at rest at
different poses: `first` counts what is said of the first one, as before arming, `last` what is said of the last.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from world_gymnast_ros.control.image_check import ImageCheck
from world_gymnast_ros.control.image_statistics import ImageFault
from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.nodes.clips import clip_frames, list_clips
from world_gymnast_ros.robot.actions import bridge_state, pose_from_state
from world_gymnast_ros.robot.arm_silhouette import projection
from world_gymnast_ros.robot.camera import (
    BRIDGE_CAMERA_FOCAL,
    BRIDGE_CAMERA_LOOK,
    BRIDGE_CAMERA_XYZ_M,
    level_camera,
)
from world_gymnast_ros.twin.scene import known_scenes, load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.twin.single_frames import random_arm
from world_gymnast_ros.types import F32, U8

CAMERA = projection(level_camera(BRIDGE_CAMERA_XYZ_M, BRIDGE_CAMERA_LOOK), 3 * BRIDGE_CAMERA_FOCAL, 4, 3)
ASPECT = 4 / 3
Episode = tuple[str, list[U8], list[F32 | None]]


def grey(rgb: U8) -> U8:
    return np.repeat(rgb.mean(-1, keepdims=True).astype(np.uint8), 3, -1)


def wide(rgb: U8) -> U8:
    """16:9: the middle of the image, as a wide camera's image of it would be."""
    lost = round(rgb.shape[0] / 8)
    width = round((rgb.shape[0] - 2 * lost) * 16 / 9)
    return np.asarray(Image.fromarray(rgb[lost:-lost]).resize((width, rgb.shape[0] - 2 * lost)))


def barred(rgb: U8) -> U8:
    out, bar = rgb.copy(), round(rgb.shape[0] / 8)
    out[:bar] = out[-bar:] = 0
    return out


FAULTS: dict[str, tuple[Callable[[U8], U8], ImageFault | None]] = {
    "as it is": (lambda rgb: rgb, None),
    "mirrored": (lambda rgb: rgb[:, ::-1], ImageFault.MIRRORED),
    "upside down": (lambda rgb: rgb[::-1, ::-1], ImageFault.UPSIDE_DOWN),
    "flipped": (lambda rgb: rgb[::-1], ImageFault.FLIPPED),
    "16:9": (wide, ImageFault.ASPECT), "black bars": (barred, ImageFault.BARS), "grey": (grey, ImageFault.GREY),
    "black": (lambda rgb: rgb // 32, ImageFault.BLACK),
    "white": (lambda rgb: 255 - (255 - rgb) // 16, ImageFault.WHITE),
    "BGR": (lambda rgb: rgb[..., ::-1], ImageFault.COLD_COLOURS),
}


def twin_episodes(count: int, length: int, seed: int) -> Iterator[Episode]:
    """Yield `count` episodes per shipped scene: from the start to anywhere over the table, and from anywhere."""
    rng = np.random.default_rng(seed)
    for name in known_scenes():
        scene = load_scene(name)
        twin = Twin(scene, seed)
        for n in range(count):
            state, goal = None if n % 2 == 0 else random_arm(rng), random_arm(rng)
            frames: list[U8] = []
            states: list[F32 | None] = []
            while len(frames) < length:
                try:
                    twin.reset(1000 * seed + n, scene.instructions[0], state)
                except Unreachable:
                    state = goal = random_arm(rng)
                    continue
                arm = twin.arm_state(0)
                frames.append(twin.render(320, 240))
                states.append(bridge_state(arm.T_base_ee, arm.gripper))
                state = states[-1].astype(np.float64)
                step = goal[:3] - state[:3]
                state[:3] += step * min(1.0, rng.uniform(0.02, 0.08) / max(float(np.linalg.norm(step)), 1e-9))
                goal = random_arm(rng) if np.linalg.norm(step) < 0.02 else goal
            yield name, frames, states
        twin.close()


def file_episodes(path: Path) -> Iterator[Episode]:
    data = np.load(path)
    for number in np.unique(data["episode"]):
        rows = np.flatnonzero(data["episode"] == number)
        yield str(number), list(data["frames"][rows]), list(data["states"][rows].astype(np.float32))


def clip_episodes(folder: str) -> Iterator[Episode]:
    for clip in list_clips(folder):
        frames = list(clip_frames(clip))[::8]
        yield clip.name, frames, [None] * len(frames)


def faults(frames: list[U8], states: list[F32 | None], change: Callable[[U8], U8]) -> list[ImageFault | None]:
    """Return what the check says of each image of an episode."""
    check = ImageCheck(ASPECT, CAMERA)
    verdicts = [check.look(np.ascontiguousarray(change(rgb)), None if s is None else pose_from_state(s))
                for rgb, s in zip(frames, states, strict=True)]
    return [v.finding.fault if v.finding else None for v in verdicts]


def recognised(episodes: list[Episode]) -> str:
    """Say how often an image is recognised by the right one before it, as it is and with the arm's turns of it."""
    counts = {kind: [0, 0] for kind in ("with the arm at rest", "after a move of 2 cm or more", "turned")}
    for _, frames, states in episodes:
        check, before = ImageCheck(ASPECT, CAMERA), None
        for rgb, state in zip(frames, states, strict=True):
            if state is None:
                return "no poses: nothing is recognised, every image is searched before it is acted on"
            pose = pose_from_state(state)
            if before is not None:
                kind = "with the arm at rest" if np.linalg.norm(state[:3] - before) < 0.02 else list(counts)[1]
                for name, (change, fault) in FAULTS.items():
                    if fault is None or name in ("mirrored", "upside down", "flipped"):
                        of = counts[kind if fault is None else "turned"]
                        of[0] += check.recognises(np.ascontiguousarray(change(rgb)), pose)
                        of[1] += 1
            check.look(rgb, pose)
            before = state[:3]
    return "recognised by the right one before: " + ", ".join(f"{k} {a} of {n}" for k, (a, n) in counts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, help="npz of a robot's images and states")
    parser.add_argument("--clips", help="clip or folder of clips, without poses")
    parser.add_argument("--episodes", type=int, default=8, help="per scene of the twin")
    parser.add_argument("--length", type=int, default=6, help="images per episode of the twin")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.frames:
        episodes = list(file_episodes(options.frames))
    else:
        episodes = list(clip_episodes(options.clips) if options.clips else
                        twin_episodes(options.episodes, options.length, options.seed))
    hints = {ImageFault.COLD_COLOURS, ImageFault.ARM_ELSEWHERE, None}
    print(f"{len(episodes)} episodes, {sum(len(f) for _, f, _ in episodes)} images\n")
    print("| done to the image | named, first image | named, last | another definite fault, any image |"
          "\n|---|---|---|---|")
    for name, (change, fault) in FAULTS.items():
        said = [faults(frames, states, change) for _, frames, states in episodes]
        first, last = (sum(s[i] is fault for s in said) / len(said) for i in (0, -1))
        wrong = sum(f is not fault and f not in hints for s in said for f in s)
        print(f"| {name} | {100 * first:.0f} % | {100 * last:.0f} % | {wrong} |", flush=True)
    print(f"\n{recognised(episodes)}")
    hinted = [(name, f.name) for name, frames, states in episodes for f in faults(frames, states, FAULTS["as it is"][0])
              if f is not None]
    print(f"\nsaid of images as they are: {({h: hinted.count(h) for h in sorted(set(hinted))})}")


if __name__ == "__main__":
    main()
