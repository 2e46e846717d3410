"""A triopg pool as a driver, on a real server: the port's promises, and what becomes of calls when something breaks."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import attrs
import pytest
import trio

from examples.checkout import store
from tests.sql.postgresql import Server, database_of, open_proxy, running_server, through
from tests.sql.test_postgres import SCHEMA, SLEEP, SLOW_INSERT, cancelled_once, insert, keys, until, until_busy, value
from tests.sql.test_postgres_capability import ADA, CART, SHOP, opened, result_of, value_of
from zerver.effects import sql
from zerver.errors import ConnectionLost, DatabaseDown, DefinitionError, DriverClosed, OutcomeUnknown, StatementError
from zerver.sql import Driver, Statement, open_postgres, open_triopg, triopg
from zerver.testing import check_driver, no_leaks, sweep_calls


@asynccontextmanager
async def open_pool(conninfo: str, *, size: int = 4, **options: Any) -> AsyncGenerator[Any, None]:
    """A host's pool, in the loop that it needs. Imported here: trio_asyncio changes asyncio for the whole process."""
    import trio_asyncio
    from triopg import create_pool

    words = dict(word.split("=") for word in conninfo.split())
    words["database"] = words.pop("dbname")
    async with trio_asyncio.open_loop(), create_pool(**words, min_size=0, max_size=size, **options) as pool:
        yield pool


@asynccontextmanager
async def opened_on(conninfo: str, *, size: int = 4) -> AsyncGenerator[Driver, None]:
    async with open_pool(conninfo, size=size) as pool, open_triopg(pool) as driver:
        yield driver


@pytest.fixture
async def other(conninfo: str) -> AsyncGenerator[Driver, None]:
    """The same database, by another driver."""
    async with open_postgres(conninfo, schema=SCHEMA) as driver:
        yield driver


async def test_it_keeps_the_promises_of_the_port(conninfo: str) -> None:
    async with open_pool(conninfo) as pool:
        await check_driver(lambda: open_triopg(pool))


# ---- cancellation -----------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [SLEEP, SLOW_INSERT], ids=["read", "write"])
async def test_a_cancelled_statement_is_stopped_on_the_server_and_its_connection_kept(
    conninfo: str, server: Server, other: Driver, statement: Statement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerver.sql.triopg_loan.STOP_SECONDS", 30.0)  # so that a busy machine does not decide
    async with opened_on(conninfo, size=1) as db:
        pid = await value(db, "select pg_backend_pid()")
        async with cancelled_once(db, lambda: until_busy(other, server)):
            await (db.fetch(statement) if statement is SLEEP else db.execute(statement))
        active = "select count(*) from pg_stat_activity where query like '%pg_sleep(1000)%' and state = 'active'"
        assert await value(other, f"{active} and pid <> pg_backend_pid() and datname = current_database()") == 0
        assert await value(db, "select pg_backend_pid()") == pid
        assert await keys(db) == []


async def test_a_backend_that_does_not_answer_loses_its_connection(
    conninfo: str, server: Server, other: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerver.sql.triopg_loan.STOP_SECONDS", 0.05)
    async with opened_on(conninfo, size=1) as db:

        async def freeze() -> None:
            pid = await until_busy(other, server)
            server.freeze(pid)
            frozen.append(pid)

        frozen: list[int] = []
        try:
            async with cancelled_once(db, freeze):
                await db.fetch(SLEEP)
            monkeypatch.setattr("zerver.sql.triopg_loan.STOP_SECONDS", 30.0)
            assert await value(db, "select pg_backend_pid()") not in frozen
        finally:
            for pid in frozen:
                server.thaw(pid)


@pytest.mark.parametrize("name", ["fetch", "execute", "transaction"])
async def test_cancelled_at_every_step_nothing_is_left(conninfo: str, name: str) -> None:
    async with opened_on(conninfo, size=2) as db:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "fetch": lambda: db.fetch(Statement("select count(*) from log")),
            "execute": lambda: db.execute(Statement("insert into log values (?)", (1,))),
            "transaction": lambda: db.transaction([Statement("delete from log"), Statement("select * from log")]),
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

        report = await sweep_calls(calls[name], check=check, max_points=40)
        assert report.delivered > 0


async def test_calls_cancelled_in_a_crowd_leave_the_pool_whole(conninfo: str) -> None:
    async with opened_on(conninfo, size=2) as db:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(db.fetch, SLEEP)
                await until(lambda: db.statistics().running == 2)
                nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(db.fetch, Statement("select 1"))
        assert db.statistics().cancelled == 60
        assert db.statistics().reads == 20


# ---- what breaks ------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [SLEEP, SLOW_INSERT], ids=["read", "write"])
async def test_a_backend_killed_at_work_has_certainly_not_done_it(
    conninfo: str, server: Server, other: Driver, statement: Statement
) -> None:
    async def kill() -> None:
        pid = await until_busy(other, server)
        await trio.to_thread.run_sync(server.ask, f"select pg_terminate_backend({pid}, 5000)")

    async with opened_on(conninfo) as db:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(DatabaseDown, match="terminating connection due to administrator command"):
                await (db.fetch(statement) if statement is SLEEP else db.execute(statement))
        assert await keys(db) == []
        assert db.statistics().failed == 1


async def test_a_backend_killed_in_its_sleep_is_replaced(conninfo: str, server: Server) -> None:
    async with opened_on(conninfo, size=1) as db:
        pid = await value(db, "select pg_backend_pid()")
        server.ask(f"select pg_terminate_backend({pid}, 5000)")  # Trio does not run: nobody has noticed
        assert await value(db, "select pg_backend_pid()") != pid


async def test_a_write_cut_before_its_commit_has_not_happened_and_after_it_nobody_knows(
    server: Server, conninfo: str, other: Driver
) -> None:
    async with open_proxy(server) as proxy, opened_on(through(proxy.port, conninfo), size=1) as db:
        proxy.lose_request = b"insert into t"
        with pytest.raises(DatabaseDown):
            await db.execute(insert(1))
        proxy.lose_request = b"commit"
        with pytest.raises(ConnectionLost, match="COMMIT was sent"):
            await db.execute(insert(2))
        proxy.lose_request, proxy.lose_reply = None, b"commit"
        with pytest.raises(ConnectionLost, match="COMMIT was sent"):
            await db.execute(insert(3))
        assert await keys(other) == [3]  # 2 has not happened, and 3 has: the driver could not tell
        proxy.lose_reply = None
        await db.execute(insert(4))


async def test_a_commit_that_is_not_answered_does_not_hold_a_cancelled_caller(
    server: Server, conninfo: str, other: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerver.sql.triopg_loan.COMMIT_SECONDS", 0.05)
    async with open_proxy(server) as proxy, opened_on(through(proxy.port, conninfo), size=1) as db:
        proxy.lose_request, proxy.hang_up = b"commit", False
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def cancel() -> None:
                    await proxy.lost.wait()
                    scope.cancel()

                nursery.start_soon(cancel)
                with pytest.raises(ConnectionLost, match="nobody knows"):
                    await db.execute(insert(1))
        proxy.lose_request = None
        await db.execute(insert(2))
        assert await keys(db) == [2]


async def test_a_connection_that_hangs_on_its_way_back_is_closed_and_the_write_stands(
    server: Server, conninfo: str, other: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerver.sql.triopg_loan.STOP_SECONDS", 0.05)
    async with open_proxy(server) as proxy, opened_on(through(proxy.port, conninfo), size=1) as db:
        proxy.lose_request, proxy.hang_up = b"RESET ALL", False
        assert (await db.execute(insert(1))).count == 1
        proxy.lose_request = None
        monkeypatch.setattr("zerver.sql.triopg_loan.STOP_SECONDS", 30.0)
        assert await keys(db) == [1]


async def test_a_server_that_stops_is_an_error_at_once_and_its_return_is_found() -> None:
    with running_server() as own:
        async with opened_on(own.make_database(), size=2) as db:
            await db.execute(Statement(SCHEMA))
            async with trio.open_nursery() as nursery:

                async def stop() -> None:
                    await until(lambda: db.statistics().running == 1)
                    await trio.to_thread.run_sync(own.stop)

                nursery.start_soon(stop)
                with pytest.raises(DatabaseDown):
                    await db.fetch(SLEEP)
            for _ in range(5):
                with pytest.raises(DatabaseDown, match="no connection to the server"):
                    await db.execute(insert(2))
            await trio.to_thread.run_sync(own.start)
            await db.execute(insert(3))
            assert await keys(db) == [3]


async def test_the_pools_own_command_timeout(conninfo: str) -> None:
    async with open_pool(conninfo, command_timeout=0.05) as pool, open_triopg(pool) as db:
        with pytest.raises(StatementError, match="command_timeout") as caught:
            await db.fetch(SLEEP)
        assert caught.value.code == "57014"
        assert db.statistics().running == 0


# ---- conflicts, and what only the commit finds --------------------------------------------------


async def test_deadlocks_are_tried_again(conninfo: str, other: Driver) -> None:
    await other.transaction([insert(1, "0"), insert(2, "0")])
    update = "update t set label = (label::int + 1)::text where id = ?"
    name = database_of(conninfo)
    await other.execute(Statement(f"alter database {name} set deadlock_timeout = 20"))

    async with opened_on(conninfo) as db:

        async def both(one: int, two: int) -> None:
            slow = Statement("select pg_sleep(0.05)")
            await db.transaction([Statement(update, (one,)), slow, Statement(update, (two,))])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(both, 1, 2)
            nursery.start_soon(both, 2, 1)
        assert (await db.fetch(Statement("select label from t"))).rows == [("2",), ("2",)]


async def test_a_deferred_constraint_is_found_by_the_commit_and_nothing_is_done(conninfo: str) -> None:
    async with opened_on(conninfo) as db:
        await db.execute(Statement("create table item (t integer primary key references item deferrable)"))
        await db.execute(Statement("alter table item alter constraint item_t_fkey deferrable initially deferred"))
        await db.execute(Statement("create table twin (t integer references item deferrable initially deferred)"))
        with pytest.raises(StatementError) as caught:
            await db.execute(Statement("insert into twin values (2)"))
        assert caught.value.code == "23503"
        assert await value(db, "select count(*) from twin") == 0


async def test_a_changed_table_does_not_trip_over_prepared_statements(conninfo: str, other: Driver) -> None:
    async with opened_on(conninfo, size=1) as db:
        for _ in range(2):
            assert (await db.fetch(Statement("select * from t"))).columns == ("id", "label", "amount")
        await other.execute(Statement("alter table t add column extra text"))
        assert (await db.fetch(Statement("select * from t"))).columns == ("id", "label", "amount", "extra")


async def test_prepared_statements_do_not_pile_up(conninfo: str) -> None:
    async with opened_on(conninfo, size=1) as db:
        for number in range(20):
            assert await value(db, f"select {number}") == number
        assert await value(db, "select count(*) from pg_prepared_statements") <= 2


# ---- the pool is its owner's --------------------------------------------------------------------


async def test_the_pool_outlives_its_drivers_and_lends_to_others(conninfo: str) -> None:
    async with open_pool(conninfo, size=1) as pool:
        for _ in range(2):
            async with open_triopg(pool) as db:
                assert await value(db, "select 1") == 1
                async with trio.open_nursery() as nursery, pool.acquire() as own:
                    nursery.start_soon(db.fetch, Statement("select 1"))
                    await until(lambda: db.statistics().waiting == 1)
                    assert await own.fetchval("select 2") == 2
                assert db.statistics().reads == 2
        async with pool.acquire() as own:
            assert await own.fetchval("show transaction_read_only") == "off"
            assert not own.is_in_transaction()


async def test_a_pool_that_its_owner_closes(conninfo: str) -> None:
    async with open_pool(conninfo) as pool, open_triopg(pool) as db:
        await pool.close()
        with pytest.raises(DriverClosed, match="by its owner"):
            await db.fetch(Statement("select 1"))


async def test_a_task_from_outside_the_loop_may_use_it(conninfo: str) -> None:
    send, receive = trio.open_memory_channel[Driver](0)
    answers: list[object] = []

    async def elsewhere(done: trio.Event) -> None:
        async for db in receive:
            answers.append(await value(db, "select 1"))
            done.set()

    async with trio.open_nursery() as nursery:
        done = trio.Event()
        nursery.start_soon(elsewhere, done)
        async with opened_on(conninfo) as db, send:
            await send.send(db)
            await done.wait()
    assert answers == [1]


async def test_a_driver_whose_loop_has_ended_is_closed(conninfo: str) -> None:
    async with opened_on(conninfo) as db:
        pass
    with pytest.raises(DriverClosed):
        await db.fetch(Statement("select 1"))


async def test_without_a_loop_or_with_a_closed_pool_the_order_is_told() -> None:
    import trio_asyncio
    from triopg import create_pool

    pool = create_pool("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(DefinitionError, match="in this order"):
        async with open_triopg(pool):
            pass
    async with trio_asyncio.open_loop():
        with pytest.raises(DefinitionError, match="not open"):
            async with open_triopg(pool):
                pass


async def test_nothing_is_left(conninfo: str) -> None:
    async def use() -> None:
        async with opened_on(conninfo) as db:
            await value(db, "select 1")
            with trio.move_on_after(0.01):
                await db.fetch(SLEEP)

    await use()
    with no_leaks():
        await use()


# ---- values, effects ----------------------------------------------------------------------------


async def test_values(conninfo: str) -> None:
    async with opened_on(conninfo) as db:
        sent: list[tuple[str, object]] = [
            ("numeric", Decimal("12345678901234567890.123456789")),
            ("uuid", UUID(int=7)),
            ("timestamptz", datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)),
            ("text[]", ["a", None, 'b"c', ""]),
            ("jsonb", '{"a": 1}'),
        ]
        for type_, one in sent:
            assert await value(db, f"select ?::{type_}", one) == one
        for bad in ({"a": 1}, "a\0b", "\ud800", 7):
            with pytest.raises(StatementError) as caught:
                await db.fetch(Statement("select ?::text", (bad,)))
            assert caught.value.code
        with pytest.raises(StatementError) as caught:
            await db.fetch(Statement("select ?::int", ("7",)))
        assert caught.value.code == "PARAMETER"
        assert "cast" in str(caught.value)


async def test_the_codecs_are_the_owners(conninfo: str) -> None:
    async def set_up(connection: Any) -> None:
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    async with open_pool(conninfo, init=set_up) as pool, open_triopg(pool) as db:
        assert await value(db, "select ?::jsonb", {"a": [1, None]}) == {"a": [1, None]}
        with pytest.raises(StatementError) as caught:
            await db.execute_returning(Statement("select ?::jsonb", (object(),)))
        assert caught.value.code == "PARAMETER"


async def test_the_shops_statements(conninfo: str) -> None:
    async with open_pool(conninfo) as pool:
        async with pool.acquire() as own:
            await own.execute(SHOP)
        async with opened(triopg(pool)) as runtime:
            assert await value_of(runtime, store.user_by_token("token-user_1")) == ADA
            assert await value_of(runtime, store.cart_lines("cart_1")) == CART.lines
            assert await value_of(runtime, store.take_stock(CART)) == (1, 1)
            assert await value_of(runtime, store.return_stock(CART)) == (1, 1)
            assert await value_of(runtime, sql.fetch_value(int, "select count(*) from orders")) == 0


async def test_rows_of_postgresqls_own_types(conninfo: str) -> None:
    @attrs.frozen
    class Row:
        id: UUID
        price: Decimal
        tags: list[str]

    row = Row(UUID(int=7), Decimal("0.1"), ["a", "b"])
    async with open_pool(conninfo) as pool, opened(triopg(pool)) as runtime:
        assert await value_of(runtime, sql.execute("create table rows (id uuid, price numeric, tags text[])")) == 0
        add = sql.execute_returning(Row, "insert into rows values (?, ?, ?) returning *", row.id, row.price, row.tags)
        assert await value_of(runtime, add) == [row]


async def test_a_lost_commit_leaves_a_run_in_doubt(server: Server, conninfo: str, other: Driver) -> None:
    async with (
        open_proxy(server) as proxy,
        open_pool(through(proxy.port, conninfo), size=1) as pool,
        opened(triopg(pool)) as runtime,
    ):
        proxy.lose_reply = b"commit"
        made = sql.execute("insert into t values (2)").compensate(lambda _: sql.execute("delete from t"))
        assert isinstance((await result_of(runtime, made)).cause, OutcomeUnknown)


# ---- a missing triopg ---------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["triopg", "async_generator", "trio_asyncio"])
def test_without_triopg_the_extra_is_named(missing: str) -> None:
    program = f"""
        import sys
        sys.modules["{missing}"] = None  # as if it were not installed
        from zerver.errors import DefinitionError
        from zerver.sql import triopg
        try:
            triopg(object())
        except DefinitionError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "pip install 'zerver[triopg]'" in done.stdout


def test_importing_the_room_leaves_asyncio_alone() -> None:
    program = "import sys, zerver.sql; print({'triopg', 'trio_asyncio', 'asyncpg'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
