"""Every example of every help text, as it stands there: none may be one that cannot succeed.

What is cheap runs for real, on the shipped models, with budgets made small. What would take minutes (`LONG`) goes as
far as the call that takes them: everything before is checked, the work itself is left out. What needs a robot or
another graph is refused for want of it and for no other reason. The examples are collected from the texts, so a new one
is run without being listed here.
"""
from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import signal
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rclpy
import torch
from episode_maker import record
from PIL import Image

from world_gymnast_ros import cli
from world_gymnast_ros.cli import main
from world_gymnast_ros.episodes.files import MCAP_NAME
from world_gymnast_ros.loading.load import load_policy
from world_gymnast_ros.paths import SHARE_VARIABLE, share_dir
from world_gymnast_ros.store import Store
from world_gymnast_ros.twin.observer import capture
from world_gymnast_ros.twin.play import make_file
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.twin.single_frames import make_single_frames
from world_gymnast_ros.updates.policy_gradient import LoraConfig, LoraLearner

pytestmark = pytest.mark.ros
torch.set_num_threads(1)

SMALL_SESSION = ["copies=2", "groups_per_update=1", "evaluate_every=1", "select_groups=1", "promotion_groups=4",
                 "held_out_copies=1", "threads=1"]
SMALLER: dict[str, list[str]] = {
    "twin play": ["--count", "2"], "twin frames": ["--count", "3"], "twin measure": ["--episodes", "1"],
    "bench replay": ["--most", "2", "--copies", "1", "--threads", "1"], "train imagined": ["--episodes", "1"],
    "train moving-background": ["--steps", "1"],
    "evaluate": ["--pairs", "1"], "serve": ["--port", "0"],
    "bench imagined": ["--rollouts", "2", "--steps", "4", "--threads", "1"],
    "adapt": ["--updates", "1", "--budget-s", "600"]}
"""Words that make a command small; they come behind what the example says."""
LONG: dict[str, str] = {
    "demo": "nodes.demo.run_demo", "bench adaptation": "benchmark.adaptation.bench",
    "bench sessions": "benchmark.sessions.bench", "adapt --propose": "loading.load.load_image_text",
    "adapt --editor": "updates.variations.load_editor",
    "bench five": "benchmark.five_demonstrations.bench", "bench fog": "updates.adaptation.load_parts",
    "train regression": "updates.fine_tuning.fine_tune",
    "iterate": "updates.loop.run_method", "train policy": "training.policy.pretrain_trunk",
    "train reflector": "training.reflector.fit", "train locator": "tabletop.train_locator.train_locator",
    "train world-model": "training.camera.train_camera_fit", "judge learn": "updates.judges.learn_settings",
    "judge veto": "updates.calibration.veto_offset", "judge calibrate": "updates.calibration.calibrate",
    "train world-model --clips": "training.world_model.Trainer.run",
    "train reflector-head": "models.judges.frozen_trunk.FrozenTrunk.from_pretrained",
    "train world-model --episodes": "updates.world_model_run.update",
    "train world-model --resume": "training.world_model.Trainer.resume",
    "fog pusht data": "first_order.play.record", "fog ego data": "first_order.play.record",
    "fog pusht world-model": "first_order.play.read",
    "fog pusht diagnose": "first_order.stages.load_global", "fog pusht tune": "first_order.stages.load_global",
    "fog pusht train": "first_order.stages.load_global", "fog pusht test": "first_order.stages.load_global",
    "fog pusht report": "first_order.comparison.compare"}
"""What takes minutes, hundreds of episodes or a download, and the call of the package that is not made."""
BESIDE = ("robot", "snapshot")
"""Verbs all of whose examples need a running graph, or a camera."""
MAY_END_WITH_1 = ("adapt", "evaluate", "episodes check", "doctor")
"""With so little not shown to be better; or what was cut off is there to be named."""


class Reached(Exception):
    """The call that takes minutes was about to be made."""


def examples() -> list[str]:
    found = []
    for path in sorted(Path(cli.__path__[0]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        lines = [line.strip() for text in texts if "examples:\n" in text for line in text.splitlines()]
        found += [re.split(r"\s{2,}", line)[0] for line in lines if line.startswith(("world-gymnast ", "curl "))]
    return found


def named(example: str, names: Iterable[str]) -> str:
    """Return the longest of `names` (a verb, perhaps with an option) that an example is of, or ''."""
    words = example.split()[1:]
    of = [n for n in names if all(word in words[:len(n.split())] or (word.startswith("--") and word in words)
                                  for word in n.split())]
    return max(of, key=len, default="")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples find where they run: images, scenes, play data, recordings and an adapter."""
    root = tmp_path_factory.mktemp("work")
    twin = Twin(load_scene("novel_blue_cloth"))
    try:
        for seed, name in enumerate(("a.png", "b.png")):  # with the arm where the examples say
            twin.reset(seed, "reach the red block", np.array([0.28, 0.02, 0.1, 0.0, 0.0, 0.0, 1.0]))
            Image.fromarray(capture(twin)[0].rgb).save(root / name)
    finally:
        twin.close()
    (root / "tasks.yaml").write_text("".join(
        f"- {{instruction: {text}, frames: [{file}], state: [0.28, 0.02, 0.1, 0, 0, 0, 1]}}\n"
        for text, file in (("reach the red block", "a.png"), ("push the red block left", "b.png"))))
    for name in ("my_scene.yaml", "my_lab.yaml", "a.yaml"):
        shutil.copy(share_dir() / "config" / "scenes" / "novel_evening.yaml", root / name)
    for folder, kind, families in (("demo", "demo", ("reach",)), ("wide_play", "wide_play", ("reach",)),
                                   ("train_play", "train_play", ("reach",)), ("imagined", "wide_play", ("push",)),
                                   ("held_out", "wide_play", ("reach",)), ("replay", "wide_play", ("reach",)),
                                   ("old_scenes", "wide_play", ("reach",)), ("contact", "contact_play", ("push",))):
        for family in families:
            make_file(root / "data" / folder / f"{family}.npz", family, kind, 10 if folder == "imagined" else 6, 1)
    for number in range(2):
        make_single_frames(root / "data" / "frames" / f"{number}.npz", 4, number)
    for folder in (root / "runs" / "demo-1" / "episodes", root / "runs" / "episodes"):
        for i in range(8):
            record(folder, f"e{i}", seed=i, outcome="success" if i % 2 else "failure",
                   instruction="push the red block left")
    (root / "runs" / "demo-1" / "episodes").joinpath("e0").rename(root / "runs" / "demo-1" / "episodes" / "x0")
    shutil.copytree(root / "runs" / "episodes" / "e1", root / "runs" / "episodes" / "ID")
    cut, _ = record(root / "runs" / "episodes", "CUT", chunks=12)
    whole = (cut / MCAP_NAME).read_bytes()
    for file in cut.iterdir():  # as a crash leaves it: a part of the recording and nothing else
        file.unlink()
    (cut / MCAP_NAME).write_bytes(whole[:len(whole) * 2 // 3])
    cut.rename(cut.with_name("CUT.partial"))
    policy = load_policy()
    learner = LoraLearner(policy, LoraConfig(4, 8.0, 1e-3, 1, 8, 8, 0.2, 0.28, 0.0), None, None)
    learner.begin()
    stored = Store(root / "adapters").put("some", learner.save, parent="base", base_policy=policy.name, scores={},
                                          created_ns=1)
    learner.end()
    for folder in ("runs", "runs/demo-1", "runs/adapt"):
        shutil.copytree(root / "adapters", root / folder / "adapters")
    (root / "NAME").write_text(stored.name)
    tiny = share_dir() / "checkpoints" / "tiny"
    for target, source in (("judges/mine", "reflector"), ("runs/policy", "policy"), ("runs/reflector", "reflector"),
                           ("runs/wm", "world_model")):
        shutil.copytree(tiny / source, root / target)
    assert main(["episodes", "export", str(root / "runs/demo-1/episodes"), str(root / "bridge_clips"), "--format",
                 "worldgym"]) == 0
    for number, clip in enumerate(sorted((root / "bridge_clips").glob("*.mp4"))):
        for suffix in (".mp4", ".npz"):
            clip.with_suffix(suffix).rename(root / "bridge_clips" / f"00000000{9 - number}{suffix}")
    return root


@pytest.fixture()
def here(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workplace to work in; what is written beside the shipped models goes into a copy of them."""
    root = tmp_path / "work"
    shutil.copytree(workplace, root)
    for part in ("config", "checkpoints"):
        shutil.copytree(share_dir() / part, tmp_path / "share" / part)
    monkeypatch.setenv(SHARE_VARIABLE, str(tmp_path / "share"))
    monkeypatch.chdir(root)
    return root


def words_of(example: str, root: Path) -> list[str]:
    """Return an example's words as a shell would hand them over, with the placeholders NAME and ID filled in."""
    out: list[str] = []
    for word in shlex.split(example.partition(" > ")[0].replace("/NAME", f"/{(root / 'NAME').read_text()}"))[1:]:
        out += sorted(map(str, Path().glob(word))) if "*" in word else [word]
    return out


def package_call(monkeypatch: pytest.MonkeyPatch, name: str, instead: object) -> None:
    """Put `instead` in the place of a function or method of the package."""
    parts = name.split(".")
    owner: object = None
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(["world_gymnast_ros", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:-1]:
            owner = getattr(owner, attribute)
        break
    assert hasattr(owner, parts[-1]), name
    monkeypatch.setattr(owner, parts[-1], instead)


def test_the_examples_are_found() -> None:
    found = examples()
    assert len(found) > 45 and all(" -" not in e.split("world-gymnast")[0] for e in found if e.startswith("world"))
    assert {e.split()[1] for e in found if e.startswith("world")} == set(cli.VERBS)
    assert not [e for e in found if "..." in e or "<" in e], "nobody can type that"


CHEAP = [e for e in examples() if e.startswith("world-gymnast ") and not named(e, LONG) and "--robot" not in e
         and not named(e, ("episodes keys", "episodes review", "serve", *BESIDE))]


@pytest.mark.parametrize("example", CHEAP)
def test_it_does_what_it_says(example: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(example, here)
    if words[0] == "adapt" and "--help" not in words:
        words += [*([] if "--set" in words else ["--set"]), *SMALL_SESSION]
    words += SMALLER.get(named(example, SMALLER), [])
    if "--help" in words:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        return
    status = main(words)
    said = capsys.readouterr()
    assert status in ((0, 1) if named(example, MAY_END_WITH_1) else (0,)), said.err
    assert "error:" not in said.err
    if words[0] == "adapt":
        assert said.out.startswith("let the arm move: "), said.out
        assert "trust: yes" in said.out, "of an image of the twin"


@pytest.mark.parametrize("example", [e for e in examples() if named(e, LONG) and "--robot" not in e])
def test_it_gets_as_far_as_what_takes_minutes(example: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_args: object, **_more: object) -> None:
        raise Reached

    package_call(monkeypatch, LONG[named(example, LONG)], reached)
    words = words_of(example, here)
    words += ["--propose-all"] if "--propose" in words else []  # there is no terminal to tick at
    if words[0] != "demo":
        with pytest.raises(Reached):
            main(words)
        return
    from world_gymnast_ros.cli import demo as verb
    from world_gymnast_ros.nodes import demo

    commands: list[list[str]] = []
    monkeypatch.setattr(verb.subprocess, "Popen", lambda command: commands.append(command) or Ended())
    assert main(words) == 0
    with pytest.raises(Reached):
        demo.main(commands[0][3:])  # what the child would be started with


class Ended:
    """A process that is over."""

    def wait(self) -> int:
        return 0


@pytest.mark.parametrize("example", [e for e in examples() if named(e, ("serve",))])
def test_it_serves(example: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from world_gymnast_ros.serving import http_server

    asked = [e for e in examples() if e.startswith("curl ")]
    assert asked == ["curl http://127.0.0.1:8000/health"]
    answers = []

    def answer_one(self: http_server.ModelServer) -> None:
        with ThreadPoolExecutor(1) as pool:
            health = pool.submit(urllib.request.urlopen, f"{self.url}/{asked[0].rpartition('/')[2]}", None, 20.0)
            self.handle_request()
            answers.append(health.result().read())

    monkeypatch.setattr(http_server.ModelServer, "serve_forever", answer_one)
    assert main([*words_of(example, here), *SMALLER["serve"]]) == 0
    assert b"base" in answers[0] or b"some" in answers[0]


def test_the_page_of_review_is_served(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
                                      ) -> None:
    example = next(e for e in examples() if named(e, ("episodes review",)))
    monkeypatch.setattr("world_gymnast_ros.cli.episodes.ReviewServer.serve_forever", lambda self: None)
    assert main(words_of(example, here)) == 0 and "open http://127.0.0.1" in capsys.readouterr().out


class Became(Exception):
    """The process would have gone on as another."""


@pytest.fixture()
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []

    def execv(_program: str, command: list[str]) -> None:
        commands.append(command)
        raise Became
    monkeypatch.setattr("os.execv", execv)
    return commands


@pytest.mark.parametrize("example", [e for e in examples() if "--robot" in e])
def test_it_is_refused_for_want_of_a_robot_and_of_nothing_else(
        example: str, here: Path, became: list[list[str]], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    from world_gymnast_ros.nodes import evaluator, iterator

    with pytest.raises(Became):
        main(words_of(example, here))
    beside = iterator if named(example, ("iterate",)) else evaluator
    with signals_kept():
        assert beside.main([*became[0][3:], "--wait-s", "1"]) == 2
    rclpy.try_shutdown()
    assert "arm_status: start the graph (bringup.launch.py)" in capsys.readouterr().err


@pytest.mark.parametrize("example", [e for e in examples() if named(e, BESIDE)])
def test_it_is_refused_for_want_of_a_graph_or_a_camera(example: str, here: Path, became: list[list[str]],
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    from world_gymnast_ros.nodes import robot_words, snapshot

    with pytest.raises(Became):
        main(words_of(example, here))
    words = became[0][3:]
    words[words.index("--wait-s") + 1] = "0.5"
    beside = robot_words if named(example, ("robot",)) else snapshot
    with signals_kept():
        assert beside.main(words) == 2
    rclpy.try_shutdown()
    assert re.search("nobody offers|no image on|camera /dev/video0 cannot be opened", capsys.readouterr().err)


def test_keys_are_read_beside_a_graph(here: Path, became: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    from world_gymnast_ros.nodes import mark_keys

    example = next(e for e in examples() if named(e, ("episodes keys",)))
    with pytest.raises(Became):
        main(words_of(example, here))
    names: list[str] = []
    monkeypatch.setattr(mark_keys, "_work", lambda args: names.append(args.by) or 0)
    with signals_kept():
        assert mark_keys.main(became[0][3:]) == 0 and names == ["alice"]


@contextmanager
def signals_kept() -> Iterator[None]:
    """Put the handlers of signals back that a verb of the graph sets for its own process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
