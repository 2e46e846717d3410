"""The store of jobs in memory: the port's promises, and time that goes by Trio's clock."""

from __future__ import annotations

from functools import partial

import trio
from trio.testing import MockClock

from zerver.jobs.memory import JobDisk, open_memory_jobs
from zerver.jobs.port import Order, QueueRule
from zerver.testing.jobs import check_jobs


async def test_kit() -> None:
    await check_jobs(partial(open_memory_jobs, JobDisk()))


async def test_times_and_leases_go_by_trios_clock(autojump_clock: MockClock) -> None:
    disk = JobDisk()
    async with open_memory_jobs(disk) as store:
        await store.order([Order("later", "flow", at_unix_ns=disk.wall_ns() + 3600 * 10**9)])
        await store.renew("worker", 10.0)
        assert await store.take("worker", [QueueRule("default")], 1) == []
        await store.wait()
        assert trio.current_time() == 3600.0
        (job,) = await store.take("worker", [QueueRule("default")], 1)
        assert job.job_id == "later"
        assert [job.job_id for job in await store.rescue()] == ["later"]
