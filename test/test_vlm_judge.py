"""VLMJudge, on models that the public transformers classes made at tiny random size, in the published layout."""
from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vlm import IDEFICS, LLAVA, QWEN, SMOL, write_tiny_vlm

from world_gymnast_ros.adaptation.rollout import is_success, judge_safely
from world_gymnast_ros.errors import BadCheckpoint, BadConfig, BadFrame, BadInstruction
from world_gymnast_ros.models.judges import asking, vlm_processor
from world_gymnast_ros.models.judges.asking import success_logit
from world_gymnast_ros.models.judges.vlm import VLMConfig, VLMJudge

RNG = np.random.default_rng(0)
ROLLOUTS = RNG.integers(0, 256, (5, 11, 32, 32, 3), np.uint8)
REACH, PUSH = "reach the red block", "push the blue block left"
SETTINGS = {"frames": 3, "frame_px": 64, "min_label_share": 0.0}
PARTLY = {"*": "The arm is near the block."}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlm")
    return {family: write_tiny_vlm(root / family, family) for family in (QWEN, IDEFICS, LLAVA)}


@pytest.fixture(scope="module")
def judges(folders: dict[str, Path]) -> dict[str, VLMJudge]:
    return {family: VLMJudge.from_pretrained(folder, **SETTINGS) for family, folder in folders.items()}


def scores(judge: VLMJudge, frames: np.ndarray, words: str) -> np.ndarray:
    return np.array([np.nan if j.score is None else j.score for j in judge.score(frames, words)])


@pytest.mark.parametrize("family", [QWEN, IDEFICS, LLAVA])
def test_it_equals_the_library_s_own_label_probabilities(family: str, judges: dict[str, VLMJudge]) -> None:
    """Against `DecisionPipeline` of transformers, one request for each rollout, images included."""
    from transformers import DecisionPipeline
    from transformers.decision import DecisionConfig
    judge = judges[family]
    plain_text = DecisionConfig(sanitize_control_tokens=family != IDEFICS)  # which Idefics3's processor cannot do
    pipeline = DecisionPipeline(model=judge.model, tokenizer=judge.processor.tokenizer, processor=judge.processor,
                                decision_config=plain_text)
    graded = VLMJudge(judge.model, judge.processor, VLMConfig(**SETTINGS, partial_credit=PARTLY))
    for words in (REACH, PUSH):
        frames = judge.config.pick(ROLLOUTS)
        for rollout, plain, partly in zip(frames, judge.score(ROLLOUTS, words), graded.score(ROLLOUTS, words),
                                          strict=True):
            assets = {f"img-{i}": Image.fromarray(rgb) for i, rgb in enumerate(rollout)}
            context = judge.config.context.replace("{frames}", "3").replace("{instruction}", words)
            request: dict[str, Any] = {"state": "".join(assets) + context, "assets": assets, "questions": {
                "done": {"type": "noul", "instructions": judge.config.question},
                "level": {"type": "score", "instructions": judge.config.question,
                          "criteria": [asking.NOTHING, PARTLY["*"], asking.DONE]}}}
            wanted = pipeline(request)
            assert plain.score == pytest.approx(wanted["done"]["noul"], abs=1e-6) and plain.progress is None
            assert partly.score == pytest.approx(wanted["level"]["probabilities"]["2"], abs=1e-6)
            assert partly.progress == pytest.approx(wanted["level"]["score"] / 2, abs=1e-6)


@pytest.mark.parametrize("family", [QWEN, IDEFICS, LLAVA])
def test_a_batch_equals_one_by_one_and_leaves_nothing_behind(family: str, judges: dict[str, VLMJudge]) -> None:
    judge = judges[family]
    whole = scores(judge, ROLLOUTS, REACH)
    assert np.isfinite(whole).all() and np.ptp(whole) > 1e-4, "it sees the frames"
    assert np.abs(whole - scores(judge, ROLLOUTS, PUSH)).max() > 1e-4, "it reads the instruction"
    one_by_one = np.concatenate([scores(judge, ROLLOUTS[i:i + 1], REACH) for i in range(len(ROLLOUTS))])
    assert np.allclose(whole, one_by_one, atol=1e-6)
    assert (scores(judge, ROLLOUTS, REACH) == whole).all()
    assert np.allclose(scores(judge, ROLLOUTS[::-1].copy(), REACH)[::-1], whole, atol=1e-6)


def test_it_needs_no_torchvision_where_the_library_s_processor_does(folders: dict[str, Path]) -> None:
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available
    if is_torchvision_available():
        pytest.skip("torchvision is installed")
    with pytest.raises(ValueError, match="torchvision"):
        AutoProcessor.from_pretrained(folders[QWEN])
    assert vlm_processor.load_processor(folders[QWEN]).video_processor is None


def test_smolvlm_is_read_without_the_package_that_its_processor_needs_for_videos(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to SmolVLM's own processor, which only spells numbers of video frames with num2words."""
    from transformers.models.smolvlm import processing_smolvlm
    judge = VLMJudge.from_pretrained(write_tiny_vlm(tmp_path / SMOL, SMOL), **SETTINGS)
    assert np.isfinite(scores(judge, ROLLOUTS, REACH)).all() and np.ptp(scores(judge, ROLLOUTS, REACH)) > 1e-4
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
    own = type("Own", (processing_smolvlm.SmolVLMProcessor,), {"check_argument_for_proper_class": lambda *_: None})(
        judge.processor.image_processor, judge.processor.tokenizer, None, image_seq_len=4)
    talk = [{"role": "user", "content": [*({"type": "image", "image": Image.fromarray(ROLLOUTS[0, t])} for t in (0, 5)),
                                         {"type": "text", "text": REACH}]}]
    text = judge.processor.apply_chat_template(talk, add_generation_prompt=True)
    images = [[Image.fromarray(ROLLOUTS[0, t]) for t in (0, 5)]]
    mine, wanted = (p(text=[text], images=images, return_tensors="pt") for p in (judge.processor, own))
    assert mine.keys() == wanted.keys() and all(torch.equal(mine[k], wanted[k]) for k in wanted)


def test_the_last_frames_decide_and_the_first_is_seen(judges: dict[str, VLMJudge]) -> None:
    judge = judges[QWEN]
    for t, seen in ((0, True), (5, True), (10, True), (2, False), (9, False)):  # 3 of 11
        changed = ROLLOUTS.copy()
        changed[:, t] = 255 - changed[:, t]
        assert (np.abs(scores(judge, changed, REACH) - scores(judge, ROLLOUTS, REACH)).max() > 1e-6) == seen, t


def test_short_rollouts_and_other_sizes_are_seen_at_one_height(judges: dict[str, VLMJudge]) -> None:
    config = judges[QWEN].config
    assert config.pick(ROLLOUTS[:, :2]).shape == (5, 2, 64, 64, 3) and config.pick(ROLLOUTS[:, :1]).shape[1] == 1
    wide = RNG.integers(0, 256, (1, 4, 24, 32, 3), np.uint8)
    assert config.pick(wide).shape == (1, 3, 64, 85, 3), "not squashed"
    assert np.isfinite(scores(judges[QWEN], wide, REACH)).all()


def test_calibration_moves_the_score_and_never_the_order(folders: dict[str, Path], tmp_path: Path) -> None:
    judge = VLMJudge.from_pretrained(folders[QWEN], **SETTINGS)
    before, logits = scores(judge, ROLLOUTS, REACH), judge.success_logits(ROLLOUTS, REACH)
    assert np.allclose(before, 1 / (1 + np.exp(-logits)), atol=1e-6)
    judge.calibrate(2.0, -1.5)
    after = scores(judge, ROLLOUTS, REACH)
    assert np.allclose(after, 1 / (1 + np.exp(1.5 - 2 * logits)), atol=1e-6)
    judge.save(tmp_path / "mine")
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["config.json"], "the weights are not copied"
    again = VLMJudge.from_pretrained(tmp_path / "mine")
    assert again.name == judge.name == QWEN and (scores(again, ROLLOUTS, REACH) == after).all()


def test_partial_credit_never_makes_a_success(judges: dict[str, VLMJudge]) -> None:
    judgement = VLMConfig().judge(np.log([0.02, 0.95, 0.03]))
    assert judgement.score == pytest.approx(0.03) and judgement.progress == pytest.approx(0.505)
    assert not is_success(judgement)
    config = VLMConfig(partial_credit={"Close the drawer.": "It moved.", "*": "Near."})
    assert config.credit("close the  drawer") == "It moved." and config.credit("reach") == "Near."
    assert "B. Near.\n" in config.prompt("reach", 3) and "(A to C)" in config.prompt("reach", 3)
    only = VLMConfig(partial_credit={"close the drawer": "It moved."})
    assert only.labels("reach") == ("Yes", "No") and "Answer Yes or No only." in only.prompt("reach", 3)


@pytest.mark.parametrize(("logs", "logit"), [
    ([0.0, 0.0], 0.0), ([0.0, -math.inf], 30.0), ([-math.inf, 0.0], -30.0), ([-math.inf, -math.inf], math.nan),
    ([math.nan, 0.0], math.nan), ([math.inf, 0.0], math.nan), ([-1.0, -1.0, -3.0], -2.0 - math.log(2)),
    ([-math.inf, -math.inf, -4.0], 30.0), ([0.0, 0.0, -math.inf], -30.0)])
def test_logits_of_log_probabilities(logs: list[float], logit: float) -> None:
    assert success_logit(np.array(logs)) == pytest.approx(logit, nan_ok=True)


def test_a_model_that_answers_something_else_has_no_verdict(folders: dict[str, Path]) -> None:
    judge = VLMJudge.from_pretrained(folders[QWEN], **{**SETTINGS, "min_label_share": 0.9})
    for judgement in judge.score(ROLLOUTS, REACH):
        assert judgement.score is None and "answers something else: Yes, No have" in judgement.detail
    assert np.isnan(judge.success_logits(ROLLOUTS, REACH)).all()


def test_numbers_that_are_not_finite_and_faults_inside_are_no_verdict(folders: dict[str, Path],
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    judge = VLMJudge.from_pretrained(folders[QWEN], **SETTINGS)
    with torch.no_grad():
        judge.model.lm_head.weight.fill_(math.nan)
    assert [j.score for j in judge.score(ROLLOUTS, REACH)] == [None] * 5
    assert "not finite" in judge.score(ROLLOUTS, REACH)[0].detail

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(judge.model, "forward", out_of_memory)
    found = judge_safely(judge, ROLLOUTS, REACH)
    assert len(found) == 5 and all(j.score is None and "CUDA out of memory" in j.detail for j in found)


def test_what_the_caller_did_wrong_is_raised(judges: dict[str, VLMJudge]) -> None:
    judge = judges[QWEN]
    with pytest.raises(BadInstruction, match="empty"):
        judge.score(ROLLOUTS, "  ")
    with pytest.raises(BadInstruction, match=r"<\|image_pad\|>"):
        judge.score(ROLLOUTS, "reach <|image_pad|>")
    for wrong in (ROLLOUTS[0], ROLLOUTS.astype(np.float32), ROLLOUTS[..., :2], ROLLOUTS[:, :0]):
        with pytest.raises(BadFrame, match="G, T"):
            judge.score(wrong, REACH)
    assert judge.score(ROLLOUTS[:0], REACH) == []


@pytest.mark.parametrize(("change", "says"), [
    ({"frames": 0}, "frames is 0"), ({"frame": 3}, "unknown key 'frame'"), ({"batch": 1.5}, "batch is 1.5"),
    ({"context": "go"}, "must hold {instruction}"), ({"partial_credit": "near"}, "partial_credit is 'near'"),
    ({"partial_credit": {"*": ""}}, "partial_credit of '*'"), ({"logit_scale": float("nan")}, "logit_scale is nan"),
    ({"logit_scale": -1.0}, "logit_scale is -1")])
def test_settings_are_checked(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadConfig) as error:
        VLMConfig.from_dict({"model": "x", **change}, "config.json")
    assert says in str(error.value)


@pytest.fixture()
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders[QWEN], tmp_path / "copy"))


def test_missing_files_are_named(copy: Path) -> None:
    gone = [copy / name for name in ("model-00002-of-00008.safetensors", "preprocessor_config.json", "tokenizer.json")]
    for file in gone:
        file.unlink()
    with pytest.raises(BadCheckpoint) as error:
        VLMJudge.from_pretrained(copy)
    for name in ("model-00002-of-00008.safetensors", "preprocessor_config.json", "tokenizer.json or"):
        assert name in str(error.value)
    assert "model-00001" not in str(error.value)


def test_offline_a_hub_name_says_what_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copy: Path) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no network")
    monkeypatch.setattr("world_gymnast_ros.models.hub.snapshot_download", offline)
    with pytest.raises(BadCheckpoint, match=r"'Qwen/Qwen3-VL-4B-Instruct' is neither.*no network.*needed: \*\.json"):
        VLMJudge.from_pretrained("Qwen/Qwen3-VL-4B-Instruct")
    (copy / "model-00003-of-00008.safetensors").unlink()  # what a broken download leaves in the cache
    monkeypatch.setattr("world_gymnast_ros.models.hub.snapshot_download", lambda *_, **__: str(copy))
    with pytest.raises(BadCheckpoint, match=r"Qwen/Qwen3-VL-4B-Instruct lacks model-00003-of-00008.safetensors"):
        VLMJudge.from_pretrained("Qwen/Qwen3-VL-4B-Instruct")
    with pytest.raises(BadCheckpoint, match="does not exist"):
        VLMJudge.from_pretrained(tmp_path / "nowhere")


def test_what_is_no_judge_is_refused(copy: Path, folders: dict[str, Path]) -> None:
    (copy / "chat_template.json").unlink()
    with pytest.raises(BadCheckpoint, match="no chat template: it is no instruction-tuned model"):
        VLMJudge.from_pretrained(copy)
    words = json.loads((copy / "tokenizer.json").read_text())
    words["model"]["vocab"] = {k if k != "Yes" else "Yeah": v for k, v in words["model"]["vocab"].items()}
    shutil.copy(folders[QWEN] / "chat_template.json", copy)
    (copy / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(BadCheckpoint, match="Yes, No are not single tokens"):
        VLMJudge.from_pretrained(copy)
    config = json.loads((copy / "config.json").read_text())
    narrow = {**config["text_config"], "intermediate_size": 16}
    for change, says in (({"text_config": narrow}, r"mismatched model\.language_model"),
                         ({"model_type": "llama"}, "holds a 'llama'"),
                         ({"model_type": "nonsense"}, "holds a 'nonsense'"),
                         ({"model_type": "nonsense", "auto_map": {"AutoConfig": "x.py"}}, "holds a 'nonsense'")):
        (copy / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(BadCheckpoint, match=says):
            VLMJudge.from_pretrained(copy)


def test_tensors_that_do_not_fit_are_named(copy: Path) -> None:
    """A layer too many is as wrong as one too few: config.json then counts fewer layers than were trained."""
    from safetensors.torch import load_file, save_file
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    shard = copy / index["weight_map"]["lm_head.weight"]
    tensors = load_file(shard)
    extra = "model.language_model.layers.2.mlp.up_proj.weight"
    save_file({**tensors, extra: torch.zeros(48, 32)}, shard, {"format": "pt"})
    index["weight_map"][extra] = shard.name
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match=rf"does not fit its config\.json: unexpected {extra}; "):
        VLMJudge.from_pretrained(copy)
    save_file({**{k: v for k, v in tensors.items() if k != "lm_head.weight"}, extra: torch.zeros(48, 32)}, shard,
              {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=rf"missing lm_head\.weight, unexpected {extra}"):
        VLMJudge.from_pretrained(copy)
    save_file({**tensors, "lm_head.weight": torch.zeros(5, 32)}, shard, {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"mismatched lm_head\.weight"):
        VLMJudge.from_pretrained(copy)


def test_half_precision_is_a_parameter(folders: dict[str, Path], judges: dict[str, VLMJudge]) -> None:
    half = VLMJudge.from_pretrained(folders[QWEN], dtype=torch.bfloat16, **SETTINGS)
    assert half.dtype == torch.bfloat16 and judges[QWEN].dtype == torch.float32
    assert np.abs(scores(half, ROLLOUTS, REACH) - scores(judges[QWEN], ROLLOUTS, REACH)).max() < 0.1
