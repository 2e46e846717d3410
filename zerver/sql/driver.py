"""The port every SQL database stands behind: four verbs, and what each of them promises.

Law: when a call returns, it has happened; when it raises StatementError, DatabaseDown, DriverClosed or Trio's
Cancelled, it has certainly not happened; when it raises ConnectionLost, nobody knows. There is no other end.
`zerver.testing.check_driver` is this page as a program: run it against your own driver.

- A write returns after its commit is as durable as the driver was opened to make it, never before.
- Every write has, in effect, a transaction of its own, even if the driver commits many callers' writes with
  one fsync: a statement that fails, or is cancelled, takes nothing of its neighbours with it.
- A read sees every write that had returned before it began, and none that is not committed.
- Cancelling a call stops its statement in the database, and the connection stays usable. A write which was
  already being committed ends first and returns its result, as a call of `trio.to_thread.run_sync` does; the
  cancellation is then delivered at the caller's next checkpoint. (A database across a network cannot always
  keep the second half of this promise; its driver says ConnectionLost then, never Cancelled.)

Refused, with a message that says what to do instead: several statements in one string; and BEGIN, COMMIT and
their kin, since connections are shared: `transaction()` is the one way to group statements.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import Protocol, TypeAlias

import attrs

from zerver.core.priorities import Priority
from zerver.core.values import value
from zerver.errors import StatementError


def _tuple(values: Iterable[object]) -> tuple[object, ...]:
    if isinstance(values, str | bytes):  # ("x") is no tuple, and would be taken apart into letters
        raise TypeError(f"params must be a sequence of values, not {values!r}; write ({values!r},)")
    return tuple(values)


@value
class Statement:
    """One SQL statement, and its parameters in the order of their placeholders.

    expect: how many rows it must change (or return, if it answers with rows). Any other number is a
    StatementError with the code "ROW_COUNT", and the transaction it stands in is undone: `update … where id = ?
    and version = ?` with `expect=1` is optimistic locking.

    accept: given the answer before the commit; what it raises is what the call raises, and the transaction is
    undone: who cannot use the answer has not written. It may be called again, in any thread, and must not wait.

    priority: the class in which the call waits when calls have to; a driver that has no queue may ignore it.
    """

    sql: str
    params: tuple[object, ...] = attrs.field(default=(), converter=_tuple)
    expect: int | None = None
    accept: Callable[[Answer], object] | None = attrs.field(default=None, eq=False, repr=False)
    priority: Priority = attrs.field(default="default", eq=False, repr=False)


@value
class Rows:
    """What a statement answered: the names of the columns, and a tuple for each row."""

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]


@value
class Changed:
    """What a statement did that answers with no rows.

    count: rows inserted, updated or deleted, without those that triggers touched. last_id: the key the database
    made for the last row inserted, None if it made none or does not tell; `returning` is the precise question.
    """

    count: int
    last_id: int | None = None


Answer: TypeAlias = Rows | Changed


@attrs.frozen
class DriverStatistics:
    """A snapshot of a driver. Every call ever made is counted in exactly one of the last six numbers.

    connections: how many are open. commits: transactions committed, fewer than `writes` if the driver commits
    several callers' writes as one. waiting: calls not begun. running: calls begun. reads, writes: calls that
    returned. failed: calls that raised a DriverError. cancelled: calls that raised Cancelled.
    """

    connections: int
    commits: int
    waiting: int
    running: int
    reads: int
    writes: int
    failed: int
    cancelled: int


class Driver(Protocol):
    """A database, open. Any number of tasks may use it at once.

    A driver is opened by an async context manager (`open_sqlite(path)`), and closed on leaving it: calls still
    under way then return, or raise DriverClosed; none is left hanging. Every verb is a checkpoint and raises
    StatementError, DatabaseDown, DriverClosed or ConnectionLost.
    """

    async def fetch(self, statement: Statement) -> Rows:
        """Perform one statement that reads. One that writes is a StatementError."""
        ...

    async def execute(self, statement: Statement) -> Changed:
        """Perform one statement that writes, in its own transaction. One that answers with rows is refused."""
        ...

    async def execute_returning(self, statement: Statement) -> Rows:
        """As `execute`, for a statement that answers with rows: `insert … returning id`."""
        ...

    async def transaction(self, statements: Sequence[Statement]) -> list[Answer]:
        """Perform all the statements or none, and give an answer for each, in order.

        A select among them sees the writes before it.
        """
        ...

    def statistics(self) -> DriverStatistics:
        """The driver's numbers at this moment."""
        ...


def at_once(driver: Driver) -> Callable[[Sequence[Statement]], Awaitable[list[Answer]]]:
    """A driver's quickest `transaction`, for those whose writes do no harm when they come again: where a server is told
    to commit together with the statements, a connection that breaks is ConnectionLost more often.
    """
    quick: Callable[[Sequence[Statement]], Awaitable[list[Answer]]]
    quick = getattr(driver, "write_at_once", driver.transaction)
    return quick


# ---- for those who write drivers ----------------------------------------------------------------

# Words that would open, close or nest a transaction behind the driver's back, in any dialect we know.
TRANSACTION_WORDS = frozenset({"abort", "begin", "commit", "end", "release", "rollback", "savepoint", "start"})

# What may stand before the first word. SQLite skips empty statements and a byte order mark: `;begin` begins.
_LEADING_WORD = re.compile(r"(?:[\s;\ufeff]|--[^\n]*|/\*.*?(?:\*/|\Z))*([A-Za-z]+|.)?", re.DOTALL)


@lru_cache(maxsize=1024)
def leading_word(sql: str) -> str:
    """A statement's first word in lower case, or its first sign; comments skipped; "" if nothing is left."""
    match = _LEADING_WORD.match(sql)
    return (match[1] or "").lower() if match else ""


def first_line(sql: str) -> str:
    """The first line that says something, cut to 80 characters: how an error message names a statement."""
    line = next((line.strip() for line in sql.splitlines() if line.strip()), "(empty)")
    return line if len(line) <= 80 else line[:79] + "…"


def statement_error(statement: Statement, problem: str, code: str, cure: str = "") -> StatementError:
    """The error for a bad statement: the problem and the statement on one line, the cure on the next."""
    message = f"{problem}: {first_line(statement.sql)}"
    return StatementError(f"{message}\n  {cure}" if cure else message, code)


def check_sendable(statement: Statement) -> None:
    """Raise StatementError if there is nothing to send, or it would begin or end a transaction by itself."""
    word = leading_word(statement.sql)
    if word in TRANSACTION_WORDS:
        cure = "the driver begins and commits; give the statements to transaction(), which does all or none"
        raise statement_error(statement, f"{word.upper()} is not yours to send", "TRANSACTION", cure)
    if not word:
        raise statement_error(statement, "there is no statement", "EMPTY")


def check_answer(statement: Statement, answer: Answer, wants: type[Answer] | None) -> None:
    """Raise StatementError if the answer is not of the wanted shape, or not of the expected number of rows; and what
    `accept` raises.

    To be called before the commit. wants: Rows, Changed, or None for either.
    """
    if wants is Changed and isinstance(answer, Rows):
        cure = "use execute_returning() for a write that returns rows, fetch() for a read"
        raise statement_error(statement, "execute() was given a statement that answers with rows", "ROWS", cure)
    if wants is Rows and isinstance(answer, Changed):
        cure = "use execute(), or add a `returning` clause"
        raise statement_error(statement, "a statement without rows was asked for rows", "NO_ROWS", cure)
    count = len(answer.rows) if isinstance(answer, Rows) else answer.count
    if statement.expect is not None and count != statement.expect:
        problem = f"expected {statement.expect} row{'s' * (statement.expect != 1)}, got {count}"
        raise statement_error(statement, problem, "ROW_COUNT", "nothing was changed: the transaction was undone")
    if statement.accept is not None:
        statement.accept(answer)
