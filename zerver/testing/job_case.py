"""What the laws about stores of jobs are written with.

Law: each law has queues, workers and ids of its own, so that the store need not be empty, and other laws' jobs are
never in its way.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any, Final, TypeAlias
from uuid import uuid4

import attrs

from zerver.jobs.port import Job, JobStore, Order, QueueRule, Verdict, Wanted

#: Opens the same store each time.
OpenStore: TypeAlias = Callable[[], AbstractAsyncContextManager[JobStore]]

#: Seconds of a lease that does not lapse by itself while a law runs.
LONG: Final = 600.0

#: An hour from whenever this is read, for what is not to begin while a law runs.
LATER_NS: Final = 3600 * 10**9

DONE: Final = Verdict("done", result="null")

_numbers = count(1)
_here = uuid4().hex[:8]


def name(what: str) -> str:
    """A name that no law has used before, here or in another process."""
    return f"{what}-{_here}-{next(_numbers)}"


@attrs.frozen
class Case:
    """A store, and a few ways to use it. queue: a queue of this law's own."""

    store: JobStore
    open_store: OpenStore
    queue: str = attrs.field(factory=lambda: name("queue"))

    def new(self, **said: Any) -> Order:
        """An order, in this law's queue unless it is said."""
        return Order(**{"job_id": name("job"), "flow": "flow", "queue": self.queue, **said})

    async def order(self, **said: Any) -> str:
        (job_id,) = await self.store.order([self.new(**said)])
        return job_id

    async def worker(self, what: str = "worker", store: JobStore | None = None) -> str:
        """A worker that lives."""
        owner = name(what)
        await (store or self.store).renew(owner, LONG)
        return owner

    async def take(self, owner: str = "", count: int = 100, **rule: Any) -> list[Job]:
        """Jobs of this law's queue, taken by this worker, or a new one."""
        rules = [QueueRule(self.queue, **rule)]
        return await self.store.take(owner or await self.worker(), rules, count)

    async def one(self, owner: str = "") -> Job:
        """The one job that there is to take."""
        found = await self.take(owner)
        if len(found) != 1:
            raise AssertionError(f"{len(found)} jobs were taken, and there was one")
        return found[0]

    async def job(self, job_id: str) -> Job:
        found = await self.store.find(job_id)
        if found is None:
            raise AssertionError(f"job {job_id} is not there")
        return found

    async def state(self, job_id: str) -> str:
        return (await self.job(job_id)).state

    async def settle(self, job: Job, verdict: Verdict = DONE) -> bool:
        (held,) = await self.store.settle([(job.job_id, job.fence, verdict)])
        return held

    async def died(self, owner: str) -> list[Job]:
        """A worker gives its jobs up, and they are rescued: this law's, by seq."""
        await self.store.renew(owner, 0.0)
        found = []
        while rescued := await self.store.rescue():
            found += [job for job in rescued if job.queue == self.queue]
        return sorted(found, key=lambda job: job.seq)

    @property
    def all(self) -> Wanted:
        return Wanted(queues=(self.queue,))

    @asynccontextmanager
    async def others(self, number: int) -> AsyncGenerator[Sequence[JobStore], None]:
        """So many stores of other processes, beside this one."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.open_store()) for _ in range(number)]


def ids_of(jobs: Sequence[Job]) -> list[str]:
    """The ids of jobs, in their order."""
    return [job.job_id for job in jobs]
