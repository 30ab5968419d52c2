"""Single images of varied scenes with what is where: what the locator learns from. No physics is run but settling.

Cheap where episodes are not, so there can be many, at four times the pixels, with more clutter and more arm poses.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from world_gymnast_ros.data.episode_files import write_rows
from world_gymnast_ros.errors import Unreachable
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.twin.observer import (
    CAPTURE_HEIGHT,
    CAPTURE_WIDTH,
    RENDER_HEIGHT,
    RENDER_WIDTH,
    scene_camera,
)
from world_gymnast_ros.twin.play import wide_scene
from world_gymnast_ros.twin.scene import COLOURS, ObjectSpec, Scene
from world_gymnast_ros.twin.sim import Twin

MAX_OBJECTS = 8
FRAMES_PER_SCENE = 4
"""Objects and arm are placed anew this often in one scene; building the scene is the slow part."""


def cluttered(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with up to three distractors more, balls among them."""
    used = {o.name for o in scene.objects + scene.distractors}
    spare = [(c, s) for c in COLOURS for s in ("block", "cylinder", "ball") if f"{c} {s}" not in used]
    count = min(int(rng.integers(0, 4)), MAX_OBJECTS - len(used))
    chosen = [spare[i] for i in rng.permutation(len(spare))[:count]]
    more = tuple(ObjectSpec(colour, shape, size_m=float(rng.uniform(0.03, 0.045))) for colour, shape in chosen)
    return dataclasses.replace(scene, distractors=scene.distractors + more)


def random_arm(rng: np.random.Generator) -> np.ndarray:
    """Return a Bridge state (7,) anywhere over the table, half of them high up where episodes begin."""
    z = rng.uniform(0.10, 0.22) if rng.random() < 0.6 else rng.uniform(0.03, 0.12)
    return np.array([rng.uniform(0.16, 0.36), rng.uniform(-0.13, 0.15), z, *rng.normal(0, 0.06, 2),
                     rng.normal(0, 0.25), rng.uniform(0, 1)])


def make_single_frames(path: Path, count: int, seed: int, progress: Callable[[], object] = lambda: None) -> None:
    """Write `count` single frames to `path` (.npz): images uint8 (144, 192, 3), names and places of all objects, m,
    the measured Bridge state and the true camera (`arm_silhouette.projection`)."""
    rng = np.random.default_rng((seed, 77))
    rows: list[dict[str, np.ndarray]] = []
    while len(rows) < count:
        scene = cluttered(wide_scene(rng, str(rng.choice(["reach", "push", "pick_place"]))), rng)
        twin = Twin(scene, seed)
        objects = (scene.objects + scene.distractors)[:MAX_OBJECTS]
        try:
            for _ in range(min(FRAMES_PER_SCENE, count - len(rows))):
                start = random_arm(rng) if rng.random() < 0.75 else None
                try:
                    twin.reset(int(rng.integers(1 << 31)), scene.instructions[0], start)
                except Unreachable:
                    continue
                arm = twin.arm_state(0)
                xyz = np.zeros((MAX_OBJECTS, 3), np.float32)
                xyz[:len(objects)] = [twin.object_xyz(t.name) for t in objects]
                image = resize_rgb(twin.render(RENDER_WIDTH, RENDER_HEIGHT), (CAPTURE_HEIGHT, CAPTURE_WIDTH))
                names = [t.name for t in objects] + [""] * (MAX_OBJECTS - len(objects))
                rows.append({"image": image, "names": np.array(names, "U64"),
                             "xyz": xyz, "state": bridge_state(arm.T_base_ee, arm.gripper),
                             "camera": np.asarray(scene_camera(scene), np.float32)})
                progress()
        finally:
            twin.close()
    write_rows(path, rows)
