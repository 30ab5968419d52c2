"""What a node is told on its command line, and whether it reaches the node. Text alone: nothing here needs ROS.

ROS itself is silent where a setting reaches nobody: a word outside `--ros-args`, a parameters file whose sections name
other nodes, a parameter that a file overrides. A node that would then start with its defaults may be an arm that moves,
so all of these are refused.
"""
from __future__ import annotations

import dataclasses
import difflib
import math
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from world_gymnast_ros.config import RENAMED
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.files import read_yaml
from world_gymnast_ros.paths import PACKAGE

ROS_ARGS, ROS_ARGS_END = "--ros-args", "--"
PARAMETER, REMAP = ("-p", "--param"), ("-r", "--remap")
PARAMS_FILE = "--params-file"
TAKES_A_WORD = (*PARAMETER, *REMAP, PARAMS_FILE, "-e", "--enclave", "--log-level", "--log-config-file",
                "--log-file-name")
"""ROS arguments that are followed by one word."""
HELP = ("-h", "--help")
NEARLY = 0.8
"""difflib's likeness from which an unknown name is taken for a slip of a known one: `max_step_mm`, not `exposure`."""


@dataclass(frozen=True)
class Usage:
    """What the help of a node is made of. `doc`: first what it does; `examples`: (ROS arguments, what they do)."""

    name: str
    doc: str
    parameters: type[Any]
    moves: str
    examples: tuple[tuple[str, str], ...]

    @property
    def command(self) -> str:
        """The command line without arguments."""
        return f"ros2 run {PACKAGE} {self.name}"

    def text(self) -> str:
        """Return the help text."""
        words = [f"{self.command} {arguments}".rstrip() for arguments, _ in self.examples]
        examples = "\n".join(f"  {line}\n      {what}" for line, (_, what) in zip(words, self.examples, strict=True))
        return (f"{self.name}: {self.doc.strip()}\n\ncan it move anything?\n  {self.moves}\n\n"
                f"usage: {self.command} [--ros-args] [-p NAME:=VALUE]... [--params-file FILE]... [-r OLD:=NEW]...\n\n"
                "Parameters and files follow --ros-args. The section of a file must be '/**' or the node's full\n"
                "name. A word or setting that does not reach the node is refused, and the node does not start.\n\n"
                f"examples:\n{examples}\n\n"
                f"parameters, read once at the start:\n{parameter_table(self.parameters)}\n")


def parameter_table(parameters: type[Any]) -> str:
    """Return one line per field of a config dataclass: name, default, range or choices, meaning."""
    rows = [(spec.name, _yaml_word(spec.default), _range(spec), spec.metadata["doc"])
            for spec in dataclasses.fields(parameters)]
    name, default = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"  {row[0]:{name}}  {row[1]:{min(default, 24)}}  {row[3]}{row[2]}" for row in rows)


def _range(spec: dataclasses.Field[Any]) -> str:
    low, high = spec.metadata.get("low", -math.inf), spec.metadata.get("high", math.inf)
    if math.isfinite(low) and math.isfinite(high):
        return f" [{low:.10g} to {high:.10g}]"
    choices = [choice for choice in spec.metadata.get("choices", ()) if choice]
    return f" [{', '.join(choices)}]" if choices else ""


def _yaml_word(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return '""' if value == "" else str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("\n...\n").strip()


# --- words outside --ros-args -----------------------------------------------------------------------------------------


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words that ROS does not read, and those that it does. `words` come without the program's name."""
    own: list[str] = []
    ros: list[str] = []
    inside = False
    for word in words:
        if word == ROS_ARGS:
            inside = True
        elif inside and word == ROS_ARGS_END:
            inside = False
        else:
            (ros if inside else own).append(word)
    return own, ros


def wants_help(words: Sequence[str]) -> bool:
    """Tell whether help is asked for, inside or outside --ros-args."""
    return any(word in HELP for part in split(words) for word in part)


def check_words(words: Sequence[str], command: str) -> None:
    """Refuse words that nobody reads, and parameters files that are not there. Raises BadConfig.

    `command`: the command line without arguments, for the remedy.
    """
    own, ros = split(words)
    if own:
        meant = _as_ros_arguments(own)
        rule = f"arguments of ROS follow {ROS_ARGS}"
        remedy = (f"{rule}; write: {command} {ROS_ARGS} {shlex.join([*meant, *ros])}" if meant else
                  f"the node takes arguments of ROS alone, after --ros-args; see {command} --help")
        raise BadConfig(f"'{shlex.join(own)}' on the command line reaches nobody: {remedy}")
    for path in _files(ros):
        if not path.is_file():
            raise BadConfig(f"{PARAMS_FILE} {path} does not exist")


def _as_ros_arguments(own: Sequence[str]) -> list[str]:
    """Return what words were most likely meant for, or [] where one of them cannot be told."""
    meant: list[str] = []
    words = iter(own)
    for word in words:
        if word in TAKES_A_WORD:
            meant += [word, next(words, "VALUE")]
        elif ":=" in word:
            left = word.partition(":=")[0]
            meant += ["-r" if left.startswith("__") or "/" in left else "-p", word]
        else:
            return []
    return meant


# --- settings that reach nobody ---------------------------------------------------------------------------------------


def check_reached(words: Sequence[str], node: str, known: Collection[str], values: Mapping[str, Any]) -> None:
    """Refuse settings that were given, but do not hold for the node. Raises BadConfig.

    `node`: its full name, such as /lab/arm_node. `known`: its parameters. `values`: what ROS gives it.
    """
    ros = split(words)[1]
    sections = [(path, sections_of(path)) for path in _files(ros)]
    for path, blocks in sections:
        if not any(applies(section, node) for section in blocks):
            named = ", ".join(sorted(blocks)) or "none"
            raise BadConfig(f"{PARAMS_FILE} {path} reaches nobody: of its sections ({named}) none is for {node}; name "
                            f"one '/**' or '{node}', with 'ros__parameters' in it")
    for rule in _words_after(ros, REMAP):
        name = rule.partition(":=")[0].rpartition(":")[2]
        if name in known:
            raise BadConfig(f"-r {rule} reaches nobody: -r renames topics and services, and {name} is a parameter; "
                            f"write -p {rule}")
    for rule in (rules := _words_after(ros, PARAMETER)):
        target, _, text = rule.partition(":=")
        section, _, name = target.rpartition(":")
        if section and not applies(section, node):
            raise BadConfig(f"-p {rule} reaches nobody: it is for {section}, and this node is {node}; write "
                            f"-p {name}:={text}")
        if (value := values.get(name)) == _read(text):
            continue
        winner = _source_of(name, value, rules, sections, node)
        if winner:
            raise BadConfig(f"-p {rule} reaches nobody: {winner} sets {name} to {_yaml_word(value)}, which ROS puts "
                            "above it; set it once, or name the file before -p and its section '/**'")


def applies(section: str, node: str) -> bool:
    """Tell whether a section of a parameters file is for a node, by ROS's rule: * is one name, ** any number."""
    pattern = "".join(r"(/\w+)" if part == "/*" else part if part == "*" else re.escape(part)
                      for part in re.split(r"(/\*|\*)", section if section.startswith("/") else f"/{section}"))
    return re.fullmatch(pattern, node) is not None


def foreign(words: Sequence[str], node: str, known: Collection[str], elsewhere: Collection[str]) -> dict[str, str]:
    """Return the parameters that are for other nodes, name -> file: under a section that names no node, such as '/**'.

    `known`: the node's parameters; `elsewhere`: those of the package's other nodes. What is given by -p, or under the
    node's own name, is meant for it. Raises BadConfig for a name in a shared section that is nearly one of the node's:
    a limit with a slip in its name must not be left at its default.
    """
    ros = split(words)[1]
    meant_for_it = {rule.partition(":=")[0].rpartition(":")[2] for rule in _words_after(ros, PARAMETER)}
    shared: dict[str, str] = {}
    for path in _files(ros):
        for section, block in sections_of(path).items():
            if not applies(section, node):
                continue
            if is_shared(section):
                shared.update(dict.fromkeys(_flat(block), str(path)))
            else:
                meant_for_it.update(_flat(block))
    found = {key: path for key, path in shared.items()
             if key not in known and key not in meant_for_it and RENAMED.get(key) not in known}
    for key, file in found.items():
        like = difflib.get_close_matches(key, known, 1, NEARLY)
        if like and key not in elsewhere:
            raise BadConfig(f"{file} sets '{key}' in a section for every node; {node} has no such parameter, but has "
                            f"'{like[0]}'. Write that, or put '{key}' under the name of the node that it is for")
    return found


def is_shared(section: str) -> bool:
    """Tell whether a section of a parameters file names no node, such as '/**'."""
    return section.rpartition("/")[2] in ("*", "**")


def _flat(block: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of a block's parameters; ROS joins nested ones by a dot."""
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _source_of(name: str, value: Any, rules: Sequence[str], files: Sequence[tuple[Path, Mapping[str, Any]]],
               node: str) -> str:
    """Return what gave a parameter this value: a file or another -p; "" where neither did.

    ROS puts a section that names the node above one for all, and of equals the later.
    """
    for shared in (False, True):
        for path, blocks in reversed(files):
            if any(is_shared(section) is shared and applies(section, node) and name in block and block[name] == value
                   for section, block in blocks.items()):
                return str(path)
    for rule in rules:
        target, _, text = rule.partition(":=")
        if target.rpartition(":")[2] == name and _read(text) == value:
            return f"-p {rule}"
    return ""


def sections_of(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the sections of a parameters file, name -> parameters; names of namespaces are joined by /."""
    return dict(_walk("", read_yaml(path, f"{PARAMS_FILE} {path}")))


def _walk(name: str, block: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(block, Mapping):
        return
    for key, value in block.items():
        if key == "ros__parameters":
            yield name, value if isinstance(value, Mapping) else {}
        else:
            yield from _walk(f"{name}/{key}" if name else str(key), value)


def _files(ros: Sequence[str]) -> list[Path]:
    return [Path(word) for word in _words_after(ros, (PARAMS_FILE,))]


def _words_after(ros: Sequence[str], flags: Collection[str]) -> list[str]:
    return [word for flag, word in pairwise(ros) if flag in flags]


def _read(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value
