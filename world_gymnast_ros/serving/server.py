"""A policy over HTTP, as AutoEval and OpenVLA's `deploy.py` speak it, on the standard library's server.

    POST /act     {"image": array, "instruction": "reach the red block"} -> array (K, 7), or (7,) with `first_action`
    POST /reset   nothing to reset: the policy has no memory
    GET  /health  name, adapter, action convention

Arrays: `wire.py`. Errors: {"error": one line with value, limit and remedy} and a status. There is no authentication.
"""
from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import numpy as np

from world_gymnast_ros.errors import BadConfig, BadFrame, BadInstruction, BadPayload
from world_gymnast_ros.serving.json_numpy import MAX_BODY_BYTES, decode_array, encode_array, read_json
from world_gymnast_ros.types import CONTROL_DT_S, ActionChunk, Frame

MIN_PICTURE_PX, MAX_PICTURE_PX = 16, 4096
MAX_INSTRUCTION = 1000
"""Characters."""
MAX_CONNECTIONS = 16
BODY_TIMEOUT_S = 10.0
"""For a whole request: a client that dribbles is let go."""
IDLE_TIMEOUT_S = 120.0
"""A kept connection without a request; AutoEval's client keeps one for an episode."""
LINGER_S = 2.0
"""How long the rest of a refused request is thrown away."""
ADAPTER_HEADER, TRAINED_ON_HEADER = "X-Adapter", "X-Trained-On"
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


class HttpError(Exception):
    """An answer other than 200."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """A JSON value, and the adapter that chose it."""

    value: Any
    adapter: str = ""


class PolicyService:
    """What the server does, without HTTP. One inference at a time, greedy: the same request, the same answer."""

    def __init__(self, policy: ActingPolicy, adapter: str = "base", first_action: bool = False) -> None:
        self.policy, self.adapter, self.first_action = policy, adapter, first_action
        self.trained_on = str(getattr(policy, "trained_on", ""))  # "": its card does not say
        self.acted = 0
        self._turn = threading.Lock()

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
        frame, instruction = _frame(payload), _instruction(payload)
        with self._turn:
            chunk = self.policy.act(frame, instruction)
            self.acted += 1
        deltas = chunk.deltas[0] if self.first_action else chunk.deltas
        if deltas.size == 0 or not np.isfinite(deltas).all():
            raise RuntimeError("the policy chose an empty or non-finite chunk; check its checkpoint and adapter")
        value = encode_array(deltas)
        return Answer(json.dumps(value) if encoded else value, chunk.adapter)


def _frame(payload: dict[str, Any]) -> Frame:
    if "image" not in payload:
        raise BadPayload("the request has no image; send image and instruction")
    rgb = decode_array(payload["image"], "image")
    if rgb.dtype != np.uint8:
        raise BadFrame(f"image is {rgb.dtype}; send RGB uint8, 0..255")
    if rgb.ndim != 3 or rgb.shape[2] != 3 or not all(MIN_PICTURE_PX <= n <= MAX_PICTURE_PX for n in rgb.shape[:2]):
        raise BadFrame(f"image has shape {rgb.shape}; send (height, width, 3), {MIN_PICTURE_PX} to {MAX_PICTURE_PX} "
                       "pixels each way")
    return Frame(rgb, 0)


def _instruction(payload: dict[str, Any]) -> str:
    words = payload.get("instruction")
    if not isinstance(words, str) or not words.strip():
        raise BadInstruction(f"instruction is {str(words)[:40]!r}; say what to do, e.g. 'reach the red block'")
    if len(words) > MAX_INSTRUCTION:
        raise BadInstruction(f"instruction has {len(words)} characters, the limit is {MAX_INSTRUCTION}; shorten it")
    return words


class PolicyServer(ThreadingHTTPServer):
    """Binds at once (port 0: any free one); `serve_forever` answers until `shutdown`."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, service: PolicyService, host: str = "127.0.0.1", port: int = 8000) -> None:
        self.service = service
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise BadConfig(f"port {port} of {host} cannot be opened ({why}); choose another with --port or "
                            "--host") from error

    @property
    def url(self) -> str:
        """The address to give to clients on this machine."""
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if self.address_family == socket.AF_INET6 else str(host)
        return f"http://{name}:{port}"

    def server_bind(self) -> None:
        """Bind without asking the name service, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or turn it away when too many are open."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of a bug; a client that went away is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """HTTP in and out; `PolicyService` does the rest."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "world-gymnast", ""
    timeout = IDLE_TIMEOUT_S
    disable_nagle_algorithm = True
    server: PolicyServer
    _unread = False

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(HTTPStatus.OK, self.server.service.health())
        else:
            self._refuse(self._elsewhere())

    def do_POST(self) -> None:
        try:
            body = self._body()
            if self.path == "/act":
                answer = self.server.service.act(body)
            elif self.path == "/reset":
                answer = Answer({"status": "the policy has no memory: nothing to reset"})
            else:
                raise self._elsewhere()
        except HttpError as error:
            self._refuse(error)
        except (BadPayload, BadFrame, BadInstruction) as error:
            self._refuse(HttpError(HTTPStatus.BAD_REQUEST, str(error)))
        except OSError:  # the client went, or took too long
            self.close_connection = True
        except Exception as error:  # a policy may fail in any way; the server goes on
            text = f"the policy failed ({type(error).__name__}: {str(error)[:200]}); look at the server's output"
            self.log_error("%s", text)
            self._refuse(HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, text))
        else:
            self._answer(HTTPStatus.OK, answer.value, answer.adapter)

    def _elsewhere(self) -> HttpError:
        if self.path in ("/act", "/reset", "/health"):
            return HttpError(HTTPStatus.METHOD_NOT_ALLOWED, f"{self.command} {self.path} is not offered; POST /act and "
                             "/reset, GET /health")
        return HttpError(HTTPStatus.NOT_FOUND, f"there is no {self.path[:80]!r} here; POST /act, GET /health")

    def _body(self) -> bytes:
        """Read the request's body, or raise HttpError before a byte of it is read."""
        self._unread = True
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not (length.isascii() and length.isdigit() and len(length) < 12):
            raise HttpError(HTTPStatus.LENGTH_REQUIRED, "the request has no Content-Length; send one, not chunked")
        size = int(length)
        if size > MAX_BODY_BYTES:
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request has {size} bytes, the limit is "
                            f"{MAX_BODY_BYTES}; send a smaller picture (256x256 is usual)")
        # No browser page of another site can send this type unasked, so none can make the policy work.
        if self.path == "/act" and self.headers.get_content_type() != "application/json":
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type is {self.headers.get_content_type()!r}; "
                            "send application/json")
        deadline, parts = time.monotonic() + BODY_TIMEOUT_S, []
        while size:
            self.connection.settimeout(max(0.01, deadline - time.monotonic()))
            part = self.rfile.read1(min(size, 1 << 16))
            if not part or time.monotonic() > deadline:
                raise OSError("the body did not come")
            parts.append(part)
            size -= len(part)
        self.connection.settimeout(self.timeout)
        self._unread = False
        return b"".join(parts)

    def _refuse(self, error: HttpError) -> None:
        self.close_connection = self.close_connection or self._unread
        self._answer(error.status, {"error": str(error)})
        if self._unread:  # closing on unread bytes would reset the connection before the client has read why
            self._unread, deadline = False, time.monotonic() + LINGER_S
            with contextlib.suppress(OSError):
                self.connection.settimeout(LINGER_S / 4)
                while time.monotonic() < deadline and self.rfile.read1(1 << 16):
                    pass

    def _answer(self, status: HTTPStatus, value: Any, adapter: str = "") -> None:
        data = json.dumps(value).encode()
        with contextlib.suppress(OSError):  # the client went
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, told in ((ADAPTER_HEADER, adapter), (TRAINED_ON_HEADER, self.server.service.trained_on)):
                if told:
                    self.send_header(name, told.encode("ascii", "replace").decode()[:100])
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that is no HTTP, or of an unknown method, in JSON too."""
        self.close_connection = True
        self._refuse(HttpError(HTTPStatus(code), message or HTTPStatus(code).phrase))

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """One line per chunk would drown everything else; errors are logged."""


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
