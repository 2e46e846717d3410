"""The proof kit of the SQL driver port: each promise of `zerver/sql/driver.py`, as a law that can be broken.

Law: a law knows the port and nothing else, and it fails with an AssertionError that names it. Raised, not
asserted, so that it holds under `python -O` too. Precedent: `trio.testing.check_two_way_stream`.

Nothing here sleeps: a law that needs a statement to be running watches the driver's statistics. Threads and
sockets do not stop for a mock clock, so use the real one.
"""

from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias

import attrs
import trio

from zerver.errors import ConnectionLost, DriverClosed, DriverError, StatementError
from zerver.runtime.groups import bare
from zerver.sql.driver import Changed, Driver, DriverStatistics, Rows, Statement
from zerver.testing.laws import Laws, require

# It never ends by itself; valid in SQLite and in PostgreSQL.
ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n where i < 0"

WRITERS = 100


async def check_driver(
    open_driver: Callable[[], AbstractAsyncContextManager[Driver]],
    *,
    slow_sql: str = ENDLESS,
    placeholder: Callable[[int], str] = lambda place: "?",
    persistent: bool = True,
    patience: float = 60.0,
) -> None:
    """Prove that a driver keeps the port's promises; AssertionError names the first law it breaks.

    open_driver: opens a driver on a database where the table `zerver_check` may be made and dropped. slow_sql: a
    select that runs until it is stopped, and gives one row with one column. placeholder: how the n-th parameter
    is written, counted from 1. persistent: open_driver opens the same database each time. patience: seconds
    after which a law is taken to hang.
    """
    for name, law in _law:
        try:
            with trio.fail_after(patience):
                async with open_driver() as driver:
                    case = _Case(driver, open_driver, slow_sql, placeholder, persistent)
                    await case.make_table()
                    await law(case)
        except trio.TooSlowError as error:
            raise AssertionError(f"check_driver: {name}: it hangs: not over after {patience} s") from error
        except Exception as error:
            broken = bare(error)
            what = broken if isinstance(broken, AssertionError) else repr(broken)
            raise AssertionError(f"check_driver: {name}: {what}") from broken


@attrs.frozen
class _Case:
    """A driver on an empty table, and a few ways to use it."""

    driver: Driver
    open_driver: Callable[[], AbstractAsyncContextManager[Driver]]
    slow_sql: str
    placeholder: Callable[[int], str]
    persistent: bool

    def statement(self, sql: str, *params: object, expect: int | None = None) -> Statement:
        """A statement; each ? in it becomes the dialect's own placeholder."""
        first, *rest = sql.split("?")
        parts = (self.placeholder(place) + part for place, part in enumerate(rest, 1))
        return Statement(first + "".join(parts), params, expect)

    def insert(self, key: int, label: str = "x") -> Statement:
        return self.statement("insert into zerver_check (id, label) values (?, ?)", key, label)

    def slow_insert(self, key: int) -> Statement:
        return self.statement(f"insert into zerver_check (id, label) select {key}, 'x' from ({self.slow_sql}) slow")

    def slow_select(self) -> Statement:
        return self.statement(self.slow_sql)

    async def make_table(self) -> None:
        columns = (
            "id bigint primary key, label text, amount bigint check (amount >= 0), ratio double precision,"
            " data bytea, flag boolean, moment timestamp"
        )
        await self.driver.execute(self.statement("drop table if exists zerver_check"))
        await self.driver.execute(self.statement(f"create table zerver_check ({columns})"))

    def is_running(self) -> bool:
        return self.driver.statistics().running > 0

    async def keys(self, driver: Driver | None = None) -> list[object]:
        answer = await (driver or self.driver).fetch(self.statement("select id from zerver_check order by id"))
        return [row[0] for row in answer.rows]


Call: TypeAlias = Callable[[], Awaitable[object]]
_law = LAWS = Laws[_Case]()


CANCELLED = "trio.Cancelled"  # what came of a call that raised it


async def _outcome(call: Call) -> object:
    try:
        return await call()
    except Exception as error:
        return error


async def _at_once(calls: Sequence[Call]) -> list[object]:
    """What came of each call, all made at the same time."""
    outcomes: list[object] = [None] * len(calls)

    async def one(place: int) -> None:
        outcomes[place] = await _outcome(calls[place])

    async with trio.open_nursery() as nursery:
        for place in range(len(calls)):
            nursery.start_soon(one, place)
    return outcomes


async def _each(verb: Callable[[Statement], Awaitable[object]], statements: Sequence[Statement]) -> list[object]:
    """What came of each statement, all performed at the same time."""
    return await _at_once([partial(verb, statement) for statement in statements])


async def _cancelled_when(call: Call, ready: Callable[[], bool]) -> object:
    """What came of a call that was cancelled as soon as `ready`: CANCELLED, its result, or its error."""
    outcomes: list[object] = []

    async def one(scope: trio.CancelScope) -> None:
        with scope:
            outcomes.append(await _outcome(call))
        if not outcomes:
            outcomes.append(CANCELLED)

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(one, scope)
        while not outcomes and not ready():
            await trio.lowlevel.checkpoint()
        scope.cancel()
    return outcomes[0]


async def _statement_error(call: Awaitable[object], what: str) -> StatementError:
    try:
        result = await call
    except StatementError as error:
        return error
    raise AssertionError(f"{what} gave {result!r}; a StatementError was due")


# ---- values, rows and counts ----------------------------------------------------------------------


@_law("values come back as they went in")
async def _values(case: _Case) -> None:
    moment = datetime.datetime(2031, 5, 6, 7, 8, 9, 123456)
    samples: list[tuple[str, object]] = [
        *(("label", text) for text in ("", "x", "naïve ✓ 🦉", "it's; -- 100% ?", "two\nlines")),
        *(("amount", number) for number in (0, 1, 2**31, 2**63 - 1)),
        *(("ratio", number) for number in (0.0, -1.5, 0.1, 1e300)),
        *(("data", data) for data in (b"", b"\x00\xff", bytes(range(256)))),
        *[("flag", True), ("flag", False), ("moment", moment)],
        *((column, None) for column in ("label", "amount", "ratio", "data", "flag", "moment")),
    ]
    for key, (column, value) in enumerate(samples):
        await case.driver.execute(case.statement(f"insert into zerver_check (id, {column}) values (?, ?)", key, value))
        answer = await case.driver.fetch(case.statement(f"select {column} from zerver_check where id = ?", key))
        require(answer.columns == (column,), f"the columns are {answer.columns!r}, not {(column,)!r}")
        ((back,),) = answer.rows
        same = back == value and (isinstance(value, bool) or type(back) is type(value))
        as_text = value is moment and back == moment.isoformat()
        require(same or as_text, f"{value!r} came back as {back!r}")


@_law("a value that cannot be stored is a StatementError")
async def _impossible_values(case: _Case) -> None:
    insert = "insert into zerver_check (id, amount) values (1, ?)"
    for value in (2**63, -(2**63) - 1, 10**40, object()):
        await _statement_error(case.driver.execute(case.statement(insert, value)), f"storing {value!r}")
    require(await case.keys() == [], "something was stored all the same")


@_law("a write tells how many rows it changed")
async def _counts(case: _Case) -> None:
    due = [(case.insert(key), 1) for key in range(5)]
    due += [
        (case.statement("update zerver_check set label = 'y' where id < ?", 3), 3),
        (case.statement("delete from zerver_check where id = ?", 99), 0),
        (case.statement("create table if not exists zerver_check (id bigint)"), 0),
    ]
    for statement, count in due:
        changed = await case.driver.execute(statement)
        require(changed.count == count, f"{statement.sql!r} changed {count} rows and gave {changed!r}")


@_law("returning answers with rows, and is committed")
async def _returning(case: _Case) -> None:
    sql = "insert into zerver_check (id, label) values (?, ?) returning id, label"
    answer = await case.driver.execute_returning(case.statement(sql, 7, "x"))
    require(answer == Rows(("id", "label"), [(7, "x")]), f"it answered {answer!r}")
    require(await case.keys() == [7], "the row is not there")


@_law("each verb gives one shape, and a statement of the other shape is refused and undone")
async def _shapes(case: _Case) -> None:
    sql = "insert into zerver_check (id) values (1) returning id"
    await _statement_error(case.driver.execute(case.statement(sql)), "execute() of a statement with rows")
    await _statement_error(case.driver.execute_returning(case.insert(2)), "execute_returning() without rows")
    await _statement_error(case.driver.fetch(case.insert(3)), "fetch() of a write")
    await _statement_error(case.driver.fetch(case.statement(sql)), "fetch() of a write that returns")
    require(await case.keys() == [], "a refused statement took effect")


# ---- transactions and visibility ------------------------------------------------------------------


@_law("a transaction is all or nothing, and answers in order")
async def _atomicity(case: _Case) -> None:
    count = case.statement("select count(*) from zerver_check")
    one, rows, two = await case.driver.transaction([case.insert(1), count, case.insert(2)])
    require([type(answer) for answer in (one, two)] == [Changed] * 2, f"the writes gave {one!r} and {two!r}")
    require(isinstance(rows, Rows) and rows.rows == [(1,)], f"a select after one insert gave {rows!r}")
    for bad in (case.insert(1), case.statement("select * from zerver_no_such_table")):
        for statements in ([bad, case.insert(8)], [case.insert(8), bad], [case.insert(8), bad, case.insert(9)]):
            await _statement_error(case.driver.transaction(statements), "a transaction with a bad statement")
            require(await case.keys() == [1, 2], "part of a failed transaction was done")


@_law("an expected number of rows is kept, or nothing is done")
async def _expect(case: _Case) -> None:
    await case.driver.execute(case.insert(1))
    update = "update zerver_check set label = ? where id = ?"
    await case.driver.execute(case.statement(update, "seen", 1, expect=1))
    await case.driver.fetch(case.statement("select id from zerver_check", expect=1))
    calls: list[Call] = [
        partial(case.driver.execute, case.statement(update, "lost", 2, expect=1)),
        partial(case.driver.execute, case.statement("update zerver_check set label = ?", "lost", expect=0)),
        partial(case.driver.fetch, case.statement("select id from zerver_check", expect=2)),
        partial(case.driver.transaction, [case.insert(9), case.statement(update, "lost", 2, expect=1)]),
    ]
    for call in calls:
        error = await _statement_error(call(), "a wrong number of rows")
        require(error.code == "ROW_COUNT", f'the code of {error!r} is {error.code!r}, not "ROW_COUNT"')
    rows = (await case.driver.fetch(case.statement("select id, label from zerver_check"))).rows
    require(rows == [(1, "seen")], f"something was done: {rows!r}")


@_law("an acknowledged write is seen by every later read")
async def _read_your_writes(case: _Case) -> None:
    for key in range(50):
        await case.driver.execute(case.insert(key))
        seen = await _at_once([case.keys] * 3)
        require(seen == [list(range(key + 1))] * 3, f"after {key + 1} writes reads saw {seen!r}")


@_law("an acknowledged write is committed: another driver sees it, and so does the next one")
async def _committed(case: _Case) -> None:
    if not case.persistent:
        return
    async with case.open_driver() as other:
        for key in range(20):
            await case.driver.execute(case.insert(key))
            seen = await case.keys(other)
            require(seen == list(range(key + 1)), f"after {key + 1} writes another driver saw {seen!r}")
    async with case.open_driver() as later:
        require(await case.keys(later) == list(range(20)), "writes were lost when a driver was closed")


@_law(f"{WRITERS} writers at once: each write happens exactly once")
async def _concurrency(case: _Case) -> None:
    outcomes = await _each(case.driver.execute, [case.insert(key) for key in range(WRITERS)])
    require(all(isinstance(outcome, Changed) for outcome in outcomes), f"they gave {set(map(repr, outcomes))}")
    require(await case.keys() == list(range(WRITERS)), "rows are missing, or there twice")


@_law("a bad statement fails alone: its neighbours are unharmed")
async def _neighbours(case: _Case) -> None:
    await case.driver.execute(case.insert(-1))
    bad = case.insert(-1), case.statement("insert into zerver_no_such_table values (1)"), case.statement("nonsense")
    statements = [bad[key % 3] if key % 5 == 0 else case.insert(key) for key in range(WRITERS)]
    for key, outcome in enumerate(await _each(case.driver.execute, statements)):
        due = StatementError if key % 5 == 0 else Changed
        require(isinstance(outcome, due), f"statement {key} gave {outcome!r}; {due.__name__} was due")
    good = [key for key in range(WRITERS) if key % 5]
    require(await case.keys() == [-1, *good], "rows of good neighbours are missing")


# ---- what is refused --------------------------------------------------------------------------------


@_law("a bad statement is a StatementError with a code, and the driver stays usable")
async def _errors(case: _Case) -> None:
    await case.driver.execute(case.insert(1))
    wrong = {
        "a syntax error": case.statement("selec 1"),
        "a missing table": case.statement("delete from zerver_no_such_table"),
        "a second row with the same key": case.insert(1),
        "a failed check": case.statement("insert into zerver_check (id, amount) values (2, ?)", -1),
        "too few parameters": case.statement("insert into zerver_check (id) values (?)"),
        "too many parameters": case.statement("insert into zerver_check (id) values (3)", 3),
    }
    for what, statement in wrong.items():
        error = await _statement_error(case.driver.execute(statement), what)
        require(bool(error.code), f"{what} has no code: {error!r}")
        require(await case.keys() == [1], f"after {what} the table has changed")


@_law("transactions are the driver's: begin, commit and their kin, and several statements, are refused")
async def _refused(case: _Case) -> None:
    words = ("begin", "COMMIT", "rollback", "-- a comment\n savepoint a", "/* two */ release a", "end", ";begin")
    for sql in (*words, "", "  -- nothing", "delete from zerver_check; delete from zerver_check"):
        for verb in (case.driver.execute, case.driver.execute_returning, case.driver.fetch):
            await _statement_error(verb(case.statement(sql)), f"{sql!r}")
        await _statement_error(case.driver.transaction([case.insert(1), case.statement(sql)]), f"{sql!r}")
    await case.driver.execute(case.insert(2))
    require(await case.keys() == [2], "a refused statement left something behind")


# ---- statistics, cancellation, closing ----------------------------------------------------------------


@_law("statistics add up: each call is counted once, and at rest nothing is under way")
async def _statistics(case: _Case) -> None:
    before = case.driver.statistics()
    require((before.waiting, before.running) == (0, 0), f"at rest: {before!r}")
    await _each(case.driver.fetch, [case.statement("select 1")] * 3)
    await case.driver.execute(case.insert(1))
    await case.driver.execute_returning(case.statement("insert into zerver_check (id) values (2) returning id"))
    await case.driver.transaction([case.insert(3), case.insert(4)])
    await _statement_error(case.driver.execute(case.insert(1)), "a second row with the same key")
    _counted(before, case.driver.statistics(), reads=3, writes=3, failed=1, cancelled=0)
    await _cancelled_when(partial(case.driver.fetch, case.slow_select()), case.is_running)
    _counted(before, case.driver.statistics(), reads=3, writes=3, failed=1, cancelled=1)


def _counted(before: DriverStatistics, after: DriverStatistics, **due: int) -> None:
    for what, number in due.items():
        counted = getattr(after, what) - getattr(before, what)
        require(counted == number, f"{number} {what} were counted as {counted}")
    require(0 < after.commits - before.commits <= due["writes"], f"{due['writes']} writes do not fit {after!r}")
    require((after.waiting, after.running) == (0, 0), f"at rest: {after!r}")


@_law("every verb is a checkpoint, and does nothing in a scope that is cancelled already")
async def _checkpoints(case: _Case) -> None:
    driver = case.driver
    calls: list[Call] = [
        lambda: driver.execute(case.insert(1)),
        lambda: driver.execute_returning(case.statement("insert into zerver_check (id) values (2) returning id")),
        lambda: driver.transaction([case.insert(3)]),
        lambda: driver.transaction([]),
        lambda: driver.fetch(case.statement("select 1")),
    ]
    for call in calls:
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        require(scope.cancelled_caught, "a call in a cancelled scope returned")
    require(await case.keys() == [], "a call in a cancelled scope took effect")


@_law("a cancelled read is stopped, and the driver stays usable")
async def _cancelled_read(case: _Case) -> None:
    for _ in range(10):
        outcome = await _cancelled_when(partial(case.driver.fetch, case.slow_select()), case.is_running)
        require(outcome is CANCELLED, f"it gave {outcome!r}")
        require(await case.keys() == [], "a later read is wrong")
    outcomes = await _at_once([case.keys] * 20)
    require(outcomes == [[]] * 20, f"later reads are wrong: {outcomes!r}")


@_law("a cancelled write is stopped and undone, and its neighbours are unharmed")
async def _cancelled_write(case: _Case) -> None:
    outcomes: list[object] = []

    async def neighbours(keys: range) -> None:
        outcomes.extend(await _each(case.driver.execute, [case.insert(key) for key in keys]))

    for first in range(0, 50, 10):
        slow = [case.insert(-1), case.slow_insert(-2)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(neighbours, range(first, first + 10))
            outcome = await _cancelled_when(partial(case.driver.transaction, slow), case.is_running)
        require(outcome is CANCELLED, f"it gave {outcome!r}")
    require(all(isinstance(outcome, Changed) for outcome in outcomes), f"neighbours gave {outcomes!r}")
    require(await case.keys() == list(range(50)), "its rows are there, or a neighbour's are not")


@_law("a write cancelled at any moment has happened if it returned, and has not if it raised Cancelled")
async def _cancelled_anywhere(case: _Case) -> None:
    for key in range(60):
        steps = iter(range(key % 20))
        call = partial(case.driver.execute, case.insert(key))
        outcome = await _cancelled_when(call, lambda steps=steps: next(steps, None) is None)  # type: ignore[misc]  # mypy cannot type a lambda that binds its loop's variable
        if isinstance(outcome, ConnectionLost):  # across a network nobody may know, and this says so
            continue
        require(outcome is CANCELLED or isinstance(outcome, Changed), f"it gave {outcome!r}")
        there = key in await case.keys()
        require(there == (outcome is not CANCELLED), f"it gave {outcome!r}, and the row's being there is {there}")


@_law("a call that waits its turn can be cancelled")
async def _cancelled_in_the_queue(case: _Case) -> None:
    def both_are_in() -> bool:
        numbers = case.driver.statistics()
        return numbers.waiting + numbers.running == 2

    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.driver.execute, case.slow_insert(1))
        outcome = await _cancelled_when(partial(case.driver.execute, case.insert(2)), both_are_in)
        nursery.cancel_scope.cancel()
    require(await case.keys() == ([] if outcome is CANCELLED else [2]), f"it gave {outcome!r}")


@_law("a closed driver raises DriverClosed")
async def _closed(case: _Case) -> None:
    async with case.open_driver() as driver:
        pass
    calls: list[Call] = [
        partial(driver.fetch, case.statement("select 1")),
        partial(driver.execute, case.insert(1)),
        partial(driver.execute_returning, case.insert(1)),
        partial(driver.transaction, [case.insert(1)]),
    ]
    for outcome in await _at_once(calls):
        require(isinstance(outcome, DriverClosed), f"it gave {outcome!r}")


@_law("closing ends every call under way; nobody hangs")
async def _closed_in_flight(case: _Case) -> None:
    outcomes: list[object] = []

    async def calls(driver: Driver) -> None:
        reads = [partial(driver.fetch, case.slow_select())] * 3
        writes = [partial(driver.execute, case.statement("drop table if exists zerver_other"))] * 3
        outcomes.extend(await _at_once([*reads, *writes]))

    async with trio.open_nursery() as nursery, case.open_driver() as driver:
        nursery.start_soon(calls, driver)
        while driver.statistics().running == 0:
            await trio.lowlevel.checkpoint()
    for outcome in outcomes:
        require(isinstance(outcome, Changed | DriverError), f"a call in flight gave {outcome!r}")


@_law("nothing leaks: tasks, threads and files are as before")
async def _leaks(case: _Case) -> None:
    async def use() -> None:
        async with case.open_driver() as driver:
            await _each(driver.fetch, [case.statement("select 1")] * 10)
            slow = partial(driver.fetch, case.slow_select())
            await _cancelled_when(slow, lambda: driver.statistics().running > 0)

    await use()  # Trio keeps a worker thread for a while, and a first use may open what is kept on purpose
    before = _held()
    for _ in range(5):
        await use()
    after = _held()
    for what, number in before.items():
        require(after[what] <= number, f"{what}: {number} before, {after[what]} after 5 drivers were opened and closed")


def _held() -> dict[str, int]:
    """What this process holds. Files: where the system tells."""
    listing = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), None)
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "threads": threading.active_count(),
        "files": len(os.listdir(listing)) if listing else 0,
    }
