"""Wrong arguments are refused before torch is imported, which takes seconds: one process tries them all."""
import json
import subprocess
import sys

from patience import START_S

WRONG = [
    ["adapt", "--nonsense"], ["adapt", "x"], ["adapt", "x", "--frame", "/nowhere.png"],
    ["adapt", "x", "--set", "copis=3"],
    ["adapt", "x", "--frame", "docs/report.png", "--set", "temperature=99"], ["adapt", "--updates", "many"],
    ["adapt", " ", "--frame", "docs/report.png"], ["adapt", "x", "--episodes", "/nowhere"],
    ["evaluate", "--nonsense"], ["iterate", "--nonsense"], ["judge", "learn", "--nonsense"], ["bench", "--nonsense"],
    ["demo", "--nonsense"], ["serve", "--port", "abc"], ["episodes", "check", "/nowhere"], ["twin", "--nonsense"],
    ["fog", "--nonsense"], ["train", "world-model", "--nonsense"], ["nonsense"],
]
TRY = """
import contextlib, io, json, sys
from world_gymnast_ros.cli import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([words, code, said.getvalue()[-200:], sorted({"torch", "transformers"} & set(sys.modules))]))
"""


def test_wrong_arguments_are_refused_before_torch_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", TRY, json.dumps(WRONG)], capture_output=True, text=True,
                          timeout=START_S)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [words for words, *_ in rows] == WRONG
    assert [row for row in rows if row[1] != 2 or not row[2] or row[3]] == []
