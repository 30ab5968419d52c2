"""Ends real episodes: a judge watches an armed arm, and says when the task is done. The arm node then holds."""
from __future__ import annotations

import threading
from typing import Any

from world_gymnast_ros.adaptation.done_watch import DoneWatch
from world_gymnast_ros.config import ReflectorNodeConfig
from world_gymnast_ros.errors import BadFrame, BadInstruction
from world_gymnast_ros.loading.load import load_judges
from world_gymnast_ros.nodes import base, command_line, convert
from world_gymnast_ros.types import U8
from world_gymnast_ros.updates.calibration import LogitJudge

ANY_FRAME = (256, 256)
"""Size of the frames shown to a judge that does not say what it sees."""


class ReflectorNode(base.ConfiguredNode):
    """Looks at one frame every `period_s` while the arm is armed; judging runs in a thread, the newest frame waits."""

    def __init__(self) -> None:
        super().__init__("reflector_node")
        self.config = c = self.read_config(ReflectorNodeConfig)
        judge = load_judges(c.judge, c.device, c.dtype)
        if c.threads:
            import torch

            torch.set_num_threads(c.threads)
        size = judge.frame_size if isinstance(judge, LogitJudge) else ANY_FRAME
        self.watch = DoneWatch(judge, size, c.threshold, c.looks)
        self._instruction, self._armed, self._episode, self._said = "", False, 0, -1
        self._looked_ns, self._fault = 0, ""
        self._next: tuple[int, str, U8] | None = None
        self._wake = threading.Condition()
        self._done = self.create_publisher(convert.DiagnosticStatus, "task_done", base.RELIABLE)
        self._diagnostics = self.create_publisher(convert.DiagnosticArray, "/diagnostics", base.RELIABLE)
        kind, topic = ((convert.CompressedImage, "image_raw/compressed") if c.image_compressed
                       else (convert.Image, "image_raw"))
        self.create_subscription(kind, topic, self._on_image, base.NEWEST)
        base.hear_everyone(self, convert.String, "instruction", self._on_instruction)
        self.create_subscription(convert.ArmStatusMsg, "arm_status", self._on_arm_status, base.LATCHED)
        self.every(1.0, self._on_diagnostics)
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()
        self.get_logger().info(f"judge {judge.name}: done above {c.threshold:g} at {c.looks} looks in a row")

    def _on_instruction(self, msg: Any) -> None:
        if msg.data != self._instruction:
            self._instruction = msg.data
            self._episode += 1

    def _on_arm_status(self, msg: Any) -> None:
        armed = msg.state == msg.ARMED
        self._episode += armed and not self._armed  # another arming is another episode
        self._armed = armed

    def _on_image(self, msg: Any) -> None:
        now_ns = base.steady_ns()
        due = now_ns - self._looked_ns >= self.config.period_s * 1e9
        if not (self._armed and self._instruction.strip() and due and self._said != self._episode):
            return
        self._looked_ns = now_ns
        try:
            read = convert.frame_from_compressed if self.config.image_compressed else convert.frame_from_image
            frame = read(msg)
        except BadFrame as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        with self._wake:
            self._next = (self._episode, self._instruction, frame.rgb)
            self._wake.notify()

    def _work(self) -> None:
        seen = -1
        while True:
            with self._wake:
                while self._next is None:
                    self._wake.wait()
                (episode, instruction, rgb), self._next = self._next, None
            if episode != seen:
                seen = episode
                self.watch.begin(instruction)
            try:
                done = self.watch.look(rgb)
                self._fault = "" if self.watch.verdict.score is not None else self.watch.verdict.detail
            except (BadInstruction, BadFrame) as error:
                self._fault = str(error)
                self.get_logger().error(self._fault, throttle_duration_sec=10.0)
                continue
            if done and episode == self._episode and self._armed:
                self._said = episode
                self._tell()

    def _tell(self) -> None:
        name, probability = self.watch.judge.name, self.watch.probability
        words = f"{name} says that '{self.watch.instruction}' is done ({probability:.2f})"
        values = [convert.KeyValue(key="judge", value=name), convert.KeyValue(key="score", value=f"{probability:.4f}"),
                  convert.KeyValue(key="instruction", value=self.watch.instruction)]
        self._done.publish(convert.DiagnosticStatus(name="reflector_node", hardware_id=name, message=words,
                                                    level=convert.DiagnosticStatus.OK, values=values))
        self.get_logger().info(words)

    def _on_diagnostics(self) -> None:
        probability = self.watch.probability
        values = {"judge": self.watch.judge.name, "looks_in_a_row": self.watch.sure,
                  "probability": "no verdict" if probability is None else round(probability, 3)}
        doing = ("done" if self._said == self._episode else "watching") if self._armed else "waiting for the arm"
        name, level = base.named(self, "reflector_node"), "warn" if self._fault else "ok"
        self._diagnostics.publish(convert.diagnostics_msg(name, self.watch.judge.name, level, self._fault or doing,
                                                          values, self.now_ns()))


USAGE = command_line.Usage(
    name="reflector_node",
    doc="""\
Watches an armed arm, and says on task_done when the instruction is fulfilled; arm_node then holds.

  in   image_raw, instruction (std_msgs/String), arm_status
  out  task_done (diagnostic_msgs/DiagnosticStatus), diagnostics""",
    parameters=ReflectorNodeConfig,
    moves="Never; it can only make the arm hold.",
    examples=(
        ("", "the learned judge that ships with the package"),
        ("--ros-args -p judge:=judges/head -p looks:=3", "a judge of your own, sure at three looks in a row"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the node."""
    return base.run(ReflectorNode, argv, usage=USAGE)


if __name__ == "__main__":
    raise SystemExit(main())
