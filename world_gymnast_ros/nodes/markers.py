"""What a viewer draws besides the arm: the workspace, the table, and the last action that the guard cut or refused."""
from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from world_gymnast_ros.nodes import convert
from world_gymnast_ros.types import F64

Colour = tuple[float, float, float, float]
BOX: Colour = (0.2, 0.6, 1.0, 0.9)
TABLE: Colour = (0.5, 0.5, 0.5, 0.25)
ASKED: Colour = (0.9, 0.2, 0.15, 1.0)
SENT: Colour = (0.2, 0.75, 0.3, 1.0)
TABLE_MARGIN_M = 0.1
"""The table is drawn so far beyond the workspace, which is all that is known of it."""
ARROW_M = (0.006, 0.014, 0.02)
"""Diameter of an arrow's shaft and head, and length of the head."""
SHORTEST_M = 1e-4
"""An arrow that is shorter is not drawn: viewers warn of it."""
_EDGES = [(a, b) for a, b in product(range(8), repeat=2) if a < b and (a ^ b) in (1, 2, 4)]


def fixed(frame: str, low_m: F64, high_m: F64, table_z_m: float, stamp_ns: int) -> list[Any]:
    """Return the workspace of the end effector, corners (3,) and (3,) m in axes of `frame`, and the table below it."""
    corners = [np.where([index & 1, index & 2, index & 4], high_m, low_m) for index in range(8)]
    box = _marker("workspace", 0, frame, stamp_ns, BOX)
    box.type, box.scale.x = box.LINE_LIST, 0.002
    box.points = [_point(corners[end]) for edge in _EDGES for end in edge]
    table = _marker("table", 0, frame, stamp_ns, TABLE)
    table.type = table.CUBE
    size = high_m - low_m + 2 * TABLE_MARGIN_M
    middle = (low_m + high_m) / 2
    table.pose.position = _point(np.array([middle[0], middle[1], table_z_m - 0.0005]))
    table.scale = convert.Vector3(x=float(size[0]), y=float(size[1]), z=0.001)
    return [box, table]


def clamp(frame: str, step: Any, before: F64 | None, lifetime_s: float) -> list[Any]:
    """Return how an action was cut or refused: what was asked and what was sent as arrows, and the reason in words.

    `step` is a Step message, `before` the target (3,) m that the action was added to; None: not known, words alone.
    """
    stamp_ns, after = convert.to_ns(step.header.stamp), np.array(step.t_base_target).reshape(4, 4)[:3, 3]
    found = []
    if before is not None:
        asked = before + np.array(step.requested[:3], np.float64)
        for row, (end, colour) in enumerate(((asked, ASKED), (after, SENT))):
            arrow = _marker("last_clamp", row, frame, stamp_ns, colour, lifetime_s)
            arrow.type, arrow.points = arrow.ARROW, [_point(before), _point(end)]
            arrow.scale = convert.Vector3(**dict(zip("xyz", ARROW_M, strict=True)))
            if np.linalg.norm(end - before) < SHORTEST_M:
                arrow.action = arrow.DELETE
            found.append(arrow)
    words = _marker("last_clamp", 2, frame, stamp_ns, ASKED, lifetime_s)
    words.type, words.text, words.scale.z = words.TEXT_VIEW_FACING, step.reason, 0.015
    words.pose.position = _point(after + np.array([0.0, 0.0, 0.05]))
    return [*found, words]


def _marker(namespace: str, row: int, frame: str, stamp_ns: int, colour: Colour, lifetime_s: float = 0.0) -> Any:
    msg = convert.Marker(ns=namespace, id=row, frame_locked=True)
    msg.header.frame_id, msg.header.stamp = frame, convert.to_time(stamp_ns)
    msg.color = convert.ColorRGBA(**dict(zip("rgba", colour, strict=True)))
    msg.pose.orientation.w = 1.0
    ns = round(lifetime_s * 1e9)
    msg.lifetime.sec, msg.lifetime.nanosec = ns // convert.NS_PER_S, ns % convert.NS_PER_S
    return msg


def _point(xyz: F64) -> Any:
    return convert.Point(**dict(zip("xyz", np.asarray(xyz, np.float64).tolist(), strict=True)))
