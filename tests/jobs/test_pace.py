"""Jobs that are short are taken ahead; none waits long behind a slow one, and none is lost with a take's answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from tests.jobs.working import LEASE, an_app, at_work, bare_order, until
from zerver import App, Done, Flow, step
from zerver.effects import clock
from zerver.errors import JournalUnavailable
from zerver.jobs import jobs_capability
from zerver.jobs.capability import desk_of
from zerver.jobs.memory import JobDisk, MemoryJobs
from zerver.jobs.pace import PATIENCE, Pace
from zerver.jobs.port import Job, QueueRule, Wanted


def test_nothing_is_taken_ahead_before_it_is_known_how_long_jobs_are() -> None:
    pace = Pace(16, allowed=True)
    assert pace.ahead == 0
    for _ in range(60):
        pace.held(0.001)
    assert pace.ahead == 512
    pace.held(10.0)
    assert pace.ahead == 0


def test_ahead_is_taken_what_the_seats_can_soon_begin() -> None:
    pace = Pace(16, allowed=True)
    for _ in range(100):
        pace.held(0.1)
    assert pace.ahead in (7, 8)  # the mean comes near 0.1 and never is
    pace.waited_in_vain()
    assert pace.ahead == 0
    pace.held(0.0)
    assert pace.ahead <= 1  # one that was short says little
    for _ in range(100):
        pace.held(0.0)
    assert pace.ahead == 512


def test_of_limited_queues_nothing_is_taken_ahead() -> None:
    pace = Pace(16, allowed=False)
    for _ in range(100):
        pace.held(0.0)
    assert pace.ahead == 0


async def test_jobs_that_were_taken_ahead_are_put_back_when_the_seats_are_held(autojump_clock: object) -> None:
    begun: list[float] = []

    @step
    async def act() -> Done:
        begun.append(trio.current_time())
        if len(begun) > 40:
            await clock.sleep(100.0)
        return Done()

    flow = Flow("act", [act])
    async with at_work(an_app(JobDisk(), flow), seats=1) as (runtime, worker):
        store = desk_of(runtime).store
        await store.order([bare_order(f"j{number}", "act") for number in range(45)])
        while len(begun) <= 40:
            await trio.sleep(0.01)
        await trio.sleep(3 * PATIENCE)
        (queue,) = await store.queues()
        assert queue.counts["running"] == 1  # the rest is for other workers
        assert queue.counts["available"] == 4
        assert worker.statistics().running == {"default": 1}
        for number in range(41, 45):
            job = await until(runtime, f"j{number}", "done", seconds=1000.0)
            assert job.attempt == 1


async def test_no_more_jobs_run_at_once_than_there_are_seats(autojump_clock: object) -> None:
    running, most = 0, 0

    @step
    async def act() -> Done:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await clock.sleep(0.001)
        running -= 1
        return Done()

    flow = Flow("act", [act])
    async with at_work(an_app(JobDisk(), flow), seats=3) as (runtime, worker):
        await desk_of(runtime).store.order([bare_order(f"j{number}", "act") for number in range(200)])
        with trio.fail_after(100):
            while worker.statistics().done < 200:
                await trio.sleep(0.01)
    assert most == 3


class Forgetful(MemoryJobs):
    """Its first take is performed, and its answer is lost."""

    lost: Sequence[Job] = ()

    async def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        jobs = await super().take(owner, rules, count)
        if jobs and not self.lost:
            self.lost = jobs
            raise JournalUnavailable("nobody knows whether it was done")
        return jobs


async def test_jobs_whose_take_was_not_answered_are_found(autojump_clock: object) -> None:
    @step
    def act() -> Done:
        return Done()

    flow = Flow("act", [act])
    disk = JobDisk()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield Forgetful(disk)

    app = App(capabilities=[jobs_capability(opened, disk.wall_ns)])
    app.job(flow)
    async with at_work(app) as (runtime, _):
        store: Any = desk_of(runtime).store
        await store.order([bare_order("a", "act"), bare_order("b", "act")])
        began = trio.current_time()
        job = await until(runtime, "a", "done", seconds=100.0)
        assert trio.current_time() - began <= LEASE
        assert (job.attempt, job.rescues) == (1, 0)
        assert len(store.lost) == 2


async def test_a_job_that_comes_while_ours_are_looked_for_is_begun_once(autojump_clock: object) -> None:
    disk, begun = JobDisk(), list[float]()

    @step
    async def act() -> Done:
        begun.append(trio.current_time())
        await clock.sleep(LEASE)
        return Done()

    class Slow(MemoryJobs):
        """Once away when it is to give jobs; and slow to tell what runs."""

        away = True

        async def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
            if self.away:
                self.away = False
                raise JournalUnavailable("it is away", retry_after=0.5)
            return await super().take(owner, rules, count)

        async def search(self, wanted: Wanted, count: int = 50, before_seq: int | None = None) -> list[Job]:
            await trio.sleep(1.0)
            return await super().search(wanted, count, before_seq)

    @asynccontextmanager
    async def open_slow() -> AsyncIterator[MemoryJobs]:
        yield Slow(disk)

    app = App(capabilities=[jobs_capability(open_slow, disk.wall_ns)])
    app.job(Flow("job", [act]))
    async with at_work(app) as (runtime, worker):
        await desk_of(runtime).store.order([bare_order("one", "job")])
        await until(runtime, "one", "done")
        assert (len(begun), worker.statistics().taken, worker.statistics().lost) == (1, 1, 0)
