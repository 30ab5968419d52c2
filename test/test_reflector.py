"""The judge at toy size: two frames in a row, no verdict on faults, calibration, labels, and short trainings."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_play import write_toy_play

from world_gymnast_ros.data.frame_table import Episode, PlayTable, held_out, read_play
from world_gymnast_ros.errors import BadCheckpoint, BadFrame, BadInstruction, EpisodeError
from world_gymnast_ros.models.judges.reflector import Reflector, fit_platt, two_in_a_row
from world_gymnast_ros.models.policies.openvla import OpenVLA, OpenVLAConfig, OpenVLAForActionPrediction
from world_gymnast_ros.models.policies.vla_network import soft_target_loss
from world_gymnast_ros.training.policy import PolicyTraining, localisation_cm, train_policy
from world_gymnast_ros.training.reflector import (
    ReflectorTraining,
    Verdicts,
    WindowSampler,
    be_strict,
    reframe,
    train_reflector,
)
from world_gymnast_ros.twin.labels import frame_labels
from world_gymnast_ros.types import Judge

torch.set_num_threads(1)
TOY = {"image_size": 32, "vision_dim": 32, "vision_layers": 1, "vision_heads": 2, "aux_layer": 1, "name": "toy",
       "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "initializer_range": 0.15}}
TEXT = "reach the red block"


def toy_judge(seed: int = 0) -> Reflector:
    torch.manual_seed(seed)
    return Reflector.from_policy(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)))


def rollouts(count: int, frames: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, frames, 32, 32, 3), dtype=np.uint8)


# ---- verdicts --------------------------------------------------------------------------------------------------------

def test_one_lucky_frame_convinces_nobody() -> None:
    judge = toy_judge()
    logits = np.full((8, 3), -4.0, np.float32)
    logits[3] = 5.0
    alone = judge._judge(logits, np.zeros((8, 3), np.float32), "reach")
    assert alone.score is not None and alone.score < 0.05 and alone.done_at is None
    logits[4] = 3.0
    twice = judge._judge(logits, np.zeros((8, 3), np.float32), "reach")
    assert twice.done_at == 3 and twice.score == pytest.approx(1 / (1 + np.exp(-3.0)), abs=1e-5)
    assert len(twice.votes) == 3 and twice.frame_scores is not None and twice.frame_scores.shape == (8,)


def test_two_in_a_row_of_one_frame_is_that_frame() -> None:
    np.testing.assert_array_equal(two_in_a_row(np.array([0.4], np.float32)), np.array([0.4], np.float32))


def test_score_gives_a_judgement_for_each_rollout_at_any_image_size() -> None:
    judge: Judge = toy_judge()
    verdicts = judge.score(np.repeat(rollouts(3), 2, axis=2), TEXT)
    assert len(verdicts) == 3
    assert all(v.score is not None and 0 <= v.score <= 1 and v.progress is not None for v in verdicts)


def test_a_verdict_depends_neither_on_its_neighbours_nor_on_later_frames() -> None:
    judge = toy_judge()
    frames = rollouts(4)
    together = judge.score(frames, TEXT)
    alone = judge.score(frames[2:3], TEXT)[0]
    np.testing.assert_allclose(together[2].frame_scores, alone.frame_scores, atol=5e-3)
    changed = frames[2:3].copy()
    changed[0, 3:] = 0
    np.testing.assert_allclose(judge.score(changed, TEXT)[0].frame_scores[:3], alone.frame_scores[:3], atol=5e-3)
    changed = frames[2:3].copy()
    changed[0, 0] = 0
    assert np.abs(judge.score(changed, TEXT)[0].frame_scores - alone.frame_scores)[2:].max() > 1e-4


def test_a_fault_inside_is_no_verdict_and_never_a_score() -> None:
    judge = toy_judge()
    with torch.no_grad():
        judge.model.fusion[0][0].weight.fill_(float("nan"))
    assert [v.score for v in judge.score(rollouts(2), TEXT)] == [None, None]
    judge.model.fusion[0] = torch.nn.Linear(3, 2)
    verdict = judge.score(rollouts(1), TEXT)[0]
    assert verdict.score is None and "RuntimeError" in verdict.detail


def test_mistakes_of_the_caller_are_raised() -> None:
    with pytest.raises(BadInstruction, match="'juggle'"):
        toy_judge().score(rollouts(1), "juggle the red block")
    with pytest.raises(BadFrame, match="uint8"):
        toy_judge().score(rollouts(1).astype(np.float32), TEXT)  # type: ignore[arg-type]


# ---- checkpoints and calibration -------------------------------------------------------------------------------------

def test_the_trunk_is_a_copy_of_the_policys() -> None:
    torch.manual_seed(3)
    network = OpenVLAForActionPrediction(OpenVLAConfig(**TOY)).eval()
    judge = Reflector.from_policy(network)
    frames, ids = torch.from_numpy(rollouts(1)[0]), torch.tensor(judge.reader.batch([TEXT] * 5))
    with torch.no_grad():
        same = judge.model.trunk.read(judge.model.trunk.see(frames), ids)[0]
        torch.testing.assert_close(same, network.read(network.see(frames), ids)[0])
        network.aux_head[1].weight.zero_()
    assert float(judge.model.trunk.aux_head[1].weight.abs().sum()) > 0


def test_a_judge_comes_back_with_its_calibration(tmp_path: Path) -> None:
    judge = toy_judge()
    judge.config.logit_scale, judge.config.logit_offset = 0.7, -1.5
    judge.save(tmp_path / "judge")
    one, two = Reflector.from_pretrained(tmp_path / "judge"), Reflector.from_pretrained(tmp_path / "judge")
    assert (one.config.logit_scale, one.config.logit_offset) == (0.7, -1.5) and one.sha256 == judge.sha256
    assert one.score(rollouts(1), TEXT)[0].score == two.score(rollouts(1), TEXT)[0].score
    assert one.score(rollouts(1), TEXT)[0].score == pytest.approx(judge.score(rollouts(1), TEXT)[0].score, abs=0.02)


def test_a_family_of_tasks_may_have_a_threshold_of_its_own(tmp_path: Path) -> None:
    judge, videos = toy_judge(), rollouts(1)
    usual = judge.score(videos, "push the red block left")
    judge.config.task_offsets = {"push": judge.config.logit_offset + 3.0}
    judge.config.instructions = {"push": ["push the red block left"]}
    judge.save(tmp_path / "judge")
    judge = Reflector.from_pretrained(tmp_path / "judge")
    laxer, other = judge.score(videos, "push the red block left"), judge.score(videos, "reach the red block")
    for before, after in zip(usual, laxer, strict=True):
        odds = [j.score / (1 - j.score) for j in (before, after)]  # type: ignore[operator]
        assert odds[1] / odds[0] == pytest.approx(np.exp(3.0), rel=0.3)
    judge.config.task_offsets = {}
    assert [j.score for j in judge.score(videos, "reach the red block")] == [j.score for j in other]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="nowhere"):
        Reflector.from_pretrained(tmp_path / "nowhere")
    OpenVLA(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)), "").save(tmp_path / "policy")
    with pytest.raises(BadCheckpoint, match="openvla"):
        Reflector.from_pretrained(tmp_path / "policy")
    toy_judge().save(tmp_path / "judge")
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        Reflector.from_pretrained(tmp_path / "judge")


def test_platt_scaling_finds_the_prior_shift() -> None:
    """Logits of a balanced training, labels at 12 %: the calibrated mean must be the true rate."""
    rng = np.random.default_rng(0)
    true_logit = rng.normal(-3.0, 2.0, 4000)
    labels = rng.random(4000) < 1 / (1 + np.exp(-true_logit))
    scale, offset = fit_platt((true_logit + 2.5) * 2.0, labels)
    assert scale == pytest.approx(0.5, abs=0.06) and offset == pytest.approx(-2.5, abs=0.25)
    with pytest.raises(BadCheckpoint, match="both outcomes"):
        fit_platt(true_logit, np.zeros(4000, bool))


# ---- data and labels -------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("play")
    write_toy_play(directory / "reach-000.npz", 150, seed=1)
    write_toy_play(directory / "reach-001.npz", 20, seed=2, scene="novel")
    return directory


def test_scenes_left_out_are_not_read(play: Path, tmp_path: Path) -> None:
    table = read_play(play, scenes=["train_oak"])
    assert len(table.episodes) == 150 and {e.scene for e in table.episodes} == {"train_oak"}
    assert len(table.frames) == len(table.deltas) == 150 * 9
    training, test = held_out(table.episodes, 0.2)
    assert 10 < len(test) < 60 and len(training) + len(test) == 150
    with pytest.raises(EpisodeError, match="make play data"):
        read_play(play, scenes=["elsewhere"])
    (tmp_path / "x.npz").write_bytes(b"not an archive")
    with pytest.raises(EpisodeError, match=r"x\.npz"):
        read_play(tmp_path)


def test_an_arm_that_left_its_target_is_no_positive_example() -> None:
    tip = np.array([[0.2, 0, 0.08], [0.29, 0, 0.08], [0.3, 0, 0.08], [0.3, 0.0, 0.08], [0.2, 0.1, 0.08]], np.float32)
    block = np.repeat(np.array([[[0.3, 0.0, 0.02]]], np.float32), 5, axis=0)
    latched = np.array([False, False, True, True, True])
    episode = Episode(0, 4, TEXT, "reach", "s", "wander", 0, ("red block",), ())
    table = PlayTable(np.zeros((5, 2, 2, 3), np.uint8), np.zeros((5, 7), np.float32), tip, block, latched,
                      np.zeros((5, 0), bool), (episode,))
    labels = frame_labels(table, episode, TEXT)
    assert labels.done.tolist() == [False, False, True, True, False]
    assert labels.clear.tolist() == [True, False, True, True, False]
    assert labels.progress[2] == 1.0 and labels.progress[0] < labels.progress[1] < 1.0


def test_whoever_trains_says_where_labels_come_from(play: Path) -> None:
    table = read_play(play)
    won = next(e for e in table.episodes if table.labels(e, e.instruction)[-1])
    marked, measured = (WindowSampler(table, [won], *source).labels(won, won.instruction)
                        for source in ((), (frame_labels,)))
    assert marked.done.sum() == 1 and not marked.clear.all(), "an outcome says little of the frames before it"
    assert measured.clear.sum() > marked.clear.sum() and measured.graded.all()


def test_the_labels_follow_the_instruction(play: Path) -> None:
    table = read_play(play)
    for episode in table.episodes[:30]:
        other = frame_labels(table, episode, episode.alternatives[0])
        assert not (other.done & frame_labels(table, episode, episode.instruction).done).any()


# ---- trainings -------------------------------------------------------------------------------------------------------

def test_policy_then_judge_are_trained_from_play(play: Path, tmp_path: Path) -> None:
    """A few steps of each stage: losses fall, checkpoints and cards come out, figures are of held-out episodes."""
    quick = PolicyTraining(trunk_steps=4, bc_steps=25, trunk_batch=8, bc_batch=8, heldout_share=0.1)
    figures = train_policy(play, tmp_path / "policy", quick, ["train_oak"], sizes=TOY)
    policy = OpenVLA.from_pretrained(tmp_path / "policy")
    assert policy.base_hash == figures["sha256"] and policy.stats.q99[0] > 0.01
    assert figures["held-out episodes"] + figures["episodes"] == 150
    assert figures["demonstrations"] < figures["episodes"]
    assert "held-out" in (tmp_path / "policy" / "README.md").read_text()
    table = read_play(play)
    untrained = OpenVLA(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)), "")
    demos = [e for e in table.episodes if e.behaviour == "demo"]
    assert cloning_loss(policy, table, demos) < cloning_loss(untrained, table, demos) - 0.2
    figures = train_reflector(play, tmp_path / "judge", tmp_path / "policy", ReflectorTraining(steps=3, windows=4))
    row = figures["true frames, held out, reach"]
    assert abs(row["judged rate"] - row["true rate"]) < 0.1, "calibrated at the natural rate"
    again = train_reflector(play, tmp_path / "tuned", tmp_path / "judge", ReflectorTraining(steps=2, windows=4),
                            imagined=play, test=play)
    assert again["imagined frames, held out, all"]["episodes"] > 0 and again["test set, all"]["episodes"] == 170


def cloning_loss(policy: OpenVLA, table: PlayTable, demos: list[Episode]) -> float:
    """Loss of the first chunk of some demonstrations."""
    rows = np.array([e.first for e in demos[:40]])
    values = torch.from_numpy(policy.stats.normalise(table.deltas[rows[:, None] + np.arange(4)]))
    with torch.no_grad():
        logits = policy.logits(table.frames[rows], [e.instruction for e in demos[:40]])
    return float(soft_target_loss(logits, values, sigma_bins=4.0))


@pytest.mark.slow
def test_training_longer_localises_and_ranks(play: Path, tmp_path: Path) -> None:
    settings = PolicyTraining(trunk_steps=900, bc_steps=0, trunk_batch=32, heldout_share=0.1, muon_lr=4e-3)
    figures = train_policy(play, tmp_path / "trunk", settings, None, sizes=TOY)
    table = read_play(play)
    untrained = localisation_cm(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)), table, table.episodes, 0)
    assert figures["localisation on held-out episodes"]["tip_cm"] < 0.4 * untrained["tip_cm"]
    figures = train_reflector(play, tmp_path / "judge", tmp_path / "trunk",
                              ReflectorTraining(steps=250, windows=10, heldout_share=0.25))
    assert figures["true frames, held out, reach"]["auc"] > 0.85


def test_a_strict_judge_claims_few_failures_in_every_family() -> None:
    rng = np.random.default_rng(0)
    success = np.repeat([True, False], 200)
    family = np.tile(["reach", "push"], 200)
    logits = rng.normal(0, 1, 400) + 1.0 * success + 1.5 * (family == "reach")
    judge = SimpleNamespace(config=SimpleNamespace(logit_scale=2.0, logit_offset=1.0, done_threshold=0.5))
    be_strict(judge, Verdicts(logits, success, family), 0.1)  # type: ignore[arg-type]
    claims = judge.config.logit_scale * logits + judge.config.logit_offset > 0
    rates = [claims[(family == f) & ~success].mean() for f in ("reach", "push")]
    assert 0.05 < max(rates) <= 0.1
    before = judge.config.logit_offset
    be_strict(judge, Verdicts(logits[:5], np.zeros(5, bool), family[:5]), 0.0)  # type: ignore[arg-type]
    assert judge.config.logit_offset == before, "five failures say nothing"


def test_a_knocked_camera_moves_half_of_the_windows_a_little() -> None:
    frames = np.zeros((40, 2, 64, 64, 3), np.uint8)
    frames[:, :, 30:34, 30:34] = 255
    moved = reframe(torch.from_numpy(frames), np.random.default_rng(0)).numpy()
    assert moved.shape == frames.shape and moved.dtype == np.uint8
    same = (moved == frames).all(axis=(1, 2, 3, 4))
    assert 10 < same.sum() < 30
    assert (moved[:, 0] == moved[:, 1]).all()  # one camera per window
    weight = moved[:, 0, :, :, 0].astype(float)
    centre = (weight.sum(1) @ np.arange(64)) / weight.sum((1, 2))
    assert np.abs(centre - 31.5).max() < 3.5 and np.abs(centre[~same] - 31.5).max() > 0.5
