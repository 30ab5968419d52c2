"""The same graph with the MuJoCo twin in place of driver and camera. Never beside the real driver.

    ros2 launch world_gymnast_ros twin.launch.py scene:=novel_white_table seed:=3
"""
from launch.actions import DeclareLaunchArgument

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.nodes import graph, launching


def specs(value):
    if not value("seed").isdigit():
        raise BadConfig(f"seed:={value('seed')} is not a whole number from 0 on, such as seed:=3")
    return graph.twin_graph(value("scene"), int(value("seed")))


def generate_launch_description():
    return launching.describe(
        __file__, specs,
        DeclareLaunchArgument("scene", default_value="", description="scene name or file; empty: the one in twin.yaml"),
        DeclareLaunchArgument("seed", default_value="0", description="start state of the first episode"),
    )
