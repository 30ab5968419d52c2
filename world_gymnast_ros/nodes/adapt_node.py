"""The action `adapt`: capture the scene, train inside the dream, offer the better adapter. Moves no arm.

The service `~/capture` keeps the present image for the next session. One image teaches one image: move the arm or
nudge things, capture, and do so some times more; the session then starts from all of these.

The node has its own copy of the policy, so the running one never notices a session. With `policy_port` that copy acts
for policy_node too (its `policy_url`): one base in memory, adapters switched by hash, forward passes in turn. A session
runs in a thread of the executor while topics, feedback and cancel go on in the others; the process gives up priority
and takes few torch threads, so that control keeps its deadlines.
"""
from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from world_gymnast_ros import priority
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.log import Outcome, Progress
from world_gymnast_ros.adaptation.rollout import Cancelled
from world_gymnast_ros.config import PolicyConfig
from world_gymnast_ros.control.camera_calibration import CalibrationImage
from world_gymnast_ros.control.capture_check import REST_RAD, REST_S, hand_fault, turned_rad
from world_gymnast_ros.errors import (
    AdapterMismatch,
    BadAction,
    BadConfig,
    BadFrame,
    BadInstruction,
    StaleFrame,
    Unreachable,
)
from world_gymnast_ros.models.policies.shared import serve_copy, stop_serving
from world_gymnast_ros.nodes import base, command_line, convert
from world_gymnast_ros.nodes.calibrating import calibrate
from world_gymnast_ros.nodes.joint_merge import JointMerge
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.robot.camera_extrinsics import read_camera
from world_gymnast_ros.serving.http_server import ModelServer
from world_gymnast_ros.types import F32, AdapterRef, ArmState, Frame, Start
from world_gymnast_ros.updates.adaptation import Parts, SessionResult, check_released, load_parts, run_session

JOINTS_S = 0.5
"""Joint states as new as the last image are waited for no longer."""
MAX_POSES = 24
"""Images that are remembered for a calibration of the camera."""
EXECUTOR_THREADS = 3
"""One for the session, one for topics, one for feedback and cancel."""
TELL_NS = 300_000_000
"""Between two reports of how far a calibration is."""
CLOSE_S = 3.0
"""So long `close` waits for a session to end: launch kills after five seconds. What it stores is whole or absent."""


class AdaptNode(base.ConfiguredNode):
    """Serves one session at a time; a goal that comes while one runs is rejected."""

    def __init__(self, parts: Parts | None = None) -> None:
        """Load the models that the parameters name, or use `parts`."""
        super().__init__("adapt_node")
        self.config = c = self.read_config(AdaptNodeConfig)
        if Path(c.directory).exists() and not Path(c.directory).is_dir():
            raise BadConfig(f"directory {c.directory} is a file; name a folder for adapters and reports")
        import torch

        torch.set_num_threads(c.threads)
        self._lowered = contextlib.ExitStack()
        kept = self._lowered.enter_context(priority.lowered(c.niceness))
        if kept:
            self.get_logger().info(kept)
        self.parts = parts or load_parts(c, self.get_logger().info)
        self._instruction = ""
        self._running: AdapterRef | None = None  # what the policy node was last offered
        self._frames: deque[Frame] = deque(maxlen=c.capture_frames)
        self._kept: deque[tuple[Frame, F32 | None]] = deque(maxlen=c.max_captures)
        self._camera = PolicyConfig(camera_calibration=c.camera_calibration).camera() or ()
        self._poses: deque[CalibrationImage] = deque(maxlen=MAX_POSES)
        self._wanted_after_ns = 0
        self._joints: deque[ArmState] = deque(maxlen=200)
        self._merge = JointMerge()
        self._blind = ""  # why the arm's state at the last image is not known
        self._joint_fault = ""
        self._busy = threading.Lock()
        self._closing = threading.Event()
        self._served = self._serve() if c.policy_port else None
        self._connect()
        p = self.parts
        self.get_logger().info(f"policy '{p.policy.name}', world model '{p.world_model.name}', judge '{p.judge.name}'")

    def _serve(self) -> ModelServer:
        """Let policy_node act through this node's copy of the policy; nobody beyond this machine can."""
        policy: Any = self.parts.policy
        server = serve_copy(policy, Path(self.config.directory) / "adapters", self.config.policy_port)
        self.get_logger().info(f"policy_node may act through this copy of the policy: policy_url:={server.url}")
        return server

    def _connect(self) -> None:
        self._offers = self.create_publisher(convert.AdapterMsg, "adapter", base.LATCHED)
        self.create_subscription(convert.AdapterMsg, "adapter", self._on_adapter, base.LATCHED)
        base.hear_everyone(self, convert.String, "instruction", self._on_instruction)
        self.create_service(convert.Trigger, "~/capture", self._on_capture, callback_group=ReentrantCallbackGroup())
        self._calibrated = self.create_publisher(convert.Float32, "~/calibration_progress", base.RELIABLE)
        self.create_service(convert.Trigger, "~/calibrate_camera", self._on_calibrate,
                            callback_group=ReentrantCallbackGroup())
        self._server = ActionServer(
            self, convert.Adapt, "adapt", execute_callback=self._execute, goal_callback=self._on_goal,
            cancel_callback=lambda _: CancelResponse.ACCEPT, callback_group=ReentrantCallbackGroup())

    # --- topics ---------------------------------------------------------------------------------------------------

    def _on_instruction(self, msg: Any) -> None:
        self._instruction = msg.data

    def _on_adapter(self, msg: Any) -> None:
        try:
            self._running = convert.adapter_ref(msg)
        except AdapterMismatch as error:
            self.get_logger().error(str(error))

    def _on_joints(self, msg: Any) -> None:
        try:
            state = self._merge.add(msg, base.steady_ns())
        except BadAction as error:
            self._joint_fault = str(error)
            return
        if state is not None:
            self._joints.append(state)

    def _on_image(self, msg: Any) -> None:
        if convert.to_ns(msg.header.stamp) < self._wanted_after_ns:
            return
        try:
            read = convert.frame_from_compressed if self.config.image_compressed else convert.frame_from_image
            frame = read(msg)
        except BadFrame as error:
            if self.causes.news(str(error)):
                self.get_logger().error(str(error))
            return
        self._frames.append(frame)

    # --- capture --------------------------------------------------------------------------------------------------

    def capture(self, cancelled: Callable[[], bool]) -> list[Frame]:
        """Return `capture_frames` images taken from now on. Raises StaleFrame when they do not come.

        Camera and joint states are subscribed only while this waits: hearing 100 messages a second for nothing would
        cost a seventh of a core. They have a node and an executor of their own, in this thread: a subscription that is
        destroyed while another thread waits on it can end that thread's executor (rclpy, InvalidHandle).
        """
        c = self.config
        kind, topic = (convert.CompressedImage, "image_raw/compressed") if c.image_compressed else (convert.Image,
                                                                                                    "image_raw")
        self._frames.clear()
        self._joints.clear()
        self._merge, self._joint_fault = JointMerge(), ""
        self._wanted_after_ns = self.now_ns()
        name = f"{self.get_name()}_capture"
        ears = Node(name, context=self.context, namespace=self.get_namespace(), enable_rosout=False,
                    start_parameter_services=False, cli_args=base.keeps_its_name(name))
        ears.create_subscription(convert.JointState, f"{c.robot_name}/joint_states", self._on_joints, base.SHARED)
        ears.create_subscription(kind, topic, self._on_image, base.NEWEST)
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(ears)
        try:
            self._wait_for_frames(executor, topic, cancelled)
            return list(self._frames)
        finally:
            executor.shutdown()
            ears.destroy_node()

    def _wait_for_frames(self, executor: SingleThreadedExecutor, topic: str, cancelled: Callable[[], bool]) -> None:
        c = self.config
        deadline = time.monotonic() + c.capture_timeout_s
        while len(self._frames) < c.capture_frames:
            if cancelled():
                raise Cancelled("cancelled while waiting for the camera")
            if time.monotonic() > deadline:
                raise StaleFrame(f"{len(self._frames)} of {c.capture_frames} new images on {topic} within "
                                 f"{c.capture_timeout_s:g} s; is the camera running, and its clock right?")
            executor.spin_once(timeout_sec=0.1)
        wanted_ns = self._frames[-1].stamp_ns  # joint states of that moment may still wait behind others'
        deadline = min(deadline, time.monotonic() + JOINTS_S)
        while time.monotonic() < deadline and not self._heard_long_enough(wanted_ns):
            executor.spin_once(timeout_sec=0.02)

    def _heard_long_enough(self, stamp_ns: int) -> bool:
        """Whether the joint states tell of the moment of an image, and whether the arm rests."""
        return bool(self._joints) and self._joints[-1].stamp_ns >= max(
            stamp_ns, self._joints[0].stamp_ns + round(REST_S * 1e9))

    def _rested(self, cancelled: Callable[[], bool]) -> Frame:
        """Return an image taken while the arm rested. Raises StaleFrame where it keeps moving."""
        deadline = time.monotonic() + self.config.capture_timeout_s
        while True:
            frame = self.capture(cancelled)[-1]
            turned = turned_rad(list(self._joints))
            if turned <= REST_RAD:
                return frame
            if time.monotonic() > deadline:
                raise StaleFrame(f"the arm moves: a joint turned by {turned:.2f} rad while it was looked at, at most "
                                 f"{REST_RAD} rad are allowed; hold the arm, then capture")

    def state_at(self, stamp_ns: int) -> F32 | None:
        """Return the measured Bridge state nearest to a stamp, or None where none was heard in time: `_blind` says why.
        """
        states = list(self._joints)
        gaps = [abs(state.stamp_ns - stamp_ns) for state in states]
        self._blind = ""
        if not gaps:
            topic = f"{self.config.robot_name}/joint_states"
            self._blind = (self._joint_fault or (f"what {topic} tells has none of the arm's joints "
                                                 f"({', '.join(self._merge.others[:9])})" if self._merge.others else
                                                 f"no joint states were heard on {topic}"))
        elif min(gaps) > self.config.max_state_age_s * 1e9:
            self._blind = (f"the nearest joint states are {min(gaps) * 1e-9:.1f} s away from the image, at most "
                           f"{self.config.max_state_age_s:g} s are allowed; are the clocks of camera and driver right?")
        if self._blind:
            return None
        state = states[int(np.argmin(gaps))]
        return bridge_state(state.T_base_ee, state.gripper)

    def _on_capture(self, _request: Any, response: Any) -> Any:
        """Keep one image for the next session; the oldest goes where there are more than `max_captures`."""
        response.success = False
        if self._closing.is_set() or not self._busy.acquire(blocking=False):
            response.message = "a session or another capture is running; capture when it is over"
            return response
        try:
            frame = self._rested(self._closing.is_set)
            state = self.state_at(frame.stamp_ns)
            if state is not None:
                self._poses.append(CalibrationImage(frame.rgb, state))
            fault = "" if state is None else hand_fault(state, self._camera, self.config.min_hand_seen)
            if fault:
                raise BadFrame(fault)
            self._kept.append((frame, state))
            blind = f"; the arm's pose is unknown: {self._blind}" if self._kept[-1][1] is None else ""
            response.success = True
            response.message = f"{len(self._kept)} of at most {self.config.max_captures} images kept{blind}"
        except (BadFrame, StaleFrame, Cancelled) as error:
            response.message = f"nothing was captured: {error}"
        finally:
            self._busy.release()
        return response

    def _on_calibrate(self, _request: Any, response: Any) -> Any:
        """Find the camera from the images captured so far, refused ones included; write it, and an image of it."""
        response.success = False
        if self._closing.is_set() or not self._busy.acquire(blocking=False):
            response.message = "a session or a capture is running; calibrate when it is over"
            return response
        try:
            found, path = calibrate(list(self._poses), self.config, self._tell_calibrated())
            self._camera = read_camera(path).projection()
            response.success, response.message = True, found
        except (BadConfig, BadFrame, Unreachable, OSError) as error:
            response.message = f"the camera is as it was: {error}"
        finally:
            self._busy.release()
        return response

    def _tell_calibrated(self) -> Callable[[float], None]:
        """Return what publishes the share of a calibration that is done, 0 to 1, a few times a second."""
        last_ns = base.steady_ns()

        def tell(share: float) -> None:
            nonlocal last_ns
            if base.steady_ns() - last_ns > TELL_NS:
                last_ns = base.steady_ns()
                self._calibrated.publish(convert.Float32(data=share))
        return tell

    def starts(self, instructions: Sequence[str], cancelled: Callable[[], bool]) -> list[Start]:
        """Return every kept image, or else new ones, with every instruction, instructions taking turns.

        What was kept stays until a session came to a verdict about it: see `_use_up`.
        """
        seen = list(self._kept) or [(f, self.state_at(f.stamp_ns)) for f in self.capture(cancelled)]
        return [Start(f, s, words) for f, s in seen for words in instructions]

    def _use_up(self, session: SessionResult, starts: Sequence[Start]) -> None:
        """Forget the images that a session used; not those of one that was cancelled or dry, or whose judges were
        mute: a person captured them."""
        report = session.report
        if report.promotion is None or report.outcome in (Outcome.CANCELLED, Outcome.WOULD_PROMOTE):
            return
        used = {id(start.frame) for start in starts}
        self._kept = deque((kept for kept in self._kept if id(kept[0]) not in used), maxlen=self.config.max_captures)

    def _still_kept(self) -> str:
        """Return what to say of images that a session left."""
        count = len(self._kept)
        return f"; {count} captured image{'s' * (count != 1)} kept for the next session" if count else ""

    # --- the action -----------------------------------------------------------------------------------------------

    def _on_goal(self, _goal: Any) -> GoalResponse:
        if self._closing.is_set() or not self._busy.acquire(blocking=False):
            self.get_logger().warning("a session is running: goal rejected; cancel it or wait")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _execute(self, handle: Any) -> Any:
        result = convert.Adapt.Result()
        try:
            session = self._session(handle)
            self._fill(result, session)
            if session.report.adapter is not None:
                self._offers.publish(convert.adapter_msg(session.report.adapter, self.now_ns()))
            if handle.is_cancel_requested:
                handle.canceled()
            elif session.report.outcome is Outcome.CANCELLED:
                handle.abort()
            else:
                handle.succeed()
        except Cancelled as cancel:
            result.message = f"{cancel}; present policy kept{self._still_kept()}"
            handle.canceled() if handle.is_cancel_requested else handle.abort()
        except Exception as error:  # whatever breaks, the running policy is untouched and the caller is told
            result.message = f"{type(error).__name__}: {error}{self._still_kept()}"
            handle.abort()
        finally:
            self._busy.release()
        self.get_logger().info(f"session over: {result.message}")
        return result

    def _session(self, handle: Any) -> SessionResult:
        goal = handle.request

        def cancelled() -> bool:
            return self._closing.is_set() or bool(handle.is_cancel_requested)

        def feedback(p: Progress) -> None:
            if p.notice and p.warns:
                self.get_logger().warning(p.notice)
            elif p.notice:
                self.get_logger().info(p.notice)
            handle.publish_feedback(convert.Adapt.Feedback(
                stage=p.stage, update=p.update, max_updates=p.max_updates, mean_reward=float(p.mean_reward),
                imagined_success=float(p.imagined_success), seconds_left=float(p.seconds_left), rejected=p.rejected))

        config = self.config
        if goal.budget_s:
            config = replace(config, budget_s=float(goal.budget_s))
        if goal.max_updates:
            config = replace(config, max_updates=int(goal.max_updates))
        instructions = [w for w in goal.instructions or [self._instruction] if w.strip()]
        if not instructions:
            raise BadInstruction("no instruction: name one in the goal, or publish one on the topic instruction")
        check_released(self.parts.release, instructions, config.min_release_auc, config.max_false_success)
        feedback(Progress("capturing", 0, config.max_updates, 0.0, 0.0, config.budget_s, 0))
        starts = self.starts(instructions, cancelled)
        if starts[0].state is None:
            self.get_logger().warning(f"the dream does not know where the arm is: {self._blind or 'see ~/capture'}")
        session = run_session(self.parts, starts, config, int(goal.seed), self.now_ns(), parent=self._running,
                              dry_run=bool(goal.dry_run), progress=feedback, cancelled=cancelled)
        self._use_up(session, starts)
        return session

    def _fill(self, result: Any, session: SessionResult) -> None:
        report = session.report
        result.promoted, result.message = report.promoted, f"{session.advice.line}{self._still_kept()}"
        result.report_path = str(session.report_path.resolve())
        if report.promotion is not None:
            result.imagined_before = float(report.promotion.before.value)
            result.imagined_after = float(report.promotion.after.value)
        if report.adapter is not None:
            result.adapter = convert.adapter_msg(report.adapter, self.now_ns())

    def close(self) -> None:
        self._closing.set()
        if self._served is not None:
            stop_serving(self._served)
        if not self._busy.acquire(timeout=CLOSE_S):  # a session ends within one update, which may take long
            self.is_unfinished = True
            return
        self._busy.release()
        self._server.destroy()
        self._lowered.close()


USAGE = command_line.Usage(
    name="adapt_node",
    doc="""\
Adapts the policy to the scene before the camera inside the world model, and offers an adapter that proved better.

  in      image_raw, joint states, instruction
  out     adapter, ~/calibration_progress (std_msgs/Float32, 0 to 1)
  offers  the action adapt (feedback, cancel), ~/capture (std_srvs/Trigger: keep this image for the next session),
          ~/calibrate_camera (std_srvs/Trigger: find the camera from the images captured)""",
    parameters=AdaptNodeConfig,
    moves="No. The arm need not be armed for it.",
    examples=(
        ("", "the small models that ship with the package"),
        ("--ros-args -p policy_port:=8000", "one copy of the policy for both nodes: policy_node with "
         "policy_url:=http://127.0.0.1:8000"),
        ("--ros-args -p threads:=1 -p directory:=FOLDER",
         "one processor core for training; adapters and reports in FOLDER"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the node."""
    return base.run(AdaptNode, argv, EXECUTOR_THREADS, usage=USAGE)


if __name__ == "__main__":
    raise SystemExit(main())
