"""Process specs: what is started, and that nothing is left behind."""
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from world_gymnast_ros.nodes import graph


def test_every_node_of_every_graph_exists_with_its_parameters() -> None:
    for specs in (graph.robot_graph(), graph.twin_graph("novel_evening", 3), graph.dry_graph("/clips")):
        names = [s.name for s in specs]
        assert len(set(names)) == len(names)
        for spec in specs:
            assert (Path(graph.__file__).parent / f"{spec.name}.py").is_file(), spec.name
            assert spec.arguments()[0] == "--ros-args"


def test_text_parameters_stay_text() -> None:
    spec = graph.CAMERA.with_overrides(source="0", rate_hz=5.0, loop=False)
    assert spec.arguments()[3:] == ["-p", 'source:="0"', "-p", "rate_hz:=5.0", "-p", "loop:=false"]


def test_with_overrides_leaves_the_shared_spec_alone() -> None:
    assert graph.ARM.with_overrides(dry_run=True).overrides == {"dry_run": True} and not graph.ARM.overrides


def test_the_environment_keeps_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    env = graph.ros_environment(domain_id=7)
    assert env["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SUBNET" and env["ROS_DOMAIN_ID"] == "7"


@dataclass(frozen=True)
class Script(graph.NodeSpec):
    """A process without ROS, to test the running itself."""

    code: str = ""

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code]


POLITE = """
import os, signal, sys, time
signal.signal(signal.SIGINT, lambda *a: sys.exit(0))
if os.fork() == 0:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("up", os.getpid(), flush=True)
time.sleep(60)
"""
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)" + POLITE.replace(
    "lambda *a: sys.exit(0)", "signal.SIG_IGN")


def wait_up(nodes: graph.Graph) -> None:
    deadline = time.monotonic() + 30
    while not all("up" in n.tail() for n in nodes.nodes.values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be reaped."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_stop_ends_polite_and_stubborn_ones_and_their_children(tmp_path: Path) -> None:
    specs = [Script("polite", code=POLITE), Script("stubborn", code=STUBBORN)]
    with graph.start(specs, os.environ, tmp_path) as nodes:
        wait_up(nodes)
        children = [int(n.tail().split()[1]) for n in nodes.nodes.values()]
        codes = nodes.stop(grace_s=3.0)
    assert codes == {"polite": 0, "stubborn": -signal.SIGKILL}
    deadline = time.monotonic() + 10
    while any(runs(pid) for pid in children):
        assert time.monotonic() < deadline, "a child was left behind"
        time.sleep(0.05)


def test_nodes_are_ended_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), graph.start([Script("polite", code=POLITE)], os.environ, tmp_path) as nodes:
        wait_up(nodes)
        raise RuntimeError
    assert nodes.nodes["polite"].process.returncode == 0


def test_a_fallen_node_is_reported_with_its_last_words(tmp_path: Path) -> None:
    brief = Script("brief", code="print('my last words'); raise SystemExit(3)")
    with graph.start([brief], os.environ, tmp_path) as nodes:
        nodes.nodes["brief"].process.wait(30)
        with pytest.raises(graph.GraphError, match=r"(?s)brief ended with code 3.*my last words"):
            nodes.check()
