"""The twin as an environment: real episodes of a policy, played by the code that moves an arm, in simulated time."""
from __future__ import annotations

import numpy as np

from world_gymnast_ros.config import ArmConfig, PolicyConfig
from world_gymnast_ros.control.chunk_player import ArmMode, PlayedStep
from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.twin.observer import (
    CAPTURE_HEIGHT,
    CAPTURE_WIDTH,
    RENDER_HEIGHT,
    RENDER_WIDTH,
    SIZE_PX,
    Observer,
    Seen,
    capture,
    scene_camera,
)
from world_gymnast_ros.twin.scene import Scene
from world_gymnast_ros.twin.sim import CONTROL_TICK_S, Twin
from world_gymnast_ros.twin.simulated_arm import INFERENCE_S, SimulatedArm
from world_gymnast_ros.types import (
    CONTROL_DT_S,
    F32,
    ActionChunk,
    ActsOnState,
    AdapterRef,
    EndsEpisodes,
    Frame,
    Policy,
    Start,
)

PATIENCE = 3
"""An episode ends after so many times its horizon, however few actions were played."""


class TwinEnvironment:
    """Implements `evaluation.environment.Environment`. An episode has the task's number of actions, held ones too."""

    def __init__(self, scene: Scene, frame_size: tuple[int, int] = (SIZE_PX, SIZE_PX), arm: ArmConfig | None = None,
                 policy: PolicyConfig | None = None, inference_s: float = INFERENCE_S, done: EndsEpisodes | None = None
                 ) -> None:
        """`frame_size` (h, w) of an episode's frames; `arm` and `policy`: the nodes' settings (None: as shipped);
        `done`: what ends an episode before its time, by looking at the frame after every action."""
        self.done = done
        self.twin, self.frame_size = Twin(scene), frame_size
        self._arm, self._policy, self._inference_s = arm or ArmConfig(), policy or PolicyConfig(), inference_s
        self._is_reset = False

    @property
    def name(self) -> str:
        """The scene's name."""
        return self.twin.scene.name

    @property
    def horizon_steps(self) -> int:
        """Actions of an episode of the present task."""
        return self.twin.task.horizon_steps

    def reset(self, seed: int, instruction: str) -> Start:
        """Place objects and arm; BadInstruction where the twin cannot measure success of the instruction."""
        self.twin.reset(seed, instruction)
        self._is_reset = True
        frame, measured = capture(self.twin)
        return Start(frame, measured, instruction)

    def run(self, policy: Policy, adapter: AdapterRef | None, instruction: str, temperature: float, seed: int
            ) -> Episode:
        """Play one episode from the last `reset`; sampled with `seed` where the temperature is not 0. A policy that
        looks at the arm's state gets the measured one."""
        if not self._is_reset:
            raise EpisodeError("an episode was run already; reset the twin first")
        self._is_reset = False
        policy.load_adapter(adapter)
        arm = SimulatedArm(self.twin, self._arm, self._policy, self._inference_s)
        refusal = arm.arm()
        if refusal:
            raise EpisodeError(f"the arm of the twin was not armed: {refusal}")
        if self.done is not None:
            self.done.begin(instruction)
        episode = _Recording(self.twin, policy, instruction, temperature, seed, self.frame_size)
        deadline_s = PATIENCE * self.horizon_steps * CONTROL_DT_S
        while (len(episode.deltas) < self.horizon_steps and arm.player.mode is ArmMode.ARMED
               and self.twin.time_s < deadline_s):
            noted = episode.note(arm.play(instruction, episode.look))
            if noted and self.done is not None and self.done.look(episode.seen[-1].frame):
                arm.player.hold(HoldCause.TASK_DONE.value, HoldCause.TASK_DONE)
            arm.advance()
        player = arm.player
        ended_by = ("time" if player.mode is ArmMode.ARMED else "done" if player.cause is HoldCause.TASK_DONE
                    else "fault")
        reason = player.reason if ended_by == "fault" else ""
        if not episode.deltas:
            raise EpisodeError(f"no action was played: {arm.player.last_refusal or arm.player.reason}")
        for _ in range(round(CONTROL_DT_S / CONTROL_TICK_S) - 1):  # the last action takes effect, nothing follows it
            arm.drive_gripper()
            arm.advance()
        return episode.finished(ended_by, reason, adapter.name if adapter else "base")

    def outcome(self) -> bool | None:
        """Return what physics says."""
        return bool(self.twin.success())

    def close(self) -> None:
        """Free the renderers."""
        self.twin.close()


class _Recording:
    """One episode as it comes about: asks the policy, and keeps what the recorder would."""

    def __init__(self, twin: Twin, policy: Policy, instruction: str, temperature: float, seed: int,
                 frame_size: tuple[int, int]) -> None:
        self.twin, self.policy, self.instruction = twin, policy, instruction
        self.temperature, self.seed = temperature, seed
        self.observer = Observer(twin, frame_size)
        self.captured = resize_rgb(twin.render(RENDER_WIDTH, RENDER_HEIGHT), (CAPTURE_HEIGHT, CAPTURE_WIDTH))
        self.seen: list[Seen] = []
        self.states: list[F32] = []
        self.deltas: list[F32] = []
        self._looked: Seen | None = None  # what the policy saw last

    def look(self, now_ns: int) -> ActionChunk:
        """Show the policy a frame and return its chunk."""
        frame = Frame(self.twin.render(RENDER_WIDTH, RENDER_HEIGHT), now_ns)
        self._looked = self.observer.look(frame.rgb)
        rgb, seed = frame.rgb[None], self.seed * 1000 + len(self.deltas)
        if isinstance(self.policy, ActsOnState):
            state = self._looked.measured[None]
            sampled = self.policy.sample_at(rgb, state, self.instruction, self.temperature, seed)
        elif self.temperature == 0.0:
            return self.policy.act(frame, self.instruction)
        else:
            sampled = self.policy.sample(rgb, self.instruction, self.temperature, seed)
        return ActionChunk(sampled.deltas[0], now_ns, sampled.adapter)

    def note(self, played: PlayedStep | None) -> bool:
        """Keep an action that was played, with the frame that it was taken at; return whether there was one."""
        if played is None or played.action is None:
            return False
        first = played.action.index == 0
        self.seen.append(self._looked if first and self._looked else self.observer.look())
        self.deltas.append(played.command.sent)
        self.states.append(bridge_state(played.command.T_base_target, played.command.gripper))
        return True

    def finished(self, ended_by: str, reason: str, adapter: str) -> Episode:
        """Return the episode; its last frame is of now."""
        self.seen.append(self.observer.look())
        success = [s.success for s in self.seen]
        return Episode(
            np.stack([s.frame for s in self.seen]), np.stack(self.deltas),
            np.stack([self.seen[0].measured, *self.states]), self.instruction, f"seed {self.twin.seed}",
            self.twin.task.family, None, success.index(True) if success[-1] else None, self.captured,
            np.array(scene_camera(self.twin.scene), np.float32), measured=np.stack([s.measured for s in self.seen]),
            adapter=adapter, seed=self.twin.seed, ended_by=ended_by, reason=reason)
