"""Options that several verbs take, each declared once: models, judges, device, seed, threads, other settings."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from world_gymnast_ros.cli.checks import MAX_SEED, Parser, adapt_settings, whole
from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.loading.names import JUDGE, POLICY, WORLD_MODEL, check_name

if TYPE_CHECKING:
    from world_gymnast_ros.adaptation.config import AdaptNodeConfig

JUDGES = ("folder, shipped name, hub name of an image-text model, or address of an OpenAI-compatible server "
          "(http://HOST:PORT/v1#MODEL)")
"""What names a judge."""
SHIPPED = "default: the small one that ships"


EPISODES = "name folders of recordings, of *.npz files, of clips or of a LeRobot data set"
"""The remedy where --episodes does not exist."""


def _named(kind: str, checked: bool = True) -> Callable[[str], str]:
    """Return a reader of names of models. `checked`: it refuses what can stand for none."""
    def read(word: str) -> str:
        for name in (word.split(",") if kind == JUDGE else [word]) if checked else []:
            check_name(name.strip(), kind)
        return word
    return read


def policy(parser: Parser, checked: bool = True) -> None:
    """Add --policy. `checked`, here and below: a name that can stand for none is refused before any import."""
    parser.add_argument("--policy", type=_named(POLICY, checked), default="", metavar="NAME",
                        help="folder, shipped name, hub name of a published policy, or http://HOST:PORT of a policy's "
                        f"server, which cannot be trained ({SHIPPED})")


def world_model(parser: Parser, checked: bool = True) -> None:
    """Add --world-model."""
    parser.add_argument("--world-model", type=_named(WORLD_MODEL, checked), default="", metavar="NAME",
                        help="folder, file, shipped name, or "
                        f"http://HOST:PORT of a server of one ({SHIPPED})")


def judge(parser: Parser) -> None:
    """Add --judge, for one."""
    parser.add_argument("--judge", type=_named(JUDGE), default="", metavar="NAME", help=f"{JUDGES} ({SHIPPED})")


def judges(parser: Parser, checked: bool = True) -> None:
    """Add --judge, for any number."""
    parser.add_argument("--judge", type=_named(JUDGE, checked), action="append", default=[], metavar="NAME",
                        help=f"{JUDGES}; again for each judge that must agree; tabletop: the two that know small "
                        "objects on a table (default: the learned one that ships, alone)")


def device(parser: Parser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="auto", help="auto (the GPU where there is one), cpu, cuda, cuda:1 "
                        "(default: %(default)s)")


def dtype(parser: Parser) -> None:
    """Add --dtype."""
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
                        help="of the models; auto: each one's own choice (default: %(default)s)")


def seed(parser: Parser, of: str = "everything random", most: int = MAX_SEED) -> None:
    """Add --seed, whole numbers from 0."""
    whole(parser, "--seed", 0, most, default=0, help=f"of {of} (default: %(default)s)")


def threads(parser: Parser, default: int = 2) -> None:
    """Add --threads."""
    whole(parser, "--threads", 1, 256, default=default, help="torch threads (default: %(default)s)")


def scene(parser: Parser, **more: Any) -> None:
    """Add --scene of the twin; a scene that is not known is refused."""
    def read(word: str) -> str:
        from world_gymnast_ros.twin.scene import load_scene

        if word:
            load_scene(word)
        return word
    parser.add_argument("--scene", type=read, default="", **more)


def camera(parser: Parser) -> None:
    """Add `--camera`, for whoever takes --episodes."""
    parser.add_argument("--camera", default="", metavar="NAME", help="which camera of the episodes, where there are "
                        "several: topic of a recording, feature of a LeRobot data set")


def session(parser: Parser) -> None:
    """Add what a session of adaptation runs with: its models, where they compute, and any setting of adapt.yaml."""
    for add in (policy, world_model, judges, device, dtype):
        add(parser)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of adapt.yaml")


def session_settings(args: argparse.Namespace, path: Path | None = None, words: Sequence[str] = (),
                     on_twin: bool = False, **changes: Any) -> AdaptNodeConfig:
    """Return adapt.yaml (`path`, None: the shipped one, with what the twin's scenes need where the session is
    `on_twin`) with `words` (KEY=VALUE), those of --set, what `session` added, and `changes` that are not None, on top.
    """
    if on_twin and path is None:
        words = [*(f"{key}={value}" for key, value in twin_settings().items()), *words]
    given = {key: value if value != "auto" else None for key, value in (("device", args.device), ("dtype", args.dtype))}
    return adapt_settings(path, [*words, *args.set], {
        "policy": args.policy or None, "world_model": args.world_model or None, "judges": ", ".join(args.judge) or None,
        **given, **changes})


def twin_settings() -> dict[str, Any]:
    """Return what adaptation on the twin has instead of the settings in adapt.yaml."""
    from world_gymnast_ros.config import read_parameters
    from world_gymnast_ros.paths import TWIN_ADAPT, share_path

    return read_parameters(share_path(TWIN_ADAPT))


def json_result(parser: Parser) -> None:
    """Add --json: the verb leaves its result in `args.result`, for programs, and `cli.answered` prints it."""
    class Wanted(argparse.Action):
        def __call__(self, _parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
            namespace.json, namespace.result = True, None
    parser.add_argument("--json", action=Wanted, nargs=0, default=False, help="print the result as one JSON object on "
                        "standard output, and all else on standard error")


def renamed(parser: Parser, old: str, new: str) -> None:
    """Refuse an option that has another name now, saying which."""
    class Refuse(argparse.Action):
        def __call__(self, *_: Any) -> NoReturn:
            raise BadConfig(f"{old} is called {new} now")
    parser.add_argument(old, action=Refuse, nargs="?", help=argparse.SUPPRESS)
