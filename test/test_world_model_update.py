"""The world-model update: what it reads, the same weights after a kill, honest figures, and a check that can refuse."""
from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from episode_maker import record
from safetensors import safe_open
from safetensors.torch import load_file
from toy_play import SIZE, write_toy_play

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.data.read import read_arrays, read_episodes
from world_gymnast_ros.errors import BadCheckpoint, BadConfig, EpisodeError
from world_gymnast_ros.evaluation.image_metrics import structural_error
from world_gymnast_ros.evaluation.replay import Replays, imagine_again, replay_episodes
from world_gymnast_ros.files import sha256_file
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.loading.load import JUDGE, load
from world_gymnast_ros.models.checkpoint import save_model
from world_gymnast_ros.models.world_models.action_dit import ActionDiT, ActionDiTConfig
from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld
from world_gymnast_ros.objects import ObjectTracks
from world_gymnast_ros.store import WORLD_MODEL, Store, read_card
from world_gymnast_ros.training.reflector import Verdicts
from world_gymnast_ros.training.world_model import Trainer
from world_gymnast_ros.updates.judges import calibrate, decide_judge
from world_gymnast_ros.updates.world_model import Margins, UpdateConfig, decide, fine_tune, split
from world_gymnast_ros.updates.world_model_run import Data, check_folder, replay_folder, update

TINY = ActionDiTConfig(image_size=SIZE, patch=8, window=16, window_dim=24, dim=16, depth=2, heads=2,
                       temporal_blocks=(1,), context_frames=3)
CONFIG = UpdateConfig(steps=30, batch=4, save_every=5, own_rollouts=4, seed=3)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent checkpoint, and toy play for training, replay and old scenes."""
    root = tmp_path_factory.mktemp("update")
    torch.manual_seed(0)
    save_model(ActionDiT(TINY), TINY.to_dict(), root / "parent")
    for seed, name in enumerate(("new", "replay", "old")):
        write_toy_play(root / name / "reach.npz", 12, seed)
    return root


def tune(files: Path, out: Path, config: UpdateConfig = CONFIG) -> str:
    new, replay = (read_arrays(files / name / "reach.npz") for name in ("new", "replay"))
    return sha256_file(fine_tune(files / "parent", new, replay, [], config, out) / "model.safetensors")


KILLED = """
import sys, torch
sys.path.insert(0, sys.argv[3])
torch.set_num_threads(1)
from pathlib import Path
import test_world_model_update as t
t.tune(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def steps_done(out: Path) -> int:
    state = out / "training" / "state.safetensors"
    if not state.is_file():
        return 0
    with safe_open(state, "pt") as header:
        return int(json.loads(header.metadata()["numbers"])["step"])


def test_killed_and_started_again_it_ends_in_the_same_weights(files: Path, tmp_path: Path) -> None:
    whole = tune(files, tmp_path / "whole")
    out = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(files), str(out), str(Path(__file__).parent)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 240
        while not steps_done(out) and child.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert 0 < steps_done(out) < CONFIG.steps, "it was to be killed half-way"
    assert tune(files, out) == whole
    assert tune(files, out) == whole, "a complete run is left as it is"
    assert whole != sha256_file(files / "parent" / "model.safetensors")


def test_a_run_of_other_data_or_settings_is_not_gone_on_with(files: Path, tmp_path: Path) -> None:
    quick = dataclasses.replace(CONFIG, steps=2)
    tune(files, tmp_path / "run", quick)
    with pytest.raises(BadCheckpoint, match="another folder"):
        tune(files, tmp_path / "run", dataclasses.replace(quick, steps=3))
    with pytest.raises(BadConfig, match="replay_share"):
        UpdateConfig(replay_share=1.0)
    new, replay = (read_arrays(files / name / "reach.npz") for name in ("new", "replay"))
    seen = ObjectTracks(np.zeros((new[0].steps + 1, 1, 3), np.float32), np.zeros((1, 2), np.float32),
                        np.zeros(12, np.float32))
    found = [dataclasses.replace(new[0], objects=seen), *new[1:]]
    with pytest.raises(BadCheckpoint, match="another folder"):  # as another locator would find them
        fine_tune(files / "parent", found, replay, [], quick, tmp_path / "run")


def test_recordings_and_play_data_are_read_and_decoded_once(
        files: Path, tmp_path: Path) -> None:
    root, cache = tmp_path / "episodes", tmp_path / "cache"
    root.mkdir()
    _, truth = record(root, "one", outcome="success")
    record(root, "two", outcome="failure", seed=1)
    record(root, "three", seed=2)  # nobody said what came of it
    record(root, "four", chunks=1, outcome="failure", seed=3)  # too short for a clip
    read = read_episodes([root, files / "new"], 32, cache)
    mine = {e.name: e for e in read.marked if e.name in ("one", "two")}
    assert [mine[name].success for name in ("one", "two")] == [True, False]
    assert len(read.episodes) == 2 + 12 and set(read.hashes) == {"one", "two", "new/reach.npz"}
    reasons = " ".join(read.left_out)
    assert len(read.left_out) == 2 and "not marked" in reasons and "at least 8" in reasons
    one = mine["one"]
    assert one.frames.shape == (len(truth.actions) + 1, 32, 32, 3)
    assert one.captured is not None and one.captured.shape[0] > 32, "the first frame at the camera's own size"
    np.testing.assert_allclose(one.deltas, np.stack(truth.actions), atol=1e-6)
    # the target before an action plus the action is the target after it
    assert one.states is not None
    np.testing.assert_allclose(np.diff(one.states[:, 0]), one.deltas[:, 0], atol=2e-3)
    stamp = max(p.stat().st_mtime_ns for p in cache.glob("*.npz"))
    again = next(e for e in read_episodes([root], 32, cache).episodes if e.name == "one")
    np.testing.assert_array_equal(again.captured, one.captured)
    assert max(p.stat().st_mtime_ns for p in cache.glob("*.npz")) == stamp, "decoded again"
    np.testing.assert_array_equal(again.frames, one.frames)
    with pytest.raises(EpisodeError, match="does not exist"):
        read_episodes([tmp_path / "nothing"], 32)


def test_a_split_holds_out_either_outcome(files: Path) -> None:
    episodes = read_arrays(files / "new" / "reach.npz")
    training, held = split(episodes, 0.25, 0)
    assert len(training) + len(held) == len(episodes) and {e.success for e in held} == {True, False}
    with pytest.raises(EpisodeError, match="cannot be split"):
        split(episodes[:1], 0.25, 0)


def test_the_structural_error_sees_what_a_person_would() -> None:
    rng = np.random.default_rng(0)
    image = resize_rgb(rng.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8), (64, 64))
    brighter = np.clip(image.astype(int) + 4, 0, 255).astype(np.uint8)
    other = resize_rgb(rng.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8), (64, 64))
    same, light, wrong = (structural_error(image, x) for x in (image, brighter, other))
    assert np.allclose(same, 0.0, atol=1e-6) and (light < 0.02).all() and (wrong > 0.5).all()
    np.testing.assert_allclose(structural_error(other, image), wrong)


def replays(predicted: list[bool], success: list[bool], structural: float = 0.1, spread: float = 0.01) -> Replays:
    n = len(success)
    wobble = spread * np.linspace(-1, 1, n)
    frames, deltas = np.zeros((2, 1, 1, 3), np.uint8), np.zeros((1, 7), np.float32)
    episodes = tuple(Episode(frames, deltas, None, success=s) for s in success)
    return Replays(episodes, np.full(n, 0.01), structural + wobble, np.full((n, 3), 0.01), np.array(predicted, float),
                   np.array(predicted), np.full(n, np.nan), [frames] * n)


SUCCESS = [True] * 10 + [False] * 20
HONEST, FOOLED = SUCCESS, [True] * 10 + [True] * 12 + [False] * 8


def test_false_successes_stand_first_and_are_counted_among_failures() -> None:
    summary = replays(FOOLED, SUCCESS).summary()
    assert next(iter(summary)) == "false_success"
    assert summary["false_success"] == pytest.approx(12 / 20) and summary["failures"] == 20
    assert summary["false_negative"] == 0.0 and summary["agreement"] == pytest.approx(18 / 30)


@pytest.mark.parametrize("change, promote, word", [
    ({}, True, "new scene: false positives"),
    ({"new_after": replays(FOOLED, SUCCESS, 0.1)}, False, "one of them must fall"),
    ({"new_after": replays(FOOLED, SUCCESS, 0.05), "new_before": replays(HONEST, SUCCESS, 0.1)}, False,
     "new scene: false positives"),
    ({"old_after": replays(HONEST, SUCCESS, 0.12)}, False, "old scenes: structural"),
    ({"old_after": replays(FOOLED, SUCCESS, 0.1)}, False, "old scenes: false positives"),
    ({"old_after": replays([False] * 30, SUCCESS, 0.1)}, False, "old scenes: outcomes agree"),
])
def test_a_version_is_promoted_only_if_better_and_nowhere_worse(change: dict, promote: bool, word: str) -> None:
    cast = {"new_before": replays(FOOLED, SUCCESS, 0.1), "new_after": replays(HONEST, SUCCESS, 0.1),
            "old_before": replays(HONEST, SUCCESS, 0.1), "old_after": replays(HONEST, SUCCESS, 0.1), **change}
    decision = decide((cast["new_before"], cast["new_after"]), (cast["old_before"], cast["old_after"]), Margins(), 0)
    assert decision.promote is promote, decision.lines
    broken = [line for line in decision.lines if line.startswith("FAILS")]
    assert bool(broken) is not promote
    assert any(word in line for line in (broken or decision.lines)), decision.lines


def test_too_few_held_out_episodes_decide_nothing() -> None:
    few = replays(HONEST[9:12], SUCCESS[9:12])
    assert not decide((few, few), (few, few), Margins(), 0).promote


def test_a_judge_is_promoted_only_if_it_agrees_more_and_claims_no_more_failures() -> None:
    good, bad, old = replays(HONEST, SUCCESS), replays(FOOLED, SUCCESS), replays(HONEST, SUCCESS)
    assert decide_judge((bad, good), (old, old), 0).promote
    assert not decide_judge((good, bad), (old, old), 0).promote
    assert not decide_judge((bad, good), (old, bad), 0).promote, "worse on old scenes"
    mute = replays([False] * 30, SUCCESS)
    mute.score[:] = np.nan
    assert not decide_judge((bad, good), (old, mute), 0).promote, "no verdict on old scenes is no reason to hold"


def test_who_claims_nothing_is_no_better_judge() -> None:
    """No false success any more, at the price of all true ones: in a long run such a pair ended all learning."""
    success = [True] * 20 + [False] * 10
    old = replays(HONEST, SUCCESS)
    loose, silent = replays([True] * 22 + [False] * 8, success), replays([False] * 30, success)
    stricter = replays([False] * 1 + [True] * 19 + [False] * 10, success)
    assert not decide_judge((loose, silent), (old, old), 0).promote
    assert decide_judge((loose, stricter), (old, old), 0).promote
    told = np.flatnonzero(old.predicted & old.success)
    for kept, promote in ((len(told) // 2 + 1, True), (1, False)):  # a cut that three new successes just pass
        narrow = dataclasses.replace(old, predicted=np.isin(np.arange(30), told[:kept]))
        decision = decide_judge((loose, stricter), (old, narrow), 0)
        failed = [line for line in decision.lines if line.startswith("FAILS")]
        assert decision.promote is promote and all("old scenes: successes detected" in line for line in failed), failed
    few = replays(success[15:25], success[15:25])
    fooled = replays([True] * 24 + [False] * 6, success)
    strict = replays([False] * 6 + [True] * 14 + [False] * 10, success)
    for less in (strict, silent):
        assert not decide_judge((few, few), (old, old), 0, (fooled, less)).promote, "of few, to claim nothing is cheap"
    failures = [True] * 6 + [False] * 24  # most fail, and of those held out nearly all: who claims nothing agrees more
    held = replays([False] * 9 + [True], failures[5:15]), replays([False] * 10, failures[5:15])
    guess, shut, keen = (replays(predicted, failures) for predicted in (
        [True] * 4 + [False] * 2 + [True] * 7 + [False] * 17, [False] * 30, [True] * 2 + [False] * 28))
    for weights in (False, True):
        decision = decide_judge(held, (old, old), 0, (guess, shut), weights)
        assert not decision.promote and "successes detected 0.667 to 0.000" in " ".join(
            line for line in decision.lines if line.startswith("FAILS")), decision.lines
        assert decide_judge(held, (old, old), 0, (guess, keen), weights).promote, "half as many are told"
    assert decide_judge(held, (old, old), 0, (shut, keen), weights=True).promote, "from nothing it can but rise"


def test_settings_may_be_learned_where_held_out_episodes_are_too_few_to_show_it() -> None:
    good, bad, old = replays(HONEST, SUCCESS), replays(FOOLED, SUCCESS), replays(HONEST, SUCCESS)
    few = tuple(replays(HONEST[5:15], SUCCESS[5:15]) for _ in range(2))
    assert not decide_judge((few[0], few[1]), (old, old), 0).promote
    assert decide_judge((few[0], few[1]), (old, old), 0, (bad, good)).promote
    worse = replays(FOOLED[5:15], SUCCESS[5:15])
    assert not decide_judge((few[0], worse), (old, old), 0, (bad, good)).promote, "held-out episodes fall"
    assert not decide_judge((few[0], few[1]), (old, old), 0, (good, bad)).promote
    one_less = replays([c and i != 5 for i, c in enumerate(HONEST)][5:15], SUCCESS[5:15])
    assert one_less.predicted.sum() == few[0].predicted.sum() - 1
    assert decide_judge((few[0], one_less), (old, old), 0, (bad, good)).promote, "false successes fall, one is missed"
    assert not decide_judge((few[0], one_less), (old, old), 0, (good, good)).promote


def test_calibration_cuts_between_the_outcomes_and_bounds_false_successes() -> None:
    judge = load(JUDGE)
    scale = judge.config.logit_scale
    success = np.arange(20) < 10
    calibrate(judge, Verdicts(np.where(success, 3.0, -3.0), success, np.full(20, "reach")), 0.2)
    assert judge.config.task_offsets == {}, "a judge of one task has one threshold"
    assert judge.config.logit_scale == scale and judge.config.logit_offset == pytest.approx(0.0, abs=1e-6)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 20)
    calibrate(judge, Verdicts(noise, success, np.full(20, "reach")), 0.2)
    predicted = judge.probability(noise) > judge.config.done_threshold
    assert predicted[~success].mean() <= 0.2


def test_an_update_is_stored_with_parent_data_hashes_figures_and_verdict(files: Path, tmp_path: Path) -> None:
    new, replay, old = (read_arrays(files / name / "reach.npz") for name in ("new", "replay", "old"))
    judge = load(JUDGE)

    def figures(world_model: Path, some: list) -> Replays:
        return replay_episodes(ActionDiTWorld.from_pretrained(world_model), judge, some, 0)

    data = Data(new[:8], new[8:], replay, old, {"reach.npz": "abc"})
    result = update(files / "parent", data, dataclasses.replace(CONFIG, steps=4), Margins(), figures, tmp_path / "run",
                    tmp_path / "world_models", "toy", 1)
    card = read_card(tmp_path / "world_models" / result.version.name, WORLD_MODEL)
    assert card.parent.startswith("parent-") and card.scores["data_sha256"] == {"reach.npz": "abc"}
    assert card.scores["promoted"] is result.decision.promote and card.scores["figures"]["new"][1]["episodes"] == 4
    assert (tmp_path / "run" / "replays.png").stat().st_size > 1000
    assert Store(tmp_path / "world_models", WORLD_MODEL).newest() == card
    ActionDiTWorld.from_pretrained(card.path)


def test_each_side_of_an_update_is_drawn_for_the_camera_that_recorded_it(
        files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted_anew, before = (SimpleNamespace(projection=tuple(np.arange(12) + shift)) for shift in (0.5, 0.0))
    new, replay = (read_arrays(files / name / "reach.npz")[:4] for name in ("new", "replay"))
    seen: list[list[float]] = []
    monkeypatch.setattr(Trainer, "run", lambda self: seen.append(
        [e.silhouette_camera[0] for e in self.source.episodes]))
    quick = dataclasses.replace(CONFIG, steps=2)
    for i, readers in enumerate(((mounted_anew, before), (mounted_anew,))):
        fine_tune(files / "parent", new, replay, [], quick, tmp_path / str(i), *readers)  # type: ignore[arg-type]
    assert seen == [[0.5] * 4 + [0.0] * 4, [0.5] * 8]
    with pytest.raises(BadCheckpoint, match="other episodes"):
        fine_tune(files / "parent", new, replay, [], quick, tmp_path / "0", mounted_anew)  # type: ignore[arg-type]


def test_what_costs_old_scenes_too_much_is_tried_again_nearer_to_the_parent(files: Path, tmp_path: Path) -> None:
    new, replay, old = (read_arrays(files / name / "reach.npz") for name in ("new", "replay", "old"))
    parent = files / "parent"
    weights = [load_file(p / "model.safetensors") for p in (
        parent, fine_tune(parent, new[:8], replay, [], dataclasses.replace(CONFIG, steps=4), tmp_path / "run"))]
    key = max(weights[0], key=lambda k: float((weights[1][k].float() - weights[0][k].float()).abs().max()))
    asked: list[float] = []

    def way(world_model: Path) -> float:
        now = load_file(world_model / "model.safetensors")[key].float()
        gone = weights[1][key].float() - weights[0][key].float()
        return float(((now - weights[0][key].float()) * gone).sum() / (gone * gone).sum())

    for limit, tried, follows in ((0.6, [1.0, 0.5], True), (0.1, [1.0, 0.5, 0.25], False), (2.0, [1.0], True)):
        asked.clear()

        def figures(world_model: Path, some: list, limit: float = limit) -> Replays:
            share = 0.0 if world_model == parent else way(world_model)
            if share and some is new:
                asked.append(round(share, 2))
            error = 0.1 - 0.05 * share if some is new else 0.1 * (1 + 0.05 * share / limit)
            found = replays(HONEST, SUCCESS, error)
            shown = [dataclasses.replace(some[0], success=s) for s in SUCCESS]
            return dataclasses.replace(found, episodes=tuple(shown), rollouts=[some[0].frames] * len(shown))
        data = Data(new[:8], new, replay, old, {"reach.npz": "abc"})
        result = update(parent, data, dataclasses.replace(CONFIG, steps=4), Margins(), figures, tmp_path / "run",
                        tmp_path / f"store-{limit}", "toy", 1)
        assert asked == pytest.approx(tried, abs=0.02) and result.decision.promote is follows
        assert way(result.version.path) == pytest.approx(tried[-1], abs=0.02)
        assert sum("old scenes: structural" in line for line in result.decision.lines) == len(tried)
        assert "100% of the update, " in result.decision.lines[0]


def test_rollouts_keep_the_order_of_episodes_of_several_lengths(files: Path) -> None:
    world = ActionDiTWorld.from_pretrained(files / "parent")
    episodes = read_arrays(files / "new" / "reach.npz")[:4]
    short = [dataclasses.replace(e, frames=e.frames[:n + 1], deltas=e.deltas[:n], states=e.states[:n + 1])
             for e, n in zip(episodes, (8, 5, 8, 5), strict=True)]
    rollouts = imagine_again(world, short, 0, copies=2)
    assert [r.shape[:2] for r in rollouts] == [(2, 9), (2, 6), (2, 9), (2, 6)]
    for frames, episode in zip(rollouts, short, strict=True):
        np.testing.assert_array_equal(frames[0, 0], episode.frames[0])


def test_without_earlier_data_an_update_is_small_and_says_what_nobody_knows(files: Path, tmp_path: Path) -> None:
    new = read_arrays(files / "new" / "reach.npz")
    judge, parent = load(JUDGE), files / "parent"

    def figures(world_model: Path, some: list) -> Replays:
        assert some, "nothing is asked about earlier scenes that nobody has"
        return replay_episodes(ActionDiTWorld.from_pretrained(world_model), judge, some, 0)

    result = update(parent, Data(new[:8], new[8:], [], [], {}), dataclasses.replace(CONFIG, steps=4), Margins(),
                    figures, tmp_path / "run", tmp_path / "world_models", "toy", 1)
    before, after, mine = (load_file(p / "model.safetensors") for p in (parent, tmp_path / "run", result.version.path))
    for key, weight in mine.items():
        if weight.is_floating_point():
            quarter = torch.lerp(before[key].float(), after[key].float(), 0.25)
            torch.testing.assert_close(weight.float(), quarter, atol=1e-3, rtol=1e-2)
    told = " ".join(result.decision.lines)
    assert "no earlier data to mix in: 25% of the way at most" in told and "not checked: earlier scenes" in told
    assert not any("old scenes" in line for line in result.decision.lines)
    assert result.figures["old"] == [] and read_card(result.version.path, WORLD_MODEL).scores["decision"]


def test_earlier_data_is_named_or_lies_beside_the_world_model(files: Path, tmp_path: Path) -> None:
    assert replay_folder(None, tmp_path) is None and check_folder(None, None) is None
    with pytest.raises(BadConfig, match=f"--replay {tmp_path} holds no play data"):
        replay_folder(tmp_path, tmp_path)
    with pytest.raises(BadConfig, match="--old"):
        check_folder(tmp_path, None)
    for place in ("replay", "replay/held_out"):
        write_toy_play(tmp_path / place / "reach.npz", 2, 0)
        found = replay_folder("", tmp_path)
        assert found == tmp_path / "replay"
        assert check_folder("", found) == (tmp_path / "replay" / "held_out" if "/" in place else None)
    assert replay_folder(files / "replay", tmp_path) == files / "replay"
    assert check_folder(files / "old", found) == files / "old"


NO_SIMULATOR = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mujoco":
            raise ImportError("a roboticist's recordings need no simulator")
sys.meta_path.insert(0, Refuse())
from world_gymnast_ros.loading import load
asked, real = [], load.load_judges
load.load_judges = lambda names, *more: asked.append(tuple(names)) or real(names, *more)
from world_gymnast_ros.cli import main
status = main(["train", "world-model", "--episodes", sys.argv[1], "--out", sys.argv[2], "--store", sys.argv[3],
               "--steps", "2", "--batch", "2", "--threads", "1"])
print("asked", sorted(set(asked)))
sys.exit(status)
"""


def test_recordings_update_the_world_model_without_a_simulator_and_its_judges_decide(tmp_path: Path) -> None:
    root = tmp_path / "episodes"
    root.mkdir()
    for i in range(8):
        record(root, f"e{i}", outcome="success" if i % 2 else "failure", seed=i)
    words = [str(root), str(tmp_path / "run"), str(tmp_path / "store")]
    done = subprocess.run([sys.executable, "-c", NO_SIMULATOR, *words], capture_output=True, text=True, timeout=400)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "6 episodes to learn from, 2 held out; earlier data: 0 episodes to mix in, 0 to check" in done.stdout
    assert "asked [('tiny/reflector_alone',)]" in done.stdout, "the judges that iterate asks"
    assert "not promoted, the old version is kept" in done.stdout and not (tmp_path / "run" / "play").exists()
