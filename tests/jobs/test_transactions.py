"""Jobs that are ordered in the app's own transactions: they are there if and only if the app's writes are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest

from zerver import App, Capability, Done, Fail, Flow, Slot, step
from zerver.core.effects import Effect
from zerver.effects import queue, sql
from zerver.errors import RunFailed
from zerver.jobs import jobs
from zerver.jobs.capability import JobDesk
from zerver.jobs.port import Job, JobStore, Wanted
from zerver.runtime import open_runtime
from zerver.sql import postgres, sqlite

SCHEMA = "create table if not exists orders (id text primary key)"

Ids = Annotated[tuple[Any, ...], Slot("ids")]


@step
def mail() -> Done:
    return Done(None)


send = Flow("send", [mail])


def ordering(*members: Effect[Any]) -> Flow:
    """A flow that performs these in one transaction."""

    @step
    async def write() -> Ids | Fail:
        return await sql.transaction(*members)

    @step
    def answer(ids: Ids) -> Done:
        return Done(ids)

    return Flow("write", [write, answer])


async def performed(capabilities: Sequence[Capability], *members: Effect[Any]) -> tuple[Any, list[Job], int]:
    """The run's answer or its error, the jobs that are there then, and how many orders are."""
    app = App(capabilities=capabilities)
    app.job(send)
    async with open_runtime(app) as runtime:
        result = await runtime.run(ordering(*members))
        desk = runtime.resources[JobDesk]
        store: JobStore = desk.store

        @step
        async def count() -> Annotated[int, Slot("count")] | Fail:
            return await sql.fetch_value(int, "select count(*) from orders") or 0

        @step
        def tell(number: Annotated[int, Slot("count")]) -> Done:
            return Done(number)

        counted = await runtime.run(Flow("count", [count, tell]))
        return result, await store.search(Wanted()), counted.unwrap()


async def check(capability: Capability) -> None:
    enqueue = queue.enqueue(send, {"to": "a"})
    many = queue.enqueue_many(send, list(range(3)))
    put = sql.execute("insert into orders (id) values (?)", "o1")
    result, found, orders = await performed([capability, jobs()], put, enqueue, many)
    count, one, ids = result.unwrap()
    assert (count, orders) == (1, 1)
    assert sorted(job.job_id for job in found) == sorted([one, *ids])
    assert sorted(job.body or "" for job in found) == ["0", "1", "2", '{"to":"a"}']
    # The same order id again breaks the table's rule, and no job is there either.
    result, found, orders = await performed([capability, jobs()], queue.enqueue(send, 9), put)
    with pytest.raises(Exception, match=r"(?i)unique"):
        result.unwrap()
    assert (len(found), orders) == (4, 1)


async def test_sqlite(tmp_path: Path) -> None:
    await check(sqlite(tmp_path / "app.db", schema=SCHEMA))


async def test_postgres(conninfo: str) -> None:
    await check(postgres(conninfo, schema=SCHEMA))


async def test_jobs_that_are_kept_elsewhere_cannot_be_members(tmp_path: Path) -> None:
    elsewhere = [sqlite(tmp_path / "app.db", schema=SCHEMA), jobs(f"sqlite:///{tmp_path}/jobs.db")]
    result, found, _ = await performed(elsewhere, queue.enqueue(send, 1))
    with pytest.raises(RunFailed, match="not kept in its database"):
        result.unwrap()
    assert found == []
