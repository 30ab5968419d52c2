"""The client of OpenAI-compatible servers, against servers that ignore, refuse, lie, hang and die."""
from __future__ import annotations

import base64
import json
import logging
import socket
import time
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from chat_server import Said, chat_server, completion
from PIL import Image

from world_gymnast_ros.errors import BadConfig, BadFrame, RemoteModelError
from world_gymnast_ros.serving import openai_client
from world_gymnast_ros.serving.openai_client import OpenAIClient, Question, find_json, user_message

SECRET = "sk-very-secret-123"
ASKED = Question([user_message("Is it done?")])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "FIRST_PAUSE_S", 0.01)


def client(url: str, **more: Any) -> OpenAIClient:
    return OpenAIClient(url, **{"timeout_s": 5.0, "environment": {}, **more})


def test_what_is_asked_and_what_comes_back() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    told = [[{"Yes": -0.1, "No": -2.4}, {".": -0.01}]]
    with chat_server(lambda request, n: completion("Yes.", tokens=told, usage=(321, 7))) as heard:
        mine = client(heard.url)
        answer = mine.ask(Question([user_message("Done?", [rgb])], max_tokens=9, temperature=0.5, answers=3,
                                   top_logprobs=5, schema={"type": "object"}, seed=4))
    sent = heard.requests[0]
    assert sent["model"] == "toy" and sent["n"] == 3 and sent["max_tokens"] == 9 and sent["temperature"] == 0.5
    assert sent["logprobs"] is True and sent["top_logprobs"] == 5 and sent["seed"] == 4
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    image, text = sent["messages"][0]["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    got = np.asarray(Image.open(BytesIO(base64.b64decode(data))))
    assert head == "data:image/jpeg;base64" and got.shape == rgb.shape and text == {"type": "text", "text": "Done?"}
    assert len(answer.choices) == 1, "three were wanted, one came: the caller sees that"
    assert answer.choices[0].text == "Yes." and answer.choices[0].tokens == tuple(told[0])
    assert (answer.prompt_tokens, answer.completion_tokens) == (321, 7)
    cost = mine.cost
    # one listed the models
    assert (cost.requests, cost.retries, cost.failures) == (2, 0, 0) and "321 tokens in, 7 out" in str(cost)


def test_what_is_not_asked_for_is_not_named() -> None:
    with chat_server(lambda request, n: completion("hm")) as heard:
        client(heard.url).ask(ASKED)
    assert heard.requests[0].keys() == {"model", "messages", "max_tokens", "temperature"}


@pytest.mark.parametrize(("models", "says"), [(("a", "b"), "lists 2 models (a, b)"), ((), "lists 0 models")])
def test_a_server_with_several_models_wants_a_name(models: tuple[str, ...], says: str) -> None:
    with chat_server(lambda request, n: completion("x"), models) as heard:
        mine = client(heard.url)
        with pytest.raises(RemoteModelError) as error:
            mine.ask(ASKED)
        assert says in str(error.value) and "#MODEL" in str(error.value) and mine.cost.failures == 1
        client(heard.url + "#org/name").ask(ASKED)
        client(heard.url, model="b").ask(ASKED)
    assert [r["model"] for r in heard.requests] == ["org/name", "b"]


@pytest.mark.parametrize("broken", [
    Said(status=503, body=b'{"error": {"message": "loading"}}'), Said(status=429, headers={"Retry-After": "0.02"}),
    Said(drop=True)], ids=["503", "429", "dropped"])
def test_what_passes_is_asked_again(broken: Said) -> None:
    with chat_server(lambda request, n: broken if n < 2 else completion("yes")) as heard:
        mine = client(heard.url)
        assert mine.ask(ASKED).choices[0].text == "yes"
    assert len(heard.requests) == 3 and mine.cost.requests == 4 and mine.cost.retries == 2  # one listed the models
    assert mine.cost.failures == 0


def test_tries_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(lambda request, n: Said(status=503, body=b'{"detail": "no GPU"}')) as heard:
        mine = client(heard.url, model="m", retries=2)
        with pytest.raises(RemoteModelError, match="answered 503: no GPU"):
            mine.ask(ASKED)
        assert len(heard.requests) == 3 and mine.cost.failures == 1
        monkeypatch.setattr(openai_client, "FIRST_PAUSE_S", 60.0)
        start = time.monotonic()
        with pytest.raises(RemoteModelError, match="503"):
            mine.ask(ASKED)
        assert time.monotonic() - start < 5.0, "a pause that outlasts the limit is not begun"


def test_the_limit_holds_for_all_tries_together() -> None:
    start = time.monotonic()
    with chat_server(lambda request, n: Said(delay_s=30)) as heard:
        with pytest.raises(RemoteModelError, match=r"no answer within 0\.[234]\d* s"):
            client(heard.url, model="m", timeout_s=0.4, retries=50).ask(ASKED)
        assert time.monotonic() - start < 5.0 and len(heard.requests) == 1


@pytest.mark.parametrize(("said", "says"), [
    (Said(b"<html>hello"), "not JSON"), (Said(b""), "not JSON"), (Said(b"[1]"), "without a text (list)"),
    (Said(b'{"object": "error", "message": "x"}'), "without a text (message, object)"),
    (Said(b'{"choices": []}'), "without a text"), (Said(b'{"choices": [{"message": {"content": null}}]}'), "without"),
    (Said(b'{"choices": [null, 3, {"message": "x"}]}'), "without a text"), (Said(b'{"choices": NaN}'), "NaN"),
    (Said(b"[" * 100_000), "not JSON"), (Said(b" " * (openai_client.MAX_ANSWER_BYTES + 5)), "more than"),
    (Said(status=404, body=b'{"error": "no such model"}'), "answered 404: no such model"),
    (Said(status=302, headers={"Location": "http://elsewhere/"}), "answered 302"),
    (Said(status=401, body=b"no"), "set WORLD_GYMNAST_API_KEY in the environment"),
])
def test_garbage_is_an_error_at_once(said: Said, says: str) -> None:
    with chat_server(lambda request, n: said) as heard:
        mine = client(heard.url, model="m")
        with pytest.raises(RemoteModelError) as error:
            mine.ask(ASKED)
    assert says in str(error.value) and heard.url in str(error.value) and len(str(error.value)) < 600
    assert len(heard.requests) == 1 and mine.cost.failures == 1


@pytest.mark.parametrize("told", [
    {"content": [{"top_logprobs": [{"token": "Yes", "logprob": 0.7}]}]},
    {"content": [{"top_logprobs": [{"token": "Yes", "logprob": "high"}]}]},
    {"content": [{"top_logprobs": [{"token": 3, "logprob": -1.0}]}]}, {"content": [{"top_logprobs": None}]},
    {"content": "Yes"}, {"content": [7]}, [], "no",
])
def test_log_probabilities_that_are_none_are_left_out(told: Any) -> None:
    said = Said(json.dumps({"choices": [{"message": {"content": "Yes"}, "logprobs": told}]}).encode())
    with chat_server(lambda request, n: said) as heard:
        assert client(heard.url, model="m").ask(ASKED).choices[0].tokens == ()


def test_texts_come_in_parts_too_and_empty_choices_do_not_count() -> None:
    rows = [{"message": {"content": [{"type": "text", "text": "ye"}, {"type": "text", "text": "s"}]}},
            {"message": {"content": "  "}}, {"message": {"content": "no"}, "finish_reason": "length"}]
    with chat_server(lambda request, n: Said(json.dumps({"choices": rows, "usage": "many"}).encode())) as heard:
        answer = client(heard.url, model="m").ask(ASKED)
    assert [(c.text, c.cut) for c in answer.choices] == [("yes", False), ("no", True)] and answer.prompt_tokens == 0


@pytest.mark.parametrize(("field", "words", "instead"), [
    ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
     "max_completion_tokens"),
    ("logprobs", "top_logprobs is not supported with this model", None), ("n", "parameter 'n' must be 1", None),
    ("response_format", "response_format is unknown", None), ("temperature", "temperature must be 1", None)])
def test_a_field_that_is_refused_by_name_is_left_out_from_then_on(field: str, words: str, instead: str | None) -> None:
    full = Question([user_message("x")], answers=2, top_logprobs=3, schema={"type": "object"}, seed=1)
    refusal = Said(json.dumps({"error": {"message": words}}).encode(), 400)
    with chat_server(lambda request, n: refusal if field in request else completion("a")) as heard:
        mine = client(heard.url, model="m")
        assert mine.ask(full).choices[0].text == "a" and mine.ask(full).choices[0].text == "a"
    assert [field in r for r in heard.requests] == [True, False, False]
    assert instead is None or heard.requests[-1][instead] == full.max_tokens
    assert "top_logprobs" not in heard.requests[-1] or field != "logprobs"


def test_another_refusal_is_told_once() -> None:
    refusal = Said(b'{"error": "the image is too large"}', 400)
    with (chat_server(lambda request, n: refusal) as heard,
          pytest.raises(RemoteModelError, match="answered 400: the image is too large")):
        client(heard.url, model="m").ask(ASKED)
    assert len(heard.requests) == 1


def test_many_questions_keep_their_order_and_never_crowd() -> None:
    def script(request: dict[str, Any], n: int) -> Said:
        text = request["messages"][0]["content"][0]["text"]
        said = Said(b"{}") if text == "5" else completion(text)
        said.delay_s = 0.05
        return said
    with chat_server(script) as heard:
        mine = client(heard.url, model="m", concurrency=3)
        found = mine.ask_all([Question([user_message(str(i))]) for i in range(9)])
    assert [a.choices[0].text if not isinstance(a, RemoteModelError) else "-" for a in found] == list("01234-678")
    assert heard.most_open == 3 and mine.cost.failures == 1


def test_a_server_that_is_down_costs_one_limit_and_not_one_each() -> None:
    start = time.monotonic()
    with chat_server(lambda request, n: Said(delay_s=30)) as heard:
        found = client(heard.url, model="m", timeout_s=0.3, concurrency=2).ask_all([ASKED] * 40)
        assert all(isinstance(a, RemoteModelError) for a in found) and len(heard.requests) < 6
    assert time.monotonic() - start < 5.0 and "so was not asked the rest" in str(found[-1])
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(RemoteModelError, match=r"cannot be asked .ConnectionRefused"):
        client(f"http://127.0.0.1:{port}/v1", model="m", retries=1).ask(ASKED)


def test_the_key_comes_from_the_environment_and_is_in_no_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with chat_server(lambda request, n: Said(f'{{"error": "bad key {SECRET}"}}'.encode(), 401 if n else 503)) as heard:
        mine = client(heard.url, model="m", environment={"WORLD_GYMNAST_API_KEY": f" {SECRET}\n"})
        with pytest.raises(RemoteModelError) as error:
            mine.ask(ASKED)
        assert heard.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert "bad key [key]" in str(error.value) and "was not accepted" in str(error.value)
    for text in (str(error.value), repr(mine), mine.name, str(mine.cost), caplog.text):
        assert SECRET not in text


@pytest.mark.parametrize(("url", "environment", "key", "why"), [
    ("https://api.openai.com/v1", {"OPENAI_API_KEY": "a", "WORLD_GYMNAST_API_KEY": "b"}, "a", ""),
    ("https://vlm.example/v1", {"OPENAI_API_KEY": "a"}, "", "set WORLD_GYMNAST_API_KEY"),
    ("https://vlm.example/v1", {"OPENAI_API_KEY": "a", "WORLD_GYMNAST_API_KEY": "b"}, "b", ""),
    ("http://gpu.lab:8000/v1", {"WORLD_GYMNAST_API_KEY": "b"}, "", "not sent without https"),
    ("http://localhost:8000/v1", {"WORLD_GYMNAST_API_KEY": "b"}, "b", ""),
    ("http://127.0.0.1/v1", {"WORLD_GYMNAST_API_KEY": "b"}, "b", "")])
def test_a_key_goes_where_it_belongs(url: str, environment: dict[str, str], key: str, why: str) -> None:
    found, told = openai_client.key_for(client(url)._parts, environment)
    assert found == key and why in told


def test_a_key_that_no_header_can_hold_is_refused_unseen() -> None:
    with pytest.raises(BadConfig, match="WORLD_GYMNAST_API_KEY holds characters") as error:
        client("http://localhost/v1", environment={"WORLD_GYMNAST_API_KEY": "abc\ndef"})
    assert "abc" not in str(error.value)


@pytest.mark.parametrize("url", ["", "gpu:8000", "ftp://gpu/v1", "http://gpu/v1?key=1", "http://gpu/v 1", "http://:1"])
def test_addresses_that_cannot_be_are_refused_at_once(url: str) -> None:
    with pytest.raises(BadConfig, match="address of a model server"):
        client(url)


def test_a_password_in_an_address_is_refused_unseen() -> None:
    with pytest.raises(BadConfig, match="user name or password") as error:
        client(f"https://me:{SECRET}@gpu/v1")
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("wrong", [{"timeout_s": 0}, {"retries": -1}, {"concurrency": 0}, {"timeout_s": float("nan")}])
def test_settings_have_limits(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match=next(iter(wrong))):
        client("http://gpu/v1", **wrong)


def test_images_are_checked() -> None:
    with pytest.raises(BadFrame):
        user_message("x", [np.zeros((4, 4), np.uint8)])


@pytest.mark.parametrize(("text", "value"), [
    ('{"a": 1}', {"a": 1}), ('Sure!\n```json\n[{"a": 1}]\n```', [{"a": 1}]), ("no json", None),
    ("{oops} [1, 2]", [1, 2]), ("[" * 50_000, None), ('{"a": [1, 2', None), ("", None)])
def test_json_is_found_among_words(text: str, value: Any) -> None:
    assert find_json(text) == value


def test_the_json_that_is_wanted_is_found_behind_other() -> None:
    assert find_json('[1] {"score": 1}', lambda v: isinstance(v, dict) and "score" in v) == {"score": 1}
