"""A world model over HTTP: whatever draws frames may run on another machine, or in another environment.

    GET  /health  name, frame_size, stride, max_step, workspace, hashes of the weights, release table, action convention
    POST /begin   arrays frames uint8 (n, H, W, 3), captured.0 .. uint8 (h, w, 3), states float32 (G, 7), NaN: unknown;
                  values frame and captured (which of them each of the G copies has), instructions, seed -> {"id": ...}
    POST /play    array deltas float32 (G, K, 7); values id, played (actions so far), keep (copies that go on, or null)
                  -> array frames uint8 (G, K, H, W, 3)
    POST /end     {"ids": [...]}

Bodies of /begin and /play, and the frames: `tensors.py`. A dream that nobody asks for `expires_s` is forgotten.
"""
from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.errors import BadAction, BadConfig, BadFrame, BadInstruction, BadPayload
from world_gymnast_ros.robot.actions import Workspace
from world_gymnast_ros.serving.http_server import JSON, Answer, HttpError, Route
from world_gymnast_ros.serving.json_numpy import read_json
from world_gymnast_ros.serving.server import CONVENTION, MAX_IMAGE_PX, MAX_INSTRUCTION
from world_gymnast_ros.serving.tensors import SAFETENSORS, array_of, pack, unpack
from world_gymnast_ros.types import ACTION_DIM, Frame, RolloutBatch, Start, WorldModel

MAX_COPIES = 1024
MAX_OPEN = 8
"""Dreams at once; a session needs two."""
MAX_BODY_BYTES = 2**28
MAX_FRAMES_BYTES = 2**29
"""Of one answer: 64 copies of a chunk of 5 at 256 px are a ninth of it."""
EXPIRES_S = 900.0
"""A judge may look so long at a chunk before the dream goes on."""
REQUEST = "the request"


@dataclass
class _Open:
    """A dream that can go on: `copies` now in it, actions `played`, when it was last asked, s."""

    rollouts: RolloutBatch
    copies: int
    played: int
    asked_s: float


class WorldService:
    """A world model as a `Service`. One request computes at a time."""

    what, faults = "the world model", (BadPayload, BadFrame, BadInstruction, BadAction, BadConfig)
    max_body_bytes, body_timeout_s = MAX_BODY_BYTES, 120.0
    too_long = "send fewer copies at once (max_batch)"

    def __init__(self, world: WorldModel, workspace: Workspace | None = None, facts: Mapping[str, Any] | None = None,
                 expires_s: float = EXPIRES_S, now_s: Callable[[], float] = time.monotonic) -> None:
        """`workspace`: the box that the model keeps the arm in, where it does; `facts`: what else GET /health tells."""
        self.world, self.workspace, self.facts = world, workspace, dict(facts or {})
        self.expires_s, self._now_s = expires_s, now_s
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._open: dict[str, _Open] = {}
        self.headers: dict[str, str] = {}
        self.posts = {"/begin": Route(self.begin, SAFETENSORS), "/play": Route(self.play, SAFETENSORS),
                      "/end": Route(self.end, JSON)}

    def health(self) -> dict[str, Any]:
        """Return what GET /health tells."""
        self._forget()
        box = self.workspace
        return {"status": "healthy", "world_model": self.world.name, "frame_size": list(self.world.frame_size),
                "stride": self.world.stride, "max_step": list(self.world.max_step),
                "workspace": None if box is None else [list(box.low_m), list(box.high_m)], "open": len(self._open),
                "expires_s": self.expires_s, "convention": CONVENTION, **self.facts}

    def begin(self, body: bytes) -> Answer:
        """Answer a POST /begin."""
        arrays, values = unpack(body, REQUEST)
        starts, seed = _starts(arrays, values, self.world.frame_size), values.get("seed")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise BadPayload(f"seed is {str(seed)[:40]}; send a whole number from 0 to 2^63 - 1")
        self._forget()
        with self._turn:
            if len(self._open) >= MAX_OPEN:
                raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_OPEN} dreams are open; end one, or wait until "
                                f"one expires ({self.expires_s:g} s after its last request)")
            rollouts = self.world.begin(starts, seed)
            key = secrets.token_hex(16)
            with self._lock:
                self._open[key] = _Open(rollouts, len(starts), 0, self._now_s())
        return Answer.of({"id": key, "expires_s": self.expires_s})

    def play(self, body: bytes) -> Answer:
        """Answer a POST /play. A dream whose model failed is forgotten: what it would show next is unknown."""
        arrays, values = unpack(body, REQUEST)
        key = str(values.get("id"))
        with self._turn:
            self._forget()
            with self._lock:
                held = self._open.get(key)
            if held is None:
                raise HttpError(HTTPStatus.NOT_FOUND, f"no dream {key[:40]!r} is open: it was ended, it expired "
                                f"({self.expires_s:g} s without a request), or the server was started again")
            if values.get("played") != held.played:
                raise HttpError(HTTPStatus.CONFLICT, f"the dream has played {held.played} actions, the request counts "
                                f"{str(values.get('played'))[:20]}: a request was lost or sent twice; begin again")
            kept = _kept(values.get("keep"), held.copies)
            copies = held.copies if kept is None else len(kept)
            deltas = array_of(arrays, "deltas", np.float32, (copies, None, ACTION_DIM), REQUEST)
            shape = (*deltas.shape[:2], *self.world.frame_size, 3)
            if int(np.prod(shape, dtype=object)) > MAX_FRAMES_BYTES:
                raise BadPayload(f"{copies} copies of {deltas.shape[1]} frames of {shape[2]}x{shape[3]} are more than "
                                 f"{MAX_FRAMES_BYTES} bytes; play fewer actions at once, or fewer copies")
            if not np.isfinite(deltas).all():
                raise BadAction("the actions hold a number that is not finite; check the policy")
            frames = self._played(key, held, kept, deltas, shape)
        return Answer(pack({"frames": frames}), SAFETENSORS)

    def _played(self, key: str, held: _Open, kept: NDArray[np.int64] | None, deltas: NDArray[np.float32],
                shape: tuple[int, ...]) -> NDArray[np.uint8]:
        with self._lock:
            del self._open[key]  # back only once it has played
        if kept is not None:
            held.rollouts.keep(kept)
        frames = held.rollouts.play(deltas)
        if frames.dtype != np.uint8 or frames.shape != shape:
            raise RuntimeError(f"it drew {frames.dtype} {frames.shape}, expected uint8 {shape}")
        held.copies, held.played, held.asked_s = shape[0], held.played + shape[1], self._now_s()
        with self._lock:
            self._open[key] = held
        return frames

    def end(self, body: bytes) -> Answer:
        """Answer a POST /end: forget dreams; those that are not there do not matter."""
        payload = read_json(body, REQUEST)
        ids = payload.get("ids") if isinstance(payload, dict) else None
        if not isinstance(ids, list) or not all(isinstance(key, str) for key in ids):
            raise BadPayload('the request must be {"ids": [...]} with the ids of POST /begin')
        with self._lock:
            ended = sum(self._open.pop(key, None) is not None for key in ids)
        return Answer.of({"ended": ended})

    def _forget(self) -> None:
        """Drop dreams that nobody asked for too long."""
        now_s = self._now_s()
        with self._lock:
            self._open = {key: held for key, held in self._open.items() if now_s - held.asked_s <= self.expires_s}


def _kept(value: Any, copies: int) -> NDArray[np.int64] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or len(value) > copies \
            or not all(type(i) is int and 0 <= i < copies for i in value):
        raise BadPayload(f"keep is {str(value)[:40]}; send null, or at most {copies} indices from 0 to {copies - 1}")
    return np.array(value, np.int64)


def _starts(arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any], size: tuple[int, int]) -> list[Start]:
    """Return the starts of a POST /begin. Raises BadPayload, BadFrame or BadInstruction."""
    instructions = values.get("instructions")
    if not isinstance(instructions, list) or not 1 <= len(instructions) <= MAX_COPIES \
            or not all(isinstance(w, str) and len(w) <= MAX_INSTRUCTION for w in instructions):
        raise BadPayload(f"instructions must be a list of 1 to {MAX_COPIES} texts of at most {MAX_INSTRUCTION} "
                         "characters, one for each copy")
    frames = array_of(arrays, "frames", np.uint8, (None, *size, 3), REQUEST)
    captured: list[NDArray[Any]] = []
    while (key := f"captured.{len(captured)}") in arrays:
        captured.append(array_of(arrays, key, np.uint8, (None, None, 3), REQUEST))
        if max(captured[-1].shape) > MAX_IMAGE_PX:
            raise BadFrame(f"{key} has shape {captured[-1].shape}; send at most {MAX_IMAGE_PX} pixels each way")
    states = array_of(arrays, "states", np.float32, (len(instructions), ACTION_DIM), REQUEST)
    which = [_indices(values, name, len(instructions), below)
             for name, below in (("frame", len(frames)), ("captured", len(captured)))]
    stored, originals = [Frame(rgb, 0) for rgb in frames], [Frame(rgb, 0) for rgb in captured]
    return [Start(stored[i], None if np.isnan(state).all() else state, text, originals[j])
            for i, j, state, text in zip(*which, states, instructions, strict=True)]


def _indices(values: Mapping[str, Any], name: str, count: int, below: int) -> list[int]:
    found = values.get(name)
    if not isinstance(found, list) or len(found) != count or not all(type(i) is int and 0 <= i < below for i in found):
        raise BadPayload(f"{name} must be a list of {count} indices below {below}, one for each copy")
    return found
