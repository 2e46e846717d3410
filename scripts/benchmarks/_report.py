"""What every benchmark shares: rounds in rotated order, medians with their range, Markdown and JSON out."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

import attrs

#: One system's figure for one case, from one round: smaller is better, in the case's unit.
Measure = Callable[[], float]


@attrs.frozen
class Case:
    """name: what is measured. systems: who is measured; the first one is Zerver, the second one the yardstick."""

    name: str
    unit: str
    systems: Mapping[str, Measure]
    smaller_is_better: bool = True


def main(cases: Sequence[Case], description: str) -> None:
    """Measure every case and print it; `--json FILE` writes the figures as well."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each system (medians are printed)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON too")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases whose name has this text")
    options = parser.parse_args()
    print(description)
    print(f"Python {platform.python_version()}, {platform.machine()}, {options.rounds} rounds, median (min-max)\n")
    figures = []
    for case in cases:
        if options.only in case.name:
            figures.append(_measure(case, options.rounds))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


def _measure(case: Case, rounds: int) -> dict[str, object]:
    names = list(case.systems)
    results: dict[str, list[float]] = {name: [] for name in names}
    for measure in case.systems.values():
        measure()  # warm-up
    for number in range(rounds):
        turn = number % len(names)  # rotated, so that nobody is always first after a pause
        for name in names[turn:] + names[:turn]:
            gc.collect()
            results[name].append(case.systems[name]())
    medians = {name: statistics.median(values) for name, values in results.items()}
    print(f"{case.name}  [{case.unit}]")
    width = max(map(len, names))
    for name in names:
        values = results[name]
        ratio = medians[names[0]] / medians[name]
        shown = f"  zerver is {ratio:.2f}x of it" if name != names[0] else ""
        print(f"  {name.ljust(width)}  {medians[name]:10.2f}  ({min(values):.2f}-{max(values):.2f}){shown}")
    print()
    sys.stdout.flush()
    return {
        "case": case.name,
        "unit": case.unit,
        "systems": {
            name: {"median": medians[name], "min": min(values), "max": max(values)} for name, values in results.items()
        },
    }
