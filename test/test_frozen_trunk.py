"""A reflector on a frozen image-text model, made by the public classes at random: only the head is trained."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vlm import LLAVA, QWEN, write_tiny_vlm
from transformers import AutoModelForImageTextToText

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadCheckpoint, EpisodeError
from world_gymnast_ros.loading.load import JUDGE, load
from world_gymnast_ros.models.checkpoint import read_tensors
from world_gymnast_ros.models.judges.feature_cache import FeatureCache
from world_gymnast_ros.models.judges.frozen_trunk import PROMPT, FrozenTrunk
from world_gymnast_ros.models.judges.reflector import Reflector
from world_gymnast_ros.training.reflector_head import HeadTraining, frame_labels, train_head

torch.set_num_threads(1)
TEXT = "put the red block in the drawer"
SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")


def recorded(success: bool, seed: int, steps: int = 6) -> Episode:
    """A dark scene in which the light of success comes on, or does not; noise everywhere."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 90, (steps + 1, SIZE, SIZE, 3)).astype(np.uint8)
    if success:
        frames[4:, 8:56, 8:56, 1] = 250
    return Episode(frames, np.zeros((steps, 7), np.float32), None, TEXT, f"{seed}", "light", success,
                   4 if success else None)


EPISODES = [recorded(i % 2 == 0, i) for i in range(20)]


def test_features_are_the_librarys_last_hidden_state(folder: Path) -> None:
    frozen = FrozenTrunk.from_pretrained(folder)
    frames = EPISODES[0].frames[:3]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    talk = [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(frames[1])},
                                         {"type": "text", "text": PROMPT.format(instruction=TEXT)}]}]
    inputs = frozen.processor.apply_chat_template([talk], add_generation_prompt=True, tokenize=True, return_dict=True,
                                                  return_tensors="pt")
    with torch.no_grad():
        theirs = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
    ours = frozen.read(frames, [TEXT] * 3)
    assert ours.shape == (3, frozen.dim)
    torch.testing.assert_close(ours[1], theirs, atol=1e-5, rtol=1e-5)
    other = frozen.read(frames, [TEXT, "open the drawer", TEXT])  # each frame under its own instruction
    torch.testing.assert_close(other[[0, 2]], ours[[0, 2]], atol=1e-5, rtol=1e-5)
    assert float((other[1] - ours[1]).abs().max()) > 1e-3


def test_the_head_learns_success_from_marked_episodes_and_the_trunk_stays(folder: Path, tmp_path: Path) -> None:
    frozen = FrozenTrunk.from_pretrained(folder)
    before = {k: v.clone() for k, v in frozen.model.state_dict().items()}
    judge, figures = train_head(frozen, EPISODES, HeadTraining(steps=60))
    assert figures["all"]["auc"] == 1.0, figures
    assert all(torch.equal(v, before[k]) for k, v in frozen.model.state_dict().items())
    frames = np.stack([recorded(True, 100).frames, recorded(False, 101).frames])
    won, lost = judge.score(frames, TEXT)
    assert won.score is not None and lost.score is not None and won.score > 0.5 > lost.score
    assert won.done_at == 4 and lost.done_at is None
    judge.save(tmp_path / "judge")
    kept = {name.split(".")[0] for name in read_tensors(tmp_path / "judge" / "model.safetensors")}
    assert kept == {"norm", "fusion"}  # the head alone
    again = load(JUDGE, tmp_path / "judge", "cpu")
    assert isinstance(again, Reflector)
    assert [v.score for v in again.score(frames, TEXT)] == pytest.approx([won.score, lost.score], abs=0.02)


def test_another_trunk_than_the_heads_is_refused(folder: Path, tmp_path: Path) -> None:
    Reflector.on_frozen(FrozenTrunk.from_pretrained(folder)).save(tmp_path / "judge")
    config = tmp_path / "judge" / "config.json"
    other = write_tiny_vlm(tmp_path / "other", QWEN, seed=1)
    config.write_text(config.read_text().replace(str(folder.resolve()), str(other)))
    with pytest.raises(BadCheckpoint, match="not the file that this reflector's head was trained on"):
        Reflector.from_pretrained(tmp_path / "judge")


def test_a_growing_rollout_is_read_frame_by_frame(tmp_path: Path) -> None:
    judge = Reflector.on_frozen(FrozenTrunk.from_pretrained(write_tiny_vlm(tmp_path / "llava", LLAVA)))
    frames = np.stack([e.frames for e in EPISODES[:2]])
    frames[:, 0] = frames[0, 0]  # one start, as in a group
    whole = judge.score(frames, TEXT)
    assert judge.cache.read == 13  # 2 rollouts of 7 frames that share the first
    fresh = Reflector(judge.model, "", frozen=judge.frozen)
    for n in (3, 5, 7):
        grown = fresh.score(frames[:, :n], TEXT)
    assert fresh.cache.read == 13
    assert [v.score for v in grown] == pytest.approx([v.score for v in whole], abs=1e-6)


def test_the_cache_forgets_the_oldest_use_and_tells_instructions_apart() -> None:
    cache, asked = FeatureCache(capacity=2), []

    def compute(frames: np.ndarray, texts: list[str]) -> torch.Tensor:
        asked.extend(zip(frames[:, 0, 0, 0].tolist(), texts, strict=True))
        return torch.from_numpy(frames[:, 0, 0, :1].astype(np.float32))
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    cache.features(frames[[0, 1, 0]], ["a"] * 3, compute)
    assert asked == [(0, "a"), (1, "a")]
    cache.features(frames[:1], ["b"], compute)  # pushes out (1, a), whose last use is longer ago
    cache.features(frames[:2], ["a", "a"], compute)
    assert asked[2:] == [(0, "b"), (1, "a")]


def test_labels_say_no_more_than_was_marked() -> None:
    won = frame_labels(recorded(True, 0))
    assert won.done.tolist() == [False] * 4 + [True] * 3 and won.clear.all()
    outcome_only = Episode(EPISODES[0].frames, EPISODES[0].deltas, None, TEXT, success=True)
    labels = frame_labels(outcome_only)
    assert labels.done.tolist() == [False] * 5 + [True] * 2
    assert labels.clear.tolist() == [True] * 4 + [False] + [True] * 2
    assert not frame_labels(recorded(False, 1)).done.any()
    with pytest.raises(EpisodeError, match="not marked"):
        frame_labels(Episode(EPISODES[0].frames, EPISODES[0].deltas, None, TEXT))
    with pytest.raises(EpisodeError, match="0 failures"):
        train_head(None, [e for e in EPISODES if e.success], HeadTraining())  # type: ignore[arg-type]
