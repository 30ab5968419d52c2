"""`POST /act`: a real server on a free port against hostile clients, and the client against hostile servers."""
from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_server import serving

from world_gymnast_ros.cli import main
from world_gymnast_ros.cli import serve as cli_serve
from world_gymnast_ros.errors import (
    AdapterMismatch,
    BadConfig,
    BadInstruction,
    BadPayload,
    RemotePolicyError,
    WrongConvention,
)
from world_gymnast_ros.serving.client import MAX_ANSWER_BYTES, HttpPolicy
from world_gymnast_ros.serving.http_server import MAX_CONNECTIONS, ModelServer, is_loopback
from world_gymnast_ros.serving.json_numpy import MAX_BODY_BYTES, decode_array, encode_array
from world_gymnast_ros.serving.server import PolicyService
from world_gymnast_ros.types import ActionChunk as Chunk
from world_gymnast_ros.types import AdapterRef, Frame

RGB = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
FRAME = Frame(RGB, 123)
WORDS = "reach the red block"


class NumbersPolicy:
    """Moves by what it sees: the mean of each colour, and the length of the instruction."""

    name, chunk_size = "numbers", 3

    def __init__(self) -> None:
        self.fail: Callable[[], None] = lambda: None

    def act(self, frame: Frame, instruction: str) -> Chunk:
        self.fail()
        if "unicorn" in instruction:
            raise BadInstruction("the model does not know the word 'unicorn'; it knows: block")
        deltas = np.zeros((3, 7), np.float32)
        deltas[:, :3] = frame.rgb.mean((0, 1)) / 255 * 0.05 * np.arange(1, 4)[:, None] / 3
        deltas[:, 3], deltas[:, 6] = len(instruction) / 100, 1.0
        return Chunk(deltas, frame.stamp_ns, "mine")


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with serving(PolicyService(NumbersPolicy(), "mine")) as it:
        yield it


@pytest.fixture()
def policy(server: ModelServer) -> Iterator[NumbersPolicy]:
    yield server.service.policy
    server.service.policy.fail = lambda: None


def ask(server: ModelServer, body: bytes, path: str = "/act", method: str = "POST", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def request(**changes: Any) -> bytes:
    payload = {"image": encode_array(RGB), "instruction": WORDS, **changes}
    return json.dumps({k: v for k, v in payload.items() if v is not None}).encode()


# --- the encoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [RGB, np.float32([[1.5, -2]]), np.zeros((2, 0, 3)), np.float64(7.5).reshape(())])
def test_arrays_survive_the_way(array: np.ndarray) -> None:
    back = decode_array(json.loads(json.dumps(encode_array(array))), "x")
    assert back.dtype == array.dtype and back.shape == array.shape and (back == array).all()


def test_a_slice_is_sent_in_c_order() -> None:
    assert (decode_array(encode_array(RGB[::2, :, ::-1]), "x") == RGB[::2, :, ::-1]).all()


GOOD = encode_array(np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize(("change", "says"), [
    ({"dtype": "|O"}, "dtype '|O'"), ({"dtype": "object"}, "object"), ({"dtype": "<i8"}, "<i8"),
    ({"dtype": [["a", "|O"]]}, "dtype"), ({"dtype": ">f8"}, ">f8"), ({"dtype": "|V4"}, "V4"), ({"dtype": 3}, "dtype"),
    ({"shape": [2, 3]}, "needs 6"), ({"shape": [2, -2]}, "whole numbers"), ({"shape": [2.0, 2]}, "whole numbers"),
    ({"shape": [True, 4]}, "whole numbers"), ({"shape": "22"}, "whole numbers"), ({"shape": [1] * 5 + [4]}, "at most"),
    ({"shape": [2**22] * 4}, "needs 309485009821345068724781056"), ({"__numpy__": "????"}, "base64"),
    ({"__numpy__": "AAA"}, "base64"), ({"__numpy__": 7}, "base64 string"), ({"__numpy__": "\u00e9AAA"}, "base64"),
])
def test_arrays_that_lie_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadPayload, match=r"^x (has|holds|is)") as error:
        decode_array({**GOOD, **change}, "x")
    assert says in str(error.value)


def test_integers_are_not_sent() -> None:
    with pytest.raises(BadPayload, match="int64"):
        encode_array(np.arange(3))


# --- the server -------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_chunk_in_the_encoding_of_the_request(server: ModelServer) -> None:
    status, answer = ask(server, request(unnorm_key="bridge_orig", proprio=encode_array(np.zeros(8))))
    wanted = NumbersPolicy().act(FRAME, WORDS).deltas
    assert status == 200 and answer["dtype"] == "<f4" and answer["shape"] == [3, 7]
    assert (decode_array(answer, "answer") == wanted).all()
    status, twice = ask(server, json.dumps({"encoded": request().decode()}).encode())  # as OpenVLA's server takes it
    assert status == 200 and (decode_array(json.loads(twice), "answer") == wanted).all()


def test_the_first_action_alone(policy: NumbersPolicy) -> None:
    with serving(PolicyService(policy, first_action=True)) as single:
        status, answer = ask(single, request())
        assert status == 200 and answer["shape"] == [7]
        chunk = HttpPolicy(single.url, 5.0).act(FRAME, WORDS)
        assert chunk.deltas.shape == (1, 7) and chunk.adapter == "remote/mine"


def test_health_says_what_the_numbers_mean(server: ModelServer) -> None:
    status, told = ask(server, b"", "/health", "GET")
    assert status == 200 and told["status"] == "healthy" and told["policy"] == "numbers" and told["adapter"] == "mine"
    assert told["temperature"] == 0 and told["chunk_size"] == 3 and told["dt_s"] == 0.2
    assert "1 open" in told["convention"]["gripper"] and "m," in told["convention"]["dx dy dz"]
    assert ask(server, b"", "/reset")[0] == 200


MARK = Path("/nonexistent")


def short(value: Any) -> str | None:
    """A name for a test case that does not hold its megabytes."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else None


class Bomb:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return MARK.touch, ()


@pytest.mark.parametrize(("body", "status", "says"), [
    (b"", 400, "not JSON"), (b"{", 400, "not JSON"), (b"[]", 400, "an object"), (b"\xff\xfe", 400, "not JSON"),
    (b'{"a": ' * 5000, 400, "not JSON"), (b"[" * 200_000, 400, "not JSON"), (b'{"image": NaN}', 400, "NaN"),
    (b'{"image": ' + b"9" * 5000 + b"}", 400, "not JSON"), (b'{"encoded": "{"}', 400, "'encoded'"),
    (request(image=None), 400, "no image"), (request(instruction=None), 400, "instruction is 'None'"),
    (request(instruction=""), 400, "say what to do"), (request(instruction="  "), 400, "say what to do"),
    (request(instruction=["reach"]), 400, "say what to do"), (request(instruction="a" * 1001), 400, "limit is 1000"),
    (request(instruction="reach the unicorn"), 400, "unicorn"), (request(image=RGB.tolist()), 400, "json_numpy"),
    (request(image=encode_array(RGB.astype(np.float32))), 400, "float32"),
    (request(image=encode_array(RGB[..., 0])), 400, "(48, 64)"),
    (request(image=encode_array(RGB[:, :, :2])), 400, "(48, 64, 2)"),
    (request(image=encode_array(RGB[:4])), 400, "16 to 4096"),
    (request(image=encode_array(np.zeros((0, 64, 3), np.uint8))), 400, "16 to 4096"),
    (request(image={**encode_array(RGB), "shape": [480, 640, 3]}), 400, "needs 921600"),
    (request(image={"__numpy__": base64.b64encode(pickle.dumps(Bomb())).decode(), "dtype": "|O", "shape": [1]}), 400,
     "dtype '|O'"),
    (pickle.dumps(Bomb()), 400, "not JSON"), (b" " * (MAX_BODY_BYTES + 1), 413, f"limit is {MAX_BODY_BYTES}"),
], ids=short)
def test_malformed_requests_are_refused_with_a_reason(
    server: ModelServer, body: bytes, status: int, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "MARK", tmp_path / "boom")
    got, answer = ask(server, body)
    assert got == status and says in answer["error"] and "\n" not in answer["error"] and len(answer["error"]) < 400
    assert not (tmp_path / "boom").exists()
    assert ask(server, request())[0] == 200


@pytest.mark.parametrize(("path", "method", "headers", "status", "says"), [
    ("/act", "POST", {"Content-Type": "text/plain"}, 415, "application/json"),
    ("/act", "POST", {"Content-Type": "application/octet-stream"}, 415, "octet-stream"),
    ("/act", "POST", {"Transfer-Encoding": "chunked"}, 411, "Content-Length"),
    ("/act", "POST", {"Content-Length": "-5"}, 411, "Content-Length"),
    ("/act", "POST", {"Content-Length": "9" * 11}, 413, "limit"),
    ("/act", "POST", {"Content-Length": "9" * 30}, 411, "Content-Length"),
    ("/act", "GET", {}, 405, "POST /act"), ("/health", "POST", {}, 405, "GET /health"),
    ("/etc/passwd", "GET", {}, 404, "/etc/passwd"), ("/act?x=1", "POST", {}, 404, "POST /act"),
    ("/act", "DELETE", {}, 501, "DELETE"), ("/act", "OPTIONS", {}, 501, "OPTIONS"),
])
def test_other_requests_are_refused_with_a_status(
    server: ModelServer, path: str, method: str, headers: dict[str, str], status: int, says: str
) -> None:
    got, answer = ask(server, request(), path, method, **headers)
    assert got == status and says in answer["error"]


def test_a_connection_is_kept_and_a_request_that_breaks_off_harms_nobody(server: ModelServer) -> None:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    with contextlib.closing(connection):
        for body, wanted in ((request(), 200), (request(instruction=""), 400), (request(), 200)):
            connection.request("POST", "/act", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == wanted and response.read()
    with socket.create_connection(server.server_address[:2]) as half:
        half.sendall(b"POST /act HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
    with socket.create_connection(server.server_address[:2], timeout=5) as noise:
        noise.sendall(b"\x00\x01\x02 nonsense\r\n\r\n")
        assert b"error" in noise.recv(4096)
    assert ask(server, request())[0] == 200


def test_too_many_connections_are_turned_away() -> None:
    with serving(PolicyService(NumbersPolicy())) as server, contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection(server.server_address[:2]))
        late = stack.enter_context(socket.create_connection(server.server_address[:2], timeout=5))
        assert b"503" in late.recv(4096)


@pytest.mark.parametrize("what", ["raises", "nan"])
def test_a_policy_that_fails_is_a_500_and_the_server_goes_on(
    server: ModelServer, policy: NumbersPolicy, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "raises":
        policy.fail = lambda: 1 / 0
    else:
        monkeypatch.setattr(policy, "act", lambda frame, _: Chunk(np.full((3, 7), np.nan, np.float32), 0))
    status, answer = ask(server, request())
    assert status == 500 and ("ZeroDivisionError" if what == "raises" else "non-finite") in answer["error"]
    monkeypatch.undo()
    policy.fail = lambda: None
    assert ask(server, request())[0] == 200


def test_requests_at_once_get_each_their_own_answer(server: ModelServer) -> None:
    answers: dict[int, Any] = {}

    def one(i: int) -> None:
        answers[i] = HttpPolicy(server.url, 20.0).act(Frame(np.full((48, 64, 3), i, np.uint8), i), WORDS)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        wanted = NumbersPolicy().act(Frame(np.full((48, 64, 3), i, np.uint8), i), WORDS)
        assert (answers[i].deltas == wanted.deltas).all() and answers[i].frame_stamp_ns == i


def test_what_is_local() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "robot", "192.168.0.3", ""))


def test_unless_told_otherwise_only_this_machine_is_served() -> None:
    parser = argparse.ArgumentParser()
    cli_serve.add_arguments(parser)
    assert is_loopback(parser.parse_args([]).host)
    with ModelServer(PolicyService(NumbersPolicy()), port=0) as server:
        assert is_loopback(str(server.server_address[0]))


def test_a_port_in_use_is_named(server: ModelServer) -> None:
    with pytest.raises(BadConfig, match="choose another with --port"):
        ModelServer(PolicyService(NumbersPolicy()), port=server.server_port)


# --- the client -------------------------------------------------------------------------------------------------------


def test_the_round_trip_equals_the_policy_itself(server: ModelServer) -> None:
    far, near = HttpPolicy(server.url + "/act", 5.0), NumbersPolicy()
    for frame in (FRAME, Frame(RGB[:, ::-1], 5), Frame(np.zeros((480, 640, 3), np.uint8), 7)):
        got, wanted = far.act(frame, WORDS), near.act(frame, WORDS)
        assert (got.deltas == wanted.deltas).all() and got.deltas.dtype == np.float32
        assert got.frame_stamp_ns == frame.stamp_ns and got.adapter == "remote/mine" and far.chunk_size == 3


def test_the_server_s_refusal_is_told(server: ModelServer, policy: NumbersPolicy) -> None:
    with pytest.raises(RemotePolicyError, match="answered 400: the model does not know the word 'unicorn'"):
        HttpPolicy(server.url, 5.0).act(FRAME, "reach the unicorn")
    policy.fail = lambda: 1 / 0
    with pytest.raises(RemotePolicyError, match="answered 500: the policy failed"):
        HttpPolicy(server.url, 5.0).act(FRAME, WORDS)


@pytest.mark.parametrize("url", [
    "", "robot:8000", "ftp://robot", "http://", "http://:8000", "http://robot:0", "http://robot:99999",
    "http://me:secret@robot", "http://robot/?a=1", "http://robot/a b", "http://robot/\r\nX: 1", "http://[::1"])
def test_an_address_that_cannot_be_is_refused_at_once(url: str) -> None:
    with pytest.raises(BadConfig, match="policy_url"):
        HttpPolicy(url, 1.0)


@pytest.mark.parametrize("ref", [None, AdapterRef("a", Path("a"), "0" * 64, "base", "toy")])
def test_a_server_of_one_adapter_is_not_made_to_act_with_another(server: ModelServer, ref: AdapterRef | None) -> None:
    with pytest.raises(AdapterMismatch, match="cannot be changed from here"):
        HttpPolicy(server.url, 20.0).load_adapter(ref)
    assert ask(server, request(adapter="0" * 64))[0] == 400, "nor is a request that names one acted on with another"


@contextmanager
def lying(answer: bytes, status: int = 200, drip_s: float = 0.0) -> Iterator[str]:
    """A server that answers these bytes to everything, slowly if asked."""
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.end_headers()
                for i in range(len(answer) if drip_s else 1):
                    self.wfile.write(answer[i:i + 1] if drip_s else answer)
                    self.wfile.flush()
                    time.sleep(drip_s)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def chunk_of(value: float, column: int, shape: tuple[int, ...] = (4, 7), kind: Any = np.float32) -> bytes:
    array = np.zeros(shape, kind)
    array[..., column] = value
    return json.dumps(encode_array(array)).encode()


@pytest.mark.parametrize(("answer", "status", "says"), [
    (chunk_of(np.nan, 0), 200, "non-finite"), (chunk_of(-np.inf, 6), 200, "non-finite"),
    (chunk_of(1e30, 1), 200, "dx dy dz holds 1e+30"), (chunk_of(-0.6, 2), 200, "another convention"),
    (chunk_of(-9, 4), 200, "droll"), (chunk_of(-1, 6), 200, "gripper holds -1"), (chunk_of(1e300, 3, kind=float), 200,
                                                                                    "droll"),
    (chunk_of(0, 0, (4, 6)), 200, "(4, 6)"), (chunk_of(0, 0, (65, 7)), 200, "(65, 7)"),
    (chunk_of(0, 0, (0, 7)), 200, "(0, 7)"), (chunk_of(0, 0, (2, 4, 7)), 200, "(2, 4, 7)"),
    (chunk_of(0, 0, kind=np.uint8), 200, "uint8"), (b"null", 200, "NoneType"),
    (b'"words"', 200, "the server says 'words'"), (b'"error"', 200, "the server says 'error'"),
    (b'{"error": "proprio is\\nmissing"}', 200, "says 'proprio is missing'"),
    (b'{"result": 1}', 200, "json_numpy"), (b'[{"__numpy__": "x"}]', 200, "the answer must be"),
    (b"[[1, 2], [3]]", 200, "not of actions"), (b'["a"]', 200, "not of actions"), (b"[[1, NaN]]", 200, "NaN"),
    (b"not json", 200, "not JSON"), (b"", 200, "not JSON"), (chunk_of(0, 0)[:-9], 200, "not JSON"),
    (b"x" * (MAX_ANSWER_BYTES + 9), 200, "no chunk"), (chunk_of(0, 0), 302, "answered 302"),
    (b'{"detail": "model\\nnot loaded"}', 503, "answered 503: model not loaded"), (b"\xff", 500, "answered 500"),
], ids=short)
def test_a_lying_server_gives_an_error_and_no_chunk(answer: bytes, status: int, says: str) -> None:
    with lying(answer, status) as url, pytest.raises((RemotePolicyError, WrongConvention)) as error:
        HttpPolicy(url, 5.0).act(FRAME, WORDS)
    assert says in str(error.value) and url in str(error.value) and len(str(error.value)) < 500


ONE = chunk_of(1, 6, (7,), float)


@pytest.mark.parametrize("answer", [
    b"[0, 0, 0, 0, 0, 0, 1]", b"[[0, 0, 0, 0, 0, 0, 1]]", ONE, b"[" + ONE + b"]",  # OpenVLA-OFT: a list of arrays
    json.dumps(ONE.decode()).encode(), b'"[[0, 0, 0, 0, 0, 0, 1]]"',  # OpenVLA: encoded twice
    b'{"action": [0, 0, 0, 0, 0, 0, 1]}', b'{"actions": ' + ONE + b"}"], ids=short)
def test_other_servers_forms_of_an_action_are_read(answer: bytes) -> None:
    with lying(answer) as url:
        chunk = HttpPolicy(url, 5.0).act(FRAME, WORDS)
    assert chunk.deltas.tolist() == [[0, 0, 0, 0, 0, 0, 1]] and chunk.adapter == "remote"


def test_the_arms_state_is_sent_where_it_is_known(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies such as pi0 act on it; ours passes it by."""
    sent: list[dict[str, Any]] = []

    def post(self: HttpPolicy, body: bytes) -> tuple[int, bytes, str]:
        sent.append(json.loads(body))
        return 200, ONE, ""

    state = np.arange(7, dtype=np.float32)
    got = HttpPolicy(server.url, 5.0).act(FRAME, WORDS, state)
    assert (got.deltas == NumbersPolicy().act(FRAME, WORDS).deltas).all()
    monkeypatch.setattr(HttpPolicy, "_post", post)
    HttpPolicy(server.url, 5.0).act(FRAME, WORDS, state)
    HttpPolicy(server.url, 5.0).act(FRAME, WORDS)
    np.testing.assert_array_equal(decode_array(sent[0]["proprio"], "proprio"), state)
    assert sent[1].keys() == {"image", "instruction"}


@pytest.mark.parametrize("drip_s", [0.3, 30.0])
def test_a_slow_server_is_given_up(drip_s: float) -> None:
    """Byte by byte too: the limit is for the whole answer."""
    start, answer = time.monotonic(), chunk_of(0, 0)
    with lying(answer, drip_s=drip_s) as url, pytest.raises(RemotePolicyError, match=r"within 0\.4 s"):
        HttpPolicy(url, 0.4).act(FRAME, WORDS)
    assert time.monotonic() - start < 0.5 * drip_s * len(answer), "before the whole answer was there"


def test_a_dead_server_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(RemotePolicyError, match=f"127.0.0.1:{port}/act cannot be asked .ConnectionRefused"):
        HttpPolicy(f"http://127.0.0.1:{port}", 2.0).act(FRAME, WORDS)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(RemotePolicyError, match="gave no answer"):
        HttpPolicy(f"http://127.0.0.1:{mute.getsockname()[1]}", 0.2).act(FRAME, WORDS)


# --- the verb, and the node -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "says"), [
    (["--port", "70000"], "--port is '70000'"), (["--policy", "/nowhere"], "/nowhere"), (["--host", ""], "--host"),
    (["--adapter", "/nowhere"], "/nowhere"), (["--device", "gpu9"], "give cpu"),
])
def test_refusals_are_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and says in error[0]


@contextmanager
def served(*words: str, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`world-gymnast serve` as a process; its address."""
    command = [sys.executable, "-m", "world_gymnast_ros.cli", "serve", "--port", "0", "--threads", "1", *words]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while "/act" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process, log.read_text().rstrip().rpartition(" ")[2]
    finally:
        process.kill()
        process.wait()


@pytest.mark.ros
def test_a_policy_in_another_process_drives_the_arm_until_it_dies(tmp_path: Path) -> None:
    """policy_node without weights, an arm that sends nothing to any driver, and the served toy policy."""
    pytest.importorskip("rclpy")
    import torch
    from ros_tools import client, running
    from test_policy_node import TOY

    from world_gymnast_ros.models.policies.openvla import OpenVLA, OpenVLAConfig, OpenVLAForActionPrediction
    from world_gymnast_ros.nodes import base, convert, graph

    torch.manual_seed(0)
    toy = OpenVLA(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)), base_hash="toy")
    toy.save(tmp_path / "toy")
    patient = {"max_arm_age_s": 1.0, "max_frame_age_s": 5.0, "max_action_age_s": 10.0, "command_timeout_s": 1.5}
    with served("--policy", str(tmp_path / "toy"), log=tmp_path / "serve.log") as (process, url):
        arm = graph.ARM.with_overrides(dry_run=True, **patient)
        node = graph.POLICY.with_overrides(policy_url=url, policy_timeout_s=4.0, instruction=WORDS,
                                           max_frame_age_s=3.0, retry_s=5.0)
        with client() as c, running([arm, node], tmp_path) as nodes:
            steps, told = c.hear("step", convert.StepMsg), c.hear("/diagnostics", convert.DiagnosticArray)
            chunks, status = c.hear("action_chunk", convert.ActionChunkMsg), c.hear("arm_status", convert.ArmStatusMsg,
                                                                                    base.LATCHED)
            images = c.create_publisher(convert.Image, "image_raw", base.NEWEST_RELIABLE)
            shown: dict[int, np.ndarray] = {}

            def show() -> None:
                stamp_ns, rgb = time.time_ns(), np.roll(RGB, len(shown), 0)  # one still image is a frozen camera
                shown[stamp_ns] = rgb
                images.publish(convert.image_from_rgb(rgb, stamp_ns, "cam"))

            c.create_timer(0.1, show)

            def fault() -> str:
                return next((m.status[0].message for m in reversed(told) if m.status[0].name == "policy_node"), "")

            c.until(fault, "the policy", check=nodes.check)
            c.arm()
            c.until(lambda: len(steps) > toy.chunk_size, "steps of two chunks", check=nodes.check)
            loaded = Path(f"/proc/{nodes.nodes['policy_node'].process.pid}/maps").read_text()
            assert "libtorch" not in loaded  # the robot's machine needs none
            wanted = toy.act(Frame(shown[convert.to_ns(chunks[0].frame_stamp)], 0), WORDS).deltas
            got = np.array(chunks[0].deltas, np.float32).reshape(-1, 7)
            assert np.allclose(got, wanted, atol=1e-6) and chunks[0].adapter == "remote/base"
            assert steps[0].adapter == "remote/base" and steps[0].instruction == WORDS

            c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.AdapterMsg(name="other", path="/x",
                                                                              sha256="0" * 64))
            c.until(lambda: any(v.key == "adapters_refused" and v.value == "1" for m in told for s in m.status
                                for v in s.values), "the refusal")
            assert "cannot be changed from here" in (tmp_path / "policy_node.log").read_text()
            assert chunks[-1].adapter == "remote/base"

            process.kill()
            c.until(lambda: "cannot be asked" in fault() and url in fault(), "the fault", check=nodes.check)
            c.until(lambda: "no chunk" in status[-1].reason, "the arm to hold its place")
            heard = len(chunks)
            c.spin(0.5)
            assert len(chunks) == heard
            for walk in ("go_home", "go_to_capture"):
                refused = c.trigger(walk)
                assert not refused.success and "dry run: nothing is sent to the arm, so it" in refused.message
            assert c.trigger("disarm").success
