"""Giving way as a session: the kernel's own file, in sessions made for the test."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_S

from world_gymnast_ros import priority

pytestmark = pytest.mark.skipif(not priority.AUTOGROUP.exists(), reason="this kernel does not group by session")
ROOT = Path(__file__).resolve().parents[1]
BEGIN = """
import os, subprocess, sys
from world_gymnast_ros import priority
share = lambda: int(priority.AUTOGROUP.read_text().split()[-1])
"""


def in_a_terminal(program: str) -> list[str]:
    """Run a program as the only one of a new session; return the words that it prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", BEGIN + program], cwd=ROOT, env=env,
                          capture_output=True, text=True, timeout=PATIENCE_S, start_new_session=True, check=True)
    return done.stdout.split()


def test_a_session_of_ones_own_gives_way_and_is_put_back() -> None:
    said = in_a_terminal("""
with priority.lowered(10) as refused:
    print(repr(refused), share(), os.getpriority(os.PRIO_PROCESS, 0) >= 10)
print(share())
""")
    assert said == ["''", "10", "True", "0"]


def test_a_session_that_a_node_shares_keeps_its_share_and_niceness_counts_in_it() -> None:
    said = in_a_terminal("""
sibling = "import os, sys; from world_gymnast_ros import priority as p; r = p.lower_session(10); print(r, flush=True)"
node = subprocess.Popen(["sleep", "60"])
subprocess.run([sys.executable, "-c", sibling])
with priority.lowered(10) as refused:  # what it started itself is no other job
    print(repr(refused), share(), flush=True)
node.kill()
""")
    assert "other" in said and said[-2:] == ["''", "10"]


def test_what_was_left_low_is_put_right_by_the_next_node_and_a_zero_changes_nothing() -> None:
    said = in_a_terminal("""
priority.lower_session(7)
print(share())
with priority.lowered(0):
    print(share())
priority.restore_session()
print(share())
priority.restore_session()
print(share())
""")
    assert said == ["7", "7", "0", "0"]


def test_a_program_that_calls_the_command_keeps_its_priority() -> None:
    said = in_a_terminal("""
from types import SimpleNamespace
from world_gymnast_ros import cli
def run(args):
    print(os.getpriority(os.PRIO_PROCESS, 0), share(), flush=True)
    return 0
cli.parser_of = lambda words: SimpleNamespace(parse_args=lambda words: SimpleNamespace(verb=words[0], run=run))
before = os.getpriority(os.PRIO_PROCESS, 0)
print(before, cli.main(["adapt"]))
for sys.argv in (["world-gymnast", "serve"], ["world-gymnast", "adapt"]):
    cli.main()
print(share())
""")
    before = said[2]
    assert said == [before, "0", before, "0", before, "0", str(min(int(before) + 10, 19)), "10", "0"]
