"""A bounded number of connections, shared fairly: who gets which, who waits, what is closed. No database is known here.

Law: a place is held by one caller, or it is free; an idle connection fills a free place. Who waits is granted a place
by the scheduler call that also takes them out of the reach of cancellation, so none is lost between "granted" and
"received" (as in `zerver.http.pool`, which tells whose pools lose theirs).

- Waiting is by class (`zerver.core.queues`): interactive first, and nobody starves.
- Re-use is last in, first out: what the present load does not need grows old, and is closed.
- A connection lives at most `lifetime` seconds, give or take a tenth: a server behind a name that has moved, and
  the memory of long-lived backends, are left behind, and never by all connections at once.
- A new connection is made by whoever holds the place.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Generic, NoReturn, Protocol, TypeVar

import attrs
import trio

from zerver.core.priorities import Priority
from zerver.core.queues import ClassQueues
from zerver.errors import DriverClosed, InternalError


class Pooled(Protocol):
    """What can be pooled. born, used: when it was opened and used last, by Trio's clock. usable: fit for the next."""

    born: float
    used: float

    @property
    def usable(self) -> bool: ...

    def is_alive(self) -> bool:
        """A quick look, without waiting."""
        ...

    def close(self) -> None:
        """Close it, whatever its state. Waits for nothing."""
        ...


C = TypeVar("C", bound=Pooled)


@attrs.frozen
class PoolStatistics:
    """size: the most connections there may be. busy: places held, those just connecting included. idle: connections
    that wait to be used. waiting: callers without a place, by class: interactive, default, batch.
    """

    size: int
    busy: int
    idle: int
    waiting: tuple[int, int, int]


@attrs.define(eq=False)
class _Waiter:
    task: trio.lowlevel.Task
    granted: bool = False


class Pool(Generic[C]):
    """Places for connections. idle_seconds: for which one that is not needed is kept; the `least` newest stay."""

    def __init__(self, *, size: int, least: int, idle_seconds: float, lifetime: float, name: str) -> None:
        self._size = size
        self._least = least
        self._idle_seconds = idle_seconds
        self._lifetime = lifetime
        self._name = name
        self._busy = 0
        self._idle: deque[C] = deque()  # used longest ago first
        self._waiting: ClassQueues[_Waiter] = ClassQueues()
        self._ends: dict[C, float] = {}
        self._closed = False
        self._reaper = trio.lowlevel.ParkingLot()

    def statistics(self) -> PoolStatistics:
        """Counts at this moment."""
        return PoolStatistics(self._size, self._busy, len(self._idle), self._waiting.counts)

    async def acquire(self, priority: Priority) -> C | None:
        """Wait for a place, to be given back with `release`; and for its connection, None if there is to be a new one.

        A checkpoint only if it has to wait. Raises DriverClosed once closed.
        """
        if self._closed:
            raise DriverClosed(f"{self._name} is closed")
        if self._busy < self._size and not self._waiting:
            self._busy += 1
        else:
            await self._wait(priority)
        return next(self._living(), None)

    def release(self, connection: C | None) -> None:
        """Give back a place and its connection, if there is one; one that is not usable is closed."""
        if not self._busy:
            raise InternalError("a place in the pool was given back twice")
        self._busy -= 1
        if connection is not None:
            self._keep(connection)
        while self._waiting and self._busy < self._size:
            waiter = self._waiting.pop()
            waiter.granted = True
            self._busy += 1
            trio.lowlevel.reschedule(waiter.task)

    async def reap(self) -> NoReturn:
        """Close connections whose time is up. Runs until it is cancelled; sleeps while there is nothing to do."""
        while True:
            for connection in self._expired(trio.current_time()):
                self._idle.remove(connection)
                self._discard(connection)
            due = min((self._due(place, idle) for place, idle in enumerate(self._idle)), default=None)
            if due is None:
                await self._reaper.park()
            else:
                await trio.sleep_until(due)

    def close(self) -> None:
        """Close all that is idle, and send away all who wait; what is in use is closed when it is given back."""
        self._closed = True
        for waiter in self._waiting:
            trio.lowlevel.reschedule(waiter.task)
        self._waiting.clear()
        while self._idle:
            self._discard(self._idle.pop())

    async def _wait(self, priority: Priority) -> None:
        waiter = _Waiter(trio.lowlevel.current_task())
        self._waiting.add(waiter, priority)

        def leave(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(waiter, priority)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        if not waiter.granted:
            raise DriverClosed(f"{self._name} was closed before the call's turn came")

    # ---- nothing below waits ------------------------------------------------------------------

    def _living(self) -> Iterator[C]:
        """Take idle connections out, the newest first; those that are dead or too old are closed on the way."""
        while self._idle:
            connection = self._idle.pop()
            if trio.current_time() < self._ends[connection] and connection.is_alive():
                yield connection
            else:
                self._discard(connection)

    def _keep(self, connection: C) -> None:
        if connection not in self._ends:
            self._ends[connection] = connection.born + self._lifetime * random.uniform(0.9, 1.1)
        if self._closed or not connection.usable or trio.current_time() >= self._ends[connection]:
            self._discard(connection)
        else:
            self._idle.append(connection)
            if self._reaper:  # it waits for there to be one
                self._reaper.unpark()

    def _discard(self, connection: C) -> None:
        self._ends.pop(connection, None)
        connection.close()

    def _due(self, place: int, connection: C) -> float:
        """When an idle connection is to be closed; place: its own among the idle, 0 the oldest."""
        surplus = place < len(self._idle) - self._least
        return min(self._ends[connection], connection.used + self._idle_seconds if surplus else float("inf"))

    def _expired(self, now: float) -> list[C]:
        return [connection for place, connection in enumerate(self._idle) if self._due(place, connection) <= now]
