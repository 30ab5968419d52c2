"""A line of code that logs has one severity: rclpy remembers it by the line, and raises ValueError for another."""
from __future__ import annotations

import ast
from pathlib import Path

import pytest

NODES = Path(__file__).resolve().parents[1] / "world_gymnast_ros" / "nodes"


def is_of_a_logger(expression: ast.expr) -> bool:
    """Tell whether an expression is a method of a node's logger, such as `self.get_logger().warning`."""
    return (isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Call)
            and isinstance(expression.value.func, ast.Attribute) and expression.value.func.attr == "get_logger")


@pytest.mark.parametrize("module", sorted(NODES.glob("*.py")), ids=lambda path: path.stem)
def test_no_line_logs_with_two_severities(module: Path) -> None:
    chosen = [node.lineno for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
              if isinstance(node, ast.IfExp) and is_of_a_logger(node.body) and is_of_a_logger(node.orelse)]
    assert not chosen, f"{module.name}, lines {chosen}: one branch for each severity"


def test_rclpy_refuses_another_severity_of_one_line() -> None:
    logging = pytest.importorskip("rclpy.logging")
    logger = logging.get_logger("severities")
    with pytest.raises(ValueError, match="severity"):
        for log in (logger.info, logger.warning):
            log("two severities, one line")
