"""The `world-gymnast` command: one module per verb, each with HELP, add_arguments(parser) and run(args) -> int."""
from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence

from world_gymnast_ros import __version__, priority
from world_gymnast_ros.errors import NotInstalled, WorldGymnastError

VERBS = ("demo", "adapt", "evaluate", "iterate", "train", "bench", "episodes", "robot", "snapshot", "twin", "judge",
         "serve", "doctor", "completion", "fog")

HEAVY, NICENESS = ("adapt", "bench", "fog", "iterate", "judge", "train"), 10
"""Verbs that use the processor for minutes give way to an arm that is controlled from another terminal."""
DESCRIPTION = "Adapt a vision-language-action policy to the scene before the camera, inside a video world model."
EXAMPLES = """\
examples:
  world-gymnast demo                 no robot needed: the whole story on the simulated twin, with a report
  world-gymnast adapt --help         what one verb takes, with examples of its own
  world-gymnast episodes --help      recorded episodes: look, mark, export

exit status: 0 done, 1 ran but did not reach its aim, 2 refused (one line on stderr says why), 130 stopped by Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status. `argv` defaults to the command line."""
    words = sys.argv[1:] if argv is None else list(argv)

    def work() -> int:
        args = parser_of(words).parse_args(words)
        # Only as a command: a program that calls this keeps its priority.
        with priority.lowered(NICENESS if argv is None and args.verb in HEAVY else 0):
            return answered(args.run, args)

    return exit_status(work)


def answered(work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Do the work of a verb and return its exit status.

    With --json (`options.json_result`) what the verb left in `args.result` is all that standard output gets; whatever
    else it prints goes to standard error.
    """
    if not hasattr(args, "result"):
        return int(work(args))
    with contextlib.redirect_stdout(sys.stderr):
        code = int(work(args))
    if args.result is not None:
        print(json.dumps(args.result, indent=1, default=str))
    return code


def exit_status(work: Callable[[], int], stopped: str = "") -> int:
    """Do the work and return the exit status: 2 with one line for an error, 130 and `stopped` for Ctrl-C."""
    try:
        return work()
    except WorldGymnastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {os_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if stopped:
            print(f"\n{stopped}", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # told by name: its library is not imported for every verb
            raise
        print(f"error: weights could not be read or written ({error}); free space, or name another folder",
              file=sys.stderr)
        return 2


def os_words(error: OSError) -> str:
    """Say in one line what the system refused, on which file, and what helps."""
    what = f"{error.filename}: " if error.filename else ""
    remedy = ("free space, or name a folder on another disk" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
              else "check the name and who may read and write there")
    return f"{what}{error.strerror or error}; {remedy}"


def installed_verbs() -> tuple[str, ...]:
    """List the verbs whose module is there, without importing any."""
    return tuple(verb for verb in VERBS if importlib.util.find_spec(f"{__name__}.{verb}"))


def parser_of(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of the verb that `words` name; of all verbs where they name none."""
    parser = argparse.ArgumentParser(
        prog="world-gymnast", description=DESCRIPTION, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    known = installed_verbs()
    chosen = next((word for word in words if not word.startswith("-")), None)
    # Only the chosen verb is imported, because some pull in torch and MuJoCo; the general help needs every HELP.
    for name in (chosen,) if chosen in known else known:
        try:
            module = importlib.import_module(f"{__name__}.{name}")
        except ImportError as error:
            if name == chosen:
                raise NotInstalled(f"{name} needs a package that is not there ({error}); run make env") from error
            verbs.add_parser(name, help=f"(not available: {error})")
            continue
        verb = verbs.add_parser(
            name, help=module.HELP, description=(module.__doc__ or module.HELP).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser
