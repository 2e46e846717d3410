"""What a worker does for all: rescues jobs, settles those whose run was carried on, forgets old ones.

Law: whoever comes first does it, and it does no harm when two do; what cannot be done now is done the next time round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import trio

from zerver.core.jobs import RUN_PREFIX, JobRule, job_of_run
from zerver.errors import JournalError, JournalUnavailable
from zerver.jobs.attempt import End, end_in_journal, put_back
from zerver.jobs.capability import desk_of
from zerver.jobs.port import Job, Verdict, Wanted
from zerver.jobs.seats import WorkerSettings
from zerver.runtime import Result, Runtime

#: Seconds between two looks at what is old enough to be forgotten.
_PRUNES: Final = 3600.0

#: Parked jobs that are looked at in one round.
_PAGE: Final = 100


class Care:
    """judge: what becomes of a job whose run has ended so."""

    def __init__(
        self, runtime: Runtime, settings: WorkerSettings, judge: Callable[[End, Job, JobRule], Verdict]
    ) -> None:
        desk = desk_of(runtime)
        self.rescued = 0  # jobs, of other workers
        self._runtime = runtime
        self._settings = settings
        self._judge = judge
        self._store = desk.store
        self._now = desk.now
        self._looked_until: int | None = None  # parked jobs before this one have not been looked at in this round
        self._carried_send, self._carried = trio.open_memory_channel[Result](math.inf)

    def follow(self) -> AbstractContextManager[None]:
        """Be told of jobs' runs that this process carries on."""
        return self._runtime.follow(RUN_PREFIX, self._carried_send.send_nowait)

    async def look_after(self) -> None:
        """Rescue jobs of workers that have died, settle those whose run was ended elsewhere, forget old ones."""
        prunes = trio.current_time() + self._settings.lease  # a worker that begins has better things to do
        while True:
            try:
                self.rescued += len(await self._store.rescue())
                await self._reconcile()
                if trio.current_time() >= prunes:
                    prunes = trio.current_time() + _PRUNES
                    await self._store.prune(self._now() - round(self._settings.keep * 1e9))
            except JournalError:
                pass
            await trio.sleep(self._settings.lease / 2)

    async def _reconcile(self) -> None:
        """Jobs whose run has ended in the journal, and nobody said so: who carried it on has died just then, or works
        on no jobs. A page of them at a time.
        """
        if self._runtime.clerk is None:
            return
        page = await self._store.search(Wanted(states=("parked",)), _PAGE, self._looked_until)
        self._looked_until = page[-1].seq if len(page) == _PAGE else None
        for job in page:
            rule = self._runtime.app.jobs.get(job.flow)
            if rule is None:
                continue
            end = await end_in_journal(self._runtime, rule.flow, job.run_id)
            if end is None:
                await self._store.unpark(job.run_id, put_back(self._now(), 0.0, "the journal has nothing of its run"))
            elif end.ending.status != "parked":
                await self._store.unpark(job.run_id, self._judge(end, job, rule))

    async def settle_carried(self) -> None:
        """Settle jobs whose run this process has carried on. What cannot be said now is found by `_reconcile`."""
        async for result in self._carried:
            try:
                job = await self._store.find(job_of_run(result.run_id))
                rule = None if job is None else self._runtime.app.jobs.get(job.flow)
                if job is not None and rule is not None and result.status != "parked":
                    end = End(result.ending, bool(result.unresolved))
                    await self._store.unpark(result.run_id, self._judge(end, job, rule))
            except JournalUnavailable:
                continue
