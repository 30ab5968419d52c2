"""`world-gymnast iterate`: the closed loop in an environment, round after round, beside two baselines at equal budget.

    a round   two thirds of the real episodes, explored with the present adapter -> where the camera stands is learned
              from the measured joints -> world model and judges learn from the episodes, each promoted only if its
              release check says so -> the real successes so far are cloned -> adaptation in the world model,
              regularised by those successes -> the last third of the real episodes: what the promotion test promoted,
              else the BC policy, is tried on the arm, greedily, and follows or is dropped -> true evaluation

Methods: `loop`, all of it; `adaptation_only`, adaptation alone, in the world model and judges that the run began with;
`imitation` (Iter-SFT), cloning the successes among the real episodes, with no world model. All begin with the same
policy and are evaluated on the same episodes; those that learn from real episodes take as many a round, with the same
seeds.

The environment is the robot with its operator or the twin: nothing here knows either. A run is a folder. Every stage
leaves a file when it is done, and every real episode does; what is there is not done again, so a stopped run goes on
where it was. Seeds and settings are in `run.json`; a folder of another run is refused.
"""
from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from world_gymnast_ros.updates.learn_models import learn_camera, learn_judges, learn_world_model
from world_gymnast_ros.updates.learn_policy import adapt_in_imagination, evaluate, imitate_successes
from world_gymnast_ros.updates.on_arm import choose_begin, explore, validation
from world_gymnast_ros.updates.run import Round, Run, State, cached
from world_gymnast_ros.updates.world_model import check_updatable


def run_method(run: Run, method: str) -> list[dict[str, Any]]:
    """Run all rounds of a method; return its rows, round 0 being the start."""
    here = Round(run, method, 0, run.start())
    if method == "loop":  # refused before a real episode is run
        check_updatable(here.state.world_model)

    def begin() -> dict[str, Any]:
        run.say("round 0: evaluating the start")
        start = Round(run, "start", 0, here.state)
        return {"round": 0, "state": asdict(here.state),
                "evaluation": evaluate(start, run.out / "round-0.npz", start.seed())}
    rows = [cached(run.out / "round-0.json", begin)]
    for number in range(1, run.config.rounds + 1):
        rows.append(run_round(Round(run, method, number, State.from_json(rows[-1]["state"]))))
    return rows


def run_round(here: Round) -> dict[str, Any]:
    """Run one round; every stage is skipped where its file is there."""
    row: dict[str, Any] = {"round": here.number, "method": here.method}
    began = time.monotonic()
    if here.method != "adaptation_only":  # which has no use for them
        real = row["real"] = here.stage("real", explore)
        wins, count = here.state.record
        here = here.at(record=(wins + real["successes"], count + real["episodes"]))
    if here.method == "loop":
        here = _learn_all(here, row)
    else:
        row["learning"] = here.stage("learning", imitate_successes if here.method == "imitation" else
                                     adapt_in_imagination)
        here = here.at(adapter=row["learning"]["adapter"] or here.state.adapter, record=(0, 0), greedy=(0, 0))
    row["evaluation"] = e = here.stage("evaluation", lambda r: evaluate(r, r.folder / "evaluation.npz", r.seed(1)))
    row["state"] = asdict(here.state)
    imagined = f", imagined {e['imagined']['value']:.3f}, false successes {e['false_success'][0]:.3f} of " \
               f"{e['false_success'][3]}" if "imagined" in e else ""
    here.say(f"true {e['true']['value']:.3f}{imagined}; {time.monotonic() - began:.0f} s")
    return row


def _learn_all(here: Round, row: dict[str, Any]) -> Round:
    """Learn camera, world model, judges and policy, and validate on the arm; note each in `row`."""
    row["setup"] = here.stage("setup", learn_camera)
    here = here.at(geometric=row["setup"]["geometric"])
    row["world_model"] = here.stage("world_model", learn_world_model)
    here = here.at(world_model=row["world_model"]["use"])
    row["judge"] = here.stage("judge", learn_judges)
    here = here.at(judge=row["judge"]["use"], geometric=row["judge"]["geometric"])
    row["cloning"] = here.stage("cloning", imitate_successes)
    bc_policy = row["cloning"]["adapter"]
    row["begin"] = here.stage("begin", lambda r: choose_begin(r, bc_policy))
    row["learning"] = here.at(adapter=row["begin"]["adapter"]).stage("learning", adapt_in_imagination)
    row["validation"] = found = here.stage("validation", lambda r: validation(
        r, row["learning"]["adapter"], bc_policy, row["begin"]["preferred"]))
    return here.at(adapter=found["adapter"], record=tuple(found["record"]), greedy=tuple(found["greedy"]))
