"""A policy that runs behind `POST /act` on another machine (`serve.py`, or any AutoEval policy server).

One request per chunk. What a server says is checked before an arm could play it; a server that is dead, slow or wrong
gives an error and no chunk, and an arm without chunks holds its place.
"""
from __future__ import annotations

import json
from typing import Any

import numpy as np

from world_gymnast_ros.control.action_convention import ConventionRules, convention_fault
from world_gymnast_ros.errors import (
    AdapterMismatch,
    BadInstruction,
    BadPayload,
    RemotePolicyError,
    WrongConvention,
    one_line,
)
from world_gymnast_ros.serving.exchange import NoAnswer, error_text, exchange, split_url
from world_gymnast_ros.serving.json_numpy import decode_array, encode_array, read_json
from world_gymnast_ros.serving.server import ADAPTER_HEADER, BASE_HASH, HASH_HEADER, TRAINED_ON_HEADER
from world_gymnast_ros.types import ACTION_DIM, F32, U8, ActionChunk, AdapterRef, Frame, SampledChunks

MAX_ANSWER_BYTES = 2**20
MAX_CHUNK = 64
"""As the arm's."""
READING_S = 30.0
"""A server may take so long to read an adapter; nothing is acted on meanwhile."""
_F32_MAX = 1e38  # a larger number is no action either way; infinity would lose which


class HttpPolicy:
    """Asks a policy server for chunks. Implements `types.Policy`: it acts and is evaluated in imagination, and has no
    log-probabilities to be trained by."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """`url` as http://host:port, with or without /act. Nothing is sent yet. Raises BadConfig."""
        parts = split_url(url, "policy_url", "a policy server")
        self._parts = parts
        self._path = parts.path.rstrip("/").removesuffix("/act") + "/act"
        self.name = f"{parts.scheme}://{parts.netloc}{self._path}"
        self.timeout_s = timeout_s
        self.chunk_size = 0
        """Of the last answer; 0 before the first."""
        self._acted = ""  # hash of the adapter that gave the last answer, as the server tells it
        self._adapter: tuple[str, str] | None = None  # name and hash of the one to act with; None: the server's choice
        self.trained_on = ""
        """As the last answer's server tells it (`types.SIMULATION` for simulated images only); "": it does not."""
        self.as_started = False
        """True: the base is whatever the server was started with, so `load_adapter(None)` asks nothing of it."""

    def act(self, frame: Frame, instruction: str, state: F32 | None = None) -> ActionChunk:
        """Return the server's chunk for a frame, sent as it is. Raises RemotePolicyError, WrongConvention, or
        BadInstruction for an empty one, which is not sent.

        `state`: Bridge state (7,) at the frame, sent as `proprio` where it is known: some policies act on it.
        """
        if not instruction.strip():
            raise BadInstruction("the instruction is empty; say what the arm shall do, e.g. 'close the drawer'")
        request = {"image": encode_array(frame.rgb), "instruction": instruction}
        if state is not None:
            request["proprio"] = encode_array(np.asarray(state, np.float32))
        asked = self._adapter
        if asked is not None:
            request["adapter"] = asked[1]
        body = json.dumps(request).encode()
        status, answer, adapter = self._post(body)
        if status != 200:
            without = ("; it was asked without the arm's state, which is not known here: where the policy needs it, "
                       "give --state, or start the driver that publishes it") if state is None and status == 400 else ""
            raise RemotePolicyError(f"{self.name} answered {status}: {error_text(answer)}{without}")
        try:
            deltas = _deltas(_unwrapped(read_json(answer, "the answer")))
        except BadPayload as error:
            raise RemotePolicyError(f"{self.name}: {error}") from error
        if asked is not None and self._acted != (asked[1] or BASE_HASH):
            raise RemotePolicyError(f"{self.name} acted with another adapter than '{asked[0]}', which was asked for: "
                                    "it is another server now; offer the adapter again, or start it as before")
        fault = convention_fault(deltas, ConventionRules())
        if fault:
            raise WrongConvention(f"{self.name}: {fault.words}")
        self.chunk_size = len(deltas)
        told = asked[0] if asked is not None else f"remote/{adapter}" if adapter else "remote"
        return ActionChunk(deltas, frame.stamp_ns, told)

    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        """Ask for the chunk of each of `frames` uint8 (G, H, W, 3) as `sample_at` does, without the arm's state."""
        return self.sample_at(frames, np.full((len(frames), ACTION_DIM), np.nan, np.float32), instruction, temperature,
                              seed)

    def sample_at(self, frames: U8, states: F32, instruction: str, temperature: float, seed: int) -> SampledChunks:
        """Ask for the chunk of each of `frames` uint8 (G, H, W, 3), one after another. Raises as `act` does.

        `states`: Bridge states (G, 7), sent as `proprio` where they are known (not NaN). `POST /act` has no word for
        `temperature` and `seed`: chunks vary as the server varies them.
        """
        chunks = [self.act(Frame(rgb, 0), instruction, state if np.isfinite(state).all() else None)
                  for rgb, state in zip(frames, states, strict=True)]
        lengths = sorted({len(chunk.deltas) for chunk in chunks})
        if len(lengths) > 1:
            raise RemotePolicyError(f"{self.name} answered chunks of {', '.join(map(str, lengths))} actions to one "
                                    "instruction; rollouts of one group need chunks of one length")
        return SampledChunks(np.stack([chunk.deltas for chunk in chunks]), adapter=chunks[-1].adapter)

    def load_adapter(self, ref: AdapterRef | None) -> None:
        """Have the server act with this adapter (None: the base) from the next chunk on; it is named by its hash, and
        the server must hold it. AdapterMismatch changes nothing: an unknown hash, or a server with one adapter."""
        if ref is None and self.as_started:
            return
        sha256 = "" if ref is None else ref.sha256
        if ref is not None and not sha256:
            raise AdapterMismatch(f"adapter '{ref.name}' was offered without a SHA-256; offer it again")
        body = json.dumps({"sha256": sha256}).encode()
        try:
            status, answer, _ = self._post(body, self._path.removesuffix("/act") + "/adapter",
                                           max(self.timeout_s, READING_S))
            if status in (404, 405, 501):
                raise AdapterMismatch(f"the policy runs at {self.name} and its adapter cannot be changed from here; "
                                      "start its server with another --adapter, or leave policy_url empty")
            if status != 200:
                raise AdapterMismatch(f"{self.name} refuses the adapter: {error_text(answer)}")
            told = read_json(answer, "the answer")
            if not isinstance(told, dict) or told.get("sha256") != sha256:
                raise AdapterMismatch(f"{self.name} did not confirm the hash of the adapter; is it another server?")
        except (RemotePolicyError, BadPayload) as error:
            raise AdapterMismatch(str(error)) from error
        self._adapter = ("base" if ref is None else ref.name, sha256)

    def _post(self, body: bytes, path: str = "", timeout_s: float = 0.0) -> tuple[int, bytes, str]:
        try:
            reply = exchange(self._parts, "POST", path or self._path, body, {"Content-Type": "application/json"},
                             timeout_s or self.timeout_s, MAX_ANSWER_BYTES)
        except NoAnswer as error:
            remedy = ("check the server and the network, or raise policy_timeout_s" if error.late else
                      "start the server there, or correct policy_url")
            raise RemotePolicyError(f"{self.name} {error}; {remedy}") from error
        if len(reply.body) > MAX_ANSWER_BYTES:
            raise RemotePolicyError(f"{self.name} answered with more than {MAX_ANSWER_BYTES} bytes; that is no chunk")
        self._acted = reply.headers.get(HASH_HEADER.lower(), "")
        self.trained_on = _printable(reply.headers.get(TRAINED_ON_HEADER.lower(), ""))
        return reply.status, reply.body, _printable(reply.headers.get(ADAPTER_HEADER.lower(), ""))


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:100]


def _unwrapped(value: Any) -> Any:
    """Return what holds the actions: the value itself, that of a text that is JSON (OpenVLA's server encodes twice), or
    what stands under "action" or "actions". Raises BadPayload with the server's words where it tells an error."""
    if isinstance(value, str):  # OpenVLA's server answers "error" with status 200
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadPayload(f"the server says {_short(value)}, and gives no action; look at its log") from error
    if isinstance(value, dict) and "__numpy__" not in value:
        said = value.get("error") or value.get("detail") or value.get("message")
        if said:
            raise BadPayload(f"the server says {_short(said)}, and gives no action; look at its log")
        value = next((value[key] for key in ("actions", "action") if key in value), value)
    return value


def _short(words: Any) -> str:
    return repr(one_line(words, 200))


def _deltas(value: Any) -> F32:
    """Return the chunk float32 (K, 7) of an answer: an array, nested lists of numbers, or a list of arrays (7,), as
    OpenVLA-OFT's server gives. Raises BadPayload."""
    if isinstance(value, list):
        try:
            rows = [decode_array(row, "the answer") if isinstance(row, dict) else row for row in value[:MAX_CHUNK + 1]]
            array = np.array(rows, np.float64)
        except (ValueError, TypeError, OverflowError) as error:
            raise BadPayload("the answer is a list, but not of actions; 7 numbers each are needed") from error
    else:
        array = decode_array(value, "the answer")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != ACTION_DIM or not 1 <= len(array) <= MAX_CHUNK or array.dtype == np.uint8:
        raise BadPayload(f"the answer has shape {array.shape} of {array.dtype}; (7,) or (K, 7) of float with K from 1 "
                         f"to {MAX_CHUNK} is a chunk")
    if not np.isfinite(array).all():
        raise BadPayload("the answer holds a non-finite number; check the policy there")
    return np.clip(array, -_F32_MAX, _F32_MAX).astype(np.float32)
