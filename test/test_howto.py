"""The how-to pages that hold a program, followed to the letter: what stands there runs and says what the page says."""
from __future__ import annotations

import re
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from world_gymnast_ros.serving.client import HttpPolicy
from world_gymnast_ros.serving.remote_world import RemoteWorld
from world_gymnast_ros.types import Frame, Start

HOWTO = Path(__file__).parents[1] / "docs" / "howto"


def run_page(name: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the program of a page on a free port; return its server, on a thread."""
    [program] = re.findall(r"```python\n(.*?)```", (HOWTO / name).read_text(encoding="utf-8"), re.DOTALL)
    assert program.count("port=800") == 1
    space: dict[str, Any] = {}
    exec(compile(re.sub(r"port=800\d", "port=0", textwrap.dedent(program)), name, "exec"), space)
    assert capsys.readouterr().out.splitlines() == ["it keeps the protocol", space["server"].url]
    return space["server"]


def frame() -> Frame:
    return Frame(np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8), 0)


def test_a_world_model_of_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    with run_page("own_world_model.md", capsys) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        dream = RemoteWorld(server.url).begin([Start(frame(), None, "close the drawer")], 0)
        frames = dream.play(np.full((1, 3, 7), 0.01, np.float32))
        assert frames.shape == (1, 3, 64, 64, 3) and (frames[0, 0] != frames[0, 2]).any()
        server.shutdown()


def test_a_policy_of_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    with run_page("own_policy.md", capsys) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        deltas = HttpPolicy(server.url, 20.0).act(frame(), "lift the pot").deltas
        assert deltas.shape == (4, 7) and np.allclose(deltas[:, 2], 0.01)
        server.shutdown()
