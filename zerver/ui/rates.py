"""Rates: how often each route and each tenant was asked in the last minute, and how long that took.

Law: a listener of the recorder: a few additions for each group of runs that are alike, or for each other run, and no
allocation that lasts.
Memory is bounded whatever names strangers send: the one that was asked least recently makes room.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from zerver.core import timeline as t
from zerver.core.timeline import Status, Timeline
from zerver.runtime import Result
from zerver.trace.batch import Batch

#: Seconds that are looked at, and so the length of a spark line.
WINDOW: Final = 60

_SAMPLES: Final = 500  # of the newest runs, for percentiles
_MOST_ROUTES: Final = 500
_MOST_TENANTS: Final = 500
_ERRORS: Final = frozenset({"failed", "defect", "deadline"})


class Rate:
    """What became of the runs of one name. flow: of the newest."""

    def __init__(self) -> None:
        self.flow = ""
        self._seconds: deque[list[int]] = deque()  # [second, count, errors, refused], in order
        self._took: deque[tuple[float, Sequence[int]]] = deque()  # (when, ns of each that ended then)
        self._many = 0  # of these

    def add(self, status: Status, took: Sequence[int], now: float) -> None:
        """Count runs that have just ended so. took: nanoseconds, of each."""
        second = int(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0, 0])
            self._forget(second)
        bucket = self._seconds[-1]
        bucket[1] += len(took)
        if status in _ERRORS:
            bucket[2] += len(took)
        if status == "refused":
            bucket[3] += len(took)
        else:
            self._took.append((now, took))
            self._many += len(took)
            while self._many - len(self._took[0][1]) >= _SAMPLES:
                self._many -= len(self._took.popleft()[1])

    def numbers(self, now: float, over: float) -> dict[str, Any]:
        """over: seconds that have been watched, if less than the window."""
        second = int(now)
        self._forget(second)
        spark = [0] * WINDOW
        for at, count, _, _ in self._seconds:
            spark[WINDOW - 1 - min(WINDOW - 1, max(0, second - at))] += count
        took = sorted([ns for at, many in self._took if now - at <= WINDOW for ns in many][-_SAMPLES:])
        count = sum(bucket[1] for bucket in self._seconds)
        return {
            "rate": count / max(1.0, min(WINDOW, over)),
            "count": count,
            "errors": sum(bucket[2] for bucket in self._seconds),
            "refused": sum(bucket[3] for bucket in self._seconds),
            "p50_ns": took[len(took) // 2] if took else None,
            "p99_ns": took[min(len(took) - 1, len(took) * 99 // 100)] if took else None,
            "spark": spark,
        }

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - WINDOW:
            self._seconds.popleft()


class Rates:
    """The rates of all routes and tenants. clock: seconds, any origin."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._began = clock()
        self._routes: OrderedDict[str, Rate] = OrderedDict()
        self._tenants: OrderedDict[str, Rate] = OrderedDict()

    def take(self, results: Sequence[Result], /) -> None:
        """Count runs that have ended."""
        now, batch = self._clock(), Batch.of(results)
        for group in batch.alike:
            self._add(group.timeline, "done", group.took, now)
        for result in batch.others:
            self._add(result.timeline, result.status, (took_ns(result),), now)

    def _add(self, timeline: Timeline, status: Status, took: Sequence[int], now: float) -> None:
        route = _named(self._routes, timeline.label or timeline.flow, _MOST_ROUTES)
        route.flow = timeline.flow
        route.add(status, took, now)
        _named(self._tenants, timeline.tenant, _MOST_TENANTS).add(status, took, now)

    def routes(self) -> list[dict[str, Any]]:
        """The busiest first."""
        return self._told(self._routes, "label")

    def tenants(self) -> list[dict[str, Any]]:
        """The busiest first."""
        return self._told(self._tenants, "name")

    def _told(self, rates: OrderedDict[str, Rate], key: str) -> list[dict[str, Any]]:
        now = self._clock()
        over = now - self._began
        told = [{key: name, "flow": rate.flow, **rate.numbers(now, over)} for name, rate in rates.items()]
        return sorted(told, key=lambda one: (-one["count"], one[key]))


def took_ns(result: Result) -> int:
    """Nanoseconds from a run's first record to its last, the time it was parked left out."""
    records = result.timeline.records
    if not records:
        return 0
    took = records[-1][1] - records[0][1]
    if any(record[0] == t.PARKED for record in records):
        took -= result.timeline.accounts.parked
    return took


def _named(rates: OrderedDict[str, Rate], name: str, most: int) -> Rate:
    rate = rates.get(name)
    if rate is None:
        rate = rates[name] = Rate()
        if len(rates) > most:
            rates.popitem(last=False)
    else:
        rates.move_to_end(name)
    return rate
