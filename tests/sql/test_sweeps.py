"""Cancelled at every step, the SQL driver and the `sql` effects leave no job, thread or transaction behind."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import pytest

from zerver import App, Done, Fail, Flow, Slot, step
from zerver.effects import sql
from zerver.runtime import open_runtime
from zerver.sql import SqliteDriver, Statement, open_sqlite, sqlite
from zerver.testing import sweep_calls

SCHEMA = "create table if not exists t (n integer unique); create table if not exists log (n integer)"

CALLS: dict[str, Callable[[SqliteDriver], Awaitable[Any]]] = {
    "fetch": lambda driver: driver.fetch(Statement("select count(*) from t")),
    "execute": lambda driver: driver.execute(Statement("insert into log values (?)", (1,))),
    "execute_returning": lambda driver: driver.execute_returning(Statement("insert into log values (1) returning n")),
    "transaction": lambda driver: driver.transaction(
        [Statement("insert into log values (1)"), Statement("delete from log"), Statement("select * from log")]
    ),
}


@pytest.mark.parametrize("name", CALLS)
async def test_every_verb_of_the_driver(name: str, tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "sweep.db", schema=SCHEMA, readers=1) as driver:
        await driver.fetch(Statement("select 1"))  # SQLite opens the log's file when it is first read

        async def check() -> None:
            await driver.execute(Statement("insert into log values (2)"))  # it still works, and nothing is in its way
            statistics = driver.statistics()
            if statistics.waiting or statistics.running:
                raise AssertionError(f"something is left: {statistics}")

        report = await sweep_calls(lambda: CALLS[name](driver), check=check)
        assert report.delivered > 0


Written = Annotated[int, Slot("written")]


@step
async def insert() -> Written:
    return await sql.execute("insert into t values (1)").compensate(lambda _: sql.execute("delete from t where n = 1"))


@step
async def read_back(written: Written) -> Done | Fail:
    found = await sql.fetch_value(int, "select count(*) from t")
    return Fail.conflict("t") if found == 1 else Done()


async def test_a_flow_whose_write_is_always_undone(tmp_path: Path) -> None:
    app = App(capabilities=[sqlite(tmp_path / "flow.db", schema=SCHEMA, readers=1)])
    flow = Flow("sweep", [insert, read_back], deadline=10.0)
    count = Flow("count", [only_count], deadline=10.0)
    async with open_runtime(app, seed=1) as runtime:

        async def check() -> None:
            if (await runtime.run(count)).unwrap() != 0:
                raise AssertionError("the insert of a run that did not succeed is still there")
            if runtime.statistics().admission.running:
                raise AssertionError("a ticket was not given back")

        await check()  # SQLite opens the log's file when it is first read
        report = await sweep_calls(lambda: runtime.run(flow), check=check)
        assert report.delivered > 0


@step
async def only_count() -> Done:
    return Done(await sql.fetch_value(int, "select count(*) from t"))
