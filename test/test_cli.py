"""The command line shell: what it imports, how it fails, and where data is looked for."""
import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import START_S

import world_gymnast_ros
from world_gymnast_ros import cli, paths
from world_gymnast_ros.errors import BadConfig

VERB = '''"""{name} the thing.

example: world-gymnast {name} --how {how}
"""
HELP = "{name} it"
def add_arguments(parser):
    parser.add_argument("--how", required=True)
def run(args):
    from world_gymnast_ros.errors import BadBudget
    if args.how == "refused":
        raise BadBudget("budget_s is 0; the least is 1; give more")
    if args.how == "stopped":
        raise KeyboardInterrupt
    return 1 if args.how == "missed" else 0
'''


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three verbs: one that works, one that cannot be imported, one that is not installed."""
    sys.modules.pop(f"{cli.__name__}.hone", None)
    monkeypatch.setattr(cli, "VERBS", ("hone", "broken_hone", "absent_hone"))
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    (tmp_path / "hone.py").write_text(VERB.format(name="hone", how="well"))
    (tmp_path / "broken_hone.py").write_text("import a_package_that_is_not_there\n")
    return tmp_path


@pytest.mark.usefixtures("verbs")
@pytest.mark.parametrize(("how", "status"), [("well", 0), ("missed", 1), ("refused", 2), ("stopped", 130)])
def test_exit_status(how: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["hone", "--how", how]) == status
    expected = "error: budget_s is 0; the least is 1; give more\n" if how == "refused" else ""
    assert capsys.readouterr().err == expected


@pytest.mark.usefixtures("verbs")
def test_general_help_survives_a_verb_that_cannot_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert "hone it" in out and "a_package_that_is_not_there" in out and "absent_hone" not in out


@pytest.mark.usefixtures("verbs")
def test_verb_help_shows_its_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["hone", "--help"])
    assert "example: world-gymnast hone --how well\n" in capsys.readouterr().out


@pytest.mark.usefixtures("verbs")
def test_chosen_verb_that_cannot_be_imported_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["broken_hone"]) == 2
    assert "a_package_that_is_not_there" in capsys.readouterr().err


@pytest.mark.usefixtures("verbs")
def test_unknown_verb_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["polish"])
    assert exit_info.value.code == 2
    assert "hone" in capsys.readouterr().err


def test_every_installed_verb_explains_itself() -> None:
    for verb in cli.installed_verbs():
        done = subprocess.run([sys.executable, "-m", "world_gymnast_ros.cli", verb, "--help"], capture_output=True,
                              text=True, timeout=START_S)
        assert done.returncode == 0, done.stderr
        assert f"usage: world-gymnast {verb}" in done.stdout and "world-gymnast" in done.stdout.split("usage:", 1)[1]


def test_share_dir_is_the_source_tree_when_run_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[1]
    monkeypatch.setattr(paths, "__file__", str(root / "world_gymnast_ros" / "paths.py"))
    assert paths.share_dir() == root
    assert paths.share_path("config/fastdds.xml").is_file()


def test_share_dir_of_an_installed_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = tmp_path / "share" / "world_gymnast_ros"
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "lib/python3/site-packages/world_gymnast_ros/paths.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    with pytest.raises(BadConfig, match=paths.SHARE_VARIABLE):
        paths.share_dir()
    (share / "config").mkdir(parents=True)
    assert paths.share_dir() == share
    with pytest.raises(BadConfig, match=r"config/none\.yaml is missing"):
        paths.share_path("config/none.yaml")


def test_share_variable_wins_and_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.SHARE_VARIABLE, str(tmp_path))
    with pytest.raises(BadConfig, match="holds no config/"):
        paths.share_dir()
    (tmp_path / "config").mkdir()
    assert paths.share_dir() == tmp_path


def test_verbs_declare_what_they_share_in_one_way() -> None:
    shared: dict[str, set[tuple[object, object]]] = {}

    def walk(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub in action.choices.values():
                    walk(sub)
            for option in {"--policy", "--world-model", "--device", "--dtype", "--threads"} & {*action.option_strings}:
                default = 0 if option == "--threads" else action.default
                shared.setdefault(option, set()).add((action.help, default))
    for verb in cli.VERBS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"world_gymnast_ros.cli.{verb}").add_arguments(parser)
        walk(parser)
    shared["--threads"].discard(("torch threads (default: torch's own choice)", 0))  # serve: all cores
    assert {option: len(ways) for option, ways in shared.items()} == dict.fromkeys(shared, 1), shared


def test_an_option_with_another_name_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["judge", "learn", "--episodes", "test", "--out", "y", "--second-judge", "z"]) == 2
    assert "--second-judge is called --judge, given twice now" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"world-gymnast {world_gymnast_ros.__version__}\n"


@pytest.mark.parametrize(("typed", "completed"), [
    (["ada"], ["adapt"]), (["--ver"], ["--version"]), (["episodes", "exp"], ["export"]),
    (["episodes", "export", "--format", "le"], ["lerobot"]), (["train", "world-model", "--camera-f"],
                                                             ["--camera-fit-steps"]),
    (["adapt", "--budget-s", "3", "--dty"], ["--dtype"]), (["adapt", "runs/"], []),
    (["judge", "learn", "--second"], []),
])
def test_bash_completes_what_the_parsers_take(
    tmp_path: Path, typed: list[str], completed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "world-gymnast"
    script.write_text(capsys.readouterr().out)
    asked = ('source "$0"; COMP_WORDS=(world-gymnast "$@"); COMP_CWORD=$#; _world_gymnast; '
             'printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-c", asked, str(script), *typed], capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed and not done.stderr


def test_zsh_gets_the_same_script_in_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["completion", "bash"])
    bash = capsys.readouterr().out.splitlines()[1:]
    cli.main(["completion", "zsh"])
    assert capsys.readouterr().out.splitlines()[1:] == ["autoload -U +X bashcompinit && bashcompinit", *bash]


def test_json_is_all_that_standard_output_gets(verbs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (verbs / "hone.py").write_text("""
from world_gymnast_ros.cli import options
HELP = "hone it"
def add_arguments(parser):
    options.json_result(parser)
def run(args):
    print("honing")
    args.result = {"sharp": True}
    return 1
""")
    importlib.invalidate_caches()
    assert cli.main(["hone", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {"sharp": True} and said.err == "honing\n"
    assert cli.main(["hone"]) == 1 and capsys.readouterr().out == "honing\n"
