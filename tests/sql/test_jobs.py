"""Proves that a job has one owner at a time, and that whoever waits for one is told how it ended."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from zerver.core.priorities import Priority
from zerver.errors import ConnectionLost, DriverClosed
from zerver.sql.driver import Changed, Statement
from zerver.sql.jobs import Desk, Job, JobQueue, Stopped


class Hands:
    """A worker in name only: the test claims jobs and hands them back for it."""

    def __init__(self) -> None:
        self.interrupted: list[Job] = []

    def interrupt(self, job: Job) -> None:
        self.interrupted.append(job)


def test_a_job_is_claimed_or_withdrawn_and_never_both() -> None:
    worker, rival = Hands(), Hands()
    claimed, withdrawn = Job([]), Job([])
    assert claimed.claim(worker)
    assert not claimed.claim(rival)
    assert not claimed.stop()
    assert worker.interrupted == [claimed]
    assert withdrawn.stop()
    assert not withdrawn.claim(worker)
    assert withdrawn.worker is None


def test_a_job_that_is_put_back_can_be_claimed_or_withdrawn_again() -> None:
    worker, job = Hands(), Job([])
    assert job.claim(worker)
    job.put_back()
    assert job.worker is None
    assert job.claim(worker)
    job.put_back()
    assert job.stop()


def test_a_job_that_is_put_back_while_it_is_stopped_is_withdrawn() -> None:
    class PutsBack(Hands):
        def interrupt(self, job: Job) -> None:
            job.put_back()

    job = Job([])
    assert job.claim(PutsBack())
    assert job.stop()


def test_of_many_threads_one_gets_the_job() -> None:
    def race(job: Job, winners: list[Hands]) -> None:
        worker = Hands()
        if job.claim(worker):
            winners.append(worker)

    for _ in range(20):
        job, winners = Job([]), []
        threads = [threading.Thread(target=race, args=(job, winners)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert winners == [job.worker]


def job_of(priority: Priority) -> Job:
    return Job([Statement("select 1", priority=priority)])


def test_jobs_are_queued_by_class() -> None:
    queue, jobs = JobQueue(), {priority: job_of(priority) for priority in ("batch", "default", "interactive")}
    for job in jobs.values():
        queue.put(job)
    queue.stop()
    assert [queue.get() for _ in range(2)] == [jobs["interactive"], jobs["default"]]
    assert queue.get_nowait() is jobs["batch"]
    assert queue.get_nowait() is None  # the word to stop is left for `get`
    assert not queue.empty()
    assert queue.get() is None
    assert queue.empty()
    assert queue.get_nowait() is None


def test_of_many_threads_each_job_goes_to_one() -> None:
    queue, got = JobQueue(), list[Job]()

    def work() -> None:
        while (job := queue.get()) is not None:
            got.append(job)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    jobs = [job_of("batch" if number % 2 else "interactive") for number in range(500)]
    for job in jobs:
        queue.put(job)
    for _ in threads:
        queue.stop()
    for thread in threads:
        thread.join()
    assert sorted(map(id, got)) == sorted(map(id, jobs))


async def settle(desk: Desk, job: Job, outcomes: list[object]) -> None:
    try:
        await desk.settle(job, lambda job: None)
    except (ConnectionLost, DriverClosed) as error:
        outcomes.append(type(error))
    else:
        outcomes.append(job.answers)


async def test_a_job_is_waiting_then_running_then_over(nursery: trio.Nursery) -> None:
    desk, job, outcomes = Desk(), Job([]), []
    nursery.start_soon(settle, desk, job, outcomes)
    await trio.testing.wait_all_tasks_blocked()
    assert (desk.waiting, desk.running) == (1, 0)
    job.claim(Hands())
    assert (desk.waiting, desk.running) == (0, 1)
    job.answers = [Changed(1)]
    await trio.to_thread.run_sync(desk.hand_back, [job])
    await trio.testing.wait_all_tasks_blocked()
    assert (desk.waiting, desk.running) == (0, 0)
    assert outcomes == [[Changed(1)]]


@pytest.mark.parametrize("stopped_in_time", [True, False])
async def test_a_cancellation_counts_only_if_it_stopped_the_job(nursery: trio.Nursery, stopped_in_time: bool) -> None:
    desk, job, worker, outcomes = Desk(), Job([]), Hands(), []
    scope = trio.CancelScope()

    async def call() -> None:
        with scope:
            await settle(desk, job, outcomes)

    nursery.start_soon(call)
    await trio.testing.wait_all_tasks_blocked()
    job.claim(worker)
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert worker.interrupted == [job]
    assert desk.running == 1  # until the worker says how it ended, nobody claims to know
    job.error = Stopped() if stopped_in_time else None
    desk.hand_back([job])
    await trio.testing.wait_all_tasks_blocked()
    assert scope.cancelled_caught is stopped_in_time
    assert outcomes == ([] if stopped_in_time else [[]])


async def test_closing_withdraws_what_waits_and_stops_what_runs(nursery: trio.Nursery) -> None:
    desk, waiting, running, worker, outcomes = Desk(), Job([]), Job([]), Hands(), []
    for job in (waiting, running):
        nursery.start_soon(settle, desk, job, outcomes)
    await trio.testing.wait_all_tasks_blocked()
    running.claim(worker)
    desk.close()
    await trio.testing.wait_all_tasks_blocked()
    assert outcomes == [DriverClosed]
    assert worker.interrupted == [running]
    running.error = Stopped()
    desk.hand_back([running])
    await trio.testing.wait_all_tasks_blocked()
    assert outcomes == [DriverClosed, DriverClosed]


async def test_a_worker_that_never_answers_leaves_nobody_waiting(nursery: trio.Nursery) -> None:
    desk, job, outcomes = Desk(), Job([]), []
    nursery.start_soon(settle, desk, job, outcomes)
    await trio.testing.wait_all_tasks_blocked()
    job.claim(Hands())
    desk.abandon(lambda: ConnectionLost("stuck"))
    await trio.testing.wait_all_tasks_blocked()
    assert outcomes == [ConnectionLost]
    desk.hand_back([job])  # it comes back to life: too late to matter
    await trio.testing.wait_all_tasks_blocked()
    assert outcomes == [ConnectionLost]


def test_a_worker_is_told_that_the_run_is_over() -> None:
    async def main() -> Desk:
        return Desk()

    desk = trio.run(main)
    with pytest.raises(trio.RunFinishedError):
        desk.hand_back([Job([])])
