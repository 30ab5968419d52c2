"""What arm_node asks of the arm: the `Driver` port, the measured joints, and a stand-in that sends nothing.

Each kind of driver is a module beside this one: driver_xs (Interbotix), driver_ros2_control (trajectory controller),
driver_cartesian (Cartesian controllers, MoveIt Servo). None of them checks a goal: what is sent has been through the
guard. Poses are `kinematics.fk` of the guarded joints, hence poses whose inverse kinematics was checked.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future

from world_gymnast_ros.config import ArmConfig
from world_gymnast_ros.control.chunk_player import SILENT_AGES
from world_gymnast_ros.errors import BadAction
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.nodes.causes import Causes
from world_gymnast_ros.nodes.joint_merge import JointMerge
from world_gymnast_ros.robot import kinematics
from world_gymnast_ros.robot.actions import gripper_is_open
from world_gymnast_ros.types import F64, ArmState

DISCOVERY_POLL_S = 0.05
UNNAMED = "_NODE_NAME_UNKNOWN_"
"""What rclpy calls the node of a publisher of which it has heard no more yet."""
GAP_S = 0.15
"""Joint states that come back after so long may be another process's: a restart takes longer."""


def joint_states_topic(config: ArmConfig) -> str:
    """Return the topic on which the chosen driver's joint states come."""
    return f"{config.robot_name}/joint_states" if config.driver == "xs" else config.joint_states_topic


class JointStates:
    """Newest measured state, and the steady time it came at."""

    def __init__(self, node: Node, topic: str, on_gap: Callable[[float], None]) -> None:
        self.arm: ArmState | None = None
        self.received_ns = 0
        self.count = 0
        self._merge = JointMerge()
        self._on_gap = on_gap  # called with the seconds of silence, before what comes after it can be acted on
        self.fault, self._causes = "", Causes()
        self._waiting: list[Future] = []
        self._node = node
        self.topic = node.create_subscription(convert.JointState, topic, self._on_joints, base.NEWEST).topic_name

    def _on_joints(self, msg: Any) -> None:
        self.count += 1
        try:
            now_ns = base.steady_ns()
            arm = self._merge.add(msg, now_ns)
            if arm is None:  # another driver's, such as a gripper's own
                if self.arm is None:
                    self.fault = f"joint_states has {', '.join(self._merge.others[:9])} and not yet the arm's joints"
                return
            if self.age_s(now_ns) > GAP_S:
                self._on_gap(self.age_s(now_ns))
            self.arm, self.received_ns, self.fault = arm, now_ns, ""
        except BadAction as error:  # the old state ages, and the guard holds on its age
            self.fault = str(error)
            if self._causes.news(self.fault):
                self._node.get_logger().error(self.fault)
            return
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(True)

    def age_s(self, now_ns: int) -> float:
        """Return the age of the newest state, infinite before the first."""
        return (now_ns - self.received_ns) * 1e-9 if self.arm is not None else float("inf")

    def next(self) -> Future:
        """Return a future that completes with the next state."""
        future = Future()
        self._waiting.append(future)
        return future


class Driver(ABC):
    """The port: goals out, measured state in. The base of every driver."""

    def __init__(self, node: Node, config: ArmConfig) -> None:
        self._node, self._config, self._timeout_s = node, config, config.service_timeout_s
        self.joints = JointStates(node, joint_states_topic(config), self._on_gap)
        self.temperatures: list[int] = []
        self.command_topics: list[str] = []  # that only we may publish to
        self._sources: frozenset[bytes] | None = None  # who published joint states when the driver was prepared

    def state(self, now_ns: int) -> tuple[ArmState | None, float]:
        """Return the newest measured state and its age in s."""
        return self.joints.arm, self.joints.age_s(now_ns)

    @abstractmethod
    def send_joints(self, joints: F64, hold: bool = False) -> None:
        """Send one guarded goal (6,) rad. `hold`: no more goals are to be expected, come to rest at this one."""

    @abstractmethod
    def send_gripper(self, goal: float, finger_m: float) -> None:
        """Drive the gripper towards `goal`, 0 closed to 1 open, called at gripper_rate_hz; `finger_m` is measured."""

    def stop_gripper(self, finger_m: float | None) -> None:  # noqa: B027 (one that cannot be stopped goes on)
        """End a motion of the gripper, called at gripper_rate_hz; `finger_m` is measured, None where it is not."""

    def release_gripper(self) -> None:  # noqa: B027 (a gripper that keeps its grip has nothing to do)
        """Let go, where the driver can: the arm was disarmed."""

    def is_prepared(self) -> bool:
        """Tell whether goals may be sent: to a driver that was made ready, and is still the one that is heard."""
        return self._sources is not None

    def let_go(self) -> None:
        """Send nothing from now on until the driver was made ready again: the arm may be in other hands."""
        self._sources = None

    async def make_ready(self) -> str:
        """Prepare the driver and hear from the arm afresh. Return "" or why goals must not be sent."""
        refusal = await self.prepare() or self.rivals()
        if refusal:
            return refusal
        if not await self.fresh_state():
            return f"no joint states on '{joint_states_topic(self._config)}'; start the driver"
        self._sources = self._publishers()
        return ""

    def rivals(self) -> str:
        """Return who else commands the arm past the guard, by publishing where goals go, or ""."""
        for topic in self.command_topics:
            ends = self._node.get_publishers_info_by_topic(topic)
            if len(ends) > 1:
                names = sorted(f"{end.node_namespace.rstrip('/')}/{end.node_name}" for end in ends)
                return (f"{len(ends)} publishers of {topic} ({', '.join(names)}): end the others, the guard must be "
                        "the only one (a killed one is forgotten after 20 s)")
        return ""

    def sources(self) -> list[str]:
        """Return the names of the nodes that publish the arm's joint states; UNNAMED for one not known yet."""
        return [end.node_name for end in self._node.get_publishers_info_by_topic(self.joints.topic)]

    async def found_sources(self) -> list[str]:
        """Return `sources` once all of them have names, or what is known after the timeout."""
        await self._wait_for(lambda: ["joint states"] if UNNAMED in (self.sources() or [UNNAMED]) else [])
        return self.sources()

    def _publishers(self) -> frozenset[bytes]:
        ends = self._node.get_publishers_info_by_topic(self.joints.topic)
        return frozenset(bytes(end.endpoint_gid) for end in ends)

    def _on_gap(self, gap_s: float) -> None:
        """Forget that the driver was prepared when it may be another: after a long silence, or from a new source."""
        known = self._sources
        if known is not None and (gap_s > SILENT_AGES * self._config.max_arm_age_s or self._publishers() - known):
            self._sources = None

    async def read_temperatures(self) -> None:  # noqa: B027 (a driver that measures none has nothing to read)
        """Note the motors' temperatures, where the driver tells them."""

    @abstractmethod
    async def prepare(self) -> str:
        """Make the driver ready for goals. Return "" or why it is not; nothing may move."""

    async def health(self) -> tuple[str, tuple[int, ...]]:
        """Return ("" or why the driver cannot be trusted any more, hardware errors per motor), polled while armed.

        The age of the joint states is none of this: the player judges it at every tick.
        """
        return "", ()

    async def fresh_state(self) -> bool:
        """Wait for a state measured after this call; False when none comes in time."""
        return await self._bounded(self.joints.next()) is not None

    async def _wait_for(self, absent: Callable[[], list[str]]) -> list[str]:
        """Wait until nothing is absent; return the names of what still is after `timeout_s`.

        A node that was just started does not see the driver yet, and a command sent before the driver's subscription
        is matched would be lost without a word.
        """
        deadline_ns = base.steady_ns() + round(self._timeout_s * 1e9)
        while absent() and base.steady_ns() < deadline_ns:
            await self._bounded(Future(), DISCOVERY_POLL_S)
        return absent()

    async def _call(self, client: Any, request: Any) -> Any:
        return await self._bounded(client.call_async(request)) if client.service_is_ready() else None

    async def _bounded(self, future: Future, timeout_s: float | None = None) -> Any:
        """Await a future for at most `timeout_s` (the driver's, unless given); None when it takes longer."""
        def give_up() -> None:
            if not future.done():
                future.set_result(None)

        limit_s = self._timeout_s if timeout_s is None else timeout_s
        timer = self._node.create_timer(limit_s, give_up, clock=Clock(clock_type=ClockType.STEADY_TIME))
        try:
            return await future
        finally:
            self._node.destroy_timer(timer)


class DryDriver(Driver):
    """Sends nothing. State of a real driver if one is heard, else of an ideal arm that starts at neutral."""

    def __init__(self, node: Node, config: ArmConfig) -> None:
        super().__init__(node, config)
        self._ideal, self._gripper = kinematics.NEUTRAL.copy(), 1.0

    def state(self, now_ns: int) -> tuple[ArmState | None, float]:
        """Return the state and its age in s."""
        if self.joints.arm is not None:
            return super().state(now_ns)
        zeros = np.zeros(6)
        return ArmState(kinematics.fk(self._ideal), self._ideal, zeros, zeros, self._gripper, 0), 0.0

    def send_joints(self, joints: F64, hold: bool = False) -> None:
        """Remember the goal: the ideal arm is there at once."""
        self._ideal = joints.copy()

    def send_gripper(self, goal: float, finger_m: float) -> None:
        """Move the ideal gripper to its goal."""
        self._gripper = float(gripper_is_open(goal))

    async def prepare(self) -> str:
        """Nothing to prepare."""
        return ""

    async def fresh_state(self) -> bool:
        """The ideal arm's state is always fresh; a real one's age is checked on arming."""
        return True
