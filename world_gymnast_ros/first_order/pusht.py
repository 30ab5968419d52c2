"""Push-T of the public package gym-pusht, seen as small images and moved by relative actions at 5 Hz.

An action is (2,) in -1..1: the target of the agent (the round pusher), relative to where it is, in units of
`REACH_PX`. The environment's own square is 512 x 512 px. Its PD controller follows the target for 0.2 s.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from world_gymnast_ros.errors import BadAction, NotInstalled
from world_gymnast_ros.types import F64, U8

SIDE_PX = 32
"""Side of the images that models see."""
RENDER_PX = 256
"""Side of the image asked of the environment; averaged down to SIDE_PX, so that positions show below one pixel."""
FIELD_PX = 512.0
REACH_PX = 60.0
ENV_STEPS = 2
"""Environment steps (0.1 s each) per action."""
EPISODE_STEPS = 40
CLOSE_PX, NEAR_PX, NEAR_WEIGHT = 60.0, 100.0, 0.1
"""Length scales of the two terms of the reward, and the weight of the second."""
BAR, LENGTH = 30.0, 120.0
TEE = np.array([[-LENGTH / 2, BAR], [LENGTH / 2, BAR], [LENGTH / 2, 0], [-LENGTH / 2, 0],
                [-BAR / 2, BAR], [-BAR / 2, LENGTH], [BAR / 2, LENGTH], [BAR / 2, BAR]])
"""Corners of the T in its own frame, px, in the order of the environment's key points."""
TEE_CENTRE = np.array([0.0, 45.0])
LABELS = 18
"""Eight corners of the T and the agent, x and y of each."""


def keypoints(pose: F64) -> F64:
    """Return the eight corners (8, 2), px, of the T at `pose` (x px, y px, angle rad)."""
    c, s = np.cos(pose[2]), np.sin(pose[2])
    return np.asarray(TEE @ np.array([[c, s], [-s, c]]) + pose[:2], dtype=np.float64)


def reward_of(block_pose: F64, goal_pose: F64, agent_px: F64) -> float:
    """Return the reward of a state, 0..1.1: closeness of the T to its mark, plus a little for the agent near the T.

    exp(-d / 60 px) with d the mean distance of the corners from where they should be, + 0.1 exp(-a / 100 px) with a
    the distance of the agent from the middle of the T. The environment's own reward, the coverage, is zero over most
    of the square; it is what policies are tested by, not what they learn from.
    """
    corners = keypoints(block_pose)
    d_px = float(np.linalg.norm(corners - keypoints(goal_pose), axis=1).mean())
    c, s = np.cos(block_pose[2]), np.sin(block_pose[2])
    centre = block_pose[:2] + TEE_CENTRE @ np.array([[c, s], [-s, c]])
    a_px = float(np.linalg.norm(agent_px - centre))
    return float(np.exp(-d_px / CLOSE_PX) + NEAR_WEIGHT * np.exp(-a_px / NEAR_PX))


def labels_of(block_pose: F64, agent_px: F64) -> F64:
    """Return what the reward is made of, (LABELS,) in 0..1 of the square: corners of the T, then the agent."""
    return np.concatenate([keypoints(block_pose).ravel(), agent_px]) / FIELD_PX


def shrink(image: U8) -> U8:
    """Average uint8 (RENDER_PX, RENDER_PX, 3) down to (SIDE_PX, SIDE_PX, 3)."""
    n = RENDER_PX // SIDE_PX
    blocks = image.reshape(SIDE_PX, n, SIDE_PX, n, 3).mean((1, 3))
    return np.asarray(np.rint(blocks), dtype=np.uint8)


@dataclass(frozen=True)
class View:
    """What is known after a reset or a step: image uint8 (SIDE_PX, SIDE_PX, 3); agent (2,) and block pose (3,) in px
    and rad; reward; coverage of the mark 0..1, which the environment does not say after a reset (0)."""

    image: U8
    agent_px: F64
    block_pose: F64
    reward: float
    coverage: float

    @property
    def hand(self) -> F64:
        """Where the agent is, px."""
        return self.agent_px

    @property
    def block(self) -> F64:
        """Where the T is, px."""
        return self.block_pose[:2]

    @property
    def labels(self) -> F64:
        """What the reward is made of."""
        return labels_of(self.block_pose, self.agent_px)


class PushT:
    """The environment; implements `task.Task`. `NotInstalled` names what to install where gym-pusht is missing."""

    name, side_px, labels, episode_steps = "pusht", SIDE_PX, LABELS, EPISODE_STEPS
    success_coverage = 0.95
    """Of the mark, by gym-pusht's own definition."""
    reach, low, high = REACH_PX, np.full(2, 20.0), np.full(2, 490.0)
    goal = np.full(2, FIELD_PX / 2)

    def __init__(self) -> None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            from gym_pusht.envs.pusht import PushTEnv
        except ImportError as error:
            raise NotInstalled(f"Push-T needs the package gym-pusht ({error}); install the optional extra: "
                               "pip install 'world-gymnast-ros[fog]'") from error
        self.env: Any = PushTEnv(obs_type="state", observation_width=RENDER_PX, observation_height=RENDER_PX)
        self.agent_px: F64 = np.zeros(2)

    def reset(self, seed: int) -> View:
        """Start an episode; the environment draws agent and block from `seed`."""
        _, info = self.env.reset(seed=seed)
        return self._view(info, 0.0)

    def step(self, action: F64) -> View:
        """Hold the target `agent + REACH_PX * action` for 0.2 s. BadAction where an action is not finite."""
        if np.shape(action) != (2,) or not np.isfinite(action).all():
            raise BadAction(f"action {action!r} must be two finite numbers in -1..1")
        target = np.clip(self.agent_px + REACH_PX * np.clip(action, -1.0, 1.0), 0.0, FIELD_PX)
        for _ in range(ENV_STEPS):
            _, _, _, _, info = self.env.step(target)
        return self._view(info, float(info["coverage"]))

    def _view(self, info: dict[str, Any], coverage: float) -> View:
        self.env.obs_type = "pixels"  # drawn once per action, not once per step of the environment
        image = shrink(self.env.get_obs())
        self.env.obs_type = "state"
        self.agent_px = np.asarray(info["pos_agent"], dtype=np.float64)
        pose = np.asarray(info["block_pose"], dtype=np.float64)
        reward = reward_of(pose, np.asarray(info["goal_pose"], dtype=np.float64), self.agent_px)
        return View(image, self.agent_px, pose, reward, coverage)
