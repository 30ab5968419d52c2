"""`--propose` of `adapt`: an image-text model proposes instructions for the captured frame, a person ticks some."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from world_gymnast_ros.adaptation.proposals import MAX_PROPOSALS, Proposal, Proposals, propose
from world_gymnast_ros.cli.checks import Parser, real, whole
from world_gymnast_ros.errors import BadConfig, BadInstruction
from world_gymnast_ros.types import Start

if TYPE_CHECKING:
    from world_gymnast_ros.adaptation.config import AdaptNodeConfig
    from world_gymnast_ros.updates.adaptation import Parts

PLACEHOLDER = "(to be proposed)"
"""Instruction of a start whose own is not known yet."""


@dataclass(frozen=True)
class Choice:
    """What is trained in the end: starts, the partial-credit sentence of ticked instructions, lines for the report."""

    starts: list[Start]
    partial_credit: dict[str, str]
    notes: tuple[str, ...] = ()


def add_arguments(parser: Parser) -> None:
    """Add the options of proposals."""
    whole(parser, "--propose", 1, MAX_PROPOSALS, help="have a model look at the images and propose so many "
          "instructions, each with a sentence about partial credit; you tick which to train (needs --proposer)")
    parser.add_argument("--proposer", metavar="NAME", help="the model: folder or hub name of an image-text model, or "
                        "address of an OpenAI-compatible server (http://HOST:PORT/v1#MODEL)")
    parser.add_argument("--propose-all", action="store_true", help="train every proposal that can be used, unasked")
    real(parser, "--proposer-timeout-s", 1.0, 3600.0, default=120.0, help="longest wait for one answer of the model "
         "(default: %(default)s)")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded. Raises BadConfig."""
    if args.propose and not args.proposer:
        raise BadConfig(f"--propose {args.propose} needs a model that looks: name one with --proposer")
    if (args.proposer or args.propose_all) and not args.propose:
        raise BadConfig("--proposer and --propose-all belong to --propose N: say how many instructions to propose")
    if args.propose and args.tasks:
        raise BadConfig("--propose looks at the images of --frame or --scene; leave out --tasks, or propose first "
                        "and write what you like into the file")
    if args.propose and not args.propose_all and not sys.stdin.isatty():
        raise BadConfig("--propose asks at a terminal which instructions to train, and there is none: add "
                        "--propose-all, or run it in a terminal")


def ask(args: argparse.Namespace, config: AdaptNodeConfig, starts: Sequence[Start]) -> Proposals | None:
    """Load the model, ask it about the frames of `starts`, and let go of it; None where nobody asked for it.

    BadCheckpoint or BadConfig where there is no such model; NotTrusted where an instruction of the user's own would be
    refused anyway."""
    if not args.propose:
        return None
    from world_gymnast_ros.loading.load import load_image_text
    from world_gymnast_ros.loading.release import release_table
    from world_gymnast_ros.updates.adaptation import check_released

    release = release_table(config.world_model, config.judges)
    check_released(release, args.instruction, config.min_release_auc, config.max_false_success)
    forms = [form for task, row in release.items() for form in row.instructions or (task,)]
    images = [s.frame.rgb for s in {id(s.frame): s for s in starts}.values()]
    model = load_image_text(args.proposer, config.device, config.dtype, args.proposer_timeout_s)
    print(f"{model.name} looks at {len(images)} image{'s' * (len(images) != 1)} ...", flush=True)
    return propose(model, images, args.propose, args.seed, forms if config.min_release_auc > 0 else (),
                   args.instruction)


def choose(args: argparse.Namespace, asked: Proposals | None, parts: Parts, starts: Sequence[Start],
           config: AdaptNodeConfig) -> Choice:
    """Drop what cannot be trained here, have a person tick, and return what is trained: instructions of the user's own
    and ticked ones, each from every image. BadInstruction where that is nothing."""
    if asked is None:
        return Choice(list(starts), {})
    from world_gymnast_ros.updates.proposals import keep_trainable

    scene = list({id(s.frame): s for s in starts}.values())
    found = keep_trainable(asked, parts, scene, config)
    own = args.instruction
    show(found)
    ticked = list(found.usable) if args.propose_all else tick(found.usable) if found.usable else []
    instructions = [*own, *(p.instruction for p in ticked)]
    if not instructions:
        raise BadInstruction(("nothing was ticked" if found.usable else f"no proposal can be used ({found.summary})")
                             + ", and no instruction was given: nothing is trained; say one yourself, or ask another "
                             "--proposer")
    note = f"{found.summary}; {len(ticked)} of them are trained: {'; '.join(p.instruction for p in ticked) or 'none'}"
    return Choice([replace(s, instruction=words) for s in scene for words in instructions],
                  {p.instruction: p.partial_credit for p in ticked}, (note,))


def show(found: Proposals) -> None:
    """Print what was proposed, numbered, and what was dropped and why."""
    for number, proposal in enumerate(found.usable, 1):
        print(f"  {number:2d}  {proposal.instruction}\n        half done: {proposal.partial_credit}")
    for dropped in found.dropped:
        print(f"   -  dropped, {dropped.kind}: {dropped.words}")
    print(found.summary)


def tick(proposals: Sequence[Proposal], read: Callable[[str], str] | None = None) -> list[Proposal]:
    """Ask which proposals to train until the answer can be read, and return them; none at the end of the input. `read`
    asks and returns a line (None: at the terminal)."""
    said = "train which? numbers with spaces (1 3), all, or nothing but Enter for none: "
    while True:
        try:
            words = (read or input)(said).replace(",", " ").split()
        except EOFError:
            return []
        if words == ["all"]:
            return list(proposals)
        if all(w.isascii() and w.isdigit() and 1 <= int(w) <= len(proposals) for w in words):
            return [proposals[n - 1] for n in dict.fromkeys(map(int, words))]
        print(f"numbers from 1 to {len(proposals)}, please")
