"""Every script in bench/ runs, at its smallest size, and prints what it promises."""
from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from episode_maker import record
from patience import START_S
from PIL import Image

from world_gymnast_ros import cli

ROOT = Path(__file__).resolve().parents[1]
QUICK: dict[str, tuple[list[str], str]] = {
    "fuzz_guard": (["--steps", "200"], "200"), "fuzz_guard --player": (["--player", "--steps", "100"], "100"),
    "guard": (["--steps", "50"], "p99"), "ik": (["--poses", "50"], "50"),
    "sequential": (["--evaluations", "40", "--pairs", "8"], "without a true difference"),
}
SLOW: dict[str, tuple[list[str], str]] = {
    "episode_end": (["--episodes", "1", "--tasks", "reach the red block"], "oracle"),
    "faults": (["--rounds", "1", "--only", "short_gap"], "rounds passed"),
    "frames_per_second": (["--copies", "1", "--seconds", "0.1"], "frames/s"),
    "paired_rows": (["docs/measured/adaptation.jsonl"] * 2, "|"),
    "imagination": (["--shapes", "tiny", "--copies", "1", "--steps", "1", "--repeats", "1"], "peak memory"),
    "imagination --guidance": (["--shapes", "tiny", "--copies", "1", "--guidance", "3", "--steps", "1", "--repeats",
                                "1"], "| 12,580 |"),
    "imagination --together": (["--shapes", "tiny", "--copies", "1", "--steps", "1", "--repeats", "1", "--together",
                                "5"], "persistent, 10 steps, 5 together"),
    "imagination --no-window": (["--shapes", "tiny", "--copies", "1", "--repeats", "1", "--passes", "--no-window"],
                                "peak memory"),
    "imagination --passes": (["--shapes", "tiny", "--copies", "1", "--repeats", "1", "--passes"], "peak memory"),
    "latency": (["--minutes", "0.05", "--rates", "5", "--loads", "none"], "| 5"),
    "learned_contact": (["--only", "push", "--most", "4"], "| push"),
    "learned_contact --unseen": (["--unseen", "--only", "ball", "--most", "4"], "| ball"),
    "loop_table": (["--rows", "docs/measured/loops.jsonl"], "| loop"),
    "image_check": (["--episodes", "1", "--length", "1"], "| mirrored |"),
    "recorder": (["--minutes", "0.1", "--episode-minutes", "0.1"], "check: good"),
}
"""Bench (and what tells two runs of one apart) -> options, and what its output must hold."""
ELSEWHERE = {"recorder_kill": "test_recorder_kill.py", "session": "test_session_bench.py"}


def prints(name: str, words: list[str], holds: str) -> None:
    bench = ROOT / "bench" / f"{name.split()[0]}.py"
    done = subprocess.run([sys.executable, str(bench), *words], capture_output=True, text=True, cwd=ROOT,
                          timeout=START_S)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert holds in done.stdout, done.stdout


@pytest.mark.parametrize("name", QUICK)
def test_a_bench_runs(name: str) -> None:
    prints(name, *QUICK[name])


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.parametrize("name", SLOW)
def test_a_bench_that_takes_long_runs(name: str) -> None:
    on_the_twin = name.split()[0] in ("episode_end", "latency", "learned_contact", "image_check")
    pytest.importorskip("mujoco" if on_the_twin else "rclpy")
    prints(name, *SLOW[name])


def export_clips(tmp_path: Path) -> None:
    """Write three recordings as clips into the folder clips."""
    for number in range(3):
        record(tmp_path / "episodes", f"e{number}", chunks=4, seed=number)
    assert cli.main(["episodes", "export", str(tmp_path / "episodes"), str(tmp_path / "clips"), "--format",
                     "worldgym"]) == 0


@pytest.mark.slow
def test_the_bench_of_recorded_clips_runs(tmp_path: Path) -> None:
    export_clips(tmp_path)
    prints("worldgym_clips", [str(tmp_path / "clips"), small_autoencoder(tmp_path), str(tmp_path / "out"), *SMALL],
           "psnr_db")


@pytest.mark.slow
def test_the_bench_of_recorded_clips_fine_tunes_and_goes_on_where_it_is_done(tmp_path: Path) -> None:
    export_clips(tmp_path)
    (tmp_path / "bridge.tfrecord").write_bytes(rlds_record(frames=6) * 2)
    words = [str(tmp_path / "clips"), small_autoencoder(tmp_path), str(tmp_path / "out"), *SMALL, "--batch", "2",
             "--tune", "2", "--pretrain", str(tmp_path / "bridge.tfrecord")]
    prints("worldgym_clips", words, "| LoRA: model |")
    prints("worldgym_clips", words, "| all weights: model |")
    found = json.loads((tmp_path / "out" / "measured.json").read_text())
    assert found["pretraining_episodes"] == 2, "a camera that saw nothing is left out"


def rlds_record(frames: int) -> bytes:
    """Return one episode as a TFRecord holds it: one camera saw a grey level that grows, two saw nothing."""
    def field(number: int, data: bytes) -> bytes:
        size, out = len(data), bytearray([number << 3 | 2])
        while size > 127:
            out.append(size & 127 | 128)
            size >>= 7
        return bytes([*out, size]) + data

    def jpeg(level: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (64, 64), (level, level, level)).save(file, "JPEG")
        return file.getvalue()

    columns = {"steps/action": field(2, field(1, bytes(4 * 7 * frames)))}
    for camera in range(3):
        images = b"".join(field(1, jpeg(20 * n if camera == 0 else 0)) for n in range(frames))
        columns[f"steps/observation/image_{camera}"] = field(1, images)
    entries = b"".join(field(1, field(1, name.encode()) + field(2, data)) for name, data in columns.items())
    record = field(1, entries)
    return struct.pack("<Q", len(record)) + bytes(4) + record + bytes(4)


@pytest.mark.slow
def test_the_bench_of_judged_rollouts_runs_and_goes_on_where_it_is_done(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    for seed, name in enumerate(("train", "held"), 1):
        assert cli.main(["twin", "play", "train_play", "--family", "reach", "--count", "4", "--seed", str(seed),
                         "--out", str(tmp_path / name / "reach.npz")]) == 0
    words = [str(tmp_path / "train"), str(tmp_path / "held"), small_autoencoder(tmp_path), str(tmp_path / "out"),
             *SMALL]
    for _ in range(2):
        prints("worldgym_judged", words, "| persistent, 1 step |")
    assert (tmp_path / "out" / "judged.json").is_file()


SMALL = ["--steps", "2", "--batch", "1", "--dim", "32", "--depth", "1", "--window", "4"]


def small_autoencoder(root: Path) -> str:
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16).save_pretrained(root / "vae")
    return str(root / "vae")


def test_no_bench_is_left_out() -> None:
    tried = {name.split()[0] for name in (*QUICK, *SLOW, *ELSEWHERE, "worldgym_clips", "worldgym_judged")}
    assert tried == {path.stem for path in (ROOT / "bench").glob("*.py")}
    assert all((ROOT / "test" / test).is_file() for test in ELSEWHERE.values())
