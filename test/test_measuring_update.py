"""What the judge that measures learns from real episodes: a moved camera, a new height, a margin for the pair."""
from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from world_gymnast_ros.cli import main
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.evaluation.replay import imagine_again, judge_recorded
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.loading.load import checkpoint_dir, load_judges, load_world_model
from world_gymnast_ros.models.judges.consensus import Consensus
from world_gymnast_ros.models.judges.reflector import Reflector
from world_gymnast_ros.robot.actions import StepLimits
from world_gymnast_ros.tabletop.calibration import (
    CalibratedJudge,
    Strictness,
    fit_approach,
    fit_camera_again,
    fit_detection,
    fit_height,
    with_settings,
)
from world_gymnast_ros.tabletop.contact import OBJECT_SIZE_M, along_and_aside, object_paths
from world_gymnast_ros.tabletop.geometric_judge import GeometricJudge
from world_gymnast_ros.tabletop.locator import Locator
from world_gymnast_ros.twin.model import camera_pose
from world_gymnast_ros.twin.observer import capture
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.twin.tasks import DIRECTIONS, PUSH_DISTANCE_M, PUSH_LATERAL_M, REACH_RADIUS_M
from world_gymnast_ros.types import RolloutFacts
from world_gymnast_ros.updates.judges import learn_settings, pair_threshold

STEPS, PUSH_STEPS = 16, 30


def shipped() -> CalibratedJudge:
    return CalibratedJudge(Locator.from_pretrained(checkpoint_dir("tiny/locator")))


PLACES_M: dict[str, np.ndarray] = {}
"""Where the object of each episode lies."""


def episodes_of(scene: str, count: int, falls: bool = False) -> list[Episode]:
    """Captured frames of the twin, and actions that take the hand beside the object, now nearer, now further off; who
    succeeded is said by where the object truly is. `falls`: two of three times the hand comes from above, the third
    time low from the side, and that is no success."""
    twin, out = Twin(load_scene(scene)), []
    words = twin.scene.instructions[0]
    try:
        for i in range(count):
            twin.reset(50 + i, words)
            frame, state = capture(twin)
            thing = twin.object_xyz(twin.task.target)
            gap_m = (0.004, 0.034, 0.012, 0.028)[i % 4]
            angle = 2.4 * i
            goal = thing[:2] + gap_m * np.array([np.cos(angle), np.sin(angle)])
            deltas = np.zeros((STEPS, 7), np.float32)
            way = np.append(goal - state[:2], 0.085 - state[2])
            limit = StepLimits().max_step_m
            low = falls and i % 3 == 2
            for t in range(STEPS):
                moved = np.clip(way, -0.5 * limit, 0.5 * limit)
                if falls and np.linalg.norm(way[:2]) > 0.05:  # not there yet
                    moved[2] = np.clip((0.06 if low else 0.12) - (0.085 - way[2]), -0.5 * limit, 0.5 * limit)
                deltas[t, :3] = moved
                way = way - moved
            deltas[:, 6] = 1.0
            small = resize_rgb(frame.rgb, (64, 64))
            truly = np.linalg.norm(goal - thing[:2]) < REACH_RADIUS_M and not low
            out.append(Episode(np.repeat(small[None], STEPS + 1, 0), deltas, np.repeat(state[None], STEPS + 1, 0),
                               words, f"{scene}/{i}", "reach", bool(truly), captured=frame.rgb))
            PLACES_M[f"{scene}/{i}"] = thing.astype(np.float32)
    finally:
        twin.close()
    return out


@pytest.fixture(scope="module")
def moved_camera() -> list[Episode]:
    return episodes_of("lab_camera", 12)


@pytest.fixture(scope="module")
def bottle() -> list[Episode]:
    return episodes_of("lab_bottle", 12)


def errors_mm(judge: GeometricJudge, episodes: list[Episode], name: str) -> np.ndarray:
    found = [judge.reader.measure(e.captured, e.states[0], (name,)) for e in episodes]  # type: ignore[arg-type,index]
    return np.array([1000 * np.linalg.norm(m.places_m[0, :2] - PLACES_M[e.name][:2])
                     for m, e in zip(found, episodes, strict=True) if not m.fault])


def test_a_camera_that_was_mounted_anew_is_found_from_the_first_frames(moved_camera: list[Episode]) -> None:
    judge = shipped()
    truth = camera_pose(load_scene("lab_camera"))
    before = np.linalg.norm((judge.reader.prior.T_base_camera - truth)[:3, 3])
    before_mm = errors_mm(judge, moved_camera, "blue block")
    line = fit_camera_again(judge, moved_camera)
    judge = with_settings(judge)
    after_mm = errors_mm(judge, moved_camera, "blue block")
    assert before > 0.07 and np.linalg.norm((judge.reader.prior.T_base_camera - truth)[:3, 3]) < 0.02, line
    assert len(after_mm) >= len(before_mm) and np.median(after_mm) < 10.0
    assert line.startswith(("camera: 7", "camera: 8")), line  # mm, from 78 that it was moved by


def test_a_camera_that_stands_where_it_stood_is_left_there(bottle: list[Episode]) -> None:
    judge = shipped()
    fit_camera_again(judge, bottle)
    stood, stands = (j.reader.prior.T_base_camera[:3, 3] for j in (shipped(), with_settings(judge)))
    assert np.linalg.norm(stands - stood) < 0.004


def test_too_few_sightings_move_nothing(moved_camera: list[Episode]) -> None:
    judge = shipped()
    assert "at least 24 are needed" in fit_camera_again(judge, moved_camera[:2])
    blind = [Episode(e.frames, e.deltas, None, e.instruction, "x", "reach", e.success)
             for e in moved_camera]
    assert "no recording holds the arm's state" in fit_camera_again(judge, blind)
    assert judge.config.T_base_camera == shipped().config.T_base_camera


def test_a_taller_thing_is_learned_from_outcomes(bottle: list[Episode]) -> None:
    judge = shipped()
    before = np.median(errors_mm(judge, bottle, "red cylinder"))
    line = fit_height(judge, bottle)
    after = np.median(errors_mm(with_settings(judge), bottle, "red cylinder"))
    assert judge.config.object_heights_m["red cylinder"] == pytest.approx(0.03, abs=0.006), line
    assert before > 6.0 and after < 0.3 * before, (before, after)
    assert judge.reader.height_m("blue block") == 0.02 and judge.reader.height_m("red plate") == 0.006


def test_a_height_is_not_learned_from_outcomes_of_one_kind(bottle: list[Episode]) -> None:
    judge = shipped()
    assert "as it was" in fit_height(judge, [e for e in bottle if e.success])
    other = dataclasses.replace(bottle[0], instruction="reach the blue block", success=True)
    assert "2 objects are named" in fit_height(judge, [*bottle, other])
    assert judge.config.object_heights_m == {}


def test_what_falls_over_is_learned_to_be_approached_from_above(bottle: list[Episode]) -> None:
    falling = episodes_of("lab_bottle", 18, falls=True)
    truth = np.array([e.success for e in falling])
    videos = [e.frames for e in falling]
    judge = with_settings(shipped(), sure_sigmas=0.0, object_heights_m={"red cylinder": 0.03})
    before = judge_recorded(judge, videos, falling)[1]
    line = fit_approach(judge, falling)
    learned = judge.config.approach_heights_m
    assert 0.05 <= learned["red cylinder"] <= 0.11, line
    after = judge_recorded(with_settings(judge), videos, falling)[1]
    assert before[~truth].mean() > 0.2 and after[~truth].mean() < 0.5 * before[~truth].mean()
    assert after[truth].mean() > 0.8
    assert "free" in fit_approach(judge, bottle) and judge.config.approach_heights_m == {}, "nothing fell there"
    assert "as it was" in fit_approach(judge, [e for e in falling if e.success])


def pushes_of(scene: str, words: str, count: int, size_m: tuple[float, float], z_m: float,
              off_m: tuple[float, ...] = (0.0,)) -> list[Episode]:
    """Captured frames of the twin, and hands that come down behind the object to `z_m`, every second 3 cm lower, and
    push it 0 to 9 cm far, in turn `off_m` off its middle; who succeeded is said by contact with an object of this size
    where it truly is."""
    twin, out, judge = Twin(load_scene(scene)), [], shipped()
    try:
        for i in range(count):
            twin.reset(80 + i, words)
            frame, state = capture(twin)
            thing, unit = twin.object_xyz(twin.task.target), np.array([*DIRECTIONS[twin.task.direction], 0.0])
            aside = off_m[i % len(off_m)] * np.array([-unit[1], unit[0], 0.0])
            behind = np.array([*thing[:2], z_m - 0.03 * (i % 2)]) - 0.075 * unit + aside
            stops = [behind * (1, 1, 0) + (0, 0, 0.14), behind, behind + unit * (0.04 + 0.01 * (7 * i % 10))]
            at, deltas = state[:3].astype(np.float64), np.zeros((PUSH_STEPS, 7), np.float32)
            for t in range(PUSH_STEPS):
                deltas[t, :3] = np.clip(stops[0] - at, -0.02, 0.02)
                at = at + deltas[t, :3]
                if len(stops) > 1 and np.abs(stops[0] - at).max() < 1e-6:
                    stops.pop(0)
            hand = judge.hands(RolloutFacts([frame.rgb], [state], deltas[None]))
            path = object_paths(hand, thing[None, None], size_m)[0][0, :, 0, :2]
            along, aside = along_and_aside(path, DIRECTIONS[twin.task.direction])
            won = bool(((along > PUSH_DISTANCE_M) & (aside < PUSH_LATERAL_M)).any())
            out.append(Episode(np.repeat(resize_rgb(frame.rgb, (64, 64))[None], PUSH_STEPS + 1, 0), deltas,
                               np.repeat(state[None], PUSH_STEPS + 1, 0), words, f"{scene}/{i}", "push", won,
                               captured=frame.rgb))
            PLACES_M[f"{scene}/{i}"] = thing.astype(np.float32)
    finally:
        twin.close()
    return out


def told(judge: GeometricJudge, episodes: list[Episode]) -> float:
    """How many outcomes the judge tells, without a margin; none where it has no verdict."""
    score, predicted = judge_recorded(with_settings(judge, sure_sigmas=0.0), [e.frames for e in episodes], episodes)
    return float((np.isfinite(score) & (predicted == np.array([e.success for e in episodes]))).mean())


def test_an_unfamiliar_thing_is_found_and_what_rolls_on_is_pushed_as_a_wider_one() -> None:
    ball = pushes_of("lab_ball", "push the purple block forward", 24, (0.034, 0.04), 0.035, (0.0, 0.02, -0.025))
    assert 6 <= sum(e.success for e in ball) <= 18
    judge = shipped()
    before = told(judge, ball)
    line = fit_detection(judge, ball)
    assert judge.config.object_found["purple block"] < 0.4, line
    assert judge.config.object_sizes_m["purple block"] == pytest.approx([0.034, 0.04], abs=0.005), line
    assert before < 0.6 and told(judge, ball) > 0.85, (before, told(judge, ball))
    assert judge.reader.size_m("red block") == OBJECT_SIZE_M and judge.reader.detection_threshold("red block") == 0.5
    seen = with_settings(judge).reader.objects(ball[0].captured, ball[0].states[0])  # type: ignore[arg-type,index]
    gaps = np.linalg.norm(seen.places_m[:, :2] - PLACES_M[ball[0].name][:2], axis=1)  # type: ignore[union-attr]
    assert seen.sizes_m[gaps.argmin()].tolist() == judge.config.object_sizes_m["purple block"]  # type: ignore[union-attr]


def test_a_tall_thing_is_pushed_by_a_hand_that_passes_over_others() -> None:
    bottle = pushes_of("lab_bottle", "push the red cylinder left", 20, (0.022, 0.09), 0.07)
    judge = shipped()
    before = told(judge, bottle)
    assert "as it was" in fit_detection(judge, bottle[:2]) and judge.config.object_found == {}
    line = fit_height(judge, bottle)
    radius_m, height_m = judge.config.object_sizes_m["red cylinder"]
    assert radius_m == OBJECT_SIZE_M[0] and 0.065 <= height_m == 2 * judge.config.object_heights_m["red cylinder"], line
    assert told(judge, bottle) >= before + 0.15, line


def test_what_is_as_it_should_be_is_left_as_it_is() -> None:
    usual = pushes_of("lab_rubber", "push the purple block forward", 20, OBJECT_SIZE_M, 0.035)
    judge = shipped()
    kept = copy.deepcopy(judge.config.to_dict())
    lines = fit_detection(judge, usual), fit_height(judge, usual)
    assert judge.config.to_dict() == kept and all("as it was" in line for line in lines), lines


def test_of_two_that_came_too_low_the_higher_one_made_more_progress() -> None:
    judge = with_settings(shipped(), object_heights_m={"red cylinder": 0.03}, approach_heights_m={"red cylinder": 0.14})
    falling = episodes_of("lab_bottle", 7, falls=True)
    low, high = falling[2], falling[6]  # both end 12 mm beside it; they came 6 and 12 cm high
    facts = RolloutFacts([e.captured for e in (low, high)], [e.states[0] for e in (low, high)],  # type: ignore
                         np.stack([e.deltas for e in (low, high)]))
    videos = np.stack([e.frames for e in (low, high)])
    first, second = judge.score(videos, low.instruction, facts)
    assert first.score < second.score < 0.5  # type: ignore[operator]
    assert second.progress - first.progress > 0.1  # type: ignore[operator]


def test_other_settings_leave_the_judge_as_it_was() -> None:
    judge = shipped()
    kept = copy.deepcopy(judge.config.to_dict())
    other = with_settings(judge, sure_sigmas=0.0, object_heights_m={"red block": 0.05})
    assert other.config.sure_sigmas == 0.0 and other.reader.height_m("red block") == 0.05
    assert judge.config.to_dict() == kept and other.locator.network is judge.locator.network


def test_a_pair_is_cut_where_it_is_right_and_not_lax() -> None:
    success = np.array([True] * 5 + [False] * 20)
    right, lax = success.copy(), np.ones(25, bool)
    noise = np.random.default_rng(0).normal(size=25)
    sure, some, bare = Strictness(0.0, 1.28), Strictness(0.0, 0.5), Strictness(0.0, 0.0)

    def set_threshold(learned: np.ndarray, geometric_at: dict[Strictness, np.ndarray]) -> tuple[Strictness, float]:
        found = pair_threshold(learned, geometric_at, success, 0.05)
        assert found is not None
        return found
    strictness, threshold = set_threshold(noise, {sure: right})
    assert strictness == sure and threshold < noise[success].min(), "who sees nothing must not veto who measures well"
    _, threshold = set_threshold(success + 0.0, {sure: lax})
    assert 0.0 < threshold < 1.0
    strictness, _ = set_threshold(np.ones(25), {sure: right & (np.arange(25) < 2), some: right, bare: lax})
    assert strictness == some, "the widest margin that claims them all"
    _, threshold = set_threshold(noise, {bare: lax})
    assert ((noise > threshold) & ~success).sum() <= 1
    from_above = Strictness(0.1, 0.0)
    strictness, threshold = set_threshold(noise, {bare: lax, from_above: right})
    assert strictness == from_above and threshold < noise[success].min(), "not a blind judge, but a higher approach"
    assert pair_threshold(noise, {bare: lax}, np.zeros(25, bool), 0.05) is None


def test_who_is_less_strict_claims_no_less(bottle: list[Episode]) -> None:
    judge, _ = shipped().learned(bottle)
    videos = [e.frames for e in bottle]
    predicted = judge.predicted_by_strictness(videos, bottle)
    assert all((predicted[a] >= predicted[b]).all() for a, b in pairwise(sorted(predicted)))
    truth = np.array([e.success for e in bottle])
    assert (predicted[Strictness(0.0, 0.0)] == truth).mean() > 0.9
    judge.config.approach_heights_m = {"red cylinder": 0.05}
    kept = copy.deepcopy(judge.config.to_dict())
    by_height = judge.predicted_by_strictness(videos, bottle)
    assert sorted({s.approach_m for s in by_height}) == [0.05, 0.06, 0.07, 0.08]
    assert judge.config.to_dict() == kept, "the judge is left as it was"
    assert all((by_height[Strictness(0.05, m)] >= by_height[Strictness(0.08, m)]).all() for m in (0.0, 1.28))


def test_what_was_learned_is_saved_and_loaded(bottle: list[Episode], tmp_path: Path) -> None:
    judge, lines = shipped().learned(bottle)
    judge.locator.save(tmp_path / "m")
    again = GeometricJudge(Locator.from_pretrained(tmp_path / "m"))
    assert again.reader.height_m("red cylinder") == judge.reader.height_m("red cylinder") and len(lines) == 4
    np.testing.assert_allclose(again.reader.prior.T_base_camera, judge.reader.prior.T_base_camera)


@pytest.mark.slow
def test_both_judges_learn_a_scene_and_are_refused_where_they_learn_nothing(moved_camera: list[Episode],
                                                                            tmp_path: Path) -> None:
    judge, second, world = checkpoint_dir("tiny/reflector"), checkpoint_dir("tiny/locator"), load_world_model()
    found = learn_settings(judge, second, world, moved_camera, 0.34, tmp_path, 0.1, 0)
    assert found.promote, found.lines
    assert any(line.startswith("before: ") for line in found.lines)
    pair = Consensus((Reflector.from_pretrained(found.learned),
                      GeometricJudge(Locator.from_pretrained(found.geometric))))
    imagined = [r[0] for r in imagine_again(world, moved_camera, 5)]
    right = [(judge_recorded(judges, imagined, moved_camera)[1] == [e.success for e in moved_camera]).mean()
             for judges in (load_judges(), pair)]
    assert right[1] > right[0] and right[1] > 0.6
    again = learn_settings(found.learned, found.geometric, world, moved_camera, 0.34, tmp_path / "again", 0.1, 0)
    assert not again.promote, "nothing is left to learn"
    with pytest.raises(EpisodeError, match=r"successes and .* failures among"):
        learn_settings(judge, second, world, moved_camera[:8], 0.5, tmp_path / "few", 0.1, 0)


def test_judge_learn_says_what_is_wrong_before_it_works(bottle: list[Episode], tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    def learn(*args: str) -> tuple[int, str]:
        code = main(["judge", "learn", *args])
        told = capsys.readouterr()
        return code, told.out + told.err
    (tmp_path / "empty").mkdir()
    code, told = learn("--episodes", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert code == 2 and "nowhere does not exist" in told
    code, told = learn("--episodes", str(tmp_path / "empty"), "--out", str(tmp_path / "out"))
    assert code == 2 and "finished and marked recording" in told
    (tmp_path / "taken" / "geometric").mkdir(parents=True)
    code, told = learn("--episodes", str(tmp_path / "empty"), "--out", str(tmp_path / "taken"))
    assert code == 2 and "is there already" in told
    judge, second, world = checkpoint_dir("tiny/reflector"), checkpoint_dir("tiny/locator"), load_world_model()
    other = dataclasses.replace(bottle[0], instruction="reach the blue block", success=True)
    with pytest.raises(EpisodeError, match="2 instructions"):
        learn_settings(judge, second, world, [*bottle, other], 0.34, tmp_path / "x", 0.1, 0)
    with pytest.raises(EpisodeError, match="2 of 6 episodes are held out"):
        learn_settings(judge, second, world, bottle[:6], 0.34, tmp_path / "x", 0.1, 0)
