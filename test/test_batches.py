"""Recordings with something wrong: `check` decodes and names it, batches go on without it and may be repeated."""
from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from episode_maker import START_NS, bar_image, record, step_cdr
from PIL import Image

from world_gymnast_ros.cli import main
from world_gymnast_ros.episodes import EpisodeWriter, check, read_episode, read_steps, repair
from world_gymnast_ros.episodes.schemas import COMPRESSED_IMAGE, STEP, header_of, message_class, serialize
from world_gymnast_ros.errors import BadFrame, EpisodeError, WorldGymnastError
from world_gymnast_ros.files import read_npz
from world_gymnast_ros.video import read_video, video_frames, write_mp4

DAMAGED = (Path(__file__).parent / "data" / "png_syntax_error.bin").read_bytes()


def jpeg(x_m: float = 0.2) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(bar_image(x_m)).save(buffer, "JPEG")
    return buffer.getvalue()


def deep_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((48, 160), 5000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def record_images(root: Path, name: str, payloads: list[bytes]) -> Path:
    """Record one image per 0.2 s and an action at each but the last, as `image_compressed: true` records them."""
    writer = EpisodeWriter(root, name, {"instruction": "wave"}, START_NS, 0)
    for i, data in enumerate(payloads):
        now_ns = START_NS + i * 200_000_000
        message = message_class(COMPRESSED_IMAGE)(header=header_of(now_ns, "cam"), format="jpeg",
                                                  data=np.frombuffer(data, np.uint8))
        writer.write("/image_raw/compressed", COMPRESSED_IMAGE, serialize(COMPRESSED_IMAGE, message), now_ns)
        if i + 1 < len(payloads):
            writer.write("/step", STEP, step_cdr(now_ns + 1000, now_ns, i // 4, i % 4), now_ns + 1000)
    return writer.close("done", now_ns + 200_000_000, "success", "test")


@pytest.mark.parametrize(("payload", "says"), [
    (jpeg()[:200], "cannot be decoded"), (b"\x00\x00\x00\x01\x67h264", "cannot be decoded"), (b"", "cannot be decoded"),
    (deep_png(), "more than 8 bits"), (DAMAGED, "SyntaxError"),
], ids=["cut", "h264", "empty", "deep", "broken_png"])
def test_check_decodes(tmp_path: Path, payload: bytes, says: str) -> None:
    good, bad = [jpeg()] * 6, [jpeg()] * 6
    bad[2] = bad[4] = payload
    assert check(record_images(tmp_path, "good", good)) == []
    (problem,) = check(record_images(tmp_path, "bad", bad))
    assert problem.startswith("2 of 6 images cannot be used, number 3 at 0.40 s: image of format 'jpeg'"), problem
    assert says in problem
    with pytest.raises(EpisodeError, match=r"bad: the image 0\.40 s after the first cannot be used"):
        read_episode(tmp_path / "bad")


def test_check_tells_of_lost_images_and_another_resolution(tmp_path: Path) -> None:
    folder = record_images(tmp_path, "sizes", [jpeg()] * 4 + [encoded_small()] * 4)
    assert check(folder) == ["the images have 2 sizes (4 of 160x48, 4 of 16x16): the camera's resolution was changed"]
    writer = EpisodeWriter(tmp_path, "lost", {}, START_NS, 0)
    for i in (i for i in range(60) if i % 6 not in (3, 4)):
        writer.write_image("/image_raw", bar_image(0.2), START_NS + i * 50_000_000, START_NS + i * 50_000_000)
    writer.write("/step", STEP, step_cdr(START_NS + 1000, START_NS), START_NS + 1000)
    (problem,) = check(writer.close("done", START_NS + 4 * 10**9))
    assert problem.startswith("about 20 images were lost beside 40 recorded (limit 25%)")


def encoded_small() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture()
def set_with_a_broken_one(tmp_path: Path) -> Path:
    root = tmp_path / "episodes"
    for name in ("a", "c"):
        record(root, name, chunks=2, outcome="success")
    record_images(root, "b", [jpeg(), DAMAGED, *[jpeg()] * 4])
    writer = EpisodeWriter(root, "d", {"instruction": "wave"}, START_NS, 0)  # an arm without a camera
    writer.write("/step", STEP, step_cdr(START_NS, START_NS), START_NS)
    writer.close("done", START_NS + 10**9, "failure", "test")
    return root


@pytest.mark.parametrize("kind", ["lerobot", "worldgym", "irasim", "bridge"])
def test_an_export_goes_on_without_the_broken_and_names_them(set_with_a_broken_one: Path, kind: str, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["episodes", "export", str(set_with_a_broken_one), str(tmp_path / "out"), "--format", kind]) == 1
    told = capsys.readouterr()
    assert told.out == f"2 of 4 episodes to {tmp_path / 'out'} ({kind})\n"
    lines = told.err.splitlines()
    assert lines[0].startswith("b: left out: b: the image 0.20 s after") and "SyntaxError" in lines[0]
    assert lines[1].startswith("d: left out: ") and "holds no images" in lines[1]
    assert lines[2].startswith("left out 2: b, d; see `world-gymnast episodes check")


def test_a_repeated_export_makes_no_duplicates(set_with_a_broken_one: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    """Of clips, which are numbered; also after a stop between the two files of one."""
    out = tmp_path / "out"

    def export(code: int) -> dict[str, tuple[str, float]]:
        assert main(["episodes", "export", str(set_with_a_broken_one), str(out), "--format", "worldgym"]) == code
        return {p.name: (str(read_npz(p.with_suffix(".npz"), ("recording",), (), "")["recording"]), p.stat().st_mtime)
                for p in sorted(out.glob("*.mp4"))}

    first = export(1)
    assert [name for name, _ in first.values()] == ["a", "c"]
    shutil.rmtree(set_with_a_broken_one / "b")
    shutil.rmtree(set_with_a_broken_one / "d")
    assert export(0) == first
    (out / "000000001.mp4").unlink()
    again = export(0)
    assert [name for name, _ in again.values()] == ["a", "c"] and again["000000000.mp4"] == first["000000000.mp4"]
    record(set_with_a_broken_one, "e", chunks=1, outcome="success")
    assert [name for name, _ in export(0).values()] == ["a", "c", "e"]
    assert sorted(p.suffix for p in out.iterdir()) == [".mp4"] * 3 + [".npz"] * 3


def test_cameras_are_chosen_by_an_option_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = EpisodeWriter(tmp_path / "episodes", "two", {"instruction": "wave"}, START_NS, 0)
    for i in range(4):
        now_ns = START_NS + i * 200_000_000
        for topic in ("/image_raw", "/wrist"):
            writer.write_image(topic, bar_image(0.2), now_ns, now_ns)
        writer.write("/step", STEP, step_cdr(now_ns + 1000, now_ns, 0, i), now_ns + 1000)
    folder = writer.close("done", now_ns + 10**9, "success", "test")
    words = ["episodes", "show", str(folder), str(tmp_path / "strip.png")]
    assert main(words) == 2
    assert "choose one with --camera: /image_raw/compressed, /wrist/compressed" in capsys.readouterr().err
    assert main([*words, "--camera", "wrist"]) == 0


# --- foreign exceptions stay at the border ----------------------------------------------------------------------------


def damaged(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield versions with bytes changed, cut or moved."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        out = bytearray(data)
        for place in rng.integers(0, len(out), int(rng.integers(1, 12))):
            out[place] = int(rng.integers(256))
        if rng.random() < 0.3:
            del out[int(rng.integers(len(out))):]
        yield bytes(out)


def test_no_damage_of_a_recording_escapes_as_another_error(tmp_path: Path) -> None:
    """Seeded fuzz of mcap and parquet: check names it, readers raise ours, repair saves or refuses."""
    folder, _ = record(tmp_path, "one", chunks=1)
    whole = {name: (folder / name).read_bytes() for name in ("episode.mcap", "steps.parquet")}
    faulty = 0
    for name, data in whole.items():
        for n, bad in enumerate(damaged(data, 60, 11)):
            (folder / name).write_bytes(bad)
            faulty += bool(check(folder))
            for read in (lambda: read_episode(folder), lambda: read_steps(folder / "steps.parquet")):
                with contextlib.suppress(EpisodeError, BadFrame):
                    read()
            if n % 10 == 0 and name == "episode.mcap":
                copy = shutil.copytree(folder, tmp_path / "copy")
                with contextlib.suppress(EpisodeError):
                    repair(copy, START_NS)
                shutil.rmtree(copy)
        (folder / name).write_bytes(data)
    assert check(folder) == [] and faulty > 80


def test_no_damage_of_a_video_or_an_archive_escapes_as_another_error(tmp_path: Path) -> None:
    mp4, npz = tmp_path / "a.mp4", tmp_path / "a.npz"
    write_mp4(mp4, [np.zeros((4, 16, 16, 3), np.uint8)], (16, 16), 5)
    np.savez(npz, arr_0=np.zeros((5, 10), np.float32))
    refused = 0
    for path in (mp4, npz):
        for bad in damaged(path.read_bytes(), 60, 13):
            path.write_bytes(bad)
            try:
                read_video(path) if path is mp4 else read_npz(path, ("arr_0",), (), "copy it again")
            except WorldGymnastError:
                refused += 1
    assert refused > 30


def test_a_telephones_clip_stands_upright(tmp_path: Path) -> None:
    """The file's matrix says how it is turned; written here into the track's header."""
    path = tmp_path / "a.mp4"
    frames = np.zeros((3, 32, 64, 3), np.uint8)
    frames[:, :, :32] = 255  # left half white
    write_mp4(path, [frames], (32, 64), 5)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    one = 0x10000
    turned = (0, one, 0, -one, 0, 0, 0, 0, 0x40000000)  # 90 degrees clockwise
    data[at:at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in turned)
    path.write_bytes(data)
    shown = read_video(path)
    assert shown.shape == (3, 64, 32, 3)
    assert shown[0, :32].mean() > 250 and shown[0, 32:].mean() < 5, "left became top"
    assert [round(t, 2) for t, _ in video_frames(path)] == [0.0, 0.2, 0.4]
