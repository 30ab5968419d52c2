"""Edited starts: whatever an editor paints, arm and objects stay as they were; editors that fail end nothing."""
from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Said, chat_server, completion
from PIL import Image
from test_adapt_node import save_toys
from test_practice import groups, session
from test_variation import CAMERA, START, STATE, table_with_a_block
from tiny_inpainting import write_tiny_inpainting

from world_gymnast_ros.adaptation.editing import Canvas, edited
from world_gymnast_ros.adaptation.log import StripKind
from world_gymnast_ros.adaptation.practice import Practice, VariedStart
from world_gymnast_ros.adaptation.record import SessionRecord
from world_gymnast_ros.adaptation.variation import ARM_MARGIN, arm_distance
from world_gymnast_ros.cli import main
from world_gymnast_ros.errors import BadCheckpoint, BadFrame, RemoteModelError
from world_gymnast_ros.loading.load import load_editor
from world_gymnast_ros.models.inpainting import InpaintingEditor
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.remote import RemoteConfig, RemoteJudge
from world_gymnast_ros.report.html import CAPTURED_PX, png
from world_gymnast_ros.report.session_report import write_report
from world_gymnast_ros.serving import openai_client
from world_gymnast_ros.testing.fakes import FakeJudge, start_frame
from world_gymnast_ros.types import Frame, Judgement, Start
from world_gymnast_ros.updates.variations import DONE_ALREADY, NOT_POSSIBLE, make_edits

torch.set_num_threads(1)
PROMPTS = ["a red cloth", "a mug"]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "FIRST_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_inpainting(tmp_path_factory.mktemp("inpainting"))


class Paints:
    """Does with an image what a test says, mask or not."""

    name = "painter"

    def __init__(self, paint: Callable[[np.ndarray], np.ndarray]) -> None:
        self.does, self.asked = paint, []

    def paint(self, rgb: np.ndarray, mask: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        self.asked.append((mask, prompt, seed))
        return self.does(rgb)


class Sure(FakeJudge):
    """Has one opinion."""

    def __init__(self, score: float | None = 0.1) -> None:
        self.opinion = score

    def score(self, frames, instruction, facts=None):  # type: ignore[no-untyped-def]
        return [Judgement(self.opinion, detail="" if self.opinion is not None else "nothing found")] * len(frames)


def magenta(rgb: np.ndarray) -> np.ndarray:
    return np.full_like(rgb, (255, 0, 255))


def untouched(start: Start) -> None:
    """Check arm, block and wall of an edited start pixel for pixel."""
    arm = arm_distance(STATE, CAMERA, (144, 192)) <= ARM_MARGIN
    assert 0.02 < arm.mean() < 0.6
    np.testing.assert_array_equal(start.frame.rgb[arm], START.frame.rgb[arm])
    changed = (start.frame.rgb != START.frame.rgb).any(-1)
    assert changed.any() and not changed[99:115, 119:135].any() and not changed[:30].any()
    np.testing.assert_array_equal(start.captured.rgb, START.frame.rgb)
    np.testing.assert_array_equal(start.state, STATE)


@pytest.mark.parametrize("size_px", [64, 192, 520])
def test_whatever_an_editor_paints_arm_and_objects_stay_as_they_were(size_px: int) -> None:
    editor = Paints(magenta)
    start = edited(START, CAMERA, editor, "a cloth", size_px, 3)
    untouched(start)
    assert (start.frame.rgb[130:140, 10:20] == (255, 0, 255)).all(), "the middle of bare table is the editor's"
    mask, prompt, seed = editor.asked[0]
    assert mask.shape == (size_px, size_px) and mask.any() and (prompt, seed) == ("a cloth", 3)
    assert not mask[Canvas((144, 192), size_px).held[0]:].any(), "beside the frame nothing is asked for"
    keep = np.zeros((144, 192), bool)
    keep[120:] = True
    kept = edited(START, CAMERA, editor, "a cloth", size_px, 3, keep)
    np.testing.assert_array_equal(kept.frame.rgb[120:], START.frame.rgb[120:])


def test_a_tiny_pipeline_paints_and_the_arm_is_untouched(pipeline: Path) -> None:
    editor = InpaintingEditor.from_pretrained(str(pipeline), steps=2)
    made = make_edits([START], Sure(), [CAMERA], editor, PROMPTS, 2, 64, 0)
    assert len(made.starts) == 2 and made.edits == ("a red cloth", "a mug") and not made.dropped
    assert "2 of 2 starts edited by pipeline are used" in made.summary
    for start in made.starts:
        untouched(start)
    again = make_edits([START], Sure(), [CAMERA], editor, PROMPTS, 2, 64, 0)
    assert all((a.frame.rgb == b.frame.rgb).all() for a, b in zip(made.starts, again.starts, strict=True))
    assert (made.starts[0].frame.rgb != made.starts[1].frame.rgb).any()
    with pytest.raises(RemoteModelError, match="no image within 0 s"):
        InpaintingEditor(editor.pipeline, "slow", 0.0, 2).paint(np.zeros((64, 64, 3), np.uint8),
                                                                np.ones((64, 64), bool), "a mug", 0)
    with pytest.raises(RemoteModelError, match="pipeline: "):
        editor.paint(np.zeros((63, 63, 3), np.uint8), np.ones((63, 63), bool), "a mug", 0)


def test_folders_that_are_no_pipeline_are_refused(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="nowhere does not exist"):
        load_editor("/nowhere")
    with pytest.raises(BadCheckpoint, match="model_index"):
        load_editor(str(tmp_path), "cpu")
    index = json.loads((pipeline / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "unet": ["os", "system"]}))
    with pytest.raises(BadCheckpoint, match=r"not diffusers' own: unet \(os\)"):
        load_editor(str(tmp_path), "cpu")
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match="cannot be loaded as an inpainting pipeline"):
        load_editor(str(tmp_path), "cpu")


def answer(image: np.ndarray) -> Said:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return Said(json.dumps({"data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]}).encode())


def square(px: int = 64) -> np.ndarray:
    return np.full((px, px, 3), (255, 0, 255), np.uint8)


def test_an_images_endpoint_gets_image_mask_and_words() -> None:
    def script(request: dict[str, Any], n: int) -> Said:
        if "response_format" in request:
            return Said(b'{"error": {"message": "Unknown parameter: response_format"}}', 400)
        return answer(square())
    with chat_server(script) as heard:
        made = make_edits([START], Sure(), [CAMERA], load_editor(heard.url), PROMPTS, 2, 64, 0)
    assert len(made.starts) == 2 and len(heard.requests) == 3, "what it refuses by name is left out from then on"
    untouched(made.starts[0])
    request = heard.requests[0]
    assert {k: request[k] for k in ("model", "prompt", "size", "n")} == {
        "model": "toy", "prompt": "a red cloth", "size": "64x64", "n": "1"}
    sent, hole = (np.asarray(Image.open(io.BytesIO(request[k]))) for k in ("image", "mask"))
    assert sent.shape == (64, 64, 3) and hole.shape == (64, 64, 4)
    np.testing.assert_array_equal(sent, Canvas((144, 192), 64).put(START.frame.rgb))
    assert 0.05 < (hole[..., 3] == 0).mean() < 0.7 and (hole[:10, :, 3] == 255).all()


@pytest.mark.parametrize(("said", "why"), [
    (Said(delay_s=60.0), "no answer within"), (Said(b"{}", 500), "500"), (Said(drop=True), "cannot be asked"),
    (answer(square(32)), "32x32 pixels, 64x64 were sent"), (Said(b'{"data": []}'), "no image"),
    (Said(b'{"data": [{"url": "http://x/y.png"}]}'), "not fetched"),
    (Said(b'{"data": [{"b64_json": "AAAA"}]}'), "is no image"),
    (answer(Canvas((144, 192), 64).put(START.frame.rgb)), "changed nothing")])
def test_an_editor_that_hangs_fails_or_answers_another_size_is_told_and_given_up(said: Said, why: str) -> None:
    with chat_server(lambda request, n: said if n else answer(square())) as heard:
        made = make_edits([START], Sure(), [CAMERA], load_editor(heard.url, timeout_s=0.5), PROMPTS, 6, 64, 0)
    assert len(made.starts) == 1, "what was made before is used"
    [(reason, count), *rest] = made.dropped.items()
    assert why in reason and count == 2 and rest == [("not asked for, since the editor failed", 3)]
    assert "1 of 6 starts edited by toy@127.0.0.1" in made.summary


def test_judges_look_at_each_and_may_find_it_impossible() -> None:
    def edits(judge: Any) -> Any:
        return make_edits([START], judge, [CAMERA], Paints(magenta), PROMPTS, 2, 64, 0)
    assert edits(Sure(0.9)).dropped == {DONE_ALREADY: 2} and edits(Sure(None)).dropped == {"nothing found": 2}
    with chat_server(lambda request, n: completion("Yes" if n < 3 else "No")) as heard:
        asked = RemoteJudge(RemoteConfig(model=heard.url, votes=3, frame_px=32, partial_credit={"*": "Half."}), {})
        made = edits(Consensus((Sure(), asked)))
    text = heard.requests[0]["messages"][0]["content"][-1]["text"]
    assert "told: go right" in text and "visible" in text and "Yes or No" in text
    assert made.dropped[NOT_POSSIBLE] == 1 and asked.config.partial_credit, "and it judges rollouts as before"


def test_what_cannot_be_edited_is_told() -> None:
    painter = Paints(magenta)
    with pytest.raises(BadFrame, match="state"):
        edited(Start(START.frame, None, "go right"), CAMERA, painter, "a cloth", 64, 0)
    noise = Frame(np.random.default_rng(0).integers(0, 256, (144, 192, 3), np.uint8), 0)
    made = make_edits([Start(noise, STATE, "go right")], Sure(), [CAMERA], painter, PROMPTS, 3, 64, 0)
    assert not painter.asked and "bare table" in made.summary
    stopped = make_edits([START], Sure(), [CAMERA], painter, PROMPTS, 3, 64, 0, cancelled=lambda: True)
    assert stopped.dropped == {"cancelled": 3}


def test_edited_starts_are_practised_on_and_shown(tmp_path: Path) -> None:
    captured = Start(start_frame(16), None, "go right")
    other = Start(start_frame(14), None, "go right", original=captured.frame)
    report = session([captured], practice=Practice(edited=(VariedStart(other, "a <red> cloth"),), notes=("1 of 1",)),
                     log=tmp_path / "s.jsonl")
    assert {e["start"] for e in groups(tmp_path / "s.jsonl")} == {"captured", "varied"}
    [strip] = [s for s in report.strips if s.kind is StripKind.VARIED]
    assert strip.title == "edited start: go right" and strip.note.endswith("a <red> cloth")
    page = write_report(tmp_path / "r.html", SessionRecord(report)).read_text()
    assert "on the right: a &lt;red&gt; cloth" in page and "1 of 1." in page
    assert png(other.frame.rgb, CAPTURED_PX, 1.0) in page and png(captured.frame.rgb, CAPTURED_PX) in page


@pytest.mark.parametrize(("said", "why"), [
    (answer(square(32)), "32x32 pixels"), (Said(delay_s=60.0), "no answer within"), (Said(b"oh", 503), "503"),
    (Said(drop=True), "cannot be asked")])
def test_a_session_goes_on_with_what_it_has(said: Said, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                            ) -> None:
    toys = save_toys(tmp_path / "toys")
    Image.fromarray(table_with_a_block()).save(tmp_path / "a.png")
    words = ["adapt", "reach the red block", "--frame", str(tmp_path / "a.png"), "--state", *map(str, STATE),
             "--updates", "1", "--dry-run", "--out", str(tmp_path / "runs"), "--edits", "3", "--set",
             f"policy={toys.policy}", f"judges={toys.judge}", f"world_model={toys.world_model}", "copies=2",
             "select_groups=1", "promotion_groups=4", "held_out_copies=1", "threads=1", "min_release_auc=0",
             "editor_px=64", "editor_timeout_s=0.5"]
    assert main(words) == 2 and "--edits 3 needs an image editor" in capsys.readouterr().err
    with chat_server(lambda request, n: said) as heard:
        assert main([*words[:1], "--editor", heard.url, *words[1:]]) in (0, 1)
    assert "note: 0 of 3 starts edited by toy@127.0.0.1" in (out := capsys.readouterr().out) and why in out
    [page] = (tmp_path / "runs").rglob("report.html")
    assert "0 of 3 starts edited by toy@127.0.0.1" in page.read_text() and why in page.read_text()
