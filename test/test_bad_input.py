"""What a user gets wrong: one line with value, limit and remedy, exit status 2, nothing half-written, none left."""
from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import PATIENCE_S, START_S
from PIL import Image
from test_adapt_node import save_toys

from world_gymnast_ros.cli import main, ros_child
from world_gymnast_ros.errors import BadCheckpoint
from world_gymnast_ros.loading.load import load_policy
from world_gymnast_ros.models.checkpoint import save_tensors
from world_gymnast_ros.nodes import graph
from world_gymnast_ros.store import Store

torch.set_num_threads(1)


@pytest.fixture()
def place(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in (("scene.png", (48, 64, 3)), ("tiny.png", (2, 2, 3))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "broken.yaml").write_text("objects: [\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


ADAPT = ["adapt", "reach the red block", "--frame", "@/scene.png"]


@pytest.mark.parametrize(("words", "says"), [
    ([*ADAPT[:3], "@/tiny.png"], ["2x2 pixels", "at least 32"]),
    ([*ADAPT, "--state", "9", "0", "0", "0", "0", "0", "1"], ["x is 9", "-0.8..0.8"]),
    ([*ADAPT, "--state", "0", "0", "0", "0", "0", "0", "7"], ["gripper is 7", "0..1"]),
    ([*ADAPT, "--state", "nan", "0", "0", "0", "0", "0", "1"], ["x is nan"]),
    ([*ADAPT, "--scene", "train_oak"], ["leave out --frame"]),
    ([*ADAPT, "--budget-s", "nan"], ["budget_s is nan", "finite"]),
    ([*ADAPT, "--set", "copies=["], ["copies=["]),
    ([*ADAPT, "--seed", "-1"], ["--seed is '-1'", "from 0"]),
    (["adapt", " ", "--scene", "train_oak"], ["instruction is empty"]),
    (["adapt", "--scene", "@/broken.yaml"], ["broken.yaml cannot be read as YAML"]),
    (["demo", "--episodes", "0"], ["--episodes is '0'", "from 1 to 1000"]),
    (["demo", "--budget-s", "nan"], ["--budget-s is 'nan'"]),
    (["demo", "--updates", "-1"], ["--updates is '-1'"]),
    (["demo", "--domain-id", "999"], ["--domain-id is '999'", "from 0 to 101"]),
    (["twin", "show", "train_oak", "--out", "@/file/a.png"], ["lies in, a file"]),
    (["twin", "show", "train_oak", "--out", "@/a.xyz"], ["ends in .png"]),
    (["twin", "play", "demo", "--family", "reach", "--seed", "1", "--count", "0", "--out", "@/a.npz"],
     ["--count is '0'"]),
    (["twin", "measure", "train_oak", "--seed", "-5"], ["--seed is '-5'"]),
    (["bench", "replay", "--episodes", "@/empty"], ["no episode", "empty"]),
    (["bench", "replay", "--episodes", "@/empty", "--copies", "0"], ["--copies is '0'"]),
    (["bench", "adaptation", "--out", "@/b", "--set", "copis=3"], ["unknown key 'copis'"]),
    (["bench", "adaptation", "--out", "@/b", "--scenes", "train_oak", "nowhere"], ["'nowhere' is unknown"]),
    (["bench", "adaptation", "--out", "@/file", "--scenes", "train_oak"], ["is, or lies in, a file"]),
    (["train", "world-model", "--play", "@/empty", "--out", "@/wm", "--threads", "0"], ["--threads is '0'"]),
    (["train", "world-model", "--play", "@/empty", "--out", "@/wm", "--device", "gpu9"], ["device 'gpu9'", "give cpu"]),
    (["episodes", "show", "@/empty", "@/a.png"], ["empty"]),
])
def test_refusals_are_one_line_and_write_nothing(words: list[str], says: list[str], place: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert main([w.replace("@", str(place)) for w in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and all(s in error[0] for s in says), error
    assert sorted(place.rglob("*")) == before


def test_adapter_of_another_policy_is_refused_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys = save_toys(place / "toys")
    policy = load_policy(toys.policy)

    def weights(folder: Path) -> None:
        save_tensors({"w": torch.zeros(2)}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text("{}")

    foreign = Store(place / "adapters").put("foreign", weights, parent="base", base_policy="another", scores={},
                                            created_ns=0)
    words = ["adapt", "reach the red block", "--frame", str(place / "scene.png"), "--out", str(place / "runs"),
             "--parent", str(foreign.path), "--set", f"policy={toys.policy}", f"world_model={toys.world_model}",
             f"judges={toys.judge}", "min_release_auc=0", "threads=1"]
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()  # after the memory plan
    assert "'another'" in error[-1] and policy.name in error[-1] and "Traceback" not in "".join(error), error
    assert not (place / "runs").exists()


@contextmanager
def files_no_larger_than(limit_bytes: int) -> Iterator[None]:
    """Let writes beyond a size fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_while_an_adapter_is_stored(tmp_path: Path) -> None:
    def weights(folder: Path) -> None:
        save_tensors({"w": torch.zeros(20_000)}, folder / "adapter_model.safetensors")

    with files_no_larger_than(30_000), pytest.raises(BadCheckpoint, match=r"nothing was kept.*free space"):
        Store(tmp_path).put("reach", weights, parent="base", base_policy="p", scores={}, created_ns=0)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_during_a_session(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys = save_toys(place / "toys")
    words = ["adapt", "reach the red block", "--frame", str(place / "scene.png"), "--out", str(place / "runs"),
             "--updates", "1", "--set", f"policy={toys.policy}", f"world_model={toys.world_model}",
             f"judges={toys.judge}", "min_release_auc=0", "threads=1", "copies=4", "select_groups=1",
             "promotion_groups=4"]
    with files_no_larger_than(500):
        assert main(words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(place / "runs") in last and "no adapter was stored" in last and "--out" in last, last
    assert not (place / "runs/adapters").exists()


@pytest.mark.parametrize("words", [
    ["twin", "show", "train_oak", "--out", "@/a.png"],
    ["twin", "play", "demo", "--family", "reach", "--count", "1", "--seed", "3", "--out", "@/a.npz"],
])
def test_full_disk_leaves_no_half_file(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files_no_larger_than(4_000):
        assert main([w.replace("@", str(tmp_path)) for w in words]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(tmp_path) in last and "free space" in last, last
    assert list(tmp_path.iterdir()) == []


def test_recorder_refuses_a_file_for_a_folder(place: Path) -> None:
    spec = graph.RECORDER.with_overrides(directory=str(place / "file"))
    done = subprocess.run(spec.command(), capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 2 and "is a file; name a folder" in done.stderr and "Traceback" not in done.stderr


def test_graph_that_cannot_start_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "arm_node.log").mkdir()  # so that the second node cannot have its log
    env = {**graph.ros_environment(), "MARK": tmp_path.name}
    with pytest.raises(IsADirectoryError):
        graph.start([graph.RECORDER.with_overrides(directory=str(tmp_path)), graph.ARM], env, tmp_path)
    assert (tmp_path / "recorder_node.log").is_file(), "the first one was started"
    assert [p for p in Path("/proc").glob("[0-9]*") if _has_mark(p, tmp_path.name)] == []


def _has_mark(process: Path, mark: str) -> bool:
    try:
        return f"MARK={mark}".encode() in (process / "environ").read_bytes()
    except OSError:
        return False


def test_ctrl_c_while_the_demo_still_imports() -> None:
    python, *words_after = ros_child.command("demo", "--help")
    process = subprocess.Popen([python, "-X", "importtime", *words_after], stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
                               pipesize=4096)  # it waits for its reader, so the signal finds it importing
    assert process.stderr is not None
    for line in process.stderr:
        if "world_gymnast_ros.errors" in line:
            break
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    words = process.stderr.read()
    assert process.wait(PATIENCE_S) == 130, words[-500:]
    assert "Traceback" not in words and time.monotonic() - began < PATIENCE_S
