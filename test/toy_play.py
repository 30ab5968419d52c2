"""Play data of a toy table, drawn by hand: quick to make, and small networks can learn from it."""
from __future__ import annotations

from pathlib import Path

import numpy as np

SIZE = 32
RGB = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 160, 60), "yellow": (230, 210, 40)}


def _pixel(xy_m: np.ndarray) -> tuple[int, int]:
    row, col = (xy_m[0] - 0.2) / 0.2 * SIZE, (0.12 - xy_m[1]) / 0.2 * SIZE
    return int(np.clip(row, 2, SIZE - 3)), int(np.clip(col, 2, SIZE - 3))


def draw(tip_m: np.ndarray, objects_m: np.ndarray, names: list[str]) -> np.ndarray:
    """Draw the table from above: blocks as 5 px squares, the gripper tip as a white cross."""
    image = np.full((SIZE, SIZE, 3), 110, np.uint8)
    for xyz, name in zip(objects_m, names, strict=True):
        r, c = _pixel(xyz)
        image[r - 2:r + 3, c - 2:c + 3] = RGB[name.split()[0]]
    r, c = _pixel(tip_m)
    image[r - 2:r + 3, c] = image[r, c - 2:c + 3] = 255
    return image


def write_toy_play(path: Path, episodes: int, seed: int, steps: int = 8, scene: str = "train_oak") -> None:
    """Write reach episodes: two of three go to the named block and stay there, the others go elsewhere."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[object]] = {}
    for k in range(episodes):
        names = [f"{c} block" for c in rng.permutation(list(RGB))[:2]]
        places = [[rng.uniform(0.22, 0.38), y, 0.02] for y in rng.permutation([-0.05, 0.09])]
        objects = np.array(places, np.float32)
        expert = k % 3 != 2
        goal = objects[0, :2] if expert else rng.uniform((0.22, -0.06), (0.38, 0.10))
        tip = np.array([rng.uniform(0.22, 0.38), rng.uniform(-0.06, 0.10), 0.08])
        tips = [tip]
        for _ in range(steps):
            tips.append(np.append(tips[-1][:2] + np.clip(goal - tips[-1][:2], -0.03, 0.03), 0.08))
        way = np.stack(tips).astype(np.float32)
        inside = [np.linalg.norm(way[:, :2] - objects[o, :2], axis=1) < 0.022 for o in range(2)]
        latched = [np.maximum.accumulate(np.append(False, i[1:] & i[:-1])) for i in inside]
        state = np.concatenate([way, np.zeros((steps + 1, 3)), np.ones((steps + 1, 1))], axis=1).astype(np.float32)
        deltas = np.concatenate([np.diff(way, axis=0), np.zeros((steps, 3)), np.ones((steps, 1))], axis=1)
        one = {"frames": np.stack([draw(t, objects, names) for t in way]), "deltas": deltas.astype(np.float32),
               "states": state, "measured": state, "length": np.int32(steps), "success": latched[0],
               "instruction": f"reach the {names[0]}", "family": "reach", "scene": scene,
               "behaviour": "demo" if expert else "wander", "seed": np.int64(seed * 1000 + k), "object_names": names,
               "objects_xyz": np.repeat(objects[None], steps + 1, axis=0),
               "alt_instructions": [f"reach the {names[1]}", ""],
               "alt_success": np.stack([latched[1], np.zeros_like(latched[1])])}
        for key, value in one.items():
            rows.setdefault(key, []).append(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: np.array(value) for key, value in rows.items()})
