"""The reference pages are generated from the code and current."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_reference_pages_are_current() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "reference_pages"), "--check"], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
