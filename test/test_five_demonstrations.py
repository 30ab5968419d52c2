"""The bench of five demonstrations: who would have ended an episode when, rows that survive a stop, and the table."""
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from world_gymnast_ros.benchmark import five_demonstrations as five
from world_gymnast_ros.benchmark.five_demonstrations import (
    CASES,
    CONSTANT,
    LEARNED,
    RL,
    SFT,
    Row,
    Watch,
    by_judge,
    by_nobody,
    by_oracle,
    ended_at,
    markdown,
    read_rows,
)
from world_gymnast_ros.benchmark.rows import ROWS
from world_gymnast_ros.cli import bench, main
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.loading.load import load_judges, load_policy
from world_gymnast_ros.seeds import evaluation
from world_gymnast_ros.twin.environment import TwinEnvironment
from world_gymnast_ros.types import U8

torch.set_num_threads(1)
# Done at frame 2 and undone at 5; never done, and called done at 1; done at 1 and kept, never called done.
ROW = Row("reach", LEARNED, SFT, 0, ["001110", "000000", "011111"], ["00111", "1100-", "00-10"], "cloned", "", 9.0)
MEASURED = Path(__file__).resolve().parents[1] / "docs" / "measured" / "five_demonstrations.jsonl"


def test_who_ends_an_episode_decides_what_comes_of_it() -> None:
    assert [e.success for e in by_nobody(ROW)] == [False, False, True]
    assert [e.redundant for e in by_nobody(ROW)] == [3, 0, 4]
    assert [(e.at, e.success, e.redundant, e.early) for e in by_judge(ROW)] == [
        (3, True, 1, False), (1, False, 0, True), (5, True, 4, False)], "no verdict does not say done"
    assert [e.at for e in by_judge(ROW, 1)] == [2, 0, 3]
    assert [(e.at, e.success, e.redundant) for e in by_oracle(ROW)] == [(2, True, 0), (5, False, 0), (1, True, 0)]
    assert not ended_at("000", 2).early, "time ended it"


def test_the_table_says_what_came_of_the_aims() -> None:
    better = replace(ROW, policy=RL, holds=["001111"] * 3, judged=["00111"] * 3, outcome="promoted", updates=4,
                     captures=8)
    text = markdown([ROW, better, replace(better, scale=CONSTANT)])
    assert "SFT, scale head | 0.333 [" in text and "7, 5, 2" in text
    assert "8 placements, 4 updates, promoted, 9 s" in text
    assert "1.50 times SFT" in text and "an oracle's stop gives nothing" in text and "fall by 67%" in text
    assert text.count("- reach, constant scale, 8 placements: an oracle") == 1, "no SFT of its own to compare with"
    undone = replace(better, holds=["001110"] * 3)
    assert "(+3 episodes) the judge recovers +3" in markdown([undone])


def test_rows_survive_a_stop(tmp_path: Path) -> None:
    lines = [json.dumps(asdict(ROW)), json.dumps(asdict(replace(ROW, policy=RL)))]
    (tmp_path / ROWS).write_text("\n".join([*lines, '{"case": "torn']))
    assert [r.policy for r in read_rows(tmp_path)] == [SFT, RL] and read_rows(tmp_path / "none") == []
    (tmp_path / ROWS).write_text("\n".join(["torn", *lines, ""]))
    with pytest.raises(EpisodeError, match="line 1"):
        read_rows(tmp_path)


def test_what_is_noted_is_what_an_episode_that_is_ended_shows() -> None:
    """An episode that is really ended at a frame goes as the one that nobody ends does, up to there."""
    words = CASES["reach"][1]
    policy, judge, seed = load_policy("", "cpu"), load_judges("tiny/reflector", "cpu"), evaluation(1)
    (free,), (judged,) = five.play("reach", policy, None, len(seed), judge)
    assert len(free) == len(judged) + 1 == 17 and set(free) <= set("01") and set(judged) <= set("01-")

    class Ends(Watch):
        def look(self, rgb: U8) -> bool:
            super().look(rgb)
            return len(self.judged) == 6
    environment = TwinEnvironment(five.scattered("reach"))
    environment.done = watch = Ends(environment, judge)
    try:
        environment.reset(seed[0], words)
        environment.run(policy, None, words, 0.0, seed[0])
    finally:
        environment.close()
    assert (watch.holds, watch.judged) == (free[:6], judged[:6])


def test_the_command_line_knows_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(CASES) == bench.FAMILIES and (LEARNED, CONSTANT) == bench.SCALES
    assert main(["bench", "five", "--rows", str(MEASURED)]) == 0
    assert "| reach | SFT + RL, scale head |" in capsys.readouterr().out
    assert main(["bench", "five", "--rows", "nowhere"]) == 2
