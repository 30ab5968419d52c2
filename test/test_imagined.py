"""A policy behind an address: evaluated in imagination by `bench imagined`, refused where it would be trained."""
from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from model_server import serving
from PIL import Image
from test_serve import NumbersPolicy

from world_gymnast_ros.adaptation.rollout import imagine
from world_gymnast_ros.cli import main
from world_gymnast_ros.errors import RemotePolicyError
from world_gymnast_ros.loading.load import POLICY, load, load_world_model
from world_gymnast_ros.serving.json_numpy import decode_array
from world_gymnast_ros.serving.server import PolicyService
from world_gymnast_ros.testing.fakes import FakeWorldModel
from world_gymnast_ros.types import ActionChunk, Frame, Judgement, Start

torch.set_num_threads(1)


def test_a_policy_on_a_server_is_evaluated_in_imagination_and_not_adapted(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(image)
    words = ["reach the red block", "--frame", str(image), "--state", "0.25", "0", "0.1", "0", "0", "0", "1",
             "--judge", "tiny/reflector", "--device", "cpu"]
    with serving(PolicyService(NumbersPolicy())) as server:
        policy = load(POLICY, server.url)
        policy.act(Frame(np.zeros((48, 64, 3), np.uint8), 0), "reach the red block")
        frames = np.random.default_rng(1).integers(0, 256, (3, 48, 64, 3), np.uint8)
        sampled = policy.sample(frames, "reach the red block", 0.05, 0)
        assert sampled.deltas.shape == (3, policy.chunk_size, 7) and sampled.tokens is None and sampled.logprobs is None
        one = policy.act(Frame(frames[1], 0), "reach the red block").deltas
        np.testing.assert_array_equal(sampled.deltas[1], one)
        assert main(["bench", "imagined", *words, "--policy", server.url, "--rollouts", "2", "--steps", "4"]) == 0
        said = capsys.readouterr().out
        assert re.search(r"2 rollouts, \d rejected, \d without verdict\nimagined success: ", said) and "trust: " in said
        assert main(["adapt", *words, "--policy", server.url, "--out", str(tmp_path / "runs")]) == 2
        assert "cannot be trained: it has no logprobs" in capsys.readouterr().err


class Ragged(NumbersPolicy):
    """Chunks of other lengths for dark and bright frames."""

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        return ActionChunk(np.zeros((2 + int(frame.rgb.mean() > 100), 7), np.float32), frame.stamp_ns)


def test_chunks_of_several_lengths_are_no_group() -> None:
    with serving(PolicyService(Ragged())) as server:
        frames = np.stack([np.zeros((48, 64, 3), np.uint8), np.full((48, 64, 3), 200, np.uint8)])
        with pytest.raises(RemotePolicyError, match=r"chunks of 2, 3 actions"):
            load(POLICY, server.url).sample(frames, "reach the red block", 1.0, 0)


class NeedsState(BaseHTTPRequestHandler):
    """Answers as the bridge of docs/howto/lerobot_policy.md does for a policy that looks at the arm's state."""

    seen: ClassVar[list[np.ndarray]] = []

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = 400, {"error": "this policy acts on the arm's state, and the request has no proprio"}
        if "proprio" in request:
            self.seen.append(decode_array(request["proprio"], "proprio"))
            status, answer = 200, [[0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]] * 2
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def needs_state() -> Iterator[str]:
    NeedsState.seen.clear()
    with HTTPServer(("127.0.0.1", 0), NeedsState) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("world", ["tells", "sums"])
def test_a_policy_that_looks_at_the_state_gets_the_imagined_one(needs_state: str, world: str) -> None:
    model: Any = FakeWorldModel() if world == "sums" else load_world_model("tiny/world_model", [], "cpu", "float32")
    state = np.array([0.28, 0.02, 0.1, 0, 0, 0, 1], np.float32)
    starts = [Start(Frame(np.zeros((48, 64, 3), np.uint8), 0), state, "to the left")]
    policy = load(POLICY, needs_state)
    policy.act(starts[0].frame, "to the left", state)
    group = imagine(policy, model, Undecided(), starts, 2, 6, 1.0, 0, judge_every_chunks=0)
    seen = np.array(NeedsState.seen[1:])  # three chunks of two copies, each of two actions of 1 cm
    assert len(group.chunks) == 3 and seen.shape == (6, 7)
    np.testing.assert_allclose(seen[:, 0], np.repeat([0.28, 0.30, 0.32], 2), atol=1e-5)
    np.testing.assert_allclose(seen[:, 1:6], np.tile(state[1:6], (6, 1)), atol=1e-5)
    assert (seen[:2, 6] == 1.0).all() and (seen[2:, 6] == 0.0).all(), "it was told to close"


def test_without_a_state_such_a_policy_is_refused_in_plain_words(needs_state: str, tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(image)
    words = ["bench", "imagined", "reach the red block", "--frame", str(image), "--judge", "tiny/reflector",
             "--policy", needs_state, "--rollouts", "1", "--steps", "2", "--device", "cpu"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "has no proprio; it was asked without the arm's state" in said and "--state" in said
    assert main([*words, "--state", "0.28", "0.02", "0.1", "0", "0", "0", "1"]) == 0
    assert len(NeedsState.seen) == 2


def test_such_a_policy_on_the_twin_gets_the_measured_one(needs_state: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The server has no adapters: it acts as it was started."""
    words = ["twin", "measure", "train_oak", "--episodes", "1", "--policy", needs_state]
    assert main(words) == 0
    assert ": 0 of 1" in capsys.readouterr().out
    seen = np.array(NeedsState.seen)
    assert len(seen) >= 3 and seen.shape[1] == 7 and np.isfinite(seen).all()
    assert np.ptp(seen[:3, 1]) < 0.02, "it was told to go along x"
    assert 0.01 < seen[2, 0] - seen[0, 0] < 0.05, "two chunks of two actions of 1 cm, less the lag of the arm"
    assert seen[0, 6] > 0.9 > seen[2, 6], "it was told to close"


class Undecided:
    """A judge without a verdict."""

    name = "undecided"

    def score(self, frames: np.ndarray, instruction: str, facts: object = None) -> list[Judgement]:
        return [Judgement(None, detail="not asked")] * len(frames)
