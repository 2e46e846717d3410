"""The sql effects on a real SQLite: values, rows, transactions, failures; and a write that failed has not happened."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from zerver import App, Capability, Done, Effect, Fail, Flow, Slot, effect, step
from zerver.core.effects import INJECTED
from zerver.effects import sql
from zerver.errors import DefinitionError, EffectError, EffectTimeout, StatementError
from zerver.runtime import Result, Runtime, open_runtime
from zerver.sql import Driver, Statement, sqlite
from zerver.testing import no_leaks

SCHEMA = """
create table if not exists users (
    id integer primary key, name text not null unique, nick text, active integer not null
);
create table if not exists things (key integer primary key, value);
insert or ignore into users values (1, 'Ada', null, 1), (2, 'Grace', 'amazing', 0);
"""

# Counts for many seconds, and gives one row; `{}` is what it does with it.
SLOW = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 500000000) select max(i) from n"

Asked = Annotated[object, Slot("asked")]


@attrs.frozen
class User:
    id: int
    name: str
    nick: str | None
    active: bool


@asynccontextmanager
async def opened(path: Path | str = ":memory:", **options: Any) -> AsyncIterator[Runtime]:
    async with open_runtime(App(capabilities=[sqlite(path, schema=SCHEMA, **options)])) as runtime:
        yield runtime


def asking(make: Callable[[], Effect[Any]], **options: Any) -> Flow:
    """A flow that performs one effect and answers with its value."""

    @step(effects=sql.STATEMENTS)
    async def ask() -> Done:
        return Done(await make())

    return Flow("ask", [ask], **options)


async def result_of(runtime: Runtime, made: Effect[Any], **options: Any) -> Result:
    return await runtime.run(asking(lambda: made, **options))


async def value_of(runtime: Runtime, made: Effect[Any]) -> Any:
    return (await result_of(runtime, made)).unwrap()


async def failure_of(runtime: Runtime, made: Effect[Any]) -> StatementError:
    """The StatementError behind the EffectError that the step saw."""
    result = await result_of(runtime, made)
    assert result.status == "failed"
    assert isinstance(result.cause, EffectError)
    assert not result.unresolved
    assert isinstance(result.cause.cause, StatementError)
    return result.cause.cause


async def names(runtime: Runtime) -> list[str]:
    found: list[str] = await value_of(runtime, sql.fetch_all(str, "select name from users order by id"))
    return found


ADD = "insert into users (name, active) values (?, 1)"

# ---- reading --------------------------------------------------------------------------------


async def test_fetch_one_is_a_row_or_none() -> None:
    async with opened() as runtime:
        one = "select id, name, nick, active from users where id = ?"
        assert await value_of(runtime, sql.fetch_one(User, one, 1)) == User(1, "Ada", None, True)
        assert await value_of(runtime, sql.fetch_one(User, one, 9)) is None
        assert await value_of(runtime, sql.fetch_one(str, "select name from users order by id desc")) == "Grace"


async def test_fetch_all_is_every_row_in_order() -> None:
    async with opened() as runtime:
        users = await value_of(runtime, sql.fetch_all(User, "select * from users order by id"))
        assert users == [User(1, "Ada", None, True), User(2, "Grace", "amazing", False)]
        assert await value_of(runtime, sql.fetch_all(int, "select id from users where id > 9")) == []


async def test_fetch_value_is_the_first_column_or_none() -> None:
    async with opened() as runtime:
        assert await value_of(runtime, sql.fetch_value(int, "select count(*), 'x' from users")) == 2
        assert await value_of(runtime, sql.fetch_value(str, "select nick from users where id = 1")) is None
        assert await value_of(runtime, sql.fetch_value(str, "select nick from users where id = 9")) is None
        assert await value_of(runtime, sql.fetch_value(bool, "select active from users where id = 2")) is False


async def test_a_read_cannot_write() -> None:
    async with opened() as runtime:
        await failure_of(runtime, sql.fetch_one(int, "insert into users (name, active) values ('Eve', 1) returning id"))
        assert await names(runtime) == ["Ada", "Grace"]


async def test_a_row_that_does_not_fit_says_which_column() -> None:
    async with opened() as runtime:
        missing = await failure_of(runtime, sql.fetch_one(User, "select id, name, nick from users"))
        assert "no column for active" in str(missing)
        strange = await failure_of(runtime, sql.fetch_all(User, "select *, 1 as odd from users"))
        assert "a column that is no field: odd" in str(strange)
        null = await failure_of(runtime, sql.fetch_all(str, "select nick from users order by id"))
        assert str(null).startswith("row[0] does not fit str: expected `str`, got `null`")


# ---- writing --------------------------------------------------------------------------------


async def test_execute_gives_the_number_of_rows_touched() -> None:
    async with opened() as runtime:
        assert await value_of(runtime, sql.execute(ADD, "Edsger")) == 1
        assert await value_of(runtime, sql.execute("update users set active = 0")) == 3
        assert await value_of(runtime, sql.execute("delete from users where id > 9")) == 0


async def test_execute_returning_gives_rows() -> None:
    async with opened() as runtime:
        adding = sql.execute_returning(User, ADD + " returning *", "Edsger")
        assert await value_of(runtime, adding) == [User(3, "Edsger", None, True)]


async def test_expect_undoes_what_touched_another_number_of_rows() -> None:
    async with opened() as runtime:
        error = await failure_of(runtime, sql.execute("delete from users", expect=1))
        assert error.code == "ROW_COUNT"
        assert await names(runtime) == ["Ada", "Grace"]
        assert await value_of(runtime, sql.execute("delete from users where id = 1", expect=1)) == 1


async def test_a_step_catches_the_failure_and_looks_at_its_cause() -> None:
    @step
    async def add() -> Done | Fail:
        try:
            await sql.execute(ADD, "Ada")
        except EffectError as error:
            return Fail.conflict("user", "Ada", detail=getattr(error.cause, "code", "no code"))
        return Done()

    async with opened() as runtime:
        result = await runtime.run(Flow("add", [add]))
        assert result.cause == Fail.conflict("user", "Ada", detail="SQLITE_CONSTRAINT_UNIQUE")


@pytest.mark.parametrize(
    "write",
    [
        sql.execute_returning(str, ADD + " returning id", "Edsger"),
        sql.execute_returning(User, ADD + " returning id", "Edsger"),
        sql.transaction(sql.execute(ADD, "Edsger"), sql.fetch_value(str, "select count(*) from users")),
        sql.transaction(sql.execute(ADD, "Edsger"), sql.fetch_one(int, "select id, name from users")),
        sql.transaction(sql.execute(ADD + " returning id", "Edsger")),
        sql.transaction(sql.execute(ADD, "Edsger"), sql.fetch_all(str, "delete from users")),
    ],
    ids=["type", "columns", "member-type", "member-columns", "execute-with-rows", "fetch-without-rows"],
)
async def test_a_write_whose_answer_does_not_fit_has_not_happened(write: Effect[Any], tmp_path: Path) -> None:
    """The step is told that it failed, so it must have: the answer is read before the commit."""
    for path in (":memory:", tmp_path / "shop.db"):
        async with opened(path) as runtime:
            await failure_of(runtime, write)
            assert await names(runtime) == ["Ada", "Grace"]


# ---- transactions ---------------------------------------------------------------------------


async def test_a_transaction_gives_what_each_statement_alone_would_give() -> None:
    async with opened() as runtime:
        one = "select * from users where name = ?"
        assert await value_of(
            runtime,
            sql.transaction(
                sql.execute(ADD, "Edsger"),
                sql.fetch_one(User, one, "Edsger"),
                sql.fetch_one(User, one, "Nobody"),
                sql.execute_returning(int, "update users set active = 0 returning id"),
                sql.fetch_all(bool, "select active from users"),
                sql.fetch_value(int, "select count(*) from users"),
                sql.fetch_value(str, "select nick from users where id = 1"),
            ),
        ) == (1, User(3, "Edsger", None, True), None, [1, 2, 3], [False] * 3, 3, None)


async def test_an_empty_transaction_is_nothing() -> None:
    async with opened() as runtime:
        assert await value_of(runtime, sql.transaction()) == ()


@pytest.mark.parametrize(
    "last", [sql.execute(ADD, "Ada"), sql.execute("delete from users where id = 9", expect=1)], ids=["unique", "expect"]
)
async def test_a_transaction_is_all_or_nothing(last: Effect[Any]) -> None:
    async with opened() as runtime:
        await failure_of(runtime, sql.transaction(sql.execute(ADD, "Edsger"), last))
        assert await names(runtime) == ["Ada", "Grace"]


# ---- undoing, and being cut -----------------------------------------------------------------


async def test_a_write_is_compensated_when_a_later_step_fails() -> None:
    @step
    async def add() -> Asked:
        def undo(rows: list[int]) -> Effect[int]:
            return sql.execute("delete from users where id = ?", *rows)

        return await sql.execute_returning(int, ADD + " returning id", "Edsger").compensate(undo)

    @step
    async def fail(asked: Asked) -> Fail:
        assert await sql.fetch_value(int, "select count(*) from users") == 3
        return Fail.conflict("user")

    async with opened() as runtime:
        result = await runtime.run(Flow("add", [add, fail]))
        assert (result.status, result.unresolved) == ("failed", ())
        assert await names(runtime) == ["Ada", "Grace"]


async def test_a_write_that_failed_is_not_compensated() -> None:
    undone: list[object] = []

    def undo(value: object) -> Effect[int]:
        undone.append(value)
        return sql.execute("delete from users")

    async with opened() as runtime:
        await failure_of(runtime, sql.execute(ADD, "Ada").compensate(undo))
        assert undone == []
        assert await names(runtime) == ["Ada", "Grace"]


@asynccontextmanager
async def once_it_runs(runtime: Runtime, act: Callable[[], object]) -> AsyncIterator[None]:
    """Act as soon as the database is at work for whatever the block asks."""
    driver: Driver = runtime.resources[_DRIVER]

    async def wait_and_act() -> None:
        while not driver.statistics().running:
            await trio.lowlevel.checkpoint()
        act()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_and_act)
        yield


_DRIVER: Any = Driver
SLOW_WRITE = sql.execute(f"insert into users (name, active) select 'slow', ({SLOW})")


@pytest.mark.parametrize("in_memory", [True, False])
async def test_the_deadline_interrupts_a_slow_write_which_has_not_happened(
    in_memory: bool, tmp_path: Path, mock_clock: MockClock
) -> None:
    slow = SLOW_WRITE.compensate(lambda _: sql.execute("delete from users"))
    async with opened(":memory:" if in_memory else tmp_path / "shop.db") as runtime:
        async with once_it_runs(runtime, lambda: mock_clock.jump(2.0)):
            result = await result_of(runtime, slow, deadline=1.0)
        assert (result.status, result.unresolved) == ("deadline", ())
        assert await names(runtime) == ["Ada", "Grace"]  # neither written nor "undone"; and the connection is usable


async def test_a_timeout_of_a_write_is_a_failure_and_not_a_doubt(mock_clock: MockClock) -> None:
    async with opened() as runtime:
        async with once_it_runs(runtime, lambda: mock_clock.jump(2.0)):
            result = await result_of(runtime, SLOW_WRITE.with_policy(timeout=1.0))
        assert isinstance(result.cause, EffectTimeout)
        assert (result.status, result.unresolved) == ("failed", ())
        assert await names(runtime) == ["Ada", "Grace"]


async def test_a_write_is_tried_again_without_a_key_because_its_failures_are_certain() -> None:
    async with opened() as runtime:
        assert await value_of(runtime, sql.execute(ADD, "Edsger").with_policy(retries=2)) == 1


@pytest.mark.parametrize("slow", [SLOW_WRITE, sql.fetch_value(int, SLOW)], ids=["write", "read"])
async def test_cancelling_the_host_interrupts_the_statement(slow: Effect[Any]) -> None:
    async with opened() as runtime:
        with trio.CancelScope() as scope:
            async with once_it_runs(runtime, scope.cancel):
                await result_of(runtime, slow)
        assert scope.cancelled_caught
        assert await names(runtime) == ["Ada", "Grace"]


async def test_leaving_the_runtime_closes_files_and_threads(tmp_path: Path) -> None:
    async with opened(tmp_path / "warm.db") as runtime:
        await names(runtime)
    with no_leaks():
        async with opened(tmp_path / "shop.db") as runtime:
            await names(runtime)
            await value_of(runtime, sql.execute(ADD, "Edsger"))


# ---- the capability -------------------------------------------------------------------------


async def test_a_handler_of_ones_own_may_take_the_driver() -> None:
    @effect(kind="users.count", access="read")
    async def count(*, driver: Driver = INJECTED) -> object:
        return (await driver.fetch(Statement("select count(*) from users"))).rows[0][0]

    @step
    async def ask() -> Done:
        return Done(await count())

    async with opened() as runtime:
        assert (await runtime.run(Flow("ask", [ask]))).unwrap() == 2


async def test_two_databases_need_types_of_their_own() -> None:
    app = App(capabilities=[sqlite(":memory:"), sqlite(":memory:")])
    with pytest.raises(DefinitionError, match="opens a Driver, and so does another one"):
        async with open_runtime(app):
            pass


async def test_without_the_capability_the_flow_is_refused_before_it_runs() -> None:
    async with open_runtime(App(capabilities=[Capability(name="none")])) as runtime:
        with pytest.raises(DefinitionError, match="nothing handles it"):
            await runtime.run(asking(lambda: sql.execute("delete from users")))


# ---- what goes in comes out -----------------------------------------------------------------

VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    bytes: st.binary(),
    datetime.date: st.dates(),
    datetime.time: st.times(),
    datetime.datetime: st.datetimes(timezones=st.sampled_from([None, datetime.UTC])),
}


@given(
    st.sampled_from(list(VALUES)).flatmap(lambda type_: st.tuples(st.just(type_), st.lists(st.none() | VALUES[type_])))
)
@settings(max_examples=60, deadline=None)
async def test_values_come_back_as_they_went_in(typed: tuple[Any, list[Any]]) -> None:
    type_, values = typed
    async with opened(readers=1) as runtime:
        await value_of(
            runtime, sql.transaction(*[sql.execute("insert into things (value) values (?)", v) for v in values])
        )
        back = await value_of(runtime, sql.fetch_all(type_ | None, "select value from things order by key"))
        assert back == values
        assert [type(value) for value in back] == [type(value) for value in values]
