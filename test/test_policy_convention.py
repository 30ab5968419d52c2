"""A policy of another action convention, over DDS: refused on its first chunks, and held; named before arming."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("interbotix_xs_msgs")
from ros_tools import START_S, Client, client, running
from test_policy_images import ARM, STATUS, TWIN, WORDS, diagnosis, hear, status, value
from test_serve import lying

from world_gymnast_ros.nodes import graph
from world_gymnast_ros.serving.json_numpy import encode_array

pytestmark = pytest.mark.ros


def xyz(c: Client) -> np.ndarray:
    p = c.heard["arm_pose"][-1].pose.position
    return np.array([p.x, p.y, p.z])


@pytest.fixture()
def arm(tmp_path: Path) -> Iterator[Client]:
    with client() as c, running([TWIN, ARM], tmp_path) as nodes:
        hear(c)
        c.until(lambda: c.heard["arm_status"] and c.heard["arm_pose"], "arm and driver", check=nodes.check)
        yield c


def test_chunks_of_another_convention_are_refused_and_hold(arm: Client) -> None:
    c = arm
    c.arm()
    before = xyz(c)
    for count in range(3):
        c.send_chunk((0.3, 0.02, 0.12, 0, 0, 0))
        c.until(lambda n=count + 1: value(c, "arm_node", "refused_chunks") == str(n), "the refusal")
        assert diagnosis(c, "arm_node").level == diagnosis(c, "arm_node").WARN
    told = c.until_state(STATUS.HOLDING, "another convention").reason
    assert "3 chunks refused in a row, limit 3" in told and "absolute pose" in told
    c.until(lambda: value(c, "arm_node", "hold_cause") == "ANOTHER_CONVENTION", "the named cause")
    assert np.abs(xyz(c) - before).max() < 0.005 and not c.heard["step"]
    # The same arm, armed again: actions that are all a little too long warn first.
    c.arm()
    sign = 1
    while c.heard["arm_status"][-1].state == STATUS.ARMED:  # there and back, so that nothing but the step is limited
        steps = len(c.heard["step"])
        c.send_chunk((0, 0.08 * sign, 0, 0, 0, 0), actions=2)
        c.until(lambda n=steps: len(c.heard["step"]) >= n + 2 or c.heard["arm_status"][-1].state == STATUS.HOLDING,
                "two steps")
        sign = -sign
        assert steps < 30
    warned = [m.status[0] for m in c.heard["/diagnostics"] if "limit 10" in m.status[0].message]
    assert warned and warned[0].level == warned[0].WARN
    c.until_state(STATUS.HOLDING, "10 actions in a row, limit 10")
    c.until(lambda: value(c, "arm_node", "hold_cause") == "STEP_LIMITED", "the named cause")


def test_a_server_of_another_convention_is_found_before_arming(tmp_path: Path) -> None:
    pose = np.tile(np.array([0.3, 0.02, 0.12, 0, 0.1, 0.3, 1], np.float32), (4, 1))
    with lying(json.dumps(encode_array(pose)).encode()) as url, client() as c:
        policy = graph.POLICY.with_overrides(policy_url=url, policy_timeout_s=5.0, instruction=WORDS)
        with running([TWIN, ARM, policy], tmp_path) as nodes:
            hear(c)
            c.until(lambda: status(c).level == status(c).ERROR, "the policy's refusal", START_S, nodes.check)
            assert "absolute pose" in status(c).message and url in status(c).message
            # The arm node may know of the policy a moment later than we do; before, it arms as if there were none.
            c.until(lambda: value(c, "arm_node", "chunk_publishers") == "1", "the arm to know the policy", START_S)
            answer = c.trigger("arm")
            while "has not said yet" in answer.message:
                answer = c.trigger("arm")
            assert not answer.success and "absolute pose" in answer.message
            assert not c.heard["action_chunk"]
