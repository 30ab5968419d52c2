"""The parameters file of one's set-up: what is measured on site, the table and the camera, for `params_file:=`."""
from __future__ import annotations

import re
from pathlib import Path

import yaml

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.files import read_yaml

NAME = "set_up.yaml"
"""In the folder of the session's results: one file, since a launch takes one."""
_HEAD = "# Measured on site, for params_file:= of the launch files.\n/**:\n  ros__parameters:\n"
_REST = r"[ \t]*(?:#[^\n]*)?\n"
"""What may follow on a line, or be one."""
_BLOCK = re.compile(rf"^/\*\*:{_REST}(?:{_REST})*[ ]+ros__parameters:{_REST}(?=(?:{_REST})*(?P<indent>[ ]+)[a-z])",
                    re.MULTILINE)


def with_parameter(path: Path, name: str, value: float | str) -> str:
    """Return the text of a parameters file with one more of them for every node; all else stays as a person left it.

    Raises BadConfig where the file is none that one can be added to; nothing is written either way.
    """
    line = yaml.safe_dump({name: value}, width=10**6).strip()
    if not path.exists():
        return f"{_HEAD}    {line}\n"
    data = read_yaml(path)
    text = path.read_text(encoding="utf-8")
    old = re.compile(rf"^([ ]+){re.escape(name)}:[^\n#]*?(?=[ \t]*(?:#|$))", re.MULTILINE)
    if old.search(text):
        text = old.sub(lambda m: m[1] + line, text)
    else:
        text = _BLOCK.sub(lambda m: f"{m[0]}{m['indent']}{line}\n", text, count=1)
    try:
        data["/**"]["ros__parameters"][name] = value
        held = yaml.safe_load(text) == data
    except (KeyError, TypeError, yaml.YAMLError):
        held = False
    if not held:
        raise BadConfig(f"{path} is no parameters file with one block '/**:' and 'ros__parameters:' under it, one "
                        f"parameter a line: add '{line}' by hand, or move the file away")
    return text
