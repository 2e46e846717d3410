"""A bounded number of connections, shared fairly: who gets which, who waits, what is closed.

Law: a slot is in exactly one place: idle in the pool, or held by one lease. What happens is decided in plain
functions that cannot be cut in half; only then does anything wait or close (httpcore's pool is built so, but
its waits are not: httpx 0.28 loses slots to cancellation until none is left, encode/httpcore#1093, #961, #830).

A wait has no moment between "granted" and "received". It is not an event plus a flag: being cancelled takes
the waiter out of the queue, being granted takes it out of the reach of cancellation, and both are one call
of Trio's scheduler.

- Waiting is by class (`zerver.core.queues`): interactive first, and nobody starves. Inside a class it is first come,
  first served, for each origin and between origins.
- Re-use is last in, first out: the connection used last is the least likely to be stale, and those that the
  present load does not need grow old and are closed.
- A new connection is made by its lease's holder: the pool knows no network.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final, Generic, NoReturn, TypeVar

import attrs
import trio

from zerver.core.priorities import Priority
from zerver.core.queues import ClassQueues, Shares
from zerver.errors import ConnectFailed, InternalError
from zerver.http.outgoing import Origin

C = TypeVar("C")

_CLOSE_SECONDS: Final = 1.0


@attrs.frozen
class OriginStatistics:
    """The connections of one origin. waiting: requests that wait for one; waiting_by_class: interactive, default,
    batch.
    """

    origin: Origin
    busy: int
    idle: int
    waiting: int
    waiting_by_class: tuple[int, int, int] = (0, 0, 0)


@attrs.frozen
class PoolStatistics:
    """busy: slots held by an exchange, those that are just connecting included. waiting: requests without a slot."""

    busy: int
    idle: int
    waiting: int
    origins: tuple[OriginStatistics, ...]


@attrs.define(eq=False)
class Lease(Generic[C]):
    """One slot, held. connection: None until its holder has made one.

    reused: whether it has served before, and may have been closed by the peer unseen. doomed: what had to go to make
    room for it: closed before it is used, so that limits hold.
    """

    connection: C | None
    reused: bool
    doomed: list[C]
    slots: _Slots[C]
    held: bool = True

    @property
    def origin(self) -> Origin:
        return self.slots.origin


@attrs.define(eq=False)
class _Slots(Generic[C]):
    """One origin's. idle: the oldest first."""

    origin: Origin
    busy: int = 0
    idle: deque[_Idle[C]] = attrs.field(factory=deque)
    waiting: ClassQueues[_Waiter[C]] = attrs.field(factory=ClassQueues)

    @property
    def unused(self) -> bool:
        return not (self.busy or self.idle or self.waiting)


@attrs.define(eq=False)
class _Idle(Generic[C]):
    connection: C
    slots: _Slots[C]
    expires: float


@attrs.define(eq=False)
class _Waiter(Generic[C]):
    ticket: int
    task: trio.lowlevel.Task
    lease: Lease[C] | None = None


class Pool(Generic[C]):
    """Leases of connections; made while Trio runs. is_alive: a quick look, without waiting. close: closes one, whatever
    its state.
    """

    def __init__(
        self,
        *,
        per_origin: int,
        total: int,
        idle_seconds: float,
        is_alive: Callable[[C], bool],
        close: Callable[[C], Awaitable[object]],
    ) -> None:
        self._per_origin = per_origin
        self._total = total
        self._idle_seconds = idle_seconds
        self._is_alive = is_alive
        self._close = close
        self._now = trio.lowlevel.current_clock().current_time  # half of what `trio.current_time` costs
        self._origins: dict[Origin, _Slots[C]] = {}
        self._idle: OrderedDict[_Idle[C], None] = OrderedDict()  # of all origins, the oldest first
        self._open = 0  # slots in use and idle
        self._waiting = 0
        self._tickets = count()
        self._shares = Shares()  # between origins; each origin's own are in its queues
        self._closed = False
        self._reaper = trio.lowlevel.ParkingLot()

    def statistics(self) -> PoolStatistics:
        """Counts at this moment; origins without connections and waiters are not kept."""
        origins = tuple(
            OriginStatistics(slots.origin, slots.busy, len(slots.idle), len(slots.waiting), slots.waiting.counts)
            for slots in self._origins.values()
        )
        return PoolStatistics(self._open - len(self._idle), len(self._idle), self._waiting, origins)

    # ---- acting -------------------------------------------------------------------------------

    async def acquire(self, origin: Origin, priority: Priority = "default") -> Lease[C]:
        """Wait for a slot. Give it back with `give_back`, whatever happens. Raises ConnectFailed once closed.

        A checkpoint only if it has to wait.
        """
        if self._closed:
            raise ConnectFailed(f"{origin}: the client is closed")
        slots = self._origins.get(origin) or self._new_slots(origin)
        # Nobody of this origin waits if there is a slot to be had; a newcomer must not overtake.
        lease = None if self._waiting and slots.waiting else self._decide(slots)
        if lease is None:
            lease = await self._wait(slots, priority)
        if lease.doomed:
            try:
                await self._close_all(lease.doomed)
            except BaseException:
                await self.give_back(lease, keep=False)
                raise
        return lease

    async def give_back(self, lease: Lease[C], *, keep: bool) -> None:
        """Return a slot; its connection is kept for the next request, or closed. Never raises Cancelled."""
        if not lease.held:
            raise InternalError("a lease was given back twice")
        lease.held = False
        connection = lease.connection
        try:
            if connection is not None and (not keep or self._closed):
                lease.connection = None
                await self._close_all([connection])
        finally:
            self._take_back(lease)

    async def renew(self, lease: Lease[C]) -> None:
        """Close a lease's connection and keep the slot. Never raises Cancelled."""
        connection, lease.connection, lease.reused = lease.connection, None, False
        if connection is not None:
            await self._close_all([connection])

    async def reap(self) -> NoReturn:
        """Close connections whose time is up. Runs until it is cancelled; sleeps while there is nothing to do."""
        while True:
            if not self._idle:
                await self._reaper.park()
            # None when the one that woke us is in use again. To park again then would be to be woken by each request of
            # those who ask for one thing after the other.
            first = next(iter(self._idle), None)
            await trio.sleep_until(trio.current_time() + self._idle_seconds if first is None else first.expires)
            await self._close_all(self._take_expired(trio.current_time()))

    async def aclose(self) -> None:
        """Close all that is idle; what is in use is closed when it is given back. Never raises Cancelled."""
        self._closed = True
        for slots in list(self._origins.values()):
            for waiter in slots.waiting:
                trio.lowlevel.reschedule(waiter.task)
            self._waiting -= len(slots.waiting)
            slots.waiting.clear()
            self._forget_unused(slots)
        await self._close_all(self._take_expired(float("inf")))

    async def _wait(self, slots: _Slots[C], priority: Priority) -> Lease[C]:
        waiter: _Waiter[C] = _Waiter(next(self._tickets), trio.lowlevel.current_task())
        slots.waiting.add(waiter, priority)
        self._waiting += 1

        def leave(_: object) -> trio.lowlevel.Abort:
            slots.waiting.remove(waiter, priority)
            self._waiting -= 1
            self._forget_unused(slots)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        if waiter.lease is None:
            raise ConnectFailed(f"{slots.origin}: the client was closed")
        return waiter.lease

    async def _close_all(self, connections: list[C]) -> None:
        for connection in connections:
            # `close` waits for nobody; the bound is for streams that do not keep their promises.
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self._close(connection)

    # ---- deciding: nothing below waits --------------------------------------------------------

    def _new_slots(self, origin: Origin) -> _Slots[C]:
        slots = self._origins[origin] = _Slots(origin)
        return slots

    def _decide(self, slots: _Slots[C]) -> Lease[C] | None:
        """A slot for the next request to this origin, or None when it must wait."""
        doomed: list[C] = []
        now = self._now()
        while slots.idle:
            newest = slots.idle[-1]
            connection = self._remove(newest)
            if newest.expires > now and self._is_alive(connection):
                return self._grant(slots, connection, doomed)
            doomed.append(connection)
        if slots.busy >= self._per_origin:
            return None
        if self._open >= self._total:
            if not self._idle:
                return None
            oldest = next(iter(self._idle))
            doomed.append(self._remove(oldest))
            self._forget_unused(oldest.slots)
        return self._grant(slots, None, doomed)

    def _grant(self, slots: _Slots[C], connection: C | None, doomed: list[C]) -> Lease[C]:
        slots.busy += 1
        self._open += 1
        return Lease(connection, connection is not None, doomed, slots)

    def _take_back(self, lease: Lease[C]) -> None:
        slots = lease.slots
        slots.busy -= 1
        self._open -= 1
        if lease.connection is not None:
            idle = _Idle(lease.connection, slots, self._now() + self._idle_seconds)
            slots.idle.append(idle)
            self._idle[idle] = None
            self._open += 1
            if self._reaper:
                self._reaper.unpark()
        if self._waiting:
            self._hand_out()
        self._forget_unused(slots)

    def _hand_out(self) -> None:
        """Give what there is to those who wait.

        An origin stands in line between the others with its highest class; when its turn comes, its own queues say who
        of its waiters goes. So a batch request whose share is due holds up nobody of another class.
        """
        queues = [slots for slots in self._origins.values() if slots.waiting]
        while queues:
            ranks = [slots.waiting.waiting[0] for slots in queues]
            rank = self._shares.choose(ranks)
            slots = min(
                (slots for slots, its in zip(queues, ranks, strict=True) if its == rank),
                key=lambda slots: slots.waiting.oldest(rank).ticket,
            )
            lease = self._decide(slots)
            if lease is None:  # this origin is at its limit; others may not be
                queues.remove(slots)
                continue
            self._shares.give(rank, ranks)
            waiter = slots.waiting.pop()
            self._waiting -= 1
            waiter.lease = lease
            trio.lowlevel.reschedule(waiter.task)
            if not slots.waiting:
                queues.remove(slots)

    def _take_expired(self, now: float) -> list[C]:
        expired: list[C] = []
        while self._idle and (oldest := next(iter(self._idle))).expires <= now:
            expired.append(self._remove(oldest))
            self._forget_unused(oldest.slots)
        return expired

    def _remove(self, idle: _Idle[C]) -> C:
        """Take an idle connection out of the pool: an origin's newest, or the oldest of all and so of its origin."""
        del self._idle[idle]
        if idle.slots.idle[-1] is idle:
            idle.slots.idle.pop()
        else:
            idle.slots.idle.popleft()
        self._open -= 1
        return idle.connection

    def _forget_unused(self, slots: _Slots[C]) -> None:
        if slots.unused:
            self._origins.pop(slots.origin, None)
