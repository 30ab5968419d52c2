"""bringup.launch.py with every argument: what the nodes came to hold, what a dead one leaves behind, how they end.

Run by test/test_launch_files.py, or by itself: launch_test test/launch/bringup.test.py
"""
import os
import signal
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import launch_testing.actions
import launch_testing.markers
import rclpy
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from rcl_interfaces.srv import GetParameters

from launch import LaunchDescription

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(tempfile.mkdtemp(prefix="world_gymnast_launch_"))
LATEST_S = 240.0
NODES = ("arm_node", "policy_node", "adapt_node", "recorder_node", "display_node")
PARAMS = """
/**:
  ros__parameters: {exposure_us: 8000, max_frame_age_s: 0.7}
/lab/arm_node:
  ros__parameters: {table_z_m: 0.01}
"""
HELD = {
    "arm_node": {"robot_name": "left", "driver": "trajectory", "dry_run": True, "table_z_m": 0.01,
                 "max_frame_age_s": 0.7, "base_frame": "left/base_link", "use_sim_time": False},
    "policy_node": {"policy_url": "http://127.0.0.1:9", "max_frame_age_s": 0.7, "dry_run_without_arm": True},
    "recorder_node": {"robot_name": "left", "directory": str(FOLDER / "episodes")},
    "adapt_node": {"robot_name": "left"},
    "display_node": {"tf": True},
}


@launch_testing.markers.keep_alive
def generate_test_description() -> LaunchDescription:
    """Return the graph in a namespace, with every argument away from its default."""
    (FOLDER / "params.yaml").write_text(PARAMS)
    words = {"camera": "none", "dry_run": "true", "namespace": "lab", "robot_name": "left", "driver": "trajectory",
             "policy_url": "http://127.0.0.1:9", "record_dir": str(FOLDER / "episodes"), "use_sim_time": "false",
             "image_topic": "/cam/color/image_raw", "params_file": str(FOLDER / "params.yaml"), "log_level": "info"}
    bringup = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(ROOT / "launch" / "bringup.launch.py")),
                                       launch_arguments=list(words.items()))
    return LaunchDescription([bringup, launch_testing.actions.ReadyToTest()])


class TestRunning(unittest.TestCase):
    """While the nodes run."""

    @classmethod
    def setUpClass(cls) -> None:
        rclpy.init()
        cls.node = rclpy.create_node("launch_test_client")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.node.destroy_node()
        rclpy.shutdown()

    def held(self, name: str, names: list[str]) -> list[Any]:
        client = self.node.create_client(GetParameters, f"/lab/{name}/get_parameters")
        assert client.wait_for_service(LATEST_S), f"/lab/{name} did not come up"
        future, deadline = client.call_async(GetParameters.Request(names=names)), time.monotonic() + LATEST_S
        while not future.done():
            assert time.monotonic() < deadline, name
            rclpy.spin_once(self.node, timeout_sec=0.25)
        return [rclpy.parameter.parameter_value_to_python(value) for value in future.result().values]

    def test_1_every_argument_reaches_its_node(self) -> None:
        for name, wanted in HELD.items():
            self.assertEqual(dict(zip(wanted, self.held(name, list(wanted)), strict=True)), wanted, name)

    def test_2_images_are_heard_where_the_camera_of_ones_own_sends_them(self) -> None:
        heard: set[str] = set()
        deadline = time.monotonic() + LATEST_S
        while not {"policy_node", "adapt_node"} & heard:
            ends = self.node.get_subscriptions_info_by_topic("/cam/color/image_raw")
            heard = {end.node_name for end in ends if end.node_namespace == "/lab"}
            assert time.monotonic() < deadline, heard
            time.sleep(0.1)
        names = {name for name, _ in self.node.get_topic_names_and_types()}
        assert not {"/image_raw", "/lab/image_raw", "/camera_info"} & names, names

    def test_3_the_launch_outlives_a_dead_node(self, proc_info, proc_output) -> None:
        (recorder,) = [name for name in proc_info.process_names() if "recorder_node" in name]
        os.kill(proc_info[recorder].pid, signal.SIGKILL)
        proc_info.assertWaitForShutdown(recorder, timeout=LATEST_S)
        for name in NODES:
            proc_output.assertWaitFor("taken to be for nodes of other packages: exposure_us", name, timeout=LATEST_S,
                                      strict_proc_matching=False)


@launch_testing.post_shutdown_test()
class TestEnded(unittest.TestCase):
    """Once all have ended."""

    def test_all_but_the_killed_one_end_by_themselves(self, proc_info) -> None:
        codes = {info.process_name: info.returncode for info in proc_info}
        self.assertEqual({name: code for name, code in codes.items() if "recorder_node" not in name and code}, {})
        self.assertEqual({code for name, code in codes.items() if "recorder_node" in name}, {-signal.SIGKILL})
