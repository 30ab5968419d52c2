"""Exports of recorded episodes, read back; and the published clips that set the alignment."""
from __future__ import annotations

import json
import os
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episode_maker import bar_position_m, record

from world_gymnast_ros.data.lerobot import read_lerobot
from world_gymnast_ros.data.read import read_episodes
from world_gymnast_ros.data.worldgym import read_clip, worldgym_deltas
from world_gymnast_ros.episodes import Episode, read_episode
from world_gymnast_ros.episodes.export.bridge_npz import export_bridge
from world_gymnast_ros.episodes.export.irasim import export_irasim, relative_actions
from world_gymnast_ros.episodes.export.lerobot_v3 import CAMERA, FEATURES, export_lerobot
from world_gymnast_ros.episodes.export.worldgym import export_worldgym, to_rows
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.robot.actions import pose_from_state
from world_gymnast_ros.video import read_video, write_mp4

CLIPS = Path(os.environ.get("WORLD_GYMNAST_CLIPS") or
             Path(__file__).resolve().parents[2] / "shared" / "data" / "bridge_clips")


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    root = tmp_path_factory.mktemp("episodes")
    return [read_episode(record(root, "a", chunks=2, seed=1, outcome="success")[0]),
            read_episode(record(root, "b", chunks=3, seed=2, outcome="failure", instruction="wave")[0])]


def test_worldgym_units_golden_values() -> None:
    """From the format: 0.05 m is 1.75, 0.25 rad is 1.4, each clipped 0.01 inside; open is -1."""
    rows = to_rows(np.array([[0.01, -0.02, 0.05, 0.1, -0.25, 0, 1], [0, 0, -0.05, 0, 0, 0.25, 0]], np.float32))
    np.testing.assert_allclose(rows, [[0.35, -0.7, 1.74, 0.56, -1.39, 0, -1, 0, 0, 0],
                                      [0, 0, -1.74, 0, 0, 1.39, 1, 0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(
        worldgym_deltas(rows)[0], [0.01, -0.02, 0.05 * 1.74 / 1.75, 0.1, -0.25 * 1.39 / 1.4, 0, 1], atol=1e-6)


def test_worldgym_clips_round_trip(tmp_path: Path, episodes: list[Episode]) -> None:
    clips = export_worldgym(episodes, tmp_path / "ours" / "train", size=(96, 320))
    clips += export_worldgym(episodes[:1], tmp_path / "ours" / "train", size=(96, 320))
    assert [clip.name for clip in clips] == ["000000000.mp4", "000000001.mp4", "000000000.mp4"]
    for clip, episode in zip(clips[:2], episodes, strict=True):
        read = read_clip(clip)
        assert read.frames.shape == (len(episode.steps) + 1, 96, 320, 3) and read.deltas.dtype == np.float32
        np.testing.assert_allclose(read.deltas, episode.actions, atol=3e-4)
        rows = np.load(clip.with_suffix(".npz"))["arr_0"]
        np.testing.assert_array_equal(rows[-1], [0, 0, 0, 0, 0, 0, -1, 0, 0, 0])  # the row of the last frame: stay
        moved_m = np.diff([bar_position_m(rgb) for rgb in read.frames])  # row t moves the image from t to t+1
        np.testing.assert_allclose(moved_m, read.deltas[:, 0], atol=0.004)
    assert not list(tmp_path.rglob("*.tmp"))


def test_broken_clips_are_refused(tmp_path: Path, episodes: list[Episode]) -> None:
    clip = export_worldgym(episodes[:1], tmp_path, size=(64, 64))[0]
    npz = clip.with_suffix(".npz")
    rows = np.load(npz)["arr_0"]
    for bad in (rows[:-1], rows[:, :6], np.full_like(rows, np.nan)):
        np.savez(npz, bad)
        with pytest.raises(EpisodeError):
            read_clip(clip)
    np.savez(npz, other=rows)
    with pytest.raises(EpisodeError, match="arr_0"):
        read_clip(clip)
    np.savez(npz, np.array([{"a": 1}], dtype=object))
    with pytest.raises(EpisodeError):
        read_clip(clip)
    clip.write_bytes(clip.read_bytes()[:200])
    with pytest.raises(EpisodeError, match="cannot read"):
        read_clip(clip)
    with pytest.raises(EpisodeError, match="even"):
        write_mp4(tmp_path / "odd.mp4", [np.zeros((2, 8, 8, 3), np.uint8)], (63, 64), 5)


def test_lerobot_dataset_is_consistent(tmp_path: Path, episodes: list[Episode]) -> None:
    folder = export_lerobot(iter(episodes), tmp_path / "dataset", size=(96, 320))
    info = json.loads((folder / "meta" / "info.json").read_text())
    data = pq.read_table(folder / info["data_path"].format(chunk_index=0, file_index=0))
    rows = pq.read_table(folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    frames = read_video(folder / info["video_path"].format(video_key=CAMERA, chunk_index=0, file_index=0))
    assert set(data.column_names) | {CAMERA} == set(info["features"]) and set(FEATURES) == set(data.column_names)
    assert info["total_frames"] == len(data) == len(frames) == 20 and info["codebase_version"] == "v3.0"
    assert data["index"].to_pylist() == list(range(20))
    for row, episode in zip(rows, episodes, strict=True):
        inside = slice(row["dataset_from_index"], row["dataset_to_index"])
        part = data.slice(inside.start, row["length"])
        np.testing.assert_array_equal(np.array(part["action"].to_pylist(), np.float32), episode.actions)
        np.testing.assert_array_equal(np.array(part["observation.state"].to_pylist(), np.float32), episode.states[:-1])
        np.testing.assert_allclose(part["timestamp"].to_pylist(), np.arange(row["length"]) / 5, atol=1e-6)
        first = round(row[f"videos/{CAMERA}/from_timestamp"] * info["fps"])
        positions_m = [bar_position_m(rgb) for rgb in frames[first : first + row["length"]]]
        np.testing.assert_allclose(positions_m, episode.states[:-1, 0], atol=0.004)
        assert row["tasks"] == [episode.instruction]
        assert part["next.success"].to_pylist()[-1] == (episode.outcome.outcome == "success")
    tasks = pq.read_table(folder / "meta" / "tasks.parquet")
    assert tasks["task"].to_pylist() == ["push the red block left", "wave"]
    assert tasks["task_index"].to_pylist() == [0, 1]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    with pytest.raises(EpisodeError, match="exists"):
        export_lerobot(episodes, folder)
    with pytest.raises(EpisodeError, match="no episode"):
        export_lerobot([], tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset"]


# dtype of a v3.0 feature -> type of its column; a feature of shape [1] is a plain value, [n] a list of fixed size.
ARROW = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
INFO = {"codebase_version": str, "robot_type": str, "total_episodes": int, "total_frames": int, "total_tasks": int,
        "chunks_size": int, "data_files_size_in_mb": int, "video_files_size_in_mb": int, "fps": int, "splits": dict,
        "data_path": str, "video_path": str, "features": dict}
ALWAYS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
          "task_index": "int64"}
STATS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


def test_lerobot_matches_the_v3_schema_field_by_field(tmp_path: Path, episodes: list[Episode]) -> None:
    folder = export_lerobot(episodes, tmp_path / "dataset", size=(96, 320))
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {"meta/info.json", "meta/stats.json", "meta/tasks.parquet",
                     "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet",
                     f"videos/{CAMERA}/chunk-000/file-000.mp4"}
    info = json.loads((folder / "meta/info.json").read_text())
    assert {key: type(value) for key, value in info.items()} == INFO
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 5, {"train": "0:2"})
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 20, 2)
    features = info["features"]
    assert {name: features[name]["dtype"] for name in ALWAYS} == ALWAYS
    assert not any("/" in name for name in features)
    for name, feature in features.items():
        assert {"dtype", "shape", "names"} <= set(feature) and all(type(n) is int for n in feature["shape"]), name
    data = pq.read_schema(folder / "data/chunk-000/file-000.parquet")
    plain = {name: feature for name, feature in features.items() if feature["dtype"] != "video"}
    assert set(data.names) == set(plain)
    for name, feature in plain.items():
        (width,) = feature["shape"]
        value = ARROW[feature["dtype"]]
        assert data.field(name).type == (value if width == 1 else pa.list_(value, width)), name
        assert feature["names"] is None or len(feature["names"]) == width, name
    rows = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet")
    wanted = {"episode_index", "dataset_from_index", "dataset_to_index", "length",
              *(f"{of}/{kind}_index" for of in ("data", "meta/episodes", f"videos/{CAMERA}")
                for kind in ("chunk", "file"))}
    assert all(rows.schema.field(name).type == pa.int64() for name in wanted)
    assert rows.schema.field("tasks").type == pa.list_(pa.string())
    assert all(rows.schema.field(f"videos/{CAMERA}/{edge}_timestamp").type == pa.float64() for edge in ("from", "to"))
    stats = json.loads((folder / "meta/stats.json").read_text())
    assert set(stats) == set(features) and all(set(stat) == STATS for stat in stats.values())
    per_episode = {name for name in rows.column_names if name.startswith("stats/")}
    assert per_episode == {f"stats/{name}/{stat}" for name in features for stat in STATS}
    for name, feature in features.items():
        shape = (3, 1, 1) if feature["dtype"] == "video" else tuple(feature["shape"])
        assert all(np.shape(stats[name][s]) == ((1,) if s == "count" else shape) for s in STATS), name
    tasks = pq.read_table(folder / "meta/tasks.parquet")
    assert tasks.schema.field("task_index").type == pa.int64() and tasks.num_rows == info["total_tasks"]


def test_lerobot_video_is_what_the_schema_says(tmp_path: Path, episodes: list[Episode]) -> None:
    folder = export_lerobot(episodes, tmp_path / "dataset", size=(96, 320))
    feature = json.loads((folder / "meta/info.json").read_text())["features"][CAMERA]
    with av.open(str(folder / f"videos/{CAMERA}/chunk-000/file-000.mp4")) as container:
        (stream,) = container.streams
        told = feature["info"]
        assert (stream.codec_context.name, stream.pix_fmt) == (told["video.codec"], told["video.pix_fmt"])
        assert (stream.height, stream.width, 3) == tuple(feature["shape"]) == (96, 320, 3)
        assert stream.average_rate == told["video.fps"] == 5
        times_s = [frame.time for frame in container.decode(stream)]
    np.testing.assert_allclose(times_s, np.arange(20) / 5, atol=1e-4)  # LeRobot asks for frames within 0.1 ms
    rows = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    edges = [(row[f"videos/{CAMERA}/from_timestamp"], row[f"videos/{CAMERA}/to_timestamp"]) for row in rows]
    np.testing.assert_allclose(edges, [(0, 1.6), (1.6, 4.0)])


@pytest.mark.lerobot
def test_lerobot_itself_opens_it(tmp_path: Path, episodes: list[Episode]) -> None:
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except Exception as error:  # lerobot, or torchvision for it, is missing or does not fit this torch
        pytest.skip(f"the lerobot package cannot be imported here: {error!r}")
    dataset = LeRobotDataset("local/ours", root=export_lerobot(episodes, tmp_path / "dataset", size=(96, 320)))
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (2, 20, 5)
    actions = np.concatenate([episode.actions for episode in episodes])
    for number, row in enumerate(dataset.hf_dataset):
        np.testing.assert_array_equal(np.asarray(row["action"]), actions[number])
    assert list(dataset.meta.tasks.index) == ["push the red block left", "wave"]
    try:
        item = dataset[9]
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        pytest.skip(f"metadata and rows are read; no video decoder of lerobot works here: {error!r:.300}")
    assert item["task"] == "wave" and tuple(item[CAMERA].shape) == (3, 96, 320)
    image = np.asarray(item[CAMERA]).transpose(1, 2, 0) * 255
    assert np.abs(image - resize_rgb(episodes[1].frames[1], (96, 320))).mean() < 4


def test_lerobot_is_read_back(tmp_path: Path, episodes: list[Episode]) -> None:
    folder = export_lerobot(episodes, tmp_path / "dataset", size=(96, 320))
    back = list(read_lerobot(folder))
    assert [e.task for e in back] == ["push the red block left", "wave"]
    for read, episode in zip(back, episodes, strict=True):
        np.testing.assert_array_equal(read.actions, episode.actions)
        np.testing.assert_array_equal(read.stamps_ns, episode.frame_stamps_ns[:-1])
        positions_m = [bar_position_m(rgb) for rgb in read.frames]
        np.testing.assert_allclose(positions_m, episode.states[:-1, 0], atol=0.004)
    clips = read_episodes([folder]).episodes  # what `train world-model --clips` reads
    assert [c.steps for c in clips] == [7, 11] and all(len(c.frames) == c.steps + 1 for c in clips)
    moved_m = np.diff([bar_position_m(rgb) for rgb in clips[1].frames])
    np.testing.assert_allclose(moved_m, clips[1].deltas[:, 0], atol=0.004)


def test_lerobot_datasets_that_are_no_bridge_steps_are_refused(tmp_path: Path, episodes: list[Episode]) -> None:
    folder = export_lerobot(episodes, tmp_path / "dataset", size=(96, 320))
    path, info_path = folder / "data/chunk-000/file-000.parquet", folder / "meta/info.json"
    info, table = json.loads(info_path.read_text()), pq.read_table(path)
    column = table.schema.get_field_index("action")
    for change, words in ((lambda a: a[:, 0].__iadd__(0.3), "0.05"), (lambda a: a[:, 4].__iadd__(1.0), "0.25"),
                          (lambda a: a[:, 6].__isub__(2.0), "gripper")):
        actions = np.array(table["action"].to_pylist(), np.float32)
        change(actions)
        other = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), 7)
        pq.write_table(table.set_column(column, "action", other), path)
        with pytest.raises(EpisodeError, match=words):
            list(read_lerobot(folder))
    pq.write_table(table, path)
    for change, words in (({"fps": 3}, "3 frames"), ({"codebase_version": "v2.1"}, "v2.1")):
        info_path.write_text(json.dumps({**info, **change}))
        with pytest.raises(EpisodeError, match=words):
            list(read_lerobot(folder))
    info_path.write_text(json.dumps(info))
    with pytest.raises(EpisodeError, match="choose one with --camera"):
        list(read_lerobot(folder, camera="observation.images.wrist"))
    video = folder / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    video.write_bytes(video.read_bytes()[:-3000])
    with pytest.raises(EpisodeError, match="file-000"):
        list(read_lerobot(folder))


def test_real_times_survive_every_export(tmp_path: Path, episodes: list[Episode]) -> None:
    episode = episodes[0]
    captured, sent = episode.frame_stamps_ns.tolist(), episode.steps.stamps_ns.tolist()
    assert len(set(np.diff(captured))) > 1, "the test needs times that no frame rate gives"
    rows = pq.read_table(export_lerobot([episode], tmp_path / "l") / "data/chunk-000/file-000.parquet")
    assert (rows["extra.captured_ns"].to_pylist(), rows["extra.sent_ns"].to_pylist()) == (captured[:-1], sent)
    with np.load(export_worldgym([episode], tmp_path / "w")[0].with_suffix(".npz")) as clip:
        assert (clip["captured_ns"].tolist(), clip["sent_ns"].tolist()) == (captured, [*sent, 0])
    with np.load(export_bridge([episode], tmp_path / "b")[0]) as steps:
        assert steps["steps/observation/captured_ns"].tolist() == captured
        assert steps["steps/sent_ns"].tolist() == [*sent, 0]
    note = json.loads(export_irasim([episode], tmp_path / "i")[0].read_text())
    assert (note["captured_ns"], note["sent_ns"]) == (captured, sent)


def test_lerobot_statistics_are_those_of_the_rows(tmp_path: Path, episodes: list[Episode]) -> None:
    folder = export_lerobot(episodes, tmp_path / "dataset", size=(96, 320))
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
    for key, wanted in (("min", actions.min(0)), ("max", actions.max(0)), ("mean", actions.mean(0)),
                        ("std", actions.std(0))):
        np.testing.assert_allclose(stats["action"][key], wanted, atol=1e-6)
    assert stats["action"]["count"] == [20] and np.shape(stats[CAMERA]["mean"]) == (3, 1, 1)
    assert 0 < stats[CAMERA]["mean"][0][0][0] < 1


def test_bridge_steps_round_trip(tmp_path: Path, episodes: list[Episode]) -> None:
    paths = export_bridge(episodes, tmp_path, size=(48, 160))
    with np.load(paths[0], allow_pickle=False) as steps:
        count = len(episodes[0].steps) + 1
        np.testing.assert_array_equal(steps["steps/action"][:-1], episodes[0].actions)
        assert not steps["steps/action"][-1].any() and steps["steps/reward"].tolist() == [0] * (count - 1) + [1]
        np.testing.assert_array_equal(steps["steps/observation/image_0"], episodes[0].frames)
        np.testing.assert_array_equal(steps["steps/observation/state"], episodes[0].states)
        assert steps["steps/is_last"].sum() == steps["steps/is_first"].sum() == 1
        assert set(steps["steps/language_instruction"]) == {"push the red block left"}


def test_irasim_actions_rebuild_the_states(tmp_path: Path, episodes: list[Episode]) -> None:
    rng = np.random.default_rng(0)
    states = np.concatenate([rng.uniform(-0.3, 0.3, (9, 6)), rng.uniform(0, 1, (9, 1))], axis=1).astype(np.float32)
    actions = relative_actions(states)
    for t in range(8):  # compose: T_{t+1} = T_t * (moved, turned), Bridge rotations
        before, after = pose_from_state(states[t]), pose_from_state(states[t + 1])
        down = pose_from_state(np.zeros(7, np.float32))[:3, :3]
        R = before[:3, :3] @ down.T
        np.testing.assert_allclose(before[:3, 3] + R @ (actions[t, :3] / 20), after[:3, 3], atol=1e-6)
        turned = pose_from_state(np.concatenate([np.zeros(3), actions[t, 3:6] / 20, [0]]))[:3, :3] @ down.T
        np.testing.assert_allclose(R @ turned, after[:3, :3] @ down.T, atol=1e-6)
    path = export_irasim(episodes[:1], tmp_path)[0]
    note = json.loads(path.read_text())
    assert read_video(tmp_path / note["videos"][0]["video_path"]).shape == (len(note["state"]), 256, 320, 3)
    assert note["texts"] == ["push the red block left"] and len(note["action"]) == len(note["state"]) - 1


def _published_clips() -> list[Path]:
    clips = sorted(CLIPS.glob("*.mp4"))
    if not clips:
        pytest.skip(f"no published clips in {CLIPS}; set WORLD_GYMNAST_CLIPS to a folder of WorldGym mp4 and npz files")
    return clips


def test_published_clips_read_in_physical_units() -> None:
    for clip in _published_clips():
        deltas = worldgym_deltas(np.load(clip.with_suffix(".npz"))["arr_0"])
        assert read_clip(clip).frames.shape[1:] == (256, 256, 3)
        assert np.abs(deltas[:, :3]).max() <= 0.05 and np.abs(deltas[:, 3:6]).max() <= 0.25
        assert set(np.unique(deltas[:, 6])) <= {0.0, 1.0}
        np.testing.assert_allclose(to_rows(deltas)[:, :7], np.load(clip.with_suffix(".npz"))["arr_0"][:, :7], atol=1e-5)


def test_published_clips_pair_row_t_with_the_action_taken_at_frame_t() -> None:
    """In clips that begin at rest, the image first changes after the frame of the first motion, never before."""
    changes_at_rest, changes_after, correlations = [], [], {-2: [], -1: [], 0: [], 1: []}
    for clip in _published_clips():
        frames, deltas = read_clip(clip).frames, worldgym_deltas(np.load(clip.with_suffix(".npz"))["arr_0"])
        change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))  # [t]: from frame t to t+1
        size_m = np.linalg.norm(deltas[:, :3], axis=1)
        first = int(np.flatnonzero(size_m > 1e-6)[0])
        if first > 0:
            changes_at_rest.append(change[first - 1])
            changes_after.append(change[first])
        for lag, found in correlations.items():
            t = np.arange(2, len(change))
            found.append(np.corrcoef(change[t], size_m[t + lag])[0, 1])
    at_rest, after = np.array(changes_at_rest), np.array(changes_after)
    assert len(at_rest) >= 5
    # Were row t the action that led to frame t, its motion would show in the change into frame t.
    assert at_rest.max() < 0.5 and after.min() > 0.7 and (after / at_rest).min() > 4
    mean = {lag: float(np.mean(found)) for lag, found in correlations.items()}
    assert mean[1] < 0.15 < mean[0] < mean[-1], mean
