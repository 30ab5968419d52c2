"""The loop: scenes where the models are wrong, stages that are done once, baselines, and a table that hides nothing."""
from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.cli.checks import adapt_settings
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.episode_files import write_episodes
from world_gymnast_ros.data.read import Found, read_arrays
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.evaluation.environment import episodes as episodes_of
from world_gymnast_ros.evaluation.image_metrics import structural_error
from world_gymnast_ros.evaluation.replay import Replays, imagine_again
from world_gymnast_ros.loading.load import (
    GEOMETRIC,
    checkpoint_dir,
    load_objects,
    load_policy,
    load_world_model,
)
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld, load_network
from world_gymnast_ros.report.loop_report import ahead, ahead_lines, markdown, write_run_report
from world_gymnast_ros.store import Store
from world_gymnast_ros.tabletop.locator import Locator
from world_gymnast_ros.twin.environment import TwinEnvironment
from world_gymnast_ros.twin.labels import frame_labels
from world_gymnast_ros.twin.play import make_replay
from world_gymnast_ros.twin.scene import ObjectSpec, load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.updates import learn_models, learn_policy, loop, on_arm
from world_gymnast_ros.updates.adaptation import Parts
from world_gymnast_ros.updates.behaviour_cloning import Imitation, cloning_loss, imitate, success_chunks
from world_gymnast_ros.updates.loop import run_method, run_round
from world_gymnast_ros.updates.on_arm import choose_begin, compare, explore, play, validation
from world_gymnast_ros.updates.policy_gradient import LoraConfig, LoraLearner
from world_gymnast_ros.updates.real_episodes import PARTS
from world_gymnast_ros.updates.run import LAYOUT, EarlierData, IterateConfig, Round, Run, State, cached

LAB = ("lab_bottle", "lab_rubber", "lab_camera", "lab_camera_near", "lab_bar", "lab_ball")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_lab_scenes_stand_still_and_differ_from_training_as_they_say() -> None:
    scenes = {name: load_scene(name) for name in LAB}
    bottle = scenes["lab_bottle"].objects[0]
    assert bottle.name == "red cylinder" and bottle.height_m == pytest.approx(0.088)
    assert scenes["lab_rubber"].table_friction > 1.1 and scenes["lab_rubber"].objects[0].mass_kg > 0.09
    for name in ("lab_camera", "lab_camera_near"):  # play data move the camera by less
        assert max(map(abs, scenes[name].camera_offset_m)) > 0.03
    assert [scenes[name].objects[0].shape for name in ("lab_bar", "lab_ball")] == ["bar", "ball"]
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


def test_imitation_learns_what_succeeded_and_nothing_else(tmp_path: Path) -> None:
    policy, scene = load_policy(), load_scene("lab_bottle")
    played = [dataclasses.replace(e, success=done is not None, done_step=done) for e, done in zip(
        real_episodes("lab_bottle", 3), (5, None, 12), strict=True)]  # outcomes as this test says
    write_episodes(tmp_path / "play" / "a.npz", played)
    episodes = read_arrays(tmp_path / "play" / "a.npz")
    picked = success_chunks(episodes, policy.chunk_size, after_success=2)
    assert [sum(e is of for of, _ in picked) for e in episodes] == [5 + 2 - 4 + 1, 0, 12 + 2 - 4 + 1]
    told_late = dataclasses.replace(episodes[0], done_step=None)  # a recording knows its outcome alone
    assert len(success_chunks([told_late], policy.chunk_size, after_success=2)) == told_late.steps - 4 + 1
    losses: list[float] = []
    images, words = np.stack([e.frames[t] for e, t in picked]), scene.instructions[0]
    before = policy.greedy(images, words)
    store = Store(tmp_path / "adapters")
    ref = imitate(policy, episodes, LoraConfig(), Imitation(steps=12, batch=8), None, store, "x", {}, 1,
                  lambda step, loss: losses.append(loss))
    assert ref is not None and np.mean(losses[-3:]) < np.mean(losses[:3])
    np.testing.assert_array_equal(policy.greedy(images, words), before)  # the policy is as it was
    policy.load_adapter(ref)
    assert not np.array_equal(policy.greedy(images, words), before)
    policy.load_adapter(None)
    write_episodes(tmp_path / "failed" / "a.npz", [dataclasses.replace(e, success=False) for e in played])
    failed = read_arrays(tmp_path / "failed" / "a.npz")
    assert imitate(policy, failed, LoraConfig(), Imitation(steps=1), None, store, "x", {}, 1) is None


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        assert cached(tmp_path / "a" / "stage.json", lambda: calls.append(1) or {"x": np.float32(2)}) == {"x": 2.0}
    assert len(calls) == 1


def real_episodes(scene: str, count: int, temperature: float = 0.0) -> list[Episode]:
    environment = TwinEnvironment(load_scene(scene))
    try:
        return [*episodes_of(environment, load_policy(), None, range(count), load_scene(scene).instructions[0],
                             temperature)]
    finally:
        environment.close()


def small(rounds: int = 1) -> IterateConfig:
    return IterateConfig("reach the red cylinder", 16, "reach", rounds=rounds, episodes=12, evaluation=2, captures=1,
                         replay="play/replay", old="play/old", imitation=Imitation(steps=2, batch=8))


@pytest.fixture
def start_run() -> Iterator[Callable[..., Run]]:
    """Makes runs on the twin, and closes them."""
    open_ones: list[TwinEnvironment] = []

    def start(out: Path, config: IterateConfig, said: list[str], scene: str = "lab_bottle") -> Run:
        open_ones.append(TwinEnvironment(load_scene(scene)))
        adapt = adapt_settings(None, ["min_release_auc=0", "judges=tabletop"], {})
        return Run(config, adapt, open_ones[-1], out, said.append, lambda: 1)
    yield start
    for environment in open_ones:
        environment.close()


def test_a_world_model_that_cannot_learn_is_refused_before_a_real_episode(
        tmp_path: Path, start_run: Callable[..., Run]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "nobodys"}')
    run = start_run(tmp_path / "run", small(), [])
    run.adapt = dataclasses.replace(run.adapt, world_model=str(other))
    with pytest.raises(BadConfig, match=r"holds 'nobodys': of action_dit and .* add a trainer"):
        run_method(run, "loop")
    assert [p.name for p in run.out.iterdir()] == ["run.json"]


def test_a_stopped_run_goes_on_to_the_same_result_and_refuses_other_settings(
        tmp_path: Path, start_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    whole = start_run(tmp_path / "whole", small(), said)
    rows = run_method(whole, "imitation")

    class Killed(Exception):
        pass

    broken = start_run(tmp_path / "broken", small(), said)

    def killed(*_: object) -> None:
        raise Killed
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop, "imitate_successes", killed)
        run_method(broken, "imitation")
    again = start_run(tmp_path / "broken", small(), said)
    monkeypatch.setattr(loop, "explore", killed)  # the stage before is not done twice
    resumed = run_method(again, "imitation")
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
    note.write_text(kept.replace(f'"layout": {LAYOUT}', f'"layout": {LAYOUT - 1}'))
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
        interval = {"value": true, "low": true - 0.1, "high": true + 0.1, "n": 40}
        return {"round": number, "evaluation": {"true": interval, "imagined": {**interval, "value": 0.8},
                                                "false_success": [0.5, 0.2, 0.8, 10]},
                "learning": {"outcome": "promoted", "message": ""}, "world_model": {"promoted": True},
                "judge": {"promoted": False}} if number else {
                    "round": 0, "evaluation": {"true": interval, "imagined": interval,
                                               "false_success": [0.0, 0.0, 1.0, 0]}}
    text = markdown({"loop": [row(0, 0.2), row(1, 0.6)], "imitation": [row(0, 0.2), row(1, 0.4)]})
    assert text.count("| start |") == 1 and "| loop | 1 | 0.600 [0.500, 0.700]" in text and "no failure" in text
    assert "| +0.20 [-0.00, +0.38] |" in text and "| +0.40 [+0.19, +0.57] |" in text, "the gap, as Newcombe's method 10"
    assert "| promoted | kept | promoted |" in text and "| imitation | 1 |" in text
    for used, told in ((True, "followed on the arm"), (False, "dropped on the arm")):
        on_arm = {**row(1, 0.6), "validation": {"candidate": "a", "used": used, "promoted": True}}
        assert f"| promoted, {told} |" in markdown({"loop": [row(0, 0.2), on_arm]})
    bc_policy = {**row(1, 0.6), "validation": {"candidate": "a", "used": True, "promoted": False}}
    assert "| promoted, BC policy followed on the arm |" in markdown({"loop": [row(0, 0.2), bc_policy]})
    assert "| promoted |" in markdown({"loop": [row(0, 0.2), {**row(1, 0.6), "validation": {"candidate": ""}}]})


@pytest.fixture
def arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_run: Callable[..., Run]) -> SimpleNamespace:
    """A run whose real episodes succeed as often as `wins` says, in turn; `asked` is what was played."""
    said: list[str] = []
    run = start_run(tmp_path / "run", dataclasses.replace(small(), episodes=24), said)
    played = real_episodes("lab_bottle", 1, 1.2)[0]
    out = SimpleNamespace(run=run, said=said, wins=[], asked=[])

    def collect(environment: object, policy: object, adapter: str, seeds: range, count: int, instruction: str,
                temperature: float, *_: object) -> list[Episode]:
        out.asked.append((adapter, seeds, count, temperature))
        wins = out.wins.pop(0)
        return [dataclasses.replace(played, success=i < wins, done_step=None) for i in range(count)]
    monkeypatch.setattr(on_arm, "collect", collect)
    monkeypatch.setattr(Round, "adapter", lambda here: here.state.adapter)
    monkeypatch.setattr(Round, "parts", lambda here: SimpleNamespace(policy=here.state.adapter))
    monkeypatch.setattr(on_arm, "load_policy", lambda *_: None)
    return out


def parts_of(run: Run, method: str) -> dict[str, int]:
    return {p: sum(len(np.load(f)["length"]) for f in (run.out / method / p).glob("*.npz")) for p in set(PARTS)}


def test_the_loop_keeps_a_third_of_its_real_episodes_for_the_trial(arm: SimpleNamespace) -> None:
    run, state = arm.run, arm.run.start()
    arm.wins = [3, 3, 5]
    told = explore(Round(run, "loop", 1, state))
    assert (told["successes"], told["episodes"]) == (3, 16) and "3 of 16" in arm.said[0]
    validation(Round(run, "loop", 1, state).at(record=(3, 16)), "", "")
    (_, first, explored, hot), (_, last, tried, cold) = arm.asked
    assert (explored, tried, hot, cold) == (16, 8, 1.2, 0.0), "tried as it is deployed"
    assert not set(first) & set(last), "and in other episodes"
    counts = parts_of(run, "loop")
    assert sum(counts.values()) == 24 and counts["held_out"] >= 4, "so many are needed to compare judges"
    explore(Round(run, "imitation", 1, state))
    assert arm.asked[-1][2] == 24 and sum(parts_of(run, "imitation").values()) == 24


@pytest.mark.parametrize(("promoted", "mine", "wins", "follows"), [
    (False, (2, 16), 2, True), (False, (3, 16), 1, True), (False, (7, 16), 0, False),  # weak: unless clearly worse
    (False, (12, 16), 6, False), (False, (12, 16), 8, True), (False, (12, 16), 1, False),  # else if it is better
    (True, (12, 16), 5, True), (True, (12, 16), 2, False)])  # what the dream calls better, unless clearly worse
def test_the_arm_has_the_last_word(arm: SimpleNamespace, promoted: bool, mine: tuple[int, int], wins: int,
                                   follows: bool) -> None:
    run = arm.run
    state = dataclasses.replace(run.start(), adapter="before", record=mine, greedy=mine)
    arm.wins = [wins]
    told = validation(Round(run, "loop", 1, state), "promoted" if promoted else "", "a-bc-policy")
    tried = "promoted" if promoted else "a-bc-policy"
    assert arm.asked[0][0] == told["candidate"] == tried and told["used"] is follows
    after = (told["adapter"], tuple(told["record"]), tuple(told["greedy"]))
    assert after == ((tried, (wins, 8), (wins, 8)) if follows else ("before", mine, mine))
    assert "better with a chance of" in arm.said[0]


def test_what_is_tried_without_chance_is_compared_with_what_acted_so() -> None:
    explored_well = State("world", "judge", "second", "before", record=(17, 24), greedy=(1, 8))
    told = compare((3, 8), explored_well, True)
    assert told["used"] and "in 1 of 8" in told["message"]
    acted_well = State("world", "judge", "second", "before", record=(9, 24), greedy=(8, 8))
    assert not compare((4, 8), acted_well, True)["used"] and acted_well.weak


def test_a_bc_policy_that_is_not_clearly_worse_follows_the_base() -> None:
    base = State("world", "judge", "second", "", (12, 16))
    assert compare((5, 8), base, False)["used"] and not compare((2, 8), base, False)["used"]
    assert not compare((5, 8), dataclasses.replace(base, adapter="before"), False)["used"]


def test_with_nothing_to_try_the_present_adapter_is_tried_again_and_a_stopped_trial_leaves_nothing(
        arm: SimpleNamespace) -> None:
    run = arm.run
    state = dataclasses.replace(run.start(), adapter="before", record=(5, 16), greedy=(2, 8))
    arm.wins = [8, 3]
    for wins in (8, 3):  # the first was stopped before it was written down
        told = validation(Round(run, "loop", 1, state), "", "")
        assert told["adapter"] == arm.asked[-1][0] == "before" and told["record"] == (5 + wins, 24)
        assert told["greedy"] == (2 + wins, 16)
    assert sum(parts_of(run, "loop").values()) == 8
    found = [bool(s[-1]) for f in run.out.glob("loop/*/round-1-validation.npz") for s in np.load(f)["success"]]
    assert sum(found) == 3, "of the attempt that was finished"


def test_every_split_of_the_fewest_episodes_fills_all_parts(arm: SimpleNamespace) -> None:
    run, state = arm.run, arm.run.start()
    for first in range(9):
        for second in range(5):
            arm.wins = [first, second]
            for part, count in enumerate((8, 4)):
                play(Round(run, f"{first}-{second}", 1, state), part, count, 1.2)
            parts = {f.parent.name for f in run.out.glob(f"{first}-{second}/*/round-1*.npz")}
            assert parts == set(PARTS), (first, second)


@pytest.mark.parametrize("preferred", [True, False])
def test_adaptation_begins_where_it_is_told_and_a_bc_policy_that_imagination_prefers_need_only_not_be_worse(
        arm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, preferred: bool) -> None:
    run = arm.run
    begun: list[str] = []
    arm.wins = [13, 6]
    where = "the-bc-policy" if preferred else "before"
    same = {"decision": [], "promoted": False, "use": run.start().world_model, "geometric": run.start().geometric}
    for name, stage in (
            ("learn_world_model", lambda here: same), ("learn_judges", lambda here: {**same, "use": run.start().judge}),
            ("learn_camera", lambda here: {"geometric": run.start().geometric}),
            ("imitate_successes", lambda here: {"adapter": "the-bc-policy"}),
            ("choose_begin", lambda here, bc_policy: {"adapter": where, "preferred": preferred}),
            ("adapt_in_imagination", lambda here: begun.append(here.state.adapter) or {
                "adapter": "", "outcome": "kept"}),
            ("evaluate", lambda *_: {"true": {"value": 0.5}})):
        monkeypatch.setattr(loop, name, stage)
    row = run_round(Round(run, "loop", 1, run.start()).at(adapter="before"))
    assert begun == [where]
    assert arm.asked[-1][0] == "the-bc-policy", "where imagination promoted nothing the BC policy is tried"
    assert row["state"]["adapter"] == where  # 6 of 8 for 13 of 16: not clearly worse, not surely better
    assert tuple(row["state"]["record"]) == ((6, 8) if preferred else (13, 16))


@pytest.mark.slow
def test_imagination_tells_a_spoiled_bc_policy_from_a_good_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_run: Callable[..., Run]) -> None:
    monkeypatch.setattr(on_arm, "ROLLOUTS", 8)
    said: list[str] = []
    run = start_run(tmp_path / "run", dataclasses.replace(
        small(), instruction="push the purple block left", horizon_steps=20, captures=8), said, "lab_bar")
    policy = load_policy()
    learner = LoraLearner(policy, LoraConfig(), None)
    learner.begin()
    store = Store(run.out / "loop" / "adapters")
    neutral, weights = store.put("neutral", learner.save, parent="base", base_policy=policy.name, scores={},
                                 created_ns=1).name, learner.snapshot()
    noise = torch.Generator().manual_seed(0)
    learner.restore({k: v + 0.1 * torch.randn(v.shape, generator=noise) for k, v in weights.items()})
    spoiled = store.put("spoiled", learner.save, parent="base", base_policy=policy.name, scores={},
                        created_ns=1).name
    here = Round(run, "loop", 1, run.start()).at(record=(13, 16))
    as_good = choose_begin(here, neutral)
    assert as_good["bc_policy"] == as_good["present"] > 0, "the base succeeds in some, and a fresh adapter is the base"
    assert as_good["adapter"] == "" and not as_good["preferred"], "a tie is no reason"
    worse = choose_begin(here, spoiled)
    assert worse["adapter"] == "" and worse["bc_policy"] < worse["present"] == as_good["present"], worse
    better = choose_begin(here.at(adapter=spoiled), neutral)
    assert better["adapter"] == neutral and better["preferred"] and better["bc_policy"] == as_good["present"]
    assert "of its 8 rollouts succeed" in said[-1] and "begins at the BC policy" in said[-1]
    weak = here.at(record=(3, 16))
    assert choose_begin(weak, spoiled)["adapter"] == spoiled, "the arm says that what there is does not do"
    assert choose_begin(weak, "") == {"adapter": "", "preferred": False, "message": "no success to imitate"}
    assert len(said) == 3, "nothing was imagined for these"


def test_a_camera_that_was_mounted_anew_is_found_for_world_model_and_judge_alike(
        tmp_path: Path, start_run: Callable[..., Run]) -> None:
    run = start_run(tmp_path / "run", small(), [], "lab_camera")
    rows = real_episodes("lab_camera", 12, 1.2)
    write_episodes(run.out / "loop" / "training" / "round-1.npz", rows[:6])
    write_episodes(run.out / "loop" / "calibration" / "round-1.npz", rows[6:])
    told = learn_models.learn_camera(Round(run, "loop", 1, run.start()))
    assert "from where it was thought to be" in told["message"]
    shipped, learned = (load_world_model("", second) for second in (GEOMETRIC, told["geometric"]))
    true = np.array(rows[0].camera)  # as physics has it

    def off(world: ActionDiTWorld) -> float:
        return float(np.abs(np.array(world.config.camera) - true).max())
    assert off(learned) < 0.5 * off(shipped)
    assert shipped.config.camera == load_network(checkpoint_dir("tiny/world_model"))[0].config.camera, "one set-up"
    assert shipped.with_objects(load_objects(told["geometric"])).config.camera == learned.config.camera
    episodes = read_arrays(run.out / "loop" / "training" / "round-1.npz")
    errors = [np.mean([structural_error(video[1:], e.frames[1:]).mean() for video, e in zip(
        [r[0] for r in imagine_again(world, episodes, 3)], episodes, strict=True)]) for world in (shipped, learned)]
    assert errors[1] < 0.6 * errors[0], "the arm is drawn where it is seen"


def test_new_episodes_and_earlier_play_are_each_drawn_for_their_own_camera(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_run: Callable[..., Run]) -> None:
    locator = Locator.from_pretrained(checkpoint_dir("tiny/locator"))
    pose = np.array(locator.config.T_base_camera)
    pose[3] += 0.08
    locator.config = dataclasses.replace(locator.config, T_base_camera=tuple(pose.tolist()))
    locator.save(tmp_path / "moved")
    moved, shipped = (load_objects(str(folder)).projection for folder in (tmp_path / "moved", ""))
    assert moved != shipped
    seen: list[tuple[float, ...]] = []
    labels: list[str] = []
    nothing = Episode(np.zeros((2, 1, 1, 3), np.uint8), np.zeros((1, 7), np.float32), None, success=True)
    stub = Replays((nothing, nothing), *np.ones((2, 2)), np.ones((2, 3)), np.ones(2), np.ones(2, bool), np.ones(2), [])
    monkeypatch.setattr(learn_models, "read_episodes", lambda *_: Found())
    monkeypatch.setattr(Round, "episodes", lambda *_: [])
    monkeypatch.setattr(learn_models, "play_folder", lambda *_: [])

    def update(*args: object) -> SimpleNamespace:
        seen.extend(reader.projection for reader in args[-2:])  # type: ignore[attr-defined]
        return SimpleNamespace(version=SimpleNamespace(name="", path=""), figures={},
                               decision=SimpleNamespace(promote=False, lines=()))

    def update_judge(start: Path, world: ActionDiTWorld, old_world: ActionDiTWorld, *_: object) -> Path:
        seen.extend(w.config.camera or () for w in (world, old_world))
        return start

    def put_version(root: Path, path: Path, label: str, *_: object) -> SimpleNamespace:
        labels.append(label)
        return SimpleNamespace(path=path)
    for name, value in (("update", update), ("update_judge", update_judge), ("put_version", put_version),
                        ("update_pair", lambda second, looks, *_: ({"weights": looks["weights"]}, second, []))):
        monkeypatch.setattr(learn_models, name, value)
    run = start_run(tmp_path / "run", small(), [])
    monkeypatch.setattr(run.replays, "replay", lambda *_: stub)
    monkeypatch.setattr(run, "play", lambda name: tmp_path)
    monkeypatch.setattr(learn_models, "release", lambda *_: {})
    here = Round(run, "loop", 1, run.start()).at(geometric=str(tmp_path / "moved"))
    learn_models.learn_world_model(here)
    learn_models.learn_judges(here)
    assert seen == [moved, shipped, moved, shipped]
    assert not any("alone" in label for label in labels), "who measures knows the camera"
    learn_models.learn_judges(Round(run, "loop", 2, run.start()))
    assert seen[4:] == [shipped, shipped] and any("alone" in label for label in labels)


def test_a_session_of_the_loop_is_held_to_the_real_successes_and_the_baseline_is_not(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_run: Callable[..., Run]) -> None:
    run = start_run(tmp_path / "run", small(), [])
    rows = [dataclasses.replace(e, success=True, done_step=5) for e in real_episodes("lab_bottle", 2, 1.2)]
    learners: list[LoraLearner] = []
    gates: list[tuple[float, float]] = []

    def session(parts: Parts, starts: object, config: AdaptNodeConfig, *_: object, parent: object) -> SimpleNamespace:
        learners.append(parts.learner(parent))
        gates.append((config.margin, config.confidence))
        report = SimpleNamespace(outcome="kept", message="", curve=(), adapter=None, seconds={})
        return SimpleNamespace(report=report, report_path=run.out / "report.html")
    monkeypatch.setattr(learn_policy, "run_session", session)
    for method in ("loop", "adaptation_only"):
        write_episodes(run.out / method / "training" / "round-1.npz", rows)
        learn_policy.adapt_in_imagination(Round(run, method, 1, run.start()))
    assert learners[0].regulariser is not None and learners[1].regulariser is None
    assert gates == [(0.0, 0.8), (0.05, 0.95)], "what the arm tries first need only be likely better"
    learner, rng = learners[0], np.random.default_rng(3)
    assert learner.name == f"LoRA of rank 16, regularised by 2 real successes of {run.out / 'loop' / 'all'}"
    loss = cloning_loss(learner.policy, read_arrays(run.out / "loop" / "training" / "round-1.npz"), Imitation())
    learner.begin()
    try:
        with torch.no_grad():
            whole = float(loss(np.random.default_rng(3)))
            assert float(learner.regulariser.loss(rng)) == pytest.approx(0.3 * whole, rel=1e-4) and whole > 0
    finally:
        learner.end()


def test_the_loop_is_compared_with_each_baseline_episode_by_episode() -> None:
    def rows(*rounds: list[bool]) -> list[dict]:
        return [{"evaluation": {"outcomes": some}} for some in ([False] * 8, *rounds)]

    won, half, none = [True] * 8, [True, False] * 4, [False] * 8
    found = ahead({"loop": rows(none, won), "adaptation_only": rows(won, half), "imitation": rows(half)})
    gap = found["adaptation_only"]
    assert gap.value == 0.5 and 0.0 < gap.low < 0.5 < gap.high < 1.0
    assert found["imitation"].value == -0.5, "after the last round that both have"
    assert not ahead({"loop": rows(won)}) and not ahead({"adaptation_only": rows(won)})
    lines = ahead_lines({"loop": rows(won), "adaptation_only": rows(half)})
    assert "ahead of adaptation_only: +50.0 points" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(("replay", "pairs", "judges"), [
    (True, 0, "tiny/reflector, tiny/locator"), (False, 2, "tiny/reflector, tiny/locator"), (True, 0, "tiny/reflector")])
def test_one_round_of_the_whole_loop(tmp_path: Path, start_run: Callable[..., Run], replay: bool, pairs: int,
                                     judges: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from world_gymnast_ros.updates.judges import JudgeUpdate
    from world_gymnast_ros.updates.world_model import UpdateConfig

    config = dataclasses.replace(small(), episodes=24, update=UpdateConfig(steps=4, own_rollouts=4, save_every=2),
                                 judge=JudgeUpdate(steps=2), limit_pairs=pairs, **({} if replay else {
                                     "replay": "", "old": ""}))
    adapt = adapt_settings(None, ["min_release_auc=0", "max_updates=1", "copies=8", "select_groups=2",
                                  "promotion_groups=4", f"judges={judges}"], {})
    if "locator" not in judges:  # learned parts alone: nothing asks the geometry where an object is
        def refused(self: object, *args: object) -> None:
            raise AssertionError("an object was looked for")
        monkeypatch.setattr("world_gymnast_ros.tabletop.scene_reader.SceneReader.begin", refused)
        monkeypatch.setattr("world_gymnast_ros.tabletop.scene_reader.SceneReader.predict", refused)
    environment = start_run(tmp_path / "unused", config, []).environment

    def make_play(name: str, folder: Path) -> None:
        make_replay(folder, 4 if name == "old" else 16, 0, name == "old", lambda _: None)
    earlier = EarlierData(make_play, frame_labels)
    run = Run(config, adapt, environment, tmp_path / "run", lambda _: None, lambda: 1, earlier)
    rows = run_method(run, "loop")
    assert [r["round"] for r in rows] == [0, 1]
    assert rows[1]["cloning"]["outcome"] and rows[1]["begin"]["message"]
    if pairs and rows[1]["validation"]["candidate"]:
        assert rows[1]["validation"]["episodes"] == 2 * pairs and rows[1]["validation"]["decision"] == "unclear"
    else:
        assert rows[1]["validation"]["episodes"] == 8
    assert rows[1]["world_model"]["decision"]
    told = " ".join(rows[1]["world_model"]["decision"] + rows[1]["judge"]["decision"])
    assert ("no earlier data to mix in" in told) is not replay and ("not checked: earlier scenes" in told) is not replay
    assert 0.0 <= rows[1]["evaluation"]["true"]["value"] <= 1.0
    tmp_path = run.out
    text = write_run_report(tmp_path, "lab_bottle", run.instruction, {"loop": rows})
    assert "| loop | 1 |" in text and "data:image/png" in (tmp_path / "report.html").read_text()


def worldgym_folder(folder: Path) -> Path:
    """A WorldGym world model of real files, 64x64 px: a tiny published-format network and a tiny autoencoder."""
    from diffusers import AutoencoderTiny
    from safetensors.torch import save_file

    from world_gymnast_ros.models.world_models.worldgym_settings import WorldGymSettings

    torch.manual_seed(0)
    AutoencoderTiny(latent_channels=4, encoder_block_out_channels=(8,) * 4,
                    decoder_block_out_channels=(8,) * 4).save_pretrained(folder / "vae")
    golden = load_file(Path(__file__).parent / "golden" / "worldgym.safetensors")
    save_file({k.removeprefix("weights."): v for k, v in golden.items() if k.startswith("weights.")},
              folder / "model.safetensors")
    settings = WorldGymSettings(heads=2, window=6, frame_size=(64, 64), sampling_steps=2)
    (folder / "config.json").write_text(json.dumps(settings.to_dict()))
    return folder


@pytest.mark.slow
def test_a_round_of_the_whole_loop_with_worldgym_ends_and_goes_on_where_it_was_stopped(
        tmp_path: Path, start_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained, so nothing is promoted; every stage runs: LoRA update, release check, judges, session, validation."""
    from world_gymnast_ros.updates.judges import JudgeUpdate
    from world_gymnast_ros.updates.world_model import UpdateConfig

    config = dataclasses.replace(small(), episodes=24, update=UpdateConfig(steps=4, batch=2, lora_rank=4, save_every=2),
                                 judge=JudgeUpdate(steps=2), replay="", old="")
    adapt = adapt_settings(None, ["min_release_auc=0", "max_updates=1", "copies=4", "select_groups=2",
                                  "promotion_groups=4"], {"world_model": str(worldgym_folder(tmp_path / "worldgym"))})
    environment = start_run(tmp_path / "unused", config, []).environment
    begun = Run(config, adapt, environment, tmp_path / "run", lambda _: None, lambda: 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "learn_judges", killed)
        run_method(begun, "loop")
    for stage in ("explore", "learn_camera", "learn_world_model"):  # done already
        monkeypatch.setattr(loop, stage, killed)
    rows = run_method(Run(config, adapt, environment, tmp_path / "run", lambda _: None, lambda: 1), "loop")
    assert [r["round"] for r in rows] == [0, 1] and rows[1]["real"]["episodes"] == 16
    stored = begun.out / "loop" / "world_models" / rows[1]["world_model"]["version"]
    parent, version = (load_file(f / "model.safetensors") for f in (tmp_path / "worldgym", stored))
    assert set(version) == set(parent) and any(not torch.equal(version[k].float(), w.float())
                                               for k, w in parent.items())
    assert load_world_model(stored).frame_size == (64, 64), "a version finds its autoencoder"
    assert rows[1]["world_model"]["decision"] and rows[1]["judge"]["decision"] and rows[1]["learning"]["outcome"]
    assert 0.0 <= rows[1]["evaluation"]["true"]["value"] <= 1.0
    assert "| loop | 1 |" in write_run_report(begun.out, "lab_bottle", begun.instruction, {"loop": rows})


def test_the_published_table_comes_from_the_outcomes_beside_it(tmp_path: Path) -> None:
    folder = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("loop_table", folder / "bench" / "loop_table.py")
    assert spec is not None and spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    docs = (folder / "docs" / "results.md").read_text(encoding="utf-8")
    tables = table.measured(folder / "docs" / "measured" / "loops.jsonl")
    assert len(tables) == 15
    published = [line for line in table.comparison(tables).splitlines() if ": mean of" in line or "mean of all" in line]
    assert len(published) == 7 + 3 and all(line in docs for line in published if "seed " not in line)
    again = tmp_path / "again.jsonl"
    again.write_text(table.lines(tables))
    assert table.measured(again) == tables
    again.write_text(table.lines(tables[:1]).split("\n", 1)[0])
    with pytest.raises(SystemExit, match="no outcomes of loop, imitation for"):
        table.measured(again)
    tables[0]["results"]["loop"][-1]["more"] = []
    again.write_text(table.lines(tables))
    with pytest.raises(SystemExit, match=r"evaluated on \{.*'loop': 40.*\} episodes; compare"):
        table.measured(again)
