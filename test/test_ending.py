"""A node ends on a signal whatever it is doing; there is one process per name; a cause is told once."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE_S, SLOWNESS

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.nodes.causes import AWAY_S, Causes, NameClaim

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
LAUNCH_S = 5.0
"""launch gives a node so long after SIGINT, and then sends SIGTERM."""
NODE = """
import hashlib, sys, time
from world_gymnast_ros.nodes import base
class Node(base.ConfiguredNode):
    def __init__(self):
        super().__init__("slow_node")
        print("loading", flush=True)
        {load}
    def close(self):
        print("closing", flush=True)
        {close}
sys.exit(base.run(Node, ["slow_node"]))
"""
IN_PYTHON = "[time.sleep(0.01) for _ in range(60000)]"
SWALLOWED = """
        for _ in range(600):
            try: time.sleep(1)
            except Exception: pass"""
IN_ONE_CALL = "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2 * 10**9)"


def started(load: str, close: str = "pass", until: str = "loading") -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", NODE.format(load=load, close=close)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None and process.stdout.readline().strip() == until
    return process


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, float, str]:
    """Send a signal; return exit code, seconds until it had ended, and what it said."""
    time.sleep(0.3)  # so that it is in what it loads
    since = time.monotonic()
    process.send_signal(number)
    try:
        said = process.communicate(timeout=PATIENCE_S)[0]
    finally:
        process.kill()
    return process.returncode, time.monotonic() - since, said


@pytest.mark.ros
@pytest.mark.parametrize("load", [IN_PYTHON, SWALLOWED, IN_ONE_CALL], ids=["python", "swallowed", "one call"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_loads_ends_within_launchs_five_seconds(load: str, number: int) -> None:
    pytest.importorskip("rclpy")
    code, took_s, said = ended(started(load), number)
    assert code == 0 and "Traceback" not in said, said
    assert took_s < LAUNCH_S * max(1.0, SLOWNESS / 2), (took_s, said)


@pytest.mark.ros
@pytest.mark.parametrize(("start", "number"), [
    (["-m", "world_gymnast_ros.nodes", "adapt_node"], signal.SIGINT), ([f"{SCRIPTS}/arm_node"], signal.SIGTERM),
], ids=["module", "script"])
def test_a_node_whose_modules_are_imported_ends_at_once(start: list[str], number: int) -> None:
    words = [sys.executable, "-X", "importtime", *start]  # which tells of each module as soon as it is imported
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and any("numpy.version" in line for line in process.stderr)
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0 and "Traceback" not in said and said.splitlines()[-1] == "ended while loading"


def test_a_node_that_is_none_is_refused_with_those_there_are() -> None:
    done = subprocess.run([sys.executable, "-m", "world_gymnast_ros.nodes", "arm"], capture_output=True, text=True)
    assert done.returncode == 2 and "error: arm is no node" in done.stderr and "camera_node" in done.stderr


@pytest.mark.ros
def test_what_close_cannot_end_goes_with_the_process() -> None:
    pytest.importorskip("rclpy")
    busy = "import threading; threading.Thread(target=lambda: time.sleep(600)).start()"
    process = started(busy, close="self.is_unfinished = True")
    time.sleep(0.5)
    code, took_s, said = ended(process, signal.SIGINT)
    assert code == 0 and "closing" in said and "abandoned" in said and took_s < PATIENCE_S


@pytest.mark.ros
def test_a_second_node_of_one_name_is_refused_and_a_killed_one_is_not_in_the_way() -> None:
    pytest.importorskip("rclpy")
    first = started("pass")
    second = started("pass", until=f"BadConfig: /slow_node runs already in ROS domain {os.environ['ROS_DOMAIN_ID']} "
                     f"(process {first.pid}): services and parameters would be of either. End it, or give this one "
                     "another name (-r __node:=NAME) or namespace (-r __ns:=/NAME)")
    assert second.wait(PATIENCE_S) == 2
    first.kill()
    first.wait()
    assert ended(started("pass"), signal.SIGINT)[0] == 0, "DDS knows the killed one for 20 s more"


def test_names_in_other_domains_and_namespaces_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = [NameClaim(name, domain) for name, domain in (("/arm_node", 1), ("/lab/arm_node", 1), ("/arm_node", 2))]
    with pytest.raises(BadConfig, match=rf"/arm_node runs already in ROS domain 1 \(process {os.getpid()}\)"):
        NameClaim("/arm_node", 1)
    held[0].release()
    NameClaim("/arm_node", 1).release()


def test_a_cause_is_told_once_and_again_after_it_was_away() -> None:
    causes = Causes()
    told = [causes.news(f"chunk {i} refused: frame is {i / 7:.3f} s old", now_s=i / 2) for i in range(200)]
    assert told == [True] + [False] * 199, "numbers make no other cause, and a lasting one is not told again"
    assert causes.news("joint_states lacks waist", now_s=100.0), "another cause"
    assert causes.news("chunk 9 refused: frame is 2 s old", now_s=99.5 + AWAY_S + 0.1)
    assert not causes.news("chunk 9 refused: frame is 2 s old", now_s=99.5 + AWAY_S + 0.2)
    causes.clear()
    assert causes.news("chunk 9 refused: frame is 2 s old", now_s=99.5 + AWAY_S + 0.3)
