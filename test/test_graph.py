"""Process specs: what is started, and that nothing is left behind."""
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import PATIENCE_S

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
    monkeypatch.setenv(graph.RANGE, "SUBNET")
    for name in graph.PROFILES:
        monkeypatch.delenv(name)
    env = graph.ros_environment(domain_id=7)
    assert env[graph.RANGE] == "SUBNET" and env["ROS_DOMAIN_ID"] == "7"
    assert {Path(env[name]).name for name in graph.PROFILES} == {"fastdds_network.xml"}  # the other reaches nobody
    monkeypatch.delenv(graph.RANGE)
    env = graph.ros_environment()
    assert env[graph.RANGE] == "LOCALHOST"
    assert {Path(env[name]).name for name in graph.PROFILES} == {"fastdds.xml"}


def test_a_launched_graph_stays_on_this_machine_whatever_the_shell_says() -> None:
    shell = {graph.RANGE: "SUBNET", "ROS_STATIC_PEERS": "10.0.0.7", graph.PROFILES[1]: "/home/me/mine.xml"}
    closed = graph.network_environment(False, shell)
    assert closed[graph.RANGE] == "LOCALHOST" and not closed["ROS_STATIC_PEERS"]
    assert all(closed[name].endswith("config/fastdds.xml") for name in graph.PROFILES)
    opened = graph.network_environment(True, {**shell, "ROS_LOCALHOST_ONLY": "1"})
    assert opened[graph.RANGE] == "SUBNET" and opened["ROS_LOCALHOST_ONLY"] == "0"
    assert {opened[name] for name in graph.PROFILES} == {"/home/me/mine.xml"} and "ROS_STATIC_PEERS" not in opened
    plain = graph.network_environment(True, {graph.RANGE: "LOCALHOST"})
    assert plain[graph.RANGE] == "SUBNET"
    assert all(Path(plain[name]).name == "fastdds_network.xml" for name in graph.PROFILES)


BARE = """
import os, rclpy
rclpy.init()
node = rclpy.create_node("bare", enable_rosout=False, start_parameter_services=False)
print("up", flush=True)
rclpy.spin(node)
"""
"""A participant of DDS that offers nothing."""


def listening(pid: int) -> set[str]:
    """Return the addresses, in hex, at which a process has the UDP ports of DDS of this test's domain."""
    ends = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {end[8:-1] for end in ends if end.startswith("socket:")}
    ports = range(7400 + 250 * int(os.environ["ROS_DOMAIN_ID"]), 7400 + 250 * (int(os.environ["ROS_DOMAIN_ID"]) + 1))
    rows = [line.split() for line in Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]]
    places = [row[1].split(":") for row in rows if row[9] in inodes]
    return {address for address, port in places if int(port, 16) in ports}


@pytest.mark.ros
@pytest.mark.parametrize(("is_open", "addresses"), [(False, {"0100007F"}), (True, {"00000000"})])
def test_dds_listens_on_the_loopback_alone_unless_opened(tmp_path: Path, is_open: bool, addresses: set[str]) -> None:
    pytest.importorskip("rclpy")
    env = {**os.environ, **graph.network_environment(is_open, {})}
    with graph.start([Script("bare", code=BARE)], env, tmp_path) as nodes:
        wait_up(nodes)
        found = listening(nodes.nodes["bare"].process.pid)
    assert found == addresses, (found, nodes.nodes["bare"].tail())


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
    deadline = time.monotonic() + PATIENCE_S
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
    deadline = time.monotonic() + PATIENCE_S
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
        nodes.nodes["brief"].process.wait(PATIENCE_S)
        with pytest.raises(graph.GraphError, match=r"(?s)brief ended with code 3.*my last words"):
            nodes.check()


# --- launch files -----------------------------------------------------------------------------------------------------

LAUNCH_FILES = sorted((Path(graph.__file__).parents[2] / "launch").glob("*.launch.py"))


@pytest.mark.parametrize("file", LAUNCH_FILES, ids=lambda file: file.name)
def test_every_launch_file_starts_its_nodes_through_what_keeps_them_on_this_machine(file: Path) -> None:
    (made,) = [f for f in ast.parse(file.read_text()).body
               if isinstance(f, ast.FunctionDef) and f.name == "generate_launch_description"]
    (returned,) = [s.value for s in made.body if isinstance(s, ast.Return)]
    assert ast.unparse(returned).startswith("launching.describe(__file__, ")
    assert "launch_ros" not in file.read_text()


def launched(*words: str) -> subprocess.Popen[str]:
    """Start `ros2 launch` on a launch file of this tree. Skips where there is none, as beside pip's ROS."""
    pytest.importorskip("launch_ros")
    ros2 = shutil.which("ros2") or pytest.skip("no ros2 here")
    file = next(f for f in LAUNCH_FILES if f.name == words[0])
    env = {name: value for name, value in os.environ.items() if name not in (graph.RANGE, *graph.PROFILES)}
    return subprocess.Popen([ros2, "launch", str(file), *words[1:]], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


@pytest.mark.ros
@pytest.mark.parametrize("word", ["dry_run:=ture", "dryrun:=true", "open_to_network:=no"])
def test_a_launch_argument_that_reaches_nobody_starts_nothing(word: str) -> None:
    process = launched("bringup.launch.py", "camera:=none", word)
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and word.partition(":=")[0] in said and "process started" not in said


@pytest.mark.ros
@pytest.mark.parametrize(("words", "addresses", "told"), [
    ((), {"0100007F"}, "stays on this machine"),
    (("open_to_network:=true",), {"00000000"}, "OPEN TO THE NETWORK: every machine there in ROS domain"),
])
def test_ros2_launch_opens_the_graph_only_when_told(words: tuple[str, ...], addresses: set[str], told: str) -> None:
    """Of the adaptation node alone: it publishes nothing that another machine could take for a command."""
    process = launched("adapt.launch.py", *words)
    try:
        said = ""
        while "publishes no motion" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        (pid,) = map(int, re.findall(r"process started with pid \[(\d+)\]", said))
        assert told in said and listening(pid) == addresses
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
