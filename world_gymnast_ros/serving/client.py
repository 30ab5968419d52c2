"""A policy that runs behind `POST /act` on another machine (`serve.py`, or any AutoEval policy server).

One request per chunk, one connection per request: nothing of an earlier fault is left for the next. What a server says
is checked before an arm could play it; a server that is dead, slow or wrong gives an error and no chunk, and an arm
without chunks holds its place.
"""
from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np

from world_gymnast_ros.control.action_convention import ConventionRules, convention_fault
from world_gymnast_ros.errors import AdapterMismatch, BadConfig, BadPayload, RemotePolicyError, WrongConvention
from world_gymnast_ros.serving.json_numpy import decode_array, encode_array, read_json
from world_gymnast_ros.serving.server import ADAPTER_HEADER
from world_gymnast_ros.types import ACTION_DIM, F32, ActionChunk, AdapterRef, Frame

MAX_ANSWER_BYTES = 2**20
MAX_CHUNK = 64
"""As the arm's."""
_F32_MAX = 1e38  # a larger number is no action either way; infinity would lose which


class HttpPolicy:
    """Asks a policy server for chunks; what `policy_node` needs of a policy, and no more."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """`url` as http://host:port, with or without /act. Nothing is sent yet. Raises BadConfig."""
        parts = _split(url)
        self._secure, self._host, self._port = parts.scheme == "https", str(parts.hostname), parts.port
        self._path = parts.path.rstrip("/").removesuffix("/act") + "/act"
        self.name = f"{parts.scheme}://{parts.netloc}{self._path}"
        self.timeout_s = timeout_s
        self.chunk_size = 0
        """Of the last answer; 0 before the first."""

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        """Return the server's chunk for a frame, sent as it is. Raises RemotePolicyError, WrongConvention."""
        body = json.dumps({"image": encode_array(frame.rgb), "instruction": instruction}).encode()
        status, answer, adapter = self._post(body)
        if status != 200:
            raise RemotePolicyError(f"{self.name} answered {status}: {_words(answer)}")
        try:
            deltas = _deltas(read_json(answer, "the answer"))
        except BadPayload as error:
            raise RemotePolicyError(f"{self.name}: {error}") from error
        fault = convention_fault(deltas, ConventionRules())
        if fault:
            raise WrongConvention(f"{self.name}: {fault.words}")
        self.chunk_size = len(deltas)
        return ActionChunk(deltas, frame.stamp_ns, f"remote/{adapter}" if adapter else "remote")

    def load_adapter(self, ref: AdapterRef | None) -> None:
        """Refuse: the server chooses its adapter when it starts."""
        raise AdapterMismatch(f"the policy runs at {self.name} and cannot be changed from here; start its server with "
                              "another --adapter, or leave policy_url empty")

    def _post(self, body: bytes) -> tuple[int, bytes, str]:
        start = time.monotonic()
        maker = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = maker(self._host, self._port, timeout=self.timeout_s)
        try:
            connection.connect()
            with _deadline(connection, max(0.001, self.timeout_s - (time.monotonic() - start))) as late:
                try:
                    connection.request("POST", self._path, body, {"Content-Type": "application/json",
                                                                  "Connection": "close"})
                    response = connection.getresponse()
                    answer = response.read(MAX_ANSWER_BYTES + 1)
                except (OSError, http.client.HTTPException):
                    if late.is_set():
                        raise TimeoutError from None
                    raise
            if late.is_set():  # what was read before the end is not the whole answer
                raise TimeoutError
        except TimeoutError as error:
            raise RemotePolicyError(f"{self.name} gave no answer within {self.timeout_s:g} s; check the server and the "
                                    "network, or raise policy_timeout_s") from error
        except (OSError, http.client.HTTPException) as error:
            raise RemotePolicyError(f"{self.name} cannot be asked ({type(error).__name__}: {str(error)[:120]}); start "
                                    "the server there, or correct policy_url") from error
        finally:
            connection.close()
        if len(answer) > MAX_ANSWER_BYTES:
            raise RemotePolicyError(f"{self.name} answered with more than {MAX_ANSWER_BYTES} bytes; that is no chunk")
        adapter = response.getheader(ADAPTER_HEADER, "")
        return response.status, answer, "".join(c for c in adapter if c.isprintable())[:100]


@contextmanager
def _deadline(connection: http.client.HTTPConnection, timeout_s: float) -> Iterator[threading.Event]:
    """Cut the connection after `timeout_s`, whatever trickles in: a socket's own timeout is for each read alone."""
    late = threading.Event()

    def cut(sock: Any = connection.sock) -> None:
        late.set()
        try:
            sock.shutdown(2)
        except OSError:  # it is over already
            return

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username is not None or not url.isprintable() or " " in url:
        raise BadConfig(f"policy_url is {url!r}; give http://HOST:PORT of a policy server, without user name or query")
    return parts


def _deltas(value: Any) -> F32:
    """Return the chunk float32 (K, 7) of an answer: an array, or nested lists of numbers. Raises BadPayload."""
    if isinstance(value, list):
        try:
            array = np.array(value, np.float64)
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


def _words(answer: bytes) -> str:
    """Return what a server said about an error, in one line."""
    text = answer[:400].decode("utf-8", "replace")
    try:
        value = json.loads(answer)
        text = str(value.get("error") or value.get("detail") or text)
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(text.split())[:300]
