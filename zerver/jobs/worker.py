"""The worker: takes jobs, runs their flows in the app's runtime, and says what has become of them.

Law: what was taken is settled, or left to whoever rescues it: nothing is forgotten in between. A job is begun only when
there is a seat for it, and taken when there is or will be one at once (`Pace`); its run goes through the runtime's
admission as any run does, and one that is refused there is put back as it was. Whatever ends the worker, its runs end
first: cut, undone, and put back uncounted.

    take ─▶ begin ─▶ run ─▶ judge ─▶ settle         each job, in a task of its own
    renew ─▶ look who was cancelled, or is lost     as long as it lives, several times per lease
    rescue, reconcile, prune; schedules             for all workers: whoever comes first

A run's id is made of the job's and the number of times that an attempt of it was settled: one whose worker has died is
begun again with the same id, and so with the same keys; one that failed, and was rolled back, with another. Of a
durable flow's run the journal knows more: there it is carried on by whoever takes runs over (`Runtime.follow` tells).
"""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from secrets import token_hex
from typing import Final

import trio

from zerver.core.app import App
from zerver.core.jobs import RUN_PREFIX, JobRule, job_of_run
from zerver.core.priorities import RANK
from zerver.errors import JournalError, JournalUnavailable, LeaseLost
from zerver.jobs.attempt import SOON, End, end_in_journal, inputs_of, put_back, verdict_of
from zerver.jobs.capability import desk_of
from zerver.jobs.cron import follow_schedule, schedules_of
from zerver.jobs.living import Living
from zerver.jobs.pace import PATIENCE as PLACE_PATIENCE
from zerver.jobs.pace import Pace
from zerver.jobs.port import Job, JobStore, QueueRule, Verdict, Wanted
from zerver.jobs.seats import Seat
from zerver.jobs.seats import WorkerSettings as WorkerSettings
from zerver.jobs.seats import WorkerStatistics as WorkerStatistics
from zerver.jobs.settling import PATIENCE, Settling
from zerver.runtime import Result, Runtime
from zerver.runtime.groups import open_body_nursery, unwrapped
from zerver.runtime.live import LOST

_PLAIN: Final = WorkerSettings()

#: How many times per lease it is renewed.
RENEWALS: Final = 4

#: Seconds after which a store that is away is asked again, if nobody says when.
_A_WHILE: Final = 1.0

#: Seconds after which a job is looked at again that this code has no flow for: another worker may have one.
_STRANGE: Final = 60.0

#: Seconds between two looks at what is old enough to be forgotten.
_PRUNES: Final = 3600.0

#: After a take whose answer was lost: the server may perform it a moment after the connection broke.
_LOOKS: Final = 2

#: Parked jobs that are looked at in one round.
_PAGE: Final = 100


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
        self._ahead: deque[Seat] = deque()  # those that wait for a place among them that run at once
        self._running = 0
        self._filled = trio.Event()  # set when one waits for a place
        self._settling = Settling(self.store, self._is_durable, self._leave)
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
        self._living = Living(settings.lease)
        self._looked_until: int | None = None  # parked jobs before this one have not been looked at in this round
        self._carried_send, self._carried = trio.open_memory_channel[Result](math.inf)

    def statistics(self) -> WorkerStatistics:
        came = self._came + self._settling.came
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
        with self.runtime.follow(RUN_PREFIX, self._carried_send.send_nowait):
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._keep_lease)
                nursery.start_soon(self._settle_carried)
                nursery.start_soon(self._settling.run)
                nursery.start_soon(self._put_back_late)
                with self._taking:
                    async with trio.open_nursery() as taking:
                        taking.start_soon(self._take)
                        taking.start_soon(self._look_after)
                        for name, rule in self._app.crons.items():
                            schedule, declared = self._schedules[name], self._app.declared
                            taking.start_soon(follow_schedule, self.store, declared, rule, schedule, self._now)
                await self._wait_idle()
                nursery.cancel_scope.cancel()

    async def _take(self) -> None:
        while True:
            self._freed = trio.Event()
            free = self._free()
            if not free:
                await self._freed.wait()
                continue
            try:
                async with self._asking:
                    jobs = await self.store.take(self.owner, self._rules, free)
                    self._seat(jobs)
            except JournalUnavailable as error:
                self._doubts = _LOOKS
                await trio.sleep(error.retry_after or _A_WHILE)
                continue
            if len(jobs) < free and not (jobs and self._limited):
                await self._wait_for_news()

    def _seat(self, jobs: Sequence[Job]) -> None:
        self._came["taken"] += len(jobs)
        now = trio.current_time()
        for job in jobs:
            seat = Seat(job, job.run_id, now)
            self._seats.add(seat)
            self._ahead.append(seat)
        self._begin_next()
        self._filled.set()

    async def _find_ours(self) -> None:
        """Jobs that are ours, and we do not know of: their take was performed, and its answer was lost."""
        known, last = {seat.job.job_id for seat in self._seats}, None
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

    def _begin_next(self) -> None:
        """Begin those that were taken, as far as there are places."""
        while self._ahead and self._running < self.settings.seats and self._nursery is not None:
            seat = self._ahead.popleft()
            seat.runs, seat.began = True, trio.current_time()
            self._running += 1
            self._nursery.start_soon(self._work_on, seat)

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
        verdict: Verdict | None = None
        try:
            with seat.scope:
                verdict = await self._begin(seat)
            if verdict is None and not (seat.drained or seat.lost or seat.scope.cancel_called):
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
            self._running -= 1
            self._pace.held(trio.current_time() - seat.began)
            self._begin_next()
        self._freed.set()

    def _leave(self, seat: Seat) -> None:
        """Nothing is to be done for it any more."""
        self._came["lost"] += seat.lost
        self._seats.remove(seat)
        self._ended -= 1
        seat.gone.set()
        self._freed.set()
        if not self._seats:
            self._idle.unpark_all()

    async def _begin(self, seat: Seat) -> Verdict | None:
        """What is to be said of a job that cannot be begun, or has been; None for one whose run is to begin."""
        job, rule = seat.job, self._app.jobs.get(seat.job.flow)
        if rule is None:
            return put_back(self._now(), _STRANGE, f"there is no flow {job.flow!r} here")
        for older in [*self._seats]:  # this worker stood still, and took its own job from itself
            if older.job.job_id == job.job_id and older is not seat:
                self._let_go(older)
                await older.gone.wait()
        try:
            known = await end_in_journal(self.runtime, rule.flow, seat.run_id)
            if rule.flow.durability != "off":  # from now on it may be carried on by others, who have no job of it
                await self.store.began(job.job_id, job.fence, seat.run_id)
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
            self.runtime.is_job(seat.run_id, (job.queue, job.attempt, job.attempts, waited), may_undo)

        def queued(leave: Callable[[], None]) -> None:
            seat.leave_queue = leave

        parts, takes = inputs_of(prepared.plan, job, has_ticket)
        result = await self.runtime.execute(
            prepared,
            parts,
            takes,
            tenant=job.tenant,
            priority=job.priority,
            deadline=rule.deadline,
            label=rule.label,
            parent=job.parent,
            run_id=seat.run_id,
            on_queued=queued,
        )
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
        if seat in self._ahead:
            self._put_back(seat)
        elif seat.leave_queue is not None:
            seat.leave_queue()
        elif not self.runtime.cancel_nowait(seat.run_id, why):
            seat.scope.cancel()

    def _is_durable(self, job: Job) -> bool:
        rule = self._app.jobs.get(job.flow)
        return rule is not None and rule.flow.durability != "off"

    def _verdict(self, end: End, job: Job, rule: JobRule) -> Verdict:
        return verdict_of(end, job, rule, self._now(), self._draw())

    # -- its lease --

    async def _keep_lease(self) -> None:
        lease = self.settings.lease
        while True:
            with trio.move_on_after(lease / RENEWALS):
                try:
                    await self._renew(lease)
                except JournalUnavailable:
                    pass
            await trio.sleep(lease / RENEWALS)

    async def _renew(self, lease: float) -> None:
        """Say that this worker lives; and hear whose jobs have been cancelled, or are another's because it did not."""
        asked = trio.current_time()
        await self.store.renew(self.owner, lease)
        if asked - self._living.said > lease:
            for seat in [*self._seats]:
                found = await self.store.find(seat.job.job_id)
                if found is None or found.fence != seat.job.fence:
                    self._let_go(seat)
        self._living.hear(asked)
        cancelled = await self.store.cancelled(self.owner)
        for seat in [*self._seats]:
            why = cancelled.get(seat.job.job_id)
            if why is not None:
                self._end(seat, f"the job was cancelled: {why}")

    def _let_go(self, seat: Seat) -> None:
        """Another worker has begun it with the same keys: to undo anything here would undo it there. Of a durable run
        the journal says whose it is.
        """
        if self._is_durable(seat.job):
            return
        seat.lost = True
        self._end(seat, LOST.reason)
        for run in self.runtime.under_way():
            if run.run_id == seat.run_id:
                run.stop(LOST)

    # -- for all workers --

    async def _look_after(self) -> None:
        """Rescue jobs of workers that have died, settle those whose run was ended elsewhere, forget old ones."""
        prunes = 0.0
        while True:
            try:
                self._came["rescued"] += len(await self.store.rescue())
                if self._doubts:
                    async with self._asking:
                        await self._find_ours()
                    self._doubts -= 1
                await self._reconcile()
                if trio.current_time() >= prunes:
                    prunes = trio.current_time() + _PRUNES
                    await self.store.prune(self._now() - round(self.settings.keep * 1e9))
            except JournalError:
                pass
            await trio.sleep(self.settings.lease / 2)

    async def _reconcile(self) -> None:
        """Jobs whose run has ended in the journal, and nobody said so: who carried it on has died just then, or works
        on no jobs. A page of them at a time.
        """
        if self.runtime.clerk is None:
            return
        page = await self.store.search(Wanted(states=("parked",)), _PAGE, self._looked_until)
        self._looked_until = page[-1].seq if len(page) == _PAGE else None
        for job in page:
            rule = self._app.jobs.get(job.flow)
            if rule is None:
                continue
            end = await end_in_journal(self.runtime, rule.flow, job.run_id)
            if end is None:
                await self.store.unpark(job.run_id, put_back(self._now(), 0.0, "the journal has nothing of its run"))
            elif end.ending.status != "parked":
                await self.store.unpark(job.run_id, self._verdict(end, job, rule))

    async def _settle_carried(self) -> None:
        """Jobs whose run this process has carried on. What cannot be said now is found by `_reconcile`."""
        async for result in self._carried:
            try:
                job = await self.store.find(job_of_run(result.run_id))
                rule = None if job is None else self._app.jobs.get(job.flow)
                if job is not None and rule is not None and result.status != "parked":
                    end = End(result.ending, bool(result.unresolved))
                    await self.store.unpark(result.run_id, self._verdict(end, job, rule))
            except JournalUnavailable:
                continue


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
            with trio.CancelScope(shield=True), unwrapped():  # whatever ends the block, jobs are settled first
                await worker.work()
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
