"""A driver of the port that works at once, in the task that asks, on a SQLite connection of its own; and one that fails
when it is told to. No thread has a part in it, so that a test's clock is the only time there is."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Literal, NoReturn

import trio
import trio.lowlevel

from zerver.errors import ConnectionLost, DatabaseDown, StatementError
from zerver.sql.driver import Answer, Changed, Driver, DriverStatistics, Rows, Statement, check_answer

#: How a call fails: it has not happened, and that is known; it has not, and nobody knows; it has, and nobody knows.
How = Literal["down", "lost before", "lost after"]

HOWS: tuple[How, ...] = ("down", "lost before", "lost after")


class Inline:
    """See above. database: the connection; isolation_level=None."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute("pragma foreign_keys = on")

    async def fetch(self, statement: Statement) -> Rows:
        await trio.lowlevel.checkpoint()
        answer = self._perform(statement, Rows)
        if not isinstance(answer, Rows):
            raise TypeError(answer)
        return answer

    async def execute(self, statement: Statement) -> Changed:
        await trio.lowlevel.checkpoint()
        answer = self._perform(statement, Changed)
        if not isinstance(answer, Changed):
            raise TypeError(answer)
        return answer

    async def execute_returning(self, statement: Statement) -> Rows:
        return await self.fetch(statement)

    async def transaction(self, statements: Sequence[Statement]) -> list[Answer]:
        await trio.lowlevel.checkpoint()
        self._database.execute("begin immediate")
        try:
            answers = [self._perform(statement, None) for statement in statements]
        except BaseException:
            self._database.execute("rollback")
            raise
        self._database.execute("commit")
        return answers

    def statistics(self) -> DriverStatistics:
        return DriverStatistics(1, 0, 0, 0, 0, 0, 0, 0)

    def _perform(self, statement: Statement, wants: type[Answer] | None) -> Answer:
        try:
            cursor = self._database.execute(statement.sql, statement.params)
        except sqlite3.Error as error:
            raise StatementError(str(error), error.sqlite_errorname) from error
        answer: Answer
        if cursor.description is None:
            answer = Changed(cursor.rowcount, cursor.lastrowid)
        else:
            answer = Rows(tuple(column[0] for column in cursor.description), cursor.fetchall())
        check_answer(statement, answer, wants)
        return answer


class Failing:
    """A driver whose calls of these numbers fail, counted from the one that `arm` is followed by."""

    def __init__(self, inner: Driver, how: How) -> None:
        self.calls = 0
        self.failed = 0
        self._inner = inner
        self._how = how
        self._numbers: range = range(0)

    def arm(self, numbers: range) -> None:
        self.calls, self._numbers = 0, numbers

    async def fetch(self, statement: Statement) -> Rows:
        fails = await self._begins()
        rows = await self._inner.fetch(statement)
        return rows if not fails else self._lost()

    async def execute(self, statement: Statement) -> Changed:
        fails = await self._begins()
        changed = await self._inner.execute(statement)
        return changed if not fails else self._lost()

    async def execute_returning(self, statement: Statement) -> Rows:
        fails = await self._begins()
        rows = await self._inner.execute_returning(statement)
        return rows if not fails else self._lost()

    async def transaction(self, statements: Sequence[Statement]) -> list[Answer]:
        fails = await self._begins()
        answers = await self._inner.transaction(statements)
        return answers if not fails else self._lost()

    def statistics(self) -> DriverStatistics:
        return self._inner.statistics()

    async def _begins(self) -> bool:
        """Whether the call is to happen, and its answer to be lost."""
        self.calls += 1
        if self.calls not in self._numbers:
            return False
        self.failed += 1
        await trio.lowlevel.checkpoint()
        if self._how == "down":
            raise DatabaseDown("the database is away", 0.1)
        if self._how == "lost before":
            raise ConnectionLost("the connection was lost before the call")
        return True

    def _lost(self) -> NoReturn:
        raise ConnectionLost("the connection was lost behind the call")
