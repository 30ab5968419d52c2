"""Which processes make a graph, as plain data; and how to run them without `launch`, which pip does not have.

The launch files and the command line read the same specs. Every node is a process of its own, in its own process
group, with its output in a file, and is ended by SIGINT, then SIGTERM, then SIGKILL.
"""
from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from world_gymnast_ros.errors import WorldGymnastError
from world_gymnast_ros.paths import TWIN_ADAPT, share_path

GRACE_S = 4.0
"""Given to each of SIGINT and SIGTERM; the arm node holds within it."""


@dataclass(frozen=True)
class NodeSpec:
    """One process. `params` file under the share folder; `overrides` parameters on top; `remaps` from -> to.

    `files`: the user's parameters files, above `params` and below `overrides`. `missed`: what the other nodes go
    without once this one has ended, for the operator.
    """

    name: str
    params: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    remaps: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    log_level: str = ""
    missed: str = ""

    def with_overrides(self, **overrides: Any) -> NodeSpec:
        """Return a copy with more parameters set."""
        return replace(self, overrides={**self.overrides, **overrides})

    def arguments(self) -> list[str]:
        """Return the ROS arguments."""
        words: list[str] = []
        for file in ([share_path(self.params)] if self.params else []) + list(self.files):
            words += ["--params-file", str(file)]
        for key, value in self.overrides.items():
            words += ["-p", f"{key}:={_yaml(value)}"]
        for old, new in self.remaps.items():
            words += ["-r", f"{old}:={new}"]
        if self.log_level:
            words += ["--log-level", self.log_level]
        return ["--ros-args", *words] if words else []

    def command(self) -> list[str]:
        """Return the command line."""
        return [sys.executable, "-m", "world_gymnast_ros.nodes", self.name, *self.arguments()]


def _yaml(value: Any) -> str:
    """Return a parameter value as ROS reads it on the command line; text is quoted, so that "0" stays text."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


# --- the graphs -------------------------------------------------------------------------------------------------------

CAMERA = NodeSpec("camera_node", "config/camera.yaml", missed="no images come: policy_node acts on nothing and an "
                  "armed arm comes to hold, recorder_node records none, adapt_node captures none")
POLICY = NodeSpec("policy_node", "config/policy.yaml", missed="no action chunks come: an armed arm_node holds")
ARM = NodeSpec("arm_node", "config/arm.yaml", missed="nothing is sent to the arm, which stays at its last goal: "
               "policy_node waits for arm_status, recorder_node gets no steps")
RECORDER = NodeSpec("recorder_node", "config/recorder.yaml", missed="nothing is recorded; the other nodes go on")
ADAPT = NodeSpec("adapt_node", "config/adapt.yaml", missed="nothing is adapted; policy_node goes on with the adapter "
                 "that it has")
REFLECTOR = NodeSpec("reflector_node", "config/reflector.yaml", missed="nobody says when the task is done; "
                     "episodes end by time or by the operator")
DISPLAY = NodeSpec("display_node", "config/display.yaml", missed="viewers see no /tf, poses and markers; the other "
                   "nodes go on")
TWIN = NodeSpec("twin_node", "config/twin.yaml", missed="neither images nor joint states come: arm_node holds, "
                "policy_node acts on nothing, recorder_node records neither")


def robot_graph(camera_source: str = "0", allow_simulation_policy: bool = False) -> list[NodeSpec]:
    """Return the graph beside a running Interbotix driver. An empty `camera_source`: another driver is the camera."""
    camera = [CAMERA.with_overrides(source=camera_source)] if camera_source else []
    arm = ARM.with_overrides(allow_simulation_policy=True) if allow_simulation_policy else ARM
    return [*camera, POLICY, arm, ADAPT, RECORDER]


def twin_graph(scene: str = "", seed: int = 0) -> list[NodeSpec]:
    """Return the same graph with the twin in place of driver and camera. Empty `scene`: the one in twin.yaml."""
    overrides: dict[str, Any] = {"seed": seed, **({"scene": scene} if scene else {})}
    adapt = replace(ADAPT, files=(share_path(TWIN_ADAPT),))
    return [TWIN.with_overrides(**overrides), POLICY, ARM, adapt, RECORDER]


def dry_graph(source: str, rate_hz: float = 5.0) -> list[NodeSpec]:
    """Return the graph in which no arm moves: frames in, chunks out, nothing to a driver.

    `source` is a camera, a video or recorded clips. Empty: another driver is the camera.
    """
    camera = [CAMERA.with_overrides(source=source, rate_hz=rate_hz)] if source else []
    return [*camera, POLICY.with_overrides(dry_run_without_arm=True), ARM.with_overrides(dry_run=True), ADAPT, RECORDER]


# --- running them -----------------------------------------------------------------------------------------------------


class GraphError(WorldGymnastError):
    """A node ended by itself."""


DOMAINS = range(61, 101)
"""ROS domains that demos and tests may use: high ones, whose ports still lie below Linux's ephemeral range."""


def claim_domain() -> IO[str]:
    """Return the open, locked file of a ROS domain that no other demo or test on this machine holds.

    Its name ends in the domain's number; it is held until it is closed. Two graphs in one domain would take each
    other's commands for their own.
    """
    for domain in DOMAINS:
        claim = (Path(tempfile.gettempdir()) / f"world_gymnast_domain_{domain}").open("w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            claim.close()
            continue
        return claim
    raise GraphError(f"all ROS domains {DOMAINS.start} to {DOMAINS.stop - 1} are held by demos or tests; end some, or "
                     "name one with --domain-id")


RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
"""Where Fast DDS looks for its profile: Jazzy's name, Kilted's name."""


def network_environment(open_to_network: bool, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep a graph on this machine, or open it to the network, whatever `env` says.

    Either way shared memory is large enough for camera images. A graph on this machine has its ports on the loopback
    interface alone and asks no other machine; processes of this machine reach it with any environment. An open one
    keeps a Fast DDS profile that `env` names: it may be what joins the machines.
    """
    if not open_to_network:
        return {RANGE: "LOCALHOST", "ROS_STATIC_PEERS": "",
                **dict.fromkeys(PROFILES, str(share_path("config/fastdds.xml")))}
    own = next((env[name] for name in PROFILES if env.get(name)), str(share_path("config/fastdds_network.xml")))
    wanted = env.get(RANGE, "SUBNET")
    return {RANGE: "SUBNET" if wanted in ("LOCALHOST", "OFF") else wanted, **dict.fromkeys(PROFILES, own),
            **({"ROS_LOCALHOST_ONLY": "0"} if env.get("ROS_LOCALHOST_ONLY") else {})}


def ros_environment(domain_id: int | None = None, log_dir: Path | None = None) -> dict[str, str]:
    """Return this process's environment with what a graph on one workstation needs; what is set already stays.

    So a shell whose discovery range reaches further opens what it starts, too.
    """
    env = dict(os.environ)
    is_open = env.get(RANGE, "LOCALHOST") not in ("LOCALHOST", "OFF")
    env = {**network_environment(is_open, env), **env}
    env.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    env["PYTHONUNBUFFERED"] = "1"  # so that the log file has the last words of a node that is killed
    if domain_id is not None:
        env["ROS_DOMAIN_ID"] = str(domain_id)
    if log_dir is not None:
        env["ROS_LOG_DIR"] = str(log_dir)
    return env


@dataclass(frozen=True)
class Running:
    """One started node."""

    spec: NodeSpec
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 15) -> str:
        """Return the last lines it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Graph:
    """Started nodes. A context manager: leaving it ends them all, whatever happened."""

    def __init__(self, nodes: Sequence[Running]) -> None:
        self.nodes = {node.spec.name: node for node in nodes}
        atexit.register(self.stop)

    def check(self) -> None:
        """Raise GraphError with the log's end if a node has ended."""
        for name, node in self.nodes.items():
            code = node.process.poll()
            if code is not None:
                raise GraphError(f"{name} ended with code {code}; {node.log} ends:\n{node.tail()}")

    def stop(self, grace_s: float = GRACE_S) -> dict[str, int]:
        """End all nodes, the arm first, and return their exit codes. Safe to call again."""
        order = sorted(self.nodes.values(), key=lambda node: node.spec.name != ARM.name)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for node in order:
                _signal_group(node.process, number)
            deadline = time.monotonic() + grace_s
            while time.monotonic() < deadline and any(n.process.poll() is None for n in order):
                time.sleep(0.02)
        for node in order:  # children that outlived their node
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.process.pid, signal.SIGKILL)
        atexit.unregister(self.stop)
        return {name: node.process.wait() for name, node in self.nodes.items()}

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()


def start(specs: Iterable[NodeSpec], env: Mapping[str, str], log_dir: Path) -> Graph:
    """Start every node and return at once; `Graph.check` tells whether one has fallen."""
    log_dir.mkdir(parents=True, exist_ok=True)
    running: list[Running] = []
    try:
        for spec in specs:
            log = log_dir / f"{spec.name}.log"
            with log.open("wb") as file:
                process = subprocess.Popen(spec.command(), env=dict(env), stdin=subprocess.DEVNULL, stdout=file,
                                           stderr=subprocess.STDOUT, start_new_session=True)
            running.append(Running(spec, process, log))
    except BaseException:  # Ctrl-C, a full disk: what already runs must not stay behind
        Graph(running).stop()
        raise
    return Graph(running)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a node and its children, if it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it ended between the two lines
            os.killpg(process.pid, number)
