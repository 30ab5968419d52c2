"""The same graph with the MuJoCo twin in place of driver and camera.

    ros2 launch world_gymnast_ros twin.launch.py scene:=novel_white_table seed:=3
"""
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription
from world_gymnast_ros.nodes import graph
from world_gymnast_ros.nodes.launching import actions


def setup(context):
    scene = LaunchConfiguration("scene").perform(context)
    seed = int(LaunchConfiguration("seed").perform(context))
    return actions(graph.twin_graph(scene, seed), context)


def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument("scene", default_value="", description="scene name or file; empty: the one in twin.yaml"),
        DeclareLaunchArgument("seed", default_value="0", description="start state of the first episode"),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of every node"),
        OpaqueFunction(function=setup),
    ])
