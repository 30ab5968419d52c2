"""The graph beside a running Interbotix driver: camera, policy, arm, adaptation, recorder. The arm starts disarmed.

    ros2 launch world_gymnast_ros bringup.launch.py camera:=0 dry_run:=true   (no arm moves)
    ros2 launch world_gymnast_ros bringup.launch.py camera:=0                 (the arm moves once armed, with a policy
                                                                               that has seen more than the twin)
    ros2 launch world_gymnast_ros bringup.launch.py camera:=none              (another node publishes image_raw)
    ros2 launch world_gymnast_ros bringup.launch.py camera:=/path/to/clips dry_run:=true
"""
from launch.actions import DeclareLaunchArgument

from world_gymnast_ros.nodes import graph, launching


def specs(value):
    camera = "" if value("camera") == "none" else value("camera")
    if value("dry_run") in launching.YES:
        return graph.dry_graph(camera)
    return graph.robot_graph(camera, value("allow_simulation_policy") in launching.YES)


def generate_launch_description():
    return launching.describe(
        __file__, specs,
        DeclareLaunchArgument("camera", default_value="0",
                              description="camera index, video file or folder of clips; none: another node publishes "
                                          "image_raw"),
        launching.flag("dry_run", "true: nothing is sent to a driver, and none is needed; the policy acts on every "
                                  "image. For the models that ship, a camera alone, or recorded clips"),
        launching.flag("allow_simulation_policy", "true: let a policy whose card says that it has seen simulated "
                                                  "images only, such as the one that ships, move a real arm"),
    )
