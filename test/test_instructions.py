"""One normaliser for sentences: what the policy reads, the adaptation knows, and the twin measures."""
from __future__ import annotations

import pytest

from world_gymnast_ros.adaptation.trust import TaskRelease, released_task
from world_gymnast_ros.errors import NotTrusted
from world_gymnast_ros.instructions import normalise
from world_gymnast_ros.models.policies.words import WORDS, WordReader
from world_gymnast_ros.twin.tasks import parse_instruction
from world_gymnast_ros.updates.adaptation import check_released

RELEASE = {"reach": TaskRelease(0.95, instructions=("reach the *",)),
           "push": TaskRelease(0.4, instructions=("push *",))}


@pytest.mark.parametrize("typed", ["Reach the red block.", "reach  the red block", " REACH THE RED BLOCK!",
                                   "'reach the red block'", "Reach, the red block?", "reach the \"red block\" ;"])
def test_everybody_reads_what_people_type_alike(typed: str) -> None:
    assert normalise(typed) == "reach the red block"
    reader = WordReader(WORDS, 16)
    assert reader.encode(typed) == reader.encode("reach the red block")
    assert released_task(typed, RELEASE) == parse_instruction(typed).family == "reach"
    assert parse_instruction(typed).instruction == "reach the red block"
    check_released(RELEASE, [typed], 0.9)


def test_a_refusal_says_which_forms_are_known_and_leaves_the_gate_on() -> None:
    with pytest.raises(NotTrusted) as refused:
        check_released(RELEASE, ["Open the drawer."], 0.9)
    words = str(refused.value)
    assert "measured with these models: reach 0.95 ('reach the *'); push 0.40 ('push *')" in words
    assert "bench replay" in words and "min_release_auc" not in words, "a full stop must not lead to switching it off"
