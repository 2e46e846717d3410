"""Metrics: what runs came to, in numbers that never go down.

Law: a listener of the recorder, off the request path: runs that are alike are counted by the group, any other one by
one pass over its records, and there is no other bookkeeping. Both ways come to the same numbers. Cardinality is
bounded, whatever strangers send: a name from outside has a series of its own while there is room, and is `other`
afterwards; a tenant has one only where the operator has said for how many.

What the runtime is doing now is not in the records: it is read when somebody asks, from whoever was given to `watch`.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core import tracing
from zerver.core.calls import Call
from zerver.core.effects import Cancelled, Failure, Success, Unknown
from zerver.core.joins import Join
from zerver.core.tickets import Refusal
from zerver.core.timeline import Timeline
from zerver.runtime.result import Result
from zerver.trace.batch import Alike, Batch
from zerver.trace.facts import is_timeout
from zerver.trace.telemetry import instruments as i
from zerver.trace.telemetry.instruments import Distribution, Exemplar, Family, Instrument, MetricsSnapshot, Number

#: What is counted for all that have no series of their own.
OTHER: Final = "other"

_MOST_ROUTES: Final = 500
_MOST_NAMES: Final = 500  # of effects' kinds, and of steps that overrun
_NOTABLE: Final = 100  # runs that a tenant must have made before it gets a name of its own

#: The methods that semantic conventions know; any other one is `_OTHER`, as a mount is asked with whatever comes.
OTHER_METHOD: Final = "_OTHER"
_METHODS: Final = frozenset(["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"])

_OUTCOMES: Final[dict[type, str]] = {
    Success: "success",
    Failure: "failure",
    Unknown: "unknown",
    Cancelled: "cancelled",
}
_ACCOUNTS: Final = ("admission", "turn", "cpu", "io", "parked")
_ENDS: Final = frozenset([t.SETTLED, t.LATE, t.CUT])
_FURTHER: Final = {t.ATTEMPT: i.RETRIES, t.HEDGED: i.HEDGES}

#: What an exemplar is made of when somebody looks: nanoseconds since 1970, the run, and of which trace it says it is.
_Stamp: TypeAlias = tuple[int, str, str]


class Metrics:
    """Counts runs. To be given to a recorder; used on its thread alone.

    tenants: how many may have series of their own; 0 for none. clock: nanoseconds since 1970.
    """

    def __init__(self, *, tenants: int = 0, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._began = clock()
        self._sources: list[Callable[[], Iterable[Family]]] = []
        self._counters: dict[Instrument, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[Instrument, dict[tuple[str, ...], _Histogram]] = {}
        self._routes: dict[tuple[str, str], _RouteSeries] = {}
        self._route_names = _Names(_MOST_ROUTES)
        self._kinds: dict[str, _KindSeries] = {}
        self._steps = _Names(_MOST_NAMES)
        self._tenants = _Notable(tenants, _NOTABLE)

    def take(self, results: Sequence[Result]) -> None:
        """Count runs that have ended: some microseconds for each group, and for each run that is in none."""
        at, batch = self._clock(), Batch.of(results)
        for group in batch.alike:
            self._count_alike(group, at)
        for result in batch.others:
            self._count(result, at)

    def watch(self, source: Callable[[], Iterable[Family]]) -> None:
        """Ask this one too at each snapshot, as `lambda: runtime_families(runtime.statistics())`."""
        self._sources.append(source)

    def snapshot(self) -> MetricsSnapshot:
        """All of it, as it is now, in the order of the declarations."""
        made: dict[str, Family] = {}
        for instrument, numbers in self._counters.items():
            points = tuple(Number(labels, value) for labels, value in numbers.items())
            made[instrument.name] = Family(instrument, points)
        for instrument, histograms in self._histograms.items():
            frozen = tuple(histogram.frozen(labels) for labels, histogram in histograms.items())
            made[instrument.name] = Family(instrument, frozen)
        for source in self._sources:
            made |= {family.instrument.name: family for family in source()}
        ordered = tuple(made[name] for name in i.INSTRUMENTS if name in made and made[name].points)
        return MetricsSnapshot(self._began, self._clock(), ordered)

    # -- counting --

    def _count_alike(self, group: Alike, at: int) -> None:
        """Runs that were done, of which there is nothing to tell but how long they took."""
        timeline, runs, shape = group.timeline, group.runs, group.shape
        series = self._of_route(timeline)
        self._add(i.RUNS, (series.route, series.class_, "done"), len(runs))
        for _ in runs if self._tenants.most else ():
            self._add(i.TENANT_RUNS, (self._tenants.name(timeline.tenant), "done"))
        for account, ns in group.totals().items():
            self._add(i.RUN_TIME, (series.route, account), ns / 1e9)
        series.queue.extend(group.spent("admission"), runs, at)
        series.turn.extend(group.spent("turn"), runs, at)
        series.duration.extend(group.took, runs, at)
        for name, (asked, settled) in zip(group.effects, shape.effects, strict=True):
            of_kind = self._of_kind(name)
            self._add(i.EFFECTS, (of_kind.name, "success"), len(runs))
            of_kind.duration.extend(group.between(asked, settled), runs, at)
        if group.http is not None and series.method:
            self._of_answer(series, group.http).extend(group.took, runs, at)

    def _count(self, result: Result, at: int) -> None:
        timeline = result.timeline
        if not timeline.records:
            return
        series = self._of_route(timeline)
        stamp: _Stamp = (at, result.run_id, timeline.parent)
        self._add(i.RUNS, (series.route, series.class_, result.status))
        if self._tenants.most:
            self._add(i.TENANT_RUNS, (self._tenants.name(timeline.tenant), result.status))
        if result.unresolved:
            self._add(i.UNRESOLVED, (series.route,), len(result.unresolved))
        accounts = timeline.accounts
        series.queue.add(accounts.admission, stamp)
        if result.status != "refused":  # it took no time, and would make a bad hour look like a quick one
            series.duration.add(accounts.total - accounts.parked, stamp)
            series.turn.add(accounts.turn, stamp)
        for name in _ACCOUNTS:
            ns = getattr(accounts, name)
            if ns:
                self._add(i.RUN_TIME, (series.route, name), ns / 1e9)
        self._walk(timeline, series, stamp)

    def _walk(self, timeline: Timeline, series: _RouteSeries, stamp: _Stamp) -> None:
        """What single records say. A join is counted by its members."""
        asked: dict[Call, int] = {}
        for kind, at, subject, detail in timeline.records:
            if kind == t.ASKED:
                asked[subject] = at
            elif kind in _ENDS:
                began = asked.pop(subject, None)
                if began is not None and not isinstance(subject.effect, Join):
                    of_kind = self._of_kind(subject.effect.kind.name)
                    outcome = "cancelled" if kind == t.CUT else _OUTCOMES.get(type(detail), OTHER)
                    self._add(i.EFFECTS, (of_kind.name, outcome))
                    of_kind.duration.add(at - began, stamp)
            elif kind in _FURTHER:
                self._add(_FURTHER[kind], (self._of_kind(subject.effect.kind.name).name,))
            elif kind == t.FAILED:
                name = (self._of_kind(subject.effect.kind.name).name,)
                self._add(i.FAILURES, name)
                if is_timeout(detail[1]):
                    self._add(i.TIMEOUTS, name)
            elif kind == t.REFUSED:
                reason = detail.reason if isinstance(detail, Refusal) else OTHER
                self._add(i.REFUSALS, (series.route, series.class_, reason))
            elif kind == t.OVERRUN:
                step = (timeline.flow, str(detail.step))
                self._add(i.OVERRUNS, step if self._steps.has_room_for(step) else (OTHER, OTHER))
            elif kind == t.ANSWERED and series.method:
                self._of_answer(series, detail).add(at - timeline.records[0][1], stamp)

    def _add(self, instrument: Instrument, labels: tuple[str, ...], by: float = 1) -> None:
        numbers = self._counters.setdefault(instrument, {})
        numbers[labels] = numbers.get(labels, 0) + by

    # -- series, which are looked up once --

    def _of_route(self, timeline: Timeline) -> _RouteSeries:
        label, class_ = timeline.label, timeline.priority
        known = self._routes.get((label or timeline.flow, class_))
        if known is not None:
            return known
        method, path = _method_and_path(label)
        route = f"{method} {path}" if method else label or timeline.flow
        if not self._route_names.has_room_for(route):
            route, path = OTHER, OTHER
        made = _RouteSeries(
            route,
            class_,
            method,
            path,
            duration=self._histogram(i.RUN_DURATION, (route, class_)),
            queue=self._histogram(i.QUEUE_WAIT, (route, class_)),
            turn=self._histogram(i.TURN_WAIT, (route, class_)),
        )
        if len(self._routes) < 4 * _MOST_ROUTES:  # strangers may invent methods, and these are labels too
            self._routes[label or timeline.flow, class_] = made
        return made

    def _of_answer(self, series: _RouteSeries, http: int) -> _Histogram:
        status = str(http)
        return self._histogram(i.HTTP_DURATION, (series.method, series.path, status, status if http >= 500 else ""))

    def _of_kind(self, name: str) -> _KindSeries:
        known = self._kinds.get(name)
        if known is None:
            shown = name if len(self._kinds) < _MOST_NAMES else OTHER
            known = _KindSeries(shown, self._histogram(i.EFFECT_DURATION, (shown,)))
            if shown == name:
                self._kinds[name] = known
        return known

    def _histogram(self, instrument: Instrument, labels: tuple[str, ...]) -> _Histogram:
        by_labels = self._histograms.setdefault(instrument, {})
        known = by_labels.get(labels)
        if known is None:
            known = by_labels[labels] = _Histogram(instrument.bounds)
        return known


class _Histogram:
    """One series, of times in nanoseconds. exemplars: for each bucket the last, and what is to be told of its run."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = [round(bound * 1e9) for bound in bounds]
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0
        self._exemplars: list[tuple[int, _Stamp] | None] = [None] * (len(bounds) + 1)

    def add(self, ns: int, stamp: _Stamp) -> None:
        bucket = bisect_left(self._bounds, ns)  # a bound belongs to the bucket below it
        self._counts[bucket] += 1
        self._sum += ns
        self._exemplars[bucket] = (ns, stamp)

    def extend(self, times: Sequence[int], runs: Sequence[Result], at: int) -> None:
        """Add those of several runs, as `add` would one after the other."""
        self._sum += sum(times)
        ordered = sorted(times)
        below = 0
        while below < len(ordered):
            bucket = bisect_left(self._bounds, ordered[below])
            within = len(ordered)
            if bucket < len(self._bounds):
                within = bisect_right(ordered, self._bounds[bucket], below)
            self._counts[bucket] += within - below
            last = _last_between(times, ordered[below], ordered[within - 1])
            self._exemplars[bucket] = (times[last], (at, runs[last].run_id, runs[last].timeline.parent))
            below = within

    def frozen(self, labels: tuple[str, ...]) -> Distribution:
        exemplars = tuple(None if one is None else _exemplar(*one) for one in self._exemplars)
        return Distribution(labels, tuple(self._counts), self._sum / 1e9, exemplars)


def _last_between(times: Sequence[int], least: int, most: int) -> int:
    """The place of the last one of these that is neither less nor more; there is one."""
    place = len(times) - 1
    while not least <= times[place] <= most:
        place -= 1
    return place


@attrs.frozen(eq=False)
class _RouteSeries:
    """Of one route and class. method: "" for runs that did not come over HTTP."""

    route: str
    class_: str
    method: str
    path: str
    duration: _Histogram
    queue: _Histogram
    turn: _Histogram


@attrs.frozen(eq=False)
class _KindSeries:
    name: str
    duration: _Histogram


# ---- bounds on what comes from outside ------------------------------------------------------


class _Names:
    """So many names; what comes later is one of the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[Hashable] = set()

    def has_room_for(self, name: Hashable) -> bool:
        if name not in self._known and len(self._known) < self._most:
            self._known.add(name)
        return name in self._known


class _Notable:
    """Tenants with a name of their own: the first so many that have come to a hundred runs, and for good.

    Who has most runs now would change from one look to the next, and its counters and those of the others would go down
    whenever it does. Those who are on their way there are counted too, and of these the one longest unseen is forgotten
    first: a stranger who makes up a tenant for each request pushes out nobody who comes again.
    """

    def __init__(self, most: int, notable: int) -> None:
        self.most = most
        self._notable = notable
        self._named: set[str] = set()
        self._runs: OrderedDict[str, int] = OrderedDict()

    def name(self, tenant: str) -> str:
        """What it is counted as."""
        if tenant in self._named:
            return tenant
        if len(self._named) < self.most:
            runs = self._runs.pop(tenant, 0) + 1
            if runs >= self._notable:
                self._named.add(tenant)
                return tenant
            self._runs[tenant] = runs
            if len(self._runs) > 10 * self.most + _MOST_NAMES:
                self._runs.popitem(last=False)
        return OTHER


def _method_and_path(label: str) -> tuple[str, str]:
    """Of a label that an edge has given, as "POST /v2/checkout"; "" and "" for any other."""
    method, space, path = label.partition(" ")
    if not space or not path.startswith("/"):
        return "", ""
    return method if method in _METHODS else OTHER_METHOD, path


def _exemplar(ns: int, stamp: _Stamp) -> Exemplar:
    at, run_id, parent = stamp
    return Exemplar(ns / 1e9, at, run_id, tracing.trace_id(run_id, parent), tracing.root_span_id(run_id))
