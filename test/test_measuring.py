"""The judge that measures: camera from the arm, places on the table, and two judges who must agree."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from world_gymnast_ros.adaptation.jitter import jitter_start
from world_gymnast_ros.adaptation.rollout import facts_of
from world_gymnast_ros.errors import BadCheckpoint, BadConfig, BadInstruction
from world_gymnast_ros.loading.load import checkpoint_dir
from world_gymnast_ros.models.judges.consensus import Consensus, combine
from world_gymnast_ros.robot.arm_parts import part_points
from world_gymnast_ros.robot.camera import CameraPrior, fit_camera, moved, project
from world_gymnast_ros.tabletop.geometric_judge import GeometricJudge
from world_gymnast_ros.tabletop.locator import Locator, LocatorConfig, LocatorNetwork, places
from world_gymnast_ros.tabletop.scene_reader import SceneReader
from world_gymnast_ros.tabletop.tasks import parse
from world_gymnast_ros.twin import tasks
from world_gymnast_ros.twin.bridge_loop import BridgeLoop
from world_gymnast_ros.twin.model import camera_pose
from world_gymnast_ros.twin.observer import capture
from world_gymnast_ros.twin.play import record_episode
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.types import Frame, Judgement, Start

NOMINAL = np.array([[0.48, 0.56, 0.68, 0.0], [-0.88, 0.31, 0.37, -0.16], [0.0, -0.77, 0.64, 0.36], [0, 0, 0, 1.0]])


def prior() -> CameraPrior:
    pose = NOMINAL.copy()
    u, _, v = np.linalg.svd(pose[:3, :3])
    pose[:3, :3] = u @ v  # a rotation to the last bit
    if np.linalg.det(pose[:3, :3]) < 0:
        pose[:3, 0] *= -1
    pose[:3, 2] = (0.54, 0.30, -0.78) / np.linalg.norm((0.54, 0.30, -0.78))
    pose[:3, 0] = np.cross(pose[:3, 2], (0, 0, 1)) / np.linalg.norm(np.cross(pose[:3, 2], (0, 0, 1)))
    pose[:3, 1] = np.cross(pose[:3, 2], pose[:3, 0])
    return CameraPrior(pose, 1.95, 2.6)


POINTS = part_points(np.array([[0.28, 0.02, 0.12, 0, 0, 0.3, 1.0], [0.22, -0.05, 0.2, 0, 0.1, 0, 0.2]], np.float32)
                     ).reshape(-1, 3).astype(np.float64)


def test_a_moved_camera_is_found_again_from_the_arm() -> None:
    p = prior()
    true = moved(p, np.array([0.02, -0.015, 0.01, 0.02, -0.03, 0.025]))
    seen = project(true, p, POINTS)
    fitted = fit_camera(replace(p, seen_sigma=1e-5), POINTS, seen, np.ones(len(POINTS)))
    assert fitted.rms < 1e-3
    spot = np.array([0.30, 0.05, 0.02])
    np.testing.assert_allclose(fitted.on_plane(project(true, p, spot), 0.02), spot, atol=1e-3)
    nominal = fit_camera(p, POINTS, seen, np.zeros(len(POINTS)))
    assert np.isinf(nominal.rms) and np.linalg.norm(nominal.on_plane(project(true, p, spot), 0.02) - spot) > 0.01


def test_one_mistaken_part_costs_little() -> None:
    p = prior()
    true = moved(p, np.array([0.01, 0.01, -0.01, 0.01, 0.02, 0.0]))
    seen = project(true, p, POINTS)
    seen[3] += 0.4
    spot = np.array([0.30, 0.05, 0.02])
    fitted = fit_camera(p, POINTS, seen, np.ones(len(POINTS)))
    assert np.linalg.norm(fitted.on_plane(project(true, p, spot), 0.02) - spot) < 0.012


def test_a_part_beyond_the_edge_of_the_image_was_mistaken_for_another() -> None:
    p = prior()
    beyond = moved(p, np.zeros(6))
    beyond = (beyond @ np.array([0.7 * 1.1 / p.focal_u, 0.0, 0.7, 1.0]))[:3]  # 0.7 m away, a tenth beyond the edge
    points = np.concatenate([POINTS, beyond[None]])
    seen = project(p.T_base_camera, p, points)
    inside = np.abs(seen).max(-1) <= 1.0
    assert inside.sum() >= 3 and not inside[-1]
    first = int(np.flatnonzero(inside)[0])
    seen[-1] = seen[first] + 0.02  # found at another part's place
    weights = np.where(inside, 1.0, 0.0)
    alone = fit_camera(p, points, seen, weights)
    weights[-1] = 0.6
    fitted = fit_camera(p, points, seen, weights)
    np.testing.assert_array_equal(fitted.T_base_camera, alone.T_base_camera)
    assert fitted.rms == alone.rms < 1e-6
    seen[first] += 0.5  # what should be in the image, and is seen elsewhere, still speaks against the camera
    assert fit_camera(p, points, seen, weights).rms > 0.05


def test_an_arm_half_out_of_the_image_is_no_fault() -> None:
    """From these starts a finger that had just left the image was found on the other one."""
    scene = load_scene("lab_camera")
    locator = Locator.from_pretrained(checkpoint_dir("tiny/locator"))
    locator.config.T_base_camera = camera_pose(scene).ravel().tolist()
    locator.config.shift_sigma_m, locator.config.rotation_sigma_rad = 0.005, 0.006
    reader, twin = SceneReader(locator), Twin(scene)
    try:
        for seed in (36, 47, 50):
            twin.reset(seed, scene.instructions[0])
            frame, state = capture(twin)
            found = reader.measure(frame.rgb, state, ("blue block",))
            assert not found.fault and reader.objects(frame.rgb, state) is not None
            np.testing.assert_allclose(found.places_m[0], twin.object_xyz("blue block"), atol=0.012)
    finally:
        twin.close()


def test_places_are_between_cells_and_absence_is_told() -> None:
    logits = torch.full((1, 2, 6 * 8 + 1), -20.0)
    logits[0, 0, [2 * 8 + 3, 2 * 8 + 4]] = 5.0  # two neighbours share it
    logits[0, 1, -1] = 5.0
    at, sure = places(logits, 6, 8)
    np.testing.assert_allclose(at[0, 0].numpy(), (2 * 4 / 8 - 1, 2 * 2.5 / 6 - 1), atol=1e-5)
    assert sure[0, 0] > 0.99 and sure[0, 1] < 0.01


@pytest.fixture(scope="module")
def judge() -> GeometricJudge:
    return GeometricJudge(Locator.from_pretrained(checkpoint_dir("tiny/locator")))


def reaching(offset_m: tuple[float, float], judge: GeometricJudge, state_known: bool = True, words: str = ""
             ) -> tuple[Judgement, bool, np.ndarray]:
    """Reach with the twin to `offset_m` beside the target; return the verdict, the truth, and what was measured."""
    scene = load_scene("novel_camera_shift")
    words = words or scene.instructions[0]
    twin = Twin(scene)
    try:
        twin.reset(5, scene.instructions[0])
        frame, state = capture(twin)
        loop = BridgeLoop(twin)
        goal = twin.object_xyz("blue block") + np.array((*offset_m, 0.05))
        deltas, frames = [], [frame.rgb]
        for _ in range(16):
            step = np.zeros(7, np.float32)
            step[:3] = np.clip(goal - loop.target[:3], -0.03, 0.03)
            step[6] = 1.0
            deltas.append(loop.step(step))
            frames.append(twin.render(320, 240))
        where = twin.object_xyz("blue block")
        start = Start(frame, state if state_known else None, words)
        verdict = judge.score(np.stack(frames)[None], words, facts_of([start], np.stack(deltas)[None]))[0]
        return verdict, twin.success(), where
    finally:
        twin.close()


def test_it_calls_done_what_the_twin_calls_done() -> None:
    c = LocatorConfig()
    assert (c.reach_radius_m, c.reach_height_m, c.push_distance_m, c.push_aside_m, c.place_radius_m) == (
        tasks.REACH_RADIUS_M, tasks.REACH_HEIGHT_M, tasks.PUSH_DISTANCE_M, tasks.PUSH_LATERAL_M, tasks.PLACE_RADIUS_M)
    for words in ("reach the red block", "push the green ball forward", "put the red block on the blue plate"):
        mine, theirs = parse(words), tasks.parse_instruction(words)
        assert (mine.family, mine.target, mine.direction, mine.goal) == (
            theirs.family, theirs.target, theirs.direction, theirs.goal)
    with pytest.raises(BadInstruction, match="cannot be measured"):
        parse("wipe the table")


def test_it_tells_a_hit_from_a_near_miss_where_the_camera_was_knocked(judge: GeometricJudge) -> None:
    hit, truly, _ = reaching((0.0, 0.0), judge)
    assert truly and hit.score is not None and hit.score > 0.9 and hit.done_at is not None
    miss, truly, _ = reaching((0.035, 0.0), judge)
    assert not truly and miss.score is not None and miss.score < 0.5 and miss.done_at is None
    assert hit.progress is not None and miss.progress is not None and hit.progress > miss.progress > 0.7


def test_what_it_cannot_measure_has_no_verdict_and_a_reason(judge: GeometricJudge) -> None:
    for verdict, why in ((reaching((0, 0), judge, state_known=False)[0], "state"),
                         (reaching((0, 0), judge, words="reach the green cylinder")[0], "not found"),
                         (reaching((0, 0), judge, words="wipe the table")[0], "cannot measure"),
                         (judge.score(np.zeros((1, 2, 8, 8, 3), np.uint8), "reach the red block")[0], "not known")):
        assert verdict.score is None and why in verdict.detail, verdict.detail
    with pytest.raises(BadInstruction, match="teapot"):
        judge.locator.detect(np.zeros((1, 144, 192, 3), np.uint8), ["blue teapot"])


def test_a_jittered_start_is_measured_in_the_image_the_camera_gave(judge: GeometricJudge) -> None:
    start = Start(Frame(np.zeros((8, 8, 3), np.uint8), 0), None, "x")
    again = jitter_start(jitter_start(start, 1, 0.2, 0.1), 2, 0.2, 0.1)
    assert again.captured is start.frame and again.frame is not start.frame


@pytest.mark.parametrize(("words", "other"), [
    ("push the blue block left", "push the blue block right"),
    ("put the red block on the white plate", "reach the red block"),
])
def test_what_is_moved_follows_from_the_hand(judge: GeometricJudge, words: str, other: str) -> None:
    """True demonstrations succeed, and not at another task; with a hand that goes elsewhere they do not."""
    scene = replace(load_scene("train_oak" if "red" in words else "novel_camera_shift"), instructions=(words,))
    rows = [record_episode(scene, 40 + i, "demo", False) for i in range(4)]
    starts = [Start(Frame(r["captured"], 0), r["states"][0], words) for r in rows]
    steps = min(len(r["deltas"]) for r in rows)
    frames = np.zeros((len(rows), steps + 1, 8, 8, 3), np.uint8)  # nothing is looked up in them
    deltas = np.stack([r["deltas"][:steps] for r in rows])
    told = judge.score(frames, words, facts_of(starts, deltas))
    truth = [bool(r["success"][steps]) for r in rows]
    assert sum(truth) >= 2 and [j.score is not None and j.score > 0.5 for j in told] == truth, (truth, told)
    assert all(j.done_at is not None for j, t in zip(told, truth, strict=True) if t)
    away = deltas * np.array([1, -1, 1, 1, 1, 1, 1], np.float32)
    assert all(j.score is not None and j.score < 0.5 for j in judge.score(frames, words, facts_of(starts, away)))
    if other.startswith("push"):
        wrong = judge.score(frames, other, facts_of([replace(s, instruction=other) for s in starts], deltas))
        assert all(j.score is not None and j.score < 0.1 for j in wrong)


def test_all_judges_of_a_consensus_must_agree() -> None:
    yes, no, mute = Judgement(0.9, 4), Judgement(0.2), Judgement(None, detail="broken")
    names = ["a", "b"]
    both = combine(names, [yes, Judgement(0.7, 6, progress=0.8)])
    assert both.score == 0.7 and both.done_at == 6 and both.progress == 0.8
    assert both.members == (("a", 0.9), ("b", 0.7)) and both.votes == (), "a judge's own votes are no judges"
    assert combine(names, [yes, no]).score == 0.2 and combine(names, [yes, no]).done_at is None
    assert combine(names, [no, yes]).score == 0.2
    assert combine(names, [mute, yes]).score is None and combine(names, [yes, mute]).score is None
    assert combine(names, [yes, mute]).detail == "b: broken"


class Saying:
    """Gives the same scores always, and counts what it was asked about."""

    def __init__(self, name: str, scores: list[float | None]) -> None:
        self.name, self.scores, self.asked = name, scores, 0

    def score(self, frames: np.ndarray, instruction: str, facts: object = None) -> list[Judgement]:
        self.asked += len(frames)
        return [Judgement(self.scores[int(f[0, 0, 0, 0])], 1) for f in frames]


def test_a_consensus_asks_its_dear_judges_only_about_what_the_cheap_ones_call_a_success() -> None:
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 2, 8, 8, 3), np.uint8)
    cheap, dear = Saying("cheap", [0.9, 0.1, None, 0.8]), Saying("dear", [0.7, 0.9, 0.9, 0.2])
    judges = Consensus((cheap, dear))
    assert judges.name == "cheap+dear"
    assert [v.score for v in judges.score(frames, "x")] == [0.7, 0.1, None, 0.2] and dear.asked == 4
    dear.asked = 0
    confirmed = judges.confirm(frames, "x")
    assert [v.score for v in confirmed] == [0.7, 0.1, None, 0.2] and dear.asked == 2
    assert confirmed[1].members == (("cheap", 0.1),) and len(confirmed[0].members) == 2
    with pytest.raises(BadConfig, match="asked twice"):
        Consensus((cheap, Saying("cheap", [0.0])))


def test_judges_that_read_frames_are_not_asked_about_what_facts_rule_out() -> None:
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 2, 8, 8, 3), np.uint8)
    facts, dear = Saying("facts", [0.9, 0.0005, None, 0.3]), Saying("dear", [0.7, 0.9, 0.9, 0.2])
    facts.reads_frames = False
    told = Consensus((dear, facts)).grade(frames, "x")
    assert [v.score for v in told] == [0.7, 0.0005, None, 0.2] and (facts.asked, dear.asked) == (4, 2)
    assert told[0].members == (("dear", 0.7), ("facts", 0.9)), "in their own order"
    assert told[1].members == (("facts", 0.0005),) and told[1].done_at == 1
    dear.asked = 0
    assert [v.score for v in Consensus((facts, dear)).grade(frames, "x")] == [0.7, 0.0005, None, 0.2]
    assert dear.asked == 4, "the last judge says how far it came"
    dear.asked = 0
    assert Consensus((dear, facts)).confirm(frames, "x")[0].score == 0.7 and dear.asked == 1


def test_a_broken_checkpoint_is_refused(tmp_path) -> None:
    network = LocatorNetwork(LocatorConfig(colours=["red"], shapes=["block"], channels=[8, 8]))
    Locator(network, "").save(tmp_path)
    assert Locator.from_pretrained(tmp_path).word_indices(["red block"]) == [(0, 0)]
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BadCheckpoint):
        Locator.from_pretrained(tmp_path)


@pytest.mark.parametrize(("key", "value"), [
    ("object_sizes_m", {"red block": [0.02, -0.04]}), ("object_sizes_m", {"red block": [0.02, 4.0]}),
    ("object_sizes_m", {"red block": [0.02, float("nan")]}), ("object_sizes_m", {"red block": [0.02]}),
    ("object_sizes_m", ["red block"]),
    ("object_found", {"red block": 1.5}), ("object_found", {"red block": "sure"})])
def test_sizes_and_finds_that_cannot_be_are_refused(tmp_path, key: str, value: object) -> None:
    checkpoint = tmp_path / "judge"
    shutil.copytree(checkpoint_dir("tiny/locator"), checkpoint)
    file = checkpoint / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, key: {"red block": [0.03, 0.07]} if key == "object_sizes_m" else {}}))
    Locator.from_pretrained(checkpoint)
    file.write_text(json.dumps({**values, key: value}))
    with pytest.raises(BadCheckpoint, match=key):
        Locator.from_pretrained(checkpoint)
