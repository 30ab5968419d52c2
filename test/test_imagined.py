"""A policy behind an address: evaluated in imagination by `bench imagined`, refused where it would be trained."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from model_server import serving
from PIL import Image
from test_serve import NumbersPolicy

from world_gymnast_ros.cli import main
from world_gymnast_ros.errors import RemotePolicyError
from world_gymnast_ros.loading.load import POLICY, load
from world_gymnast_ros.serving.server import PolicyService
from world_gymnast_ros.types import ActionChunk, Frame

torch.set_num_threads(1)


def test_a_policy_on_a_server_is_evaluated_in_imagination_and_not_adapted(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(picture)
    words = ["reach the red block", "--frame", str(picture), "--judge", "tiny/reflector", "--device", "cpu"]
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
