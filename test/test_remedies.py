"""Every remedy can be followed: what a message names, an option, a command, a file or a target of make, exists."""
from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from world_gymnast_ros import cli, config
from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.cli import train
from world_gymnast_ros.control.limits import SafetyConfig

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "world_gymnast_ros"
GENERATED = ("msg", "srv", "action")
TOLD = {"warning", "error", "fatal", "info", "print", "append", "refuse", "add_parser", "add_argument"}
"""Calls whose texts people read."""
OF_CHECKPOINTS = {"max_tokens"}
"""Settings that stand in a checkpoint's config.json."""
FOREIGN = {"--ros-args", "--params-file", "--log-config-file", "--log-file-name", "--once", "--qos-durability"}
"""Options of ROS and of other tools."""
OPTION = re.compile(r"(?<![\w`/(-])--[a-z][a-z0-9-]+(?![a-z0-9-]*:)")  # var(--ink) and --ink: are of style sheets
COMMAND = re.compile(r"`?world-gymnast ([a-z]+)((?: [^`;,()\n]*)?)")
FILE = re.compile(r"\b(?:config|docs|launch|tools|bench)/[\w/]+\.(?:yaml|md|py|xml)\b")
SETTING = re.compile(r"\b(?:set|raise|lower|correct) ([a-z]+(?:_[a-z0-9]+)+)\b")
TARGET = re.compile(r"`make ([a-z-]+)`|\brun make ([a-z-]+)\b")


def modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0] not in GENERATED]


def text_of(node: ast.AST) -> str:
    """Return a text of the source; what is filled in reads X."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "X" for part in node.values)
    return ""


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of raised errors, of what is returned as a reason, logged or printed, and of helps."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = ""
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if isinstance(node, (ast.Raise, ast.Return, ast.Assign, ast.AugAssign)) or name in TOLD:
            for part in ast.walk(node):
                if isinstance(part, (ast.Constant, ast.JoinedStr)) and len(text := text_of(part)) > 12:
                    yield part.lineno, text


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return all options of a parser and of its verbs."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                found |= options_of(verb)
    return found


@pytest.fixture(scope="module")
def verbs() -> dict[str, argparse.ArgumentParser]:
    found = {}
    for verb in cli.installed_verbs():
        parser = cli.parser_of([verb])
        (chosen,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        found[verb] = chosen.choices[verb]
    return found


@pytest.fixture(scope="module")
def options(verbs: dict[str, argparse.ArgumentParser]) -> set[str]:
    declared = {text_of(call.args[0]) for path in modules() for call in ast.walk(ast.parse(path.read_text()))
                if isinstance(call, ast.Call) and call.args and text_of(call.args[0]).startswith("--")}
    declared |= {text_of(call.args[1]) for path in modules() for call in ast.walk(ast.parse(path.read_text()))
                 if isinstance(call, ast.Call) and len(call.args) > 1 and text_of(call.args[1]).startswith("--")}
    return declared | FOREIGN | set().union(*(options_of(parser) for parser in verbs.values()))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_a_message_names_exists(path: Path, options: set[str], verbs: dict[str, argparse.ArgumentParser]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    settings = {f.name for kind in (AdaptNodeConfig, SafetyConfig, *config.FILES.values()) for f in fields(kind)}
    wrong = []
    for line, text in messages(path):
        wrong += [f"{line}: setting {s}" for s in SETTING.findall(text) if s not in settings | OF_CHECKPOINTS]
        wrong += [f"{line}: option {o}" for o in OPTION.findall(text) if o not in options and not o.endswith("-")]
        wrong += [f"{line}: file {f}" for f in FILE.findall(text) if not (ROOT / f).is_file()]
        wrong += [f"{line}: make {t}" for pair in TARGET.findall(text) for t in pair if t and t not in targets]
        for verb, rest in COMMAND.findall(text):
            wrong += [f"{line}: {fault}" for fault in command_faults(verb, rest.split(), verbs)]
    assert not wrong


def command_faults(verb: str, words: list[str], verbs: dict[str, argparse.ArgumentParser]) -> list[str]:
    """Return what is wrong with a command that a message tells to type."""
    if verb not in verbs:
        return [f"world-gymnast {verb} is no verb"]
    parser, names = verbs[verb], options_of(verbs[verb])
    subs = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    faults = []
    if subs and words and re.fullmatch(r"[a-z][a-z-]+", words[0]) and words[0] not in subs[0].choices:
        faults.append(f"world-gymnast {verb} has no {words[0]}")
    if verb == "train":
        names |= train_options()
    return faults + [f"world-gymnast {verb} has no {w}" for w in words if OPTION.fullmatch(w) and w not in names]


def train_options() -> set[str]:
    """Return the options of the trainings that have parsers of their own."""
    return set().union(*map(options_of, train.parsers().values()))


def test_the_check_sees_what_leads_nowhere(verbs: dict[str, argparse.ArgumentParser]) -> None:
    assert command_faults("episodes", ["check", "--loudly"], verbs) == ["world-gymnast episodes has no --loudly"]
    assert command_faults("episodes", ["cheque"], verbs) and command_faults("episode", [], verbs)
    assert not command_faults("bench", ["replay", "--episodes", "DIR", "--write"], verbs)
    assert OPTION.findall("choose one with --camera, or `--cam`") == ["--camera"]
