"""Records episodes: subscribes, and never sits inside a loop. The files are `episodes.EpisodeWriter`'s business."""
from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.serialization import serialize_message

from world_gymnast_ros.config import RecorderConfig
from world_gymnast_ros.episodes import (
    EpisodeWriter,
    add_judgement,
    mark_outcome,
    new_episode_id,
    provenance,
    unused_episode_id,
)
from world_gymnast_ros.episodes.files import check_episode_id
from world_gymnast_ros.episodes.image_count import ImageCount
from world_gymnast_ros.episodes.schemas import COMPRESSED_IMAGE, check_recorded, header_stamp_ns
from world_gymnast_ros.errors import BadConfig, BadFrame, EpisodeError, WorldGymnastError
from world_gymnast_ros.nodes import base, command_line, convert
from world_gymnast_ros.robot.kinematics import JOINT_NAMES
from world_gymnast_ros.types import Judgement

MIB = 2**20
LONGEST_ROUND_NS = 150_000_000
POLL_S = 0.05
"""How late a message may be written; its queue holds seconds."""
POLICY_STATUS = provenance.POLICY_STATUS.encode()
SILENT_S = 1.0
"""An episode that begins while camera or arm is silent for longer begins without them; the answer says so."""
TRY_PERIOD_S = 0.5
"""How often an image is decoded while no episode runs: so that who starts one is told at once what is refused."""
STANDING_S = 1.0
"""A clock that does not move for longer stands still."""
ONCE = ("instruction", "adapter", "arm_status")
"""What is said once, and an episode that starts later must carry too."""
ARM_JOINTS = tuple(name.encode() for name in JOINT_NAMES)


class RecorderNode(base.ConfiguredNode):
    """Between StartEpisode and StopEpisode, writes every message of the graph's own topics as it came off the wire."""

    def __init__(self) -> None:
        super().__init__("recorder_node")
        self.config = c = self.read_config(RecorderConfig)
        # Not in any executor: its queues are emptied by a timer. A round of the executor takes as long as writing ten
        # joint states, and brings one message of each topic: on a busy machine a fast one would never catch up.
        self._ears = Node("recorder_ears", context=self.context, namespace=self.get_namespace(), enable_rosout=False,
                          start_parameter_services=False, cli_args=base.keeps_its_name("recorder_ears"))
        self._readers: list[tuple[str, Any, Any, bool, Callable[[Any], None]]] = []
        self._used_ns: dict[str, int] = {}  # when a message that is of use came, steady; not any message
        self._images = ImageCount()
        self._tried_ns = 0
        self._clock_moved_ns, self._clock_ns = base.steady_ns(), 0
        self._kinds: dict[str, Any] = {}
        self._root = Path(c.directory).expanduser().absolute()
        if self._root.exists() and not self._root.is_dir():
            raise BadConfig(f"directory {self._root} is a file; name a folder")
        self._writer: EpisodeWriter | None = None
        self._started_ns = 0
        self._latched: dict[str, tuple[str, bytes]] = {}
        self._last: Path | None = None
        self._pressed: set[int] = set()
        self._done: tuple[str, Judgement] | None = None
        """Which judge ended the running episode, and what it said."""
        self.create_subscription(convert.DiagnosticStatus, "task_done", self._on_task_done, base.RELIABLE)
        self._buttons = {number: outcome for number, outcome in ((c.success_button, "success"),
                                                                 (c.failure_button, "failure")) if number >= 0}
        if self._buttons:
            self.create_subscription(convert.Joy, "joy", self._on_joy, base.RECORD_IMAGES)
        for topic, kind, qos in (
            ("action_chunk", convert.ActionChunkMsg, base.RELIABLE), ("step", convert.StepMsg, base.RECORD),
            ("adapter", convert.AdapterMsg, base.LATCHED), ("arm_status", convert.ArmStatusMsg, base.LATCHED),
            ("instruction", convert.String, base.LATCHED), ("instruction", convert.String, base.RELIABLE),
            ("twin/truth", convert.TwinTruth, base.RELIABLE),
            (f"{c.robot_name}/joint_states", convert.JointState, base.RECORD),
            ("/diagnostics", convert.DiagnosticArray, base.RELIABLE),
            ("task_done", convert.DiagnosticStatus, base.RELIABLE),
        ):
            self._listen(topic, kind, qos)
        # Images last: where time is short, they are what is lost, and no step.
        self._camera, self._arm = "image_raw", f"{c.robot_name}/joint_states"
        if c.image_compressed:
            self._camera = "image_raw/compressed"
            self._kinds[self._camera] = convert.CompressedImage
            self._hear(self._camera, convert.CompressedImage, base.RECORD_IMAGES, True, self._on_compressed)
        else:
            self._hear(self._camera, convert.Image, base.RECORD_IMAGES, False, self._on_image)
        self._rehearse()
        self._diagnostics = self.create_publisher(convert.DiagnosticArray, "/diagnostics", base.RELIABLE)
        self.create_service(convert.StartEpisode, "~/start_episode", self._on_start)
        self.create_service(convert.StopEpisode, "~/stop_episode", self._on_stop)
        self.create_service(convert.MarkOutcome, "~/mark_outcome", self._on_mark)
        self.every(POLL_S, self._empty_queues)
        self.every(0.25, self._on_time)
        self.every(1.0, self._on_diagnostics)
        self.get_logger().info(f"ready to record under {self._root}")

    def _listen(self, topic: str, kind: Any, qos: Any) -> None:
        name = _name(kind)

        own_policy = _as_cdr(base.named(self, provenance.POLICY_STATUS))

        def on_bytes(cdr: bytes) -> None:
            now_ns = base.steady_ns()
            known = self._latched.get(topic)
            # One message of a latched publisher comes by both subscriptions of `instruction`.
            if topic == "instruction" and known == (name, cdr) and now_ns < self._used_ns[topic] + SILENT_S * 1e9:
                return
            if topic != self._arm or all(joint in cdr for joint in ARM_JOINTS):  # a gripper's own are no arm's
                self._used_ns[topic] = now_ns
            # What is said once, or tells of the policy, an episode that starts later must carry too.
            of_a_policy = topic == "/diagnostics" and POLICY_STATUS in cdr
            if of_a_policy and own_policy not in cdr:  # the topic is shared: another robot's, in another namespace
                return
            if topic in ONCE or of_a_policy:
                self._latched[topic] = (name, cdr)
            self._write(topic, name, cdr)

        self._kinds[topic] = kind
        self._hear(topic, kind, qos, True, on_bytes)

    def _hear(self, topic: str, kind: Any, qos: Any, raw: bool, on_message: Callable[[Any], None]) -> None:
        quiet = SubscriptionEventCallbacks(use_default_callbacks=False)
        subscription = self._ears.create_subscription(kind, topic, on_message, qos, raw=raw, event_callbacks=quiet)
        self._readers.append((topic, subscription.handle, kind, raw, on_message))

    def _empty_queues(self) -> None:
        """Write what has come; on a machine too busy for that, services must be answered in between."""
        end_ns = base.steady_ns() + LONGEST_ROUND_NS
        for _topic, handle, kind, raw, on_message in self._readers:
            with handle:
                while base.steady_ns() < end_ns and (taken := handle.take_message(kind, raw)) is not None:
                    on_message(taken[0])

    # --- what is of use -------------------------------------------------------------------------------------------

    def _unused_s(self, topic: str) -> float:
        """Return how long nothing of use came on a topic; infinite where nothing ever did."""
        return (base.steady_ns() - self._used_ns[topic]) * 1e-9 if topic in self._used_ns else math.inf

    def _lacks(self) -> str:
        """Return what an episode lacks now, or what spoils it; "" where camera and arm are of use."""
        lacks = []
        if self._images.refusal:
            lacks.append(f"images on {self._camera} are not recorded: {self._images.refusal}")
        silent = [f"{topic} ({f'for {s:.1f} s' if math.isfinite(s) else 'ever'})" for topic in (self._camera, self._arm)
                  if (s := self._unused_s(topic)) > SILENT_S and not (topic == self._camera and lacks)]
        if silent:
            lacks.append(f"nothing heard on {', '.join(silent)}; is it published, and under this name?")
        cameras = self._ears.count_publishers(self._camera)
        if cameras > 1:
            lacks.append(f"{cameras} publishers of {self._camera}: images of several cameras are mixed; end all but "
                         "one")
        name = self.get_fully_qualified_name()
        recorders = self.count_services(f"{name}/start_episode")
        if recorders > 1:
            lacks.append(f"{recorders} recorders answer as {name}: each stores every episode; end all but one (a "
                         "killed one is forgotten after 20 s)")
        if self._writer is not None and base.steady_ns() - self._clock_moved_ns > STANDING_S * 1e9:
            lacks.append("the clock stands still (use_sim_time, and /clock is paused): every message has the same time")
        return "; ".join(lacks)

    def _watch_clock(self) -> None:
        now_ns = self.now_ns()
        if now_ns != self._clock_ns:
            self._clock_ns, self._clock_moved_ns = now_ns, base.steady_ns()

    def _on_diagnostics(self) -> None:
        lacks = self._lacks()
        doing = "ready" if self._writer is None else f"recording {self._writer.episode_id}, {self._images.words()}"
        values = {topic: f"used {self._unused_s(topic):.1f} s ago" if topic in self._used_ns else "nothing of use yet"
                  for topic in dict.fromkeys(reader[0] for reader in self._readers)}
        values |= {"images_used": str(self._images.used), "images_refused": str(self._images.refused)}
        self._diagnostics.publish(convert.diagnostics_msg(
            base.named(self, "recorder_node"), self.config.robot_name, "warn" if lacks else "ok",
            f"{doing}; {lacks}" if lacks else doing, values, self.now_ns()))

    def _rehearse(self) -> None:
        """Record a little somewhere else: loading libraries and reading definitions takes the time of many images."""
        with tempfile.TemporaryDirectory() as place:
            writer = EpisodeWriter(Path(place), "rehearsal", {}, 0, reserve_bytes=0)
            for topic, kind in self._kinds.items():
                writer.write(f"/{topic.lstrip('/')}", _name(kind), bytes(serialize_message(kind())), 0)
            writer.write_image("/image_raw", np.zeros((48, 64, 3), np.uint8), 0, 0)
            writer.close("done", 0)

    # --- writing --------------------------------------------------------------------------------------------------

    def _write(self, topic: str, name: str, cdr: bytes) -> None:
        if self._writer is not None:
            try:
                self._writer.write(f"/{topic.lstrip('/')}", name, cdr, self.now_ns())
            except EpisodeError as error:
                self._fault(error)

    def _on_image(self, msg: Any) -> None:
        if not self._is_due():
            return
        try:
            frame = convert.frame_from_image(msg)
            self._take(frame.stamp_ns, (frame.rgb.shape[0], frame.rgb.shape[1]))
            if self._writer is not None:
                self._writer.write_image("/image_raw", frame.rgb, frame.stamp_ns, self.now_ns(), msg.header.frame_id)
        except EpisodeError as error:
            self._fault(error)
        except WorldGymnastError as error:
            self._refuse(str(error))

    def _on_compressed(self, cdr: bytes) -> None:
        """Record an image as the camera compressed it; one that cannot be decoded would spoil the episode."""
        if not self._is_due():
            return
        try:
            self._take(header_stamp_ns(cdr), check_recorded(COMPRESSED_IMAGE, cdr))
        except (EpisodeError, BadFrame) as error:
            self._refuse(str(error))
            return
        self._write(self._camera, COMPRESSED_IMAGE, cdr)

    def _is_due(self) -> bool:
        """Tell whether an image is looked at: all of an episode, else one now and then."""
        if self._writer is None and base.steady_ns() - self._tried_ns < TRY_PERIOD_S * 1e9:
            return False
        self._tried_ns = base.steady_ns()
        return True

    def _take(self, stamp_ns: int, size: tuple[int, int]) -> None:
        self._used_ns[self._camera] = base.steady_ns()
        self._images.use(stamp_ns, size)

    def _refuse(self, why: str) -> None:
        self._images.refuse(why)
        if self.causes.news(f"image not recorded: {why}"):
            self.get_logger().error(f"image not recorded: {why}")

    def _fault(self, error: EpisodeError) -> None:
        self.get_logger().error(f"recording stopped: {error}")
        try:
            self._finish("fault")
        except EpisodeError as second:
            self.get_logger().error(str(second))

    def _finish(self, ended_by: str, **outcome: Any) -> Path:
        writer = self._writer
        assert writer is not None
        try:
            path = writer.close(ended_by, self.now_ns(), **outcome)
        finally:
            if not writer.is_open:  # a refused outcome leaves the episode running, to be stopped with a better one
                self._writer = None
        if self._done is not None:
            add_judgement(path, *self._done, self.now_ns())
            self._done = None
        self._last = path
        self.get_logger().info(f"episode ended ({ended_by}): {path}")
        return path

    def _on_task_done(self, msg: Any) -> None:
        """Keep who ended the episode: an opinion beside the outcome, which stays a person's to mark."""
        values = {v.key: v.value for v in msg.values}
        try:
            score = float(values.get("score", "nan"))
        except ValueError:
            score = math.nan
        if self._writer is not None and 0.0 <= score <= 1.0:
            self._done = (msg.hardware_id, Judgement(score, detail=f"ended the episode: {msg.message}"))

    def _on_time(self) -> None:
        self._watch_clock()
        if self._writer is None:
            return
        try:
            self._writer.flush(self.now_ns())
            if base.steady_ns() - self._started_ns > self.config.max_episode_s * 1e9:
                self._finish("time")
        except EpisodeError as error:
            self._fault(error)

    # --- services -------------------------------------------------------------------------------------------------

    def _on_start(self, request: Any, response: Any) -> Any:
        if self._writer is not None:
            response.message = f"episode {self._writer.episode_id} is running; stop it first"
            return response
        self._empty_queues()  # what came before is not of this episode
        now_ns = self.now_ns()
        if now_ns == 0:
            response.message = ("not recording: use_sim_time is true and nothing was heard on /clock, so every time "
                                "would be 0; start what publishes /clock, or start the recorder with "
                                "use_sim_time:=false")
            return response
        lacks, refusal = self._lacks(), self._images.refusal
        self._images = ImageCount()
        try:
            episode_id = unused_episode_id(self._root, new_episode_id(request.instruction, now_ns))
            header = {"instruction": request.instruction, "notes": request.notes, "robot": self.config.robot_name}
            self._writer = EpisodeWriter(self._root, episode_id, header, now_ns,
                                         reserve_bytes=int(self.config.min_free_mb * MIB))
            for topic, (name, cdr) in self._latched.items():
                self._writer.write(f"/{topic.lstrip('/')}", name, cdr, now_ns)
        except EpisodeError as error:
            response.message = str(error)
            if self._writer is not None:
                self._fault(error)
            return response
        self._done = None
        self._started_ns = base.steady_ns()
        response.success, response.message = True, f"recording {episode_id}"
        if lacks:
            self._images.refusal = refusal  # until the first image of the episode
            response.message += f"; {lacks}"
            self.get_logger().warning(response.message)
        response.path = str(self._writer.folder)
        return response

    def _on_stop(self, request: Any, response: Any) -> Any:
        if self._writer is None:
            response.message = "no episode is running"
            return response
        self._empty_queues()
        try:
            ended_by = request.ended_by or ("stopped" if self._done is None else "done")
            path = self._finish(ended_by, outcome=request.outcome or "unknown", marked_by=request.marked_by,
                                partial_score=_score(request.partial_score))
        except EpisodeError as error:
            response.message = str(error)
            return response
        response.success, response.path = True, str(path)
        response.message = f"episode saved: {self._images.words()}"
        if not self._images.used:
            response.message += "; an episode without images cannot be learned from"
            self.get_logger().warning(response.message)
        return response

    def _on_mark(self, request: Any, response: Any) -> Any:
        try:
            response.message = self._mark(request.path, request.outcome, request.marked_by, request.partial_score)
            response.success = True
        except EpisodeError as error:
            response.message = str(error)
        return response

    def _mark(self, path: str, outcome: str, marked_by: str, score: float) -> str:
        """Mark the episode at `path`, or without one that which is running or ran last; return what was done."""
        if path:
            folder = Path(path).absolute()
            check_episode_id(folder.name)
            if folder.parent != self._root or not folder.is_dir():  # a service must not write just anywhere
                raise EpisodeError(f"{folder} is not an episode under {self._root}")
        elif self._writer is not None:
            folder = self._writer.folder
        elif self._last is not None:
            folder = self._last
        else:
            raise EpisodeError("no episode was recorded since the recorder started; name one by its path")
        mark_outcome(folder, outcome, marked_by, _score(score), self.now_ns())
        return f"{folder.name}: {outcome} by {marked_by}"

    def _on_joy(self, msg: Any) -> None:
        """Mark the running or last episode when one of the two buttons goes down."""
        pressed = {number for number in self._buttons if len(msg.buttons) > number and msg.buttons[number]}
        for number in sorted(pressed - self._pressed):
            try:
                self.get_logger().info(self._mark("", self._buttons[number], "joystick", -1.0))
            except EpisodeError as error:
                self.get_logger().error(str(error))
        self._pressed = pressed

    def close(self) -> None:
        self._empty_queues()
        if self._writer is not None:
            try:
                self._finish("stopped")
            except EpisodeError as error:
                self.get_logger().error(str(error))
        self._ears.destroy_node()


def _as_cdr(text: str) -> bytes:
    """Return a string as a message holds it, which no longer string ends in or begins with: length, bytes, zero."""
    return (len(text) + 1).to_bytes(4, sys.byteorder) + text.encode() + b"\0"


def _name(kind: Any) -> str:
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"


def _score(value: float) -> float | None:
    return None if value < 0 else float(value)


USAGE = command_line.Usage(
    name="recorder_node",
    doc="""\
Records episodes: every message of the graph into one MCAP file, with a table of the steps.

  offers  ~/start_episode ~/stop_episode ~/mark_outcome""",
    parameters=RecorderConfig,
    moves="No.",
    examples=(
        ("--ros-args -p directory:=FOLDER", "episodes in FOLDER"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the node."""
    return base.run(RecorderNode, argv, usage=USAGE)


if __name__ == "__main__":
    raise SystemExit(main())
