"""An HTTP server of a model, on the standard library's: bounded in connections, bytes and time.

What is served is a `Service`: a policy (`server.py`) or a world model (`world_server.py`). Errors: {"error": one line
with value, limit and remedy} and a status. There is no authentication.
"""
from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from world_gymnast_ros.errors import BadConfig, WorldGymnastError

MAX_CONNECTIONS = 16
IDLE_TIMEOUT_S = 120.0
"""A kept connection without a request; AutoEval's client keeps one for an episode."""
LINGER_S = 2.0
"""How long the rest of a refused request is thrown away."""
JSON = "application/json"


class HttpError(Exception):
    """An answer other than 200."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """The body of an answer, of a content type, with headers of its own."""

    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, **headers: str) -> Answer:
        """Return the answer that is a JSON value."""
        return cls(json.dumps(value).encode(), JSON, headers)


@dataclass(frozen=True)
class Route:
    """Who answers a POST; `body_type` is the content type that the request must have, or '' for any."""

    answer: Callable[[bytes], Answer]
    body_type: str = ""


class Service(Protocol):
    """What is served, without HTTP."""

    @property
    def what(self) -> str:
        """What errors call it, such as "the policy"."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of every answer, refusals included."""

    @property
    def posts(self) -> Mapping[str, Route]:
        """The paths that are offered by POST; GET /health is offered beside them."""

    @property
    def max_body_bytes(self) -> int:
        """Longest request."""

    @property
    def too_long(self) -> str:
        """What to do where a request is longer."""

    @property
    def body_timeout_s(self) -> float:
        """For a whole request: a client that dribbles is let go."""

    @property
    def faults(self) -> tuple[type[WorldGymnastError], ...]:
        """Errors that are the request's fault."""

    def health(self) -> dict[str, Any]:
        """Return what GET /health tells."""


class ModelServer(ThreadingHTTPServer):
    """Binds at once (port 0: any free one); `serve_forever` answers until `shutdown`."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, service: Service, host: str = "127.0.0.1", port: int = 8000) -> None:
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
    """HTTP in and out; the `Service` does the rest."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "world-gymnast", ""
    timeout = IDLE_TIMEOUT_S
    disable_nagle_algorithm = True
    server: ModelServer
    _unread = False

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(HTTPStatus.OK, Answer.of(self.server.service.health()))
        else:
            self._refuse(self._elsewhere())

    def do_POST(self) -> None:
        service = self.server.service
        try:
            route = service.posts.get(self.path)
            body = self._body(route.body_type if route else "")
            if route is None:
                raise self._elsewhere()
            answer = route.answer(body)
        except HttpError as error:
            self._refuse(error)
        except service.faults as error:
            self._refuse(HttpError(HTTPStatus.BAD_REQUEST, str(error)))
        except OSError:  # the client went, or took too long
            self.close_connection = True
        except Exception as error:  # a model may fail in any way; the server goes on
            text = f"{service.what} failed ({type(error).__name__}: {str(error)[:200]}); look at the server's output"
            self.log_error("%s", text)
            self._refuse(HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, text))
        else:
            self._answer(HTTPStatus.OK, answer)

    def _elsewhere(self) -> HttpError:
        offered = f"POST {', '.join(self.server.service.posts)}; GET /health"
        if self.path in (*self.server.service.posts, "/health"):
            return HttpError(HTTPStatus.METHOD_NOT_ALLOWED, f"{self.command} {self.path} is not offered; {offered}")
        return HttpError(HTTPStatus.NOT_FOUND, f"there is no {self.path[:80]!r} here; {offered}")

    def _body(self, body_type: str) -> bytes:
        """Read the request's body, or raise HttpError before a byte of it is read."""
        self._unread = True
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not (length.isascii() and length.isdigit() and len(length) < 12):
            raise HttpError(HTTPStatus.LENGTH_REQUIRED, "the request has no Content-Length; send one, not chunked")
        size = int(length)
        service = self.server.service
        if size > service.max_body_bytes:
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request has {size} bytes, the limit is "
                            f"{service.max_body_bytes}; {service.too_long}")
        # No browser page of another site can send such a type unasked, so none can make the model work.
        if body_type and self.headers.get_content_type() != body_type:
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type is {self.headers.get_content_type()!r}; "
                            f"send {body_type}")
        deadline, parts = time.monotonic() + service.body_timeout_s, []
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
        self._answer(error.status, Answer.of({"error": str(error)}))
        if self._unread:  # closing on unread bytes would reset the connection before the client has read why
            self._unread, deadline = False, time.monotonic() + LINGER_S
            with contextlib.suppress(OSError):
                self.connection.settimeout(LINGER_S / 4)
                while time.monotonic() < deadline and self.rfile.read1(1 << 16):
                    pass

    def _answer(self, status: HTTPStatus, answer: Answer) -> None:
        with contextlib.suppress(OSError):  # the client went
            self.send_response(status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, text in {**self.server.service.headers, **answer.headers}.items():
                if text:
                    self.send_header(name, text.encode("ascii", "replace").decode()[:100])
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that is no HTTP, or of an unknown method, in JSON too."""
        self.close_connection = True
        self._refuse(HttpError(HTTPStatus(code), message or HTTPStatus(code).phrase))

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """One line per request would drown everything else; errors are logged."""


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
