"""Admission: who may run now, who waits, and who is refused.

Law: decisions over numbers the caller brings; `now` is in seconds of any monotonic clock, and it knows neither HTTP nor
Trio. It keeps one promise to everybody: **who waits is answered within its class's patience, by a ticket or an honest
refusal.** What it is made of:

    Concurrency   how many may run, by what the steps show           (concurrency.py)
    Credits       which class is next                                (shares.py)
    FairQueue     which tenant of the class is next                  (shares.py)
    Tallies      what each tenant takes, and may take               (tallies.py, quotas.py)
    Congestion    how long the class makes wait                      (congestion.py)

and the order in which an arrival is judged, each question cheaper than what it may save:

    the tenant's rate and runs -> a free seat -> the deadline -> room in the queue

While nobody waits nothing is charged to anybody: fairness is about who waits for whom.

How to drive it: call `arrive` and `leave`, `tell` when there is news of the load, and after each of these, and when
`due` has come, tell everybody in `answers` what they got. Between these calls nobody waits who could run.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import ceil
from typing import Final, TypeAlias

from zerver.core.classes import AdmissionPolicy, ClassStatistics
from zerver.core.concurrency import Concurrency
from zerver.core.congestion import TICK, Congestion
from zerver.core.load import Load, Neighbours
from zerver.core.priorities import PRIORITIES, RANK, Priority
from zerver.core.quotas import Pushback, Quota
from zerver.core.shares import Credits, FairQueue
from zerver.core.tallies import Tallies, Tally
from zerver.core.tenants import Tenant, Tenants
from zerver.core.tickets import OWN_DOING, Reason, Refusal, Ticket, Waiting
from zerver.core.work import LEAST, Work

INF: Final = float("inf")

#: Who waited, and what came of it.
Answer: TypeAlias = tuple[Waiting, Ticket | Refusal]

_BATCH: Final = RANK["batch"]

#: Seconds of CPU that a run is taken for, before any run of its flow or its class has ended.
_GUESS: Final = 0.002

#: The part of the places in the queue that a class and those below it may take together.
_PLACES: Final = (1.0, 0.75, 0.5)


class Admission:
    """The state: seats, queues, and what tenants take.

    draw: gives numbers in [0, 1), for the jitter of Retry-After. queued: runs that wait. parked: runs without a seat.
    """

    def __init__(
        self,
        policy: AdmissionPolicy | None = None,
        tenants: Tenants | None = None,
        neighbours: Neighbours | None = None,
        draw: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.policy = policy or AdmissionPolicy()
        self.draining = False
        self.queued = self.parked = 0
        self.refused: dict[Reason, int] = {}
        self._classes = classes = self.policy.classes
        shares = [one.share for one in classes]
        self._seats = Concurrency(self.policy.running, shares, [one.standing for one in classes])
        self._credits = Credits(shares)
        self._queues: tuple[FairQueue[Waiting], ...] = (FairQueue(), FairQueue(), FairQueue())
        self._congestion = tuple(Congestion(one.sojourn, one.floor, one.patience) for one in classes)
        self._pushbacks = tuple(Pushback() for _ in classes)
        self._tallies = Tallies(tenants or Tenants(), self._settled)
        self._neighbours = neighbours
        self._draw = draw
        self._unnamed = tuple(Work() for _ in classes)  # by class, for runs that bring none
        self._admitted = [0] * len(classes)
        self._turned_away = [0] * len(classes)
        self._due: list[tuple[float, int, Waiting]] = []  # those that do not wait any more are stale
        self._serial = 0
        self._dropped: list[Answer] = []
        self._ticked = self._next_tick = self._next_lesson = -INF

    # ---- what happens ------------------------------------------------------------------------

    def arrive(
        self, priority: Priority, tenant: str, now: float, deadline: float = INF, work: Work | None = None
    ) -> Ticket | Waiting | Refusal:
        """Somebody wants to run. Ticket: it may, and `leave` must follow. Waiting: `answers` will name it, unless
        `abandon` takes it out.

        deadline: on the clock of `now`. work: what is known of the flow; kept up to date when the run has ended.
        """
        if now >= self._next_tick:
            self._tick(now)
        rank = RANK[priority]
        tally = self._tallies.get(tenant, now)
        if self.draining:
            return self._refuse("draining", rank, tally, now)
        if tally.bounded:
            over = self._over(tally, rank, now)
            if over is not None:
                return over
        if work is None:
            work = self._unnamed[rank]
        if not (self.queued and self._queues[rank]) and self._seats.free(rank):
            if self.queued:  # others wait, who cannot have this seat: they are owed their part of what it costs
                self._credits.spend(rank, self._cost(work, rank), self._queues)
            return self._begin(tally, tenant, priority, rank, work, now, 0.0)
        return self._enqueue(tally, tenant, priority, rank, work, now, deadline)

    def leave(self, ticket: Ticket, now: float, cpu: float | None = None, turn: float = 0.0) -> None:
        """A run has ended. cpu: seconds its steps took, None when that is not known; turn: seconds it waited for turns.

        Raises ValueError when the ticket has been given back before.
        """
        if not ticket.held:
            raise ValueError(f"{ticket!r} is not held any more")
        if ticket.parked is not None:
            self.resume(ticket, now)
        ticket.held = False
        tally, rank = ticket.tally, ticket.rank
        if ticket.beside:
            tally.cost += cpu or 0.0
            self._publish(tally, now)
            return
        seats = self._seats
        seats.running[rank] -= 1
        tally.shares[rank].running -= 1
        if cpu is not None:
            seconds = now - ticket.begun
            ticket.work.learn(cpu, seconds)
            seats.ended(rank, cpu, seconds - cpu - turn)
            tally.cost += cpu
            if now >= self._next_lesson:
                self._next_lesson = now + TICK
                seats.learn()
            if ticket.cost:
                self._queues[rank].charge(tally.shares[rank], max(LEAST, cpu) - ticket.cost)
        if self._neighbours is not None:
            self._publish(tally, now)

    def park(self, ticket: Ticket, now: float) -> None:
        """A run waits for the world, maybe for hours: its seat is for others meanwhile. It is its tenant's run still,
        because it takes memory. Raises ValueError when it is parked, or has ended.
        """
        if not ticket.held or ticket.parked is not None:
            raise ValueError(f"{ticket!r} has no seat to leave")
        ticket.parked = now
        if not ticket.beside:
            self._sit(ticket, -1)

    def resume(self, ticket: Ticket, now: float) -> None:
        """A parked run goes on, at once, if need be above the limit: what may have written goes before what has not."""
        if ticket.parked is None:
            raise ValueError(f"{ticket!r} is not parked")
        ticket.begun += now - ticket.parked  # parked time says nothing of how long the next run takes
        ticket.parked = None
        if not ticket.beside:
            self._sit(ticket, 1)

    def beside(self, tenant: str, priority: Priority, now: float) -> Ticket:
        """A ticket without a seat: whoever gives it bounds how many there are. `leave` must follow, as for others."""
        tally, rank = self._tallies.get(tenant, now), RANK[priority]
        return Ticket(tally, tenant, self._rule(tally, tenant), rank, priority, self._unnamed[rank], now, 0.0, True)

    def tell(self, load: Load) -> None:
        """What the last tick of the steps showed: the limits follow."""
        self._seats.tick(load)

    def abandon(self, entry: Waiting, now: float) -> None:
        """Who waited has gone away, and owes nothing. Raises KeyError when it does not wait any more."""
        self._queues[entry.rank].remove(entry)
        self._forget(entry)
        self._give_back(entry.tally, now)

    def late(self, entry: Waiting, now: float) -> Refusal:
        """The refusal for somebody whose `due` has come, and who is out of the queue already."""
        reason: Reason = "waited too long"
        if now >= entry.deadline:
            reason = "deadline passed while waiting"
        elif self._queues[entry.rank].over(entry.tally.shares[entry.rank]):
            reason = "tenant over its share"
        return self._refuse(reason, entry.rank, entry.tally, now)

    def answers(self, now: float) -> list[Answer]:
        """Everybody whose wait is over: by a seat, by a bound, or by others."""
        if now >= self._next_tick:
            self._tick(now)
        answers, self._dropped = self._dropped, []
        if self.queued:
            self._answer_due(now, answers)
            while (rank := self._next_class()) >= 0:
                answers.append(self._serve(rank, now))
        return answers

    def drain(self, now: float) -> list[Answer]:
        """Admit nobody any more: who waits is refused."""
        self.draining = True
        answers, self._dropped = self._dropped, []
        for queue in self._queues:
            while (entry := queue.oldest) is not None:
                self.abandon(entry, now)
                answers.append((entry, self._refuse("draining", entry.rank, entry.tally, now)))
        return answers

    # ---- what can be seen --------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Runs with a seat."""
        return self._seats.levels[2]

    @property
    def limits(self) -> tuple[float, float, float]:
        """Runs that may be under way on each level: interactive, down to default, down to batch."""
        first, second, third = self._seats.limits
        return first, second, third

    @property
    def due(self) -> float:
        """When `answers` has to be asked next, even if nothing happens; inf when nobody waits."""
        due = self._due
        while due and not due[0][2].waits:
            heappop(due)
        return due[0][0] if due else INF

    def waits(self, level: int) -> bool:
        """Whether a run of this level waits for a ticket: of class `level`, or of one above."""
        return any(map(len, self._queues[: level + 1]))

    @property
    def tenants(self) -> Tenants:
        """How tenants are treated; see `treat`."""
        return self._tallies.tenants

    def treat(self, tenants: Tenants, now: float) -> None:
        """Treat tenants by other rules from now on. What is under way goes on, and counts."""
        for tally in self._tallies.replace(tenants, now):
            for queue, share in zip(self._queues, tally.shares, strict=True):
                queue.reweigh(share, tally.rule.weight)

    def quota(self, tenant: str, now: float) -> Quota | None:
        """What is left of a tenant's rate; None when it is not bounded."""
        return self._tallies.quota(tenant, now)

    def statistics(self) -> tuple[ClassStatistics, ...]:
        """By class, highest first."""
        return tuple(
            ClassStatistics(
                priority=priority,
                running=self._seats.running[rank],
                queued=len(self._queues[rank]),
                limit=self._seats.limits[rank],
                guaranteed=self._seats.guaranteed[rank],
                admitted=self._admitted[rank],
                refused=self._turned_away[rank],
                overloaded=self._congestion[rank].overloaded,
                rate=self._congestion[rank].rate,
            )
            for rank, priority in enumerate(PRIORITIES)
        )

    # ---- judging an arrival ------------------------------------------------------------------

    def _over(self, tally: Tally, rank: int, now: float) -> Refusal | None:
        """Whether a tenant that has bounds has reached one; otherwise its claim is made, in all processes."""
        self._look_elsewhere(tally, rank, now)
        bound = tally.claim(None if tally.shared else self._neighbours, now)
        return None if bound is None else self._refuse(bound, rank, tally, now)

    def _enqueue(
        self, tally: Tally, tenant: str, priority: Priority, rank: int, work: Work, now: float, deadline: float
    ) -> Waiting | Refusal:
        if not tally.bounded:
            self._look_elsewhere(tally, rank, now)
        queue, share, promise = self._queues[rank], tally.shares[rank], self._classes[rank]
        congestion = self._congestion[rank]
        wait = queue.ahead(share) / congestion.rate
        first = promise.newest_first and congestion.overloaded
        if now + work.duration + (0.0 if first else wait) >= deadline:
            self._give_back(tally, now)
            return self._refuse("deadline too close", rank, tally, now)
        if self._crowded(rank) or wait > promise.slack * promise.patience:
            reason: Reason = "tenant over its share" if queue.over(share) else "queue full"
            if rank == _BATCH or not share.line:
                # A batch that waits is an investment; and nobody is put out for somebody else's sake.
                self._give_back(tally, now)
                return self._refuse(reason, rank, tally, now)
            tally.waiting += 1  # before the other is not counted any more: its claim stands all the time
            oldest = next(iter(share.line))
            self.abandon(oldest, now)
            self._dropped.append((oldest, self._refuse(reason, rank, tally, now)))
        else:
            tally.waiting += 1
        due = min(now + promise.patience, deadline)
        entry = Waiting(tally, tenant, priority, work, now, deadline, due, self._cost(work, rank))
        queue.push(share, entry, entry.cost)
        if not tally.bounded:
            self._publish(tally, now)  # others have claimed already
        self.queued += 1
        self._serial += 1
        heappush(self._due, (due, self._serial, entry))
        return entry

    def _crowded(self, rank: int) -> bool:
        """Whether all places are taken, or all that a class and those below it may have: who is cheap and patient does
        not take the last ones from who is neither.
        """
        places = self.policy.queued
        return self.queued >= places or sum(map(len, self._queues[rank:])) >= ceil(places * _PLACES[rank])

    def _cost(self, work: Work, rank: int) -> float:
        cpu = work.cpu
        if cpu is None:
            cpu = self._seats.cpu[rank]
            if cpu is None:
                return _GUESS
        return cpu if cpu > LEAST else LEAST

    # ---- ending a wait -----------------------------------------------------------------------

    def _answer_due(self, now: float, answers: list[Answer]) -> None:
        while self.due <= now:
            entry = self._due[0][2]
            self.abandon(entry, now)
            answers.append((entry, self.late(entry, now)))
        for rank, promise in enumerate(self._classes):
            if not (promise.newest_first and self._congestion[rank].overloaded):
                continue
            # The queue stands, and the newest go first: who has waited twice too long, and will not make it when its
            # turn comes at last, hears of it now.
            while (oldest := self._queues[rank].oldest) is not None:
                at_risk = now + promise.patience + oldest.work.duration > oldest.deadline
                if now - oldest.since <= 2.0 * promise.sojourn or not at_risk:
                    break
                self.abandon(oldest, now)
                answers.append((oldest, self._refuse("deadline too close", rank, oldest.tally, now)))

    def _next_class(self) -> int:
        """The class that has the next seat; -1 when nobody who waits can have one."""
        heads: list[float | None] = [
            queue.backlog / len(queue) if queue and self._seats.free(rank) else None
            for rank, queue in enumerate(self._queues)
        ]
        return self._credits.choose(heads)

    def _serve(self, rank: int, now: float) -> Answer:
        queue, congestion = self._queues[rank], self._congestion[rank]
        waits = [bool(queue) for queue in self._queues]
        entry = queue.pop(
            newest=self._classes[rank].newest_first and congestion.overloaded,
            most=ceil(self.policy.tenant_part * self._seats.limits[rank]),
        )
        self._forget(entry)
        oldest = queue.oldest
        congestion.seen(0.0 if oldest is None else now - oldest.since)
        tally = entry.tally
        self._look_elsewhere(tally, rank, now)
        if now + entry.work.duration >= entry.deadline:
            queue.charge(tally.shares[rank], -entry.cost)
            self._give_back(tally, now)
            reason: Reason = "deadline passed while waiting" if now >= entry.deadline else "deadline too close"
            return entry, self._refuse(reason, rank, tally, now)
        self._credits.spend(rank, entry.cost, waits)
        if oldest is None:
            self._credits.forget(rank)
        congestion.served(entry.cost)
        return entry, self._begin(tally, entry.tenant, entry.priority, rank, entry.work, now, entry.cost)

    def _begin(
        self, tally: Tally, tenant: str, priority: Priority, rank: int, work: Work, now: float, cost: float
    ) -> Ticket:
        tally.shares[rank].running += 1
        self._seats.running[rank] += 1
        self._admitted[rank] += 1
        if self._neighbours is not None and not (tally.bounded or cost):
            self._publish(tally, now)  # who has bounds has claimed, and who has waited is counted already
        rule = self._rule(tally, tenant) if tally.shared else tally.rule
        return Ticket(tally, tenant, rule, rank, priority, work, now, cost)

    def _sit(self, ticket: Ticket, change: int) -> None:
        """A run that is under way takes a seat (1), or leaves it (-1)."""
        tally, rank = ticket.tally, ticket.rank
        self.parked -= change
        tally.parked -= change
        tally.shares[rank].running += change
        self._seats.running[rank] += change

    def _rule(self, tally: Tally, tenant: str) -> Tenant:
        return self._tallies.tenants.get(tenant) if tally.shared else tally.rule

    def _forget(self, entry: Waiting) -> None:
        """It is out of its queue: nothing counts it any more."""
        entry.waits = False
        entry.tally.waiting -= 1
        self.queued -= 1
        if not self._queues[entry.rank]:
            self._congestion[entry.rank].seen(0.0)
            self._credits.forget(entry.rank)
        if len(self._due) > 64 + 2 * self.queued:
            self._due = [one for one in self._due if one[2].waits]
            heapify(self._due)

    def _refuse(self, reason: Reason, rank: int, tally: Tally, now: float) -> Refusal:
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self._turned_away[rank] += 1
        quota = None if tally.bucket is None else tally.bucket.quota(now)
        if reason == "draining" or (rank != _BATCH and reason not in OWN_DOING):
            return Refusal(reason, 503, 1.0, quota)
        drained = self._queues[rank].backlog / self._congestion[rank].rate if rank == _BATCH else 0.0
        token = tally.bucket.wait(now) if tally.bucket is not None and reason == "tenant over its rate" else 0.0
        pushback = tally.pushback if reason in OWN_DOING else self._pushbacks[rank]
        pushback.refused(now)
        return Refusal(reason, 429, pushback.retry_after(now, drained, self._draw(), token), quota)

    # ---- time, tenants, neighbours -----------------------------------------------------------

    def _tick(self, now: float) -> None:
        """Close a tick. It is whoever comes next that does it: an idle process has no timer."""
        seconds = now - self._ticked
        for queue, congestion in zip(self._queues, self._congestion, strict=True):
            oldest = queue.oldest
            congestion.tick(seconds, 0.0 if oldest is None else now - oldest.since)
        self._ticked = now
        self._next_tick = now + TICK

    def _settled(self, tally: Tally) -> bool:
        return all(queue.settled(share) for queue, share in zip(self._queues, tally.shares, strict=True))

    def _look_elsewhere(self, tally: Tally, rank: int, now: float) -> None:
        if self._neighbours is None or tally.shared:
            return
        spent = tally.look_elsewhere(self._neighbours, now)
        if spent and self._queues[rank]:
            self._queues[rank].charge(tally.shares[rank], spent)

    def _give_back(self, tally: Tally, now: float) -> None:
        """A run that was claimed neither runs nor waits."""
        tally.give_back()
        self._publish(tally, now)

    def _publish(self, tally: Tally, now: float) -> None:
        if self._neighbours is not None and not tally.shared:
            tally.publish(self._neighbours, now)
