"""What a node is told and does not hear is refused; what it may move is its first word; its help teaches."""
from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from world_gymnast_ros import config
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.nodes import command_line
from world_gymnast_ros.paths import share_path

DRY = ("--ros-args", "-p", "dry_run:=true")
START_S = 300.0
"""Longest wait for a node; those with torch take seconds on a quiet machine."""
NODES = ("arm_node", "camera_node", "policy_node", "adapt_node", "recorder_node", "twin_node", "display_node")
KNOWN = ("dry_run", "tick_hz")


def params(folder: Path, text: str, name: str = "given.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


# --- the rules, as text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "remedy"), [
    (["dry_run:=true"], "arm_node --ros-args -p dry_run:=true"),
    (["-p", "dry_run:=true"], "arm_node --ros-args -p dry_run:=true"),
    (["dry_run:=true", "--ros-args", "-p", "tick_hz:=50.0"], "arm_node --ros-args -p dry_run:=true -p tick_hz:=50.0"),
    (["--ros-args", "-p", "tick_hz:=50.0", "--", "dry_run:=true"], "--ros-args -p dry_run:=true -p tick_hz:=50.0"),
    (["__ns:=/lab"], "--ros-args -r __ns:=/lab"),
    (["--params-file", "lab.yaml"], "--ros-args --params-file lab.yaml"),
    (["--dry-run"], "--help"),
    (["dry_run=true"], "--help"),
])
def test_words_outside_ros_args_are_refused_with_what_to_write(words: Sequence[str], remedy: str) -> None:
    with pytest.raises(BadConfig, match="reaches nobody") as error:
        command_line.check_words(words, "arm_node")
    assert remedy in str(error.value)


def test_ros_arguments_and_none_are_fine(tmp_path: Path) -> None:
    file = params(tmp_path, "/**:\n  ros__parameters: {dry_run: true}\n")
    words = ["--ros-args", "-r", "__node:=left_arm", "--params-file", file, "-p", "tick_hz:=50.0"]
    for good in ([], words, [*words, "--"]):
        command_line.check_words(good, "arm_node")
        command_line.check_reached(good, "/left_arm", KNOWN, {"dry_run": True, "tick_hz": 50.0} if good else {})


@pytest.mark.parametrize(("section", "node", "reached"), [
    ("/**", "/arm_node", True), ("/**", "/lab/left/arm_node", True), ("arm_node", "/arm_node", True),
    ("/arm_node", "/arm_node", True), ("arm", "/arm_node", False), ("arm_node", "/lab/arm_node", False),
    ("lab/arm_node", "/lab/arm_node", True), ("/*/arm_node", "/lab/arm_node", True),
    ("/*/arm_node", "/arm_node", False), ("/**/arm_node", "/lab/left/arm_node", True), ("/*", "/lab/arm_node", False),
])
def test_sections_apply_as_in_ros(section: str, node: str, reached: bool) -> None:
    assert command_line.applies(section, node) is reached


@pytest.mark.parametrize(("text", "named"), [
    ("arm:\n  ros__parameters: {dry_run: true}\n", "(arm)"),
    ("policy_node:\n  ros__parameters: {}\ncamera:\n  ros__parameters: {}\n", "(camera, policy_node)"),
    ("lab:\n  arm_node:\n    ros__parameters: {dry_run: true}\n", "(lab/arm_node)"),
    ("dry_run: true\n", "(none)"), ("", "(none)"),
])
def test_a_file_without_a_section_for_the_node_is_refused(tmp_path: Path, text: str, named: str) -> None:
    words = ["--ros-args", "--params-file", params(tmp_path, text)]
    with pytest.raises(BadConfig) as error:
        command_line.check_reached(words, "/arm_node", KNOWN, {})
    assert all(word in str(error.value) for word in ("given.yaml", named, "'/**' or '/arm_node'")), error.value


def test_a_file_for_several_nodes_is_fine(tmp_path: Path) -> None:
    text = "policy_node:\n  ros__parameters: {threads: 1}\narm_node:\n  ros__parameters: {dry_run: true}\n"
    command_line.check_reached(["--ros-args", "--params-file", params(tmp_path, text)], "/arm_node", KNOWN,
                               {"dry_run": True})


@pytest.mark.parametrize(("words", "told"), [
    (["-p", "policy_node:dry_run:=true"], ["policy_node", "/arm_node", "write -p dry_run:=true"]),
    (["-r", "dry_run:=true"], ["-r renames", "write -p dry_run:=true"]),
    (["-p", "dry_run:=true", "-p", "dry_run:=false"], ["-p dry_run:=false sets dry_run to false"]),
])
def test_a_rule_that_reaches_nobody_is_refused(words: Sequence[str], told: Sequence[str]) -> None:
    with pytest.raises(BadConfig) as error:
        command_line.check_reached(["--ros-args", *words], "/arm_node", KNOWN, {"dry_run": False})
    assert all(word in str(error.value) for word in told), error.value


def test_a_parameter_that_a_file_overrides_is_refused(tmp_path: Path) -> None:
    words = [*DRY, "--params-file", params(tmp_path, "/**:\n  ros__parameters: {dry_run: false}\n")]
    with pytest.raises(BadConfig, match=r"-p dry_run:=true reaches nobody.*given\.yaml sets dry_run to false"):
        command_line.check_reached(words, "/arm_node", KNOWN, {"dry_run": False})
    command_line.check_reached(words, "/arm_node", KNOWN, {"dry_run": True})


def test_what_a_shared_section_sets_for_others_is_set_apart(tmp_path: Path) -> None:
    words = ["--ros-args", "--params-file", params(tmp_path, """
/**:
  ros__parameters: {exposure: 3, directory: /data, dry_run: true, qos: {depth: 3}}
arm_node:
  ros__parameters: {sauce: 1}
""")]
    found = command_line.foreign(words, "/arm_node", KNOWN, {"directory"})
    assert sorted(found) == ["directory", "exposure", "qos.depth"], "sauce is under its own name: refused as before"
    assert not command_line.foreign([*words, "-p", "exposure:=4"], "/arm_node", KNOWN, ()).keys() & {"exposure"}


def test_a_slip_in_a_shared_section_is_no_foreign_parameter(tmp_path: Path) -> None:
    words = ["--ros-args", "--params-file", params(tmp_path, "/**:\n  ros__parameters: {dryrun: true}\n")]
    with pytest.raises(BadConfig, match=r"given\.yaml sets 'dryrun'.*but has 'dry_run'.*under the name of the node"):
        command_line.foreign(words, "/arm_node", KNOWN, ())
    assert command_line.foreign(words, "/arm_node", KNOWN, {"dryrun"}), "the name of another node's parameter"


def test_an_earlier_name_in_a_shared_section_is_not_left_out_but_refused(tmp_path: Path) -> None:
    words = ["--ros-args", "--params-file", params(tmp_path, "/**:\n  ros__parameters: {gate_dreams: 30}\n")]
    assert not command_line.foreign(words, "/adapt_node", {"promotion_groups"}, ()), "the node reads it, and refuses it"
    assert command_line.foreign(words, "/arm_node", KNOWN, ()), "a node that never had it leaves it to others"
    with pytest.raises(BadConfig, match="gate_dreams is now called promotion_groups: rename the key"):
        config.from_mapping(AdaptNodeConfig, {"gate_dreams": 30})


def test_the_file_that_overrides_is_named_rightly(tmp_path: Path) -> None:
    shipped = params(tmp_path, "/**:\n  ros__parameters: {dry_run: false}\n", "shipped.yaml")
    mine = params(tmp_path, "arm_node:\n  ros__parameters: {dry_run: false}\n", "mine.yaml")
    with pytest.raises(BadConfig, match=r"mine\.yaml sets dry_run to false"):
        command_line.check_reached(["--ros-args", "--params-file", shipped, "--params-file", mine, *DRY[1:]],
                                   "/arm_node", KNOWN, {"dry_run": False})


# --- the nodes, over DDS ----------------------------------------------------------------------------------------------


def command(node: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "world_gymnast_ros.nodes", node, *words]


def refused(node: str, *words: str) -> str:
    """Start a node that must end by itself with a start error; return what it said."""
    done = subprocess.run(command(node, *words), capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and len([x for x in done.stderr.splitlines() if "BadConfig" in x]) == 1
    return done.stderr


def first_line(node: str, *words: str) -> str:
    """Start a node, wait for its first line in the log, end it by SIGINT, which must give code 0; return the line."""
    process = subprocess.Popen(command(node, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=START_S)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, (line, rest)
    return line


@pytest.mark.ros
def test_a_node_starts_beside_foreign_parameters_and_says_so_after_its_first_line(tmp_path: Path) -> None:
    shared = params(tmp_path, "/**:\n  ros__parameters: {exposure_us: 9, budget_s: 60.0, qos: {depth: 3}}\n")
    process = subprocess.Popen(command("arm_node", *DRY, "--params-file", shared), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=START_S)
    assert process.returncode == 0 and "dry run: moves nothing" in lines[0], lines
    assert all(name in lines[1] for name in ("exposure_us", "qos.depth")) and "budget_s" not in lines[1], lines


@pytest.mark.ros
@pytest.mark.parametrize("words", [
    ["dry_run:=true"], ["-p", "dry_run:=true"], ["--ros-args", "-r", "dry_run:=true"],
    ["--ros-args", "dry_run:=true"], ["--ros-args", "-p", "policy_node:dry_run:=true"], ["--ros-args", "-p", "dry_run"],
    [*DRY, "--params-file", "LIVE"], ["--ros-args", "--params-file", "LIVE_NAMED", "-p", "dry_run:=true"],
    ["--ros-args", "--params-file", "OTHER"], ["--ros-args", "-r", "__ns:=/lab", "--params-file", "UNREACHED"],
])
def test_an_arm_that_was_meant_to_run_dry_never_starts_live(tmp_path: Path, words: Sequence[str]) -> None:
    files = {
        "LIVE": params(tmp_path, "/**:\n  ros__parameters: {dry_run: false}\n", "live.yaml"),
        "LIVE_NAMED": params(tmp_path, "/**:\n  ros__parameters: {tick_hz: 50.0}\narm_node:\n"
                                       "  ros__parameters: {dry_run: false}\n", "named.yaml"),
        "OTHER": params(tmp_path, "arm:\n  ros__parameters: {dry_run: true}\n", "other.yaml"),
        "UNREACHED": params(tmp_path, "arm_node:\n  ros__parameters: {dry_run: true}\n", "unreached.yaml"),
    }
    said = refused("arm_node", *(files.get(word, word) for word in words))
    assert "dry_run" in said or "reaches nobody" in said


@pytest.mark.ros
@pytest.mark.parametrize("node", NODES)
def test_every_node_refuses_a_word_that_reaches_nobody(node: str) -> None:
    assert f"write: ros2 run world_gymnast_ros {node} --ros-args -p threads:=1" in refused(node, "threads:=1")


@pytest.mark.ros
def test_a_dry_arm_and_a_live_arm_say_so_first() -> None:
    assert re.search(r"\[arm_node\]: dry run: moves nothing", first_line("arm_node", *DRY))
    topics = "/lab/wx250s/commands/joint_group, /lab/wx250s/commands/joint_single"
    assert f"LIVE: once armed it moves the arm of driver 'xs' through {topics}" in first_line(
        "arm_node", "--ros-args", "-r", "__ns:=/lab")
    assert "LIVE: once armed it moves the arm of driver 'trajectory' through /arm_controller/joint_trajectory" in (
        first_line("arm_node", "--ros-args", "-p", "driver:=trajectory"))


@pytest.mark.ros
@pytest.mark.parametrize(("node", "words"), [
    ("camera_node", ()), ("policy_node", ()), ("adapt_node", ("-p", "directory:=OUT")),
    ("recorder_node", ("-p", "directory:=OUT")), ("twin_node", ()),
])
def test_every_other_node_says_first_that_it_moves_nothing(tmp_path: Path, node: str, words: Sequence[str]) -> None:
    words = [word.replace("OUT", str(tmp_path)) for word in words]
    if node == "camera_node":
        (tmp_path / "clips").mkdir()
        from test_camera_recorder import write_clip
        write_clip(tmp_path / "clips" / "one.mp4", [10, 20, 30])
        words = ["-p", f"source:={tmp_path / 'clips'}"]
    assert f"[{node}]: publishes no motion" in first_line(node, *(["--ros-args", *words] if words else []))


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", NODES)
def test_help_teaches_every_parameter_and_its_examples_hold(tmp_path: Path, node: str) -> None:
    done = subprocess.run(command(node, "--help"), capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert f"usage: ros2 run world_gymnast_ros {node}" in done.stdout and "can it move anything?" in done.stdout
    usage = __import__(f"world_gymnast_ros.nodes.{node}", fromlist=["USAGE"]).USAGE
    for name in usage.parameters.__dataclass_fields__:
        assert re.search(rf"^  {name} ", done.stdout, re.MULTILINE), name
    assert usage.examples
    for line in re.findall(r"^  ros2 run .*$", done.stdout, re.MULTILINE):
        words = example_words(line, node, tmp_path)
        command_line.check_words(words, node)
        given = dict(rule.split(":=", 1) for flag, rule in pairwise(words) if flag == "-p")
        values = {name: command_line._read(text) for name, text in given.items()}
        command_line.check_reached(words, f"/{node}", list(usage.parameters.__dataclass_fields__), values)
        config.from_mapping(usage.parameters, values, node)


def example_words(line: str, node: str, folder: Path) -> list[str]:
    """Return the words of an example as a shell gives them, with a folder and a file that exist."""
    shipped = share_path(f"config/{node.removesuffix('_node')}.yaml")
    return [word.replace("FOLDER", str(folder)).replace("FILE", str(shipped)) for word in shlex.split(line)[4:]]
