"""Scenes of the twin: what stands on the table, how it looks, where the camera is. Plain data, no physics.

A scene is a small YAML file, so that anyone can add one without code (see `config/scenes/`). Unknown keys are
errors. Lengths in m, angles in rad, masses in kg, colours as names from `COLOURS` or as [r, g, b] in 0..1.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros.errors import BadConfig, UnknownScene
from world_gymnast_ros.files import read_yaml
from world_gymnast_ros.paths import share_dir

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.10, 0.10), "green": (0.12, 0.60, 0.18), "blue": (0.12, 0.25, 0.80), "yellow": (0.90, 0.80, 0.12),
    "orange": (0.95, 0.48, 0.08), "purple": (0.50, 0.18, 0.65), "white": (0.92, 0.92, 0.92), "cyan": (0.15, 0.75, 0.80),
}
SHAPES = ("block", "cylinder", "ball", "plate", "bottle", "bar")
"""bottle: a cylinder 2.2 times as high as `size_m` is wide, with a neck; bar: a block 2.5 times as long as wide."""
BOTTLE_HEIGHT, BAR_LENGTH = 2.2, 2.5
OBJECT_REGION_M = ((0.23, 0.37), (-0.09, 0.13))
"""Where objects may stand (x range, y range, base frame): in view of the camera and in reach, gripper down."""


@dataclass(frozen=True)
class ObjectSpec:
    """One object. Its name is "<colour> <shape>". `xy_m` fixed place, or None: anywhere free in the region.

    `called`: the word that instructions use for it in place of its shape, where the policy knows no word for that.
    """

    colour: str
    shape: str
    xy_m: tuple[float, float] | None = None
    size_m: float = 0.04
    mass_kg: float = 0.05
    friction: float = 1.0
    rgb: tuple[float, float, float] | None = None
    yaw_rad: float | None = None
    called: str = ""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.called or self.shape}"

    @property
    def height_m(self) -> float:
        return BOTTLE_HEIGHT * self.size_m if self.shape == "bottle" else self.size_m

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise BadConfig(f"object colour '{self.colour}' is unknown; known: {', '.join(COLOURS)}")
        if self.shape not in SHAPES:
            raise BadConfig(f"object shape '{self.shape}' is unknown; known: {', '.join(SHAPES)}")
        if self.called and self.called not in SHAPES:
            raise BadConfig(f"object called '{self.called}': instructions know {', '.join(SHAPES)}")
        if not 0.01 <= self.size_m <= 0.12:
            raise BadConfig(f"object size_m {self.size_m} is outside 0.01..0.12 m")
        if not 0.005 <= self.mass_kg <= 0.25:
            raise BadConfig(f"object mass_kg {self.mass_kg} is outside 0.005..0.25 kg (payload of the arm)")


@dataclass(frozen=True)
class Scene:
    """A table with objects under a light and a camera. `instructions`: what may be asked here, first is the default.

    `camera_offset_m`, `camera_rotation_rad`: shift (base axes) and rpy (camera axes) away from the Bridge pose.
    `jitter_m`: objects are moved by up to this much per episode. `start_xyz_m`: end-effector start, base frame.
    """

    name: str
    instructions: tuple[str, ...]
    objects: tuple[ObjectSpec, ...]
    split: str = "novel"
    table_rgb: tuple[float, float, float] = (0.62, 0.50, 0.38)
    wall_rgb: tuple[float, float, float] = (0.75, 0.75, 0.72)
    light: float = 0.7
    ambient: float = 0.35
    light_xyz_m: tuple[float, float, float] = (0.3, -0.5, 1.5)
    camera_offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    camera_rotation_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)
    arm_shade: float = 0.12
    jitter_m: float = 0.01
    start_xyz_m: tuple[float, float, float] = (0.22, 0.0, 0.17)
    start_jitter_m: float = 0.015
    table_friction: float = 1.0
    distractors: tuple[ObjectSpec, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.instructions:
            raise BadConfig(f"scene '{self.name}' has no instructions; give at least one")
        names = [o.name for o in self.objects]
        if len(set(names)) != len(names):
            raise BadConfig(f"scene '{self.name}' holds two objects of the same name: {names}")
        if self.split not in ("train", "novel", "wide"):
            raise BadConfig(f"scene '{self.name}': split '{self.split}' is not train, novel or wide")


def scene_from_dict(data: dict[str, Any], source: str) -> Scene:
    """Build a Scene from parsed YAML; unknown keys and bad values are BadConfig errors naming `source`."""
    fields = {f.name for f in dataclasses.fields(Scene)}
    object_fields = {f.name for f in dataclasses.fields(ObjectSpec)}

    def as_object(entry: Any) -> ObjectSpec:
        if not isinstance(entry, dict) or set(entry) - object_fields:
            raise BadConfig(f"{source}: object {entry!r} has unknown keys; known: {', '.join(sorted(object_fields))}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        return ObjectSpec(**values)

    if not isinstance(data, dict):
        raise BadConfig(f"{source}: a scene is a mapping, got {type(data).__name__}")
    unknown = set(data) - fields
    if unknown:
        raise BadConfig(f"{source}: unknown keys {sorted(unknown)}; known: {', '.join(sorted(fields))}")
    kwargs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    for key in ("objects", "distractors"):
        kwargs[key] = tuple(as_object(e) for e in data.get(key, ()))
    try:
        return Scene(**kwargs)
    except TypeError as error:
        raise BadConfig(f"{source}: {error}") from error


def known_scenes() -> dict[str, Path]:
    """Map scene name to file for the scenes shipped in `config/scenes/`."""
    return {p.stem: p for p in sorted((share_dir() / "config" / "scenes").glob("*.yaml"))}


def load_scene(name_or_path: str) -> Scene:
    """Load a scene by shipped name or by the path of a YAML file; raise UnknownScene listing the known names."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        known = known_scenes()
        if name_or_path not in known:
            raise UnknownScene(f"scene '{name_or_path}' is unknown; known: {', '.join(known)}; or give a .yaml file")
        path = known[name_or_path]
    if not path.is_file():
        raise UnknownScene(f"scene file {path} does not exist; shipped scenes: {', '.join(known_scenes())}")
    return scene_from_dict(read_yaml(path), str(path))


def place_objects(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Return (x, y, yaw) for `objects + distractors`: fixed places get the episode jitter, free ones a free spot.

    Movable things keep 7.5 cm, things and plates 9.5 cm between centres, so that a hand fits between them.
    """
    specs = scene.objects + scene.distractors
    order = sorted(range(len(specs)), key=lambda i: (specs[i].xy_m is None, specs[i].shape != "plate"))
    placed: dict[int, tuple[float, float, float]] = {}

    def clear(i: int, x: float, y: float) -> bool:
        for j, (px, py, _) in placed.items():
            gap = 0.095 if "plate" in (specs[i].shape, specs[j].shape) else 0.075
            if (px - x) ** 2 + (py - y) ** 2 < gap * gap:
                return False
        return True

    for i in order:
        spec = specs[i]
        yaw = spec.yaw_rad if spec.yaw_rad is not None else float(rng.uniform(-0.25, 0.25))
        if spec.xy_m is not None:
            jitter = rng.uniform(-scene.jitter_m, scene.jitter_m, 2)
            placed[i] = (spec.xy_m[0] + jitter[0], spec.xy_m[1] + jitter[1], yaw)
            continue
        (x_low, x_high), (y_low, y_high) = OBJECT_REGION_M
        for _ in range(200):
            x, y = float(rng.uniform(x_low, x_high)), float(rng.uniform(y_low, y_high))
            if clear(i, x, y):
                break
        placed[i] = (x, y, yaw)
    return [placed[i] for i in range(len(specs))]
