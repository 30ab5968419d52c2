"""The bench of sessions: rows that survive a stop, paired differences, and cases that exist."""
import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from world_gymnast_ros.adaptation.config import AdaptNodeConfig
from world_gymnast_ros.adaptation.practice import Practice
from world_gymnast_ros.benchmark import sessions
from world_gymnast_ros.benchmark.adaptation import read_rows as read_sessions
from world_gymnast_ros.benchmark.rows import ROWS
from world_gymnast_ros.benchmark.sessions import CASES, DISTRACTORS, Row, markdown, read_rows
from world_gymnast_ros.cli import main
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.paths import share_path
from world_gymnast_ros.updates.adaptation import Parts, load_parts
from world_gymnast_ros.updates.policy_gradient import LoraLearner

ROW = Row("dark table", "captured alone", 0, {"reach it": [False] * 4}, {"reach it": [False] * 4}, "kept", "", 10.0, 3)
MEASURED = Path(__file__).resolve().parents[1] / "docs" / "measured" / "sessions.jsonl"


def test_rows_survive_a_stop_and_the_table_pairs_them(tmp_path: Path) -> None:
    better = replace(ROW, session="one demonstration", after={"reach it": [True] * 3 + [False]}, outcome="promoted")
    lines = [json.dumps(asdict(r)) for r in (ROW, better)]
    (tmp_path / ROWS).write_text("\n".join([*lines, '{"case": "torn']))
    assert read_rows(tmp_path) == [ROW, better] and read_rows(tmp_path / "none") == []
    first, second = markdown(read_rows(tmp_path)).splitlines()[2:]
    assert "| 0/4 |" in first and "| +75 [" in second and second.count("+75 [") == 2, "to the base, and to the first"
    (tmp_path / ROWS).write_text("\n".join(["torn", *lines, ""]))
    with pytest.raises(EpisodeError, match="line 1"):
        read_rows(tmp_path)


def test_a_case_names_scenes_that_exist_and_distractors_that_nothing_showed() -> None:
    for case in CASES:
        assert all(words for _, words in sessions.tests_of(case).values())
    shown = {path.stem for path in share_path("config/cut_outs").glob("*.png")}
    assert not shown & {f"{o.colour}_{o.shape}" for o in DISTRACTORS}
    scene, _ = sessions.tests_of(CASES[0])[f"{CASES[0].tests[0]}, distractors"]
    assert scene.distractors == DISTRACTORS


@pytest.mark.parametrize(("session", "aimed_at"), [("replay", 0.0), ("replay, KL", sessions.TARGET_KL)])
def test_the_settings_of_a_session_reach_its_learner(session: str, aimed_at: float, monkeypatch: pytest.MonkeyPatch
                                                     ) -> None:
    seen = []

    def stopped(parts: Parts, starts: object, config: AdaptNodeConfig, *_: object, practice: Practice, **__: object
                ) -> None:
        learner = parts.learner(None)
        assert isinstance(learner, LoraLearner) and practice.replay
        seen.append((learner.config.target_kl, config.target_kl))
        raise KeyboardInterrupt
    monkeypatch.setattr(sessions, "run_session", stopped)
    config = AdaptNodeConfig()
    known = {name: [True] for name in sessions.tests_of(CASES[0])}
    with pytest.raises(KeyboardInterrupt):
        sessions.measure(load_parts(config), CASES[0], session, 0, 1, 1, config, known)
    assert seen == [(aimed_at, aimed_at)]


def test_what_was_measured_is_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sessions", "--rows", str(MEASURED)]) == 0
    table = capsys.readouterr().out
    assert "| dark table | one demonstration |" in table
    assert main(["bench", "sessions", "--rows", "nowhere"]) == 2 and main(["bench", "sessions", "--cases", "x"]) == 2


def test_before_and_after_is_the_table_of_the_rows_beside_it() -> None:
    spec = importlib.util.spec_from_file_location("paired_rows", MEASURED.parents[2] / "bench" / "paired_rows.py")
    assert spec is not None and spec.loader is not None
    paired_rows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(paired_rows)
    before, after = (read_sessions(MEASURED.with_name(f"{name}_redesign.jsonl")) for name in ("before", "after"))
    table = paired_rows.lines(before, after)
    assert len(table) == 2 + 2 * 3 and not paired_rows.lines(before[:1], after[1:])[2:]
    assert "\n".join(table) in MEASURED.with_name("before_after.md").read_text(encoding="utf-8")
