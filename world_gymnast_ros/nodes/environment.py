"""Environment variables that would end ROS with a line of its own, or a traceback, named before it is loaded.

Shells carry them from other set-ups: an RMW in .bashrc, a domain that is no number, a log folder that is gone. Text
alone: nothing here needs ROS.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

RMW, DOMAIN = "RMW_IMPLEMENTATION", "ROS_DOMAIN_ID"
MAX_DOMAIN = 232
"""The highest whose ports exist."""
INDEX = Path("share/ament_index/resource_index/rmw_typesupport")


def fault(env: Mapping[str, str]) -> str:
    """Return which variable keeps ROS from starting here, and what helps, in one line; "" where none does."""
    return _rmw_fault(env) or _domain_fault(env) or _log_fault(env)


def _rmw_fault(env: Mapping[str, str]) -> str:
    wanted = env.get(RMW, "")
    prefixes = [Path(p) for p in env.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p] + [Path(sys.prefix)]
    there = sorted({path.name for prefix in prefixes for path in (prefix / INDEX).glob("rmw_*")}
                   - {"rmw_implementation"})
    if not wanted or not there or wanted in there:
        return ""
    return f"{RMW} is '{wanted}', and here is {', '.join(there)}: unset {RMW}, or install it"


def _domain_fault(env: Mapping[str, str]) -> str:
    word = env.get(DOMAIN, "").strip()
    if not word or (word.isascii() and word.isdigit() and int(word) <= MAX_DOMAIN):
        return ""
    return f"{DOMAIN} is '{word}', which is no whole number from 0 to {MAX_DOMAIN}: unset {DOMAIN}, or correct it"


def _log_fault(env: Mapping[str, str]) -> str:
    """Try the folder of ROS's logs, where ROS itself looks for it."""
    named = next((name for name in ("ROS_LOG_DIR", "ROS_HOME", "HOME") if env.get(name)), "")
    if not named:
        return "neither HOME nor ROS_LOG_DIR is set, so ROS has no place for its logs: export ROS_LOG_DIR=FOLDER"
    root = Path(env[named]).expanduser()
    folder = root if named == "ROS_LOG_DIR" else root / "log" if named == "ROS_HOME" else root / ".ros" / "log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable, why = os.access(folder, os.W_OK), "no permission"
    except OSError as error:
        writable, why = False, error.strerror or str(error)
    return "" if writable else (f"ROS cannot write its logs to {folder} ({why}; {named} is '{env[named]}'): export "
                                "ROS_LOG_DIR=FOLDER")
