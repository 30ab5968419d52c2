"""Vision-language judges by their names: folder, hub name, address; calibrated on recordings, measured by replay."""
from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Said, chat_server, completion
from PIL import Image
from tiny_vlm import QWEN, write_tiny_vlm
from toy_play import write_toy_play

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.cli import main
from world_gymnast_ros.errors import BadCheckpoint, BadConfig
from world_gymnast_ros.loading.load import JUDGE, geometric_judge, is_learned_judge, load, load_judges
from world_gymnast_ros.loading.release import judge_hashes
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.remote import RemoteConfig, RemoteJudge
from world_gymnast_ros.models.judges.vlm import VLMConfig, VLMJudge
from world_gymnast_ros.types import Counts
from world_gymnast_ros.updates.calibration import LogitJudge
from world_gymnast_ros.updates.run import Run

SEES_BRIGHTNESS = 2
"""Seed of a random tiny model that happens to say yes to bright images."""
URL = "http://127.0.0.1:9/v1#toy"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vlm(tmp_path_factory.mktemp("models") / "tiny-vlm", QWEN, SEES_BRIGHTNESS)


@pytest.fixture()
def settings(vlm: Path, tmp_path: Path) -> Path:
    """The folder of a judge: how the model is asked, and where it is."""
    VLMConfig(model=str(vlm), frames=2, frame_px=32, min_label_share=0.0).save(tmp_path / "asked")
    return tmp_path / "asked"


def test_every_name_loads_its_class(vlm: Path, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load(JUDGE, vlm), VLMJudge) and isinstance(load(JUDGE, settings), VLMJudge)
    assert isinstance(load(JUDGE, URL), RemoteJudge)
    RemoteConfig(model=URL, votes=3).save(tmp_path / "server")
    assert load(JUDGE, tmp_path / "server").config.votes == 3
    assert load(JUDGE, vlm, "cpu", "bfloat16").dtype == torch.bfloat16
    monkeypatch.setattr("world_gymnast_ros.models.hub.snapshot_download", lambda *_, **__: str(vlm))
    hub = load(JUDGE, "Qwen/Qwen3-VL-4B-Instruct")
    assert isinstance(hub, VLMJudge) and hub.name == "Qwen3-VL-4B-Instruct"
    for names in (["tiny/reflector", str(settings), URL], f"tiny/reflector, {settings}, {URL}"):
        judge = load_judges(names)
        assert isinstance(judge, Consensus) and [j.name for j in judge.judges] == ["reflector-tiny", "tiny-vlm",
                                                                                    "toy@127.0.0.1:9/v1"]
        assert isinstance(judge, Counts) and judge.spent.startswith("toy@127.0.0.1:9/v1: 0 of 0 rollouts")
    assert geometric_judge([str(vlm), URL, "Qwen/Qwen3-VL-4B-Instruct", "tiny/locator"]) == "tiny/locator"
    assert geometric_judge([str(vlm), URL]) == ""


def test_names_that_are_nothing_say_what_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no network")
    monkeypatch.setattr("world_gymnast_ros.models.hub.snapshot_download", offline)
    for name, says in (("/nowhere", "address of a server"), ("tiny/reflecter", "tiny/reflector"),
                       ("Qwen/Qwen3-VL-4B-Instruct", "no network"), ("ftp://gpu/v1", "address of a server")):
        with pytest.raises(BadCheckpoint, match=says):
            load_judges(name)
    with pytest.raises(BadConfig, match="address of a model server"):
        load_judges("http://gpu:99999/v1")
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadCheckpoint, match=r"holds a 'llama'.*any image-text model"):
        load_judges(str(tmp_path / "llm"))


def test_the_release_is_of_the_model_and_of_how_it_is_asked(vlm: Path, settings: Path) -> None:
    first = judge_hashes(str(settings))
    assert {"model/config.json", "model/tokenizer.json", "model/model-00001-of-00008.safetensors"} < set(first)
    VLMConfig.from_dict({**json.loads((settings / "config.json").read_text()), "frames": 3}).save(settings)
    assert judge_hashes(str(settings)) != first, "asked otherwise"
    assert judge_hashes(URL) != judge_hashes(URL.replace("toy", "other"))
    plain = judge_hashes(str(vlm))
    assert "settings" in plain and plain["tokenizer.json"] == first["model/tokenizer.json"]
    assert judge_hashes("tiny/reflector").keys() == {"config.json", "model.safetensors"}


def test_the_loop_says_whom_it_can_teach(settings: Path, vlm: Path) -> None:
    assert is_learned_judge("tiny/reflector")
    assert not any(is_learned_judge(name) for name in (str(settings), str(vlm), URL, "Qwen/Qwen3-VL", "tiny/locator"))
    with pytest.raises(BadCheckpoint, match="does not exist"):
        is_learned_judge("/nowhere")
    run = object.__new__(Run)
    run.adapt = AdaptNodeConfig(judges=f"{URL}, tiny/locator")
    with pytest.raises(BadConfig, match="learns nothing from recordings but its calibration"):
        run.start()


def write_recordings(path: Path, episodes: int = 48, steps: int = 4) -> None:
    """Episodes that end bright where they succeeded."""
    rng = np.random.default_rng(0)
    success = np.arange(episodes) % 2 == 0
    level = np.where(success[:, None], np.linspace(60, 220, steps + 1), 60.0) + rng.normal(0, 6, (episodes, steps + 1))
    frames = np.clip(level[:, :, None, None, None] + rng.normal(0, 4, (episodes, steps + 1, 32, 32, 3)), 0, 255)
    done = np.zeros((episodes, steps + 1), np.bool_)
    done[success, -1] = True
    np.savez(path, frames=frames.astype(np.uint8), deltas=np.zeros((episodes, steps, 7), np.float32),
             states=np.zeros((episodes, steps + 1, 7), np.float32), length=np.full(episodes, steps, np.int32),
             family=np.full(episodes, "reach"), instruction=np.full(episodes, "reach the red block"), success=done)


def last_level(request: dict[str, Any]) -> float:
    """Brightness of the last image of a request, 0 to 1."""
    image = [part for part in request["messages"][0]["content"] if part["type"] == "image_url"][-1]
    data = image["image_url"]["url"].partition(",")[2]
    return float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean()) / 255


def sees(request: dict[str, Any], n: int) -> Said:
    """Says yes to what ends bright, far too hesitantly; every twelfth question is left without an answer."""
    if n % 12 == 11:
        return Said(b"<html>busy</html>")
    p = 0.25 + 0.3 * last_level(request)
    return completion("No", tokens=[[{"Yes": math.log(p), "No": math.log(1 - p)}]])


def test_calibrated_on_recordings_a_server_means_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                             ) -> None:
    write_recordings(tmp_path / "episodes.npz")
    with chat_server(sees) as heard:
        words = ["judge", "calibrate", "--episodes", str(tmp_path), "--judge", heard.url + "#toy", "--threads", "1",
                 "--refuse-above", "0.5"]
        assert main([*words, "--out", str(tmp_path / "mine")]) == 0
        said = capsys.readouterr().out
        assert "4 of 48 rollouts without a verdict" in said and said.count("the judge has no verdict") == 4
        assert "episodes 44, half fitted, half measured" in said and "AUC 1.000" in said
        judge = load_judges(str(tmp_path / "mine"))
        assert isinstance(judge, RemoteJudge) and isinstance(judge, LogitJudge)
        ends = np.zeros((2, 5, 32, 32, 3), np.uint8)
        ends[0], ends[1] = 220, 60
        good, bad = judge.score(ends, "reach the red block")
        assert main([*words, "--task", "push"]) == 2 and "at least 20" in capsys.readouterr().err
    assert good.score > 0.8 and bad.score < 0.2, "before: 0.51 and 0.32"


def test_calibrated_on_recordings_a_model_means_what_it_says(settings: Path, tmp_path: Path,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    write_recordings(tmp_path / "data" / "episodes.npz")
    words = ["judge", "calibrate", "--episodes", str(tmp_path / "data"), "--judge", str(settings), "--threads", "1"]
    assert main([*words, "--refuse-above", "0.5", "--out", str(tmp_path / "mine")]) == 0
    assert "AUC 1.000" in capsys.readouterr().out and "<svg" in (tmp_path / "mine" / "calibration.html").read_text()
    before, after = load(JUDGE, settings), load(JUDGE, tmp_path / "mine")
    assert (after.config.logit_scale, after.config.logit_offset) != (1.0, 0.0)
    assert before.config.model == after.config.model and isinstance(after, LogitJudge)
    assert main([*words[:2], "--play", str(tmp_path / "data"), *words[4:]]) == 2
    assert "--play is for the learned judge" in capsys.readouterr().err
    assert main([*words[:4], "--judge", "tiny/locator"]) == 2 and "judge learn" in capsys.readouterr().err


def test_a_judge_that_tells_nothing_apart_is_refused(vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                     ) -> None:
    """It would have no false success: it would call nothing a success."""
    write_recordings(tmp_path / "episodes.npz")
    backwards = write_tiny_vlm(tmp_path / "backwards", QWEN, 5)
    VLMConfig(model=str(backwards), frames=2, frame_px=32, min_label_share=0.0).save(tmp_path / "asked")
    words = ["judge", "calibrate", "--episodes", str(tmp_path / "episodes.npz"), "--judge", str(tmp_path / "asked")]
    assert main([*words, "--threads", "1", "--refuse-above", "0.9", "--out", str(tmp_path / "out")]) == 1
    assert "refused: AUC 0.000 is below 0.7" in capsys.readouterr().out
    assert not (tmp_path / "out" / "config.json").exists()


def test_replay_measures_them_with_a_world_model(settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                 ) -> None:
    write_toy_play(tmp_path / "play" / "a.npz", 6, 0)
    with chat_server(lambda request, n: completion("Yes") if last_level(request) > 0.3 else Said(drop=True)) as heard:
        words = ["bench", "replay", "--episodes", str(tmp_path / "play"), "--judge", str(settings), "--judge",
                 heard.url + "#toy", "--most", "6", "--copies", "1", "--threads", "1"]
        assert main(words) == 0
    said = capsys.readouterr().out
    assert "| reach | 6 (" in said and "toy@127.0.0.1" in said and "12 rollouts without a verdict" in said
