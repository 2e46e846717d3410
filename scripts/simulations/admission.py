"""Admission on a virtual clock: every scenario, every policy, five seeds: the design must keep to what is allowed.

Law: the same command prints the same figures. The design is `zerver.core` itself. A scenario that an ablation passes
too says so: it proves nothing. A design that failed on the way must fail still, or the scenario has gone blind.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import attrs

from scripts.simulations import hedging
from scripts.simulations.design import DESIGN, FAILED
from scripts.simulations.figures import Measured, measure
from scripts.simulations.policies import Fixed, Gradient2, Nothing
from scripts.simulations.scenario import Phase, Scenario, TenantSpec, load_all
from scripts.simulations.world import Policy, merged, simulate

SEEDS: Final = 5
FEWER: Final = 2  # seeds of those that are only beside it
IDLE_SECONDS: Final = 240.0  # enough for a p99 of the rarest flow

ABLATIONS: Final[Mapping[str, Callable[[Scenario, int], Policy]]] = {
    "none": lambda scenario, seed: Nothing(),
    "fixed": lambda scenario, seed: Fixed(),
    "gradient2": lambda scenario, seed: Gradient2(),
}
POLICIES: Final = {**ABLATIONS, "zerver": DESIGN, **FAILED}


@attrs.frozen
class Range:
    """One figure over the seeds."""

    low: float
    high: float
    allowed: tuple[float, float]

    @property
    def ok(self) -> bool:
        return self.allowed[0] <= self.low and self.high <= self.allowed[1]


@attrs.frozen
class Line:
    """How one policy did in one scenario."""

    scenario: str
    policy: str
    figures: Mapping[str, Range]

    @property
    def ok(self) -> bool:
        return all(figure.ok for figure in self.figures.values())


def idle(scenario: Scenario) -> Scenario:
    """The same flows on a worker with next to nothing to do."""
    return attrs.evolve(
        scenario,
        seconds=IDLE_SECONDS,
        window=(0.0, IDLE_SECONDS),
        tenants=(TenantSpec(),),
        phases=(Phase(at=0.0, load=0.05),),
        faults=(),
        retries=None,
    )


def play(scenario: Scenario, policy: str, seeds: Iterable[int]) -> list[Measured]:
    """What a policy makes of a scenario, by seed; one for all seeds where the scenario asks for it."""
    make = POLICIES[policy]
    recordings = [simulate(scenario, make(scenario, seed), seed) for seed in seeds]
    if scenario.pooled:
        recordings = [merged(recordings)]
    quiet = idle(scenario)
    compares = any("unloaded" in name for name in scenario.allowed)
    return [
        Measured(recording, simulate(quiet, make(quiet, recording.seed), recording.seed) if compares else recording)
        for recording in recordings
    ]


def judge(scenario: Scenario, policy: str, seeds: Iterable[int]) -> Line:
    """Play a scenario, and set its figures beside what is allowed."""
    measured = play(scenario, policy, seeds)
    figures: dict[str, Range] = {}
    for name, allowed in scenario.allowed.items():
        values = [measure(name, one) for one in measured]
        figures[name] = Range(min(values), max(values), allowed)
    return Line(scenario.name, policy, figures)


def contenders(scenario: Scenario) -> list[str]:
    """Who plays a scenario: the ablations, the design, and the designs that must fail it."""
    return [*ABLATIONS, "zerver", *scenario.failed]


# ---- printing -------------------------------------------------------------------------------


def rows(scenario: Scenario, lines: list[Line]) -> list[str]:
    """A scenario as text: a head, a line for each policy, and what it proves."""
    names = list(scenario.allowed)
    wide = [max(len(name), 15) for name in names]
    told = [f"{scenario.name}: {scenario.title}"]
    told.append("  " + " " * 16 + "  ".join(f"{name:>{width}}" for name, width in zip(names, wide, strict=True)))
    allowed = (_range(*scenario.allowed[name]) for name in names)
    told.append(f"  {'allowed':<16}" + "  ".join(f"{text:>{width}}" for text, width in zip(allowed, wide, strict=True)))
    for line in lines:
        cells = (
            f"{_range(figure.low, figure.high) + ('' if figure.ok else ' !'):>{width}}"
            for figure, width in zip(line.figures.values(), wide, strict=True)
        )
        told.append(f"  {line.policy:<16}" + "  ".join(cells) + ("  pass" if line.ok else "  fail"))
    passing = [line.policy for line in lines if line.ok and line.policy in ABLATIONS]
    if passing:
        told.append(f"  proves nothing: {', '.join(passing)} passes it too")
    return told


def _range(low: float, high: float) -> str:
    return _number(low) if low == high else f"{_number(low)}..{_number(high)}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ---- running --------------------------------------------------------------------------------


def problems(scenario: Scenario, lines: list[Line]) -> list[str]:
    """What in a scenario is not as it must be: for which the command ends with status 1."""
    found: list[str] = []
    for line in lines:
        if line.policy == "zerver":
            found += [
                f"{scenario.name}: zerver has {name} {_range(figure.low, figure.high)}"
                for name, figure in line.figures.items()
                if not figure.ok
            ]
        elif line.policy in FAILED and line.ok:
            found.append(f"{scenario.name}: {line.policy} passes, which failed on the way: the scenario has gone blind")
    return found


def hedges(seeds: int) -> Line:
    """What hedges are good for, and what they cost; see `hedging`."""
    measured = [hedging.compare(hedging.AFTER, seed) for seed in range(seeds)]
    figures = {}
    for name, allowed in hedging.ALLOWED.items():
        values = [one[name] for one in measured]
        figures[name] = Range(min(values), max(values), allowed)
    return Line("hedging", "zerver", figures)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/sim admission", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--scenario", action="append", choices=sorted(load_all()), help="only this one; may be repeated"
    )
    parser.add_argument("--policy", action="append", choices=sorted(POLICIES), help="only this one; may be repeated")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw instead of printing (needs matplotlib)")
    options = parser.parse_args()
    scenarios = load_all()
    if options.plots is not None:
        from scripts.simulations.plots import draw

        draw(scenarios, POLICIES, options.plots)
        return
    began, found, written = time.perf_counter(), [], []
    for name in options.scenario or scenarios:
        scenario = scenarios[name]
        players = [policy for policy in contenders(scenario) if not options.policy or policy in options.policy]
        seeds = {policy: options.seeds if policy == "zerver" else min(FEWER, options.seeds) for policy in players}
        lines = [judge(scenario, policy, range(seeds[policy])) for policy in players]
        print("\n".join(rows(scenario, lines)), end="\n\n", flush=True)
        found += problems(scenario, lines)
        written += [attrs.asdict(line) | {"pass": line.ok} for line in lines]
    if not options.scenario:
        line = hedges(options.seeds)
        told = (f"{name} {_range(one.low, one.high)} ({_range(*one.allowed)})" for name, one in line.figures.items())
        print(f"hedging: one reply in a hundred is a hundred times as long\n  {', '.join(told)}", end="\n\n")
        found += [] if line.ok else ["hedging: a figure is out of its range"]
        written.append(attrs.asdict(line) | {"pass": line.ok})
    if options.json is not None:
        options.json.write_text(json.dumps(written, indent=2), encoding="utf-8")
    print(f"{options.seeds} seeds, {time.perf_counter() - began:.0f} s")
    for problem in found:
        print(f"FAIL {problem}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
