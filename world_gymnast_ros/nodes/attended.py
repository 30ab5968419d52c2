"""`Attended`: an operator beside a running graph who asks a person at the terminal, and who holds the arm first.

The person sets the scene, watches, and says what came of it. Which policy runs is told to the policy node alone.
"""
from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from world_gymnast_ros.control.hold_cause import HoldCause
from world_gymnast_ros.nodes import base, convert
from world_gymnast_ros.nodes.caller import GraphFault
from world_gymnast_ros.nodes.operator import Operator
from world_gymnast_ros.types import AdapterRef

ANSWERS: dict[str, bool | None] = {"y": True, "n": False, "?": None}
ANSWER_S = 15.0
"""Longest wait for the arm's status to say what its service has granted."""
HOME_S = 60.0
"""Longest walk home."""
RECORDER_S = 5.0
"""A recorder is looked for this long."""
SAY_AFTER_S = 3.0
"""What is waited for longer than this is said on the terminal."""
LOADS = "the policy node to load the policy of this trial"
LAST_FRAME_S = 0.4
"""The recording goes on so long after the last action: its last frame shows what that action did."""


class Stopped(KeyboardInterrupt):
    """The person asked to stop."""


class Attended(Operator):
    """Episodes of the policy that the policy node runs, watched by a person; each for at most `trial_s`.

    `wait_s`: longest wait for the nodes to come up, and for the policy to load what it is offered.
    """

    def __init__(self, instruction: str, trial_s: float, wait_s: float) -> None:
        super().__init__()
        self._instruction, self._trial_s, self._wait_s = instruction, trial_s, wait_s
        self._in_use, self._refused, self._policy_says, self.base_policy = "", -1, "", ""
        self._offers = self.create_publisher(convert.AdapterMsg, "adapter", base.LATCHED)
        self._set = self.create_client(convert.SetParameters, "policy_node/set_parameters")
        self._mark = self.create_client(convert.MarkOutcome, "recorder_node/mark_outcome")
        self.create_subscription(convert.DiagnosticArray, "/diagnostics", self._on_diagnostics, base.RELIABLE)

    def _on_diagnostics(self, msg: Any) -> None:
        for status in msg.status:
            if status.name == base.named(self, "policy_node"):
                values = {v.key: v.value for v in status.values}
                self._in_use, self.base_policy = values.get("adapter", ""), values.get("policy", "")
                self._policy_says, self._refused = status.message, int(values.get("adapters_refused", "0"))

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

    def wait_for_robot(self, recorder: bool) -> None:
        """Wait for the arm node and the policy node; `recorder`: without one nothing can be done."""
        self._wait_for(lambda: self.status is not None, "arm_status: start the graph (bringup.launch.py)")
        for client in self._triggers.values():
            self._wait_for(client.service_is_ready, f"service {client.srv_name}")
        self._wait_for(lambda: self._in_use and self._offers.get_subscription_count() > 0,
                       "the policy node on /diagnostics: it loads its policy, or was not started")
        try:  # DDS may find it later than the others; a trial that is not recorded for that is lost for good
            self.spin_until(self._start.service_is_ready, RECORDER_S, "the recorder (recorder_node)")
        except GraphFault:
            if recorder:
                raise
            print("no recorder is running: the trials will be marked, but not recorded")
        self.say(self._instruction)

    # --- the policy -----------------------------------------------------------------------------------------------

    def offer(self, adapter: AdapterRef | None) -> None:
        """Have the policy run an adapter (None: the base) and wait until it says so; GraphFault once it refuses.

        What is said meanwhile does not name the adapter: the person who marks the trial must not know.
        """
        refused = self._refused
        self._offers.publish(convert.adapter_msg(adapter, self.get_clock().now().nanoseconds))
        wanted = adapter.name if adapter else "base"
        self._wait_for(lambda: self._in_use == wanted or self._refused > refused, LOADS)
        if self._in_use != wanted:
            raise GraphFault(f"the policy node does not run '{wanted}': {self._policy_says}")

    def explore(self, temperature: float) -> None:
        """Have the policy sample at this temperature until the arm is disarmed; 0: act greedily."""
        self._wait_for(self._set.service_is_ready, f"service {self._set.srv_name}")
        future = self._set.call_async(convert.set_double("temperature", temperature))
        self._wait_for(future.done, LOADS)
        result = future.result().results[0]
        if not result.successful:
            raise GraphFault(f"the policy node does not sample at temperature {temperature:g}: {result.reason}")

    # --- one episode ----------------------------------------------------------------------------------------------

    def act(self, adapter: AdapterRef | None, notes: str, temperature: float = 0.0) -> tuple[str, Path | None]:
        """Let the policy act with an adapter (None: the base) until Enter, `trial_s` or a fault; then hold the arm.

        Return how it ended and where it was recorded (None: no recorder). The recording's outcome is unknown yet.
        """
        self.offer(adapter)
        self.explore(temperature)
        recorded = self._start.service_is_ready()
        if recorded:  # the notes do not name the policy: a person may read them before marking
            self.call(self._start, convert.StartEpisode.Request(instruction=self._instruction, notes=notes))
        self.adapter, ended, path = "", "stopped", None
        try:
            self.trigger("arm")
            ended = self._wait_for_enter()
            self.trigger("hold")
            end = time.monotonic() + LAST_FRAME_S
            self.spin_until(lambda: time.monotonic() > end, LAST_FRAME_S + 5.0, "the last action")
        finally:
            self.trigger("hold")  # again, in case it was not reached
            if recorded:
                path = self._end_recording("stopped" if self._interrupted else ended)
        if self.adapter not in ("", self._in_use):
            raise GraphFault(f"the arm was driven by '{self.adapter}', expected '{self._in_use}': another node offers "
                             "adapters too; end it and go on")
        return ended, path

    def outcome_of(self, path: Path | None) -> bool | None:
        """Ask the person, mark the recording at `path`, and walk the arm home."""
        answer = ""
        while answer not in ANSWERS:
            answer = self.ask("\ndid it succeed? y, n, or ? if nobody can say (it does not count then): ")
        success = ANSWERS[answer]
        if path is not None and success is not None:
            self.call(self._mark, convert.MarkOutcome.Request(
                path=str(path), outcome="success" if success else "failure", marked_by="operator", partial_score=-1.0))
        self._walk_home()
        return success

    def trigger(self, name: str) -> None:
        """Call the arm node; after Ctrl-C at once, and then until it answers."""
        super().trigger(name)
        if self._interrupted:
            self.confirm(self._triggers[name], convert.Trigger.Request())

    def _end_recording(self, ended: str) -> Path | None:
        """End the recording and return where it lies; after Ctrl-C only wait for the answer."""
        request = convert.StopEpisode.Request(outcome="unknown", marked_by="", partial_score=-1.0, ended_by=ended)
        if self._interrupted:
            self.confirm(self._stop, request)
            return None
        return Path(self.call(self._stop, request, 30.0).path)

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
            return "done" if convert.hold_cause(self.status) is HoldCause.TASK_DONE else "fault"
        return "done" if pressed else "time"

    def _walk_home(self) -> None:
        """Bring the arm to neutral for the next trial. What fails is said and no error: the trial's outcome stands."""
        print("the arm goes home, keep clear")
        try:
            self.trigger("go_home")
            # A status may be older than the answer: only what it says of the walk counts.
            walk = (HoldCause.GOING_HOME, HoldCause.AT_HOME)
            self.spin_until(lambda: convert.hold_cause(self.status) in walk, ANSWER_S, "the arm to set out")
            self.spin_until(lambda: convert.hold_cause(self.status) is not walk[0], HOME_S, "the arm at home")
            print(self.status.reason)
        except GraphFault as error:
            print(f"the arm did not go home ({error}); bring it there")
        try:
            self.trigger("disarm")
        except GraphFault as error:
            print(f"the arm was not disarmed ({error}); see to it before the next trial")
