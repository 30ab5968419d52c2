"""Measure what the arm does about every fault: `python bench/faults.py [--rounds 5]`.

Runs the fault tests with the limits that ship and with their time limits on, over DDS, and prints one line per fault:
times from the fault (seen by the one who makes it) to the hold command (seen on the driver's topic), and the last words
the operator was told. Needs a machine that is not overloaded; a missed time limit fails the round and is named.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def run_round(log: Path, only: str) -> bool:
    """Run the fault tests once, `only` those whose names hold these words; tell whether all passed."""
    env = {**os.environ, "WORLD_GYMNAST_TEST_TIMING": "1", "WORLD_GYMNAST_FAULT_LOG": str(log)}
    command = [sys.executable, "-m", "pytest", "-q", "test/test_faults.py", "test/test_faults_policy.py",
               "test/test_faults_graph.py",
               "test/test_faults_clock.py", *(["-k", only] if only else [])]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            print(line, file=sys.stderr)
    return done.returncode == 0


def main() -> None:
    """Print a Markdown table of all rounds; exit code 1 if a round failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="WORDS", help="only tests whose names fit, as for pytest -k")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "faults.jsonl"
        passed = [run_round(log, args.only) for _ in range(args.rounds)]
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    print("| fault | n | median ms | worst ms | told |\n|---|---|---|---|---|")
    for row in dict.fromkeys(line["row"] for line in lines):
        mine = [line for line in lines if line["row"] == row]
        times = [1000 * line["took_s"] for line in mine if line["took_s"] is not None]
        numbers = f"{np.median(times):.0f} | {max(times):.0f}" if times else "- | -"
        print(f"| {row} | {len(mine)} | {numbers} | {mine[-1]['told']} |")
    print(f"{sum(passed)} of {len(passed)} rounds passed")
    raise SystemExit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
