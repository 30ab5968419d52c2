"""The graph beside a running Interbotix driver: camera, policy, arm, adaptation, recorder. The arm starts disarmed.

    ros2 launch world_gymnast_ros bringup.launch.py camera:=0 dry_run:=true   (no arm moves)
    ros2 launch world_gymnast_ros bringup.launch.py camera:=0                 (the arm moves once armed)
    ros2 launch world_gymnast_ros bringup.launch.py camera:=                  (another node publishes image_raw)
    ros2 launch world_gymnast_ros bringup.launch.py camera:=/path/to/clips dry_run:=true
"""
from launch.actions import DeclareLaunchArgument

from world_gymnast_ros.nodes import graph, launching


def specs(value):
    dry_run = value("dry_run") in launching.YES
    return graph.dry_graph(value("camera")) if dry_run else graph.robot_graph(value("camera"))


def generate_launch_description():
    return launching.describe(
        __file__, specs,
        DeclareLaunchArgument("camera", default_value="0", description="camera index, video file or folder of clips"),
        launching.flag("dry_run", "true: no driver is needed and nothing is sent to one, the policy acts on every "
                                  "picture; for a camera alone, or recorded clips"),
    )
