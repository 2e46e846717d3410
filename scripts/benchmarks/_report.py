"""What every benchmark shares: rounds in rotated order, medians with their range, Markdown and JSON out.

Functions that are called in this process are a `Case`, and `main` is all that they need. Servers and other processes
have their rounds from `turns`, and their tables from `told`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attrs

#: What `--json` writes: {"case", "unit", "systems": {NAME: {"median", "min", "max"}}}.
Figures: TypeAlias = list[dict[str, Any]]
#: A value for each round, by system.
Table: TypeAlias = dict[str, list[float]]

#: One system's figure for one case, from one round, in the case's unit.
Measure = Callable[[], float]


@attrs.frozen
class Case:
    """name: what is measured. systems: who is measured; the first one is Zerver, the second one the yardstick."""

    name: str
    unit: str
    systems: Mapping[str, Measure]


def main(cases: Sequence[Case], description: str, packages: Sequence[str] = ("trio",)) -> None:
    """Measure every case and print it; `--json FILE` writes the figures as well. packages: whose versions count."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each system (medians are printed)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON too")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases whose name has this text")
    options = parser.parse_args()
    print(description)
    print_versions(packages, f"Medians (least-most) of {options.rounds} rounds.")
    figures: Figures = []
    for case in cases:
        if options.only in case.name:
            figures.append(_measure(case, options.rounds))
    write_json(options.json, figures)


def _measure(case: Case, rounds: int) -> dict[str, Any]:
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
    return figure(case.name, case.unit, results)


# ---- for processes --------------------------------------------------------------------------


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def print_versions(packages: Iterable[str], about: str) -> None:
    """The first line of a report: what was measured, with which machine."""
    there = [f"{name} {importlib.metadata.version(name)}" for name in sorted(set(packages)) if is_installed(name)]
    print(f"Python {platform.python_version()}, {platform.machine()}; {', '.join(there)}. {about}\n", flush=True)


def turns(systems: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """The number of the round, and who is next: all of them in each, in rotated order. Round -1 warms up."""
    names = list(systems)
    for number in range(-1, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            yield number, name


def told(case: str, tables: Mapping[tuple[str, str, int], Table]) -> Figures:
    """One case, printed as a table in Markdown. tables: by what it is, its unit, and how many digits it has.

    The first system is compared with the others. A ratio is the median of those of the rounds: what else the machine
    did then is in both.
    """
    names = list(next(iter(tables.values())))
    print(f"{case}\n\n| | {' | '.join(f'{about}, {unit}' for about, unit, _ in tables)} | {names[0]} is |")
    print("|---" * (len(tables) + 2) + "|")
    for name in names:
        cells = [ranged(table[name], digits) for (_, _, digits), table in tables.items()]
        ratios = [_ratio(table[names[0]], table[name]) for table in tables.values()]
        said = ", ".join(f"{ratio:.2f}x" for ratio in ratios) if name != names[0] else ""
        print(f"| {' | '.join([name, *cells, said])} |")
    print(flush=True)
    return [figure(f"{case}: {about}", unit, table) for (about, unit, _), table in tables.items()]


def _ratio(mine: Sequence[float], others: Sequence[float]) -> float:
    """inf when the other one has done nothing at all in a round, as when the disk stood still."""
    return statistics.median(one / other if other else float("inf") for one, other in zip(mine, others, strict=True))


def ranged(values: Sequence[float], digits: int) -> str:
    """The median, and the range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def figure(case: str, unit: str, table: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    about = {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in table.items()
    }
    return {"case": case, "unit": unit, "systems": about}


def write_json(file: str | None, figures: Figures) -> None:
    if file:
        Path(file).write_text(json.dumps(figures, indent=1))
