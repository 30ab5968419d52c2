"""Only the adaptation node, for a graph that already runs (for example on the GPU machine).

    ros2 launch world_gymnast_ros adapt.launch.py
"""
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from launch import LaunchDescription
from world_gymnast_ros.nodes import graph
from world_gymnast_ros.nodes.launching import actions


def setup(context):
    return actions([graph.ADAPT], context)


def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
        OpaqueFunction(function=setup),
    ])
