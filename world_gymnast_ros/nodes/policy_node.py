"""Newest frame and instruction in, action chunks out. Inference runs in a worker thread, so topics never wait.

Adapters are swapped by that same thread, hence between chunks and never during one.
"""
from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import Any

import numpy as np
from rclpy.parameter import Parameter

from world_gymnast_ros.config import PolicyConfig
from world_gymnast_ros.control.action_convention import ConventionRules, convention_fault
from world_gymnast_ros.control.image_check import ImageCheck, ImageVerdict, PoseAtImage
from world_gymnast_ros.control.limits import SafetyConfig
from world_gymnast_ros.control.query_gate import ImageWatch, QueryGate, QueryRules
from world_gymnast_ros.errors import (
    AdapterMismatch,
    BadAction,
    BadFrame,
    RemotePolicyError,
    WorldGymnastError,
    WrongConvention,
)
from world_gymnast_ros.nodes import base, command_line, convert
from world_gymnast_ros.robot.actions import bridge_state
from world_gymnast_ros.serving.client import HttpPolicy
from world_gymnast_ros.types import F64, ActionChunk, Frame

BLACK = Frame(np.zeros((480, 640, 3), np.uint8), 0)
QUIET_S = 2.0
"""An arm that is armed and gets no chunk for longer is told of in the diagnostics."""
CLOSE_S = 3.0
"""So long `close` waits for the look that is under way: launch kills after five seconds."""
CHECK_PERIOD_S = 1.0
"""An image is looked at this often also when it is not acted on: before arming, and while a chunk is played."""
LATER_S = 0.05
"""An image that was acted on is searched for the arm so much later: first the arm's process may need the core."""
NOTHING_SEEN = ImageVerdict(None, False, False, None)
TRAINED_ON = "trained_on"
"""Key of policy_status: what the policy's card says that it was trained on."""
TEMPERATURE = "temperature"
COLDEST, HOTTEST = 0.05, 10.0
"""Temperatures that a policy samples at."""
WARM_UP_INSTRUCTION = "reach the red block"


class PolicyNode(base.ConfiguredNode):
    """Asks the policy once per chunk, at the moment `QueryGate` allows."""

    def __init__(self) -> None:
        super().__init__("policy_node")
        self.config = c = self.read_config(PolicyConfig)
        self.policy = self.make_policy()
        self._gate = QueryGate(QueryRules(c.dt_s, c.settle_fraction, c.max_frame_age_s, c.retry_s))
        self._gate.set_active(c.dry_run_without_arm, 0)
        self._watch = ImageWatch()
        self._check = None if c.image_check == "off" else ImageCheck(c.image_aspect, c.camera())
        self._pose, self._verdict, self._checked_ns = PoseAtImage(), NOTHING_SEEN, 0
        self._convention, self._wrong_chunks = "", 0  # what is wrong with the last chunk; such chunks in a row
        self._tried = ""  # the instruction for which the policy was asked on a true image before arming
        self._told: tuple[str, ...] | None = None  # of policy_status
        self._refusal = ""  # of the last image
        self._bad_image = ""  # why the last image could not be read
        self._rated, self._rated_ns = (0, 0), base.steady_ns()  # frames and chunks when rates were last told
        self._image_ns = self._chunk_ns = base.steady_ns()  # of the last image and chunk, steady
        self._instruction = c.instruction
        self._adapter = "base"
        self._gripper = 1.0  # as last measured with a step; open until then
        self._temperature = 0.0
        self._arm_state = convert.ArmStatusMsg.DISARMED
        self._sequence = 0
        self._epoch = 0  # counts arm starts and instructions: a chunk of an earlier one is dropped
        self._counts = {"chunks": 0, "frames": 0, "bad_frames": 0, "dropped_chunks": 0, "adapters_refused": 0}
        self._inference_s: deque[float] = deque(maxlen=200)
        self._fault = ""
        self._jobs: queue.Queue[Any] = queue.Queue()
        self._busy = threading.Event()
        ready = self._warm_up()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._connect()
        self._tell_status()
        self._worker.start()
        if ready:
            self.get_logger().info(f"policy '{self.policy.name}', {self.policy.chunk_size} actions per chunk, "
                                   f"{1000 * self._inference_s[-1]:.0f} ms per chunk")

    def make_policy(self) -> Any:
        """Return the policy to ask: a server's, or one loaded here (which alone needs torch)."""
        c = self.config
        if c.policy_url:
            self.get_logger().info("the policy runs elsewhere; an adapter that is offered is named there by its hash")
            return HttpPolicy(c.policy_url, c.policy_timeout_s)
        from world_gymnast_ros.loading.load import load_policy

        if c.threads:
            import torch

            torch.set_num_threads(c.threads)
        return load_policy(c.checkpoint, c.device, c.dtype)

    def _warm_up(self) -> bool:
        """Run before any arm can wait for it: the first inference is the slow one. A server may still come up."""
        for _ in range(2):
            start = time.monotonic()
            try:
                self.policy.act(BLACK, self._instruction or WARM_UP_INSTRUCTION)
            except (RemotePolicyError, WrongConvention) as error:
                self._fault = str(error)
                self.get_logger().error(f"{error}; going on, since it may come up")
                return False
            self._inference_s.append(time.monotonic() - start)
        return True

    def _connect(self) -> None:
        self._chunks = self.create_publisher(convert.ActionChunkMsg, "action_chunk", base.RELIABLE)
        self._alive = self.create_publisher(convert.Empty, "policy_alive", base.alive(base.ALIVE_LEASE_S))
        self._diagnostics = self.create_publisher(convert.DiagnosticArray, "/diagnostics", base.RELIABLE)
        self._status = self.create_publisher(convert.DiagnosticStatus, "policy_status", base.LATCHED)
        if self.config.image_compressed:
            self._images = self.create_subscription(convert.CompressedImage, "image_raw/compressed", self._on_image,
                                                    base.NEWEST)
        else:
            self._images = self.create_subscription(convert.Image, "image_raw", self._on_image, base.NEWEST)
        base.hear_everyone(self, convert.String, "instruction", self._on_instruction)
        self.create_subscription(convert.AdapterMsg, "adapter", self._on_adapter, base.LATCHED)
        if not self.config.dry_run_without_arm:
            self.create_subscription(convert.ArmStatusMsg, "arm_status", self._on_arm_status, base.LATCHED)
            self.create_subscription(convert.StepMsg, "step", self._on_step, base.RELIABLE)
            self.create_subscription(convert.PoseStamped, "arm_pose", self._on_arm_pose, base.RELIABLE)
        # Not a setting: no file can make a node explore, and it ends when the arm is disarmed.
        self.declare_parameter(TEMPERATURE, 0.0, convert.ParameterDescriptor(
            description="sample actions at this temperature until the arm is disarmed; 0: act greedily"))
        self.add_on_set_parameters_callback(self._on_parameters)
        self.every(1.0, self._on_diagnostics)
        self.every(base.ALIVE_PERIOD_S, self._on_alive)

    # --- topics: decide, never compute ----------------------------------------------------------------------------

    def _on_instruction(self, msg: Any) -> None:
        if msg.data != self._instruction:
            self._instruction = msg.data
            self._epoch += 1
            self._fault = ""
            self.get_logger().info(f"instruction: '{msg.data}'")
            if msg.data.strip() and not self._gate.active:
                self._jobs.put(("try", msg.data))

    def _on_parameters(self, parameters: list[Any]) -> Any:
        """Take a temperature that the policy can sample at; the other parameters are read-only."""
        for parameter in parameters:
            value = parameter.value
            if parameter.name != TEMPERATURE:
                continue
            if not isinstance(value, float) or not (value == 0.0 or COLDEST <= value <= HOTTEST):
                return convert.SetParametersResult(successful=False, reason=f"temperature is {value!r}; give 0.0, or "
                                                   f"{COLDEST:g} to {HOTTEST:g}")
            if value and not hasattr(self.policy, "sample"):
                return convert.SetParametersResult(successful=False, reason="the policy runs elsewhere and only acts "
                                                   "greedily; leave policy_url empty to explore")
            self._temperature = value
        return convert.SetParametersResult(successful=True)

    def _on_arm_status(self, msg: Any) -> None:
        if msg.state == msg.DISARMED != self._arm_state and self._temperature:
            self.set_parameters([Parameter(TEMPERATURE, value=0.0)])
        taking = msg.state in (msg.ARMED, msg.HOLDING)
        armed = msg.state == msg.ARMED and self._arm_state != msg.ARMED  # from HOLDING too: look at the scene anew
        self._arm_state = msg.state
        if armed or (taking and not self._gate.active):
            self._epoch += 1
            self._chunk_ns = base.steady_ns()
            self._gate.set_active(False, 0)
        self._gate.set_active(taking, convert.to_ns(msg.header.stamp))

    def _on_step(self, msg: Any) -> None:
        refused = msg.verdict in (msg.HOLD, msg.STOP)
        if np.isfinite(msg.gripper):
            self._gripper = float(msg.gripper)
        if not refused:
            self._watch.moved(float(np.linalg.norm(msg.sent[:3])))
            self._pose.rests(convert.to_ns(msg.header.stamp), np.array(msg.t_base_target).reshape(4, 4))
        self._gate.played(msg.chunk_sequence, msg.chunk_index, msg.chunk_size, refused,
                          convert.to_ns(msg.header.stamp), base.steady_ns())

    def _on_arm_pose(self, msg: Any) -> None:
        try:
            self._pose.add(convert.to_ns(msg.header.stamp), convert.pose_from_msg(msg))
        except BadAction as error:
            if self.causes.news(str(error)):
                self.get_logger().error(str(error))

    def _on_alive(self) -> None:
        """Tell the arm that topics are served and a worker is there. How long a look takes, the arm judges itself."""
        if self._worker.is_alive():
            self._alive.assert_liveliness()

    def _on_adapter(self, msg: Any) -> None:
        self._jobs.put(("adapter", msg))

    def _on_image(self, msg: Any) -> None:
        self._counts["frames"] += 1
        self._image_ns = base.steady_ns()
        if self._busy.is_set():
            return
        stamp_ns, instruction = convert.to_ns(msg.header.stamp), self._instruction
        self._refusal = self._gate.refusal(stamp_ns, self.now_ns(), base.steady_ns(), instruction)
        due = self._check is not None and base.steady_ns() - self._checked_ns > CHECK_PERIOD_S * 1e9
        if self._refusal and not due:
            return
        self._checked_ns = base.steady_ns()
        size = (self.config.image_height, self.config.image_width)
        try:
            read = convert.frame_from_compressed if self.config.image_compressed else convert.frame_from_image
            frame = read(msg, size)
            frozen = "" if self._refusal else self._watch.refusal(frame.rgb)
            if frozen:
                raise BadFrame(frozen)
        except BadFrame as error:
            self._counts["bad_frames"] += 1
            self._bad_image = str(error)
            if self.causes.news(str(error)):
                self.get_logger().error(str(error))
            return
        self._bad_image = ""
        self._busy.set()
        job = (frame, self._pose.at(stamp_ns), instruction)
        self._jobs.put(("check", job) if self._refusal else ("frame", (*job, self._epoch)))

    # --- worker ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            kind, job = self._jobs.get()
            if kind == "stop":
                return
            try:
                if kind == "adapter":
                    self._swap(job)
                elif kind == "try":  # so that words the policy cannot read are told before the arm is armed
                    self.policy.act(BLACK, job)
                elif kind == "check":
                    self._try_out(*job)
                else:
                    self._infer(*job)
            except Exception as error:  # the policy stays; the arm holds by itself when no chunk comes
                self._fault = f"{type(error).__name__}: {error}"
                if self.causes.news(self._fault):
                    self.get_logger().error(self._fault)
            finally:
                self._tell_status()
                if kind in ("frame", "check"):
                    self._busy.clear()

    def _try_out(self, frame: Frame, pose: F64 | None, instruction: str) -> None:
        """Look at an image that is not acted on; before arming, ask the policy once what it would do there."""
        refused = self._look(frame, pose)
        fresh = instruction.strip() and (self._tried != instruction or self._wrong_chunks)
        if fresh and not refused and not self._gate.active:
            self._tried = instruction
            self._ask(frame, instruction, pose)

    def _look(self, frame: Frame, pose: F64 | None, acted_on: bool = False) -> bool:
        """Check an image, taken with the arm at `pose`; return whether it must not be acted on."""
        if self._check is None:
            return False
        before, self._verdict = self._verdict.words, self._check.look(frame.rgb, pose, acted_on)
        finding = self._verdict.finding
        if finding and finding.fault.value not in before:  # once per fault; the diagnostics go on
            if finding.definite:
                self.get_logger().error(finding.words)
            else:
                self.get_logger().warning(finding.words)
        return self._verdict.refuse and self.config.image_check == "refuse"

    def _ask(self, frame: Frame, instruction: str, pose: F64 | None) -> ActionChunk:
        """Return the policy's chunk. Raises WrongConvention, also for a policy that runs here."""
        try:
            chunk = self._choose(frame, instruction, pose)
            fault = convention_fault(chunk.deltas, ConventionRules())
            if fault:
                raise WrongConvention(f"{self.policy.name}: {fault.words}")
        except WrongConvention as error:
            self._convention, self._wrong_chunks = str(error), self._wrong_chunks + 1
            raise
        self._convention, self._wrong_chunks = "", 0
        return chunk

    def _infer(self, frame: Frame, pose: F64 | None, instruction: str, epoch: int) -> None:
        later = self._check is not None and self._check.recognises(frame.rgb, pose)
        if not later and self._look(frame, pose):
            return
        try:
            self._act(frame, pose, instruction, epoch)
        finally:
            if later:  # the search for the arm in the image, while the chunk is played
                time.sleep(LATER_S)
                self._look(frame, pose, acted_on=True)

    def _act(self, frame: Frame, pose: F64 | None, instruction: str, epoch: int) -> None:
        """Ask the policy and send its chunk."""
        start_ns, start = self.now_ns(), time.monotonic()
        chunk = self._ask(frame, instruction, pose)
        self._inference_s.append(time.monotonic() - start)
        end_ns = self.now_ns()
        news = self._told is not None and self._told[-1] != self._trained_on()  # a server that now says what it is
        if news or epoch != self._epoch or not self._gate.active:  # disarmed or asked something else meanwhile
            self._counts["dropped_chunks"] += 1
            return
        self._sequence += 1
        msg = convert.chunk_msg(chunk, self._sequence, instruction, start_ns, end_ns, self.now_ns())
        self._gate.published(self._sequence, base.steady_ns())  # before sending: the step may be back at once
        if self.config.dry_run_without_arm:
            self._gate.played_alone(frame.stamp_ns, len(chunk.deltas))
        self._chunks.publish(msg)
        self._counts["chunks"] += 1
        self._adapter = chunk.adapter  # a server names its own
        self._fault, self._chunk_ns = "", base.steady_ns()

    def _choose(self, frame: Frame, instruction: str, pose: F64 | None) -> ActionChunk:
        """Return the policy's chunk for a frame, sampled where exploring was asked for."""
        if isinstance(self.policy, HttpPolicy):
            state = None if pose is None else bridge_state(pose, self._gripper)
            return self.policy.act(frame, instruction, state)
        if not self._temperature:
            greedy: ActionChunk = self.policy.act(frame, instruction)
            return greedy
        sampled = self.policy.sample(frame.rgb[None], instruction, self._temperature, frame.stamp_ns % 2**31)
        return ActionChunk(sampled.deltas[0], frame.stamp_ns, sampled.adapter)

    def _swap(self, msg: Any) -> None:
        name = msg.name or "base"
        try:
            self.policy.load_adapter(convert.adapter_ref(msg))
        except (AdapterMismatch, WorldGymnastError) as error:
            self._counts["adapters_refused"] += 1
            self._fault = f"adapter '{name}' refused, '{self._adapter}' stays: {error}"
            self.get_logger().error(self._fault)
            return
        self._adapter = name
        self.get_logger().info(f"adapter '{name}' in use")

    def _trained_on(self) -> str:
        """What the policy's card says that it saw; a server's is known from its first answer on."""
        return str(getattr(self.policy, "trained_on", ""))

    def _tell_status(self) -> None:
        """Tell the arm, when it changes, whether the policy may act: an error keeps it from arming, or holds it."""
        words, level = self._verdict.words, convert.DiagnosticStatus.OK
        if self._wrong_chunks:
            error = self._wrong_chunks >= SafetyConfig.max_refused_conventions
            level = convert.DiagnosticStatus.ERROR if error else convert.DiagnosticStatus.WARN
            words = self._convention
        elif words:
            error = self._verdict.lasting and self.config.image_check == "refuse"
            level = convert.DiagnosticStatus.ERROR if error else convert.DiagnosticStatus.WARN
        fault = self._verdict.finding.fault.value if self._verdict.finding else ""
        # Without the numbers, which change with every image.
        told = (str(level), self._convention or fault, self._trained_on())
        if told != self._told:
            self._told = told
            self._status.publish(convert.DiagnosticStatus(
                name="policy_node", hardware_id=self.policy.name, level=level, message=words,
                values=[convert.KeyValue(key=TRAINED_ON, value=self._trained_on())]))

    # --- diagnostics ----------------------------------------------------------------------------------------------

    def _on_diagnostics(self) -> None:
        times, now_ns = sorted(self._inference_s), base.steady_ns()
        counted, elapsed_s = (self._counts["frames"], self._counts["chunks"]), (now_ns - self._rated_ns) * 1e-9
        rates = [round((new - old) / max(elapsed_s, 1e-3), 1) for new, old in zip(counted, self._rated, strict=True)]
        self._rated, self._rated_ns = counted, now_ns
        seen = self._verdict.silhouette
        values = {"policy": self.policy.name, "adapter": self._adapter, "temperature": self._temperature,
                  "instruction": self._instruction,
                  "active": self._gate.active, "image": self._verdict.words or "nothing wrong seen",
                  "arm_in_image": "unknown" if seen is None else round(seen, 2),
                  "frames_per_s": rates[0], "chunks_per_s": rates[1],
                  "inference_ms_median": round(1000 * times[len(times) // 2], 1) if times else "",
                  "inference_ms_max": round(1000 * times[-1], 1) if times else "", **self._counts}
        quiet = self._quiet()
        wrong, hint = (self._verdict.words, "") if self._verdict.refuse else ("", self._verdict.words)
        cameras = self._images.get_publisher_count()
        if cameras > 1:
            hint = (f"{cameras} publishers of {self._images.topic_name}: images of several cameras are mixed; end "
                    "all but one")
        fault = self._fault or self._bad_image
        level = "error" if fault or wrong else "warn" if quiet or hint else "ok"
        message = fault or wrong or quiet or hint or ("acting" if self._gate.active else self._waiting())
        self._diagnostics.publish(convert.diagnostics_msg(base.named(self, "policy_node"), self.policy.name, level,
                                                          message, values, self.now_ns()))

    def _waiting(self) -> str:
        """Return what is waited for while the arm takes no chunks."""
        there = self.count_publishers("arm_status") > 0 or self.config.dry_run_without_arm
        return "waiting for the arm" if there else "no arm_node: nobody publishes arm_status"

    def _quiet(self) -> str:
        """Return why an armed arm gets no chunks, or "" while it does."""
        now_ns = base.steady_ns()
        silent_s, quiet_s = (now_ns - self._image_ns) * 1e-9, (now_ns - self._chunk_ns) * 1e-9
        if not self._gate.active or quiet_s <= QUIET_S:
            return ""
        if silent_s > QUIET_S:
            return f"no image for {silent_s:.1f} s; check the camera and its topic"
        return f"no chunk for {quiet_s:.1f} s: {self._refusal or 'the policy takes long'}"

    def close(self) -> None:
        self._gate.set_active(False, 0)
        self._jobs.put(("stop", None))
        self._worker.join(timeout=CLOSE_S)
        self.is_unfinished = self._worker.is_alive()


USAGE = command_line.Usage(
    name="policy_node",
    doc="""\
Asks the policy for an action chunk whenever the arm has come to rest and a newer image is there.

  in   image_raw, instruction (std_msgs/String, latched), adapter, arm_status, step
  out  action_chunk, policy_alive, diagnostics""",
    parameters=PolicyConfig,
    moves="Not by itself: an armed arm_node plays its chunks.",
    examples=(
        ("", "the small policy that ships with the package"),
        ("--ros-args -p policy_url:=http://127.0.0.1:8000", "a policy server, asked with POST /act"),
        ("--ros-args -p dry_run_without_arm:=true -p threads:=1", "act on images alone, with no arm in the graph"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the node."""
    return base.run(PolicyNode, argv, usage=USAGE)


if __name__ == "__main__":
    raise SystemExit(main())
