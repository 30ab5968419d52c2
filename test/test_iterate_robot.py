"""`world-gymnast iterate --robot` over DDS: the twin behind the driver's topics, a scripted person at the terminal."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
from ros_tools import START_S, Client, client, running
from test_policy_node import SLOW

from world_gymnast_ros.nodes import base, convert, graph

pytestmark = [pytest.mark.ros, pytest.mark.slow]
SCENE, WORDS = "novel_evening", "reach the purple block"
SETTINGS = ["max_updates=1", "copies=4", "select_groups=2", "promotion_groups=4", "held_out_copies=1",
            "horizon_steps=8", "epochs=1"]


class Person:
    """Sets scenes on the twin and says what came of it, as physics has it; asked for no more than the terminal says."""

    def __init__(self, c: Client, out: Path) -> None:
        self.c, self.text, self.at, self.seed, self.answers = c, "", 0, 100, 0
        words = ["iterate", WORDS, "--robot", "--rounds", "1", "--episodes", "12", "--evaluation", "2",
                 "--captures", "1", "--pairs", "1", "--trial-s", "4", "--update-steps", "2", "--judge-steps", "1",
                 "--imitation-steps", "1", "--threads", "1", "--out", str(out), "--set", *SETTINGS]
        self.process = subprocess.Popen([sys.executable, "-u", "-m", "world_gymnast_ros.cli", *words], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        while character := self.process.stdout.read(1):
            self.text += character

    def works(self, answers: int = 10**6) -> None:
        """Do what the terminal asks for until the process ends, or after so many outcomes were told."""
        while self.process.poll() is None and self.answers < answers:
            self.c.until(lambda: self.process.poll() is not None or self._asked(), "a question", 600.0)
            asked = self._asked()
            if not asked:
                continue
            self.at = self.text.index(asked, self.at) + len(asked)
            if asked == "keep clear, press Enter":
                self.seed += "same scene" not in self.text[self.text.rindex("\n", 0, self.at):self.at]
                self.c.call("twin_node/reset", convert.ResetTwin, scene=SCENE, instruction=WORDS, seed=self.seed)
                self.c.spin(0.5)
                self.says("")
            else:
                self.answers += 1
                self.says("y" if self.c.heard["twin/truth"][-1].success else "n")

    def _asked(self) -> str:
        found = {words: self.text.find(words, self.at) for words in ("keep clear, press Enter", "did it succeed?")}
        there = {at: words for words, at in found.items() if at >= 0}
        return there[min(there)] if there else ""

    def says(self, words: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()


@pytest.fixture
def ros(tmp_path: Path) -> Iterator[Client]:
    specs = [graph.TWIN.with_overrides(scene=SCENE, image_width=320, image_height=240),
             graph.ARM.with_overrides(**SLOW, allow_simulation_policy=True),
             graph.POLICY.with_overrides(threads=1, max_frame_age_s=3.0),
             graph.RECORDER.with_overrides(directory=str(tmp_path / "episodes"))]
    with client() as c, running(specs, tmp_path) as nodes:
        c.hear("twin/truth", convert.TwinTruth)
        c.hear("/diagnostics", convert.DiagnosticArray)
        c.hear("step", convert.StepMsg)
        c.hear("arm_status", convert.ArmStatusMsg, base.LATCHED)
        c.until(lambda: c.heard["twin/truth"] and c.heard["arm_status"], "the twin and the arm", START_S, nodes.check)
        yield c


def temperatures(c: Client) -> list[float]:
    return [float(v.value) for m in c.heard["/diagnostics"] for s in m.status if s.name == "policy_node"
            for v in s.values if v.key == "temperature"]


def test_a_round_on_the_robot_is_stopped_goes_on_and_ends(ros: Client, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = Person(ros, out)
    first.works(answers=5)  # two evaluate the start, three explore
    maps = Path(f"/proc/{first.process.pid}/maps").read_text()
    assert "torch" in maps and "mujoco" not in maps, "a robot needs no simulator"
    first.process.send_signal(signal.SIGINT)
    ros.until(lambda: first.process.poll() is not None, "the end", 60.0)
    assert first.process.returncode == 130 and "Traceback" not in first.text, first.text
    kept = {p.name: p.stat().st_mtime_ns for p in (out / "loop" / "episodes" / "round-1").glob("*.npz")}
    assert len(kept) >= 2 and (out / "round-0.json").is_file()
    second = Person(ros, out)
    second.seed = 200
    second.works()
    assert second.process.returncode == 0, second.text
    again = {p.name: p.stat().st_mtime_ns for p in (out / "loop" / "episodes" / "round-1").glob("*.npz")}
    assert len(again) == 8 and again.items() >= kept.items(), "no episode was asked for twice"
    row = {p.stem: json.loads(p.read_text()) for p in (out / "loop" / "round-1").glob("*.json")}
    assert {"real", "setup", "world_model", "judge", "cloning", "begin", "learning", "validation",
            "evaluation"} <= set(row)
    assert "not checked: earlier scenes" in " ".join(row["world_model"]["decision"])
    truth = [bool(np.load(p)["success"][0][-1]) for p in sorted((out / "loop" / "episodes" / "round-1").glob("*.npz"))]
    assert row["real"]["successes"] == sum(truth)
    # Blind: what the person reads names no adapter, though two took turns.
    names = {m.adapter for m in ros.heard["step"]}
    asked = [line for line in second.text.splitlines() if "press Enter" in line or "succeed" in line]
    assert not any(name in line for name in names for line in asked)
    if row["validation"]["candidate"]:
        assert row["validation"]["decision"] == "unclear" and {"base", row["validation"]["candidate"]} <= names
    # Recorded, marked by the person, and explored only where exploring was asked for.
    outcomes = [json.loads(p.read_text()) for p in (tmp_path / "episodes").glob("*/outcome.json")]
    assert sum(o["outcome"] != "unknown" for o in outcomes) >= 12
    assert {1.2, 0.0} <= set(temperatures(ros)) and temperatures(ros)[-1] == 0.0
    assert (out / "report.html").is_file() and "| loop | 1 |" in (out / "table.md").read_text()
