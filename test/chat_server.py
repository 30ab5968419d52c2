"""An OpenAI-compatible server on a thread: chat, and forms as image edits have. A test scripts its answers: any status,
any bytes, any delay."""
from __future__ import annotations

import contextlib
import email
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "toy"


@dataclass
class Said:
    """What the server answers to one request; `drop` closes the connection without a word."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop: bool = False


Script = Callable[[dict[str, Any], int], Said]
"""(the request's JSON, how many came before) -> what is answered."""


@dataclass
class Heard:
    """What reached the server: requests in their order, their headers, and how many were open at once at most."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_open: int = 0


def completion(*texts: str, tokens: list[list[dict[str, float]]] | None = None, usage: tuple[int, int] = (100, 2),
               **more: Any) -> Said:
    """A chat completion with these choices; `tokens`: log-probabilities by token, for each token of each choice."""
    choices: list[dict[str, Any]] = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for i, text in enumerate(texts)]
    for choice, rows in zip(choices, tokens or [], strict=False):
        choice["logprobs"] = {"content": [
            {"token": next(iter(row)), "top_logprobs": [{"token": t, "logprob": p} for t, p in row.items()]}
            for row in rows]}
    value = {"object": "chat.completion", "model": MODEL, "choices": choices,
             "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}, **more}
    return Said(json.dumps(value).encode())


def form(kind: str, body: bytes) -> dict[str, Any]:
    """Return the fields of a form as text, its files as bytes."""
    parts = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body).walk()
    found = {part.get_param("name", header="content-disposition"): part for part in parts if not part.is_multipart()}
    return {str(name): part.get_payload(decode=True) if part.get_filename() else
            part.get_payload(decode=True).decode()  # type: ignore[union-attr]
            for name, part in found.items()}


@contextmanager
def chat_server(script: Script, models: tuple[str, ...] = (MODEL,)) -> Iterator[Heard]:
    """Serve on a free port of this machine until the block ends."""
    heard, lock, open_now, ended = Heard(), threading.Lock(), [0], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(Said(json.dumps({"object": "list", "data": [{"id": m} for m in models]}).encode()))

        def do_POST(self) -> None:
            kind, body = self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"]))
            request = form(kind, body) if kind.startswith("multipart/") else json.loads(body)
            with lock:
                before = len(heard.requests)
                heard.requests.append(request)
                heard.headers.append(dict(self.headers))
                open_now[0] += 1
                heard.most_open = max(heard.most_open, open_now[0])
            try:
                said = script(request, before)
                ended.wait(said.delay_s)
            finally:
                with lock:
                    open_now[0] -= 1
            self._send(said)

        def _send(self, said: Said) -> None:
            if said.drop:
                self.close_connection = True
                return
            with contextlib.suppress(OSError):
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said.body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    heard.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield heard
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def wait_until(done: Callable[[], bool], patience_s: float = 10.0) -> None:
    """Wait for an event."""
    end = time.monotonic() + patience_s
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
