"""Two versions in the same sessions: `python bench/paired_rows.py BEFORE AFTER`, files or folders of rows.

Prints, for each session that both have, true outcomes of base and adapter with each version, on the same episodes, and
the paired difference in points. An interval that holds 0 shows no change.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from world_gymnast_ros.benchmark.adaptation import Row, read_rows
from world_gymnast_ros.statistics import ab_row


def lines(before: list[Row], after: list[Row]) -> list[str]:
    """Return a Markdown table of the sessions that both have."""
    out = ["| scene, instruction | policy | before | after | difference, points | updates | s |", "|" + "---|" * 7]
    later = {row.key: row for row in after}
    for row in before:
        if (other := later.get(row.key)) is None:
            continue
        for policy, a, b in (("base", row.before, other.before), ("adapted", row.after, other.after)):
            d = ab_row("", a, b).difference
            cost = (f"{row.updates}, {other.updates}", f"{row.seconds:.0f}, {other.seconds:.0f}")
            cells = (f"`{Path(row.scene).stem}`: {row.instruction}", policy, f"{sum(a)}/{len(a)}", f"{sum(b)}/{len(b)}",
                     f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]",
                     *(cost if policy == "adapted" else ("", "")))
            out.append(f"| {' | '.join(cells)} |")
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    print("\n".join(lines(read_rows(args.before), read_rows(args.after))))


if __name__ == "__main__":
    main()
