"""Launch arguments as settings of the graph's nodes: plain data, without `launch`, so that they are tested anywhere."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.nodes import command_line
from world_gymnast_ros.nodes.graph import NodeSpec

Values = Callable[[str], str]
"""Name of a launch argument -> what it was set to."""

DRIVERS = ("xs", "trajectory", "servo", "cartesian")
LEVELS = ("debug", "info", "warn", "error", "fatal")
SETTINGS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "params_file": ("", "parameters file on top of the shipped ones, for every node that it has a section for; one "
                        "without a section for any node is refused", ()),
    "robot_name": ("", "namespace of the driver and prefix of its frames; empty: as in the parameters files (wx250s)",
                   ()),
    "driver": ("", "what speaks to the arm (docs/reference/drivers.md); empty: as in the parameters files (xs)",
               ("", *DRIVERS)),
    "policy_url": ("", "http://HOST:PORT of a policy server to ask in place of a policy of policy_node's own", ()),
    "policy": ("", "policy that acts and is adapted: folder, shipped name, or hub name of a published one; empty: as "
                   "in the parameters files", ()),
    "world_model": ("", "world model of adapt_node: folder, file or shipped name; empty: as in the parameters files",
                    ()),
    "judges": ("", "judges of adapt_node that must agree, with commas: folders, shipped names, hub names, "
                   "http://HOST:PORT/v1#MODEL; empty: as in the parameters files", ()),
    "record_dir": ("", "folder of the recorder's episodes; empty: as in the parameters files (runs/episodes)", ()),
    "image_topic": ("", "topic of the images, for a camera driver of one's own (with camera:=none), such as "
                        "/camera/color/image_raw; compressed ones are looked for at <this>/compressed, camera_info "
                        "beside it. Empty: image_raw", ()),
    "log_level": ("info", "level of every node's log; above info the line that says whether the arm moves is not seen",
                  LEVELS),
    "use_sim_time": ("false", "true: stamps come from /clock, as in a simulator or a bag that is played",
                     ("true", "True", "false", "False")),
}
"""Arguments that every launch file has: default, meaning, and what they may be (empty: anything)."""

_PARAMETER = (
    ("robot_name", "robot_name", ("arm_node", "recorder_node", "adapt_node", "twin_node")),
    ("driver", "driver", ("arm_node",)),
    ("policy_url", "policy_url", ("policy_node",)),
    ("policy", "checkpoint", ("policy_node",)),
    ("policy", "policy", ("adapt_node",)),
    ("world_model", "world_model", ("adapt_node",)),
    ("judges", "judges", ("adapt_node",)),
    ("record_dir", "directory", ("recorder_node",)),
)
"""Argument, the parameter that it sets, and of which nodes."""


def settle(specs: Iterable[NodeSpec], value: Values, namespace: str) -> list[NodeSpec]:
    """Return the specs with what the arguments say. Raises BadConfig for a value that would reach nobody."""
    specs = list(specs)
    file = _params_file(value("params_file"), specs, namespace)
    remaps = _camera_topics(value("image_topic"))
    return [_settled(spec, value, namespace, file, remaps) for spec in specs]


def full_name(spec: NodeSpec, namespace: str) -> str:
    """Return the node's name in the graph, such as /lab/arm_node."""
    return str(PurePosixPath("/", namespace.strip("/"), spec.name))


def _settled(spec: NodeSpec, value: Values, namespace: str, file: Path | None, remaps: Mapping[str, str]) -> NodeSpec:
    overrides: dict[str, Any] = dict(spec.overrides)
    for argument, parameter, nodes in _PARAMETER:
        if value(argument) and spec.name in nodes:
            overrides[parameter] = value(argument)
    if "directory" in overrides and spec.name == "recorder_node":
        overrides["directory"] = str(Path(overrides["directory"]).expanduser().resolve())
    own = (file,) if file is not None and _has_section(file, full_name(spec, namespace)) else ()
    files = (*spec.files, *own)
    if value("robot_name") and spec.name == "arm_node" and not _sets(files, "base_frame"):
        overrides["base_frame"] = f"{value('robot_name')}/base_link"  # as the driver names it
    if value("use_sim_time") in ("true", "True"):
        overrides["use_sim_time"] = True
    return replace(spec, overrides=overrides, files=files, remaps={**spec.remaps, **remaps},
                   log_level="" if value("log_level") == SETTINGS["log_level"][0] else value("log_level"))


def _params_file(text: str, specs: Iterable[NodeSpec], namespace: str) -> Path | None:
    """Return the user's file, absolute. Raises BadConfig where it is not there or has no section for any node."""
    if not text:
        return None
    file = Path(text).expanduser().resolve()
    if not file.is_file():
        raise BadConfig(f"params_file:={text}: there is no such file ({file})")
    names = [full_name(spec, namespace) for spec in specs]
    if not any(_has_section(file, name) for name in names):
        sections = ", ".join(sorted(command_line.sections_of(file))) or "none"
        raise BadConfig(f"params_file:={text} reaches nobody: of its sections ({sections}) none is for a node of this "
                        f"launch file ({', '.join(names)}); name one '/**' or like a node, with 'ros__parameters' in "
                        "it")
    return file


def _has_section(file: Path, node: str) -> bool:
    return any(command_line.applies(section, node) for section in command_line.sections_of(file))


def _sets(files: Iterable[Path], parameter: str) -> bool:
    return any(parameter in block for file in files for block in command_line.sections_of(file).values())


def _camera_topics(topic: str) -> dict[str, str]:
    """Return the remaps to a camera's topics, by the convention that camera_info lies beside the images."""
    if not topic:
        return {}
    if topic.endswith("/compressed"):
        raise BadConfig(f"image_topic:={topic}: name the topic without /compressed, and set image_compressed to true "
                        "for the nodes that are to hear the compressed images")
    return {"image_raw": topic, "image_raw/compressed": f"{topic}/compressed",
            "camera_info": str(PurePosixPath(topic).with_name("camera_info"))}
