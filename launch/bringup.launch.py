"""The graph beside a running Interbotix driver: camera, policy, arm, adaptation, recorder. The arm starts disarmed.

    ros2 launch world_gymnast_ros bringup.launch.py camera:=0
    ros2 launch world_gymnast_ros bringup.launch.py camera:=  (another node publishes image_raw)
    ros2 launch world_gymnast_ros bringup.launch.py camera:=/path/to/clips dry_run:=true   (no arm moves)
"""
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription
from world_gymnast_ros.nodes import graph
from world_gymnast_ros.nodes.launching import actions


def setup(context):
    camera = LaunchConfiguration("camera").perform(context)
    dry_run = LaunchConfiguration("dry_run").perform(context).lower() in ("true", "1", "yes")
    return actions(graph.clip_graph(camera) if dry_run else graph.robot_graph(camera), context)


def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument("camera", default_value="0", description="camera index, video file or folder of clips"),
        DeclareLaunchArgument("dry_run", default_value="false",
                              description="true: no driver is needed and nothing is sent to one, the policy acts on "
                                          "every picture; for a camera alone, or recorded clips"),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of every node"),
        OpaqueFunction(function=setup),
    ])
