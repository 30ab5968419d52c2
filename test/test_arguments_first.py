"""Wrong arguments are refused before torch is imported, which takes seconds: a process without torch tries all."""
import json
import subprocess
import sys

from patience import START_S

from world_gymnast_ros.cli import installed_verbs, trainings

PLAY = "checkpoints"  # a folder that is there

WRONG = [
    ["adapt", "--nonsense"], ["adapt", "x"], ["adapt", "x", "--frame", "/nowhere.png"],
    ["adapt", "x", "--set", "copis=3"],
    ["adapt", "x", "--frame", "docs/report.png", "--set", "temperature=99"], ["adapt", "--updates", "many"],
    ["adapt", " ", "--frame", "docs/report.png"], ["adapt", "x", "--episodes", "/nowhere"],
    ["evaluate", "--nonsense"], ["iterate", "--nonsense"], ["judge", "learn", "--nonsense"], ["bench", "--nonsense"],
    ["demo", "--nonsense"], ["serve", "--port", "abc"], ["episodes", "check", "/nowhere"], ["twin", "--nonsense"],
    ["fog", "--nonsense"], ["nonsense"], ["robot", "--nonsense"], ["snapshot", "--nonsense"], ["doctor", "--nonsense"],
    ["completion", "fish"],
    *(["train", what, "--nonsense"] for what in trainings.TEXTS),
    *(["train", what, "--play", "/nowhere", "--out", "x"] for what in ("policy", "imagined", "world-model")),
    ["train", "reflector", "--play", "/nowhere", "--start", PLAY, "--out", "x"],
    ["train", "reflector", "--play", PLAY, "--start", "/nowhere", "--out", "x"],
    ["train", "locator", "--frames", "/nowhere", "--play", PLAY, "--out", "x"],
    ["train", "locator", "--frames", PLAY, "--play", PLAY, "--out", "x", "--steps", "0"],
    ["train", "policy", "--play", PLAY, "--out", "x", "--bc-batch", "many"],
    ["train", "imagined", "--play", PLAY, "--out", "x", "--world-model", "/nowhere"],
    ["train", "world-model", "--clips", "/nowhere", "--out", "x"], ["train", "world-model", "--out", "x"],
    ["train", "world-model", "--episodes", "/nowhere", "--out", "x"],
    ["train", "world-model", "--play", PLAY, "--clips", PLAY, "--out", "x"],
    ["train", "reflector-head", "--trunk", "x", "--episodes", "/nowhere", "--out", "x"],
    ["train", "reflector-head", "--trunk", "x", "--episodes", PLAY, "--out", "x", "--dtype", "int4"],
    ["evaluate", "/nowhere", "--scene", "novel_evening"], ["evaluate", PLAY, "--scene", "nowhere"],
    ["evaluate", PLAY, "dance", "--scene", "novel_evening"], ["evaluate", PLAY, "--scene", "novel_evening"],
    ["evaluate", PLAY, "--scene", "novel_evening", "--policy", "/nowhere"], ["evaluate", PLAY, "reach it", "--robot"],
    ["iterate", "--scene", "nowhere"], ["iterate", "dance", "--scene", "novel_evening"],
    ["iterate", "--scene", "novel_evening", "--set", "copis=3"],
    ["iterate", "--scene", "novel_evening", "--world-model", "/nowhere"],
    ["bench", "replay", "--episodes", "/nowhere"], ["bench", "replay", "--episodes", PLAY, "--judge", "/nowhere"],
    ["bench", "adaptation", "--scenes", "nowhere"], ["bench", "adaptation", "--set", "copis=2"],
    ["bench", "adaptation", "--instruction", "dance"],
    ["bench", "sessions", "--set", "copis=2"], ["judge", "calibrate", "--episodes", "/nowhere"],
    ["judge", "calibrate", "--play", "/nowhere"], ["judge", "calibrate", "--episodes", PLAY, "--judge", "/nowhere"],
    ["judge", "veto", "--play", "/nowhere", "--task", "push", "--out", "x"],
    ["judge", "learn", "--episodes", "/nowhere", "--out", "x"],
    *(["episodes", what, "/nowhere"] for what in ("list", "judge", "review", "repair")),
    ["episodes", "judge", PLAY, "--judge", "/nowhere"], ["episodes", "show", "/nowhere", "a.png"],
    ["episodes", "export", "/nowhere", "x", "--format", "lerobot"], ["episodes", "mark", "/nowhere", "success",
                                                                      "--by", "a"],
    ["serve", "--policy", "/nowhere"], ["serve", "--world-model", "/nowhere"], ["serve", "--adapter", "/nowhere"],
    ["twin", "show", "nowhere", "--out", "a.png"], ["adapt", "x", "--scene", "nowhere"],
    ["adapt", "--scene", "novel_evening", "--policy", "/nowhere"],
]
TRY = """
import contextlib, io, json, sys
from world_gymnast_ros.cli import main

class Torch(BaseException):
    pass

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise Torch

sys.meta_path.insert(0, NoTorch())
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
        except Torch:
            code = "torch was imported"
    print(json.dumps([words, code, said.getvalue()[-200:]]))
"""


def test_wrong_arguments_are_refused_before_torch_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", TRY, json.dumps(WRONG)], capture_output=True, text=True,
                          timeout=START_S)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [words for words, *_ in rows] == WRONG
    assert [row for row in rows if row[1] != 2 or not row[2]] == []


def test_every_verb_is_tried() -> None:
    assert set(installed_verbs()) <= {words[0] for words in WRONG}
    assert set(trainings.TEXTS) <= {words[1] for words in WRONG if words[0] == "train"}
