"""Proves what is SQLite's own: batches, locks, commits that fail, parameters, opening and closing without a trace."""

from __future__ import annotations

import datetime
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
import trio

from zerver.errors import DriverClosed, DriverError, StatementError
from zerver.sql.driver import Changed, Rows, Statement
from zerver.sql.sqlite import SqliteDriver, has_table, open_sqlite

SCHEMA = """
create table if not exists orders (id integer primary key, label text unique, amount integer);
create table if not exists items (order_id integer references orders (id) deferrable initially deferred);
"""
# Endless; the second one is also slow: each of its rows takes milliseconds, and only an interrupt ends it soon.
ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
ENDLESS_AND_SLOW = f"{ENDLESS} where length(replace(hex(zeroblob(1000000 + i)), '0', '12')) > 0"
BLOCK = Statement(f"insert into orders (label) {ENDLESS}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
async def db(path: Path) -> AsyncGenerator[SqliteDriver, None]:
    async with open_sqlite(path, readers=2, schema=SCHEMA) as driver:
        yield driver


def insert(key: int, label: str | None = None) -> Statement:
    return Statement("insert into orders (id, label) values (?, ?)", (key, label))


async def keys(db: SqliteDriver) -> list[object]:
    return [row[0] for row in (await db.fetch(Statement("select id from orders order by id"))).rows]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


class Call:
    """A call in a task of its own, which a test can cancel, and whose outcome it can see."""

    def __init__(self, call: Callable[[], Awaitable[object]]) -> None:
        self.call = call
        self.scope = trio.CancelScope()
        self.outcome: object = None
        self.ended = trio.Event()

    async def run(self) -> None:
        with self.scope:
            try:
                self.outcome = await self.call()
            except DriverError as error:
                self.outcome = error
        self.ended.set()

    @property
    def cancelled(self) -> bool:
        return self.outcome is None and self.ended.is_set()


class Calls:
    """Calls queued one behind the other, in a known order, while the writer is kept busy."""

    def __init__(self, db: SqliteDriver, nursery: trio.Nursery) -> None:
        self.db = db
        self.nursery = nursery

    async def block(self) -> Call:
        call = self.start(lambda: self.db.execute(BLOCK))
        await until(lambda: self.db.statistics().running == 1)
        return call

    async def queue(self, *statements: Statement) -> Call:
        before = self.db.statistics().waiting
        call = self.start(lambda: self.db.transaction(statements))
        await until(lambda: self.db.statistics().waiting == before + 1)
        return call

    def start(self, function: Callable[[], Awaitable[object]]) -> Call:
        call = Call(function)
        self.nursery.start_soon(call.run)
        return call


@pytest.fixture
def calls(db: SqliteDriver, nursery: trio.Nursery) -> Calls:
    return Calls(db, nursery)


# ---- batches ----------------------------------------------------------------------------------------


async def test_writers_share_commits(db: SqliteDriver, calls: Calls) -> None:
    blocker = await calls.block()
    before = db.statistics().commits
    queued = [await calls.queue(insert(key)) for key in range(100)]
    blocker.scope.cancel()
    for call in queued:
        await call.ended.wait()
    assert await keys(db) == list(range(100))
    assert db.statistics().commits - before < 50


async def test_a_write_cancelled_in_the_queue_is_not_done_and_does_not_wait(db: SqliteDriver, calls: Calls) -> None:
    blocker = await calls.block()
    queued = await calls.queue(insert(1))
    queued.scope.cancel()
    await queued.ended.wait()
    assert queued.cancelled
    assert not blocker.ended.is_set()
    blocker.scope.cancel()
    await blocker.ended.wait()
    assert blocker.cancelled
    assert await keys(db) == []
    assert db.statistics().cancelled == 2


async def test_interrupting_one_write_of_a_batch_loses_no_other(db: SqliteDriver, calls: Calls) -> None:
    # SQLite answers an interrupted insert by rolling back the whole transaction, with the neighbours' savepoints.
    blocker = await calls.block()
    before = await calls.queue(insert(1), insert(2))
    slow = await calls.queue(insert(3), BLOCK)
    after = await calls.queue(insert(4))
    blocker.scope.cancel()
    await until(lambda: db.statistics().waiting == 1)  # `slow` is running now, with `before` in its batch
    slow.scope.cancel()
    for call in (before, slow, after):
        await call.ended.wait()
    assert slow.cancelled
    assert [type(answer) for answer in before.outcome] == [Changed, Changed]
    assert [type(answer) for answer in after.outcome] == [Changed]
    assert await keys(db) == [1, 2, 4]


async def test_a_write_need_not_wait_for_a_slow_neighbour_to_be_cancelled(db: SqliteDriver, calls: Calls) -> None:
    blocker = await calls.block()
    quick = [await calls.queue(insert(key)) for key in (1, 2)]
    slow = await calls.queue(insert(3), BLOCK)
    blocker.scope.cancel()
    await until(lambda: db.statistics().waiting == 0)  # `slow` is running; if the others ended, it was in their batch
    quick[0].scope.cancel()
    for call in quick:
        await call.ended.wait()
    assert not slow.ended.is_set()  # it was begun again
    slow.scope.cancel()
    await slow.ended.wait()
    assert slow.cancelled
    assert await keys(db) == ([2] if quick[0].cancelled else [1, 2])


@pytest.mark.parametrize(
    "culprit",
    [
        pytest.param("insert into items values (99)", id="deferred foreign key, found at commit"),
        pytest.param("insert or rollback into orders (id) values (0)", id="rolls the transaction back"),
        pytest.param("insert into orders (id) values (0)", id="fails by itself"),
    ],
)
async def test_a_statement_that_spoils_the_batch_fails_alone(db: SqliteDriver, calls: Calls, culprit: str) -> None:
    await db.execute(insert(0))
    blocker = await calls.block()
    good = [await calls.queue(insert(key)) for key in (1, 2)]
    bad = await calls.queue(insert(3), Statement(culprit))
    good += [await calls.queue(insert(key)) for key in (4, 5)]
    blocker.scope.cancel()
    for call in (*good, bad):
        await call.ended.wait()
    assert isinstance(bad.outcome, StatementError)
    assert bad.outcome.code.startswith("SQLITE_CONSTRAINT")
    assert [call.outcome for call in good] == [[Changed(1, key)] for key in (1, 2, 4, 5)]
    assert await keys(db) == [0, 1, 2, 4, 5]


async def test_a_deferred_foreign_key_may_be_met_later_in_the_transaction(db: SqliteDriver) -> None:
    await db.transaction([Statement("insert into items values (7)"), insert(7)])
    with pytest.raises(StatementError, match="FOREIGN KEY constraint failed") as caught:
        await db.execute(Statement("insert into items values (8)"))
    assert caught.value.code == "SQLITE_CONSTRAINT_FOREIGNKEY"


async def test_cancelling_at_any_moment_leaves_no_doubt(db: SqliteDriver) -> None:
    done: list[int] = []

    async def write(key: int) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_after, scope, key % 23)
                await db.transaction([insert(key), Statement("update orders set amount = 1 where id = ?", (key,))])
                done.append(key)
                nursery.cancel_scope.cancel()

    async def cancel_after(scope: trio.CancelScope, steps: int) -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    for first in range(0, 600, 60):
        async with trio.open_nursery() as nursery:
            for key in range(first, first + 60):
                nursery.start_soon(write, key)
    assert await keys(db) == sorted(done)
    numbers = db.statistics()
    assert (numbers.waiting, numbers.running) == (0, 0)
    assert numbers.commits <= numbers.writes  # a batch nothing is left of is not committed


async def test_many_reads_cancelled_at_any_moment_never_hit_their_neighbours(db: SqliteDriver) -> None:
    async def slow(steps: int) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(db.fetch, Statement(ENDLESS_AND_SLOW if steps == 7 else ENDLESS))
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

    async def quick() -> None:
        answer = await db.fetch(Statement("select ?", ("quick",)))
        assert answer.rows == [("quick",)]

    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for steps in range(20):
                nursery.start_soon(slow, steps)
                nursery.start_soon(quick)


# ---- commits that fail, locks ---------------------------------------------------------------------


IN_A_CHILD = """
import resource, signal, sys, trio
from zerver.errors import ConnectionLost, StatementError
from zerver.sql.driver import Statement
from zerver.sql.sqlite import open_sqlite

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
outcomes = []

async def write(db, key):
    try:
        await db.execute(Statement("insert into orders values (?, zeroblob(20000))", (key,)))
    except Exception as error:
        outcomes.append((type(error).__name__, key))
    else:
        outcomes.append(("done", key))

async def main():
    async with open_sqlite(sys.argv[1], schema="create table orders (id integer primary key, data)") as db:
        await write(db, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # from here on, the disk refuses to grow the log
        async with trio.open_nursery() as nursery:
            for key in range(1, 6):
                nursery.start_soon(write, db, key)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await write(db, 6)
        rows = await db.fetch(Statement("select id from orders"))
        print(sorted(outcomes, key=lambda outcome: outcome[1]), rows.rows)

trio.run(main)
"""


def test_a_commit_the_disk_refuses_is_never_acknowledged(path: Path) -> None:
    # In a child, because the limit that makes the disk fail is the whole process's.
    child = subprocess.run([sys.executable, "-c", IN_A_CHILD, str(path)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    lost = [("ConnectionLost", key) for key in range(1, 6)]
    assert child.stdout.strip() == f"{[('done', 0), *lost, ('done', 6)]} [(0,), (6,)]"


def test_what_was_acknowledged_survives_the_process(path: Path) -> None:
    program = f"""
        import os, sys, trio
        from zerver.sql.driver import Statement
        from zerver.sql.sqlite import open_sqlite
        async def main():
            async with open_sqlite(sys.argv[1], schema={SCHEMA!r}) as db:
                await db.execute(Statement("insert into orders (id) values (1)"))
                os._exit(9)
        trio.run(main)
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], check=False)
    assert child.returncode == 9
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("select id from orders").fetchall() == [(1,)]


async def test_a_full_database_refuses_one_statement_and_goes_on(path: Path) -> None:
    async with open_sqlite(path, schema=f"{SCHEMA}; pragma max_page_count = 20") as db:
        with pytest.raises(StatementError, match="full") as caught:
            await db.execute(Statement("insert into orders (label) values (zeroblob(200000))"))
        assert caught.value.code == "SQLITE_FULL"
        await db.execute(insert(1))
        assert await keys(db) == [1]


async def test_a_lock_held_by_another_process_is_waited_for(db: SqliteDriver, path: Path, calls: Calls) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        write = calls.start(lambda: db.execute(insert(1)))
        cancelled = calls.start(lambda: db.execute(insert(2)))
        await until(lambda: db.statistics().waiting == 2)
        assert await keys(db) == []  # reads go on
        cancelled.scope.cancel()
        await cancelled.ended.wait()
        assert cancelled.cancelled
        other.execute("commit")
    await write.ended.wait()
    assert await keys(db) == [1]


async def test_a_lock_held_too_long_is_a_statement_error(path: Path, nursery: trio.Nursery) -> None:
    async with open_sqlite(path, schema=SCHEMA, busy_timeout=0.0) as db:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("begin immediate")
            with pytest.raises(StatementError, match=r"database is locked: insert into orders .*\n  another process"):
                await db.execute(insert(1))
        await db.execute(insert(1))


async def test_closing_ends_the_wait_for_a_lock(path: Path, nursery: trio.Nursery) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        async with open_sqlite(path, schema=SCHEMA, busy_timeout=3600) as db:
            other.execute("begin immediate")
            calls = [Call(lambda key=key: db.execute(insert(key))) for key in (1, 2)]
            for call in calls:
                nursery.start_soon(call.run)
            await until(lambda: db.statistics().waiting == 2)
        for call in calls:
            await call.ended.wait()
            assert isinstance(call.outcome, DriverClosed)


# ---- counts, parameters, messages ------------------------------------------------------------------


async def test_last_id_is_the_statements_own_or_none(db: SqliteDriver) -> None:
    assert await db.execute(insert(41, "a")) == Changed(1, 41)
    assert await db.execute(Statement("insert into orders (label) values (?)", ("b",))) == Changed(1, 42)
    upsert = "insert into orders (label) values ('a') on conflict (label) do update set amount = 1"
    for sql, count in {
        "update orders set amount = 2": 2,
        upsert: 1,
        "insert or ignore into orders (label) values ('a')": 0,
        "with x(label) as (values ('c'), ('d')) insert into orders (label) select label from x": 2,
        "with x(label) as (values ('c'), ('d')) delete from orders where label in x": 2,
        "with x(label) as (values ('e')) delete from orders where label in x": 0,
        "create index by_amount on orders (amount)": 0,
    }.items():
        assert await db.execute(Statement(sql)) == Changed(count, None), sql


async def test_parameters_are_stored_as_said(db: SqliteDriver) -> None:
    values = {
        True: 1,
        datetime.datetime(2031, 5, 6, 7, 8, tzinfo=datetime.UTC): "2031-05-06T07:08:00+00:00",
        datetime.date(2031, 5, 6): "2031-05-06",
        datetime.time(7, 8): "07:08:00",
    }
    for value, stored in values.items():
        assert (await db.fetch(Statement("select ?", (value,)))).rows == [(stored,)]
    assert (await db.fetch(Statement("select ?, ?", (bytearray(b"a"), memoryview(b"b"))))).rows == [(b"a", b"b")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2**63, "parameter 1 does not fit into 64 bits: select .*\n  pass it as text"),
        (float("nan"), "parameter 1 is NaN, which SQLite would store as NULL: .*\n  pass None"),
        (Decimal("1.5"), "parameter 1 is of type Decimal, which SQLite cannot store: .*\n  pass None, bool, int"),
        ("\ud800", "parameter 1 is no Unicode text: surrogates not allowed: .*\n  decode it"),
    ],
)
async def test_a_parameter_that_would_not_come_back_is_refused(db: SqliteDriver, value: object, message: str) -> None:
    for _ in range(3):  # and is told alike each time
        with pytest.raises(StatementError, match=message):
            await db.fetch(Statement("select ?, ?", (value, value)))


def test_a_string_is_not_taken_for_a_list_of_parameters() -> None:
    with pytest.raises(TypeError, match=r"write \('abc',\)"):
        Statement("select ?", "abc")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select * from nope", "no such table: nope: select .*\n  create it in open_sqlite"),
        ("\n  select 1;\n select 2", "one statement at a time.: select 1;\n  give the statements, one by one"),
        ("select ?", "Incorrect number of bindings.*\n  params holds one value for each"),
        ("insert into orders (id) values (1)", "readonly database: insert .*\n  fetch\\(\\) only reads"),
        ("begin", "BEGIN is not yours to send: begin\n  .* transaction\\(\\)"),
        ("pragma query_only = off", "PRAGMA is refused: .*\n  .*pragma_table_info"),
        ("attach 'other.db' as other", "ATTACH is refused: .*\n  open the other file"),
        ("vacuum", "VACUUM is refused"),
        ("select '\0'", "null"),
    ],
)
async def test_a_message_names_the_statement_and_the_cure(db: SqliteDriver, sql: str, message: str) -> None:
    with pytest.raises(StatementError, match=message):
        await db.fetch(Statement(sql))


async def test_a_long_statement_is_named_by_its_beginning(db: SqliteDriver) -> None:
    with pytest.raises(StatementError, match=r"no such column: nope: select nope, 0, 0.*…$"):
        await db.fetch(Statement("select nope" + ", 0" * 1000))


# ---- opening and closing ------------------------------------------------------------------------------


async def test_a_schema_is_all_or_nothing_and_may_run_again(path: Path) -> None:
    with pytest.raises(StatementError, match=r"no such table: nope: in the schema of .*shop\.db"):
        async with open_sqlite(path, schema=f"{SCHEMA}; insert into nope values (1)"):
            pass
    trigger = "create trigger if not exists t after insert on orders begin update orders set amount = 5; end; -- end"
    for _ in range(2):
        async with open_sqlite(path, schema=f"{SCHEMA}; {trigger}") as db:
            await db.execute(Statement("insert into orders (amount) values (1)"))
    async with open_sqlite(path) as db:
        assert (await db.fetch(Statement("select amount from orders"))).rows == [(5,), (5,)]


async def test_what_cannot_be_opened_is_a_driver_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is not a database, however long one looks at it" * 100)
    for name, message in {"no/such/folder/x.db": "unable to open", "text": "not a database"}.items():
        with pytest.raises(DriverError, match=f"cannot open .*{message}.*SQLITE_"):
            async with open_sqlite(tmp_path / name):
                pass
    with pytest.raises(ValueError, match="readers must be at least 1"):
        async with open_sqlite(tmp_path / "x.db", readers=0):
            pass


def test_a_table_is_looked_for_without_making_or_changing_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    (tmp_path / "text").write_text("this is no database, but a text that is long enough to look like none" * 10)
    with closing(sqlite3.connect(path)) as made:
        made.execute("create table items (id integer)")
    before = path.read_bytes()
    assert has_table(path, "items")
    assert not has_table(path, "nothing")
    assert path.read_bytes() == before
    for name in ("nothing", "text"):
        with pytest.raises(DriverError, match=f"cannot read .*{name}"):
            has_table(tmp_path / name, "orders")
    assert not (tmp_path / "nothing").exists()


async def test_opening_can_be_cancelled(path: Path) -> None:
    schema = f"create table t (n); insert into t {ENDLESS}"

    def writers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if str(path) in thread.name]

    async with trio.open_nursery() as nursery:

        async def open_endlessly() -> None:
            async with open_sqlite(path, schema=schema):
                raise AssertionError("unreachable")

        nursery.start_soon(open_endlessly)
        await until(lambda: len(writers()) == 1)
        nursery.cancel_scope.cancel()
    assert writers() == []


async def test_settings_are_what_was_asked_for(path: Path) -> None:
    sql = "select (select foreign_keys from pragma_foreign_keys), (select * from pragma_journal_mode), synchronous"
    for name, number in (("FULL", 2), ("NORMAL", 1)):
        async with open_sqlite(path, synchronous=name) as db:
            (answer,) = await db.transaction([Statement(f"{sql} from pragma_synchronous")])
            assert isinstance(answer, Rows)
            assert answer.rows == [(1, "wal", number)]


async def test_databases_in_memory_are_apart_and_their_reads_only_read() -> None:
    async with open_sqlite(":memory:", schema=SCHEMA) as one, open_sqlite(":memory:", schema=SCHEMA) as other:
        await one.execute(insert(1))
        assert (await keys(one), await keys(other)) == ([1], [])
        with pytest.raises(StatementError, match="readonly"):
            await one.fetch(insert(2))
        await one.execute(insert(2))
        assert one.statistics().connections == 1


async def test_opening_and_closing_200_times_leaves_nothing_behind(tmp_path: Path) -> None:
    async def once(number: int) -> None:
        async with open_sqlite(tmp_path / f"{number % 3}.db", readers=3, schema=SCHEMA) as db:
            await db.execute(insert(number))
            assert number in await keys(db)

    await once(0)
    before = threading.active_count(), len(os.listdir("/dev/fd"))
    for number in range(1, 200):
        await once(number)
    assert (threading.active_count(), len(os.listdir("/dev/fd"))) <= before


async def test_all_of_its_files_are_open_when_it_is(path: Path) -> None:
    async with open_sqlite(path, readers=3, schema=SCHEMA) as db:
        before = len(os.listdir("/dev/fd"))
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(keys, db)
        assert len(os.listdir("/dev/fd")) == before


def test_threads_end_when_the_run_ends_without_closing(path: Path) -> None:
    kept: list[object] = []

    async def main() -> None:
        opened = open_sqlite(path, schema=SCHEMA)
        kept.append(opened)
        await opened.__aenter__()

    trio.run(main)
    assert [thread.name for thread in threading.enumerate() if str(path) in thread.name] == []


async def test_under_a_mock_clock_closing_still_waits_for_the_threads(
    path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with open_sqlite(path, schema=SCHEMA) as db:
        await db.execute(insert(1))
        mock_clock.jump(10_000)
    assert [thread.name for thread in threading.enumerate() if str(path) in thread.name] == []


async def test_whoever_closes_last_takes_the_log_away(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with open_sqlite(folder / "shop.db", readers=8, schema="create table t (n)") as db:
            await db.execute(Statement("insert into t values (1)"))
            await db.fetch(Statement("select n from t"))
        assert os.listdir(folder) == ["shop.db"]
