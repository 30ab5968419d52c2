"""The robot as an environment: the graph that runs beside it, and a person who sets the scene and says what came of it.

Implements `evaluation.environment.Environment`. The policy acts in the policy node, which is offered the adapter and
told the temperature; the person is told neither. An episode is what the recorder wrote of it.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.episodes.reader import first_image, read_episode
from world_gymnast_ros.errors import BadAction, EpisodeError
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.nodes.attended import Attended
from world_gymnast_ros.nodes.caller import GraphFault
from world_gymnast_ros.nodes.joint_merge import JointMerge
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.types import F32, AdapterRef, ArmState, Frame, Policy, Start

LOOK_S = 10.0
"""A frame and joint states are waited for so long."""


class RobotEnvironment:
    """One scene before the robot. `trial_s`, `wait_s` as for `Attended`; `frame_size` (h, w): of an episode's frames;
    `robot_name`: of the driver; `camera`: the topic of the images that are learned from, where several are recorded.
    """

    def __init__(self, instruction: str, trial_s: float, wait_s: float, frame_size: tuple[int, int], robot_name: str,
                 camera: str = "") -> None:
        self.node = Attended(instruction, trial_s, wait_s)
        self.frame_size, self._joint_states = frame_size, f"{robot_name}/joint_states"
        self._instruction, self._camera = instruction, camera
        self._seed: int | None = None
        self._count = 0
        self._recording: Any = None

    @property
    def name(self) -> str:
        """Whatever stands before it."""
        return "robot"

    def wait(self) -> None:
        """Wait for the graph. Raises GraphFault naming what is missing."""
        self.node.wait_for_robot(recorder=True)

    def reset(self, seed: int, instruction: str) -> Start:
        """Ask for a scene (the same one again for the same seed); return what the camera sees and where the arm is."""
        if instruction != self._instruction:
            raise EpisodeError(f"the robot was set up for '{self._instruction}', not for '{instruction}'")
        again, self._seed = seed == self._seed, seed
        self._count += 1
        self.node.ask(f"\n{self._count}: {'set the same scene again' if again else 'set a scene'} for "
                      f"'{instruction}', keep clear, press Enter (q and Enter: stop here) ")
        frame, state = self._look()
        return Start(frame, state, instruction)

    def run(self, policy: Policy, adapter: AdapterRef | None, instruction: str, temperature: float, seed: int
            ) -> Episode:
        """Let the policy node act with `adapter`; it must run the base that `policy` is. Returns what was recorded."""
        self.node.spin_until(lambda: self.node.base_policy, LOOK_S, "the policy node's diagnostics")
        if self.node.base_policy != policy.name:
            raise GraphFault(f"the policy node runs '{self.node.base_policy}', the loop trains '{policy.name}'; give "
                             "both the same checkpoint (policy.yaml, --set policy=FOLDER)")
        ended_by, path = self.node.act(adapter, f"episode {self._count}", temperature)
        if path is None:
            raise GraphFault("the episode was not recorded; start the recorder, and again")
        self._recording = path
        found = read_episode(path, self.frame_size, self._camera or None)
        return Episode(found.frames, found.actions, found.target_states, instruction, path.name,
                       captured=first_image(found, self._camera or None), measured=found.states, ended_by=ended_by,
                       adapter=adapter.name if adapter else "base", seed=seed)

    def outcome(self) -> bool | None:
        """Ask the person, mark the recording, and walk the arm home."""
        path, self._recording = self._recording, None
        return self.node.outcome_of(path)

    def close(self) -> None:
        """Leave the graph."""
        self.node.destroy_node()

    def _look(self) -> tuple[Frame, F32 | None]:
        """Return a frame of now, and the measured Bridge state, None where the arm says nothing usable."""
        frames: list[Frame] = []
        states: list[ArmState] = []
        since_ns = self.node.get_clock().now().nanoseconds

        topic = self._camera or "image_raw"
        is_compressed = topic.endswith("/compressed")
        read = convert.frame_from_compressed if is_compressed else convert.frame_from_image

        def on_image(msg: Any) -> None:
            frame = read(msg)
            if frame.stamp_ns >= since_ns:
                frames.append(frame)
        merge, faults = JointMerge(), [""]

        def on_joints(msg: Any) -> None:
            try:
                state = merge.add(msg, base.steady_ns())
            except BadAction as error:
                faults[0] = str(error)
                return
            if state is not None:
                states.append(state)
        ears = [self.node.create_subscription(convert.CompressedImage if is_compressed else convert.Image, topic,
                                              on_image, base.NEWEST),
                self.node.create_subscription(convert.JointState, self._joint_states, on_joints, base.SHARED)]
        try:
            self.node.spin_until(lambda: frames, LOOK_S, f"a frame on {topic}")
            self.node.spin_until(lambda: states or faults[0], LOOK_S, f"joint states on {self._joint_states}")
        finally:
            for ear in ears:
                self.node.destroy_subscription(ear)
        if not states:
            print(f"the arm's state is not known: {faults[0]}")
            return frames[0], None
        return frames[0], np.asarray(bridge_state(states[-1].T_base_ee, states[-1].gripper))
