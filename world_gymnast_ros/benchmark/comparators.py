"""What one could do in the place of a session in the world model, with the same budget of time.

`sft`: five demonstrations in the very scene, and cloning them (World-Env's number of demonstrations).
`simulator`: the same reinforcement learning in a simulator built by hand after a photograph: the same task and objects,
    but colours of table and wall as somebody judged them by eye, a camera placed by tape measure, ordinary light, a
    plate and blocks of ordinary size, mass and friction, nothing that the task does not need.
`twin`: the same reinforcement learning in the true twin with true outcomes, which no robot could do.
"""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros import seeds
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.log import Progress
from world_gymnast_ros.data.episode_files import write_rows
from world_gymnast_ros.data.read import read_arrays
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.store import Store
from world_gymnast_ros.twin.bridge_loop import BridgeLoop
from world_gymnast_ros.twin.observer import RENDER_HEIGHT, RENDER_WIDTH, SIZE_PX, capture
from world_gymnast_ros.twin.play import record_episode
from world_gymnast_ros.twin.scene import Scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.types import F32, I64, U8, AdapterRef, Judgement, RolloutFacts, Start
from world_gymnast_ros.updates.adaptation import Parts, lora_config, run_session
from world_gymnast_ros.updates.behaviour_cloning import Imitation, imitate

METHODS = ("sft", "simulator", "twin")
DEMONSTRATIONS = 5
STARTS = 24
"""Placements of objects in the simulator that a session learns from; as many as the promotion test asks for."""
BY_EYE, BY_TAPE_M, BY_TAPE_RAD = 0.06, 0.02, 0.03
"""How far off somebody's simulator is at most: colours (0..1), place and angle of the camera."""


def run(method: str, parts: Parts, scene: Scene, instruction: str, config: AdaptNodeConfig, seed: int,
        progress: Callable[[Progress], None]) -> tuple[AdapterRef | None, str, str]:
    """Adapt with one of ARMS; return the adapter (None: base kept), the outcome and a line about it."""
    if method == "sft":
        return imitate_demonstrations(parts, scene, instruction, config, seed)
    if method not in METHODS:
        raise BadConfig(f"method {method!r} is unknown; choose of world_model, {', '.join(METHODS)}")
    world = SimulatedWorld(hand_built(scene, seed) if method == "simulator" else scene, instruction, seed)
    try:
        starts = [world.captured(s) for s in seeds.simulator(seed, STARTS)]
        mine = dataclasses.replace(parts, world_model=world, judge=world, release={})
        config = dataclasses.replace(config, min_release_auc=0.0, reroll=False, copies=8, groups_per_update=4,
                                     jitter_shift=0.0, jitter_colour=0.0, held_out_copies=1, max_batch=16)
        report = run_session(mine, starts, config, seed, time.time_ns(), progress=progress).report
    finally:
        world.close()
    return report.adapter, report.outcome, report.message


def hand_built(scene: Scene, seed: int) -> Scene:
    """Return the scene as somebody would build it for a simulator after a photograph of the lab."""
    rng = np.random.default_rng([seed, *scene.name.encode()])

    def off(values: tuple[float, ...], by: float) -> Any:
        return tuple(float(v) for v in np.array(values) + rng.uniform(-by, by, len(values)))

    def colour(rgb: tuple[float, ...]) -> Any:
        return tuple(min(1.0, max(0.0, v)) for v in off(rgb, BY_EYE))
    objects = tuple(dataclasses.replace(o, rgb=None, size_m=0.11 if o.shape == "plate" else 0.04, mass_kg=0.05,
                                       friction=1.0) for o in scene.objects)
    return Scene(f"{scene.name} by hand", scene.instructions, objects, table_rgb=colour(scene.table_rgb),
                 wall_rgb=colour(scene.wall_rgb), camera_offset_m=off(scene.camera_offset_m, BY_TAPE_M),
                 camera_rotation_rad=off(scene.camera_rotation_rad, BY_TAPE_RAD), jitter_m=scene.jitter_m,
                 start_xyz_m=scene.start_xyz_m)


def imitate_demonstrations(parts: Parts, scene: Scene, instruction: str, config: AdaptNodeConfig, seed: int
          ) -> tuple[AdapterRef | None, str, str]:
    """Record demonstrations in the scene and clone them."""
    folder = Path(config.directory).resolve() / "demonstrations" / f"{scene.name}-{seed}"
    asked = dataclasses.replace(scene, instructions=(instruction,))
    write_rows(folder / "demos.npz", [record_episode(asked, s, "demo", False)
                                      for s in seeds.demonstrations(seed, DEMONSTRATIONS)])
    lora = lora_config(config, parts.policy)
    ref = imitate(parts.policy, read_arrays(folder / "demos.npz"), lora, Imitation(seed=seed), None,  # type: ignore[arg-type]
                  Store(Path(config.directory).resolve() / "adapters"), f"{instruction} sft",
                  {"demonstrations": DEMONSTRATIONS}, time.time_ns())
    return ref, "cloned" if ref else "kept", f"{DEMONSTRATIONS} demonstrations"


class SimulatedWorld:
    """A twin in the place of world model and judge: `types.WorldModel` and `types.Judge` at once.

    A batch of rollouts is G runs of the simulator, each placed as it was in the start image that it is given, which
    must be one of `captured`; the judge answers with the physics of the newest batch. For comparison only.
    """

    def __init__(self, scene: Scene, instruction: str, seed: int) -> None:
        self.name = f"simulator of {scene.name}"
        self.frame_size, self.stride, self.max_step = (SIZE_PX, SIZE_PX), 1, (0.05, 0.25)
        self.instruction, self.seed = instruction, seed
        self.scene, self.twins = scene, [Twin(scene, seed)]
        self._last: list[_Run] = []
        self._placed: dict[bytes, int] = {}

    def captured(self, seed: int) -> Start:
        """Return a start frame of the simulator with objects placed by `seed`."""
        self.twins[0].reset(seed, self.instruction)
        frame, state = capture(self.twins[0])
        self._placed[resize_rgb(frame.rgb, self.frame_size).tobytes()] = seed
        return Start(frame, state, self.instruction)

    def close(self) -> None:
        """Free the renderers."""
        for twin in self.twins:
            twin.close()

    def begin(self, starts: Sequence[Start], seed: int) -> SimulatedRollouts:
        """Start one run for each start; states and objects are the simulator's own."""
        seeds = [self._placed[resize_rgb(s.frame.rgb, self.frame_size).tobytes()] for s in starts]
        while len(self.twins) < len(starts):
            self.twins.append(Twin(self.scene, self.seed))
        self._last = [_Run(twin, s, self.instruction) for twin, s in zip(self.twins, seeds, strict=False)]
        return SimulatedRollouts(self._last)

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        """Answer with the truth of the newest batch."""
        if len(frames) != len(self._last):
            return [Judgement(None, detail="not the newest batch")] * len(frames)
        return [r.judgement() for r in self._last]


class _Run:
    def __init__(self, twin: Twin, seed: int, instruction: str) -> None:
        self.twin = twin
        twin.reset(seed, instruction)
        self.loop = BridgeLoop(twin)
        self.done_at: int | None = None
        self.progress: list[float] = [twin.progress()]

    def step(self, delta: F32) -> U8:
        self.loop.step(delta)
        self.progress.append(self.twin.progress())
        if self.done_at is None and self.twin.success():
            self.done_at = len(self.progress) - 1
        return resize_rgb(self.twin.render(RENDER_WIDTH, RENDER_HEIGHT), (SIZE_PX, SIZE_PX))

    def judgement(self) -> Judgement:
        p: NDArray[np.float64] = np.array(self.progress)
        return Judgement(float(self.done_at is not None), self.done_at,
                         progress=float(np.minimum(p[:-1], p[1:]).max()))


class SimulatedRollouts:
    """Runs of the simulator, played as one."""

    def __init__(self, runs: Sequence[_Run]) -> None:
        self._runs = list(runs)

    def play(self, deltas: F32) -> U8:
        """Apply K actions per run (G, K, 7); return frames uint8 (G, K, 64, 64, 3)."""
        return np.stack([np.stack([run.step(d) for d in row]) for run, row in zip(self._runs, deltas, strict=True)])

    def keep(self, copies: I64) -> None:
        """Go on with these runs alone."""
        self._runs = [self._runs[i] for i in copies]
