"""PostgreSQL on a real server: the port's promises, and what becomes of calls when something in between breaks."""

from __future__ import annotations

import ssl
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio
import trustme

from tests.sql.postgresql import Server, free_port, open_proxy, running_server, through
from zerver.core.priorities import Priority
from zerver.errors import ConnectionLost, DatabaseDown, DefinitionError, DriverClosed, InternalError, StatementError
from zerver.sql import PostgresDriver, Statement, open_postgres
from zerver.sql.driver import Changed, Rows
from zerver.testing import check_driver, no_leaks, sweep_calls

SCHEMA = "create table if not exists t (id integer primary key, label text, amount integer check (amount >= 0))"
SLEEP = Statement("select pg_sleep(1000)")
SLOW_INSERT = Statement("insert into t (id, label) select 99, pg_sleep(1000)::text")


@pytest.fixture
async def db(conninfo: str) -> AsyncGenerator[PostgresDriver, None]:
    async with open_postgres(conninfo, size=4, schema=SCHEMA) as driver:
        yield driver


def insert(key: int, label: str | None = "x") -> Statement:
    return Statement("insert into t (id, label) values (?, ?)", (key, label))


async def keys(db: PostgresDriver) -> list[object]:
    return [row[0] for row in (await db.fetch(Statement("select id from t order by id"))).rows]


async def value(db: PostgresDriver, sql: str, *params: object) -> Any:
    return (await db.fetch(Statement(sql, params))).rows[0][0]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def until_busy(db: PostgresDriver, server: Server, word: str = "pg_sleep") -> int:
    """Wait until the server is at such a statement; its backend's pid."""
    while True:
        found = await trio.to_thread.run_sync(
            server.ask, f"select pid from pg_stat_activity where state = 'active' and query like '%{word}(1000)%'"
            f" and pid <> pg_backend_pid() and datname = '{await value(db, 'select current_database()')}'",
        )  # fmt: skip
        if found:
            pid: int = found[0][0]
            return pid


@asynccontextmanager
async def cancelled_once(db: PostgresDriver, ready: Callable[[], Awaitable[object]]) -> AsyncGenerator[None, None]:
    """Cancel the block as soon as `ready` returns; it is an error if the block ends otherwise."""
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                await ready()
                scope.cancel()

            nursery.start_soon(cancel)
            yield
        assert scope.cancelled_caught


async def test_it_keeps_the_promises_of_the_port(conninfo: str) -> None:
    await check_driver(lambda: open_postgres(conninfo, size=4))


# ---- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "sent"),
    [
        ("numeric", Decimal("12345678901234567890.123456789")),
        ("numeric", 10**40),
        ("bigint", -(2**63)),
        ("double precision", float("inf")),
        ("uuid", UUID("5c6b3f0e-9d0a-4c0c-8f43-0a0d0b0c0d0e")),
        ("date", date(2031, 5, 6)),
        ("time", time(7, 8, 9, 123456)),
        ("timestamptz", datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("interval", timedelta(days=3, seconds=5)),
        ("jsonb", {"a": [1, None, {"b": "ü"}]}),
        ("text[]", ["a", None, 'b"c', ""]),
        ("integer[]", [1, 2, 3]),
        ("bytea", bytearray(b"\0\xff")),
        ("jsonb", None),
    ],
)
async def test_values_of_postgresql_come_back(conninfo: str, type_: str, sent: object) -> None:
    async with open_postgres(conninfo) as db:
        assert await value(db, f"select ?::{type_}", sent) == sent


async def test_values_on_the_edge(db: PostgresDriver) -> None:
    elsewhere = datetime(2031, 5, 6, 7, 8, 9, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    back = await value(db, "select ?::timestamptz", elsewhere)
    assert back == elsewhere
    assert back.utcoffset() == timedelta(0)
    assert await value(db, "select ? * ?", 300, 300) == 90_000  # as smallints they would overflow
    assert await value(db, "select count(*) from generate_series(1, ?)", 5) == 5
    assert await value(db, "select '{\"a\": 1}'::jsonb ?? ?", "a") is True
    with pytest.raises(StatementError, match="zero character") as caught:
        await db.execute(insert(1, "a\0b"))
    assert caught.value.code == "PARAMETER"
    with pytest.raises(StatementError) as caught:
        await db.fetch(Statement("select 'infinity'::date"))
    assert caught.value.code == "TYPE"


# ---- cancellation -----------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [SLEEP, SLOW_INSERT], ids=["read", "write"])
async def test_a_cancelled_statement_is_stopped_on_the_server_and_its_connection_kept(
    conninfo: str, server: Server, statement: Statement
) -> None:
    async with open_postgres(conninfo, size=1, schema=SCHEMA) as db, open_postgres(conninfo) as other:
        pid = await value(db, "select pg_backend_pid()")
        async with cancelled_once(db, lambda: until_busy(other, server)):
            await (db.fetch(statement) if statement is SLEEP else db.execute(statement))
        active = "select count(*) from pg_stat_activity where query like '%pg_sleep(1000)%' and state = 'active'"
        assert await value(other, f"{active} and pid <> pg_backend_pid() and datname = current_database()") == 0
        assert await value(db, "select pg_backend_pid()") == pid
        assert await keys(db) == []


async def test_a_backend_that_does_not_answer_loses_its_connection(
    conninfo: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerver.sql.postgres_link.STOP_SECONDS", 0.05)
    async with open_postgres(conninfo, size=1, schema=SCHEMA) as db, open_postgres(conninfo) as other:

        async def freeze() -> None:
            pid = await until_busy(other, server)
            server.freeze(pid)
            frozen.append(pid)

        frozen: list[int] = []
        try:
            async with cancelled_once(db, freeze):
                await db.fetch(SLEEP)
            assert db.statistics().connections == 0
            assert await value(db, "select pg_backend_pid()") not in frozen
        finally:
            for pid in frozen:
                server.thaw(pid)


@pytest.mark.parametrize("name", ["fetch", "execute", "transaction", "begin", "copy"])
async def test_cancelled_at_every_step_nothing_is_left(db: PostgresDriver, name: str) -> None:
    async def begin() -> None:
        async with db.begin() as transaction:
            await transaction.execute(Statement("insert into log values (1)"))
            async with transaction.savepoint():
                await transaction.fetch(Statement("select * from log"))

    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "fetch": lambda: db.fetch(Statement("select count(*) from log")),
        "execute": lambda: db.execute(Statement("insert into log values (?)", (1,))),
        "transaction": lambda: db.transaction([Statement("delete from log"), Statement("select * from log")]),
        "begin": begin,
        "copy": lambda: db.copy("log", ["n"], [(1,), (2,)]),
    }
    await db.execute(Statement("create table log (n integer)"))
    await calls[name]()

    async def check() -> None:
        await db.execute(Statement("insert into log values (2)"))
        left = db.statistics()
        if left.waiting or left.running:
            raise AssertionError(f"something is left: {left}")
        sessions = (
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() and (state <> 'idle' or wait_event_type = 'Lock')"
        )
        if await value(db, sessions):
            raise AssertionError("a session is in a transaction")

    report = await sweep_calls(calls[name], check=check, max_points=60)
    assert report.delivered > 0


# ---- what breaks ------------------------------------------------------------------------------


async def test_a_backend_killed_in_its_sleep_is_replaced(db: PostgresDriver, server: Server) -> None:
    pid = await value(db, "select pg_backend_pid()")
    server.ask(f"select pg_terminate_backend({pid}, 5000)")
    assert await value(db, "select pg_backend_pid()") != pid


@pytest.mark.parametrize("statement", [SLEEP, SLOW_INSERT], ids=["read", "write"])
async def test_a_backend_killed_at_work_has_certainly_not_done_it(
    db: PostgresDriver, server: Server, statement: Statement
) -> None:
    async def kill() -> None:
        pid = await until_busy(db, server)
        await trio.to_thread.run_sync(server.ask, f"select pg_terminate_backend({pid}, 5000)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        with pytest.raises(DatabaseDown, match="terminating connection due to administrator command"):
            await (db.fetch(statement) if statement is SLEEP else db.execute(statement))
    assert await keys(db) == []
    assert db.statistics().failed == 1


async def test_a_write_cut_before_its_commit_has_not_happened_and_after_it_nobody_knows(
    server: Server, conninfo: str
) -> None:
    async with (
        open_postgres(conninfo, schema=SCHEMA) as direct,
        open_proxy(server) as proxy,
        open_postgres(through(proxy.port, conninfo), size=1) as db,
    ):
        proxy.lose_request = b"insert into t"
        with pytest.raises(DatabaseDown):
            await db.execute(insert(1))
        proxy.lose_request = b"commit"
        with pytest.raises(ConnectionLost):
            await db.execute(insert(2))
        proxy.lose_request, proxy.lose_reply = None, b"commit"
        with pytest.raises(ConnectionLost):
            await db.execute(insert(3))
        with pytest.raises(ConnectionLost):
            async with db.begin() as transaction:
                await transaction.execute(insert(4))
        assert await keys(direct) == [3, 4]  # 2 has not happened, and 3 has: the driver could not tell
        proxy.lose_reply = None
        await db.execute(insert(5))


async def test_a_commit_that_is_not_answered_does_not_hold_a_cancelled_caller(
    server: Server, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerver.sql.postgres_link.COMMIT_SECONDS", 0.05)
    async with (
        open_proxy(server) as proxy,
        open_postgres(through(proxy.port, conninfo), size=1, schema=SCHEMA) as db,
    ):
        proxy.lose_request, proxy.hang_up = b"commit", False
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def cancel() -> None:
                    await proxy.lost.wait()
                    scope.cancel()

                nursery.start_soon(cancel)
                with pytest.raises(ConnectionLost, match="nobody knows"):
                    await db.execute(insert(1))
        assert db.statistics().connections == 0


async def test_a_server_that_stops_is_an_error_at_once_and_its_return_is_found() -> None:
    with running_server() as own:
        async with open_postgres(own.make_database(), size=2, schema=SCHEMA) as db:
            await db.execute(insert(1))
            async with trio.open_nursery() as nursery:

                async def stop() -> None:
                    await until(lambda: db.statistics().running == 1)
                    await trio.to_thread.run_sync(own.stop)

                nursery.start_soon(stop)
                with pytest.raises(DatabaseDown):
                    await db.fetch(SLEEP)
            for _ in range(5):
                with pytest.raises(DatabaseDown, match="cannot be reached") as caught:
                    await db.execute(insert(2))
                assert 0 < caught.value.retry_after <= 2.0
            await trio.to_thread.run_sync(own.start)
            while True:
                try:
                    await db.execute(insert(3))
                except DatabaseDown as error:
                    await trio.sleep(error.retry_after)  # at most the backoff: the server is there
                else:
                    break
            assert await keys(db) == [1, 3]


async def test_a_server_that_is_not_there(conninfo: str) -> None:
    with pytest.raises(DatabaseDown, match="cannot be reached") as caught:
        async with open_postgres(f"host=127.0.0.1 port={free_port()} user=me password=hush dbname=x"):
            pass
    assert "hush" not in str(caught.value)


async def test_a_conninfo_that_is_none() -> None:
    with pytest.raises(DefinitionError, match="conninfo") as caught:
        async with open_postgres("postgresql://me:hush@host/db?nonsense=1"):
            pass
    assert "hush" not in str(caught.value)


async def test_deadlocks_are_tried_again(db: PostgresDriver) -> None:
    await db.transaction([insert(1, "0"), insert(2, "0")])
    update = "update t set label = (label::int + 1)::text where id = ?"
    slow = Statement("select pg_sleep(0.05)")

    async def both(one: int, two: int) -> None:
        await db.transaction([Statement(update, (one,)), slow, Statement(update, (two,))])

    await db.execute(
        Statement("alter database " + await value(db, "select current_database()") + " set deadlock_timeout = 20")
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(both, 1, 2)
        nursery.start_soon(both, 2, 1)
    assert (await db.fetch(Statement("select label from t"))).rows == [("2",), ("2",)]


async def test_a_changed_table_does_not_trip_over_prepared_statements(db: PostgresDriver) -> None:
    await db.execute(insert(1))
    for _ in range(3):
        assert (await db.fetch(Statement("select * from t"))).columns == ("id", "label", "amount")
    await db.execute(Statement("alter table t add column extra text"))
    assert (await db.fetch(Statement("select * from t"))).columns == ("id", "label", "amount", "extra")


async def test_prepared_statements_are_bounded(conninfo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerver.sql.postgres_line.PREPARED", 4)
    async with open_postgres(conninfo, size=1) as db:
        for round_ in range(3):
            for number in range(10):
                for _ in range(3):
                    assert await value(db, f"select {number} + ?", round_) == number + round_
        assert await value(db, "select count(*) from pg_prepared_statements") <= 4


async def test_a_transaction_of_more_statements_than_are_kept(conninfo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerver.sql.postgres_line.PREPARED", 4)
    async with open_postgres(conninfo, size=1) as db:
        for count in (3, 9, 4, 9, 3):
            statements = [Statement(f"select {number}") for number in range(count)]
            for _ in range(3):
                answers = await db.transaction(statements)
                assert [answer.rows for answer in answers if isinstance(answer, Rows)] == [[(n,)] for n in range(count)]


async def test_a_bad_statement_seen_twice_is_still_told_why(db: PostgresDriver) -> None:
    for _ in range(3):
        with pytest.raises(StatementError) as caught:
            await db.transaction([insert(1), Statement("select nonsense"), insert(2)])
        assert caught.value.code == "42703"
    assert await keys(db) == []


async def test_a_deferred_constraint_is_found_by_the_commit_and_nothing_is_done(db: PostgresDriver) -> None:
    await db.execute(Statement("create table item (t integer references t deferrable initially deferred)"))
    await db.transaction([Statement("insert into item values (1)"), insert(1)])
    with pytest.raises(StatementError) as caught:
        await db.execute(Statement("insert into item values (2)"))
    assert caught.value.code == "23503"
    assert await value(db, "select count(*) from item") == 1


async def test_large_statements_and_large_answers_do_not_wait_for_each_other(db: PostgresDriver) -> None:
    large = "x" * 3_000_000
    statements = [Statement("select ?::text", (large,)) for _ in range(4)]
    answers = await db.transaction(statements)
    assert all(isinstance(answer, Rows) and answer.rows == [(large,)] for answer in answers)


async def test_statement_timeout_is_a_second_line(conninfo: str) -> None:
    async with open_postgres(conninfo, statement_timeout=0.05) as db:
        with pytest.raises(StatementError) as caught:
            await db.fetch(SLEEP)
        assert caught.value.code == "57014"


# ---- the pool ---------------------------------------------------------------------------------


async def test_who_waits_is_served_by_class(conninfo: str, server: Server) -> None:
    async with open_postgres(conninfo, size=1, schema=SCHEMA) as db:
        done: list[Priority] = []

        async def call(priority: Priority) -> None:
            await db.fetch(Statement("select 1", priority=priority))
            done.append(priority)

        async with trio.open_nursery() as nursery:
            blocker = trio.CancelScope()

            async def block() -> None:
                with blocker:
                    await db.fetch(SLEEP)

            nursery.start_soon(block)
            await until(lambda: db.statistics().running == 1)
            for priority in ("batch", "default", "interactive"):
                nursery.start_soon(call, priority)
            await until(lambda: db.statistics().waiting == 3)
            assert db.pool_statistics().waiting == (1, 1, 1)
            blocker.cancel()
        assert done == ["interactive", "default", "batch"]


async def test_schemas_do_not_race(conninfo: str) -> None:
    async def open_and_close() -> None:
        async with open_postgres(conninfo, schema=SCHEMA):
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(open_and_close)


async def test_a_wrong_schema_does_nothing(conninfo: str) -> None:
    with pytest.raises(StatementError, match="nonsense"):
        async with open_postgres(conninfo, schema=f"{SCHEMA}; nonsense"):
            pass
    async with open_postgres(conninfo) as db:
        assert await value(db, "select to_regclass('t')::text") is None


async def test_nothing_is_left(conninfo: str) -> None:
    async def use() -> None:
        async with open_postgres(conninfo, schema=SCHEMA) as db:
            await keys(db)
            async with db.listen("news"), db.begin() as transaction:
                await transaction.execute(Statement("delete from t"))

    await use()
    with no_leaks():
        await use()


# ---- transactions in steps --------------------------------------------------------------------


async def test_a_transaction_in_steps(db: PostgresDriver) -> None:
    async with db.begin() as transaction:
        assert await transaction.execute(insert(1)) == Changed(1)
        rows = await transaction.fetch(Statement("select count(*) from t"))
        assert await transaction.many([insert(2), Statement("select 7")]) == [Changed(1), Rows(("?column?",), [(7,)])]
        assert rows.rows == [(1,)]
        assert await keys(db) == []
    assert await keys(db) == [1, 2]
    with pytest.raises(StatementError, match="the transaction is over"):
        await transaction.execute(insert(3))


async def test_an_exception_undoes_a_transaction(db: PostgresDriver) -> None:
    with pytest.raises(KeyError):
        async with db.begin() as transaction:
            await transaction.execute(insert(1))
            raise KeyError
    assert await keys(db) == []


async def test_savepoints_undo_what_failed_and_no_more(db: PostgresDriver) -> None:
    async with db.begin() as transaction:
        await transaction.execute(insert(1))
        with pytest.raises(StatementError):
            async with transaction.savepoint():
                await transaction.execute(insert(2))
                async with transaction.savepoint():
                    await transaction.execute(insert(3))
                await transaction.execute(insert(1))
        async with transaction.savepoint():
            await transaction.execute(insert(4))
        with pytest.raises(StatementError, match="expected 1 row"):
            async with transaction.savepoint():
                await transaction.execute(Statement("update t set label = 'y'", expect=1))
    assert (await db.fetch(Statement("select id, label from t order by id"))).rows == [(1, "x"), (4, "x")]


@pytest.mark.parametrize(
    "bad", [insert(1), Statement("delete from t", expect=7)], ids=["the server says so", "we say so"]
)
async def test_a_failed_statement_cannot_be_committed_away(db: PostgresDriver, bad: Statement) -> None:
    with pytest.raises(StatementError, match="it was undone"):
        async with db.begin() as transaction:
            await transaction.execute(insert(1))
            with pytest.raises(StatementError):
                await transaction.execute(bad)
            with pytest.raises(StatementError, match="earlier statement"):
                await transaction.execute(insert(2))
    assert await keys(db) == []


async def test_a_statement_cut_inside_a_transaction_ends_it(db: PostgresDriver, server: Server) -> None:
    with pytest.raises(StatementError, match="it was undone"):
        async with db.begin() as transaction:
            await transaction.execute(insert(1))
            async with cancelled_once(db, lambda: until_busy(db, server)):
                await transaction.fetch(SLEEP)
            with pytest.raises(StatementError, match="is over"):
                await transaction.execute(insert(2))
    assert await keys(db) == []


async def test_two_tasks_in_one_transaction_are_a_bug_that_commits_nothing(db: PostgresDriver) -> None:
    told: list[str] = []

    with pytest.raises(StatementError, match="it was undone"):
        async with db.begin() as transaction:
            await transaction.execute(insert(1))

            async def fetch() -> None:
                try:
                    await transaction.fetch(Statement("select id from t"))
                except InternalError as error:
                    told.append(str(error))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch)
                nursery.start_soon(fetch)
    assert told == ["two tasks use one connection at once"]
    assert await keys(db) == []


async def test_a_serialization_failure_is_told(db: PostgresDriver) -> None:
    await db.execute(insert(1))
    with pytest.raises(StatementError) as caught:
        async with db.begin(isolation="repeatable read") as transaction:
            await transaction.fetch(Statement("select * from t"))
            await db.execute(Statement("update t set label = 'y'"))
            await transaction.execute(Statement("update t set label = 'z'"))
    assert caught.value.code == "40001"


async def test_a_read_only_transaction_reads(db: PostgresDriver) -> None:
    with pytest.raises(StatementError) as caught:
        async with db.begin(read_only=True) as transaction:
            await transaction.execute(insert(1))
    assert caught.value.code == "25006"


async def test_closing_ends_transactions_too(conninfo: str) -> None:
    begun = trio.Event()
    async with trio.open_nursery() as nursery, open_postgres(conninfo, schema=SCHEMA) as db:

        async def hold() -> None:
            with pytest.raises(DriverClosed):
                async with db.begin() as transaction:
                    await transaction.execute(insert(1))
                    begun.set()
                    await trio.sleep_forever()

        nursery.start_soon(hold)
        await begun.wait()


# ---- COPY -------------------------------------------------------------------------------------


async def test_copy_stores_all_rows(db: PostgresDriver) -> None:
    labels = ["", "\\", "\\N", "a\tb\nc\rd\be\ff\vg", "naïve ✓ 🦉", None, "\\."]
    assert await db.copy("public.t", ["id", "label"], enumerate(labels)) == len(labels)
    rows = (await db.fetch(Statement("select id, label from t order by id"))).rows
    assert rows == list(enumerate(labels))

    async def more() -> AsyncGenerator[tuple[int, str], None]:
        for key in range(100, 20_100):
            yield key, "x" * 20

    assert await db.copy("t", ["id", "label"], more()) == 20_000
    assert await value(db, "select count(*) from t") == 20_000 + len(labels)


async def test_copy_of_every_type(db: PostgresDriver) -> None:
    await db.execute(
        Statement("create table v (a bytea, b boolean, c double precision, d timestamptz, e jsonb, f int[])")
    )
    row = (b"\0\xff\\", True, 0.1, datetime(2031, 5, 6, tzinfo=UTC), {"a": "b\\\n"}, [1, None])
    await db.copy("v", list("abcdef"), [row, (None,) * 6])
    assert (await db.fetch(Statement("select * from v order by a"))).rows == [row, (None,) * 6]


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([(1, "a"), (1, "b")], StatementError),
        ([(1, "a"), ("no number", "b")], StatementError),
        ([(1, "a"), (2,)], StatementError),
        ([(1, "a"), (2, "\0")], StatementError),
        ([(1, "a"), (2, object())], StatementError),
        ((1 // (1 - key) and (key, "a") for key in range(2)), ZeroDivisionError),
    ],
    ids=["the key is taken", "of another type", "a value too few", "no text", "no value", "the caller's own"],
)
async def test_copy_of_a_bad_row_stores_nothing(db: PostgresDriver, rows: Any, error: type[Exception]) -> None:
    before = db.statistics().connections
    with pytest.raises(error):
        await db.copy("t", ["id", "label"], rows)
    assert await keys(db) == []
    assert db.statistics().connections == before


# ---- LISTEN -----------------------------------------------------------------------------------


async def test_notifications_come_in_order(db: PostgresDriver) -> None:
    async with db.listen("news", 'odd"name') as listener:
        await db.execute_returning(Statement("select pg_notify(?, ?)", ("news", "1")))
        await db.transaction([Statement("select pg_notify('news', '2')"), insert(1)])
        with pytest.raises(StatementError):
            await db.transaction([Statement("select pg_notify('news', 'undone')"), insert(1)])
        await db.fetch(Statement("select pg_notify(?, ?)", ('odd"name', "3")))
        come = [await anext(listener) for _ in range(3)]
    assert [(one.channel, one.payload) for one in come] == [("news", "1"), ("news", "2"), ('odd"name', "3")]


async def test_a_listener_whose_backend_dies_is_told(db: PostgresDriver, server: Server) -> None:
    async with db.listen("news") as listener:
        server.ask(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where query like 'listen%'"
            f" and datname = '{await value(db, 'select current_database()')}'"
        )
        for _ in range(2):
            with pytest.raises(ConnectionLost, match="no more notifications"):
                await anext(listener)


async def test_a_listener_whose_server_is_silent_is_told(
    db: PostgresDriver, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerver.sql.postgres_link.CHECK_SECONDS", 0.05)
    monkeypatch.setattr("zerver.sql.postgres_link.STOP_SECONDS", 0.05)
    async with db.listen("news", keepalive=0.01) as listener:
        with trio.move_on_after(0.03):  # some questions, and answers
            await anext(listener)
        name = await value(db, "select current_database()")
        listening = f"select pid from pg_stat_activity where datname = '{name}' and pid <> pg_backend_pid()"
        pids = [row[0] for row in server.ask(f"{listening} and application_name = 'zerver'")]
        for pid in pids:
            server.freeze(pid)
        try:
            with pytest.raises(ConnectionLost):
                await anext(listener)
        finally:
            for pid in pids:
                server.thaw(pid)


# ---- TLS, and a missing psycopg ----------------------------------------------------------------


async def test_tls_is_conninfos_to_ask_for(server: Server, conninfo: str, tmp_path: Path) -> None:
    """The wheel's server is built without TLS, so it is the proxy that speaks it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    async with open_proxy(server, tls) as proxy:
        there = f"{through(proxy.port, conninfo)} host=localhost sslmode=verify-full sslrootcert={tmp_path}"
        async with open_postgres(f"{there}/ca.pem", size=1) as db, open_postgres(conninfo) as other:
            assert await value(db, "select 1") == 1
            assert proxy.encrypted == 1
            async with cancelled_once(db, lambda: until_busy(other, server)):
                await db.fetch(SLEEP)
            assert proxy.encrypted == 2  # the request to stop it, too
            assert await value(db, "select 1") == 1
        with pytest.raises(DatabaseDown, match="certificate verify failed"):
            async with open_postgres(f"{there}/other.pem"):
                pass


def test_without_psycopg_the_extra_is_named() -> None:
    program = """
        import sys
        sys.modules["psycopg"] = None  # as if it were not installed
        import zerver.sql
        from zerver.errors import DefinitionError
        try:
            zerver.sql.postgres("host=nowhere")
        except DefinitionError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "pip install 'zerver[postgres]'" in done.stdout


def test_importing_the_room_does_not_load_psycopg() -> None:
    program = "import sys, zerver.sql; print([name for name in sys.modules if name.startswith('psycopg')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
