"""`python -m world_gymnast_ros.nodes NODE --ros-args ...`, and what `ros2 run world_gymnast_ros NODE` calls.

A node's modules take seconds to import (torch, the messages). A signal in that time ends the process as one does later:
with code 0 and no traceback.
"""
from __future__ import annotations

import importlib
import sys
from pathlib import Path

from world_gymnast_ros.nodes.ending import end_while_importing

NODES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*_node.py")))


def main(name: str, *words: str) -> int:
    """Run a node with the words of its command line; return the exit code."""
    end_while_importing()
    if name not in NODES:
        print(f"error: {name or 'nothing'} is no node; write python -m world_gymnast_ros.nodes NODE, with one of "
              f"{', '.join(NODES)}", file=sys.stderr)
        return 2
    node = importlib.import_module(f"{__package__}.{name}")
    return int(node.main([name, *words]))


if __name__ == "__main__":
    raise SystemExit(main(*(sys.argv[1:] or [""])))
