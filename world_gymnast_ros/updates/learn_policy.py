"""The stages of a round in which the policy learns, and the measurement of what it came to."""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from world_gymnast_ros import seeds
from world_gymnast_ros.adaptation.rollout import derive_seed, imagine, is_success
from world_gymnast_ros.data.episode_files import write_episodes
from world_gymnast_ros.data.read import read_arrays
from world_gymnast_ros.evaluation.replay import replay_episodes
from world_gymnast_ros.statistics import wilson
from world_gymnast_ros.types import Start
from world_gymnast_ros.updates.adaptation import Parts, load_parts, lora_config, run_session
from world_gymnast_ros.updates.behaviour_cloning import imitate
from world_gymnast_ros.updates.policy_gradient import trainable
from world_gymnast_ros.updates.real_episodes import PARTS, collect
from world_gymnast_ros.updates.run import Round

LIKELY = 0.8
"""How sure the promotion test must be, in the loop, that an adapter is better at all: the arm tries it before it
follows."""


def adapt_in_imagination(here: Round) -> dict[str, Any]:
    """Adapt from captured frames of the scene, going on from the adapter of the state; the loop is regularised by the
    real successes."""
    config = here.session()
    if here.method == "loop":
        config = dataclasses.replace(config, episodes=str(all_real(here)), margin=0.0, confidence=LIKELY)
    result = run_session(load_parts(config), here.run.captured(here.number), config, here.seed(4), here.run.now_ns(),
                         parent=here.adapter())
    report = result.report
    here.say(f"{report.outcome}: {report.message}")
    return {"outcome": report.outcome, "message": report.message, "updates": len(report.curve),
            "adapter": report.adapter.name if report.adapter else "", "seconds": report.seconds.get("total", 0.0),
            "report": str(result.report_path.relative_to(here.run.out))}


def all_real(here: Round) -> Path:
    """Return a folder that links all real episodes so far, whatever part they are in."""
    folder = here.where / "all"
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.glob("*.npz"):
        if not link.exists():
            link.unlink()
    for kind in set(PARTS):
        for path in (here.where / kind).glob("*.npz"):
            target = folder / f"{kind}-{path.name}"
            if not target.exists():
                target.symlink_to(path.resolve())
    return folder


def imitate_successes(here: Round) -> dict[str, Any]:
    """Clone the successes of all real episodes so far: a policy holds none out, for it is evaluated on others."""
    run, began = here.run, time.monotonic()
    settings = dataclasses.replace(run.config.imitation, seed=here.seed(5))
    policy = trainable(here.parts().policy)
    ref = imitate(policy, here.episodes(), lora_config(run.adapt, policy), settings, here.adapter(), here.store,
                  run.instruction, {"method": "imitation", "round": here.number}, run.now_ns())
    return {"outcome": "cloned" if ref else "kept", "message": "" if ref else "no success to imitate",
            "updates": settings.steps if ref else 0, "adapter": ref.name if ref else "",
            "seconds": time.monotonic() - began}


def imagined_successes(here: Round, parts: Parts, starts: Sequence[Start], batch: int, seed_of: Callable[[int], int]
                       ) -> list[bool]:
    """Imagine the policy as it stands once from each start, `batch` at a time, the noise of the batch that begins
    at start i from `seed_of(i)`; return which of them the judges call a success."""
    run = here.run
    groups = [imagine(parts.policy, parts.world_model, parts.judge, starts[i:i + batch], 1, run.config.horizon_steps,
                      run.adapt.held_out_temperature, seed_of(i), judge_every_chunks=0)
              for i in range(0, len(starts), batch)]
    return [is_success(j) for group in groups for j in group.judgements]


def evaluate(here: Round, out: Path, seed: int) -> dict[str, Any]:
    """Measure the policy of the state: true success, episodes into `out`; but for imitation, imagined success from the
    same first frames too, and the true actions replayed in the world model: how many failures pass for successes."""
    run, parts, adapter = here.run, here.parts(), here.adapter()
    played = collect(run.environment, parts.policy, adapter, seeds.EVALUATION, run.config.evaluation, run.instruction,
                     0.0, out.with_suffix(""), here.progress("evaluation"))
    write_episodes(out, played)
    success = [bool(e.success) for e in played]
    true = asdict(wilson(sum(success), len(success)))
    if here.method == "imitation":
        return {"true": true, "outcomes": success}
    parts.policy.load_adapter(adapter)
    starts = [dataclasses.replace(e.start(), instruction=run.instruction) for e in played]
    predicted = imagined_successes(here, parts, starts, 32, lambda i: derive_seed(seed, i))
    replays = replay_episodes(parts.world_model, parts.judge, read_arrays(out), derive_seed(seed, 7))
    summary = replays.summary()
    return {"true": true, "imagined": asdict(wilson(sum(predicted), len(predicted))),
            "false_success": [summary["false_success"], summary["false_success_low"], summary["false_success_high"],
                              summary["failures"]],
            "replay": summary, "outcomes": success}
