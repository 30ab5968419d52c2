"""A whole session of published layouts at tiny random size over DDS, to its verdict.

adapt_node is a process of its own; camera, joint states and action are those of the graph. The names are those that
`test_published_session.py` gives on the command line.
"""
from __future__ import annotations

from html import unescape
from pathlib import Path

import numpy as np
import pytest
from published_openvla import SINK, write_folder
from rclpy.action import ActionClient
from ros_tools import START_S, client, running
from test_published_session import FRAME, worldgym
from tiny_vlm import QWEN, write_tiny_vlm

from world_gymnast_ros.adaptation.log import check_session, read_session
from world_gymnast_ros.control.homing import capture_joints
from world_gymnast_ros.images import decode_rgb
from world_gymnast_ros.models.judges.vlm import VLMConfig
from world_gymnast_ros.nodes import base, convert, graph
from world_gymnast_ros.store import load_adapter

pytestmark = [pytest.mark.ros, pytest.mark.slow]
SMALL = {"copies": 4, "groups_per_update": 1, "horizon_steps": 5, "horizon_from_task": False, "evaluate_every": 1,
         "select_groups": 1, "held_out_copies": 2, "promotion_groups": 4, "min_release_auc": 0.0, "threads": 1,
         "device": "cpu", "capture_frames": 1, "capture_timeout_s": 60.0}
RANDOM_MODELS = {"moved_m": 10.0, "sharpness_floor": 0.0, "colour_shift_levels": 255.0, "reroll": False,
                 "solved_rate": 1.0}
"""Random weights draw noise, which the image checks would rightly reject."""


def test_the_eggplant_session_over_dds_ends_in_a_verdict(tmp_path: Path) -> None:
    policy = write_folder(tmp_path / "openvla-oft", recipe={"decoding": "parallel", "chunk_size": 5})
    judge = tmp_path / "judge"
    VLMConfig(model=str(write_tiny_vlm(tmp_path / "vlm", QWEN)), frames=2, frame_px=32, min_label_share=0.0).save(judge)
    node = graph.ADAPT.with_overrides(policy=str(policy), world_model=str(worldgym(tmp_path / "worldgym")),
                                      judges=str(judge), directory=str(tmp_path / "runs"), **SMALL, **RANDOM_MODELS)
    with client() as c, running([node], tmp_path / "log") as nodes:
        action = ActionClient(c, convert.Adapt, "adapt")
        c.until(action.server_is_ready, "the adapt action", START_S, nodes.check)
        c.until(lambda: "policy 'openvla-oft', world model 'worldgym', judge 'vlm'" in nodes.nodes["adapt_node"].tail(),
                "its models", START_S, nodes.check)
        offers = c.hear("adapter", convert.AdapterMsg, base.LATCHED)
        camera = c.create_publisher(convert.Image, "image_raw", base.NEWEST_RELIABLE)
        joints = c.create_publisher(convert.JointState, "wx250s/joint_states", base.RELIABLE)
        image = decode_rgb(FRAME, str(FRAME))
        assert image.shape == (480, 640, 3)

        def tell() -> None:
            now_ns = c.get_clock().now().nanoseconds
            joints.publish(convert.joint_state_msg(now_ns, np.r_[capture_joints(), 0.0, 0.037, -0.037], np.zeros(9),
                                                   np.zeros(9)))
            camera.publish(convert.image_from_rgb(image, now_ns, "camera"))
        c.create_timer(0.1, tell)
        stages: list[str] = []
        goal = convert.Adapt.Goal(instructions=[SINK], budget_s=3600.0, max_updates=1, seed=3)
        sent = action.send_goal_async(goal, lambda m: stages.append(m.feedback.stage))
        c.until(sent.done, "an answer", START_S, nodes.check)
        future = sent.result().get_result_async()
        c.until(future.done, "the verdict", 10 * START_S, nodes.check)
        result = future.result().result
        assert future.result().status == 4, result.message  # 4: succeeded
        assert {"measuring the base", "training"} <= set(stages)
        assert result.message.startswith("let the arm move: not shown"), result.message
        page = Path(result.report_path)
        assert SINK in unescape(page.read_text()) and "promotion" in page.read_text().lower()
        events = read_session(page.parent / "session.jsonl")
        assert check_session(events) == []
        begin, [update] = events[0], [e for e in events if e["event"] == "update"]
        assert begin["names"]["policy"] == "openvla-oft" and begin["names"]["world_model"] == "worldgym"
        assert begin["instructions"] == [SINK] and begin["seed"] == 3
        assert not update["idle"] and update["first_ratio_off"] < 1e-3 and update["chunks"] == 4, update
        if result.promoted:
            c.until(lambda: offers, "the offer")
            assert load_adapter(result.adapter.path).sha256 == result.adapter.sha256 == offers[0].sha256
        else:
            assert not offers and not list((tmp_path / "runs").glob("adapters/*"))
