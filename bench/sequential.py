"""How often does `world-gymnast evaluate` err, and how soon does it stop? Simulated evaluations, looked at after every
pair.

    python bench/sequential.py                 10,000 evaluations without a true difference, 1,000 of each other kind
"""
from __future__ import annotations

import argparse

import numpy as np
from tqdm import tqdm

from world_gymnast_ros.evaluation.sequential_test import PairedTest
from world_gymnast_ros.statistics import wilson

SAME = (0.1, 0.3, 0.5, 0.8)
DIFFERENT = ((0.3, 0.5), (0.3, 0.6), (0.3, 0.75), (0.15, 0.6), (0.6, 0.3))


def simulate(base: float, adapter: float, evaluations: int, limit_pairs: int, seed: int
             ) -> tuple[dict[str, int], float]:
    """Return how often each decision was made, and the median number of pairs."""
    rng = np.random.default_rng((seed, round(1000 * base), round(1000 * adapter)))
    counts = {"better": 0, "worse": 0, "unclear": 0}
    pairs = []
    for _ in tqdm(range(evaluations), desc=f"{base:.0%} against {adapter:.0%}", leave=False):
        test = PairedTest(limit_pairs)
        while not test.decision:
            test.add(bool(rng.random() < base), bool(rng.random() < adapter))
        counts[test.decision] += 1
        pairs.append(len(test.outcomes))
    return counts, float(np.median(pairs))


def main() -> None:
    """Simulate and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--evaluations", type=int, default=10_000, help="without a difference, over all rates")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"| base | adapter | evaluations | better | worse | unclear after {args.pairs} | median pairs |\n"
          "|---|---|---|---|---|---|---|")
    wrong = total = 0
    for base, adapter in [(rate, rate) for rate in SAME] + list(DIFFERENT):
        count = args.evaluations // len(SAME) if base == adapter else args.evaluations // 10
        counts, pairs = simulate(base, adapter, count, args.pairs, args.seed)
        shares = " | ".join(f"{n / count:.1%}" for n in counts.values())
        print(f"| {base:.0%} | {adapter:.0%} | {count} | {shares} | {pairs:.0f} |", flush=True)
        if base == adapter:
            wrong, total = wrong + counts["better"] + counts["worse"], total + count
    print(f"\nwithout a true difference: {wrong} of {total} evaluations claimed one, {wilson(wrong, total)} "
          "(promised: at most 0.05)")


if __name__ == "__main__":
    main()
