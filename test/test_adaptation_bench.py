"""The bench of adaptation: rows that survive a stop, what they say together, and what it compares with."""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from world_gymnast_ros.adaptation.rollout import imagine
from world_gymnast_ros.benchmark import adaptation as bench
from world_gymnast_ros.benchmark.adaptation import Row, correlation, markdown, read_rows
from world_gymnast_ros.benchmark.comparators import BY_EYE, BY_TAPE_M, BY_TAPE_RAD, SimulatedWorld, hand_built, run
from world_gymnast_ros.benchmark.rows import ROWS, append_row
from world_gymnast_ros.cli import main
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import BadConfig, EpisodeError
from world_gymnast_ros.loading import load as build
from world_gymnast_ros.statistics import wilson
from world_gymnast_ros.twin.environment import TwinEnvironment
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.types import U8, Frame, SampledChunks, Start
from world_gymnast_ros.updates.adaptation import Parts

ROW = Row("novel_evening", "reach the purple block", "world_model", 0, [False, True], [True, True], "promoted", "",
          10.0, 4, 0.2, 0.9, [True, True], [True], [False])


def test_rows_survive_a_stop_and_a_broken_file_is_said(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == []
    append_row(tmp_path, ROW)
    append_row(tmp_path, dataclasses.replace(ROW, seed=1))
    file = tmp_path / ROWS
    whole = file.read_text()
    file.write_text(whole + '{"scene": "nov')  # killed while it wrote
    assert [r.seed for r in read_rows(tmp_path)] == [0, 1] and read_rows(tmp_path)[0] == ROW
    file.write_text("nonsense\n" + whole)
    with pytest.raises(EpisodeError, match="line 1"):
        read_rows(tmp_path)


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(_parts, scene, words, method, seed, episodes, captures, config, before, elsewhere, forget, progress):
        asked.append((scene, seed, before, elsewhere, forget))
        return dataclasses.replace(ROW, scene=scene, seed=seed)

    monkeypatch.setattr(bench, "measure", measure)
    append_row(tmp_path, ROW)
    args = (None, ["novel_evening", "novel_night"], "reach the purple block", ["world_model"], [0, 1], 2, 1, None,
            tmp_path, lambda label, p: None)
    rows = bench.bench(*args)  # type: ignore[arg-type]
    assert asked == [("novel_night", 0, None, [True], True), ("novel_evening", 1, [False, True], [True], False),
                     ("novel_night", 1, [False, True], [True], False)]
    assert len(rows) == 4 and len(bench.bench(*args)) == 4 and len(asked) == 3  # type: ignore[arg-type]


def test_the_table_says_means_worst_forgetting_and_how_imagination_agrees() -> None:
    rows = [dataclasses.replace(ROW, scene=s, after=a, matched=m, imagined_after=i)
            for s, a, m, i in (("a", [True, True], [True, True], 1.0), ("b", [False, True], [None, True], 0.5),
                               ("c", [False, False], [True, False], 0.1))]
    text = markdown(rows)
    assert "50.0% to 50.0% (+0.0 points)" in text and "worst session -50.0 (c, seed 0)" in text
    assert "100.0% before, 0.0% after on average, worst -100 points" in text
    assert "of 2 true failures" in text and "0.500 [" in text  # one of the two known ones was flattered
    assert "imagined again" not in text and "those same actions" not in text
    same = [dataclasses.replace(r, replayed=list(r.after)) for r in rows]
    assert "over 3 scenes: r = 1.00" in markdown(same)
    again = markdown([dataclasses.replace(ROW, after=[False, False, False], replayed=[True, None, False])])
    assert "of 2 true failures after adaptation, called a success when their own actions were imagined again: 0.50" in (
        again)
    assert "truly run" not in text and "run once more" not in text
    twice = markdown([dataclasses.replace(r, repeated=m) for r, m in zip(
        rows, ([True, True], [True, True], [False, True]), strict=True)])
    assert "of 3 true failures after adaptation, a success when the same episode was truly run once more, sampled as " \
           "in imagination: 0.667" in twice
    assert "those episodes run once more against true success, over 3 scenes: r = 0.87" in twice
    assert correlation([(0.0, 0.0), (0.5, 0.4), (1.0, 1.1)]) > 0.98
    assert np.isnan(correlation([(0.0, 0.0), (1.0, 1.0)])) and np.isnan(correlation([(0.5, 0.1)] * 3))


def test_the_promotion_test_is_held_to_the_policy_that_a_session_left_scene_by_scene() -> None:
    rows = [dataclasses.replace(ROW, scene=s, after=a, outcome=o, imagined_before=b, imagined_after=i)
            for s, a, o, b, i in (("a", [True, True], "promoted", 0.0, 1.0), ("b", [False, True], "promoted", 0.2, 0.5),
                                  ("c", [False, False], "kept", 0.0, 1.0), ("d", [True, True], "kept", None, None))]
    assert [r.predicted for r in rows] == [1.0, 0.5, 0.0, None]
    text = markdown(rows)
    assert "the policy that a session left against true success, over 3 scenes: r = 1.00" in text
    assert "over 3 sessions: r = 1.00" in text


def test_what_was_measured_elsewhere_is_tabulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_row(tmp_path / "one", ROW)
    (tmp_path / "kept.jsonl").write_text((tmp_path / "one" / ROWS).read_text())
    assert main(["bench", "adaptation", "--rows", str(tmp_path / "one")]) == 0
    told = capsys.readouterr().out
    assert main(["bench", "adaptation", "--rows", str(tmp_path / "kept.jsonl")]) == 0
    assert capsys.readouterr().out == told == markdown([ROW]) + "\n"
    assert main(["bench", "adaptation", "--rows", str(tmp_path / "one"), str(tmp_path / "none")]) == 2
    assert f"--rows {tmp_path / 'none'}: nothing was measured there" in capsys.readouterr().err
    assert main(["bench", "adaptation", "--rows", str(tmp_path / "one"), str(tmp_path / "kept.jsonl")]) == 2
    told = capsys.readouterr().err
    assert "'reach the purple block' in novel_evening, world_model, seed 0 is there more than once" in told


class Straight:
    """A policy that goes one way."""

    name, chunk_size = "straight", 4

    def __init__(self, delta: tuple[float, ...]) -> None:
        self.delta = np.array(delta, np.float32)

    def sample(self, frames: U8, instruction: str, temperature: float, seed: int) -> SampledChunks:
        deltas = np.tile(self.delta, (len(frames), 4, 1))
        return SampledChunks(deltas, np.zeros(deltas.shape, np.int64), np.zeros(deltas.shape, np.float32))


def test_true_actions_are_imagined_again_from_their_own_starts() -> None:
    words = "reach the red block"
    environment = TwinEnvironment(load_scene("train_oak"))
    judges = build.TABLETOP_JUDGES
    parts = Parts(None, build.load_world_model("", judges), build.load_judges(judges), {}, None)  # type: ignore[arg-type]
    try:
        begun = [environment.reset(seed, words) for seed in (3, 4)]
        twin = environment.twin
        way = (twin.object_xyz("red block") - twin.ee_xyz()) / 12 * (1, 1, 0.7)
    finally:
        environment.close()
    still = np.tile(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), (20, 1))
    there = still.copy()
    there[:12, :3] = way
    played = [Episode(np.zeros((0,), np.uint8), deltas, None) for deltas in (still[:9], there)]  # one ended early
    assert bench.replay_verdicts(parts, begun, played, 0) == [False, True]


def test_a_simulator_in_the_place_of_the_world_model_judges_by_physics() -> None:
    scene = load_scene("novel_camera_shift")
    words = scene.instructions[0]
    built = hand_built(scene, 0)
    assert built == hand_built(scene, 0) != hand_built(scene, 1) and not built.distractors
    for ours, theirs, most in ((built.table_rgb, scene.table_rgb, BY_EYE),
                               (built.camera_offset_m, scene.camera_offset_m, BY_TAPE_M),
                               (built.camera_rotation_rad, scene.camera_rotation_rad, BY_TAPE_RAD)):
        off = np.abs(np.subtract(ours, theirs))
        assert (off > 0).all() and (off <= most).all()
    assert [o.name for o in built.objects] == [o.name for o in scene.objects]
    world = SimulatedWorld(built, words, 0)
    try:
        start: Start = world.captured(3)
        assert start.frame.rgb.shape[:2] == (240, 320)
        target = world.twins[0].object_xyz("blue block") - world.twins[0].ee_xyz()
        there = (*(target / 12 * (1, 1, 0.7)), 0.0, 0.0, 0.0, 1.0)
        for way, success in ((there, True), ((0.0,) * 6 + (1.0,), False)):
            group = imagine(Straight(way), world, world, start, 2, 12, 1.0, 0, judge_every_chunks=0)  # type: ignore[arg-type]
            assert [j.score for j in group.judgements] == [float(success)] * 2
            np.testing.assert_array_equal(group.frames[0], group.frames[1])  # both placed as in the start image
        assert all(j.score is None for j in world.score(group.frames[:1], words))
        with pytest.raises(KeyError):
            world.begin([Start(Frame(np.zeros((64, 64, 3), np.uint8), 0), None, words)], 0)
    finally:
        world.close()
    with pytest.raises(BadConfig, match="'magic' is unknown"):
        run("magic", None, scene, words, None, 0, lambda p: None)  # type: ignore[arg-type]


def test_the_results_print_what_was_measured_the_base_drawn_once() -> None:
    docs = Path(__file__).resolve().parents[1] / "docs"
    sessions: dict[tuple[str, str], list[Row]] = {}
    for row in read_rows(docs / "measured/adaptation.jsonl"):
        sessions.setdefault((row.scene, row.instruction), []).append(row)

    def rate(outcomes: Sequence[bool]) -> str:
        share = wilson(sum(outcomes), len(outcomes))
        return f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"
    expected = [(scene, words, rate(rows[0].before), rate([x for r in rows for x in r.after]),
                 ", ".join(f"{np.mean(r.after):.2f}" for r in rows)) for (scene, words), rows in sessions.items()]
    cells = r"^\| `(novel_\w+)`: ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$"
    assert sorted(re.findall(cells, (docs / "results.md").read_text(), re.MULTILINE)) == sorted(expected)
    assert all(r.before == rows[0].before for rows in sessions.values() for r in rows)  # the same forty episodes
