"""What every node shares: strict parameters, quality of service, and a loop that ends cleanly on a signal."""
from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from world_gymnast_ros import config, priority
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.errors import BadConfig, WorldGymnastError, one_line
from world_gymnast_ros.nodes import command_line
from world_gymnast_ros.nodes.causes import Causes, NameClaim
from world_gymnast_ros.nodes.convert import FloatingPointRange, IntegerRange, ParameterDescriptor
from world_gymnast_ros.nodes.ending import Signals, StoppedWhileLoadingError

T = TypeVar("T")

NEWEST = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Images: matches reliable and best-effort publishers, and never queues an old one."""
NEWEST_RELIABLE = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
"""Publishers of images: a reliable one also serves recorders and viewers that ask for it."""
RELIABLE = QoSProfile(depth=10, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
RECORD = QoSProfile(depth=1000, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
"""The recorder's: a busy moment on the disk must not cost a step."""
RECORD_IMAGES = QoSProfile(depth=60, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)
"""The same for images: two seconds of them, 55 MB at the most."""
SHARED = QoSProfile(depth=100, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Joint states where every one counts: several publishers may share the topic, and the newest need not be the arm's."""
LATCHED = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE,
                     durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""State that a late joiner must see: instruction, adapter, arm_status."""


def hear_everyone(node: Node, kind: Any, topic: str, callback: Callable[[Any], None]) -> None:
    """Subscribe so that a publisher of any quality of service is heard: one that promises nothing, a plain one, and one
    that spoke before this node came up. A message may come more than once.

    Each subscription alone does not match every publisher; rclpy would then say that nothing will be received.
    """
    for qos in (NEWEST, RELIABLE, LATCHED):
        node.create_subscription(kind, topic, callback, qos,
                                 event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))


def alive(lease_s: float) -> QoSProfile:
    """Return the quality of `policy_alive`, on which nothing is ever said: DDS tells when its writer is lost.

    The writer must assert every ALIVE_PERIOD_S that it lives, from the thread that serves its topics: so a process that
    runs on without doing its work is lost too. A reader calls the writer lost after the *reader's* lease, which must
    not be the shorter one.
    """
    return QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE,
                      liveliness=LivelinessPolicy.MANUAL_BY_TOPIC, liveliness_lease_duration=Duration(seconds=lease_s))


ALIVE_LEASE_S = 0.1
"""What a policy offers; the arm node waits for `policy_lease_s`."""
ALIVE_PERIOD_S = 0.04
"""How often it asserts that it lives: three times before the shortest `policy_lease_s` is over."""

_OWN = ("use_sim_time", "start_type_description_service")
PARAMETERS = frozenset(spec.name for cls in (*config.FILES.values(), AdaptNodeConfig)
                       for spec in dataclasses.fields(cls))
"""The names of all parameters of all nodes of this package."""
NAMESAKE_PERIOD_S, FORGOTTEN_S = 5.0, 25.0
"""How often the graph is asked for another node of this name; DDS forgets one that was killed after 20 s."""
NO_MOTION = "publishes no motion"
"""The first words of every node but the arm's."""


class ConfiguredNode(Node):
    """A node whose ROS parameters are the fields of one config dataclass: read-only, typed, ranged."""

    words: ClassVar[Sequence[str]] = ()
    """The command line of this process, without the program's name."""
    note = ""
    """What the log says after the first line, which tells whether the node moves anything."""

    claims_name: ClassVar[bool] = False
    """Whether the process is the node's own, and so must be the only one of its name."""
    is_unfinished = False
    """Whether `close` gave up waiting for something that goes on; the process is then ended."""
    _claims: ClassVar[list[NameClaim]] = []

    def __init__(self, name: str) -> None:
        super().__init__(name, automatically_declare_parameters_from_overrides=True)
        self.causes = Causes()
        self._looked_ns, self._alone_ns = steady_ns(), steady_ns()
        if self.claims_name:
            try:
                self._claims.append(NameClaim(self.get_fully_qualified_name(), self.context.get_domain_id()))
            except BadConfig:
                self.destroy_node()
                raise

    @classmethod
    def release_names(cls) -> None:
        """Give back the names that this process holds."""
        while cls._claims:
            cls._claims.pop().release()

    def look_for_namesake(self) -> None:
        """Tell of another node of this name elsewhere in the graph, once it is there for longer than a killed one."""
        now_ns = steady_ns()
        if now_ns - self._looked_ns < NAMESAKE_PERIOD_S * 1e9:
            return
        self._looked_ns = now_ns
        name = (self.get_name(), self.get_namespace())
        count = self.get_node_names_and_namespaces().count(name)
        if count < 2:
            self._alone_ns = now_ns
        elif now_ns - self._alone_ns > FORGOTTEN_S * 1e9:
            line = (f"{count} nodes are called {self.get_fully_qualified_name()}, on other machines or in containers: "
                    "services and parameters go to either; end one, or start it with -r __node:=NAME")
            if self.causes.news(line):
                self.get_logger().error(line)

    def read_config(self, cls: type[T], moves: str = NO_MOTION) -> T:
        """Declare every field of `cls` as a parameter and return the values given. Raises BadConfig.

        `moves` is the node's first line in the log, which says whether it can move anything; "": it says so itself.
        """
        given = {name: parameter.value for name, parameter in self.get_parameters_by_prefix("").items()
                 if name not in _OWN and not name.startswith("qos_overrides.")}
        known = [spec.name for spec in dataclasses.fields(cls)]  # type: ignore[arg-type]
        command_line.check_reached(self.words, self.get_fully_qualified_name(), known, given)
        self._set_apart(known, given)
        result = config.from_mapping(cls, given, self.get_name())
        for spec in dataclasses.fields(cls):  # type: ignore[arg-type]
            if self.has_parameter(spec.name):  # replaced, so that it gets its range and description
                self.undeclare_parameter(spec.name)
            value = getattr(result, spec.name)
            value = list(value) if isinstance(value, tuple) else value
            self.declare_parameter(spec.name, value, _descriptor(spec), ignore_override=True)
        if moves:
            self.get_logger().info(moves)
        return result

    def _set_apart(self, known: Sequence[str], given: dict[str, Any]) -> None:
        """Take out of `given` what a shared section of a parameters file sets for other nodes. Raises BadConfig."""
        name = self.get_fully_qualified_name()
        others = {key: file for key, file in command_line.foreign(self.words, name, known, PARAMETERS).items()
                  if key in given}
        for key in others:
            self.undeclare_parameter(key)
            del given[key]
        strange = [f"{key} ({file})" for key, file in others.items() if key not in PARAMETERS]
        if strange:
            self.note = (f"unknown here, taken to be for nodes of other packages: {', '.join(strange)}. In a section "
                         f"'{name}' an unknown name is refused")

    def now_ns(self) -> int:
        """Return ROS time, for stamps. Deadlines use `time.monotonic_ns`."""
        return int(self.get_clock().now().nanoseconds)

    def every(self, period_s: float, callback: Callable[[], None]) -> Any:
        """Call back every `period_s` of the steady clock; on rclpy's default clock a step back would stop the calls."""
        return self.create_timer(period_s, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def close(self) -> None:
        """Do what must happen before the node goes; called once, with the context still valid."""


def named(node: Node, kind: str) -> str:
    """Return the name of a node of this kind in `node`'s namespace, for /diagnostics, which all namespaces share."""
    return f"{node.get_namespace()}/{kind}".lstrip("/")


def keeps_its_name(name: str) -> list[str]:
    """Return the `cli_args` of a second node in a process: launch renames every node of one with `__node:=NAME`."""
    return ["--ros-args", "-r", f"__node:={name}"]


class NodeDone(Exception):
    """Raised by a callback to end the node with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _descriptor(spec: dataclasses.Field[Any]) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=spec.metadata["doc"], read_only=True)
    low, high = spec.metadata.get("low", -math.inf), spec.metadata.get("high", math.inf)
    if math.isfinite(low) and math.isfinite(high):
        if type(spec.default) is int:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=0)]
        elif isinstance(spec.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    return descriptor


def _init(argv: Sequence[str]) -> None:
    """Start ROS, with one line where it refuses an argument. The signals are `run`'s."""
    try:
        rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # the class of RCLError and of UnknownROSArgsError
        raise BadConfig(f"ROS refuses the command line or the environment: {one_line(error, 400)}; a "
                        "parameter is given as --ros-args -p NAME:=VALUE, see --help") from error


def _made(make: Callable[[], ConfiguredNode]) -> ConfiguredNode:
    """Return the node, with one line where rclpy refuses a parameter's type or a name."""
    try:
        return make()
    except (ParameterException, NameValidationException) as error:
        raise BadConfig(f"ROS refuses a parameter or a name: {one_line(error, 400)}; see --help") from error


def run(make: Callable[[], ConfiguredNode], argv: list[str] | None = None, threads: int = 1,
        usage: command_line.Usage | None = None) -> int:
    """Run one node until a signal, and return the exit code: 0 after a signal or `SystemExit(0)`, 2 on a start error.

    `argv` begins with the program's name. Words that nobody reads are a start error; with `usage`, --help is answered.

    SIGHUP is one of them, for the ssh session that drops; under nohup, which ignores it, it stays ignored.

    The context is not shut down by the signal handler (rclpy's own does that): so `close` can still publish, and no
    wait can miss its wake-up. A signal is served within the 0.25 s of one spin. More `threads` than one are for a node
    with a callback that takes long, such as an action.
    """
    argv = sys.argv if argv is None else argv
    if usage is not None and command_line.wants_help(argv[1:]):
        print(usage.text())
        return 0
    node: ConfiguredNode | None = None
    code = 1
    with Signals() as signals:
        try:
            command_line.check_words(argv[1:], usage.command if usage is not None else Path(argv[0]).name)
            ConfiguredNode.words, ConfiguredNode.claims_name = argv[1:], True
            _init(argv)
            priority.restore_session()  # a terminal that gave way to others earlier controls an arm now
            with signals.loading():
                node = _made(make)
            if node.note:
                node.get_logger().warning(node.note)
            executor = SingleThreadedExecutor() if threads == 1 else MultiThreadedExecutor(threads)
            executor.add_node(node)
            while rclpy.ok() and not signals.stopped:
                executor.spin_once(timeout_sec=0.25)
                node.look_for_namesake()
            code = 0
        except StoppedWhileLoadingError:
            code = 0
        except WorldGymnastError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            code = 2
        except NodeDone as done:
            code = done.code
        finally:
            ConfiguredNode.claims_name = False
            if node is not None:
                _end(node, code)
            ConfiguredNode.release_names()
            rclpy.try_shutdown()
    return code


def _end(node: ConfiguredNode, code: int) -> None:
    """Close a node; one that could not end what it does goes with the process, which it would keep for as long."""
    node.close()
    if node.is_unfinished:
        rclpy.try_shutdown()
        print(f"{node.get_name()} ended; what was under way was abandoned", file=sys.stderr, flush=True)
        os._exit(code)
    node.destroy_node()


def steady_ns() -> int:
    """Return the steady clock, for every deadline: wall time may jump."""
    return time.monotonic_ns()
