"""`bench/session.py`: what it books, and what it says of two trees. The slow test runs it."""
from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "session.py"
spec = importlib.util.spec_from_file_location("bench_session", SCRIPT)
assert spec is not None and spec.loader is not None
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


def test_processor_time_is_booked_to_the_innermost_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bench.time, "process_time", lambda: now[0])
    clock = bench.Clock()

    def spend(seconds: float) -> None:
        now[0] += seconds

    def imagine() -> None:
        spend(1.0)
        clock.timed(bench.JUDGE, spend)(2.0)
        spend(4.0)
    clock.timed(bench.IMAGINE, imagine)()
    spend(8.0)
    assert clock.total() == {bench.IMAGINE: 5.0, bench.JUDGE: 2.0, bench.REST: 8.0}
    clock.reset()
    assert not any(clock.total().values())


def test_two_trees_are_compared_stage_by_stage_and_rollout_by_rollout() -> None:
    def row(tree: str, seconds: float, before: list[list[bool]]) -> dict[str, object]:
        return {"tree": tree, "threads": 1, "scene": "oak", "updates": 2, "held_out_s": seconds,
                "seconds": dict.fromkeys(bench.STAGES, seconds), "outcome": "kept", "rates": [0.5], "scores": [0.4],
                "rewards": [[0.1, None], [9.0, 9.0]], "before": before, "after": [[True, True]]}
    rows = [row("old", 6.0, [[True, False], [True, False]]), row("new", 2.0, [[True, False], [False, True]])]
    rows[1]["rewards"] = [[0.15, 0.2]]
    table = bench.table(rows, ["old", "new"])
    assert "| imagine + judge + policy | 18.00 | 6.00 | 3.00 |" in table
    assert "| session per update | 15.00 | 5.00 | 3.00 |" in table and "1 thread, " in table
    told = bench.paired(rows, ["old", "new"])
    assert "both succeed 1, old alone 1, new alone 1, both fail 1" in told and "largest difference 0.0500" in told
    assert "ratio" not in bench.table(rows[:1], ["old"])


@pytest.mark.slow
def test_a_session_is_run_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--scenes", "novel_night", "--updates", "1", "--threads", "1", "--out",
               str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "rows.json").read_text())[0]
    assert all(row["seconds"][stage] > 0 for stage in bench.STAGES) and len(row["rates"]) == 2
