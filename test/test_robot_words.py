"""`world-gymnast robot WORD` beside real nodes over DDS: the same refusals, exit codes, and Ctrl-C that holds."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
from ros_tools import PATIENCE_S, Client, client, running
from test_adapt_node import bench, fake_parts

from world_gymnast_ros.cli import ros_child
from world_gymnast_ros.config import ArmConfig, read_parameters
from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.control.homing import CAPTURE_STATE
from world_gymnast_ros.control.table_height import table_height
from world_gymnast_ros.images import decode_rgb
from world_gymnast_ros.nodes import base, convert, graph, robot_words, snapshot

pytestmark = pytest.mark.ros
APART = ["--namespace", "/apart"]
WAIT = ["--wait-s", str(PATIENCE_S)]


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Twin and arm, nothing else."""
    specs = [graph.TWIN.with_overrides(image_rate_hz=1.0, image_width=64, image_height=48),
             graph.ARM.with_overrides(max_arm_age_s=1.0, latch_timeout_s=100.0)]
    with client() as c, running(specs, tmp_path_factory.mktemp("words")) as nodes:
        c.hear("arm_status", convert.ArmStatusMsg, base.LATCHED)
        c.hear("wx250s/joint_states", convert.JointState)
        c.until(lambda: c.heard["wx250s/joint_states"] and c.heard["arm_status"], "twin and arm", check=nodes.check)
        yield c


def test_who_does_not_answer_is_named_with_what_starts_it(capsys: pytest.CaptureFixture[str]) -> None:
    starts = {"status": "the graph", "arm": "arm_node", "capture": "adapt_node", "adapt": "adapt_node"}
    for word, node in starts.items():
        assert robot_words.main([word, "--wait-s", "0.5"]) == 2
        said = capsys.readouterr().err
        assert f"start {node} in another terminal" in said and robot_words.LAUNCH in said, said
    assert robot_words.main(["say", "--wait-s", "0.5", "reach it"]) == 2 and "policy_node" in capsys.readouterr().err
    assert robot_words.main(["say", " "]) == 2 and "is empty" in capsys.readouterr().err


def test_the_arm_in_words_with_its_own_refusals(arm: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert robot_words.main(["home", *WAIT]) == 2
    assert "arm is DISARMED; arm it first" in capsys.readouterr().err
    for word, state in (("arm", "ARMED"), ("hold", "HOLDING"), ("home", "HOLDING"), ("disarm", "DISARMED")):
        arm.until(lambda: robot_words.main([word, *WAIT]) == 0, word)  # noqa: B023 (a busy machine may refuse once)
        arm.until_state(getattr(convert.ArmStatusMsg, state))
    assert "at home" in capsys.readouterr().out


def test_the_walk_to_the_capture_pose(arm: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert robot_words.main(["capture", "--go", *WAIT]) == 2
    assert "arm is DISARMED; arm it first" in capsys.readouterr().err
    arm.arm()
    assert robot_words.main(["capture", "--go", "--wait-s", "5"]) == 2, "there is no adapt_node"
    said = capsys.readouterr()
    assert "at the capture pose" in said.out and "adapt_node/capture" in said.err, said
    arm.spin(0.5)
    state = convert.arm_state(arm.heard["wx250s/joint_states"][-1])
    np.testing.assert_allclose(state.T_base_ee[:3, 3], CAPTURE_STATE[:3], atol=0.02)
    assert robot_words.main(["disarm", *WAIT]) == 0


def test_the_table_is_measured_and_becomes_a_parameters_file(
    arm: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "set_up.yaml"
    arm.arm()
    assert robot_words.main(["capture", "--go", "--wait-s", "5"]) == 2, "there is no adapt_node; the hand is low now"
    capsys.readouterr()
    assert robot_words.main(["table", "--out", str(out), *WAIT]) == 2 and not out.exists()
    assert "disarm it first" in capsys.readouterr().err
    assert robot_words.main(["disarm", *WAIT]) == 0
    arm.until(lambda: robot_words.main(["table", "--out", str(out), *WAIT]) == 0, "an arm that rests")
    said = capsys.readouterr().out
    found = read_parameters(out)["table_z_m"]
    arm.spin(0.5)  # what was heard last is of before the walk
    expected, part = table_height([convert.arm_state(arm.heard["wx250s/joint_states"][-1])])
    assert found == pytest.approx(expected, abs=1e-3) and part in said and f"params_file:={out}" in said
    assert ArmConfig(table_z_m=found).safety().table_z_m == found


def test_ctrl_c_on_the_way_home_holds_the_arm(arm: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert arm.call("twin_node/reset", convert.ResetTwin, seed=1).success
    arm.spin(0.5)
    arm.arm()

    def press() -> None:
        arm.until_state(convert.ArmStatusMsg.HOLDING, HoldCause.GOING_HOME.value)
        os.kill(os.getpid(), signal.SIGINT)
    presses = threading.Thread(target=press)
    presses.start()
    status = robot_words.main(["home", *WAIT])
    presses.join()
    assert status == 130 and "holding the arm" in capsys.readouterr().err
    arm.until_state(convert.ArmStatusMsg.HOLDING, "held by the operator")
    assert robot_words.main(["disarm", *WAIT]) == 0


def test_status_for_people_and_for_programs(arm: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert robot_words.main(["status", *WAIT]) == 1, "nodes are missing"
    said = capsys.readouterr().out
    assert "DISARMED" in said and "missing        policy_node" in said and "missing        adapt_node" in said

    status: dict[str, Any] = {}

    def asked() -> dict[str, Any]:
        assert robot_words.main(["status", "--json", *WAIT]) == 1
        status.update(json.loads(capsys.readouterr().out))
        return status

    arm.until(lambda: asked()["cameras"] == ["twin_node"], "DDS to forget the cameras of other tests")
    assert status["arm"]["state"] == "DISARMED" and status["nodes"]["arm_node"]["level"] == "ok"
    assert status["missing"] == ["policy_node", "recorder_node", "adapt_node"]


def test_capture_and_adapt_in_words(tmp_path: Path) -> None:
    with bench(tmp_path, fake_parts(), "/apart") as b:  # the arm of the other tests has joint states of its own
        def word(*words: str) -> tuple[int, str]:
            process = subprocess.Popen(ros_child.command("robot_words", *words, *WAIT, *APART), stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT, text=True)
            b.c.until(lambda: process.poll() is not None, words[0])
            return process.returncode, process.communicate()[0]
        reports = b.c.create_publisher(convert.DiagnosticArray, "/diagnostics", base.RELIABLE)
        b.c.create_timer(0.1, lambda: [reports.publish(convert.diagnostics_msg(name, "arm", "ok", "", {}, 0))
                                       for name in ("apart/arm_node", "recorder_node")])
        said = json.loads(word("status", "--json")[1])
        assert list(said["nodes"]) == ["arm_node"], "the nodes of its own namespace, and no others"
        status, said = word("capture")
        assert status == 0, said
        status, said = word("adapt", "go right", "--updates", "4", "--seed", "1")
        assert status == 0 and "s left" in said and "report: " in said, said


def test_a_snapshot_of_a_topic(arm: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scene.png"
    assert snapshot.main([str(out), *WAIT]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 64x48 of image_raw" in said and re.search(r"--state (-?\d\.\d{4} ?){7}$", said), said
    assert decode_rgb(out, "scene").shape == (48, 64, 3)
    assert snapshot.main([str(out), *WAIT]) == 2 and "--overwrite" in capsys.readouterr().err
    missing = [str(tmp_path / "none.png"), "--topic", "/elsewhere", "--wait-s", "3"]
    assert snapshot.main(missing) == 2 and "images come on /image_raw" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["scene.png"]
