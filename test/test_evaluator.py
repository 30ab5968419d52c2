"""`world-gymnast evaluate --robot` beside a running graph, with a scripted person at its terminal."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
import torch
from ros_tools import PATIENCE_S, START_S, Client, client, running
from test_policy_node import SLOW, TOY, diagnosis

from world_gymnast_ros.evaluation.paired_trials import order_of
from world_gymnast_ros.models.policies.openvla import OpenVLA, OpenVLAConfig, OpenVLAForActionPrediction
from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.store import Store

pytestmark = pytest.mark.ros
STATUS = convert.ArmStatusMsg


class Person:
    """Reads the terminal of a running evaluation and answers it."""

    present: ClassVar[list[Person]] = []

    def __init__(self, c: Client, adapter: Path, out: Path, trial_s: float, *more: str) -> None:
        self.c, self.text, self.at = c, "", 0
        words = ["evaluate", str(adapter), "reach the red block", "--robot", "--trial-s", str(trial_s),
                 "--pairs", "1", "--out", str(out), *more]
        self.process = subprocess.Popen([sys.executable, "-u", "-m", "world_gymnast_ros.cli", *words], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.present.append(self)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        while character := self.process.stdout.read(1):
            self.text += character

    def hears(self, words: str) -> None:
        try:
            self.c.until(lambda: words in self.text[self.at:], f"'{words}'", START_S, self._alive)
        except AssertionError as error:
            raise AssertionError(f"{error}; the terminal: {self.text!r}") from error
        self.at = self.text.index(words, self.at) + len(words)

    def _alive(self) -> None:
        assert self.process.poll() is None, f"ended with {self.process.returncode}"

    def says(self, words: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def ends(self) -> int:
        self.c.until(lambda: self.process.poll() is not None, f"the end after {self.text!r}")
        return int(self.process.returncode)


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    """End the evaluation of a test that failed: the next test would find its trial under way."""
    yield
    while Person.present:
        process = Person.present.pop().process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def graph_and_adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Path, graph.Graph]]:
    folder = tmp_path_factory.mktemp("evaluator")
    torch.manual_seed(0)
    policy = OpenVLA(OpenVLAForActionPrediction(OpenVLAConfig(**TOY)), base_hash="toy")
    policy.save(folder / "toy")
    policy = OpenVLA.from_pretrained(folder / "toy")
    policy.add_lora(rank=2)
    ref = Store(folder / "adapters").put("mine", policy.save_adapter, parent="base", base_policy=policy.name, scores={},
                                         created_ns=0)
    specs = [graph.TWIN.with_overrides(image_rate_hz=10.0, image_width=160, image_height=120),
             graph.ARM.with_overrides(**SLOW),
             graph.POLICY.with_overrides(checkpoint=str(folder / "toy"), threads=1, max_frame_age_s=3.0),
             graph.RECORDER.with_overrides(directory=str(folder / "episodes"))]
    with client() as c, running(specs, folder) as nodes:
        c.hear("step", convert.StepMsg)
        c.hear("arm_status", STATUS, base.LATCHED)
        c.hear("image_raw", convert.Image, base.NEWEST)
        c.until(lambda: c.heard["image_raw"] and c.heard["arm_status"], "images and the arm", START_S, nodes.check)
        yield c, ref.path, nodes


@pytest.fixture()
def ros(graph_and_adapter: tuple[Client, Path, graph.Graph]) -> tuple[Client, Path]:
    return graph_and_adapter[:2]


def test_a_pair_is_run_marked_and_recorded_without_naming_the_policy(ros: tuple[Client, Path], tmp_path: Path) -> None:
    c, adapter = ros
    person = Person(c, adapter, tmp_path, 2.0)
    first = len(c.heard["step"])
    for order, answer in (("first", "y"), ("second", "n")):
        person.hears(f"{order} trial")
        person.says("")
        person.hears("armed for 2 s")
        person.hears("did it succeed?")
        person.says("what?")  # not an answer: asked again
        person.hears("did it succeed?")
        person.says(answer)
        person.hears("at home")
    assert person.ends() == 1, person.text
    assert adapter.name not in person.text  # from the first question to the verdict
    rows = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()][1:]
    assert [r["success"] for r in rows] == [True, False] and {r["policy"] for r in rows} == {"base", "adapter"}
    played = {m.adapter for m in c.heard["step"][first:]}
    assert played == {"base", adapter.name}
    episodes = sorted((adapter.parents[1] / "episodes").glob("*/outcome.json"))
    assert [json.loads(p.read_text())["outcome"] for p in episodes] == ["success", "failure"]
    assert json.loads((tmp_path / "evaluation.json").read_text())["pairs"] == 1
    c.until(lambda: c.heard["arm_status"][-1].state == STATUS.DISARMED, "disarmed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_while_the_arm_moves_it_holds(ros: tuple[Client, Path], tmp_path: Path, number: int) -> None:
    c, adapter = ros
    person = Person(c, adapter, tmp_path, 60.0)
    person.hears("first trial")
    person.says("")
    person.hears("armed for 60 s")
    c.until(lambda: c.heard["arm_status"][-1].state == STATUS.ARMED, "armed")
    person.process.send_signal(number)
    c.until(lambda: c.heard["arm_status"][-1].state == STATUS.HOLDING, "the hold")
    person.process.wait(PATIENCE_S)
    assert "Traceback" not in person.text
    assert "refused" not in person.text and "did not answer" not in person.text, person.text
    last = max((adapter.parents[1] / "episodes").iterdir(), key=lambda p: p.stat().st_ctime)
    assert json.loads((last / "outcome.json").read_text())["outcome"] == "unknown", "its recording ended before it did"
    c.until(lambda: c.trigger("disarm").success, "disarm")


ADAPTER_FIRST = ("--seed", str(next(seed for seed in range(9) if order_of(seed, 0)[0] == "adapter")))


def test_a_policy_that_takes_long_to_load_is_waited_for(
    graph_and_adapter: tuple[Client, Path, graph.Graph], tmp_path: Path
) -> None:
    """A frozen policy node stands for one that loads a large model: what is waited for is said, and by no name."""
    c, adapter, nodes = graph_and_adapter
    policy = nodes.nodes["policy_node"].process
    c.hear("/diagnostics", convert.DiagnosticArray)
    c.say("adapter", convert.AdapterMsg, base.LATCHED, convert.adapter_msg(None, 0))
    c.until(lambda: diagnosis(c).get("adapter") == "base", "the base, whatever ran last: the adapter is to be loaded")
    c.destroy_publisher(c._senders.pop("adapter"))
    os.kill(policy.pid, signal.SIGSTOP)
    try:
        person = Person(c, adapter, tmp_path, 60.0, "--wait-s", "1")
        assert person.ends() == 2
        assert "waited 1 s for" in person.text and "--wait-s" in person.text, person.text
        os.kill(policy.pid, signal.SIGCONT)
        person = Person(c, adapter, tmp_path, 60.0, "--wait-s", "3600", *ADAPTER_FIRST)
        person.hears("first trial")
        os.kill(policy.pid, signal.SIGSTOP)
        person.says("")
        person.hears("waiting for the policy node to load the policy of this trial, at most 3600 s (--wait-s)")
        assert adapter.name not in person.text
    finally:
        os.kill(policy.pid, signal.SIGCONT)
    person.hears("armed for 60 s")
    person.process.send_signal(signal.SIGINT)
    assert person.ends() == 1, person.text  # the answer was not clear
    c.until(lambda: c.trigger("disarm").success, "disarm")


def test_an_adapter_that_the_policy_refuses_is_not_waited_for(ros: tuple[Client, Path], tmp_path: Path) -> None:
    c, adapter = ros
    (weights,) = adapter.glob("*.safetensors")

    def write(folder: Path) -> None:
        shutil.copy(weights, folder)
        shutil.copy(adapter / "adapter_config.json", folder)

    foreign = Store(tmp_path / "adapters").put("foreign", write, parent="base", base_policy="another", scores={},
                                               created_ns=0)
    person = Person(c, foreign.path, tmp_path / "out", 60.0, "--wait-s", "3600", *ADAPTER_FIRST)
    person.hears("first trial")
    person.says("")
    assert person.ends() == 2
    assert "the policy node does not run" in person.text and "'another'" in person.text, person.text
    assert c.heard["arm_status"][-1].state == STATUS.DISARMED
