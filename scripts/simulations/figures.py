"""Figures: what can be measured of a recording, by the names that scenarios use.

Law: a figure is a function of a recording and of the words after its name ("p99.interactive"). Calls count where they
began, CPU where it was spent; a call that was still open at the end counts nowhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs

from scripts.simulations.scenario import Scenario
from scripts.simulations.world import Call, Recording

BIN: Final = 0.25  # seconds of a bin of a spike
SLIDE: Final = 1.0  # seconds over which a share is taken while something recovers
INF: Final = float("inf")


@attrs.frozen
class Measured:
    """A recording, and the same policy's recording of a worker with nothing to do."""

    recording: Recording
    unloaded: Recording

    @property
    def scenario(self) -> Scenario:
        return self.recording.scenario

    def calls(self, name: str = "", start: float | None = None, end: float | None = None) -> list[Call]:
        """The calls that began in the window, or between two moments; of one flow, or of all."""
        after = self.scenario.window[0] if start is None else start
        before = self.scenario.window[1] if end is None else end
        return [
            call for call in self.recording.calls if after <= call.called < before and (not name or call.name == name)
        ]


Figure = Callable[..., float]
FIGURES: dict[str, Figure] = {}


def figure(function: Figure) -> Figure:
    FIGURES[function.__name__] = function
    return function


def measure(name: str, measured: Measured) -> float:
    """One figure by its full name. Raises KeyError for a name that is none."""
    word, *rest = name.split(".")
    return FIGURES[word](measured, *rest)


def quantile(values: Iterable[float], share: float) -> float:
    """The value that `share` of the values do not exceed; inf of none, for who served nobody was not quick."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else INF


# ---- goodput --------------------------------------------------------------------------------


def useful(measured: Measured, start: float, end: float) -> float:
    """CPU per second, of calls that ended well between two moments."""
    return sum(call.cpu for call in measured.recording.calls if call.ok and start <= call.ended < end) / (end - start)


@figure
def goodput(measured: Measured) -> float:
    """CPU of calls served in time, as a share of the CPU."""
    return useful(measured, *measured.scenario.window)


@figure
def goodput_of_ceiling(measured: Measured) -> float:
    """The same as a share of what arriving leaves: 1 - arrivals per second * ingress."""
    start, end = measured.scenario.window
    arrivals = sum(start <= arrived < end for arrived in measured.recording.arrivals)
    return goodput(measured) / (1 - arrivals / (end - start) * measured.scenario.ingress)


@figure
def fault_goodput_of_others(measured: Measured, name: str) -> float:
    """CPU of calls that began in the fault and were served, as a share of what they ask for; but one flow."""
    fault = measured.scenario.faults[0]
    calls = [call for call in measured.calls(start=fault.at, end=fault.end) if call.name != name]
    return sum(call.cpu for call in calls if call.ok) / sum(call.cpu for call in calls)


@figure
def fault_served(measured: Measured, name: str) -> float:
    """Calls that began in the fault and were served in time, as a share of these calls."""
    fault = measured.scenario.faults[0]
    calls = measured.calls(name, fault.at, fault.end)
    return sum(call.ok for call in calls) / len(calls)


@figure
def fault_goodput(measured: Measured) -> float:
    """CPU of calls served in time while the CPU was slow, as a share of what it then had."""
    fault = measured.scenario.faults[0]
    return useful(measured, fault.at, fault.end) / fault.factor


@figure
def fault_load(measured: Measured) -> float:
    """Attempts per call while something was wrong."""
    fault = measured.scenario.faults[0]
    attempts = sum(fault.at <= arrived < fault.end for arrived in measured.recording.arrivals)
    return attempts / len(measured.calls(start=fault.at, end=fault.end))


@figure
def recovery_s(measured: Measured) -> float:
    """Seconds from the end of a fault to the first second in which 95 % of the CPU asked for is served in time."""
    end, step = measured.scenario.faults[0].end, 0.25
    moment = end
    while moment + SLIDE <= measured.scenario.seconds - 2.0:
        calls = measured.calls(start=moment, end=moment + SLIDE)
        if sum(call.cpu for call in calls if call.ok) >= 0.95 * sum(call.cpu for call in calls):
            return moment - end
        moment += step
    return INF


# ---- classes --------------------------------------------------------------------------------


def p99_ms(measured: Measured, name: str) -> float:
    """From a call's first attempt to its answer, of those that were served."""
    return 1000 * quantile((call.ended - call.called for call in measured.calls(name) if call.ok), 0.99)


@figure
def p99_to_unloaded(measured: Measured, name: str) -> float:
    """The same, in times of what it is on an idle worker."""
    idle = Measured(measured.unloaded, measured.unloaded)
    return p99_ms(measured, name) / p99_ms(idle, name)


@figure
def p99_above_unloaded_ms(measured: Measured, name: str) -> float:
    return p99_ms(measured, name) - p99_ms(Measured(measured.unloaded, measured.unloaded), name)


@figure
def served(measured: Measured, name: str) -> float:
    """Calls served in time, as a share of calls."""
    calls = measured.calls(name)
    return sum(call.ok for call in calls) / max(1, len(calls))


@figure
def served_of_capacity(measured: Measured, name: str) -> float:
    """CPU of a flow's calls served in time, as a share of the CPU."""
    start, end = measured.scenario.window
    calls = [call for call in measured.recording.calls if call.name == name and call.ok and start <= call.ended < end]
    return sum(call.cpu for call in calls) / (end - start)


@figure
def least_cpu(measured: Measured, name: str, seconds: str = "10") -> float:
    """The smallest share of the CPU that a flow had in any of so many seconds, one after the other."""
    start, end = measured.scenario.window
    width = float(seconds)
    bins = [0.0] * int((end - start) / width)
    for moment, flow, _, spent in measured.recording.spent:
        place = int((moment - start) / width)
        if flow == name and moment >= start and place < len(bins):
            bins[place] += spent / width
    return min(bins)


@figure
def longest_wait_s(measured: Measured, name: str) -> float:
    """The longest that a call waited for its ticket, whatever became of it."""
    return max((call.waited for call in measured.calls(name)), default=0.0)


@figure
def expired(measured: Measured, name: str) -> float:
    """Calls that were queued in vain, as a share of those that were not refused at once."""
    calls = [call for call in measured.calls(name) if call.outcome != "refused"]
    return sum(not call.ok for call in calls) / max(1, len(calls))


@figure
def worst_bin(measured: Measured, name: str) -> float:
    """The highest p99 of a quarter of a second of the second phase, in times of the p99 before; of calls served."""
    scenario = measured.scenario
    spike, start = scenario.phases[1].at, scenario.window[0]
    before = quantile((c.ended - c.called for c in measured.calls(name, start, spike) if c.ok), 0.99)
    bins: defaultdict[int, list[float]] = defaultdict(list)
    for call in measured.calls(name, spike):
        if call.ok:
            bins[int((call.called - spike) / BIN)].append(call.ended - call.called)
    return max(quantile(values, 0.99) for values in bins.values()) / before


@figure
def demoted_s(measured: Measured, name: str) -> float:
    """Seconds until a flow that holds the CPU for too long is put a class down."""
    return min((moment for moment, gauges in measured.recording.gauges if f"demoted {name}" in gauges), default=INF)


# ---- tenants --------------------------------------------------------------------------------


def by_tenant(measured: Measured, only_served: bool, name: str = "") -> dict[str, float]:
    """CPU asked for, or served, by tenant; of one flow, or of all."""
    sums: defaultdict[str, float] = defaultdict(float)
    for call in measured.calls(name):
        sums[call.tenant] += call.cpu if call.ok or not only_served else 0.0
    return sums


def max_min(demands: dict[str, float], capacity: float, weights: dict[str, float]) -> dict[str, float]:
    """Who may have how much: nobody more than asked for, and what one leaves is shared by the others."""
    fair: dict[str, float] = {}
    left = dict(demands)
    while left:
        level = capacity / sum(weights[name] for name in left)
        content = [name for name, demand in left.items() if demand <= level * weights[name]]
        if not content:
            return fair | {name: level * weights[name] for name in left}
        for name in content:
            capacity -= left[name]
            fair[name] = left.pop(name)
    return fair


def weights_of(measured: Measured) -> dict[str, float]:
    return {name: tenant.weight for tenant in measured.scenario.tenants for name in tenant.names}


def shares_of_fair(measured: Measured, name: str = "") -> Sequence[float]:
    """What each tenant was served, in times of its max-min fair share of what was served at all."""
    demands, got = by_tenant(measured, False, name), by_tenant(measured, True, name)
    fair = max_min(demands, sum(got.values()), weights_of(measured))
    return [got[name] / fair[name] if fair[name] else 0.0 for name in demands]


@figure
def jain(measured: Measured, name: str = "") -> float:
    """Jain's index of served by fair share: 1 if all get the same of it, 1/n if one gets everything."""
    shares = shares_of_fair(measured, name)
    squares = sum(share**2 for share in shares)
    return sum(shares) ** 2 / len(shares) / squares if squares else 0.0


@figure
def unfairness(measured: Measured) -> float:
    """How far the tenant that is worst off, or best, is from its weighted fair share."""
    return max(abs(share - 1) for share in shares_of_fair(measured))


@figure
def served_tenants(measured: Measured, prefix: str, name: str = "") -> float:
    """CPU served, as a share of the CPU asked for by tenants whose names begin so."""
    demands, got = by_tenant(measured, False, name), by_tenant(measured, True, name)
    mine = [tenant for tenant in demands if tenant.startswith(prefix)]
    return sum(got[tenant] for tenant in mine) / sum(demands[tenant] for tenant in mine)
