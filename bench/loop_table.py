"""One table of several runs of `world-gymnast iterate`: how far the loop is ahead of its baselines in all of them.

    python bench/loop_table.py runs/iterate/lab_* [--rounds] [--more 160] [--keep FILE]
    python bench/loop_table.py --rows docs/measured/loops.jsonl          # the published table again, from its outcomes

A baseline that was run in another folder is named behind the loop's: `runs/a,adaptation_only=runs/b`. Runs of one task
with several seeds are conditions of their own, put together below them. With --more every method's last adapter is
run in more true episodes, none of which the run has seen, and counts by all of its episodes; kept beside the run.
--keep writes every true outcome, one line per run and method.
"""
from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from world_gymnast_ros import seeds
from world_gymnast_ros.files import write_text
from world_gymnast_ros.report.loop_report import COLUMNS, rows_of
from world_gymnast_ros.statistics import Interval, paired_bootstrap
from world_gymnast_ros.twin.scene import load_scene
from world_gymnast_ros.updates.run import METHODS, cached

BASELINES = METHODS[1:]
MORE_SEED = seeds.EVALUATION.start + 1000


def read(argument: str) -> dict[str, Any]:
    """Return scene, instruction and results of a run, with methods of other runs where they are named."""
    first, *others = argument.split(",")
    table = of_folder(Path(first))
    for other in others:
        method, _, folder = other.partition("=")
        if method not in METHODS or not folder:
            raise SystemExit(f"'{other}' behind {first}: give METHOD=FOLDER, the method one of {', '.join(METHODS)}")
        found = of_folder(Path(folder))
        if (found["task"], found["seed"]) != (table["task"], table["seed"]):
            raise SystemExit(f"{folder} is a run of {found['task']}, seed {found['seed']}, {first} one of "
                             f"{table['task']}, seed {table['seed']}; name runs of one scene, instruction and seed")
        table["results"][method], table["folders"][method] = found["results"].get(method, []), Path(folder)
    lacking = [m for m in METHODS if not table["results"].get(m)]
    if lacking:
        raise SystemExit(f"{first} has no round of {', '.join(lacking)}; run it with --methods {' '.join(lacking)}, or "
                         f"name a run that has: {first},{lacking[0]}=FOLDER")
    return {**table, "results": cut(table["results"], first)}


def of_folder(run: Path) -> dict[str, Any]:
    """Return task, seed and the rows, round by round, of each method that a run folder holds."""
    try:
        told = json.loads((run / "run.json").read_text(encoding="utf-8"))
        config, scene = told["config"], told["environment"]
        start = json.loads((run / "round-0.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{run} is no run of `world-gymnast iterate` ({error})") from error
    results: dict[str, list[dict[str, Any]]] = {}
    for method in METHODS:
        rounds = sorted(run.glob(f"{method}/round-*/evaluation.json"), key=lambda p: int(p.parent.name.split("-")[1]))
        rows = [{"round": i, "method": method, **{f.stem: json.loads(f.read_text(encoding="utf-8"))
                                                  for f in path.parent.glob("*.json")}}
                for i, path in enumerate(rounds, 1)]
        if rows:
            results[method] = [start, *rows]
    words = config["instruction"]
    return {"task": f"`{scene}`: {words}", "seed": config["seed"], "results": results,
            "scene": scene, "instruction": words, "folders": dict.fromkeys(METHODS, run)}


def cut(results: dict[str, list[dict[str, Any]]], run: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rounds that all methods have; methods must have been evaluated on as many episodes."""
    counts = {m: len(outcomes(rows)) for m, rows in results.items()}
    if len(set(counts.values())) > 1:
        raise SystemExit(f"{run}: evaluated on {counts} episodes; compare runs with the same --evaluation")
    last = min(map(len, results.values()))
    return {m: rows[:last] for m, rows in results.items()}


def outcomes(rows: list[dict[str, Any]]) -> np.ndarray:
    """Return the true outcomes (E,) after the last round of `rows`, those of --more behind."""
    return np.array(rows[-1]["evaluation"]["outcomes"] + rows[-1].get("more", []), np.float64)


def last_adapter(rows: list[dict[str, Any]]) -> str:
    """Return the name of the adapter that the last round of `rows` left, '' for the base."""
    names = [r["validation"]["adapter"] if "validation" in r else r["learning"]["adapter"] for r in rows[1:]]
    return names[-1] if "validation" in rows[-1] else next((n for n in reversed(names) if n), "")


def run_more(table: dict[str, Any], count: int) -> None:
    """Put `count` more true outcomes of each method's last adapter into the last rows of `table`."""
    from world_gymnast_ros.evaluation.environment import outcomes
    from world_gymnast_ros.loading.load import load_policy
    from world_gymnast_ros.store import Store
    from world_gymnast_ros.twin.environment import TwinEnvironment

    def measure(folder: Path, adapter: str) -> dict[str, Any]:
        environment = TwinEnvironment(load_scene(table["scene"]))
        ref = Store(folder / "adapters").get(adapter) if adapter else None
        try:
            played = outcomes(environment, load_policy(), ref, range(MORE_SEED, MORE_SEED + count),
                              table["instruction"])
        finally:
            environment.close()
        return {"adapter": adapter, "outcomes": played}

    for method, rows in table["results"].items():
        folder, adapter = table["folders"][method] / method, last_adapter(rows)
        file = folder / f"more-{count}-after-{len(rows) - 1}.json"
        found = cached(file, lambda f=folder, a=adapter: measure(f, a))  # type: ignore[misc]
        if found["adapter"] != adapter:
            raise SystemExit(f"{file} is of '{found['adapter']}', the run ends with '{adapter}'; remove the file")
        rows[-1]["more"] = found["outcomes"]


def lines(tables: list[dict[str, Any]]) -> str:
    """Return every true outcome, one JSON object per run and method."""
    out = ""
    for t in sorted(tables, key=lambda t: (t["scene"], t["instruction"], t["seed"])):
        for method, rows in sorted(t["results"].items()):
            each = [[bool(o) for o in row["evaluation"]["outcomes"]] for row in rows]
            out += json.dumps({"scene": t["scene"], "instruction": t["instruction"], "method": method,
                               "seed": t["seed"], "start": each[0], "rounds": each[1:],
                               "more": rows[-1].get("more", [])}) + "\n"
    return out


def measured(file: Path) -> list[dict[str, Any]]:
    """Return the tables of outcomes that `lines` wrote."""
    tables: dict[tuple[str, str, int], dict[str, Any]] = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            r = json.loads(line)
            table = tables.setdefault((r["scene"], r["instruction"], r["seed"]), {
                "task": f"`{r['scene']}`: {r['instruction']}", "seed": r["seed"], "scene": r["scene"],
                "instruction": r["instruction"], "results": {}})
            rows = [{"evaluation": {"outcomes": some}} for some in (r["start"], *r["rounds"])]
            rows[-1]["more"] = r["more"]
            table["results"][r["method"]] = rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{file} does not hold outcomes as --keep writes them ({error!r})") from error
    for table in tables.values():
        if lacking := [m for m in METHODS if m not in table["results"]]:
            raise SystemExit(f"{file} has no outcomes of {', '.join(lacking)} for {table['task']}, seed "
                             f"{table['seed']}; every run needs all of {', '.join(METHODS)}")
        table["results"] = cut(table["results"], f"{file}, {table['task']}, seed {table['seed']}")
    return list(tables.values())


def points(change: Interval) -> str:
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def pooled(differences: list[np.ndarray], seed: int = 0, resamples: int = 4000) -> Interval:
    """Return the mean over runs of paired differences (E,), runs drawn again and episodes within each: two runs of one
    method differ by more than their episodes say."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        some = [differences[k] for k in rng.integers(0, len(differences), len(differences))]
        means.append(np.mean([d[rng.integers(0, len(d), len(d))].mean() for d in some]))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.mean([d.mean() for d in differences])), float(low), float(high), 0.95,
                    sum(map(len, differences)))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", nargs="*", metavar="RUN[,METHOD=RUN]",
                        help="a folder of a run; a baseline that was run in another folder is named behind it")
    parser.add_argument("--rounds", action="store_true", help="each run's own table too")
    parser.add_argument("--more", type=int, default=0, metavar="N", help="run each method's last adapter in N more "
                        "true episodes, and count by all of them")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write all true outcomes there, as JSON lines")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="read such a file in the place of run folders")
    args = parser.parse_args()
    if bool(args.runs) == bool(args.rows) or (args.rows and (args.rounds or args.more or args.keep)):
        parser.error("name run folders, or --rows FILE alone")
    tables = [read(run) for run in args.runs] or measured(args.rows)
    for table in tables if args.more else ():
        run_more(table, args.more)
    if args.keep:
        write_text(args.keep, lines(tables))
    if args.rounds:
        for task, count in Counter(t["task"] for t in tables).items():
            print(f"| {task} | {' | '.join(COLUMNS[1:])} |\n" + "|---" * len(COLUMNS) + "|")
            for table in (t for t in tables if t["task"] == task):
                which = f", seed {table['seed']}" if count > 1 else ""
                for method, *cells in rows_of(table["results"]):
                    print(f"| {method}{which} | {' | '.join(cells)} |")
            print()
    print(comparison(tables))


def comparison(tables: list[dict[str, Any]]) -> str:
    """Return the table of all runs: each, the seeds of a task together, the tasks of a seed together, and all."""
    seeds = Counter(t["task"] for t in tables)
    several = max(seeds.values()) > 1
    tasks = Counter(t["seed"] for t in tables) if several else Counter[int]()
    rows = ["| condition | start | loop | adaptation only | imitation | loop above it, points | above imitation |",
            "|---|---|---|---|---|---|---|",
            *(row(f"{t['task']}, seed {t['seed']}" if several else t["task"], [t]) for t in tables),
            *(row(f"{task}: mean of {count}", [t for t in tables if t["task"] == task])
              for task, count in seeds.items() if count > 1),
            *(row(f"seed {seed}: mean of {count}", [t for t in tables if t["seed"] == seed])
              for seed, count in sorted(tasks.items())),
            row(f"**mean of all {len(tables)}**", tables)]
    return "\n".join(rows)


def row(name: str, tables: list[dict[str, Any]]) -> str:
    """Return a line of the table: true success, the mean of `tables`, and how far the loop is ahead."""
    def mean(results: list[list[dict[str, Any]]]) -> str:
        return f"{np.mean([outcomes(rows).mean() for rows in results]):.3f}"

    def over(method: str) -> str:
        apart = [outcomes(t["results"]["loop"]) - outcomes(t["results"][method]) for t in tables]
        return points(pooled(apart) if len(apart) > 1 else paired_bootstrap(apart[0]))
    cells = [mean([t["results"]["loop"][:1] for t in tables]), *(mean([t["results"][m] for t in tables])
                                                                for m in METHODS), *(over(m) for m in BASELINES)]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
