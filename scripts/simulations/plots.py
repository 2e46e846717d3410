"""Plots of the same runs, for the page on how admission decides.

Law: what is drawn is what is simulated, with the first seed; nothing is smoothed. A picture says what it shows without
the page around it, and can be read on a light page and on a dark one: it has no ground of its own, and no colour that
either would swallow. matplotlib is loaded when somebody asks for plots, and not before: the simulator needs the
standard library and Zerver.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from scripts.simulations.figures import Measured, goodput, p99_ms, served
from scripts.simulations.scenario import Phase, Scenario
from scripts.simulations.world import Policy, Recording, simulate

Makers = Mapping[str, Callable[[Scenario, int], Policy]]

#: Offered loads of the sweep, as shares of the CPU.
LOADS: Final = (0.25, 0.5, 0.75, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
SEED: Final = 0

# All of them at least 3:1 on white and on GitHub's #0d1117, which is what WCAG 2.1 §1.4.11 asks of a line.
INK: Final = "#7d8590"
NAMES: Final = {"none": "no admission", "fixed": "a cap of 100", "gradient2": "Gradient2", "zerver": "Zerver"}
COLOURS: Final = {"none": "#8b949e", "fixed": "#e0752d", "gradient2": "#3b82f6", "zerver": "#2da44e"}
CLASSES: Final = {"interactive": "#8957e5", "default": "#1393a8", "batch": "#bf8700"}


def draw(scenarios: Mapping[str, Scenario], makers: Makers, folder: Path) -> None:
    """Write the plots as SVG. Ends the program with a word when matplotlib is not there."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("plots need matplotlib, which is not installed: .venv/bin/pip install matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams.update(_STYLE)
    folder.mkdir(parents=True, exist_ok=True)
    makers = {name: makers[name] for name in NAMES}
    for name, picture in (
        ("load", _by_load(scenarios["twice"], makers)),
        ("fault", _through_a_fault(scenarios["retry-storm"], makers)),
        ("tenants", _tenants(scenarios["abuser"], makers)),
    ):
        file = folder / f"admission-{name}.svg"
        picture.savefig(file, metadata={"Date": None})
        file.write_text(_shorter(file.read_text(encoding="utf-8")), encoding="utf-8")
        print(file)


def _shorter(svg: str) -> str:
    """The same picture in fewer bytes: hundredths of a point are enough, and the reader's own sans-serif will do."""
    svg = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", svg)
    return re.sub(r"'DejaVu Sans'[^;\"]*", "sans-serif", svg)


# ---- the pictures ---------------------------------------------------------------------------


def _by_load(scenario: Scenario, makers: Makers) -> Any:
    """Goodput, and what becomes of interactive calls, by what is offered."""
    picture, (above, middle, below) = _panels(3, 2.1, sharex=True)
    ceiling: list[float] = []
    for name, make in makers.items():
        goods, wells, waits = [], [], []
        for load in LOADS:
            played = attrs.evolve(scenario, seconds=20.0, window=(5.0, 20.0), phases=(Phase(at=0.0, load=load),))
            recording = simulate(played, make(played, SEED), SEED)
            measured = Measured(recording, recording)
            goods.append(goodput(measured))
            wells.append(served(measured, "interactive"))
            waits.append(p99_ms(measured, "interactive"))
            if name == "zerver":
                ceiling.append(min(load, 1.0 - len(recording.arrivals) / played.seconds * played.ingress))
        for panel, values in ((above, goods), (middle, wells), (below, waits)):
            panel.plot(LOADS, values, label=NAMES[name], **_line(name))
    above.plot(LOADS, ceiling, ":", color=INK, linewidth=1.2, label="the most there is")
    _titled(above, "CPU spent on calls that were answered in time, of all the CPU", ylim=(0, 1.05), xscale="log")
    _titled(middle, "Interactive calls that were answered in time, of all of them", ylim=(0, 1.05))
    _titled(below, "Milliseconds until 99 % of those were answered", yscale="log",
            xlabel="offered load, in times of what the CPU can do; a fifth of it is interactive")  # fmt: skip
    below.set_xticks(LOADS, [f"{load:g}" for load in LOADS])
    _plain_ticks(below, (30, 100, 300, 1000))
    below.minorticks_off()
    _legend(picture, above)
    return picture


def _through_a_fault(scenario: Scenario, makers: Makers) -> Any:
    """What is served around a fault; and in the design, the limits and the queues."""
    picture, (above, middle, below) = _panels(3, 2.1, sharex=True)
    recordings = {name: simulate(scenario, make(scenario, SEED), SEED) for name, make in makers.items()}
    for name, recording in recordings.items():
        bins = [0.0] * int(scenario.seconds)
        for call in recording.calls:
            if call.ok:
                bins[int(call.ended)] += call.cpu
        above.step(range(len(bins)), bins, where="post", label=NAMES[name], **_line(name, marker=""))
    design = recordings["zerver"]
    for panel, word in ((middle, "limit"), (below, "queued")):
        for rank, (name, colour) in enumerate(CLASSES.items()):
            whom = ("interactive", "interactive and default", "all") if word == "limit" else tuple(CLASSES)
            panel.plot(*_series(design, f"{word} {name}"), color=colour, linewidth=1.3, label=whom[rank])
        panel.legend(frameon=False, loc="upper right", ncols=3, fontsize=8)
    for panel in (above, middle, below):
        for fault in scenario.faults:
            panel.axvspan(fault.at, fault.end, color=INK, alpha=0.18, linewidth=0)
    _titled(above, "CPU spent on calls that were answered in time, of all the CPU")
    _titled(middle, "Zerver: how many runs may be under way at once", yscale="log", ylim=(3.5, 60))
    _plain_ticks(middle, (4, 10, 20, 40))
    middle.minorticks_off()
    _titled(below, "Zerver: how many wait for a ticket",
            xlabel="seconds; in the grey ten the CPU does a fifth of what it did, and all try four times")  # fmt: skip
    _legend(picture, above)
    return picture


def _tenants(scenario: Scenario, makers: Makers) -> Any:
    """Of the CPU that each tenant asks for, how much it is served."""
    picture, (panel,) = _panels(1, 2.5)
    for place, (name, make) in enumerate(list(makers.items())[::-1]):
        recording = simulate(scenario, make(scenario, SEED), SEED)
        asked: defaultdict[str, float] = defaultdict(float)
        got: defaultdict[str, float] = defaultdict(float)
        for call in Measured(recording, recording).calls():
            asked[call.tenant] += call.cpu
            got[call.tenant] += call.cpu * call.ok
        parts = {tenant: got[tenant] / asked[tenant] for tenant in sorted(asked)}
        others = [part for tenant, part in parts.items() if tenant != "abuser"]
        panel.plot(others, [place] * len(others), "o", color=COLOURS[name], alpha=0.5, markersize=7, linestyle="none",
                   label="one of the nineteen others" if name == "zerver" else None)  # fmt: skip
        panel.plot([parts["abuser"]], [place], "X", color=INK, markersize=9, linestyle="none",
                   label="the one who asks for a hundred times as much" if name == "zerver" else None)  # fmt: skip
    panel.set_yticks(range(len(makers)), [NAMES[name] for name in list(makers)[::-1]])
    _titled(panel, "What each of twenty tenants is served, of what it asks for", xlim=(-0.02, 1.02), ylim=(-0.6, 3.6),
            xlabel="together they ask for five times what the CPU can do")  # fmt: skip
    _legend(picture, panel)
    return picture


# ---- how they look --------------------------------------------------------------------------

_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "zerver",  # the same figures give the same bytes: no dates, no random ids
    "svg.fonttype": "none",  # text stays text: to be found and read aloud, and a third of the bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _panels(count: int, height: float, **sharing: Any) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    picture, panels = pyplot.subplots(
        count, 1, figsize=(7.4, height * count + 0.4), squeeze=False, layout="constrained", **sharing
    )
    return picture, [row[0] for row in panels]


def _line(name: str, marker: str = ".") -> dict[str, Any]:
    """The design's line is the thick one, under those that it shares its way with."""
    ours = name == "zerver"
    return {"color": COLOURS[name], "marker": marker, "linewidth": 3.0 if ours else 1.3, "zorder": 2 if ours else 3}


def _titled(panel: Any, title: str, **settings: Any) -> None:
    panel.set(title=title, **settings)


def _plain_ticks(panel: Any, ticks: Sequence[float]) -> None:
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _legend(picture: Any, panel: Any) -> None:
    """One for the whole picture, above it."""
    picture.legend(*panel.get_legend_handles_labels(), frameon=False, ncols=5, loc="outside upper left", fontsize=8.5)


def _series(recording: Recording, gauge: str) -> tuple[list[float], list[float]]:
    return [moment for moment, _ in recording.gauges], [gauges[gauge] for _, gauges in recording.gauges]
