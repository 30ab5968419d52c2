"""The release table is of one world model with one judge, and refuses what it does not cover."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from world_gymnast_ros.adaptation.trust import TaskRelease
from world_gymnast_ros.errors import BadCheckpoint, NotTrusted
from world_gymnast_ros.loading.load import TABLETOP_JUDGES
from world_gymnast_ros.loading.release import is_offered, offered, release_table, write_release
from world_gymnast_ros.paths import share_dir
from world_gymnast_ros.updates.adaptation import check_released

SHIPPED = share_dir() / "checkpoints" / "tiny"


def test_what_ships_is_released_as_its_table_says() -> None:
    table = release_table("", TABLETOP_JUDGES)
    reach, push, place = "reach the red block", "push the red block left", "put the red block on the blue plate"
    check_released(table, [reach, push, place], 0.9, 0.15)
    for words in (push, place, "wipe the table"):
        with pytest.raises(NotTrusted, match="paired-replay AUC"):
            check_released(table, [reach, words], 0.98, 0.15)
    with pytest.raises(NotTrusted):
        check_released(table, [place], 0.9, 0.09)  # 1 of 54 failures called successes: up to 9.8 %


def test_with_the_learned_judge_alone_no_task_is_offered() -> None:
    assert not any(is_offered(row) for row in release_table().values()) and release_table().keys() == {
        "reach", "push", "pick_place"}
    assert offered() == {"reflector-tiny+locator-tiny": ["pick_place", "push", "reach"]}


def test_another_judge_or_world_model_has_no_table(tmp_path: Path) -> None:
    judge = tmp_path / "judge"
    shutil.copytree(SHIPPED / "reflector", judge)
    assert release_table("", [str(judge), "tiny/locator"]) == release_table("", TABLETOP_JUDGES)
    with (judge / "model.safetensors").open("ab") as stream:
        stream.write(b" ")
    assert release_table("", [str(judge), "tiny/locator"]) == {}
    shutil.copyfile(SHIPPED / "reflector" / "model.safetensors", judge / "model.safetensors")
    (judge / "config.json").write_text((judge / "config.json").read_text() + "\n")
    assert release_table("", [str(judge), "tiny/locator"]) == {}  # calibrated anew: its false successes are others
    world = tmp_path / "world"
    shutil.copytree(SHIPPED / "world_model", world)
    (world / "model.safetensors").write_bytes(b"other")
    assert release_table(world) == {}


def test_a_judge_that_takes_failures_for_successes_is_refused() -> None:
    table = {"reach": TaskRelease(0.95, false_success_high=0.2, instructions=("reach the *",))}
    check_released(table, ["reach the red block"], 0.9, 0.25)
    check_released(table, ["reach the red block"], 0.0, 0.15)  # 0 accepts any
    with pytest.raises(NotTrusted, match=r"20% of failures.*15%"):
        check_released(table, ["reach the red block"], 0.9, 0.15)


def test_a_table_that_does_not_say_of_whom_it_is_counts_for_nothing(tmp_path: Path) -> None:
    world = tmp_path / "world"
    shutil.copytree(SHIPPED / "world_model", world)
    release = json.loads((world / "release.json").read_text())
    for table in release["sets"]:
        del table["sha256"]["judges"][0]["model.safetensors"]
    (world / "release.json").write_text(json.dumps(release))
    assert release_table(world) == {}
    (world / "release.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="bench replay"):
        release_table(world)


def test_other_judges_have_a_table_of_their_own(tmp_path: Path) -> None:
    assert release_table("", "tiny/locator") == {}
    both, learned = release_table("", TABLETOP_JUDGES), release_table("", "tiny/reflector")
    assert learned and learned["push"] != both["push"]
    world = tmp_path / "world"
    shutil.copytree(SHIPPED / "world_model", world)
    row = {"auc": 0.7, "low": 0.6, "high": 0.8, "episodes": 9, "false_success_high": 0.5}
    write_release(world, "tiny/reflector", {"drawer": row}, 0)
    assert set(release_table(world, "tiny/reflector")) == {*learned, "drawer"}
    assert release_table(world, TABLETOP_JUDGES) == both
    moving = world / "moving_background" / "model.safetensors"
    moving.write_bytes(moving.read_bytes() + b" ")  # what draws without the geometric judge is another one
    assert release_table(world, "tiny/reflector") == {}
    assert release_table(world, TABLETOP_JUDGES) == both
