"""`graph.NodeSpec` as launch descriptions. Imported by the launch files alone: pip has no `launch`."""
from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.nodes import arguments, graph
from world_gymnast_ros.paths import PACKAGE

YES, NO = ("true", "True"), ("false", "False")
ALONE = "the graph stays on this machine (loopback); open_to_network:=true opens it"
OPEN = ("the graph is OPEN TO THE NETWORK: every machine there in ROS domain {domain} can see the camera and command "
        "the arm, nothing is encrypted")
ENDED = "{name} ENDED with code {code}, see its last words above; {missed}. Launch again once the cause is mended"


def describe(file: str, specs: Callable[[arguments.Values], Iterable[graph.NodeSpec]],
             *own: DeclareLaunchArgument) -> LaunchDescription:
    """Return the description of a launch file: its nodes in one namespace, on this machine unless it is opened."""
    declared = [
        *own,
        DeclareLaunchArgument("namespace", default_value="", description="namespace of every node"),
        flag("display", "true: display_node publishes what RViz and Foxglove show: /tf, robot_description, poses, "
                        "markers", default="true"),
        flag("reflector", "true: reflector_node watches an armed arm and says when the task is done; arm_node then "
                          "holds. Its judge is named in reflector.yaml"),
        *(_setting(name) for name in arguments.SETTINGS),
        flag("open_to_network",
             "true: every machine on the network in the same ROS domain can see the camera and command the arm; DDS as "
             "used here encrypts nothing and asks nobody who he is. Needed for a graph that spans machines. false: "
             "this machine alone, on the loopback interface"),
    ]

    def setup(context: Any) -> list[Any]:
        _refuse_unknown(file, [argument.name for argument in declared], context)

        def value(name: str) -> str:
            return str(LaunchConfiguration(name).perform(context))

        is_open = value("open_to_network") in YES
        network = graph.network_environment(is_open, os.environ)
        domain = os.environ.get("ROS_DOMAIN_ID") or "0"
        asked = {"display": graph.DISPLAY, "reflector": graph.REFLECTOR}
        wanted = [*specs(value), *(spec for name, spec in asked.items() if value(name) in YES)]
        settled = arguments.settle(wanted, value, value("namespace"))
        return [LogInfo(msg=OPEN.format(domain=domain) if is_open else ALONE),
                *(_node(spec, value("namespace"), network) for spec in settled)]

    return LaunchDescription([*declared, OpaqueFunction(function=setup)])


def flag(name: str, description: str, default: str = "false") -> DeclareLaunchArgument:
    """Return a launch argument that is true or false; any other word is refused, so that no typo means false."""
    return DeclareLaunchArgument(name, default_value=default, description=description, choices=[*YES, *NO])


def _setting(name: str) -> DeclareLaunchArgument:
    default, description, choices = arguments.SETTINGS[name]
    return DeclareLaunchArgument(name, default_value=default, description=description, choices=choices or None)


def _node(spec: graph.NodeSpec, namespace: str, network: dict[str, str]) -> Node:
    """Return one process, told what `graph.start` tells it: so a -p that a parameters file overrides is refused."""

    def ended(event: Any, context: Any) -> list[Any]:
        if context.is_shutdown:
            return []
        return [LogInfo(msg=ENDED.format(name=spec.name, code=event.returncode, missed=spec.missed))]

    return Node(package=PACKAGE, executable=spec.name, name=spec.name, namespace=namespace, output="screen",
                ros_arguments=spec.arguments()[1:], additional_env=network, on_exit=ended)


def _refuse_unknown(file: str, known: list[str], context: Any) -> None:
    """Refuse launch arguments that this file does not declare: `launch` would drop them without a word.

    Only where the command line names this very file; in one that another file includes they may be that file's own.
    """
    if Path(file).name not in (Path(word).name for word in sys.argv):
        return
    for word in context.argv or ():
        name = word.partition(":=")[0]
        if ":=" in word and name not in known:
            raise BadConfig(f"launch argument {word} reaches nobody; {Path(file).name} has {', '.join(known)}")
