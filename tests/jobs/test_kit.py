"""The proof kit: a store that keeps the port's promises passes, and one that breaks a promise is found out by a law."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.testing.at_work import at_work
from zerver.errors import LeaseLost
from zerver.jobs.disk import JobDisk, Row
from zerver.jobs.memory import MemoryJobs, open_memory_jobs
from zerver.jobs.port import Job, JobStore, Order, QueueRule, Verdict, Wanted
from zerver.testing.jobs import LAWS, check_jobs


async def test_memory() -> None:
    await check_jobs(partial(open_memory_jobs, JobDisk()))


# ---- disks and stores that break one promise each -------------------------------------------


class LosesBodies(JobDisk):
    def _order(self, order: Order) -> str:
        return super()._order(attrs.evolve(order, body=None))


class OrdersTwice(JobDisk):
    def _order(self, order: Order) -> str:
        self.rows.pop(order.job_id, None)
        return super()._order(order)


class NothingIsUnique(JobDisk):
    def _holder(self, unique: str, now: int) -> Row | None:
        return None


class ForgetsWindows(JobDisk):
    def _order(self, order: Order) -> str:
        return super()._order(attrs.evolve(order, unique_seconds=0.0))


class AnyTurn(JobDisk):
    def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        return super().take(owner, rules, count)[::-1]


class TakesTooMany(JobDisk):
    def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        return super().take(owner, rules, count + 1)


class TooEarly(JobDisk):
    def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        for row in self.of_state("scheduled"):
            row.set(state="available")
        return super().take(owner, rules, count)


class Unlimited(JobDisk):
    def _ready(self, rule: QueueRule, may: Callable[[Row], bool]) -> list[Row]:
        return super()._ready(attrs.evolve(rule, limit=None), may)


class UnlimitedTenants(JobDisk):
    def _ready(self, rule: QueueRule, may: Callable[[Row], bool]) -> list[Row]:
        return super()._ready(attrs.evolve(rule, per_tenant=None), may)


class NeverPaused(JobDisk):
    def _ready(self, rule: QueueRule, may: Callable[[Row], bool]) -> list[Row]:
        self.paused.clear()
        return super()._ready(rule, may)


class SuspectsTogether(JobDisk):
    def _ready(self, rule: QueueRule, may: Callable[[Row], bool]) -> list[Row]:
        return super()._ready(rule, lambda row: True)


class SuspectsInTheWay(JobDisk):
    """The first suspect keeps the others waiting, whether it may begin or not."""

    def _suspect(self, owner: str, rules: Sequence[QueueRule]) -> Row | None:
        first = min(self.of_state("available"), key=lambda row: (not row.job.is_suspect, row.turn), default=None)
        return first if super()._suspect(owner, rules) is not None else None


class RescuesTheLiving(JobDisk):
    def rescue(self, now: float) -> list[Job]:
        return super().rescue(now + 1e9)


class NeverRescues(JobDisk):
    def rescue(self, now: float) -> list[Job]:
        return []


class NoPoison(JobDisk):
    def rescue(self, now: float) -> list[Job]:
        for row in self.of_state("running"):
            row.set(rescues=min(row.job.rescues, 1))
        return super().rescue(now)


class Unfenced(JobDisk):
    def settle(self, job_id: str, fence: int, verdict: Verdict) -> bool:
        row = self.rows.get(job_id)
        return super().settle(job_id, row.job.fence if row is not None else fence, verdict)


class CountsAll(JobDisk):
    def _settle(self, row: Row, verdict: Verdict) -> None:
        super()._settle(row, attrs.evolve(verdict, counts=True))


class NumbersAll(JobDisk):
    """Takes what never ran for a run."""

    def _settle(self, row: Row, verdict: Verdict) -> None:
        super()._settle(row, attrs.evolve(verdict, ran=True))


class NumbersWhatCounts(JobDisk):
    """Takes what does not count for what never ran."""

    def _settle(self, row: Row, verdict: Verdict) -> None:
        super()._settle(row, attrs.evolve(verdict, ran=verdict.counts))


class LosesResults(JobDisk):
    def _settle(self, row: Row, verdict: Verdict) -> None:
        super()._settle(row, attrs.evolve(verdict, result=None))


class NeverFrees(JobDisk):
    def begin_awaited(self) -> None:
        return None


class FreesTooEarly(JobDisk):
    def begin_awaited(self) -> None:
        for row in self.of_state("waiting"):
            row.set(awaits=0)
        super().begin_awaited()


class AnyPlace(JobDisk):
    def _order(self, order: Order) -> str:
        return super()._order(attrs.evolve(order, place=0))


class Unparked(JobDisk):
    def unpark(self, run_id: str, verdict: Verdict) -> bool:
        return False


class UnparksTwice(JobDisk):
    def unpark(self, run_id: str, verdict: Verdict) -> bool:
        return any(row.job.run_id == run_id for row in self.rows.values()) or super().unpark(run_id, verdict)


class RetriesNothing(JobDisk):
    def retry(self, wanted: Wanted) -> int:
        return 0


class KeepsAttempts(JobDisk):
    def retry(self, wanted: Wanted) -> int:
        attempts = {job_id: row.job.attempt for job_id, row in self.rows.items()}
        number = super().retry(wanted)
        for job_id, row in self.rows.items():
            row.set(attempt=attempts[job_id])
        return number


class CancelsTheRunning(JobDisk):
    def cancel(self, wanted: Wanted, why: str) -> int:
        for row in self.wanted(wanted):
            if row.job.state == "running":
                row.set(state="cancelled")
        return super().cancel(wanted, why)


class LosesTheReason(JobDisk):
    def settle(self, job_id: str, fence: int, verdict: Verdict) -> bool:
        held = super().settle(job_id, fence, verdict)
        row = self.rows.get(job_id)
        if row is not None and row.job.state == "cancelled" and verdict.error:
            row.set(error=verdict.error)
        return held


class DeletesAll(JobDisk):
    def _is_unread(self, row: Row) -> bool:
        return False


class PrunesTheDead(JobDisk):
    def prune(self, ended_before_unix_ns: int, count: int) -> int:
        dead = [row for row in self.of_state("dead") if row.job.ended_unix_ns < ended_before_unix_ns]
        return super().prune(ended_before_unix_ns, count) + self._forget(dead)


class Silent(JobDisk):
    def wake(self) -> None:
        return None


class Lax(MemoryJobs):
    """Takes what it can of orders that are partly wrong."""

    async def order(self, orders: Sequence[Order]) -> list[str]:
        for order in orders:
            await super().order([order])
        return await super().order(orders)


class LooksFirst(MemoryJobs):
    """Looks first, and takes later: two at once find the same jobs."""

    async def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        found = [row for rule in rules for row in self.disk._ready(rule, lambda row: True)][:count]
        await trio.lowlevel.checkpoint()
        await super().take(owner, [], 0)
        for row in found:
            row.set(state="running", owner=owner, fence=row.job.fence + 1, attempt=row.job.attempt + 1)
        return [row.job for row in found]


class AnyoneBegins(MemoryJobs):
    async def began(self, job_id: str, fence: int, run_id: str) -> None:
        try:
            await super().began(job_id, fence, run_id)
        except LeaseLost:
            pass


class NoProgress(MemoryJobs):
    async def progress(self, job_id: str, done: int, total: int, note: str) -> None:
        await trio.lowlevel.checkpoint()


class OldestFirst(MemoryJobs):
    async def search(self, wanted: Wanted, count: int = 50, before_seq: int | None = None) -> list[Job]:
        return (await super().search(wanted, 10_000, before_seq))[::-1][:count]


class TellsNobody(MemoryJobs):
    async def cancelled(self, owner: str) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return {}


class NoReasons(MemoryJobs):
    async def why(self, job_id: str) -> str:
        await trio.lowlevel.checkpoint()
        return ""


class FiresAlways(MemoryJobs):
    async def fire(self, name: str, due_unix_ns: int, next_unix_ns: int, orders: Sequence[Order]) -> bool:
        await super().fire(name, due_unix_ns, next_unix_ns, orders)
        return True


class AsksAgain(MemoryJobs):
    async def due(self, name: str, spec: str, first_unix_ns: int) -> int:
        self.disk.schedules.pop(name, None)
        return await super().due(name, spec, first_unix_ns)


class Stubborn(MemoryJobs):
    """Orders what was cancelled."""

    async def order(self, orders: Sequence[Order]) -> list[str]:
        try:
            await at_work()
            return await super().order(orders)
        except trio.Cancelled:
            self.disk.order(orders)
            raise


class TakesWhenCancelled(MemoryJobs):
    async def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        jobs = await super().take(owner, rules, count)
        await at_work()
        return jobs


class SettlesWhenCancelled(MemoryJobs):
    async def settle(self, verdicts: Sequence[tuple[str, int, Verdict]]) -> list[bool]:
        held = await super().settle(verdicts)
        await at_work()
        return held


class NoCheckpoint(MemoryJobs):
    async def find(self, job_id: str) -> Job | None:
        row = self.disk.rows.get(job_id)
        return None if row is None else row.job


@asynccontextmanager
async def opened(disk: JobDisk, store: Callable[[JobDisk], JobStore]) -> AsyncGenerator[JobStore, None]:
    yield store(disk)


#: Breaks a promise, and words of the law that finds it.
MUTANTS: list[tuple[Any, str]] = [
    (LosesBodies, "comes back as it was"),
    (OrdersTwice, "ordering twice"),
    (NothingIsUnique, "one that is not over"),
    (ForgetsWindows, "one in its seconds"),
    (AnyTurn, ""),
    (TakesTooMany, ""),
    (TooEarly, ""),
    (Unlimited, "than its limit"),
    (UnlimitedTenants, "limit for each"),
    (NeverPaused, "paused"),
    (RescuesTheLiving, "that lives are its own"),
    (NeverRescues, "that lives are its own"),
    (NoPoison, "workers down with it"),
    (SuspectsTogether, "one suspect at a time"),
    (SuspectsInTheWay, "no others waiting"),
    (Unfenced, "taken from it is refused"),
    (CountsAll, "is not counted"),
    (NumbersAll, "before its run began"),
    (NumbersWhatCounts, ""),
    (LosesResults, "a verdict becomes"),
    (NeverFrees, "a successor waits"),
    (FreesTooEarly, "are done"),
    (AnyPlace, "in their order"),
    (Unparked, "a parked job"),
    (UnparksTwice, "a parked job"),
    (RetriesNothing, "until it is done after all"),
    (KeepsAttempts, "all its attempts again"),
    (LosesTheReason, "is its worker's to end"),
    (CancelsTheRunning, "never begins"),
    (DeletesAll, "nobody waits for"),
    (PrunesTheDead, "what is pruned"),
    (Silent, "who waits is told"),
    (Lax, "together or not at all"),
    (LooksFirst, ""),
    (AnyoneBegins, "taken from it is refused"),
    (NoProgress, "progress is"),
    (OldestFirst, "newest first"),
    (TellsNobody, "worker's to end"),
    (NoReasons, "why a job"),
    (FiresAlways, "one does"),
    (AsksAgain, "when it was first said"),
    (Stubborn, "an order that raised Cancelled"),
    (TakesWhenCancelled, "a take that raised Cancelled"),
    (SettlesWhenCancelled, "whose call raised Cancelled"),
    (NoCheckpoint, "every verb is a checkpoint"),
]


@pytest.mark.parametrize(("mutant", "words"), MUTANTS, ids=[mutant.__name__ for mutant, _ in MUTANTS])
async def test_a_broken_promise_is_found_out(mutant: Any, words: str, autojump_clock: MockClock) -> None:
    disk = mutant() if issubclass(mutant, JobDisk) else JobDisk()
    store = MemoryJobs if issubclass(mutant, JobDisk) else mutant
    with pytest.raises(AssertionError, match=f"check_jobs: .*{words}"):
        await check_jobs(partial(opened, disk, store))


def test_each_law_has_a_name_of_its_own() -> None:
    names = [name for name, _ in LAWS]
    assert len(names) == len(set(names)) > 30
