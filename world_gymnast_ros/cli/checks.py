"""What several verbs check in their options: numbers in range, settings of adapt.yaml, folders that can be written."""
from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from world_gymnast_ros.errors import BadConfig

if TYPE_CHECKING:
    from world_gymnast_ros.adaptation.config import AdaptNodeConfig

Parser = argparse.ArgumentParser | argparse._ArgumentGroup
MAX_SEED = 2**32 - 1


def whole(parser: Parser, option: str, low: int, high: int = MAX_SEED, **more: Any) -> None:
    """Add an option that takes an int in low..high; BadConfig names option, value and limits."""
    def read(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise BadConfig(f"{option} is {word!r}; give a whole number from {low} to {high}")
        return value
    parser.add_argument(option, type=read, metavar="N", **more)


def real(parser: Parser, option: str, low: float, high: float, **more: Any) -> None:
    """Add an option that takes a finite number in low..high; BadConfig names option, value and limits."""
    def read(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise BadConfig(f"{option} is {word!r}; give a number from {low:g} to {high:g}")
        return value
    parser.add_argument(option, type=read, metavar="X", **more)


def present(parser: Parser, name: str, remedy: str, **more: Any) -> None:
    """Add an option, or a positional argument, that takes the path of what exists; BadConfig names it and `remedy`."""
    def read(word: str) -> Path:
        path = Path(word)
        if not path.exists():
            raise BadConfig(f"{f'{name} ' if name.startswith('-') else ''}{word} does not exist; {remedy}")
        return path
    parser.add_argument(name, type=read, **more)


def adapt_settings(path: Path | None, words: Sequence[str], changes: Mapping[str, Any]) -> AdaptNodeConfig:
    """Return adapt.yaml (None: the shipped one) with KEY=VALUE words, then `changes` that are not None, on top."""
    import yaml

    from world_gymnast_ros import config as settings
    from world_gymnast_ros.adaptation.config import AdaptNodeConfig
    from world_gymnast_ros.paths import share_path

    path = path or share_path("config/adapt.yaml")
    values = dict(settings.read_parameters(path))
    defaults = vars(AdaptNodeConfig())
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise BadConfig(f"--set takes KEY=VALUE, got {word!r}")
        try:
            read = yaml.safe_load(value)
            # YAML takes the bare words off, on, no and yes for booleans; where text is meant they are words.
            values[key] = value if isinstance(read, bool) and isinstance(defaults.get(key), str) else read
        except yaml.YAMLError as error:
            raise BadConfig(f"--set {word!r}: {value!r} is not a YAML value; quote text that holds brackets") from error
    values |= {key: value for key, value in changes.items() if value is not None}
    return settings.from_mapping(AdaptNodeConfig, values, str(path))


def writable_folder(folder: Path, option: str = "--out") -> Path:
    """Make sure files can be written into `folder` before work that takes long. Raises BadConfig; leaves it empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
    except (FileExistsError, NotADirectoryError) as error:
        raise BadConfig(f"{option} {folder} is, or lies in, a file; name a folder") from error
    except OSError as error:
        raise BadConfig(f"{option} {folder} cannot be written to ({error.strerror or error}); free space there, or "
                        "name another folder") from error
    return folder
