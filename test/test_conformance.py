"""Every policy, world model and judge keeps the protocols: tiny ones, fakes, published layouts, those on servers."""
from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Heard, chat_server, completion
from published_openvla import SINK, camera_frame, write_folder
from test_remote_world import serving as serving_world
from test_serve import serving as serving_policy
from test_worldgym import world as worldgym
from tiny_vlm import QWEN, write_tiny_vlm

from world_gymnast_ros.loading.load import load_judges, load_policy, load_world_model
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.remote import RemoteJudge
from world_gymnast_ros.models.judges.vlm import VLMJudge
from world_gymnast_ros.models.policies.openvla_policy import load_openvla
from world_gymnast_ros.models.policies.regression import RegressionConfig, RegressionNetwork, RegressionPolicy
from world_gymnast_ros.serving.client import HttpPolicy
from world_gymnast_ros.serving.remote_world import RemoteWorld
from world_gymnast_ros.serving.server import PolicyService
from world_gymnast_ros.serving.world_server import WorldService
from world_gymnast_ros.testing import conformance
from world_gymnast_ros.testing.conformance import judge_faults, policy_faults, world_model_faults
from world_gymnast_ros.testing.fakes import FakeJudge, FakePolicy, FakeWorldModel, start_frame
from world_gymnast_ros.types import Frame, Judgement, RolloutFacts, SampledChunks, Start

torch.set_num_threads(1)
REACH = "reach the red block"
STATE = np.array([0.28, 0.02, 0.1, 0.0, 0.0, 0.0, 1.0], np.float32)
FRAMES = np.stack([camera_frame(96, 128, seed) for seed in (0, 1)])
STARTS = [Start(Frame(rgb, 0), STATE, REACH) for rgb in FRAMES]

# --- world models -----------------------------------------------------------------------------------------------------

WORLDS = {"fake": FakeWorldModel, "action dit": load_world_model, "worldgym": worldgym,
          "worldgym, guided": lambda: worldgym(guidance=3.0, action_offset=0),
          "worldgym, persistent": lambda: worldgym(after_window="persistent")}


@pytest.mark.parametrize("which", WORLDS)
def test_world_models(which: str) -> None:
    assert world_model_faults(WORLDS[which](), STARTS) == []


@pytest.mark.parametrize("which", ["fake", "worldgym"])
def test_world_models_on_a_server(which: str) -> None:
    with serving_world(WorldService(WORLDS[which]())) as server:
        assert world_model_faults(RemoteWorld(server.url), STARTS) == []


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("published") / "tiny-openvla", l1_head=True)


def fake_policy() -> FakePolicy:
    policy = FakePolicy()
    for table in policy.tables.values():
        table += np.random.default_rng(0).normal(0, 1, table.shape)
    return policy


SCHEMES: dict[str, dict[str, Any]] = {
    "openvla": {"decoding": "autoregressive", "chunk_size": 1}, "oft": {"decoding": "parallel", "chunk_size": 5},
    "oft l1": {"decoding": "l1", "chunk_size": 5, "action_scale": 0.2}}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_published_policies(scheme: str, published: Path) -> None:
    assert policy_faults(load_openvla(published, **SCHEMES[scheme]), FRAMES, SINK) == []


def test_the_shipped_policy_and_the_fake() -> None:
    assert policy_faults(load_policy(), FRAMES, REACH) == []
    assert policy_faults(fake_policy(), np.stack([start_frame(9.0).rgb, start_frame(20.0).rgb]), "go left") == []


@pytest.mark.parametrize("learned", [True, False], ids=["learned scale", "constant scale"])
def test_a_small_regression_policy(learned: bool) -> None:
    torch.manual_seed(0)
    policy = RegressionPolicy(RegressionNetwork(RegressionConfig(learned_scale=learned)), base_hash="random")
    assert policy_faults(policy, FRAMES, REACH) == []


def test_a_policy_on_a_server() -> None:
    with serving_policy(PolicyService(load_policy())) as server:
        policy = HttpPolicy(server.url, 20.0)
        policy.act(Frame(FRAMES[0], 0), REACH)  # its chunk size is known then
        assert policy_faults(policy, FRAMES, REACH, acts_only=True) == []


# --- judges -----------------------------------------------------------------------------------------------------------


def rollouts(size: tuple[int, int] = (64, 64)) -> np.ndarray:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (3, 1, 8, 8, 3)).repeat(size[0] // 8, 2).repeat(size[1] // 8, 3)
    return np.clip(base + np.arange(5)[None, :, None, None, None] * 9, 0, 255).astype(np.uint8)


def facts() -> RolloutFacts:
    return RolloutFacts([camera_frame(96, 128, i) for i in range(3)], [STATE] * 3,
                        np.full((3, 4, 7), 0.01, np.float32))


def yes(request: dict[str, Any], n: int) -> Any:
    images = sum(len(part["image_url"]["url"]) for part in request["messages"][0]["content"]
                 if part["type"] == "image_url")
    p = 0.2 + 0.6 * (images % 97) / 97
    return completion("Yes", tokens=[[{"Yes": math.log(p), "No": math.log(1 - p)}]])


@pytest.fixture(scope="module")
def chat() -> Iterator[Heard]:
    with chat_server(yes) as heard:
        yield heard


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> VLMJudge:
    folder = write_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny", QWEN)
    return VLMJudge.from_pretrained(folder, frames=2, frame_px=32, min_label_share=0.0)


def test_judges_that_ship() -> None:
    for names in ("tiny/reflector", "tiny/locator", "tiny/reflector, tiny/locator"):
        assert judge_faults(load_judges(names), rollouts(), REACH, facts()) == [], names


def test_the_fake_judge() -> None:
    frames = np.stack([[start_frame(16.0 - 3 * t, y).rgb for t in range(4)] for y in (16.0, 28.0)])
    assert judge_faults(FakeJudge(), frames, "go left") == []


def test_vision_language_judges(vlm: VLMJudge, chat: Heard) -> None:
    remote = RemoteJudge.from_pretrained(f"{chat.url}#toy", {})
    for judge in (vlm, remote, Consensus((vlm, remote))):
        assert judge_faults(judge, rollouts(), SINK, facts()) == [], judge.name
    assert any(j.score is not None for j in remote.score(rollouts(), SINK))
    assert any(j.score is not None for j in vlm.score(rollouts(), SINK))


# --- the checks themselves: each finds what it is there for -----------------------------------------------------------


class Wrong(FakeWorldModel):
    """Breaks one rule."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def begin(self, starts: Any, seed: int) -> Any:
        rollouts = super().begin(starts, seed) if len(starts) or self.how != "no start" else None
        if rollouts is None:
            return None
        if self.how == "seed":
            rollouts.rng = np.random.default_rng()
        if self.how == "shared":
            rollouts.rng = self.__dict__.setdefault("rng", np.random.default_rng(0))
        if self.how == "keep":
            rollouts.keep = lambda copies: None
        play = rollouts.play

        def wrong(deltas: np.ndarray) -> np.ndarray:
            if self.how == "changes":
                deltas[:] = 0.0
            if self.how == "mixes":
                rollouts.xy_px = rollouts.xy_px + deltas[:, 0, :2].mean(0) / 0.001
            frames = play(np.nan_to_num(deltas) if self.how == "nan" else deltas)
            return frames.astype(np.float32) if self.how == "dtype" else frames
        rollouts.play = wrong
        return rollouts


@pytest.mark.parametrize(("how", "says"), [
    ("seed", "the same starts, seed and actions gave other frames"), ("shared", "state is shared"),
    ("keep", "finished copies leave: BadAction"), ("changes", "it changed the actions"),
    ("nan", "actions with a NaN: was taken"),
    ("mixes", "a copy's frames changed with another copy's"), ("dtype", "gave float32"),
    ("no start", "begin without a start: was taken")])
def test_a_world_model_that_breaks_a_rule_is_found(how: str, says: str) -> None:
    starts = [Start(start_frame(8.0), None, "go left"), Start(start_frame(24.0), None, "go left")]
    assert any(says in fault for fault in world_model_faults(Wrong(how), starts))


def test_a_policy_that_breaks_a_rule_is_found() -> None:
    frames = np.stack([start_frame(9.0).rgb, start_frame(20.0).rgb])

    class Remembers(FakePolicy):
        def act(self, frame: Frame, instruction: str) -> Any:
            self.tables[instruction][0, 0] = np.roll(self.tables[instruction][0, 0], 1)
            return super().act(frame, instruction)

        def sample(self, frames: np.ndarray, instruction: str, temperature: float, seed: int) -> SampledChunks:
            return super().sample(frames, instruction, temperature, int(np.random.default_rng().integers(99)))

        def load_adapter(self, ref: Any) -> None:
            self.adapter = "base" if ref is None else ref.name
    policy = Remembers()
    policy.tables["go left"][0, 0, 3] = 9.0
    found = " | ".join(policy_faults(policy, frames, "go left"))
    for says in ("it has a memory", "the same seed sampled other chunks", "an adapter of another base: was taken"):
        assert says in found
    assert "no gradient" not in found


def test_a_judge_that_breaks_a_rule_is_found() -> None:
    class Drifts:
        name = "drifts"

        def __init__(self) -> None:
            self.asked = 0

        def score(self, frames: np.ndarray, instruction: str, facts: Any = None) -> list[Judgement]:
            self.asked += 1
            return [Judgement(0.01 * self.asked * (i + 1), done_at=99) for i in range(len(frames))]
    found = " | ".join(judge_faults(Drifts(), rollouts(), REACH))
    for says in ("says done at frame 99 of 5", "judged one by one", "frames of float got a score"):
        assert says in found
    assert conformance.SCORE_TOLERANCE < 0.01
