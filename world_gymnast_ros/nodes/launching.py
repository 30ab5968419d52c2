"""`graph.NodeSpec` as launch actions. Imported by the launch files alone: pip has no `launch`."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from world_gymnast_ros.nodes.graph import NodeSpec
from world_gymnast_ros.paths import PACKAGE, share_path


def actions(specs: Iterable[NodeSpec], context: Any) -> list[Any]:
    """Return one launch_ros Node per spec, in the namespace given by the launch argument of that name."""
    namespace = LaunchConfiguration("namespace", default="").perform(context)
    return [
        Node(package=PACKAGE, executable=spec.name, name=spec.name, namespace=namespace, output="screen",
             parameters=[*([str(share_path(spec.params))] if spec.params else []), dict(spec.overrides)],
             remappings=list(spec.remaps.items()))
        for spec in specs
    ]
