"""A store of jobs that an older version has made, with jobs in all states, is brought up to date, and works on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.errors import DamagedJournal, StatementError
from zerver.jobs.places import open_jobs_of
from zerver.jobs.port import STATES, Order, QueueRule, Verdict, Wanted
from zerver.jobs.schema import TABLES, index_tenants, make_tables
from zerver.jobs.sql import SqlJobs
from zerver.sql import open_postgres, open_sqlite
from zerver.sql.dialects import dialect_of
from zerver.sql.driver import Answer, Driver, Statement

#: The tables as the first version knows them.
FIRST = attrs.evolve(TABLES, scripts={1: TABLES.scripts[1]})

LATER = 2**62
RULES = [QueueRule("default")]


@asynccontextmanager
async def opened(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncGenerator[Driver, None]:
    if kind == "sqlite":
        async with open_sqlite(tmp_path / "app.db") as driver:
            yield driver
    else:
        async with open_postgres(request.getfixturevalue("conninfo")) as driver:
            yield driver


async def fill(store: SqlJobs) -> None:
    """A job in each state, named after it; and another one that has been cancelled while it runs."""
    await store.renew("worker", 600.0)
    begun = ("running", "parked", "done", "dead", "stopped")
    await store.order([Order(name, "flow") for name in begun])
    fences = {job.job_id: job.fence for job in await store.take("worker", RULES, 10)}
    for name, verdict in (("parked", Verdict("parked")), ("done", Verdict("done")), ("dead", Verdict("dead"))):
        await store.settle([(name, fences[name], verdict)])
    await store.cancel(Wanted(ids=("stopped",)), "why not")
    await store.order([Order(name, "flow") for name in ("cancelled", "available")])
    await store.cancel(Wanted(ids=("cancelled",)), "why not")
    await store.order([Order("scheduled", "flow", at_unix_ns=LATER)])
    await store.order(
        [Order("waiting", "flow", awaits=1), Order("before it", "flow", releases="waiting", at_unix_ns=LATER)]
    )


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_the_first_version_is_brought_up_to_date(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with opened(kind, tmp_path, request) as driver:
        dialect = await dialect_of(driver)
        await make_tables(driver, dialect, "the jobs", FIRST)
        old = SqlJobs(driver, dialect, place="the jobs")
        await fill(old)
        before = await old.search(Wanted(), 50)
        async with open_jobs_of(driver, place="the jobs") as store:
            assert await driver.fetch(Statement("select version from zerver_jobs_store")) == await driver.fetch(
                Statement(f"select {max(TABLES.scripts)} as version")
            )
            assert await store.search(Wanted(), 50) == before
            for state in STATES:
                names = {job.job_id for job in await store.search(Wanted(states=(state,)))}
                assert state in names, f"{names} are {state}"
            assert await store.cancelled("worker") == {"stopped": "why not"}
            counts = (await store.queues())[0].counts
            assert {state: counts[state] for state in STATES} == {
                **dict.fromkeys(STATES, 1), "running": 2, "scheduled": 2,
            }  # fmt: skip
            # What was there goes on: what ran is settled, what waited is released, what died is begun again.
            fences = {job.job_id: job.fence for job in before}
            assert await store.settle([("running", fences["running"], Verdict("done"))]) == [True]
            assert await store.retry(Wanted(ids=("before it",), states=("scheduled", "dead"))) == 1
            assert await store.retry(Wanted(states=("dead", "cancelled"))) == 2
            jobs = await store.take("worker", RULES, 10)
            assert {job.job_id for job in jobs} == {"available", "before it", "dead", "cancelled"}
            assert all(await store.settle([(job.job_id, job.fence, Verdict("done", result="7")) for job in jobs]))
            (waited,) = await store.take("worker", RULES, 10)
            assert (waited.job_id, waited.body) == ("waiting", "7")
            assert await store.order([Order("new", "flow"), Order("done", "flow")]) == ["new", "done"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_tenants_have_an_index_from_when_they_are_bounded(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with opened(kind, tmp_path, request) as driver, open_jobs_of(driver) as store:
        dialect = await dialect_of(driver)
        index = Statement(dialect.index, ("zerver_jobs_ready_of",))
        await store.order([Order(f"{tenant}{number}", "flow", tenant=tenant) for tenant in "ab" for number in range(3)])
        assert len(await store.take("worker", [QueueRule("default")], 1)) == 1
        assert not (await driver.fetch(index)).rows
        taken = await store.take("worker", [QueueRule("default", per_tenant=2)], 10)
        assert sorted(job.tenant for job in taken) == ["a", "b", "b"]
        assert (await driver.fetch(index)).rows
        # Without it the same is taken, as an older worker does of newer tables.
        await driver.transaction([Statement("drop index zerver_jobs_ready_of")])
        assert await store.settle([(job.job_id, job.fence, Verdict("done")) for job in taken[:2]]) == [True, True]
        again = await store.take("worker", [QueueRule("default", per_tenant=2)], 10)
        assert [job.tenant for job in again] == ["a", "b"]
        async with trio.open_nursery() as nursery:  # several make it at once
            for _ in range(3):
                nursery.start_soon(index_tenants, driver, dialect)
        assert (await driver.fetch(index)).rows


class Indexing:
    """A driver of a database in which this happens when the index is made."""

    def __init__(self, driver: Driver, happens: Callable[[], Awaitable[None]]) -> None:
        self._driver = driver
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def transaction(self, statements: Sequence[Statement]) -> list[Answer]:
        if any("index if not exists" in statement.sql for statement in statements):
            await self._happens()
        return await self._driver.transaction(statements)


async def test_who_may_not_make_the_index_takes_without_it(tmp_path: Path) -> None:
    async def is_refused() -> None:
        raise StatementError("must be owner of table zerver_jobs", "42501")

    async with open_sqlite(tmp_path / "jobs.db") as bare:
        driver = cast("Driver", Indexing(bare, is_refused))
        async with open_jobs_of(driver) as store:
            await store.order([Order(f"job {number}", "flow") for number in range(3)])
            assert len(await store.take("worker", [QueueRule("default", per_tenant=2)], 10)) == 2


async def test_the_index_of_many_jobs_may_take_its_time(tmp_path: Path, mock_clock: MockClock) -> None:
    async def takes_long() -> None:
        mock_clock.jump(60)
        await wait_all_tasks_blocked()

    async with open_sqlite(tmp_path / "jobs.db") as bare:
        driver = cast("Driver", Indexing(bare, takes_long))
        async with open_jobs_of(driver, patience=30) as store:
            await store.order([Order(f"job {number}", "flow") for number in range(3)])
            assert len(await store.take("worker", [QueueRule("default", per_tenant=2)], 10)) == 2


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_an_older_program_is_refused(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with opened(kind, tmp_path, request) as driver:
        async with open_jobs_of(driver):
            pass
        with pytest.raises(
            DamagedJournal,
            match=rf"a newer Zerver \(version {max(TABLES.scripts)}; this one knows 1\)\n  run the newer",
        ):
            await make_tables(driver, await dialect_of(driver), "the jobs", FIRST)
