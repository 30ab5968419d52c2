"""`world-gymnast doctor`: each fault is put in and must be found, with what it means and what to do."""
from __future__ import annotations

import json
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from chat_server import chat_server, completion

from world_gymnast_ros.cli import doctor, machine, main
from world_gymnast_ros.cli.machine import Finding, State
from world_gymnast_ros.paths import SHARE_VARIABLE, share_dir

TINY = share_dir() / "checkpoints" / "tiny"


def by_name(found: list[Finding]) -> dict[str, Finding]:
    for f in found:
        assert f.state is State.OK or (f.means and f.remedy), f
    return {f.name: f for f in found}


def test_the_machine_of_the_tests_has_no_problem(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
                                                 ) -> None:
    monkeypatch.setattr(machine, "LEAST_MEMORY_GIB", 0.001)
    monkeypatch.setattr(machine, "LEAST_DISK_GIB", 0.001)
    assert main(["doctor", "--wait-s", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    states = {f["name"]: f["state"] for f in told["findings"]}
    assert told["problems"] == 0 and states["packages"] == states["ros"] == "ok"
    assert states["release"] == "warning", "with learned parts alone no task is offered"
    assert any("locator-tiny: pick_place, push, reach" in f["remedy"] for f in told["findings"])
    assert {"python", "gpu", "memory", "disk", "clock", "policy tiny/policy"} < states.keys()
    assert "judge tiny/reflector_alone" in states
    assert all(f["found"] and (f["state"] == "ok" or (f["means"] and f["remedy"])) for f in told["findings"])
    assert main(["doctor", "--wait-s", "0"]) == 0
    assert "0 problems" in capsys.readouterr().out.splitlines()[-1]


def test_packages_that_differ_from_the_lock_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").mkdir()
    monkeypatch.setenv(SHARE_VARIABLE, str(tmp_path))
    assert by_name(machine.packages())["packages"].state is State.UNKNOWN
    (tmp_path / "requirements.lock").write_text("# a comment\nnumpy==1.0.0\nno-such-package==2.0\n")
    missing, other = machine.packages()[1:]
    assert missing.state is State.PROBLEM and missing.found == "missing: no-such-package"
    assert other.state is State.WARNING and "(lock 1.0.0)" in other.found


def test_a_card_that_torch_cannot_use_is_a_problem_and_none_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert machine.gpu().state is State.PROBLEM and "install_torch" in machine.gpu().remedy
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert machine.gpu().state is State.WARNING
    card = namedtuple("card", "name total_memory")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for gib, state in ((80, State.OK), (8, State.WARNING)):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i, gib=gib: card("H", gib * 2**30))
        assert machine.gpu().state is state and f"{gib} GiB" in machine.gpu().found


def test_little_memory_and_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left = namedtuple("left", "available total free")
    for gib, mem, room in ((0.5, State.PROBLEM, State.PROBLEM), (5, State.OK, State.WARNING), (50, State.OK, State.OK)):
        monkeypatch.setattr(machine.psutil, "virtual_memory", lambda gib=gib: left(gib * 2**30, 64 * 2**30, 0))
        monkeypatch.setattr(shutil, "disk_usage", lambda path, gib=gib: left(0, 0, gib * 2**30))
        assert machine.memory().state is mem and machine.disk(tmp_path / "runs" / "new").state is room
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert machine.disk(tmp_path).state is State.PROBLEM


@pytest.mark.parametrize(("status", "state"), [(0x2001, State.OK), (0x2041, State.WARNING), (None, State.UNKNOWN)])
def test_a_clock_that_nobody_steers(status: int | None, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(machine.clock_status(), int), "the kernel answers"
    monkeypatch.setattr(machine, "clock_status", lambda: status)
    assert machine.clock().state is state


def test_a_second_ros_and_one_without_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    monkeypatch.setattr(machine, "_spec", lambda name: None if name.endswith(".msg") else object())
    assert machine.ros().state is State.PROBLEM and "world_gymnast_ros.msg" in machine.ros().found
    monkeypatch.setattr(machine, "_spec", lambda name: object())
    monkeypatch.setattr(machine, "_installed", lambda name: True)
    assert machine.ros().state is State.OK
    monkeypatch.setenv("ROS_DISTRO", "humble")
    assert machine.ros().state is State.WARNING and "humble" in machine.ros().found


def test_checkpoints_that_are_not_there_cut_off_or_never_measured_together(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(TINY / "world_model", broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    found = by_name(machine.models("/nowhere", str(broken), "tiny/reflector, tiny/reflecter"))
    assert found["policy /nowhere"].state is State.PROBLEM and "does not exist" in found["policy /nowhere"].found
    assert "no whole safetensors file" in found[f"world model {broken}"].found
    assert found["judge tiny/reflector"].state is State.OK and "release" not in found
    assert found["judge tiny/reflecter"].state is State.PROBLEM
    assert by_name(machine.models("", "", "tiny/locator"))["release"].state is State.WARNING


def test_servers_are_asked_whether_they_are_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with chat_server(lambda request, n: completion("x"), ("vlm", "other")) as heard:
        found = by_name(machine.models("", "", [f"{heard.url}#vlm", f"http://127.0.0.1:{port}/v1"]))
        assert found[f"judge {heard.url}#vlm"].found == "the server lists vlm, other"
        dead = found[f"judge http://127.0.0.1:{port}/v1"]
    assert dead.state is State.PROBLEM and "ConnectionRefused" in dead.found and not heard.requests


def test_a_problem_is_the_exit_status(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--wait-s", "0", "--policy", "/nowhere"]) == 1
    assert "problem  policy /nowhere" in capsys.readouterr().out
    monkeypatch.setattr(doctor.ros_child, "command", lambda *words: ["false"])
    assert [f.state for f in doctor.graph("image_raw", "wx250s", 0.1)] == [State.PROBLEM]


@pytest.mark.ros
def test_rate_and_age_of_camera_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images at 15 Hz and fresh, then half a minute old; joint states at 2 Hz, stamped in the future."""
    pytest.importorskip("rclpy")
    import time

    import numpy as np
    from ros_tools import client

    from world_gymnast_ros.nodes import base, convert, graph_check
    with client() as c:
        monkeypatch.setattr(graph_check, "Caller", lambda name: Beside(name, c))
        images = c.create_publisher(convert.Image, "image_raw", base.NEWEST_RELIABLE)
        joints = c.create_publisher(convert.JointState, "/wx250s/joint_states", base.RELIABLE)
        late_s = [0.0]

        def show() -> None:
            rgb = np.zeros((48, 64, 3), np.uint8)
            images.publish(convert.image_from_rgb(rgb, time.time_ns() - int(late_s[0] * 1e9), "camera"))

        def tell() -> None:
            message = convert.JointState(name=["waist", "elbow"])
            message.header.stamp = convert.to_time(time.time_ns() + 2_000_000_000)
            joints.publish(message)
        c.create_timer(1 / 15, show)
        c.create_timer(0.5, tell)
        found = by_name(graph_check.listen("image_raw", "wx250s", 2.0))
        assert found["camera"].state is State.OK and "64x48 rgb8" in found["camera"].found
        assert found["driver"].state is State.PROBLEM and "from the future" in found["driver"].found
        assert "chrony" in found["driver"].remedy
        late_s[0] = 30.0
        found = by_name(graph_check.listen("image_raw", "other", 1.0))
        assert found["camera"].state is State.PROBLEM and "older than 0.5 s" in found["camera"].means
        assert found["driver"].state is State.UNKNOWN and "/other/joint_states" in found["driver"].found


class Beside:
    """Listens as `Caller` does, on the client's node: one process, one context."""

    def __init__(self, name: str, client: Any) -> None:
        self.name, self.client = name, client
        self.create_subscription, self.get_node_names = client.create_subscription, client.get_node_names
        self.resolve_topic_name = client.resolve_topic_name

    def get_name(self) -> str:
        return self.name

    def spins_until(self, done: Any, timeout_s: float) -> bool:
        self.client.spin(timeout_s)
        return False

    def destroy_node(self) -> None:
        """The client's node goes on."""


def test_a_slow_topic_is_a_warning() -> None:
    pytest.importorskip("rclpy")
    from world_gymnast_ros.nodes.graph_check import Heard, judged
    absent = Finding("camera", State.UNKNOWN, "none", "m", "r")
    assert judged("camera", Heard(), 5.0, 0.5, absent, "x") is absent
    slow = Heard([0.0, 0.5, 1.0], [0.1, 0.1, 0.1])
    assert slow.rate_hz == 2.0 and judged("camera", slow, 5.0, 0.5, absent, "x").state is State.WARNING
    assert judged("camera", slow, 1.0, 0.5, absent, "x").state is State.OK
    assert judged("camera", slow, 1.0, 0.05, absent, "x").state is State.PROBLEM
