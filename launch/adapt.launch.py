"""Only the adaptation node, for a graph that already runs (for example on the GPU machine, with open_to_network).

    ros2 launch world_gymnast_ros adapt.launch.py
"""
from world_gymnast_ros.nodes import graph, launching


def generate_launch_description():
    return launching.describe(__file__, lambda _: [graph.ADAPT])
