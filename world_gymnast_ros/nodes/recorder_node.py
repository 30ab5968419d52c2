"""Records episodes: subscribes, and never sits inside a loop. The files are `episodes.EpisodeWriter`'s business."""
from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.serialization import serialize_message

from world_gymnast_ros.config import RecorderConfig
from world_gymnast_ros.episodes import EpisodeWriter, mark_outcome, new_episode_id, provenance
from world_gymnast_ros.episodes.files import check_episode_id
from world_gymnast_ros.errors import BadConfig, EpisodeError, WorldGymnastError
from world_gymnast_ros.nodes import base, command_line, convert

MIB = 2**20
LONGEST_ROUND_NS = 150_000_000
POLL_S = 0.05
"""How late a message may be written; its queue holds seconds."""
POLICY_STATUS = provenance.POLICY_STATUS.encode()
SILENT_S = 1.0
"""An episode that begins while camera or arm is silent for longer begins without them; the answer says so."""


class RecorderNode(base.ConfiguredNode):
    """Between StartEpisode and StopEpisode, writes every message of the graph's own topics as it came off the wire."""

    def __init__(self) -> None:
        super().__init__("recorder_node")
        self.config = c = self.read_config(RecorderConfig)
        # Not in any executor: its queues are emptied by a timer. A round of the executor takes as long as writing ten
        # joint states, and brings one message of each topic: on a busy machine a fast one would never catch up.
        self._ears = Node("recorder_ears", context=self.context, namespace=self.get_namespace(), enable_rosout=False,
                          start_parameter_services=False)
        self._readers: list[tuple[str, Any, Any, bool, Callable[[Any], None]]] = []
        self._heard_ns: dict[str, int] = {}
        self._kinds: dict[str, Any] = {}
        self._root = Path(c.directory).expanduser().absolute()
        if self._root.exists() and not self._root.is_dir():
            raise BadConfig(f"directory {self._root} is a file; name a folder")
        self._writer: EpisodeWriter | None = None
        self._started_ns = 0
        self._latched: dict[str, tuple[str, bytes]] = {}
        self._last: Path | None = None
        self._pressed: set[int] = set()
        self._buttons = {number: outcome for number, outcome in ((c.success_button, "success"),
                                                                 (c.failure_button, "failure")) if number >= 0}
        if self._buttons:
            self.create_subscription(convert.Joy, "joy", self._on_joy, base.RECORD_IMAGES)
        for topic, kind, qos in (
            ("action_chunk", convert.ActionChunkMsg, base.RELIABLE), ("step", convert.StepMsg, base.RECORD),
            ("adapter", convert.AdapterMsg, base.LATCHED), ("arm_status", convert.ArmStatusMsg, base.LATCHED),
            ("instruction", convert.String, base.LATCHED), ("twin/truth", convert.TwinTruth, base.RELIABLE),
            (f"{c.robot_name}/joint_states", convert.JointState, base.RECORD),
            ("diagnostics", convert.DiagnosticArray, base.RELIABLE),
        ):
            self._listen(topic, kind, qos)
        # Pictures last: where time is short, they are what is lost, and no step.
        pictures = "image_raw/compressed" if c.image_compressed else "image_raw"
        if c.image_compressed:
            self._listen(pictures, convert.CompressedImage, base.RECORD_IMAGES)
        else:
            self._hear(pictures, convert.Image, base.RECORD_IMAGES, False, self._on_image)
        self._needed = (pictures, f"{c.robot_name}/joint_states")
        self._rehearse()
        self._diagnostics = self.create_publisher(convert.DiagnosticArray, "diagnostics", base.RELIABLE)
        self.create_service(convert.StartEpisode, "~/start_episode", self._on_start)
        self.create_service(convert.StopEpisode, "~/stop_episode", self._on_stop)
        self.create_service(convert.MarkOutcome, "~/mark_outcome", self._on_mark)
        self.every(POLL_S, self._empty_queues)
        self.every(0.25, self._on_time)
        self.every(1.0, self._on_diagnostics)
        self.get_logger().info(f"ready to record under {self._root}")

    def _listen(self, topic: str, kind: Any, qos: Any) -> None:
        name = _name(kind)
        latched = qos is base.LATCHED

        def on_bytes(cdr: bytes) -> None:
            # What is said once, or tells of the policy, an episode that starts later must carry too.
            if latched or (topic == "diagnostics" and POLICY_STATUS in cdr):
                self._latched[topic] = (name, cdr)
            self._write(topic, name, cdr)

        self._kinds[topic] = kind
        self._hear(topic, kind, qos, True, on_bytes)

    def _hear(self, topic: str, kind: Any, qos: Any, raw: bool, on_message: Callable[[Any], None]) -> None:
        subscription = self._ears.create_subscription(kind, topic, on_message, qos, raw=raw)
        self._readers.append((topic, subscription.handle, kind, raw, on_message))

    def _empty_queues(self) -> None:
        """Write what has come; on a machine too busy for that, services must be answered in between."""
        end_ns = base.steady_ns() + LONGEST_ROUND_NS
        for topic, handle, kind, raw, on_message in self._readers:
            with handle:
                while base.steady_ns() < end_ns and (taken := handle.take_message(kind, raw)) is not None:
                    self._heard_ns[topic] = base.steady_ns()
                    on_message(taken[0])

    def _silent_s(self, topic: str) -> float:
        """Return how long nothing was heard on a topic; infinite where nothing ever was."""
        return (base.steady_ns() - self._heard_ns[topic]) * 1e-9 if topic in self._heard_ns else math.inf

    def _silence(self) -> str:
        """Return what an episode would lack now, or "" where camera and arm are heard."""
        silent = [f"{topic} ({f'for {s:.1f} s' if math.isfinite(s) else 'ever'})" for topic in self._needed
                  if (s := self._silent_s(topic)) > SILENT_S]
        return f"nothing heard on {', '.join(silent)}; is it published, and under this name?" if silent else ""

    def _on_diagnostics(self) -> None:
        silence = self._silence()
        doing = f"recording {self._writer.episode_id}" if self._writer is not None else "ready"
        values = {topic: f"heard {self._silent_s(topic):.1f} s ago" if topic in self._heard_ns else "never heard"
                  for topic, *_ in self._readers}
        self._diagnostics.publish(convert.diagnostics_msg(
            "recorder_node", self.config.robot_name, "warn" if silence else "ok",
            f"{doing}; {silence}" if silence else doing, values, self.now_ns()))

    def _rehearse(self) -> None:
        """Record a little somewhere else: loading libraries and reading definitions takes the time of many pictures."""
        with tempfile.TemporaryDirectory() as place:
            writer = EpisodeWriter(Path(place), "rehearsal", {}, 0, reserve_bytes=0)
            for topic, kind in self._kinds.items():
                writer.write(f"/{topic}", _name(kind), bytes(serialize_message(kind())), 0)
            writer.write_image("/image_raw", np.zeros((48, 64, 3), np.uint8), 0, 0)
            writer.close("done", 0)

    # --- writing --------------------------------------------------------------------------------------------------

    def _write(self, topic: str, name: str, cdr: bytes) -> None:
        if self._writer is not None:
            try:
                self._writer.write(f"/{topic}", name, cdr, self.now_ns())
            except EpisodeError as error:
                self._fault(error)

    def _on_image(self, msg: Any) -> None:
        if self._writer is None:
            return
        try:
            frame = convert.frame_from_image(msg)
            self._writer.write_image("/image_raw", frame.rgb, frame.stamp_ns, self.now_ns(), msg.header.frame_id)
        except EpisodeError as error:
            self._fault(error)
        except WorldGymnastError as error:
            self.get_logger().error(f"picture not recorded: {error}", throttle_duration_sec=5.0)

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
        self._last = path
        self.get_logger().info(f"episode ended ({ended_by}): {path}")
        return path

    def _on_time(self) -> None:
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
        try:
            episode_id = new_episode_id(request.instruction, now_ns)
            header = {"instruction": request.instruction, "notes": request.notes, "robot": self.config.robot_name}
            self._writer = EpisodeWriter(self._root, episode_id, header, now_ns,
                                         reserve_bytes=int(self.config.min_free_mb * MIB))
            for topic, (name, cdr) in self._latched.items():
                self._writer.write(f"/{topic}", name, cdr, now_ns)
        except EpisodeError as error:
            response.message = str(error)
            if self._writer is not None:
                self._fault(error)
            return response
        self._started_ns = base.steady_ns()
        response.success, response.message = True, f"recording {episode_id}"
        if silence := self._silence():
            response.message += f"; {silence}"
            self.get_logger().warning(response.message)
        response.path = str(self._writer.folder)
        return response

    def _on_stop(self, request: Any, response: Any) -> Any:
        if self._writer is None:
            response.message = "no episode is running"
            return response
        self._empty_queues()
        try:
            path = self._finish(request.ended_by or "stopped", outcome=request.outcome or "unknown",
                                marked_by=request.marked_by, partial_score=_score(request.partial_score))
        except EpisodeError as error:
            response.message = str(error)
            return response
        response.success, response.path, response.message = True, str(path), "episode saved"
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
