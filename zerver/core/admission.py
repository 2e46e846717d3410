"""Admission: who may run now, who waits, and who is refused.

Law: decisions over numbers the caller brings; `now` is in seconds of any monotonic clock. Seats are given to the
class that is furthest behind its share, oldest first within a class; a queue is bounded, and work that cannot meet
its deadline is refused at once instead of being started in vain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal

import attrs

from zerver.core.priorities import PRIORITIES, Priority

#: Shares of the seats that come free while several classes wait.
WEIGHTS: Mapping[Priority, int] = {"interactive": 50, "default": 25, "batch": 5}


@attrs.frozen(kw_only=True)
class AdmissionPolicy:
    """How much runs and waits at once. running: runs with a ticket. queued: runs that wait for one."""

    running: int = attrs.field(default=400, validator=attrs.validators.ge(1))
    queued: int = attrs.field(default=2000, validator=attrs.validators.ge(0))


@attrs.frozen
class Refusal:
    """Why a run was not admitted. status: as HTTP counts, 429 for who asks too much, 503 otherwise. retry_after:
    seconds.
    """

    reason: Literal["draining", "queue full", "deadline too close", "deadline passed while waiting"]
    status: int = 503
    retry_after: float | None = 1.0


@attrs.define(eq=False)
class Waiting:
    """A run that waits for its ticket. deadline: seconds on the same clock as `now`, or inf."""

    priority: Priority
    since: float
    deadline: float


class Admission:
    """The state of the queue: `arrive`, then `leave` for every ticket given; `grant` says who is next."""

    def __init__(self, limits: AdmissionPolicy) -> None:
        self.limits = limits
        self.running = 0
        self.queued = 0
        self.draining = False
        self.waited = 0.0  # moving estimate of seconds in the queue
        self._queues: dict[Priority, deque[Waiting]] = {priority: deque() for priority in PRIORITIES}
        self._served: dict[Priority, float] = dict.fromkeys(PRIORITIES, 0.0)
        self._turn = 0.0  # what the class served last had been served by then: start-time fair queueing's virtual time

    def arrive(self, priority: Priority, now: float, deadline: float) -> Waiting | Refusal | None:
        """None: a ticket is given at once. Waiting: queued, until `grant` names it or `abandon` takes it out."""
        if self.draining:
            return Refusal("draining")
        if self.running < self.limits.running and not self.queued:
            self.running += 1
            self.waited *= 0.8  # it waited for nothing: without this, one bad minute would refuse work for ever
            return None
        if now + self.waited >= deadline:
            return Refusal("deadline too close")
        if self.queued >= self.limits.queued:
            return Refusal("queue full", status=429 if priority == "batch" else 503)
        queue = self._queues[priority]
        if not queue:  # an idle class earns no credit for the time it wanted nothing
            self._served[priority] = max(self._served[priority], self._turn)
        entry = Waiting(priority, now, deadline)
        queue.append(entry)
        self.queued += 1
        return entry

    def leave(self) -> None:
        """A run with a ticket has ended."""
        self.running -= 1

    def abandon(self, entry: Waiting) -> None:
        """A waiting run has gone away. Raises ValueError when it does not wait any more."""
        self._queues[entry.priority].remove(entry)
        self.queued -= 1

    def grant(self, now: float) -> tuple[Waiting, Refusal | None] | None:
        """Who is served next: a ticket (None), or a refusal because its deadline passed. None: nobody, or no seat."""
        if not self.queued or self.running >= self.limits.running:
            return None
        waiting: list[Priority] = [priority for priority in PRIORITIES if self._queues[priority]]
        priority = min(waiting, key=lambda p: (self._served[p], PRIORITIES.index(p)))
        entry = self._queues[priority].popleft()
        self.queued -= 1
        self.waited += 0.2 * (now - entry.since - self.waited)
        if now >= entry.deadline:
            return entry, Refusal("deadline passed while waiting")
        self._turn = self._served[priority]
        self._served[priority] += 1.0 / WEIGHTS[priority]
        self.running += 1
        return entry, None

Limits = AdmissionPolicy
