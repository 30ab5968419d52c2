"""What `arm_node` and `policy_node` do, in simulated time: the same player, guard, gripper loop and query gate.

Nothing is decided here that those decide; this only moves time, in ticks of 20 ms, and passes what they ask to the
twin. The policy answers `inference_s` after the frame that it was shown; a frame is there whenever the gate wants one.
"""
from __future__ import annotations

from collections.abc import Callable

from world_gymnast_ros.config import ArmConfig, PolicyConfig
from world_gymnast_ros.control.chunk_player import ArmMode, ChunkPlayer, PlayedStep
from world_gymnast_ros.control.query_gate import QueryGate, QueryRules
from world_gymnast_ros.robot.gripper import GripperLoop, GripWatch
from world_gymnast_ros.twin.sim import CONTROL_TICK_S, Twin
from world_gymnast_ros.types import ActionChunk, Verdict

INFERENCE_S = CONTROL_TICK_S
"""From frame to chunk: the tiny policy's 20 ms. With the gate's settling time of 0.18 s actions keep their beat."""
_BEGIN_NS = 10**12
"""Steady time at which an episode begins: no time that matters is near 0."""


class SimulatedArm:
    """One episode's player and gate around a twin that was just reset."""

    def __init__(self, twin: Twin, arm: ArmConfig, policy: PolicyConfig, inference_s: float = INFERENCE_S) -> None:
        self.twin = twin
        self.player = ChunkPlayer(arm.safety())
        self.gate = QueryGate(QueryRules(policy.dt_s, policy.settle_fraction, policy.max_frame_age_s, policy.retry_s))
        self._grip, self._gripper = GripWatch(), GripperLoop(arm.gripper_gain_per_m, arm.max_gripper_pwm)
        self._inference_ns = round(inference_s * 1e9)
        self._ready: tuple[int, ActionChunk] | None = None
        self._sequence = 0
        twin.set_profile_s(arm.moving_time_s, arm.accel_time_s)

    @property
    def now_ns(self) -> int:
        """Simulated time, for every clock."""
        return _BEGIN_NS + round(self.twin.time_s * 1e9)

    def arm(self) -> str:
        """Arm, as an operator does. Return "" or why it was refused."""
        refusal = self.player.arm(self.now_ns, self.twin.arm_state(self.now_ns), 0.0)
        self.gate.set_active(not refusal, self.now_ns)
        return refusal

    def play(self, instruction: str, look: Callable[[int], ActionChunk]) -> PlayedStep | None:
        """Do what is due now; return what was played.

        `look(now_ns)` takes a frame and asks the policy; it is called when the gate lets the policy look.
        """
        now_ns = self.now_ns
        if self._ready is not None and now_ns >= self._ready[0]:
            chunk, self._ready = self._ready[1], None
            self.player.accept(chunk, now_ns, sequence=self._sequence, instruction=instruction,
                               frame_age_s=(now_ns - chunk.frame_stamp_ns) * 1e-9)
        played = self.player.tick(now_ns, self.twin.arm_state(now_ns), 0.0)
        if played is not None:
            if played.send:
                self.twin.set_joint_goals(played.command.joints)
            if played.action is not None:
                held = played.command.verdict in (Verdict.HOLD, Verdict.STOP)
                self.gate.played(played.action.sequence, played.action.index, played.action.size, held, now_ns, now_ns)
        if self._ready is None and not self.gate.refusal(now_ns, now_ns, now_ns, instruction):
            self._sequence += 1
            self._ready = now_ns + self._inference_ns, look(now_ns)
            self.gate.published(self._sequence, now_ns)
        self.drive_gripper()
        return played

    def advance(self) -> None:
        """Move time on by one tick."""
        self.twin.advance(CONTROL_TICK_S)

    def drive_gripper(self) -> None:
        """Run Bridge's position loop on the gripper motor, as long as the grip may be driven."""
        now_ns, goal, finger_m = self.now_ns, self.player.memory.gripper, self.twin.left_finger_m
        if not self._grip.drives(now_ns, finger_m, self.player.mode is ArmMode.ARMED):
            self.twin.set_gripper_pwm(0.0)
        elif goal is not None:
            self.twin.set_gripper_pwm(self._gripper.pwm(goal, finger_m))
