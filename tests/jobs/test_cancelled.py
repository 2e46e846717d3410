"""Every verb, cancelled at each moment of it: it ends with Cancelled, and leaves a store that works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from itertools import count
from pathlib import Path

import pytest

from zerver.jobs.memory import open_memory_jobs
from zerver.jobs.places import open_sqlite_jobs
from zerver.jobs.port import STATES, Job, JobStore, Order, QueueRule, Verdict, Wanted
from zerver.testing import sweep_calls

RULES = [QueueRule("default", limit=50)]

Call = Callable[[JobStore, Job], Awaitable[object]]

VERBS: dict[str, Call] = {
    "order": lambda store, job: store.order([Order("new", "flow")]),
    "renew": lambda store, job: store.renew("worker", 60.0),
    "take": lambda store, job: store.take("worker", RULES, 5),
    "rescue": lambda store, job: store.rescue(),
    "began": lambda store, job: store.began(job.job_id, job.fence, "run"),
    "settle": lambda store, job: store.settle([(job.job_id, job.fence, Verdict("done"))]),
    "unpark": lambda store, job: store.unpark("run", Verdict("done")),
    "progress": lambda store, job: store.progress(job.job_id, 1, 2, "note"),
    "wait": lambda store, job: store.wait(),
    "find": lambda store, job: store.find(job.job_id),
    "search": lambda store, job: store.search(Wanted()),
    "retry": lambda store, job: store.retry(Wanted()),
    "cancel": lambda store, job: store.cancel(Wanted(), "reason"),
    "cancelled": lambda store, job: store.cancelled("worker"),
    "delete": lambda store, job: store.delete(Wanted()),
    "pause": lambda store, job: store.pause("default", False),
    "queues": lambda store, job: store.queues(),
    "why": lambda store, job: store.why(job.job_id),
    "prune": lambda store, job: store.prune(1),
    "due": lambda store, job: store.due("schedule", "* *", 1),
    "fire": lambda store, job: store.fire("schedule", 1, 2, [Order("fired", "flow")]),
}


async def sweep(opening: AbstractAsyncContextManager[JobStore], call: Call, most: int | None = None) -> None:
    """Cancel the verb at each moment, each time with a running job, and one that came since; then work as ever."""
    numbers, jobs = count(1), list[Job]()

    async with opening as store:

        async def setup() -> None:
            number = next(numbers)
            await store.pause("default", False)
            await store.renew("worker", 60.0)
            await store.order([Order(f"job {number}", "flow", priority="interactive")])
            jobs[:] = await store.take("worker", [QueueRule("default")], 1)
            await store.order([Order(f"later {number}", "flow")])

        async def check() -> None:
            found = await store.find(jobs[0].job_id)
            assert found is None or found.state in STATES
            await store.cancel(Wanted(), "over")
            running = await store.search(Wanted(states=("running",)), 500)
            held = await store.settle([(job.job_id, job.fence, Verdict("done")) for job in running])
            assert all(held)
            assert await store.take("worker", RULES, 5) == []

        await sweep_calls(lambda: call(store, jobs[0]), setup=setup, check=check, max_points=most)


@pytest.mark.parametrize("verb", VERBS)
async def test_memory(verb: str) -> None:
    await sweep(open_memory_jobs(), VERBS[verb])


@pytest.mark.parametrize("verb", VERBS)
async def test_sqlite(verb: str, tmp_path: Path) -> None:
    await sweep(open_sqlite_jobs(tmp_path / "jobs.db"), VERBS[verb], 12)
