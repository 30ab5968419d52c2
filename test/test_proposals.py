"""`--propose`: what a model answers, what is dropped and counted, what a person ticks, and what the judges are told."""
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Said, chat_server, completion
from PIL import Image
from test_adapt_node import save_toys
from tiny_vlm import write_tiny_vlm

from world_gymnast_ros.adaptation import proposals as asking
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.log import read_session
from world_gymnast_ros.adaptation.proposals import Dropped, Proposal, propose, read_proposals
from world_gymnast_ros.adaptation.trust import TaskRelease
from world_gymnast_ros.cli import main, proposing
from world_gymnast_ros.cli.proposing import tick
from world_gymnast_ros.errors import BadCheckpoint, RemoteModelError
from world_gymnast_ros.loading.load import load_image_text
from world_gymnast_ros.models import image_text
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.remote import RemoteConfig, RemoteJudge
from world_gymnast_ros.models.judges.vlm import VLMJudge
from world_gymnast_ros.serving import openai_client
from world_gymnast_ros.testing.fakes import FakeJudge, FakePolicy, start_frame
from world_gymnast_ros.types import Start
from world_gymnast_ros.updates.proposals import (
    DONE,
    NOT_JUDGED,
    NOT_READ,
    NOT_SHOWN,
    give_partial_credit,
    keep_trainable,
    unread,
)

torch.set_num_threads(1)
HALF = "The gripper touches it."
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def entry(words: Any, partly: Any = HALF) -> dict[str, Any]:
    return {"instruction": words, "partial_credit": partly}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(image_text, "MAX_TOKENS", 24)


@pytest.mark.parametrize("wrap", ["{}", "Here you are:\n```json\n{}\n```\nEnjoy!", '{{"proposals": {}}}'])
def test_proposals_are_read_whatever_stands_around_them(wrap: str) -> None:
    text = wrap.format(json.dumps([entry("open the drawer"), entry(" put it back ", " It is lifted. ")]))
    assert read_proposals(text) == [Proposal("open the drawer", HALF), Proposal("put it back", "It is lifted.")]
    cut = json.dumps([entry("open the drawer"), entry("shut it")])[:-20]
    assert read_proposals(cut) == [Proposal("open the drawer", HALF)]


@pytest.mark.parametrize(("bad", "kind"), [
    (entry(""), asking.NO_SENTENCE), (entry("shut it", ""), asking.NO_SENTENCE), (entry(3), asking.NO_SENTENCE),
    (entry("shut it", None), asking.NO_SENTENCE), (entry("shut it", "Shut it."), asking.NO_SENTENCE),
    (entry("?!"), asking.NO_SENTENCE), (entry("a" * 200), asking.TOO_LONG), (entry("shut\nit"), asking.TOO_LONG),
    (entry("shut it", "half\x00"), asking.TOO_LONG), (entry("Open the drawer."), asking.AGAIN),
    (entry("reach it"), asking.AGAIN)])
def test_what_cannot_be_used_is_dropped_and_counted(bad: dict[str, Any], kind: str) -> None:
    good, dropped = read_proposals(json.dumps([entry("open the drawer"), bad]), ["Reach it!"])
    assert isinstance(good, Proposal) and isinstance(dropped, Dropped) and dropped.kind == kind


@pytest.mark.parametrize("text", ["", "I cannot help with that.", "[1, 2]", '{"a": 1}', "{" * 5000, "null",
                                  '{"instruction": ' * 2000],
                         ids=["empty", "prose", "list", "other", "brackets", "null", "deep"])
def test_an_answer_without_proposals_is_one_that_is_dropped(text: str) -> None:
    [dropped] = read_proposals(text)
    assert isinstance(dropped, Dropped) and dropped.kind == asking.NOTHING_READ


def test_a_server_is_shown_the_images_and_asked_again_for_what_is_missing() -> None:
    def script(request: dict[str, Any], n: int) -> Said:
        return completion([json.dumps([entry("open it"), entry("open it"), entry("")]), "no",
                           json.dumps([entry("shut it"), entry("lift it"), entry("too many")])][n])
    with chat_server(script) as heard:
        found = propose(load_image_text(heard.url), [IMAGE, IMAGE], 3, 5, ["open *"], ["reach it"])
    assert [p.instruction for p in found.usable] == ["open it", "shut it", "lift it"] and not found.failure
    assert "6 proposals, 3 can be used; dropped 1: proposed before; 1: no instruction" in found.summary
    first, second = (r["messages"][0]["content"] for r in heard.requests[:2])
    assert [part["type"] for part in first] == ["image_url", "image_url", "text"] and heard.requests[0]["seed"] == 5
    assert "Propose 3" in first[-1]["text"] and "open *" in first[-1]["text"] and "reach it" in first[-1]["text"]
    assert "Propose 2" in second[-1]["text"] and "Not these again: reach it; open it" in second[-1]["text"]


@pytest.mark.parametrize(("said", "why"), [
    (Said(delay_s=60.0), "no answer within"), (Said(b"{}"), "without a text"), (Said(b"oh", 401), "401"),
    (Said(drop=True), "cannot be asked")])
def test_a_server_that_hangs_or_fails_is_told_and_ends_nothing(said: Said, why: str) -> None:
    with chat_server(lambda request, n: said if n else completion(json.dumps([entry("open it")]))) as heard:
        found = propose(load_image_text(heard.url, timeout_s=1.0), [IMAGE], 2, 0)
    assert [p.instruction for p in found.usable] == ["open it"] and why in found.failure and why in found.summary


def test_a_model_of_random_weights_proposes_nothing_that_can_be_used(tmp_path: Path) -> None:
    model = load_image_text(str(write_tiny_vlm(tmp_path)), "cpu")
    assert model.answer("what", [IMAGE], 1) == model.answer("what", [IMAGE], 1)
    found = propose(model, [IMAGE], 4, 0)
    assert not found.usable and not found.failure and {d.kind for d in found.dropped} == {asking.NOTHING_READ}
    assert f"{asking.ROUNDS}: {asking.NOTHING_READ}" in found.summary
    with pytest.raises(RemoteModelError):
        model.answer("what", [np.zeros((0, 4, 3), np.uint8)], 1)
    with pytest.raises(BadCheckpoint, match="nowhere"):
        load_image_text("/nowhere")


def scene(*x_px: float) -> list[Start]:
    return [Start(start_frame(x), None, "(none yet)") for x in x_px]


def keep(words: list[str], starts: list[Start], **settings: Any) -> asking.Proposals:
    row = TaskRelease(0.99, 0.95, 1.0, 40, false_success_high=0.0, instructions=("go *",))
    parts: Any = SimpleNamespace(policy=FakePolicy(), judge=FakeJudge(), release={"go": row})
    return keep_trainable(asking.Proposals("toy", tuple(Proposal(w, HALF) for w in words)), parts, starts,
                          AdaptNodeConfig(**settings))


def test_only_what_can_be_trained_here_is_offered() -> None:
    found = keep(["go right", "go nowhere", "fly away", "go left"], scene(6))
    assert [p.instruction for p in found.usable] == ["go right"]
    assert [d.kind for d in found.dropped] == [NOT_READ, NOT_SHOWN, DONE] and "go nowhere" in found.dropped[0].words
    assert "1: the policy cannot read it" in found.summary
    assert [p.instruction for p in keep(["go left", "fly away"], scene(6, 16), min_release_auc=0.0).usable] == [
        "go left"], "in one of the frames it is not done yet"


def test_judges_without_a_verdict_drop_a_proposal() -> None:
    class Blind(FakeJudge):
        def score(self, frames, instruction, facts=None):  # type: ignore[no-untyped-def]
            raise RuntimeError("no image of it")
    parts: Any = SimpleNamespace(policy=FakePolicy(), judge=Blind(), release={})
    found = keep_trainable(asking.Proposals("toy", (Proposal("go up", HALF),)), parts, scene(6),
                           AdaptNodeConfig(min_release_auc=0.0))
    assert [d.kind for d in found.dropped] == [NOT_JUDGED] and "no image of it" in found.dropped[0].words


def test_the_shipped_policy_says_which_words_it_reads() -> None:
    from world_gymnast_ros.loading.load import load_policy
    policy = load_policy("", "cpu")
    frame = scene(6)[0].frame
    assert unread(policy, Start(frame, None, "reach the red block")) is None
    assert "does not know the word 'drawer'" in unread(policy, Start(frame, None, "reach the drawer")).words  # type: ignore[union-attr]


def test_partial_credit_goes_to_judges_that_are_asked_and_were_not_measured(tmp_path: Path) -> None:
    own = {"*": "Something moved.", "Shut it.": "Mine."}
    remote = RemoteJudge(RemoteConfig(model="http://127.0.0.1:9/v1#toy", partial_credit=own), {})
    local = VLMJudge.from_pretrained(write_tiny_vlm(tmp_path), frames=1, frame_px=32, min_label_share=0.0)
    parts: Any = SimpleNamespace(judge=Consensus((FakeJudge(), remote, local)), release={})
    said = give_partial_credit(parts, {"open it": "It is ajar.", "shut it": "Theirs."})
    assert remote.config.credit("open it") == "It is ajar." and remote.config.credit("shut it") == "Mine."
    assert remote.config.credit("lift it") == "Something moved." and remote.name in said and local.name in said
    frames = np.zeros((1, 2, 32, 32, 3), np.uint8)
    assert local.score(frames, "open it")[0].progress is not None and local.score(frames, "lift it")[0].progress is None
    parts.release = {"open": TaskRelease(0.99, 0.95, 1.0, 40, instructions=("open *",))}
    said = give_partial_credit(parts, {"open the box": "The lid moves."})
    assert "as they were measured" in said and remote.config.credit("open the box") == "Something moved."
    parts = SimpleNamespace(judge=FakeJudge(), release={})
    assert "no judge here takes" in give_partial_credit(parts, {"open it": "It is ajar."})
    assert give_partial_credit(parts, {}) == ""


def test_ticking(capsys: pytest.CaptureFixture[str]) -> None:
    three = [Proposal(w, HALF) for w in ("a", "b", "c")]

    def answers(*words: str) -> list[str]:
        left = list(words)
        return [p.instruction for p in tick(three, lambda _: left.pop(0))]
    assert answers("3, 1 3") == ["c", "a"] and answers("all") == ["a", "b", "c"] and answers("") == []
    assert answers("4", "x", "-1", "0", "2") == ["b"]
    assert capsys.readouterr().out.count("numbers from 1 to 3") == 4

    def ended(_: str) -> str:
        raise EOFError
    assert tick(three, ended) == []


@pytest.mark.parametrize(("words", "says"), [
    (["--propose", "3"], "--proposer"), (["--propose", "3", "--proposer", "x"], "--propose-all"),
    (["--proposer", "x"], "--propose N"), (["--propose", "0"], "from 1 to 20"),
    (["--propose", "3", "--proposer", "/nowhere", "--propose-all"], "/nowhere does not exist")])
def test_refusals_come_before_models_are_loaded(words: list[str], says: str, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    from world_gymnast_ros.updates import adaptation
    monkeypatch.setattr(adaptation, "load_parts", lambda _: pytest.fail("models were loaded"))
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    state = ["--state", "0.25", "0", "0.1", "0", "0", "0", "1"]
    assert main(["adapt", "--frame", str(tmp_path / "a.png"), *state, "--judge", "tiny/reflector", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("said", "why"), [(Said(delay_s=60.0), "no answer within"), (Said(b"oh", 401), "401"),
                                           (Said(drop=True), "cannot be asked")])
def test_a_session_whose_proposer_hangs_or_fails_trains_what_the_user_said(
        said: Said, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys = save_toys(tmp_path / "toys")
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    settings = [f"policy={toys.policy}", f"judges={toys.judge}", f"world_model={toys.world_model}", "copies=2",
                "select_groups=1", "promotion_groups=4", "held_out_copies=1", "threads=1", "min_release_auc=0"]
    asked = ["--frame", str(tmp_path / "a.png"), "--updates", "1", "--dry-run", "--out", str(tmp_path / "runs"),
             "--propose", "3", "--propose-all", "--proposer-timeout-s", "1", "--set", *settings]
    with chat_server(lambda request, n: said) as heard:
        assert main(["adapt", "reach the red block", *asked, "--proposer", heard.url]) in (0, 1)
        assert why in capsys.readouterr().out
        assert main(["adapt", *asked, "--proposer", heard.url]) == 2, "nothing is left to train"
        assert why in capsys.readouterr().err
    [log] = (tmp_path / "runs").rglob("session.jsonl")
    begun = read_session(log)[0]
    assert begun["instructions"] == ["reach the red block"] and why in begun["notes"][0]
    assert why in (log.parent / "report.html").read_text()


def test_a_session_trains_what_was_ticked_or_ends_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    toys = save_toys(tmp_path / "toys")
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    wanted = [entry("reach the red block"), entry("push the sofa left"), entry("reach the blue ball")]
    words = ["adapt", "--frame", str(tmp_path / "a.png"), "--updates", "1", "--dry-run", "--out",
             str(tmp_path / "runs"), "--propose", "3", "--set", f"policy={toys.policy}", f"judges={toys.judge}",
             f"world_model={toys.world_model}", "copies=2", "select_groups=1", "promotion_groups=4",
             "held_out_copies=1", "threads=1", "min_release_auc=0"]
    monkeypatch.setattr(proposing.sys.stdin, "isatty", lambda: True, raising=False)
    with chat_server(lambda request, n: completion(json.dumps(wanted))) as heard:
        monkeypatch.setattr("builtins.input", lambda _: "2")
        assert main([*words, "--proposer", heard.url]) in (0, 1)
        said = capsys.readouterr().out
        assert "half done: The gripper touches it." in said and "dropped, the policy cannot read it" in said
        [log] = (tmp_path / "runs").rglob("session.jsonl")
        begun = read_session(log)[0]
        assert begun["instructions"] == ["reach the blue ball"] and "1 of them are trained" in begun["notes"][0]
        assert "the policy cannot read it" in (log.parent / "report.html").read_text()
        monkeypatch.setattr("builtins.input", lambda _: "")
        assert main([*words, "--proposer", heard.url]) == 2
        assert "nothing was ticked" in capsys.readouterr().err
    tiny = str(write_tiny_vlm(tmp_path / "tiny"))
    assert main([*words, "--proposer", tiny, "--propose-all"]) == 2
    assert f"{asking.NOTHING_READ}), and no instruction was given" in capsys.readouterr().err
    assert main([*words[:1], "reach the red block", *words[1:], "--proposer", tiny, "--propose-all"]) in (0, 1)
    assert "3: no proposal could be read in an answer" in capsys.readouterr().out
