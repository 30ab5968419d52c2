"""A block is pushed to a mark, seen by the wrist camera: a task for policies trained inside a world model.

An action is (2,) in -1..1: the change of the hand's target on the table, x and y, in units of `REACH_M`, at 5 Hz. The
hand points down, its fingers are closed and stay at the height of a push. Implements `first_order.task.Task`.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from world_gymnast_ros.errors import BadAction
from world_gymnast_ros.twin.bridge_loop import BridgeLoop
from world_gymnast_ros.twin.scene import ObjectSpec, Scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.types import F64, U8

SIDE_PX, RENDER_PX = 32, 128
"""Side of the images that models see, and of the image that is averaged down to it."""
REACH_M = 0.03
LOW_M, HIGH_M = np.array([0.19, -0.10]), np.array([0.37, 0.10])
"""Where the hand may go: the table that the arm reaches with its hand pointing down."""
HAND_START_M = ((0.19, -0.07), (0.23, 0.07))
BLOCK_START_M = ((0.27, -0.06), (0.32, 0.06))
"""Corners of where hand and block start: the camera looks ahead of the hand, so the block is there."""
MARK_M, MARK_RADIUS_M = np.array([0.33, 0.0]), 0.025
NEAREST_M = 0.01
"""What is nearer to the camera is not drawn."""
BLOCK_M, HAND_Z_M = 0.04, 0.03
CLOSE_M, NEAR_M, NEAR_WEIGHT = 0.05, 0.08, 0.1
"""Length scales of the two terms of the reward, and the weight of the second."""
SCENE = Scene("ego", ("push the red block left",),
              (ObjectSpec("red", "block", size_m=BLOCK_M), ObjectSpec("green", "plate", tuple(MARK_M), size_m=0.11)),
              jitter_m=0.0)


@dataclass(frozen=True)
class EgoView:
    """What is known after a reset or a step. `hand` and `block` (2,) in m, base frame; `coverage`: the share of a
    block's square on the mark's middle that the block covers, both taken unturned, 0..1."""

    image: U8
    hand: F64
    block: F64
    reward: float
    coverage: float

    @property
    def labels(self) -> F64:
        """Block and mark as seen from the hand (4,): 0.5 is at the hand, 1.0 is 0.3 m ahead or to the left."""
        return np.concatenate([self.block - self.hand, MARK_M - self.hand]) / 0.6 + 0.5


class EgoPush:
    """The task. Each seed is one start: the hand at the near edge of the field, the block ahead of it."""

    name, side_px, labels, episode_steps = "ego", SIDE_PX, 4, 40
    success_coverage = 0.5
    """Both shifts together at most about half of the block's side."""
    reach, low, high, goal = REACH_M, LOW_M, HIGH_M, MARK_M

    def __init__(self) -> None:
        self.twin = Twin(SCENE)
        plate = int(np.flatnonzero(self.twin.model.geom_bodyid == self.twin.model.body("object1").id)[0])
        model = self.twin.model  # the plate becomes a mark: paint on the table, with no edge to climb
        model.geom_contype[plate] = model.geom_conaffinity[plate] = 0
        model.geom_size[plate, :2], model.geom_pos[plate, 2] = (MARK_RADIUS_M, 0.0004), 0.0004
        model.vis.map.znear = NEAREST_M / model.stat.extent  # the scene's own suits a camera that is a metre away

    def reset(self, seed: int) -> EgoView:
        """Start the episode of `seed`."""
        rng = np.random.default_rng(seed)
        hand, block = rng.uniform(*HAND_START_M), rng.uniform(*BLOCK_START_M)
        self.twin.reset(seed, SCENE.instructions[0], np.array([*hand, HAND_Z_M, 0, 0, 0, 0.0]))
        self.twin.place("red block", block)
        self.loop = BridgeLoop(self.twin)
        return self._view()

    def step(self, action: F64) -> EgoView:
        """Move the hand's target by `REACH_M * action` within the field. BadAction where an action is not finite."""
        if np.shape(action) != (2,) or not np.isfinite(action).all():
            raise BadAction(f"action {action!r} must be two finite numbers in -1..1")
        now = self.loop.T_target[:3, 3]
        wanted = np.clip(now[:2] + REACH_M * np.clip(action, -1.0, 1.0), LOW_M, HIGH_M)
        self.loop.step(np.array([*(wanted - now[:2]), HAND_Z_M - now[2], 0, 0, 0, 0.0]))
        return self._view()

    def _view(self) -> EgoView:
        n = RENDER_PX // SIDE_PX
        seen = self.twin.render(RENDER_PX, RENDER_PX, "wrist").reshape(SIDE_PX, n, SIDE_PX, n, 3).mean((1, 3))
        hand, block = self.twin.ee_xyz()[:2], self.twin.object_xyz("red block")[:2]
        off = block - MARK_M
        reward = (np.exp(-np.linalg.norm(off) / CLOSE_M)
                  + NEAR_WEIGHT * np.exp(-np.linalg.norm(hand - block) / NEAR_M))
        cover = np.prod(np.maximum(0.0, 1.0 - np.abs(off) / BLOCK_M))
        return EgoView(np.asarray(np.rint(seen), np.uint8), hand, block, float(reward), float(cover))
