"""The loop: scenes where the models are wrong, stages that are done once, baselines, and a table that hides nothing."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from world_gymnast_ros.cli.checks import adapt_settings
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.learning import iterate
from world_gymnast_ros.learning.imitate import Imitation, imitate, success_rows
from world_gymnast_ros.learning.iterate import PARTS, IterateConfig, Run, once
from world_gymnast_ros.learning.iterate_report import markdown, write_run_report
from world_gymnast_ros.learning.lora_pg import LoraConfig
from world_gymnast_ros.learning.play_table import read_play
from world_gymnast_ros.models.build import load_policy
from world_gymnast_ros.models.openvla import OpenVLA
from world_gymnast_ros.store import Store
from world_gymnast_ros.twin.play import write_rows
from world_gymnast_ros.twin.policy_play import policy_episodes
from world_gymnast_ros.twin.rollout import run_episode
from world_gymnast_ros.twin.scene import ObjectSpec, load_scene
from world_gymnast_ros.twin.sim import Twin

LAB = ("lab_bottle", "lab_rubber", "lab_camera")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_lab_scenes_stand_still_and_differ_from_training_as_they_say() -> None:
    scenes = {name: load_scene(name) for name in LAB}
    bottle = scenes["lab_bottle"].objects[0]
    assert bottle.name == "red cylinder" and bottle.height_m == pytest.approx(0.088)
    assert scenes["lab_rubber"].table_friction > 1.1 and scenes["lab_rubber"].objects[0].mass_kg > 0.09
    assert max(map(abs, scenes["lab_camera"].camera_offset_m)) > 0.03  # play data move the camera by less
    for scene in scenes.values():
        twin = Twin(scene)
        try:
            twin.reset(1, scene.instructions[0])
            name = twin.task.target
            before = twin.object_xyz(name)
            twin.advance(1.0)
            np.testing.assert_allclose(twin.object_xyz(name), before, atol=2e-3)
            assert before[2] == pytest.approx(scene.objects[0].height_m / 2, abs=2e-3)
        finally:
            twin.close()


def test_an_object_is_called_only_by_words_that_instructions_know() -> None:
    assert ObjectSpec("red", "bar", called="block").name == "red block"
    with pytest.raises(BadConfig, match="called 'mug'"):
        ObjectSpec("red", "bottle", called="mug")


def test_a_recorded_policy_episode_is_the_one_that_evaluation_runs(tmp_path: Path) -> None:
    policy, scene = load_policy(), load_scene("lab_camera")
    twin = Twin(scene)
    try:
        for temperature in (0.0, 1.2):
            row = policy_episodes(twin, policy, [7], scene.instructions[0], temperature, "policy")[0]
            true = run_episode(twin, policy, 7, scene.instructions[0], temperature)
            np.testing.assert_array_equal(row["deltas"], true.deltas)
            assert bool(row["success"][-1]) is true.success
    finally:
        twin.close()


def test_imitation_learns_what_succeeded_and_nothing_else(tmp_path: Path) -> None:
    policy, scene = load_policy(), load_scene("lab_bottle")
    twin = Twin(scene)
    try:
        rows = policy_episodes(twin, policy, range(3), scene.instructions[0], 0.0, "policy")
    finally:
        twin.close()
    for row, done in zip(rows, (5, None, 12), strict=True):  # outcomes as this test says
        row["success"][:] = False
        if done is not None:
            row["success"][done:] = True
    write_rows(tmp_path / "play" / "a.npz", rows)
    table = read_play(tmp_path / "play")
    picked, words = success_rows(table, policy.chunk_size, after_success=2)
    per_episode = [sum(e.first <= r < e.first + e.steps for r in picked) for e in table.episodes]
    assert per_episode == [5 + 2 - 4 + 1, 0, 12 + 2 - 4 + 1] and set(words) == {scene.instructions[0]}
    losses: list[float] = []
    before = policy.greedy(table.frames[picked], words)
    store = Store(tmp_path / "adapters")
    ref = imitate(policy, table, LoraConfig(), Imitation(steps=12, batch=8), None, store, "x", {}, 1,
                  lambda step, loss: losses.append(loss))
    assert ref is not None and np.mean(losses[-3:]) < np.mean(losses[:3])
    np.testing.assert_array_equal(policy.greedy(table.frames[picked], words), before)  # the policy is as it was
    policy.load_adapter(ref)
    assert not np.array_equal(policy.greedy(table.frames[picked], words), before)
    policy.load_adapter(None)
    for row in rows:
        row["success"][:] = False
    write_rows(tmp_path / "failed" / "a.npz", rows)
    assert imitate(policy, read_play(tmp_path / "failed"), LoraConfig(), Imitation(steps=1), None, store, "x", {},
                   1) is None


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        assert once(tmp_path / "a" / "stage.json", lambda: calls.append(1) or {"x": np.float32(2)}) == {"x": 2.0}
    assert len(calls) == 1


def small(rounds: int = 1) -> IterateConfig:
    return IterateConfig("lab_bottle", rounds=rounds, episodes=12, evaluation=2, captures=1, replay_episodes=16,
                         imitation=Imitation(steps=2, batch=8))


def start_run(out: Path, config: IterateConfig, said: list[str]) -> Run:
    return Run(config, adapt_settings(None, ["min_release_auc=0"], {}), out, said.append, lambda: 1)


def test_a_stopped_run_goes_on_to_the_same_result_and_refuses_other_settings(tmp_path: Path) -> None:
    said: list[str] = []
    whole = start_run(tmp_path / "whole", small(), said)
    rows = whole.method("imitation")
    whole.close()

    class Killed(Exception):
        pass

    broken = start_run(tmp_path / "broken", small(), said)

    def killed(*_: object) -> None:
        raise Killed
    broken.imitation = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        broken.method("imitation")
    broken.close()
    again = start_run(tmp_path / "broken", small(), said)
    again.real = killed  # type: ignore[method-assign]  # the stage before is not done twice
    resumed = again.method("imitation")
    again.close()
    weights = [load_file(out / "imitation" / "adapters" / r[1]["state"]["adapter"] / "adapter_model.safetensors")
               for out, r in ((tmp_path / "whole", rows), (tmp_path / "broken", resumed))]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    for row in (rows[1], resumed[1]):
        row["learning"].pop("seconds")
    assert resumed == rows
    with pytest.raises(BadConfig, match="other settings"):
        start_run(tmp_path / "broken", small(rounds=2), said)
    note = tmp_path / "broken" / "run.json"
    kept = note.read_text()
    note.write_text(kept.replace('"layout": 2', '"layout": 1'))
    with pytest.raises(BadConfig, match="another version"):
        start_run(tmp_path / "broken", small(), said)
    note.write_text(kept)
    with pytest.raises(BadConfig, match="episodes is 8"):
        dataclasses.replace(small(), episodes=8)
    table = write_run_report(tmp_path / "broken", "lab_bottle", "reach the red cylinder", {"imitation": resumed})
    assert (tmp_path / "broken" / "table.md").read_text().endswith(table + "\n")
    assert json.loads((tmp_path / "broken" / "table.json").read_text())["results"]["imitation"][1]["round"] == 1
    assert "<table>" in (tmp_path / "broken" / "report.html").read_text()


def test_the_table_shows_rounds_with_intervals_and_what_was_decided() -> None:
    def row(number: int, true: float) -> dict:
        interval = {"value": true, "low": true - 0.1, "high": true + 0.1}
        return {"round": number, "evaluation": {"true": interval, "imagined": interval, "gap": 0.0,
                                                "false_success": [0.5, 0.2, 0.8, 10]},
                "learning": {"outcome": "promoted", "message": ""}, "world_model": {"promoted": True},
                "judge": {"promoted": False}} if number else {
                    "round": 0, "evaluation": {"true": interval, "imagined": interval, "gap": 0.2,
                                               "false_success": [0.0, 0.0, 1.0, 0]}}
    text = markdown({"loop": [row(0, 0.2), row(1, 0.6)], "imitation": [row(0, 0.2), row(1, 0.4)]})
    assert text.count("| start |") == 1 and "| loop | 1 | 0.600 [0.500, 0.700]" in text and "no failure" in text
    assert "| promoted | kept | promoted |" in text and "| imitation | 1 |" in text
    cloned = {**row(1, 0.6), "clone": {"adapter": "a", "message": "better"}}
    left = {**row(2, 0.6), "clone": {"adapter": "", "message": "no better"}}
    text = markdown({"loop": [row(0, 0.2), cloned, left]})
    assert "| clone used, promoted |" in text and "| clone not used, promoted |" in text
    tried = {**cloned, "real": {"trial": {"used": True}}}
    assert "| tried clone used, clone used, promoted |" in markdown({"loop": [row(0, 0.2), tried]})
    for used, told in ((True, "followed on the arm"), (False, "dropped on the arm")):
        on_arm = {**row(1, 0.6), "trial": {"tried": "a", "used": used, "dreamed": True}}
        assert f"| promoted, {told} |" in markdown({"loop": [row(0, 0.2), on_arm]})
    clone = {**row(1, 0.6), "trial": {"tried": "a", "used": True, "dreamed": False}}
    assert "| promoted, clone followed on the arm |" in markdown({"loop": [row(0, 0.2), clone]})
    assert "| promoted |" in markdown({"loop": [row(0, 0.2), {**row(1, 0.6), "trial": {"adapter": ""}}]})


@pytest.fixture
def arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A run whose real episodes succeed as often as `wins` says, in turn; `asked` is what was played."""
    said: list[str] = []
    run = start_run(tmp_path / "run", dataclasses.replace(small(), episodes=24), said)
    played = policy_episodes(run.twin, load_policy(), range(2), run.instruction, 1.2, "policy")
    out = SimpleNamespace(run=run, said=said, wins=[], asked=[])

    def episodes(twin: object, adapter: str, seeds: range, instruction: str, temperature: float, *_: object
                 ) -> list[dict[str, np.ndarray]]:
        out.asked.append((adapter, seeds, temperature))
        wins = out.wins.pop(0)
        return [{**played[0], "success": np.full(len(played[0]["success"]), i < wins)} for i in range(len(seeds))]
    monkeypatch.setattr(iterate, "policy_episodes", episodes)
    monkeypatch.setattr(run, "imitation", lambda *_: {"adapter": "the-clone"})
    monkeypatch.setattr(run, "parts", lambda method, state: SimpleNamespace(policy=state.adapter))
    yield out
    run.close()


@pytest.mark.parametrize(("mine", "clones", "follows"), [
    (1, 7, True), (2, 2, True), (3, 1, False),  # of what is weak, unless it is clearly worse
    (5, 6, False), (5, 8, True), (5, 1, False)])  # of what is not, if it is better
def test_a_clone_is_tried_on_the_arm_and_must_do_the_better_the_better_the_present_adapter_does(
        arm: SimpleNamespace, mine: int, clones: int, follows: bool) -> None:
    run, state = arm.run, arm.run.start()
    arm.wins = [mine, clones, 0]
    told = run.real("loop", 1, state)
    assert told["adapter"] == ("the-clone" if follows else "") and told["trial"]["used"] is follows
    assert told["record"] == ([clones, 8] if follows else [mine, 8])
    assert (told["successes"], told["episodes"]) == (mine + clones, 16)
    (_, first, hot), (adapter, second, _) = arm.asked
    assert (len(first), second.start, len(second), adapter, hot) == (8, first.stop, 8, "the-clone", 1.2)
    counts = {p: sum(len(np.load(f)["length"]) for f in (run.out / "loop" / p).glob("*.npz")) for p in set(PARTS)}
    assert sum(counts.values()) == 16 and counts["training"] >= 7 and counts["calibration"] >= 3
    assert counts["held_out"] >= 4, "so many are needed to compare judges"
    assert "better with a chance of" in arm.said[0]
    assert "trial" not in run.real("imitation", 1, state) and len(arm.asked[-1][1]) == 24


@pytest.mark.parametrize(("dreamed", "refused", "wins", "adapter", "greedy"), [
    ("dreamed", "a-clone", 0, "before", True),  # the dream flattered it
    ("dreamed", "", 6, "dreamed", True),
    ("dreamed", "", 4, "dreamed", True),  # no better; the dream said that it is
    ("before", "a-clone", 8, "a-clone", False),  # the dream could not tell, and the arm can
    ("before", "a-clone", 5, "before", False),
    ("before", "", 0, "before", False)])
def test_the_arm_has_the_last_word_on_what_the_dream_promoted_or_refused(
        arm: SimpleNamespace, dreamed: str, refused: str, wins: int, adapter: str, greedy: bool) -> None:
    run = arm.run
    row = {"real": {"adapter": "before", "record": [5, 8]}, "clone": {"candidate": refused}}
    arm.wins = [wins]
    told = run.trial("loop", 1, row, dataclasses.replace(run.start(), adapter=dreamed))
    assert told["adapter"] == adapter and (told["episodes"], told["successes"]) == (8, wins)
    tried, seeds, temperature = arm.asked[0]
    assert tried == (dreamed if dreamed != "before" else refused or "before")
    assert seeds == range(run.first_seed(1) + 16, run.first_seed(1) + 24)
    assert temperature == (0.0 if greedy else 1.2), "what the dream promoted is tried as it would run"
    assert ("used" in told) == bool(dreamed != "before" or refused)


def test_a_refused_clone_is_not_tried_again_and_a_stopped_trial_leaves_nothing(arm: SimpleNamespace) -> None:
    run = arm.run
    row = {"real": {"adapter": "before", "record": [2, 8], "trial": {"tried": "a-clone"}},
           "clone": {"candidate": "a-clone"}}
    arm.wins = [4, 4, 8, 0, 3]
    told = run.trial("loop", 1, row, dataclasses.replace(run.start(), adapter="before"))
    assert "used" not in told and arm.asked[0][0] == "before"
    promoted = run.trial("loop", 1, row, dataclasses.replace(run.start(), adapter="a-clone"))
    assert promoted["used"], "promoted by the dream it has another, greedy, and does not follow without"
    assert arm.asked[1][0] == "a-clone" and arm.asked[1][2] == 0.0
    stored = [run.out / "loop" / part / "round-1-trial.npz" for part in sorted(set(PARTS))]
    assert all(f.is_file() for f in stored)
    state = run.start()
    run.explore("loop", state, range(8), "round-2-second", 1.2)  # a run that was stopped before it was compared
    seen: list[int] = []

    def imitation(*_: object) -> dict[str, str]:
        seen.append(len(list(run.out.glob("loop/*/round-2-second.npz"))))
        return {"adapter": "the-clone"}
    run.imitation = imitation
    run.real("loop", 2, state)
    assert seen == [0], "a clone learns nothing from its own trial"


def test_every_split_of_the_fewest_episodes_fills_all_parts(arm: SimpleNamespace) -> None:
    run, state = arm.run, arm.run.start()
    for first in range(5):
        for second in range(5):
            arm.wins = [first, second]
            for i in range(2):
                run.explore(f"{first}-{second}", state, range(4), f"round-1-{i}", 1.2)
            parts = {f.parent.name for f in run.out.glob(f"{first}-{second}/*/round-1-*.npz")}
            assert parts == set(PARTS), (first, second)


@pytest.mark.parametrize("better", [True, False])
def test_a_clone_of_real_successes_is_used_only_if_the_dream_is_sure_of_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: bool) -> None:
    run = start_run(tmp_path / "run", small(), [])
    policy = load_policy()
    state = run.start()
    try:
        rows = policy_episodes(run.twin, policy, range(4), run.instruction, 1.2, "policy")
        for row in rows:
            row["success"][5:] = True  # as this test says
        write_rows(run.out / "loop" / "training" / "round-1.npz", rows)
        rates = iter((0.2, 0.9 if better else 0.3))

        def hold_out(policy: OpenVLA, *_: object, dreams: int, copies: int, **__: object) -> SimpleNamespace:
            rate = next(rates)
            success = (np.arange(dreams * copies) < rate * dreams * copies).reshape(dreams, copies)
            return SimpleNamespace(success=success, known=np.ones_like(success))
        monkeypatch.setattr(iterate, "hold_out", hold_out)
        told = run.cloning("loop", 1, state)
    finally:
        run.close()
    assert (told["outcome"], bool(told["adapter"])) == (("cloned", True) if better else ("kept", False))
    assert "imagined success" in told["message"]


@pytest.mark.slow
def test_one_round_of_the_whole_loop(tmp_path: Path) -> None:
    from world_gymnast_ros.learning.judge_update import JudgeUpdate
    from world_gymnast_ros.learning.world_model_update import UpdateConfig

    config = dataclasses.replace(small(), episodes=24, update=UpdateConfig(steps=4, own_dreams=4, save_every=2),
                                 judge=JudgeUpdate(steps=2))
    adapt = adapt_settings(None, ["min_release_auc=0", "max_updates=1", "copies=8", "select_dreams=2", "gate_dreams=4"],
                           {})
    loop = Run(config, adapt, tmp_path, lambda _: None, lambda: 1)
    rows = loop.method("loop")
    loop.close()
    assert [r["round"] for r in rows] == [0, 1]
    assert rows[1]["trial"]["episodes"] == 8 and rows[1]["clone"]["message"]
    assert rows[1]["world_model"]["decision"] and rows[1]["judge"]["decision"]
    assert 0.0 <= rows[1]["evaluation"]["true"]["value"] <= 1.0
    text = write_run_report(tmp_path, "lab_bottle", loop.instruction, {"loop": rows})
    assert "| loop | 1 |" in text and "data:image/png" in (tmp_path / "report.html").read_text()
