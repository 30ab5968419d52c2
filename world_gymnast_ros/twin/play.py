"""Make play data on the twin: many short episodes with truth, for policy, world model and judge.

Files hold plain arrays (no pickle), one file per (family, batch); format: `docs/reference/formats.md`.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from world_gymnast_ros import seeds
from world_gymnast_ros.data.episode_files import write_rows
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.twin.bridge_loop import BridgeLoop
from world_gymnast_ros.twin.expert import demonstrator, player
from world_gymnast_ros.twin.observer import (
    CAPTURE_HEIGHT,
    CAPTURE_WIDTH,
    RENDER_HEIGHT,
    RENDER_WIDTH,
    SIZE_PX,
    Observer,
    instructions_for,
    scene_camera,
)
from world_gymnast_ros.twin.scene import COLOURS, ObjectSpec, Scene, load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.twin.tasks import parse_instruction
from world_gymnast_ros.types import F32, F64, U8

KNOWN_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple")
KNOWN_SHAPES = ("block", "cylinder")
TRAIN_SCENES = ("train_oak", "train_grey", "train_green")
PLAY_MIX = {"expert": 0.32, "perturbed": 0.36, "wander": 0.24, "halting": 0.08}
NEAR_MIX = {"expert": 0.15, "near": 0.7, "halting": 0.15}
"""Of `near_play`: near misses, which judges find hardest."""


def random_objects(rng: np.random.Generator, family: str, wide: bool) -> tuple[ObjectSpec, ...]:
    """Draw two or three movable objects (and a plate where the family or chance asks for one)."""
    pairs = [(c, s) for c in KNOWN_COLOURS for s in KNOWN_SHAPES]
    count = int(rng.integers(1, 4)) if family != "pick_place" else int(rng.integers(1, 3))
    objects = []
    for i in rng.permutation(len(pairs))[:count]:
        colour, shape = pairs[i]
        rgb = np.array(COLOURS[colour])
        if wide:
            rgb = np.clip(rgb * rng.uniform(0.8, 1.15) + rng.normal(0, 0.04, 3), 0.02, 1.0)
        objects.append(ObjectSpec(colour, shape, size_m=float(rng.uniform(0.037, 0.043)) if wide else 0.04,
                                  mass_kg=float(rng.uniform(0.03, 0.09)) if wide else 0.05,
                                  friction=float(rng.uniform(0.7, 1.2)) if wide else 1.0, rgb=tuple(rgb)))
    if family == "pick_place" or rng.random() < 0.25:
        objects.append(ObjectSpec(str(rng.choice((*KNOWN_COLOURS, "white"))), "plate", size_m=0.11))
    return tuple(objects)


def pick_instruction(rng: np.random.Generator, family: str, objects: tuple[ObjectSpec, ...]) -> str:
    """Draw one instruction of the family."""
    return str(rng.choice([i for i in instructions_for(objects) if parse_instruction(i).family == family]))


def training_scene(rng: np.random.Generator, family: str) -> Scene:
    """One of the policy's training scenes: its fixed look and camera, with random objects in free places."""
    base = load_scene(str(rng.choice(TRAIN_SCENES)))
    objects = random_objects(rng, family, wide=False)
    return dataclasses.replace(base, objects=objects, instructions=(pick_instruction(rng, family, objects),))


def wide_scene(rng: np.random.Generator, family: str) -> Scene:
    """A scene of varied looks, for world model and judge: table, walls, light, camera, arm shade, physics."""
    hue, saturation, value = rng.random(), rng.uniform(0.0, 0.45), rng.uniform(0.25, 0.9)
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    table = value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)
    objects = random_objects(rng, family, wide=True)
    used = {o.name for o in objects}
    spare = [(c, s) for c in (*COLOURS,) for s in ("block", "cylinder") if f"{c} {s}" not in used]
    chosen = [spare[i] for i in rng.permutation(len(spare))[:int(rng.integers(0, 2))]]
    distractors = tuple(ObjectSpec(colour, shape, size_m=float(rng.uniform(0.03, 0.045))) for colour, shape in chosen)
    return Scene(
        name="wide", split="wide", instructions=(pick_instruction(rng, family, objects),), objects=objects,
        distractors=distractors, table_rgb=tuple(table), wall_rgb=tuple(rng.uniform(0.25, 0.95, 3)),
        light=float(rng.uniform(0.45, 0.9)), ambient=float(rng.uniform(0.2, 0.45)),
        light_xyz_m=(float(rng.uniform(-0.5, 1.0)), float(rng.uniform(-1, 1)), 1.5),
        camera_offset_m=tuple(rng.uniform(-0.03, 0.03, 3)), camera_rotation_rad=tuple(rng.uniform(-0.05, 0.05, 3)),
        arm_shade=float(rng.uniform(0.08, 0.2)), table_friction=float(rng.uniform(0.8, 1.1)))


def contact_scene(rng: np.random.Generator, family: str) -> Scene:
    """A scene of varied looks whose objects differ in size, weight and friction: to learn from what contact does."""
    scene = wide_scene(rng, family)
    return dataclasses.replace(scene, objects=tuple(
        o if o.shape == "plate" else dataclasses.replace(
            o, size_m=float(rng.uniform(0.03, 0.05)), mass_kg=float(rng.uniform(0.02, 0.12)),
            friction=float(rng.uniform(0.5, 1.3))) for o in scene.objects))


def record_episode(scene: Scene, seed: int, behaviour: str, wide_start: bool,
                   frame_size: tuple[int, int] = (SIZE_PX, SIZE_PX), without_arm: bool = False
                   ) -> dict[str, np.ndarray]:
    """Run one scripted episode and return its row of the play-data format, with frames of `frame_size` (h, w);
    `without_arm`: also the scene as if the arm were not there."""
    rng = np.random.default_rng(seed)
    instruction = scene.instructions[0]
    task = parse_instruction(instruction)
    start = None
    if wide_start:
        start = np.array([rng.uniform(0.17, 0.33), rng.uniform(-0.10, 0.12), rng.uniform(0.10, 0.21), 0, 0, 0, 1.0])

    def begin(loop: BridgeLoop) -> Act:
        hand = demonstrator(task, loop, rng) if behaviour == "demo" else player(behaviour, task, loop, rng)
        twist = rng.random() < 0.12 and behaviour not in ("demo", "expert")

        def act(t: int) -> F32:
            delta = hand.act(loop)
            if twist:
                delta[3:6] = rng.normal(0, 0.06, 3) * (0.3, 0.3, 1.0)
            return delta
        return act

    twin = Twin(scene, seed)
    try:
        return record(twin, seed, instruction, behaviour, begin, start, frame_size, without_arm)
    finally:
        twin.close()


Act = Callable[[int], F32]
"""Gives the action (7,) of step t."""


def record(twin: Twin, seed: int, instruction: str, behaviour: str, begin: Callable[[BridgeLoop], Act],
           start_state: F64 | None = None, frame_size: tuple[int, int] = (SIZE_PX, SIZE_PX), without_arm: bool = False
           ) -> dict[str, np.ndarray]:
    """Run one episode from reset `seed` and return its row of the play-data format.

    `begin(loop)` is called once everything stands in its place, and returns what chooses the actions.
    """
    steps = parse_instruction(instruction).horizon_steps
    twin.reset(seed, instruction, start_state)
    observer = Observer(twin, frame_size)
    loop = BridgeLoop(twin)
    act = begin(loop)
    captured = resize_rgb(twin.render(RENDER_WIDTH, RENDER_HEIGHT), (CAPTURE_HEIGHT, CAPTURE_WIDTH))
    states, deltas = [loop.target], []
    seen = [observer.look()]

    def bare() -> U8:
        return resize_rgb(twin.render(RENDER_WIDTH, RENDER_HEIGHT, arm=False), frame_size)

    scenes = [bare()] if without_arm else []
    for t in range(steps):
        deltas.append(loop.step(act(t)))
        states.append(loop.target)
        seen.append(observer.look())
        scenes += [bare()] if without_arm else []
    more = {"without_arm": np.stack(scenes)} if without_arm else {}
    return {**more, "frames": np.stack([s.frame for s in seen]), "deltas": np.asarray(deltas, np.float32),
            "states": np.stack(states), "measured": np.stack([s.measured for s in seen]),
            "length": np.array(steps, np.int32),
            "success": np.array([s.success for s in seen]), "instruction": np.array(instruction, "U64"),
            "behaviour": np.array(behaviour, "U16"), "seed": np.array(seed, np.int64), "captured": captured,
            "family": np.array(twin.task.family, "U16"), "camera": np.array(scene_camera(twin.scene), np.float32),
            **observer.truth(seen)}


SCENES = {"wide_play": wide_scene, "near_play": wide_scene, "contact_play": contact_scene}


def make_file(path: Path, family: str, kind: str, count: int, seed: int,
              progress: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Make `count` episodes and write them to `path`; return success rates per behaviour.

    `kind` demo: training scenes, demonstrator; train_play: training scenes, mixed behaviour; wide_play: varied scenes,
    mixed behaviour; near_play: these, near misses for the most part; contact_play: varied scenes and mixed behaviour
    with objects of varied size, weight and friction, and the scene without the arm at each frame. `progress` is called
    after each episode.
    """
    episodes = []
    mix = NEAR_MIX if kind == "near_play" else PLAY_MIX
    names = list(mix)
    for episode_seed in seeds.play(seed, count):
        rng = np.random.default_rng((episode_seed, 7))
        scene = SCENES.get(kind, training_scene)(rng, family)
        behaviour = "demo" if kind == "demo" else names[rng.choice(len(names), p=list(mix.values()))]
        wide_start = kind != "demo" and rng.random() < 0.5
        episodes.append(record_episode(scene, episode_seed, behaviour, wide_start,
                                       without_arm=kind == "contact_play"))
        progress()
    write_rows(path, episodes)
    rates: dict[str, list[bool]] = {}
    for e in episodes:
        rates.setdefault(str(e["behaviour"]), []).append(bool(e["success"][-1]))
    return {k: float(np.mean(v)) for k, v in rates.items()}


FAMILIES = ("reach", "push")


def make_replay(folder: Path, episodes: int, seed: int, check: bool, say: Callable[[str], None]) -> Path:
    """Make the play in scenes of random looks that a run with `seed` mixes into updates, one file per family, where the
    folder has none yet; return it. `check`: the play that the run checks itself on.

    Stands for the play that the shipped models were trained on, which is not in the repository.
    """
    for i, family in enumerate(FAMILIES):
        path = folder / f"{family}.npz"
        if not path.is_file():
            say(f"making {episodes} episodes of {family} play in {folder}")
            make_file(path, family, "wide_play", episodes, seeds.replay_file(seed, i, check))
    return folder
