"""`Operator`: what a person at the robot does, as calls. Reset the twin, say the task, arm, watch, record, adapt.

Used by `world-gymnast demo` and by tests of the whole graph. It holds no policy and moves nothing itself.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.action import ActionClient

from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.nodes.caller import Caller, GraphFault
from world_gymnast_ros.types import U8

VIDEO_PX = 320


@dataclass(frozen=True)
class TrueRun:
    """One true episode. `video` uint8 (n, 240, 320, 3): an image per action. `path`: the recording, if any."""

    seed: int
    success: bool
    steps: int
    held: int
    video: tuple[U8, ...]
    path: Path | None


class Operator(Caller):
    """A client of every node."""

    def __init__(self, check_alive: Callable[[], None] = lambda: None) -> None:
        super().__init__("operator", check_alive)
        self.image: U8 | None = None
        self.truth: Any = None
        self.status: Any = None
        self.adapter = ""
        self._steps = self._held = 0
        self._video: list[U8] | None = None
        self._video_due = True
        self.create_subscription(convert.Image, "image_raw", self._on_image, base.NEWEST)
        self.create_subscription(convert.TwinTruth, "twin/truth", self._on_truth, base.RELIABLE)
        self.create_subscription(convert.StepMsg, "step", self._on_step, base.RELIABLE)
        self.create_subscription(convert.ArmStatusMsg, "arm_status", self._on_status, base.LATCHED)
        self._say = self.create_publisher(convert.String, "instruction", base.LATCHED)
        self._triggers = {n: self.create_client(convert.Trigger, f"arm_node/{n}")
                          for n in ("arm", "disarm", "hold", "go_home")}
        self._reset = self.create_client(convert.ResetTwin, "twin_node/reset")
        self._start = self.create_client(convert.StartEpisode, "recorder_node/start_episode")
        self._stop = self.create_client(convert.StopEpisode, "recorder_node/stop_episode")
        self._adapt = ActionClient(self, convert.Adapt, "adapt")
        self._capture = self.create_client(convert.Trigger, "adapt_node/capture")

    # --- listening ------------------------------------------------------------------------------------------------

    def _on_image(self, msg: Any) -> None:
        if self.image is None or (self._video is not None and self._video_due):
            rgb = convert.frame_from_image(msg, (0, 0)).rgb
            self.image = rgb
            if self._video is not None:
                self._video.append(resize_rgb(rgb, (VIDEO_PX * 3 // 4, VIDEO_PX)))
            self._video_due = False

    def _on_truth(self, msg: Any) -> None:
        self.truth = msg

    def _on_status(self, msg: Any) -> None:
        self.status = msg

    def _on_step(self, msg: Any) -> None:
        self._steps += 1
        self._held += msg.verdict in (msg.HOLD, msg.STOP)
        self.adapter = msg.adapter
        self._video_due = True

    # --- doing ----------------------------------------------------------------------------------------------------

    def wait_for_graph(self, timeout_s: float = 180.0) -> None:
        """Wait until camera, twin, arm, recorder, policy and adaptation answer."""
        self.spin_until(lambda: self.image is not None, timeout_s, "the first image on image_raw")
        self.spin_until(lambda: self.status is not None, timeout_s, "arm_status")
        for client in (*self._triggers.values(), self._reset, self._start):
            self.spin_until(client.service_is_ready, timeout_s, f"service {client.srv_name}")
        self.spin_until(self._adapt.server_is_ready, timeout_s, "the adapt action")
        self.spin_until(lambda: self.count_subscribers("instruction") >= 2, timeout_s, "the policy node")

    def trigger(self, name: str) -> None:
        """Call ~/arm, ~/disarm, ~/hold or ~/go_home of the arm node; after Ctrl-C without waiting for the answer."""
        if self._interrupted:
            self._triggers[name].call_async(convert.Trigger.Request())
            return
        self.call(self._triggers[name], convert.Trigger.Request())

    def reset_twin(self, scene: str, instruction: str, seed: int) -> None:
        """Put the twin's objects and arm in place for one episode."""
        self.call(self._reset, convert.ResetTwin.Request(scene=scene, instruction=instruction, seed=seed))
        self.truth = None
        self.spin_until(lambda: self.truth is not None and self.truth.episode_seed == seed, 5.0, "twin/truth")
        self.image = None
        self.spin_until(lambda: self.image is not None, 5.0, "an image after the reset")

    def say(self, instruction: str) -> None:
        """Publish the instruction."""
        self._say.publish(convert.String(data=instruction))

    def run_episode(self, scene: str, instruction: str, seed: int, max_steps: int, record: bool) -> TrueRun:
        """Run one true episode on the twin: reset, arm, act until success or `max_steps`, disarm."""
        self.reset_twin(scene, instruction, seed)
        self.say(instruction)
        if record:
            self.call(self._start, convert.StartEpisode.Request(instruction=instruction, notes=f"{scene} seed {seed}"))
        self._steps = self._held = 0
        self._video, self._video_due = [], True
        try:
            self.trigger("arm")
            # A chunk may be finished and its successor still under way: the limit is on actions, time is a backstop.
            self.spin_until(lambda: self.truth.success or self._steps >= max_steps, 0.2 * max_steps * 3 + 10.0,
                            f"{max_steps} actions")
            if not self.truth.success:  # the last action still takes effect
                end = time.monotonic() + 0.45
                self.spin_until(lambda: time.monotonic() > end, 2.0, "the last action")
            success = bool(self.truth.success)
        finally:
            video, self._video = tuple(self._video or ()), None
            self.trigger("disarm")
        path = None
        if record:
            request = convert.StopEpisode.Request(outcome="success" if success else "failure", marked_by="twin",
                                                  partial_score=float(self.truth.progress),
                                                  ended_by="done" if success else "time")
            path = Path(self.call(self._stop, request, 30.0).path)
        return TrueRun(seed, success, self._steps, self._held, video, path)

    def capture(self) -> str:
        """Have the adapt node keep the present image for its next session; return what it says."""
        return str(self.call(self._capture, convert.Trigger.Request(), 30.0).message)

    def adapt(self, instruction: str, budget_s: float, max_updates: int, seed: int,
              feedback: Callable[[Any], None], dry_run: bool = False) -> Any:
        """Send an Adapt goal and wait for its result; Ctrl-C cancels it."""
        goal = convert.Adapt.Goal(instructions=[instruction], budget_s=float(budget_s), max_updates=max_updates,
                                  seed=seed, dry_run=dry_run)
        sent = self._adapt.send_goal_async(goal, feedback_callback=lambda m: feedback(m.feedback))
        self.spin_until(sent.done, 30.0, "the adapt node to accept the goal")
        handle = sent.result()
        if not handle.accepted:
            raise GraphFault("the adapt node rejected the goal: it is busy, or the goal is not valid; see its log")
        result = handle.get_result_async()
        try:
            self.spin_until(result.done, budget_s * 2 + 120.0, "the adaptation to end")
        except KeyboardInterrupt:
            handle.cancel_goal_async()
            raise
        return result.result().result
