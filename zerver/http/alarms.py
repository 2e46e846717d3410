"""Alarms: for deadlines that are nearly always put off, all those of a server together.

Law: to set an alarm and to take it back costs an entry in a table each, and neither a timer nor a task. A connection
does so for every request, and hardly ever does one ring; moving the deadline of a scope of Trio's, which keeps them in
a heap, cost a tenth of a small request. All who are given the same time are in the order of their deadlines, so one
task has only the first of each to look at. Precedent: the timer lists of libev's `ev_timer_again` and of nginx.

An alarm rings at its time if nothing has rung in the last 20 ms, and else up to 20 ms later, together with others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Final, Protocol

import trio

_TOGETHER_SECONDS: Final = 0.02
_AT_ONCE: Final = 16  # rung between two turns of the others


class Sleeper(Protocol):
    """Who sets alarms: one at a time."""

    def ring(self) -> None:
        """Its time is up. Must not raise."""
        ...


class Alarms:
    """Those of one server. The times that are asked for must be few: each has a table of its own."""

    def __init__(self) -> None:
        self._tables: dict[float, OrderedDict[Sleeper, float]] = {}  # by seconds: who, and when
        self._now = trio.lowlevel.current_clock().current_time  # `trio.current_time` goes through three calls to it
        self._next = inf  # when the task looks
        self._sooner = trio.Event()

    def set(self, sleeper: Sleeper, seconds: float) -> None:
        """Ring so many seconds from now, unless it is taken back."""
        table = self._tables.get(seconds)
        if table is None:
            table = self._tables[seconds] = OrderedDict()
        table[sleeper] = due = self._now() + seconds
        if due < self._next:
            self._next = due
            self._sooner.set()

    def take_back(self, sleeper: Sleeper, seconds: float) -> None:
        """Do not ring. seconds: as they were given to `set`. Nothing happens if it has rung."""
        self._tables[seconds].pop(sleeper, None)

    async def run(self) -> None:
        """Ring, until cancelled."""
        earliest = -inf
        while True:
            self._sooner = trio.Event()
            first = min((next(iter(table.values())) for table in self._tables.values() if table), default=inf)
            self._next = max(first, earliest)
            with trio.CancelScope(deadline=self._next):
                await self._sooner.wait()
                continue
            await self._ring_due()
            earliest = self._now() + _TOGETHER_SECONDS

    async def _ring_due(self) -> None:
        now, rung = self._now(), 0
        for table in list(self._tables.values()):
            while table:
                sleeper, due = next(iter(table.items()))
                if due > now:
                    break
                del table[sleeper]
                sleeper.ring()
                rung += 1
                if rung % _AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_alarms() -> AsyncIterator[Alarms]:
    """Alarms, and the task that rings them."""
    alarms = Alarms()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarms.run)
        yield alarms
        nursery.cancel_scope.cancel()
