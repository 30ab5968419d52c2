"""`world-gymnast adapt`: refusals in one line, and a whole session with toy models from an image file."""
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_adapt_node import save_toys

from world_gymnast_ros.adaptation.log import AdaptReport, Outcome, Stop, StopKind, check_session, read_session
from world_gymnast_ros.adaptation.promotion import EachInstruction, Promotion
from world_gymnast_ros.adaptation.rollout_filter import TrustCounts
from world_gymnast_ros.cli import main
from world_gymnast_ros.cli.adapt import _tell
from world_gymnast_ros.decision import Rule
from world_gymnast_ros.statistics import wilson
from world_gymnast_ros.updates.adaptation import SessionResult

torch.set_num_threads(1)


STATE = ["--state", "0.25", "0", "0.1", "0", "0", "0", "1"]


@pytest.fixture()
def image(tmp_path: Path) -> str:
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


@pytest.mark.parametrize(("words", "says"), [
    (["reach the red block"], "give --frame"),
    (["reach the red block", "--frame", "/nowhere.png"], "/nowhere.png cannot be decoded (FileNotFoundError"),
    (["--frame", "IMAGE"], "say what to do"),
    (["reach the red block", "--frame", "IMAGE", "--set", "copies"], "--set takes KEY=VALUE"),
    (["reach the red block", "--frame", "IMAGE", "--set", "copis=3"], "unknown key 'copis'"),
    (["reach the red block", "--frame", "IMAGE", "--set", "gate_dreams=3"], "is now called promotion_groups"),
    (["reach the red block", "--frame", "IMAGE", "--budget-s", "0"], "budget_s must be positive"),
    (["reach the red block", "--scene", "nowhere"], "nowhere"),
    (["reach the red block", "--frame", "IMAGE"], "--state is missing"),
    (["reach the red block", "--frame", "IMAGE", *STATE, "--set", "policy=/nowhere"], "/nowhere"),
    (["reach the red block", "--frame", "IMAGE", "--episodes", "/nowhere"], "/nowhere does not exist"),
])
def test_refusals_are_one_line(words: list[str], says: str, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", *(image if w == "IMAGE" else w for w in words)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and says in error[0]


def test_a_missing_state_is_said_before_any_model_is_loaded(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from world_gymnast_ros.updates import adaptation

    def load(*_: object) -> None:
        raise AssertionError("models were loaded")
    monkeypatch.setattr(adaptation, "load_parts", load)
    assert main(["adapt", "reach the red block", "--frame", image]) == 2
    with pytest.raises(AssertionError, match="models were loaded"):
        main(["adapt", "push the red block left", "--frame", image, "--state", "0.25", "0", "0.1", "0", "0", "0", "1"])


def test_a_session_from_a_image(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    toys = save_toys(tmp_path / "toys")
    words = ["adapt", "reach the red block", "--frame", image, "--state", "0.25", "0", "0.1", "0", "0", "0", "1",
             "--updates", "1", "--out", str(tmp_path / "runs"), "--dry-run", "--set", f"policy={toys.policy}",
             f"world_model={toys.world_model}", f"judges={toys.judge}", "copies=4", "select_groups=1",
             "promotion_groups=4", "threads=1"]
    assert main(words) == 2 and "paired-replay AUC is unknown" in capsys.readouterr().err, "nothing vouches for a toy"
    assert main([*words, "min_release_auc=0"]) in (0, 1)
    said = capsys.readouterr().out
    assert said.startswith("let the arm move: not shown, because")
    assert "trust: unknown. " in said and "never shown to rank 'reach the red block'" in said, "nobody measured it"
    report = Path(said.split("report: ")[1].strip())
    assert report.is_file() and report.is_relative_to(tmp_path / "runs") and not (tmp_path / "runs/adapters").exists()
    assert check_session(read_session(report.parent / "session.jsonl")) == []


def test_of_several_instructions_each_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    half, all_of_it = wilson(2, 4), wilson(4, 4)
    each = tuple(EachInstruction(words, half, all_of_it, half) for words in ("open it", "shut it"))
    promotion = Promotion(False, (Rule("gain", 0.1, 0.05, True, "why"),), each=each)
    report = AdaptReport(Outcome.KEPT, "why", None, promotion, (), (), TrustCounts(), {"total": 1.0}, 8, 80, (), {},
                         Stop(StopKind.DONE, "done"), notes=("6 of 8 varied starts are used",))
    _tell(SessionResult(report, report_path=Path("r.html")), False, "")
    said = capsys.readouterr().out.splitlines()
    assert said[2:] == ["  open it: imagined 2/4 before, 4/4 after", "  shut it: imagined 2/4 before, 4/4 after",
                        "note: 6 of 8 varied starts are used", "report: r.html"]


def test_the_policy_is_served_while_the_session_runs_and_no_longer(tmp_path: Path, image: str,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    from world_gymnast_ros.errors import RemotePolicyError
    from world_gymnast_ros.serving.client import HttpPolicy
    from world_gymnast_ros.types import Frame
    from world_gymnast_ros.updates import adaptation

    toys, frame = save_toys(tmp_path / "toys"), Frame(np.zeros((48, 64, 3), np.uint8), 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client, acted = HttpPolicy(f"http://127.0.0.1:{port}", 30.0), []

    def session(parts: Any, *_: object, **__: object) -> None:
        acted.append([policy.act(frame, "reach the red block").deltas for policy in (client, parts.policy)])
        raise OSError("the disk is full")  # a session that ends badly frees the port, too
    monkeypatch.setattr(adaptation, "run_session", session)
    assert main(["adapt", "reach the red block", "--frame", image, "--policy-port", str(port), "--out",
                 str(tmp_path / "runs"), "--set", f"policy={toys.policy}", f"world_model={toys.world_model}",
                 f"judges={toys.judge}", "min_release_auc=0", "threads=1"]) == 2
    assert len(acted) == 1 and (acted[0][0] == acted[0][1]).all()
    with pytest.raises(RemotePolicyError):
        client.act(frame, "reach the red block")


def test_tasks_come_from_a_file_each_with_its_own_images(tmp_path: Path, image: str) -> None:
    from world_gymnast_ros.cli.adapt import _task_starts

    file = Path(image).parent / "tasks.yaml"
    file.write_text("- {instruction: open it, frames: [scene.png, scene.png], state: [0.3, 0, 0.1, 0, 0, 0, 1]}\n"
                    "- {instruction: shut it, frames: [scene.png], partial_credit: It is half shut.}\n")
    starts, credit = _task_starts(file)
    assert credit == {"shut it": "It is half shut."}
    assert [s.instruction for s in starts] == ["open it", "open it", "shut it"]
    assert starts[0].state is not None and starts[2].state is None


@pytest.mark.parametrize(("text", "says"), [
    ("instruction: open it", "entry 1: give a list of"), ("[{instruction: open it}]", "entry 1"),
    ("[{instruction: open it, frames: [scene.png]}, {instruction: 3, frames: [scene.png]}]", "entry 2"),
    ("[{instruction: open it, frames: [scene.png], state: [1, 2]}]", "entry 1"),
    ("[{instruction: open it, frames: [none.png]}]", "none.png cannot be decoded"),
    ("[{instruction: open it, frames: [scene.png], state: [9, 0, 0, 0, 0, 0, 1]}]", "x is 9"),
    ("{", "cannot be read as YAML"),
])
def test_a_bad_file_of_tasks_is_refused(text: str, says: str, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(image).parent / "tasks.yaml"
    file.write_text(text)
    assert main(["adapt", "--tasks", str(file), "--judge", "tiny/reflector"]) == 2
    assert says in capsys.readouterr().err
    assert main(["adapt", "open it", "--tasks", str(file)]) == 2 and "leave out the others" in capsys.readouterr().err
