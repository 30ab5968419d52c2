"""The how-to pages followed to the letter: what stands there runs and says what the page says."""
from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from world_gymnast_ros.cli import parser_of, train
from world_gymnast_ros.errors import BadCheckpoint, BadConfig, RemotePolicyError
from world_gymnast_ros.loading.load import JUDGE, load
from world_gymnast_ros.models.judges.remote import RemoteConfig
from world_gymnast_ros.models.judges.vlm import VLMConfig, VLMJudge
from world_gymnast_ros.models.policies.words import WORDS, WordReader
from world_gymnast_ros.robot.actions import StepLimits, integrate_states, rpy_to_matrix
from world_gymnast_ros.serving.client import HttpPolicy
from world_gymnast_ros.serving.exchange import exchange
from world_gymnast_ros.serving.json_numpy import decode_array
from world_gymnast_ros.serving.remote_world import RemoteWorld
from world_gymnast_ros.types import Frame, Start

ROOT = Path(__file__).parents[1]
HOWTO = ROOT / "docs" / "howto"


def commands(page: Path) -> list[str]:
    """Return the commands of a page's blocks of code, each with the lines that continue it, without `world-gymnast`."""
    found: list[str] = []
    indent = -1
    for line in page.read_text(encoding="utf-8").splitlines():
        starts = re.match(r"( *)world-gymnast (\S.*)", line)
        if starts:
            indent = len(starts[1])
            found.append(starts[2])
        elif line.strip() and indent >= 0 and (found[-1].endswith("\\") or len(line) - len(line.lstrip()) > indent):
            found[-1] = f"{found[-1].rstrip(chr(92))} {line.strip()}"
        else:
            indent = -1
    return [re.split(r"\s{2,}", command)[0] for command in found]


def parse(words: list[str]) -> None:
    """Parse a command as it is typed; what is trained has options of its own."""
    args = parser_of(words).parse_args(words)
    if words[0] == "train" and args.what:
        train.parsers()[args.what].parse_args(args.rest)


@pytest.mark.parametrize("page", [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
                                  if commands(p)], ids=lambda page: page.name)
def test_every_command_of_the_pages_is_understood(page: Path) -> None:
    for command in commands(page):
        words, said = shlex.split(command, comments=True), io.StringIO()
        shipped = words[0] == "adapt" and not {"--policy", "--params-file"} & set(words)
        shipped |= words[0] == "bench" and "tiny/reflector" in words
        try:
            instruction = words[2 if words[0] == "bench" else 1]
            if shipped and not instruction.startswith(("-", ".")):
                WordReader(WORDS, 16).encode(instruction)  # what ships knows no others
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                parse(words)
        except SystemExit as end:
            assert end.code == 0, (command, said.getvalue())
        except (BadConfig, BadCheckpoint) as error:
            assert "does not exist" in str(error), (command, error)  # files of the reader's own


def test_every_command_of_the_retraining_is_understood(tmp_path: Path) -> None:
    script = (ROOT / "tools" / "train_tiny").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"\$cli (\w[^\n|]*)", re.sub(r"\$\(\([^()]*\)\)", "1", script))
    assert len(found) > 12
    for command in found:
        for name, value in (('"$1"', "demo"), ('"$3"', "reach"), ('"$task"', "reach"), ('"$kind"', "demo"),
                            ('"$seed"', "1"), ('"$most"', "0.05"), ('"$alone"', str(tmp_path)),
                            ("${task}", "reach"), ("$out", str(tmp_path))):
            command = command.replace(name, value)
        words = shlex.split(command, comments=True)
        for word in words:
            if word.startswith(str(tmp_path)):
                Path(word).mkdir(exist_ok=True, parents=True)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parse(words)
        except SystemExit as end:
            assert end.code == 0, (words, said.getvalue())


def test_a_judge_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the page makes is a judge that can be asked, and the settings have the defaults that it tells."""
    from tiny_vlm import QWEN, write_tiny_vlm
    text = (HOWTO / "own_judge.md").read_text(encoding="utf-8")
    [making] = re.findall(r"    mkdir -p judges/asked\n.*?    END\n", text, re.DOTALL)
    subprocess.run(["bash", "-ec", textwrap.dedent(making)], cwd=tmp_path, check=True, timeout=20)
    write_tiny_vlm(tmp_path / "Qwen" / "Qwen3-VL-4B-Instruct", QWEN)
    monkeypatch.chdir(tmp_path)
    judge = load(JUDGE, "judges/asked", "cpu")
    assert isinstance(judge, VLMJudge) and judge.config.frames == 6 and set(judge.config.partial_credit) == {
        "put the eggplant in the sink", "*"}
    [verdict] = judge.score(frame().rgb[None, None].repeat(3, 1), "put the eggplant in the sink")
    assert verdict.score is not None or "answers something else" in verdict.detail, verdict
    [server] = re.findall(r'`(\{"model_type": "remote_judge".*?\})`', text)
    assert RemoteConfig.from_dict(json.loads(server)).votes == 3
    defaults = {**vars(RemoteConfig("http://a/v1")), **vars(VLMConfig("a"))}
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([\d., ]+) \|", text, re.MULTILINE)
    assert len(rows) == 5
    for names, values in rows:
        for name, value in zip(names.replace("`", "").split(", "), values.split(", "), strict=True):
            assert defaults[name] == float(value), name


def run_page(name: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the program of a page on a free port; return its server, on a thread."""
    [program] = re.findall(r"```python\n(.*?)```", (HOWTO / name).read_text(encoding="utf-8"), re.DOTALL)
    assert program.count("port=800") == 1
    space: dict[str, Any] = {}
    exec(compile(re.sub(r"port=800\d", "port=0", textwrap.dedent(program)), name, "exec"), space)
    assert capsys.readouterr().out.splitlines() == ["it keeps the protocol", space["server"].url]
    return space["server"]


def frame() -> Frame:
    return Frame(np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8), 0)


def test_a_world_model_of_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    with run_page("own_world_model.md", capsys) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        dream = RemoteWorld(server.url).begin([Start(frame(), None, "close the drawer")], 0)
        frames = dream.play(np.full((1, 3, 7), 0.01, np.float32))
        assert frames.shape == (1, 3, 64, 64, 3) and (frames[0, 0] != frames[0, 2]).any()
        server.shutdown()


def test_a_policy_of_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    with run_page("own_policy.md", capsys) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        deltas = HttpPolicy(server.url, 20.0).act(frame(), "lift the pot").deltas
        assert deltas.shape == (4, 7) and np.allclose(deltas[:, 2], 0.01)
        server.shutdown()


# --- LeRobot's policies, by a stand-in for lerobot 0.6 that answers as it is documented -------------------------------


class _LeRobotPolicy:
    """Chunks of 8 actions, normalised; moves by how red the image is, and by the state."""

    def __init__(self, width: int) -> None:
        def feature(*shape: int) -> SimpleNamespace:
            return SimpleNamespace(shape=shape)
        cameras = {"observation.images.image_0": feature(3, 24, 32), "observation.images.wrist": feature(3, 24, 32)}
        self.config = SimpleNamespace(image_features=cameras, type="smolvla",
                                      input_features={**cameras, "observation.state": feature(7)})
        self.width, self.asked = width, 0

    def to(self, device: str) -> _LeRobotPolicy:
        return self

    def eval(self) -> _LeRobotPolicy:
        return self

    def reset(self) -> None:
        self.asked = 0

    def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
        image, other = batch["observation.images.image_0"], batch["observation.images.wrist"]
        assert image.shape == (1, 3, 24, 32) and image.dtype == torch.float32
        assert 0.0 <= image.min() < image.max() <= 1.0
        assert not other.any() and batch["task"] == "lift the pot" and batch["ready"]
        self.asked += 1
        assert self.asked == 1, "it is reset between requests"
        chunk = torch.zeros(1, 8, self.width) + 1e-6 * torch.randn(())
        chunk[0, :, 0], chunk[0, :, 2] = image[0, 0].mean(), batch["observation.state"][0, 0]
        return chunk


def lerobot_modules(width: int = 7) -> dict[str, Any]:
    policy = _LeRobotPolicy(width)

    def prepare(observation: dict[str, np.ndarray], device: Any, task: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {"task": task, "robot_type": ""}
        for name, value in observation.items():
            tensor = torch.from_numpy(value)
            if "image" in name:
                tensor = (tensor.type(torch.float32) / 255).permute(2, 0, 1).contiguous()
            out[name] = tensor.unsqueeze(0).to(device)
        return out

    def processors(config: Any, pretrained_path: str, preprocessor_overrides: Any, postprocessor_overrides: Any) -> Any:
        assert config is policy.config and pretrained_path == "me/smolvla-bridge"
        assert preprocessor_overrides == postprocessor_overrides == {"device_processor": {"device": "cpu"}}
        return lambda batch: {**batch, "ready": True}, lambda action: action * 0.1 + 0.001
    kinds, configs = (SimpleNamespace(from_pretrained=lambda where, given=given: given)
                      for given in (policy, policy.config))
    found = {"lerobot": {}, "lerobot.configs": {}, "lerobot.policies": {},
             "lerobot.configs.policies": {"PreTrainedConfig": configs},
             "lerobot.policies.factory": {"get_policy_class": {"smolvla": kinds}.__getitem__,
                                          "make_pre_post_processors": processors},
             "lerobot.policies.utils": {"prepare_observation_for_inference": prepare}}
    modules = {name: ModuleType(name) for name in found}
    for name, values in found.items():
        modules[name].__dict__.update(values)
    return modules


@contextmanager
def lerobot_bridge(monkeypatch: pytest.MonkeyPatch, width: int = 7, *words: str) -> Iterator[str]:
    """Serve the page's program, with `lerobot` as above; its address."""
    for name, module in lerobot_modules(width).items():
        monkeypatch.setitem(sys.modules, name, module)
    with bridge("lerobot_policy.md", "me/smolvla-bridge", "--device", "cpu", *words) as url:
        yield url


@contextmanager
def bridge(page: str, *words: str) -> Iterator[str]:
    """Serve a page's bridge, started with `words`, on a free port; its address."""
    [program] = re.findall(r"```python\n(.*?)```", (HOWTO / page).read_text("utf-8"), re.DOTALL)
    space: dict[str, Any] = {"__name__": "bridge"}
    exec(compile(textwrap.dedent(program), page, "exec"), space)
    server = space["server_of"]([*words, "--port", "0"])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


CAMERA = ("--camera", "observation.images.image_0")
STATE = np.array([0.28, 0.02, 0.1, 0.0, 0.0, 0.0, 1.0], np.float32)


def test_a_policy_of_lerobot_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with lerobot_bridge(monkeypatch, 7, *CAMERA) as url:
        policy = HttpPolicy(url, 20.0)
        chunk = policy.act(frame(), "lift the pot", STATE)
        assert chunk.deltas.shape == (5, 7) and chunk.adapter == "remote/me/smolvla-bridge"
        red = frame().rgb[..., 0].mean() / 255
        np.testing.assert_allclose(chunk.deltas[:, 0], 0.1 * red + 0.001, atol=3e-4)  # resized before it is seen
        np.testing.assert_allclose(chunk.deltas[:, 2], 0.1 * 0.28 + 0.001, atol=1e-5)
        again = policy.act(frame(), "lift the pot", STATE).deltas
        assert np.array_equal(again, chunk.deltas), "the same request, the same answer"
        with pytest.raises(RemotePolicyError, match=r"400.*has no proprio"):
            policy.act(frame(), "lift the pot")
        pickled = b'{"image": {"shape": [1], "dtype": "O", "__numpy__": ""}, "instruction": "a"}'
        for body, says in ((b"{", "Expecting"), (pickled, "an array of object; send numbers")):
            reply = exchange(policy._parts, "POST", "/act", body, {}, 20.0, 10**6)
            assert reply.status == 400 and says in reply.body.decode()
    with lerobot_bridge(monkeypatch, 20, *CAMERA) as url, pytest.raises(RemotePolicyError, match=r"actions \(5, 20\)"):
        HttpPolicy(url, 20.0).act(frame(), "lift the pot", STATE)
    with pytest.raises(SystemExit, match=r"--camera: one of observation\.images\.image_0, observation"), \
            lerobot_bridge(monkeypatch):
        pass


# --- X-VLA's and openpi's own servers, by stand-ins that answer as the public ones do ------------------------------

TILTED = np.array([0.28, 0.02, 0.1, 0.1, -0.2, 0.3, 1.0], np.float32)
STEP = np.array([0.01, -0.004, 0.006, 0.0, 0.0, 0.05, 0.0], np.float32)
"""Of 0.2 s: along a line, turning about the vertical, the gripper told to close."""


class _XVLA(BaseHTTPRequestHandler):
    """30 absolute poses for 5 s, from the state that it is told; twice as many numbers, for a second arm."""

    width: ClassVar[int] = 20

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/act" and asked.keys() == {"proprio", "language_instruction", "image0", "domain_id",
                                                        "steps"}
        image, proprio = (decode_array(json.loads(asked[key]), key) for key in ("image0", "proprio"))
        assert np.array_equal(image, frame().rgb) and asked["domain_id"] == 0 and proprio.shape == (20,)
        status, answer = 400, {"error": "Request failed"}
        if asked["language_instruction"] == "lift the pot":
            R = np.stack([proprio[3:9:2], proprio[4:9:2], np.cross(proprio[3:9:2], proprio[4:9:2])], 1)
            np.testing.assert_allclose(R, rpy_to_matrix(TILTED[3:6]), atol=1e-6)
            poses = np.zeros((30, self.width))
            for k, t in enumerate(np.arange(1, 31) * (5 / 30) / 0.2):
                turned = rpy_to_matrix(t * STEP[3:6]) @ R
                poses[k, :10] = [*(proprio[:3] + t * STEP[:3]), *turned[:, :2].reshape(6), float(t > 3)]
            status, answer = 200, {"action": poses.tolist()}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_policy_behind_x_vla_s_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), _XVLA) as theirs:
        threading.Thread(target=theirs.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with bridge("openpi_xvla.md", "xvla", f"127.0.0.1:{theirs.server_address[1]}") as url:
            policy = HttpPolicy(url, 20.0)
            chunk = policy.act(frame(), "lift the pot", TILTED)
            assert chunk.deltas.shape == (5, 7) and chunk.adapter == "remote/xvla"
            np.testing.assert_allclose(chunk.deltas[:, :6], np.tile(STEP[:6], (5, 1)), atol=2e-4)
            assert chunk.deltas[:, 6].tolist() == [1, 1, 1, 0, 0]
            state = TILTED[None]
            for delta in chunk.deltas:
                state = integrate_states(state, delta[None], StepLimits())
            turned = rpy_to_matrix(5 * STEP[3:6]) @ rpy_to_matrix(TILTED[3:6])
            np.testing.assert_allclose(rpy_to_matrix(state[0, 3:6]), turned, atol=2e-4)
            with pytest.raises(RemotePolicyError, match=r"400.*has no proprio"):
                policy.act(frame(), "lift the pot")
            with pytest.raises(RemotePolicyError, match=r"502.*answered 400.*Request failed"):
                policy.act(frame(), "another", TILTED)
            monkeypatch.setattr(_XVLA, "width", 14)
            with pytest.raises(RemotePolicyError, match=r"X-VLA answered \(30, 14\)"):
                policy.act(frame(), "lift the pot", TILTED)
        theirs.shutdown()


def openpi_modules(width: int) -> dict[str, Any]:
    """Stand in for `openpi-client` 0.1: a connection that takes numpy arrays and is closed by a fault."""

    class Client:
        def __init__(self, host: str, port: int) -> None:
            assert host == "127.0.0.1"
            self.closed = False

        def infer(self, seen: dict[str, Any]) -> dict[str, Any]:
            assert not self.closed
            if seen["prompt"] != "lift the pot":
                self.closed = True
                raise RuntimeError("Error in inference server: KeyError")
            assert seen.keys() == {"observation/image", "observation/state", "prompt"}
            assert seen["observation/image"].shape == (224, 224, 3) and seen["observation/image"].dtype == np.uint8
            actions = np.zeros((10, width))
            actions[:, 0], actions[:, -1] = seen["observation/state"][0] / 10, 1.001
            return {"actions": actions, "server_timing": {"infer_ms": 1.0}}

    def resize_with_pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), image.dtype)
    found = {"openpi_client": {}, "openpi_client.image_tools": {"resize_with_pad": resize_with_pad},
             "openpi_client.websocket_client_policy": {"WebsocketClientPolicy": Client}}
    modules = {name: ModuleType(name) for name in found}
    for name, values in found.items():
        modules[name].__dict__.update(values)
    modules["openpi_client"].__dict__["image_tools"] = modules["openpi_client.image_tools"]
    return modules


@pytest.mark.parametrize("width", [7, 8])
def test_a_policy_behind_openpi_s_server(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in openpi_modules(width).items():
        monkeypatch.setitem(sys.modules, name, module)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as listens:
        address = f"127.0.0.1:{listens.server_address[1]}"
        with bridge("openpi_xvla.md", "openpi", address, "--state-key", "observation/state") as url:
            policy = HttpPolicy(url, 20.0)
            if width != 7:
                with pytest.raises(RemotePolicyError, match=r"openpi answered \(5, 8\)"):
                    policy.act(frame(), "lift the pot", STATE)
                return
            for _ in range(2):
                chunk = policy.act(frame(), "lift the pot", STATE)
                assert chunk.deltas.shape == (5, 7) and np.allclose(chunk.deltas[:, 0], 0.028)
                assert (chunk.deltas[:, 6] == 1.0).all()
                with pytest.raises(RemotePolicyError, match=r"502.*inference server: KeyError"):
                    policy.act(frame(), "another", STATE)
            with pytest.raises(RemotePolicyError, match=r"400.*has no proprio"):
                policy.act(frame(), "lift the pot")
    with bridge("openpi_xvla.md", "openpi", address) as url, pytest.raises(RemotePolicyError, match="Refused"):
        HttpPolicy(url, 20.0).act(frame(), "lift the pot")  # their server is gone
