"""Recording, reading back, marking and checking episodes."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from episode_maker import START_NS, bar_image, bar_position_m, record, step_cdr
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.rosbag2 import Reader

from world_gymnast_ros import cli
from world_gymnast_ros.episodes import (
    EpisodeWriter,
    add_judgement,
    check,
    list_episodes,
    mark_outcome,
    new_episode_id,
    read_episode,
    read_outcome,
    read_steps,
    repair,
)
from world_gymnast_ros.episodes.provenance import ADAPTER, CHUNK, DIAGNOSTICS
from world_gymnast_ros.episodes.schemas import RAW_IMAGE, STEP, decoder, header_of, message_class, serialize, time_of
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.types import Judgement


def test_what_is_recorded_is_read_back_aligned(tmp_path: Path) -> None:
    folder, truth = record(tmp_path, chunks=4)
    episode = read_episode(folder)
    count = len(truth.actions)
    assert episode.frames.shape == (count + 1, 48, 160, 3) and episode.frames.dtype == np.uint8
    assert episode.frame_stamps_ns.tolist() == truth.frame_stamps_ns
    np.testing.assert_array_equal(episode.actions, np.array(truth.actions))
    np.testing.assert_array_equal(episode.steps.requested, np.array(truth.actions) * 2)
    assert (episode.instruction, episode.adapter, episode.ended_by) == ("push the red block left", "base", "done")
    assert check(folder) == []


def test_row_t_is_the_action_taken_at_frame_t(tmp_path: Path) -> None:
    """What moves in the image between frames t and t+1 is action t, in an arm without lag."""
    folder, truth = record(tmp_path, chunks=6, seed=3)
    positions_m = np.array([bar_position_m(rgb) for rgb in read_episode(folder).frames])
    moved_m = np.diff(positions_m)
    wanted_m = np.array(truth.actions)[:, 0]
    np.testing.assert_allclose(moved_m, wanted_m, atol=0.003)
    for shift in (-1, 1):  # the test must be able to tell
        assert np.abs(moved_m - np.roll(wanted_m, shift))[1:-1].max() > 0.02
    np.testing.assert_allclose(read_episode(folder).states[:-1, 0], positions_m[:-1], atol=0.003)


def test_a_lost_image_is_told_by_its_age(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "gap", {}, START_NS, 0)
    for t_ms in (0, 1000):
        stamp_ns = START_NS + t_ms * 10**6
        writer.write_image("/image_raw", bar_image(0.1), stamp_ns, stamp_ns)
    for t_ms in (100, 300, 500):
        writer.write("/step", STEP, step_cdr(START_NS + t_ms * 10**6, index=t_ms // 200), START_NS + t_ms * 10**6)
    episode = read_episode(writer.close("time", START_NS + 10**9))
    ages_s = (episode.steps.stamps_ns - episode.frame_stamps_ns[:-1]) * 1e-9
    np.testing.assert_allclose(ages_s, [0.1, 0.3, 0.5], atol=1e-6)
    assert episode.frame_stamps_ns[-1] == START_NS + 10**9


def test_a_held_row_keeps_the_gripper(tmp_path: Path) -> None:
    """`sent` is zeros on HOLD, and a zero gripper would mean close."""
    writer = EpisodeWriter(tmp_path, "hold", {}, START_NS, 0)
    writer.write_image("/image_raw", bar_image(0.1), START_NS, START_NS)
    moving = np.array([0.01, 0, 0, 0, 0, 0.1, 1], np.float32)
    for i, verdict in enumerate((0, 1, 2, 3)):
        stamp_ns = START_NS + (i + 1) * 10**8
        writer.write("/step", STEP, step_cdr(stamp_ns, index=i, action=moving, verdict=verdict), stamp_ns)
    episode = read_episode(writer.close("fault", START_NS + 10**9))
    np.testing.assert_array_equal(episode.actions[:2], [moving, moving])
    np.testing.assert_array_equal(episode.actions[2:], [[0, 0, 0, 0, 0, 0, 1]] * 2)
    assert episode.steps.verdict.tolist() == [0, 1, 2, 3] and episode.steps.reason[3] == "a reason"


def test_other_readers_open_it_without_this_package(tmp_path: Path) -> None:
    folder, truth = record(tmp_path)
    with Reader(folder) as bag:  # metadata.yaml, as rosbag2 would
        assert bag.ros_distro == "jazzy" and bag.message_count == len(list(bag.messages()))
        kinds = {c.topic: c.msgtype for c in bag.connections}
    assert kinds == {"/image_raw/compressed": "sensor_msgs/msg/CompressedImage", "/step": STEP}
    program = (  # a process that cannot import world_gymnast_ros decodes Step by the schema in the file
        "import sys; sys.modules['world_gymnast_ros'] = None\n"
        "from mcap.reader import make_reader; from mcap_ros2.decoder import DecoderFactory\n"
        "f = open(sys.argv[1], 'rb')\n"
        "rows = make_reader(f, decoder_factories=[DecoderFactory()]).iter_decoded_messages(topics=['/step'])\n"
        "print([round(float(r.decoded_message.sent[0]), 4) for r in rows])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder / "episode.mcap")], capture_output=True,
                          text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [round(float(a[0]), 4) for a in truth.actions]


def test_type_hashes_are_those_of_the_generated_messages(tmp_path: Path) -> None:
    json_hash = Path(sys.prefix) / "share" / "world_gymnast_ros" / "msg" / "Step.json"
    if not json_hash.is_file():
        pytest.skip(f"{json_hash} is absent: the interfaces are not installed in this environment")
    hashes = {h["type_name"]: h["hash_string"] for h in json.loads(json_hash.read_text())["type_hashes"]}
    folder, _ = record(tmp_path)
    with (folder / "episode.mcap").open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    channel = next(c for c in summary.channels.values() if c.topic == "/step")
    if channel.metadata["topic_type_hash"] != hashes[STEP]:
        installed = (json_hash.parent / "Step.msg").read_text()
        source = Path(__file__).resolve().parents[1] / "msg" / "Step.msg"
        assert installed != source.read_text(), "same text, other hash"


def test_raw_images_in_three_encodings_are_read(tmp_path: Path) -> None:
    rgb = bar_image(0.3)
    rgb[:, :, 0] = 200
    grey = rgb[:, :, 1:2]
    for encoding, pixels in (("rgb8", rgb), ("bgr8", rgb[:, :, ::-1]), ("mono8", grey)):
        height, width, channels = pixels.shape
        padded = np.zeros((height, width * channels + 7), np.uint8)  # rows with padding, as some drivers send
        padded[:, : width * channels] = pixels.reshape(height, -1)
        image = message_class(RAW_IMAGE)(header=header_of(START_NS, "camera"), height=height, width=width,
                                         encoding=encoding, is_bigendian=0, step=padded.shape[1], data=padded.ravel())
        writer = EpisodeWriter(tmp_path, encoding, {}, START_NS, 0)
        writer.write("/image_raw", RAW_IMAGE, serialize(RAW_IMAGE, image), START_NS)
        writer.write("/step", STEP, step_cdr(START_NS + 1), START_NS + 1)
        frames = read_episode(writer.close("done", START_NS + 2)).frames
        np.testing.assert_array_equal(frames[0], rgb if channels == 3 else np.repeat(grey, 3, axis=2))


def test_last_state_comes_from_joint_states(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "joints", {}, START_NS, 0)
    names = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper", "left_finger",
             "right_finger"]
    kind = "sensor_msgs/msg/JointState"
    joints = message_class(kind)(header=header_of(START_NS, ""), name=names, velocity=np.zeros(9), effort=np.zeros(9),
                                 position=np.array([0, 0, 0, 0, 0, 0, 0, 0.035, -0.035]))
    writer.write_image("/image_raw", bar_image(0.1), START_NS, START_NS)
    writer.write("/step", STEP, step_cdr(START_NS + 1), START_NS + 1)
    writer.write("/wx250s/joint_states", kind, serialize(kind, joints), START_NS + 2)
    episode = read_episode(writer.close("done", START_NS + 3))
    assert episode.last_state_measured
    np.testing.assert_allclose(episode.states[-1, [0, 1, 2, 6]], [0.458325, 0, 0.36065, 1.0], atol=1e-6)


def test_an_outcome_is_kept_apart_from_the_end_and_from_opinions(tmp_path: Path) -> None:
    folder, _ = record(tmp_path)
    recording = {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in ("outcome.json", "steps.parquet")}
    rows = pq.read_table(folder / "steps.parquet")
    assert read_outcome(folder).outcome == "unknown"
    add_judgement(folder, "reflector", Judgement(0.9, done_at=3), START_NS)
    assert read_outcome(folder).outcome == "unknown", "a judge's opinion must not become the outcome"
    mark_outcome(folder, "failure", "alice", 0.25, START_NS + 1)
    mark_outcome(folder, "success", "bob", None, START_NS + 2)
    marked = read_outcome(folder)
    assert (marked.outcome, marked.marked_by, marked.partial_score) == ("success", "bob", None)
    assert marked.judgements[0]["score"] == 0.9
    assert json.loads((folder / "outcome.json").read_text())["history"] == [
        {"outcome": "failure", "marked_by": "alice", "partial_score": 0.25, "marked_ns": START_NS + 1}]
    assert recording == {name: (folder / name).read_bytes() for name in recording} and len(recording) == 3
    marked_rows = pq.read_table(folder / "steps.parquet")
    labels = {name: set(marked_rows[name].to_pylist()) for name in ("outcome", "marked_by", "ended_by")}
    assert labels == {"outcome": {"success"}, "marked_by": {"bob"}, "ended_by": {"done"}}
    others = [name for name in rows.column_names if name not in ("outcome", "marked_by", "partial_score")]
    assert str(marked_rows.select(others).to_pylist()) == str(rows.select(others).to_pylist())
    assert check(folder) == []
    for wrong in (("perhaps", "alice", None), ("success", "", None), ("success", "alice", 1.5),
                  ("success", "alice", float("nan"))):
        with pytest.raises(EpisodeError):
            mark_outcome(folder, *wrong, START_NS)
    assert read_outcome(folder) == marked


def test_an_episode_in_the_making_is_partial_and_ids_are_never_reused(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "one", {"instruction": "x"}, START_NS, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["one.partial"]
    assert list_episodes(tmp_path)[0].partial
    with pytest.raises(EpisodeError, match="exists"):
        EpisodeWriter(tmp_path, "one", {}, START_NS, 0)
    writer.write_image("/image_raw", bar_image(0.1), START_NS, START_NS)
    for wrong in (("bored",), ("done", START_NS, "won", "alice"), ("done", START_NS, "success", "")):
        with pytest.raises(EpisodeError):
            writer.close(*wrong, *(() if len(wrong) > 1 else (START_NS,)))
        assert writer.is_open, "a refused outcome must not lose the recording"
    writer.close("stopped", START_NS + 1)
    assert not writer.is_open
    with pytest.raises(EpisodeError, match="closed"):
        writer.write_image("/image_raw", bar_image(0.1), START_NS, START_NS)
    with pytest.raises(EpisodeError, match="exists"):
        EpisodeWriter(tmp_path, "one", {}, START_NS, 0)
    with pytest.raises(EpisodeError, match="no control step"):
        read_episode(tmp_path / "one")


@pytest.mark.parametrize("bad", ["", "../up", "a/b", "x.partial", ".hidden", "a" * 121])
def test_ids_that_are_no_folder_names_are_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(EpisodeError, match="folder name"):
        EpisodeWriter(tmp_path, bad, {}, START_NS, 0)
    assert list(tmp_path.iterdir()) == []


def test_new_ids_sort_by_time_and_pass(tmp_path: Path) -> None:
    ids = [new_episode_id("Put the red block!! on the Plate", START_NS + i * 10**9) for i in range(12)]
    assert ids == sorted(set(ids)) and ids[0].endswith("-put-the-red-block-on-the-plate")
    EpisodeWriter(tmp_path, new_episode_id("x" * 500, START_NS), {}, START_NS, 0).close("done", START_NS)


def test_a_foreign_type_needs_its_definition_and_does_not_end_the_recording(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "foreign", {}, START_NS, 0)
    with pytest.raises(EpisodeError, match="no definition of message type acme_msgs/msg/Glove"):
        writer.write("/glove", "acme_msgs/msg/Glove", b"\0\1\0\0" + bytes(4), START_NS)
    text = "std_msgs/Header header\nfloat32 squeeze\n"
    writer.write("/glove", "acme_msgs/msg/Glove", b"\0\1\0\0" + bytes(16), START_NS, text)
    with pytest.raises(EpisodeError, match="are not a world_gymnast_ros/msg/Step"):
        writer.write("/step", STEP, b"\0\1\0\0" + bytes(8), START_NS)
    with pytest.raises(EpisodeError, match="another name"):
        writer.write("/glove", STEP, step_cdr(START_NS), START_NS)
    folder = writer.close("done", START_NS)
    with (folder / "episode.mcap").open("rb") as file:
        decoded = [row.decoded_message for row in
                   make_reader(file, decoder_factories=[DecoderFactory()]).iter_decoded_messages()]
    assert len(decoded) == 1 and decoded[0].squeeze == 0.0


def test_check_names_what_is_wrong(tmp_path: Path) -> None:
    folder, _ = record(tmp_path)
    table = (folder / "steps.parquet").read_bytes()
    (folder / "steps.parquet").write_bytes(table[: len(table) // 2])
    assert any("steps.parquet" in problem for problem in check(folder))
    (folder / "steps.parquet").write_bytes(table)
    mcap = bytearray((folder / "episode.mcap").read_bytes())
    mcap[len(mcap) // 2] ^= 0xFF
    (folder / "episode.mcap").write_bytes(mcap)
    assert any("episode.mcap" in problem for problem in check(folder))
    other, _ = record(tmp_path, "two")
    (other / "outcome.json").write_text('{"outcome": "won"}')
    assert any("outcome.json" in problem for problem in check(other))


def test_the_step_table_is_plain_parquet(tmp_path: Path) -> None:
    folder, truth = record(tmp_path)
    table = pq.read_table(folder / "steps.parquet")
    sent = np.array(table["sent"].to_pylist(), dtype=np.float32)
    np.testing.assert_array_equal(sent, np.array(truth.actions))
    pose = np.array(table["T_base_measured"].to_pylist()).reshape(-1, 4, 4)
    np.testing.assert_array_equal(pose, read_steps(folder / "steps.parquet").T_base_measured)


def _say(writer: EpisodeWriter, topic: str, kind: str, stamp_ns: int, **values: object) -> None:
    message = message_class(kind)(header=header_of(stamp_ns, ""), **values)
    writer.write(topic, kind, serialize(kind, message), stamp_ns)


def _chunk(writer: EpisodeWriter, stamp_ns: int, frame_ns: int, sequence: int, deltas: np.ndarray) -> None:
    _say(writer, "/action_chunk", CHUNK, stamp_ns, frame_stamp=time_of(frame_ns), sequence=sequence, dt_s=0.2,
         inference_start=time_of(frame_ns + 10), inference_end=time_of(frame_ns + 20), chunk_size=len(deltas),
         deltas=deltas.ravel(), adapter="mine", instruction="wave")


def test_the_step_table_holds_what_other_topics_say(tmp_path: Path) -> None:
    """Also where the step came first, when an adapter is swapped on the way, and after a repair."""
    writer = EpisodeWriter(tmp_path, "one", {}, START_NS, 0)
    kinds = {name: message_class(f"diagnostic_msgs/msg/{name}") for name in ("DiagnosticStatus", "KeyValue")}
    told = [kinds["DiagnosticStatus"](level=0, name=name, message="", hardware_id=hardware, values=[])
            for name, hardware in (("policy_node", "tiny"), ("arm_node", "xs"))]
    _say(writer, "/diagnostics", DIAGNOSTICS, START_NS, status=told)
    blank = {"path": "", "parent": "base", "base_policy": "tiny"}
    _say(writer, "/adapter", ADAPTER, START_NS, name="mine", sha256="ab12", scores_json='{"world_model": "wm-3"}',
         **blank)
    deltas = np.arange(28, dtype=np.float32).reshape(4, 7)
    for number in range(12):  # images at 10 Hz; two chunks of which the second step comes before its chunk
        writer.write_image("/image_raw", bar_image(0.1), START_NS + number * 10**8, START_NS + number * 10**8)
    frames_ns = [START_NS + 2 * 10**8, START_NS + 6 * 10**8]
    _chunk(writer, frames_ns[0] + 30, frames_ns[0], 7, deltas)
    for sequence, frame_ns in zip((7, 8), frames_ns, strict=True):
        for index in range(2):
            at_ns = frame_ns + 5 * 10**7 + index * 2 * 10**8
            adapter = "mine" if sequence == 7 else "newer"
            message = decoder(STEP)(step_cdr(at_ns, frame_ns, sequence, index))
            message.adapter = adapter
            writer.write("/step", STEP, serialize(STEP, message), at_ns)
    _chunk(writer, frames_ns[1] + 30, frames_ns[1], 8, deltas + 100)
    _say(writer, "/adapter", ADAPTER, START_NS + 10**9, name="newer", sha256="cd34", scores_json="not JSON", **blank)
    writer.flush(START_NS + 15 * 10**8)
    shutil.copytree(writer.folder, tmp_path / "cut.partial")
    folder = writer.close("done", START_NS + 2 * 10**9, "success", "alice", 0.5)
    table = read_steps(folder / "steps.parquet")
    assert table.frame.tolist() == [2, 4, 6, 8]
    np.testing.assert_array_equal(table.policy_output, [deltas[0], deltas[1], deltas[0] + 100, deltas[1] + 100])
    seen_ns = np.repeat(frames_ns, 2)
    for name, after_ns in (("inference_start_ns", 10), ("inference_end_ns", 20), ("chunk_stamps_ns", 30)):
        assert (getattr(table, name) - seen_ns == after_ns).all(), name
    assert table.policy == ("tiny",) * 4 and table.adapter_sha256 == ("ab12", "ab12", "cd34", "cd34")
    assert table.world_model == ("wm-3", "wm-3", "", "")
    plain = pq.read_table(folder / "steps.parquet").to_pylist()[0]
    assert {n: plain[n] for n in ("outcome", "partial_score", "marked_by", "ended_by")} == {
        "outcome": "success", "partial_score": 0.5, "marked_by": "alice", "ended_by": "done"}
    repaired = read_steps(repair(tmp_path / "cut.partial", START_NS)[0] / "steps.parquet")
    for name in (f.name for f in fields(table)):
        np.testing.assert_array_equal(getattr(repaired, name), getattr(table, name), err_msg=name)


def test_a_table_without_the_later_columns_is_read(tmp_path: Path) -> None:
    folder, truth = record(tmp_path)
    table = pq.read_table(folder / "steps.parquet")
    pq.write_table(table.drop_columns(["policy", "policy_output", "frame", "outcome"]), folder / "steps.parquet")
    steps = read_episode(folder).steps
    assert set(steps.policy) == {""} and np.isnan(steps.policy_output).all() and (steps.frame == -1).all()
    assert len(steps) == len(truth.actions) and check(folder) == []


def test_steps_are_sorted_and_their_number_is_not_held_in_memory(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "long", {}, START_NS, 0)
    writer.write_image("/image_raw", bar_image(0.1), START_NS, START_NS)
    for number in range(1000):
        late = number ^ 1  # neighbours change places
        writer.write("/step", STEP, step_cdr(START_NS + (late + 1) * 10**6, START_NS, 0, late), START_NS + number)
    assert (writer.folder / "steps.parquet.rows").stat().st_size > 10_000
    folder = writer.close("done", START_NS + 10**9)
    assert read_steps(folder / "steps.parquet").chunk_index.tolist() == list(range(1000))
    assert sorted(p.name for p in folder.iterdir()) == ["episode.json", "episode.mcap", "metadata.yaml", "outcome.json",
                                                        "steps.parquet"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "episodes"
    folder, truth = record(root)
    EpisodeWriter(root, "cut", {"instruction": "wave"}, START_NS, 0)

    def run(*words: str | Path) -> tuple[int, str]:
        status = cli.main(["episodes", *map(str, words)])
        out = capsys.readouterr()
        return status, out.out + out.err

    status, text = run("list", root)
    assert status == 0 and "not finished" in text and f"{len(truth.actions)} steps" in text
    assert run("check", folder) == (0, "one: good\n")
    assert run("check", root)[0] == 1
    assert run("mark", folder, "success", "--by", "alice", "--score", "0.5")[0] == 0
    assert read_outcome(folder).partial_score == 0.5
    status, text = run("mark", root, "success", "--by", "alice")
    assert status == 2 and text.startswith("error: ")
    status, text = run("show", folder, tmp_path / "strip.png", "--frames", "3")
    assert status == 0 and (tmp_path / "strip.png").read_bytes()[:4] == b"\x89PNG"
    assert run("export", root, tmp_path / "out", "--format", "worldgym", "--outcome", "success")[0] == 0
    assert (tmp_path / "out" / "000000000.mp4").is_file()
    assert run("export", root, tmp_path / "out", "--format", "worldgym", "--outcome", "failure")[0] == 2
    assert run("list", tmp_path / "nowhere")[0] == 2


def test_a_listing_and_a_check_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, "one", outcome="success")
    assert cli.main(["episodes", "list", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["path"] == str(tmp_path / "one") and row["outcome"]["outcome"] == "success" and row["steps"] > 0
    assert cli.main(["episodes", "check", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"one": []}
