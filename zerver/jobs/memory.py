"""A store of jobs in memory: for tests and simulations. It survives a runtime, and not its process.

Law: it keeps every promise of the port but for the disk, which is a value: two stores opened on one JobDisk are two
workers on one database, and one that is opened on it later is the next process. Time goes by Trio's clock; it begins at
the wall's time when the disk is made.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from zerver.core.orders import check_orders
from zerver.errors import LeaseLost
from zerver.jobs.disk import JobDisk as JobDisk
from zerver.jobs.port import (
    STATES,
    Job,
    JobState,
    JobStore,
    Order,
    QueueRule,
    QueueState,
    ScheduleState,
    Verdict,
    Wanted,
)
from zerver.jobs.reasons import Circumstances, reason


@asynccontextmanager
async def open_memory_jobs(disk: JobDisk | None = None) -> AsyncGenerator[MemoryJobs, None]:
    """Open the store of jobs on this disk, a new one by default."""
    yield MemoryJobs(disk or JobDisk())


class MemoryJobs(JobStore):
    """A store of jobs in memory; made by `open_memory_jobs`."""

    def __init__(self, disk: JobDisk) -> None:
        self.disk = disk
        self._seen = -1
        self._counts = {"ordered": 0, "taken": 0, "settled": 0, "refused": 0, "rescued": 0}

    async def order(self, orders: Sequence[Order]) -> list[str]:
        check_orders(orders)
        await trio.lowlevel.checkpoint()
        ids = self.disk.order(orders)
        self._counts["ordered"] += len(orders)
        self.disk.wake()
        return ids

    async def renew(self, owner: str, lease_seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        self.disk.lapses[owner] = trio.current_time() + lease_seconds

    async def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        await trio.lowlevel.checkpoint()
        self._seen = self.disk.changed
        self.disk.rules.update((rule.name, rule) for rule in rules)
        jobs = self.disk.take(owner, rules, count)
        self._counts["taken"] += len(jobs)
        return jobs

    async def rescue(self) -> list[Job]:
        await trio.lowlevel.checkpoint()
        jobs = self.disk.rescue(trio.current_time())
        self._counts["rescued"] += len(jobs)
        if jobs:
            self.disk.wake()
        return jobs

    async def began(self, job_id: str, fence: int, run_id: str) -> None:
        await trio.lowlevel.checkpoint()
        row = self.disk.rows.get(job_id)
        if row is None or row.job.fence != fence or row.job.state != "running":
            raise LeaseLost(f"job {job_id} is another worker's by now, or over; this one's fence was {fence}")
        row.set(run_id=run_id)
        row.underway = True

    async def settle(self, verdicts: Sequence[tuple[str, int, Verdict]]) -> list[bool]:
        await trio.lowlevel.checkpoint()
        held = [self.disk.settle(*verdict) for verdict in verdicts]
        self._counts["settled"] += sum(held)
        self._counts["refused"] += len(held) - sum(held)
        self.disk.wake()
        return held

    async def unpark(self, run_id: str, verdict: Verdict) -> bool:
        await trio.lowlevel.checkpoint()
        found = self.disk.unpark(run_id, verdict)
        self.disk.wake()
        return found

    async def progress(self, job_id: str, done: int, total: int, note: str) -> None:
        await trio.lowlevel.checkpoint()
        row = self.disk.rows.get(job_id)
        if row is not None and row.job.state == "running":
            row.set(done=done, total=total, note=note)

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._seen != self.disk.changed:
            return
        due = min((row.job.at_unix_ns for row in self.disk.of_state("scheduled")), default=None)
        pause = float("inf") if due is None else max(0.0, (due - self.disk.wall_ns()) / 1e9)
        with trio.move_on_after(pause):
            await self.disk.changes.wait()

    async def find(self, job_id: str) -> Job | None:
        await trio.lowlevel.checkpoint()
        row = self.disk.rows.get(job_id)
        return None if row is None else row.job

    async def search(self, wanted: Wanted, count: int = 50, before_seq: int | None = None) -> list[Job]:
        await trio.lowlevel.checkpoint()
        found = [row.job for row in self.disk.wanted(wanted) if before_seq is None or row.job.seq < before_seq]
        return sorted(found, key=lambda job: -job.seq)[:count]

    async def retry(self, wanted: Wanted) -> int:
        await trio.lowlevel.checkpoint()
        number = self.disk.retry(wanted)
        self.disk.wake()
        return number

    async def cancel(self, wanted: Wanted, reason: str) -> int:
        await trio.lowlevel.checkpoint()
        return self.disk.cancel(wanted, reason or "cancelled")

    async def cancelled(self, owner: str) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return {
            row.job.job_id: row.stopping
            for row in self.disk.of_state("running")
            if row.stopping and row.job.owner == owner
        }

    async def delete(self, wanted: Wanted) -> int:
        await trio.lowlevel.checkpoint()
        return self.disk.delete(wanted)

    async def pause(self, queue: str, paused: bool) -> None:
        await trio.lowlevel.checkpoint()
        self.disk.paused[queue] = paused
        self.disk.wake()

    async def queues(self) -> list[QueueState]:
        await trio.lowlevel.checkpoint()
        names = {row.job.queue for row in self.disk.rows.values()} | self.disk.paused.keys()
        return [self._queue(name) for name in sorted(names | _limited(self.disk.rules))]

    def _queue(self, name: str) -> QueueState:
        jobs = [row.job for row in self.disk.rows.values() if row.job.queue == name]
        counts: Mapping[JobState, int] = {state: sum(job.state == state for job in jobs) for state in STATES}
        oldest = min((job.at_unix_ns for job in jobs if job.state == "available"), default=0)
        rule = self.disk.rules.get(name, QueueRule(name))
        return QueueState(rule, self.disk.paused.get(name, False), counts, oldest)

    async def why(self, job_id: str) -> str:
        await trio.lowlevel.checkpoint()
        row = self.disk.rows.get(job_id)
        if row is None:
            return "there is no such job"
        rule = self.disk.rules.get(row.job.queue, QueueRule(row.job.queue))
        running = [other.job for other in self.disk.of_state("running") if other.job.queue == row.job.queue]
        of_tenant = sum(job.tenant == row.job.tenant for job in running)
        paused = int(self.disk.paused.get(row.job.queue, False))
        around = Circumstances(paused, rule.limit, rule.per_tenant, len(running), of_tenant, len(self.disk.lapses))
        return reason(row.job, around)

    async def prune(self, ended_before_unix_ns: int, count: int = 1000) -> int:
        await trio.lowlevel.checkpoint()
        return self.disk.prune(ended_before_unix_ns, count)

    async def due(self, name: str, spec: str, first_unix_ns: int) -> int:
        await trio.lowlevel.checkpoint()
        if self.disk.schedules.get(name, ("", 0))[0] != spec:
            self.disk.schedules[name] = spec, first_unix_ns
        return self.disk.schedules[name][1]

    async def fire(self, name: str, due_unix_ns: int, next_unix_ns: int, orders: Sequence[Order]) -> bool:
        check_orders(orders)
        await trio.lowlevel.checkpoint()
        spec, due = self.disk.schedules.get(name, ("", -1))
        if due != due_unix_ns:
            return False
        self.disk.schedules[name] = spec, next_unix_ns
        self.disk.order(orders)
        self._counts["ordered"] += len(orders)
        self.disk.wake()
        return True

    async def schedules(self) -> list[ScheduleState]:
        await trio.lowlevel.checkpoint()
        return [ScheduleState(name, spec, due) for name, (spec, due) in sorted(self.disk.schedules.items())]

    def statistics(self) -> Mapping[str, Any]:
        return {"place": "memory", **self._counts}


def _limited(rules: Mapping[str, QueueRule]) -> set[str]:
    return {name for name, rule in rules.items() if rule != QueueRule(name)}
