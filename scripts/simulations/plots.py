"""Plots of the same runs, for the page on how admission decides.

Law: what is drawn is what is simulated, with the first seed; nothing is smoothed. matplotlib is loaded when somebody
asks for plots, and not before: the simulator needs the standard library and Zerver.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from scripts.simulations.figures import Measured, goodput, p99_ms, quantile
from scripts.simulations.scenario import Phase, Scenario
from scripts.simulations.world import Policy, Recording, simulate

Makers = Mapping[str, Callable[[Scenario, int], Policy]]

#: Offered loads of the sweep, as shares of the CPU.
LOADS: Final = (0.25, 0.5, 0.75, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
SEED: Final = 0
COLOURS: Final = {"none": "#999999", "fixed": "#d08770", "gradient2": "#5e81ac", "zerver": "#2e7d32"}


def draw(scenarios: Mapping[str, Scenario], makers: Makers, folder: Path) -> None:
    """Write the plots as SVG. Ends the program with a word when matplotlib is not there."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("plots need matplotlib, which is not installed: .venv/bin/pip install matplotlib")
    matplotlib.use("svg")
    # The same figures give the same bytes: no dates, no random ids.
    matplotlib.rcParams.update({"svg.hashsalt": "zerver", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3,
                                "axes.spines.top": False, "axes.spines.right": False})  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    makers = {name: make for name, make in makers.items() if name in COLOURS}
    for name, picture in (
        ("load", _by_load(scenarios["twice"], makers)),
        ("spike", _latencies(scenarios["spike"], makers, 0.25)),
        ("retry-storm", _goodputs(scenarios["retry-storm"], makers)),
        ("limit", _limit(scenarios["retry-storm"], makers["zerver"])),
        ("tenants", _tenants(scenarios["abuser"], makers)),
    ):
        picture.tight_layout()
        picture.savefig(folder / f"{name}.svg", metadata={"Date": None})
        print(folder / f"{name}.svg")


def _panels(count: int, height: float = 2.2, **sharing: Any) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    picture, panels = pyplot.subplots(count, 1, figsize=(7.2, height * count), squeeze=False, **sharing)
    return picture, [row[0] for row in panels]


def _by_load(scenario: Scenario, makers: Makers) -> Any:
    """Goodput, and how long interactive calls take, by what is offered."""
    picture, (above, below) = _panels(2, sharex=True)
    for name, make in makers.items():
        goods, waits = [], []
        for load in LOADS:
            played = attrs.evolve(scenario, seconds=20.0, window=(5.0, 20.0), phases=(Phase(at=0.0, load=load),))
            recording = simulate(played, make(played, SEED), SEED)
            goods.append(goodput(Measured(recording, recording)))
            waits.append(p99_ms(Measured(recording, recording), "interactive"))
        above.plot(LOADS, goods, ".-", label=name, color=COLOURS[name])
        below.plot(LOADS, waits, ".-", label=name, color=COLOURS[name])
    above.set(ylabel="goodput, share of the CPU", xscale="log")
    below.set(ylabel="interactive p99, ms", xlabel="offered, times the CPU", yscale="log")
    below.set_xticks(LOADS, [f"{load:g}" for load in LOADS])
    below.minorticks_off()
    above.legend(frameon=False)
    return picture


def _latencies(scenario: Scenario, makers: Makers, width: float) -> Any:
    """p99 of interactive calls over time; a bin in which somebody was refused stands at the deadline."""
    picture, (panel,) = _panels(1, 3.0)
    flow = scenario.flows["interactive"]
    for name, make in makers.items():
        bins: defaultdict[int, list[float]] = defaultdict(list)
        for seed in range(5):  # as the scenario's own figure: one seed has too few calls in a bin
            for call in simulate(scenario, make(scenario, seed), seed).calls:
                if call.name == "interactive":
                    bins[int(call.called / width)].append(call.ended - call.called if call.ok else flow.deadline)
        moments = sorted(bins)[4:]
        slowest = [1000 * quantile(bins[moment], 0.99) for moment in moments]
        panel.plot([moment * width for moment in moments], slowest, label=name, color=COLOURS[name])
    panel.axvline(scenario.phases[1].at, color="black", linewidth=0.7, linestyle=":")
    panel.set(ylabel="interactive p99, ms", xlabel="seconds; from the dotted line on, 1.4 of the CPU is offered",
              yscale="log")  # fmt: skip
    panel.legend(frameon=False)
    return picture


def _goodputs(scenario: Scenario, makers: Makers) -> Any:
    """Goodput over time around a fault."""
    picture, (panel,) = _panels(1, 3.0)
    for name, make in makers.items():
        bins = [0.0] * int(scenario.seconds)
        for call in simulate(scenario, make(scenario, SEED), SEED).calls:
            if call.ok:
                bins[int(call.ended)] += call.cpu
        panel.step(range(len(bins)), bins, where="post", label=name, color=COLOURS[name])
    _shade(panel, scenario)
    panel.set(ylabel="goodput, share of the CPU", xlabel="seconds; the CPU is at a fifth in the shaded time")
    panel.legend(frameon=False)
    return picture


def _limit(scenario: Scenario, make: Callable[[Scenario, int], Policy]) -> Any:
    """What the limits and the queues of the design do around a fault."""
    recording = simulate(scenario, make(scenario, SEED), SEED)
    picture, (above, below) = _panels(2, sharex=True)
    for panel, word in ((above, "limit"), (below, "queued")):
        for gauge in [name for name in recording.gauges[0][1] if name.startswith(word)]:
            panel.plot(*_series(recording, gauge), label=gauge.removeprefix(f"{word} "))
        _shade(panel, scenario)
        panel.legend(frameon=False, loc="upper right")
    above.set(ylabel="runs at once, by level", yscale="log")
    below.set(ylabel="waiting, by class", xlabel="seconds; the CPU is at a fifth in the shaded time")
    return picture


def _tenants(scenario: Scenario, makers: Makers) -> Any:
    """Of the CPU that each tenant asks for, how much it is served."""
    picture, (panel,) = _panels(1, 2.6)
    for place, (name, make) in enumerate(makers.items()):
        recording = simulate(scenario, make(scenario, SEED), SEED)
        asked: defaultdict[str, float] = defaultdict(float)
        got: defaultdict[str, float] = defaultdict(float)
        for call in Measured(recording, recording).calls():
            asked[call.tenant] += call.cpu
            got[call.tenant] += call.cpu * call.ok
        names = sorted(asked, key=lambda tenant: (tenant != "abuser", int(tenant.partition("-")[2] or 0)))
        panel.bar([number + 0.2 * (place - 1.5) for number in range(len(names))],
                  [got[tenant] / asked[tenant] for tenant in names], 0.2, label=name, color=COLOURS[name])  # fmt: skip
        panel.set_xticks(range(len(names)), ["abuser", *map(str, range(1, len(names)))])
    panel.set(ylabel="served of asked", xlabel="tenants")
    panel.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return picture


def _series(recording: Recording, gauge: str) -> tuple[list[float], list[float]]:
    return [moment for moment, _ in recording.gauges], [gauges[gauge] for _, gauges in recording.gauges]


def _shade(panel: Any, scenario: Scenario) -> None:
    for fault in scenario.faults:
        panel.axvspan(fault.at, fault.end, color="black", alpha=0.08, linewidth=0)
