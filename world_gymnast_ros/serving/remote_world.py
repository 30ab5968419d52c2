"""A world model that runs behind `world_server.py`, here or on another machine. Implements `types.WorldModel`.

One request per chunk, bounded in time and size; nothing is sent twice. Whatever goes wrong is a RemoteModelError, with
which a session ends without a verdict. What comes back is checked before anybody looks at it.
"""
from __future__ import annotations

import json
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from world_gymnast_ros.errors import BadAction, BadConfig, BadPayload, RemoteModelError
from world_gymnast_ros.images import check_rgb, resize_rgb
from world_gymnast_ros.robot.actions import RobotLimits, Workspace
from world_gymnast_ros.serving.exchange import NoAnswer, error_text, exchange, split_url
from world_gymnast_ros.serving.json_numpy import read_json
from world_gymnast_ros.serving.tensors import HEADER_BYTES, SAFETENSORS, array_of, pack, unpack
from world_gymnast_ros.types import ACTION_DIM, F32, I64, U8, Start

TIMEOUT_S = 120.0
MAX_SIDE_PX, MAX_STRIDE = 4096, 256
MAX_ANSWER_BYTES = 2**22


class RemoteWorld:
    """A world model at an address. Its dreams are ended on the server once nobody here holds them."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        """Ask the server what it serves. Raises BadConfig for an address that is none, else RemoteModelError.

        `timeout_s`: longest wait for one answer: a chunk of all copies.
        """
        self._parts = split_url(url, "the world model's address", "a world model's server (world-gymnast serve "
                                "--world-model)")
        self._path = self._parts.path.rstrip("/")
        self.url = f"{self._parts.scheme}://{self._parts.netloc}{self._path}"
        if not 0.0 < timeout_s <= 36000.0:
            raise BadConfig(f"the time limit of the world model's server is {timeout_s}; it must lie in (0, 36000] s")
        self.timeout_s = timeout_s
        self._over: list[str] = []
        self.health = self._health()
        """What GET /health answered."""
        self.name = f"{_name(self.health)}@{self._parts.netloc}"
        self.frame_size = _size(self.health)
        self.stride = _whole(self.health["stride"], "stride", MAX_STRIDE)
        self.max_step = self._max_step = _pair(self.health)

    def limited(self, limits: RobotLimits) -> RemoteWorld:
        """Keep to the robot's limits; BadConfig where the server's are narrower or it keeps to another workspace.
        Returns itself."""
        step = limits.step
        if step.max_step_m > self._max_step[0] or step.max_step_rad > self._max_step[1]:
            raise BadConfig(f"the robot allows steps of {step.max_step_m} m and {step.max_step_rad} rad, the world "
                            f"model at {self.url} at most {self._max_step[0]} m and {self._max_step[1]} rad: lower "
                            "max_step_m and max_step_rad in arm.yaml, or start the server with that --arm-params")
        box = self.health.get("workspace")
        if box is not None and Workspace(*box) != limits.workspace:
            raise BadConfig(f"the world model at {self.url} keeps the arm within {box} m, this robot within "
                            f"{limits.workspace.low_m} to {limits.workspace.high_m}: start the server with this "
                            "robot's --arm-params")
        self.max_step = (step.max_step_m, step.max_step_rad)
        return self

    def begin(self, starts: Sequence[Start], seed: int) -> RemoteRollouts:
        """Begin one continuation of each start (its frame resized to `frame_size`); the same seed, the same frames."""
        if not len(starts):
            raise BadConfig("no start; a world model begins at one frame at least")
        self.end_rollouts()
        frames, which = _distinct([check_rgb(s.frame.rgb, "Frame.rgb") for s in starts])
        captured, whose = _distinct([check_rgb(s.captured.rgb, "Frame.rgb") for s in starts])
        states = np.stack([np.full(ACTION_DIM, np.nan, np.float32) if s.state is None else s.state for s in starts])
        body = pack({"frames": np.stack([resize_rgb(rgb, self.frame_size) for rgb in frames]),
                     "states": states.astype(np.float32), **{f"captured.{i}": rgb for i, rgb in enumerate(captured)}},
                    frame=which, captured=whose, instructions=[s.instruction for s in starts], seed=abs(int(seed)))
        answer = self._json(self.post("/begin", body, MAX_ANSWER_BYTES))
        key = answer.get("id")
        if not isinstance(key, str) or not 1 <= len(key) <= 200:
            raise RemoteModelError(f"{self._who} began without an id; is it world-gymnast's server?")
        rollouts = RemoteRollouts(self, key, len(starts))
        weakref.finalize(rollouts, self._over.append, key)
        return rollouts

    def end_rollouts(self) -> None:
        """Tell the server which dreams are over. What it does not hear, it forgets by itself."""
        over, self._over[:] = list(self._over), []
        if over:
            self.post("/end", json.dumps({"ids": over}).encode(), MAX_ANSWER_BYTES, "application/json")

    @property
    def _who(self) -> str:
        return f"the world model's server {self.url}"

    def _health(self) -> dict[str, Any]:
        health = self._json(self._ask("GET", "/health", None, MAX_ANSWER_BYTES))
        try:
            _name(health), _pair(health), _size(health), _whole(health["stride"], "stride", MAX_STRIDE)
            if health.get("workspace") is not None:
                Workspace(*health["workspace"])
        except (ValueError, TypeError, KeyError, BadConfig) as error:
            raise RemoteModelError(f"{self._who} does not describe a world model ({error}); start one there with "
                                   "`world-gymnast serve --world-model`") from error
        return health

    def post(self, path: str, body: bytes, max_bytes: int, content_type: str = SAFETENSORS) -> bytes:
        """Return the body of the answer to a POST. Raises RemoteModelError."""
        return self._ask("POST", path, body, max_bytes, content_type)

    def _ask(self, method: str, path: str, body: bytes | None, max_bytes: int, content_type: str = "") -> bytes:
        headers = {"Content-Type": content_type} if body is not None else {}
        try:
            reply = exchange(self._parts, method, self._path + path, body, headers, self.timeout_s, max_bytes)
        except NoAnswer as error:
            remedy = ("look at its output and the network, or raise world_model_timeout_s" if error.late else
                      "start it, or correct its address")
            raise RemoteModelError(f"{self._who} {error}; {remedy}") from error
        if reply.status != 200:
            raise RemoteModelError(f"{self._who} answered {reply.status}: {error_text(reply.body)}")
        if len(reply.body) > max_bytes:
            raise RemoteModelError(f"{self._who} answered with more than the {max_bytes} bytes that were expected")
        return reply.body

    def _json(self, body: bytes) -> dict[str, Any]:
        try:
            value = read_json(body, "the answer")
        except BadPayload as error:
            raise RemoteModelError(f"{self._who}: {error}") from error
        if not isinstance(value, dict):
            raise RemoteModelError(f"{self._who} answered a {type(value).__name__}, no JSON object")
        return value


class RemoteRollouts:
    """A single-use batch of imagined continuations on a server. Implements `types.RolloutBatch`."""

    def __init__(self, world: RemoteWorld, key: str, copies: int) -> None:
        self._world, self._key, self._copies, self._played = world, key, copies, 0
        self._keep: list[int] | None = None

    def play(self, deltas: F32) -> U8:
        """Apply K actions per copy, float32 (G, K, 7), physical units; return frames uint8 (G, K, H, W, 3)."""
        deltas = np.asarray(deltas, np.float32)
        if deltas.ndim != 3 or deltas.shape[0] != self._copies or not deltas.shape[1] or deltas.shape[2] != ACTION_DIM:
            raise BadAction(f"this dream takes actions of shape ({self._copies}, K, {ACTION_DIM}) with K at least 1, "
                            f"got {deltas.shape}")
        if not np.isfinite(deltas).all():
            raise BadAction("the actions hold a number that is not finite; check the policy")
        shape = (*deltas.shape[:2], *self._world.frame_size, 3)
        body = pack({"deltas": deltas}, id=self._key, played=self._played, keep=self._keep)
        answer = self._world.post("/play", body, math.prod(shape) + HEADER_BYTES)
        try:
            frames: U8 = array_of(unpack(answer, "the answer")[0], "frames", np.uint8, shape, "the answer")
        except BadPayload as error:
            raise RemoteModelError(f"the world model's server {self._world.url}: {error}") from error
        self._keep, self._played = None, self._played + deltas.shape[1]
        return frames

    def keep(self, copies: I64) -> None:
        """Go on with these copies alone; the server hears of it with the next actions."""
        rows = np.asarray(copies, np.int64)
        before = np.arange(self._copies) if self._keep is None else np.array(self._keep, np.int64)
        self._keep, self._copies = [int(i) for i in before[rows]], len(rows)


def _distinct(images: Sequence[U8]) -> tuple[list[U8], list[int]]:
    """Return the different images, and for each image which of them it is."""
    seen: dict[tuple[Any, ...], int] = {}
    known: dict[int, int] = {}
    different: list[U8] = []
    which = []
    for rgb in images:
        if id(rgb) not in known:
            place = seen.setdefault((rgb.shape, rgb.tobytes()), len(different))
            if place == len(different):
                different.append(rgb)
            known[id(rgb)] = place
        which.append(known[id(rgb)])
    return different, which


def _name(health: Mapping[str, Any]) -> str:
    name = health["world_model"]
    if not isinstance(name, str) or not name.strip():
        raise ValueError("world_model is no name")
    return "".join(c for c in name if c.isprintable())[:100]


def _size(health: Mapping[str, Any]) -> tuple[int, int]:
    value = health["frame_size"]
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"frame_size is {str(value)[:40]}; a height and a width are needed")
    return _whole(value[0], "frame_size", MAX_SIDE_PX), _whole(value[1], "frame_size", MAX_SIDE_PX)


def _whole(value: Any, key: str, high: int) -> int:
    if type(value) is not int or not 1 <= value <= high:
        raise ValueError(f"{key} is {str(value)[:40]}; a whole number from 1 to {high} is needed")
    return value


def _pair(health: Mapping[str, Any]) -> tuple[float, float]:
    value = health["max_step"]
    if not isinstance(value, list) or len(value) != 2 \
            or not all(isinstance(n, float) and 0.0 < n < 10.0 for n in value):
        raise ValueError(f"max_step is {str(value)[:40]}; a number of m and one of rad are needed")
    return value[0], value[1]
