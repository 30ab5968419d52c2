"""What is left of an episode when the process, the disk or somebody's broom strikes."""
from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from episode_maker import START_NS, bar_image, record, step_cdr
from rosbags.rosbag2 import Reader

from world_gymnast_ros.episodes import (
    EpisodeWriter,
    check,
    mark_outcome,
    read_episode,
    read_outcome,
    read_steps,
    repair,
)
from world_gymnast_ros.episodes.schemas import STEP
from world_gymnast_ros.errors import EpisodeError

NOW_NS = START_NS + 10**12


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def write_steps_until_it_fails(writer: EpisodeWriter, limit: int) -> tuple[int, str]:
    """Write noisy images and steps; return how many pairs were taken and what the error said."""
    rng = np.random.default_rng(0)
    for i in range(limit):
        stamp_ns = START_NS + i * 100_000_000
        try:
            writer.write_image("/image_raw", rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), stamp_ns, stamp_ns)
            writer.write("/step", STEP, step_cdr(stamp_ns + 1, stamp_ns, i), stamp_ns + 1)
        except EpisodeError as error:
            return i, str(error)
    raise AssertionError(f"{limit} writes and no failure")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small memory file system, or skip where that is not permitted."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a test file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_a_repairable_recording(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        earlier, _ = record(disk, "earlier", chunks=1)
        before = contents(earlier)
        writer = EpisodeWriter(disk, "full", {"instruction": "x"}, START_NS, reserve_bytes=0)
        taken, told = write_steps_until_it_fails(writer, 500)
        assert "No space left" in told and "free space" in told and "0 MiB free" in told and taken > 5
        with pytest.raises(EpisodeError, match="No space left"):
            writer.close("fault", NOW_NS)
        with pytest.raises(EpisodeError, match="No space left"):
            repair(disk / "full.partial", NOW_NS)  # nor is there room to repair: nothing may be lost by trying
        assert contents(earlier) == before and check(earlier) == []
        moved = shutil.copytree(disk / "full.partial", tmp_path / "full.partial")
    final, saved = repair(moved, NOW_NS)
    assert check(final) == [] and saved.cut_off
    assert taken - 4 <= saved.steps <= taken, "all but the last flush (0.25 s) must be there"
    assert read_episode(final).ended_by == "fault"


def test_the_reserve_closes_the_episode_whole_before_the_disk_is_full(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=2m") as disk:
        writer = EpisodeWriter(disk, "low", {"instruction": "x"}, START_NS, reserve_bytes=2**20)
        taken, told = write_steps_until_it_fails(writer, 500)
        assert "below the reserve of 1 MiB" in told
        with pytest.raises(EpisodeError, match="reserve"):
            writer.write_image("/image_raw", bar_image(0.1), START_NS, START_NS)
        folder = writer.close("fault", NOW_NS)
        assert check(folder) == [] and len(read_episode(folder).steps) >= taken
        with pytest.raises(EpisodeError, match="reserve"):
            EpisodeWriter(disk, "next", {}, START_NS, reserve_bytes=2**20)
        assert sorted(p.name for p in disk.iterdir()) == ["low"]


def test_a_file_size_limit_is_told(tmp_path: Path) -> None:
    """The same path as a full disk, where no file system can be mounted."""
    earlier, _ = record(tmp_path, "earlier", chunks=1)
    before = contents(earlier)
    writer = EpisodeWriter(tmp_path, "limited", {}, START_NS, reserve_bytes=0)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, old[1]))
    try:
        taken, told = write_steps_until_it_fails(writer, 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "ulimit -f" in told and "repair" in told
    final, saved = repair(tmp_path / "limited.partial", NOW_NS)
    assert check(final) == [] and taken - 4 <= saved.steps <= taken
    assert contents(earlier) == before


def test_a_read_only_place_is_told(tmp_path: Path) -> None:
    if os.getuid() == 0:
        with mounted(tmp_path / "disk", "ro") as disk, pytest.raises(EpisodeError, match="read-only"):
            EpisodeWriter(disk, "one", {}, START_NS, 0)
        return
    place = tmp_path / "locked"
    place.mkdir(mode=0o555)
    with pytest.raises(EpisodeError, match="may not write"):
        EpisodeWriter(place, "one", {}, START_NS, 0)


def test_a_root_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EpisodeError, match="could not start recording"):
        EpisodeWriter(tmp_path / "file", "one", {}, START_NS, 0)


@pytest.mark.parametrize("removed", ["one.partial", "."])
def test_a_removed_folder_is_noticed_within_a_flush(tmp_path: Path, removed: str) -> None:
    root = tmp_path / "root"
    writer = EpisodeWriter(root, "one", {}, START_NS, 0)
    writer.write_image("/image_raw", bar_image(0.1), START_NS, START_NS)
    shutil.rmtree(root / removed)
    taken, told = write_steps_until_it_fails(writer, 10)
    assert taken <= 4 and "removed" in told
    with pytest.raises(EpisodeError, match="removed"):
        writer.close("fault", NOW_NS)


def test_a_folder_removed_just_before_the_end_is_noticed(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "root", "one", {}, START_NS, 0)
    writer.write_image("/image_raw", bar_image(0.1), START_NS, START_NS)
    shutil.rmtree(tmp_path / "root")
    with pytest.raises(EpisodeError, match="removed"):
        writer.close("done", NOW_NS)


def test_a_killed_recorder_loses_less_than_a_second(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from episode_maker import START_NS, bar_image, step_cdr\n"
        "from world_gymnast_ros.episodes import EpisodeWriter\n"
        "w = EpisodeWriter(Path(sys.argv[1]), 'killed', {'instruction': 'x'}, START_NS, 0)\n"
        "for i in range(10**9):\n"
        "    t = START_NS + i * 20_000_000\n"
        "    if i % 5 == 0: w.write_image('/image_raw', bar_image(0.1), t, t)\n"
        "    w.write('/step', 'world_gymnast_ros/msg/Step', step_cdr(t, START_NS, i), t)\n"
        "    print(i, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)],
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(157):
            process.stdout.readline()
        with pytest.raises(EpisodeError, match="being recorded"):
            repair(tmp_path / "killed.partial", NOW_NS)
        os.kill(process.pid, signal.SIGKILL)
        written = [int(line) for line in process.stdout.read().split()]
    last = max([156, *written])
    final, saved = repair(tmp_path / "killed.partial", NOW_NS)
    lost_s = (last + 1 - saved.steps) * 0.020
    assert lost_s <= 0.3, f"{lost_s} s lost"
    assert check(final) == [] and read_outcome(final).outcome == "unknown"
    header = json.loads((final / "episode.json").read_text())
    assert header["ended_by"] == "fault" and header["repaired"]["cut_off"] is True
    assert header["header"] == {"instruction": "x"}


def test_every_truncation_is_repaired_to_a_prefix_or_refused(tmp_path: Path) -> None:
    source, _ = record(tmp_path / "source", chunks=2)
    data = (source / "episode.mcap").read_bytes()
    whole = read_episode(source)
    everywhere, at_the_ends = range(0, len(data), len(data) // 30), range(0, 30, 6)
    cuts = sorted({*everywhere, *at_the_ends, *(len(data) - 15 * i for i in range(5))})
    messages_before, refused_after_first = 0, 0
    for cut in cuts:
        folder = shutil.copytree(source, tmp_path / f"cut{cut}.partial")
        (folder / "episode.mcap").write_bytes(data[:cut])
        try:
            final, saved = repair(folder, NOW_NS)
        except EpisodeError as error:
            assert "no whole message" in str(error)
            assert (folder / "episode.mcap").read_bytes() == data[:cut], "a refusal must change nothing"
            assert not list(folder.glob("*.rebuilt"))
            refused_after_first += messages_before > 0
            continue
        assert saved.messages >= messages_before, f"a longer file gave less at {cut}"
        messages_before = saved.messages
        with Reader(final) as bag:
            assert bag.message_count == saved.messages == len(list(bag.messages()))
        if saved.steps > 0:
            steps = read_episode(final).steps
            np.testing.assert_array_equal(steps.sent, whole.steps.sent[: saved.steps])
        shutil.rmtree(final)
    assert refused_after_first == 0
    assert messages_before == sum(json.loads((source / "episode.json").read_text())["messages"].values())


def small_recording(root: Path) -> tuple[Path, int]:
    """Record four flushes of one tiny image and one step each; return the folder and how many bytes the file has."""
    writer = EpisodeWriter(root, "small", {}, START_NS, 0)
    for number in range(4):
        stamp_ns = START_NS + number * 300_000_000
        writer.write_image("/image_raw", np.full((8, 8, 3), 60 * number, np.uint8), stamp_ns, stamp_ns)
        writer.write("/step", STEP, step_cdr(stamp_ns + 1, stamp_ns, number), stamp_ns + 1)
    folder = writer.close("done", START_NS + 2 * 10**9)
    return folder, (folder / "episode.mcap").stat().st_size


def cut_and_repair(source: Path, cut: int, place: Path, left_behind: bool) -> int:
    """Cut the file to `cut` bytes, examine, repair, examine; return how many messages were saved.

    `left_behind`: the folder looks finished, as after a power cut that the file's last bytes did not outlast.
    """
    folder = place / ("small" if left_behind else "small.partial")
    folder.mkdir()
    for name in contents(source) if left_behind else ("episode.mcap", "episode.json", "outcome.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    data = (source / "episode.mcap").read_bytes()
    (folder / "episode.mcap").write_bytes(data[:cut])
    assert cut == len(data) or check(folder) != [], f"cut at {cut} and taken for whole"
    try:
        final, saved = repair(folder, NOW_NS)
    except EpisodeError as error:
        assert "no whole message" in str(error) and (folder / "episode.mcap").read_bytes() == data[:cut]
        shutil.rmtree(folder)
        return 0
    assert check(final) == [], f"cut at {cut}"
    with Reader(final) as bag:
        assert bag.message_count == saved.messages == len(list(bag.messages()))
    steps = read_steps(final / "steps.parquet")
    assert steps.chunk_sequence.tolist() == list(range(saved.steps)) and saved.steps == len(steps)
    shutil.rmtree(final)
    return saved.messages


@pytest.mark.parametrize("left_behind", [False, True])
@pytest.mark.parametrize("stride", [409, pytest.param(1, marks=pytest.mark.slow)])
def test_truncation_at_every_byte_of_a_small_file(tmp_path: Path, left_behind: bool, stride: int) -> None:
    """Quickly at every 409th byte, slowly (-m slow) at each: what is there grows with the file, and is never half."""
    source, size = small_recording(tmp_path / "source")
    saved = [cut_and_repair(source, cut, tmp_path, left_behind) for cut in (*range(0, size, stride), size)]
    assert saved == sorted(saved) and saved[0] == 0 and saved[-1] == 8


def test_a_corrupt_chunk_costs_only_itself(tmp_path: Path) -> None:
    source, truth = record(tmp_path, chunks=6)
    mark_outcome(source, "success", "alice", None, NOW_NS)
    path = source / "episode.mcap"
    data = bytearray(path.read_bytes())
    data[data.index(b"uint32 chunk_sequence")] ^= 0x01  # one bit in the chunk that names the topics
    path.write_bytes(data)
    assert any("episode.mcap" in problem for problem in check(source))
    final, saved = repair(source, NOW_NS)
    assert final == source and saved.lost_chunks == 1 and not saved.cut_off
    assert 0 < saved.steps < len(truth.actions)
    assert [p for p in check(final) if "never played" not in p] == []
    assert (final / "episode.mcap.damaged").read_bytes() == bytes(data), "the damaged file is kept"
    assert read_outcome(final).outcome == "success"
    assert read_episode(final).ended_by == "done", "it did end; only its file was harmed"


def test_repairing_a_whole_episode_changes_nothing_that_matters(tmp_path: Path) -> None:
    folder, _ = record(tmp_path, outcome="success")
    before = read_episode(folder)
    repair(folder, NOW_NS)
    after = read_episode(folder)
    np.testing.assert_array_equal(before.frames, after.frames)
    np.testing.assert_array_equal(before.steps.sent, after.steps.sent)
    assert (before.ended_by, before.outcome, before.header) == (after.ended_by, after.outcome, after.header)
    assert check(folder) == []
