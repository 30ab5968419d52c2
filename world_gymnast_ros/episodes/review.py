"""A page where a person plays recorded episodes and says what came of them.

    GET  /                     the page (review_page.py); nothing on it comes from elsewhere
    GET  /episodes             list of what is there, with outcomes and judges' opinions
    GET  /episode/ID           times of the images, and what was asked of the arm when
    GET  /image/ID/N.jpg     image N
    POST /mark/ID              {"outcome": "success", "marked_by": "alice", "partial_score": null}

Only this machine is listened to, unless an address of the network is named: then every request must carry a token that
stands in the address to open (and in a cookie from there on). Another site's page cannot mark through a browser here:
Host must be this address, JSON cannot be sent across sites unasked, and the cookie does not come with what they send.
"""
from __future__ import annotations

import contextlib
import hmac
import io
import json
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from world_gymnast_ros.episodes.bag import recorded
from world_gymnast_ros.episodes.files import HEADER_NAME, MCAP_NAME, PARTIAL_SUFFIX, STEPS_NAME, read_json
from world_gymnast_ros.episodes.listing import describe, list_episodes
from world_gymnast_ros.episodes.marking import mark_outcome
from world_gymnast_ros.episodes.outcome import read_outcome
from world_gymnast_ros.episodes.reader import camera, messages
from world_gymnast_ros.episodes.review_page import PAGE
from world_gymnast_ros.episodes.schemas import COMPRESSED_IMAGE, decode_image, decoder, header_stamp_ns
from world_gymnast_ros.episodes.steps import read_steps
from world_gymnast_ros.errors import BadConfig, EpisodeError, WorldGymnastError

MAX_RATE_HZ = 10.0
"""So many images a second are shown: enough to see what happened, and quick to load."""
MAX_BODY_BYTES = 4096
LOOPBACK, COOKIE, TOKEN_BYTES = "127.0.0.1", "review", 16
POLICY = "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


@dataclass(frozen=True)
class _Video:
    """An episode being looked at: receive and capture times of the images that are shown."""

    topic: str
    kind: str
    received_ns: list[int]
    captured_ns: list[int]


class Review:
    """What the server does, without HTTP. Every method may raise EpisodeError."""

    def __init__(self, root: Path, now_ns: Callable[[], int], camera: str = "") -> None:
        """`root`: an episode, or a folder of episodes; `camera`: the topic of the images, where there are several."""
        self._root, self._now_ns, self._camera = root, now_ns, camera
        self._alone = (root / MCAP_NAME).is_file()
        self._turn = threading.Lock()
        self._videos: dict[str, _Video] = {}
        self.episodes()

    def episodes(self) -> list[dict[str, Any]]:
        """List the finished episodes, oldest first."""
        infos = [describe(self._root)] if self._alone else list_episodes(self._root)
        return [{"id": info.path.name, "instruction": info.instruction, "ended_by": info.ended_by, "steps": info.steps,
                 "duration_s": info.duration_s, **self._said(info.path)} for info in infos if not info.partial]

    def episode(self, episode_id: str) -> dict[str, Any]:
        """Return what the page needs to play one episode."""
        folder = self._folder(episode_id)
        with self._turn:
            video = self._video(folder)
        start_ns = video.captured_ns[0]
        steps = read_steps(folder / STEPS_NAME)
        rows = [{"s": (sent - start_ns) * 1e-9, "verdict": verdict, "reason": reason, "mm": 1000 * moved, "open": grip}
                for sent, verdict, reason, moved, grip in zip(
                    steps.stamps_ns.tolist(), steps.verdict.tolist(), steps.reason,
                    np.linalg.norm(steps.sent[:, :3], axis=1).round(5).tolist(), steps.gripper_command.tolist(),
                    strict=True)]
        header = read_json(folder / HEADER_NAME)
        return {"id": episode_id, "images_s": [(t - start_ns) * 1e-9 for t in video.captured_ns], "steps": rows,
                "adapter": steps.adapter[0] if len(steps) else "", "policy": steps.policy[0] if len(steps) else "",
                "notes": str(header.get("header", {}).get("notes", "")), **self._said(folder)}

    def image(self, episode_id: str, number: int) -> bytes:
        """Return image `number` as JPEG."""
        folder = self._folder(episode_id)
        with self._turn:
            video = self._video(folder)
            if not 0 <= number < len(video.received_ns):
                raise EpisodeError(f"{episode_id} has no image {number}; there are {len(video.received_ns)}")
            at_ns = video.received_ns[number]
            cdr = next(cdr for _, _, _, cdr in recorded(folder / MCAP_NAME, [video.topic], at_ns, at_ns + 1)
                       if header_stamp_ns(cdr) == video.captured_ns[number])
        if video.kind == COMPRESSED_IMAGE:
            message = decoder(COMPRESSED_IMAGE)(cdr)
            if "jpeg" in message.format or "jpg" in message.format:
                return bytes(message.data.tobytes())
        buffer = io.BytesIO()
        Image.fromarray(decode_image(video.kind, cdr)).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    def mark(self, episode_id: str, body: Any) -> dict[str, Any]:
        """Mark an episode and return what is said of it now."""
        folder = self._folder(episode_id)
        if not isinstance(body, dict) or not isinstance(body.get("partial_score"), (int, float, type(None))):
            raise EpisodeError("a mark is an object: outcome, marked_by, partial_score (0..1, or null)")
        words = [str(body.get(key) or "").strip()[:100] for key in ("outcome", "marked_by")]
        if not words[1]:
            raise EpisodeError("say who you are: the mark is kept with a name")
        score = body.get("partial_score")
        with self._turn:
            mark_outcome(folder, words[0], words[1], None if score is None else float(score), self._now_ns())
        return self._said(folder)

    def _said(self, folder: Path) -> dict[str, Any]:
        try:
            outcome = read_outcome(folder)
        except EpisodeError as error:
            return {"outcome": "unknown", "marked_by": "", "partial_score": None, "judgements": [], "fault": str(error)}
        return {"outcome": outcome.outcome, "marked_by": outcome.marked_by, "partial_score": outcome.partial_score,
                "judgements": list(outcome.judgements), "fault": ""}

    def _folder(self, episode_id: str) -> Path:
        folder = self._root if self._alone else self._root / episode_id
        known = "/" not in episode_id and episode_id not in ("", ".", "..") and not episode_id.endswith(PARTIAL_SUFFIX)
        if not known or folder.name != episode_id or not (folder / MCAP_NAME).is_file():
            raise EpisodeError(f"there is no finished episode {episode_id[:100]!r} in {self._root}")
        return folder

    def _video(self, folder: Path) -> _Video:
        """Index an episode; that which was looked at before is forgotten."""
        if folder.name not in self._videos:
            self._videos.clear()
            topic, kind = camera(folder, self._camera or None)
            seen = sorted((header_stamp_ns(cdr), received) for received, cdr in messages(folder, topic))
            kept = seen[:1]
            for captured, received in seen[1:]:
                if captured - kept[-1][0] >= 0.95e9 / MAX_RATE_HZ:
                    kept.append((captured, received))
            if not kept:
                raise EpisodeError(f"{folder.name} holds no image")
            self._videos[folder.name] = _Video(topic, kind, [r for _, r in kept], [c for c, _ in kept])
        return self._videos[folder.name]


def network_address() -> str:
    """Return this machine's address on its network, as the way out of it shows; nothing is sent. Raises BadConfig."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.connect(("192.0.2.1", 9))  # of the block for documentation: nobody's
            return str(out.getsockname()[0])
    except OSError as error:
        raise BadConfig(f"this machine has no way into a network ({error.strerror or error}); join one, or name an "
                        "address of this machine: --lan ADDRESS") from error


class ReviewServer(ThreadingHTTPServer):
    """Serves one `Review` on an address of this machine; on another than 127.0.0.1 only to who has the `token`."""

    daemon_threads = True

    def __init__(self, review: Review, port: int, marked_by: str, address: str = LOOPBACK) -> None:
        self.review, self.marked_by, self.address = review, marked_by, address
        self.token = "" if address == LOOPBACK else secrets.token_urlsafe(TOKEN_BYTES)
        try:
            super().__init__((address, port), _Handler)
        except (OSError, OverflowError) as error:
            raise BadConfig(f"port {port} of {address} cannot be opened ({error}); choose another with --port, or "
                            "another address of this machine with --lan") from error

    @property
    def url(self) -> str:
        """The page's address, with the token where there is one."""
        token = f"?token={self.token}" if self.token else ""
        return f"http://{self.address}:{self.server_address[1]}/{token}"

    def is_token(self, word: str) -> bool:
        """Tell whether this is the token, in a time that does not depend on where it differs."""
        return hmac.compare_digest(word.encode(), self.token.encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "world-gymnast", ""
    timeout = 120.0
    server: ReviewServer

    def do_GET(self) -> None:
        review, parts = self.server.review, self.path.split("/")[1:]
        if not self._is_asked_rightly() or self._is_first_visit() or not self._is_known():
            return
        if self.path == "/":
            page = PAGE.replace("%MARKED_BY%", json.dumps(self.server.marked_by).replace("<", "\\u003c"))
            self._send(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8")
        elif self.path == "/episodes":
            self._answer(review.episodes)
        elif len(parts) == 2 and parts[0] == "episode":
            self._answer(lambda: review.episode(parts[1]))
        elif len(parts) == 3 and parts[0] == "image" and parts[2].removesuffix(".jpg").isascii() \
                and parts[2].removesuffix(".jpg").isdigit() and len(parts[2]) < 12:
            self._answer(lambda: review.image(parts[1], int(parts[2].removesuffix(".jpg"))))
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": f"there is no {self.path[:80]!r} here"})

    def do_POST(self) -> None:
        length, parts = self.headers.get("Content-Length", ""), self.path.split("/")[1:]
        if not self._is_asked_rightly() or not self._is_known():
            return
        if not (length.isascii() and length.isdigit() and len(length) < 6 and int(length) <= MAX_BODY_BYTES):
            self.close_connection = True
            self._send_json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"send at most {MAX_BODY_BYTES} bytes"})
            return
        data = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            self._send_json(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"error": "send application/json"})
        elif len(parts) == 2 and parts[0] == "mark":
            self._answer(lambda: self.server.review.mark(parts[1], _parsed(data)))
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": f"there is no {self.path[:80]!r} here"})

    def _is_asked_rightly(self) -> bool:
        """Refuse a request under a foreign name: a page elsewhere may let its own name point to this machine."""
        address, port = self.server.address, self.server.server_address[1]
        names = [address, "localhost"] if address == LOOPBACK else [address]
        return self.headers.get("Host", "") in [f"{name}:{port}" for name in names] or self._refuse()

    def _is_first_visit(self) -> bool:
        """Turn the token of the address into a cookie: so it stands neither on the page nor in the browser's history.
        """
        url = urlsplit(self.path)
        given = parse_qs(url.query).get("token", [])
        if not (self.server.token and url.path == "/" and len(given) == 1 and self.server.is_token(given[0])):
            return False
        self._send(HTTPStatus.SEE_OTHER, b"", "text/plain", more=(
            ("Location", "/"), ("Set-Cookie", f"{COOKIE}={self.server.token}; HttpOnly; SameSite=Lax; Path=/")))
        return True

    def _is_known(self) -> bool:
        """Refuse a request without the token, where one is asked for."""
        if not self.server.token:
            return True
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        return (cookie is not None and self.server.is_token(cookie.value)) or self._refuse()

    def _refuse(self) -> bool:
        self.close_connection = True
        where = "the address that the terminal shows, with its token" if self.server.token else self.server.url
        self._send_json(HTTPStatus.FORBIDDEN, {"error": f"open {where}"})
        return False

    def _answer(self, work: Callable[[], Any]) -> None:
        try:
            value = work()
        except (WorldGymnastError, OSError) as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        if isinstance(value, bytes):
            self._send(HTTPStatus.OK, value, "image/jpeg", "max-age=3600")
        else:
            self._send_json(HTTPStatus.OK, value)

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: HTTPStatus, data: bytes, kind: str, cache: str = "no-store",
              more: Sequence[tuple[str, str]] = ()) -> None:
        with contextlib.suppress(OSError):  # the browser went on to another image
            self.send_response(status)
            for name, text in (("Content-Type", kind), ("Content-Length", str(len(data))), ("Cache-Control", cache),
                               ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"),
                               ("Content-Security-Policy", POLICY), ("Referrer-Policy", "no-referrer"), *more):
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """A line per image would drown everything else."""


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise EpisodeError(f"the mark is not JSON ({error})") from error
