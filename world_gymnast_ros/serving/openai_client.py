"""A client for any OpenAI-compatible server (`POST /v1/chat/completions`): vLLM, SGLang, `transformers serve`, OpenAI.

It looks at what came back: many servers ignore `n`, `logprobs` or `response_format` and answer 200 all the same. Every
question has a time limit that holds for all its tries together; what is refused for a passing reason is asked again
after a growing pause; at most `concurrency` questions are open at once; requests and tokens are counted.

The key comes from the environment alone (`key_for`), and is taken out of every text that a server sends back.
"""
from __future__ import annotations

import base64
import ipaddress
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any
from urllib.parse import SplitResult

import numpy as np
from PIL import Image

from world_gymnast_ros.errors import BadConfig, BadPayload, RemoteModelError
from world_gymnast_ros.images import check_rgb
from world_gymnast_ros.serving.exchange import NoAnswer, Reply, error_text, exchange, split_url
from world_gymnast_ros.serving.json_numpy import read_json
from world_gymnast_ros.types import U8

KEY = "WORLD_GYMNAST_API_KEY"
"""Environment variable of the key for servers that the user names."""
OPENAI_HOST, OPENAI_KEY = "api.openai.com", "OPENAI_API_KEY"
"""The usual variable goes to the usual host alone: another server has no business with it."""
MAX_ANSWER_BYTES = 4 * 2**20
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may be answered."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
JPEG_QUALITY = 95
MAX_JSON_STARTS = 64
"""Brackets of a text that are tried as the beginning of JSON."""


@dataclass(frozen=True)
class Question:
    """One chat request. `messages` as the API has them (`user_message`); `answers` is how many are wanted (`n`);
    `top_logprobs` asks for log-probabilities of the first tokens; `schema` a JSON schema that the answer shall fit.
    What of it the server heeds shows in the `Answer`."""

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int = 256
    temperature: float = 0.0
    answers: int = 1
    top_logprobs: int = 0
    schema: Mapping[str, Any] | None = None
    seed: int | None = None

    def body(self, model: str) -> dict[str, Any]:
        """Return the request's JSON; what is not asked for is not named, since some servers refuse names they lack."""
        out: dict[str, Any] = {"model": model, "messages": list(self.messages), "max_tokens": self.max_tokens,
                               "temperature": self.temperature}
        if self.answers > 1:
            out["n"] = self.answers
        if self.top_logprobs:
            out |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.schema is not None:
            out["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True,
                                                                             "schema": dict(self.schema)}}
        if self.seed is not None:
            out["seed"] = self.seed
        return out


@dataclass(frozen=True)
class Choice:
    """One answer. `tokens`: for each token of it, log-probabilities by token text; empty where none came.
    `cut`: it ended at `max_tokens`."""

    text: str
    tokens: tuple[Mapping[str, float], ...] = ()
    cut: bool = False


@dataclass(frozen=True)
class Answer:
    """What came back: at least one choice, which may be fewer than were asked for."""

    choices: tuple[Choice, ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What a client has used. `requests` were sent, `retries` of them again; `failures` are questions without an
    answer. Tokens are as the server counts them (0 where it does not)."""

    requests: int = 0
    retries: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (f"{self.requests} requests ({self.retries} again, {self.failures} questions without an answer), "
                f"{self.prompt_tokens} tokens in, {self.completion_tokens} out, {self.seconds:.1f} s of waiting")


class OpenAIClient:
    """Asks one model of one server. Threads may share it."""

    max_answer_bytes = MAX_ANSWER_BYTES

    def __init__(self, url: str, model: str = "", *, timeout_s: float = 60.0, retries: int = 3, concurrency: int = 4,
                 environment: Mapping[str, str] = os.environ) -> None:
        """`url` as http://HOST:PORT/v1, with #MODEL behind it where `model` is not given; empty: the only model that
        the server lists. `timeout_s` holds for one question with all its tries. Nothing is sent yet. BadConfig."""
        self._parts = split_url(url, "the address of a model server", "an OpenAI-compatible server", fragment=True)
        for name, value, low, high in (("timeout_s", timeout_s, 0.01, 3600.0), ("retries", retries, 0, 100),
                                       ("concurrency", concurrency, 1, 256)):
            if not low <= value <= high:
                raise BadConfig(f"{name} of the model server is {value}; it must lie in {low:g}..{high:g}")
        self._path = self._parts.path.rstrip("/").removesuffix("/chat/completions")
        self.url = f"{self._parts.scheme}://{self._parts.netloc}{self._path}"
        self._model = model or self._parts.fragment
        self.timeout_s, self.retries, self.concurrency = timeout_s, retries, concurrency
        self._key, self._no_key = key_for(self._parts, environment)
        self._lock = threading.Lock()
        self._cost = Cost()
        self._left_out: frozenset[str] = frozenset()  # what this server refused by name

    def __repr__(self) -> str:
        return f"OpenAIClient({self.url!r}, {self._model!r})"

    @property
    def name(self) -> str:
        """The model and where it runs, without the key."""
        return f"{self._model or 'model'}@{self._parts.netloc}{self._path}"

    @property
    def cost(self) -> Cost:
        """What was used so far."""
        with self._lock:
            return self._cost

    def model(self) -> str:
        """Return the model's name: as given, else the only one that the server lists. RemoteModelError otherwise."""
        with self._lock:
            known = self._model
        if known:
            return known
        listed = self.models()
        if len(listed) != 1:
            names = ", ".join(listed[:10]) or "none"
            raise RemoteModelError(f"{self.url} lists {len(listed)} models ({names}); name one: {self.url}#MODEL")
        with self._lock:
            self._model = listed[0]
        return listed[0]

    def models(self) -> list[str]:
        """Return the names that GET /models lists."""
        reply = self._try("GET", "/models", None, time.monotonic() + self.timeout_s)
        value = self._json(reply)
        rows = value.get("data") if isinstance(value, dict) else None
        if not isinstance(rows, list):
            raise RemoteModelError(f"{self.url}/models lists no models; is this an OpenAI-compatible server (.../v1)?")
        return [str(row["id"])[:200] for row in rows if isinstance(row, dict) and row.get("id")]

    def ask(self, question: Question) -> Answer:
        """Return what the server answers. Raises RemoteModelError where nothing usable came within the limit."""
        start = time.monotonic()
        deadline = start + self.timeout_s
        try:
            body = question.body(self.model())
            answer = _answer(self._json(self._post(body, deadline)), self.url)
        except RemoteModelError:
            self._count(failures=1, seconds=time.monotonic() - start)
            raise
        answer = replace(answer, seconds=time.monotonic() - start)
        self._count(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens,
                    seconds=answer.seconds)
        return answer

    def ask_all(self, questions: Sequence[Question]) -> list[Answer | RemoteModelError]:
        """Ask several questions, at most `concurrency` at once; an answer or an error for each, in their order.

        A server that is down costs one time limit, not one for each: where as many questions as may be open failed
        and none was answered, the rest is not asked.
        """
        answered, failed, last = 0, 0, ""
        lock = threading.Lock()

        def one(question: Question) -> Answer | RemoteModelError:
            nonlocal answered, failed, last
            with lock:
                given_up = failed >= self.concurrency and not answered
                reason = f"{last} (and so was not asked the rest)"
            if given_up:
                return RemoteModelError(reason)
            try:
                answer = self.ask(question)
            except RemoteModelError as error:
                with lock:
                    failed, last = failed + 1, str(error)
                return error
            with lock:
                answered += 1
            return answer
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            return list(pool.map(one, questions))

    # ---- one request, and again ----------------------------------------------------------------------------------

    def _post(self, body: dict[str, Any], deadline: float) -> Reply:
        """Send a request; where the server refuses a field by name, send it without that field from then on."""
        while True:
            with self._lock:
                left_out = self._left_out
            reply = self._try("POST", "/chat/completions", json.dumps(_without(body, left_out)).encode(), deadline)
            if reply.status == 200:
                return reply
            refused = _refused_field(reply, _without(body, left_out)) if reply.status in (400, 422) else ""
            if not refused:
                raise self._refusal(reply)
            with self._lock:
                self._left_out |= {refused}

    def _try(self, method: str, path: str, body: bytes | None, deadline: float, kind: str = "application/json"
             ) -> Reply:
        """Return a reply that is no passing refusal. Raises RemoteModelError once tries or time are used up."""
        headers = {"Content-Type": kind, "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        why = f"{self.url} was not asked: its timeout_s of {self.timeout_s:g} s was used up before"
        for turn in range(self.retries + 1):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            self._count(requests=1, retries=int(turn > 0))
            asked_s = 0.0
            try:
                reply = exchange(self._parts, method, self._path + path, body, headers, left_s,
                                 self.max_answer_bytes)
                if reply.status not in PASSING:
                    return reply
                why, asked_s = str(self._refusal(reply)), _retry_after_s(reply)
            except NoAnswer as error:
                said = f"gave no answer within {self.timeout_s:g} s" if error.late else str(error)
                why = f"{self.url} {said}; check the server and the network, or raise its timeout_s"
                if error.late:
                    break
            pause_s = max(asked_s, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**turn) * random.uniform(0.5, 1.0))
            if turn == self.retries or time.monotonic() + pause_s >= deadline:
                break
            time.sleep(pause_s)
        raise RemoteModelError(self._hidden(why))

    def _refusal(self, reply: Reply) -> RemoteModelError:
        words = self._hidden(error_text(reply.body))
        if reply.status in (401, 403):
            words += f"; {self._no_key}" if self._no_key else "; the key that is set was not accepted"
        return RemoteModelError(f"{self.url} answered {reply.status}: {words}")

    def _json(self, reply: Reply) -> Any:
        if reply.status != 200:
            raise self._refusal(reply)
        if len(reply.body) > self.max_answer_bytes:
            raise RemoteModelError(f"{self.url} answered with more than {self.max_answer_bytes} bytes; that is no "
                                   "answer")
        try:
            return read_json(reply.body, "the answer")
        except BadPayload as error:
            raise RemoteModelError(self._hidden(f"{self.url}: {error}")) from error

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _count(self, **more: float) -> None:
        with self._lock:
            self._cost = replace(self._cost, **{k: getattr(self._cost, k) + v for k, v in more.items()})


def key_for(parts: SplitResult, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the key for a server, and where there is none, why. Raises BadConfig for a key that no header can hold.

    OPENAI_API_KEY goes to api.openai.com alone, WORLD_GYMNAST_API_KEY to any other server that the user names, over
    https or to this machine.
    """
    openai = parts.hostname == OPENAI_HOST
    variable = OPENAI_KEY if openai else KEY
    key = environment.get(variable, "").strip()
    if not key:
        return "", f"set {variable} in the environment"
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise BadConfig(f"{variable} holds characters that no key has (spaces, line breaks or others); set it again")
    if parts.scheme != "https" and not _is_here(str(parts.hostname)):
        return "", f"{variable} is not sent without https to another machine"
    return key, ""


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def user_message(text: str, images: Sequence[U8] | U8 = ()) -> dict[str, Any]:
    """Return a message of images uint8 (H, W, 3), in their order, and the text behind them."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image_url(rgb)}} for rgb in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def image_url(rgb: U8) -> str:
    """Return an image uint8 (H, W, 3), RGB, as a data URL (JPEG)."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(check_rgb(rgb))).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def find_json(text: str, good: Callable[[Any], bool] = lambda value: isinstance(value, (dict, list))) -> Any:
    """Return the first JSON value in a text that is `good`, whatever words or fences stand around it; None if none."""
    decoder = json.JSONDecoder()
    starts = [i for i, letter in enumerate(text) if letter in "{["]
    for i in starts[:MAX_JSON_STARTS]:
        try:
            value, _ = decoder.raw_decode(text, i)
        except (ValueError, RecursionError):
            continue
        if good(value):
            return value
    return None


def _without(body: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    out = {k: v for k, v in body.items() if k not in names}
    if "max_tokens" in names:  # what newer models of OpenAI call it
        out["max_completion_tokens"] = body["max_tokens"]
    if "logprobs" in names:
        out.pop("top_logprobs", None)
    return out


def _refused_field(reply: Reply, body: Mapping[str, Any]) -> str:
    """Return the optional field that a refusal names; '' where it names none."""
    words = error_text(reply.body)
    for name in ("max_tokens", "top_logprobs", "logprobs", "response_format", "temperature", "seed"):
        if name in words and name in body:
            return "logprobs" if name == "top_logprobs" else name
    named = ("'n'", '"n"', "`n`", "parameter n ", "parameter: n")
    return "n" if "n" in body and any(way in words for way in named) else ""


def _retry_after_s(reply: Reply) -> float:
    try:
        return max(0.0, min(float(reply.headers.get("retry-after", "0")), 3600.0))
    except ValueError:  # a date
        return 0.0


def _answer(value: Any, url: str) -> Answer:
    """Return the usable choices of a completion. Raises RemoteModelError where there is none."""
    rows = value.get("choices") if isinstance(value, dict) else None
    found = [choice for row in (rows if isinstance(rows, list) else []) if (choice := _choice(row)) is not None]
    if not found:
        held = ", ".join(sorted(map(str, value))[:8]) if isinstance(value, dict) else type(value).__name__
        raise RemoteModelError(f"{url} answered 200 without a text ({held[:200]}); is this a chat completions server?")
    usage = value.get("usage")
    return Answer(tuple(found), *(_whole(usage, name) for name in ("prompt_tokens", "completion_tokens")))


def _whole(usage: Any, name: str) -> int:
    number = usage.get(name) if isinstance(usage, dict) else 0
    return number if type(number) is int and 0 <= number < 2**40 else 0


def _choice(row: Any) -> Choice | None:
    message = row.get("message") if isinstance(row, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):  # as parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str) or not content.strip():
        return None
    return Choice(content, _tokens(row.get("logprobs")), row.get("finish_reason") == "length")


def _tokens(value: Any) -> tuple[Mapping[str, float], ...]:
    """Return log-probabilities by token text, for each token; () where what came is not that."""
    rows = value.get("content") if isinstance(value, dict) else None
    out = []
    for row in rows if isinstance(rows, list) else []:
        top = row.get("top_logprobs") if isinstance(row, dict) else None
        if not isinstance(top, list):
            return ()
        found: dict[str, float] = {}
        for entry in top:
            token, number = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
            if not isinstance(token, str) or isinstance(number, bool) or not isinstance(number, (int, float)) \
                    or not math.isfinite(number) or number > 1e-3:
                return ()
            found[token] = max(found.get(token, -math.inf), float(number))
        out.append(found)
    return tuple(out)
