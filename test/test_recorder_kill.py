"""A few rounds of `bench/recorder_kill.py`: the recorder, fed over DDS, killed at random moments and repaired."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

pytestmark = [pytest.mark.ros, pytest.mark.slow]
"""Slow also because it needs a machine that lets the recorder run: a second without processor time fails it."""
BENCH = Path(__file__).resolve().parents[1] / "bench" / "recorder_kill.py"


def test_a_killed_recorder_keeps_what_is_older_than_a_second(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(BENCH), "--kills", "3", "--seed", "4", "--out", str(tmp_path)],
                          capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout and "faults: none" in done.stdout
    (step,) = (line for line in done.stdout.splitlines() if line.startswith("| step "))
    sent, missing = (int(cell) for cell in step.split("|")[2:4])
    assert missing == 0 and sent > 0, step
