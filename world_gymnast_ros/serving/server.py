"""A policy over HTTP, as AutoEval and OpenVLA's `deploy.py` speak it.

    POST /act     {"image": array, "instruction": "reach the red block"} -> array (K, 7), or (7,) with `first_action`
    POST /adapter {"sha256": "<64 hex digits>" or "" for the base} -> {"adapter": name, "sha256": ...}, where the server
                  holds several; a request to /act then names the one that shall act as "adapter"
    POST /reset   nothing to reset: the policy has no memory
    GET  /health  name, adapter, action convention

Arrays: `json_numpy.py`. HTTP itself, errors: `http_server.py`.
"""
from __future__ import annotations

import json
import re
import threading
from typing import Any, Protocol, runtime_checkable

import numpy as np

from world_gymnast_ros.errors import AdapterMismatch, BadCheckpoint, BadFrame, BadInstruction, BadPayload
from world_gymnast_ros.serving.http_server import JSON, Answer, Route
from world_gymnast_ros.serving.json_numpy import MAX_BODY_BYTES, decode_array, encode_array, read_json
from world_gymnast_ros.types import CONTROL_DT_S, ActionChunk, Frame

MIN_IMAGE_PX, MAX_IMAGE_PX = 16, 4096
MAX_INSTRUCTION = 1000
"""Characters."""
BODY_TIMEOUT_S = 10.0
"""For a whole request: a client that dribbles is let go."""
ADAPTER_HEADER, TRAINED_ON_HEADER = "X-Adapter", "X-Trained-On"
HASH_HEADER = "X-Adapter-SHA256"
"""Of the adapter that acted, where the request named one."""
BASE_HASH = "base"
"""What HASH_HEADER says of the policy without an adapter."""
CONVENTION = {
    "name": "Bridge (WidowX), one action per 0.2 s, applied to the previous target",
    "dx dy dz": "m, axes of base_link",
    "droll dpitch dyaw": "rad, axes parallel to base_link, about the measured end effector",
    "gripper": "absolute: 1 open, 0 closed",
}
"""What the seven numbers mean, for GET /health."""


class ActingPolicy(Protocol):
    """The part of a policy that is served."""

    @property
    def name(self) -> str:
        """What the policy is called."""

    @property
    def chunk_size(self) -> int:
        """Actions per chunk."""

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        """Choose one chunk greedily."""


@runtime_checkable
class SwitchingPolicy(ActingPolicy, Protocol):
    """A policy that acts with any adapter that it knows by the SHA-256 of its weights ("": the base)."""

    def know(self, sha256: str) -> str:
        """Make an adapter ready and return its name. Raises AdapterMismatch where it is not known."""

    def act_with(self, sha256: str, frame: Frame, instruction: str) -> ActionChunk:
        """Choose one chunk greedily with that adapter."""


class PolicyService:
    """A policy as a `Service`. One inference at a time, greedy: the same request, the same answer."""

    what = "the policy"
    faults = (BadPayload, BadFrame, BadInstruction, AdapterMismatch, BadCheckpoint)
    max_body_bytes, body_timeout_s = MAX_BODY_BYTES, BODY_TIMEOUT_S
    too_long = "send a smaller image (256x256 is usual)"

    def __init__(self, policy: ActingPolicy, adapter: str = "base", first_action: bool = False) -> None:
        self.policy, self.adapter, self.first_action = policy, adapter, first_action
        self.trained_on = str(getattr(policy, "trained_on", ""))  # "": its card does not say
        self.acted = 0
        self._turn = threading.Lock()
        self.headers = {TRAINED_ON_HEADER: self.trained_on}
        self.posts = {"/act": Route(self.act, JSON), "/reset": Route(self.reset)}
        if isinstance(policy, SwitchingPolicy):
            self.posts["/adapter"] = Route(self.know, JSON)

    def health(self) -> dict[str, Any]:
        """Return what GET /health tells."""
        return {"status": "healthy", "policy": self.policy.name, "adapter": self.adapter, "trained_on": self.trained_on,
                "temperature": 0,
                "chunk_size": 1 if self.first_action else self.policy.chunk_size, "dt_s": CONTROL_DT_S,
                "action_shape": "(7,)" if self.first_action else "(K, 7)", "convention": CONVENTION,
                "acted": self.acted}

    def act(self, body: bytes) -> Answer:
        """Answer the body of a POST /act. Raises BadPayload, BadFrame or BadInstruction: the request's fault."""
        payload = read_json(body, "the request")
        encoded = isinstance(payload, dict) and payload.keys() == {"encoded"} and isinstance(payload["encoded"], str)
        if encoded:  # as OpenVLA's server: for clients whose JSON library cannot be taught arrays
            payload = read_json(payload["encoded"].encode("utf-8"), "the request's 'encoded' text")
        if not isinstance(payload, dict):
            raise BadPayload(f"the request is a {type(payload).__name__}; send an object with image and instruction")
        frame, instruction, wanted = _frame(payload), _instruction(payload), self._wanted(payload)
        with self._turn:
            if wanted is not None and isinstance(self.policy, SwitchingPolicy):
                chunk = self.policy.act_with(wanted, frame, instruction)
            else:
                chunk = self.policy.act(frame, instruction)
            self.acted += 1
        deltas = chunk.deltas[0] if self.first_action else chunk.deltas
        if deltas.size == 0 or not np.isfinite(deltas).all():
            raise RuntimeError("the policy chose an empty or non-finite chunk; check its checkpoint and adapter")
        value = encode_array(deltas)
        which = {} if wanted is None else {HASH_HEADER: wanted or BASE_HASH}
        return Answer.of(json.dumps(value) if encoded else value, **{ADAPTER_HEADER: chunk.adapter}, **which)

    def _wanted(self, payload: dict[str, Any]) -> str | None:
        """Return the hash of the adapter that shall act, None where the request names none. Raises BadPayload."""
        if "adapter" not in payload:
            return None
        if not isinstance(self.policy, SwitchingPolicy):
            raise BadPayload(f"this server acts with '{self.adapter}' alone; leave adapter out, or start it with "
                             "--adapters DIR")
        return _hash(payload, "adapter")

    def know(self, body: bytes) -> Answer:
        """Answer a POST /adapter: read an adapter, so that the next request can name it."""
        payload = read_json(body, "the request")
        if not isinstance(payload, dict) or not isinstance(self.policy, SwitchingPolicy):
            raise BadPayload('the request must be {"sha256": "..."}')
        sha256 = _hash(payload, "sha256")
        return Answer.of({"adapter": self.policy.know(sha256), "sha256": sha256})

    def reset(self, body: bytes) -> Answer:
        """Answer a POST /reset, as some clients send before an episode."""
        return Answer.of({"status": "the policy has no memory: nothing to reset"})


def _hash(payload: dict[str, Any], key: str) -> str:
    value = payload.get(key)
    if not isinstance(value, str) or not re.fullmatch("|[0-9a-f]{64}", value):
        raise BadPayload(f"{key} is {str(value)[:80]!r}; send the SHA-256 of an adapter's weights (64 hex digits, "
                         'lower case), or "" for the base')
    return value


def _frame(payload: dict[str, Any]) -> Frame:
    if "image" not in payload:
        raise BadPayload("the request has no image; send image and instruction")
    rgb = decode_array(payload["image"], "image")
    if rgb.dtype != np.uint8:
        raise BadFrame(f"image is {rgb.dtype}; send RGB uint8, 0..255")
    if rgb.ndim != 3 or rgb.shape[2] != 3 or not all(MIN_IMAGE_PX <= n <= MAX_IMAGE_PX for n in rgb.shape[:2]):
        raise BadFrame(f"image has shape {rgb.shape}; send (height, width, 3), {MIN_IMAGE_PX} to {MAX_IMAGE_PX} "
                       "pixels each way")
    return Frame(rgb, 0)


def _instruction(payload: dict[str, Any]) -> str:
    words = payload.get("instruction")
    if not isinstance(words, str) or not words.strip():
        raise BadInstruction(f"instruction is {str(words)[:40]!r}; say what to do, e.g. 'reach the red block'")
    if len(words) > MAX_INSTRUCTION:
        raise BadInstruction(f"instruction has {len(words)} characters, the limit is {MAX_INSTRUCTION}; shorten it")
    return words
