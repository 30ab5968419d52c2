"""True episodes on the twin in one process: the same policy and the same Bridge loop as the graph, without ROS.

Used to make release tables and tests; the figures that users see come from the graph (`world-gymnast demo`).
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.twin.bridge_loop import BridgeLoop
from world_gymnast_ros.twin.play import RENDER_HEIGHT, RENDER_WIDTH, SIZE_PX
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.types import F32, U8, Frame, Policy


@dataclass(frozen=True)
class TrueEpisode:
    """What happened: `frames` uint8 (T+1, 64, 64, 3), `deltas` float32 (T, 7), `start_state` float32 (7,) target."""

    frames: U8
    deltas: F32
    start_state: F32
    success: bool
    steps_to_success: int | None


def capture(twin: Twin) -> tuple[Frame, F32]:
    """Return the camera frame (320x240) and the measured Bridge state (7,) now."""
    state = twin.arm_state(0)
    frame = Frame(twin.render(RENDER_WIDTH, RENDER_HEIGHT), round(twin.time_s * 1e9))
    return frame, bridge_state(state.T_base_ee, state.gripper)


def run_episode(twin: Twin, policy: Policy, seed: int, instruction: str, temperature: float = 0.0) -> TrueEpisode:
    """Run one true episode from reset `seed`; greedy at temperature 0, else sampled with `seed`."""
    twin.reset(seed, instruction)
    loop = BridgeLoop(twin)
    frames, deltas = [], []
    start_state = loop.target
    done_at: int | None = None
    t = 0
    while t < twin.task.horizon_steps:
        frame = Frame(twin.render(RENDER_WIDTH, RENDER_HEIGHT), round(twin.time_s * 1e9))
        if temperature == 0.0:
            chunk = policy.act(frame, instruction).deltas
        else:
            chunk = policy.sample(frame.rgb[None], instruction, temperature, seed * 1000 + t).deltas[0]
        for k, delta in enumerate(chunk[:twin.task.horizon_steps - t]):
            rgb = frame.rgb if k == 0 else twin.render(RENDER_WIDTH, RENDER_HEIGHT)
            frames.append(resize_rgb(rgb, (SIZE_PX, SIZE_PX)))
            deltas.append(loop.step(delta))
            t += 1
            if done_at is None and twin.success():
                done_at = t
    frames.append(resize_rgb(twin.render(RENDER_WIDTH, RENDER_HEIGHT), (SIZE_PX, SIZE_PX)))
    return TrueEpisode(np.stack(frames), np.stack(deltas), start_state, twin.success(), done_at)


def success_rate(twin: Twin, policy: Policy, instruction: str, seeds: range, temperature: float = 0.0) -> list[bool]:
    """Return the outcome of one true episode per seed."""
    return [run_episode(twin, policy, seed, instruction, temperature).success for seed in seeds]
