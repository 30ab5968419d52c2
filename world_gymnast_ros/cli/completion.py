"""Print a script that completes verbs, options and their choices in your shell. It needs nothing else once loaded.

examples:
  world-gymnast completion bash > ~/.local/share/bash-completion/completions/world-gymnast     once; and after updates
  world-gymnast completion zsh > ~/.world-gymnast.zsh    then in ~/.zshrc, below compinit: source ~/.world-gymnast.zsh
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator

HELP = "print a script that completes verbs and options in bash or zsh"
SCRIPT = """\
# world-gymnast: completion of verbs, options and choices. Made by: world-gymnast completion {shell}
{before}_world_gymnast() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" verb="" word words=""
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$verb $word" in
      {verbs}) verb="$verb $word" ;;
    esac
  done
  case "$verb $prev" in
{choices}
    *)
      case "$verb" in
{words}
      esac ;;
  esac
  COMPREPLY=( $(compgen -W "$words" -- "$cur") )
}}
complete -o default -F _world_gymnast world-gymnast
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the shell."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from world_gymnast_ros import cli

    print(script(args.shell, cli.parser_of(())), end="")
    return 0


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return the script for a shell ("bash" or "zsh"), from what a parser and its verbs take."""
    found = list(_walk("", parser))
    verbs = "|".join(f'"{path}"' for path, _ in found if path)
    words, choices = [], []
    for path, one in found:
        subs = [name for action in one._actions if isinstance(action, argparse._SubParsersAction)
                for name in action.choices] + list(_trainings(path))
        options = sorted(word for action in one._actions for word in action.option_strings
                         if word.startswith("--") and action.help != argparse.SUPPRESS)
        first = " ".join(str(c) for action in one._actions if not action.option_strings and not subs
                         for c in action.choices or ())
        plain = " ".join(subs) or first
        words.append(f'        "{path}") [[ "$cur" == -* ]] && words="{" ".join(options)}" || words="{plain}" ;;')
        choices += [f'    {"|".join(f"""{chr(34)}{path} {o}{chr(34)}""" for o in action.option_strings)}) '
                    f'words="{" ".join(map(str, action.choices))}" ;;'
                    for action in one._actions if action.option_strings and action.choices]
    return SCRIPT.format(shell=shell, before=ZSH if shell == "zsh" else "", verbs=verbs, words="\n".join(words),
                         choices="\n".join(choices))


def _walk(path: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every verb's path, such as " episodes list", and its parser."""
    yield path, parser
    subs = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)] + [_trainings(path)]
    for choices in subs:
        for name, sub in choices.items():
            yield from _walk(f"{path} {name}", sub)


def _trainings(path: str) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the trainings, which `train` reads itself."""
    if path != " train":
        return {}
    from world_gymnast_ros.cli import train

    return train.parsers()
