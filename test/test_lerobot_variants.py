"""LeRobot v3 sets as people have them: rows out of order, several cameras, other rates, broken episodes; and our own
exports, read back."""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episode_maker import bar_image, bar_position_m, record

from world_gymnast_ros.cli.episodes import EXPORTS
from world_gymnast_ros.data.lerobot import read_lerobot
from world_gymnast_ros.data.read import read_episodes
from world_gymnast_ros.episodes import read_episode
from world_gymnast_ros.episodes.export.lerobot_v3 import CAMERA, export_lerobot
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.robot.actions import apply_delta, pose_from_state
from world_gymnast_ros.video import write_mp4

SIZE = (48, 160)
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recordings")
    for seed, (name, outcome) in enumerate((("a", "success"), ("b", "failure"), ("c", "unknown"))):
        record(root, name, chunks=2, seed=seed, outcome=outcome, instruction=f"task {name}")
    return root


@pytest.fixture(scope="module")
def whole(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "whole"
    return export_lerobot((read_episode(p) for p in sorted(recordings.iterdir())), folder, SIZE)


@pytest.fixture()
def other(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "set"))


def change(path: Path, **columns: Any) -> None:
    """Write the table anew with columns changed by a function, or removed (None)."""
    table = pq.read_table(path)
    for name, how in columns.items():
        place = table.schema.get_field_index(name.replace("__", "/"))
        key = table.column_names[place]
        new = None if how is None else how(table[key].to_pylist())
        table = table.remove_column(place) if new is None else table.set_column(place, key, pa.array(new))
    pq.write_table(table, path)


def same(folder: Path, whole: Path, **options: Any) -> None:
    for got, wanted in zip(read_lerobot(folder, **options), read_lerobot(whole), strict=True):
        assert got.task == wanted.task
        np.testing.assert_array_equal(got.actions, wanted.actions)
        np.testing.assert_array_equal(got.frames, wanted.frames)


def test_rows_out_of_order_are_sorted(other: Path, whole: Path) -> None:
    table = pq.read_table(other / DATA)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), other / DATA)
    same(other, whole)


def test_paths_and_tasks_may_be_left_to_the_standard(other: Path, whole: Path) -> None:
    info = json.loads((other / "meta/info.json").read_text())
    (other / "meta/info.json").write_text(json.dumps({k: v for k, v in info.items() if not k.endswith("_path")}))
    change(other / DATA, task_index=None)
    (other / "meta/tasks.parquet").unlink()
    same(other, whole)


def test_one_of_several_cameras_is_chosen(other: Path, whole: Path) -> None:
    """As every Bridge set in LeRobot has."""
    info = json.loads((other / "meta/info.json").read_text())
    info["features"]["observation.images.image_1"] = info["features"][CAMERA]
    (other / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(EpisodeError, match=r"image_0, .*image_1, and none is chosen; choose one with --camera"):
        list(read_lerobot(other))
    same(other, whole, camera="image_0")
    same(other, whole, camera=CAMERA)
    assert [e.name for e in read_episodes([other], camera="image_0").episodes] == ["a", "b", "c"]


def test_camera_images_may_lie_in_the_table(other: Path, whole: Path) -> None:
    import io

    from PIL import Image

    frames = np.concatenate([e.frames for e in read_lerobot(whole)])
    cells = []
    for rgb in frames:
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    table = pq.read_table(other / DATA)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(table.append_column(CAMERA, pa.array(cells, kind)), other / DATA)
    info = json.loads((other / "meta/info.json").read_text())
    info["features"][CAMERA]["dtype"] = "image"
    (other / "meta/info.json").write_text(json.dumps(info))
    shutil.rmtree(other / "videos")
    same(other, whole)


def without_rows_of_1(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.filter(pa.compute.not_equal(table["episode_index"], 1)), path)


def in_episode_1(value: Any, row: int = 2) -> Any:
    """Change one row of the second of three episodes of eight actions."""
    return lambda values: [*values[:8 + row], value, *values[9 + row:]]


@pytest.mark.parametrize(("file", "how", "says"), [
    (DATA, without_rows_of_1, "it has no rows"),
    (DATA, {"action": in_episode_1(None)}, "action of frame 2 is None"),
    (DATA, {"action": in_episode_1([0.0] * 6)}, "7 numbers are needed"),
    (DATA, {"action": in_episode_1([0.4, 0, 0, 0, 0, 0, 1])}, "a step of 0.4 m in 0.2 s"),
    (DATA, {"frame_index": in_episode_1(1)}, "frame_index 1 where 2 belongs"),
    (DATA, {"timestamp": in_episode_1(77.0, 7)}, "has no image at"),
    (EPISODES, {f"videos__{CAMERA}__from_timestamp": lambda v: [v[0], None, v[2]]}, "where it begins in the video"),
    (EPISODES, {"data__file_index": lambda v: [v[0], None, v[2]]}, "in which file of data"),
    (EPISODES, {"data__file_index": lambda v: [v[0], 9, v[2]]}, "file-009"),
], ids=["no_rows", "null_action", "six_numbers", "no_step", "twice", "no_image", "no_begin", "no_file", "lost_file"])
def test_a_broken_episode_is_named_in_one_line_and_the_others_are_read(other: Path, file: str, how: Any, says: str
                                                                       ) -> None:
    how(other / file) if callable(how) else change(other / file, **how)
    found = read_episodes([other])
    assert [e.name for e in found.episodes] == ["a", "c"]
    (line,) = found.left_out
    assert line.startswith("set, episode 1: ") and says in line and "\n" not in line, line
    with pytest.raises(EpisodeError, match="set, episode 1: "):
        list(read_lerobot(other))


@pytest.mark.parametrize("rate", [30, 24])
def test_a_faster_set_is_resampled_by_the_stated_rule(other: Path, rate: int) -> None:
    """Images nearest to multiples of 0.2 s; between two of them, what was done is composed."""
    rng, count = np.random.default_rng(1), 2 * rate + 1
    actions = np.zeros((count, 7), np.float32)
    actions[:, 0] = 5 / rate * rng.integers(-8, 9, count) / 200
    actions[:, 3:6] = rng.uniform(-0.03, 0.03, (count, 3))
    actions[:, 6] = rng.integers(0, 2, count)
    x_m = 0.4 + np.concatenate([[0.0], np.cumsum(actions[:-1, 0])])
    write_mp4(other / f"videos/{CAMERA}/chunk-000/file-000.mp4", [np.stack([bar_image(x) for x in x_m])], SIZE, rate)
    pq.write_table(pa.table({"episode_index": [0] * count, "frame_index": range(count), "task_index": [0] * count,
                             "timestamp": np.arange(count) / rate, "action": actions.tolist()}), other / DATA)
    pq.write_table(pq.read_table(other / EPISODES).slice(0, 1).drop_columns(["outcome"]), other / EPISODES)
    info = json.loads((other / "meta/info.json").read_text())
    (other / "meta/info.json").write_text(json.dumps({**info, "fps": rate}))
    (episode,) = read_episodes([other]).episodes
    assert episode.steps == 10 and len(episode.frames) == 11
    taken = np.rint(np.arange(11) * rate / 5).astype(int)
    np.testing.assert_allclose([bar_position_m(f) for f in episode.frames], x_m[taken], atol=0.007)
    start = pose_from_state(np.array([0.3, 0, 0.2, 0.1, -0.2, 0.3, 1]))
    for j in range(10):
        slow, fast = apply_delta(start, start, episode.deltas[j]), start
        for action in actions[taken[j]:taken[j + 1]]:
            fast = apply_delta(fast, fast, action)
        np.testing.assert_allclose(slow, fast, atol=1e-5)
        assert episode.deltas[j, 6] == actions[taken[j + 1] - 1, 6]


@pytest.mark.parametrize("kind", sorted(EXPORTS))
def test_our_own_exports_are_read_back(recordings: Path, tmp_path: Path, kind: str) -> None:
    originals = {p.name: read_episode(p) for p in sorted(recordings.iterdir())}
    EXPORTS[kind](iter(originals.values()), tmp_path / "out")
    found = read_episodes([tmp_path / "out"])
    assert found.left_out == [] and len(found.episodes) == 3 and len(found.marked) == 2
    for episode, original in zip(found.episodes, originals.values(), strict=True):
        steps = len(original.steps) - (kind == "lerobot")  # as many frames as actions: the last leads nowhere
        assert episode.steps == steps and len(episode.frames) == steps + 1
        np.testing.assert_allclose(episode.deltas, original.actions[:steps], atol=3e-4)  # WorldGym clips its units
        assert episode.states is not None and episode.measured is not None
        np.testing.assert_allclose(episode.states, original.target_states[:steps + 1], atol=1e-6)
        np.testing.assert_allclose(episode.measured, original.states[:steps + 1], atol=1e-6)
        assert episode.instruction == original.instruction
        assert episode.success is {"success": True, "failure": False, "unknown": None}[original.outcome.outcome]
