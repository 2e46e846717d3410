"""The worker: takes jobs, runs their flows in the app's runtime, and says what has become of them.

Law: what was taken is settled, or left to whoever rescues it: nothing is forgotten in between. A job is begun only when
there is a seat for it, and taken when there is or will be one at once (`Pace`); its run goes through the runtime's
admission as any run does, and one that is refused there is put back as it was. Whatever ends the worker, its runs end
first: cut, undone, and put back uncounted.

    take ─▶ begin ─▶ run ─▶ judge ─▶ settle         as many at once as there are seats, a task each
    renew ─▶ look who was cancelled, or is lost     as long as it lives, several times per lease: `Living`
    rescue, reconcile, prune; schedules             for all workers: whoever comes first: `Care`

A run's id is made of the job's and the number of times that an attempt of it was settled: one whose worker has died is
begun again with the same id, and so with the same keys; one that failed, and was rolled back, with another. Of a
durable flow's run the journal knows more: there it is carried on by whoever takes runs over (`Runtime.follow` tells).
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from random import Random
from secrets import token_hex
from typing import Final

import trio

from zerver.core.app import App
from zerver.core.jobs import JobRule
from zerver.core.priorities import RANK
from zerver.errors import JournalError, JournalUnavailable, LeaseLost
from zerver.jobs.attempt import SOON, End, end_in_journal, inputs_of, put_back, verdict_of
from zerver.jobs.capability import desk_of
from zerver.jobs.care import Care
from zerver.jobs.cron import follow_schedule, schedules_of
from zerver.jobs.living import Living
from zerver.jobs.pace import PATIENCE as PLACE_PATIENCE
from zerver.jobs.pace import Pace
from zerver.jobs.port import Job, JobStore, QueueRule, Verdict, Wanted
from zerver.jobs.seats import Seat
from zerver.jobs.seats import WorkerSettings as WorkerSettings
from zerver.jobs.seats import WorkerStatistics as WorkerStatistics
from zerver.jobs.settling import PATIENCE, Settling
from zerver.runtime import Runtime
from zerver.runtime.executor import finished
from zerver.runtime.groups import open_body_nursery, unwrapped
from zerver.runtime.live import LOST

_PLAIN: Final = WorkerSettings()

#: Seconds after which a store that is away is asked again, if nobody says when.
_A_WHILE: Final = 1.0

#: Seconds after which a job is looked at again that this code has no flow for: another worker may have one.
_STRANGE: Final = 60.0

#: After a take whose answer was lost: the server may perform it a moment after the connection broke.
_LOOKS: Final = 2

#: Jobs that are taken at once: with more of them the first would wait long for the last.
_TAKEN: Final = 256

#: Jobs that are looked at in one go.
_PAGE: Final = 500


class Worker:
    """A worker at work. Made by `open_worker`."""

    def __init__(self, runtime: Runtime, settings: WorkerSettings, rng: Random) -> None:
        desk = desk_of(runtime)
        self.runtime = runtime
        self.settings = settings
        self.store: JobStore = desk.store
        self.owner = settings.owner or f"{os.getpid()}.{token_hex(8)}"
        self._app = runtime.app
        self._now = desk.now
        self._draw = rng.random
        self._rules = queue_rules(runtime.app, settings.queues)
        self._schedules = schedules_of(self._app)
        self._seats: set[Seat] = set()
        self._newest: dict[str, Seat] = {}  # of each job
        self._context = copy_context()
        self._ahead: deque[Seat] = deque()  # those that wait for a place among them that run at once
        self._running = 0
        self._filled = trio.Event()  # set when one waits for a place
        self._settling = Settling(self.store, self._is_durable, self._leave, lambda: bool(self._ahead))
        self._nursery: trio.Nursery | None = None
        self._limited = any(rule.limit is not None or rule.per_tenant is not None for rule in self._rules)
        self._pace = Pace(settings.seats, allowed=not self._limited)
        self._ended = 0  # of the seats, those whose run is over
        self._doubts = 0  # how many looks are due after a take that may have been performed
        self._asking = trio.Lock()  # one take or look at a time: what a take brings just now, a look would find as well
        self._came: Counter[str] = Counter()
        self._taking = trio.CancelScope()
        self._freed = trio.Event()
        self._idle = trio.lowlevel.ParkingLot()
        self._living = Living(self.store, self.owner, settings.lease, self._seats, self._end, self._let_go)
        self._care = Care(runtime, settings, self._verdict)

    def statistics(self) -> WorkerStatistics:
        came = Counter(rescued=self._care.rescued) + self._came + self._settling.came
        return WorkerStatistics(
            self.owner,
            self.settings.seats,
            dict(Counter(seat.job.queue for seat in self._seats if seat.runs)),
            *(came[name] for name in _COUNTED),
        )

    async def drain(self, deadline: float) -> None:
        """Take no more jobs, let those that run finish for `deadline` seconds, then cut them and put them back,
        uncounted. When this returns nothing is under way here, and the store knows, if it could be told.
        """
        self._taking.cancel()
        for seat in [*self._ahead]:
            self._put_back(seat)
        with trio.move_on_after(deadline):
            await self._wait_idle()
        self._settling.ends = True
        for seat in [*self._seats]:
            seat.drained = True
            self._end(seat, "the worker is draining")
        await self._wait_idle()

    async def _wait_idle(self) -> None:
        while self._seats:
            await self._idle.park()

    # -- at work --

    async def work(self) -> None:
        """Work until `drain` has been called and all has ended."""
        try:
            with self._care.follow():
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._living.keep)
                    nursery.start_soon(self._care.settle_carried)
                    nursery.start_soon(self._settling.run)
                    nursery.start_soon(self._put_back_late)
                    with self._taking:
                        async with trio.open_nursery() as taking:
                            taking.start_soon(self._take)
                            taking.start_soon(self._care.look_after)
                            taking.start_soon(self._look_for_ours)
                            for name, rule in self._app.crons.items():
                                schedule, declared = self._schedules[name], self._app.declared
                                taking.start_soon(follow_schedule, self.store, declared, rule, schedule, self._now)
                    await self._wait_idle()
                    nursery.cancel_scope.cancel()
        finally:  # it has broken if there are any: nobody settles them, so nobody is to wait for them
            self._ahead.clear()
            for seat in [*self._seats]:
                self._leave(seat)

    async def _take(self) -> None:
        while True:
            self._freed = trio.Event()
            count = min(self._free(), _TAKEN)
            if not count:
                await self._freed.wait()
                continue
            try:
                async with self._asking:
                    jobs = await self.store.take(self.owner, self._rules, count)
                    self._seat(jobs)
            except JournalUnavailable as error:
                self._doubts = _LOOKS
                await trio.sleep(error.retry_after or _A_WHILE)
                continue
            if len(jobs) < count and not (jobs and self._limited):
                await self._wait_for_news()

    def _seat(self, jobs: Sequence[Job]) -> None:
        self._came["taken"] += len(jobs)
        now = trio.current_time()
        for job in jobs:
            # There is an older one if this worker stood still, and took its own job from itself.
            seat = Seat(job, now, self._newest.get(job.job_id))
            self._seats.add(seat)
            self._newest[job.job_id] = seat
            self._ahead.append(seat)
        if self._taking.cancel_called:  # it drains, and a take cannot always be called back
            for seat in [*self._ahead]:
                self._put_back(seat)
        self._fill_places()
        self._filled.set()

    async def _look_for_ours(self) -> None:
        """Find jobs that are ours, and we do not know of: their take was performed, and its answer was lost."""
        while True:
            await trio.sleep(self.settings.lease / 2)
            if self._doubts:
                try:
                    async with self._asking:
                        await self._find_ours()
                    self._doubts -= 1
                except JournalError:
                    pass

    async def _find_ours(self) -> None:
        known, last = {*self._newest}, None
        while page := await self.store.search(Wanted(states=("running",)), _PAGE, last):
            last = page[-1].seq
            self._seat([job for job in page if job.owner == self.owner and job.job_id not in known])

    def _free(self) -> int:
        """How many may be taken. While runs wait for tickets, one of ours at a time waits with them, so that admission
        knows of us; jobs that nobody here can begin are for other workers.
        """
        seats, ahead = self.settings.seats, self._pace.ahead
        begun = len(self._seats) - self._ended
        free = seats - begun
        if self.runtime.admission.waits(RANK["batch"]):
            return 0 if any(seat.leave_queue is not None for seat in self._seats) else max(0, min(free, 1))
        if self._ended >= seats + ahead or begun > seats + ahead // 2:
            return 0  # the store is slower than we are; or it is too soon to ask it for a few
        return max(0, free + ahead)

    async def _wait_for_news(self) -> None:
        """Wait until there may be something to take: a job that came, or one of ours that made room by ending."""
        with unwrapped():
            async with trio.open_nursery() as nursery:

                async def wait(what: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await what()
                    except JournalUnavailable as error:
                        await trio.sleep(error.retry_after or _A_WHILE)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(wait, self.store.wait)
                if self._limited or any(seat.job.is_suspect for seat in self._seats):  # one suspect at a time is given
                    nursery.start_soon(wait, self._freed.wait)

    # -- one job --

    def _fill_places(self) -> None:
        """Begin those that were taken, as far as there are places."""
        while self._ahead and self._running < self.settings.seats and self._nursery is not None:
            self._running += 1
            # In the worker's context: what a handler has set in its own is not for another tenant's job.
            self._context.run(self._nursery.start_soon, self._work_in_place, self._next())

    def _next(self) -> Seat:
        seat = self._ahead.popleft()
        seat.runs, seat.began = True, trio.current_time()
        return seat

    async def _work_in_place(self, seat: Seat) -> None:
        """Work on one, and have the next one begun in its place."""
        try:
            await self._work_on(seat)
        finally:
            self._running -= 1
        self._fill_places()

    async def _put_back_late(self) -> None:
        """Put back those that have waited for a place for too long."""
        while True:
            if not self._ahead:
                self._filled = trio.Event()
                await self._filled.wait()
            elif (left := self._ahead[0].taken + PLACE_PATIENCE - trio.current_time()) > 0:
                await trio.sleep(left)
            else:
                self._pace.waited_in_vain()
                self._put_back(self._ahead[0])

    def _put_back(self, seat: Seat) -> None:
        """One that waits for a place is not to be begun here."""
        self._ahead.remove(seat)
        self._over(seat)
        self._settling.add(seat, put_back(self._now()))

    async def _work_on(self, seat: Seat) -> None:
        try:
            verdict = await self._begin(seat)
            if verdict is None and not seat.cut:
                verdict = await self._run(seat)
        except BaseException:
            self._over(seat)
            self._leave(seat)
            raise
        self._over(seat)
        self._settling.add(seat, verdict or put_back(self._now()))

    def _over(self, seat: Seat) -> None:
        """Its run is over, or was not to be: another may have its place while the store is told."""
        seat.over = True
        self._ended += 1
        if seat.runs:
            seat.runs = False
            self._pace.held(trio.current_time() - seat.began)
        self._freed.set()

    def _leave(self, seat: Seat) -> None:
        """Nothing is to be done for it any more."""
        self._came["lost"] += seat.lost
        self._seats.remove(seat)
        if self._newest.get(seat.job.job_id) is seat:
            del self._newest[seat.job.job_id]
            older = seat.older
            while older is not None and older.gone:
                older = older.older
            if older is not None:  # put back before that one is through: who is next has to wait for it as well
                self._newest[seat.job.job_id] = older
        self._ended -= 1
        seat.go()
        self._freed.set()
        if not self._seats:
            self._idle.unpark_all()

    async def _begin(self, seat: Seat) -> Verdict | None:
        """What is to be said of a job that cannot be begun, or has been; None for one whose run is to begin, or that
        was cut.
        """
        rule = self._app.jobs.get(seat.job.flow)
        if rule is None:
            return put_back(self._now(), _STRANGE, f"there is no flow {seat.job.flow!r} here")
        if (seat.older is None and rule.flow.durability == "off") or seat.cut:
            return None
        with trio.CancelScope() as seat.scope:
            return await self._ask_before(seat, rule)
        return None

    async def _ask_before(self, seat: Seat, rule: JobRule) -> Verdict | None:
        """As `_begin`, where there is something to wait for."""
        job = seat.job
        while seat.older is not None:
            older = seat.older
            if not older.gone:
                self._let_go(older)
                await older.wait_gone()
            seat.older = older.older
        try:
            known = await end_in_journal(self.runtime, rule.flow, job.run_id)
            if rule.flow.durability != "off":  # from now on it may be carried on by others, who have no job of it
                await self.store.began(job.job_id, job.fence, job.run_id)
        except LeaseLost:  # or somebody has cancelled it: the store knows which, and what becomes of it then
            return put_back(self._now())
        except JournalError as error:
            return put_back(self._now(), getattr(error, "retry_after", 0.0) or SOON, str(error))
        return None if known is None else self._verdict(known, job, rule)

    async def _run(self, seat: Seat) -> Verdict:
        job, rule = seat.job, self._app.jobs[seat.job.flow]
        prepared = self.runtime.prepare(rule.flow)

        def has_ticket() -> None:
            seat.leave_queue = None
            self._freed.set()
            waited = max(0, job.began_unix_ns - job.at_unix_ns)
            may_undo = None if self._is_durable(job) else partial(self._is_ours, seat)
            self.runtime.is_job(seat.job.run_id, (job.queue, job.attempt, job.attempts, waited), may_undo)
            if seat.lost:  # it was cut when it had its ticket already, and could not leave the queue any more
                self._let_go(seat)
            elif seat.cut:
                self._end(seat, seat.cut)

        def queued(leave: Callable[[], None]) -> None:
            seat.leave_queue = leave

        parts, takes = inputs_of(prepared.plan, job, has_ticket)
        answer = self.runtime.execute(
            prepared,
            parts,
            takes,
            tenant=job.tenant,
            priority=job.priority,
            deadline=rule.deadline,
            label=rule.label,
            parent=job.parent,
            run_id=seat.job.run_id,
            on_queued=queued,
        )
        result = await finished(answer)
        drained = seat.drained or self.runtime.admission.draining
        if result.ending.reason == LOST.reason and not self._is_durable(job):
            return put_back(self._now())  # and refused, if it is another worker's; else its run is begun again
        return self._verdict(End(result.ending, bool(result.unresolved), drained), job, rule)

    async def _is_ours(self, seat: Seat) -> bool:
        """Whether what its run has done may be undone here: with the same keys another worker may have done it again,
        if this one stood still.
        """
        return await self._living.wait_known(PATIENCE) and not seat.lost

    def _end(self, seat: Seat, why: str) -> None:
        """Cut what a job is about, wherever it is."""
        seat.cut = why
        if seat.scope is not None:
            seat.scope.cancel()
        if seat in self._ahead:
            self._put_back(seat)
        elif seat.leave_queue is not None:
            seat.leave_queue()
        else:
            self.runtime.cancel_nowait(seat.job.run_id, why)

    def _is_durable(self, job: Job) -> bool:
        rule = self._app.jobs.get(job.flow)
        return rule is not None and rule.flow.durability != "off"

    def _verdict(self, end: End, job: Job, rule: JobRule) -> Verdict:
        return verdict_of(end, job, rule, self._now(), self._draw())

    def _let_go(self, seat: Seat) -> None:
        """Another worker has begun it with the same keys: to undo anything here would undo it there. Of a durable run
        the journal says whose it is.
        """
        if self._is_durable(seat.job):
            return
        seat.lost = True
        self._end(seat, LOST.reason)
        for run in self.runtime.under_way():
            if run.run_id == seat.job.run_id:
                run.stop(LOST)


@asynccontextmanager
async def open_worker(
    runtime: Runtime, settings: WorkerSettings = _PLAIN, *, seed: int | None = None
) -> AsyncGenerator[Worker, None]:
    """Work on the app's jobs until the block is left; then what runs is cut, undone, and put back uncounted.

    `drain` it before, to let jobs finish. seed: makes the jitter of backoffs repeatable, for tests.

    Raises DefinitionError for an app without `jobs()`, or jobs that cannot be run here; JournalUnavailable when the
    store cannot be reached.
    """
    worker = Worker(runtime, settings, Random(seed))
    for rule in runtime.app.jobs.values():
        runtime.prepare(rule.flow)
    await worker.store.renew(worker.owner, settings.lease)
    async with open_body_nursery() as nursery:
        ended = trio.Event()

        async def work() -> None:
            try:
                with trio.CancelScope(shield=True), unwrapped():  # whatever ends the block, jobs are settled first
                    await worker.work()
            finally:
                ended.set()

        nursery.start_soon(work)
        try:
            yield worker
        finally:
            with trio.CancelScope(shield=True):
                await worker.drain(0.0)
                with trio.move_on_after(PATIENCE):
                    await ended.wait()
                with trio.move_on_after(PATIENCE):
                    try:
                        await worker.store.renew(worker.owner, 0.0)
                    except JournalUnavailable:  # others find out by themselves that it is gone
                        pass


def queue_rules(app: App, names: Sequence[str]) -> tuple[QueueRule, ...]:
    """The queues that a worker takes from. Raises DefinitionError for one that the app does not know."""
    app.declared.check_queues(set(names))
    chosen = sorted(names or app.declared.queue_names)
    limits = {name: app.queues.get(name) for name in chosen}
    return tuple(
        QueueRule(name) if limit is None else QueueRule(name, limit.limit, limit.per_tenant)
        for name, limit in limits.items()
    )


_COUNTED: Final = ("taken", "done", "again", "back", "dead", "cancelled", "parked", "lost", "rescued")
