"""Bulkheads at run time: so many at once, and the others wait, by class.

Law: a wait has no moment between "granted" and "received". Being cancelled takes a waiter out of the queue, being
granted takes it out of the reach of cancellation, and both are one call of Trio's scheduler. So a place is given back
by whoever got it, and by nobody else. `zerver.core.queues` decides who is next, `zerver.core.bulkhead` how many.

Nobody waits in vain for longer than it takes to know: a burst joins the line before anybody can tell how long a place
is held; once that is known, those at its end whose time will be up before their turn are sent away.
"""

from __future__ import annotations

import attrs
import trio

from zerver.core.bulkhead import Adaptive, AdaptiveLimit
from zerver.core.priorities import Priority
from zerver.core.queues import ClassQueues

_LEARNS = 0.1  # of the difference, for each place that is given back


@attrs.define(eq=False)
class _Waiter:
    priority: Priority
    task: trio.lowlevel.Task
    until: float
    sent_away: bool = False


class Bulkhead:
    """Places, and those who wait for one. size: how many, or how that is found out.

    in_use: places taken. full: whether a newcomer has to wait.
    """

    __slots__ = ("_adaptive", "_held", "_queue", "in_use", "limit")

    def __init__(self, size: int | Adaptive) -> None:
        self._adaptive = AdaptiveLimit(size) if isinstance(size, Adaptive) else None
        self.limit = size.initial if isinstance(size, Adaptive) else size
        self.in_use = 0
        self._held: float | None = None  # seconds that a place is held, moving average
        self._queue: ClassQueues[_Waiter] = ClassQueues()

    @property
    def full(self) -> bool:
        return self.in_use >= self.limit

    @property
    def waiting(self) -> tuple[int, int, int]:
        """Interactive, default, batch."""
        return self._queue.counts

    def acquire_nowait(self) -> bool:
        """Take a place if there is one; not a checkpoint."""
        if self.in_use >= self.limit:  # a place that comes free goes to who waits: nobody does if there is one
            return False
        self.in_use += 1
        return True

    async def acquire(self, priority: Priority, until: float = float("inf")) -> bool:
        """Wait for a place; a checkpoint only if there is none. Give it back with `release`, whatever happens.

        until: how long anybody is served by it, on Trio's clock. False, and no place, when there will be none by then;
        this is found out early, or not at all: whoever waits sets a deadline too.
        """
        if self.acquire_nowait():
            return True
        waiter = _Waiter(priority, trio.lowlevel.current_task(), until)
        self._queue.add(waiter, priority)

        def leave(_: object) -> trio.lowlevel.Abort:
            self._queue.remove(waiter, priority)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        return not waiter.sent_away

    def expected_seconds(self, priority: Priority) -> float:
        """Seconds until a newcomer who has to wait would be done, as far as can be told; 0.0 when nothing is known."""
        if self._held is None:
            return 0.0
        return self._held * ((self._queue.ahead_of(priority) + 1) / self.limit + 1)

    def release(self, began: float = 0.0, now: float = 0.0, in_use: int = 0, tells: bool = False) -> None:
        """Give a place back. tells: whether it says something about the target, how long it took.

        Then began: when the place was taken; in_use: places taken then, this one included.
        """
        if tells:
            took = now - began
            self._held = took if self._held is None else self._held + (took - self._held) * _LEARNS
            if self._adaptive is not None and self._adaptive.record(began, now, in_use, self.full):
                self.limit = self._adaptive.limit
        self.in_use -= 1
        while self._queue and self.in_use < self.limit:
            self.in_use += 1
            trio.lowlevel.reschedule(self._queue.pop().task)
        if tells and self._queue:
            self._send_away(now)

    def _send_away(self, now: float) -> None:
        """The last in line goes, as long as its place would come free too late even if all goes well."""
        while self._queue and self._held is not None:
            waiter = self._queue.newest()
            if now + self._held * len(self._queue) / self.limit <= waiter.until:
                return
            self._queue.remove(waiter, waiter.priority)
            waiter.sent_away = True
            trio.lowlevel.reschedule(waiter.task)
