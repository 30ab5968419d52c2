"""`world-gymnast evaluate --robot`: true trials of base and adapter beside a running graph, marked by a person.

The person sets the scene, watches, and says what came of it, without being told which policy ran. Each trial: the
adapter (or the base) is offered, the policy node confirms it, the arm is armed for at most `trial_s`, held, and walks
home after the outcome is said. Ctrl-C and SIGTERM hold first.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import rclpy
from rclpy.signals import SignalHandlerOptions

from world_gymnast_ros.cli.evaluate import add_arguments, folder_of, tell
from world_gymnast_ros.evaluation.paired_trials import Trial, TrialLog, compare
from world_gymnast_ros.evaluation.power import what_pairs_show
from world_gymnast_ros.evaluation.sequential_test import PairedTest
from world_gymnast_ros.nodes import verb
from world_gymnast_ros.nodes.attended import Attended
from world_gymnast_ros.store import load_adapter
from world_gymnast_ros.types import AdapterRef


class Evaluator(Attended):
    """Runs the trials of a comparison."""

    def __init__(self, adapter: AdapterRef, instruction: str, trial_s: float, pairs: int, wait_s: float) -> None:
        super().__init__(instruction, trial_s, wait_s)
        self._offered, self._pairs, self._told_pair = adapter, pairs, -1

    def run_trial(self, trial: Trial) -> bool | None:
        """Run one trial and return what the person says came of it."""
        order = "first" if self._told_pair != trial.pair else "second"
        self._told_pair = trial.pair
        self.ask(f"\npair {trial.pair + 1} of at most {self._pairs}, {order} trial: "
                 f"{'set a scene' if order == 'first' else 'set the same scene again'}, keep clear, press Enter "
                 "(q and Enter: stop here) ")
        _, path = self.act(self._offered if trial.policy == "adapter" else None, f"evaluation, pair {trial.pair}")
        return self.outcome_of(path)


def evaluate(args: argparse.Namespace) -> int:
    """Run the evaluation; the policy goes on with the adapter where it proved better, else with the base."""
    adapter = load_adapter(args.adapter)
    folder = folder_of(args)
    log = TrialLog(folder, {"adapter": adapter.sha256, "instruction": args.instruction, "where": "robot",
                            "seed": args.seed})
    # No signal handler of rclpy: Ctrl-C raises KeyboardInterrupt here, and the arm is held before this ends.
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = Evaluator(adapter, args.instruction, args.trial_s, args.pairs, args.wait_s)
    try:
        node.wait_for_robot(recorder=False)
        told: Callable[[PairedTest, int], None] = lambda test, dropped: print(  # noqa: E731
            f"after {len(test.outcomes)} pairs: {test.decision or 'not clear yet'}", flush=True)
        print(what_pairs_show(args.pairs, args.confidence), flush=True)
        verdict = compare(node.run_trial, log, PairedTest(args.pairs, args.confidence), args.seed, 0, told)
        if rclpy.ok() and not node._interrupted:
            node.offer(adapter if verdict.decision == "better" else None)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return tell(verdict.as_json(), folder, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors into one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="world-gymnast evaluate")
    add_arguments(parser)
    return verb.run(parser, evaluate, argv, "stopped; the arm was told to hold")


if __name__ == "__main__":
    raise SystemExit(main())
