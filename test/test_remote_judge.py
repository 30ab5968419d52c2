"""RemoteJudge against servers that give log-probabilities, that ignore what was asked, and that hang, die or lie.

And against a real `transformers serve` with a tiny model, where its packages are installed.
"""
from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import Said, Script, chat_server, completion
from patience import START_S

from world_gymnast_ros.adaptation.rollout import is_success
from world_gymnast_ros.errors import BadConfig, BadFrame, BadInstruction
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.remote import RemoteConfig, RemoteJudge, label_logs, read_label
from world_gymnast_ros.serving import openai_client
from world_gymnast_ros.serving.openai_client import Choice
from world_gymnast_ros.types import Judgement

WORDS = "reach the red block"
ROLLOUTS = np.zeros((3, 5, 32, 32, 3), np.uint8)
ROLLOUTS[0], ROLLOUTS[1], ROLLOUTS[2] = 30, 120, 220
PARTLY = {"*": "The arm is near the block."}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "FIRST_PAUSE_S", 0.01)


def remote(url: str, **settings: Any) -> RemoteJudge:
    return RemoteJudge.from_pretrained(url + "#toy", {}, **{"timeout_s": 5.0, "frames": 2, "frame_px": 32, **settings})


def told(request: dict[str, Any]) -> str:
    return request["messages"][0]["content"][-1]["text"]


def brightness(request: dict[str, Any]) -> float:
    """Of the first image of a request: which rollout is asked about."""
    import base64
    import io

    from PIL import Image
    data = request["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]
    return float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean())


def test_log_probabilities_are_read_from_one_request_each() -> None:
    def script(request: dict[str, Any], n: int) -> Said:
        p = brightness(request) / 255
        return completion("Yes" if p > 0.5 else "No", tokens=[[{"Yes": math.log(p), "No": math.log(1 - p)}]])
    with chat_server(script) as heard:
        judge = remote(heard.url)
        found = judge.score(ROLLOUTS, WORDS)
    assert [round(j.score * 255) for j in found] == [30, 120, 220] and [j.votes for j in found] == [(), (), ()]
    assert len(heard.requests) == 3 and all(r["top_logprobs"] == 20 for r in heard.requests)
    assert "The 2 images are frames" in told(heard.requests[0]) and WORDS in told(heard.requests[0])
    assert len(heard.requests[0]["messages"][0]["content"]) == 3
    assert "0 of 3 rollouts without a verdict" in judge.spent and "3 requests" in judge.spent


def answers(honours_n: bool) -> Script:
    """Bright rollouts have four yes of five, the others one; says nothing of log-probabilities."""
    count: dict[float, int] = {}
    lock = threading.Lock()

    def script(request: dict[str, Any], n: int) -> Said:
        bright = brightness(request)
        texts = []
        for _ in range(request.get("n", 1) if honours_n else 1):
            with lock:
                k = count[bright] = count.get(bright, -1) + 1
            texts.append("Yes." if (k % 5 == 0) != (bright > 100) else "**No**")
        return completion(*texts)
    return script


@pytest.mark.parametrize(("honours_n", "asked", "again"), [(True, 3 + 3, 3), (False, 3 + 3 + 9, 15)])
def test_without_log_probabilities_votes_are_counted(honours_n: bool, asked: int, again: int) -> None:
    """What was ignored shows in what came back: missing votes are fetched one by one, and remembered."""
    with chat_server(answers(honours_n)) as heard:
        judge = remote(heard.url)
        found = judge.score(ROLLOUTS, WORDS)
        assert len(heard.requests) == asked
        assert [sum(j.votes) for j in found] == [1, 4, 4] and all(len(j.votes) == 5 for j in found)
        assert [j.score for j in found] == pytest.approx([1.5 / 6, 4.5 / 6, 4.5 / 6])
        judge.score(ROLLOUTS, WORDS)
        assert len(heard.requests) == asked + again
    assert not any("logprobs" in r for r in heard.requests[asked:]), "what the server does not give is not asked again"


def test_a_tie_is_no_success_and_five_of_five_no_certainty() -> None:
    votes = iter(["Yes", "No", "Yes", "No"])
    with chat_server(lambda request, n: completion(next(votes))) as heard:
        (tie,) = remote(heard.url, votes=4, concurrency=1).score(ROLLOUTS[:1], WORDS)
    assert tie.score == 0.5 and not is_success(tie)
    with chat_server(lambda request, n: completion("Yes")) as heard:
        (sure,) = remote(heard.url).score(ROLLOUTS[:1], WORDS)
    assert sure.score == pytest.approx(5.5 / 6) and sure.detail == "5 votes"


def test_partial_credit_goes_into_progress() -> None:
    spread = {"A": math.log(0.2), " B": math.log(0.7), "C": math.log(0.1)}
    with chat_server(lambda request, n: completion("B", tokens=[[spread]])) as heard:
        (judged,) = remote(heard.url, partial_credit=PARTLY).score(ROLLOUTS[:1], WORDS)
    assert judged.score == pytest.approx(0.1) and judged.progress == pytest.approx(0.45) and not is_success(judged)
    assert "B. The arm is near the block.\n" in told(heard.requests[0])
    with chat_server(lambda request, n: completion("B. near")) as heard:
        (judged,) = remote(heard.url, partial_credit=PARTLY).score(ROLLOUTS[:1], WORDS)
    assert judged.score == pytest.approx(0.5 / 6.5) and judged.progress == pytest.approx((0.5 * 5.5 + 0.5) / 6.5)
    assert judged.votes == (0.0,) * 5


YES = completion("Yes")
HOSTILE = {
    "hangs": Said(delay_s=30.0), "too late": Said(YES.body, delay_s=1.5), "dies": Said(drop=True),
    "refuses": Said(b'{"error": "no"}', 400), "is overloaded": Said(b"", 503), "answers HTML": Said(b"<html>"),
    "answers another object": Said(b'{"object": "list", "data": []}'), "answers nothing": completion(""),
    "answers cut JSON": Said(YES.body[:-9]), "never stops": Said(b" " * (openai_client.MAX_ANSWER_BYTES + 9)),
    "talks": completion("I would rather speak of yes and no."), "says both": completion("Yes or No"),
    "lies about numbers": completion("maybe", tokens=[[{"Yes": 0.9, "No": 0.1}]]),
    "redirects": Said(status=307, headers={"Location": "http://127.0.0.1:1/"}),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_server_gives_no_verdict_in_time_and_is_counted(fault: str) -> None:
    start = time.monotonic()
    with chat_server(lambda request, n: HOSTILE[fault]) as heard:
        judge = remote(heard.url, timeout_s=0.5, retries=1)
        found = judge.score(ROLLOUTS, WORDS)
        logits = judge.success_logits(ROLLOUTS, WORDS)
    assert time.monotonic() - start < 10.0
    assert [j.score for j in found] == [None] * 3 and np.isnan(logits).all()
    assert all(j.detail.startswith(judge.name) and len(j.detail) < 800 for j in found), found[0].detail
    assert "6 of 6 rollouts without a verdict" in judge.spent


def test_a_dead_server_and_one_that_dies_in_between() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    judge = remote(f"http://127.0.0.1:{port}/v1", retries=0)
    assert all(j.score is None and "cannot be asked" in j.detail for j in judge.score(ROLLOUTS, WORDS))
    with chat_server(lambda request, n: YES if n < 5 else Said(drop=True)) as heard:
        found = remote(heard.url, retries=0, concurrency=1).score(ROLLOUTS, WORDS)
    assert [j.score is None for j in found] == [False, True, True] or [j.score is None for j in found] == [True] * 3
    assert all(j.score is None or j.score > 0.5 for j in found), "what was answered before counts, if it is enough"


def test_some_unreadable_votes_are_left_out_and_too_many_are_no_verdict() -> None:
    texts = iter(["Yes", "hm", "Yes", "Yes", "hm", "Yes", "hm", "hm", "hm", "Yes"])
    with chat_server(lambda request, n: completion(next(texts))) as heard:
        judge = remote(heard.url, concurrency=1)
        (good,), (bad,) = judge.score(ROLLOUTS[:1], WORDS), judge.score(ROLLOUTS[:1], WORDS)
    assert good.votes == (1.0, 1.0, 1.0) and good.score == pytest.approx(3.5 / 4)
    assert bad.score is None and "2 of 5 answers could be read as one of Yes, No, 3 are needed" in bad.detail


def test_no_verdict_of_one_judge_is_neither_failure_nor_success_of_all() -> None:
    class Sure:
        name = "sure"

        def score(self, frames: np.ndarray, instruction: str, facts: object = None) -> list[Judgement]:
            return [Judgement(0.9)] * len(frames)
    with chat_server(lambda request, n: Said(b"garbage")) as heard:
        both = Consensus((Sure(), remote(heard.url)))
        for found in (both.score(ROLLOUTS, WORDS), both.confirm(ROLLOUTS, WORDS)):
            assert all(j.score is None and j.members[0] == ("sure", 0.9) and j.members[1][1] is None for j in found)


def test_where_only_yes_or_no_is_asked_the_dear_judge_is_asked_about_successes_alone() -> None:
    class Bright:
        name = "bright"

        def score(self, frames: np.ndarray, instruction: str, facts: object = None) -> list[Judgement]:
            return [Judgement(0.9 if f.mean() > 100 else 0.1) for f in frames]
    said = completion("Yes", tokens=[[{"Yes": -0.1, "No": -3.0}]])
    with chat_server(lambda request, n: said) as heard:
        found = Consensus((Bright(), remote(heard.url))).confirm(ROLLOUTS, WORDS)
    assert len(heard.requests) == 2 and [is_success(j) for j in found] == [False, True, True]


@pytest.mark.parametrize(("text", "label"), [
    ("Yes", 0), ("yes.", 0), ("No, it did not move.", 1), ("No. Yes, blurred.", None), ("**No**", 1),
    ('{"done": "Yes"}', 0), ("I see the arm.\nAnswer: No", 1), ("Looking closely, the final answer is: Yes", 0),
    ("Yesterday", None), ("", None), ("Yes or No", None), ("either yes or no", None), ("Nothing", None),
    ("It is not clear", None), ("  \n ", None)])
def test_labels_of_yes_and_no(text: str, label: int | None) -> None:
    assert read_label(text, ("Yes", "No")) == label


@pytest.mark.parametrize(("text", "label"), [
    ("A", 0), ("C.", 2), ("B) near it", 1), ("A robot arm is seen", None), ("The arm is near.\n\nB", 1), ("a", None),
    ("Answer: **C**", 2), ("I choose C", None), ("D", None)])
def test_labels_that_are_letters(text: str, label: int | None) -> None:
    assert read_label(text, ("A", "B", "C")) == label


@pytest.mark.parametrize(("tokens", "p"), [
    ([{"Yes": -0.2231, "No": -1.6094}], 0.8), ([{"\n": -0.01}, {" yes": -0.2231, "no": -1.6094}], 0.8),
    ([{"Yes": -0.9163, "YES": -0.9163, "N": -1.6094}], 0.8), ([{"Yes": -0.0001, "Sure": -9.5}], 0.9999),
    ([{"The": -0.1, "Yes": -2.5}], None), ([], None), ([{}], None), ([{"I": -0.6, "Yes": -1.0, "No": -3.0}], None)])
def test_the_answering_token_is_read(tokens: list[dict[str, float]], p: float | None) -> None:
    logs = label_logs(Choice("", tuple(tokens)), ("Yes", "No"))
    if p is None:
        assert logs is None
    else:
        assert logs is not None and 1 / (1 + math.exp(logs[1] - logs[0])) == pytest.approx(p, abs=1e-3)


def test_what_the_caller_did_wrong_is_raised_before_anything_is_asked() -> None:
    judge = remote("http://127.0.0.1:1/v1")
    with pytest.raises(BadInstruction):
        judge.score(ROLLOUTS, " ")
    with pytest.raises(BadFrame):
        judge.score(ROLLOUTS[0], WORDS)
    assert judge.score(ROLLOUTS[:0], WORDS) == [] and "0 requests" in judge.spent
    for wrong in ({"votes": 0}, {"timeout_s": 0}, {"concurrency": 0}, {"temperature": 3.0}):
        with pytest.raises(BadConfig, match=next(iter(wrong))):
            RemoteConfig.from_dict({"model": "http://a/v1", **wrong})


def test_the_folder_of_a_judge_holds_its_settings_and_no_key(tmp_path: Path) -> None:
    judge = RemoteJudge.from_pretrained("https://vlm.example/v1#big", {"WORLD_GYMNAST_API_KEY": "secret-7"}, votes=3)
    judge.calibrate(0.5, -1.0)
    judge.save(tmp_path / "mine")
    text = (tmp_path / "mine" / "config.json").read_text()
    assert "secret-7" not in text and json.loads(text)["model"] == "https://vlm.example/v1#big"
    again = RemoteJudge.from_pretrained(tmp_path / "mine", {})
    assert (again.config.votes, again.config.logit_scale, again.config.logit_offset) == (3, 0.5, -1.0)
    assert again.name == judge.name == "big@vlm.example/v1"


@contextmanager
def transformers_serve(folder: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The library's own server for one model, as a process; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1",
               "--port", str(port), "--device", "cpu"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT,
                                   env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield process, f"http://127.0.0.1:{port}/v1#{folder}"
    finally:
        process.kill()
        process.wait()


def make_it_say(folder: Path, word: str) -> None:
    """Change a tiny LLaVA so that it writes nothing but `word`: no layer adds anything, and the head knows one row."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name or "embed_tokens" in name else 0.0)
        model.model.multi_modal_projector.linear_2.bias.fill_(1.0)
        model.lm_head.weight[AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(word)] = 1.0
    model.save_pretrained(folder)


def test_a_real_transformers_serve(tmp_path: Path) -> None:
    """It ignores `n` and `logprobs` and answers 200, so votes are fetched one by one. Killed, it gives no verdict."""
    lacking = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"transformers serve needs {', '.join(lacking)}, which are not installed")
    from tiny_vlm import LLAVA, write_tiny_vlm
    folder = write_tiny_vlm(tmp_path / "tiny", LLAVA)
    settings = {"frames": 2, "frame_px": 32, "votes": 3, "timeout_s": START_S, "max_tokens": 4, "retries": 1}
    for word, score in (("Yes", 3.5 / 4), ("No", 0.5 / 4), ("drawer", None)):
        make_it_say(folder, word)
        with transformers_serve(folder, tmp_path / "log") as (process, url):
            judge = RemoteJudge.from_pretrained(url, {}, **settings)
            found = judge.score(ROLLOUTS, WORDS)
            assert [j.score for j in found] == [score if score is None else pytest.approx(score)] * 3, found[0].detail
            cost = judge.client.cost
            assert cost.requests == 3 * 3, "the first vote, two that became one, the third"
            assert cost.failures == 0
            assert cost.prompt_tokens > 0 and cost.completion_tokens == 4 * cost.requests
            if word == "drawer":
                assert "0 of 3 answers could be read" in found[0].detail
                process.kill()
                process.wait()
                assert all(j.score is None and "cannot be asked" in j.detail for j in judge.score(ROLLOUTS, WORDS))
