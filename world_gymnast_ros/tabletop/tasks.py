"""What the geometric judge can be asked. How near is near enough stands in its checkpoint (`LocatorConfig`)."""
from __future__ import annotations

import re
from dataclasses import dataclass

from world_gymnast_ros.errors import BadInstruction

DIRECTIONS: dict[str, tuple[float, float]] = {"left": (0.0, 1.0), "right": (0.0, -1.0), "forward": (1.0, 0.0)}
"""Unit vectors (2,), base axes."""
FORMS = {"reach": r"reach the (?P<target>\w+ \w+)",
         "push": r"push the (?P<target>\w+ \w+) (?P<direction>left|right|forward)",
         "pick_place": r"put the (?P<target>\w+ \w+) on the (?P<goal>\w+ plate)"}


@dataclass(frozen=True)
class Task:
    """A parsed instruction: `target` names the object; `direction` (push) or `goal` (a plate's name) says where."""

    family: str
    target: str
    direction: str = ""
    goal: str = ""


def parse(instruction: str) -> Task:
    """Parse an instruction; BadInstruction names the forms that can be measured."""
    text = " ".join(instruction.lower().split())
    for family, form in FORMS.items():
        if found := re.fullmatch(form, text):
            return Task(family, **found.groupdict())
    raise BadInstruction(
        f"success of {instruction!r} cannot be measured; that of 'reach the <object>', 'push the <object> "
        "left|right|forward' and 'put the <object> on the <colour> plate' can")
