"""A job of a durable flow is what its run in the journal is: carried on, parked or ended, whoever does it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.jobs.working import LEASE, an_app, until
from zerver import INJECTED, Done, Fail, Flow, IdempotencyKey, Pause, effect, step
from zerver.jobs import WorkerSettings, enqueue, open_worker
from zerver.jobs.capability import desk_of
from zerver.jobs.memory import JobDisk
from zerver.jobs.worker import queue_rules
from zerver.journal import Disk, open_memory_journal
from zerver.runtime import open_runtime


class Contract:
    """A flow that charges, waits for a signature, and sends."""

    def __init__(self, sent: Any = None) -> None:
        self.said: list[str] = []

        @effect(kind="bank.charge", access="write")
        async def charge(*, key: IdempotencyKey = INJECTED) -> None:
            await trio.lowlevel.checkpoint()
            self.said.append("charge")

        @step
        async def pay() -> None:
            await charge()

        @step
        def ask() -> Pause:
            return Pause(
                "signed", expires=7 * 86_400.0, resume=lambda name: Done(name) if name else Fail.conflict("it")
            )

        self.flow = Flow("contract", [pay, ask], durability="sync")


@asynccontextmanager
async def a_process(app: Any, disk: Disk, name: str, *, works: bool = True) -> Any:
    settings = WorkerSettings(owner=name, lease=LEASE, seats=2)
    async with (
        open_memory_journal(disk) as journal,
        open_runtime(app, journal=journal, owner=name, lease=LEASE) as runtime,
    ):
        if not works:
            yield runtime, None
            return
        async with open_worker(runtime, settings, seed=1) as worker:
            yield runtime, worker


async def test_a_parked_job_takes_no_seat_and_ends_when_its_signal_came(autojump_clock: object) -> None:
    contract, jobs, disk = Contract(), JobDisk(), Disk()
    app = an_app(jobs, contract.flow)
    async with a_process(app, disk, "one") as (runtime, worker):
        ids = [await enqueue(runtime, contract.flow) for _ in range(5)]
        for job_id in ids:
            await until(runtime, job_id, "parked")
        assert worker.statistics().running == {}
        assert worker.statistics().parked == 5
        assert await runtime.signal(f"job_{ids[0]}.1", "signed", "Ada")
        job = await until(runtime, ids[0], "done")
        assert (job.result, job.attempt) == ('"Ada"', 1)
        await trio.sleep(3600)
        await until(runtime, ids[1], "parked", seconds=1)
    assert contract.said == ["charge"] * 5


async def test_a_parked_job_that_fails_afterwards_is_tried_again(autojump_clock: object) -> None:
    contract, jobs, disk = Contract(), JobDisk(), Disk()
    async with a_process(an_app(jobs, contract.flow), disk, "one") as (runtime, _):
        job_id = await enqueue(runtime, contract.flow)
        await until(runtime, job_id, "parked")
        assert await runtime.signal(f"job_{job_id}.1", "signed", "")
        job = await until(runtime, job_id, "scheduled")
        assert job.error == "conflict: it"
        await until(runtime, job_id, "parked")
        assert await runtime.signal(f"job_{job_id}.2", "signed", "Bob")
        assert (await until(runtime, job_id, "done")).attempt == 2


@pytest.mark.parametrize("works", [True, False])
async def test_a_parked_job_is_resumed_by_any_process(works: bool, autojump_clock: object) -> None:
    """One that works on no jobs does not say so: a worker finds it in the journal."""
    contract, jobs, disk = Contract(), JobDisk(), Disk()
    app = an_app(jobs, contract.flow)
    async with a_process(app, disk, "one") as (runtime, _):
        job_id = await enqueue(runtime, contract.flow)
        await until(runtime, job_id, "parked")
    async with a_process(app, disk, "two", works=works) as (runtime, _):
        assert await runtime.signal(f"job_{job_id}.1", "signed", "Ada")
        await trio.sleep(60)
        await until(runtime, job_id, "done" if works else "parked", seconds=1)
    async with a_process(app, disk, "three") as (runtime, _):
        assert (await until(runtime, job_id, "done")).result == '"Ada"'


async def test_a_job_whose_run_has_ended_in_the_journal_is_settled_by_it(autojump_clock: object) -> None:
    """Its worker died between the last page and the verdict."""

    @effect(kind="bank.charge", access="write")
    async def charge(*, key: IdempotencyKey = INJECTED) -> None:
        await trio.lowlevel.checkpoint()
        said.append(key)

    @step
    async def pay() -> Done:
        await charge()
        return Done({"paid": True})

    said: list[str] = []
    flow = Flow("pay", [pay], durability="sync")
    jobs, disk = JobDisk(), Disk()
    app = an_app(jobs, flow)
    async with a_process(app, disk, "one", works=False) as (runtime, _):
        store = desk_of(runtime).store
        job_id = await enqueue(runtime, flow)
        await store.renew("dead", LEASE)
        (job,) = await store.take("dead", queue_rules(app, ()), 1)
        await store.began(job_id, job.fence, f"job_{job_id}.1")
        result = await runtime.execute(runtime.prepare(flow), label="job pay", run_id=f"job_{job_id}.1")
        assert result.ok
    async with a_process(app, disk, "two") as (runtime, _):
        assert (await until(runtime, job_id, "done")).result == '{"paid":true}'
    assert len(said) == 1
