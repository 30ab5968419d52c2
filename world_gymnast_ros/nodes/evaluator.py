"""`world-gymnast evaluate --robot`: true trials of base and adapter beside a running graph, marked by a person.

The person sets the scene, watches, and says what came of it, without being told which policy ran. Each trial: the
adapter (or the base) is offered, the policy node confirms it, the arm is armed for at most `trial_s`, held, and walks
home after the outcome is said. Ctrl-C and SIGTERM hold first.
"""
from __future__ import annotations

import argparse
import select
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from world_gymnast_ros.cli.evaluate import add_arguments, folder_of, tell
from world_gymnast_ros.evaluation.paired_trials import Trial, TrialLog, compare
from world_gymnast_ros.evaluation.sequential_test import PairedTest
from world_gymnast_ros.nodes import base, convert, verb
from world_gymnast_ros.nodes.operator import GraphFault, Operator
from world_gymnast_ros.store import load_adapter
from world_gymnast_ros.types import AdapterRef

ANSWERS: dict[str, bool | None] = {"y": True, "n": False, "?": None}
ANSWER_S = 15.0
"""Longest wait for the arm's status to say what its service has granted."""
HOME_S = 60.0
"""Longest walk home."""
RECORDER_S = 5.0
"""A recorder is looked for this long; without one the trials go on unrecorded."""
CONFIRM_S = 5.0
"""After Ctrl-C the answers of arm and recorder are waited for so long, each."""
SAY_AFTER_S = 3.0
"""What is waited for longer than this is said on the terminal."""


class Stopped(KeyboardInterrupt):
    """The person asked to stop."""


class Evaluator(Operator):
    """An operator who can offer adapters, and who asks a person."""

    def __init__(self, adapter: AdapterRef, instruction: str, trial_s: float, limit_pairs: int, wait_s: float) -> None:
        """`wait_s`: longest wait for the nodes to come up, and for the policy to load what it is offered."""
        super().__init__()
        self._offered, self._instruction, self._trial_s, self._pairs = adapter, instruction, trial_s, limit_pairs
        self._wait_s = wait_s
        self._in_use, self._refused, self._policy_says, self._told_pair = "", -1, "", -1
        self._offers = self.create_publisher(convert.AdapterMsg, "adapter", base.LATCHED)
        self.create_subscription(convert.DiagnosticArray, "diagnostics", self._on_diagnostics, base.RELIABLE)

    def _on_diagnostics(self, msg: Any) -> None:
        for status in msg.status:
            if status.name == "policy_node":
                values = {v.key: v.value for v in status.values}
                self._in_use, self._policy_says = values.get("adapter", ""), status.message
                self._refused = int(values.get("adapters_refused", "0"))

    def _wait_for(self, done: Callable[[], Any], what: str) -> None:
        """Wait at most `wait_s`, and say what for when it takes long: a large policy needs minutes to load."""
        begun, said = time.monotonic(), False

        def done_or_said() -> bool:
            nonlocal said
            if not said and time.monotonic() - begun > SAY_AFTER_S:
                print(f"waiting for {what}, at most {self._wait_s:g} s (--wait-s)", flush=True)
                said = True
            return bool(done())

        self.spin_until(done_or_said, self._wait_s, f"{what} (--wait-s waits longer)")

    def wait_for_robot(self) -> None:
        """Wait for the arm node and the policy node."""
        self._wait_for(lambda: self.status is not None, "arm_status: start the graph (bringup.launch.py)")
        for client in self._triggers.values():
            self._wait_for(client.service_is_ready, f"service {client.srv_name}")
        self._wait_for(lambda: self._in_use and self._offers.get_subscription_count() > 0,
                       "the policy node on /diagnostics: it loads its policy, or was not started")
        try:  # DDS may find it later than the others; a trial that is not recorded for that is lost for good
            self.spin_until(self._start.service_is_ready, RECORDER_S, "the recorder")
        except GraphFault:
            print("no recorder is running: the trials will be marked, but not recorded")
        self.say(self._instruction)

    def offer(self, adapter: AdapterRef | None) -> None:
        """Have the policy run an adapter (None: the base) and wait until it says so; GraphFault once it refuses.

        What is said meanwhile does not name the adapter: the person who marks the trial must not know.
        """
        refused = self._refused
        self._offers.publish(convert.adapter_msg(adapter, self.get_clock().now().nanoseconds))
        wanted = adapter.name if adapter else "base"
        self._wait_for(lambda: self._in_use == wanted or self._refused > refused,
                       "the policy node to load the policy of this trial")
        if self._in_use != wanted:
            raise GraphFault(f"the policy node does not run '{wanted}': {self._policy_says}")

    def run_trial(self, trial: Trial) -> bool | None:
        """Run one trial and return what the person says came of it."""
        order = "first" if self._told_pair != trial.pair else "second"
        self._told_pair = trial.pair
        self.ask(f"\npair {trial.pair + 1} of at most {self._pairs}, {order} trial: "
                 f"{'set a scene' if order == 'first' else 'set the same scene again'}, keep clear, press Enter "
                 "(q and Enter: stop here) ")
        self.offer(self._offered if trial.policy == "adapter" else None)
        recorded = self._start.service_is_ready()
        if recorded:  # the notes do not name the policy: a person may read them before marking
            self.call(self._start, convert.StartEpisode.Request(instruction=self._instruction,
                                                                notes=f"evaluation, pair {trial.pair}"))
        self.adapter = ""
        ended = "stopped"
        success: bool | None = None
        try:
            self.trigger("arm")
            ended = self._wait_for_enter()
            self.trigger("hold")
            success = self._outcome()
        finally:
            self.trigger("hold")  # again, in case it was not reached
            if recorded:
                self._end_recording(success, "stopped" if self._interrupted else ended)
        self._walk_home()
        if self.adapter not in ("", self._in_use):
            raise GraphFault(f"the arm was driven by '{self.adapter}', expected '{self._in_use}': another node offers "
                             "adapters too; end it and go on")
        return success

    def trigger(self, name: str) -> None:
        """Call the arm node; after Ctrl-C at once, and then until it answers."""
        super().trigger(name)
        if self._interrupted:
            self._confirm(self._triggers[name], convert.Trigger.Request())

    def _confirm(self, client: Any, request: Any) -> None:
        """Call from a node of its own and wait for the answer: after Ctrl-C this one's executor hears none, and what
        was only sent may be lost when the process ends. What is not answered is said."""
        node = rclpy.create_node("operator_confirming", namespace=self.get_namespace())
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            again = node.create_client(client.srv_type, client.srv_name)
            end = time.monotonic() + CONFIRM_S
            if again.wait_for_service(CONFIRM_S):
                future = again.call_async(request)
                executor.spin_until_future_complete(future, max(0.1, end - time.monotonic()))
                if future.done():
                    response: Any = future.result()
                    if not response.success:
                        print(f"\n{client.srv_name} refused: {response.message}")
                    return
            print(f"\n{client.srv_name} did not answer within {CONFIRM_S:g} s; see to the robot")
        finally:
            executor.shutdown()
            node.destroy_node()

    def _end_recording(self, success: bool | None, ended: str) -> None:
        """End the episode, and wait for the answer."""
        request = convert.StopEpisode.Request(
            outcome={True: "success", False: "failure", None: "unknown"}[success],
            marked_by="" if success is None else "operator", partial_score=-1.0, ended_by=ended)
        if self._interrupted:
            self._confirm(self._stop, request)
        else:
            self.call(self._stop, request, 30.0)

    def ask(self, question: str) -> str:
        """Ask on the terminal, spinning until a line comes. Stopped at q, at the end of input, and by Ctrl-C."""
        print(question, end="", flush=True)
        lines: list[str] = []

        def heard() -> bool:
            if select.select([sys.stdin], [], [], 0.0)[0]:
                lines.append(sys.stdin.readline())
            return bool(lines)

        self.spin_until(heard, 24 * 3600.0, "an answer")
        if not lines[0] or lines[0].strip().lower() == "q":
            raise Stopped
        return lines[0].strip().lower()

    def _wait_for_enter(self) -> str:
        """Let the arm act until Enter, or for `trial_s`, or until it stops by itself; return how it ended."""
        self.spin_until(lambda: self.status.state == self.status.ARMED, ANSWER_S, "the arm to say that it is armed")
        print(f"armed for {self._trial_s:g} s; Enter ends the trial ", end="", flush=True)
        deadline = time.monotonic() + self._trial_s
        pressed: list[str] = []

        def over() -> bool:
            if select.select([sys.stdin], [], [], 0.0)[0]:
                pressed.append(sys.stdin.readline())
            return bool(pressed) or time.monotonic() > deadline or self.status.state != self.status.ARMED

        self.spin_until(over, self._trial_s + 10.0, "the end of the trial")
        if self.status.state != self.status.ARMED:
            print(f"\nthe arm stopped by itself: {self.status.reason}")
            return "fault"
        return "done" if pressed else "time"

    def _outcome(self) -> bool | None:
        while True:
            answer = self.ask("\ndid it succeed? y, n, or ? if nobody can say (the pair is dropped): ")
            if answer in ANSWERS:
                return ANSWERS[answer]

    def _walk_home(self) -> None:
        """Bring the arm to neutral for the next trial. What fails is said and no error: the trial's outcome stands."""
        print("the arm goes home, keep clear")
        try:
            self.trigger("go_home")
            self.spin_until(lambda: "home" in self.status.reason, ANSWER_S, "the arm to set out")
            self.spin_until(lambda: "going home" not in self.status.reason, HOME_S, "the arm at home")
            print(self.status.reason)
        except GraphFault as error:
            print(f"the arm did not go home ({error}); bring it there")
        try:
            self.trigger("disarm")
        except GraphFault as error:
            print(f"the arm was not disarmed ({error}); see to it before the next trial")


def evaluate(args: argparse.Namespace) -> int:
    """Run the evaluation; the policy goes on with the adapter where it proved better, else with the base."""
    adapter = load_adapter(args.adapter)
    folder = folder_of(args)
    log = TrialLog(folder, {"adapter": adapter.sha256, "instruction": args.instruction, "where": "robot",
                            "seed": args.seed})
    # No signal handler of rclpy: Ctrl-C raises KeyboardInterrupt here, and the arm is held before this ends.
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = Evaluator(adapter, args.instruction, args.trial_s, args.limit_pairs, args.wait_s)
    try:
        node.wait_for_robot()
        told: Callable[[PairedTest, int], None] = lambda test, dropped: print(  # noqa: E731
            f"after {len(test.outcomes)} pairs: {test.decision or 'not clear yet'}", flush=True)
        verdict = compare(node.run_trial, log, PairedTest(args.limit_pairs, args.confidence), args.seed, 0, told)
        if rclpy.ok() and not node._interrupted:
            node.offer(adapter if verdict.decision == "better" else None)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return tell(verdict.as_json(), folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors into one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="world-gymnast evaluate")
    add_arguments(parser)
    return verb.run(parser, evaluate, argv, "stopped; the arm was told to hold")


if __name__ == "__main__":
    raise SystemExit(main())
