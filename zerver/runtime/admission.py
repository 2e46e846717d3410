"""The admission actor: gives tickets, keeps who must wait, and refuses honestly.

Law: the state has one owner, and nothing is awaited between reading and changing it, so it needs no mailbox: an arrival
that finds a seat costs one function call and no task switch. `zerver.core.admission` decides. There is no timer and no
task: who waits brings its own alarm, so an idle runtime leaves the clock alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from random import Random

import attrs
import outcome
import trio

from zerver.core.admission import Admission, Answer
from zerver.core.classes import AdmissionPolicy, ClassStatistics
from zerver.core.load import Load, Neighbours
from zerver.core.priorities import Priority
from zerver.core.quotas import Quota
from zerver.core.tenants import NOBODY, Tenants
from zerver.core.tickets import Reason, Refusal, Ticket, Waiting
from zerver.core.work import Work


@attrs.frozen
class AdmissionStatistics:
    """running: runs with a seat. parked: runs that have left theirs until they go on. degraded: runs in place of
    refused ones, now. queued: runs that wait for a ticket. admitted, refused: since the start. reasons: the refusals,
    by reason. classes: highest first.
    """

    running: int
    parked: int
    degraded: int
    queued: int
    admitted: int
    refused: int
    draining: bool
    reasons: Mapping[Reason, int]
    classes: tuple[ClassStatistics, ...]


class AdmissionActor:
    """Tickets for one runtime.

    arrive: `Admission.arrive`, on Trio's clock: the first half of `acquire`, and all of it while there are seats, so
    that no coroutine has to be made for each run. A Waiting is to be given to `wait` at once, with the same `now`.
    """

    def __init__(
        self,
        policy: AdmissionPolicy | None = None,
        tenants: Tenants | None = None,
        neighbours: Neighbours | None = None,
        rng: Random | None = None,
    ) -> None:
        """rng: for the jitter of Retry-After."""
        self._state = Admission(policy, tenants, neighbours, (rng or Random()).random)
        self.arrive = self._state.arrive
        self._tasks: dict[Waiting, trio.lowlevel.Task] = {}
        self._idle = trio.lowlevel.ParkingLot()
        self._waiters = 0  # those who wait until it is idle: cheaper to ask than the parking lot is
        self._degraded = 0

    async def acquire(
        self, priority: Priority, tenant: str = NOBODY, deadline: float = float("inf"), work: Work | None = None
    ) -> Ticket | Refusal:
        """Wait for a ticket, to be followed by one `release`; or learn why there is none.

        deadline: on Trio's clock, or inf. work: what is known of the flow, learnt from its runs; None when it has none.
        Not a checkpoint when the answer is there at once. Who is cancelled while it waits owes nothing.
        """
        now = trio.current_time()
        answer = self.arrive(priority, tenant, now, deadline, work)
        if isinstance(answer, Waiting):
            return await self.wait(answer, now)
        return answer

    def degrade(self, tenant: str, priority: Priority, refusal: Refusal) -> Ticket | None:
        """A ticket for what runs in place of a refused run, beside all limits, to be followed by one `release`; None
        when there is no room for that either: `AdmissionPolicy.degraded` of them run at once.
        """
        if refusal.reason == "draining" or self._degraded >= self._state.policy.degraded:
            return None
        self._degraded += 1
        return self._state.beside(tenant, priority, trio.current_time())

    def release(self, ticket: Ticket, cpu: float | None = None, turn: float = 0.0, now: float | None = None) -> None:
        """A run with a ticket has ended: the next one is served.

        cpu: seconds its steps took, None when that is not known. turn: seconds it waited for turns. now: on Trio's
        clock, for who knows it. Raises ValueError when the ticket has been released before.
        """
        state = self._state
        if now is None:
            now = trio.current_time()
        state.leave(ticket, now, cpu, turn)
        if ticket.beside:
            self._degraded -= 1
        if state.queued:
            self._answer(state.answers(now))
        if self._waiters and not (state.running or state.parked or self._degraded):
            self._idle.unpark_all()

    @contextmanager
    def parked(self, ticket: Ticket) -> Iterator[None]:
        """Leave the run's seat to others, for as long as the block takes: it waits for something that may take hours.

        Afterwards it has a seat at once, if need be one too many: it is not refused in its midst.
        """
        state, now = self._state, trio.current_time()
        state.park(ticket, now)
        if state.queued:
            self._answer(state.answers(now))
        try:
            yield
        finally:
            state.resume(ticket, trio.current_time())

    def tell(self, load: Load) -> None:
        """What the last tick of the steps showed: the limits follow, and who has a seat now is served."""
        state = self._state
        state.tell(load)
        if state.queued:
            self._answer(state.answers(trio.current_time()))

    def waits(self, level: int) -> bool:
        """Whether a run of this level waits for a ticket: of the class with this number, or of one above."""
        return self._state.queued > 0 and self._state.waits(level)

    @property
    def tenants(self) -> Tenants:
        """How tenants are treated. May be replaced at any time: what is under way goes on, and counts."""
        return self._state.tenants

    @tenants.setter
    def tenants(self, tenants: Tenants) -> None:
        self._state.treat(tenants, trio.current_time())

    def quota(self, tenant: str) -> Quota | None:
        """What is left of a tenant's rate; None when it is not bounded."""
        return self._state.quota(tenant, trio.current_time())

    def drain(self) -> None:
        """Admit nobody any more; who waits is refused."""
        self._answer(self._state.drain(trio.current_time()))

    async def wait_idle(self) -> None:
        """Wait until no run holds a ticket."""
        self._waiters += 1
        try:
            while self._state.running or self._state.parked or self._degraded:
                await self._idle.park()
        finally:
            self._waiters -= 1

    @property
    def draining(self) -> bool:
        """Whether nobody is admitted any more."""
        return self._state.draining

    def statistics(self) -> AdmissionStatistics:
        state, classes = self._state, self._state.statistics()
        return AdmissionStatistics(
            running=state.running,
            parked=state.parked,
            degraded=self._degraded,
            queued=state.queued,
            admitted=sum(one.admitted for one in classes),
            refused=sum(one.refused for one in classes),
            draining=state.draining,
            reasons=dict(state.refused),
            classes=classes,
        )

    async def wait(self, entry: Waiting, now: float) -> Ticket | Refusal:
        """The second half of `acquire`. now: when the entry arrived."""
        state = self._state
        # It may have pushed out one of its own tenant's. At the time it came, whatever the clock says by now: nobody
        # can be answered, or told that it waited too long, before it is there to be woken.
        self._answer(state.answers(now))
        self._tasks[entry] = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            # Still waiting, or it would have been rescheduled: the place is given up and nothing is owed.
            state.abandon(entry, trio.current_time())
            del self._tasks[entry]
            return trio.lowlevel.Abort.SUCCEEDED

        with trio.CancelScope(deadline=entry.due):
            answer: Ticket | Refusal = await trio.lowlevel.wait_task_rescheduled(abort)
            return answer
        return state.late(entry, trio.current_time())

    def _answer(self, answers: Iterable[Answer]) -> None:
        for entry, answer in answers:
            trio.lowlevel.reschedule(self._tasks.pop(entry), outcome.Value(answer))
