"""One HTTP exchange with a server that may be dead, slow, endless or wrong: bounded in time and in size.

One connection per exchange: nothing of an earlier fault is left for the next. Redirections are not followed.
"""
from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from world_gymnast_ros.errors import BadConfig


class NoAnswer(Exception):
    """The exchange failed. `late`: the time was over; otherwise there was no connection, or it broke."""

    def __init__(self, why: str, late: bool) -> None:
        super().__init__(why)
        self.late = late


@dataclass(frozen=True)
class Reply:
    """A status, headers by their lower-case names, and a body of at most the bytes that were allowed and one more."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def is_address(where: object) -> bool:
    """Tell whether the name of a model is the address of a server."""
    return str(where).startswith(("http://", "https://"))


def split_url(url: str, name: str, what: str, query: bool = False, fragment: bool = False) -> SplitResult:
    """Return the parts of an http(s) address. `name` is the setting, `what` runs there. Raises BadConfig.

    A user name or password in it is refused: it would end in logs.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if good and parts.username is not None:
        raise BadConfig(f"{name} at {parts.hostname} holds a user name or password; leave it out, for it would end in "
                        "logs")
    if (not good or (parts.query and not query) or (parts.fragment and not fragment) or not url.isprintable()
            or " " in url):
        raise BadConfig(f"{name} is {url!r}; give http://HOST:PORT of {what}, without user name or query")
    return parts


def exchange(parts: SplitResult, method: str, path: str, body: bytes | None, headers: Mapping[str, str],
             timeout_s: float, max_bytes: int) -> Reply:
    """Send one request and return the reply. Raises NoAnswer after `timeout_s`, whatever trickled in until then."""
    start = time.monotonic()
    maker = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = maker(str(parts.hostname), parts.port, timeout=timeout_s)
    try:
        connection.connect()
        with _deadline(connection, max(0.001, timeout_s - (time.monotonic() - start))) as late:
            try:
                connection.request(method, path, body, {**headers, "Connection": "close"})
                response = connection.getresponse()
                answer = response.read(max_bytes + 1)
            except (OSError, http.client.HTTPException):
                if late.is_set():
                    raise TimeoutError from None
                raise
        if late.is_set():  # what was read before the end is not the whole answer
            raise TimeoutError
    except TimeoutError as error:
        raise NoAnswer(f"gave no answer within {timeout_s:g} s", late=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"cannot be asked ({type(error).__name__}: {str(error)[:120]})", late=False) from error
    finally:
        connection.close()
    return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, answer)


def error_text(body: bytes) -> str:
    """Return what a server said about an error, in one line: {"error": text}, {"error": {"message": text}}, {"detail":
    ...}, or its first bytes."""
    text = body[:400].decode("utf-8", "replace")
    try:
        value = json.loads(body)
        said = value.get("error") or value.get("detail") or text
        text = str(said.get("message", said) if isinstance(said, dict) else said)
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(text.split())[:300]


@contextmanager
def _deadline(connection: http.client.HTTPConnection, timeout_s: float) -> Iterator[threading.Event]:
    """Cut the connection after `timeout_s`, whatever trickles in: a socket's own timeout is for each read alone."""
    late = threading.Event()

    def cut(sock: Any = connection.sock) -> None:
        late.set()
        with contextlib.suppress(OSError):  # it is over already
            sock.shutdown(2)

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
