"""`world-gymnast robot WORD`: the services, the action and the topic of a running graph, in one word each.

It decides nothing: what a node refuses is refused in its words. Ctrl-C while `arm` or `home` waits holds the arm.
"""
from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.signals import SignalHandlerOptions

from world_gymnast_ros.cli.robot import add_arguments
from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.control.table_height import REST_S, table_height
from world_gymnast_ros.errors import BadAction, BadConfig, BadInstruction
from world_gymnast_ros.files import write_text
from world_gymnast_ros.nodes import base, convert, verb
from world_gymnast_ros.nodes.caller import Caller, GraphFault
from world_gymnast_ros.nodes.driver import UNNAMED
from world_gymnast_ros.nodes.joint_merge import JointMerge
from world_gymnast_ros.nodes.set_up_file import with_parameter
from world_gymnast_ros.progress import bar
from world_gymnast_ros.types import ArmState

STATUS_S = 3.0
"""Every node says something at least once a second."""
HOME_S = 60.0
"""Longest walk home."""
CAPTURE_S = 60.0
"""Longest wait for an image."""
CALIBRATION_S = 300.0
SESSION_ENDS_S = 60.0
"""A session that was cancelled ends within one update."""
LISTENERS = ("policy_node", "adapt_node", "recorder_node")
"""Who should hear what is said; without the first nothing acts on it."""
LISTENERS_S = 2.0
REPORTERS = ("arm_node", "policy_node", "recorder_node")
"""Nodes that publish diagnostics."""
LAUNCH = "ros2 launch world_gymnast_ros bringup.launch.py"


class RobotWords(Caller):
    """Says one word to the graph. `wait_s`: longest wait for an answer."""

    def __init__(self, wait_s: float, namespace: str) -> None:
        super().__init__(f"robot_words_{os.getpid()}", self._check_signal, namespace)
        self.wait_s = wait_s
        self._signals: list[int] = []
        self._before = {number: signal.signal(number, lambda n, _frame: self._signals.append(n))
                        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def close(self) -> None:
        """Leave the graph."""
        self.destroy_node()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _check_signal(self) -> None:
        """Raise KeyboardInterrupt between two spins, so that this node can still call who holds the arm."""
        if self._signals:
            self._signals.clear()
            raise KeyboardInterrupt

    def reach(self, ready: Callable[[], Any], what: str, node: str) -> None:
        """Wait until somebody offers `what`. Raises GraphFault naming what to start."""
        if not self.spins_until(ready, self.wait_s):
            domain = os.environ.get("ROS_DOMAIN_ID", "0")
            raise GraphFault(f"nobody offers {what} after {self.wait_s:g} s: start {node} in another terminal, all "
                             f"nodes with {LAUNCH}; with the same ROS_DOMAIN_ID, here {domain}, and in the same "
                             f"namespace, here '{self.get_namespace()}'. --wait-s waits longer for models that load")

    def trigger(self, name: str, timeout_s: float = 15.0) -> str:
        """Call a std_srvs/Trigger and return what it says. Raises GraphFault with its words where it refuses."""
        client = self.create_client(convert.Trigger, name)
        self.reach(client.service_is_ready, client.srv_name, name.partition("/")[0])
        return str(self.call(client, convert.Trigger.Request(), max(timeout_s, self.wait_s)).message)

    def moving(self, name: str, then: Callable[[], str]) -> str:
        """Call a service after which the arm may move; Ctrl-C meanwhile holds the arm."""
        try:
            said = self.trigger(name)
            return then() or said
        except KeyboardInterrupt:
            print("\nstopped: holding the arm", file=sys.stderr, flush=True)
            print(self.trigger("arm_node/hold"), file=sys.stderr)
            raise

    def answer(self, args: argparse.Namespace) -> str:
        """Say a word that is answered in one line; return the answer."""
        if args.word == "say":
            return self.say(args.instruction)
        if args.word == "home":
            return self.walk("arm_node/go_home", HoldCause.GOING_HOME, HoldCause.AT_HOME)
        if args.word == "arm":
            return self.moving("arm_node/arm", lambda: "")
        if args.word == "calibrate":
            return self.calibrate()
        if args.word == "table":
            return self.table(f"{args.robot_name}/joint_states", args.out)
        if args.word == "capture":
            if args.go:
                print(self.walk("arm_node/go_to_capture", HoldCause.GOING_TO_CAPTURE, HoldCause.AT_CAPTURE), flush=True)
            return self.trigger("adapt_node/capture", CAPTURE_S)
        return self.trigger(f"arm_node/{args.word}")

    def calibrate(self) -> str:
        """Let adapt_node find the camera, and show how far it is."""
        with bar(100, "finding the camera", "%") as line:
            self.create_subscription(convert.Float32, "adapt_node/calibration_progress",
                                     lambda msg: line.update(int(100 * msg.data) - line.n), base.RELIABLE)
            return self.trigger("adapt_node/calibrate_camera", CALIBRATION_S)

    def walk(self, service: str, going: HoldCause, there: HoldCause) -> str:
        """Walk home, or to the capture pose, and wait until the arm is there."""
        heard: list[Any] = []
        self.create_subscription(convert.ArmStatusMsg, "arm_status", heard.append, base.LATCHED)
        self.reach(lambda: heard, "arm_status", "arm_node")

        def walk() -> str:
            print(f"{going.value}, keep clear; Ctrl-C holds", flush=True)
            answered = len(heard)
            self.spin_until(lambda: len(heard) > answered and convert.hold_cause(heard[-1]) is not going, HOME_S,
                            "the arm to be there")
            if convert.hold_cause(heard[-1]) is not there:
                raise GraphFault(f"the arm is {heard[-1].state_name}: {heard[-1].reason}")
            return str(heard[-1].reason)
        return self.moving(service, walk)

    def table(self, topic: str, out: Path) -> str:
        """Measure the table by the finger tips that rest on it, and write it to a parameters file. Moves nothing."""
        if out.exists() and not out.is_file():
            raise BadConfig(f"--out {out} is no file; name a parameters file to write")
        heard: list[Any] = []
        states: list[ArmState] = []
        faults: list[str] = []
        merge = JointMerge()

        def on_joints(msg: Any) -> None:
            try:
                state = merge.add(msg, base.steady_ns())
            except BadAction as error:
                faults.append(str(error))
                return
            states.extend([state] if state is not None else [])
        self.create_subscription(convert.ArmStatusMsg, "arm_status", heard.append, base.LATCHED)
        self.create_subscription(convert.JointState, topic, on_joints, base.SHARED)
        self.reach(lambda: states or faults, f"joint states on {self.resolve_topic_name(topic)}", "the driver")
        self.spins_until(lambda: False, REST_S)
        # Joint states may come before arm_node is known: an armed arm is not to be taken for one that nobody guards.
        self.spins_until(lambda: heard, LISTENERS_S)
        if not heard and self.count_publishers("arm_status"):
            raise GraphFault("arm_node does not say whether the arm is disarmed; try again, or start arm_node anew")
        if heard and heard[-1].state != heard[-1].DISARMED:
            raise GraphFault(f"the arm is {heard[-1].state_name}; disarm it first (world-gymnast robot disarm)")
        if not states:
            raise GraphFault(f"the arm's state is not known: {faults[-1]}")
        height_m, part = table_height(states)
        text = with_parameter(out, "table_z_m", height_m)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
        return (f"the table's top is {1000 * height_m:+.1f} mm from the foot of the arm, by the {part}; launch with "
                f"params_file:={out.resolve()}")

    # --- say, adapt -----------------------------------------------------------------------------------------------

    def say(self, instruction: str) -> str:
        """Publish the instruction once the policy node listens; return who heard it."""
        if not instruction.strip():
            raise BadInstruction('the instruction is empty; say a task, such as "reach the red block"')
        publisher = self.create_publisher(convert.String, "instruction", base.LATCHED)
        topic = self.resolve_topic_name("instruction")

        def listeners() -> list[str]:
            found = {info.node_name for info in self.get_subscriptions_info_by_topic(topic)}
            return [name for name in LISTENERS if name in found]
        self.reach(lambda: LISTENERS[0] in listeners(), f"a subscription of {topic}", LISTENERS[0])
        self.spins_until(lambda: len(listeners()) == len(LISTENERS), LISTENERS_S)
        heard_by = listeners()
        self.spin_until(lambda: publisher.get_subscription_count() >= len(heard_by), self.wait_s, "its subscribers")
        publisher.publish(convert.String(data=instruction))
        if not publisher.wait_for_all_acked(Duration(seconds=self.wait_s)):
            raise GraphFault(f"not every node confirmed within {self.wait_s:g} s that it heard '{instruction}'; say it "
                             "again")
        missing = [name for name in LISTENERS if name not in heard_by]
        without = f"; not found: {', '.join(missing)}; where it runs, say it again" if missing else ""
        return f"'{instruction}' heard by {', '.join(heard_by)}{without}"

    def adapt(self, goal: Any) -> int:
        """Run a session and print its answer; 0: an adapter was promoted. Ctrl-C cancels, a second one leaves."""
        action = ActionClient(self, convert.Adapt, "adapt")
        self.reach(action.server_is_ready, "the action adapt", "adapt_node")
        sent = action.send_goal_async(goal, feedback_callback=lambda m: progress(m.feedback))
        self.spin_until(sent.done, max(30.0, self.wait_s), "adapt_node to take the goal")
        handle = sent.result()
        if not handle.accepted:
            raise GraphFault("adapt_node takes no goal: a session or a capture is running; wait, or cancel it")
        result, cancelled = handle.get_result_async(), False
        try:
            self._until_over(result, action, None)
        except KeyboardInterrupt:
            cancelled = True
            print("\ncancelling; the present policy stays", file=sys.stderr, flush=True)
            handle.cancel_goal_async()
            self._until_over(result, action, SESSION_ENDS_S)
        end_line()
        answer = result.result().result
        print(answer.message + (f"\nreport: {answer.report_path}" if answer.report_path else ""))
        if cancelled:
            raise KeyboardInterrupt
        if not answer.promoted and not answer.report_path:  # it never began
            return 2
        return 0 if answer.promoted else 1

    def _until_over(self, result: Any, action: Any, timeout_s: float | None) -> None:
        """Spin until the session's result. Raises GraphFault once adapt_node is gone."""
        deadline = time.monotonic() + timeout_s if timeout_s else float("inf")
        while not self.spins_until(result.done, self.wait_s):
            if not action.server_is_ready():
                raise GraphFault("adapt_node is gone; the running policy is as it was. Look at its log")
            if time.monotonic() > deadline:
                raise GraphFault(f"the session did not end within {timeout_s:g} s; look at the log of adapt_node")

    # --- status ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the nodes say: state of the arm, diagnostics by node, and whether camera and adaptation are
        there."""
        heard: list[Any] = []
        said: dict[str, Any] = {}
        own = {base.named(self, name): name for name in REPORTERS}

        def on_diagnostics(msg: Any) -> None:
            said.update({own[status.name]: status for status in msg.status if status.name in own})
        self.create_subscription(convert.ArmStatusMsg, "arm_status", heard.append, base.LATCHED)
        self.create_subscription(convert.DiagnosticArray, "/diagnostics", on_diagnostics, base.RELIABLE)
        capture = self.create_client(convert.Trigger, "adapt_node/capture")
        images = [self.resolve_topic_name(name) for name in ("image_raw", "image_raw/compressed")]

        def cameras() -> list[str]:
            return [info.node_name for topic in images for info in self.get_publishers_info_by_topic(topic)]
        self.reach(lambda: heard or said, "arm_status or diagnostics", "the graph")
        self.spins_until(lambda: heard and len(said) == len(REPORTERS) and capture.service_is_ready() and cameras(),
                         STATUS_S)
        self.spins_until(lambda: UNNAMED not in cameras(), STATUS_S)  # a node is known some time before its name
        arm = None
        if heard:
            arm = {"state": heard[-1].state_name, "reason": heard[-1].reason,
                   "frame_age_s": round(float(heard[-1].frame_age_s), 3),
                   "command_age_s": round(float(heard[-1].command_age_s), 3)}
        nodes = {name: {"level": LEVELS.get(status.level, "stale"), "message": status.message,
                        "values": {pair.key: pair.value for pair in status.values}}
                 for name, status in sorted(said.items())}
        missing = [name for name in REPORTERS if name not in said]
        missing += [] if capture.service_is_ready() else ["adapt_node"]
        missing += [] if cameras() else ["a camera (no publisher of image_raw)"]
        return {"arm": arm, "nodes": nodes, "adapt_node": capture.service_is_ready(), "cameras": cameras(),
                "missing": missing}


LEVELS = {convert.DiagnosticStatus.OK: "ok", convert.DiagnosticStatus.WARN: "warn",
          convert.DiagnosticStatus.ERROR: "error"}


def progress(feedback: Any) -> None:
    """Print how far a session is: on a terminal in one line, else one line each."""
    line = (f"{feedback.stage}: update {feedback.update} of {feedback.max_updates}, imagined success "
            f"{feedback.imagined_success:.0%}, {feedback.seconds_left:.0f} s left")
    print(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)


def end_line() -> None:
    """End the line that `progress` writes again and again."""
    if sys.stdout.isatty():
        print()


def tell_status(status: dict[str, Any], as_json: bool) -> int:
    """Print what the nodes say; 1 where one is missing or reports an error."""
    if as_json:
        print(json.dumps(status, indent=1))
    else:
        arm = status["arm"]
        if arm:
            print(f"arm            {arm['state']}: {arm['reason'] or 'nothing to report'}")
        for name, said in status["nodes"].items():
            print(f"{name:<14} {said['level']}: {said['message']}")
        policy = status["nodes"].get("policy_node", {"values": {}})["values"]
        for key in ("instruction", "adapter", "frames_per_s"):
            if key in policy:
                print(f"{key:<14} {policy[key] or 'none'}")
        if status["adapt_node"]:
            print(f"{'adapt_node':<14} ready")
        for name in status["missing"]:
            print(f"missing        {name}")
    return int(bool(status["missing"]) or any(said["level"] == "error" for said in status["nodes"].values()))


def work(args: argparse.Namespace) -> int:
    """Say the word."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = RobotWords(args.wait_s, args.namespace)
    try:
        if args.word == "status":
            return tell_status(node.status(), args.json)
        if args.word == "adapt":
            return node.adapt(convert.Adapt.Goal(instructions=args.instruction, budget_s=args.budget_s, seed=args.seed,
                                                 max_updates=args.updates, dry_run=args.dry_run))
        said = node.answer(args)
        print(said)
        return 0
    finally:
        node.close()
        rclpy.try_shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, say the word, and turn errors into one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="world-gymnast robot")
    add_arguments(parser)
    return verb.run(parser, work, argv, "stopped")


if __name__ == "__main__":
    raise SystemExit(main())
