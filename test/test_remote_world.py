"""A world model on a server: equal frames; however a server fails, a session ends without a verdict."""
from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_server import serving
from PIL import Image
from test_worldgym import world as worldgym

from world_gymnast_ros.adaptation.config import AdaptConfig
from world_gymnast_ros.adaptation.jitter import jitter_start
from world_gymnast_ros.adaptation.log import Outcome, StopKind
from world_gymnast_ros.adaptation.session import adapt
from world_gymnast_ros.cli import main
from world_gymnast_ros.errors import BadConfig, RemoteModelError
from world_gymnast_ros.loading.load import frame_size, load_world_model
from world_gymnast_ros.loading.release import release_file, release_table
from world_gymnast_ros.robot.actions import RobotLimits, StepLimits, Workspace
from world_gymnast_ros.serving.remote_world import RemoteWorld
from world_gymnast_ros.serving.tensors import SAFETENSORS, pack, unpack
from world_gymnast_ros.serving.world_server import MAX_OPEN, WorldService
from world_gymnast_ros.testing.fakes import FakeJudge, FakeLearner, FakePolicy, FakeWorldModel, start_frame
from world_gymnast_ros.types import Frame, RolloutBatch, Start, WorldModel

WORDS = "put the eggplant in the sink"
STATE = np.array([0.28, 0.02, 0.1, 0.0, 0.0, 0.0, 1.0], np.float32)


def camera(seed: int = 0) -> Frame:
    return Frame(np.random.default_rng(seed).integers(0, 256, (120, 160, 3), np.uint8), 7)


def actions(copies: int, steps: int) -> np.ndarray:
    deltas = np.random.default_rng(3).uniform(-0.04, 0.04, (copies, steps, 7)).astype(np.float32)
    deltas[..., 6] = 1.0
    return deltas


class SeesEverything:
    """Draws what it was told: means of frame and captured frame, the state, the instruction's length, the actions."""

    name, frame_size, stride, max_step = "sees everything", (8, 8), 1, (0.05, 0.25)

    def begin(self, starts: Sequence[Start], seed: int) -> RolloutBatch:
        told = [[s.frame.rgb.mean(), s.captured.rgb.shape[0], s.captured.rgb[..., 0].mean(), seed % 251,
                 len(s.instruction), 9 if s.state is None else 100 * s.state[0]] for s in starts]
        return _Told(np.array(told))


class _Told:
    def __init__(self, told: np.ndarray) -> None:
        self.told = told

    def play(self, deltas: np.ndarray) -> np.ndarray:
        frames = np.zeros((*deltas.shape[:2], 8, 8, 3), np.uint8)
        frames[:, :, 0, :6, 0] = self.told[:, None]
        frames[:, :, 1, :7, 1] = np.round(1000 * np.abs(deltas))
        return frames

    def keep(self, copies: np.ndarray) -> None:
        self.told = self.told[copies]


WORLDS = {"sees everything": SeesEverything, "fake": FakeWorldModel, "worldgym": worldgym, "tiny": load_world_model}


@pytest.mark.parametrize("which", WORLDS)
def test_frames_equal_those_of_the_same_model_here(which: str) -> None:
    world: WorldModel = WORLDS[which]()
    jittered = jitter_start(Start(camera(), STATE, "reach the red block"), 5, 0.02, 0.05)
    starts = [jittered, jittered, Start(camera(1), STATE, WORDS), Start(camera(2), STATE + 0.01, WORDS, camera(3))]
    if which != "tiny":  # one arm that is unknown makes all objects unknown there
        starts.append(Start(camera(2), None, WORDS))
    deltas = actions(len(starts), 4)
    with serving(WorldService(world)) as server:
        far = RemoteWorld(server.url)
        assert (far.frame_size, far.stride, far.max_step) == (world.frame_size, world.stride, world.max_step)
        here, there = world.begin(starts, 11), far.begin(starts, 11)
        assert (there.play(deltas[:, :2]) == here.play(deltas[:, :2])).all()
        left = np.array([0, 2, 3])
        for rollouts in (here, there):
            rollouts.keep(np.array([0, 1, 2, 3]))
            rollouts.keep(left)
        assert (there.play(deltas[left, 2:]) == here.play(deltas[left, 2:])).all()
        other = far.begin(starts, 12).play(deltas[:, :2])
        assert (other == world.begin(starts, 12).play(deltas[:, :2])).all()


def test_a_chunk_of_sixteen_copies_at_256_px_passes() -> None:
    world = SeesEverything()
    world.frame_size = (256, 256)
    starts = [Start(camera(i), STATE, WORDS) for i in range(16)]
    drawn = np.random.default_rng(0).integers(0, 256, (16, 5, 256, 256, 3), np.uint8)

    class Whole(_Told):
        def play(self, deltas: np.ndarray) -> np.ndarray:
            return drawn

    world.begin = lambda starts, seed: Whole(np.zeros((16, 6)))  # type: ignore[method-assign]
    with serving(WorldService(world)) as server:
        seen = RemoteWorld(server.url).begin(starts, 0).play(actions(16, 5))
        assert drawn.nbytes > 15_700_000 and (seen == drawn).all()


def test_dreams_end_once_nobody_holds_them_and_expire_where_nobody_says_so() -> None:
    now = [0.0]
    service = WorldService(FakeWorldModel(), expires_s=60.0, now_s=lambda: now[0])
    start = [Start(start_frame(), None, "go left")]
    with serving(service) as server:
        far = RemoteWorld(server.url)
        rollouts = far.begin(start, 0)
        rollouts.play(actions(1, 1))
        assert service.health()["open"] == 1
        del rollouts
        second = far.begin(start, 0)
        assert service.health()["open"] == 1, "the first was ended with the second's beginning"
        now[0] = 59.0
        second.play(actions(1, 1))
        now[0] = 118.0
        second.play(actions(1, 1))
        now[0] = 179.0
        with pytest.raises(RemoteModelError, match=r"404: no dream .* expired \(60 s without a request\)"):
            second.play(actions(1, 1))
        assert service.health()["open"] == 0
        held = [far.begin(start, i) for i in range(MAX_OPEN)]
        with pytest.raises(RemoteModelError, match=f"503: {MAX_OPEN} dreams are open"):
            far.begin(start, 0)
        held.clear()
        far.begin(start, 0)


def test_actions_that_were_lost_or_came_twice_are_noticed() -> None:
    with serving(WorldService(FakeWorldModel())) as server:
        rollouts = RemoteWorld(server.url).begin([Start(start_frame(), None, "go left")], 0)
        rollouts.play(actions(1, 2))
        rollouts._played = 0
        with pytest.raises(RemoteModelError, match="409: the dream has played 2 actions, the request counts 0"):
            rollouts.play(actions(1, 2))


def test_a_model_that_fails_is_told_and_its_dream_is_over() -> None:
    service = WorldService(FakeWorldModel(fail_after_begins=1))
    with serving(service) as server:
        far = RemoteWorld(server.url)
        rollouts = far.begin([Start(start_frame(), None, "go left")], 0)
        with pytest.raises(RemoteModelError, match="500: the world model failed"):
            far.begin([Start(start_frame(), None, "go left")], 0)
        held = next(iter(service._open.values()))
        held.rollouts.play = lambda deltas: np.zeros((1, 1, 2, 2, 3), np.uint8)  # type: ignore[method-assign]
        with pytest.raises(RemoteModelError, match=r"500: .*it drew uint8 \(1, 1, 2, 2, 3\), expected"):
            rollouts.play(actions(1, 1))
        with pytest.raises(RemoteModelError, match="404: no dream"):
            rollouts.play(actions(1, 1))


GOOD = {"frames": np.zeros((1, 32, 32, 3), np.uint8), "captured.0": np.zeros((9, 9, 3), np.uint8),
        "states": np.zeros((1, 7), np.float32)}
VALUES: dict[str, Any] = {"frame": [0], "captured": [0], "instructions": ["go left"], "seed": 1}


@pytest.mark.parametrize(("path", "body", "status", "says"), [
    ("/begin", b"", 400, "no safetensors"), ("/begin", b"\xff" * 100, 400, "no safetensors"),
    ("/begin", (2).to_bytes(8, "little") + b"{}", 400, "instructions"),
    ("/begin", (4).to_bytes(8, "little") + b"NaN ", 400, "NaN"),
    ("/begin", (99).to_bytes(8, "little") + b"{}", 400, "a header of 99"),
    ("/begin", pack(GOOD, **VALUES)[:-5], 400, "safetensors"),
    ("/begin", pack(GOOD, **{**VALUES, "frame": [1]}), 400, "indices below 1"),
    ("/begin", pack(GOOD, **{**VALUES, "frame": [True]}), 400, "indices below 1"),
    ("/begin", pack(GOOD, **{**VALUES, "instructions": [" "]}), 400, "instruction is empty"),
    ("/begin", pack(GOOD, **{**VALUES, "instructions": [1]}), 400, "list of 1 to"),
    ("/begin", pack(GOOD, **{**VALUES, "seed": -1}), 400, "seed"),
    ("/begin", pack(GOOD, **{**VALUES, "seed": 1.5}), 400, "seed"),
    ("/begin", pack({**GOOD, "frames": GOOD["frames"][:, :16]}, **VALUES), 400, "uint8 (any, 32, 32, 3) is needed"),
    ("/begin", pack({**GOOD, "states": np.zeros((1, 7))}, **VALUES), 400, "float64"),
    ("/begin", pack({**GOOD, "states": np.full((1, 7), np.inf, np.float32)}, **VALUES), 400, "finite"),
    ("/play", pack({"deltas": np.zeros((1, 1, 7), np.float32)}, id="nothing", played=0), 404, "no dream 'nothing'"),
    ("/end", b'{"ids": 3}', 400, "ids of POST /begin"), ("/act", b"", 404, "POST /begin, /play, /end"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_malformed_requests_are_refused_with_a_reason(path: str, body: bytes, status: int, says: str) -> None:
    from http.client import HTTPConnection
    with serving(WorldService(FakeWorldModel())) as server:
        connection = HTTPConnection(*server.server_address[:2], timeout=20)
        kind = "application/json" if path == "/end" else SAFETENSORS
        connection.request("POST", path, body, {"Content-Type": kind})
        response = connection.getresponse()
        told = json.loads(response.read())["error"]
        assert (response.status, says in told) == (status, True), told
        connection.request("POST", "/begin", pack(GOOD, **VALUES), {"Content-Type": "application/json"})
        assert connection.getresponse().status == 415
        connection.close()


def test_keep_is_checked_and_harms_nothing() -> None:
    service = WorldService(FakeWorldModel())
    start = Start(start_frame(), None, "go left")
    with serving(service) as server:
        rollouts = RemoteWorld(server.url).begin([start, start], 0)
        for keep in ([2], [], [-1], [True], [0, 1, 0], "all"):
            body = pack({"deltas": actions(2, 1)}, id=rollouts._key, played=0, keep=keep)
            with pytest.raises(RemoteModelError, match="400: keep is"):
                rollouts._world.post("/play", body, 2**20)
        here = FakeWorldModel().begin([start, start], 0)
        assert (rollouts.play(actions(2, 1)) == here.play(actions(2, 1))).all()


def test_a_robot_that_the_server_does_not_know_is_refused() -> None:
    near, far_ = Workspace((0.1, -0.1, 0.0), (0.3, 0.1, 0.2)), Workspace((0.1, -0.1, 0.0), (0.4, 0.1, 0.2))
    with serving(WorldService(FakeWorldModel(), near)) as server:
        world = RemoteWorld(server.url)
        assert world.limited(RobotLimits(StepLimits(0.03, 0.2), near)).max_step == (0.03, 0.2)
        with pytest.raises(BadConfig, match=r"within .* start the server with this robot's --arm-params"):
            world.limited(RobotLimits(StepLimits(), far_))
        with pytest.raises(BadConfig, match=r"steps of 0\.08 m .* at most 0\.05 m"):
            world.limited(RobotLimits(StepLimits(0.08, 0.25), near))


def test_a_name_with_an_address_is_a_server_s(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(WorldService(FakeWorldModel(), facts={"sha256": {"a": "b"}, "release": ""})) as server:
        world = load_world_model(server.url, limits=RobotLimits(StepLimits(), Workspace((0, 0, 0), (1, 1, 1))))
        assert isinstance(world, RemoteWorld) and world.name.startswith("fake-point-mass@127.0.0.1:")
        assert frame_size(server.url) == (32, 32) and release_table(server.url) == {}
        with pytest.raises(BadConfig, match="beside the weights, on the server's machine"):
            release_file(server.url)
        assert main(["serve", "--world-model", server.url]) == 2
        assert "is a server already" in capsys.readouterr().err


# --- a server that is gone, hangs or lies -----------------------------------------------------------------------------


class Broken(BaseHTTPRequestHandler):
    """Answers as its server's `says` wants: bytes, or 'hang', or 'close'."""

    def do_GET(self) -> None:
        self._say(self.server.says.get(self.path, b""))  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def _say(self, what: Any) -> None:
        if what == "hang":
            self.server.over.wait(30)  # type: ignore[attr-defined]
        if isinstance(what, str):
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(what)))
        self.end_headers()
        self.wfile.write(what)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def broken(says: dict[str, Any]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        server.says, server.over = says, threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.over.set()  # type: ignore[attr-defined]
            server.shutdown()
            thread.join()


HEALTH = {"world_model": "w", "frame_size": [32, 32], "stride": 1, "max_step": [0.05, 0.25]}
BEGUN = json.dumps({"id": "x"}).encode()


def frames(*shape: int, dtype: Any = np.uint8) -> bytes:
    return pack({"frames": np.zeros(shape, dtype)})


@pytest.mark.parametrize(("change", "says"), [
    ({"frame_size": [32]}, "frame_size"), ({"frame_size": [32, 32, 3]}, "frame_size"),
    ({"frame_size": [0, 32]}, "size"),
    ({"frame_size": 32}, "a height and a width"), ({"stride": "4"}, "stride"), ({"max_step": [0.05]}, "max_step"),
    ({"max_step": [float("1e9"), 0.2]}, "max_step"), ({"world_model": ""}, "no name"),
    ({"workspace": [[0], [1]]}, "3 num"),
])
def test_what_describes_no_world_model_is_refused(change: dict[str, Any], says: str) -> None:
    with broken({"/health": json.dumps({**HEALTH, **change}).encode()}) as url, \
            pytest.raises(RemoteModelError, match=says):
        RemoteWorld(url, 5.0)


@pytest.mark.parametrize(("play", "says"), [
    ("hang", "gave no answer within 0.5 s; look at its output"), ("close", "cannot be asked"), (b"", "no safetensors"),
    (b"garbage " * 9, "no safetensors"), (frames(8, 4, 32, 32), "is needed"), (frames(8, 4, 16, 16, 3), "is needed"),
    (frames(8, 4, 32, 32, 3, dtype=np.float32), "is needed"), (frames(99, 4, 32, 32, 3), "expected"),
], ids=["hangs", "closes", "empty", "garbage", "4-D", "another size", "float", "too many"])
def test_a_session_with_a_broken_server_ends_without_a_verdict(play: Any, says: str, tmp_path: Path) -> None:
    with broken({"/health": json.dumps(HEALTH).encode(), "/begin": BEGUN, "/end": b"{}", "/play": play}) as url:
        world, policy = RemoteWorld(url, 5.0), FakePolicy()
        world.timeout_s = 0.5 if play == "hang" else 20.0
        config = replace(AdaptConfig(), copies=8, select_groups=4, held_out_copies=2)
        report = adapt(policy, world, FakeJudge(), FakeLearner(policy), [Start(start_frame(), None, "go left")], config,
                       0, time.monotonic, log_path=tmp_path / "log.jsonl")
    assert report.outcome is Outcome.KEPT and report.stop.kind is StopKind.NO_VERDICT and report.adapter is None
    assert report.message.startswith(f"no verdict, the world model's server {url}") and says in report.message
    assert not report.outcome.better and "no verdict" in (tmp_path / "log.jsonl").read_text()


def test_a_server_that_dies_ends_a_real_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = load_world_model("tiny/world_model")
    begun = []

    class Dies:
        name, frame_size, stride, max_step = world.name, world.frame_size, world.stride, world.max_step

        def begin(self, starts: Sequence[Start], seed: int) -> RolloutBatch:
            begun.append(seed)
            if len(begun) > 1:
                raise MemoryError("out of memory (a fault put in on purpose)")
            return world.begin(starts, seed)

    Image.fromarray(camera().rgb).save(tmp_path / "a.png")
    with serving(WorldService(Dies())) as server:
        status = main(["adapt", "reach the red block", "--frame", str(tmp_path / "a.png"), "--state",
                       *[str(x) for x in STATE], "--world-model", server.url, "--out", str(tmp_path / "runs"), "--set",
                       "min_release_auc=0", "copies=2", "select_groups=2", "held_out_copies=1", "max_batch=1",
                       "horizon_steps=2", "horizon_from_task=false", "threads=1"])
    said = capsys.readouterr().out
    assert status == 1 and len(begun) == 2, said
    assert f"kept: no verdict, the world model's server {server.url} answered 500: the world model failed" in said
    assert not list((tmp_path / "runs" / "adapters").glob("*/*"))


def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    Image.fromarray(camera().rgb).save(tmp_path / "a.png")
    assert main(["adapt", "reach the red block", "--frame", str(tmp_path / "a.png"), "--world-model", url, "--judge",
                 "tiny/reflector", "--out", str(tmp_path)]) == 2
    assert f"error: the world model's server {url} cannot be asked" in capsys.readouterr().err


def test_arrays_and_values_survive_the_way() -> None:
    arrays, values = unpack(pack({"a": np.arange(6, dtype=np.int64)[::2]}, words=["größer"], none=None), "x")
    assert (arrays["a"] == [0, 2, 4]).all() and values == {"words": ["größer"], "none": None}
