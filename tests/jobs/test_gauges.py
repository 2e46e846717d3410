"""What waits in the queues is told as it was read last, which is seldom; what a worker does, as it is."""

from __future__ import annotations

from collections.abc import Iterable

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.jobs.working import SEND, an_app, at_work, until
from zerver.errors import JournalUnavailable
from zerver.jobs import enqueue
from zerver.jobs.gauges import EVERY, QueueGauges, worker_families
from zerver.jobs.memory import JobDisk, MemoryJobs, open_memory_jobs
from zerver.jobs.port import Order, QueueState, Verdict
from zerver.jobs.port import QueueRule as Rule
from zerver.trace.telemetry.instruments import Family, MetricsSnapshot


def read(families: Iterable[Family]) -> MetricsSnapshot:
    return MetricsSnapshot(0, 0, tuple(families))


async def test_jobs_are_told_by_queue_and_state(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    disk = JobDisk()
    async with open_memory_jobs(disk) as store:
        await store.order([Order(str(n), "flow", "mail") for n in range(4)])
        await store.pause("reports", True)
        (job,) = await store.take("worker", [Rule("mail")], 1)
        await store.settle([(job.job_id, job.fence, Verdict("dead"))])
        gauges = QueueGauges(store, disk.wall_ns)
        assert read(gauges.families()).families[0].points == ()
        nursery.start_soon(gauges.watch)
        await wait_all_tasks_blocked()
        await trio.sleep(5)
        told = read(gauges.families())
        assert told.value("zerver.queue.jobs", "mail", "available") == 3
        assert told.value("zerver.queue.jobs", "mail", "dead") == 1
        assert 5.0 <= told.value("zerver.queue.age", "mail") < 6.0
        assert told.value("zerver.queue.age", "reports") == 0.0
        assert told.value("zerver.queue.paused", "reports") == 1
        assert told.value("zerver.queue.paused", "mail") == 0
        assert {point.labels for point in told.family("zerver.queue.jobs").points} >= {("reports", "running")}
        nursery.cancel_scope.cancel()


class Slow(MemoryJobs):
    """A store that takes its time, may be away, and counts how often it was asked."""

    took = 0.0
    away = False
    asked = 0

    async def queues(self) -> list[QueueState]:
        self.asked += 1
        await trio.sleep(self.took)
        if self.away:
            raise JournalUnavailable("it is away")
        return await super().queues()


async def test_the_store_is_asked_seldom_and_the_more_seldom_the_longer_it_takes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = Slow(JobDisk())
    gauges = QueueGauges(store)
    nursery.start_soon(gauges.watch)
    await trio.sleep(10 * EVERY + 1)
    for _ in range(1000):
        read(gauges.families())
    assert store.asked == 11
    store.took, store.asked = 2.0, 0
    await trio.sleep(1000)
    assert 4 <= store.asked <= 6
    nursery.cancel_scope.cancel()


async def test_nothing_is_told_of_a_store_that_is_away(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    store = Slow(JobDisk())
    await store.order([Order("1", "flow", "mail")])
    gauges = QueueGauges(store)
    nursery.start_soon(gauges.watch)
    await trio.sleep(1)
    assert read(gauges.families()).family("zerver.queue.jobs").points
    store.away = True
    await trio.sleep(EVERY)
    assert [family.points for family in gauges.families()] == [(), (), ()]
    store.away = False
    await trio.sleep(EVERY)
    assert read(gauges.families()).family("zerver.queue.jobs").points
    nursery.cancel_scope.cancel()


async def test_a_worker_is_told_as_its_statistics_say(autojump_clock: MockClock) -> None:
    async with at_work(an_app(JobDisk(), SEND, queue="mail"), seats=3) as (runtime, worker):
        await until(runtime, await enqueue(runtime, SEND, {"to": "ada"}), "done")
        await until(runtime, await enqueue(runtime, SEND, {"not": "a mail"}), "dead")
        told = read(worker_families(worker.statistics()))
    assert told.value("zerver.jobs.seats") == 3
    assert told.value("zerver.jobs.taken") == 2
    assert told.value("zerver.jobs.ended", "done") == 1
    assert told.value("zerver.jobs.ended", "dead") == 1
    assert told.value("zerver.jobs.ended", "again") == 0
    assert told.value("zerver.jobs.rescued") == 0
    assert told.family("zerver.jobs.running").points == ()
