"""Processor time of one small adaptation session by stage, and of another checkout of this repository beside it.

    python bench/session.py                                       this tree, one and two threads
    python bench/session.py --against ../before --no-bf16         before and after in one run, bf16 units switched off
    python bench/session.py --scenes novel_night novel_clutter --updates 4 --out session.json

A session has a fixed number of updates and the same seeds, so every row is the same work: the shipped policy, world
model and judges; captured frames of twin scenes. Each run is a process of its own; the two trees take turns. Seconds
are the process's processor time (all threads), which says something on a shared machine where wall time does not.
"Paired" compares held-out rollouts of the base, which have the same seeds in both trees, one by one.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SCENES = ("novel_camera_shift", "novel_clutter", "novel_night", "novel_evening", "novel_white_table")
IMAGINE, JUDGE, POLICY, LEARN, REST = "imagine", "judge", "policy", "update", "rest"
STAGES = (IMAGINE, JUDGE, POLICY, LEARN, REST)
NO_BF16 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
"""Switches a processor's bf16 units off: the models then choose float32."""


class Clock:
    """Adds up processor seconds by stage; what one stage calls of another counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = time.process_time()

    def _book(self) -> None:
        now = time.process_time()
        self.seconds[self._stack[-1] if self._stack else REST] += now - self._since
        self._since = now

    def timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call`, booked to `stage`."""
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._book()
            self._stack.append(stage)
            try:
                return call(*args, **kwargs)
            finally:
                self._book()
                self._stack.pop()
        return wrapped

    def total(self) -> dict[str, float]:
        """Return seconds by stage since the last reset."""
        self._book()
        return dict(self.seconds)

    def reset(self) -> None:
        """Begin anew."""
        self._book()
        self.seconds.clear()


def instrument(parts: Any, clock: Clock) -> Any:
    """Book the calls of policy, world model and judges to their stages; return a learner that is booked, too."""
    policy, world, judges = parts.policy, parts.world_model, getattr(parts.judge, "judges", (parts.judge,))
    policy.sample = clock.timed(POLICY, policy.sample)
    begin = world.begin

    def begun(*args: Any, **kwargs: Any) -> Any:
        dream = begin(*args, **kwargs)
        dream.play = clock.timed(IMAGINE, dream.play)
        return dream
    world.begin = clock.timed(IMAGINE, begun)
    for kind in {type(judge) for judge in judges}:
        kind.score = clock.timed(JUDGE, kind.score)
    learner = parts.learner(None)
    learner.update = clock.timed(LEARN, learner.update)
    return learner


def held_out_groups(config: type, select: int, promotion: int) -> dict[str, Any]:
    """Return the numbers of held-out groups, under the names that a tree has for them: earlier ones said dreams."""
    new = "select_groups" in getattr(config, "__dataclass_fields__", {})
    names = ("select_groups", "promotion_groups") if new else ("select_dreams", "gate_dreams")
    return dict(zip(names, (select, promotion), strict=True))


def session(scene_name: str, updates: int, seed: int) -> dict[str, Any]:
    """Run one session in this process; return its processor seconds by stage and what it came to."""
    from world_gymnast_ros import seeds
    from world_gymnast_ros.adaptation.config import AdaptNodeConfig
    from world_gymnast_ros.adaptation.log import read_session
    from world_gymnast_ros.adaptation.session import adapt
    from world_gymnast_ros.twin.environment import TwinEnvironment
    from world_gymnast_ros.twin.scene import load_scene
    from world_gymnast_ros.updates.adaptation import load_parts, session_config

    scene = load_scene(scene_name)
    words = scene.instructions[0]
    environment = TwinEnvironment(scene)
    try:
        starts = [environment.reset(s, words) for s in seeds.captures(4)]
    finally:
        environment.close()
    config = AdaptNodeConfig(budget_s=1e6, max_updates=updates, groups_per_update=1, evaluate_every=updates,
                             **held_out_groups(AdaptNodeConfig, 6, 8), solved_rate=1.0, max_rejection_rate=1.0,
                             max_idle_updates=10**6)
    parts = load_parts(config)
    config = session_config(config, [words], parts.release)
    clock = Clock()
    learner = instrument(parts, clock)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "session.jsonl"
        clock.reset()
        report = adapt(parts.policy, parts.world_model, parts.judge, learner, starts, config, seed, time.process_time,
                       log_path=log)
        seconds = clock.total()
        events = read_session(log)
    held_out = [e for e in events if e["event"] == "held_out"]
    gate = next((e for e in events if e["event"] in ("promotion_test", "gate")), {})
    return {"scene": scene_name, "updates": updates, "seconds": {s: seconds.get(s, 0.0) for s in STAGES},
            "held_out_s": report.seconds.get("held-out evaluation", 0.0), "outcome": str(report.outcome.value),
            "rates": [e["rate"] for e in held_out], "scores": [e["mean_score"] for e in held_out],
            "rewards": [e["rewards"] for e in events if e["event"] == "group"],
            "before": gate.get("success_before", []), "after": gate.get("success_after", [])}


def run_in(tree: Path, scene: str, threads: int, updates: int, seed: int, no_bf16: bool) -> dict[str, Any]:
    """Run one session in a process that imports the package from `tree`."""
    env = dict(os.environ, PYTHONPATH=str(tree), OMP_NUM_THREADS=str(threads), **(NO_BF16 if no_bf16 else {}))
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", scene, "--updates", str(updates), "--seed",
               str(seed)]
    done = subprocess.run(command, env=env, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the session in {tree} failed:\n{done.stderr[-2000:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row | {"tree": tree.name, "threads": threads}


def by_stage(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean processor seconds of a session by stage, with sums."""
    n = max(len(rows), 1)
    out = {stage: sum(r["seconds"][stage] for r in rows) / n for stage in STAGES}
    out["imagine + judge + policy"] = out[IMAGINE] + out[JUDGE] + out[POLICY]
    out["session"] = sum(out[s] for s in STAGES)
    out["of which held-out"] = sum(r["held_out_s"] for r in rows) / n
    out["session per update"] = out["session"] / max(rows[0]["updates"], 1) if rows else 0.0
    return out


def table(rows: Sequence[dict[str, Any]], trees: Sequence[str]) -> str:
    """Format a table by stage and number of threads, of one tree or of two with their ratio."""
    lines = []
    for threads in sorted({r["threads"] for r in rows}):
        means = [by_stage([r for r in rows if r["tree"] == tree and r["threads"] == threads]) for tree in trees]
        lines += [f"{threads} thread{'s' * (threads > 1)}, processor s of a session:", "",
                  "| stage | " + " | ".join((*trees, "ratio")[:len(trees) + (len(trees) > 1)]) + " |",
                  "|---|" + "---|" * (len(trees) + (len(trees) > 1))]
        for name in means[0]:
            ratio = f" {means[0][name] / max(means[-1][name], 1e-9):.2f} |" if len(trees) > 1 else ""
            lines.append(f"| {name} | " + " | ".join(f"{m[name]:.2f}" for m in means) + f" |{ratio}")
        lines.append("")
    return "\n".join(lines)


def paired(rows: Sequence[dict[str, Any]], trees: Sequence[str]) -> str:
    """Say how held-out rollouts of the base came out in both trees, and what the sessions came to."""
    cells = [0, 0, 0, 0]
    far: list[float] = []
    lines = []
    for scene in dict.fromkeys(r["scene"] for r in rows):
        a, b = (next(r for r in rows if r["tree"] == tree and r["scene"] == scene) for tree in trees)
        pairs = [(x, y) for u, v in zip(a["before"], b["before"], strict=False) for x, y in zip(u, v, strict=True)]
        for x, y in pairs:
            cells[2 * x + y] += 1
        far += [abs(x - y) for x, y in zip(*(r["rewards"][0] for r in (a, b)), strict=True)
                if x is not None and y is not None]
        lines.append(f"{scene}: {a['outcome']} | {b['outcome']}; held-out rate {a['rates']} | {b['rates']}, mean score "
                     f"{[round(s, 3) for s in a['scores']]} | {[round(s, 3) for s in b['scores']]}; gate after "
                     f"{_rate(a['after'])} | {_rate(b['after'])}")
    lines.append(f"base, paired held-out rollouts: both succeed {cells[3]}, {trees[0]} alone {cells[2]}, {trees[1]} "
                 f"alone {cells[1]}, both fail {cells[0]}")
    if far:
        lines.append(f"rewards of the first group, largest difference {max(far):.4f}, mean {sum(far) / len(far):.4f}")
    return "\n".join(lines)


def _rate(success: Sequence[Sequence[bool]]) -> str:
    flat = [x for row in success for x in row]
    return f"{sum(flat)}/{len(flat)}"


def main() -> None:
    """Run the sessions and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), help="twin scenes (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=2, help="of each session (default: %(default)s)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--repeats", type=int, default=1, help="of everything (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", type=Path, help="another checkout, run in turn with this one")
    parser.add_argument("--no-bf16", action="store_true", help="switch the processor's bf16 units off")
    parser.add_argument("--out", type=Path, help="file for the rows, JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(session(args.worker, args.updates, args.seed), default=lambda x: x.tolist()))
        return
    here = Path(__file__).resolve().parents[1]
    trees = [args.against.resolve(), here] if args.against else [here]
    names = [tree.name for tree in trees]
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        for _ in range(args.repeats):
            for scene in args.scenes:
                for tree in trees:
                    rows.append(run_in(tree, scene, threads, args.updates, args.seed, args.no_bf16))
                    print(f"{scene}, {threads} threads, {tree.name}: {sum(rows[-1]['seconds'].values()):.1f} s",
                          file=sys.stderr, flush=True)
    print(table(rows, names))
    if len(trees) > 1:
        print(paired(rows, names))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
