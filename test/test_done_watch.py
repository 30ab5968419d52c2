"""Episodes end when a judge says so: at several looks in a row, never without a verdict, and on the twin in time."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from world_gymnast_ros.adaptation.done_watch import DoneWatch
from world_gymnast_ros.types import U8, Judgement, RolloutFacts

TEXT = "open the drawer"


class Says:
    """Gives the newest frame the probability that stands in its first pixel, in percent; 255: no verdict."""

    name = "says"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
        self.shapes.append(frames.shape)
        values = frames[0, :, 0, 0, 0].astype(np.float32) / 100
        if values[-1] > 1:
            raise RuntimeError("the server is gone")
        return [Judgement(float(values[-1]), frame_scores=values)]


def frame(percent: int) -> U8:
    return np.full((48, 64, 3), percent, np.uint8)


def test_done_needs_looks_in_a_row() -> None:
    watch = DoneWatch(Says(), (48, 64), 0.5, looks=2)
    watch.begin(TEXT)
    assert [watch.look(frame(p)) for p in (10, 90, 50, 60, 70)] == [False, False, False, False, True]
    assert watch.probability == pytest.approx(0.7)
    watch.begin(TEXT)
    assert watch.sure == 0 and not watch.look(frame(90))


def test_no_verdict_is_never_done_and_breaks_a_row() -> None:
    watch = DoneWatch(Says(), (48, 64), 0.5, looks=2)
    watch.begin(TEXT)
    assert [watch.look(frame(p)) for p in (90, 255, 90)] == [False, False, False]
    assert watch.look(frame(90))
    watch.look(frame(255))
    assert watch.probability is None and "the server is gone" in watch.verdict.detail


def test_the_judge_sees_frames_of_the_size_that_it_asks_for() -> None:
    judge = Says()
    watch = DoneWatch(judge, (24, 24))
    watch.begin(TEXT)
    watch.look(frame(0))
    watch.look(frame(0))
    assert judge.shapes == [(1, 1, 24, 24, 3), (1, 2, 24, 24, 3)]


def test_an_episode_of_the_twin_ends_where_the_judge_says() -> None:
    pytest.importorskip("mujoco")
    from world_gymnast_ros.loading.load import load_policy
    from world_gymnast_ros.twin.environment import TwinEnvironment
    from world_gymnast_ros.twin.scene import load_scene

    class Counts(Says):
        def score(self, frames: U8, instruction: str, facts: RolloutFacts | None = None) -> list[Judgement]:
            return [Judgement(0.9 if frames.shape[1] >= 3 else 0.1)]

    policy = load_policy()
    environment = TwinEnvironment(load_scene("train_oak"), done=DoneWatch(Counts(), (64, 64), looks=2))
    try:
        for seed in (0, 1):  # begins anew with every episode
            environment.reset(seed, "reach the red block")
            episode = environment.run(policy, None, "reach the red block", 0.0, seed)
            assert episode.ended_by == "done" and episode.steps == 4
    finally:
        environment.close()


@pytest.mark.ros
def test_the_node_says_done_once_for_each_arming(tmp_path: Path) -> None:
    pytest.importorskip("rclpy")
    from ros_tools import client, running

    from world_gymnast_ros.nodes import base, convert, graph

    status = convert.ArmStatusMsg
    with client() as c, running([graph.REFLECTOR.with_overrides(threshold=0.0, period_s=0.02)], tmp_path) as nodes:
        done = c.hear("task_done", convert.DiagnosticStatus)

        def show(times: int) -> None:
            for _ in range(times):
                image = convert.image_from_rgb(frame(90), c.get_clock().now().nanoseconds, "cam")
                c.say("image_raw", convert.Image, base.NEWEST_RELIABLE, image)
                c.spin(0.05)

        def shown_until_done(count: int) -> None:
            c.until(lambda: show(1) or len(done) >= count, f"{count} times done", check=nodes.check)

        c.say("instruction", convert.String, base.LATCHED, convert.String(data="reach the red block"))
        c.say("arm_status", status, base.LATCHED, status(state=status.DISARMED))
        show(10)
        assert not done  # a disarmed arm is not watched
        c.say("arm_status", status, base.LATCHED, status(state=status.ARMED))
        shown_until_done(1)
        show(10)
        assert len(done) == 1
        assert {v.key: v.value for v in done[0].values}["instruction"] == "reach the red block"
        for state in (status.HOLDING, status.ARMED):
            c.say("arm_status", status, base.LATCHED, status(state=state))
            c.spin(0.2)
        shown_until_done(2)
