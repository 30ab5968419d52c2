"""The how-to pages that hold a program, followed to the letter: what stands there runs and says what the page says."""
from __future__ import annotations

import re
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from world_gymnast_ros.errors import RemotePolicyError
from world_gymnast_ros.serving.client import HttpPolicy
from world_gymnast_ros.serving.exchange import exchange
from world_gymnast_ros.serving.remote_world import RemoteWorld
from world_gymnast_ros.types import Frame, Start

HOWTO = Path(__file__).parents[1] / "docs" / "howto"


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
    [program] = re.findall(r"```python\n(.*?)```", (HOWTO / "lerobot_policy.md").read_text("utf-8"), re.DOTALL)
    space: dict[str, Any] = {"__name__": "lerobot_bridge"}
    exec(compile(textwrap.dedent(program), "lerobot_policy.md", "exec"), space)
    server = space["server_of"](["me/smolvla-bridge", "--port", "0", "--device", "cpu", *words])
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
